package fuzz

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mutualfs/mutualfs/test/cluster"
)

// perMount is how many processes of TestTorture are on each mount.
const perMount = 8

// TestTorture: no operation that was acknowledged is lost, none happens twice, and both mounts show the same.
func TestTorture(t *testing.T) {
	w := newWorld(t, 6, 2)
	for d := range sharedDirs {
		if err := unix.Mkdir(filepath.Join(w.mounts[0].Mnt, shared(d)), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	all := newContest()
	var workers []*torturer
	for i := range 2 * perMount {
		p, err := startProc()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.end)
		if _, err := p.do(Op{Kind: "root", Path: w.mounts[i%2].Mnt}); err != nil {
			t.Fatal(err)
		}
		workers = append(workers, &torturer{id: i, p: p, rng: rand.New(rand.NewPCG(w.seed, uint64(100+i))), all: all, won: map[int]any{}})
	}
	w.torture(workers, duration(t, 20*time.Second))
	want := expect(t, all, workers)
	for _, m := range w.mounts {
		checkNames(t, m, want)
		checkLogs(t, m, all)
	}
	if t.Failed() {
		return
	}
	if out, err := cluster.TryRun("", "check", "--data", w.mounts[0].Dir); err != nil {
		t.Errorf("MUTUALFS_SEED=%d: check: %v\n%s", w.seed, err, out)
	}
	var trees [2]map[string]node
	for i, m := range w.mounts { // what the registers have
		m.Unmount()
		m.Start()
		checkNames(t, m, want)
		var err error
		if trees[i], err = snapshot(m.Mnt); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range diffTrees(trees[0], trees[1]) {
		t.Errorf("MUTUALFS_SEED=%d: the mounts differ: %s", w.seed, d)
	}
}

// torture lets the processes do what they want for a while and kills peers all along.
func (w *world) torture(workers []*torturer, d time.Duration) {
	deadline := time.Now().Add(d)
	stop := make(chan struct{})
	var killer, wg sync.WaitGroup
	kills := 0
	killer.Go(func() { kills = w.killPeers(stop, 3*time.Second) })
	errs := make([]error, len(workers))
	for i, x := range workers {
		wg.Go(func() {
			for errs[i] == nil && time.Now().Before(deadline) {
				errs[i] = x.step()
			}
		})
	}
	wg.Wait()
	close(stop)
	killer.Wait()
	calls, slowest := 0, workers[0].p
	for i, x := range workers {
		if errs[i] != nil {
			w.t.Errorf("MUTUALFS_SEED=%d: %v", w.seed, errs[i])
		}
		if calls += x.calls; x.p.longest > slowest.longest {
			slowest = x.p
		}
	}
	w.t.Logf("%d calls while peers were killed %d times; the longest took %v: %v", calls, kills, slowest.longest.Round(time.Millisecond), slowest.slowest)
}

// killPeers kills one or two storage peers, lets them return, and so on until stop. It returns how many it killed.
func (w *world) killPeers(stop <-chan struct{}, pause time.Duration) (kills int) {
	timer := time.NewTicker(pause)
	defer timer.Stop()
	for {
		victims := w.rng.Perm(len(w.peers))[:1+w.rng.IntN(2)]
		select {
		case <-stop:
			return kills
		case <-timer.C:
		}
		for _, i := range victims {
			w.peers[i].Kill()
			kills++
		}
		<-timer.C
		for _, i := range victims {
			w.peers[i].Start()
		}
		w.mounts[0].Wait(3 * time.Minute) // before that, the next two may be two too many
	}
}

// expect is what must be there at the end: names with their number of links, 0 for a directory.
func expect(t *testing.T, all *contest, workers []*torturer) map[string]uint32 {
	t.Helper()
	want := map[string]uint32{}
	add := func(name string, n int) {
		if _, twice := want[name]; twice {
			t.Errorf("%s belongs to two", name)
		}
		want[name] = uint32(n)
	}
	for _, w := range workers {
		for _, f := range w.files {
			for _, n := range f.names {
				add(n, len(f.names))
			}
		}
		for _, d := range w.folders {
			add(d, 0)
		}
		for _, x := range w.won {
			if name, ok := x.(string); ok {
				add(name, 0)
			}
		}
	}
	once := func(name string, n int64, links int) {
		switch n {
		case 0:
		case 1:
			add(name, links)
		default:
			t.Errorf("%s was made %d times more often than it was taken away", name, n)
		}
	}
	for k, n := range all.made {
		once(freeFile(k), n, 1)
	}
	for k, n := range all.dirs {
		once(freeDir(k), n, 0)
	}
	return want
}

// checkNames compares what a mount shows with what must be there.
func checkNames(t *testing.T, m *cluster.Peer, want map[string]uint32) {
	t.Helper()
	tree, err := snapshot(m.Mnt)
	if err != nil {
		t.Fatalf("%s: %v", m.Name, err)
	}
	for name, n := range want {
		got, ok := tree[name]
		switch {
		case !ok:
			t.Errorf("%s: %s is missing", m.Name, name)
		case n != 0 && got.attr.Nlink != n, n == 0 && got.attr.Mode&unix.S_IFMT != unix.S_IFDIR:
			t.Errorf("%s: %s is %v, want %d links", m.Name, name, &got.attr, n)
		}
	}
	links := dirLinks(tree)
	for name, got := range tree {
		if n := links[name]; got.attr.Mode&unix.S_IFMT == unix.S_IFDIR && got.attr.Nlink != n {
			t.Errorf("%s: directory %s has %d links, want %d", m.Name, name, got.attr.Nlink, n)
		}
		if _, ok := want[name]; !ok && name != "." && filepath.Dir(name) != "." && !strings.Contains(name, "/log") {
			t.Errorf("%s: %s should not be there", m.Name, name)
		}
	}
}

// dirLinks counts the links that directories should have.
func dirLinks(tree map[string]node) map[string]uint32 {
	links := map[string]uint32{}
	for name, x := range tree {
		if x.attr.Mode&unix.S_IFMT == unix.S_IFDIR {
			links[name] += 2
			if name != "." {
				links[filepath.Dir(name)]++
			}
		}
	}
	return links
}

// checkLogs looks for all records that were acknowledged, each once and in order.
func checkLogs(t *testing.T, m *cluster.Peer, all *contest) {
	t.Helper()
	got := map[string]int{}
	for i := range logs {
		path := fmt.Sprintf("%s/log%d", shared(i%sharedDirs), i)
		text, err := os.ReadFile(filepath.Join(m.Mnt, path))
		if err != nil {
			t.Errorf("%s: %v", m.Name, err)
			continue
		}
		lines := bytes.Split(bytes.TrimSuffix(text, []byte("\n")), []byte("\n"))
		for n, line := range lines {
			number, who, _ := strings.Cut(string(line), " ")
			if number != fmt.Sprintf("%010d", n+1) {
				t.Errorf("%s: record %d of %s is %q", m.Name, n+1, path, line)
				break
			}
			got[path+" "+who]++
		}
	}
	for who, n := range all.appends {
		if got[who] != n {
			t.Errorf("%s: %d records of %s, %d were acknowledged", m.Name, got[who], who, n)
		}
	}
}
