package store

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

// Held is what the ring has of one stripe.
type Held struct {
	Ref    blocks.StripeRef
	Owner  blocks.Owner
	Shards int           // different ones that are good
	Age    time.Duration // how long some peer has had a shard of it, at least, by that peer's monotonic clock
	Dead   bool          // some peer knows that it was deleted
}

// List calls each, in no order, for every stripe of which a storage peer has a shard. It takes memory for all
// stripes of the ring. The error is of class ErrUnavailable if a storage peer that counts did not answer: there may be
// more stripes and more shards than the list has.
func (s *Service) List(ctx context.Context, each func(*Held)) error {
	t := s.cfg.Ring.Table()
	type state struct {
		Held
		indexes map[byte]bool
	}
	all := map[blocks.StripeID]*state{}
	var mu sync.Mutex
	add := func(l *listing) {
		mu.Lock()
		defer mu.Unlock()
		for i := range l.stripes {
			x := &l.stripes[i]
			st := all[x.ref.ID]
			if st == nil {
				st = &state{Held: Held{Ref: x.ref, Owner: x.owner}, indexes: map[byte]bool{}}
				all[x.ref.ID] = st
			}
			for _, n := range x.indexes {
				st.indexes[n] = true
			}
			st.Age, st.Dead = max(st.Age, x.age), st.Dead || x.dead
		}
	}
	var counting []blocks.PeerID
	for id, p := range t.Peers {
		if p.Vnodes > 0 && p.Live.Counts() {
			counting = append(counting, id)
		}
	}
	_, err := eachPeer(ctx, counting, func(ctx context.Context, p blocks.PeerID) error { return s.listOf(ctx, p, add) })
	if err != nil {
		err = fmt.Errorf("%w: list the stripes: %w", blocks.ErrUnavailable, err)
	}
	for _, st := range all {
		st.Shards = len(st.indexes)
		each(&st.Held)
	}
	return err
}

// listOf reads all pages of one peer.
func (s *Service) listOf(ctx context.Context, p blocks.PeerID, add func(*listing)) error {
	var from blocks.ID
	for {
		var page listing
		var err error
		if p == s.self && s.cfg.Local != nil {
			page, err = s.list(from)
		} else {
			err = s.ask(ctx, p, overlay.Repair, kindList, &listRequest{from}, &page)
		}
		if err != nil {
			return err
		}
		add(&page)
		if !page.more {
			return nil
		}
		if page.next.Compare(from) <= 0 {
			return fmt.Errorf("%w: a page of stripes that leads nowhere", blocks.ErrCorrupt)
		}
		from = page.next
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// list makes one page from an ID on. It holds one arc in memory.
func (s *Service) list(from blocks.ID) (listing, error) {
	var page listing
	for arc := arcOf(from); arc < arcCount; arc++ {
		first, last := arcRange(arc)
		if first.Compare(from) < 0 {
			first = from
		}
		stripes, err := s.listArc(first, last)
		if err != nil {
			return listing{}, err
		}
		for i := range stripes {
			if len(page.stripes) == pageStripes {
				page.more, page.next = true, stripes[i].ref.ID.ID
				return page, nil
			}
			page.stripes = append(page.stripes, stripes[i])
		}
	}
	return page, nil
}

// listArc lists the stripes in [from, to] that this peer has a good shard of, in order.
func (s *Service) listArc(from, to blocks.ID) ([]listedStripe, error) {
	all := map[blocks.StripeID]*listedStripe{}
	err := s.scanLocal(from, to, func(at blocks.Location) bool {
		h := &at.Header
		if s.isDamaged(&at) {
			return true
		}
		x := all[h.Stripe]
		if x == nil {
			x = &listedStripe{ref: h.Ref(), owner: h.Owner, age: s.ages.Age(h.Stripe.ID)}
			all[h.Stripe] = x
		}
		x.indexes = append(x.indexes, h.Index)
		return true
	})
	if err != nil {
		return nil, err
	}
	out := make([]listedStripe, 0, len(all))
	for id, x := range all {
		if x.dead, err = s.notes.dead(id); err != nil {
			return nil, err
		}
		out = append(out, *x)
	}
	slices.SortFunc(out, func(a, b listedStripe) int { return a.ref.ID.Compare(b.ref.ID.ID) })
	return out, nil
}

// listRequest asks for the stripes from an ID on.
type listRequest struct{ from blocks.ID }

func (m *listRequest) encode(e *blocks.Encoder) { e.ID(m.from) }
func (m *listRequest) decode(d *blocks.Decoder) { m.from = d.ID() }

// listedStripe is what one peer has of a stripe.
type listedStripe struct {
	ref     blocks.StripeRef
	owner   blocks.Owner
	age     time.Duration // whole milliseconds
	dead    bool
	indexes []byte // of the shards, one for each copy
}

// listing is a page of a peer's stripes, in order. more: there are others from next on.
type listing struct {
	more    bool
	next    blocks.ID
	stripes []listedStripe
}

// maxAgeMS bounds the age that a peer may claim.
const maxAgeMS = 1 << 40

func (m *listing) encode(e *blocks.Encoder) {
	e.Bool(m.more)
	e.ID(m.next)
	e.Uint(uint64(len(m.stripes)))
	for i := range m.stripes {
		x := &m.stripes[i]
		e.ID(x.ref.ID.ID)
		e.Uint(uint64(x.ref.Len))
		e.Byte(x.ref.K)
		e.Byte(x.ref.M)
		e.ID(x.owner.Register.ID)
		e.Uint(x.owner.Ino)
		e.Uint(uint64(x.age.Milliseconds()))
		e.Bool(x.dead)
		e.Bytes(x.indexes)
	}
}

func (m *listing) decode(d *blocks.Decoder) {
	m.more, m.next = d.Bool(), d.ID()
	for range d.Count(2*blocks.IDSize + 7) {
		var x listedStripe
		x.ref.ID.ID = d.ID()
		x.ref.Len = uint32(d.Uint())
		x.ref.K, x.ref.M = d.Byte(), d.Byte()
		x.owner.Register.ID, x.owner.Ino = d.ID(), d.Uint()
		x.age = time.Duration(min(d.Uint(), maxAgeMS)) * time.Millisecond
		x.dead = d.Bool()
		x.indexes = slices.Clone(d.Bytes())
		m.stripes = append(m.stripes, x)
	}
}

func (s *Service) serveList(_ context.Context, _ blocks.PeerID, req overlay.Call) (overlay.Call, error) {
	var m listRequest
	if err := decode("list", req.Body, &m); err != nil {
		return overlay.Call{}, err
	}
	page, err := s.list(m.from)
	if err != nil {
		return overlay.Call{}, err
	}
	return answer(req, &page)
}
