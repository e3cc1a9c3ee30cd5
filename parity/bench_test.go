package parity

import (
	"fmt"
	"testing"

	"github.com/mutualfs/mutualfs/blocks"
)

func BenchmarkWrite(b *testing.B) {
	for _, n := range []int{4 << 10, 64 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB", n>>10), func(b *testing.B) {
			s := newStore(b, newRing(6, 1), nil)
			content := randomBytes(seed(b), n)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				rc, err := s.Write(b.Context(), blocks.Owner{}, content)
				if err != nil {
					b.Fatal(err)
				}
				for _, pl := range rc.Placed {
					pl.Holder.(*fakeHolder).drop(rc.Ref.ID, int(pl.Index))
				}
			}
		})
	}
}

func benchRead(b *testing.B, size, n, down int) {
	ring := newRing(6, 1)
	s := newStore(b, ring, nil)
	rc := mustWrite(b, s, randomBytes(seed(b), size))
	for i := range down {
		ring.at(rc.Ref.ID, i).set(func(p *fakePeer) { p.down = true })
	}
	p := make([]byte, n)
	b.SetBytes(int64(n))
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Read(b.Context(), rc.Ref, 0, p); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRead(b *testing.B) {
	b.Run("1MiB", func(b *testing.B) { benchRead(b, 1<<20, 1<<20, 0) })
	b.Run("4KiB-of-1MiB", func(b *testing.B) { benchRead(b, 1<<20, 4<<10, 0) })
	b.Run("1MiB-2-down", func(b *testing.B) { benchRead(b, 1<<20, 1<<20, 2) })
	b.Run("4KiB-2-down", func(b *testing.B) { benchRead(b, 1<<20, 4<<10, 2) })
}

// BenchmarkSealEncode is the CPU's share of a write: no holders.
func BenchmarkSealEncode(b *testing.B) {
	const n = 1 << 20
	v, err := newVault(testKey)
	if err != nil {
		b.Fatal(err)
	}
	g, err := Layout(n, 4, 2)
	if err != nil {
		b.Fatal(err)
	}
	var c coders
	enc, err := c.get(4, 2)
	if err != nil {
		b.Fatal(err)
	}
	var bufs buffers
	buf := bufs.get(g.Shards() * g.ShardSize())
	shards := buf.cut(g.Shards(), g.ShardSize())
	content := randomBytes(seed(b), n)
	b.SetBytes(n)
	b.ReportAllocs()
	for b.Loop() {
		s, err := v.sealer(blocks.StripeID{}, g)
		if err != nil {
			b.Fatal(err)
		}
		s.seal(shards[:4], content)
		if err := enc.Encode(shards); err != nil {
			b.Fatal(err)
		}
	}
}
