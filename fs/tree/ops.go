package tree

import (
	"context"
	"errors"
	"slices"
	"syscall"

	"github.com/mutualfs/mutualfs/blocks"
)

// validFor is how long the kernel may keep what a leased container said.
const validFor = 1e9

// errMoved says that an inode is not in the container where it was looked for.
var errMoved = errors.New("the inode has moved")

// find returns an inode of the container, or errMoved; then its node points to where it is, if the container says that. Of an
// ended container only what is open is left. mu of c must be held.
func (t *Tree) find(c *container, s *State, ino Ino) (*Inode, error) {
	n := s.inode(ino)
	h := s.left[ino]
	switch {
	case n == nil && h != nil:
		t.leave(ino, c.id, h.to)
		return nil, errMoved
	case s.Dead && (n == nil || n == &s.Self):
		return nil, s.ended()
	case n == nil:
		return nil, errMoved
	}
	return n, nil
}

// readIno calls f with the inode and its container's state.
func (t *Tree) readIno(ctx context.Context, ino Ino, f func(c *container, s *State, n *Inode) error) error {
	_, flush := ctx.(asFlush) // content writes back nothing for a ghost
	if g := t.ghostOf(ino); g != nil && !flush {
		return g.read(ino, f)
	}
	for range maxResolutions {
		home, err := t.home(ino)
		if err != nil {
			return err
		}
		err = t.readFor(ctx, home, true, func(c *container, s *State) error {
			n, err := t.find(c, s, ino)
			if err != nil {
				return err
			}
			return f(c, s, n)
		})
		if !errors.Is(err, errMoved) {
			return err
		}
		if err := t.follow(ctx, home, ino); err != nil {
			return err
		}
	}
	return syscall.ESTALE
}

// follow returns nil if an inode that is not at home any more is known to be elsewhere, else ESTALE.
func (t *Tree) follow(ctx context.Context, home blocks.RegisterID, ino Ino) error {
	if err := t.redirectFirst(ctx, home); err != nil {
		return err
	}
	if h, _ := t.home(ino); h != home {
		return nil
	}
	found, err := t.chase(ctx, home, ino)
	if err == nil && !found {
		err = syscall.ESTALE
	}
	return err
}

// mutateIno makes one operation on an inode.
func (t *Tree) mutateIno(ctx context.Context, ino Ino, b func(s *State, n *Inode) (*Op, error), done func(c *container, o *Op, seq Seq)) (Attr, error) {
	var a Attr
	_, flush := ctx.(asFlush)
	if g := t.ghostOf(ino); g != nil && !flush {
		return g.mutate(t, ino, b)
	}
	for range maxResolutions {
		home, err := t.home(ino)
		if err != nil {
			return a, err
		}
		_, err = t.mutateFor(ctx, home, true, func(c *container, s *State) (*Op, error) {
			n, err := t.find(c, s, ino)
			if err != nil {
				return nil, err
			}
			return b(s, n)
		}, func(c *container, o *Op, seq Seq) {
			if done != nil {
				done(c, o, seq)
			}
			if n := c.st.inode(ino); n != nil {
				a = t.show(c, n)
			}
		})
		if !errors.Is(err, errMoved) {
			return a, err
		}
		if err := t.follow(ctx, home, ino); err != nil {
			return a, err
		}
	}
	return a, syscall.ESTALE
}

// show makes the attributes that stat shows, dirty data included. mu of c must be held.
func (t *Tree) show(c *container, n *Inode) Attr {
	a := c.st.attr(n)
	if t.leased(c) && !c.closed {
		a.Valid = validFor
	}
	t.mu.RLock()
	if x := t.nodes[n.Ino]; x != nil && x.atime != 0 {
		a.Atime = max(a.Atime, x.atime)
	}
	if x := t.nodes[n.Ino]; x != nil && n.kind() == syscall.S_IFREG {
		if x.grownEnd > 0 {
			a.Size = max(a.Size, x.grownEnd)
		}
		if x.grownBytes > 0 { // an estimate: what is overwritten is counted twice, but no more than the file has
			a.Blocks = max(a.Blocks, min(a.Blocks+(x.grownBytes+511)/512, (a.Size+511)/512))
		}
		if x.grownMtime != 0 {
			a.Mtime, a.Ctime = x.grownMtime, max(a.Ctime, x.grownMtime)
		}
	}
	t.mu.RUnlock()
	return a
}

