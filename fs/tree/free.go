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

// leaseToFree takes the lease of a container in which this mount has left something to free, or which it only reads, unless another
// mount has it alone: that one does the same.
func (t *Tree) leaseToFree(ctx context.Context, c *container) error {
	c.mu.Lock()
	c.owes = c.owes || c.shared && c.st != nil && c.st.frees() // who left it may have died, and readers alone would leave it for ever
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
	c.owes = err == nil && lease.Holder.IsZero()
	want = c.owes
	c.mu.Unlock()
	if !want {
		return nil
	}
	if err := c.acquire(ctx); err != nil {
		return err
	}
	defer c.release()
	if err := t.validate(ctx, c); err != nil {
		return err
	}
	return t.takeLease(ctx, c, blocks.LeaseAcquire)
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

// dispose ends a register that nothing names any more: a transaction when all its parts are resolved, a directory, a promoted
// inode or a map when what it alone has is deleted: registers, then stripes. ok: it has ended.
func (t *Tree) dispose(ctx context.Context, id blocks.RegisterID) (ok bool, err error) {
	c, err := t.cont(id)
	if err != nil {
		return false, err
	}
	if err := t.redirect(ctx, c, false); err != nil {
		return false, err
	}
	r, st, err := t.lastState(ctx, c)
	if err != nil || st == nil {
		return err == nil, err
	}
	below := map[blocks.RegisterID]bool{}
	if st.Kind == KindTxn {
		err = t.resolved(ctx, st)
	} else if ok = t.unused(ctx, st); ok {
		ok, err = t.disposeBelow(ctx, st, below)
	} else {
		return false, nil
	}
	if err != nil || st.Kind != KindTxn && !ok {
		return false, err
	}
	if err := c.acquire(ctx); err != nil {
		return false, err
	}
	defer c.release()
	if st.Kind != KindTxn { // it may have changed while registers below were deleted
		if r, st, err = t.lastState(ctx, c); err != nil || st == nil {
			return err == nil, err
		}
		if ready, err := t.disposable(ctx, id, st, below); !ready || err != nil {
			return false, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, t.cfg.CommitTimeout)
	defer cancel()
	seq := max(uint64(t.j.number()), r.Applied[t.cfg.Mount]+1)
	_, err = t.propose(ctx, id, blocks.Change{Base: r.Version, Origin: t.cfg.Mount, Seq: seq, Delete: true})
	if err != nil && !errors.Is(err, blocks.ErrNotFound) {
		return false, err
	}
	t.drop(c)
	return true, nil
}

// lastState reads a container that is to be disposed of. A nil state: it has ended.
func (t *Tree) lastState(ctx context.Context, c *container) (blocks.Register, *State, error) {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.CommitTimeout)
	defer cancel()
	r, err := t.regs.Read(ctx, c.id, 0)
	if errors.Is(err, blocks.ErrNotFound) || err == nil && r.Deleted {
		t.drop(c)
		return r, nil, nil
	}
	if err != nil {
		return r, nil, fmt.Errorf("dispose of register %s: %w", c.id.Short(), err)
	}
	st, err := c.stateOf(r)
	return r, st, err
}

// resolved resolves what is left of a transaction.
func (t *Tree) resolved(ctx context.Context, txn *State) error {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.CommitTimeout)
	defer cancel()
	for p := range txn.refs {
		err := t.read(ctx, p, func(*container, *State) error { return nil }) // a read resolves
		if err != nil && !errors.Is(err, syscall.ENOENT) {
			return err
		}
	}
	return nil
}

// unused reports whether a container has come to its end. It has not while an inode in it is open somewhere.
func (t *Tree) unused(ctx context.Context, st *State) bool {
	if st.intent != nil || t.anyKeeps(ctx, st) {
		return false
	}
	for _, n := range st.inodes {
		if n.Nlink > 0 || t.opened(n.Ino) {
			return false
		}
	}
	return true
}

// disposeBelow disposes of the registers that only st knows, and notes which have ended. What belongs to it by a
// transaction that was left is resolved by that, so its own busy must not be held.
func (t *Tree) disposeBelow(ctx context.Context, st *State, ended map[blocks.RegisterID]bool) (bool, error) {
	for _, id := range st.below() {
		ok, err := t.dispose(ctx, id)
		if !ok || err != nil {
			return false, err
		}
		ended[id] = true
	}
	return true, nil
}

// below lists the registers that only st knows, once it has come to its end.
func (s *State) below() []blocks.RegisterID {
	ids := sortedIDs(s.freeRegs, registerID)
	for _, m := range s.maps {
		ids = append(ids, m.ID)
	}
	return ids
}

// disposable deletes the stripes of a container that has come to its end, and all registers below with it.
func (t *Tree) disposable(ctx context.Context, id blocks.RegisterID, st *State, ended map[blocks.RegisterID]bool) (bool, error) {
	if !t.unused(ctx, st) || slices.ContainsFunc(st.below(), func(id blocks.RegisterID) bool { return !ended[id] }) {
		return false, nil
	}
	for ino, h := range st.left {
		t.leave(ino, id, h.to)
	}
	ids := sortedIDs(st.free, stripeID)
	add := func(n *Inode) {
		for i := range n.Extents {
			ids = append(ids, n.Extents[i].Stripe.ID)
		}
	}
	for _, n := range st.inodes {
		add(n)
	}
	add(&st.Self) // a map's
	if len(ids) > 0 && t.cfg.DeleteStripe == nil {
		return false, nil
	}
	slices.SortFunc(ids, func(a, b blocks.StripeID) int { return a.Compare(b.ID) })
	for batch := range slices.Chunk(slices.Compact(ids), freeBatch) {
		if _, err := t.deleteStripes(ctx, batch); err != nil {
			return false, err
		}
	}
	return true, nil
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
