package tree

import (
	"context"
	"errors"
	"slices"
	"syscall"

	"github.com/mutualfs/mutualfs/blocks"
)

// errCross says that an operation concerns more than one container.
var errCross = errors.New("more than one container")

// errOther says that the name means another file by now.
var errOther = errors.New("the name means another file now")

// opened reports whether this mount has handles on the inode.
func (t *Tree) opened(ino Ino) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	n := t.nodes[ino]
	return n != nil && n.opens > 0
}

// keep marks an operation that may end the inode, which may be nil: if it is open here it stays as an orphan, and if it is not, a note
// that says so is void.
func (t *Tree) keep(o *Op, n *Inode) *Op {
	if n == nil {
		return o
	}
	return o.keep(n, t.sessionID(), t.keeps(n.Ino))
}

// keepKnown is keep where memory is all that it costs to keep an inode: a file that the kernel has looked up stays until it is
// forgotten. Its opening may be on its way.
func (t *Tree) keepKnown(o *Op, c *container, n *Inode) *Op {
	if n == nil || n.kind() != syscall.S_IFREG || n.Nlink > 1 || !t.leased(c) {
		return t.keep(o, n)
	}
	known := false
	t.withNode(n.Ino, func(x *node) {
		known = x.opens > 0 || x.lookups > 0
		x.kept, x.nameless = x.kept || known, true
	})
	return o.keep(n, t.sessionID(), known)
}

func (o *Op) keep(n *Inode, me blocks.RegisterID, keep bool) *Op {
	if o.Keep = keep; keep || n.keptBy(me) {
		o.Session = me
	}
	return o
}

// wanted reports whether an inode is open here or may be opened still, though it has lost its name: by this mount, so that the kernel forgets it
// as soon as nobody uses it.
func (t *Tree) wanted(ino Ino) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	x := t.nodes[ino]
	return x != nil && (x.opens > 0 || x.nameless && x.lookups > 0)
}

// Unlink removes a name that is no directory's.
func (t *Tree) Unlink(ctx context.Context, dir Ino, name string) error {
	parent, err := t.home(dir)
	if err != nil {
		return err
	}
	for {
		var e Dentry
		err = t.mutateName(ctx, parent, name, false, func(c *container, s *State) (*Op, error) {
			var have bool
			switch e, have = s.entries[name]; {
			case !s.named() || s.Self.Ino != dir:
				return nil, syscall.ENOTDIR
			case !have:
				return nil, syscall.ENOENT
			case isDir(e.Type):
				return nil, syscall.EISDIR
			case !e.Child.IsZero():
				return nil, errCross
			}
			return t.keepKnown(&Op{Kind: OpUnlink, Time: now(), Name: name, Ino: e.Ino}, c, s.inodes[e.Ino]), nil
		}, nil)
		if errors.Is(err, errCross) {
			err = t.unlinkPromoted(ctx, parent, name, e)
		}
		if !errors.Is(err, errOther) {
			return err
		}
	}
}

// Rmdir removes an empty directory: under a lease from memory, else by a transaction.
func (t *Tree) Rmdir(ctx context.Context, dir Ino, name string) error {
	parent, err := t.home(dir)
	if err != nil {
		return err
	}
	e, err := t.childDir(ctx, parent, name)
	if err != nil {
		return err
	}
	// The child is loaded first: under a lease its emptiness is known from memory.
	err = t.gather(ctx, e.Child)
	if errors.Is(err, syscall.ENOENT) {
		if !MayWait(ctx) {
			return ErrWait
		}
		t.clearName(ctx, parent, name, e)
	}
	if err != nil {
		return err
	}
	cc, err := t.cont(e.Child)
	if err != nil {
		return err
	}
	if err := t.endUnopened(ctx, cc); err != nil {
		return err
	}
	err = t.rmdirEmpty(ctx, parent, name, e, cc)
	if errors.Is(err, errCross) {
		err = t.rmdirAcross(ctx, parent, name, e)
	}
	return err
}

// endUnopened ends the files without names of a directory that nobody has open, though the kernel has not forgotten them yet: what is
// only known goes with the directory.
func (t *Tree) endUnopened(ctx context.Context, c *container) error {
	me := t.sessionID()
	unopened := func(s *State) (inos []Ino) {
		for ino, n := range s.inodes {
			if n.Nlink == 0 && n.keptBy(me) && !t.opened(ino) {
				inos = append(inos, ino)
			}
		}
		return inos
	}
	c.mu.Lock()
	some := c.st != nil && c.st.empty() && t.fast(c) && len(unopened(c.st)) > 0
	c.mu.Unlock()
	if !some {
		return nil
	}
	_, err := t.mutateFor(NoWait(mayWait(ctx)), c.id, true, func(_ *container, s *State) (*Op, error) {
		inos := unopened(s)
		if !s.empty() || len(inos) == 0 {
			return nil, nil
		}
		slices.Sort(inos)
		return &Op{Kind: OpRelease, Time: now(), Inos: inos, Session: me}, nil
	}, func(_ *container, o *Op, _ Seq) { t.closed(o.Inos) })
	if errors.Is(err, ErrWait) {
		return nil // the slow way knows orphans
	}
	return err
}

