package register

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// mapKV is a store for tests inside of this package.
type mapKV struct {
	data map[string][]byte
	inc  uint64
	fail error
}

func newMapKV() *mapKV { return &mapKV{data: map[string][]byte{}, inc: 7} }

func (k *mapKV) Get(key []byte) ([]byte, error) {
	v, ok := k.data[string(key)]
	if !ok {
		return nil, blocks.ErrNotFound
	}
	return append([]byte{}, v...), nil
}

func (k *mapKV) Apply(b Batch, sync bool) error {
	if k.fail != nil {
		return k.fail
	}
	if !sync {
		return errors.New("an acceptor must sync")
	}
	for _, op := range b {
		if op.Delete {
			delete(k.data, string(op.Key))
		} else {
			k.data[string(op.Key)] = append([]byte{}, op.Value...)
		}
	}
	return nil
}

func (k *mapKV) Scan(prefix []byte, fn func(key, value []byte) bool) error {
	for i := range 1 << 16 { // the deltas of small tests, in order
		key := append(append([]byte{}, prefix...), 0, 0, 0, 0, 0, 0, byte(i>>8), byte(i))
		if v, ok := k.data[string(key)]; ok && !fn(key, v) {
			break
		}
		if i > 256 {
			break
		}
	}
	return nil
}

func (k *mapKV) Incarnation() uint64 { return k.inc }

var (
	testID = blocks.RegisterID{ID: blocks.HashID([]byte("r"))}
	p1     = blocks.PeerID{ID: blocks.HashID([]byte("p1"))}
	p2     = blocks.PeerID{ID: blocks.HashID([]byte("p2"))}
)

func testView(n uint64) view { return view{Number: n, Members: []member{{p1, 7}, {p2, 8}}} }

func testState(n uint64, step uint64, v blocks.Version) state {
	return state{Tag: tag{ballot{n, p1}, step}, Version: v, Base: 1, View: testView(1)}
}

