package tree

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/mutualfs/mutualfs/blocks"
)

// maxDepth bounds the walk to the root.
const maxDepth = 4096

// errAgain says that names changed between a look and the transaction.
var errAgain = errors.New("changed between look and transaction")

// again reports whether a transaction did not come about because what it concerns has changed.
func again(err error) bool {
	return errors.Is(err, errAgain) || overtaken(err) || isElsewhere(err)
}

// move is a rename over containers as it was looked up.
type move struct {
	dir, newDir blocks.RegisterID // the directories
	from, to    blocks.RegisterID // the containers that have the names: the directories or pages of them
	name        string
	newName     string
	flags       RenameFlags
	e, old      Dentry
	have        bool
	died        *Inode // the directory that the move replaced
}

// renameAcross renames between directories, and what else one register cannot do alone: replacing a
// directory, or a name of a promoted inode.
func (t *Tree) renameAcross(ctx context.Context, dir blocks.RegisterID, name string, newDir blocks.RegisterID, newName string, flags RenameFlags) error {
	if !MayWait(ctx) {
		return ErrWait
	}
	return t.contend(ctx, fmt.Sprintf("rename of %q", name), func() error {
		m := move{dir: dir, newDir: newDir, name: name, newName: newName, flags: flags}
		err := t.lookMove(ctx, &m)
		if err != nil {
			return err
		}
		if m.have && m.e.Ino == m.old.Ino {
			return nil
		}
		err = t.transact(ctx, m.participants(t), func(get func(blocks.RegisterID) *container) ([]part, error) {
			return t.planMove(&m, get)
		}, t.loopCheck(ctx, &m))
		if err == nil && m.died != nil {
			t.haunt(m.died, now())
		}
		return err
	})
}

// lookMove reads both names, and gives an inode with more names a container of its own.
func (t *Tree) lookMove(ctx context.Context, m *move) error {
	promote := map[Ino]blocks.RegisterID{}
	look := func(id *blocks.RegisterID, dir blocks.RegisterID, name string) (e Dentry, have, linked bool, err error) {
		err = t.readName(ctx, dir, name, func(c *container, s *State) error {
			if *id = c.id; !s.named() {
				return syscall.ENOTDIR
			}
			e, have = s.entries[name]
			linked = have && e.Child.IsZero() && s.inodes[e.Ino].Nlink > 1
			return nil
		})
		return e, have, linked, err
	}
	exchange := m.flags&RenameExchange != 0
	var ok, eLinked, oldLinked bool
	var err error
	if m.e, ok, eLinked, err = look(&m.from, m.dir, m.name); err != nil {
		return err
	}
	if err := t.makeRoomFor(ctx, m.newDir, m.newName); err != nil {
		return err
	}
	if m.old, m.have, oldLinked, err = look(&m.to, m.newDir, m.newName); err != nil {
		return err
	}
	if eLinked && m.from != m.to {
		promote[m.e.Ino] = m.from
	}
	if oldLinked && m.from != m.to && exchange {
		promote[m.old.Ino] = m.to
	}
	switch {
	case !ok, exchange && !m.have:
		return syscall.ENOENT
	case m.flags&RenameNoReplace != 0 && m.have:
		return syscall.EEXIST
	case m.have && !exchange:
		if err := canReplace(m.e.Type, m.old.Type); err != nil {
			return err
		}
	}
	if m.e.Child == m.newDir && !m.e.Child.IsZero() || exchange && m.old.Child == m.dir && !m.old.Child.IsZero() {
		return syscall.EINVAL
	}
	if m.have && !exchange && isDir(m.old.Type) {
		if err := t.gather(ctx, m.old.Child); err != nil {
			return err
		}
	}
	for ino, home := range promote {
		if err := t.promote(ctx, home, ino); err != nil {
			return err
		}
	}
	if len(promote) > 0 {
		return t.lookMove(ctx, m)
	}
	return nil
}

// movesDir reports whether a directory gets another parent.
func (m *move) movesDir() bool {
	return m.dir != m.newDir && (isDir(m.e.Type) || m.flags&RenameExchange != 0 && isDir(m.old.Type))
}

func (m *move) participants(t *Tree) []blocks.RegisterID {
	ids := []blocks.RegisterID{m.from, m.to}
	if m.dir != m.newDir && !m.e.Child.IsZero() {
		ids = append(ids, m.e.Child)
	}
	if m.have && !m.old.Child.IsZero() && (m.dir != m.newDir || m.flags&RenameExchange == 0) {
		ids = append(ids, m.old.Child)
	}
	if m.movesDir() {
		ids = append(ids, lockID(t.cfg.Root))
	}
	return ids
}

