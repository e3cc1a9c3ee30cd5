package tree

import (
	"fmt"
	"syscall"

	"github.com/mutualfs/mutualfs/blocks"
)

// Check returns the error that Apply would return, and changes nothing.
func Check(s *State, o *Op) error {
	if o.Kind == OpResolve {
		if s.intent == nil || s.intent.Txn != o.Txn {
			return fmt.Errorf("%w: no intent of transaction %s here", blocks.ErrInvalid, o.Txn.Short())
		}
		return nil
	}
	if s.intent != nil {
		return errIntent
	}
	if s.Dead && !s.concernsOrphans(o) {
		return s.ended()
	}
	switch o.Kind {
	case OpMake, OpUnlink, OpRmdir, OpRename, OpLink, OpMove, OpPromote, OpTouch, OpReparent, OpDie:
		if !s.named() {
			return fmt.Errorf("%w: operation %d on a container of kind %d", blocks.ErrInvalid, o.Kind, s.Kind)
		}
		if err := s.checkPlace(o); err != nil {
			return err
		}
		return s.checkNames(o)
	case OpSpread, OpSplit, OpLearn, OpGather:
		return s.checkPages(o)
	case OpSpill, OpFill:
		return s.checkMaps(o)
	case OpSetattr, OpSetXattr, OpRemoveXattr, OpWriteback, OpTruncate, OpPunch:
		return s.checkInode(o)
	case OpRef:
		return s.checkRef(o)
	case OpMend:
		return s.checkMend(o)
	case OpIntent:
		if o.Inner != nil {
			return Check(s, o.Inner)
		}
	case OpTxn:
		if s.Kind != KindTxn || s.Txn != TxnPending {
			return fmt.Errorf("%w: the transaction has ended", blocks.ErrInvalid)
		}
	case OpFreeClear, OpKeep, OpRelease, OpAtime:
	default:
		return fmt.Errorf("%w: operation of kind %d", blocks.ErrInvalid, o.Kind)
	}
	return nil
}

// concernsOrphans reports whether the operation is one on the open files that an ended container still has.
func (s *State) concernsOrphans(o *Op) bool {
	return o.Kind == OpKeep || o.Kind == OpRelease || o.Kind == OpAtime || ofInode(o.Kind) && s.inodes[o.Ino] != nil
}

func (s *State) checkRef(o *Op) error {
	if s.Kind != KindFile || !o.Txn.IsZero() && s.refs[o.Txn] == 0 {
		return fmt.Errorf("%w: a promoted inode (kind %d) without a name in %s: it has %v", blocks.ErrInvalid, s.Kind, o.Txn.Short(), s.refs)
	}
	switch n := s.only(); {
	case n == nil, !o.Child.IsZero() && n.Nlink == 0:
		return syscall.ENOENT
	case !o.Child.IsZero() && n.Nlink >= maxLinks:
		return syscall.EMLINK
	}
	return nil
}

// only returns the inode of a promoted-inode container.
func (s *State) only() *Inode {
	for _, n := range s.inodes {
		return n
	}
	return nil
}

// checkName refuses what cannot be a new name.
func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return syscall.EINVAL
	case len(name) > MaxName:
		return syscall.ENAMETOOLONG
	}
	for i := range len(name) {
		if name[i] == '/' || name[i] == 0 {
			return syscall.EINVAL
		}
	}
	return nil
}

func (s *State) checkNames(o *Op) error {
	cur, have := s.entries[o.Name]
	switch o.Kind {
	case OpMake:
		if err := checkName(o.Name); err != nil {
			return err
		}
		if have {
			return syscall.EEXIST
		}
		if o.Ino == 0 || s.inode(o.Ino) != nil || isDir(o.Mode) == o.Child.IsZero() || len(o.Data) > MaxTarget {
			return fmt.Errorf("%w: new inode %d", blocks.ErrInvalid, o.Ino)
		}
		if len(o.Data) > 0 && o.Mode&syscall.S_IFMT != syscall.S_IFLNK && checkACL(o.Data) != nil {
			return fmt.Errorf("%w: new inode %d inherits what is no access-control list", blocks.ErrInvalid, o.Ino)
		}
	case OpUnlink:
		switch {
		case !have || o.Ino != 0 && cur.Ino != o.Ino:
			return syscall.ENOENT
		case isDir(cur.Type):
			return syscall.EISDIR
		}
	case OpRmdir:
		switch {
		case !have || o.Ino != 0 && cur.Ino != o.Ino:
			return syscall.ENOENT
		case !isDir(cur.Type):
			return syscall.ENOTDIR
		}
	case OpRename:
		return s.checkRename(o)
	case OpLink:
		if err := checkName(o.New); err != nil {
			return err
		}
		n := s.inodes[o.Ino]
		switch _, dup := s.entries[o.New]; {
		case dup:
			return syscall.EEXIST
		case n == nil || n.Nlink == 0:
			return syscall.ENOENT
		case n.Nlink >= maxLinks:
			return syscall.EMLINK
		}
	case OpMove:
		return s.checkMove(o)
	case OpPromote:
		if s.inodes[o.Ino] == nil || o.Child.IsZero() {
			return syscall.ENOENT
		}
	case OpDie:
		if !s.empty() {
			return syscall.ENOTEMPTY
		}
	}
	return nil
}

