package tree

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mutualfs/mutualfs/blocks"
)

const (
	stubAge   = time.Minute // a directory that came and went without a register is remembered so long
	freeBatch = 1024        // entries of one container that are cleared by one operation
)

func (t *Tree) wakeFreer() {
	select {
	case t.freeNow <- struct{}{}:
	default:
	}
}

// freer ends notes of what is open no more, deletes what is on committed free lists, and clears the lists, until ctx ends.
func (t *Tree) freer(ctx context.Context) {
	tick := time.NewTicker(t.cfg.FreeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.freeNow:
		case <-tick.C:
		}
		t.keepSession(ctx)
		t.endNotes(ctx, false)
		t.emptyTrash(ctx)
		for _, c := range t.containers() {
			if err := errors.Join(t.endNotesOfTheDead(ctx, c), t.freeContainer(ctx, c)); err != nil && ctx.Err() == nil {
				t.log.Debug().Err(err).Str("container", c.id.Short()).Msg("delete what is free")
			}
		}
	}
}

// maxTosses bounds how often it is tried to end a transaction's register that no free list has.
const maxTosses = 20

// toss has the freer end the register of a transaction that was aborted.
func (t *Tree) toss(txn blocks.RegisterID) {
	t.mu.Lock()
	t.trash[txn] = 0
	t.mu.Unlock()
	t.wakeFreer()
}

// emptyTrash ends what was tossed. A transaction that nobody knows, because it was never made, is tried in vain.
func (t *Tree) emptyTrash(ctx context.Context) {
	t.mu.RLock()
	todo := slices.Collect(maps.Keys(t.trash))
	t.mu.RUnlock()
	for _, id := range todo {
		ok, err := t.dispose(ctx, id)
		t.mu.Lock()
		if t.trash[id]++; ok || t.trash[id] == maxTosses {
			delete(t.trash, id)
		}
		t.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			t.log.Debug().Err(err).Str("transaction", id.Short()).Msg("end an aborted transaction")
		}
	}
}

// freeContainer deletes what the agreed state of a container leased here has on its free lists.
func (t *Tree) freeContainer(ctx context.Context, c *container) error {
	if err := t.leaseToFree(ctx, c); err != nil {
		return err
	}
	c.mu.Lock()
	var stripes []blocks.StripeID
	var regs []blocks.RegisterID
	// With nothing pending, what memory has is agreed.
	if len(c.ops) == 0 && !c.flushing && !c.removed && t.fast(c) && !c.st.Dead && c.lease.Holder == t.cfg.Mount {
		if t.cfg.DeleteStripe != nil {
			for id := range c.st.free {
				if stripes = append(stripes, id); len(stripes) == freeBatch {
					break
				}
			}
		}
		for id := range c.st.freeRegs {
			if regs = append(regs, id); len(regs) == freeBatch {
				break
			}
		}
	} else if c.st != nil && len(c.st.free)+len(c.st.freeRegs) > 0 && len(c.ops) > 0 {
		defer time.AfterFunc(t.cfg.FlushAge, t.wakeFreer) // come back when it is committed
	}
	c.mu.Unlock()
	if len(stripes)+len(regs) == 0 {
		return nil
	}
	done, err := t.deleteStripes(ctx, stripes)
	var ended []blocks.RegisterID
	for _, id := range regs {
		ok, e := t.dispose(ctx, id)
		if e != nil {
			err = errors.Join(err, e)
		} else if ok {
			ended = append(ended, id)
		}
	}
	if len(done)+len(ended) == 0 {
		return err
	}
	_, e := t.mutate(ctx, c.id, func(*container, *State) (*Op, error) {
		return &Op{Kind: OpFreeClear, Stripes: done, Regs: ended}, nil
	}, nil)
	return errors.Join(err, e)
}

// frees reports whether the container has something to free.
func (s *State) frees() bool { return len(s.free)+len(s.freeRegs) > 0 }

// leaseToFree takes the lease of a container in which this mount has left something to free, unless another mount
// has it: that one does the same.
func (t *Tree) leaseToFree(ctx context.Context, c *container) error {
	c.mu.Lock()
	want := c.owes && c.st != nil && !c.st.Dead && !c.removed && !t.leased(c) && time.Now().After(c.noLease)
	c.owes = c.owes && !t.leased(c)
	c.mu.Unlock()
	if !want {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, t.cfg.CommitTimeout)
	defer cancel()
	lease, err := t.regs.Lease(ctx, c.id)
	if err != nil && !errors.Is(err, blocks.ErrNotFound) {
		return err
	}
	c.mu.Lock()
	if c.owes = err == nil && lease.Holder.IsZero(); c.owes {
		c.reads, c.readsAt = readsForLease, time.Now()
	}
	want = c.owes
	c.mu.Unlock()
	if !want {
		return nil
	}
	return t.read(ctx, c.id, func(*container, *State) error { return nil })
}

// deleteStripes deletes in parallel and returns those that are gone.
func (t *Tree) deleteStripes(ctx context.Context, ids []blocks.StripeID) ([]blocks.StripeID, error) {
	errs := make([]error, len(ids))
	var g errgroup.Group
	g.SetLimit(t.cfg.FreeParallel)
	for i, id := range ids {
		g.Go(func() error {
			dctx, cancel := context.WithTimeout(ctx, t.cfg.CommitTimeout)
			defer cancel()
			errs[i] = t.cfg.DeleteStripe(dctx, id)
			return nil
		})
	}
	_ = g.Wait() // errors are in errs
	var done []blocks.StripeID
	for i, id := range ids {
		if errs[i] == nil {
			done = append(done, id)
		}
	}
	if len(done) < len(ids) {
		return done, fmt.Errorf("delete stripes, %d of %d failed: %w", len(ids)-len(done), len(ids), errors.Join(errs...))
	}
	return done, nil
}

