package parity

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// plan starts the Gets that the open segments need: of the shard itself first;
// when that fails or is slow, of as many others as reconstruction lacks.
func (r *reading) plan() {
	for i := range r.segs {
		w := &r.segs[i]
		if w.done || r.pending(w.shard, w.segment) {
			continue
		}
		if !w.started && !r.lying[w.shard] {
			w.started = true
			if h := r.place(w.shard); h != nil {
				r.get(segment{w.shard, w.lo, w.hi}, h)
				continue
			}
		}
		if lack := w.lack(r.g.K, r.covered(w.segment)); lack > 0 {
			r.more(w.segment, lack)
		}
	}
}

// more starts up to lack Gets of the rows of seg, the segment's own shard first,
// or looks for places if that many are not known.
func (r *reading) more(seg segment, lack int) {
	n := r.g.Shards()
	for d := 0; d < n && lack > 0; d++ {
		i := (seg.shard + d) % n
		if r.lying[i] || r.has(i, seg) || r.underWay(i, seg) {
			continue
		}
		h := r.place(i)
		if h == nil {
			continue
		}
		r.get(segment{i, seg.lo, seg.hi}, h)
		if i == seg.shard {
			return
		}
		lack--
	}
	if lack > 0 && r.asking == 0 && r.stage < askedEnough {
		r.widen()
	}
}

// has reports whether rows of shard have arrived.
func (r *reading) has(shard int, seg segment) bool { return r.rows(shard, seg) != nil }

// rows returns the ciphertext of rows [lo, hi) of shard, nil if it has not arrived.
func (r *reading) rows(shard int, seg segment) []byte {
	size := r.g.Sealed()
	for _, p := range r.pieces[shard] {
		if p.lo <= seg.lo && seg.hi <= p.hi {
			return p.data[(seg.lo-p.lo)*size : (seg.hi-p.lo)*size]
		}
	}
	return nil
}

func (r *reading) underWay(shard int, seg segment) bool {
	for _, f := range r.inflight {
		if f.shard == shard && f.lo <= seg.lo && seg.hi <= f.hi {
			return true
		}
	}
	return false
}

// pending reports whether rows of shard are under way and not slow.
func (r *reading) pending(shard int, seg segment) bool {
	for _, f := range r.inflight {
		if f.shard == shard && f.lo <= seg.lo && seg.hi <= f.hi && !f.slow {
			return true
		}
	}
	return false
}

// covered is the set of shards whose rows have arrived or will soon.
func (r *reading) covered(seg segment) (set uint64) {
	for i := range r.g.Shards() {
		if !r.lying[i] && (r.has(i, seg) || r.pending(i, seg)) {
			set |= 1 << i
		}
	}
	return set
}

// place is the holder to ask for a shard: one that is up and prompt; another only
// when the homes have been asked what they have.
func (r *reading) place(shard int) blocks.Holder {
	var down blocks.Holder
	for _, h := range r.places[shard] {
		if r.failed[shardAt{shard, h.Peer()}] {
			continue
		}
		up := r.s.up(h)
		if up && !r.s.peer(h.Peer()).isAvoided() {
			return h
		}
		if down == nil || up && !r.s.up(down) {
			down = h
		}
	}
	if r.stage >= askNear {
		return down
	}
	return nil
}

// tell hands an event to the loop, unless it has ended.
func (r *reading) tell(e event) {
	select {
	case r.events <- e:
	case <-r.ctx.Done():
	}
}

// get starts a Get of rows of a shard.
func (r *reading) get(seg segment, h blocks.Holder) {
	s := r.s
	p := s.peer(h.Peer())
	f := &fetch{segment: seg, holder: h, hedgeAt: time.Now().Add(p.hedgeAfter(s.cfg.HedgeAfter))}
	r.inflight = append(r.inflight, f)
	size := uint32(r.g.Sealed())
	ok := s.spawn(func() {
		select {
		case p.slots <- struct{}{}:
			defer func() { <-p.slots }()
		case <-r.ctx.Done():
			return
		}
		ctx, cancel := context.WithTimeout(r.ctx, s.cfg.GetTimeout)
		defer cancel()
		start := time.Now()
		sh, err := h.Get(ctx, r.ref.ID, seg.shard, uint32(seg.lo)*size, uint32(seg.hi-seg.lo)*size)
		if r.ctx.Err() == nil && ctx.Err() != nil {
			p.shun(time.Now().Add(s.cfg.ShunFor))
			err = fmt.Errorf("%w: no answer from peer %s for %v", blocks.ErrUnavailable, h.Peer().Short(), s.cfg.GetTimeout)
		} else if err == nil || r.ctx.Err() != nil {
			p.observe(time.Since(start)) // an abandoned one took at least so long
		}
		if err == nil {
			p.answered()
		}
		r.tell(event{fetch: f, shard: sh, err: err})
	})
	if !ok {
		r.queue = append(r.queue, event{fetch: f, err: errClosed()})
	}
}

// widen goes one stage further in the search for shards.
func (r *reading) widen() {
	r.stage++
	switch r.stage {
	case askNear:
		r.ask(r.near)
	case askAll:
		r.asking++
		f := func() {
			holders, err := r.s.cfg.Placer.Search(r.ctx, r.ref.ID)
			if err != nil {
				err = fmt.Errorf("search for stripe %s: %w", r.ref.ID.Short(), err)
			}
			r.tell(event{search: true, holders: holders, err: err})
		}
		if !r.s.spawn(f) {
			r.queue = append(r.queue, event{search: true, err: errClosed()})
		}
	}
}

// ask asks every peer among holders, once, what it has of the stripe.
func (r *reading) ask(holders []blocks.Holder) {
	if r.asked == nil {
		r.asked = map[blocks.PeerID]bool{}
	}
	for _, h := range holders {
		if r.asked[h.Peer()] {
			continue
		}
		r.asked[h.Peer()] = true
		r.asking++
		f := func() {
			hs, err := r.s.have(r.ctx, h, r.ref.ID)
			r.tell(event{have: true, holder: h, headers: hs, err: err})
		}
		if !r.s.spawn(f) {
			r.queue = append(r.queue, event{have: true, err: errClosed()})
		}
	}
}

// have asks one peer which shards of a stripe it has.
func (s *Store) have(ctx context.Context, h blocks.Holder, id blocks.StripeID) ([]blocks.Header, error) {
	hs, err := call(ctx, s, h, s.cfg.HaveTimeout, func(ctx context.Context) ([]blocks.Header, error) { return h.Have(ctx, id) })
	if errors.Is(err, blocks.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ask peer %s for stripe %s: %w", h.Peer().Short(), id.Short(), err)
	}
	return hs, nil
}
