package overlay

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

func testPeer(b byte) blocks.PeerID {
	return blocks.PeerID{ID: blocks.ID(bytes.Repeat([]byte{b}, blocks.IDSize))}
}

var (
	wireTable = NewTable(blocks.ID{1}, []PeerInfo{{ID: testPeer(0xaa), Vnodes: 4, Drives: 2}})
	wireMeta  = meta{incarnation: 300, left: true, capacity: 1 << 20, used: 5, vnodes: 8, drives: 2, zone: "z", addr: "h:1"}
	wireRecs  = []record{{testPeer(1), wireMeta, Alive, 0}, {testPeer(2), meta{drives: 1}, Gone, -time.Second}, {testPeer(3), meta{}, Down, 90 * time.Second}}
	known     = wireTable.vnode(testPeer(0xaa), 3)
	unknown   = wireTable.vnode(testPeer(0xbb), 200)
)

// wireCases are one message of each kind with its bytes.
var wireCases = []struct {
	name   string
	value  any
	encode func() []byte
	decode func([]byte) (any, error)
	golden string // "aa*20" stands for a byte repeated
}{
	{"records", wireRecs,
		func() []byte { var e blocks.Encoder; encodeRecords(&e, wireRecs); return e.Buf },
		func(b []byte) (any, error) {
			d := blocks.NewDecoder(b)
			rs, err := decodeRecords(d)
			if err == nil {
				err = d.Done()
			}
			return rs, err
		},
		"03 01*20 01 ac02 01 808040 05 08 02 01 7a 03 683a31 00 01" +
			" 02*20 01 00 00 00 00 00 01 00 00 03 00" +
			" 03*20 01 00 00 00 00 00 00 00 00 02 5b"},
	{"hello", hello{blocks.ID(testPeer(9).ID), wireRecs[1:2]},
		func() []byte { return (&hello{blocks.ID(testPeer(9).ID), wireRecs[1:2]}).encode() },
		func(b []byte) (any, error) { return decodeHello(b) },
		"09*20 01 02*20 01 00 00 00 00 00 01 00 00 03 00"},
	{"saved", wireRecs[1:2],
		func() []byte { return encodeSaved(blocks.ID(testPeer(9).ID), 7, wireRecs[1:2]) },
		func(b []byte) (any, error) {
			inc, rs, err := decodeSaved(blocks.ID(testPeer(9).ID), b)
			if err == nil && inc != 7 {
				err = errors.New("another incarnation")
			}
			return rs, err
		},
		"01 09*20 07 01 02*20 01 00 00 00 00 00 01 00 00 03 00"},
	{"asks", []ask{{target: 5}, {3, true, true, 200}},
		func() []byte { return encodeAsks([]ask{{target: 5}, {3, true, true, 200}}) },
		func(b []byte) (any, error) { return decodeAsks(b) },
		"02 05 00 03 03 c801"},
	{"answers", []answer{{status: isBusy}, {hasState: true, hasPred: true, pred: known, succ: []Vnode{unknown}}},
		func() []byte {
			return encodeAnswers([]answer{{status: isBusy}, {hasState: true, hasPred: true, pred: known, succ: []Vnode{unknown}}})
		},
		func(b []byte) (any, error) { return decodeAnswers(b, wireTable) },
		"02 01 00 00 01 01 aa*20 03 01 bb*20 c801"},
	{"step request", stepRequest{blocks.ID(testPeer(9).ID), 3, true},
		func() []byte { return (&stepRequest{blocks.ID(testPeer(9).ID), 3, true}).encode() },
		func(b []byte) (any, error) { return decodeStepRequest(b) },
		"09*20 03 01"},
	{"step answer", stepAnswer{unsure: true, closer: []Vnode{known}, final: []Vnode{unknown, known}, hasPred: true, pred: known},
		func() []byte {
			return (&stepAnswer{unsure: true, closer: []Vnode{known}, final: []Vnode{unknown, known}, hasPred: true, pred: known}).encode()
		},
		func(b []byte) (any, error) { return decodeStepAnswer(b, wireTable) },
		"02 01 aa*20 03 02 bb*20 c801 aa*20 03 01 aa*20 03"},
	{"ring info", []VnodeInfo{{Vnode: wireTable.vnode(testPeer(0xaa), 0), Member: true, Predecessor: &known, Successors: []Vnode{unknown}, Fingers: []Finger{{159, known}}}},
		func() []byte {
			return encodeRingInfo([]VnodeInfo{{Member: true, Predecessor: &known, Successors: []Vnode{unknown}, Fingers: []Finger{{159, known}}}})
		},
		func(b []byte) (any, error) { return decodeRingInfo(b, wireTable, testPeer(0xaa)) },
		"01 01 01 aa*20 03 01 bb*20 c801 01 9f01 aa*20 03"},
	{"check", CheckReport{Routes: 300, Failed: 1, Hops: 900, MaxHops: 4, Failures: []string{"x"}},
		func() []byte {
			return encodeCheck(&CheckReport{Routes: 300, Failed: 1, Hops: 900, MaxHops: 4, Failures: []string{"x"}})
		},
		func(b []byte) (any, error) { return decodeCheck(b) },
		"ac02 01 8407 04 01 01 78"},
}

