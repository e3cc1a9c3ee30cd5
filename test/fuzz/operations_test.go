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
	at     int // the mount in use, if not all are
	peers  []*cluster.Peer
	model  string
	pairs  []pair
	calls  int
	rounds int

	forgotten int    // rounds whose trees are removed
	events    string // between the rounds

	kinds    []kind
	single   bool // each process always in its own subtree
	shared   bool // the processes use the mounts in turn
	perRound int  // calls of a process in a round
}

// newWorld makes a ring of so many peers, and mounts it: a ring of one on its only peer and clients, a larger one on clients.
func newWorld(t *testing.T, peers, mounts int) *world {
	w := &world{t: t, seed: seed(t), model: t.TempDir(), kinds: allKinds, perRound: 400}
	w.rng = rand.New(rand.NewPCG(w.seed, 1))
	first := cluster.Init(t, cluster.Options{})
	if peers == 1 {
		w.mounts = []*cluster.Peer{first}
	} else {
		w.peers = []*cluster.Peer{first}
		for i := 1; i < peers; i++ {
			w.peers = append(w.peers, first.Join(t, fmt.Sprintf("peer%d", i), cluster.Options{}))
		}
	}
	for i := len(w.mounts); i < mounts; i++ {
		w.mounts = append(w.mounts, first.Join(t, fmt.Sprintf("client%d", i), cluster.Options{Capacity: "0"}))
	}
	for _, p := range w.peers {
		p.Start()
	}
	for i, m := range w.mounts {
		m.Mnt = filepath.Join(t.TempDir(), fmt.Sprintf("mnt%d", i))
		m.Start()
	}
	w.mounts[0].Wait(time.Minute)
	return w
}

// processes starts so many, each with its twin.
func (w *world) processes(n int) *world {
	for range n {
		p, err := startPair()
		if err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(p.end)
		w.pairs = append(w.pairs, p)
	}
	return w
}

// bases are the mounts in use and the model.
func (w *world) bases() bases {
	b := bases{model: w.model}
	for i, m := range w.mounts {
		if w.shared || i == w.at {
			b.mounts = append(b.mounts, m.Mnt)
		}
	}
	return b
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
	if short := shrink(bad, w.bases()); short != nil {
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

// groups are the processes that share a subtree, where each call waits for the one before: all of them, or each alone (with
// its like on the other mount).
func (w *world) groups() [][]pair {
	size := 1
	if w.shared {
		size = len(w.mounts)
	}
	if w.rng.IntN(2) == 0 && !w.single {
		size = len(w.pairs)
	}
	var g [][]pair
	for i := 0; i < len(w.pairs); i += size {
		g = append(g, w.pairs[i:i+size])
	}
	return g
}

// round lets all processes make calls and compares. How many calls depends on nothing but the seed, unless the deadline comes.
func (w *world) round(deadline time.Time) {
	w.rounds++
	b, groups := w.bases(), w.groups()
	name := func(i int) string { return fmt.Sprintf("r%d/p%d", w.rounds, i) }
	errs, counts := make([]error, len(groups)), make([]*int, len(groups))
	disturbed := w.disturb()
	var wg sync.WaitGroup
	for i, group := range groups {
		if err := b.makeRoots(group, name(i)); err != nil {
			w.t.Fatalf("MUTUALFS_SEED=%d, round %d: %v", w.seed, w.rounds, err)
		}
		g := newGenerator(w.seed, uint64(w.rounds*100+i), filepath.Join(w.model, name(i), below), len(group), w.kinds)
		g.shared = w.shared
		next, made := until(g, w.perRound*len(group), deadline)
		counts[i] = made
		wg.Go(func() { errs[i] = play(group, next, g.Done) })
	}
	wg.Wait()
	disturbed()
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
		if err := b.place(group, ""); err != nil { // all descriptors closed
			w.fail(err)
		}
		if d := b.compare(name(i)); len(d) > 0 {
			var end *finished
			errors.As(errs[i], &end)
			end.what = "trees at the end: " + strings.Join(d, "\n  ")
			w.fail(end)
		}
	}
}

// disturbance is how soon in a round peers are killed at the latest.
const disturbance = 500 * time.Millisecond

// disturb kills peers in some rounds, at any time of it. The function returned waits for that.
func (w *world) disturb() (wait func()) {
	if len(w.peers) == 0 || w.rng.IntN(3) > 0 || w.anyDead() {
		return func() {}
	}
	victims, early := w.victims(), make(chan struct{})
	pause := time.NewTimer(time.Duration(w.rng.Int64N(int64(disturbance))))
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-pause.C:
		case <-early: // the calls were faster
		}
		for _, p := range victims {
			p.Kill()
		}
	})
	return func() {
		close(early)
		wg.Wait()
	}
}