// ref counts a reference of the kernel.
func (t *Tree) ref(ino Ino, home blocks.RegisterID) {
	t.mu.Lock()
	n := t.at(ino, home)
	n.lookups++
	n.ghost, n.nameless = nil, false // it has a name, so what ended it did not come to pass
	t.mu.Unlock()
}

// Lookup finds a name and counts a reference.
func (t *Tree) Lookup(ctx context.Context, dir Ino, name string) (Attr, error) {
	if len(name) > MaxName {
		return Attr{}, syscall.ENAMETOOLONG
	}
	var a Attr
	var e Dentry
	var sure bool
	parent, err := t.home(dir)
	if err != nil {
		return a, err
	}
	err = t.readName(ctx, parent, name, func(c *container, s *State) error {
		if !s.named() || s.Self.Ino != dir {
			return syscall.ENOTDIR
		}
		var ok bool
		if e, ok = s.entries[name]; !ok {
			return syscall.ENOENT
		}
		sure = t.leased(c) && !c.closed
		if e.Child.IsZero() {
			a = t.show(c, s.inodes[e.Ino])
			t.ref(e.Ino, c.id)
		}
		return nil
	})
	if err != nil || e.Child.IsZero() {
		return a, err
	}
	a, err = t.dirAttr(ctx, func(f func(c *container, s *State, n *Inode) error) error {
		return t.read(ctx, e.Child, func(c *container, s *State) error {
			n := s.inode(e.Ino)
			if n == nil {
				return syscall.ENOENT
			}
			return f(c, s, n)
		})
	})
	switch {
	case err == nil:
		if !sure { // the name may change unseen
			a.Valid = 0
		}
		t.ref(e.Ino, e.Child)
	case errors.Is(err, syscall.ENOENT) && isDir(e.Type):
		t.clearName(ctx, parent, name, e)
	}
	return a, err
}

// clearName removes the name of a directory that was ended by a removal whose
// second half never came.
func (t *Tree) clearName(ctx context.Context, parent blocks.RegisterID, name string, e Dentry) {
	err := t.mutateName(ctx, parent, name, false, func(_ *container, s *State) (*Op, error) {
		if s.entries[name] != e {
			return nil, nil
		}
		return &Op{Kind: OpRmdir, Time: now(), Name: name, Ino: e.Ino, Child: e.Child}, nil
	}, nil)
	if err != nil {
		t.log.Debug().Err(err).Str("container", parent.Short()).Msg("clear the name of an ended directory")
	}
}

// Ref counts a reference that the kernel got by a listing.
func (t *Tree) Ref(ino Ino) { t.withNode(ino, func(n *node) { n.lookups++ }) }

// Forget gives n references back. With the last one a file without a name ends that is not open.
func (t *Tree) Forget(ino Ino, n uint64) {
	t.mu.Lock()
	x := t.nodes[ino]
	if x == nil {
		t.mu.Unlock()
		return
	}
	x.lookups -= min(n, x.lookups)
	last, home := x.lookups == 0 && x.opens == 0 && x.kept, x.home
	if ino != RootIno && x.idle() {
		delete(t.nodes, ino)
	}
	t.mu.Unlock()
	if last {
		t.let(home, ino)
	}
}

// Getattr is stat.
func (t *Tree) Getattr(ctx context.Context, ino Ino) (Attr, error) {
	a, err := t.dirAttr(ctx, func(f func(c *container, s *State, n *Inode) error) error { return t.readIno(ctx, ino, f) })
	return a, err
}

// Setattr changes attributes; a change of size is a Truncate before the others.
func (t *Tree) Setattr(ctx context.Context, ino Ino, set SetAttr) (Attr, error) {
	if set.Size != nil {
		a, err := t.truncate(ctx, ino, *set.Size)
		if err != nil {
			return a, err
		}
		set.Size = nil
		if set == (SetAttr{}) {
			return a, nil
		}
		ctx = mayWait(ctx) // the first half is done
	}
	if set.Uid != nil || set.Gid != nil {
		if err := t.DropCapability(ctx, ino); err != nil {
			return Attr{}, err
		}
	}
	paged := false
	a, err := t.mutateIno(ctx, ino, func(_ *State, n *Inode) (*Op, error) { return setattrOp(n, set), nil },
		func(c *container, o *Op, seq Seq) {
			paged = c.st.paged()
			t.withNode(ino, func(n *node) {
				if o.Set&setMtime != 0 {
					n.mtimeSeq, n.grownMtime = seq, 0
				}
				if o.Set&setAtime != 0 {
					n.atime = 0
				}
			})
		})
	if err == nil && paged {
		return t.Getattr(mayWait(ctx), ino)
	}
	return a, err
}

