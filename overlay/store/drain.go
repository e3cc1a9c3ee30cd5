package store

import (
	"context"
	"fmt"
	"slices"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

// drainPasses bounds how often Drain goes through what is left.
const drainPasses = 4

// Drain moves all shards of this peer to others, for it to leave the ring; from
// its beginning on the peer takes no shards (ErrNoSpace) until Drain fails. progress may be nil.
// ErrUnavailable: some shards could not be moved. ErrNoSpace: the others are full.
func (s *Service) Drain(ctx context.Context, progress func(done, total uint64)) error {
	if s.cfg.Local == nil {
		return nil
	}
	s.draining.Store(true)
	var done, left uint64
	var lastErr error
	for range drainPasses {
		left = 0
		for arc := range arcCount {
			names, err := s.localNames(arc)
			if err != nil {
				s.draining.Store(false)
				return err
			}
			for i, n := range names {
				if ctx.Err() != nil {
					s.draining.Store(false)
					return context.Cause(ctx)
				}
				gone, err := s.drainShard(Background(ctx), n)
				if !gone {
					left++
				}
				if err != nil {
					lastErr = err
				}
				if !gone {
					continue
				}
				if done++; progress != nil {
					progress(done, done+left+uint64(len(names)-i-1))
				}
			}
		}
		if left == 0 {
			return nil
		}
		if err := sleep(ctx, grace); err != nil {
			s.draining.Store(false)
			return err
		}
	}
	s.draining.Store(false)
	return fmt.Errorf("%d shards could not be moved away, the last one: %w", left, lastErr)
}

func (s *Service) localNames(arc int) ([]shardName, error) {
	from, to := arcRange(arc)
	var names []shardName
	err := s.scanLocal(from, to, func(l blocks.Location) bool {
		if !s.isDamaged(&l) {
			names = append(names, nameOf(&l))
		}
		return len(names) < maxArcBlocks
	})
	return names, err
}

// drainShard drops one shard if another peer has a copy; else it copies it to the first
// virtual node of another peer that has none of its stripe, for the next pass to drop it.
func (s *Service) drainShard(ctx context.Context, n shardName) (gone bool, err error) {
	if dead, err := s.notes.dead(n.stripe); err != nil || dead {
		if err == nil {
			err = s.cfg.Local.Delete(n.stripe)
		}
		return err == nil, err
	}
	st, v, _ := s.survey(ctx, n.stripe, false)
	if len(st.copies) > 0 {
		if err := s.limit.wait(ctx, int64(st.copies[0].size)); err != nil {
			return false, err
		}
	}
	for _, c := range st.copies {
		if c.index == n.index && c.peer != s.self {
			err := s.moveLocal(ctx, &moveRequest{n, c.vnode, true})
			return err == nil, err
		}
	}
	others := v.table.HomeList(n.stripe.ID, 2*(s.cfg.K+s.cfg.M)+standIns, func(p overlay.PeerInfo) bool {
		return p.ID != s.self && v.live[p.ID]
	})
	empty := func(to overlay.Vnode) bool {
		return !slices.ContainsFunc(st.copies, func(c copyAt) bool { return c.vnode == to.ID })
	}
	slices.SortStableFunc(others, func(a, b overlay.Vnode) int {
		switch {
		case empty(a) == empty(b):
			return 0
		case empty(a):
			return -1
		}
		return 1
	})
	err = fmt.Errorf("%w: no other storage peer is up", blocks.ErrUnavailable)
	for i := 0; i < len(others) && i < maxStandInTries && err != nil; i++ {
		err = s.moveLocal(ctx, &moveRequest{n, others[i].ID, false})
	}
	return false, err
}
