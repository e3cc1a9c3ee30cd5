package blocks

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
)

const (
	// indexBatch bounds the changes given to the index at once.
	indexBatch = 2048
	// syncParallel bounds the disk files synced at the same time; the host's file system
	// makes one commit of what comes together.
	syncParallel = 8
)

// syncState is the group commit of a drive: at most one sync runs; who comes
// meanwhile waits for the next one, which serves all of them. No timer. The Drive's
// mutex guards it.
type syncState struct {
	last    uint64        // number of the newest change
	durable uint64        // all changes up to this one are durable
	wanted  uint64        // somebody waits for this one
	running bool          // a goroutine syncs
	round   chan struct{} // closed when the running sync ends
	err     error         // the first failure; nothing is written any more
}

// sync makes all durable that was put under the epoch.
func (d *drive) sync(ctx context.Context, epoch Epoch) error {
	if err := d.gate.enter(); err != nil {
		return err
	}
	defer d.gate.leave()
	if epoch != d.epoch {
		return fmt.Errorf("%w: drive %s was reopened after the put", ErrLost, d.conf.Dir)
	}
	d.mu.Lock()
	last := d.syncs.last
	d.mu.Unlock()
	return d.waitSync(ctx, last)
}

// waitSync returns when change n and all before it are durable.
func (d *drive) waitSync(ctx context.Context, n uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.syncs.err == nil && d.syncs.durable < n {
		d.syncs.wanted = max(d.syncs.wanted, n)
		d.startSync()
		round := d.syncs.round
		d.mu.Unlock()
		select {
		case <-round:
			d.mu.Lock()
		case <-ctx.Done():
			d.mu.Lock()
			return fmt.Errorf("sync drive %s: %w", d.conf.Dir, ctx.Err())
		}
	}
	return d.syncs.err
}

// startSync begins a sync if none is running. d.mu is held. The goroutine ends when nobody
// waits any more; close waits for it.
func (d *drive) startSync() {
	if d.syncs.running || d.syncs.err != nil {
		return
	}
	d.syncs.running = true
	d.syncs.round = make(chan struct{})
	d.syncer.Go(d.runSyncs)
}

// runSyncs syncs until what is wanted is durable.
func (d *drive) runSyncs() {
	for more := true; more; {
		d.mu.Lock()
		list, last := d.pending.take(), d.syncs.last
		dirty := d.dirty
		d.dirty = map[*disk]bool{}
		d.mu.Unlock()

		err := d.syncRound(dirty, list)

		var free []garbage
		d.mu.Lock()
		if err != nil {
			d.syncs.err = fmt.Errorf("%w: drive %s writes no more since a sync failed: %w", ErrUnavailable, d.conf.Dir, err)
			d.log.Error().Err(err).Str("drive", d.conf.Dir).Msg("sync failed: the drive is read-only until it is reopened")
		} else {
			d.syncs.durable = last
			for _, c := range list {
				d.pending.remove(c)
				free = append(free, c.garbage...)
			}
		}
		more = err == nil && d.syncs.durable < d.syncs.wanted
		close(d.syncs.round)
		if more {
			d.syncs.round = make(chan struct{})
		} else {
			d.syncs.running = false
		}
		d.mu.Unlock()
		d.eras.retire(free)
	}
}

// syncRound makes payloads durable and then the index's entries.
func (d *drive) syncRound(dirty map[*disk]bool, list []*change) error {
	var files errgroup.Group
	files.SetLimit(syncParallel)
	for vd := range dirty {
		files.Go(func() error {
			if err := vd.file.Sync(); err != nil {
				return fmt.Errorf("sync disk %s: %w", vd.path, err)
			}
			return nil
		})
	}
	if err := files.Wait(); err != nil {
		return err
	}
	for len(list) > 0 {
		n := min(len(list), indexBatch)
		batch := make([]IndexChange, n)
		for i, c := range list[:n] {
			batch[i].Key = c.key.encode()
			if batch[i].Delete = c.h == nil; !batch[i].Delete {
				batch[i].Value = c.h.append(nil)
			}
		}
		list = list[n:]
		if err := d.index.Apply(batch, len(list) == 0); err != nil {
			return d.indexFailed(err)
		}
	}
	return nil
}