// mayWait undoes NoWait.
func mayWait(ctx context.Context) context.Context {
	if n, ok := ctx.(noWait); ok {
		return n.Context
	}
	return ctx
}

func setattrOp(n *Inode, set SetAttr) *Op {
	o := &Op{Kind: OpSetattr, Time: now(), Ino: n.Ino}
	if set.Mode != nil {
		o.Set, o.Mode = o.Set|setMode, *set.Mode&0o7777
	}
	if set.Uid != nil {
		o.Set, o.Uid = o.Set|setUid, *set.Uid
	}
	if set.Gid != nil {
		o.Set, o.Gid = o.Set|setGid, *set.Gid
	}
	if (set.Uid != nil || set.Gid != nil) && set.Mode == nil && !isDir(n.Mode) {
		if m := withoutPrivileges(n.Mode); m != n.Mode {
			o.Set, o.Mode = o.Set|setMode, m&0o7777
		}
	}
	if set.Atime != nil {
		o.Set, o.Atime = o.Set|setAtime, *set.Atime
	}
	if set.Mtime != nil {
		o.Set, o.Mtime = o.Set|setMtime, *set.Mtime
	}
	return o
}

// Make creates an entry and counts a reference.
func (t *Tree) Make(ctx context.Context, dir Ino, name string, args MakeArgs) (a Attr, created bool, err error) {
	if err := checkName(name); err != nil {
		return a, false, err
	}
	if len(args.Target) > MaxTarget {
		return a, false, syscall.ENAMETOOLONG
	}
	if args.Mode&syscall.S_IFMT == 0 {
		args.Mode |= syscall.S_IFREG
	}
	parent, err := t.home(dir)
	if err != nil {
		return a, false, err
	}
	if isDir(args.Mode) {
		a, err = t.mkdir(ctx, dir, parent, name, args)
		return a, err == nil, err
	}
	for needHeir := false; ; {
		heir, err := t.heirOf(ctx, parent, needHeir)
		if err != nil {
			return a, false, err
		}
		err = t.mutateName(ctx, parent, name, true, func(c *container, s *State) (*Op, error) {
			if err := mayMake(s, dir, name); err != nil {
				return nil, err
			}
			o, err := makeOp(s, heir, name, args)
			if err != nil {
				return nil, err
			}
			if o.Ino = t.newIno(); args.Open && !t.leased(c) {
				o.Keep, o.Session = true, t.sessionID()
			}
			return o, nil
		}, func(c *container, o *Op, _ Seq) {
			created = true
			t.ref(o.Ino, c.id)
			if n := c.st.inodes[o.Ino]; n != nil { // another mount may have been quick to remove it
				a = t.show(c, n)
			} else {
				a = Attr{Ino: o.Ino, Mode: o.Mode}
			}
		})
		if errors.Is(err, errNoHeir) {
			needHeir = true
			continue
		}
		if !errors.Is(err, syscall.EEXIST) || args.Excl || args.Mode&syscall.S_IFMT != syscall.S_IFREG {
			return a, created, err
		}
		a, err = t.Lookup(ctx, dir, name)
		if errors.Is(err, syscall.ENOENT) {
			continue // removed meanwhile
		}
		if err == nil && a.Mode&syscall.S_IFMT != syscall.S_IFREG {
			t.Forget(a.Ino, 1)
			return Attr{}, false, syscall.EEXIST
		}
		return a, false, err
	}
}

func mayMake(s *State, dir Ino, name string) error {
	if !s.named() || s.Self.Ino != dir {
		return syscall.ENOTDIR
	}
	if _, have := s.entries[name]; have {
		return syscall.EEXIST
	}
	return nil
}

// errNoHeir says that heirOf must be asked.
var errNoHeir = errors.New("a page does not know its directory's attributes")