// event is what happens between two rounds. Everything must be there afterwards.
func (w *world) event(deadline time.Time) {
	i, what := w.at, w.rng.IntN(5)
	if w.shared {
		i = w.rng.IntN(len(w.mounts))
	}
	m := w.mounts[i]
	w.events += fmt.Sprint(what)
	switch {
	case what == 0:
		m.Unmount()
		m.Start()
	case what == 1:
		m.Kill()
		m.Start()
	case what == 2 && w.shared:
		for _, m := range w.mounts {
			m.Kill()
		}
		for _, m := range w.mounts {
			m.Start()
		}
	case what == 2 && len(w.mounts) > 1:
		w.at = 1 - w.at
	case what == 3 && len(w.peers) > 0:
		w.changePeers()
	case what == 4 && w.shared && len(w.peers) > 0:
		w.without(i, deadline)
	}
	if d := w.bases().compare(""); len(d) > 0 {
		w.t.Fatalf("MUTUALFS_SEED=%d: after round %d and event %d of mount %d (0 remount, 1 kill -9, 2 other mount or all killed, 3 peers, 4 dead for a round):\n  %s",
			w.seed, w.rounds, what, i, strings.Join(d, "\n  "))
	}
}

// without stores everything on a mount, kills it, and goes on without it for a round: the other mount takes its leases when it
// has been silent for long enough, and both see the same when it is back.
func (w *world) without(i int, deadline time.Time) {
	w.t.Helper()
	m := w.mounts[i]
	root, err := os.Open(m.Mnt)
	if err == nil {
		err = errors.Join(root.Sync(), root.Close())
	}
	if err != nil {
		w.t.Fatalf("MUTUALFS_SEED=%d: sync of mount %d: %v", w.seed, i, err)
	}
	m.Kill()
	w.shared, w.at = false, 1-i
	w.round(deadline)
	w.shared = true
	m.Start()
}

func (w *world) anyDead() bool {
	for _, p := range w.peers {
		if !p.Running() {
			return true
		}
	}
	return false
}

// victims are as many peers as may be gone, or one less.
func (w *world) victims() []*cluster.Peer {
	var v []*cluster.Peer
	for _, i := range w.rng.Perm(len(w.peers))[:1+w.rng.IntN(2)] {
		v = append(v, w.peers[i])
	}
	return v
}

// changePeers brings back the peers that are dead, or kills up to two: also those that coordinate.
func (w *world) changePeers() {
	if !w.anyDead() {
		for _, p := range w.victims() {
			p.Kill()
		}
		return
	}
	for _, p := range w.peers {
		if !p.Running() {
			p.Start()
		}
	}
	w.mounts[w.at].Wait(2 * time.Minute)
}

// keepRounds is how many rounds' trees stay, so that later events find something.
const keepRounds = 3

// forget removes the trees of older rounds on both sides.
func (w *world) forget() {
	for ; w.forgotten < w.rounds-keepRounds; w.forgotten++ {
		if err := w.bases().remove(fmt.Sprintf("r%d", w.forgotten+1)); err != nil {
			w.t.Fatalf("MUTUALFS_SEED=%d: %v", w.seed, err)
		}
	}
}

func (w *world) run(d time.Duration) {
	deadline := time.Now().Add(d)
	for time.Now().Before(deadline) {
		w.round(deadline)
		w.forget()
		w.event(deadline)
	}
	var longest *proc
	for _, p := range w.pairs {
		if longest == nil || p.real.longest > longest.longest {
			longest = p.real
		}
	}
	w.t.Logf("%d calls in %d rounds, events %s; the longest took %v: %v", w.calls, w.rounds, w.events, longest.longest.Round(time.Millisecond), longest.slowest)
}

func TestOperations(t *testing.T) {
	t.Run("one", func(t *testing.T) { newWorld(t, 1, 1).processes(3).run(duration(t, 8*time.Second)) })
	t.Run("six", func(t *testing.T) { newWorld(t, 6, 2).processes(3).run(duration(t, 12*time.Second)) })
}

// TestShared is TestOperations with processes on two mounts that take turns.
func TestShared(t *testing.T) {
	run := func(t *testing.T, peers int, usual time.Duration) {
		w := newWorld(t, peers, 2).processes(4)
		w.kinds, w.shared, w.perRound = sharedKinds, true, 40
		w.run(duration(t, usual))
	}
	t.Run("one", func(t *testing.T) { run(t, 1, 8*time.Second) })
	t.Run("six", func(t *testing.T) { run(t, 6, 12*time.Second) })
}

// TestOneFile is about the data of one file for each process.
func TestOneFile(t *testing.T) {
	w := newWorld(t, 1, 1).processes(3)
	w.kinds, w.single = fileKinds, true
	w.run(duration(t, 8*time.Second))
}
