package parity

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// Read fills p with content [off, off+len(p)) of the stripe. It fetches the units
// touched from the shards that hold them; for each one that is missing, damaged, unreachable or
// slow it fetches the same rows of other shards and reconstructs. What is
// returned has been authenticated. ErrUnavailable: too few shards could be reached, all may
// still be there; it has been tried again for Config.RetryFor. ErrCorrupt: every peer has answered, and fewer than k good shards
// are left. On error p holds garbage.
func (s *Store) Read(ctx context.Context, ref blocks.StripeRef, off uint32, p []byte) error {
	g, err := GeometryOf(ref)
	if err != nil {
		return err
	}
	if uint64(off)+uint64(len(p)) > uint64(ref.Len) {
		return fmt.Errorf("%w: bytes [%d, %d) of stripe %s of %d bytes", blocks.ErrInvalid, off, uint64(off)+uint64(len(p)), ref.ID.Short(), ref.Len)
	}
	if len(p) == 0 {
		return nil
	}
	seal, err := s.sealer(ref.ID, g)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.ReadTimeout)
	defer cancel()
	for begun := time.Now(); ; {
		err := s.readOnce(ctx, ref, g, seal, int(off), p)
		if !errors.Is(err, blocks.ErrUnavailable) || time.Since(begun) >= s.cfg.RetryFor || s.isClosed() {
			return err
		}
		// Peers that are just coming back cannot be dialled for some moments.
		select {
		case <-ctx.Done():
			return err
		case <-time.After(retryEvery):
		}
	}
}

// retryEvery is the pause between attempts to read a stripe of which too few shards were within reach.
const retryEvery = 200 * time.Millisecond

// readOnce is one attempt of Read.
func (s *Store) readOnce(ctx context.Context, ref blocks.StripeRef, g Geometry, seal *sealer, off int, p []byte) error {
	holders, err := s.homes(ctx, ref.ID, g.Shards())
	if err != nil {
		return err
	}
	r := s.newReading(ctx, ref, g, holders)
	r.seal, r.off, r.p = seal, off, p
	need := 0
	for _, seg := range g.segments(off, len(p)) {
		r.segs = append(r.segs, want{segment: seg})
		need += (seg.hi - seg.lo) * g.Sealed()
	}
	release, err := s.reserve(ctx, need)
	if err != nil {
		return err
	}
	defer release()
	err = r.run()
	r.report()
	r.release()
	return err
}

// release gives back what has arrived. Nothing else refers to it: content was copied out, and a Get that is still under
// way keeps what it will have got.
func (r *reading) release() {
	for _, list := range r.pieces {
		for _, p := range list {
			r.s.cfg.Release(p.data)
		}
	}
	r.pieces = nil
}

// want is a segment that is to be read.
type want struct {
	segment
	started bool   // its own shard has been asked
	done    bool   // its content is in p
	failed  uint64 // set of shards among which no k open: some of them lie
}

// lack is how many more shards a reconstruction needs, given the set of those that it
// can have.
func (w *want) lack(k int, set uint64) int {
	n := bits.OnesCount64(set)
	if n >= k && set&^w.failed == 0 {
		return 1
	}
	return max(0, k-n)
}

// piece is rows [lo, hi) of a shard, as fetched.
type piece struct {
	lo, hi int
	data   []byte
}

// fetch is a Get under way.
type fetch struct {
	segment
	holder  blocks.Holder
	hedgeAt time.Time
	slow    bool // others have been asked in its place
}

// event is what a goroutine of a reading has to tell its loop.
type event struct {
	fetch *fetch // a Get has ended
	shard blocks.Shard

	have    bool // a Have has ended
	headers []blocks.Header
	holder  blocks.Holder

	search  bool // Search has ended
	holders []blocks.Holder

	err error
}

type shardAt struct {
	shard int
	peer  blocks.PeerID
}

// Stages of the search for shards.
const (
	askHomes    = iota // shards are presumed on their homes
	askNear            // homes and stand-ins were asked what they have
	askAll             // so was every peer of the ring
	askedEnough        // nothing is left to try
)

// reading is one Read under way. Only its loop touches it.
type reading struct {
	s    *Store
	ctx  context.Context
	ref  blocks.StripeRef
	g    Geometry
	seal *sealer
	off  int
	p    []byte

	segs     []want
	near     []blocks.Holder   // home list and stand-ins
	places   [][]blocks.Holder // of each shard: where it may be
	pieces   [][]piece         // of each shard: what has arrived
	failed   map[shardAt]bool  // not to be asked again
	missing  []bool            // a shard was not where it should be
	corrupt  []bool            // a copy of it failed its checksum, or it lies
	lying    []bool            // right checksum, wrong content
	inflight []*fetch
	events   chan event
	queue    []event // those that need no goroutine

	stage     int
	asking    int // Haves and Searches under way
	asked     map[blocks.PeerID]bool
	unreached int   // calls that nobody answered
	lastErr   error // one of them
}

func (s *Store) newReading(ctx context.Context, ref blocks.StripeRef, g Geometry, holders []blocks.Holder) *reading {
	n := g.Shards()
	r := &reading{s: s, ctx: ctx, ref: ref, g: g, near: holders,
		places: make([][]blocks.Holder, n), pieces: make([][]piece, n),
		missing: make([]bool, n), corrupt: make([]bool, n), lying: make([]bool, n),
		events: make(chan event)}
	homes := min(n, len(holders))
	for i := range n {
		j := i % homes
		r.places[i] = holders[j : j+1 : j+1]
	}
	return r
}

