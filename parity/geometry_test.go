package parity

import (
	"encoding/hex"
	"errors"
	"testing"

	"github.com/mutualfs/mutualfs/blocks"
)

func TestLayoutGolden(t *testing.T) {
	for _, c := range []struct {
		n, k, m       int
		kk, rows      int
		unit, payload int
	}{
		{1, 4, 2, 1, 1, 512, 528},
		{512, 4, 2, 1, 1, 512, 528},
		{513, 4, 2, 1, 1, 1024, 1040},
		{3 << 10, 4, 2, 1, 1, 3072, 3088},
		{16 << 10, 4, 2, 1, 1, 16384, 16400},
		{16<<10 + 1, 4, 2, 2, 1, 8704, 8720},
		{64 << 10, 4, 2, 4, 1, 16384, 16400},
		{64<<10 + 1, 4, 2, 4, 2, 8704, 17440},
		{100_000, 4, 2, 4, 2, 12800, 25632},
		{1 << 20, 4, 2, 4, 16, 16384, 262400},
		{1<<20 - 1, 4, 2, 4, 16, 16384, 262400},
		{1 << 20, 8, 3, 8, 8, 16384, 131200},
		{8 << 20, 4, 2, 4, 128, 16384, 2099200},
		{5 << 10, 1, 0, 1, 1, 5120, 5136},
	} {
		g, err := Layout(c.n, c.k, c.m)
		if err != nil {
			t.Fatal(err)
		}
		if want := (Geometry{c.n, c.kk, c.m, c.rows, c.unit}); g != want || g.ShardSize() != c.payload {
			t.Errorf("%d bytes %d+%d: %+v, shard of %d; want %+v, %d", c.n, c.k, c.m, g, g.ShardSize(), want, c.payload)
		}
	}
}

// Every content byte lies in one place, and in no other byte's.
func TestGeometryProperties(t *testing.T) {
	rnd := seed(t)
	for range 5000 {
		k, m := 1+rnd.IntN(32), rnd.IntN(8)
		n := 1 + rnd.IntN(1<<(1+rnd.IntN(23)))
		g, err := Layout(n, k, m)
		if err != nil {
			t.Fatal(err)
		}
		ref := blocks.StripeRef{Len: uint32(n), K: uint8(g.K), M: uint8(m)}
		if again, err := GeometryOf(ref); err != nil || again != g {
			t.Fatalf("%+v from its reference: %+v, %v", g, again, err)
		}
		total := 0
		for u := range g.K * g.Rows {
			total += g.UnitLen(u)
		}
		switch {
		case total != n:
			t.Fatalf("%+v: units hold %d bytes", g, total)
		case g.Unit%UnitStep != 0 || g.Unit > MaxUnit || g.K > k:
			t.Fatalf("%+v is out of bounds", g)
		case g.K*g.Rows*g.Unit-n > g.K*g.Rows*UnitStep && g.K*g.Rows*g.Unit-n > g.K*MaxUnit:
			t.Fatalf("%+v wastes %d bytes", g, g.K*g.Rows*g.Unit-n)
		}
		x := rnd.IntN(n)
		shard, off := g.Locate(x)
		back := (shard*g.Rows+off/g.Sealed())*g.Unit + off%g.Sealed()
		if shard >= g.K || off >= g.ShardSize() || back != x {
			t.Fatalf("%+v: byte %d at shard %d offset %d, which is byte %d", g, x, shard, off, back)
		}
		checkSegments(t, g, x, 1+rnd.IntN(n-x))
	}
}