func TestAcceptor(t *testing.T) {
	kv := newMapKV()
	a := &acceptor{kv: kv, moved: func() {}, born: func(blocks.RegisterID) {}}
	ctx := t.Context()
	prepare := func(n uint64, view uint64, want status) *reply {
		t.Helper()
		r, err := a.prepare(ctx, prepareMsg{ID: testID, Ballot: ballot{n, p1}, Number: view})
		if err != nil || r.Status != want {
			t.Fatalf("prepare %d: status %d, want %d, %v", n, r.Status, want, err)
		}
		return r
	}
	accept := func(m acceptMsg, want status) {
		t.Helper()
		m.ID = testID
		r, err := a.accept(ctx, m)
		if err != nil || r.Status != want {
			t.Fatalf("accept %v: status %d, want %d, %v", m.State.Tag, r.Status, want, err)
		}
	}
	if r, _ := a.query(ctx, queryMsg{ID: testID}); r.Status != statusUnknown {
		t.Fatal("knows an unknown register")
	}
	prepare(5, 1, statusOK)
	prepare(5, 1, statusRefused) // a ballot is promised once
	prepare(4, 1, statusRefused)
	first := testState(5, 1, 1)
	accept(acceptMsg{State: testState(4, 1, 1), Full: true}, statusRefused) // below the promise
	accept(acceptMsg{State: first, Full: true, patch: encodePatch(patch{Whole: true, Snapshot: []byte("a")})}, statusOK)
	accept(acceptMsg{State: first, Full: true}, statusOK) // repeated
	second := testState(5, 2, 2)
	second.Deltas = 1
	add := encodePatch(patch{Deltas: []delta{{2, []byte("b")}}})
	accept(acceptMsg{State: second, Prev: tag{ballot{5, p1}, 9}, patch: add}, statusBehind)
	accept(acceptMsg{State: second, Prev: first.Tag, patch: add}, statusOK)
	accept(acceptMsg{State: first, Full: true}, statusRefused) // late
	if r := prepare(6, 1, statusOK); r.State == nil || r.State.Tag != second.Tag {
		t.Fatal("the promise does not tell the accepted state")
	}
	accept(acceptMsg{State: testState(5, 3, 3), Prev: second.Tag}, statusRefused)
	r, err := a.query(ctx, queryMsg{ID: testID, Want: wantData})
	if err != nil {
		t.Fatal(err)
	}
	if p, err := decodePatch(r.patch); err != nil || string(p.Snapshot) != "a" || len(p.Deltas) != 1 || string(p.Deltas[0].Data) != "b" {
		t.Fatalf("the value is %+v, %v", p, err)
	}

	// Dropped from the view, it keeps a floor and the way on.
	other := view{Number: 3, Members: []member{{p2, 8}}}
	forget := forgetMsg{testID, tag{ballot{6, p1}, 4}, other}
	if r, err := a.forget(ctx, forgetMsg{testID, first.Tag, other}); err != nil || r.Status != statusRefused {
		t.Fatalf("an old message made it forget: %v, %v", r, err)
	}
	if r, err := a.forget(ctx, forgetMsg{testID, forget.Tag, view{Number: 3, Members: []member{{p1, 7}}}}); err != nil || r.Status != statusRefused {
		t.Fatalf("a member forgot: %v, %v", r, err)
	}
	if r, err := a.forget(ctx, forget); err != nil || r.Status != statusOK {
		t.Fatal(r, err)
	}
	if r, _ := a.query(ctx, queryMsg{ID: testID}); r.Status != statusForgotten || r.State.View.Number != 3 {
		t.Fatalf("the tombstone answers %+v", r)
	}
	if len(kv.data) != 1 {
		t.Fatalf("a tombstone keeps %d keys", len(kv.data))
	}
	prepare(9, 3, statusForgotten)
	accept(acceptMsg{State: testState(6, 4, 4), Full: true}, statusRefused) // not above the floor
	if r := prepare(9, 4, statusOK); r.State != nil || r.Tag != forget.Tag {
		t.Fatalf("a member anew does not tell its floor: %+v", r)
	}
	accept(acceptMsg{State: testState(9, 5, 4), Prev: forget.Tag}, statusBehind)
	accept(acceptMsg{State: testState(9, 5, 4), Full: true}, statusOK)

	kv.fail = blocks.ErrNoSpace
	if _, err := a.prepare(ctx, prepareMsg{ID: testID, Ballot: ballot{20, p1}, Number: 4}); !errors.Is(err, blocks.ErrNoSpace) {
		t.Fatalf("promised without a durable record: %v", err)
	}
}

func version(made bool) blocks.Version {
	if made {
		return 1
	}
	return 0
}

