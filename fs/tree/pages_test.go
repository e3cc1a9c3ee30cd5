package tree_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
)

// fill makes files from..to-1 in a directory.
func fill(t testing.TB, m *mount, dir tree.Ino, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		mustMake(t, m, dir, fmt.Sprint("f", i), regMode)
	}
}

func names(t testing.TB, m *mount, dir tree.Ino) []string {
	t.Helper()
	ents, _, err := m.List(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]string, 0, len(ents))
	for _, e := range ents {
		out = append(out, e.Name)
	}
	slices.Sort(out)
	return out
}

// The steps of a spread, of a split, and of the end of the pages, with a death before and after each.
func TestCrashInSplit(t *testing.T) {
	four := func(c *tree.Config) { c.SplitEntries = 4 }
	add := func(ctx context.Context, m *mount) error {
		_, _, err := m.Make(ctx, find(t, m, "d"), "new", tree.MakeArgs{Mode: regMode, Excl: true})
		if err == nil {
			err = m.Sync(ctx)
		}
		return err
	}
	for name, c := range map[string]struct {
		files int // that stay
		gone  int // that are made and removed before
		op    func(ctx context.Context, m *mount) error
	}{
		"spread": {4, 0, add},
		"split":  {11, 0, add},
		"rmdir": {0, 12, func(ctx context.Context, m *mount) error {
			if err := m.Rmdir(ctx, tree.RootIno, "d"); err != nil {
				return err
			}
			return m.Sync(ctx)
		}},
		"replace": {0, 12, func(ctx context.Context, m *mount) error {
			return m.Rename(ctx, tree.RootIno, "e", tree.RootIno, "d", 0)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ring := newRing(t)
			m := start(t, ring, 1, t.TempDir(), four)
			d := mustMake(t, m, tree.RootIno, "d", dirMode)
			mustMake(t, m, tree.RootIno, "e", dirMode)
			fill(t, m, d, 0, max(c.files, c.gone))
			for i := range c.gone {
				if err := m.Unlink(t.Context(), d, fmt.Sprint("f", i)); err != nil {
					t.Fatal(err)
				}
			}
			before := dump(t, m)
			m.end(t)
			base := ring.Clone()
			m = start(t, ring, 1, t.TempDir(), four)
			if err := c.op(t.Context(), m); err != nil {
				t.Fatal(err)
			}
			after := dump(t, m)
			var seen [2]int
			for step := 0; !crashAt(t, base.Clone(), step, four, c.op, before, after, &seen); step++ {
			}
			if seen[0] == 0 || seen[1] == 0 {
				t.Errorf("seen as before %d times, as afterwards %d times", seen[0], seen[1])
			}
		})
	}
}

// A directory that was filled by a mount that does not split is spread when another mount adds to it; what the first has
// pending, after it lost its lease, goes to the pages.
func TestPendingWhenOthersSplit(t *testing.T) {
	for _, kill := range []bool{false, true} {
		t.Run(fmt.Sprint("killed ", kill), func(t *testing.T) {
			ring := newRing(t)
			a := start(t, ring, 1, t.TempDir(), func(c *tree.Config) { c.FlushAge = time.Hour })
			ctx := t.Context()
			d := mustMake(t, a, tree.RootIno, "d", dirMode)
			fill(t, a, d, 0, 40)
			if err := a.Sync(ctx); err != nil {
				t.Fatal(err)
			}
			old := find(t, a, "d", "f7")
			if err := a.Writeback(ctx, tree.Writeback{Ino: old, Inline: []byte("new"), Size: 3}); err != nil {
				t.Fatal(err)
			}
			mustMake(t, a, mustMake(t, a, d, "sub", dirMode), "in", regMode)
			mine := mustMake(t, a, d, "mine", regMode)
			if err := a.Writeback(ctx, tree.Writeback{Ino: mine, Inline: []byte("mine"), Size: 4}); err != nil {
				t.Fatal(err)
			}
			if err := a.Unlink(ctx, d, "f3"); err != nil {
				t.Fatal(err)
			}
			if err := a.Rename(ctx, d, "f4", d, "moved", 0); err != nil {
				t.Fatal(err)
			}
			dir := a.dir
			if kill {
				dir = a.kill(t)
			} else {
				a.regs.SetMistrust(true)
			}
			ring.FenceAll(peer(1))
			b := start(t, ring, 2, t.TempDir(), func(c *tree.Config) { c.SplitEntries = 4 })
			bd := find(t, b, "d")
			fill(t, b, bd, 40, 60)
			if kill {
				a = start(t, ring, 1, dir, nil)
				d = find(t, a, "d")
			} else {
				a.regs.SetMistrust(false)
			}
			names(t, a, d)
			if err := a.Sync(ctx); err != nil {
				t.Fatal(err)
			}
			got := names(t, b, bd)
			want := []string{"mine", "sub"}
			for i := range 60 {
				if i != 3 && i != 4 {
					want = append(want, fmt.Sprint("f", i))
				}
			}
			moved := 0
			got = slices.DeleteFunc(got, func(n string) bool {
				if strings.HasPrefix(n, "moved") {
					moved++
					return true
				}
				return false
			})
			slices.Sort(want)
			if !slices.Equal(got, want) || moved != 1 {
				t.Errorf("moved %d times; got\n%v, want\n%v", moved, got, want)
			}
			all := strings.Join(dump(t, b), "\n")
			for _, w := range []string{`/d/f7 100644 1 3 "new"`, `/d/mine 100644 1 4 "mine"`, "/d/sub/in "} {
				if !strings.Contains(all, w) {
					t.Errorf("nothing like %q in\n%s", w, all)
				}
			}
			equal(t, "both", dump(t, a), dump(t, b))
		})
	}
}