// rmdirEmpty removes the name, and lets the end of the child's register follow. errCross: one of the two is not leased, so
// that another mount may use or remove it, too, or the directory has files that are open, which its register must outlive.
func (t *Tree) rmdirEmpty(ctx context.Context, parent blocks.RegisterID, name string, e Dentry, cc *container) error {
	return t.mutateName(ctx, parent, name, false, func(c *container, s *State) (*Op, error) {
		if s.entries[name] != e {
			return nil, syscall.ENOENT
		}
		if !t.leased(c) { // whoever meets the name of a directory that has ended takes it away
			return nil, errCross
		}
		return t.rmdirOp(cc, name, e)
	}, func(c *container, o *Op, _ Seq) {
		cc.mu.Lock()
		defer cc.mu.Unlock()
		cc.removed, cc.endedIn = true, c.id
		if cc.st != nil {
			t.haunt(&cc.st.Self, o.Time)
		}
	})
}

// rmdirOp takes over what the empty directory leaves behind. The parent's mu is held.
func (t *Tree) rmdirOp(cc *container, name string, e Dentry) (*Op, error) {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	switch {
	case cc.removed:
		return nil, syscall.ENOENT
	case cc.st == nil: // it was dropped from memory meanwhile
		return nil, errCross
	case !cc.st.empty():
		return nil, syscall.ENOTEMPTY
	case !t.leased(cc), len(cc.st.inodes)+len(cc.st.left) > 0:
		return nil, errCross
	}
	o := &Op{Kind: OpRmdir, Time: now(), Name: name, Ino: e.Ino, Child: e.Child}
	for id := range cc.st.free {
		o.Stripes = append(o.Stripes, id)
	}
	for id := range cc.st.freeRegs {
		o.Regs = append(o.Regs, id)
	}
	return o, nil
}

// childDir returns the entry of a directory's name.
func (t *Tree) childDir(ctx context.Context, parent blocks.RegisterID, name string) (Dentry, error) {
	var e Dentry
	err := t.readName(ctx, parent, name, func(_ *container, s *State) error {
		var ok bool
		switch e, ok = s.entries[name]; {
		case !s.named():
			return syscall.ENOTDIR
		case name == ".":
			return syscall.EINVAL
		case name == "..":
			return syscall.ENOTEMPTY
		case !ok:
			return syscall.ENOENT
		case !isDir(e.Type):
			return syscall.ENOTDIR
		}
		return nil
	})
	return e, err
}

// Rename is renameat2.
func (t *Tree) Rename(ctx context.Context, dir Ino, name string, newDir Ino, newName string, flags RenameFlags) error {
	if err := checkName(newName); err != nil {
		return err
	}
	if flags&^(RenameNoReplace|RenameExchange) != 0 || flags == RenameNoReplace|RenameExchange {
		return syscall.EINVAL
	}
	from, err := t.home(dir)
	if err != nil {
		return err
	}
	to, err := t.home(newDir)
	if err != nil {
		return err
	}
	if from != to {
		return t.renameAcross(ctx, from, name, to, newName, flags)
	}
	err = t.mutateName(ctx, from, newName, true, func(c *container, s *State) (*Op, error) {
		if s.has(name) != nil { // another page
			return nil, errCross
		}
		return t.renameOp(c, s, name, newName, flags)
	}, nil)
	if errors.Is(err, errCross) {
		return t.renameAcross(ctx, from, name, to, newName, flags)
	}
	return err
}

// renameOp makes a rename inside one directory, or errCross if it ends a directory or a promoted inode's name.
func (t *Tree) renameOp(c *container, s *State, name, newName string, flags RenameFlags) (*Op, error) {
	e, ok := s.entries[name]
	if !ok {
		return nil, syscall.ENOENT
	}
	o := &Op{Kind: OpRename, Time: now(), Name: name, New: newName, Ino: e.Ino, Flags: uint32(flags)}
	old, have := s.entries[newName]
	if !have {
		return o, nil
	}
	if flags&RenameNoReplace != 0 {
		return nil, syscall.EEXIST
	}
	o.Ino2 = old.Ino
	if flags&RenameExchange == 0 && e.Ino != old.Ino {
		if err := canReplace(e.Type, old.Type); err != nil {
			return nil, err
		}
		if !old.Child.IsZero() {
			return nil, errCross
		}
		t.keepKnown(o, c, s.inodes[old.Ino])
	}
	return o, nil
}

// Link gives an inode another name and counts a reference.
func (t *Tree) Link(ctx context.Context, ino Ino, newDir Ino, newName string) (Attr, error) {
	var a Attr
	if err := checkName(newName); err != nil {
		return a, err
	}
	to, err := t.home(newDir)
	if err != nil {
		return a, err
	}
	home, err := t.home(ino)
	if err != nil {
		return a, err
	}
	if t.headOf(home) == to && ino != newDir { // both in one directory, and perhaps in one container
		err = t.mutateName(ctx, to, newName, true, func(_ *container, s *State) (*Op, error) {
			if s.inodes[ino] == nil {
				return nil, errCross
			}
			return &Op{Kind: OpLink, Time: now(), Ino: ino, New: newName}, nil
		}, func(c *container, _ *Op, _ Seq) {
			t.ref(ino, c.id)
			a.Ino = ino
			if n := c.st.inodes[ino]; n != nil { // another mount may have been quick to move it
				a = t.show(c, n)
			}
		})
		if !errors.Is(err, errCross) {
			return a, err
		}
	}
	if err := t.linkAcross(ctx, ino, to, newName); err != nil {
		return a, err
	}
	if a, err = t.Getattr(ctx, ino); err == nil {
		t.withNode(ino, func(n *node) { n.lookups++ })
	}
	return a, err
}
