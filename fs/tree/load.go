package tree

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

const (
	readsForLease  = 2 // validated reads within readsWindow make a lease worth its round trip
	readsWindow    = 2 * time.Second
	maxResolutions = 8 // times that one call follows an inode that moves, or brings a container to rest
)

// validate makes st the agreed state with what is pending on top, free of intents. busy must be held.
func (t *Tree) validate(ctx context.Context, c *container) error {
	for ctx.Err() == nil { // each round waits for a transaction that somebody else began
		if err := t.refresh(ctx, c); err != nil {
			return err
		}
		c.mu.Lock()
		var in *Intent
		if c.st != nil {
			in = c.st.intent
		}
		c.mu.Unlock()
		if in == nil {
			return nil
		}
		if err := t.complete(ctx, c, in); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: container %s: one transaction after the other: %w", blocks.ErrBusy, c.id.Short(), ctx.Err())
}

// refresh reads the register unless a lease makes that needless: one that is shared does not, for what is to be changed must have what
// others have noted without a word. No batch is committed between the read and the moment when
// its result is taken over: what the read returned would be older than what memory has, or have a part of what is
// pending. busy must be held.
func (t *Tree) refresh(ctx context.Context, c *container) error {
	if err := c.holdFlush(ctx); err != nil {
		return err
	}
	defer c.endFlush()
	c.mu.Lock()
	if c.st != nil && !c.fenced && t.leased(c) || c.removed {
		c.mu.Unlock()
		return nil
	}
	since := c.version
	if c.st == nil || c.fenced {
		since = 0
	}
	c.mu.Unlock()
	r, ended, err := t.readRegister(ctx, c, since)
	if err != nil || ended {
		return err
	}
	c.mu.Lock()
	dirty := len(c.ops) > 0
	moved := c.st == nil || c.fenced || r.Version != c.version
	c.mu.Unlock()
	if moved && dirty && since != 0 {
		if r, ended, err = t.readRegister(ctx, c, 0); err != nil || ended {
			return err
		}
	}
	return t.adopt(ctx, c, r, moved, dirty)
}

// readRegister reads what is agreed of a container. ended: nothing any more, and the container is told.
func (t *Tree) readRegister(ctx context.Context, c *container, since blocks.Version) (r blocks.Register, ended bool, err error) {
	r, err = t.regs.Read(ctx, c.id, since)
	switch {
	case errors.Is(err, blocks.ErrNotFound), err == nil && r.Deleted:
		t.vanished(c)
		return r, true, nil
	case err != nil:
		return r, false, fmt.Errorf("read container %s: %w", c.id.Short(), err)
	}
	return r, false, nil
}

// holdFlush waits until no batch is under way, and lets none begin until endFlush.
func (c *container) holdFlush(ctx context.Context) error {
	for {
		if err := c.awaitFlush(ctx); err != nil {
			return err
		}
		c.mu.Lock()
		free := !c.flushing
		if free {
			c.beginFlush()
		}
		c.mu.Unlock()
		if free {
			return nil
		}
	}
}

// beginFlush says that a batch, or a read, is under way. mu must be held.
func (c *container) beginFlush() { c.flushing, c.done = true, make(chan struct{}) }

// endFlush undoes holdFlush.
func (c *container) endFlush() {
	c.mu.Lock()
	c.flushing = false
	close(c.done)
	c.mu.Unlock()
}

// awaitFlush waits until no batch is under way.
func (c *container) awaitFlush(ctx context.Context) error {
	for {
		c.mu.Lock()
		done, on := c.done, c.flushing
		c.mu.Unlock()
		if !on {
			return nil
		}
		select {
		case <-done:
		case <-ctx.Done():
			return fmt.Errorf("container %s is being committed: %w", c.id.Short(), ctx.Err())
		}
	}
}

// adopt takes over what a read returned.
func (t *Tree) adopt(ctx context.Context, c *container, r blocks.Register, moved, dirty bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	t.j.atLeast(Seq(r.Applied[t.cfg.Mount]))
	if !moved {
		t.leaseIs(c, r)
		return nil
	}
	st := c.st
	fresh := st == nil || dirty || c.fenced || r.Snapshot != nil
	if fresh {
		var err error
		if st, err = c.decodeSnapshot(r); err != nil {
			return err
		}
	}
	var foreign []*Op
	c.tailN += len(r.Deltas)
	for i, d := range r.Deltas {
		if len(d) == 0 {
			continue
		}
		ops, err := c.openDelta(d)
		if err == nil {
			err = applyAll(st, ops)
		}
		if err != nil {
			c.st = nil
			return fmt.Errorf("container %s, version %d: %w", c.id.Short(), r.Base+blocks.Version(i)+1, err)
		}
		c.tailLen += len(d)
		foreign = append(foreign, ops...)
	}
	c.noteSplits(foreign)
	old := c.st
	c.st, c.version = st, r.Version
	t.leaseIs(c, r)
	c.applied = max(c.applied, Seq(r.Applied[t.cfg.Mount]))
	c.used = time.Now()
	c.notePage()
	t.sums.drop(c.head)
	if fresh && old != nil {
		t.invalidateAll(c, old)
	}
	if !fresh {
		t.changed(c, foreign)
	}
	t.rehome(c)
	t.adoptOrphans(c)
	// With an intent in the way nothing can be merged: the next refresh, after its end, does.
	c.fenced = dirty && st.intent != nil
	if c.fenced {
		if c.salvage == nil {
			c.salvage = old
		}
	} else if dirty {
		if c.salvage != nil {
			old, c.salvage = c.salvage, nil
		}
		t.merge(c, old)
	}
	return nil
}

func (c *container) decodeSnapshot(r blocks.Register) (*State, error) {
	if r.Snapshot == nil {
		return nil, fmt.Errorf("%w: register %s came without its value", blocks.ErrCorrupt, c.id.Short())
	}
	b, err := c.seal.open(sealSnapshot, r.Snapshot)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.id.Short(), err)
	}
	st, err := decodeState(b)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.id.Short(), err)
	}
	c.snapLen, c.tailLen, c.tailN = len(r.Snapshot), 0, 0
	c.shrunk = false
	return st, nil
}