// heirOf returns the attributes of a directory that new entries may take over, as far as its pages do not have them:
// nil unless it is known to have pages, or sure.
func (t *Tree) heirOf(ctx context.Context, head blocks.RegisterID, sure bool) (heir *Inode, err error) {
	if !sure && t.hint(head, "") == head {
		return nil, nil
	}
	err = t.read(ctx, head, func(_ *container, s *State) error {
		heir = &Inode{Mode: s.Self.Mode, Gid: s.Self.Gid}
		if d := s.Self.defaultACL(); d != nil {
			heir.setXattr(ACLDefault, d)
		}
		return nil
	})
	return heir, err
}

// makeOp fills in what the directory decides: with set-group-ID, its group; with a default access-control list, the permissions.
func makeOp(s *State, heir *Inode, name string, args MakeArgs) (*Op, error) {
	if s.Kind == KindDir {
		heir = &s.Self
	}
	if heir == nil {
		return nil, errNoHeir
	}
	o := &Op{Kind: OpMake, Time: now(), Name: name, Mode: args.Mode, Uid: args.Uid, Gid: args.Gid, Rdev: args.Rdev}
	switch deflt := heir.defaultACL(); {
	case args.Mode&syscall.S_IFMT == syscall.S_IFLNK:
		o.Data = []byte(args.Target)
	case deflt != nil:
		o.Data, o.Mode = slices.Clone(deflt), deflt.inherit(o.Mode)
	default:
		o.Mode &^= args.Umask
	}
	if heir.Mode&syscall.S_ISGID != 0 {
		o.Gid = heir.Gid
		if isDir(o.Mode) {
			o.Mode |= syscall.S_ISGID
		}
	}
	return o, nil
}

// Readlink returns the target of a symlink.
func (t *Tree) Readlink(ctx context.Context, ino Ino) (string, error) {
	var target string
	err := t.readIno(ctx, ino, func(_ *container, _ *State, n *Inode) error {
		if n.kind() != syscall.S_IFLNK {
			return syscall.EINVAL
		}
		target = n.Target
		return nil
	})
	return target, err
}

// Getxattr returns a copy of an extended attribute's value, or ENODATA.
func (t *Tree) Getxattr(ctx context.Context, ino Ino, name string) ([]byte, error) {
	var v []byte
	err := t.readIno(ctx, ino, func(_ *container, _ *State, n *Inode) error {
		i, ok := n.xattr(name)
		if !ok {
			return syscall.ENODATA
		}
		v = append([]byte{}, n.Xattrs[i].Value...)
		return nil
	})
	return v, err
}

// SetACL gives an inode an access list, and the mode that goes with it. dropSetgid: set-group-ID ends.
func (t *Tree) SetACL(ctx context.Context, ino Ino, value []byte, dropSetgid bool) error {
	if err := checkACL(value); err != nil {
		return err
	}
	v := slices.Clone(value)
	_, err := t.mutateIno(ctx, ino, func(_ *State, n *Inode) (*Op, error) { return aclOp(n, v, dropSetgid), nil }, nil)
	return err
}

// Setxattr sets an extended attribute; flags are XATTR_CREATE and XATTR_REPLACE.
func (t *Tree) Setxattr(ctx context.Context, ino Ino, name string, value []byte, flags uint32) error {
	v := append([]byte{}, value...)
	if home, err := t.home(ino); err == nil {
		if err := t.makeRoom(ctx, home); err != nil && !isElsewhere(err) {
			return err
		}
	}
	_, err := t.mutateIno(ctx, ino, func(*State, *Inode) (*Op, error) {
		return &Op{Kind: OpSetXattr, Time: now(), Ino: ino, Name: name, Data: v, Flags: flags}, nil
	}, nil)
	return err
}

// Listxattr lists the names of the extended attributes.
func (t *Tree) Listxattr(ctx context.Context, ino Ino) ([]string, error) {
	var names []string
	err := t.readIno(ctx, ino, func(_ *container, _ *State, n *Inode) error {
		for _, x := range n.Xattrs {
			names = append(names, x.Name)
		}
		return nil
	})
	return names, err
}

// Removexattr removes an extended attribute, or returns ENODATA.
func (t *Tree) Removexattr(ctx context.Context, ino Ino, name string) error {
	_, err := t.mutateIno(ctx, ino, func(*State, *Inode) (*Op, error) {
		return &Op{Kind: OpRemoveXattr, Time: now(), Ino: ino, Name: name}, nil
	}, nil)
	return err
}
