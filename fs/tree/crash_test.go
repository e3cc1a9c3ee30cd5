package tree_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
	"github.com/mutualfs/mutualfs/fs/tree/treetest"
)

// eventually polls until f is true.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}

func mustMake(t testing.TB, m *mount, dir tree.Ino, name string, mode uint32) tree.Ino {
	t.Helper()
	a, _, err := m.Make(t.Context(), dir, name, tree.MakeArgs{Mode: mode, Excl: true})
	if err != nil {
		t.Fatalf("make %s: %v", name, err)
	}
	return a.Ino
}

const (
	regMode = syscall.S_IFREG | 0o644
	dirMode = syscall.S_IFDIR | 0o755
)

// Operations over several containers, with a death at each of their steps, before the step and after
// it: another mount and the next life find everything as before or as afterwards.
func TestCrashInTransaction(t *testing.T) {
	setup := func(t *testing.T, m *mount) {
		a, b := mustMake(t, m, tree.RootIno, "a", dirMode), mustMake(t, m, tree.RootIno, "b", dirMode)
		mustMake(t, m, a, "f", regMode)
		mustMake(t, m, b, "g", regMode)
		mustMake(t, m, mustMake(t, m, a, "d", dirMode), "x", regMode)
		mustMake(t, m, b, "e", dirMode)
		h := mustMake(t, m, a, "h", regMode)
		if _, err := m.Link(t.Context(), h, b, "h"); err != nil {
			t.Fatal(err)
		}
		if err := m.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	in := func(m *mount, path ...string) tree.Ino { return find(t, m, path...) }
	for name, op := range map[string]func(ctx context.Context, m *mount) error{
		"move a file":           func(ctx context.Context, m *mount) error { return m.Rename(ctx, in(m, "a"), "f", in(m, "b"), "n", 0) },
		"move over a file":      func(ctx context.Context, m *mount) error { return m.Rename(ctx, in(m, "a"), "f", in(m, "b"), "g", 0) },
		"move a directory":      func(ctx context.Context, m *mount) error { return m.Rename(ctx, in(m, "a"), "d", in(m, "b"), "n", 0) },
		"move over a directory": func(ctx context.Context, m *mount) error { return m.Rename(ctx, in(m, "a"), "d", in(m, "b"), "e", 0) },
		"exchange":              func(ctx context.Context, m *mount) error { return m.Rename(ctx, in(m, "a"), "f", in(m, "b"), "e", 2) },
		"link to another": func(ctx context.Context, m *mount) error {
			_, err := m.Link(ctx, in(m, "a", "f"), in(m, "b"), "n")
			return err
		},
		"unlink a promoted inode":  func(ctx context.Context, m *mount) error { return m.Unlink(ctx, in(m, "a"), "h") },
		"replace a promoted inode": func(ctx context.Context, m *mount) error { return m.Rename(ctx, in(m, "a"), "f", in(m, "a"), "h", 0) },
		"rmdir": func(ctx context.Context, m *mount) error {
			return errors.Join(m.Rmdir(ctx, in(m, "b"), "e"), m.Sync(ctx))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ring := newRing(t)
			m := start(t, ring, 1, t.TempDir(), nil)
			setup(t, m)
			before := dump(t, m)
			m.end(t)
			base := ring.Clone()
			m = start(t, ring, 1, t.TempDir(), nil)
			if err := op(t.Context(), m); err != nil {
				t.Fatal(err)
			}
			after := dump(t, m)
			var seen [2]int
			for step := 0; ; step++ {
				done := crashAt(t, base.Clone(), step, func(*tree.Config) {}, op, before, after, &seen)
				if done {
					break
				}
			}
			if seen[0] == 0 || seen[1] == 0 {
				t.Errorf("seen as before %d times, as afterwards %d times", seen[0], seen[1])
			}
		})
	}
}

