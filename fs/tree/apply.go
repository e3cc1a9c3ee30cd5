package tree

import (
	"errors"
	"slices"
	"syscall"

	"github.com/mutualfs/mutualfs/blocks"
)

// maxLinks bounds the names of one inode, as ext4 does.
const maxLinks = 65000

// errIntent says that a transaction must be resolved before anything else can be applied.
var errIntent = errors.New("a transaction is under way")

// Effect is what an operation did that the state does not show afterwards.
type Effect struct {
	Gone     []Ino // inodes that exist no more
	MovedOut []Ino // inodes that left for another container
	MovedIn  []Ino

	ended []*Inode // of Gone
}

func isDir(mode uint32) bool { return mode&syscall.S_IFMT == syscall.S_IFDIR }

// Apply changes the state by an operation, or returns an error and leaves it as it
// was. Errors are of type syscall.Errno, errIntent, or of class blocks.ErrInvalid for
// an operation that makes no sense here. It depends on nothing but its arguments.
func Apply(s *State, o *Op) (Effect, error) {
	if err := Check(s, o); err != nil {
		return Effect{}, err
	}
	var ef Effect
	s.do(o, &ef)
	return ef, nil
}

// do applies an operation that Check has let pass.
func (s *State) do(o *Op, ef *Effect) {
	switch o.Kind {
	case OpMake:
		s.make(o)
	case OpUnlink:
		s.remove(o.Name, o, ef)
		s.touch(o.Time)
	case OpRmdir:
		delete(s.entries, o.Name)
		s.subdirs--
		s.leftovers(o)
		s.touch(o.Time)
	case OpRename:
		s.rename(o, ef)
	case OpLink:
		n := s.inodes[o.Ino]
		n.Nlink++
		n.Ctime = o.Time
		s.entries[o.New] = Dentry{Type: n.kind(), Ino: n.Ino}
		s.touch(o.Time)
	case OpMove:
		s.move(o, ef)
	case OpTouch:
		s.touch(o.Time)
		if n := s.inodes[o.Ino]; n != nil {
			n.Ctime = o.Time
		}
		s.leftovers(o)
	case OpPromote:
		s.promote(o, ef)
	case OpReparent:
		s.Parent, s.ParentIno = o.Child, o.Ino
		s.Self.Ctime = o.Time
	case OpDie:
		s.die()
	case OpSpread, OpSplit, OpLearn, OpGather:
		s.doPages(o, ef)
	case OpSpill, OpFill:
		s.doMaps(o)
	case OpMend:
		s.mend(o, ef)
	case OpRef:
		s.ref(o, ef)
	case OpIntent:
		s.intent = intentOf(o)
	case OpResolve:
		s.resolve(o, ef)
	case OpKeep, OpRelease:
		s.notes(o, ef)
	case OpAtime:
		for _, x := range o.Inodes {
			if n := s.inode(x.Ino); n != nil {
				n.Atime = max(n.Atime, x.Atime)
			}
		}
	case OpTxn:
		s.Txn = TxnState(o.Flags)
	case OpFreeClear:
		for _, id := range o.Stripes {
			delete(s.free, id)
		}
		for _, id := range o.Regs {
			delete(s.freeRegs, id)
		}
	default:
		s.doInode(o)
	}
}

// leftovers takes over what a removed directory left behind.
func (s *State) leftovers(o *Op) {
	for _, id := range o.Stripes {
		s.free[id] = struct{}{}
	}
	for _, id := range o.Regs {
		s.freeRegs[id] = struct{}{}
	}
}

func (s *State) make(o *Op) {
	s.entries[o.Name] = Dentry{Type: o.Mode & syscall.S_IFMT, Ino: o.Ino, Child: o.Child}
	s.touch(o.Time)
	if isDir(o.Mode) {
		s.subdirs++
		return
	}
	n := &Inode{Ino: o.Ino, Mode: o.Mode, Nlink: 1, Uid: o.Uid, Gid: o.Gid, Rdev: o.Rdev, Atime: o.Time, Mtime: o.Time, Ctime: o.Time}
	if o.Keep {
		n.note(o.Session, true)
	}
	if n.kind() == syscall.S_IFLNK {
		n.Target = string(o.Data)
		n.Size = uint64(len(o.Data))
	} else {
		n.inheritACL(o.Data)
	}
	s.inodes[o.Ino] = n
}

