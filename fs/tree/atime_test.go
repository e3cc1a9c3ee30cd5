package tree_test

import (
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/fs/tree"
)

// Access times follow relatime, cost no proposal, and go with the lease.
func TestAccessTimes(t *testing.T) {
	ring := newRing(t)
	edit := func(c *tree.Config) { c.FlushAge, c.AtimeAge = time.Hour, time.Hour }
	a, b := start(t, ring, 1, t.TempDir(), edit), start(t, ring, 2, t.TempDir(), edit)
	ctx := t.Context()
	get := func(m *mount, ino tree.Ino) tree.Attr {
		t.Helper()
		at, err := m.Getattr(ctx, ino)
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	set := func(ino tree.Ino, atime, mtime time.Duration) {
		t.Helper()
		x, y := tree.TimeOf(time.Now().Add(atime)), tree.TimeOf(time.Now().Add(mtime))
		if _, err := a.Setattr(ctx, ino, tree.SetAttr{Atime: &x, Mtime: &y}); err != nil {
			t.Fatal(err)
		}
	}
	d := mustMake(t, a, tree.RootIno, "d", dirMode)
	f := mustMake(t, a, d, "f", regMode)
	if err := a.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	_, before := a.regs.Calls()
	for _, c := range []struct {
		what         string
		atime, mtime time.Duration
		changes      bool
	}{
		{"older than the content", -3 * time.Hour, -2 * time.Hour, true},
		{"as old as the content", -2 * time.Hour, -2 * time.Hour, true},
		{"older than a day", -25 * time.Hour, -26 * time.Hour, true},
		{"later than everything", time.Hour, -2 * time.Hour, false},
	} {
		for _, ino := range []tree.Ino{f, d} {
			set(ino, c.atime, c.mtime)
			was := get(a, ino)
			a.Accessed(ino)
			is := get(a, ino)
			if (is.Atime != was.Atime) != c.changes || is.Mtime != was.Mtime || is.Ctime != was.Ctime {
				t.Errorf("%s: read, and times changed from %+v to %+v", c.what, was, is)
			}
			a.Accessed(ino)
			if again := get(a, ino); again.Atime != is.Atime {
				t.Errorf("%s: read twice, and the access time changed twice", c.what)
			}
		}
	}
	if _, after := a.regs.Calls(); after != before {
		t.Errorf("%d proposals for reading", after-before)
	}
	set(f, -3*time.Hour, -2*time.Hour)
	a.Accessed(f)
	want := get(a, f)
	if got := find(t, b, "d", "f"); got != f {
		t.Fatal(got)
	}
	if got := get(b, f); got.Atime != want.Atime || got.Ctime != want.Ctime {
		t.Errorf("the other mount sees %+v, want %+v", got, want)
	}
	b.Accessed(f) // without the lease it is left as it is
	a.end(t)
	c := start(t, ring, 1, t.TempDir(), func(c *tree.Config) { c.NoAtime = true })
	find(t, c, "d", "f")
	c.Accessed(f)
	if got := get(c, f); got.Atime != want.Atime {
		t.Errorf("later the access time is %v, want %v", got.Atime, want.Atime)
	}
}