// planMove makes the parts of a move. The containers are frozen.
func (t *Tree) planMove(m *move, get func(blocks.RegisterID) *container) ([]part, error) {
	a, b := get(m.from), get(m.to)
	if a.st.has(m.name) != nil || b.st.has(m.newName) != nil {
		return nil, errAgain
	}
	old, have := b.st.entries[m.newName]
	if a.st.entries[m.name] != m.e || old != m.old || have != m.have {
		return nil, errAgain
	}
	at := now()
	var parts []part
	if m.movesDir() {
		parts = append(parts, part{c: get(lockID(t.cfg.Root)), op: &Op{Kind: OpFreeClear}})
	}
	exchange := m.flags&RenameExchange != 0
	var garbage []blocks.RegisterID
	if m.have && !exchange && !m.old.Child.IsZero() {
		p, end := t.planEnd(get(m.old.Child), m.old, m.newDir, at)
		parts = append(parts, p)
		if end {
			garbage = get(m.old.Child).garbage()
		}
		if m.died = nil; isDir(m.old.Type) {
			m.died = get(m.old.Child).st.Self.clone()
		}
	}
	if a == b {
		o := t.keep(&Op{Kind: OpRename, Time: at, Name: m.name, New: m.newName, Ino: m.e.Ino, Ino2: m.old.Ino, Flags: uint32(m.flags)}, b.st.inodes[m.old.Ino])
		return append(parts, part{c: a, op: o, onCommit: garbage}), nil
	}
	out := &Op{Kind: OpMove, Time: at, Name: m.name, Ino2: m.e.Ino, Child: b.id, Session: t.sessionID()}
	in := &Op{Kind: OpMove, Time: at, Name: m.newName, Ino2: m.old.Ino, Entry: m.e, Drop: m.have && !exchange}
	if exchange {
		in.Child, in.Session = a.id, out.Session
	}
	if in.Drop {
		t.keep(in, b.st.inodes[m.old.Ino])
	}
	if !t.carry(in, a, m.e) {
		return nil, errAgain
	}
	parts = append(parts, t.planFollow(get, m.e, m.dir, m.newDir, b, at)...)
	if exchange {
		out.Entry = m.old
		if !t.carry(out, b, m.old) {
			return nil, errAgain
		}
		parts = append(parts, t.planFollow(get, m.old, m.newDir, m.dir, a, at)...)
	}
	return append(parts, part{c: a, op: out}, part{c: b, op: in, onCommit: garbage}), nil
}

// carry puts the inode that moves into the operation.
func (t *Tree) carry(o *Op, from *container, e Dentry) bool {
	if !e.Child.IsZero() {
		return true
	}
	n := from.st.inodes[e.Ino]
	if n.Nlink != 1 {
		return false
	}
	o.Inodes = []*Inode{t.noted(n)}
	return true
}

// garbage lists what is to be disposed of with a container that ends.
func (c *container) garbage() []blocks.RegisterID {
	regs := []blocks.RegisterID{c.id}
	for id := range c.st.freeRegs {
		regs = append(regs, id)
	}
	return regs
}

// rmdirAcross removes an empty directory with a transaction over it and its parent. Its register stays until nothing in it is open.
func (t *Tree) rmdirAcross(ctx context.Context, dir blocks.RegisterID, name string, e Dentry) error {
	if !MayWait(ctx) {
		return ErrWait
	}
	return t.contend(ctx, fmt.Sprintf("rmdir of %q", name), func() error {
		place, err := t.locate(ctx, dir, name)
		if err != nil {
			return err
		}
		var died *Inode
		at := now()
		err = t.transact(ctx, []blocks.RegisterID{place, e.Child}, func(get func(blocks.RegisterID) *container) ([]part, error) {
			p, c := get(place), get(e.Child)
			if p.st.has(name) != nil {
				return nil, errAgain
			}
			if p.st.entries[name] != e {
				return nil, syscall.ENOENT
			}
			died = c.st.Self.clone()
			return []part{
				{c: c, op: &Op{Kind: OpDie, Time: at}},
				{c: p, op: &Op{Kind: OpMove, Time: at, Name: name, Ino2: e.Ino, Drop: true}, onCommit: c.garbage()},
			}, nil
		}, nil)
		if err == nil && died != nil {
			t.haunt(died, at)
		}
		return err
	})
}

