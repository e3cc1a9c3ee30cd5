package tree_test

import (
	"sync"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
	"github.com/mutualfs/mutualfs/fs/tree/treetest"
)

// A directory is emptied and removed, its own commit comes before its parent's, and the name is used again: the
// removal is committed all the same, and there is no conflict of the mount with itself.
func TestRemovedDirectoryCommittedBeforeItsParent(t *testing.T) {
	r := newRing(t)
	m := start(t, r, 1, t.TempDir(), func(c *tree.Config) { c.FlushAge = time.Hour })
	ctx := t.Context()
	dir := func(parent tree.Ino, name string) tree.Ino { t.Helper(); return mustMake(t, m, parent, name, dirMode) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	old := dir(tree.RootIno, "a")
	dir(old, "b")
	must(m.Sync(ctx))
	must(m.Rmdir(ctx, old, "b"))
	must(m.Rmdir(ctx, tree.RootIno, "a"))
	must(m.Fsync(ctx, old))
	fresh := dir(tree.RootIno, "a")
	dir(fresh, "b")
	must(m.Sync(ctx))
	m.end(t)

	m = start(t, r, 1, m.dir, nil)
	entries, _, err := m.List(ctx, tree.RootIno)
	must(err)
	if len(entries) != 1 || entries[0].Name != "a" || entries[0].Attr.Ino != fresh {
		t.Errorf("the root has %v, want only the new a, %d", entries, fresh)
	}
	entries, _, err = m.List(ctx, fresh)
	must(err)
	if len(entries) != 1 || entries[0].Name != "b" {
		t.Errorf("a has %v, want b", entries)
	}
}

// A directory whose removal is committed at once, because the name's directory is not leased, takes with it what was removed in
// it just before: no register is left that nobody names and nobody gives back.
func TestRemovalAtOnceEndsWhatWasRemovedBefore(t *testing.T) {
	r := newRing(t)
	edit := func(c *tree.Config) {
		c.FlushAge, c.LeasePause, c.FreeEvery = time.Hour, time.Second, 10*time.Millisecond
	}
	m, other := start(t, r, 1, t.TempDir(), edit), start(t, r, 2, t.TempDir(), edit)
	live := r.Live()
	a := mustMake(t, m, tree.RootIno, "a", dirMode)
	mustMake(t, m, a, "b", dirMode)
	if err := m.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := other.List(t.Context(), tree.RootIno); err != nil { // takes the root's lease from m
		t.Fatal(err)
	}
	if err := m.Rmdir(t.Context(), a, "b"); err != nil { // pending
		t.Fatal(err)
	}
	if n := r.Live(); n != live+2 {
		t.Fatalf("%d registers, want the two directories' beside %d", n, live)
	}
	if err := m.Rmdir(t.Context(), tree.RootIno, "a"); err != nil { // agreed
		t.Fatal(err)
	}
	eventually(t, "all that was removed ends", func() bool { return r.Live() == live })
}

// A directory got its register, its name was not agreed, it was removed again, and the mount died: the next life, which has
// both from the journal, leaves no register behind.
func TestReplayedRemovalEndsTheRegister(t *testing.T) {
	r := newRing(t)
	slow := func(c *tree.Config) { c.FlushAge = time.Hour }
	m := start(t, r, 1, t.TempDir(), slow)
	mustMake(t, m, tree.RootIno, "warm", regMode) // takes the lease
	live := r.Live()
	mustMake(t, m, tree.RootIno, "d", dirMode)
	rootIsCutOff(t, m)
	if n := r.Live(); n != live+1 {
		t.Fatalf("%d registers, want the directory's beside %d", n, live)
	}
	if err := m.Rmdir(t.Context(), tree.RootIno, "d"); err != nil {
		t.Fatal(err)
	}
	m = start(t, r, 1, m.kill(t), slow)
	if err := m.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := r.Live(); n != live {
		t.Errorf("%d registers are left, %d before", n, live)
	}
}

// A file is given a container of its own while others change its directory: the container that was made in vain ends, and the one
// that was not, because only the answer was lost, does not.
func TestPromotionInVain(t *testing.T) {
	r := newRing(t)
	m := start(t, r, 1, t.TempDir(), func(c *tree.Config) { c.FreeEvery = 5 * time.Millisecond })
	a, b := mustMake(t, m, tree.RootIno, "a", dirMode), mustMake(t, m, tree.RootIno, "b", dirMode)
	for name, faults := range map[string][]treetest.Fault{
		"first": nil, // makes the session
		"vain":  {{Err: blocks.ErrConflict}},
		"lost":  {{Err: blocks.ErrUnavailable, Lost: true}, {Err: blocks.ErrConflict}},
	} {
		f := mustMake(t, m, a, name, regMode)
		if err := m.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		m.regs.SetFault(func(write bool, _ blocks.RegisterID, c *blocks.Change) treetest.Fault {
			mu.Lock()
			defer mu.Unlock()
			if !write || c.Base == 0 || c.Delete || len(faults) == 0 {
				return treetest.Fault{}
			}
			fault := faults[0] // of the change that names the new container
			faults = faults[1:]
			return fault
		})
		if _, err := m.Link(t.Context(), f, b, name); err != nil {
			t.Fatal(err)
		}
		if a, err := m.Lookup(t.Context(), a, name); err != nil || a.Nlink != 2 {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
	// The root, the lock, two directories, three files, the session.
	eventually(t, "there is nothing but what is named", func() bool { return r.Live() == 8 })
}
