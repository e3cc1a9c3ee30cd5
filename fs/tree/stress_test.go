package tree_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/fs/tree"
)

// expected reports whether an operation on names that others change at the same time may fail so.
func expected(err error) bool {
	for _, e := range []syscall.Errno{syscall.ENOENT, syscall.EEXIST, syscall.ENOTEMPTY, syscall.ENOTDIR, syscall.EISDIR, syscall.EINVAL, syscall.ESTALE, syscall.EPERM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return err == nil
}

// Many callers on two mounts over the same few names: nothing hangs, nothing is corrupt, and both see the
// same in the end.
func TestConcurrent(t *testing.T) { withAndWithoutPages(t, testConcurrent) }

func testConcurrent(t *testing.T, edit func(*tree.Config)) {
	s := seed(t)
	ring := newRing(t)
	ms := []*mount{start(t, ring, 1, t.TempDir(), edit), start(t, ring, 2, t.TempDir(), edit)}
	dirs := []tree.Ino{tree.RootIno}
	for i := range 3 {
		dirs = append(dirs, mustMake(t, ms[0], tree.RootIno, fmt.Sprint("dir", i), dirMode))
		find(t, ms[1], fmt.Sprint("dir", i))
	}
	var wg sync.WaitGroup
	for k := range 6 {
		wg.Go(func() {
			r, m := rng(s+uint64(k)), ms[k%2]
			for range 120 {
				d, e := dirs[r.IntN(len(dirs))], dirs[r.IntN(len(dirs))]
				a, b := string(rune('a'+r.IntN(4))), string(rune('a'+r.IntN(4)))
				var err error
				var at tree.Attr
				switch r.IntN(9) {
				case 0, 1:
					at, _, err = m.Make(t.Context(), d, a, tree.MakeArgs{Mode: regMode})
				case 2:
					_, _, err = m.Make(t.Context(), d, a, tree.MakeArgs{Mode: dirMode})
				case 3:
					err = m.Unlink(t.Context(), d, a)
				case 4:
					err = m.Rmdir(t.Context(), d, a)
				case 5, 6:
					err = m.Rename(t.Context(), d, a, e, b, []tree.RenameFlags{0, 0, 2}[r.IntN(3)])
				case 7:
					if at, err = m.Lookup(t.Context(), d, a); err == nil && !at.IsDir() {
						_, err = m.Link(t.Context(), at.Ino, e, b)
					}
				case 8:
					if at, err = m.Lookup(t.Context(), d, a); err == nil && at.Mode&syscall.S_IFMT == syscall.S_IFREG {
						err = m.Writeback(t.Context(), tree.Writeback{Ino: at.Ino, Inline: []byte(a), Size: 1})
					}
				}
				if !expected(err) {
					t.Errorf("%v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	for _, m := range ms {
		if err := m.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	dump(t, ms[1])
	equal(t, "both mounts", dump(t, ms[0]), dump(t, ms[1]))
}

// Leases lost at any time, with operations pending: every file that was made is there, under its name or beside it.
func TestFencedStorm(t *testing.T) { withAndWithoutPages(t, testFencedStorm) }

func testFencedStorm(t *testing.T, edit func(*tree.Config)) {
	r := rng(seed(t))
	ring := newRing(t)
	ms := []*mount{
		start(t, ring, 1, t.TempDir(), func(c *tree.Config) { edit(c); c.FlushAge = 20 * time.Millisecond }),
		start(t, ring, 2, t.TempDir(), func(c *tree.Config) { edit(c); c.FlushAge = 20 * time.Millisecond }),
	}
	want := map[tree.Ino]string{}
	for i := range 400 {
		k := r.IntN(2)
		name := fmt.Sprint("f", i/2)
		a, made, err := ms[k].Make(t.Context(), tree.RootIno, name, tree.MakeArgs{Mode: regMode, Excl: true})
		if err != nil && !errors.Is(err, syscall.EEXIST) {
			t.Fatal(err)
		}
		if made {
			want[a.Ino] = name
			if err := ms[k].Writeback(t.Context(), tree.Writeback{Ino: a.Ino, Inline: []byte(name), Size: uint64(len(name))}); err != nil {
				t.Fatal(err)
			}
		}
		if r.IntN(10) == 0 {
			ring.FenceAll(peer(1 + r.IntN(2)))
		}
	}
	for _, m := range ms {
		if err := m.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	got := map[tree.Ino]bool{}
	ents, _, err := ms[0].List(t.Context(), tree.RootIno)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range ents {
		got[e.Attr.Ino] = e.Attr.Size > 0
	}
	for ino, name := range want {
		if !got[ino] {
			t.Errorf("%s (inode %d) has vanished, or its content", name, ino)
		}
	}
	equal(t, "both mounts", dump(t, ms[0]), dump(t, ms[1]))
}

// Directories that are removed together with what was in them are committed as removed, whichever container is
// committed first, and no register of them is left.
func TestRemoveTree(t *testing.T) {
	ring := newRing(t)
	m := start(t, ring, 1, t.TempDir(), func(c *tree.Config) { c.FlushAge = time.Hour })
	live := ring.Live()
	for i := range 20 {
		name := fmt.Sprint("a", i)
		a := mustMake(t, m, tree.RootIno, name, dirMode)
		b := mustMake(t, m, a, "b", dirMode)
		mustMake(t, m, b, "c", dirMode)
		if err := m.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, d := range []struct {
			dir  tree.Ino
			name string
		}{{b, "c"}, {a, "b"}, {tree.RootIno, name}} {
			if err := m.Rmdir(t.Context(), d.dir, d.name); err != nil {
				t.Fatal(err)
			}
		}
		if err := m.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	equal(t, "after the removals", dump(t, m), nil)
	equal(t, "for another mount", dump(t, start(t, ring, 2, t.TempDir(), nil)), nil)
	if n := ring.Live(); n != live {
		t.Errorf("%d registers, %d before", n, live)
	}
}

// A lease on a directory that was removed with all above it is given back when another mount asks, which finds it gone.
func TestRecallOfRemoved(t *testing.T) {
	ring := newRing(t)
	m := start(t, ring, 1, t.TempDir(), func(c *tree.Config) { c.FlushAge = time.Hour })
	other := start(t, ring, 2, t.TempDir(), nil)
	a := mustMake(t, m, tree.RootIno, "a", dirMode)
	b := mustMake(t, m, a, "b", dirMode)
	mustMake(t, m, b, "c", dirMode)
	seen := find(t, other, "a", "b", "c")
	again := find(t, m, "a", "b") // the lease comes back
	mustMake(t, m, again, "d", dirMode)
	for _, d := range []struct {
		dir  tree.Ino
		name string
	}{{b, "d"}, {b, "c"}, {a, "b"}, {tree.RootIno, "a"}} {
		if err := m.Rmdir(t.Context(), d.dir, d.name); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := other.Getattr(ctx, seen); !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ESTALE) {
		t.Errorf("a directory that was removed: %v", err)
	}
}