// dispose ends a register that nothing names any more: a transaction when all its parts are
// resolved, a directory or a promoted inode when its stripes are deleted. ok: it has ended.
func (t *Tree) dispose(ctx context.Context, id blocks.RegisterID) (ok bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.CommitTimeout)
	defer cancel()
	c, err := t.cont(id)
	if err != nil {
		return false, err
	}
	if err := t.redirect(ctx, c, false); err != nil {
		return false, err
	}
	if err := c.acquire(ctx); err != nil {
		return false, err
	}
	defer c.release()
	r, err := t.regs.Read(ctx, id, 0)
	if errors.Is(err, blocks.ErrNotFound) || err == nil && r.Deleted {
		t.drop(c)
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("dispose of register %s: %w", id.Short(), err)
	}
	st, err := c.stateOf(r)
	if err != nil {
		return false, err
	}
	if st.Kind == KindTxn {
		for p := range st.refs {
			err := t.read(ctx, p, func(*container, *State) error { return nil }) // a read resolves
			if err != nil && !errors.Is(err, syscall.ENOENT) {
				return false, err
			}
		}
	} else {
		if ready, err := t.disposable(ctx, id, st); !ready || err != nil {
			return false, err
		}
	}
	seq := max(uint64(t.j.number()), r.Applied[t.cfg.Mount]+1)
	_, err = t.propose(ctx, id, blocks.Change{Base: r.Version, Origin: t.cfg.Mount, Seq: seq, Delete: true})
	if err != nil && !errors.Is(err, blocks.ErrNotFound) {
		return false, err
	}
	t.drop(c)
	return true, nil
}

// disposable deletes the stripes of a container that has come to its end. It has not while
// an inode in it is open somewhere.
func (t *Tree) disposable(ctx context.Context, id blocks.RegisterID, st *State) (bool, error) {
	if st.intent != nil {
		return false, nil
	}
	if t.anyKeeps(ctx, st) {
		return false, nil
	}
	for ino, h := range st.left {
		t.leave(ino, id, h.to)
	}
	var ids []blocks.StripeID
	for id := range st.free {
		ids = append(ids, id)
	}
	for _, n := range st.inodes {
		if n.Nlink > 0 || t.opened(n.Ino) {
			return false, nil
		}
		for i := range n.Extents {
			ids = append(ids, n.Extents[i].Stripe.ID)
		}
	}
	if len(ids) > 0 && t.cfg.DeleteStripe == nil {
		return false, nil
	}
	_, err := t.deleteStripes(ctx, ids)
	return err == nil, err
}

// drop forgets a container that has ended.
func (t *Tree) drop(c *container) {
	c.mu.Lock()
	c.removed, c.st = true, nil
	c.mu.Unlock()
	t.mu.Lock()
	delete(t.conts, c.id)
	t.mu.Unlock()
}

// adoptOrphans has the freer look after what a container that was loaded has to end. mu of c must be held.
func (t *Tree) adoptOrphans(c *container) {
	me := t.sessionID()
	c.st.keepers(func(ino Ino, keepers []blocks.RegisterID) {
		mine := slices.Contains(keepers, me)
		if h := c.st.left[ino]; h != nil {
			if mine {
				t.leave(ino, c.id, h.to)
			}
			return
		}
		if c.st.inodes[ino].Nlink == 0 {
			t.wakeFreer()
		}
		if !mine {
			return
		}
		t.mu.Lock()
		if x := t.at(ino, c.id); x.opens == 0 {
			x.kept = true
			t.leaving[noteAt{ino: ino}] = time.Now()
		}
		t.mu.Unlock()
	})
	if c.st.frees() {
		t.wakeFreer()
	}
}

// evict drops the least recently used containers beyond CacheBytes. A dropped container keeps its
// lease and is read again when it is needed.
func (t *Tree) evict() {
	type item struct {
		c    *container
		used time.Time
		size int64
	}
	var all []item
	var total int64
	for _, c := range t.containers() {
		c.mu.Lock()
		if c.removed && c.st == nil && len(c.ops)+len(c.astray) == 0 && !c.flushing && time.Since(c.used) > stubAge {
			t.mu.Lock()
			delete(t.conts, c.id)
			t.mu.Unlock()
		}
		if c.st != nil && len(c.ops) == 0 && !c.flushing && !c.unborn && !c.frozen && !c.closed {
			it := item{c, c.used, 512 + 3*int64(c.snapLen+c.tailLen)}
			all, total = append(all, it), total+it.size
		}
		c.mu.Unlock()
	}
	if total <= t.cfg.CacheBytes {
		return
	}
	slices.SortFunc(all, func(a, b item) int { return a.used.Compare(b.used) })
	for _, it := range all {
		if total <= t.cfg.CacheBytes {
			return
		}
		t.unload(it.c)
		total -= it.size
	}
}

// unload drops a container's state if nobody uses it.
func (t *Tree) unload(c *container) {
	select {
	case c.busy <- struct{}{}:
		defer c.release()
	default:
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.st == nil || len(c.ops) > 0 || c.flushing || c.unborn {
		return
	}
	t.mu.Lock()
	for ino := range c.st.inodes {
		if n := t.nodes[ino]; n != nil && n.idle() {
			delete(t.nodes, ino)
		}
	}
	for _, e := range c.st.entries {
		if n := t.nodes[e.Ino]; n != nil && n.idle() && n.home == e.Child {
			delete(t.nodes, e.Ino)
		}
	}
	t.mu.Unlock()
	if c.st.Kind == KindPage {
		c.sum = c.st.sum()
	}
	c.st = nil
}
