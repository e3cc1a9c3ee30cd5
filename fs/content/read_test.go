package content

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
)

func TestRandomReadFetchesOneUnit(t *testing.T) {
	fs, _, s := rig(t, Config{})
	p := noise(4 << 20)
	mustWrite(t, fs, 0, p)
	mustFsync(t, fs)
	got := make([]byte, 4096)
	for i, off := range []int{3 << 20, 1 << 20, 2<<20 + 20000, 1<<20 + 8192} {
		before := s.readBytes.Load()
		if _, err := fs.Read(ctxFor(t), ino, uint64(off), got); err != nil || !bytes.Equal(got, p[off:off+4096]) {
			t.Fatalf("read at %d: %v", off, err)
		}
		want := int64(Unit)
		if i == 2 {
			want = 0
			if off/Unit != (off+4095)/Unit {
				want = 2 * Unit
			} else {
				want = Unit
			}
		}
		if i == 3 {
			want = 0 // the unit is there
		}
		if n := s.readBytes.Load() - before; n != want {
			t.Errorf("read at %d fetched %d bytes, not %d", off, n, want)
		}
	}
}

func TestSequentialReadIsAhead(t *testing.T) {
	fs, _, s := rig(t, Config{})
	p := noise(16 << 20)
	mustWrite(t, fs, 0, p)
	mustFsync(t, fs)
	got := make([]byte, 128<<10)
	for off := 0; off < len(p); off += len(got) {
		if n, err := fs.Read(ctxFor(t), ino, uint64(off), got); err != nil || n != len(got) || !bytes.Equal(got, p[off:off+n]) {
			t.Fatalf("read at %d: %d, %v", off, n, err)
		}
		if off == 0 {
			eventually(t, "the next stripe fetched", func() bool { return s.reads.Load() >= 2 })
		}
	}
	if n := s.readBytes.Load(); n > int64(len(p))*5/4 {
		t.Errorf("%d bytes fetched for %d", n, len(p))
	}
	// All is cached: it can be had without waiting.
	if n, err := fs.Read(tree.NoWait(ctxFor(t)), ino, 5<<20, got); err != nil || n != len(got) {
		t.Errorf("read from cache: %d, %v", n, err)
	}
}

func TestConcurrentMissesFetchOnce(t *testing.T) {
	fs, _, s := rig(t, Config{ReadAhead: 1})
	p := noise(1 << 20)
	mustWrite(t, fs, 0, p)
	mustFsync(t, fs)
	if _, err := fs.Read(tree.NoWait(ctxFor(t)), ino, 0, make([]byte, 10)); !errors.Is(err, tree.ErrWait) {
		t.Fatalf("cold read without waiting: %v", err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			got := make([]byte, 100)
			if _, err := fs.Read(ctxFor(t), ino, 0, got); err != nil || !bytes.Equal(got, p[:100]) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := s.readBytes.Load(); n > 1<<20 {
		t.Errorf("%d bytes fetched", n)
	}
}

func TestCacheIsBounded(t *testing.T) {
	fs, _, _ := rig(t, Config{StripeSize: 64 << 10, CacheBytes: 256 << 10})
	p := noise(2 << 20)
	mustWrite(t, fs, 0, p)
	mustFsync(t, fs)
	mustRead(t, fs, p)
	if n := fs.Status().CachedBytes; n > 256<<10 {
		t.Errorf("%d bytes cached", n)
	}
}

func TestReadErrors(t *testing.T) {
	fs, m, s := rig(t, Config{})
	mustWrite(t, fs, 0, noise(100<<10))
	mustFsync(t, fs)
	s.dice, s.failR = newDice(1), 1
	if _, err := fs.Read(ctxFor(t), ino, 0, make([]byte, 10)); !errors.Is(err, blocks.ErrUnavailable) {
		t.Errorf("unreachable stripe: %v", err)
	}
	s.failR = 0
	if _, err := fs.Read(ctxFor(t), ino, 0, make([]byte, 10)); err != nil {
		t.Errorf("a failure was kept: %v", err)
	}
	m.mu.Lock()
	m.files[ino].Extents[0].At = 1 << 20
	m.mu.Unlock()
	if _, err := fs.Read(ctxFor(t), ino, 0, make([]byte, 10)); !errors.Is(err, blocks.ErrCorrupt) {
		t.Errorf("extent outside of its stripe: %v", err)
	}
	if _, err := fs.Read(context.Background(), 99, 0, make([]byte, 10)); err == nil {
		t.Error("no such inode, no error")
	}
}

func TestSpans(t *testing.T) {
	var s spans
	for _, r := range [][2]uint64{{10, 20}, {30, 40}, {50, 60}, {20, 30}, {5, 6}, {45, 45}, {0, 1}} {
		s.add(r[0], r[1])
	}
	var out []span
	_ = s.gaps(0, 70, func(from, to uint64) error { out = append(out, span{from, to}); return nil })
	want := []span{{1, 5}, {6, 10}, {40, 50}, {60, 70}}
	if len(out) != len(want) {
		t.Fatalf("gaps %v of %v", out, s)
	}
	for i := range want {
		if out[i] != want[i] {
			t.Fatalf("gaps %v of %v", out, s)
		}
	}
}
