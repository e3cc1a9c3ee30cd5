package tree_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
	"github.com/mutualfs/mutualfs/fs/tree/treetest"
)

// holders is a ring with two mounts, and which stripes have been deleted.
type holders struct {
	t     *testing.T
	ring  *treetest.Ring
	a, b  *mount
	free  time.Duration // FreeEvery, NoteAge
	pause time.Duration // LeasePause

	mu      sync.Mutex
	deleted map[blocks.StripeID]bool
}

func newHolders(t *testing.T, free, pause time.Duration) *holders {
	h := &holders{t: t, ring: newRing(t), free: free, pause: pause, deleted: map[blocks.StripeID]bool{}}
	h.a, h.b = h.start(1, t.TempDir()), h.start(2, t.TempDir())
	return h
}

func (h *holders) start(i int, dir string) *mount {
	return start(h.t, h.ring, i, dir, func(c *tree.Config) {
		c.FreeEvery, c.NoteAge, c.LeasePause = h.free, h.free, h.pause
		c.DeleteStripe = func(_ context.Context, id blocks.StripeID) error {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.deleted[id] = true
			return nil
		}
	})
}

func (h *holders) gone(id blocks.StripeID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.deleted[id]
}

func (h *holders) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// file makes d/f with ten bytes in a stripe on a, and opens it there.
func (h *holders) file(d tree.Ino) (f tree.Ino, id blocks.StripeID) {
	h.t.Helper()
	f = mustMake(h.t, h.a, d, "f", regMode)
	id = blocks.StripeID{ID: blocks.HashID([]byte("stripe"))}
	h.must(h.a.Writeback(h.t.Context(), tree.Writeback{Ino: f, Size: 10, Extents: []tree.Extent{{Len: 10, Stripe: blocks.StripeRef{ID: id, Len: 10, K: 1, M: 2}}}}))
	_, err := h.a.Open(h.t.Context(), f)
	h.must(err)
	return f, id
}

// find returns the number of a name on a mount, and counts a reference to all on the way.
func (h *holders) find(m *mount, path ...string) tree.Ino {
	h.t.Helper()
	ino := tree.RootIno
	for _, name := range path {
		a, err := m.Lookup(h.t.Context(), ino, name)
		h.must(err)
		ino = a.Ino
	}
	return ino
}

// stillThere checks that a has all of an open file without a name.
func (h *holders) stillThere(f tree.Ino, id blocks.StripeID) {
	h.t.Helper()
	ctx := h.t.Context()
	if at, err := h.a.Getattr(ctx, f); err != nil || at.Nlink != 0 || at.Size != 10 {
		h.t.Fatalf("open, and removed by the other mount: %+v, %v", at, err)
	}
	if c, err := h.a.Content(ctx, f, 0, 0); err != nil || len(c.Extents) != 1 || c.Extents[0].Stripe.ID != id {
		h.t.Fatalf("content %+v, %v", c, err)
	}
	mode := uint32(0o600)
	_, err := h.a.Setattr(ctx, f, tree.SetAttr{Mode: &mode})
	h.must(err)
	h.must(h.a.Truncate(ctx, f, 12))
	h.must(h.a.Truncate(ctx, f, 10))
	h.must(h.a.Fsync(ctx, f))
	if h.gone(id) {
		h.t.Fatal("the stripe of an open file was deleted")
	}
}

func (h *holders) ends(what string, id blocks.StripeID) {
	h.t.Helper()
	eventually(h.t, what, func() bool { return h.gone(id) })
}

