package register

import (
	"bytes"
	"encoding/hex"
	"reflect"
	"testing"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

func fullState() state {
	return state{Tag: tag{ballot{300, p1}, 9}, Version: 8, Base: 2, Bytes: 1000, Deltas: 3,
		View:  view{4, []member{{p1, 7}, {p2, 8}}, []member{{p2, 9}}},
		Lease: blocks.Lease{Holder: p2, Epoch: 5}, Deleted: true,
		Applied: map[blocks.PeerID]uint64{p1: 77, p2: 1}}
}

const (
	goldenRecord  = "0100ad02<p2>ac02<p1>090802e807030402<p1>0000000000000007<p2>000000000000000801<p2>0000000000000009<p2>050102<p2>01<p1>4d"
	goldenPatch   = "0104736e61700103026433"
	goldenReply   = "02000000000000000701<p1>01<p1>020300"
	goldenPrepare = "<id>02<p1>030000000000000004"
	goldenAccept  = "<id>01<p1>020102<p1>03010000000102<p1>0000000000000007<p2>0000000000000008000000000000000000000000000000000000000000000000"
	goldenQuery   = "<id>ac0202"
	goldenForget  = "<id>02<p1>030502<p1>0000000000000007<p2>000000000000000800"
	goldenPropose = "<id>06040102<p1>0000000000000007<p2>00000000000000080005<p1>0601"
	goldenOutcome = "020102<p1>03010000000102<p1>0000000000000007<p2>0000000000000008000000000000000000000000000000000000000000000000"
	goldenCounts  = "0000000000000001020304050607010000000000000008"
)

// The stored and the sent formats, to the byte. A change here is a change of
// the format: old stores must still be read.
func TestGolden(t *testing.T) {
	st := fullState()
	rec := record{Promised: ballot{301, p2}, State: st}
	p := patch{Whole: true, Snapshot: []byte("snap"), Deltas: []delta{{3, []byte("d3")}}}
	rep := reply{Status: statusBehind, Incarnation: 7, Promised: ballot{1, p1}, Tag: tag{ballot{1, p1}, 2}, Version: 3}
	prep := prepareMsg{testID, ballot{2, p1}, 3, 4}
	acc := acceptMsg{ID: testID, Prev: tag{ballot{1, p1}, 2}, Full: true, State: state{Tag: tag{ballot{2, p1}, 3}, Version: 1, View: testView(1)}}
	q := queryMsg{testID, 300, wantData}
	f := forgetMsg{testID, tag{ballot{2, p1}, 3}, testView(5)}
	prop := proposeMsg{ID: testID, Renew: true, Seize: 4, Hint: testView(1), Change: blocks.Change{Base: 5, Origin: p1, Seq: 6, Snapshot: []byte("x"), Lease: blocks.LeaseAcquire}}
	out := outcome{Verdict: verdictConflict, Granted: true, State: &acc.State}
	cnt := countsReply{1, 2, 3, Counts{4, 5, 6, 7, true, 8}}
	names := map[string]string{hex.EncodeToString(testID.ID[:]): "<id>", hex.EncodeToString(p1.ID[:]): "<p1>", hex.EncodeToString(p2.ID[:]): "<p2>"}
	for _, c := range []struct {
		name string
		got  []byte
		want string
	}{
		{"record", encodeRecord(&rec), goldenRecord},
		{"patch", encodePatch(p), goldenPatch},
		{"reply", rep.encode().Body, goldenReply},
		{"prepare", prep.encode().Body, goldenPrepare},
		{"accept", acc.encode().Body, goldenAccept},
		{"query", q.encode().Body, goldenQuery},
		{"forget", f.encode().Body, goldenForget},
		{"propose", prop.encode().Body, goldenPropose},
		{"outcome", out.encode().Body, goldenOutcome},
		{"counts", cnt.encode().Body, goldenCounts},
	} {
		got := hex.EncodeToString(c.got)
		for long, short := range names {
			got = string(bytes.ReplaceAll([]byte(got), []byte(long), []byte(short)))
		}
		if got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}

func TestRoundTrips(t *testing.T) {
	st := fullState()
	st.First = 3
	st.Readers = []blocks.Lease{{Holder: p2, Epoch: 4}, {Holder: p1, Epoch: 5}}
	rec := record{Promised: ballot{301, p2}, Forgotten: true, State: st}
	if got, err := decodeRecord(encodeRecord(&rec)); err != nil || !reflect.DeepEqual(got, rec) {
		t.Errorf("%+v, %v", got, err)
	}
	prop := proposeMsg{ID: testID, Read: true, Seize: 4, Hint: testView(1), Change: blocks.Change{Base: 5, Origin: p1, Seq: 6, Delta: []byte("x"), Lease: blocks.LeaseLeave, Epoch: 9, Delete: true, Shared: true, Quiet: true}}
	if got, err := decodePropose(prop.encode()); err != nil || !reflect.DeepEqual(got, prop) {
		t.Errorf("%+v, %v", got, err)
	}
	prop.Change.Delta, prop.Change.Snapshot = nil, []byte{}
	if got, err := decodePropose(prop.encode()); err != nil || got.Change.Snapshot == nil {
		t.Errorf("an empty snapshot became none: %+v, %v", got, err)
	}
	acc := acceptMsg{ID: testID, Prev: tag{ballot{1, p1}, 2}, Full: true, State: st, patch: []byte("p")}
	if got, err := decodeAccept(acc.encode()); err != nil || !reflect.DeepEqual(got, acc) {
		t.Errorf("%+v, %v", got, err)
	}
	rep := reply{Status: statusOK, Incarnation: 7, Tag: st.Tag, State: &st}
	if got, err := decodeReply(rep.encode()); err != nil || !reflect.DeepEqual(got, rep) {
		t.Errorf("%+v, %v", got, err)
	}
}

// FuzzDecoders feeds every decoder: none may panic or allocate more than the
// input is worth, and what is accepted must survive a round trip.
func FuzzDecoders(f *testing.F) {
	st := fullState()
	rec := record{Promised: ballot{301, p2}, State: st}
	acc := acceptMsg{ID: testID, State: st}
	prop := proposeMsg{ID: testID, Hint: testView(1)}
	rep := reply{State: &st}
	out := outcome{State: &st}
	for _, b := range [][]byte{nil, encodeRecord(&rec), encodePatch(patch{Snapshot: []byte("s"), Deltas: []delta{{1, nil}}}),
		acc.encode().Body, prop.encode().Body, rep.encode().Body, out.encode().Body} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := decodeRecord(b); err == nil {
			if again, err := decodeRecord(encodeRecord(&r)); err != nil || !reflect.DeepEqual(again, r) {
				t.Errorf("%+v became %+v, %v", r, again, err)
			}
		}
		if p, err := decodePatch(b); err == nil {
			if _, err := decodePatch(encodePatch(p)); err != nil {
				t.Error(err)
			}
		}
		c := overlay.Call{Body: b, Payload: b}
		decodeAccept(c)
		decodePrepare(c)
		decodeQuery(c)
		decodeForget(c)
		decodePropose(c)
		decodeOutcome(c)
		decodeReply(c)
		decodeCounts(c)
	})
}