// canReplace says whether rename may put a thing of type a in the place of one of type b.
func canReplace(a, b uint32) error {
	switch {
	case isDir(a) && !isDir(b):
		return syscall.ENOTDIR
	case !isDir(a) && isDir(b):
		return syscall.EISDIR
	}
	return nil
}

func (s *State) checkRename(o *Op) error {
	if err := checkName(o.New); err != nil {
		return err
	}
	from, ok := s.entries[o.Name]
	if !ok || o.Ino != 0 && from.Ino != o.Ino {
		return syscall.ENOENT
	}
	to, have := s.entries[o.New]
	fl := RenameFlags(o.Flags)
	switch {
	case fl&RenameExchange != 0 && !have:
		return syscall.ENOENT
	case fl&RenameNoReplace != 0 && have:
		return syscall.EEXIST
	case have && o.Ino2 != to.Ino:
		return fmt.Errorf("%w: %q is not inode %d", blocks.ErrConflict, o.New, o.Ino2)
	case !have && o.Ino2 != 0:
		return fmt.Errorf("%w: %q is gone", blocks.ErrConflict, o.New)
	case have && fl&RenameExchange == 0:
		return canReplace(from.Type, to.Type)
	}
	return nil
}

func (s *State) checkMove(o *Op) error {
	if err := checkName(o.Name); err != nil {
		return err
	}
	cur, have := s.entries[o.Name]
	if !have && o.Ino2 != 0 || have && cur.Ino != o.Ino2 {
		return fmt.Errorf("%w: %q changed", blocks.ErrConflict, o.Name)
	}
	if have && !o.Drop && cur.Child.IsZero() && s.inodes[cur.Ino].Nlink != 1 {
		return fmt.Errorf("%w: inode %d has %d names", blocks.ErrInvalid, cur.Ino, s.inodes[cur.Ino].Nlink)
	}
	in := o.Entry
	if in.Ino == 0 {
		return nil
	}
	if in.Child.IsZero() && (len(o.Inodes) != 1 || o.Inodes[0].Ino != in.Ino || s.inodes[in.Ino] != nil) {
		return fmt.Errorf("%w: inode %d cannot come in", blocks.ErrInvalid, in.Ino)
	}
	if have && o.Drop {
		return canReplace(in.Type, cur.Type)
	}
	return nil
}

func (s *State) checkInode(o *Op) error {
	n := s.inode(o.Ino)
	if n == nil {
		return syscall.ENOENT
	}
	reg := n.kind() == syscall.S_IFREG
	switch o.Kind {
	case OpSetXattr:
		_, have := n.xattr(o.Name)
		switch {
		case len(o.Data) > MaxXattr:
			return syscall.E2BIG
		case o.Name == ACLAccess, o.Name == ACLDefault:
			if o.Name == ACLDefault && !isDir(n.Mode) {
				return syscall.EACCES
			}
			return checkACL(o.Data)
		case o.Name == "" || len(o.Name) > MaxName:
			return syscall.ERANGE
		case o.Flags&xattrCreate != 0 && have:
			return syscall.EEXIST
		case o.Flags&xattrReplace != 0 && !have:
			return syscall.ENODATA
		case !have && n.xattrList()+len(o.Name)+1 > MaxXattrs:
			return syscall.ENOSPC
		}
	case OpRemoveXattr:
		if _, have := n.xattr(o.Name); !have {
			return syscall.ENODATA
		}
	case OpWriteback:
		if !reg {
			return syscall.EINVAL
		}
		return checkWriteback(o)
	case OpTruncate, OpPunch:
		switch {
		case n.kind() == syscall.S_IFDIR:
			return syscall.EISDIR
		case !reg:
			return syscall.EINVAL
		case o.Size > MaxFile || o.Off > MaxFile:
			return syscall.EFBIG
		}
	}
	return nil
}

const (
	xattrCreate  = 1
	xattrReplace = 2
)

func checkWriteback(o *Op) error {
	if o.Size > MaxFile {
		return syscall.EFBIG
	}
	if o.Inline && (uint64(len(o.Data)) > o.Size || len(o.Extents) > 0) {
		return fmt.Errorf("%w: %d bytes inline for a file of %d", blocks.ErrInvalid, len(o.Data), o.Size)
	}
	var at uint64
	for _, x := range o.Extents {
		if err := checkExtent(x, at); err != nil {
			return fmt.Errorf("%w: %v", blocks.ErrInvalid, err)
		}
		at = x.Off + x.Len
	}
	if at > o.Size {
		return fmt.Errorf("%w: content up to %d of a file of %d", blocks.ErrInvalid, at, o.Size)
	}
	return nil
}
