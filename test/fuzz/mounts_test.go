package fuzz

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mutualfs/mutualfs/test/cluster"
)

// Names that TestTwoMounts fights for.
const (
	sharedDirs = 4
	perMount   = 4 // processes on each mount
	behind     = 8 // how far behind the newest contended name a process may pick
)

// contest counts who won what.
type contest struct {
	next atomic.Int64

	mu   sync.Mutex
	wins map[int64][]string // by number: where the winners say that it is now
	dirs map[int64]int64    // how often a directory was made, less how often it was removed
}

// worker is one process: what it was told.
type worker struct {
	id     int
	p      *proc
	rng    *rand.Rand
	all    *contest
	tokens map[string][]string // its own files by token: all names
	calls  int
	n      int
}

func shared(d int) string { return fmt.Sprintf("s%d", d) }

func (w *worker) dir() string { return shared(w.rng.IntN(sharedDirs)) }

// call makes a call and returns whether it succeeded. Only the expected errors may come.
func (w *worker) call(o Op, expected ...syscall.Errno) (bool, error) {
	o.At, o.At2 = noSlot, noSlot
	r, err := w.p.do(o)
	if err != nil {
		return false, err
	}
	w.calls++
	if r.Errno == 0 {
		return true, nil
	}
	for _, e := range expected {
		if r.Errno == e {
			return false, nil
		}
	}
	return false, fmt.Errorf("process %d: %v: %w", w.id, o, r.Errno)
}

// contended is the number of a name that others want, too.
func (w *worker) contended() int64 {
	if w.rng.IntN(4) == 0 {
		return w.all.next.Add(1)
	}
	return max(w.all.next.Load()-w.rng.Int64N(behind), 0)
}

func (w *worker) unique(what string) string {
	w.n++
	return fmt.Sprintf("%s/%s%d-%d", w.dir(), what, w.id, w.n)
}

// step makes one or two random calls.
func (w *worker) step() error {
	switch w.rng.IntN(8) {
	case 0:
		return w.create()
	case 1:
		return w.take()
	case 2:
		return w.directory()
	case 3:
		return w.token()
	case 4, 5:
		return w.move()
	case 6:
		return w.link()
	}
	return w.unlink()
}

// create wants to be the only one that makes a name.
func (w *worker) create() error {
	k := w.contended()
	name := fmt.Sprintf("%s/x%d", shared(int(k%sharedDirs)), k)
	won, err := w.call(Op{Kind: "mknod", Path: name, Mode: unix.S_IFREG | 0o644}, syscall.EEXIST)
	if won {
		w.all.mu.Lock()
		w.all.wins[k] = append(w.all.wins[k], name)
		w.all.mu.Unlock()
	}
	return err
}

// take wants to be the only one that renames a name of create to one of its own. Such a name is made once more after
// that at most by a create that counts as a second file of the number.
func (w *worker) take() error {
	k := w.contended()
	from := fmt.Sprintf("%s/x%d", shared(int(k%sharedDirs)), k)
	to := w.unique(fmt.Sprintf("y%d-", k))
	won, err := w.call(Op{Kind: "rename", Path: from, Path2: to}, syscall.ENOENT)
	if won {
		w.all.mu.Lock()
		w.all.wins[k] = append(w.all.wins[k], "-"+from, to)
		w.all.mu.Unlock()
	}
	return err
}

// directory makes or removes a directory that others make and remove.
func (w *worker) directory() error {
	k := w.contended()
	o := Op{Kind: "mkdir", Path: fmt.Sprintf("%s/d%d", shared(int(k%sharedDirs)), k), Mode: 0o755}
	by := int64(1)
	if w.rng.IntN(2) == 0 {
		o.Kind, o.Mode, o.Flags, by = "unlink", 0, unix.AT_REMOVEDIR, -1
	}
	won, err := w.call(o, syscall.EEXIST, syscall.ENOENT)
	if won {
		w.all.mu.Lock()
		w.all.dirs[k] += by
		w.all.mu.Unlock()
	}
	return err
}

// token makes a file that nobody else touches.
func (w *worker) token() error {
	name := w.unique("t")
	ok, err := w.call(Op{Kind: "mknod", Path: name, Mode: unix.S_IFREG | 0o600})
	if ok {
		w.tokens[name] = []string{name}
	}
	return err
}

// mine picks a token and one of its names.
func (w *worker) mine() (token string, i int, ok bool) {
	n := w.rng.IntN(max(len(w.tokens), 1))
	for _, k := range slices.Sorted(maps.Keys(w.tokens)) {
		if n == 0 {
			return k, w.rng.IntN(len(w.tokens[k])), true
		}
		n--
	}
	return "", 0, false
}

