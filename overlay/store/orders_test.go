package store

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

// TestTwoRepairersNeverDropBoth has two copies dropped at the same time, each in favour of the other.
func TestTwoRepairersNeverDropBoth(t *testing.T) {
	bubble(t, 1, 0, 2, func(t *testing.T, c *cluster) {
		fault := func(_ context.Context, _, _ blocks.PeerID, kind overlay.Kind, _ bool) error {
			if kind == kindPin { // virtual
				time.Sleep(5 * time.Millisecond)
			}
			return nil
		}
		c.fault.Store(&fault)
		for range 50 {
			id := blocks.StripeID{ID: c.id()}
			shard := c.shard(id, 4, 0, []byte("abcd"))
			var at [2]shardName
			for i, p := range c.peers {
				v := c.client.cfg.Ring.Table().HomeList(id.ID, 16, nil)
				for _, n := range v {
					if n.Peer == p.info.ID {
						at[i] = shardName{n.ID, id, 0}
					}
				}
				if _, err := p.svc.putLocal(at[i].vnode, shard, true); err != nil {
					t.Fatal(err)
				}
			}
			var wg sync.WaitGroup
			for i, p := range c.peers {
				delay := time.Duration(c.rnd.IntN(10)) * time.Millisecond
				wg.Go(func() { time.Sleep(delay); _ = p.svc.moveLocal(t.Context(), &moveRequest{at[i], at[1-i].vnode, true}) })
			}
			wg.Wait()
			if n := len(c.peers[0].local.list(is(id))) + len(c.peers[1].local.list(is(id))); n < 1 {
				t.Fatal("both copies were dropped")
			}
		}
	})
}

func is(id blocks.StripeID) func(shardName) bool {
	return func(n shardName) bool { return n.stripe == id }
}

func TestNothingIsDroppedForADamagedCopy(t *testing.T) {
	bubble(t, 1, 0, 2, func(t *testing.T, c *cluster) {
		id := blocks.StripeID{ID: c.id()}
		home := c.client.cfg.Ring.Table().HomeList(id.ID, 2, nil)
		byID := map[blocks.PeerID]*testPeer{}
		for _, p := range c.peers {
			byID[p.info.ID] = p
		}
		a, b := byID[home[0].Peer], byID[home[1].Peer]
		for i, p := range []*testPeer{a, b} {
			if _, err := p.svc.putLocal(home[i].ID, c.shard(id, 4, 0, []byte("abcd")), true); err != nil {
				t.Fatal(err)
			}
		}
		b.local.rot(is(id))
		err := a.svc.moveLocal(t.Context(), &moveRequest{shardName{home[0].ID, id, 0}, home[1].ID, true})
		if !errors.Is(err, blocks.ErrNotFound) || a.local.len() != 1 {
			t.Fatalf("%v, %d left", err, a.local.len())
		}
		if _, err := b.svc.getLocal(home[1].ID, id, 0, 0, 0); !errors.Is(err, blocks.ErrCorrupt) {
			t.Fatal(err)
		}
	})
}

func TestGuardForgetsPins(t *testing.T) {
	bubble(t, 1, 0, 1, func(t *testing.T, c *cluster) {
		g := &c.peers[0].svc.guard
		n := shardName{stripe: blocks.StripeID{ID: c.id()}}
		if err := g.pin(n); err != nil {
			t.Fatal(err)
		}
		if err := g.startDrop(n); !errors.Is(err, blocks.ErrBusy) {
			t.Fatalf("a pinned copy can be dropped: %v", err)
		}
		time.Sleep(pinFor)
		if err := g.startDrop(n); err != nil {
			t.Fatal(err)
		}
		if err := g.pin(n); !errors.Is(err, blocks.ErrBusy) {
			t.Fatalf("a copy on its way can be pinned: %v", err)
		}
		g.endDrop(n)
		for range maxPins {
			n.stripe.ID = c.id()
			if err := g.pin(n); err != nil {
				t.Fatal(err)
			}
		}
		n.stripe.ID = c.id()
		if err := g.pin(n); !errors.Is(err, blocks.ErrBusy) {
			t.Fatalf("more than %d pins: %v", maxPins, err)
		}
	})
}
