package tree

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/mutualfs/mutualfs/blocks"
)

// merge applies what is pending to a state that others have moved on, in order and under
// the old numbers. What was committed already is dropped; what does not apply is turned into something that
// does, so that no content vanishes: see adapt. old is the state before, nil if there is none. mu of c
// must be held.
func (t *Tree) merge(c *container, old *State) {
	if c.st.Kind == KindFile && c.st.only() == nil && old != nil { // it ended, and its register will
		c.ops = slices.DeleteFunc(c.ops, func(p pending) bool { return p.seq <= c.applied })
		for _, o := range salvageFile(old, c.ops) {
			c.astray = append(c.astray, stray{pending{c.ops[0].seq, o}, nil})
		}
		c.ops = nil
		return
	}
	kept := c.ops[:0:0]
	for _, p := range c.ops {
		if p.seq <= c.applied {
			continue
		}
		if c.strays(old, p.op) || c.st.follows(p.op) {
			c.astray = append(c.astray, stray{p, extract(old, p.op)})
			continue
		}
		o, err := t.adapt(c, old, p.op)
		if err == nil && o != nil {
			_, err = Apply(c.st, o)
		}
		if err != nil || o == nil {
			t.log.Warn().Err(err).Str("container", c.id.Short()).Uint8("kind", uint8(p.op.Kind)).Str("name", p.op.Name).
				Msg("an operation was overtaken by another mount's and is dropped")
			continue
		}
		kept = append(kept, pending{p.seq, o})
	}
	c.ops = kept
}

// adapt returns the operation as it is to be applied after others have changed the
// container: itself, another in its place, or nil with the reason why nothing is left to do.
//
//   - A new name that exists: the new thing gets the name "NAME (conflict PEER TIME).EXT".
//   - An inode that is gone, and whose content, attributes or names were changed here: it comes back
//     as it was here, under such a name. (An update wins over a removal.)
//   - A rename onto something that changed: it replaces what is there now if it may, else it gets such a name.
//   - A removal of what is gone or changed: nothing.
func (t *Tree) adapt(c *container, old *State, o *Op) (*Op, error) {
	err := Check(c.st, o)
	if err == nil {
		return o, nil
	}
	n := *o
	switch o.Kind {
	case OpMake:
		if errors.Is(err, syscall.EEXIST) && c.st.entries[o.Name].Ino == o.Ino {
			return nil, nil // made already, on the way here
		}
		if errors.Is(err, syscall.EEXIST) {
			n.Name = t.conflictName(c.st, o.Name, o.Time)
			return &n, nil
		}
	case OpLink:
		if errors.Is(err, syscall.EEXIST) && c.st.entries[o.New].Ino == o.Ino {
			return nil, nil
		}
		if errors.Is(err, syscall.EEXIST) {
			n.New = t.conflictName(c.st, o.New, o.Time)
			return &n, nil
		}
		return instead(t.bringBack(c, old, o), err)
	case OpRename:
		return instead(t.adaptRename(c, old, o), err)
	case OpSetattr, OpSetXattr, OpWriteback, OpTruncate, OpPunch:
		if errors.Is(err, syscall.ENOENT) {
			return instead(t.bringBack(c, old, o), err)
		}
	}
	return nil, err
}

// instead returns o, or why there is none.
func instead(o *Op, err error) (*Op, error) {
	if o != nil {
		err = nil
	}
	return o, err
}

func (t *Tree) adaptRename(c *container, old *State, o *Op) *Op {
	n := *o
	from, ok := c.st.entries[o.Name]
	if !ok || from.Ino != o.Ino {
		return t.bringBack(c, old, o)
	}
	to, have := c.st.entries[o.New]
	n.Ino2, n.Keep = 0, false
	switch {
	case RenameFlags(o.Flags)&RenameExchange != 0:
		return nil
	case have && (RenameFlags(o.Flags)&RenameNoReplace != 0 || !to.Child.IsZero() || canReplace(from.Type, to.Type) != nil):
		n.New = t.conflictName(c.st, o.New, o.Time)
	case have:
		n.Ino2 = to.Ino
	}
	if Check(c.st, &n) != nil {
		return nil
	}
	return &n
}

// bringBack makes the operation that restores the inode of o as it was here, nil if it
// still exists or was unknown. The old state has everything that was pending.
func (t *Tree) bringBack(c *container, old *State, o *Op) *Op {
	if old == nil || !c.st.named() || c.st.paged() || c.st.inode(o.Ino) != nil || !c.st.promoted(o.Ino).IsZero() {
		return nil
	}
	was := old.inodes[o.Ino]
	if was == nil || was.Nlink == 0 {
		return nil
	}
	name := ""
	for s, e := range old.entries {
		if e.Ino == o.Ino && (name == "" || s < name) {
			name = s
		}
	}
	if name == "" {
		return nil
	}
	t.withNode(o.Ino, func(n *node) { n.home = c.id })
	return &Op{Kind: OpMove, Time: o.Time, Name: t.conflictName(c.st, name, o.Time), Entry: Dentry{Type: was.kind(), Ino: o.Ino}, Inodes: []*Inode{was.clone()}}
}