// remove takes a name away, and with the last one the inode, unless it is open.
func (s *State) remove(name string, o *Op, ef *Effect) {
	cur := s.entries[name]
	delete(s.entries, name)
	if isDir(cur.Type) {
		s.subdirs--
	}
	if !cur.Child.IsZero() {
		return
	}
	n := s.inodes[cur.Ino]
	n.Nlink--
	n.Ctime = o.Time
	s.lost(n, o, ef)
}

// lost ends an inode without names, unless a session has it open.
func (s *State) lost(n *Inode, o *Op, ef *Effect) {
	if !o.Session.IsZero() {
		n.note(o.Session, o.Keep)
	}
	if n.Nlink == 0 && len(n.Keepers) == 0 {
		s.end(n, ef)
	}
}

// notes notes which inodes are open. Those that are not here any more are left out.
func (s *State) notes(o *Op, ef *Effect) {
	for _, ino := range o.Inos {
		if h := s.left[ino]; h != nil && o.Kind == OpRelease {
			if h.keepers = noted(h.keepers, o.Session, false); len(h.keepers) == 0 {
				delete(s.left, ino)
			}
		}
		n := s.inodes[ino]
		if n == nil {
			continue
		}
		if n.note(o.Session, o.Kind == OpKeep); n.Nlink == 0 && len(n.Keepers) == 0 {
			s.end(n, ef)
		}
	}
}

// end frees an inode's stripes and forgets it.
func (s *State) end(n *Inode, ef *Effect) {
	n.freeAll(s.freeStripe)
	s.dropMaps()
	delete(s.inodes, n.Ino)
	ef.Gone = append(ef.Gone, n.Ino)
	ef.ended = append(ef.ended, n)
}

func (s *State) rename(o *Op, ef *Effect) {
	from := s.entries[o.Name]
	to, have := s.entries[o.New]
	if o.Name == o.New || have && to.Ino == from.Ino { // two names of one inode: POSIX does nothing
		return
	}
	s.changed(from, o.Time)
	if RenameFlags(o.Flags)&RenameExchange != 0 {
		s.entries[o.Name], s.entries[o.New] = to, from
		s.changed(to, o.Time)
	} else {
		if have {
			s.remove(o.New, o, ef)
		}
		delete(s.entries, o.Name)
		s.entries[o.New] = from
	}
	s.touch(o.Time)
}

// changed sets the change time of an inode that lies here.
func (s *State) changed(e Dentry, now Time) {
	if n := s.inodes[e.Ino]; n != nil {
		n.Ctime = now
	}
}

func (s *State) move(o *Op, ef *Effect) {
	if o.Ino2 != 0 {
		if o.Drop {
			s.remove(o.Name, o, ef)
		} else {
			cur := s.entries[o.Name]
			delete(s.entries, o.Name)
			if isDir(cur.Type) {
				s.subdirs--
			}
			if cur.Child.IsZero() {
				s.goes(cur.Ino, o, ef)
			}
		}
	}
	if in := o.Entry; in.Ino != 0 {
		s.entries[o.Name] = in
		if isDir(in.Type) {
			s.subdirs++
		}
		if in.Child.IsZero() {
			n := o.Inodes[0].clone()
			n.Nlink, n.Ctime = 1, o.Time
			s.inodes[in.Ino] = n
			delete(s.left, in.Ino)
			s.reclaim(n) // an inode that comes back after it was removed by another mount
			ef.MovedIn = append(ef.MovedIn, in.Ino)
		}
	}
	s.touch(o.Time)
}

// goes takes out an inode that goes to another container.
func (s *State) goes(ino Ino, o *Op, ef *Effect) {
	if h := huskOf(s.inodes[ino], o.Child, o.Session); h != nil {
		s.left[ino] = h
	}
	delete(s.inodes, ino)
	ef.MovedOut = append(ef.MovedOut, ino)
}