// ways in which the other mount can take the last name of d/f away.
var removals = map[string]func(ctx context.Context, b *mount, d tree.Ino) error{
	"unlink": func(ctx context.Context, b *mount, d tree.Ino) error { return b.Unlink(ctx, d, "f") },
	"rename": func(ctx context.Context, b *mount, d tree.Ino) error {
		return errors.Join(mk(ctx, b, d, "g", regMode), b.Rename(ctx, d, "g", d, "f", 0))
	},
	"rename from afar": func(ctx context.Context, b *mount, d tree.Ino) error {
		return errors.Join(mk(ctx, b, tree.RootIno, "g", regMode), b.Rename(ctx, tree.RootIno, "g", d, "f", 0))
	},
	"moved, then unlinked": func(ctx context.Context, b *mount, d tree.Ino) error {
		return errors.Join(b.Rename(ctx, d, "f", tree.RootIno, "moved", 0), b.Unlink(ctx, tree.RootIno, "moved"))
	},
	"linked, then unlinked": func(ctx context.Context, b *mount, d tree.Ino) error {
		f, err := b.Lookup(ctx, d, "f")
		if err == nil {
			_, err = b.Link(ctx, f.Ino, tree.RootIno, "other")
		}
		return errors.Join(err, b.Unlink(ctx, d, "f"), b.Unlink(ctx, tree.RootIno, "other"))
	},
	"with its directory": func(ctx context.Context, b *mount, d tree.Ino) error {
		return errors.Join(b.Unlink(ctx, d, "f"), b.Rmdir(ctx, tree.RootIno, "d"))
	},
	"with its directory, which is replaced": func(ctx context.Context, b *mount, d tree.Ino) error {
		return errors.Join(b.Unlink(ctx, d, "f"), mk(ctx, b, tree.RootIno, "e", dirMode), b.Rename(ctx, tree.RootIno, "e", tree.RootIno, "d", 0))
	},
	"with its directory, which has moved": func(ctx context.Context, b *mount, d tree.Ino) error {
		err := errors.Join(b.Unlink(ctx, d, "f"), mk(ctx, b, tree.RootIno, "e", dirMode))
		e, err2 := b.Lookup(ctx, tree.RootIno, "e")
		return errors.Join(err, err2, b.Rename(ctx, tree.RootIno, "d", e.Ino, "d", 0), b.Rmdir(ctx, e.Ino, "d"), b.Rmdir(ctx, tree.RootIno, "e"))
	},
}

func mk(ctx context.Context, m *mount, dir tree.Ino, name string, mode uint32) error {
	_, _, err := m.Make(ctx, dir, name, tree.MakeArgs{Mode: mode, Excl: true})
	return err
}

// A file that one mount has open lives when another removes it, however it does, until it is closed.
func TestOpenFileOutlivesItsRemovalElsewhere(t *testing.T) {
	for name, remove := range removals {
		for _, leased := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, leased %v", name, leased), func(t *testing.T) {
				h := newHolders(t, 20*time.Millisecond, 20*time.Millisecond)
				d := mustMake(t, h.a, tree.RootIno, "d", dirMode)
				if !leased { // the other mount has just had the lease, and neither takes it for a while
					for range 3 {
						h.find(h.b, "d")
						_, _, err := h.b.List(t.Context(), d)
						h.must(err)
						_, err = h.a.Getattr(t.Context(), d)
						h.must(err)
					}
				}
				f, id := h.file(d)
				h.must(remove(t.Context(), h.b, h.find(h.b, "d")))
				h.stillThere(f, id)
				h.must(h.b.Sync(t.Context()))
				h.stillThere(f, id)
				h.a.Release(f)
				h.ends("the file ends when it is closed", id)
			})
		}
	}
}

// What a mount had open ends when another finds that its process has died, or when it comes back.
func TestOpenFilesOfADeadMountEnd(t *testing.T) {
	for name, remove := range removals {
		for _, back := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, back %v", name, back), func(t *testing.T) {
				h := newHolders(t, 20*time.Millisecond, 20*time.Millisecond)
				f, id := h.file(mustMake(t, h.a, tree.RootIno, "d", dirMode))
				h.must(h.a.Sync(t.Context()))
				h.must(remove(t.Context(), h.b, h.find(h.b, "d")))
				h.stillThere(f, id)
				dir := h.a.kill(t)
				if back {
					h.b.end(t)
					h.a = h.start(1, dir)
				}
				eventually(t, "the file ends with its mount", func() bool {
					if back { // who uses the directories gets their leases, and with these what they have to free
						dump(t, h.a)
					}
					return h.gone(id)
				})
			})
		}
	}
}

// A mount whose lease is recalled notes what it has open in one change; it opens files at no cost while it has the lease, and those that
// are noted at no cost, too.
func TestNotesCostLittle(t *testing.T) {
	h := newHolders(t, time.Hour, time.Hour) // notes of closed files that have names stay; no lease is taken again to change anything
	ctx := t.Context()
	const files = 200
	var inos []tree.Ino
	for i := range files {
		inos = append(inos, mustMake(t, h.a, tree.RootIno, fmt.Sprint(i), regMode))
	}
	h.must(h.a.Sync(ctx))
	_, before := h.a.regs.Calls()
	for _, ino := range inos {
		_, err := h.a.Open(ctx, ino)
		h.must(err)
	}
	if _, writes := h.a.regs.Calls(); writes != before {
		t.Errorf("opening %d files in a directory that is leased took %d proposals", files, writes-before)
	}
	h.b.Forget(h.find(h.b, "7"), 1)
	_, after := h.a.regs.Calls()
	if n := after - before; n > 4 { // the session, the notes, the release
		t.Errorf("giving the lease back with %d open files took %d proposals", files, n)
	}
	for i := range 3 {
		h.a.Release(inos[i])
		_, err := h.a.Open(ctx, inos[i])
		h.must(err)
	}
	if _, writes := h.a.regs.Calls(); writes > after+1 { // the lease to read
		t.Errorf("opening noted files again took %d proposals", writes-after)
	}
	for i := range inos {
		h.must(h.b.Unlink(ctx, tree.RootIno, fmt.Sprint(i)))
	}
	for _, ino := range inos {
		if at, err := h.a.Getattr(ctx, ino); err != nil || at.Nlink != 0 {
			t.Fatalf("inode %d: %+v, %v", ino, at, err)
		}
		h.a.Release(ino)
	}
	for _, ino := range inos {
		eventually(t, "all files end", func() bool {
			_, err := h.a.Content(ctx, ino, 0, 0)
			return errors.Is(err, syscall.ESTALE)
		})
	}
}