// planFollow is what a move means for the moved thing's own container.
func (t *Tree) planFollow(get func(blocks.RegisterID) *container, e Dentry, from, to blocks.RegisterID, in *container, at Time) []part {
	switch {
	case e.Child.IsZero(), from == to:
		return nil
	case isDir(e.Type):
		return []part{{c: get(e.Child), op: &Op{Kind: OpReparent, Time: at, Child: to, Ino: in.st.Self.Ino}}}
	}
	return []part{{c: get(e.Child), op: &Op{Kind: OpRef, Time: at, Child: to, Txn: from}}}
}

// planEnd is what the loss of a name in dir means for the container of its directory or promoted inode.
// end: the container is garbage afterwards.
func (t *Tree) planEnd(c *container, e Dentry, dir blocks.RegisterID, at Time) (p part, end bool) {
	if isDir(e.Type) {
		return part{c: c, op: &Op{Kind: OpDie, Time: at}}, true
	}
	n := c.st.only()
	return part{c: c, op: t.keep(&Op{Kind: OpRef, Time: at, Txn: dir}, n)}, n != nil && n.Nlink == 1
}

// loopCheck returns what a move of a directory checks while it has the rename lock, when nobody can change
// any ancestor's parent: that the directory does not get into itself.
func (t *Tree) loopCheck(ctx context.Context, m *move) func() error {
	if !m.movesDir() {
		return nil
	}
	return func() error {
		if isDir(m.e.Type) {
			if err := t.notAbove(ctx, m.e.Child, m.newDir); err != nil {
				return err
			}
		}
		if m.flags&RenameExchange != 0 && isDir(m.old.Type) {
			return t.notAbove(ctx, m.old.Child, m.dir)
		}
		return nil
	}
}

// notAbove returns EINVAL if dir is at or above where.
func (t *Tree) notAbove(ctx context.Context, dir, where blocks.RegisterID) error {
	for range maxDepth {
		if where == dir {
			return syscall.EINVAL
		}
		if where == t.cfg.Root || where.IsZero() {
			return nil
		}
		up, err := t.parentOf(ctx, where)
		if err != nil {
			return err
		}
		where = up
	}
	return fmt.Errorf("%w: directories nested deeper than %d", syscall.ELOOP, maxDepth)
}

// parentOf reads a directory's parent. It takes nothing and recalls nothing, for the caller has containers that others may wait
// for; parents are changed by transactions alone, so nothing about them is pending with the holder of a lease.
func (t *Tree) parentOf(ctx context.Context, id blocks.RegisterID) (blocks.RegisterID, error) {
	c, err := t.cont(id)
	if err != nil {
		return id, err
	}
	for range maxResolutions {
		parent, in, err := t.parentAndIntent(ctx, c)
		if err != nil || in == nil || in.Op == nil || in.Op.Kind != OpReparent {
			return parent, err
		}
		// A move that is committed counts, whether it has been resolved here or not. One that is pending never will be: whoever has
		// the rename lock now has had it aborted.
		tc, err := t.newContainer(in.Txn)
		if err != nil {
			return id, err
		}
		switch state, err := t.txnState(ctx, tc); {
		case err != nil:
			return id, err
		case state == TxnCommitted:
			return in.Op.Child, nil
		case state != 0:
			return parent, nil
		}
	}
	return id, fmt.Errorf("container %s does not come to rest: %w", id.Short(), errAgain)
}

// parentAndIntent returns the agreed parent of a directory, and the intent that lies there.
func (t *Tree) parentAndIntent(ctx context.Context, c *container) (blocks.RegisterID, *Intent, error) {
	c.mu.Lock()
	if c.st != nil && !c.fenced && t.sure(c) {
		defer c.mu.Unlock()
		return c.st.Parent, c.st.intent, nil
	}
	c.mu.Unlock()
	r, err := t.regs.Peek(ctx, c.id)
	if err != nil {
		return c.id, nil, fmt.Errorf("read container %s: %w", c.id.Short(), err)
	}
	st, err := c.stateOf(r)
	if err != nil {
		return c.id, nil, err
	}
	return st.Parent, st.intent, nil
}

