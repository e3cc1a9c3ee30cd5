package store

import (
	"context"
	"slices"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

// pageStripes and pageShards bound one answer to an inventory request (about 3 MiB); it has at
// least one stripe.
const (
	pageStripes = 2048
	pageShards  = 1 << 16
)

// inventoryRequest asks for all stripes in [from, to].
type inventoryRequest struct{ from, to blocks.ID }

func (m *inventoryRequest) encode(e *blocks.Encoder) {
	e.ID(m.from)
	e.ID(m.to)
}

func (m *inventoryRequest) decode(d *blocks.Decoder) { m.from, m.to = d.ID(), d.ID() }

const (
	flagDead  = 1
	flagYoung = 2
	flagFresh = 4
)

// listedShard is one shard in an inventory.
type listedShard struct {
	index byte
	vnode blocks.VnodeID
	home  blocks.VnodeID
	size  uint32
}

// listed is one stripe in an inventory: what one peer has of it and knows about it. A
// stripe without shards is a tombstone.
type listed struct {
	ref    blocks.StripeRef
	flags  byte
	shards []listedShard
}

// inventory is one page: the stripes in order of their IDs. more: it is full, go
// on after the last one.
type inventory struct {
	more    bool
	stripes []listed
}

func (m *inventory) encode(e *blocks.Encoder) {
	e.Bool(m.more)
	e.Uint(uint64(len(m.stripes)))
	for i := range m.stripes {
		s := &m.stripes[i]
		e.ID(s.ref.ID.ID)
		e.Uint(uint64(s.ref.Len))
		e.Byte(s.ref.K)
		e.Byte(s.ref.M)
		e.Byte(s.flags)
		e.Uint(uint64(len(s.shards)))
		for _, sh := range s.shards {
			e.Byte(sh.index)
			e.ID(sh.vnode.ID)
			e.ID(sh.home.ID)
			e.Uint(uint64(sh.size))
		}
	}
}

func (m *inventory) decode(d *blocks.Decoder) {
	m.more = d.Bool()
	for range d.Count(blocks.IDSize + 5) {
		var s listed
		s.ref.ID.ID = d.ID()
		s.ref.Len = uint32(d.Uint())
		s.ref.K, s.ref.M, s.flags = d.Byte(), d.Byte(), d.Byte()
		for range d.Count(2*blocks.IDSize + 2) {
			s.shards = append(s.shards, listedShard{d.Byte(), blocks.VnodeID{ID: d.ID()}, blocks.VnodeID{ID: d.ID()}, uint32(d.Uint())})
		}
		m.stripes = append(m.stripes, s)
	}
}

// lister gathers one page of this peer's inventory from a scan in any order, with
// bounded memory: whatever is beyond a full page is dropped.
type lister struct {
	to      blocks.ID
	stripes map[blocks.StripeID]*listed
	more    bool
}

func (l *lister) at(stripe blocks.StripeID) *listed {
	if stripe.Compare(l.to) > 0 {
		return nil
	}
	s := l.stripes[stripe]
	if s == nil {
		if len(l.stripes) >= 2*pageStripes {
			l.cut()
			return l.at(stripe)
		}
		s = &listed{ref: blocks.StripeRef{ID: stripe}}
		l.stripes[stripe] = s
	}
	return s
}

// cut drops what does not fit in the page and returns the rest in order.
func (l *lister) cut() []listed {
	all := make([]listed, 0, len(l.stripes))
	for _, s := range l.stripes {
		all = append(all, *s)
	}
	slices.SortFunc(all, func(a, b listed) int { return a.ref.ID.Compare(b.ref.ID.ID) })
	if len(all) > pageStripes {
		for _, s := range all[pageStripes:] {
			delete(l.stripes, s.ref.ID)
		}
		all = all[:pageStripes]
		l.more, l.to = true, all[pageStripes-1].ref.ID.ID
	}
	return all
}

// inventory lists the first page of what this peer has in [from, to].
func (s *Service) inventory(from, to blocks.ID) (inventory, error) {
	l := &lister{to: to, stripes: map[blocks.StripeID]*listed{}}
	err := s.scanLocal(from, to, func(at blocks.Location) bool {
		if s.isDamaged(&at) {
			return true
		}
		if e := l.at(at.Header.Stripe); e != nil {
			e.ref = at.Header.Ref()
			e.shards = append(e.shards, listedShard{at.Header.Index, at.Vnode, at.Header.Home, at.Header.Size})
		}
		return true
	})
	if err != nil {
		return inventory{}, err
	}
	for arc := arcOf(from); arc <= arcOf(to); arc++ {
		if err := s.notes.tombs(arc, func(stripe blocks.StripeID) bool {
			if stripe.Compare(from) >= 0 {
				if e := l.at(stripe); e != nil {
					e.flags |= flagDead
				}
			}
			return true
		}); err != nil {
			return inventory{}, err
		}
	}
	stripes, shards := l.cut(), 0
	for i := range stripes {
		if shards += len(stripes[i].shards); shards > pageShards && i > 0 {
			return inventory{true, stripes[:i]}, nil
		}
		stripes[i].flags |= s.ageFlags(stripes[i].ref.ID)
	}
	return inventory{l.more, stripes}, nil
}

// ageFlags says what was put here of the stripe just now.
func (s *Service) ageFlags(stripe blocks.StripeID) (flags byte) {
	if s.young.has(stripe) {
		flags |= flagYoung
	}
	if s.fresh.has(stripe) {
		flags |= flagFresh
	}
	return flags
}

// maxPages bounds the pages of one range that are asked for in one round.
const maxPages = 1 << 12

// fetchInventory reads all pages of a peer's inventory of [from, to].
func (s *Service) fetchInventory(ctx context.Context, peer blocks.PeerID, from, to blocks.ID, each func(*listed)) error {
	for range maxPages {
		var page inventory
		var err error
		if peer == s.self {
			page, err = s.inventory(from, to)
		} else {
			err = s.ask(ctx, peer, overlay.Repair, kindInventory, &inventoryRequest{from, to}, &page)
		}
		if err != nil {
			return err
		}
		for i := range page.stripes {
			each(&page.stripes[i])
		}
		if !page.more || len(page.stripes) == 0 {
			return nil
		}
		last := page.stripes[len(page.stripes)-1].ref.ID.ID
		if last.Compare(from) < 0 || last.Compare(to) >= 0 {
			return nil
		}
		from = last.AddPower(0)
	}
	return nil
}

// merge adds what peer lists of a stripe to what is known.
func (st *stripeState) merge(peer blocks.PeerID, l *listed) {
	st.dead = st.dead || l.flags&flagDead != 0
	st.young = st.young || l.flags&flagYoung != 0
	st.fresh = st.fresh || l.flags&flagFresh != 0
	n := int(l.ref.K) + int(l.ref.M)
	if len(l.shards) == 0 || l.ref.K == 0 {
		return
	}
	if st.ref.K == 0 {
		st.ref = l.ref
	}
	for _, sh := range l.shards {
		if l.ref == st.ref && int(sh.index) < n {
			st.copies = append(st.copies, copyAt{int(sh.index), sh.vnode, peer, sh.home, sh.size})
		}
	}
}

func (s *Service) serveDigest(_ context.Context, _ blocks.PeerID, req overlay.Call) (overlay.Call, error) {
	d, err := s.digests()
	if err != nil {
		return overlay.Call{}, err
	}
	return answer(req, &d)
}

func (s *Service) serveInventory(_ context.Context, _ blocks.PeerID, req overlay.Call) (overlay.Call, error) {
	var m inventoryRequest
	if err := decode("inventory", req.Body, &m); err != nil {
		return overlay.Call{}, err
	}
	page, err := s.inventory(m.from, m.to)
	if err != nil {
		return overlay.Call{}, err
	}
	return answer(req, &page)
}
