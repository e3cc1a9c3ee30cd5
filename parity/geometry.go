package parity

import (
	"fmt"

	"github.com/mutualfs/mutualfs/blocks"
)

// Sizes of the layout, in bytes. They are part of the format.
const (
	MaxUnit   = 16 << 10 // clear bytes of a unit, at most
	UnitStep  = 512      // units are rounded up to it
	TagSize   = 16       // authentication tag after each unit
	MaxShards = 64       // K+M of a stripe
)

// Geometry is how the content of one stripe lies in its shards. It follows from
// the stripe's reference alone.
type Geometry struct {
	Len  int // clear content, bytes
	K, M int // data and parity shards
	Rows int // units in each data shard
	Unit int // clear bytes of a unit
}

func ceilDiv(a, b int) int { return (a + b - 1) / b }

// Layout is the geometry of new content of n bytes on a ring with k data and m
// parity shards: small content has fewer data shards, one for each MaxUnit begun.
func Layout(n, k, m int) (Geometry, error) {
	if n < 1 || n > blocks.MaxStripe {
		return Geometry{}, fmt.Errorf("%w: a stripe has 1 to %d bytes, not %d", blocks.ErrInvalid, blocks.MaxStripe, n)
	}
	if k < 1 || m < 0 || k+m > MaxShards {
		return Geometry{}, fmt.Errorf("%w: a stripe of %d+%d shards", blocks.ErrInvalid, k, m)
	}
	k = min(k, ceilDiv(n, MaxUnit))
	rows := ceilDiv(ceilDiv(n, MaxUnit), k)
	unit := ceilDiv(ceilDiv(n, k*rows), UnitStep) * UnitStep
	return Geometry{Len: n, K: k, M: m, Rows: rows, Unit: min(unit, MaxUnit)}, nil
}

// GeometryOf is the geometry of an existing stripe; ErrInvalid if no stripe looks like that.
func GeometryOf(ref blocks.StripeRef) (Geometry, error) {
	if ref.Len > blocks.MaxStripe {
		return Geometry{}, fmt.Errorf("%w: stripe %s of %d bytes", blocks.ErrInvalid, ref.ID.Short(), ref.Len)
	}
	g, err := Layout(int(ref.Len), int(ref.K), int(ref.M))
	if err == nil && g.K != int(ref.K) {
		err = fmt.Errorf("%w: %d bytes are never cut in %d shards", blocks.ErrInvalid, ref.Len, ref.K)
	}
	if err != nil {
		return Geometry{}, fmt.Errorf("stripe %s: %w", ref.ID.Short(), err)
	}
	return g, nil
}

// Shards is the number of shards, K+M.
func (g Geometry) Shards() int { return g.K + g.M }

// Sealed is the size of a row: a sealed unit, bytes.
func (g Geometry) Sealed() int { return g.Unit + TagSize }

// ShardSize is the payload of every shard, bytes.
func (g Geometry) ShardSize() int { return g.Rows * g.Sealed() }

// Units is the number of units with content.
func (g Geometry) Units() int { return ceilDiv(g.Len, g.Unit) }

// UnitLen is the number of clear bytes of a unit: Unit, fewer in the last one
// with content, 0 after it.
func (g Geometry) UnitLen(unit int) int { return max(0, min(g.Unit, g.Len-unit*g.Unit)) }

// Place says which shard and row hold a unit.
func (g Geometry) Place(unit int) (shard, row int) { return unit / g.Rows, unit % g.Rows }

// Locate says where content byte x lies: its shard, and its ciphertext's offset
// in the shard's payload.
func (g Geometry) Locate(x int) (shard, off int) {
	shard, row := g.Place(x / g.Unit)
	return shard, row*g.Sealed() + x%g.Unit
}

// segment is a run of rows [lo, hi) of one shard.
type segment struct{ shard, lo, hi int }

// segments lists the rows that hold content [off, off+n), n > 0, in order of content.
func (g Geometry) segments(off, n int) []segment {
	first, last := off/g.Unit, (off+n-1)/g.Unit
	segs := make([]segment, 0, last/g.Rows-first/g.Rows+1)
	for first <= last {
		shard, row := g.Place(first)
		hi := min(g.Rows, row+last-first+1)
		segs = append(segs, segment{shard, row, hi})
		first += hi - row
	}
	return segs
}