// promote gives a file of a directory a container of its own. It is atomic in the directory: before, nobody
// knows the new container.
func (t *Tree) promote(ctx context.Context, home blocks.RegisterID, ino Ino) error {
	defer t.making.enter()()
	id, err := t.newID()
	if err != nil {
		return err
	}
	if err := t.flushPath(ctx, home); err != nil {
		return err
	}
	c, err := t.cont(home)
	if err != nil {
		return err
	}
	if err := c.acquire(ctx); err != nil {
		return err
	}
	defer c.release()
	defer c.thaw()
	if err := t.freeze(ctx, c); err != nil {
		return err
	}
	n := c.st.inodes[ino]
	if !c.st.named() || n == nil || n.Nlink == 0 {
		return nil // somebody else was first: the caller looks again
	}
	st := newState(KindFile)
	st.inodes[ino] = t.noted(n)
	st.refs = map[blocks.RegisterID]uint32{c.st.head(home): n.Nlink}
	cc, err := t.cont(id)
	if err != nil {
		return err
	}
	cc.mu.Lock()
	cc.st, cc.unborn = st, true
	cc.mu.Unlock()
	if err := t.j.wait(t.noteMove(ino, id)); err != nil {
		return err
	}
	if err := t.ensureSession(ctx); err != nil {
		return err
	}
	if err := t.flush(ctx, cc, false); err != nil {
		return err
	}
	seq := t.j.number()
	_, err = t.commitOne(ctx, c, seq, &Op{Kind: OpPromote, Time: now(), Ino: ino, Child: id, Session: t.sessionID()}, nil)
	if overtaken(err) {
		var made bool
		if made, err = t.wasMade(ctx, c, seq); err == nil && !made { // the caller looks again; the new container is nobody's
			t.discard(ctx, cc)
			return nil
		}
	}
	if err == nil {
		t.withNode(ino, func(x *node) { x.home = id })
	}
	return err
}

// promoted returns the container of a promoted inode that a name here leads to, zero if none does.
func (s *State) promoted(ino Ino) (id blocks.RegisterID) {
	for _, e := range s.entries {
		if e.Ino == ino && !isDir(e.Type) && !e.Child.IsZero() {
			return e.Child
		}
	}
	return id
}

// linkAcross gives an inode a name in another directory.
func (t *Tree) linkAcross(ctx context.Context, ino Ino, dir blocks.RegisterID, newName string) error {
	if !MayWait(ctx) {
		return ErrWait
	}
	return t.contend(ctx, fmt.Sprintf("link to %q", newName), func() error {
		if err := t.makeRoomFor(ctx, dir, newName); err != nil {
			return err
		}
		var to blocks.RegisterID
		err := t.readName(ctx, dir, newName, func(c *container, s *State) error {
			if to = c.id; !s.named() {
				return syscall.ENOTDIR
			}
			if _, have := s.entries[newName]; have {
				return syscall.EEXIST
			}
			return nil
		})
		if err != nil {
			return err
		}
		var typ uint32
		var home blocks.RegisterID
		promoted := false
		err = t.readIno(ctx, ino, func(c *container, s *State, n *Inode) error {
			home, typ, promoted = c.id, n.kind(), s.Kind == KindFile
			switch {
			case isDir(n.Mode):
				return syscall.EPERM
			case n.Nlink == 0:
				return syscall.ENOENT
			case n.Nlink >= maxLinks:
				return syscall.EMLINK
			}
			return nil
		})
		if err != nil {
			return err
		}
		if !promoted {
			if err := t.promote(ctx, home, ino); err != nil {
				return err
			}
			return errAgain // now it has a container of its own
		}
		return t.transact(ctx, []blocks.RegisterID{home, to}, func(get func(blocks.RegisterID) *container) ([]part, error) {
			at := now()
			if get(to).st.has(newName) != nil {
				return nil, errAgain
			}
			if _, have := get(to).st.entries[newName]; have {
				return nil, syscall.EEXIST
			}
			return []part{
				{c: get(home), op: &Op{Kind: OpRef, Time: at, Child: dir}},
				{c: get(to), op: &Op{Kind: OpMove, Time: at, Name: newName, Entry: Dentry{Type: typ, Ino: ino, Child: home}}},
			}, nil
		}, nil)
	})
}

// unlinkPromoted removes a name of a promoted inode; errOther: it is another's now.
func (t *Tree) unlinkPromoted(ctx context.Context, dir blocks.RegisterID, name string, e Dentry) error {
	return t.contend(ctx, fmt.Sprintf("unlink of %q", name), func() error {
		place, err := t.locate(ctx, dir, name)
		if err != nil {
			return err
		}
		return t.transact(ctx, []blocks.RegisterID{place, e.Child}, func(get func(blocks.RegisterID) *container) ([]part, error) {
			at := now()
			if get(place).st.has(name) != nil {
				return nil, errAgain
			}
			if is, have := get(place).st.entries[name]; !have {
				return nil, syscall.ENOENT
			} else if is != e {
				return nil, errOther
			}
			p, end := t.planEnd(get(e.Child), e, dir, at)
			q := part{c: get(place), op: &Op{Kind: OpMove, Time: at, Name: name, Ino2: e.Ino, Drop: true}}
			if end {
				q.onCommit = append(q.onCommit, e.Child)
			}
			return []part{p, q}, nil
		}, nil)
	})
}
