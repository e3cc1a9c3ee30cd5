package tree

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mutualfs/mutualfs/blocks"
)

// kick wakes the flusher.
func (t *Tree) kick() {
	select {
	case t.flushNow <- struct{}{}:
	default:
	}
}

// flusher commits what is old enough, for ever.
func (t *Tree) flusher(ctx context.Context) {
	tick := time.NewTicker(max(t.cfg.FlushAge/4, time.Millisecond))
	defer tick.Stop()
	var lastTrim time.Time
	lastAtimes := time.Now()
	var before Seq
	var g errgroup.Group
	g.SetLimit(t.cfg.FlushParallel)
	defer func() { _ = g.Wait() }() // errors were logged
	for {
		all := false
		select {
		case <-ctx.Done():
			return
		case <-t.flushNow:
			all = true
		case <-tick.C:
		}
		if time.Since(lastAtimes) > t.cfg.AtimeAge {
			t.flushAtimes()
			lastAtimes = time.Now()
		}
		t.flushDue(ctx, &g, all)
		if all || time.Since(lastTrim) > t.cfg.FlushAge {
			before, lastTrim = t.trimJournal(before), time.Now()
			t.evict()
		}
	}
}

// flushDue begins to commit the containers whose oldest pending operation has the age, or all; one that cannot
// be reached does not hold up the others. Errors are logged: a later round tries again.
func (t *Tree) flushDue(ctx context.Context, g *errgroup.Group, all bool) {
	for _, c := range t.dirty() {
		c.mu.Lock()
		due := !c.queued && (all || time.Since(c.since) >= t.cfg.FlushAge || len(c.ops) >= t.cfg.FlushOps)
		c.queued = c.queued || due
		c.mu.Unlock()
		if due && !g.TryGo(func() error { t.flushInBackground(ctx, c); return nil }) {
			c.mu.Lock()
			c.queued = false
			c.mu.Unlock()
			return // all hands are busy
		}
	}
}

func (t *Tree) flushInBackground(ctx context.Context, c *container) {
	cctx, cancel := context.WithTimeout(ctx, t.cfg.CommitTimeout)
	defer cancel()
	err := t.flush(cctx, c, false)
	if err != nil && ctx.Err() == nil {
		t.log.Warn().Err(err).Str("container", c.id.Short()).Msg("commit failed; it will be repeated")
	}
	c.mu.Lock()
	c.queued = false
	c.mu.Unlock()
	if err == nil {
		t.kickIfFull()
	}
}

// kickIfFull lets the flusher trim a journal that writers wait for.
func (t *Tree) kickIfFull() {
	if t.j.full() != nil {
		t.kick()
	}
}

func (t *Tree) dirty() []*container {
	var d []*container
	for _, c := range t.containers() {
		c.mu.Lock()
		if len(c.ops)+len(c.astray) > 0 || c.unborn && !c.removed {
			d = append(d, c)
		}
		c.mu.Unlock()
	}
	return d
}

// containers lists all. The order of locks is container, then tree.
func (t *Tree) containers() []*container {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return slices.Collect(maps.Values(t.conts))
}

// trimJournal removes what is committed. Data records younger than the call before are
// not touched: who wrote them may not have counted them yet.
func (t *Tree) trimJournal(before Seq) Seq {
	t.j.mu.Lock()
	next := t.j.next
	t.j.mu.Unlock()
	floor := before
	if f := t.floor(); f != 0 {
		floor = min(floor, f)
	}
	for _, c := range t.dirty() {
		c.mu.Lock()
		if len(c.ops) > 0 {
			floor = min(floor, c.ops[0].seq)
		}
		if len(c.astray) > 0 {
			floor = min(floor, c.astray[0].seq)
		}
		c.mu.Unlock()
	}
	if err := t.j.trim(floor); err != nil {
		t.log.Warn().Err(err).Msg("trim the journal")
	}
	return next
}