// A mount that was out of contact for so long that its session was taken notes what it has open under a new one.
func TestLostSession(t *testing.T) {
	h := newHolders(t, 20*time.Millisecond, 20*time.Millisecond)
	ctx := t.Context()
	d := mustMake(t, h.a, tree.RootIno, "d", dirMode)
	f, id := h.file(d)
	h.b.Forget(h.find(h.b, "d", "f"), 1) // has f noted
	before := h.a.SessionID()
	h.ring.FenceAll(peer(1))
	eventually(t, "the session is renewed", func() bool {
		if at, err := h.a.Getattr(ctx, f); err != nil {
			t.Fatalf("%+v, %v; %v", at, err, dump(t, h.b))
		}
		return h.a.SessionID() != before && h.a.Noted(f)
	})
	h.must(h.b.Unlink(ctx, h.find(h.b, "d"), "f"))
	h.stillThere(f, id)
	h.a.Release(f)
	h.ends("the file ends when it is closed", id)
}

// A file that this mount removes stays for an open that is on its way, until the kernel has forgotten it; its directory does not wait for that.
func TestFileStaysUntilForgotten(t *testing.T) {
	h := newHolders(t, time.Hour, time.Hour)
	ctx := t.Context()
	opens := func(f tree.Ino) {
		t.Helper()
		_, err := h.a.Open(ctx, f)
		h.must(err)
		if c, err := h.a.Content(ctx, f, 0, 0); err != nil || c.Size != 10 {
			t.Errorf("content %+v, %v", c, err)
		}
		h.a.Release(f)
	}
	ended := func(f tree.Ino) {
		t.Helper()
		if _, err := h.a.Content(ctx, f, 0, 0); !errors.Is(err, syscall.ESTALE) {
			t.Errorf("content of a file that was forgotten: %v", err)
		}
	}
	d := mustMake(t, h.a, tree.RootIno, "d", dirMode)
	f, id := h.file(d)
	h.a.Release(f)
	h.must(h.a.Unlink(ctx, d, "f"))
	opens(f)
	opens(f)
	h.a.Forget(f, 1)
	ended(f)
	h.must(h.a.Sync(ctx))
	h.ends("the stripe is deleted", id)

	f, _ = h.file(d)
	h.a.Release(f)
	mustMake(t, h.a, d, "g", regMode)
	h.must(h.a.Rename(ctx, d, "g", d, "f", 0))
	opens(f)
	h.must(h.a.Sync(ctx)) // with a note
	h.a.Forget(f, 1)
	ended(f)
	h.must(h.a.Unlink(ctx, d, "f"))

	f, _ = h.file(d)
	h.a.Release(f)
	h.must(h.a.Unlink(ctx, d, "f"))
	h.must(h.a.Rmdir(tree.NoWait(ctx), tree.RootIno, "d")) // no transaction
	if _, err := h.a.Open(ctx, f); !errors.Is(err, syscall.ESTALE) {
		t.Errorf("open of a file whose directory has ended: %v", err)
	}
}

// What the kernel had not forgotten when the mount ended leaves nothing in the registers.
func TestUnforgottenFilesEndWithTheMount(t *testing.T) {
	h := newHolders(t, time.Hour, time.Hour)
	f := mustMake(t, h.a, tree.RootIno, "f", regMode)
	h.must(h.a.Sync(t.Context()))
	h.must(h.a.Unlink(t.Context(), tree.RootIno, "f"))
	h.must(h.a.Sync(t.Context()))
	h.a.end(t)
	facts, err := tree.NewSurveyor(h.ring, volumeKey).Facts(t.Context(), rootID)
	h.must(err)
	if len(facts.Inodes) > 0 && facts.Inodes[len(facts.Inodes)-1].Ino == f {
		t.Errorf("the register still has %+v", facts.Inodes)
	}
}
