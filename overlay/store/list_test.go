package store

import (
	"errors"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// TestList: every stripe is listed once, whole, with an age that is never too high; a peer that does
// not answer makes the list an error.
func TestList(t *testing.T) {
	bubble(t, 4, 2, 8, func(t *testing.T, c *cluster) {
		began := time.Now()
		c.writeMany(60)
		time.Sleep(time.Hour) // virtual
		middle := time.Now()
		old := map[blocks.StripeID]bool{}
		for id := range c.content {
			old[id] = true
		}
		c.writeMany(40)
		time.Sleep(time.Second)
		seen := map[blocks.StripeID]bool{}
		err := c.client.List(t.Context(), func(h *Held) {
			if seen[h.Ref.ID] {
				t.Errorf("stripe %s twice", h.Ref.ID.Short())
			}
			seen[h.Ref.ID] = true
			if h.Shards != 6 || h.Ref.K != 4 || h.Ref.M != 2 || h.Dead {
				t.Errorf("stripe %s: %+v", h.Ref.ID.Short(), h)
			}
			if old[h.Ref.ID] && (h.Age > time.Since(began) || h.Age < time.Hour) || !old[h.Ref.ID] && h.Age > time.Since(middle) {
				t.Errorf("stripe %s, old %v, is %v old", h.Ref.ID.Short(), old[h.Ref.ID], h.Age)
			}
		})
		if err != nil || len(seen) != 100 {
			t.Errorf("%d stripes, %v", len(seen), err)
		}
		c.kill(c.peers[3])
		if err := c.client.List(t.Context(), func(*Held) {}); !errors.Is(err, blocks.ErrUnavailable) {
			t.Errorf("with a peer down: %v", err)
		}
	})
}

// TestListPages reads one peer's stripes in pages that begin within an arc.
func TestListPages(t *testing.T) {
	bubble(t, 1, 0, 1, func(t *testing.T, c *cluster) {
		const n = pageStripes + 500
		p := c.peers[0]
		for i := range n {
			id := blocks.StripeID{ID: c.id()}
			id.ID[0] = byte(i % 3)
			if _, err := p.svc.putLocal(p.ring.Table().Vnodes()[0].ID, c.shard(id, 4, 0, []byte("text")), false); err != nil {
				t.Fatal(err)
			}
		}
		var last blocks.ID
		count, pages := 0, 0
		err := c.client.listOf(t.Context(), p.info.ID, func(l *listing) {
			pages++
			for _, x := range l.stripes {
				if x.ref.ID.Compare(last) <= 0 {
					t.Errorf("stripe %s out of order", x.ref.ID.Short())
				}
				last = x.ref.ID.ID
				count++
			}
		})
		if err != nil || count != n || pages != 2 {
			t.Errorf("%d stripes in %d pages, %v", count, pages, err)
		}
	})
}