// batch is what one commit of a container does.
type batch struct {
	n        int
	self     Ino
	ops      []*Op
	last     Seq
	change   blocks.Change
	snapshot []byte // clear, if this commit replaces the value
	births   []*container
	removals []removal
	free     []blocks.StripeID
	regs     []blocks.RegisterID
}

type removal struct {
	id  blocks.RegisterID
	seq Seq
}

// flush commits everything that is pending when it is called. held: the caller has busy.
func (t *Tree) flush(ctx context.Context, c *container, held bool) error {
	c.mu.Lock()
	var target Seq
	if n := len(c.ops); n > 0 {
		target = c.ops[n-1].seq
	}
	c.mu.Unlock()
	for {
		if err := c.awaitFlush(ctx); err != nil {
			return err
		}
		if err := t.redirect(ctx, c, held); err != nil {
			return err
		}
		c.mu.Lock()
		if c.flushing {
			c.mu.Unlock()
			continue
		}
		if !c.unborn && (len(c.ops) == 0 || c.ops[0].seq > target) || c.unborn && c.removed && !c.bearing {
			c.mu.Unlock()
			return nil
		}
		if c.removed && !c.bearing {
			ended := c.st == nil
			c.mu.Unlock()
			if ended {
				return t.flushRemoved(c)
			}
			return nil // what is pending here counts when the commit of the removal ends the register
		}
		if c.fenced || c.st == nil {
			c.mu.Unlock()
			if err := t.reload(ctx, c, held); err != nil {
				return err
			}
			continue
		}
		b := t.cut(c)
		c.beginFlush()
		c.mu.Unlock()
		err := t.commit(ctx, c, b)
		t.finishFlush(c, b, err)
		if err != nil && !overtaken(err) {
			return err
		}
	}
}

// overtaken reports whether others have changed or ended the register.
func overtaken(err error) bool {
	return errors.Is(err, blocks.ErrConflict) || errors.Is(err, blocks.ErrNotFound)
}

// reload brings a fenced container up to date.
func (t *Tree) reload(ctx context.Context, c *container, held bool) error {
	if !held {
		if err := c.acquire(ctx); err != nil {
			return err
		}
		defer c.release()
	}
	return t.validate(ctx, c)
}

// cut takes all that is pending as a batch. mu must be held.
func (t *Tree) cut(c *container) *batch {
	b := &batch{n: len(c.ops), self: c.st.Self.Ino, ops: make([]*Op, 0, len(c.ops))}
	for _, p := range c.ops {
		b.ops = append(b.ops, p.op)
		b.last = p.seq
		switch p.op.Kind {
		case OpMake:
			if !p.op.Child.IsZero() {
				t.mu.RLock()
				cc := t.conts[p.op.Child]
				t.mu.RUnlock()
				if cc != nil {
					cc.mu.Lock()
					// What was made and removed again needs no register, unless an earlier process may have created it: then it must be ended.
					cc.bearing = cc.unborn && (!cc.removed || cc.replayed)
					cc.mu.Unlock()
					b.births = append(b.births, cc)
				}
			}
		case OpRmdir:
			b.removals = append(b.removals, removal{p.op.Child, p.seq})
		}
	}
	if b.last == 0 {
		b.last = c.birth // journalled: a number that only this batch has could be given again after a crash
	}
	if b.last == 0 {
		b.last = t.j.number()
	}
	if c.unborn || c.heavy() {
		b.snapshot = encodeState(c.st)
	}
	b.change = blocks.Change{Base: c.version, Origin: t.cfg.Mount, Seq: uint64(b.last), Quiet: !slices.ContainsFunc(b.ops, (*Op).loud)}
	if c.unborn {
		b.change.Base, b.change.Lease, b.change.Shared = 0, blocks.LeaseAcquire, c.replayed
	}
	for id := range c.st.free {
		b.free = append(b.free, id)
	}
	for id := range c.st.freeRegs {
		b.regs = append(b.regs, id)
	}
	c.inflight = b.n
	return b
}

