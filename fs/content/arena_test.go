package content

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/mutualfs/mutualfs/blocks"
	"golang.org/x/sys/unix"
)

// Chunks do not overlap, keep what is written as long as they are owned, and are used again.
func TestArena(t *testing.T) {
	for _, size := range []int{1000, 64 << 10, 1 << 20, 3<<20 + 5} {
		a := newArena(size, 2)
		var owned [][]byte
		for round := range 3 {
			for i := range 9 {
				c := a.get()
				if len(c) != size || cap(c) != size {
					t.Fatalf("a chunk of %d bytes, room for %d, want %d", len(c), cap(c), size)
				}
				for j := range c {
					c[j] = byte(round*9 + i)
				}
				owned = append(owned, c)
			}
			for i, c := range owned {
				if c[0] != byte(round*9+i) || !bytes.Equal(c, bytes.Repeat(c[:1], size)) {
					t.Fatalf("size %d, round %d: chunk %d was changed by another's owner", size, round, i)
				}
			}
			for _, c := range owned {
				a.put(c)
			}
			owned = owned[:0]
		}
		per := max(1, (size+hugePage-1)/hugePage*hugePage/a.stride)
		if most := (9 + per - 1) / per; len(a.regions.mapped) > most {
			t.Errorf("size %d: %d regions for 9 chunks at a time, want at most %d", size, len(a.regions.mapped), most)
		}
		if len(a.free) != 2 {
			t.Errorf("size %d: %d chunks keep their memory, want 2", size, len(a.free))
		}
	}
}

// Beyond the spare ones, chunks that were given back take no memory.
func TestArenaGivesMemoryBack(t *testing.T) {
	a := newArena(1<<20, 4)
	var owned [][]byte
	for range 32 {
		c := a.get()
		for i := range c {
			c[i] = 1
		}
		owned = append(owned, c)
	}
	for _, c := range owned {
		a.put(c)
	}
	kept := 0
	for _, m := range a.regions.mapped {
		kept += bytes.Count(m, []byte{1}) // what the kernel has back reads as zeros
	}
	if kept != 4<<20 {
		t.Errorf("%d bytes are kept, want 4 MiB", kept)
	}
}

// Reads of more stripes than the cache holds, by many at once, see the right bytes although chunks are used again.
func TestCacheUsesChunksAgain(t *testing.T) {
	const size = 4 * Unit
	var c *cache
	content := func(ref blocks.StripeRef, off uint32, p []byte) {
		for i := range p {
			p[i] = ref.ID.ID[0] ^ byte((int(off)+i)/97)
		}
	}
	c = newCache(6*size, size, func(_ context.Context, ref blocks.StripeRef, off uint32, p []byte) error {
		content(ref, off, p)
		return nil
	})
	var wg sync.WaitGroup
	for k := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(k), 4))
			for range 3000 {
				n := r.IntN(16)
				ref := blocks.StripeRef{ID: blocks.StripeID{ID: blocks.ID{byte(n)}}, Len: size - uint32(n%3)*(Unit-7)}
				off := uint32(r.IntN(int(ref.Len)))
				p, want := make([]byte, 1+r.IntN(int(ref.Len-off))), make([]byte, size)
				content(ref, off, want[:len(p)])
				if !c.tryRead(ref, off, p) {
					if err := c.read(t.Context(), ref, off, p, r.IntN(2) == 0); err != nil {
						t.Error(err)
					}
				}
				if !bytes.Equal(p, want[:len(p)]) {
					t.Errorf("stripe %v, %d bytes from %d: wrong bytes", ref.ID, len(p), off)
					return
				}
				if r.IntN(500) == 0 {
					c.drop()
				}
			}
		})
	}
	wg.Wait()
	if c.bytes() > 6*size {
		t.Errorf("the cache holds %d bytes, its limit is %d", c.bytes(), 6*size)
	}
	c.drop()
	if n := len(c.chunks.free) + len(c.chunks.bare); n*c.chunks.stride != len(c.chunks.regions.mapped)*hugePage || c.bytes() != 0 {
		t.Errorf("%d chunks are back of %d regions, %d bytes in use", n, len(c.chunks.regions.mapped), c.bytes())
	}
}

// What the first touch of new memory costs, in pages of either size.
func BenchmarkFirstTouch(b *testing.B) {
	const n = 256 << 20
	for name, advice := range map[string]int{"small": unix.MADV_NOHUGEPAGE, "huge": unix.MADV_HUGEPAGE} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(n)
			for b.Loop() {
				m, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
				if err == nil {
					err = unix.Madvise(m, advice)
				}
				if err != nil {
					b.Fatal(err)
				}
				for i := 0; i < n; i += unix.Getpagesize() {
					m[i] = 1
				}
				if err := unix.Munmap(m); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
