package tree

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mutualfs/mutualfs/blocks"
)

// recall gives a lease back because another mount wants the container: no new fast
// operations, dirty data and pending operations committed, the kernel forgets, then the release. read: the other one reads, and
// both may do that with a lease that they share.
func (t *Tree) recall(ctx context.Context, id blocks.RegisterID, read bool) {
	if id == t.sessionID() {
		return // that it was asked shows that the process lives; the lease stays
	}
	select {
	case <-t.ready:
	case <-ctx.Done():
		return
	}
	c, err := t.cont(id)
	if err != nil {
		return
	}
	c.mu.Lock()
	c.closed = true
	c.noLease = time.Now().Add(t.cfg.LeasePause)
	if !read {
		c.noShare = c.noLease
	}
	shared := c.shared
	expiry := time.Now().Add(validFor)
	t.sums.drop(c.head)
	c.mu.Unlock()
	if shared { // nothing is pending under it, and the kernel may keep nothing
		err = t.unshare(ctx, c)
	} else {
		err = t.flushFiles(ctx, c)
		if err == nil {
			err = t.flushRemoval(ctx, c)
		}
		if err == nil {
			t.callBack(ctx, c, expiry)
			err = t.giveBack(ctx, c)
		}
	}
	c.mu.Lock()
	c.closed = false
	c.mu.Unlock()
	if err != nil {
		t.log.Warn().Err(err).Str("container", id.Short()).Msg("a recalled lease could not be given back")
	}
}

// flushRemoval commits the removal of a directory whose register is asked for: it is pending in the parent or, if that was removed
// too, further up.
func (t *Tree) flushRemoval(ctx context.Context, c *container) error {
	at := c
	for range maxDepth {
		at.mu.Lock()
		var parent blocks.RegisterID
		if at.removed {
			parent = at.endedIn
		}
		at.mu.Unlock()
		if parent.IsZero() {
			break
		}
		var err error
		if at, err = t.cont(parent); err != nil {
			return err
		}
	}
	if at == c {
		return nil
	}
	return t.flush(ctx, at, false)
}

// callBack makes the kernel forget what it was told of a container that is closed. What the kernel is told from now on
// it may not keep. An invalidation may wait for a lock of the kernel that the caller of a request holds, and that
// request for a lease: nothing that requests need is held here, and at expiry, when the kernel
// keeps nothing any more that it was told before, the wait ends.
func (t *Tree) callBack(ctx context.Context, c *container, expiry time.Time) {
	ctx, cancel := context.WithDeadline(ctx, expiry)
	defer cancel()
	n := t.notify()
	n.Settle(ctx) // an answer that is on its way must not come after the invalidation
	c.mu.Lock()
	if c.st != nil {
		t.invalidateAll(c, c.st)
	}
	c.mu.Unlock()
	n.Settle(ctx)
}

// giveBack commits what is pending and releases the lease. The kernel has been told before, or is unmounted.
func (t *Tree) giveBack(ctx context.Context, c *container) error {
	if err := c.acquire(ctx); err != nil {
		return err
	}
	defer c.release()
	asked := false
	for range maxResolutions {
		if err := t.flush(ctx, c, true); err != nil {
			return err
		}
		c.mu.Lock()
		if len(c.ops) > 0 {
			c.mu.Unlock()
			continue
		}
		if c.removed || asked && c.st != nil && c.lease.Holder != t.cfg.Mount {
			c.mu.Unlock()
			return nil
		}
		if c.st != nil && c.lease.Holder != t.cfg.Mount { // the answer to an acquisition may have been lost
			c.fenced, asked = true, true
			c.mu.Unlock()
			if err := t.refresh(ctx, c); err != nil {
				return err
			}
			continue
		}
		if c.shared {
			c.mu.Unlock()
			return t.unshare(ctx, c)
		}
		if c.st != nil && (t.noteOpen(c) || t.noteAtimes(c, t.readIn(c))) {
			c.mu.Unlock()
			continue
		}
		ch := blocks.Change{Base: c.version, Origin: t.cfg.Mount, Lease: blocks.LeaseRelease}
		loaded := c.st != nil
		c.frozen = loaded
		c.mu.Unlock()
		if !loaded {
			if err := t.refresh(ctx, c); err != nil {
				return err
			}
			continue
		}
		r, err := t.propose(ctx, c.id, ch)
		c.mu.Lock()
		c.frozen = false
		c.mu.Unlock()
		switch {
		case err == nil:
			c.mu.Lock()
			if r.Version == ch.Base+1 {
				c.version = r.Version
				c.tailN++
			}
			c.lease, c.shared = blocks.Lease{}, false
			c.owes = c.st != nil && c.st.frees()
			c.mu.Unlock()
			return nil
		case errors.Is(err, blocks.ErrNotFound): // the register has ended, and the lease with it
			t.vanished(c)
			return nil
		case errors.Is(err, blocks.ErrConflict):
			c.fence()
			if err := t.refresh(ctx, c); err != nil {
				return err
			}
		default:
			return err
		}
	}
	return blocks.ErrBusy
}

// unshare gives a shared lease back. It does not need busy: of two mounts that share a lease and change the container each waits
// for the other's, with its busy taken.
func (t *Tree) unshare(ctx context.Context, c *container) error {
	c.mu.Lock()
	lease, base := c.lease, c.version
	c.mu.Unlock()
	_, err := t.propose(ctx, c.id, blocks.Change{Base: base, Origin: t.cfg.Mount, Lease: blocks.LeaseLeave, Epoch: lease.Epoch})
	if err != nil && !errors.Is(err, blocks.ErrNotFound) {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lease == lease {
		c.lease, c.shared = blocks.Lease{}, false
	}
	return nil
}

func (c *container) fence() {
	c.mu.Lock()
	c.fenced = true
	c.mu.Unlock()
}

// flushFiles has content write back the dirty files of a container.
func (t *Tree) flushFiles(ctx context.Context, c *container) error {
	c.mu.Lock()
	var files []Ino
	if c.st != nil {
		t.mu.RLock()
		for ino := range c.st.inodes {
			if n := t.nodes[ino]; n != nil && n.unwritten() {
				files = append(files, ino)
			}
		}
		t.mu.RUnlock()
	}
	c.mu.Unlock()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(t.cfg.FlushParallel)
	for _, ino := range files {
		g.Go(func() error { return t.hooks.FlushFile(gctx, ino) })
	}
	return g.Wait()
}

// releaseAll gives all leases back, at the end.
func (t *Tree) releaseAll(ctx context.Context) {
	var g errgroup.Group
	g.SetLimit(t.cfg.FlushParallel)
	for _, c := range t.containers() {
		g.Go(func() error {
			c.mu.Lock()
			held := c.st != nil && !c.unborn && c.lease.Holder == t.cfg.Mount && !c.removed
			c.mu.Unlock()
			if held {
				if err := t.giveBack(ctx, c); err != nil {
					t.log.Debug().Err(err).Str("container", c.id.Short()).Msg("release a lease")
				}
			}
			return nil
		})
	}
	_ = g.Wait() // errors were logged: an unreleased lease runs out
}