// commit makes the children, ends those that were removed, and proposes the batch.
func (t *Tree) commit(ctx context.Context, c *container, b *batch) error {
	if err := t.births(ctx, b); err != nil {
		return err
	}
	for _, r := range b.removals {
		if err := t.endChild(ctx, c, r); err != nil {
			return err
		}
	}
	ops := b.ops
	if b.snapshot == nil {
		ops = fold(ops, b.self)
	}
	if slices.ContainsFunc(ops, (*Op).notes) {
		if err := t.ensureSession(ctx); err != nil {
			return err
		}
	}
	var err error
	if b.snapshot != nil {
		b.change.Snapshot, err = c.seal.seal(sealSnapshot, b.snapshot)
	} else {
		b.change.Delta, err = c.seal.seal(sealDelta, encodeBatch(ops))
	}
	if err != nil {
		return err
	}
	r, err := t.propose(ctx, c.id, b.change)
	if err != nil {
		return err
	}
	c.mu.Lock()
	t.agreed(c, r, b.change, b.last)
	c.mu.Unlock()
	return nil
}

// stateOf decodes a register read from version 0.
func (c *container) stateOf(r blocks.Register) (*State, error) {
	b, err := c.seal.open(sealSnapshot, r.Snapshot)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.id.Short(), err)
	}
	st, err := decodeState(b)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.id.Short(), err)
	}
	for _, d := range r.Deltas {
		if len(d) == 0 {
			continue
		}
		ops, err := c.openDelta(d)
		if err == nil {
			err = applyAll(st, ops)
		}
		if err != nil {
			return nil, fmt.Errorf("container %s: %w", c.id.Short(), err)
		}
	}
	return st, nil
}

// finishFlush ends a batch.
func (t *Tree) finishFlush(c *container, b *batch, err error) {
	c.mu.Lock()
	switch {
	case err == nil:
		c.ops = append([]pending(nil), c.ops[b.n:]...)
		c.pendLen = 0
		for _, p := range c.ops {
			c.pendLen += p.op.weight()
		}
		c.unborn, c.bearing = false, false
		if len(c.ops) > 0 {
			c.since = time.Now()
		}
	case overtaken(err):
		c.fenced = true
		c.unborn, c.bearing = false, false
	default:
		c.since = time.Now() // the next attempt after FlushAge
	}
	c.inflight = 0
	c.flushing = false
	close(c.done)
	c.mu.Unlock()
	if err != nil {
		return
	}
	for _, cc := range b.births {
		cc.mu.Lock()
		if cc.parent == c.id {
			cc.parent = blocks.RegisterID{}
		}
		cc.mu.Unlock()
	}
	for _, r := range b.removals {
		t.forgetContainer(r.id)
	}
	if len(b.free)+len(b.regs) > 0 {
		t.wakeFreer()
	}
}

// forgetContainer drops the container of a directory that is gone.
func (t *Tree) forgetContainer(id blocks.RegisterID) {
	t.mu.RLock()
	c := t.conts[id]
	t.mu.RUnlock()
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.removed {
		c.ops = nil
		if c.unborn { // it has never had a register: who has just read its name must not ask for one
			c.st, c.unborn, c.used = nil, false, time.Now()
			return
		}
		t.mu.Lock()
		delete(t.conts, id)
		t.mu.Unlock()
	}
}

// Sync commits everything that was answered before.
func (t *Tree) Sync(ctx context.Context) error {
	if err := t.awaitReady(ctx); err != nil {
		return err
	}
	d := t.dirty()
	if len(d) > 0 && !MayWait(ctx) {
		return ErrWait
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(t.cfg.FlushParallel)
	for _, c := range d {
		g.Go(func() error { return t.flush(gctx, c, false) })
	}
	return g.Wait()
}
