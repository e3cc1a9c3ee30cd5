package tree_test

import (
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/fs/tree"
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
	entries, _, err := m.ReadDir(ctx, tree.RootIno)
	must(err)
	if len(entries) != 1 || entries[0].Name != "a" || entries[0].Attr.Ino != fresh {
		t.Errorf("the root has %v, want only the new a, %d", entries, fresh)
	}
	entries, _, err = m.ReadDir(ctx, fresh)
	must(err)
	if len(entries) != 1 || entries[0].Name != "b" {
		t.Errorf("a has %v, want b", entries)
	}
}
