package tree_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
	"github.com/mutualfs/mutualfs/fs/tree/treetest"
)

// registerOf returns the register that a call makes.
func registerOf(t *testing.T, r *treetest.Ring, call func()) (id blocks.RegisterID) {
	t.Helper()
	before := map[blocks.RegisterID]bool{}
	for _, id := range r.IDs() {
		before[id] = true
	}
	call()
	for _, made := range r.IDs() {
		if !before[made] {
			if !id.IsZero() {
				t.Fatal("more than one register was made")
			}
			id = made
		}
	}
	return id
}

// end deletes a register, as the freer of a third mount does with what a removal has left.
func end(t *testing.T, r *treetest.Ring, id blocks.RegisterID) {
	x, err := r.ReadAgreed(t.Context(), id, 0)
	if err == nil {
		_, err = r.Mount(peer(3)).Propose(t.Context(), id, blocks.Change{Base: x.Version, Origin: peer(3), Delete: true})
	}
	if err != nil {
		t.Errorf("delete register %s: %v", id.Short(), err)
	}
}

// A mount meets the intent of another's removal in a directory, finds it committed, and is about to put it into effect when the
// directory's register is deleted, as is due then: the directory is gone, which is an answer and not a failure.
func TestEndedWhileResolving(t *testing.T) {
	r := newRing(t)
	edit := func(c *tree.Config) { c.LeasePause = time.Hour } // who gave a lease back takes none
	a, b := start(t, r, 1, t.TempDir(), edit), start(t, r, 2, t.TempDir(), edit)
	mustMake(t, a, tree.RootIno, "from", dirMode)
	if err := a.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	dir := registerOf(t, r, func() {
		mustMake(t, a, tree.RootIno, "to", dirMode)
		if err := a.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	ino := find(t, b, "to") // the leases of a are given back

	met, moved, answer := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	writes := 0
	a.regs.SetFault(func(write bool, id blocks.RegisterID, _ *blocks.Change) treetest.Fault {
		if write && id == dir {
			if writes++; writes == 2 { // the first is the intent, this puts the decision into effect
				go func() {
					_, err := b.Getattr(t.Context(), ino)
					answer <- err
				}()
				<-met
			}
		}
		return treetest.Fault{}
	})
	var once sync.Once
	b.regs.SetFault(func(write bool, id blocks.RegisterID, _ *blocks.Change) treetest.Fault {
		if write && id == dir {
			once.Do(func() {
				close(met)
				<-moved
				end(t, r, dir)
			})
		}
		return treetest.Fault{}
	})
	if err := a.Rename(t.Context(), tree.RootIno, "from", tree.RootIno, "to", 0); err != nil {
		t.Fatal(err)
	}
	close(moved)
	if err := <-answer; !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ESTALE) {
		t.Errorf("a directory that was replaced: %v", err)
	}
}

// A directory's register is deleted between the two reads of a call that finds it changed: the call says that it is gone, and what
// was pending in it comes back in the root directory.
func TestEndedBetweenReads(t *testing.T) {
	r := newRing(t)
	a := start(t, r, 1, t.TempDir(), func(c *tree.Config) { c.FlushAge = time.Hour })
	var ino tree.Ino
	dir := registerOf(t, r, func() {
		ino = mustMake(t, a, tree.RootIno, "d", dirMode)
		if err := a.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	file := mustMake(t, a, ino, "new", regMode) // pending
	r.Fence(dir)
	reads := 0
	a.regs.SetFault(func(write bool, id blocks.RegisterID, _ *blocks.Change) treetest.Fault {
		if !write && id == dir {
			if reads++; reads == 2 {
				end(t, r, dir)
			}
		}
		return treetest.Fault{}
	})
	if _, err := a.Getattr(t.Context(), ino); !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ESTALE) {
		t.Errorf("a directory whose register has ended: %v", err)
	}
	if reads != 2 {
		t.Fatalf("%d reads, want 2", reads)
	}
	if err := a.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	entries, _, err := a.List(t.Context(), tree.RootIno)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(entries, func(e tree.Entry) bool { return e.Attr.Ino == file }) {
		t.Errorf("the root has %v, not what was pending", entries)
	}
}

// A directory's register is deleted when a mount without its lease is about to replace a long value: the call says that it is gone.
func TestEndedWhileCompacting(t *testing.T) {
	r := newRing(t)
	edit := func(c *tree.Config) { c.LeasePause = time.Hour }
	a, b := start(t, r, 1, t.TempDir(), edit), start(t, r, 2, t.TempDir(), edit)
	var ino tree.Ino
	dir := registerOf(t, r, func() {
		ino = mustMake(t, a, tree.RootIno, "d", dirMode)
		if err := a.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	find(t, b, "d") // a gives its leases back
	compacts := false
	a.regs.SetFault(func(_ bool, id blocks.RegisterID, c *blocks.Change) treetest.Fault {
		if id == dir && c != nil && c.Snapshot != nil && !compacts {
			compacts = true
			end(t, r, dir)
		}
		return treetest.Fault{}
	})
	var err error
	for i := 0; i < 4 && err == nil; i++ {
		err = a.Setxattr(t.Context(), ino, fmt.Sprint("user.", i), make([]byte, 60<<10), 0)
	}
	if !compacts {
		t.Fatal("nothing was compacted")
	}
	if !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ESTALE) {
		t.Errorf("a directory whose register has ended: %v", err)
	}
}
