package tree_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
	"github.com/mutualfs/mutualfs/fs/tree/treetest"
)

// What is pending is committed while the mount does not trust its lease, so that each call reads the register,
// and all answers are late: a batch is never counted twice, nor half, nor is the state set back.
func TestReadWhileCommitting(t *testing.T) {
	r := rng(seed(t))
	for round := range 12 {
		ring := newRing(t)
		m := start(t, ring, 1, t.TempDir(), func(c *tree.Config) { c.FlushAge = time.Hour })
		mustMake(t, m, tree.RootIno, "warm", regMode) // with the lease
		want := []string{"/warm 100644 1 0 \"\""}
		for i := range 10 {
			mustMake(t, m, tree.RootIno, fmt.Sprint("z", i), regMode)
			want = append(want, fmt.Sprintf("/z%d 100644 1 0 %q", i, ""))
		}
		var mu sync.Mutex
		m.regs.SetFault(func(bool, blocks.RegisterID, *blocks.Change) treetest.Fault {
			mu.Lock()
			defer mu.Unlock()
			return treetest.Fault{Delay: time.Duration(r.IntN(500)) * time.Microsecond, Late: time.Duration(r.IntN(1000)) * time.Microsecond}
		})
		m.regs.SetMistrust(true)
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := m.Sync(t.Context()); err != nil {
				t.Errorf("round %d: sync: %v", round, err)
			}
		})
		for i := range 3 {
			wg.Go(func() {
				for k := range 4 {
					if _, err := m.Lookup(context.WithoutCancel(t.Context()), tree.RootIno, fmt.Sprint("z", i+k)); err != nil {
						t.Errorf("round %d: lookup: %v", round, err)
					}
				}
			})
		}
		wg.Wait()
		m.regs.SetFault(nil)
		m.regs.SetMistrust(false)
		equal(t, "after the commit", dump(t, m), want)
		other := start(t, ring, 2, t.TempDir(), nil)
		equal(t, "another mount", dump(t, other), want)
		if t.Failed() {
			return
		}
		m.end(t)
		other.end(t)
	}
}
