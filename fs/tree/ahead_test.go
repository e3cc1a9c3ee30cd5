package tree_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
	"github.com/mutualfs/mutualfs/fs/tree/treetest"
)

// Who enters the first directory of a listing finds the next ones in memory, and more of them with each that he enters.
func TestDirectoriesAreReadAhead(t *testing.T) {
	ring := newRing(t)
	m := start(t, ring, 1, t.TempDir(), nil)
	for i := range 60 {
		mustMake(t, m, mustMake(t, m, tree.RootIno, fmt.Sprint("d", i), dirMode), "f", regMode)
	}
	m.end(t)

	m = start(t, ring, 2, t.TempDir(), nil)
	ctx := t.Context()
	mustMake(t, m, tree.RootIno, "here", regMode) // takes the lease of the root
	list, _, err := m.List(ctx, tree.RootIno)
	if err != nil {
		t.Fatal(err)
	}
	var dirs []tree.Entry
	for _, e := range list {
		if e.Attr.IsDir() {
			dirs = append(dirs, e)
		}
	}
	reads, writes := m.regs.Calls()
	cut := func(on bool) {
		m.regs.SetFault(func(bool, blocks.RegisterID, *blocks.Change) treetest.Fault {
			if on {
				return treetest.Fault{Err: blocks.ErrUnavailable}
			}
			return treetest.Fault{}
		})
	}
	known := func(i int) bool { // from memory
		ctx, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
		defer cancel()
		ents, _, err := m.List(ctx, dirs[i].Attr.Ino)
		return err == nil && len(ents) == 1
	}
	if r, w := m.regs.Calls(); r != reads || w != writes {
		t.Errorf("after a listing, %d reads and %d writes more", r-reads, w-writes)
	}
	if !known(0) {
		t.Fatal("the first directory cannot be read")
	}
	eventually(t, "16 directories are read ahead, and leased", func() bool {
		_, w := m.regs.Calls()
		return w >= writes+16
	})
	cut(true)
	for i := 1; i <= 16; i++ {
		if !known(i) {
			t.Errorf("directory %d was not read ahead", i)
		}
	}
	if known(40) {
		t.Error("directory 40 has been read")
	}
	cut(false)
	eventually(t, "the walk goes on", func() bool { // what could not be read ahead while cut off is read when it is asked for
		for i := 17; i < 60; i++ {
			if !known(i) {
				return false
			}
		}
		return true
	})
}