func (c *container) openDelta(d []byte) ([]*Op, error) {
	b, err := c.seal.open(sealDelta, d)
	if err != nil {
		return nil, err
	}
	return decodeBatch(b)
}

func applyAll(st *State, ops []*Op) error {
	for _, o := range ops {
		if _, err := Apply(st, o); err != nil {
			return fmt.Errorf("%w: an agreed operation of kind %d does not apply: %v", blocks.ErrCorrupt, o.Kind, err)
		}
	}
	return nil
}

// rehome points the nodes of inodes that are known here to this container. mu of c must be held.
func (t *Tree) rehome(c *container) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.st.Kind == KindDir {
		t.at(c.st.Self.Ino, c.id)
	}
	if len(c.st.inodes) < len(t.nodes) {
		for ino := range c.st.inodes {
			if n := t.nodes[ino]; n != nil {
				n.home = c.id
			}
		}
		return
	}
	for ino, n := range t.nodes {
		if c.st.inodes[ino] != nil {
			n.home = c.id
		}
	}
}

// changed tells the kernel what others did. mu of c must be held.
func (t *Tree) changed(c *container, ops []*Op) {
	n := t.notify()
	for _, o := range ops {
		if o.Inner != nil {
			o = o.Inner
		}
		for _, ino := range []Ino{o.Ino, o.Ino2} {
			if ino == 0 {
				continue
			}
			t.withNode(ino, func(x *node) { x.foreign = true })
			n.InvalidateInode(ino)
		}
		if o.Kind == OpPromote {
			t.withNode(o.Ino, func(x *node) { x.home = o.Child })
		}
		for _, name := range []string{o.Name, o.New} {
			if name != "" && c.st.named() && namesEntry(o.Kind) {
				n.InvalidateEntry(c.st.Self.Ino, name)
			}
		}
	}
}

// invalidateAll tells the kernel to forget all that it may have of a container. mu of c must be held.
func (t *Tree) invalidateAll(c *container, s *State) {
	n := t.notify()
	t.mu.Lock()
	var known []Ino
	for ino := range s.inodes {
		if x := t.nodes[ino]; x != nil {
			x.foreign = true
			known = append(known, ino)
		}
	}
	t.mu.Unlock()
	for _, ino := range known {
		n.InvalidateInode(ino)
	}
	if s.named() {
		for name := range s.entries {
			n.ExpireEntry(s.Self.Ino, name)
		}
		n.InvalidateInode(s.Self.Ino)
	}
}

// vanished is called when the register has ended.
func (t *Tree) vanished(c *container) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.head.IsZero() {
		c.strayAll(c.st)
		t.sums.drop(c.head)
	}
	if len(c.ops) > 0 && c.st != nil && c.salvage == nil {
		c.salvage = c.st
	}
	if c.st != nil {
		t.invalidateAll(c, c.st)
	}
	c.removed, c.st = true, nil
}

// use is what somebody does with a container that he has no lease for.
type use int

const (
	useRead  use = iota
	useNote      // a quiet change
	useAlter     // any other
)

// wish says what lease it is worth to ask for, if any: alone, for who alters the container or is the only one that uses it; else
// one to share. Who has just been asked to give one back does not ask for it again. mu must be held.
func (t *Tree) wish(c *container, u use) blocks.LeaseAction {
	at := time.Now()
	switch {
	case c.st == nil || t.leased(c) || !c.st.named() && c.st.Kind != KindFile && c.st.Kind != KindMap:
		return blocks.LeaseKeep
	case at.After(c.noLease) && (u == useAlter || !c.others && (u == useNote || !t.sure(c))):
		return blocks.LeaseAcquire
	case u != useAlter && at.After(c.noShare) && !t.sure(c) && len(c.ops) == 0:
		return blocks.LeaseShare
	}
	return blocks.LeaseKeep
}

// maybeLease takes a lease if the container is read often. busy must be held.
func (t *Tree) maybeLease(ctx context.Context, c *container) error {
	c.mu.Lock()
	at := time.Now()
	if at.Sub(c.readsAt) > readsWindow {
		c.reads, c.readsAt = 0, at
	}
	c.reads++
	action := blocks.LeaseKeep
	if c.reads >= readsForLease && !c.removed {
		action = t.wish(c, useRead)
	}
	c.mu.Unlock()
	if action == blocks.LeaseKeep {
		return nil
	}
	return t.takeLease(ctx, c, action)
}

// takeLease asks for a lease of a container that was validated. Without it all goes on as before, so that an error does not
// matter. busy must be held.
func (t *Tree) takeLease(ctx context.Context, c *container, action blocks.LeaseAction) error {
	c.mu.Lock()
	ch := blocks.Change{Base: c.version, Origin: t.cfg.Mount, Lease: action}
	loaded := c.st != nil && !c.removed
	c.mu.Unlock()
	if !loaded {
		return nil
	}
	r, err := t.regs.Propose(ctx, c.id, ch)
	if errors.Is(err, blocks.ErrConflict) {
		return t.validate(ctx, c)
	}
	if err != nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch r.Version {
	case ch.Base + 1:
		c.tailN++
		fallthrough
	case ch.Base:
		c.version = r.Version
		t.leaseIs(c, r)
	}
	return nil
}
