package store

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

const (
	// askParallel bounds the peers that are asked for digests or inventories at once.
	askParallel = 16
	// maxJobs bounds the stripes that one round has work done for, the most urgent
	// ones; the rest is found by the next.
	maxJobs = 1 << 14
	// sliceTime is how long at most a round's work goes on before the state is looked
	// at anew; a long scan may be followed by work that is as long.
	sliceTime = 30 * time.Second
)

// segment is a part of one arc in which this peer is the repairer of all stripes.
type segment struct{ from, to blocks.ID }

// segmentState is what the last look at a segment found.
type segmentState struct {
	print  uint64 // of everything that the result depends on
	settle bool   // the result depends on time too, or could not be had
	counts Counts
}

// job is the work for one stripe.
type job struct {
	st   stripeState
	plan plan
}

// round is one pass of the repairer over its part of the circle.
type round struct {
	s       *Service
	view    view
	table   uint64
	digests map[blocks.PeerID]*digests
	counts  Counts
	surplus bool // some copies are to be dropped after the grace
	dead    []job
	jobs    []job
}

// liveVnodes returns the virtual nodes of live peers in ring order.
func (v *view) liveVnodes() []overlay.Vnode {
	var vs []overlay.Vnode
	for _, n := range v.table.Vnodes() {
		if v.live[n.Peer] {
			vs = append(vs, n)
		}
	}
	return vs
}

// segments returns where self is the repairer: a stripe's repairer is the first live
// virtual node clockwise from it, whatever it holds.
func (v *view) segments(self blocks.PeerID) []segment {
	var list []segment
	vs := v.liveVnodes()
	for i, n := range vs {
		if n.Peer != self {
			continue
		}
		from := vs[(i+len(vs)-1)%len(vs)].ID.ID.AddPower(0)
		to := n.ID.ID
		if len(vs) > 1 && from.Compare(to) <= 0 {
			list = append(list, segment{from, to})
			continue
		}
		var zero, last blocks.ID // wraps around
		for i := range last {
			last[i] = 0xff
		}
		list = append(list, segment{zero, to})
		if from.Compare(to) > 0 {
			list = append(list, segment{from, last})
		}
	}
	return splitAtArcs(list)
}

func splitAtArcs(list []segment) []segment {
	var out []segment
	for _, seg := range list {
		for arc := arcOf(seg.from); arc <= arcOf(seg.to); arc++ {
			from, to := arcRange(arc)
			if from.Compare(seg.from) < 0 {
				from = seg.from
			}
			if to.Compare(seg.to) > 0 {
				to = seg.to
			}
			out = append(out, segment{from, to})
		}
	}
	slices.SortFunc(out, func(a, b segment) int { return a.from.Compare(b.from) })
	return out
}

// repairer returns which peer repairs the stripe, false if no storage peer lives.
func (v *view) repairer(stripe blocks.StripeID) (blocks.PeerID, bool) {
	home := v.table.HomeList(stripe.ID, 1, v.keepLive)
	if len(home) == 0 {
		return blocks.PeerID{}, false
	}
	return home[0].Peer, true
}

// storagePeers returns the storage peers that the table calls reachable, this one included.
func (s *Service) storagePeers(t *overlay.Table) []blocks.PeerID {
	var peers []blocks.PeerID
	for _, p := range t.Peers {
		if p.Vnodes > 0 && (p.Live.Reachable() || p.ID == s.self && s.cfg.Local != nil && p.Live.Counts()) {
			peers = append(peers, p.ID)
		}
	}
	slices.SortFunc(peers, func(a, b blocks.PeerID) int { return a.Compare(b.ID) })
	return peers
}

// eachPeer calls f for all peers, some at a time, and returns which did not fail.
func eachPeer(ctx context.Context, peers []blocks.PeerID, f func(ctx context.Context, p blocks.PeerID) error) (answered map[blocks.PeerID]bool, firstErr error) {
	answered = map[blocks.PeerID]bool{}
	var mu sync.Mutex
	var g errgroup.Group
	g.SetLimit(askParallel)
	for _, p := range peers {
		g.Go(func() error {
			err := f(ctx, p)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				answered[p] = true
			} else if firstErr == nil {
				firstErr = fmt.Errorf("peer %s: %w", p.Short(), err)
			}
			return nil
		})
	}
	_ = g.Wait()
	return answered, firstErr
}

