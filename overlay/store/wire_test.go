package store

import (
	"encoding/hex"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

func idOf(b byte) (id blocks.ID) {
	for i := range id {
		id[i] = b
	}
	return id
}

func hexID(b byte) string { return strings.Repeat(hex.EncodeToString([]byte{b}), blocks.IDSize) }

var (
	goldenHeader = blocks.Header{Stripe: blocks.StripeID{ID: idOf(0xaa)}, StripeLen: 300, Index: 5, K: 4, M: 2, Size: 4096, Unit: 128,
		Owner: blocks.Owner{Register: blocks.RegisterID{ID: idOf(0xbb)}, Ino: 7}, Home: blocks.VnodeID{ID: idOf(0xcc)}, Written: -1}
	goldenHeaderHex = hexID(0xaa) + "ac02" + "05" + "04" + "02" + "8020" + "8001" + hexID(0xbb) + "07" + hexID(0xcc) + "01"
	goldenName      = shardName{blocks.VnodeID{ID: idOf(0xdd)}, blocks.StripeID{ID: idOf(0xaa)}, 5}
	goldenNameHex   = hexID(0xdd) + hexID(0xaa) + "05"
)

// messages are all bodies on the wire with their bytes.
var messages = []struct {
	name  string
	m     message
	bytes string
}{
	{"stripeName", &stripeName{goldenHeader.Stripe}, hexID(0xaa)},
	{"shardName", &goldenName, goldenNameHex},
	{"getRequest", &getRequest{goldenName, 1, 16384}, goldenNameHex + "00000001" + "00004000"},
	{"shardHead", &shardHead{goldenHeader, 2}, goldenHeaderHex + "00000002"},
	{"putRequest", &putRequest{goldenName.vnode, true, goldenHeader}, hexID(0xdd) + "01" + goldenHeaderHex},
	{"epochReply", &epochReply{1 << 63}, "8000000000000000"},
	{"syncRequest", &syncRequest{3, 9}, "03" + "0000000000000009"},
	{"headers", &headers{[]blocks.Header{goldenHeader}}, "01" + goldenHeaderHex},
	{"inventoryRequest", &inventoryRequest{idOf(1), idOf(2)}, hexID(1) + hexID(2)},
	{"inventory", &inventory{true, []listed{{goldenHeader.Ref(), flagYoung, []listedShard{{5, goldenName.vnode, goldenHeader.Home, 4096}}}}},
		"01" + "01" + hexID(0xaa) + "ac02" + "04" + "02" + "02" + "01" + "05" + hexID(0xdd) + hexID(0xcc) + "8020"},
	{"listRequest", &listRequest{idOf(1)}, hexID(1)},
	{"listing", &listing{true, idOf(2), []listedStripe{{goldenHeader.Ref(), goldenHeader.Owner, 300 * time.Millisecond, true, []byte{5, 1}}}},
		"01" + hexID(2) + "01" + hexID(0xaa) + "ac02" + "04" + "02" + hexID(0xbb) + "07" + "ac02" + "01" + "020501"},
	{"inspectRequest", &inspectRequest{goldenHeader.Stripe, true}, hexID(0xaa) + "01"},
	{"inspection", &inspection{flagDead, []blocks.Location{{Vnode: goldenName.vnode, Header: goldenHeader, Path: "a/b", Offset: 4096, Length: 8192}}},
		"01" + "01" + hexID(0xdd) + goldenHeaderHex + "8040" + "808001" + "03" + "612f62"},
	{"moveRequest", &moveRequest{goldenName, goldenHeader.Home, true}, goldenNameHex + hexID(0xcc) + "01"},
	{"CheckReport", &CheckReport{6, 6, 1, true, false, true}, "06" + "06" + "01" + "01" + "00" + "01"},
	{"countsRequest", &countsRequest{true}, "01"},
	{"countsReply", &countsReply{boot: 1, completed: 2, next: 4, counts: Counts{Protected: 300, Degraded: 1, Away: 2, Settling: 3, Lost: 4,
		RepairShards: 5, WaitingShards: 6, HandoffShards: 7, HandoffBytes: 8, Complete: true, TableHash: 9}},
		"0000000000000001" + "02" + "04" + "ac02" + "01" + "02" + "03" + "04" + "05" + "06" + "07" + "08" + "01" + "01" + "0000000000000009"},
}

func TestGoldenBytes(t *testing.T) {
	for _, c := range messages {
		if got := hex.EncodeToString(encode(c.m)); got != c.bytes {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.bytes)
		}
		raw, _ := hex.DecodeString(c.bytes)
		back := reflect.New(reflect.TypeOf(c.m).Elem()).Interface().(message)
		if err := decode(c.name, raw, back); err != nil || !reflect.DeepEqual(back, c.m) {
			t.Errorf("%s: decoded %+v, %v", c.name, back, err)
		}
		for n := range raw {
			back := reflect.New(reflect.TypeOf(c.m).Elem()).Interface().(message)
			if err := decode(c.name, raw[:n], back); err == nil {
				t.Errorf("%s: %d bytes of %d decoded", c.name, n, len(raw))
			}
		}
		if err := decode(c.name, append(raw, 0), back); err == nil {
			t.Errorf("%s: a byte too many decoded", c.name)
		}
	}
}

func TestDigestsOnTheWire(t *testing.T) {
	var d, back digests
	d[0], d[255] = 1, 2
	if err := decode("digests", encode(&d), &back); err != nil || back != d {
		t.Fatalf("%v", err)
	}
	for want, got := range map[uint64]uint64{
		0x56f84771401916ea: digestOf(goldenHeader.Stripe, goldenName.vnode, 5),
		0xdc45530ad455609b: digestOfTomb(goldenHeader.Stripe),
	} {
		if got != want {
			t.Errorf("digest %#x, not %#x", got, want)
		}
	}
}

func TestCountsCarryAnAge(t *testing.T) {
	c := Counts{Scanned: time.Now().Add(-time.Hour)}
	var back Counts
	if err := decode("counts", encode(&c), &back); err != nil {
		t.Fatal(err)
	}
	if d := back.Scanned.Sub(c.Scanned).Abs(); d > time.Minute {
		t.Errorf("the age changed by %v on the wire", d)
	}
}

func FuzzMessages(f *testing.F) {
	for i, c := range messages {
		f.Add(byte(i), encode(c.m))
	}
	f.Fuzz(func(t *testing.T, which byte, body []byte) {
		c := messages[int(which)%len(messages)]
		m := reflect.New(reflect.TypeOf(c.m).Elem()).Interface().(message)
		if decode(c.name, body, m) != nil || c.name == "countsReply" { // an age does not come back the same
			return
		}
		again := reflect.New(reflect.TypeOf(c.m).Elem()).Interface().(message)
		if err := decode(c.name, encode(m), again); err != nil || !reflect.DeepEqual(m, again) {
			t.Fatalf("%s: %+v became %+v, %v", c.name, m, again, err)
		}
	})
}
