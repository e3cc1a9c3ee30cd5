package overlay

import (
	"context"
	"fmt"
	"sync"

	"github.com/mutualfs/mutualfs/blocks"
)

// Finger is the first virtual node at or after the position 2^Exp ahead. Of
// fingers that are the same virtual node only the farthest is kept.
type Finger struct {
	Exp   int
	Vnode Vnode
}

// VnodeInfo is a virtual node with its pointers.
type VnodeInfo struct {
	Vnode       Vnode
	Member      bool   // on the ring; else it is still joining
	Predecessor *Vnode // nil: not known at the moment
	Successors  []Vnode
	Fingers     []Finger // farthest first; none that the successor covers
}

// RingInfo returns this peer's virtual nodes by index.
func (p *Peer) RingInfo() []VnodeInfo {
	c := p.chord
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]VnodeInfo, len(c.nodes))
	for i, n := range c.nodes {
		out[i] = VnodeInfo{Vnode: n.self, Member: n.member, Successors: append([]Vnode(nil), n.succ...)}
		if n.hasPred {
			pred := n.pred
			out[i].Predecessor = &pred
		}
		for _, f := range n.fingers {
			out[i].Fingers = append(out[i].Fingers, Finger{f.exp, f.v})
		}
	}
	return out
}

// PeerRingInfo asks a peer for its virtual nodes.
func (p *Peer) PeerRingInfo(ctx context.Context, peer blocks.PeerID) ([]VnodeInfo, error) {
	if peer == p.cfg.Self {
		return p.RingInfo(), nil
	}
	resp, err := p.Call(ctx, peer, Control, Call{Kind: KindRingInfo})
	if err != nil {
		return nil, fmt.Errorf("ring as peer %s has it: %w", peer.Short(), err)
	}
	return decodeRingInfo(resp.Body, p.Table(), peer)
}

func (c *chord) serveRingInfo(_ context.Context, _ blocks.PeerID, req Call) (Call, error) {
	return Call{Kind: req.Kind, Body: encodeRingInfo(c.peer.RingInfo())}, nil
}

// encodeRingInfo: count, then for each virtual node, by index: member (1 byte), whether the
// predecessor is known (1 byte), the predecessor, successors (count, each), fingers (count,
// each: exponent, virtual node).
func encodeRingInfo(infos []VnodeInfo) []byte {
	var e blocks.Encoder
	e.Uint(uint64(len(infos)))
	for _, n := range infos {
		e.Bool(n.Member)
		e.Bool(n.Predecessor != nil)
		if n.Predecessor != nil {
			encodeVnode(&e, *n.Predecessor)
		}
		encodeVnodes(&e, n.Successors)
		e.Uint(uint64(len(n.Fingers)))
		for _, f := range n.Fingers {
			e.Uint(uint64(f.Exp))
			encodeVnode(&e, f.Vnode)
		}
	}
	return e.Buf
}

func decodeRingInfo(b []byte, t *Table, peer blocks.PeerID) ([]VnodeInfo, error) {
	d := blocks.NewDecoder(b)
	n := d.Count(4)
	if n > MaxVnodes {
		return nil, fmt.Errorf("%w: %d virtual nodes of one peer", blocks.ErrInvalid, n)
	}
	infos := make([]VnodeInfo, n)
	for i := range infos {
		in := &infos[i]
		in.Vnode, in.Member = t.vnode(peer, i), d.Bool()
		if d.Bool() {
			pred, err := decodeVnode(d, t)
			if err != nil {
				return nil, err
			}
			in.Predecessor = &pred
		}
		var err error
		if in.Successors, err = decodeVnodes(d, t, maxList); err != nil {
			return nil, err
		}
		fingers := d.Count(vnodeSize + 1)
		if fingers > maxFingers {
			return nil, fmt.Errorf("%w: %d fingers", blocks.ErrInvalid, fingers)
		}
		for range fingers {
			exp := d.Uint()
			v, err := decodeVnode(d, t)
			if err != nil {
				return nil, err
			}
			if exp >= maxFingers {
				return nil, fmt.Errorf("%w: finger %d", blocks.ErrInvalid, exp)
			}
			in.Fingers = append(in.Fingers, Finger{int(exp), v})
		}
	}
	return infos, d.Done()
}

// CheckReport is what came of routing from virtual nodes to virtual nodes.
type CheckReport struct {
	Vnodes   int      // virtual nodes of peers that are alive
	Routes   int      // routed
	Failed   int      // of them, ended nowhere or at the wrong virtual node
	Hops     uint64   // of all that arrived
	MaxHops  int      // of the longest that arrived
	Failures []string // the first few
}

// MeanHops is the mean of the routes that arrived.
func (r *CheckReport) MeanHops() float64 {
	if r.Routes == r.Failed {
		return 0
	}
	return float64(r.Hops) / float64(r.Routes-r.Failed)
}

