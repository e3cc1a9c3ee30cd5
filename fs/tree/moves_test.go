package tree_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
	"github.com/mutualfs/mutualfs/fs/tree/treetest"
)

// retried repeats a move that met others too often.
func retried(f func() error) error {
	for {
		if err := f(); !errors.Is(err, blocks.ErrBusy) && !errors.Is(err, blocks.ErrConflict) {
			return err
		}
	}
}

// Two directories moved into each other at the same time, by one mount or by two: exactly one move is made,
// and everything can still be reached from the root.
func TestMovesMakeNoCycle(t *testing.T) {
	ring := newRing(t)
	ms := []*mount{start(t, ring, 1, t.TempDir(), nil), start(t, ring, 2, t.TempDir(), nil)}
	for round := range 150 {
		a, b := ms[0], ms[(round/2)%2]
		name := fmt.Sprint("round", round)
		top := mustMake(t, a, tree.RootIno, name, dirMode)
		x, y := mustMake(t, a, top, "x", dirMode), mustMake(t, a, top, "y", dirMode)
		inX, inY := mustMake(t, a, x, "in", dirMode), mustMake(t, a, y, "in", dirMode)
		find(t, b, name, "x", "in")
		find(t, b, name, "y", "in")
		var ex, ey error
		var wg sync.WaitGroup
		begin := make(chan struct{})
		wg.Go(func() { <-begin; ex = retried(func() error { return a.Rename(t.Context(), top, "x", inY, "x", 0) }) })
		wg.Go(func() { <-begin; ey = retried(func() error { return b.Rename(t.Context(), top, "y", inX, "y", 0) }) })
		close(begin)
		wg.Wait()
		lost := ex
		if ex == nil {
			lost = ey
		}
		if (ex == nil) == (ey == nil) || !errors.Is(lost, syscall.EINVAL) && !errors.Is(lost, syscall.ENOENT) {
			t.Fatalf("round %d: the moves say %v and %v", round, ex, ey)
		}
		for _, m := range ms {
			if ex == nil {
				find(t, m, name, "y", "in", "x", "in")
			} else {
				find(t, m, name, "x", "in", "y", "in")
			}
		}
	}
}

// While one mount moves a file between directories, another that looks at both never finds it in neither and never in both.
func TestRenameIsSeenWhole(t *testing.T) {
	ring := newRing(t)
	a, b := start(t, ring, 1, t.TempDir(), nil), start(t, ring, 2, t.TempDir(), nil)
	d := [2]tree.Ino{mustMake(t, a, tree.RootIno, "d0", dirMode), mustMake(t, a, tree.RootIno, "d1", dirMode)}
	find(t, b, "d0")
	find(t, b, "d1")
	for round := range 150 {
		name := fmt.Sprint("f", round)
		mustMake(t, a, d[0], name, regMode)
		exists := func(k int) bool {
			err := retried(func() error { _, err := b.Lookup(t.Context(), d[k], name); return err })
			if err != nil && !errors.Is(err, syscall.ENOENT) {
				t.Errorf("round %d: %v", round, err)
			}
			return err == nil
		}
		var moved atomic.Bool
		var wg sync.WaitGroup
		wg.Go(func() {
			defer moved.Store(true)
			if err := retried(func() error { return a.Rename(t.Context(), d[0], name, d[1], name, 0) }); err != nil {
				t.Errorf("round %d: %v", round, err)
			}
		})
		for done := false; !done && !t.Failed(); {
			done = moved.Load()
			// The file moves once, from the first to the second: what was seen of one bounds what may be seen of the other later.
			if !exists(0) && !exists(1) {
				t.Errorf("round %d: in neither directory", round)
			}
			if exists(1) && exists(0) {
				t.Errorf("round %d: in both directories", round)
			}
			if done && !exists(1) {
				t.Errorf("round %d: the move was answered and is not seen", round)
			}
		}
		wg.Wait()
		if t.Failed() {
			return
		}
	}
}

// A move of a directory looks at those above while it has what it changes: it must not wait there for another mount, which may
// be waiting for one of these.
func TestMoveDoesNotWaitAbove(t *testing.T) {
	ring := newRing(t)
	a, b := start(t, ring, 1, t.TempDir(), nil), start(t, ring, 2, t.TempDir(), nil)
	x := mustMake(t, a, tree.RootIno, "x", dirMode)
	y := mustMake(t, a, mustMake(t, a, x, "between", dirMode), "y", dirMode)
	mustMake(t, a, tree.RootIno, "d", dirMode)
	mustMake(t, b, find(t, b, "x"), "f", regMode) // takes the lease
	b.regs.SetFault(func(write bool, _ blocks.RegisterID, _ *blocks.Change) treetest.Fault {
		if write { // the lease cannot be given back
			return treetest.Fault{Err: blocks.ErrUnavailable}
		}
		return treetest.Fault{}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := a.Rename(ctx, tree.RootIno, "d", y, "d", 0); err != nil {
		t.Error(err)
	}
	b.regs.SetFault(nil)
	find(t, b, "x", "between", "y", "d")
}

// A mount dies at any step of a move of a directory, and another mount moves what would make a cycle with it: all can still be
// reached from the root.
func TestCrashedMoveMakesNoCycle(t *testing.T) {
	for step := 0; ; step++ {
		ring := newRing(t)
		a := start(t, ring, 1, t.TempDir(), func(c *tree.Config) { c.CommitTimeout = 100 * time.Millisecond })
		x, y := mustMake(t, a, tree.RootIno, "x", dirMode), mustMake(t, a, tree.RootIno, "y", dirMode)
		mustMake(t, a, x, "in", dirMode)
		inY := mustMake(t, a, mustMake(t, a, y, "in", dirMode), "deep", dirMode)
		if err := a.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		b := start(t, ring, 2, t.TempDir(), nil)
		inX := find(t, b, "x", "in")
		n := 0
		var mu sync.Mutex
		a.regs.SetFault(func(write bool, _ blocks.RegisterID, c *blocks.Change) treetest.Fault {
			mu.Lock()
			defer mu.Unlock()
			if !write || c.Seq == 0 {
				return treetest.Fault{}
			}
			if n++; n <= step {
				return treetest.Fault{}
			}
			return treetest.Fault{Err: fmt.Errorf("%w: killed", blocks.ErrInvalid)}
		})
		err := a.Rename(t.Context(), tree.RootIno, "x", inY, "x", 0)
		mu.Lock()
		done := err == nil && n <= step
		mu.Unlock()
		a.kill(t)
		_ = b.Rename(t.Context(), tree.RootIno, "y", inX, "y", 0)
		lines := dump(t, b)
		if len(lines) != 5 {
			t.Fatalf("killed after %d proposals: of five directories only these can be reached: %q", step, lines)
		}
		if done {
			return
		}
	}
}
