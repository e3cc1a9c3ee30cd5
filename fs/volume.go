package fs

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/content"
	"github.com/mutualfs/mutualfs/fs/locks"
	"github.com/mutualfs/mutualfs/fs/tree"
)

// Names is the half of Backend that knows names, attributes and handles; *tree.Tree is it.
type Names interface {
	Lookup(ctx context.Context, dir tree.Ino, name string) (tree.Attr, error)
	Ref(ino tree.Ino)
	Accessed(ino tree.Ino)
	Forget(ino tree.Ino, n uint64)
	Getattr(ctx context.Context, ino tree.Ino) (tree.Attr, error)
	Setattr(ctx context.Context, ino tree.Ino, set tree.SetAttr) (tree.Attr, error)
	Make(ctx context.Context, dir tree.Ino, name string, args tree.MakeArgs) (attr tree.Attr, created bool, err error)
	Unlink(ctx context.Context, dir tree.Ino, name string) error
	Rmdir(ctx context.Context, dir tree.Ino, name string) error
	Rename(ctx context.Context, dir tree.Ino, name string, newDir tree.Ino, newName string, flags tree.RenameFlags) error
	Link(ctx context.Context, ino tree.Ino, newDir tree.Ino, newName string) (tree.Attr, error)
	Readlink(ctx context.Context, ino tree.Ino) (string, error)
	ReadDir(ctx context.Context, dir tree.Ino, from blocks.RegisterID) (entries []tree.Entry, parent tree.Ino, next blocks.RegisterID, err error)
	Getxattr(ctx context.Context, ino tree.Ino, name string) ([]byte, error)
	Setxattr(ctx context.Context, ino tree.Ino, name string, value []byte, flags uint32) error
	SetACL(ctx context.Context, ino tree.Ino, value []byte, dropSetgid bool) error
	Listxattr(ctx context.Context, ino tree.Ino) ([]string, error)
	Removexattr(ctx context.Context, ino tree.Ino, name string) error
	DropCapability(ctx context.Context, ino tree.Ino) error
	Open(ctx context.Context, ino tree.Ino) (keepCache bool, err error)
	Release(ino tree.Ino)
	LateError(ino tree.Ino) error // what could not be committed, reported once
	Fsync(ctx context.Context, ino tree.Ino) error
	Sync(ctx context.Context) error
	SetNotifier(n tree.Notifier)
}

// VolumeConfig says what a Volume joins.
type VolumeConfig struct {
	Tree    Names
	Content *content.Files
	Locks   *locks.Locks
	Statfs  func(ctx context.Context) (Statfs, error)
}

// Volume joins names, data and locks to a Backend. It has no state of its own: it knows in which
// order they must be asked, and nothing else.
type Volume struct {
	Names
	files    *content.Files
	locks    *locks.Locks
	statfs   func(ctx context.Context) (Statfs, error)
	notifier atomic.Pointer[tree.Notifier]
}

var _ Backend = (*Volume)(nil)

// NewVolume joins what cfg names; all of it is needed.
func NewVolume(cfg VolumeConfig) (*Volume, error) {
	if cfg.Tree == nil || cfg.Content == nil || cfg.Locks == nil || cfg.Statfs == nil {
		return nil, fmt.Errorf("volume without tree, content, locks or statfs: %w", blocks.ErrInvalid)
	}
	v := &Volume{Names: cfg.Tree, files: cfg.Content, locks: cfg.Locks, statfs: cfg.Statfs}
	cfg.Locks.SetFiles(lockedFiles{v})
	return v, nil
}

// SetNotifier sets who tells the kernel what has changed behind its back.
func (v *Volume) SetNotifier(n tree.Notifier) {
	v.notifier.Store(&n)
	v.Names.SetNotifier(n)
}

// Setattr changes the size first: it is what may fail for reasons of its own, and it sets the times that
// the other changes may set otherwise.
func (v *Volume) Setattr(ctx context.Context, ino tree.Ino, set tree.SetAttr) (tree.Attr, error) {
	if set.Size != nil {
		if rest := set; !tree.MayWait(ctx) {
			if rest.Size = nil; rest != (tree.SetAttr{}) {
				return tree.Attr{}, tree.ErrWait // two steps: all or nothing cannot be promised
			}
		}
		if err := v.files.Truncate(ctx, ino, *set.Size); err != nil {
			return tree.Attr{}, err
		}
		set.Size = nil
	}
	if set == (tree.SetAttr{}) {
		return v.Names.Getattr(ctx, ino)
	}
	if set.Mtime != nil {
		if err := v.files.SetMtime(ctx, ino, *set.Mtime); err != nil {
			return tree.Attr{}, err
		}
	}
	return v.Names.Setattr(ctx, ino, set)
}

