package parity

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/mutualfs/mutualfs/blocks"
)

// maxTries bounds on how many holders one shard is tried.
const maxTries = 16

// picker chooses holders for the shards of one stripe: homes first, then
// stand-ins, peers without a shard of the stripe before others.
type picker struct {
	s       *Store
	holders []blocks.Holder // the home list, then stand-ins
	homes   int             // how many of holders are the home list

	mu    sync.Mutex
	peer  map[blocks.PeerID]int // shards on it or on their way to it
	vnode map[blocks.VnodeID]int
	dead  map[blocks.PeerID]bool // did not answer in this operation
	full  map[blocks.PeerID]bool // some virtual disk of it was full
	live  map[blocks.PeerID]bool // up whenever this operation looked: who leaves or returns meanwhile is not missed
}

func (s *Store) newPicker(holders []blocks.Holder, shards int) *picker {
	p := &picker{s: s, holders: holders, homes: min(shards, len(holders)), live: map[blocks.PeerID]bool{}, peer: map[blocks.PeerID]int{},
		vnode: map[blocks.VnodeID]int{}, dead: map[blocks.PeerID]bool{}, full: map[blocks.PeerID]bool{}}
	for _, h := range holders {
		if _, seen := p.live[h.Peer()]; !seen {
			p.live[h.Peer()] = s.up(h)
		}
	}
	return p
}

// up looks whether a holder is up.
func (p *picker) up(h blocks.Holder) bool {
	up := p.s.up(h)
	if !up {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.live[h.Peer()] = false
	}
	return up
}

// home is where shard i belongs. With fewer virtual nodes than shards, several
// shards have the same home.
func (p *picker) home(i int) blocks.Holder { return p.holders[i%p.homes] }

func (p *picker) claim(h blocks.Holder) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.peer[h.Peer()]++
	p.vnode[h.Vnode()]++
}

// next claims the best holder that is not in tried; nil if there is none.
func (p *picker) next(tried []blocks.VnodeID) blocks.Holder {
	up := make([]bool, len(p.holders))
	for i, h := range p.holders {
		up[i] = p.up(h)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	best, bestCost := blocks.Holder(nil), [3]int{}
	for i, h := range p.holders {
		if p.dead[h.Peer()] || slices.Contains(tried, h.Vnode()) {
			continue
		}
		cost := [3]int{0, p.peer[h.Peer()], p.vnode[h.Vnode()]}
		if !up[i] {
			cost[0] = 1
		}
		if best == nil || slices.Compare(cost[:], bestCost[:]) < 0 {
			best, bestCost = h, cost
		}
	}
	if best != nil {
		p.peer[best.Peer()]++
		p.vnode[best.Vnode()]++
	}
	return best
}

// fail gives a claim back.
func (p *picker) fail(h blocks.Holder, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.peer[h.Peer()]--
	p.vnode[h.Vnode()]--
	if errors.Is(err, blocks.ErrNoSpace) {
		p.full[h.Peer()] = true
	} else {
		p.dead[h.Peer()] = true
	}
}

// usable counts the live peers that have or could have taken a shard.
func (p *picker) usable() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for id, live := range p.live {
		if live && (p.peer[id] > 0 || !p.dead[id] && !p.full[id]) {
			n++
		}
	}
	return n
}

// parcel is a shard to be put somewhere.
type parcel struct {
	blocks.Shard
	buf *buffer // holds Data
	to  blocks.Holder
}

// put stores one parcel, at its holder or at the next best.
func (p *picker) put(ctx context.Context, c parcel) (blocks.Placed, error) {
	var tried []blocks.VnodeID
	var errs []error
	for h := c.to; h != nil && len(tried) < maxTries; h = p.next(tried) {
		tried = append(tried, h.Vnode())
		c.buf.hold()
		epoch, err := call(ctx, p.s, h, p.s.cfg.PutTimeout, func(ctx context.Context) (blocks.Epoch, error) {
			defer c.buf.release()
			return h.Put(ctx, c.Shard)
		})
		if err == nil {
			return blocks.Placed{Index: c.Index, Holder: h, Epoch: epoch}, nil
		}
		p.fail(h, err)
		errs = append(errs, fmt.Errorf("peer %s: %w", h.Peer().Short(), err))
		if ctx.Err() != nil {
			break
		}
	}
	if len(errs) == 0 {
		return blocks.Placed{}, fmt.Errorf("%w: no holder for shard %d", blocks.ErrUnavailable, c.Index)
	}
	return blocks.Placed{}, fmt.Errorf("put shard %d: %w", c.Index, several(errs))
}

// putAll stores the parcels in parallel: each at its home if that is up.
// It returns what has been placed, and the errors of the rest.
func (p *picker) putAll(ctx context.Context, parcels []parcel) ([]blocks.Placed, error) {
	for i := range parcels { // all homes are claimed before any stand-in
		home := p.home(int(parcels[i].Index))
		parcels[i].Home = home.Vnode()
		if p.up(home) {
			parcels[i].to = home
			p.claim(home)
		}
	}
	placed := make([]blocks.Placed, len(parcels))
	errs := make([]error, len(parcels))
	var wg sync.WaitGroup
	for i, c := range parcels {
		if c.to == nil {
			c.to = p.next(nil)
		}
		wg.Go(func() { placed[i], errs[i] = p.put(ctx, c) })
	}
	wg.Wait()
	good := placed[:0]
	for i, pl := range placed {
		if errs[i] == nil {
			good = append(good, pl)
		}
	}
	return good, several(errs)
}

// enough reports whether shards on these holders make a stripe durable: on as many
// distinct peers as it has shards, or as live peers exist, and never fewer than k+1 shards
// where more than one peer is alive and there is parity.
func (p *picker) enough(g Geometry, placed []blocks.Placed) error {
	peers, shards := map[blocks.PeerID]bool{}, map[uint8]bool{}
	for _, pl := range placed {
		peers[pl.Holder.Peer()] = true
		shards[pl.Index] = true
	}
	usable := p.usable()
	least := g.K
	if usable > 1 && g.M > 0 {
		least++
	}
	if len(shards) < least || len(peers) < min(g.Shards(), usable) {
		return fmt.Errorf("%w: %d shards of %d+%d on %d of %d live peers", blocks.ErrUnavailable, len(shards), g.K, g.M, len(peers), usable)
	}
	return nil
}
