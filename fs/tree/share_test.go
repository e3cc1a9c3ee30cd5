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

// share lets both mounts look at d/f until both do so from memory. What the kernel is told it may not keep: that is for a mount alone.
func (h *holders) share() {
	h.t.Helper()
	eventually(h.t, "both mounts share the leases", func() bool {
		before := h.calls()
		for _, m := range []*mount{h.a, h.b} {
			d, err := m.Lookup(h.t.Context(), tree.RootIno, "d")
			h.must(err)
			f, err := m.Lookup(h.t.Context(), d.Ino, "f")
			h.must(err)
			if h.calls() == before && (d.Valid != 0 || f.Valid != 0) && m == h.b {
				h.t.Fatalf("the kernel may keep what is shared, for %v and %v", d.Valid, f.Valid)
			}
		}
		return h.calls() == before
	})
}

// calls counts what both mounts ask of the registers.
func (h *holders) calls() (n int) {
	for _, m := range []*mount{h.a, h.b} {
		reads, writes := m.regs.Calls()
		n += reads + writes
	}
	return n
}

// Mounts that read the same directories do so from memory, all at the same time; what one changes the others see at once.
func TestReadersShareALease(t *testing.T) {
	h := newHolders(t, time.Hour, 20*time.Millisecond)
	ctx := t.Context()
	d := mustMake(t, h.a, tree.RootIno, "d", dirMode)
	f := mustMake(t, h.a, d, "f", regMode)
	h.must(h.a.Sync(ctx))
	h.share()
	before := h.calls()
	for range 100 {
		for _, m := range []*mount{h.a, h.b} {
			h.find(m, "d", "f")
			if _, err := m.Getattr(ctx, f); err != nil {
				t.Fatal(err)
			}
			if l, _, err := m.List(ctx, d); err != nil || len(l) != 1 {
				t.Fatalf("%v, %v", l, err)
			}
		}
	}
	if n := h.calls() - before; n > 0 {
		t.Errorf("reading what both share took %d calls", n)
	}
	for i := range 50 {
		a, b := h.a, h.b
		if i%2 == 1 {
			a, b = b, a
		}
		mode := uint32(0o600 + i)
		_, err := a.Setattr(ctx, f, tree.SetAttr{Mode: &mode})
		h.must(err)
		if at, err := b.Getattr(ctx, f); err != nil || at.Mode&0o7777 != mode {
			t.Fatalf("round %d: mode %o, want %o; %v", i, at.Mode&0o7777, mode, err)
		}
		if i%5 == 0 {
			h.share()
		}
	}
}