// conflictName returns a free name that says that two mounts disagreed. In a page it is one that the page owns.
func (t *Tree) conflictName(s *State, name string, at Time) string {
	ext := path.Ext(name)
	if ext == name || len(ext) > 32 {
		ext = ""
	}
	base := strings.TrimSuffix(name, ext)
	mark := fmt.Sprintf(" (conflict %s %s)", t.cfg.Mount.Short(), at.Time().UTC().Format("2006-01-02 15.04.05"))
	for i := 1; ; i++ {
		m := mark
		if i > 1 {
			m = fmt.Sprintf("%s %d", mark, i)
		}
		full := base[:min(len(base), MaxName-len(m)-len(ext))] + m + ext
		if _, have := s.entries[full]; !have && (s.paged() || s.has(full) == nil) {
			return full
		}
	}
}

// flushRemoved saves what is pending in a directory that another mount has removed: its files come
// back in the root directory.
func (t *Tree) flushRemoved(c *container) error {
	if t.removalPending(c) {
		return nil // this mount removed it: what is pending empties it, and goes when the parent has committed that
	}
	c.mu.Lock()
	s := c.salvage
	var saved []*Op
	if s != nil && s.Kind == KindFile {
		saved = salvageFile(s, c.ops)
	} else if s != nil {
		touched := map[Ino]bool{}
		for _, p := range c.ops {
			touched[p.op.Ino] = true
		}
		for name, e := range s.entries {
			if n := s.inodes[e.Ino]; n != nil && touched[e.Ino] && n.Nlink > 0 && e.Child.IsZero() {
				saved = append(saved, &Op{Kind: OpMove, Time: now(), Name: name, Entry: e, Inodes: []*Inode{n.clone()}})
				touched[e.Ino] = false
			}
		}
	}
	c.mu.Unlock()
	for _, o := range saved {
		ctx, cancel := context.WithTimeout(context.Background(), t.cfg.CommitTimeout)
		err := t.saveInRoot(ctx, o)
		cancel()
		if err != nil {
			return err
		}
	}
	c.mu.Lock()
	c.ops, c.salvage = nil, nil
	c.mu.Unlock()
	return nil
}

// saveInRoot gives an inode that o has a name in the root directory.
func (t *Tree) saveInRoot(ctx context.Context, o *Op) error {
	err := t.mutateName(ctx, t.cfg.Root, o.Name, true, func(_ *container, r *State) (*Op, error) {
		m := *o
		m.Name = t.conflictName(r, o.Name, o.Time)
		return &m, nil
	}, func(rc *container, _ *Op, _ Seq) { t.withNode(o.Entry.Ino, func(n *node) { n.home = rc.id }) })
	if err != nil {
		return fmt.Errorf("save what was new in a directory or file that is gone: %w", err)
	}
	t.log.Warn().Str("name", o.Name).Msg("a directory or file was removed by another mount; what was new in it is in the root directory")
	return nil
}

// salvageFile returns the operation that puts what was still to be committed of a promoted inode, which has ended, into a
// directory. What was committed before went with the inode.
func salvageFile(s *State, ops []pending) []*Op {
	n := s.only()
	if n == nil || n.Nlink == 0 {
		return nil
	}
	mine, any := map[blocks.StripeID]bool{}, false
	for _, p := range ops {
		any = any || p.op.Kind == OpWriteback && (p.op.Inline || len(p.op.Extents) > 0)
		for i := range p.op.Extents {
			mine[p.op.Extents[i].Stripe.ID] = true
		}
	}
	if !any {
		return nil
	}
	m := n.clone()
	m.setExtents(slices.DeleteFunc(m.Extents, func(x Extent) bool { return !mine[x.Stripe.ID] }))
	return []*Op{{Kind: OpMove, Time: now(), Name: fmt.Sprint("inode ", n.Ino), Entry: Dentry{Type: n.kind(), Ino: n.Ino}, Inodes: []*Inode{m}}}
}

// removalPending reports whether the parent has yet to commit this mount's removal of the directory.
func (t *Tree) removalPending(c *container) bool {
	c.mu.Lock()
	parent := c.endedIn
	c.mu.Unlock()
	t.mu.RLock()
	pc := t.conts[parent]
	t.mu.RUnlock()
	if pc == nil {
		return false
	}
	pc.mu.Lock()
	defer pc.mu.Unlock()
	return slices.ContainsFunc(pc.ops, func(p pending) bool { return p.op.Kind == OpRmdir && p.op.Child == c.id })
}
