package tree

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/mutualfs/mutualfs/blocks"
)

// births creates the directories that the batch names.
func (t *Tree) births(ctx context.Context, b *batch) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(t.cfg.FlushParallel)
	for _, cc := range b.births {
		cc.mu.Lock()
		need := cc.unborn && (!cc.removed || cc.bearing)
		cc.mu.Unlock()
		if need {
			g.Go(func() error { return t.flush(gctx, cc, false) })
		}
	}
	return g.Wait()
}

// endChild ends the register of a removed directory; it is what makes the removal final.
// ErrConflict: the directory is not empty any more, the removal must not be committed.
func (t *Tree) endChild(ctx context.Context, c *container, rm removal) error {
	cc, err := t.cont(rm.id)
	if err != nil {
		return err
	}
	if err := cc.awaitFlush(ctx); err != nil {
		return err
	}
	if err := t.endBelow(ctx, cc); err != nil {
		if errors.Is(err, blocks.ErrConflict) {
			t.keepChild(c, cc, rm)
		}
		return err
	}
	cc.mu.Lock()
	skip := cc.unborn
	cc.mu.Unlock()
	if skip {
		return nil
	}
	for {
		r, err := t.regs.Read(ctx, rm.id, 0)
		if errors.Is(err, blocks.ErrNotFound) || err == nil && r.Deleted {
			return nil
		}
		if err != nil {
			return fmt.Errorf("remove directory %s: %w", rm.id.Short(), err)
		}
		st, err := cc.stateOf(r)
		if err != nil {
			return err
		}
		if st.intent != nil || !t.emptied(cc, st, r) {
			t.keepChild(c, cc, rm)
			return fmt.Errorf("directory %s is in use again: %w", rm.id.Short(), blocks.ErrConflict)
		}
		ch := blocks.Change{Base: r.Version, Origin: t.cfg.Mount, Seq: uint64(rm.seq), Delete: true}
		_, err = t.propose(ctx, rm.id, ch)
		if err == nil || errors.Is(err, blocks.ErrNotFound) {
			return nil
		}
		if !errors.Is(err, blocks.ErrConflict) {
			return err
		}
	}
}

// endBelow ends what was removed in a directory that is being ended itself: what is pending in it will never be committed.
func (t *Tree) endBelow(ctx context.Context, c *container) error {
	c.mu.Lock()
	var below []removal
	for _, p := range c.ops {
		if p.op.Kind == OpRmdir {
			below = append(below, removal{p.op.Child, p.seq})
		}
	}
	c.mu.Unlock()
	for _, rm := range below {
		if err := t.endChild(ctx, c, rm); err != nil {
			return err
		}
		t.forgetContainer(rm.id)
	}
	return nil
}

// emptied reports whether the directory has neither names nor open files once this mount's pending operations on it are made.
func (t *Tree) emptied(cc *container, agreed *State, r blocks.Register) bool {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	for _, p := range cc.ops {
		if uint64(p.seq) > r.Applied[t.cfg.Mount] {
			_, _ = Apply(agreed, p.op) // what does not apply leaves the directory in use, and so is seen
		}
	}
	return agreed.empty() && len(agreed.inodes)+len(agreed.left) == 0
}

// keepChild takes a removal back: the operation is dropped, and the parent built anew without it.
func (t *Tree) keepChild(c, cc *container, rm removal) {
	c.mu.Lock()
	for i, p := range c.ops {
		if p.seq == rm.seq {
			c.ops = append(c.ops[:i:i], c.ops[i+1:]...)
			break
		}
	}
	c.fenced = true
	c.mu.Unlock()
	cc.mu.Lock()
	cc.removed, cc.fenced = false, true
	cc.mu.Unlock()
}
