package tree

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"syscall"

	"github.com/mutualfs/mutualfs/blocks"
)

// stray is a pending operation that belongs to another container by now, because another mount has split this
// one. old has what it concerns, as it was here; nil: it is what is left of an inode that has ended.
type stray struct {
	pending
	old *State
}

// strays reports whether the operation belongs to another container: one of its names does, or its inode may. mu must be held.
func (c *container) strays(old *State, o *Op) bool {
	if err := Check(c.st, o); isElsewhere(err) {
		return true
	}
	if !c.st.named() || old == nil || c.st.inode(o.Ino) != nil || !ofInode(o.Kind) {
		return false
	}
	if !(c.st.paged() && !old.paged() || c.st.Kind == KindPage && c.st.hi < old.hi) {
		return false
	}
	s := stray{pending{op: o}, extract(old, o)}
	return isElsewhere(c.st.has(s.anchor()))
}

// follows reports whether the operation belongs where its inode has gone.
func (s *State) follows(o *Op) bool {
	return ofInode(o.Kind) && s.named() && s.inode(o.Ino) == nil && !s.whither(o.Ino).IsZero()
}

// whither returns where an inode has gone, as far as the container knows: it was promoted, or has left a husk.
func (s *State) whither(ino Ino) blocks.RegisterID {
	if h := s.left[ino]; h != nil {
		return h.to
	}
	return s.promoted(ino)
}

// ofInode reports whether the operation concerns an inode and no name.
func ofInode(k OpKind) bool {
	switch k {
	case OpSetattr, OpSetXattr, OpRemoveXattr, OpWriteback, OpTruncate, OpPunch:
		return true
	}
	return false
}

// extract returns a state with nothing but the inode of an operation, and its names.
func extract(old *State, o *Op) *State {
	s := newState(KindDir)
	s.entries = map[string]Dentry{}
	if old == nil {
		return s
	}
	if n := old.inodes[o.Ino]; n != nil {
		s.inodes[o.Ino] = n.clone()
	}
	for name, e := range old.entries {
		if e.Ino == o.Ino && o.Ino != 0 {
			s.entries[name] = e
		}
	}
	return s
}

// anchor returns the name whose place the operation is made in.
func (s *stray) anchor() string {
	o := s.op
	switch {
	case o.Kind == OpLink:
		return o.New
	case namesEntry(o.Kind) && o.Name != "":
		return o.Name
	}
	best := ""
	for name := range s.old.entries {
		if best == "" || name < best {
			best = name
		}
	}
	return best
}

// strayAll makes all pending operations stray: the page has ended. mu must be held.
func (c *container) strayAll(old *State) {
	for _, p := range c.ops {
		c.astray = append(c.astray, stray{p, extract(old, p.op)})
	}
	c.ops, c.pendLen = nil, 0
}

// redirect makes the stray operations of a container where they belong, under new numbers. held: the caller has busy.
func (t *Tree) redirect(ctx context.Context, c *container, held bool) error {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.CommitTimeout)
	defer cancel()
	select { // one at a time: what comes last must be the newest
	case c.leading <- struct{}{}:
		defer func() { <-c.leading }()
	case <-ctx.Done():
		return fmt.Errorf("operations of container %s are made elsewhere: %w", c.id.Short(), ctx.Err())
	}
	for {
		c.mu.Lock()
		if len(c.astray) == 0 {
			c.mu.Unlock()
			return nil
		}
		s, start := c.astray[0], c.head
		var e *elsewhere
		if c.st != nil && errors.As(c.st.has(s.anchor()), &e) {
			start = e.id
		}
		c.mu.Unlock()
		if start.IsZero() {
			start = c.id
		}
		var not blocks.RegisterID
		if held {
			not = c.id
		}
		if err := t.makeElsewhere(ctx, c.id, start, not, &s); err != nil {
			return err
		}
		c.mu.Lock()
		if len(c.astray) > 0 && c.astray[0].seq == s.seq {
			c.astray = c.astray[1:]
		}
		c.mu.Unlock()
	}
}

// redirectFirst makes the stray operations of a container before any newer one on what they concern.
func (t *Tree) redirectFirst(ctx context.Context, id blocks.RegisterID) error {
	c, err := t.cont(id)
	if err != nil {
		return err
	}
	c.mu.Lock()
	none := len(c.astray) == 0
	c.mu.Unlock()
	switch {
	case none:
		return nil
	case !MayWait(ctx):
		return ErrWait
	}
	return t.redirect(ctx, c, false)
}

// makeElsewhere makes a stray operation of container from in the one that owns its name, from start on, or that has its inode. What does not
// apply any more is treated as after a conflict. not is a container that must not be waited for.
func (t *Tree) makeElsewhere(ctx context.Context, from, start, not blocks.RegisterID, s *stray) error {
	if s.old == nil && s.op.Kind == OpMove { // see merge
		return t.saveInRoot(ctx, s.op)
	}
	if ofInode(s.op.Kind) {
		at, err := t.home(s.op.Ino)
		if err != nil || at == from {
			if at, err = t.whereis(ctx, from, s.op.Ino); err != nil {
				return err
			}
		}
		if !at.IsZero() && at != not {
			_, err := t.mutate(ctx, at, func(_ *container, st *State) (*Op, error) {
				if st.inode(s.op.Ino) == nil {
					return nil, errMoved
				}
				return t.placed(st, s.op), nil
			}, nil)
			if err == nil || errors.Is(err, blocks.ErrUnavailable) || ctx.Err() != nil {
				return err
			}
		}
	}
	name := s.anchor()
	if name == "" {
		return nil // an orphan's, or the list of what is free: found again when the pages are loaded
	}
	err := t.routedFrom(ctx, start, t.headOf(from), name, func(id blocks.RegisterID) error {
		if id == not {
			return fmt.Errorf("%w: container %s", blocks.ErrBusy, id.Short())
		}
		return t.makeStray(ctx, id, name, s)
	})
	if errors.Is(err, syscall.ENOENT) { // the whole directory is gone
		return nil
	}
	return err
}