func (r *CheckReport) add(o *CheckReport) {
	r.Routes += o.Routes
	r.Failed += o.Failed
	r.Hops += o.Hops
	r.MaxHops = max(r.MaxHops, o.MaxHops)
	for _, f := range o.Failures {
		if len(r.Failures) < maxReported {
			r.Failures = append(r.Failures, f)
		}
	}
}

// Check has every peer that is alive route a message from each of its virtual nodes to
// every other one that is alive through Chord, past the membership table. A
// peer that cannot do its part counts as one failed route; the error is nil
// unless ctx ended.
func (p *Peer) Check(ctx context.Context) (CheckReport, error) {
	t := p.Table()
	var mu sync.Mutex
	var sum CheckReport
	var wg sync.WaitGroup
	slots := make(chan struct{}, maxParallel)
	for id, info := range t.Peers {
		if info.Live != Alive || info.Vnodes == 0 {
			continue
		}
		sum.Vnodes += info.Vnodes
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			part, err := p.checkAt(ctx, id)
			if err != nil {
				part = CheckReport{Routes: 1, Failed: 1, Failures: []string{fmt.Sprintf("peer %s: %v", id.Short(), err)}}
			}
			mu.Lock()
			defer mu.Unlock()
			sum.add(&part)
		})
	}
	wg.Wait()
	return sum, ctx.Err()
}

func (p *Peer) checkAt(ctx context.Context, id blocks.PeerID) (CheckReport, error) {
	resp, err := p.Call(ctx, id, Control, Call{Kind: KindCheck})
	if err != nil {
		return CheckReport{}, err
	}
	return decodeCheck(resp.Body)
}

func (c *chord) serveCheck(ctx context.Context, _ blocks.PeerID, req Call) (Call, error) {
	r, err := c.peer.CheckPart(ctx)
	return Call{Kind: req.Kind, Body: encodeCheck(&r)}, err
}

// CheckPart does this peer's part of a check: it routes from each of its
// virtual nodes to every other whose peer is alive.
func (p *Peer) CheckPart(ctx context.Context) (CheckReport, error) {
	c := p.chord
	targets := c.answering(p.Table())
	slots := make(chan struct{}, maxParallel/2)
	var mu sync.Mutex
	sum := CheckReport{Vnodes: len(targets)}
	var wg sync.WaitGroup
	for _, n := range c.nodes {
		for _, to := range targets {
			if to.ID == n.self.ID {
				continue
			}
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				r := c.checkRoute(ctx, n.self, to)
				mu.Lock()
				defer mu.Unlock()
				sum.add(&r)
			})
		}
	}
	wg.Wait()
	return sum, ctx.Err()
}

// answering returns the virtual nodes of the peers that are alive.
func (c *chord) answering(t *Table) []Vnode {
	vs := make([]Vnode, 0, len(t.vnodes))
	for i, v := range t.vnodes {
		if t.live(i) == Alive {
			vs = append(vs, v)
		}
	}
	return vs
}

func (c *chord) checkRoute(ctx context.Context, from, to Vnode) CheckReport {
	ctx, cancel := context.WithTimeout(ctx, c.peer.cfg.Timings.Lookup)
	defer cancel()
	r := CheckReport{Routes: 1}
	owner, hops, err := c.route(ctx, []Vnode{from}, to.ID.ID)
	switch {
	case err != nil:
		r.Failed, r.Failures = 1, []string{fmt.Sprintf("%s to %s: %v", from.ID.Short(), to.ID.Short(), err)}
	case owner.ID != to.ID:
		r.Failed, r.Failures = 1, []string{fmt.Sprintf("%s to %s: ended at %s", from.ID.Short(), to.ID.Short(), owner.ID.Short())}
	default:
		r.Hops, r.MaxHops = uint64(hops), hops
	}
	return r
}

// encodeCheck: routes, failed, hops, longest, failures (count, each a string).
func encodeCheck(r *CheckReport) []byte {
	var e blocks.Encoder
	e.Uint(uint64(r.Routes))
	e.Uint(uint64(r.Failed))
	e.Uint(r.Hops)
	e.Uint(uint64(r.MaxHops))
	e.Uint(uint64(len(r.Failures)))
	for _, f := range r.Failures {
		e.String(f)
	}
	return e.Buf
}

func decodeCheck(b []byte) (CheckReport, error) {
	d := blocks.NewDecoder(b)
	routes, failed, hops, longest := d.Uint(), d.Uint(), d.Uint(), d.Uint()
	n := d.Count(1)
	const limit = 1 << 40
	if routes > limit || failed > routes || hops > limit || longest > hopBudget+1 || n > maxReported {
		return CheckReport{}, fmt.Errorf("%w: report of a check out of bounds", blocks.ErrInvalid)
	}
	r := CheckReport{Routes: int(routes), Failed: int(failed), Hops: hops, MaxHops: int(longest)}
	for range n {
		r.Failures = append(r.Failures, d.String())
	}
	return r, d.Done()
}