func (s *State) promote(o *Op, ef *Effect) {
	for name, e := range s.entries {
		if e.Ino == o.Ino {
			e.Child = o.Child
			s.entries[name] = e
		}
	}
	s.goes(o.Ino, o, ef)
}

func (s *State) ref(o *Op, ef *Effect) {
	n := s.only()
	n.Ctime = o.Time
	if s.refs == nil {
		s.refs = map[blocks.RegisterID]uint32{}
	}
	if !o.Child.IsZero() {
		s.refs[o.Child]++
		n.Nlink++
	}
	if !o.Txn.IsZero() {
		if s.refs[o.Txn]--; s.refs[o.Txn] == 0 {
			delete(s.refs, o.Txn)
		}
		n.Nlink--
	}
	s.lost(n, o, ef)
}

func (s *State) resolve(o *Op, ef *Effect) {
	in := s.intent
	s.intent = nil
	regs := in.OnAbort
	if o.Drop {
		regs = in.OnCommit
		if in.Op != nil {
			s.do(in.Op, ef)
		}
	}
	for _, r := range regs {
		s.freeRegs[r] = struct{}{}
	}
	if in.FreesTxn {
		s.freeRegs[in.Txn] = struct{}{}
	}
}

func (s *State) doInode(o *Op) {
	n := s.inode(o.Ino)
	switch o.Kind {
	case OpSetattr:
		n.setattr(o)
		if n == &s.Self && o.Set&setMtime != 0 && s.paged() {
			s.setAt = o.Time
		}
	case OpSetXattr:
		n.setXattr(o.Name, o.Data)
		n.setattr(o)
	case OpRemoveXattr:
		n.removeXattr(o.Name)
		n.setattr(o)
	case OpWriteback:
		var inline []byte
		if o.Inline {
			inline = slices.Concat([]byte{}, o.Data)
		}
		for i := range o.Extents {
			delete(s.free, o.Extents[i].Stripe.ID) // repeated after the journal: what is used is not free
		}
		if o.Inline {
			s.dropMaps()
		} else if o.Size < n.Size {
			s.cutMaps(o.Size, ^uint64(0))
		}
		n.writeback(o.Extents, inline, o.Size, s.freeStripe)
		if o.Mtime != 0 {
			n.Mtime, n.Ctime = o.Mtime, max(n.Ctime, o.Mtime)
		}
		n.setFlushed(o.Mount, o.Flushed)
	case OpTruncate:
		if o.Size < n.Size {
			s.cutMaps(o.Size, ^uint64(0))
		}
		n.truncate(o.Size, s.freeStripe)
		n.Mtime, n.Ctime = o.Time, o.Time
		n.clearPrivileges(o.Set)
	case OpPunch:
		l := min(o.Size, MaxFile-o.Off)
		s.cutMaps(o.Off, o.Off+l)
		n.punch(o.Off, l, s.freeStripe)
		n.Mtime, n.Ctime = o.Time, o.Time
	}
}

func (n *Inode) setattr(o *Op) {
	if o.Set&setMode != 0 {
		n.setPermissions(o.Mode)
	}
	if o.Set&setUid != 0 {
		n.Uid = o.Uid
	}
	if o.Set&setGid != 0 {
		n.Gid = o.Gid
	}
	if o.Set&setAtime != 0 {
		n.Atime = o.Atime
	}
	if o.Set&setMtime != 0 {
		n.Mtime = o.Mtime
	}
	n.Ctime = o.Time
}

// clearPrivileges drops set-user-ID, and set-group-ID of an executable, as a
// change of owner or content does.
func (n *Inode) clearPrivileges(set uint8) {
	if set&setMode != 0 {
		n.Mode = withoutPrivileges(n.Mode)
	}
}

func withoutPrivileges(mode uint32) uint32 {
	mode &^= syscall.S_ISUID
	if mode&syscall.S_IXGRP != 0 {
		mode &^= syscall.S_ISGID
	}
	return mode
}