// checkSegments: the segments of a range are its units, in order, each once.
func checkSegments(t *testing.T, g Geometry, off, n int) {
	unit := off / g.Unit
	for _, s := range g.segments(off, n) {
		if s.lo >= s.hi || s.hi > g.Rows {
			t.Fatalf("%+v [%d, %d): segment %+v", g, off, off+n, s)
		}
		for row := s.lo; row < s.hi; row++ {
			if s.shard*g.Rows+row != unit {
				t.Fatalf("%+v [%d, %d): unit %d expected at %+v", g, off, off+n, unit, s)
			}
			unit++
		}
	}
	if unit != (off+n-1)/g.Unit+1 {
		t.Fatalf("%+v [%d, %d): segments end at unit %d", g, off, off+n, unit)
	}
}

func TestBadReferences(t *testing.T) {
	for _, ref := range []blocks.StripeRef{
		{}, {Len: 1}, {Len: 1, K: 2, M: 1}, {Len: blocks.MaxStripe + 1, K: 4, M: 2}, {Len: 1 << 31, K: 4},
		{Len: 1 << 20, K: 200, M: 2}, {Len: 1 << 20, K: 60, M: 5},
	} {
		if _, err := GeometryOf(ref); !errors.Is(err, blocks.ErrInvalid) {
			t.Errorf("%+v: %v", ref, err)
		}
	}
}

func FuzzGeometryOf(f *testing.F) {
	f.Add(uint32(1<<20), uint8(4), uint8(2))
	f.Add(uint32(1), uint8(1), uint8(0))
	f.Add(^uint32(0), ^uint8(0), ^uint8(0))
	f.Fuzz(func(t *testing.T, n uint32, k, m uint8) {
		g, err := GeometryOf(blocks.StripeRef{Len: n, K: k, M: m})
		if err != nil {
			return
		}
		if g.K*g.Rows*g.Unit < g.Len || g.ShardSize() < 1 {
			t.Fatalf("%+v", g)
		}
		checkSegments(t, g, 0, g.Len)
	})
}

// goldenStripe seals and encodes content that counts, under key 07…07 and ID 00 01 02….
func goldenStripe(t *testing.T, n int) ([][]byte, Geometry) {
	v, err := newVault(testKey)
	if err != nil {
		t.Fatal(err)
	}
	g, err := Layout(n, 4, 2)
	if err != nil {
		t.Fatal(err)
	}
	var id blocks.StripeID
	for i := range id.ID {
		id.ID[i] = byte(i)
	}
	s, err := v.sealer(id, g)
	if err != nil {
		t.Fatal(err)
	}
	content := make([]byte, n)
	for i := range content {
		content[i] = byte(i)
	}
	var bufs buffers
	buf := bufs.get(g.Shards() * g.ShardSize())
	for i := range buf.data {
		buf.data[i] = 0xee // what padding must overwrite
	}
	shards := buf.cut(g.Shards(), g.ShardSize())
	s.seal(shards[:g.K], content)
	var c coders
	enc, err := c.get(g.K, g.M)
	if err == nil {
		err = enc.Encode(shards)
	}
	if err != nil {
		t.Fatal(err)
	}
	return shards, g
}

func TestSealGolden(t *testing.T) {
	shards, _ := goldenStripe(t, 8)
	const want = "758f9222f299b1100bc7b2432c491a793ada15aa906fb0980000000000000000"
	if got := hex.EncodeToString(shards[0][:32]); got != want {
		t.Errorf("8 bytes sealed: %s, want %s", got, want)
	}
	for n, want := range map[int]string{
		8: "d00f7ee2761c4dc4daa38ba2436e4452b5b73016493fd6570b67835587b479eb", 20_000: "2372c2a1bac6f6fb46ee16e4ba255eeb8fb702a56539f1524df64fdec991c693", 65_537: "5ecb6798ca7c46438142114222e23c8c72599e36999284ec58e62ce8f8073574", 1 << 20: "82e3c4c72a0a79f4c740d52d7b8d57de98f026378edb854aaf268e109fc6a5cf",
	} {
		shards, g := goldenStripe(t, n)
		if got := shardsSum(shards); got != want {
			t.Errorf("stripe of %d bytes, %+v: SHA-256 of the shards %s, want %s", n, g, got, want)
		}
	}
}
