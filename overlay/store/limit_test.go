package store

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

func TestLimiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limiter{rate: 1000}
		began := time.Now()
		for range 10 {
			if err := l.wait(t.Context(), 1000); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took != 8*time.Second { // the last begins when the first nine are over, less the burst
			t.Errorf("10,000 bytes at 1,000 bytes/s took %v", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		if err := l.wait(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the limiter does not heed the context: %v", err)
		}
	})
}

func TestBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b breaker
		p := blocks.PeerID{ID: idOf(1)}
		if b.open(p) {
			t.Fatal("open at first")
		}
		b.failed(p)
		if !b.open(p) {
			t.Fatal("not open after a failure")
		}
		time.Sleep(breakFor)
		if b.open(p) || len(b.until) > 0 {
			t.Fatal("open for ever")
		}
		b.failed(p)
		b.answered(p)
		if b.open(p) {
			t.Fatal("open after an answer")
		}
	})
}

// TestSilentPeerIsNotUp has a peer die that all tables still call alive.
func TestSilentPeerIsNotUp(t *testing.T) {
	bubble(t, 4, 2, 8, func(t *testing.T, c *cluster) {
		p := c.peers[0]
		p.ring.SetDown(true)
		c.writeMany(20) // at most one put in a second tries it
		holders, err := c.client.Search(t.Context(), blocks.StripeID{})
		if err != nil || len(holders) != 8 {
			t.Fatalf("%d holders, %v", len(holders), err)
		}
		up := slices.DeleteFunc(slices.Clone(holders), func(h blocks.Holder) bool { return !h.Up() })
		if len(up) != 7 || holders[7].Peer() != p.info.ID {
			t.Errorf("%d are up of 8", len(up))
		}
		time.Sleep(2 * time.Minute)
		n, err := c.client.RingCounts(t.Context())
		if err != nil || n.Complete || n.Answered != 7 || n.RepairShards > 0 {
			t.Errorf("%+v, %v", n, err)
		}
		if c.rebuilt > 0 {
			t.Errorf("%d shards of a silent peer were rebuilt", c.rebuilt)
		}
		p.ring.SetDown(false)
		c.whole(10 * time.Minute)
	})
}

func TestWorstStripesComeFirst(t *testing.T) {
	stripe := func(b byte) stripeState {
		return stripeState{ref: blocks.StripeRef{ID: blocks.StripeID{ID: idOf(b)}, K: 4, M: 2}}
	}
	rebuild := []assignment{{}}
	r := round{jobs: []job{
		{stripe(9), plan{good: 6, moves: []move{{}}}},
		{stripe(1), plan{good: 6, moves: []move{{}}}},
		{stripe(5), plan{good: 5, rebuild: rebuild}},
		{stripe(7), plan{good: 4, rebuild: rebuild}},
		{stripe(3), plan{good: 5, rebuild: rebuild}},
	}}
	r.order()
	var got []byte
	for _, j := range r.jobs {
		got = append(got, j.st.ref.ID.ID[0])
	}
	if want := []byte{7, 3, 5, 1, 9}; !slices.Equal(got, want) {
		t.Errorf("in order %v, not %v", got, want)
	}
}

// TestInventoryPages reads a peer's inventory in several pages.
func TestInventoryPages(t *testing.T) {
	bubble(t, 1, 0, 2, func(t *testing.T, c *cluster) {
		p, other := c.peers[0], c.peers[1]
		p.stop() // they answer, but move nothing
		other.stop()
		home := overlay.VnodePosition(c.ringID, p.info.ID, 0)
		const n = 3*pageStripes + 7
		var from, to blocks.ID
		want := 0
		to[0] = 0x80
		for range n {
			id := blocks.StripeID{ID: c.id()}
			if id.Compare(to) <= 0 {
				want++
			}
			if _, err := p.local.Put(home, c.shard(id, 1, 0, []byte{1})); err != nil {
				t.Fatal(err)
			}
		}
		var last blocks.ID
		got := 0
		err := other.svc.fetchInventory(t.Context(), p.info.ID, from, to, func(l *listed) {
			if got++; got > 1 && l.ref.ID.Compare(last) <= 0 {
				t.Fatal("not in order")
			}
			last = l.ref.ID.ID
		})
		if err != nil || got != want {
			t.Fatalf("%d stripes of %d, %v", got, want, err)
		}
	})
}