func TestJudge(t *testing.T) {
	held := &state{Version: 5, Base: 1, Lease: blocks.Lease{Holder: p1, Epoch: 3}, Applied: map[blocks.PeerID]uint64{p1: 10}}
	free := &state{Version: 5, Base: 1, Lease: blocks.Lease{Epoch: 3}, Applied: map[blocks.PeerID]uint64{p1: 10}}
	read := &state{Version: 5, Base: 1, Lease: blocks.Lease{Epoch: 3}, Readers: []blocks.Lease{{Holder: p1, Epoch: 2}, {Holder: p2, Epoch: 3}}}
	one := &state{Version: 5, Base: 1, Lease: blocks.Lease{Epoch: 3}, Readers: []blocks.Lease{{Holder: p1, Epoch: 2}}}
	gone := &state{Version: 5, Deleted: true, Applied: map[blocks.PeerID]uint64{p1: 10}}
	for _, c := range []struct {
		name  string
		s     *state
		c     blocks.Change
		renew bool
		want  verdict
		lease blocks.Lease
		share []blocks.Lease
	}{
		{"the holder changes", held, blocks.Change{Base: 5, Origin: p1, Seq: 11, Delta: []byte("x")}, false, verdictApply, held.Lease, nil},
		{"another while it is held", held, blocks.Change{Base: 5, Origin: p2, Seq: 1}, false, verdictHeld, blocks.Lease{}, nil},
		{"another, on an old version, while it is held", held, blocks.Change{Base: 2, Origin: p2, Seq: 1}, false, verdictHeld, blocks.Lease{}, nil},
		{"a repeated change", held, blocks.Change{Base: 4, Origin: p1, Seq: 10}, false, verdictDone, blocks.Lease{}, nil},
		{"a repeated change after the deletion", gone, blocks.Change{Base: 4, Origin: p1, Seq: 10}, false, verdictDone, blocks.Lease{}, nil},
		{"a change after the deletion", gone, blocks.Change{Base: 5, Origin: p1, Seq: 11}, false, verdictGone, blocks.Lease{}, nil},
		{"an old version", free, blocks.Change{Base: 4, Origin: p1, Seq: 11}, false, verdictConflict, blocks.Lease{}, nil},
		{"a creation of what exists", free, blocks.Change{Origin: p2, Seq: 1}, false, verdictConflict, blocks.Lease{}, nil},
		{"acquire", free, blocks.Change{Base: 5, Origin: p2, Lease: blocks.LeaseAcquire}, false, verdictApply, blocks.Lease{Holder: p2, Epoch: 4}, nil},
		{"acquire again", held, blocks.Change{Base: 5, Origin: p1, Lease: blocks.LeaseAcquire}, false, verdictApply, held.Lease, nil},
		{"acquire after a lapse", held, blocks.Change{Base: 5, Origin: p1, Lease: blocks.LeaseAcquire}, true, verdictApply, blocks.Lease{Holder: p1, Epoch: 4}, nil},
		{"release", held, blocks.Change{Base: 5, Origin: p1, Lease: blocks.LeaseRelease}, false, verdictApply, blocks.Lease{Epoch: 3}, nil},
		{"release of what is free", free, blocks.Change{Base: 5, Origin: p2, Lease: blocks.LeaseRelease}, false, verdictApply, free.Lease, nil},
		{"delete", held, blocks.Change{Base: 5, Origin: p1, Seq: 11, Delete: true}, false, verdictApply, blocks.Lease{Epoch: 3}, nil},
		{"share", free, blocks.Change{Base: 5, Origin: p2, Lease: blocks.LeaseShare}, false, verdictApply, blocks.Lease{Epoch: 4}, []blocks.Lease{{Holder: p2, Epoch: 4}}},
		{"share with another", one, blocks.Change{Base: 5, Origin: p2, Lease: blocks.LeaseShare}, false, verdictApply, blocks.Lease{Epoch: 4}, []blocks.Lease{{Holder: p1, Epoch: 2}, {Holder: p2, Epoch: 4}}},
		{"share again", one, blocks.Change{Base: 5, Origin: p1, Lease: blocks.LeaseShare}, false, verdictApply, one.Lease, one.Readers},
		{"share after a lapse", read, blocks.Change{Base: 5, Origin: p1, Lease: blocks.LeaseShare}, true, verdictApply, blocks.Lease{Epoch: 4}, []blocks.Lease{{Holder: p2, Epoch: 3}, {Holder: p1, Epoch: 4}}},
		{"share what another holds", held, blocks.Change{Base: 5, Origin: p2, Lease: blocks.LeaseShare}, false, verdictHeld, blocks.Lease{}, nil},
		{"share what it holds alone", held, blocks.Change{Base: 5, Origin: p1, Lease: blocks.LeaseShare}, false, verdictApply, held.Lease, nil},
		{"a reader changes alone", one, blocks.Change{Base: 5, Origin: p1, Seq: 11, Delta: []byte("x")}, false, verdictHeld, blocks.Lease{}, nil},
		{"a reader changes beside another", read, blocks.Change{Base: 5, Origin: p1, Seq: 11, Delta: []byte("x")}, false, verdictHeld, blocks.Lease{}, nil},
		{"a quiet change beside readers", read, blocks.Change{Base: 5, Origin: p1, Seq: 11, Delta: []byte("x"), Quiet: true}, false, verdictApply, read.Lease, read.Readers},
		{"a quiet acquisition beside readers", read, blocks.Change{Base: 5, Origin: p1, Seq: 11, Quiet: true, Lease: blocks.LeaseAcquire}, false, verdictHeld, blocks.Lease{}, nil},
		{"a quiet deletion beside readers", read, blocks.Change{Base: 5, Origin: p1, Quiet: true, Delete: true}, false, verdictHeld, blocks.Lease{}, nil},
		{"a quiet change beside a holder", held, blocks.Change{Base: 5, Origin: p2, Seq: 11, Quiet: true}, false, verdictHeld, blocks.Lease{}, nil},
		{"acquire beside readers", read, blocks.Change{Base: 5, Origin: p1, Lease: blocks.LeaseAcquire}, false, verdictHeld, blocks.Lease{}, nil},
		{"acquire as the only reader", one, blocks.Change{Base: 5, Origin: p1, Lease: blocks.LeaseAcquire}, false, verdictHeld, blocks.Lease{}, nil},
		{"release by a reader", read, blocks.Change{Base: 5, Origin: p1, Lease: blocks.LeaseRelease}, false, verdictApply, read.Lease, read.Readers},
		{"leave", read, blocks.Change{Base: 4, Origin: p1, Lease: blocks.LeaseLeave, Epoch: 2}, false, verdictApply, read.Lease, read.Readers[1:]},
		{"leave what was left", read, blocks.Change{Base: 5, Origin: p1, Lease: blocks.LeaseLeave, Epoch: 1}, false, verdictDone, blocks.Lease{}, nil},
		{"leave what another shares", read, blocks.Change{Base: 5, Origin: p1, Lease: blocks.LeaseLeave, Epoch: 3}, false, verdictDone, blocks.Lease{}, nil},
		{"leave what is held alone", held, blocks.Change{Base: 5, Origin: p1, Lease: blocks.LeaseLeave, Epoch: 3}, false, verdictDone, blocks.Lease{}, nil},
		{"delete as the only reader", one, blocks.Change{Base: 5, Origin: p1, Delete: true}, false, verdictHeld, blocks.Lease{}, nil},
	} {
		v, next, _, err := judge(c.s, &c.c, c.renew)
		if v != c.want || err != nil {
			t.Errorf("%s: verdict %d, want %d, %v", c.name, v, c.want, err)
		}
		if v == verdictApply && (next.Lease != c.lease || next.Version != c.s.Version+version(!sharing(&c.c)) || next.Deleted != c.c.Delete || !slices.Equal(next.Readers, c.share)) {
			t.Errorf("%s: %+v", c.name, next)
		}
	}
	if _, _, _, err := judge(free, &blocks.Change{Base: 5, Origin: p2, Snapshot: make([]byte, MaxValue+1)}, false); !errors.Is(err, blocks.ErrNoSpace) {
		t.Errorf("a value too large: %v", err)
	}
	full := &state{Version: 5, Bytes: MaxValue}
	if _, _, _, err := judge(full, &blocks.Change{Base: 5, Origin: p2, Delta: []byte{1}}, false); !errors.Is(err, blocks.ErrNoSpace) {
		t.Errorf("a delta too much: %v", err)
	}
}

