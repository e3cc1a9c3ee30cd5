package parity

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/mutualfs/mutualfs/blocks"
)

// syncKey is what one Sync covers.
type syncKey struct {
	peer  blocks.PeerID
	drive int
	epoch blocks.Epoch
}

func keyOf(pl blocks.Placed) syncKey {
	return syncKey{pl.Holder.Peer(), pl.Holder.Drive(), pl.Epoch}
}

// Sync makes the stripes of the receipts durable: one Sync for each drive and epoch,
// in parallel. Shards that could not be synced are rebuilt on live holders
// and synced there. lost lists the indexes of receipts whose stripes are not durable: the
// caller writes their content again. With an error (ctx has ended, or the Store is shut down) nothing is
// known to be durable.
func (s *Store) Sync(ctx context.Context, receipts []blocks.Receipt) (lost []int, err error) {
	var all []blocks.Placed
	for _, r := range receipts {
		all = append(all, r.Placed...)
	}
	failed := s.syncAll(ctx, all)
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("sync %d stripes: %w", len(receipts), classed(err))
	}
	if s.isClosed() {
		return nil, fmt.Errorf("sync %d stripes: %w", len(receipts), errClosed())
	}
	if len(failed) == 0 {
		return nil, nil
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, s.cfg.MaxRepairs)
	for i, r := range receipts {
		if !slices.ContainsFunc(r.Placed, func(pl blocks.Placed) bool { return failed[keyOf(pl)] != nil }) {
			continue
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			continue // wait for those under way, then say so
		}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := s.restore(ctx, r, failed); err != nil {
				s.cfg.Log.Warn().Stringer("stripe", r.Ref.ID).Err(err).Msg("stripe lost before it was durable; it is written again")
				mu.Lock()
				lost = append(lost, i)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("sync %d stripes: %w", len(receipts), classed(err))
	}
	slices.Sort(lost)
	return lost, nil
}

// syncAll syncs each drive and epoch once and returns those that failed.
func (s *Store) syncAll(ctx context.Context, placed []blocks.Placed) map[syncKey]error {
	var mu sync.Mutex
	var wg sync.WaitGroup
	failed := map[syncKey]error{}
	seen := map[syncKey]bool{}
	for _, pl := range placed {
		key := keyOf(pl)
		if seen[key] {
			continue
		}
		seen[key] = true
		limit := s.cfg.SyncTimeout
		if !s.up(pl.Holder) { // it has just let another call time out: a chance, not all the patience once more
			limit = min(limit, s.cfg.HaveTimeout)
		}
		wg.Go(func() {
			_, err := call(ctx, s, pl.Holder, limit, func(ctx context.Context) (struct{}, error) {
				return struct{}{}, pl.Holder.Sync(ctx, key.epoch)
			})
			if err != nil {
				mu.Lock()
				failed[key] = fmt.Errorf("sync drive %d of peer %s: %w", key.drive, key.peer.Short(), err)
				mu.Unlock()
				s.cfg.Log.Debug().Stringer("peer", key.peer).Int("drive", key.drive).Err(err).Msg("sync failed")
			}
		})
	}
	wg.Wait()
	return failed
}

// restore puts right a stripe some of whose shards could not be synced.
func (s *Store) restore(ctx context.Context, r blocks.Receipt, failed map[syncKey]error) error {
	j := job{id: r.Ref.ID, ignore: map[shardAt]bool{}}
	var durable []blocks.Placed
	for _, pl := range r.Placed {
		if failed[keyOf(pl)] != nil {
			j.ignore[shardAt{int(pl.Index), pl.Holder.Peer()}] = true
		} else {
			durable = append(durable, pl)
		}
	}
	g, err := GeometryOf(r.Ref)
	if err != nil {
		return err
	}
	if len(durable) < g.K {
		return fmt.Errorf("%w: %d of %d+%d shards durable", blocks.ErrLost, len(durable), g.K, g.M)
	}
	report, p, repairErr := s.repair(ctx, j)
	if p == nil {
		return repairErr
	}
	if err := p.enough(g, append(durable, report.Rebuilt...)); err != nil {
		return fmt.Errorf("%w (%v)", err, repairErr)
	}
	return nil
}
