package fuzz

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/test/cluster"
)

// world is a ring with one or two mounts, and the model.
type world struct {
	t      *testing.T
	seed   uint64
	rng    *rand.Rand
	mounts []*cluster.Peer
	at     int // the mount in use
	peers  []*cluster.Peer
	model  string
	pairs  []pair
	calls  int
	rounds int

	kinds  []kind
	single bool // each process always in its own subtree
}

// processes is how many make calls.
const processes = 3

func newWorld(t *testing.T, peers, mounts int) *world {
	w := &world{t: t, seed: seed(t), model: t.TempDir(), kinds: allKinds}
	w.rng = rand.New(rand.NewPCG(w.seed, 1))
	first := cluster.Init(t, cluster.Options{})
	if peers == 1 {
		w.mounts = []*cluster.Peer{first}
	} else {
		w.peers = []*cluster.Peer{first}
		for i := 1; i < peers; i++ {
			w.peers = append(w.peers, first.Join(t, fmt.Sprintf("peer%d", i), cluster.Options{}))
		}
		for i := range mounts {
			w.mounts = append(w.mounts, first.Join(t, fmt.Sprintf("client%d", i), cluster.Options{Capacity: "0"}))
		}
	}
	for _, p := range w.peers {
		p.Start()
	}
	for i, m := range w.mounts {
		m.Mnt = filepath.Join(t.TempDir(), fmt.Sprintf("mnt%d", i))
		m.Start()
	}
	w.mounts[0].Wait(time.Minute)
	for range processes {
		p, err := startPair()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.end)
		w.pairs = append(w.pairs, p)
	}
	return w
}

// fail reports a mismatch, and a shorter list of calls if there is one.
func (w *world) fail(err error) {
	w.t.Helper()
	var bad *mismatch
	var end *finished
	if errors.As(err, &end) {
		bad = end.mismatch
	} else if !errors.As(err, &bad) {
		w.t.Fatalf("MUTUALFS_SEED=%d: %v", w.seed, err)
	}
	w.t.Errorf("MUTUALFS_SEED=%d, round %d: %s", w.seed, w.rounds, bad.Report())
	if strings.Contains(bad.what, errHangs.Error()) {
		w.t.FailNow()
	}
	if short := shrink(bad, w.mounts[w.at].Mnt, w.model); short != nil {
		w.t.Fatalf("%d calls in a fresh directory show it:\n%s", len(short.steps), short.Report())
	}
	w.t.Fatal("the same calls in a fresh directory show no difference")
}

// until returns a source of calls from g that ends at n calls or at a deadline.
func until(g *generator, n int, deadline time.Time) (func() (Op, bool), *int) {
	made := 0
	return func() (Op, bool) {
		if made == n || time.Now().After(deadline) {
			return Op{}, false
		}
		made++
		return g.Next(), true
	}, &made
}

// perRound is how many calls a process makes in a round at most, and roundTime how long it may take.
const (
	perRound  = 1500
	roundTime = 4 * time.Second
)

// round lets all processes make calls, each in its own subtree or in turn in one, and compares.
func (w *world) round(deadline time.Time) {
	w.rounds++
	base := fmt.Sprintf("r%d", w.rounds)
	if end := time.Now().Add(roundTime); end.Before(deadline) {
		deadline = end
	}
	groups := [][]pair{w.pairs}
	if w.rng.IntN(2) == 0 || w.single {
		groups = nil
		for _, p := range w.pairs {
			groups = append(groups, []pair{p})
		}
	}
	errs := make([]error, len(groups))
	counts := make([]*int, len(groups))
	var wg sync.WaitGroup
	for i, group := range groups {
		real, model, err := makeRoots(w.mounts[w.at].Mnt, w.model, fmt.Sprintf("%s/p%d", base, i))
		if err != nil {
			w.t.Fatal(err)
		}
		for _, p := range group {
			if err := p.place(real, model); err != nil {
				w.t.Fatal(err)
			}
		}
		g := newGenerator(w.seed, uint64(w.rounds*100+i), model, len(group), w.kinds)
		next, made := until(g, perRound*len(group), deadline)
		counts[i] = made
		wg.Go(func() { errs[i] = play(group, next, g.Done) })
	}
	wg.Wait()
	for _, n := range counts {
		w.calls += *n
	}
	for _, err := range errs {
		var end *finished
		if !errors.As(err, &end) {
			w.fail(err)
		}
	}
	for i, group := range groups {
		for _, p := range group { // all descriptors closed
			if err := p.place("", ""); err != nil {
				w.fail(err)
			}
		}
		if d := w.compare(fmt.Sprintf("%s/p%d", base, i)); d != "" {
			var end *finished
			errors.As(errs[i], &end)
			end.what = "trees at the end: " + d
			w.fail(end)
		}
	}
}