func TestTrust(t *testing.T) {
	const worth = 4 * time.Second
	at := func(seconds float64) int64 { return int64(seconds * float64(time.Second)) }
	var tr trust
	if tr.unbroken(at(9), at(1), worth) {
		t.Error("trusts a peer that never answered")
	}
	for i := 1; i <= 10; i++ {
		tr.ack(at(float64(i)), at(float64(i)+0.1), worth)
	}
	for _, c := range []struct {
		granted, now float64
		want         bool
	}{
		{2, 10.2, true}, {0.5, 10.2, false}, {2, 13.9, true}, {2, 14, false}, {2, 100, false},
	} {
		if got := tr.unbroken(at(c.granted), at(c.now), worth); got != c.want {
			t.Errorf("granted at %v, at %v: %v", c.granted, c.now, got)
		}
	}
	// A process that was stopped reads the answer to a hello from before.
	tr.ack(at(11), at(30), worth)
	if tr.unbroken(at(2), at(30), worth) {
		t.Error("an answer that was read too late counts")
	}
	// After the break trust in what was granted before does not return.
	tr.ack(at(30), at(30.1), worth)
	if tr.unbroken(at(2), at(30.2), worth) || !tr.unbroken(at(30.05), at(30.2), worth) {
		t.Error("a run goes on over a break")
	}
	// Late answers change nothing.
	tr.ack(at(5), at(31), worth)
	if !tr.unbroken(at(30.05), at(31), worth) {
		t.Error("a late answer ended the run")
	}
}