// newRound asks all storage peers for their digests. Who does not answer is not live.
func (s *Service) newRound(ctx context.Context) *round {
	t := s.cfg.Ring.Table()
	r := &round{s: s, table: t.PlacementHash(), digests: map[blocks.PeerID]*digests{}}
	peers := s.storagePeers(t)
	var mu sync.Mutex
	live, err := eachPeer(ctx, peers, func(ctx context.Context, p blocks.PeerID) error {
		d := &digests{}
		var err error
		if p == s.self {
			*d, err = s.digests()
		} else {
			err = s.ask(ctx, p, overlay.Repair, kindDigest, nothing{}, d)
		}
		mu.Lock()
		defer mu.Unlock()
		r.digests[p] = d
		return err
	})
	if err != nil {
		s.cfg.Log.Debug().Err(err).Msg("a peer gave no digest")
	}
	r.view = view{t, live, s.full.list()}
	r.counts = Counts{Complete: len(live) == len(peers), TableHash: r.table}
	return r
}

// print hashes all that the state of a segment follows from.
func (r *round) print(seg segment) uint64 {
	h := fnv.New64a()
	b := binary.BigEndian.AppendUint64(nil, r.table)
	for _, p := range r.s.storagePeers(r.view.table) {
		if r.view.live[p] {
			b = append(b, p.ID[:]...)
			b = binary.BigEndian.AppendUint64(b, r.digests[p][arcOf(seg.from)])
		}
	}
	var full uint64 // in any order
	for v := range r.view.full {
		full += digestOf(blocks.StripeID(v), v, 0)
	}
	h.Write(binary.BigEndian.AppendUint64(b, full))
	return h.Sum64()
}

// scan looks at all segments; those that have not changed since they were looked at without
// finding work are taken from last.
func (r *round) scan(ctx context.Context, last map[segment]segmentState) (map[segment]segmentState, error) {
	next := map[segment]segmentState{}
	for _, seg := range r.view.segments(r.s.self) {
		print := r.print(seg)
		state, ok := last[seg]
		if !ok || state.settle || state.print != print {
			var err error
			if state, err = r.look(ctx, seg); err != nil {
				return nil, err
			}
			state.print = print
		}
		next[seg] = state
		r.counts.add(&state.counts)
	}
	return next, nil
}

// look fetches the inventories of one segment and plans for each of its stripes.
func (r *round) look(ctx context.Context, seg segment) (segmentState, error) {
	var state segmentState
	found := map[blocks.StripeID]*stripeState{}
	var mu sync.Mutex
	var live []blocks.PeerID
	for p := range r.view.live {
		live = append(live, p)
	}
	answered, err := eachPeer(ctx, live, func(ctx context.Context, p blocks.PeerID) error {
		return r.s.fetchInventory(ctx, p, seg.from, seg.to, func(l *listed) {
			mu.Lock()
			defer mu.Unlock()
			st := found[l.ref.ID]
			if st == nil {
				st = &stripeState{ref: blocks.StripeRef{ID: l.ref.ID}}
				found[l.ref.ID] = st
			}
			st.merge(p, l)
		})
	})
	if ctx.Err() != nil {
		return state, context.Cause(ctx)
	}
	if len(answered) < len(live) { // what they have is not known: count, but touch nothing
		r.s.cfg.Log.Debug().Err(err).Msg("a peer gave no inventory")
		r.counts.Complete = false
	}
	for _, st := range found {
		r.plan(&state, st, len(answered) == len(live))
	}
	return state, nil
}

// plan plans one stripe and remembers the work, if all peers have answered.
func (r *round) plan(state *segmentState, st *stripeState, all bool) {
	if !all {
		state.settle = true
	}
	if st.ref.K == 0 {
		return // a tombstone, nothing else
	}
	slices.SortFunc(st.copies, func(a, b copyAt) int {
		return cmp.Or(cmp.Compare(a.index, b.index), a.vnode.Compare(b.vnode.ID))
	})
	if st.dead {
		state.settle = true
		if len(r.dead) < maxJobs {
			r.dead = append(r.dead, job{st: *st})
		}
		return
	}
	p := planStripe(st, &r.view)
	state.counts.count(&p)
	r.surplus = r.surplus || p.surplus
	if p.idle() && !p.settling && !p.surplus {
		return
	}
	state.settle = true
	if all && !p.settling && !p.idle() {
		r.jobs = append(r.jobs, job{*st, p})
		if len(r.jobs) == 2*maxJobs {
			r.order()
		}
	}
}

// order sorts the work, and keeps as much as one round may do: rebuilding first, fewest good
// shards first; then moves along the ring.
func (r *round) order() {
	slices.SortFunc(r.jobs, func(a, b job) int {
		if c := cmp.Compare(min(1, len(b.plan.rebuild)), min(1, len(a.plan.rebuild))); c != 0 {
			return c
		}
		if len(a.plan.rebuild) > 0 {
			slack := func(j job) int { return j.plan.good - int(j.st.ref.K) }
			if c := cmp.Compare(slack(a), slack(b)); c != 0 {
				return c
			}
		}
		return a.st.ref.ID.Compare(b.st.ref.ID.ID)
	})
	if len(r.jobs) > maxJobs {
		clear(r.jobs[maxJobs:])
		r.jobs = r.jobs[:maxJobs]
	}
}
