package tree

import (
	"syscall"

	"github.com/mutualfs/mutualfs/blocks"
)

// Kind says what a container holds.
type Kind uint8

const (
	KindDir  Kind = 1 // a directory
	KindFile Kind = 2 // a promoted inode: a file with names in several directories
	KindLock Kind = 3 // the lock that moves of directories take; it holds only an intent
	KindTxn  Kind = 4 // a transaction; see TxnState
	KindPage Kind = 5 // a part of a large directory's names
	KindMap  Kind = 6 // extents of a range of a large file
	// KindSession is no kind of a value: a register without a value is a session, of a mount's tree or of its locks.
	KindSession Kind = 255
)

// TxnState is where a transaction register stands.
type TxnState uint8

const (
	TxnPending   TxnState = 1
	TxnCommitted TxnState = 2
	TxnAborted   TxnState = 3
)

// Dentry is what a name in a directory points to. Child is the container of a directory
// or of a promoted inode, zero for the inodes that lie in the same container.
type Dentry struct {
	Type  uint32 // syscall.S_IFMT bits
	Ino   Ino
	Child blocks.RegisterID
}

// Intent is one container's part in a transaction over several. While it is
// there, nothing else may change in the container.
type Intent struct {
	Txn       blocks.RegisterID
	Parts     []blocks.RegisterID // all participants, in the order of resolution
	Op        *Op                 // what a commit does here; nil: nothing
	OnCommit  []blocks.RegisterID // registers that are garbage after a commit
	OnAbort   []blocks.RegisterID // registers that are garbage after an abort
	FreesTxn  bool                // the last participant: it puts the transaction itself on its free list
	CreatedBy blocks.PeerID
}

// State is the value of one container. It is changed only by Apply, and read and
// changed by one goroutine at a time.
type State struct {
	Kind      Kind
	Self      Inode // a directory's own attributes
	Parent    blocks.RegisterID
	ParentIno Ino
	Dead      bool // removed by a transaction; the register will be deleted
	Txn       TxnState

	pages    []PageRef // of a directory that is spread over pages: by Lo, that of the first is 0
	setAt    Time      // of such a directory: when its time of modification was last set; what pages have is newer or does not count
	span               // of a page: hashes; of a map: bytes of the file, hi exclusive
	fileMaps           // of a promoted inode

	entries  map[string]Dentry
	inodes   map[Ino]*Inode
	left     map[Ino]*husk
	subdirs  uint32
	refs     map[blocks.RegisterID]uint32 // promoted inode: names per directory
	free     map[blocks.StripeID]struct{}
	freeRegs map[blocks.RegisterID]struct{}
	intent   *Intent
}

func newState(k Kind) *State {
	return &State{Kind: k, inodes: map[Ino]*Inode{}, left: map[Ino]*husk{}, free: map[blocks.StripeID]struct{}{}, freeRegs: map[blocks.RegisterID]struct{}{}}
}

// newDir returns the state of a fresh directory.
func newDir(ino Ino, mode, uid, gid uint32, now Time, deflt acl, parent blocks.RegisterID, parentIno Ino) *State {
	s := newState(KindDir)
	s.entries = map[string]Dentry{}
	s.Self = Inode{Ino: ino, Mode: syscall.S_IFDIR | mode&^uint32(syscall.S_IFMT), Uid: uid, Gid: gid, Atime: now, Mtime: now, Ctime: now}
	s.Self.inheritACL(deflt)
	s.Parent, s.ParentIno = parent, parentIno
	return s
}

// Nlink of a directory: its name, its dot, and the dot-dots of its children.
func (s *State) Nlink() uint32 {
	if s.Dead {
		return 0
	}
	return 2 + s.subdirs
}

// Len is the number of names.
func (s *State) Len() int { return len(s.entries) }

// Lookup returns what a name points to.
func (s *State) Lookup(name string) (Dentry, bool) {
	e, ok := s.entries[name]
	return e, ok
}

// inode returns the inode if it lies in this container, the directory itself included.
func (s *State) inode(ino Ino) *Inode {
	if s.Kind == KindDir && ino == s.Self.Ino {
		return &s.Self
	}
	return s.inodes[ino]
}

// named reports whether the container has names.
func (s *State) named() bool { return s.Kind == KindDir || s.Kind == KindPage }

// attr returns what stat shows of an inode in this container, of a directory without its pages.
func (s *State) attr(n *Inode) Attr {
	a := n.attr()
	if len(s.maps) > 0 { // what is to be seen once: what the inode's own extents hide is still in a map
		a.Blocks = min(a.Blocks+(s.mapped()+511)/512, (n.Size+511)/512)
	}
	if n == &s.Self {
		a.Nlink = s.Nlink()
		a.Size = 4096
		a.Blocks = 8
	}
	return a
}

func (s *State) freeStripe(id blocks.StripeID) { s.free[id] = struct{}{} }

func (s *State) touch(now Time) { s.Self.Mtime, s.Self.Ctime = now, now }