// Flush is close(2) of one descriptor: the data goes where others find it, then the process's range locks end.
func (v *Volume) Flush(ctx context.Context, ino tree.Ino, owner, handle uint64) error {
	if err := v.flushData(ctx, ino); err != nil {
		if !errors.Is(err, tree.ErrWait) {
			err = errors.Join(err, v.locks.Closed(ctx, uint64(ino), owner, handle, false))
		}
		return err
	}
	return lockErr(v.locks.Closed(ctx, uint64(ino), owner, handle, !tree.MayWait(ctx)))
}

// flushData is the data's part of close(2). Without a lease of its own (attributes are not valid for any time) another mount may open the
// file unseen, so its data is committed now; under a lease that other mount makes it happen.
func (v *Volume) flushData(ctx context.Context, ino tree.Ino) error {
	if err := v.files.Flush(ctx, ino); err != nil {
		return err
	}
	if err := v.storeUnleased(ctx, ino); err != nil {
		return err
	}
	return v.Names.LateError(ino)
}

func (v *Volume) storeUnleased(ctx context.Context, ino tree.Ino) error {
	if !v.files.Dirty(ino) {
		return nil
	}
	a, err := v.Names.Getattr(ctx, ino)
	if err != nil || a.Valid != 0 {
		return err
	}
	return v.files.FlushFile(ctx, ino)
}

// Release ends a handle, and the locks that were taken with it.
func (v *Volume) Release(ino tree.Ino, handle uint64) {
	v.locks.Released(handle)
	v.Names.Release(ino)
}

// Read reads data.
func (v *Volume) Read(ctx context.Context, ino tree.Ino, off uint64, p []byte) (int, error) {
	return v.files.Read(ctx, ino, off, p)
}

// Write writes data.
func (v *Volume) Write(ctx context.Context, ino tree.Ino, off uint64, p []byte, append bool) error {
	return v.files.Write(ctx, ino, off, p, append)
}

// Seek finds data and holes.
func (v *Volume) Seek(ctx context.Context, ino tree.Ino, off uint64, hole bool) (uint64, error) {
	return v.files.Seek(ctx, ino, off, hole)
}

// Fsync of a directory, which has no data, is the tree's alone. That of the root directory stores
// everything: the kernel does not tell FUSE file systems of sync(2), so this is what takes its place. It fails if locks on
// the file were lost: what was written under them may have met what others wrote.
func (v *Volume) Fsync(ctx context.Context, ino tree.Ino) error {
	if ino == tree.RootIno {
		return v.Sync(ctx)
	}
	if err := v.files.Fsync(ctx, ino); err != nil {
		return err
	}
	return v.locks.Check(ctx, uint64(ino))
}

// Sync writes all data, then all metadata.
func (v *Volume) Sync(ctx context.Context) error {
	if err := v.files.Sync(ctx); err != nil {
		return err
	}
	return v.Names.Sync(ctx)
}

// Statfs is what df shows.
func (v *Volume) Statfs(ctx context.Context) (Statfs, error) { return v.statfs(ctx) }

// The modes of fallocate(2) that are known here.
const (
	fallocKeepSize  = 0x01
	fallocPunchHole = 0x02
	fallocZeroRange = 0x10
)

// touch sets the time of modification, as fallocate does also where it changes nothing.
func (v *Volume) touch(ctx context.Context, ino tree.Ino) error {
	now := tree.TimeOf(time.Now())
	_, err := v.Setattr(ctx, ino, tree.SetAttr{Mtime: &now})
	return err
}

// Fallocate grows the file (mode 0), or makes a hole of a range. Space is not reserved: a
// stripe is a new one whenever it is written, so no reservation could be kept.
func (v *Volume) Fallocate(ctx context.Context, ino tree.Ino, off, n uint64, mode uint32) error {
	if n == 0 {
		return syscall.EINVAL
	}
	if off > tree.MaxFile || n > tree.MaxFile-off {
		return syscall.EFBIG
	}
	switch mode {
	case fallocKeepSize:
		return v.touch(ctx, ino)
	case 0:
		a, err := v.Names.Getattr(ctx, ino)
		if err != nil {
			return err
		}
		if a.Size >= off+n {
			return v.touch(ctx, ino)
		}
		return v.files.Grow(ctx, ino, off+n)
	case fallocPunchHole | fallocKeepSize, fallocZeroRange | fallocKeepSize:
		return v.files.Punch(ctx, ino, off, n)
	case fallocZeroRange:
		if !tree.MayWait(ctx) {
			return tree.ErrWait // two steps
		}
		if err := v.files.Grow(ctx, ino, off+n); err != nil {
			return err
		}
		return v.files.Punch(ctx, ino, off, n)
	}
	return syscall.EOPNOTSUPP
}