// compare lists how a part of the mount differs from the model.
func (w *world) compare(rel string) string {
	d := compareTrees(filepath.Join(w.model, rel), filepath.Join(w.mounts[w.at].Mnt, rel))
	return strings.Join(d[:min(len(d), 10)], "\n  ")
}

// event is what happens between two rounds. Everything must be there afterwards.
func (w *world) event() {
	m := w.mounts[w.at]
	what := w.rng.IntN(4)
	switch {
	case what == 0:
		m.Unmount()
		m.Start()
	case what == 1:
		m.Kill()
		m.Start()
	case what == 2 && len(w.mounts) > 1:
		w.at = 1 - w.at
	case what == 3 && len(w.peers) > 0:
		w.changePeers()
	}
	if d := w.compare(""); d != "" {
		w.t.Fatalf("MUTUALFS_SEED=%d: after round %d and event %d (0 remount, 1 kill -9, 2 other mount, 3 peers):\n  %s", w.seed, w.rounds, what, d)
	}
}

// changePeers brings back the peers that are dead, or kills up to two.
func (w *world) changePeers() {
	dead := false
	for _, p := range w.peers {
		if !p.Running() {
			p.Start()
			dead = true
		}
	}
	if dead {
		w.mounts[w.at].Wait(2 * time.Minute)
		return
	}
	for _, i := range w.rng.Perm(len(w.peers))[:1+w.rng.IntN(2)] {
		w.peers[i].Kill()
	}
}

// keepRounds is how many rounds' trees stay, so that later events find something.
const keepRounds = 3

// forget removes a tree on both sides.
func (w *world) forget(round int) {
	if round <= 0 {
		return
	}
	for _, base := range []string{w.mounts[w.at].Mnt, w.model} {
		if err := os.RemoveAll(filepath.Join(base, fmt.Sprintf("r%d", round))); err != nil {
			w.t.Fatalf("MUTUALFS_SEED=%d: %v", w.seed, err)
		}
	}
}

func (w *world) run(d time.Duration) {
	deadline := time.Now().Add(d)
	for time.Now().Before(deadline) {
		w.round(deadline)
		w.forget(w.rounds - keepRounds)
		w.event()
	}
	var longest *proc
	for _, p := range w.pairs {
		if longest == nil || p.real.longest > longest.longest {
			longest = p.real
		}
	}
	w.t.Logf("%d calls in %d rounds; the longest took %v: %v", w.calls, w.rounds, longest.longest.Round(time.Millisecond), longest.slowest)
}

func TestOperations(t *testing.T) {
	t.Run("one", func(t *testing.T) { newWorld(t, 1, 1).run(duration(t, 10*time.Second)) })
	t.Run("six", func(t *testing.T) { newWorld(t, 6, 2).run(duration(t, 15*time.Second)) })
}

// TestOneFile is about the data of one file for each process.
func TestOneFile(t *testing.T) {
	w := newWorld(t, 1, 1)
	w.kinds, w.single = fileKinds, true
	w.run(duration(t, 10*time.Second))
}