func (w *worker) move() error {
	t, i, ok := w.mine()
	if !ok {
		return w.token()
	}
	to := w.unique("m")
	ok, err := w.call(Op{Kind: "rename", Path: w.tokens[t][i], Path2: to})
	if ok {
		w.tokens[t][i] = to
	}
	return err
}

func (w *worker) link() error {
	t, i, ok := w.mine()
	if !ok {
		return w.token()
	}
	to := w.unique("l")
	ok, err := w.call(Op{Kind: "link", Path: w.tokens[t][i], Path2: to})
	if ok {
		w.tokens[t] = append(w.tokens[t], to)
	}
	return err
}

func (w *worker) unlink() error {
	t, i, ok := w.mine()
	if !ok {
		return w.token()
	}
	names := w.tokens[t]
	ok, err := w.call(Op{Kind: "unlink", Path: names[i]})
	if ok {
		if names = append(names[:i:i], names[i+1:]...); len(names) == 0 {
			delete(w.tokens, t)
		} else {
			w.tokens[t] = names
		}
	}
	return err
}

// expect is what must be there at the end: names with their number of links.
func expect(t *testing.T, all *contest, workers []*worker) map[string]uint32 {
	want := map[string]uint32{}
	for _, w := range workers {
		for _, names := range w.tokens {
			for _, n := range names {
				want[n] = uint32(len(names))
			}
		}
	}
	for k, events := range all.wins {
		made, taken := 0, 0
		name := fmt.Sprintf("%s/x%d", shared(int(k%sharedDirs)), k)
		for _, e := range events {
			switch e {
			case name:
				made++
			case "-" + name:
				taken++
			default:
				want[e] = 1
			}
		}
		switch made - taken {
		case 0:
		case 1:
			want[name] = 1
		default:
			t.Errorf("%s was made %d times and renamed %d times", name, made, taken)
		}
	}
	for k, n := range all.dirs {
		name := fmt.Sprintf("%s/d%d", shared(int(k%sharedDirs)), k)
		switch n {
		case 0:
		case 1:
			want[name] = 2
		default:
			t.Errorf("%s was made %d times more than it was removed", name, n)
		}
	}
	return want
}

// killPeers kills up to two storage peers, lets them return, and so on until stop.
func (w *world) killPeers(stop <-chan struct{}, pause time.Duration) {
	timer := time.NewTicker(pause)
	defer timer.Stop()
	for {
		victims := w.rng.Perm(len(w.peers))[:2]
		select {
		case <-stop:
			return
		case <-timer.C:
		}
		for _, i := range victims {
			w.peers[i].Kill()
		}
		<-timer.C
		for _, i := range victims {
			w.peers[i].Start()
		}
		w.mounts[0].Wait(3 * time.Minute)
	}
}

func TestTwoMounts(t *testing.T) {
	w := newWorld(t, 6, 2)
	for d := range sharedDirs {
		if err := unix.Mkdir(filepath.Join(w.mounts[0].Mnt, shared(d)), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	all := &contest{wins: map[int64][]string{}, dirs: map[int64]int64{}}
	var workers []*worker
	for i := range 2 * perMount {
		p, err := startProc()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.end)
		if _, err := p.do(Op{Kind: "root", Path: w.mounts[i%2].Mnt}); err != nil {
			t.Fatal(err)
		}
		workers = append(workers, &worker{id: i, p: p, rng: rand.New(rand.NewPCG(w.seed, uint64(100+i))), all: all, tokens: map[string][]string{}})
	}
	deadline := time.Now().Add(duration(t, 15*time.Second))
	stop := make(chan struct{})
	var killer, wg sync.WaitGroup
	killer.Go(func() { w.killPeers(stop, 4*time.Second) })
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
	calls, longest := 0, time.Duration(0)
	for i, x := range workers {
		if errs[i] != nil {
			t.Errorf("MUTUALFS_SEED=%d: %v", w.seed, errs[i])
		}
		calls, longest = calls+x.calls, max(longest, x.p.longest)
	}
	t.Logf("%d calls; the longest took %v", calls, longest.Round(time.Millisecond))
	want := expect(t, all, workers)
	for _, m := range w.mounts {
		checkNames(t, m, want)
	}
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
		case got.attr.Nlink != n:
			t.Errorf("%s: %s has %d links, want %d", m.Name, name, got.attr.Nlink, n)
		}
	}
	for name := range tree {
		if _, ok := want[name]; !ok && name != "." && filepath.Dir(name) != "." {
			t.Errorf("%s: %s should not be there", m.Name, name)
		}
	}
}
