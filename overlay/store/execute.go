package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

const (
	// maxStandInTries bounds how many stand-ins are tried for a shard whose home does not take it.
	maxStandInTries = 3
	// busyTries and busyWait bound how often and how soon an order is given again to a peer
	// that is busy with others: together some seconds.
	busyTries = 16
	busyWait  = 20 * time.Millisecond
)

// work does what the scan found, until it is done, the table has changed, or it is
// time to look anew. It returns how many stripes were done and how many failed.
func (r *round) work(ctx context.Context, slice time.Duration) (done, failed int) {
	s := r.s
	r.order()
	until := time.Now().Add(slice)
	var ok, bad atomic.Int64
	var g errgroup.Group
	g.SetLimit(s.cfg.RepairParallel)
	table := s.cfg.Ring.Table()
	for _, j := range append(r.dead, r.jobs...) {
		if now := s.cfg.Ring.Table(); now != table {
			if table = now; now.PlacementHash() != r.table {
				break
			}
		}
		if ctx.Err() != nil || time.Now().After(until) {
			break
		}
		g.Go(func() error {
			if err := s.execute(ctx, &r.view, &j); err != nil {
				bad.Add(1)
				s.cfg.Log.Debug().Err(err).Stringer("stripe", j.st.ref.ID).Msg("stripe not put right yet")
				return nil
			}
			ok.Add(1)
			return nil
		})
	}
	_ = g.Wait()
	return int(ok.Load()), int(bad.Load())
}

// execute does the work for one stripe. What fails leaves everything as readable as it was.
func (s *Service) execute(ctx context.Context, v *view, j *job) error {
	ctx = Background(ctx)
	if j.st.dead {
		return s.deleteEverywhere(ctx, v, &j.st)
	}
	var errs []error
	for _, a := range j.plan.rebuild {
		if err := s.rebuild(ctx, v, &j.st, a); err != nil {
			errs = append(errs, fmt.Errorf("rebuild shard %d: %w", a.index, err))
			continue
		}
		s.status.done(1, 0, 0)
	}
	for _, m := range j.plan.moves {
		size := uint64(m.from.size)
		if m.there {
			size = 0
		}
		if err := s.limit.wait(ctx, int64(size)); err != nil {
			return err
		}
		if err := s.order(ctx, m, j.st.ref.ID); err != nil {
			if errors.Is(err, blocks.ErrNoSpace) {
				s.full.add(m.to.ID)
			}
			errs = append(errs, fmt.Errorf("move shard %d from %s to %s: %w", m.from.index, m.from.peer.Short(), m.to.Peer.Short(), err))
			continue
		}
		s.status.done(0, 1, size)
	}
	return errors.Join(errs...)
}

// order has a copy moved by the peer that holds it, and waits for its turn if that is busy.
func (s *Service) order(ctx context.Context, m move, stripe blocks.StripeID) error {
	for try := 0; ; try++ {
		err := s.orderOnce(ctx, m, stripe)
		if !errors.Is(err, blocks.ErrBusy) || try == busyTries {
			return err
		}
		if err := sleep(ctx, busyWait<<min(try, 4)); err != nil {
			return err
		}
	}
}

func (s *Service) orderOnce(ctx context.Context, m move, stripe blocks.StripeID) error {
	req := &moveRequest{shardName{m.from.vnode, stripe, m.from.index}, m.to.ID, m.there}
	if m.from.peer == s.self {
		ctx, cancel := context.WithTimeout(ctx, s.cfg.CallTimeout)
		defer cancel()
		return s.moveLocal(ctx, req)
	}
	// Not of class Repair: this call makes others of that class and must not starve them.
	return s.ask(ctx, m.from.peer, overlay.Metadata, kindMove, req, nothing{})
}

// rebuild makes one missing shard anew, on its home, or on a stand-in if the home does not take it.
func (s *Service) rebuild(ctx context.Context, v *view, st *stripeState, a assignment) error {
	if s.cfg.Rebuild == nil {
		return fmt.Errorf("%w: this peer cannot rebuild shards", blocks.ErrUnavailable)
	}
	size := int64(0)
	if len(st.copies) > 0 {
		size = int64(st.copies[0].size) * int64(st.ref.K)
	}
	if err := s.limit.wait(ctx, size); err != nil {
		return err
	}
	err := fmt.Errorf("%w: virtual node %s", blocks.ErrNoSpace, a.to.ID.Short())
	if !v.full[a.to.ID] {
		err = s.rebuildOn(ctx, st.ref.ID, a.index, a.to)
	}
	if err == nil || !errors.Is(err, blocks.ErrNoSpace) {
		return err
	}
	s.full.add(a.to.ID)
	tries := 0
	for _, to := range v.table.HomeList(st.ref.ID.ID, int(st.ref.K)+int(st.ref.M)+standIns, v.keepLive) {
		busy := to.ID == a.to.ID || v.full[to.ID] || slices.ContainsFunc(st.copies, func(c copyAt) bool { return c.vnode == to.ID })
		if busy || tries == maxStandInTries {
			continue
		}
		tries++
		if err = s.rebuildOn(ctx, st.ref.ID, a.index, to); err == nil {
			return nil
		}
	}
	return err
}

func (s *Service) rebuildOn(ctx context.Context, stripe blocks.StripeID, index int, to overlay.Vnode) error {
	ctx, cancel := context.WithTimeout(ctx, 2*s.cfg.CallTimeout)
	defer cancel()
	return s.cfg.Rebuild(ctx, stripe, index, &holder{s, to})
}

// deleteEverywhere tells all peers that still have shards of a deleted stripe.
func (s *Service) deleteEverywhere(ctx context.Context, v *view, st *stripeState) error {
	told := map[blocks.PeerID]bool{}
	var errs []error
	for _, c := range st.copies {
		if told[c.peer] {
			continue
		}
		told[c.peer] = true
		errs = append(errs, (&holder{s, overlay.Vnode{ID: c.vnode, Peer: c.peer}}).Delete(ctx, st.ref.ID))
	}
	return errors.Join(errs...)
}