// makeStray makes a stray operation in the container id, if that has the name's place.
func (t *Tree) makeStray(ctx context.Context, id blocks.RegisterID, name string, s *stray) error {
	_, err := t.mutate(ctx, id, func(c *container, st *State) (*Op, error) {
		if err := st.has(name); err != nil {
			return nil, err
		}
		o, err := t.adapt(c, s.old, t.placed(st, s.op))
		if err != nil || o == nil {
			t.log.Warn().Err(err).Str("container", c.id.Short()).Uint8("kind", uint8(s.op.Kind)).Str("name", s.op.Name).
				Msg("an operation was overtaken by another mount's and is dropped")
			return nil, nil
		}
		return o, nil
	}, func(c *container, o *Op, seq Seq) {
		if n := c.st.inodes[o.Ino]; n != nil {
			t.withNode(o.Ino, func(x *node) { x.home = c.id })
		}
		if o.Kind == OpMake && !o.Child.IsZero() {
			t.reparented(c, o, seq)
		}
	})
	return err
}

// reparented says where the operation is pending that makes a directory. mu of c is held.
func (t *Tree) reparented(c *container, o *Op, seq Seq) {
	t.mu.RLock()
	cc := t.conts[o.Child]
	t.mu.RUnlock()
	if cc == nil {
		return
	}
	cc.mu.Lock()
	defer cc.mu.Unlock()
	if cc.birth = seq; len(c.ops) > 0 && !cc.parent.IsZero() {
		cc.parent = c.id
	}
}

// placed returns the operation as it can be made in a container: a rename to a name that lies elsewhere gets one that does not.
func (t *Tree) placed(st *State, o *Op) *Op {
	if o.Kind == OpWriteback {
		if n := st.inode(o.Ino); n != nil && n.usesAll(o.Extents) { // made already
			m := *o
			m.Extents = nil
			return &m
		}
	}
	if o.Kind != OpRename || st.has(o.New) == nil {
		return o
	}
	m := *o
	m.New, m.Ino2, m.Flags, m.Keep = t.conflictName(st, o.New, o.Time), 0, 0, false
	return &m
}

// usesAll reports whether the inode's content has all of some extents.
func (n *Inode) usesAll(ext []Extent) bool {
	for _, x := range ext {
		i := sort.Search(len(n.Extents), func(i int) bool { return n.Extents[i].Off+n.Extents[i].Len > x.Off })
		if i == len(n.Extents) {
			return false
		}
		e := n.Extents[i]
		if e.Stripe.ID != x.Stripe.ID || e.Off > x.Off || e.Off+e.Len < x.Off+x.Len || uint64(e.At)+x.Off-e.Off != uint64(x.At) {
			return false
		}
	}
	return true
}

// place returns the container in which a record's operation is to be repeated, nil if there is none, and the operation
// as it is to be repeated there.
func (r *replayer) place(c *container, o *Op) (*container, *Op, error) {
	for range maxHops {
		c.mu.Lock()
		err := c.st.checkAnchor(o)
		lost := ofInode(o.Kind) && c.st.named() && c.st.inode(o.Ino) == nil
		c.mu.Unlock()
		var e *elsewhere
		switch {
		case errors.As(err, &e):
			next, err := r.container(e.id)
			if err != nil || next == nil {
				return nil, nil, err
			}
			c = next
			continue
		case lost:
			x, err := r.chase(c, o.Ino)
			if err != nil {
				return nil, nil, err
			}
			if x != nil {
				c = x
			}
		}
		c.mu.Lock()
		o = r.t.placed(c.st, o)
		c.mu.Unlock()
		return c, o, nil
	}
	return nil, nil, blocks.ErrBusy
}

// checkAnchor returns *elsewhere if the operation's first name does not belong here.
func (s *State) checkAnchor(o *Op) error {
	if s.Dead {
		if err := s.ended(); isElsewhere(err) {
			return err
		}
	}
	if !namesEntry(o.Kind) {
		return nil
	}
	name := o.Name
	if o.Kind == OpLink {
		name = o.New
	}
	if name == "" {
		return nil
	}
	return s.has(name)
}

// chase returns the page behind c that has an inode, or the container of its own that it has got; nil if there is none.
func (r *replayer) chase(c *container, ino Ino) (*container, error) {
	for range maxPages * maxPages {
		c.mu.Lock()
		own, next := c.st.promoted(ino), c.st.next
		if c.st.paged() {
			next = c.st.pages[0].ID
		}
		c.mu.Unlock()
		if !own.IsZero() {
			return r.container(own)
		}
		if next.IsZero() {
			return nil, nil
		}
		x, err := r.container(next)
		if err != nil || x == nil {
			return nil, err
		}
		x.mu.Lock()
		found := x.st.inodes[ino] != nil
		x.mu.Unlock()
		if found {
			return x, nil
		}
		c = x
	}
	return nil, nil
}