func goldenBytes(t testing.TB, s string) []byte {
	var out []byte
	for f := range strings.FieldsSeq(s) {
		b, times, ok := strings.Cut(f, "*")
		raw, err := hex.DecodeString(b)
		if err != nil {
			t.Fatalf("golden %q: %v", f, err)
		}
		if ok {
			if times != "20" {
				t.Fatalf("golden %q", f)
			}
			raw = bytes.Repeat(raw, 20)
		}
		out = append(out, raw...)
	}
	return out
}

func TestMessagesOnTheWire(t *testing.T) {
	for _, c := range wireCases {
		t.Run(c.name, func(t *testing.T) {
			want := goldenBytes(t, c.golden)
			if got := c.encode(); !bytes.Equal(got, want) {
				t.Errorf("encoded as\n%x, want\n%x", got, want)
			}
			got, err := c.decode(want)
			if err != nil || !reflect.DeepEqual(got, c.value) {
				t.Errorf("decoded as\n%+v, %v, want\n%+v", got, err, c.value)
			}
			for i := range want {
				if _, err := c.decode(want[:i]); err == nil {
					t.Errorf("the first %d of %d bytes are taken for a message", i, len(want))
				}
			}
			if _, err := c.decode(append(bytes.Clone(want), 0)); err == nil {
				t.Error("a byte too many is not noticed")
			}
		})
	}
}

func TestMessagesOutOfBounds(t *testing.T) {
	for name, bad := range map[string]func() error{
		"another ring": func() error {
			_, _, err := decodeSaved(blocks.ID{2}, encodeSaved(blocks.ID{1}, 1, nil))
			return err
		},
		"metadata of the future": func() error { _, err := decodeMeta(blocks.NewDecoder([]byte{2})); return err },
		"too many virtual nodes": func() error {
			var e blocks.Encoder
			(&meta{vnodes: MaxVnodes + 1}).encode(&e)
			_, err := decodeMeta(blocks.NewDecoder(e.Buf))
			return err
		},
		"virtual node out of range": func() error { _, err := decodeAsks(encodeAsks([]ask{{target: MaxVnodes}})); return err },
		"unknown flags":             func() error { _, err := decodeAsks([]byte{1, 0, 4}); return err },
		"unknown status":            func() error { _, err := decodeAnswers([]byte{1, 4, 0}, wireTable); return err },
		"more failures than routes": func() error { _, err := decodeCheck(encodeCheck(&CheckReport{Routes: 1, Failed: 2})); return err },
		"a list too long": func() error {
			_, err := decodeStepAnswer((&stepAnswer{closer: make([]Vnode, maxNext+1)}).encode(), wireTable)
			return err
		},
	} {
		if err := bad(); !errors.Is(err, blocks.ErrInvalid) {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
}

// FuzzMessages wants each decoder to fail or to return what encodes and decodes to the same
// again, and never to panic or to allocate for what is not there.
func FuzzMessages(f *testing.F) {
	for i, c := range wireCases {
		f.Add(uint8(i), goldenBytes(f, c.golden))
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		v, err := wireCases[int(which)%len(wireCases)].decode(b)
		if err != nil {
			return
		}
		switch v := v.(type) {
		case []record:
			var e blocks.Encoder
			encodeRecords(&e, v)
			again, err := decodeRecords(blocks.NewDecoder(e.Buf))
			if err != nil || !reflect.DeepEqual(again, v) {
				t.Fatalf("%+v, %v; was %+v", again, err, v)
			}
		case []answer:
			again, err := decodeAnswers(encodeAnswers(v), wireTable)
			if err != nil || len(again) != len(v) {
				t.Fatalf("%+v, %v; was %+v", again, err, v)
			}
		case stepAnswer:
			again, err := decodeStepAnswer(v.encode(), wireTable)
			if err != nil || !reflect.DeepEqual(again, v) {
				t.Fatalf("%+v, %v; was %+v", again, err, v)
			}
		}
	})
}

func TestMetadataFitsIntoTheGossip(t *testing.T) {
	m := meta{incarnation: 1<<64 - 1, left: true, capacity: 1<<64 - 1, used: 1<<64 - 1, vnodes: MaxVnodes, drives: MaxDrives,
		zone: strings.Repeat("z", maxZone), addr: strings.Repeat("a", maxAddr)}
	var e blocks.Encoder
	m.encode(&e)
	if len(e.Buf) > 400 {
		t.Errorf("%d bytes of metadata", len(e.Buf))
	}
}
