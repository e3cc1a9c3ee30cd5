package tree_test

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
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
