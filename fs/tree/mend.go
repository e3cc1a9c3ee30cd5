package tree

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"syscall"

	"github.com/mutualfs/mutualfs/blocks"
)

// What an audit found is mended here: see docs/audit.md. Every method checks that what it mends is still so, and does nothing,
// with an error, if it is not. They may be called from when Ready is closed.

// LostAndFound is the directory in the root that takes what has lost its name.
const LostAndFound = "lost+found"

// checkMend is Check of OpMend.
func (s *State) checkMend(o *Op) error {
	n := s.inodes[o.Ino]
	switch {
	case o.Name != "":
		if e, have := s.entries[o.Name]; !have || e.Ino != o.Ino || e.Child.IsZero() {
			return syscall.ENOENT
		}
	case n == nil:
		return syscall.ENOENT
	case o.Drop && s.names(o.Ino) > 0, s.Kind == KindFile != (len(o.Regs) > 0) && !o.Drop, !o.Drop && s.named() && s.names(o.Ino) == 0:
		return fmt.Errorf("%w: mend inode %d", blocks.ErrInvalid, o.Ino)
	}
	return nil
}

// names counts the names that an inode has in this container.
func (s *State) names(ino Ino) (n uint32) {
	for _, e := range s.entries {
		if e.Ino == ino {
			n++
		}
	}
	return n
}

// mend is OpMend: with a name, that name goes, whatever its container was; with Drop, an inode without a name leaves; else the
// inode counts its names again, a promoted one those in the directories Regs, one for each name.
func (s *State) mend(o *Op, ef *Effect) {
	if o.Name != "" {
		if isDir(s.entries[o.Name].Type) {
			s.subdirs--
		}
		delete(s.entries, o.Name)
		s.touch(o.Time)
		return
	}
	if o.Drop {
		delete(s.inodes, o.Ino)
		ef.MovedOut = append(ef.MovedOut, o.Ino)
		return
	}
	n := s.inodes[o.Ino]
	n.Ctime = o.Time
	if s.named() {
		n.Nlink = s.names(o.Ino)
		return
	}
	n.Nlink, s.refs = uint32(len(o.Regs)), map[blocks.RegisterID]uint32{}
	for _, dir := range o.Regs {
		s.refs[dir]++
	}
}

// commitMend makes one operation on a container and commits it.
func (t *Tree) commitMend(ctx context.Context, id blocks.RegisterID, o *Op) error {
	o.Time = now()
	_, err := t.mutate(ctx, id, func(*container, *State) (*Op, error) { return o, nil }, nil)
	if err != nil {
		return fmt.Errorf("mend container %s: %w", id.Short(), err)
	}
	c, err := t.cont(id)
	if err != nil {
		return err
	}
	return t.flush(ctx, c, false)
}

// MendName removes a name whose container has ended, or that a directory has too many.
func (t *Tree) MendName(ctx context.Context, in blocks.RegisterID, name string, ino Ino) error {
	return t.commitMend(ctx, in, &Op{Kind: OpMend, Name: name, Ino: ino})
}

// MendLinks lets an inode count its names: those in its container or, of a promoted one, those in dirs, one for each name.
func (t *Tree) MendLinks(ctx context.Context, in blocks.RegisterID, ino Ino, dirs []blocks.RegisterID) error {
	return t.commitMend(ctx, in, &Op{Kind: OpMend, Ino: ino, Regs: dirs})
}

// MendParent tells a directory where it lies.
func (t *Tree) MendParent(ctx context.Context, dir, parent blocks.RegisterID, ino Ino) error {
	return t.commitMend(ctx, dir, &Op{Kind: OpReparent, Child: parent, Ino: ino})
}

// MendFree takes a stripe that is in use off a free list.
func (t *Tree) MendFree(ctx context.Context, in blocks.RegisterID, stripe blocks.StripeID) error {
	return t.commitMend(ctx, in, &Op{Kind: OpFreeClear, Stripes: []blocks.StripeID{stripe}})
}

// EndOrphan ends an inode without names whose sessions, if it has any, are over; what it held becomes free.
func (t *Tree) EndOrphan(ctx context.Context, in blocks.RegisterID, ino Ino, sessions []blocks.RegisterID) error {
	if t.opened(ino) {
		return syscall.EBUSY
	}
	if len(sessions) == 0 {
		sessions = []blocks.RegisterID{{}}
	}
	for _, s := range sessions {
		if err := t.commitMend(ctx, in, &Op{Kind: OpRelease, Inos: []Ino{ino}, Session: s}); err != nil {
			return err
		}
	}
	return nil
}

