package parity

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/mutualfs/mutualfs/blocks"
)

// survey is what is known of a stripe that is being repaired.
type survey struct {
	j         job
	head      blocks.Header // what the shards' headers have in common
	g         Geometry
	near      []blocks.Holder // homes, then stand-ins
	found     []Found
	asked     map[blocks.PeerID]bool
	unreached int

	// by shard index
	data    [][]byte
	from    []Found
	good    []bool
	corrupt []bool
	tried   map[shardAt]bool
}

// eachPeer calls f for one holder of each peer, in parallel, and joins the errors.
func (s *Store) eachPeer(holders []blocks.Holder, f func(blocks.Holder) error) error {
	seen := map[blocks.PeerID]bool{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	var errs []error
	for _, h := range holders {
		if seen[h.Peer()] {
			continue
		}
		seen[h.Peer()] = true
		wg.Go(func() {
			if err := f(h); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// ask adds what the peers of holders have, those that were not asked before.
func (s *Store) ask(ctx context.Context, v *survey, holders []blocks.Holder) {
	var ask []blocks.Holder
	for _, h := range holders {
		if !v.asked[h.Peer()] {
			v.asked[h.Peer()] = true
			ask = append(ask, h)
		}
	}
	var mu sync.Mutex
	_ = s.eachPeer(ask, func(h blocks.Holder) error {
		headers, err := s.have(ctx, h, v.j.id)
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			v.unreached++
		}
		for _, hd := range headers {
			v.add(Found{h, hd})
		}
		return nil
	})
}

// add takes note of a copy, unless it is to be ignored or known.
func (v *survey) add(f Found) {
	at := shardAt{int(f.Header.Index), f.Holder.Peer()}
	if f.Header.Stripe != v.j.id || v.j.ignore[at] {
		return
	}
	for _, k := range v.found {
		if k.Header.Index == f.Header.Index && k.Holder.Peer() == f.Holder.Peer() {
			return
		}
	}
	v.found = append(v.found, f)
}

// survey asks who has what of a stripe and settles what the stripe looks like.
func (s *Store) survey(ctx context.Context, j job) (*survey, error) {
	v := &survey{j: j, asked: map[blocks.PeerID]bool{}, tried: map[shardAt]bool{}}
	for _, f := range j.have {
		v.add(f)
	}
	near, err := s.homes(ctx, j.id, s.cfg.K+s.cfg.M)
	if err != nil {
		return nil, err
	}
	v.near = near
	s.ask(ctx, v, near)
	if len(v.found) == 0 {
		if err := s.askEverybody(ctx, v); err != nil {
			return nil, err
		}
	}
	if len(v.found) == 0 {
		if v.unreached > 0 {
			return nil, fmt.Errorf("%w: repair stripe %s: no shard within reach, %d peers did not answer", blocks.ErrUnavailable, j.id.Short(), v.unreached)
		}
		return nil, fmt.Errorf("%w: repair stripe %s: nobody has a shard of it", blocks.ErrNotFound, j.id.Short())
	}
	if err := v.settle(); err != nil {
		return nil, err
	}
	n := v.g.Shards()
	v.data, v.from = make([][]byte, n), make([]Found, n)
	v.good, v.corrupt = make([]bool, n), make([]bool, n)
	if n > s.cfg.K+s.cfg.M { // made when the ring had more shards
		if v.near, err = s.homes(ctx, j.id, n); err != nil {
			return nil, err
		}
		s.ask(ctx, v, v.near)
	}
	return v, nil
}

func (s *Store) askEverybody(ctx context.Context, v *survey) error {
	all, err := s.cfg.Placer.Search(ctx, v.j.id)
	if err != nil {
		return fmt.Errorf("search for stripe %s: %w", v.j.id.Short(), classed(err))
	}
	s.ask(ctx, v, all)
	return nil
}

// common is what the headers of a stripe's shards agree on.
func common(h blocks.Header) blocks.Header {
	h.Index, h.Home, h.Written = 0, blocks.VnodeID{}, 0
	return h
}

// valid reports whether a header can be true at all.
func valid(h blocks.Header) bool {
	g, err := GeometryOf(h.Ref())
	return err == nil && int(h.Index) < g.Shards() && int(h.Size) == g.ShardSize() && int(h.Unit) == g.Sealed()
}

// settle finds the header on which most shards agree.
func (v *survey) settle() error {
	votes := map[blocks.Header]int{}
	best := 0
	for _, f := range v.found {
		if !valid(f.Header) {
			continue
		}
		c := common(f.Header)
		votes[c]++
		if votes[c] > best {
			best, v.head = votes[c], f.Header
		}
	}
	if best == 0 {
		return fmt.Errorf("%w: repair stripe %s: no shard has a valid header", blocks.ErrCorrupt, v.j.id.Short())
	}
	var err error
	v.g, err = GeometryOf(v.head.Ref())
	return err
}

// shard makes a shard of the stripe.
func (v *survey) shard(i int, data []byte) blocks.Shard {
	h := v.head
	h.Index = uint8(i)
	h.Home = blocks.VnodeID{}
	return blocks.Shard{Header: h, Data: data}
}

func (v *survey) corruptShards() []int {
	var list []int
	for i, c := range v.corrupt {
		if c {
			list = append(list, i)
		}
	}
	return list
}

// loadEnough reads all shards that were found, and looks further if they are fewer than k.
func (s *Store) loadEnough(ctx context.Context, v *survey) error {
	if s.load(ctx, v) >= v.g.K {
		return nil
	}
	if err := s.askEverybody(ctx, v); err != nil {
		return err
	}
	n := s.load(ctx, v)
	if n >= v.g.K {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("repair stripe %s: %w", v.j.id.Short(), classed(err))
	}
	if v.unreached > 0 {
		return fmt.Errorf("%w: repair stripe %s: %d good shards of %d+%d within reach", blocks.ErrUnavailable, v.j.id.Short(), n, v.g.K, v.g.M)
	}
	return fmt.Errorf("%w: stripe %s lost: %d good shards of %d+%d left on all peers", blocks.ErrCorrupt, v.j.id.Short(), n, v.g.K, v.g.M)
}

// load reads a copy of every shard, and further copies of those whose first are
// bad; it returns how many shards there are now.
func (s *Store) load(ctx context.Context, v *survey) int {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range v.g.Shards() {
		var copies []Found
		for _, f := range v.found {
			if int(f.Header.Index) == i && common(f.Header) == common(v.head) && v.data[i] == nil && !v.tried[shardAt{i, f.Holder.Peer()}] {
				copies = append(copies, f)
				v.tried[shardAt{i, f.Holder.Peer()}] = true
			}
		}
		if len(copies) == 0 {
			continue
		}
		home := v.near[i%min(v.g.Shards(), len(v.near))].Peer()
		slices.SortStableFunc(copies, func(a, b Found) int { return rank(a, home) - rank(b, home) })
		wg.Go(func() {
			data, from, corrupt, unreached := s.loadShard(ctx, v, i, copies)
			mu.Lock()
			defer mu.Unlock()
			v.data[i], v.from[i], v.good[i] = data, from, data != nil
			v.corrupt[i] = v.corrupt[i] || corrupt
			v.unreached += unreached
		})
	}
	wg.Wait()
	n := 0
	for _, ok := range v.good {
		if ok {
			n++
		}
	}
	return n
}

// rank orders copies: at home, up, other.
func rank(f Found, home blocks.PeerID) int {
	switch {
	case f.Holder.Peer() == home && f.Holder.Up():
		return 0
	case f.Holder.Up():
		return 1
	}
	return 2
}

func (s *Store) loadShard(ctx context.Context, v *survey, i int, copies []Found) (data []byte, from Found, corrupt bool, unreached int) {
	whole := segment{i, 0, v.g.Rows}
	for _, f := range copies {
		sh, err := call(ctx, s, f.Holder, s.cfg.GetTimeout, func(ctx context.Context) (blocks.Shard, error) {
			return f.Holder.Get(ctx, v.j.id, i, 0, 0)
		})
		switch {
		case err == nil && v.g.matches(sh, v.head.Ref(), whole):
			return sh.Data, f, corrupt, unreached
		case err == nil || errors.Is(err, blocks.ErrCorrupt):
			corrupt = true
		case !errors.Is(err, blocks.ErrNotFound):
			unreached++
		}
	}
	return nil, Found{}, corrupt, unreached
}