// Mounts that share a lease and change the directory at the same time each wait for the other's, and both come to an end.
func TestSharersChangeAtTheSameTime(t *testing.T) {
	h := newHolders(t, 20*time.Millisecond, time.Millisecond)
	d := mustMake(t, h.a, tree.RootIno, "d", dirMode)
	mustMake(t, h.a, d, "f", regMode)
	h.must(h.a.Sync(t.Context()))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for round := range 100 {
		h.share()
		var wg sync.WaitGroup
		for i, m := range []*mount{h.a, h.b} {
			wg.Go(func() {
				name := fmt.Sprint(round, " ", i)
				if err := mk(ctx, m, d, name, regMode); err != nil {
					t.Errorf("round %d: create: %v", round, err)
				}
				if err := m.Rename(ctx, d, name, tree.RootIno, name, 0); err != nil {
					t.Errorf("round %d: move: %v", round, err)
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
	}
	equal(t, "both trees", dump(t, h.a), dump(t, h.b))
	for round := range 100 {
		for i := range 2 {
			h.find(h.b, fmt.Sprint(round, " ", i))
		}
	}
}

// A file that was opened under a shared lease lives until it is closed, and ends then though others go on reading.
func TestOpenUnderASharedLease(t *testing.T) {
	h := newHolders(t, 20*time.Millisecond, 20*time.Millisecond)
	ctx := t.Context()
	d := mustMake(t, h.a, tree.RootIno, "d", dirMode)
	f, id := h.file(d)
	h.a.Release(f)
	h.must(h.a.Sync(ctx))
	h.share()
	_, err := h.a.Open(ctx, f)
	h.must(err)
	reads, writes := h.b.regs.Calls()
	if _, err := h.b.Getattr(ctx, f); err != nil {
		t.Fatal(err)
	}
	if r, w := h.b.regs.Calls(); r != reads || w != writes {
		t.Error("that the file was opened has disturbed the other reader")
	}
	h.must(h.b.Unlink(ctx, d, "f"))
	h.stillThere(f, id)
	h.a.Release(f)
	h.a.Forget(f, 1)
	eventually(t, "the file ends", func() bool {
		for _, m := range []*mount{h.a, h.b} { // and both go on looking
			if _, err := m.Lookup(ctx, d, "f"); !errors.Is(err, syscall.ENOENT) {
				t.Fatal(err)
			}
		}
		return h.gone(id)
	})
}

// A mount that shared a lease and was not heard for so long that it was taken answers from the register again.
func TestFencedReader(t *testing.T) {
	h := newHolders(t, time.Hour, 20*time.Millisecond)
	ctx := t.Context()
	d := mustMake(t, h.a, tree.RootIno, "d", dirMode)
	mustMake(t, h.a, d, "f", regMode)
	h.must(h.a.Sync(ctx))
	for i := range 20 {
		h.share()
		h.b.regs.SetFault(func(bool, blocks.RegisterID, *blocks.Change) treetest.Fault {
			return treetest.Fault{Err: blocks.ErrUnavailable}
		})
		h.ring.FenceAll(peer(2))
		name := fmt.Sprint(i)
		mustMake(t, h.a, d, name, regMode)
		if _, err := h.b.Lookup(ctx, d, name); errors.Is(err, syscall.ENOENT) || err == nil {
			t.Fatalf("cut off, its lease taken: %v", err)
		}
		h.b.regs.SetFault(nil)
		h.find(h.b, "d", name)
	}
}

// A mount that shares a lease and changes the container does not answer from memory until it knows what became of its change: the
// others may have seen it.
func TestSharerWaitsForItsOwnChange(t *testing.T) {
	for range 5 {
		h := newHolders(t, time.Hour, time.Hour) // nobody takes a lease alone again
		ctx := t.Context()
		d := mustMake(t, h.a, tree.RootIno, "d", dirMode)
		f := mustMake(t, h.a, d, "f", regMode)
		h.must(h.a.Sync(ctx))
		h.share()
		h.a.regs.SetFault(func(write bool, _ blocks.RegisterID, _ *blocks.Change) (f treetest.Fault) {
			if write {
				f.Late = 50 * time.Millisecond
			}
			return f
		})
		mode := uint32(0o640)
		done := make(chan error, 1)
		go func() {
			_, err := h.a.Setattr(ctx, f, tree.SetAttr{Mode: &mode})
			done <- err
		}()
		eventually(t, "the other mount sees the change", func() bool {
			at, err := h.b.Getattr(ctx, f)
			h.must(err)
			return at.Mode&0o7777 == mode
		})
		select {
		case err := <-done:
			t.Fatalf("the change was answered before the other mount saw it: %v", err)
		default:
		}
		if at, err := h.a.Getattr(ctx, f); err != nil || at.Mode&0o7777 != mode {
			t.Fatalf("the other mount has seen mode %o; here it is %o, %v", mode, at.Mode&0o7777, err)
		}
		h.must(<-done)
	}
}

// What those who left it to free could not free before they died is freed by who only shares the lease.
func TestReadersFree(t *testing.T) {
	ring := newRing(t)
	ctx := t.Context()
	var may, gone atomic.Bool
	mountOf := func(i int) *mount {
		return start(t, ring, i, t.TempDir(), func(c *tree.Config) {
			c.FreeEvery, c.LeasePause = 20*time.Millisecond, 300*time.Millisecond
			c.DeleteStripe = func(context.Context, blocks.StripeID) error {
				if !may.Load() {
					return blocks.ErrUnavailable
				}
				gone.Store(true)
				return nil
			}
		})
	}
	h := &holders{t: t, ring: ring, a: mountOf(1), b: mountOf(2)}
	d := mustMake(t, h.a, tree.RootIno, "d", dirMode)
	f, _ := h.file(d)
	h.a.Release(f)
	h.must(h.a.Unlink(ctx, d, "f"))
	h.a.Forget(f, 1)
	mustMake(t, h.a, d, "f", regMode)
	h.must(h.a.Sync(ctx))
	h.share()
	c := mountOf(3)
	eventually(t, "the third mount shares, too", func() bool {
		reads, writes := c.regs.Calls()
		h.find(c, "d", "f")
		r, w := c.regs.Calls()
		return r == reads && w == writes
	})
	h.a.kill(t)
	h.b.kill(t)
	may.Store(true)
	eventually(t, "the stripe is freed", gone.Load)
}
