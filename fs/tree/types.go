package tree

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// Ino is a stable 64-bit inode number; the FUSE node ID is the same number.
type Ino uint64

// RootIno is the inode number of the root directory.
const RootIno Ino = 1

// Limits of names and values, as on Linux.
const (
	MaxName   = 255      // bytes of a name
	MaxTarget = 4095     // bytes of a symlink target
	MaxXattr  = 64 << 10 // bytes of an extended attribute's value
	MaxXattrs = 64 << 10 // bytes of all their names, each with a NUL: listxattr(2) returns no more
	MaxInline = 4 << 10  // bytes of content kept in the inode itself
	MaxFile   = 1 << 50  // bytes
)

// ErrWait is returned to a call made with NoWait that cannot be answered from
// memory at once. Nothing has happened: call again without NoWait.
var ErrWait = errors.New("would wait")

type noWait struct{ context.Context }

// NoWait marks a call that must be answered from local memory (and the journal's
// file) or not at all: see ErrWait.
func NoWait(ctx context.Context) context.Context { return noWait{ctx} }

// MayWait reports whether ctx was not made by NoWait.
func MayWait(ctx context.Context) bool {
	if f, ok := ctx.(asFlush); ok {
		ctx = f.Context
	}
	_, no := ctx.(noWait)
	return !no
}

// Time is a point in time in nanoseconds since the Unix epoch.
type Time int64

// TimeOf converts t.
func TimeOf(t time.Time) Time { return Time(t.UnixNano()) }

// Time converts back.
func (t Time) Time() time.Time { return time.Unix(0, int64(t)) }

// Attr is what stat shows.
type Attr struct {
	Ino    Ino
	Mode   uint32 // type and permissions, as in stat(2): syscall.S_IFREG | 0o644
	Nlink  uint32
	Uid    uint32
	Gid    uint32
	Rdev   uint32
	Size   uint64 // bytes
	Blocks uint64 // of 512 bytes, allocated: holes do not count
	Atime  Time
	Mtime  Time
	Ctime  Time
	// Valid is how long the kernel may keep this (and the entry it came with)
	// without asking again; 0 where another mount may change it unseen.
	Valid time.Duration
}

// IsDir reports whether the attributes are a directory's.
func (a *Attr) IsDir() bool { return a.Mode&syscall.S_IFMT == syscall.S_IFDIR }

// SetAttr says which attributes change; nil leaves one as it is.
type SetAttr struct {
	Mode  *uint32 // permission bits only
	Uid   *uint32
	Gid   *uint32
	Size  *uint64
	Atime *Time
	Mtime *Time
}

// MakeArgs describes a new entry of any kind.
type MakeArgs struct {
	Mode   uint32 // type and permissions
	Umask  uint32 // what of the permissions is not given, unless the directory has a default access-control list
	Uid    uint32
	Gid    uint32
	Rdev   uint32
	Target string // of a symlink
	Excl   bool   // an existing entry is EEXIST; else an existing regular file is returned
	Open   bool   // it will be opened at once
}

// RenameFlags are those of renameat2(2).
type RenameFlags uint32

const (
	RenameNoReplace RenameFlags = 1
	RenameExchange  RenameFlags = 2
)

// Entry is one name of a directory listing with the attributes of what it names.
// Attr.Ino and the type bits of Attr.Mode are always set; the rest only if Full.
type Entry struct {
	Name string
	Attr Attr
	Full bool
}

// Extent maps file bytes [Off, Off+Len) to bytes [At, At+Len) of a stripe's
// content. Bytes of a file that no extent covers are a hole.
type Extent struct {
	Off    uint64
	Len    uint64
	Stripe blocks.StripeRef
	At     uint32
}

// Content is a file's committed (or enqueued) content, or a part of it. The slices must not be changed.
type Content struct {
	Size    uint64
	Inline  []byte   // the first bytes of a file that lie in its inode, at most Size; extents win over them
	Extents []Extent // ascending, disjoint: all that the file has in Part
	Part    Range
	// Flushed: all data records of this mount's journal up to this number are part of it.
	Flushed Seq
}

// Seq numbers the records of a mount's journal, from 1, for ever growing.
type Seq uint64

// Writeback names new content for ranges of a file, written to stripes that
// are durable already (or carried inline).
type Writeback struct {
	Ino     Ino
	Extents []Extent // replace whatever lay in their ranges; ascending, disjoint
	Inline  []byte   // if not nil: the whole content now; Extents is empty
	Size    uint64   // the file's size afterwards
	Mtime   Time
	Flushed Seq // see Content
}

// bytes counts the content that it brings.
func (w *Writeback) bytes() uint64 {
	n := uint64(len(w.Inline))
	for i := range w.Extents {
		n += w.Extents[i].Len
	}
	return n
}

// Notifier calls back what the kernel has cached. Invalidations are queued and never wait.
type Notifier interface {
	InvalidateEntry(dir Ino, name string)
	ExpireEntry(dir Ino, name string) // may still be right, and must be asked for
	InvalidateInode(ino Ino)          // attributes and data
	// Settle returns when the kernel has every answer that was being given and every invalidation that was
	// queued when it was called, or when ctx ends.
	Settle(ctx context.Context)
}