// EndRegister deletes a register that nothing names and whose content is nobody's, or also elsewhere: its stripes stay.
// ErrConflict: it is not as it was in that version any more.
func (t *Tree) EndRegister(ctx context.Context, id blocks.RegisterID, version blocks.Version) error {
	r, err := t.regs.Read(ctx, id, 0)
	if errors.Is(err, blocks.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("end register %s: %w", id.Short(), err)
	}
	if r.Version != version {
		return fmt.Errorf("end register %s: %w: it has changed", id.Short(), blocks.ErrConflict)
	}
	ch := blocks.Change{Base: version, Origin: t.cfg.Mount, Seq: max(uint64(t.j.number()), r.Applied[t.cfg.Mount]+1), Delete: true}
	if _, err := t.propose(ctx, id, ch); err != nil && !errors.Is(err, blocks.ErrNotFound) {
		return fmt.Errorf("end register %s: %w", id.Short(), err)
	}
	c, err := t.cont(id)
	if err == nil {
		t.drop(c)
	}
	return err
}

// Tend loads a container and takes its lease, so that what a mount that is gone has left there comes to its end: intents, open orphans of
// this mount, free lists.
func (t *Tree) Tend(ctx context.Context, id blocks.RegisterID) error {
	for range readsForLease {
		if err := t.read(ctx, id, func(*container, *State) error { return nil }); err != nil {
			return err
		}
	}
	t.wakeFreer()
	return nil
}

// Find puts what has lost its name into the directory lost+found, under its inode number: an inode that lies in a container (nlink or
// not), a promoted one, a directory. name is where a directory of a cycle has its name now, else "".
func (t *Tree) Find(ctx context.Context, what *Facts, ino Ino, namedIn blocks.RegisterID, name string) error {
	lf, err := t.lostAndFound(ctx)
	if err != nil {
		return fmt.Errorf("make /%s: %w", LostAndFound, err)
	}
	defer t.Forget(lf, 1)
	dir, err := t.home(lf)
	if err != nil {
		return err
	}
	as := strconv.FormatUint(uint64(ino), 10)
	return t.contend(ctx, "find "+as, func() error {
		if err := t.makeRoomFor(ctx, dir, as); err != nil {
			return err
		}
		place, err := t.locate(ctx, dir, as)
		if err != nil {
			return err
		}
		ids := []blocks.RegisterID{what.ID, place}
		if name != "" {
			ids = append(ids, namedIn)
		}
		return t.transact(ctx, ids, func(get func(blocks.RegisterID) *container) ([]part, error) {
			to := get(place)
			if to.st.has(as) != nil {
				return nil, errAgain
			}
			if _, have := to.st.entries[as]; have {
				return nil, syscall.EEXIST
			}
			at := now()
			in := &Op{Kind: OpMove, Time: at, Name: as, Entry: Dentry{Ino: ino}}
			out, err := leaveTo(get(what.ID).st, in, what.ID, dir, lf)
			if err != nil {
				return nil, err
			}
			parts := []part{{c: get(what.ID), op: out}, {c: to, op: in}}
			if name != "" {
				parts = append(parts, part{c: get(namedIn), op: &Op{Kind: OpMend, Time: at, Name: name, Ino: ino}})
			}
			return parts, nil
		}, nil)
	})
}

// leaveTo makes the operation by which what lost its name takes up the name that in gives it in directory dir, and completes in.
func leaveTo(st *State, in *Op, id, dir blocks.RegisterID, dirIno Ino) (*Op, error) {
	switch ino := in.Entry.Ino; {
	case st.Kind == KindDir && st.Self.Ino == ino:
		in.Entry.Type, in.Entry.Child = syscall.S_IFDIR, id
		return &Op{Kind: OpReparent, Time: in.Time, Child: dir, Ino: dirIno}, nil
	case st.inodes[ino] == nil:
		return nil, syscall.ENOENT
	case st.Kind == KindFile:
		in.Entry.Type, in.Entry.Child = st.inodes[ino].kind(), id
		return &Op{Kind: OpMend, Time: in.Time, Ino: ino, Regs: []blocks.RegisterID{dir}}, nil
	default:
		in.Entry.Type, in.Inodes = st.inodes[ino].kind(), []*Inode{st.inodes[ino].clone()}
		return &Op{Kind: OpMend, Time: in.Time, Ino: ino, Drop: true}, nil
	}
}

// lostAndFound looks the directory up, or makes it. The caller forgets it.
func (t *Tree) lostAndFound(ctx context.Context) (Ino, error) {
	a, err := t.Lookup(ctx, RootIno, LostAndFound)
	if errors.Is(err, syscall.ENOENT) {
		a, _, err = t.Make(ctx, RootIno, LostAndFound, MakeArgs{Mode: syscall.S_IFDIR | 0o700, Excl: true})
	}
	if err == nil && !a.IsDir() {
		t.Forget(a.Ino, 1)
		err = syscall.ENOTDIR
	}
	return a.Ino, err
}

// reclaim takes stripes that are in use again off the free list.
func (s *State) reclaim(n *Inode) {
	for i := range n.Extents {
		delete(s.free, n.Extents[i].Stripe.ID)
	}
}