// crashAt runs op and kills the mount at a step: even ones before a proposal takes effect, odd ones
// after it. It reports whether op came to its end before.
func crashAt(t *testing.T, ring *treetest.Ring, step int, edit func(*tree.Config), op func(context.Context, *mount) error, before, after []string, seen *[2]int) bool {
	t.Helper()
	m := start(t, ring, 1, t.TempDir(), func(c *tree.Config) { edit(c); c.CommitTimeout = 100 * time.Millisecond })
	dump(t, m) // loads, and takes the leases
	var n atomic.Int64
	crashed := make(chan struct{})
	m.regs.SetFault(func(write bool, _ blocks.RegisterID, c *blocks.Change) treetest.Fault {
		if !write || c.Seq == 0 {
			return treetest.Fault{}
		}
		i := int(n.Add(1)) - 1
		if i < step/2 {
			return treetest.Fault{}
		}
		if i == step/2 {
			close(crashed)
		}
		return treetest.Fault{Err: fmt.Errorf("%w: killed", blocks.ErrInvalid), Lost: i == step/2 && step%2 == 1}
	})
	err := op(t.Context(), m)
	select {
	case <-crashed:
	default:
		if err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		return true
	}
	dir := m.kill(t)
	second := start(t, ring, 2, t.TempDir(), edit)
	dump(t, second) // whoever meets a name without its directory clears it
	other := dump(t, second)
	switch {
	case slices.Equal(other, before):
		seen[0]++
	case slices.Equal(other, after):
		seen[1]++
	default:
		t.Fatalf("step %d: neither before nor afterwards:\n%s\nbefore\n%s\nafter\n%s", step,
			strings.Join(other, "\n"), strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	third := start(t, ring, 1, dir, edit)
	again := dump(t, third)
	sweep(t, fmt.Sprintf("step %d", step), ring, third, second)
	if !slices.Equal(again, after) && !slices.Equal(again, other) {
		t.Fatalf("step %d: the next life sees neither what was nor what was meant:\n%s", step, strings.Join(again, "\n"))
	}
	return false
}

// What was pending when the lease was lost is kept beside what others did meanwhile.
func TestFenced(t *testing.T) {
	ring := newRing(t)
	a := start(t, ring, 1, t.TempDir(), func(c *tree.Config) { c.FlushAge = time.Hour })
	b := start(t, ring, 2, t.TempDir(), nil)
	ctx := t.Context()
	kept := mustMake(t, a, tree.RootIno, "kept", regMode)
	if err := a.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	mustMake(t, a, tree.RootIno, "both.txt", regMode)
	mustMake(t, a, tree.RootIno, "mine", regMode)
	mustMake(t, a, mustMake(t, a, tree.RootIno, "dir", dirMode), "in", regMode)
	if err := a.Writeback(ctx, tree.Writeback{Ino: kept, Inline: []byte("new"), Size: 3}); err != nil {
		t.Fatal(err)
	}
	a.regs.SetMistrust(true)
	ring.FenceAll(peer(1))
	mustMake(t, b, tree.RootIno, "both.txt", regMode)
	if err := b.Unlink(ctx, tree.RootIno, "kept"); err != nil {
		t.Fatal(err)
	}
	if err := b.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	a.regs.SetMistrust(false)
	if err := a.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	all := strings.Join(dump(t, b), "\n")
	for _, want := range []string{"/both.txt ", "/both (conflict " + peer(1).Short(), "/mine ", "/dir/in ", "/kept (conflict ", `3 "new"`} {
		if !strings.Contains(all, want) {
			t.Errorf("nothing like %q in\n%s", want, all)
		}
	}
	equal(t, "both mounts", dump(t, a), dump(t, b))
}

// mkdir of one name by two mounts at once succeeds exactly once.
func TestExclusive(t *testing.T) {
	ring := newRing(t)
	ms := []*mount{start(t, ring, 1, t.TempDir(), nil), start(t, ring, 2, t.TempDir(), nil)}
	for i := range 150 {
		var wg sync.WaitGroup
		errs := make([]error, 2)
		for k, m := range ms {
			wg.Go(func() {
				_, _, errs[k] = m.Make(t.Context(), tree.RootIno, fmt.Sprint("d", i), tree.MakeArgs{Mode: dirMode, Excl: true})
			})
		}
		wg.Wait()
		if (errs[0] == nil) == (errs[1] == nil) || !errors.Is(errors.Join(errs...), syscall.EEXIST) {
			t.Fatalf("round %d: %v and %v", i, errs[0], errs[1])
		}
	}
	equal(t, "both mounts", dump(t, ms[0]), dump(t, ms[1]))
}

// Who makes and removes one name on two mounts at once, while others look, is told the truth: a removal takes exactly
// one creation back, and what is left is there.
func TestMakeAndRemoveExclusively(t *testing.T) {
	s := seed(t)
	ring := newRing(t)
	ms := []*mount{start(t, ring, 1, t.TempDir(), nil), start(t, ring, 2, t.TempDir(), nil)}
	const names, each = 3, 300
	var made [names]atomic.Int64
	var wg sync.WaitGroup
	for k := range 6 {
		wg.Go(func() {
			r, m := rng(s+uint64(k)), ms[k%2]
			for range each {
				i := r.IntN(names)
				name := fmt.Sprint("d", i)
				switch r.IntN(3) {
				case 0:
					a, _, err := m.Make(t.Context(), tree.RootIno, name, tree.MakeArgs{Mode: dirMode, Excl: true})
					if err == nil {
						made[i].Add(1)
						m.Forget(a.Ino, 1)
					} else if err != syscall.EEXIST {
						t.Errorf("mkdir: %v", err)
					}
				case 1:
					err := m.Rmdir(t.Context(), tree.RootIno, name)
					if err == nil {
						made[i].Add(-1)
					} else if err != syscall.ENOENT {
						t.Errorf("rmdir: %v", err)
					}
				case 2:
					if a, err := m.Lookup(t.Context(), tree.RootIno, name); err == nil {
						m.Forget(a.Ino, 1)
					} else if err != syscall.ENOENT {
						t.Errorf("lookup: %v", err)
					}
				}
			}
		})
	}
	wg.Wait()
	for i := range made {
		_, err := ms[0].Lookup(t.Context(), tree.RootIno, fmt.Sprint("d", i))
		if n := made[i].Load(); n < 0 || n > 1 || (n == 1) != (err == nil) {
			t.Errorf("d%d was made %d times more often than it was removed; a lookup says %v", i, n, err)
		}
	}
	equal(t, "both mounts", dump(t, ms[0]), dump(t, ms[1]))
}

// replayed is a content room that notes what it is told.
type replayed struct {
	mu   sync.Mutex
	data map[tree.Ino]string
	gone map[tree.Ino]bool
}

func newReplayed() *replayed {
	return &replayed{data: map[tree.Ino]string{}, gone: map[tree.Ino]bool{}}
}

func (r *replayed) FlushFile(context.Context, tree.Ino) error { return nil }
func (r *replayed) TrimFile(ino tree.Ino, size uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.data[ino] = r.data[ino][:min(size, uint64(len(r.data[ino])))]
}
func (r *replayed) PunchFile(tree.Ino, uint64, uint64) {}
func (r *replayed) ReplayData(ino tree.Ino, _ tree.Seq, off uint64, p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.data[ino] = r.data[ino][:off] + string(p)
}
func (r *replayed) DropFile(ino tree.Ino) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gone[ino] = true
}

func TestReplayData(t *testing.T) {
	ring := newRing(t)
	m := start(t, ring, 1, t.TempDir(), nil)
	ctx := t.Context()
	f, g := mustMake(t, m, tree.RootIno, "f", regMode), mustMake(t, m, tree.RootIno, "g", regMode)
	d := mustMake(t, m, tree.RootIno, "d", dirMode)
	write := func(ino tree.Ino, off uint64, s string) tree.Seq {
		seq, err := m.AppendData(ctx, ino, off, []byte(s))
		if err != nil {
			t.Fatal(err)
		}
		return seq
	}
	write(f, 0, "hello")
	if err := m.Truncate(ctx, f, 4); err != nil {
		t.Fatal(err)
	}
	write(f, 4, "!")
	seq := write(g, 0, "done")
	if err := m.Writeback(ctx, tree.Writeback{Ino: g, Inline: []byte("done"), Size: 4, Flushed: seq}); err != nil {
		t.Fatal(err)
	}
	if err := m.Rename(ctx, tree.RootIno, "f", d, "f", 0); err != nil {
		t.Fatal(err)
	}
	dir := m.kill(t)
	r := newReplayed()
	n := start(t, ring, 1, dir, func(c *tree.Config) { c.Hooks = r })
	<-n.Ready()
	r.mu.Lock()
	if r.data[f] != "hell!" || r.data[g] != "" {
		t.Errorf("replayed %q and %q, want %q and nothing", r.data[f], r.data[g], "hell!")
	}
	r.mu.Unlock()
	if find(t, n, "d", "f") != f {
		t.Error("the file has another number after the replay")
	}
}

// An unlinked file lives until its last handle is released; then its stripes are deleted, and so are
// those of what a dead mount had open.
func TestOrphans(t *testing.T) {
	for _, kill := range []bool{false, true} {
		ring := newRing(t)
		var mu sync.Mutex
		deleted := map[blocks.StripeID]bool{}
		edit := func(c *tree.Config) {
			c.DeleteStripe = func(_ context.Context, id blocks.StripeID) error {
				mu.Lock()
				defer mu.Unlock()
				deleted[id] = true
				return nil
			}
		}
		m := start(t, ring, 1, t.TempDir(), edit)
		ctx := t.Context()
		f := mustMake(t, m, tree.RootIno, "f", regMode)
		id := blocks.StripeID{ID: blocks.HashID([]byte("stripe"))}
		if _, err := m.Open(ctx, f); err != nil {
			t.Fatal(err)
		}
		w := tree.Writeback{Ino: f, Size: 10, Extents: []tree.Extent{{Len: 10, Stripe: blocks.StripeRef{ID: id, Len: 10, K: 1, M: 2}}}}
		if err := errors.Join(m.Writeback(ctx, w), m.Unlink(ctx, tree.RootIno, "f"), m.Sync(ctx)); err != nil {
			t.Fatal(err)
		}
		if a, err := m.Getattr(ctx, f); err != nil || a.Nlink != 0 || a.Size != 10 {
			t.Errorf("open and unlinked: %+v, %v", a, err)
		}
		mu.Lock()
		if deleted[id] {
			t.Error("the stripe of an open file was deleted")
		}
		mu.Unlock()
		if kill {
			m = start(t, ring, 1, m.kill(t), edit)
			dump(t, m)
		} else {
			m.Release(f)
			m.Forget(f, 1)
		}
		eventually(t, "the stripe is deleted", func() bool { mu.Lock(); defer mu.Unlock(); return deleted[id] })
	}
}

// An open file without a name outlives its directory, however that ends.
func TestOrphansOfEndedDirectory(t *testing.T) {
	for what, end := range map[string]func(ctx context.Context, m *mount, sub tree.Ino) error{
		"rmdir": func(ctx context.Context, m *mount, _ tree.Ino) error { return m.Rmdir(ctx, tree.RootIno, "d") },
		"rename": func(ctx context.Context, m *mount, _ tree.Ino) error {
			return m.Rename(ctx, tree.RootIno, "e", tree.RootIno, "d", 0)
		},
		"rename from afar": func(ctx context.Context, m *mount, sub tree.Ino) error {
			return m.Rename(ctx, sub, "e", tree.RootIno, "d", 0)
		},
	} {
		t.Run(what, func(t *testing.T) {
			ring := newRing(t)
			m := start(t, ring, 1, t.TempDir(), nil)
			ctx := t.Context()
			d := mustMake(t, m, tree.RootIno, "d", dirMode)
			f := mustMake(t, m, d, "f", regMode)
			mustMake(t, m, tree.RootIno, "e", dirMode)
			sub := mustMake(t, m, tree.RootIno, "sub", dirMode)
			mustMake(t, m, sub, "e", dirMode)
			if _, err := m.Open(ctx, f); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(m.Unlink(ctx, d, "f"), end(ctx, m, sub)); err != nil {
				t.Fatal(err)
			}
			if err := m.Truncate(ctx, f, 5); err != nil {
				t.Errorf("truncate: %v", err)
			}
			if a, err := m.Getattr(ctx, f); err != nil || a.Nlink != 0 || a.Size != 5 {
				t.Errorf("open and unlinked: %+v, %v", a, err)
			}
			if err := m.Sync(ctx); err != nil {
				t.Fatal(err)
			}
			m.Release(f)
			m.Forget(f, 1) // as the kernel does: until then it may be opened once more
			eventually(t, "the orphan ends", func() bool {
				_, err := m.Content(ctx, f, 0, 0)
				return err != nil
			})
		})
	}
}

// A crash at any record of the journal: what is before it happened, what is after it did not.
func TestJournalCut(t *testing.T) {
	w := &walker{t, rng(seed(t)), newModel()}
	ring := newRing(t)
	m := start(t, ring, 1, t.TempDir(), func(c *tree.Config) { c.FlushAge, c.CommitTimeout = time.Hour, 10*time.Millisecond })
	mustMake(t, m, tree.RootIno, "warm", regMode) // committed at once, with the lease
	if err := w.m.make(w.m.root, "warm", regMode, ""); err != nil {
		t.Fatal(err)
	}
	base := ring.Clone()
	states := [][]string{w.m.dump()}
	for i := range 40 {
		name := fmt.Sprint("n", i)
		if i%3 == 2 {
			name = fmt.Sprint("n", i-1)
			if err := errors.Join(w.m.unlink(w.m.root, name), m.Unlink(t.Context(), tree.RootIno, name)); err != nil {
				t.Fatal(err)
			}
		} else {
			if err := w.m.make(w.m.root, name, regMode, ""); err != nil {
				t.Fatal(err)
			}
			mustMake(t, m, tree.RootIno, name, regMode)
		}
		states = append(states, w.m.dump())
	}
	dir := m.kill(t)
	cuts := cutJournal(t, dir, 7)
	if len(cuts) < 20 {
		t.Fatalf("only %d cuts", len(cuts))
	}
	last := 0
	for _, c := range cuts {
		n := start(t, base.Clone(), 1, c, nil)
		got := dump(t, n)
		n.end(t)
		at := slices.IndexFunc(states[last:], func(s []string) bool { return slices.Equal(s, got) })
		if at < 0 {
			t.Fatalf("a cut leaves none of the states from %d on:\n%s", last, strings.Join(got, "\n"))
		}
		last += at
	}
}

// A directory is made, used and removed within one commit, so it never has a register, and the
// part of the journal in which it was made has been removed. The next life must not wait for it.
func TestReplayOfWhatNeverWas(t *testing.T) {
	ring := newRing(t)
	edit := func(c *tree.Config) { c.FlushAge, c.FlushOps, c.SegmentBytes = time.Hour, 1<<20, 4<<10 }
	m := start(t, ring, 1, t.TempDir(), edit)
	mustMake(t, m, tree.RootIno, "kept", regMode) // takes the lease
	if err := m.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	var d tree.Ino
	for i := range 200 { // over many segments
		name := fmt.Sprint(i)
		if i == 0 {
			d = mustMake(t, m, tree.RootIno, "d", dirMode)
		}
		mustMake(t, m, d, name, regMode)
		if err := m.Unlink(t.Context(), d, name); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Rmdir(t.Context(), tree.RootIno, "d"); err != nil {
		t.Fatal(err)
	}
	if err := m.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	dir := m.kill(t)
	segments, err := filepath.Glob(filepath.Join(dir, "*.seg"))
	if err != nil || len(segments) < 4 {
		t.Fatalf("%d segments, %v", len(segments), err)
	}
	for _, s := range segments[:2] { // what trimming does, which waits for its turn
		if err := os.Remove(s); err != nil {
			t.Fatal(err)
		}
	}
	m = start(t, ring, 1, dir, edit)
	select {
	case <-m.Ready():
	case <-time.After(5 * time.Second):
		t.Fatal("the replay waits for a directory that never was")
	}
	if got := dump(t, m); len(got) != 1 || !strings.Contains(got[0], "kept") {
		t.Errorf("afterwards there is %q", got)
	}
}
