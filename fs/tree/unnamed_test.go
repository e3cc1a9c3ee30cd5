package tree_test

import (
	"context"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
	"github.com/mutualfs/mutualfs/fs/tree/treetest"
)

// A directory may have a register while its name is pending. What is agreed there without the journal must be seen by
// the next life from its first call on.
func TestReplayOfANameWhoseDirectoryHasMovedOn(t *testing.T) {
	for _, cutOff := range []bool{false, true} {
		ring := newRing(t)
		slow := func(c *tree.Config) { c.FlushAge = time.Hour }
		m := start(t, ring, 1, t.TempDir(), slow)
		mustMake(t, m, tree.RootIno, "warm", regMode) // takes the lease
		mustMake(t, m, mustMake(t, m, tree.RootIno, "d", dirMode), "x", dirMode)
		rootIsCutOff(t, m)

		m = start(t, ring, 1, m.kill(t), slow)
		<-m.Ready()
		rootIsCutOff(t, m)
		if !cutOff {
			m.regs.SetFault(nil)
		}
		d := find(t, m, "d")
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		_, _, err := m.Make(ctx, d, "y", tree.MakeArgs{Mode: dirMode, Excl: true})
		answered := err == nil
		if !cutOff && !answered {
			t.Error(err)
		}

		m = start(t, ring, 1, m.kill(t), slow)
		if _, err := m.Lookup(t.Context(), find(t, m, "d"), "y"); answered && err != nil {
			t.Errorf("what was answered in d is gone (root cut off: %v): %v", cutOff, err)
		}
	}
}

// rootIsCutOff makes all changes of the root directory fail, and commits what can be committed nevertheless.
func rootIsCutOff(t *testing.T, m *mount) {
	t.Helper()
	m.regs.SetFault(func(write bool, id blocks.RegisterID, _ *blocks.Change) treetest.Fault {
		if write && id == rootID {
			return treetest.Fault{Err: blocks.ErrUnavailable}
		}
		return treetest.Fault{}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if m.Sync(ctx) == nil {
		t.Fatal("the root directory was committed")
	}
}
