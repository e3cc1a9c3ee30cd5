package register

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
	"github.com/mutualfs/mutualfs/overlay/overlaytest"
)

// A register has moved from {p, q, r} to {x} and is on its way back. p heard
// that it was dropped, q did not and has the old state still, r is dead. The
// promises of p and q are a majority of the old view, and must not revive it.
func TestTombstonesKeepOldViewsFromReviving(t *testing.T) {
	for _, newer := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) { takeOverAmongTombstones(t, newer) })
	}
}

// takeOverAmongTombstones begins at the old view, or at the newer one, whose
// answers that matter come late.
func takeOverAmongTombstones(t *testing.T, newer bool) {
	ids := make([]blocks.PeerID, 4)
	for i := range ids {
		ids[i] = blocks.PeerID{ID: blocks.HashID([]byte{byte(i)})}
	}
	at := func(i int) member { return member{ids[i], uint64(i + 1)} }
	old := state{Tag: tag{ballot{1, ids[0]}, 1}, Version: 1, Base: 1, View: view{Number: 1, Members: []member{at(0), at(1), at(2)}}}
	moved := state{Tag: tag{ballot{2, ids[3]}, 5}, View: view{Number: 3, Members: []member{at(3)}}}
	back := state{Tag: tag{ballot{2, ids[3]}, 6}, Version: 3, Base: 3, View: view{Number: 4, Members: old.View.Members, Prev: moved.View.Members}}
	records := []*record{{Forgotten: true, State: moved}, {State: old}, nil, {Promised: back.Tag.Ballot, State: back}}

	net := overlaytest.NewNet(blocks.HashID([]byte("ring")))
	net.Fault = func(_ context.Context, _, to blocks.PeerID, _ overlay.Kind, reply bool) error {
		if to == ids[3] && reply {
			time.Sleep(10 * time.Millisecond)
		}
		return nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	var services []*Service
	for i, id := range ids {
		ring := net.Set(overlay.PeerInfo{ID: id, Vnodes: 8})
		kv := newMapKV()
		kv.inc = uint64(i + 1)
		if records[i] != nil {
			kv.data[string(keyOf(keyRecord, testID))] = encodeRecord(records[i])
		}
		s, err := New(Config{Ring: ring, KV: kv, M: 1})
		if err != nil {
			t.Fatal(err)
		}
		s.mu.Lock()
		s.bg, s.running = ctx, true // calls are answered; nothing is maintained
		s.mu.Unlock()
		ring.SetDown(i == 2)
		services = append(services, s)
	}
	hint := old.View
	if newer {
		hint = back.View
	}
	c := &coord{}
	err := errOutbid
	for tries := 0; err != nil && tries < 10; tries++ { // its first ballots may be too low
		err = services[1].lead(ctx, testID, c, hint, creation{})
	}
	if err != nil || c.st.Version != 3 {
		t.Errorf("took over %+v, %v", c.st, err)
	}
	cancel()
	for _, s := range services {
		s.wg.Wait()
	}
}
