package fs

import (
	"context"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/locks"
	"github.com/mutualfs/mutualfs/fs/tree"
)

// Backend is the POSIX meaning behind the FUSE face. Every call is bounded by
// ctx, honours its cancellation, and may be made with tree.NoWait. Errors are
// syscall.Errno where POSIX names one, else the classes of package blocks, which
// the face maps to an errno in one table.
//
// Every successful Lookup, Make and Link, and every Full entry of a ReadDir that the
// face passed on to the kernel by READDIRPLUS (Ref), gives the kernel one reference to the
// inode, which Forget gives back. Unlinked inodes live until their last open handle is released.
type Backend interface {
	Lookup(ctx context.Context, dir tree.Ino, name string) (tree.Attr, error)
	Ref(ino tree.Ino)
	// Accessed says that something was read, so that it may get a new access time. It does not wait.
	Accessed(ino tree.Ino)
	Forget(ino tree.Ino, n uint64)
	Getattr(ctx context.Context, ino tree.Ino) (tree.Attr, error)
	Setattr(ctx context.Context, ino tree.Ino, set tree.SetAttr) (tree.Attr, error)
	// Make creates a file, directory, symlink or special file. created is false if an
	// existing regular file was found (not Excl).
	Make(ctx context.Context, dir tree.Ino, name string, args tree.MakeArgs) (attr tree.Attr, created bool, err error)
	Unlink(ctx context.Context, dir tree.Ino, name string) error
	Rmdir(ctx context.Context, dir tree.Ino, name string) error
	Rename(ctx context.Context, dir tree.Ino, name string, newDir tree.Ino, newName string, flags tree.RenameFlags) error
	Link(ctx context.Context, ino tree.Ino, newDir tree.Ino, newName string) (tree.Attr, error)
	Readlink(ctx context.Context, ino tree.Ino) (string, error)
	// ReadDir returns a part of a directory as it is now, without "." and "..": the first if from is zero, with its parent, else that
	// which begins there. next is where the next part begins, zero after the last.
	// The slice belongs to the caller, the kernel's references are not counted: see Ref.
	ReadDir(ctx context.Context, dir tree.Ino, from blocks.RegisterID) (entries []tree.Entry, parent tree.Ino, next blocks.RegisterID, err error)

	Getxattr(ctx context.Context, ino tree.Ino, name string) ([]byte, error) // ENODATA
	Setxattr(ctx context.Context, ino tree.Ino, name string, value []byte, flags uint32) error
	// SetACL is Setxattr of tree.ACLAccess: the mode changes with it. dropSetgid: set-group-ID ends.
	SetACL(ctx context.Context, ino tree.Ino, value []byte, dropSetgid bool) error
	Listxattr(ctx context.Context, ino tree.Ino) ([]string, error)
	Removexattr(ctx context.Context, ino tree.Ino, name string) error

	// Open counts a handle of a regular file. keepCache: what the kernel has cached of its data is still right.
	Open(ctx context.Context, ino tree.Ino) (keepCache bool, err error)
	// Flush is close(2) of one descriptor: the errors that came late,
	// close-to-open for other mounts, and the end of the owner's range locks.
	Flush(ctx context.Context, ino tree.Ino, owner, handle uint64) error
	// Release ends a handle and the locks taken with it. It cannot fail and does not wait.
	Release(ino tree.Ino, handle uint64)
	// Read fills p from off and returns how many bytes, fewer only at the end of the file.
	Read(ctx context.Context, ino tree.Ino, off uint64, p []byte) (int, error)
	// Write writes all of p at off (at the end if append) or fails. p belongs to the caller again afterwards.
	Write(ctx context.Context, ino tree.Ino, off uint64, p []byte, append bool) error
	// DropCapability removes the capabilities that a file may have: it is about to be written by a process.
	DropCapability(ctx context.Context, ino tree.Ino) error
	// Seek is lseek's SEEK_DATA, or SEEK_HOLE if hole. ENXIO: off is not in the file, or no data follows.
	Seek(ctx context.Context, ino tree.Ino, off uint64, hole bool) (uint64, error)
	Fallocate(ctx context.Context, ino tree.Ino, off, n uint64, mode uint32) error
	Fsync(ctx context.Context, ino tree.Ino) error // of a file or a directory
	// Sync makes everything durable.
	Sync(ctx context.Context) error

	// Lock takes an advisory lock, in place of what the owner has in its range: EAGAIN if another owner's is in the way.
	// handle names the open file description. LockWait waits, without a bound of its own; EDEADLK.
	Lock(ctx context.Context, want locks.Lock, handle uint64) error
	LockWait(ctx context.Context, want locks.Lock, handle uint64) error
	Unlock(ctx context.Context, want locks.Lock) error
	// QueryLock finds a lock that is in the way of want.
	QueryLock(ctx context.Context, want locks.Lock) (locks.Lock, bool, error)

	Statfs(ctx context.Context) (Statfs, error)
	SetNotifier(n tree.Notifier)
}

// Statfs is what df shows. It is logical: what still can be written, not raw disks.
type Statfs struct {
	Total, Free, Avail uint64 // bytes
	Files              uint64
}