// run fetches until all segments have been decoded into p.
func (r *reading) run() error {
	for {
		if err := r.decode(); err != nil {
			return err
		}
		if r.complete() {
			return nil
		}
		r.plan()
		if len(r.inflight) == 0 && r.asking == 0 {
			if r.stage < askedEnough {
				r.widen()
				continue
			}
			return r.giveUp()
		}
		if err := r.wait(); err != nil {
			return err
		}
	}
}

func (r *reading) complete() bool {
	for i := range r.segs {
		if !r.segs[i].done {
			return false
		}
	}
	return true
}

// wait takes one event, or marks what has become slow.
func (r *reading) wait() error {
	if len(r.queue) > 0 {
		e := r.queue[0]
		r.queue = r.queue[1:]
		r.handle(e)
		return nil
	}
	var hedge <-chan time.Time
	if at, ok := r.nextHedge(); ok {
		t := time.NewTimer(time.Until(at))
		defer t.Stop()
		hedge = t.C
	}
	select {
	case e := <-r.events:
		r.handle(e)
	case <-hedge:
		now := time.Now()
		for _, f := range r.inflight {
			if !f.slow && !now.Before(f.hedgeAt) {
				f.slow = true
				r.s.peer(f.holder.Peer()).hedged(r.s.cfg.ShunFor)
			}
		}
	case <-r.ctx.Done():
		err := classed(r.ctx.Err())
		if errors.Is(err, blocks.ErrDeadline) {
			err = fmt.Errorf("%w: %w", blocks.ErrUnavailable, err)
		}
		return fmt.Errorf("read stripe %s: %w", r.ref.ID.Short(), err)
	}
	return nil
}

func (r *reading) nextHedge() (time.Time, bool) {
	var at time.Time
	for _, f := range r.inflight {
		if !f.slow && (at.IsZero() || f.hedgeAt.Before(at)) {
			at = f.hedgeAt
		}
	}
	return at, !at.IsZero()
}

func (r *reading) handle(e event) {
	switch {
	case e.fetch != nil:
		r.inflight = slices.DeleteFunc(r.inflight, func(f *fetch) bool { return f == e.fetch })
		r.fetched(e)
	case e.have:
		r.asking--
		if e.err != nil {
			r.note(e.err)
		}
		for _, h := range e.headers {
			i := int(h.Index)
			if h.Ref() == r.ref && i < r.g.Shards() {
				r.missing[i] = false
				r.addPlace(i, e.holder)
			}
		}
	case e.search:
		r.asking--
		if e.err != nil {
			r.note(e.err)
		}
		r.ask(e.holders)
	}
}

func (r *reading) note(err error) {
	r.unreached++
	r.lastErr = err
}

func (r *reading) addPlace(shard int, h blocks.Holder) {
	for _, known := range r.places[shard] {
		if known.Peer() == h.Peer() {
			return
		}
	}
	r.places[shard] = append(r.places[shard], h)
}

// fetched takes the answer of a Get.
func (r *reading) fetched(e event) {
	f := e.fetch
	size := r.g.Sealed()
	if e.err == nil && !r.g.matches(e.shard, r.ref, f.segment) {
		e.err = fmt.Errorf("%w: peer %s sent something else", blocks.ErrCorrupt, f.holder.Peer().Short())
	}
	if e.err == nil {
		r.pieces[f.shard] = append(r.pieces[f.shard], piece{f.lo, f.lo + len(e.shard.Data)/size, e.shard.Data})
		return
	}
	if r.failed == nil {
		r.failed = map[shardAt]bool{}
	}
	r.failed[shardAt{f.shard, f.holder.Peer()}] = true
	switch {
	case errors.Is(e.err, blocks.ErrNotFound):
		r.missing[f.shard] = true
		if r.stage == askHomes { // the ring has changed: look around at once
			r.widen()
		}
	case errors.Is(e.err, blocks.ErrCorrupt):
		r.corrupt[f.shard] = true
	default:
		r.note(e.err)
	}
}

// matches reports whether sh is the part of the stripe's shard that was asked for.
func (g Geometry) matches(sh blocks.Shard, ref blocks.StripeRef, seg segment) bool {
	size := g.Sealed()
	return sh.Ref() == ref && int(sh.Index) == seg.shard && int(sh.Size) == g.ShardSize() &&
		int(sh.Off) == seg.lo*size && len(sh.Data) == (seg.hi-seg.lo)*size
}

// giveUp says why a stripe cannot be read: it may be out of reach, or lost.
func (r *reading) giveUp() error {
	got := 0
	for i := range r.pieces {
		if len(r.pieces[i]) > 0 && !r.lying[i] {
			got++
		}
	}
	if r.unreached > 0 {
		return fmt.Errorf("%w: stripe %s: %d of %d+%d shards within reach: %v", blocks.ErrUnavailable, r.ref.ID.Short(), got, r.g.K, r.g.M, r.lastErr)
	}
	return fmt.Errorf("%w: stripe %s lost: %d good shards of %d+%d left on all peers", blocks.ErrCorrupt, r.ref.ID.Short(), got, r.g.K, r.g.M)
}

// report hands on which shards should be repaired. Shards out of reach are no
// damage: their peers may return. That a shard lies is proven only by another
// choice of shards whose seal is right: else the key or the reference may be wrong.
func (r *reading) report() {
	var d damage
	proven := r.complete()
	for i := range r.g.Shards() {
		switch {
		case r.corrupt[i] || proven && r.lying[i]:
			d.corrupt = append(d.corrupt, i)
		case r.missing[i]:
			d.missing = append(d.missing, i)
		}
	}
	if len(d.corrupt)+len(d.missing) == 0 {
		return
	}
	d.stripe, d.shards = r.ref.ID, r.g.Shards()
	if !r.s.damage.report(d) {
		r.s.cfg.Log.Debug().Stringer("stripe", d.stripe).Msg("damage report dropped, queue full")
	}
}
