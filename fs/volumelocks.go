package fs

import (
	"context"
	"errors"

	"github.com/mutualfs/mutualfs/fs/locks"
	"github.com/mutualfs/mutualfs/fs/tree"
)

// lockErr translates the locks' way to say that a call must wait.
func lockErr(err error) error {
	if errors.Is(err, locks.ErrWait) {
		return tree.ErrWait
	}
	return err
}

// Lock takes an advisory lock or fails with EAGAIN.
func (v *Volume) Lock(ctx context.Context, want locks.Lock, handle uint64) error {
	return lockErr(v.locks.Lock(ctx, want, handle, !tree.MayWait(ctx)))
}

// LockWait takes an advisory lock, however long it takes.
func (v *Volume) LockWait(ctx context.Context, want locks.Lock, handle uint64) error {
	return v.locks.LockWait(ctx, want, handle)
}

// Unlock ends an owner's locks in a range.
func (v *Volume) Unlock(ctx context.Context, want locks.Lock) error {
	return lockErr(v.locks.Unlock(ctx, want, !tree.MayWait(ctx)))
}

// QueryLock finds a lock that is in the way.
func (v *Volume) QueryLock(ctx context.Context, want locks.Lock) (locks.Lock, bool, error) {
	found, ok, err := v.locks.Query(ctx, want, !tree.MayWait(ctx))
	return found, ok, lockErr(err)
}

// lockedFiles is what the locks need of the volume.
type lockedFiles struct{ v *Volume }

// Store commits dirty data before a lock ends, if the names' lease would not make it happen: see Flush.
func (l lockedFiles) Store(ctx context.Context, ino uint64, nowait bool) error {
	if nowait {
		ctx = tree.NoWait(ctx)
	}
	err := l.v.storeUnleased(ctx, tree.Ino(ino))
	if errors.Is(err, tree.ErrWait) {
		return locks.ErrWait
	}
	return err
}

// Refresh looks at the file anew, and waits until the kernel has forgotten what it had of it. Under the names'
// lease nobody else has changed it; what was said to the kernel when the lease came may still be on its way.
func (l lockedFiles) Refresh(ctx context.Context, ino uint64) error {
	a, err := l.v.Names.Getattr(ctx, tree.Ino(ino))
	if err != nil {
		return err
	}
	n := l.v.notifier.Load()
	if n == nil {
		return nil
	}
	if a.Valid == 0 {
		(*n).InvalidateInode(tree.Ino(ino))
	}
	(*n).Settle(ctx)
	return context.Cause(ctx)
}
