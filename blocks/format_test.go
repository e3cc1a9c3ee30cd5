package blocks

import (
	"encoding/hex"
	"errors"
	"strings"
	"testing"
)

func goldenSuperblock() superblock {
	return superblock{ring: idFrom(1), peer: PeerID{idFrom(2)}, vnode: VnodeID{idFrom(3)}, incarnation: 0x1122334455667788, capacity: 1 << 20}
}

func goldenHeader() *blockHeader {
	return &blockHeader{
		Header: Header{
			Stripe: StripeID{idFrom(0xa1)}, StripeLen: 100_000, Index: 5, K: 4, M: 2, Size: 20_000, Unit: 16384,
			Owner: Owner{RegisterID{idFrom(0xb2)}, 0x0102030405060708}, Home: VnodeID{idFrom(0xc3)}, Written: 1_700_000_000,
		},
		incarnation: 0x1122334455667788, start: 7, sums: []uint32{0xdeadbeef, 0xcafebabe},
	}
}

func wantHex(t *testing.T, what string, got []byte, want ...string) {
	t.Helper()
	if g := hex.EncodeToString(got); g != strings.Join(want, "") {
		t.Errorf("%s:\ngot  %s\nwant %s", what, g, strings.Join(want, ""))
	}
}

func z(n int) string { return strings.Repeat("00", n) }

// The bytes on disk; docs/formats.md describes them.
func TestFormatGolden(t *testing.T) {
	s := goldenSuperblock()
	unit := s.encode()
	if len(unit) != unitSize {
		t.Fatalf("superblock of %d bytes", len(unit))
	}
	wantHex(t, "superblock", unit[:superSize],
		hex.EncodeToString([]byte("mutualfs disk\r\n\x00")), "00000001", "00001000",
		z(19)+"01", z(19)+"02", z(19)+"03", "1122334455667788", "0000000000100000", "a85b9319")
	wantHex(t, "rest of the superblock", unit[superSize:], z(unitSize-superSize))

	h := goldenHeader()
	wantHex(t, "block header", h.append(nil),
		hex.EncodeToString([]byte("MFB1")), "05", "04", "02", "00", z(19)+"a1", "000186a0", "00004e20", "00004000",
		z(19)+"b2", "0102030405060708", z(19)+"c3", "000000006553f100", "1122334455667788", "0000000000000007",
		"00000002", "8da78392", "deadbeef", "cafebabe")

	k := blockKey{h.Stripe, 5, VnodeID{idFrom(3)}}
	wantHex(t, "block key", k.encode(), "62", z(19)+"a1", "05", z(19)+"03")
	wantHex(t, "disk key", keyDisk(k.vnode), "6d", hex.EncodeToString([]byte("disk")), z(19)+"03")
	r := storeRecord{incarnation: 0x0102030405060708, ring: idFrom(1), peer: PeerID{idFrom(2)}}
	wantHex(t, "store record", r.encode(), "01", "0102030405060708", z(19)+"01", z(19)+"02")
}

func TestFormatRoundTrip(t *testing.T) {
	s := goldenSuperblock()
	if got, err := decodeSuperblock(s.encode()); err != nil || *got != s {
		t.Fatalf("%+v, %v", got, err)
	}
	h := goldenHeader()
	got, err := decodeHeader(h.append(nil))
	if err != nil || got.Header != h.Header || got.incarnation != h.incarnation || got.start != h.start || len(got.sums) != 2 || got.sums[1] != h.sums[1] {
		t.Fatalf("%+v, %v", got, err)
	}
	k := blockKey{h.Stripe, 5, VnodeID{idFrom(3)}}
	if got, ok := decodeBlockKey(k.encode()); !ok || got != k {
		t.Fatalf("%+v, %v", got, ok)
	}
}

// Every changed bit of a superblock or a header is noticed.
func TestFormatDetectsFlips(t *testing.T) {
	s, h := goldenSuperblock(), goldenHeader()
	super, head := s.encode()[:superSize], h.append(nil)
	for i := range len(super) * 8 {
		super[i/8] ^= 1 << (i % 8)
		if _, err := decodeSuperblock(super); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("superblock bit %d: %v", i, err)
		}
		super[i/8] ^= 1 << (i % 8)
	}
	for i := range len(head) * 8 {
		head[i/8] ^= 1 << (i % 8)
		if _, err := decodeHeader(head); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("header bit %d: %v", i, err)
		}
		head[i/8] ^= 1 << (i % 8)
	}
	for n := range len(head) {
		if _, err := decodeHeader(head[:n]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("header of %d bytes: %v", n, err)
		}
	}
}

// A block of 3 KiB takes one unit; where units and headers end is counted right.
func TestExtentUnits(t *testing.T) {
	for _, c := range []struct{ size, unit, header, units uint32 }{
		{1, 16384, 512, 1}, {3584, 16384, 512, 1}, {3585, 16384, 512, 2}, {16384, 16384, 512, 5},
		{256 << 10, 16384, 512, 65}, {98 * 512, 512, 512, 13}, {99 * 512, 512, 1024, 13}, {MaxShard, 4096, 512 * 33, 4101},
	} {
		n := unitCount(c.size, c.unit)
		if got := headerSpace(n); got != c.header {
			t.Errorf("%+v: header of %d bytes", c, got)
		}
		if got := extentUnits(c.size, c.unit); got != c.units {
			t.Errorf("%+v: %d units", c, got)
		}
	}
}

// Whatever lies on the disk: no panic, and what is accepted is what was written.
func FuzzDecodeHeader(f *testing.F) {
	f.Add(goldenHeader().append(nil))
	f.Add([]byte(headerMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decodeHeader(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
		} else {
			again, err := decodeHeader(h.append(nil))
			if err != nil || again.Header != h.Header {
				t.Fatalf("%+v became %+v, %v", h, again, err)
			}
		}
		if len(b) > 8 { // behind the checksum
			if h, err := parseHeader(b[4:]); err == nil && h.extent().n > segmentUnits {
				t.Fatalf("extent of %d units", h.extent().n)
			}
		}
	})
}

func FuzzDecodeSuperblock(f *testing.F) {
	s := goldenSuperblock()
	f.Add(s.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeSuperblock(b)
		if err == nil && string(s.encode()[:superSize]) != string(b[:superSize]) {
			t.Fatalf("%+v", s)
		}
	})
}
