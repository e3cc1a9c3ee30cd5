package register

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

// creation says how a register that may not exist yet comes to be: in the
// view that its only creator has fixed, or, if others may create it at the same
// time, in one that is chosen after a search. Neither: it is not to be created.
type creation struct {
	view   view
	shared bool
}

func (c creation) any() bool { return c.shared || len(c.view.Members) > 0 }

// searchTry bounds how long a search waits for one peer.
const searchTry = time.Second

// census is what a search is about: the storage peers that have their places,
// and how many of them a shared creation needs.
type census struct {
	all    []blocks.PeerID // who is asked, those included that are given up and may answer nevertheless
	counts int
	hash   uint64 // of those that count: who promises must know the same ones
	accept int    // how many members must accept the first state
}

// need is how many must promise: so many that they meet every set of accept peers, and can be members.
func (c *census) need() int { return max(c.counts-c.accept+1, c.accept) }

// takeCensus counts the table's peers; m of them may fail.
func takeCensus(t *overlay.Table, m int) census {
	var c census
	var places []blocks.PeerID
	for p, info := range t.Peers {
		if info.Vnodes == 0 {
			continue
		}
		c.all = append(c.all, p)
		if info.Live.Counts() {
			places = append(places, p)
		}
	}
	for _, set := range [][]blocks.PeerID{c.all, places} {
		slices.SortFunc(set, func(a, b blocks.PeerID) int { return a.Compare(b.ID) })
	}
	h := fnv.New64a()
	for _, p := range places {
		h.Write(p.ID[:])
	}
	c.counts, c.accept = len(places), min(2*m+1, len(places))/2+1
	c.hash = binary.BigEndian.Uint64(h.Sum(nil)) | 1 // 0: do not compare
	return c
}

// leadShared takes over a register that others may be creating at this very
// moment, or whose first state may not have been chosen: the promises are those
// of a search, which meets every quorum that may have accepted a first state.
func (s *Service) leadShared(ctx context.Context, id blocks.RegisterID, c *coord) error {
	f, err := s.search(ctx, id, c)
	if err != nil {
		return err
	}
	known := f.moved
	switch {
	case f.best != nil && f.best.View.Number >= known.Number:
		if f.best.undecided() {
			return s.adopt(ctx, id, c, f.best)
		}
		known = f.best.View
	case len(known.Members) == 0:
		c.st, c.leading = &state{View: view{Number: 1, Members: f.members}, First: uint64(f.accept)}, true
		return nil
	}
	c.seen++
	c.ballot = ballot{c.seen, s.self}
	best, err := s.prepareAll(ctx, id, c, known)
	if err != nil {
		return err
	}
	if best == nil || best.undecided() {
		return errOutbid
	}
	return s.adopt(ctx, id, c, best)
}

// findings are what a search brought.
type findings struct {
	best    *state   // the newest one
	moved   view     // the newest of tombstones
	members []member // of those that promised, the ones where the register belongs
	accept  int
}

// search asks all storage peers to promise a new ballot, and what they know of the register.
func (s *Service) search(ctx context.Context, id blocks.RegisterID, c *coord) (findings, error) {
	table := s.ring.Table()
	ring := takeCensus(table, s.cfg.M)
	f := findings{accept: ring.accept}
	c.seen++
	c.ballot = ballot{c.seen, s.self}
	msg := prepareMsg{ID: id, Ballot: c.ballot, Table: ring.hash}
	promised := map[blocks.PeerID]uint64{}
	var outbid bool
	err := s.askAll(ctx, ring.all, func(ctx context.Context, p blocks.PeerID) (reply, error) {
		return s.askWithin(ctx, p, msg.encode(), min(searchTry, s.cfg.CallTry))
	}, func(p blocks.PeerID, r reply) bool {
		c.met(r.Promised)
		c.met(r.Tag.Ballot)
		switch {
		case r.Status == statusRefused:
			outbid = true
		case r.Status == statusForgotten && r.State != nil && r.State.View.Number > f.moved.Number:
			f.moved = r.State.View
		case r.Status == statusOK:
			promised[p] = r.Incarnation
			if r.State != nil && (f.best == nil || r.Tag.compare(f.best.Tag) > 0) {
				f.best = r.State
			}
		}
		return outbid
	})
	if outbid {
		return f, errOutbid
	}
	if ctx.Err() != nil {
		return f, fmt.Errorf("search for register %s: %w", id.Short(), context.Cause(ctx))
	}
	if len(f.moved.Members) > 0 || f.best != nil && !f.best.undecided() {
		return f, nil
	}
	n := 0
	for p := range promised {
		if table.Peers[p].Live.Counts() {
			n++
		}
	}
	if n < ring.need() {
		return f, fmt.Errorf("create register %s: %w: %d of %d peers answer, %d must: %w", id.Short(), blocks.ErrUnavailable, n, ring.counts, ring.need(), err)
	}
	home := table.HomePeers(id.ID, 2*s.cfg.M+1, func(p overlay.PeerInfo) bool { return p.Live.Counts() && promised[p.ID] != 0 })
	for _, p := range home {
		f.members = append(f.members, member{p, promised[p]})
	}
	if len(f.members) < ring.accept {
		return f, fmt.Errorf("create register %s: %w: %d peers can have it, %d must", id.Short(), blocks.ErrUnavailable, len(f.members), ring.accept)
	}
	return f, nil
}

// servePrepare refuses to promise a shared creation to a coordinator whose
// ring has other members than this peer's: it would count other majorities.
func (s *Service) servePrepare(ctx context.Context, m prepareMsg) (*reply, error) {
	if m.Table != 0 {
		if mine := takeCensus(s.ring.Table(), s.cfg.M); mine.hash != m.Table {
			return nil, fmt.Errorf("promise for register %s: %w: the tables of the ring differ", m.ID.Short(), blocks.ErrBusy)
		}
	}
	return s.acc.prepare(ctx, m)
}