// What stat shows of a directory with pages, on two mounts.
func TestPagedAttributes(t *testing.T) {
	ring := newRing(t)
	four := func(c *tree.Config) { c.SplitEntries = 4 }
	a, b := start(t, ring, 1, t.TempDir(), four), start(t, ring, 2, t.TempDir(), four)
	ctx := t.Context()
	d := mustMake(t, a, tree.RootIno, "d", dirMode)
	fill(t, a, d, 0, 30)
	for i := range 10 {
		mustMake(t, a, d, fmt.Sprint("sub", i), dirMode)
	}
	bd := find(t, b, "d")
	for _, m := range []*mount{a, b} {
		at, err := m.Getattr(ctx, bd)
		if err != nil || at.Nlink != 12 {
			t.Errorf("links %d, %v; want 12", at.Nlink, err)
		}
	}
	past := tree.Time(1000)
	if at, err := b.Setattr(ctx, bd, tree.SetAttr{Mtime: &past}); err != nil || at.Mtime != past {
		t.Errorf("set to %d, %v", at.Mtime, err)
	}
	if at, err := a.Getattr(ctx, d); err != nil || at.Mtime != past {
		t.Errorf("seen by the other as %d, %v", at.Mtime, err)
	}
	from := tree.TimeOf(time.Now())
	mustMake(t, a, d, "one more", regMode)
	if at, err := b.Getattr(ctx, bd); err != nil || at.Mtime < from || at.Ctime < from {
		t.Errorf("after a new name: %+v, %v", at, err)
	}
	mode := uint32(0o2775)
	gid := uint32(77)
	if _, err := a.Setattr(ctx, d, tree.SetAttr{Mode: &mode, Gid: &gid}); err != nil {
		t.Fatal(err)
	}
	if at, _, err := b.Make(ctx, bd, "heir", tree.MakeArgs{Mode: regMode}); err != nil || at.Gid != 77 {
		t.Errorf("a new file in a set-group-ID directory: %+v, %v", at, err)
	}
}

// A listing while the directory grows and shrinks: what stays is listed once.
func TestListWhileSplitting(t *testing.T) {
	m := start(t, newRing(t), 1, t.TempDir(), func(c *tree.Config) { c.SplitEntries = 8 })
	d := mustMake(t, m, tree.RootIno, "d", dirMode)
	for i := range 50 {
		mustMake(t, m, d, fmt.Sprint("stay", i), regMode)
	}
	var wg sync.WaitGroup
	wg.Go(func() { fill(t, m, d, 0, 500) })
	for range 40 {
		stay := slices.DeleteFunc(names(t, m, d), func(n string) bool { return n[0] == 'f' })
		if len(stay) != 50 || len(slices.Compact(stay)) != 50 {
			t.Fatalf("%d names stayed, %d different", len(stay), len(slices.Compact(stay)))
		}
	}
	wg.Wait()
	if n := len(names(t, m, d)); n != 550 {
		t.Errorf("%d names, want 550", n)
	}
}

// Files whose content lies in their inodes: pages are split by size, and no value outgrows its register.
func TestSplitBySize(t *testing.T) {
	ring := newRing(t)
	m := start(t, ring, 1, t.TempDir(), nil)
	d := mustMake(t, m, tree.RootIno, "d", dirMode)
	content := make([]byte, tree.MaxInline)
	for i := range 4000 {
		ino := mustMake(t, m, d, fmt.Sprint("f", i), regMode)
		if err := m.Writeback(t.Context(), tree.Writeback{Ino: ino, Inline: content, Size: tree.MaxInline}); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := ring.Largest(); n > 8<<20 {
		t.Errorf("a register of %d bytes", n)
	}
	other := start(t, ring, 2, t.TempDir(), nil)
	if n := len(names(t, other, find(t, other, "d"))); n != 4000 {
		t.Errorf("%d names", n)
	}
}

// A listing that goes on while the directory's pages are split names what stayed exactly once.
func TestListWhilePagesSplit(t *testing.T) {
	m := start(t, newRing(t), 1, t.TempDir(), func(c *tree.Config) { c.SplitEntries = 8 })
	ctx := t.Context()
	d := mustMake(t, m, tree.RootIno, "d", dirMode)
	const stay = 60
	fill(t, m, d, 0, stay)
	seen := map[string]int{}
	var from blocks.RegisterID
	parts := 0
	for {
		entries, _, next, err := m.ReadDir(ctx, d, from)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			seen[e.Name]++
		}
		if parts++; next.IsZero() {
			break
		}
		for i := range 10 {
			mustMake(t, m, d, fmt.Sprint("new", parts, "-", i), regMode)
		}
		from = next
	}
	for i := range stay {
		if name := fmt.Sprint("f", i); seen[name] != 1 {
			t.Errorf("%s was listed %d times in %d parts", name, seen[name], parts)
		}
	}
	if parts < 4 {
		t.Errorf("only %d parts", parts)
	}
}
