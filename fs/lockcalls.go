package fs

import (
	"context"
	"errors"
	"syscall"

	"bazil.org/fuse"

	"github.com/mutualfs/mutualfs/fs/locks"
	"github.com/mutualfs/mutualfs/fs/tree"
)

// lockOf translates what the kernel wants locked.
func lockOf(h *fuse.Header, owner fuse.LockOwner, l fuse.FileLock, flags fuse.LockFlags) locks.Lock {
	want := locks.Lock{Ino: uint64(h.Node), Kind: locks.Posix, Owner: uint64(owner), Start: l.Start, End: min(l.End, locks.Last), Pid: uint32(l.PID)}
	if flags&fuse.LockFlock != 0 {
		want.Kind = locks.Flock
	}
	switch l.Type {
	case fuse.LockRead:
		want.Type = locks.Read
	case fuse.LockWrite:
		want.Type = locks.Write
	}
	return want
}

// routeLocks is route for advisory locks. The kernel remembers nothing of them.
func (f *Face) routeLocks(req fuse.Request) (call, bool) {
	switch r := req.(type) {
	case *fuse.LockRequest:
		want := lockOf(&r.Header, r.LockOwner, r.Lock, r.LockFlags)
		return call{run: func(ctx context.Context, _ *reply) error { return f.backend.Lock(ctx, want, uint64(r.Handle)) }}, true
	case *fuse.LockWaitRequest:
		want := lockOf(&r.Header, r.LockOwner, r.Lock, r.LockFlags)
		return call{endless: true, run: func(ctx context.Context, _ *reply) error {
			if tree.MayWait(ctx) {
				return f.backend.LockWait(ctx, want, uint64(r.Handle))
			}
			err := f.backend.Lock(ctx, want, uint64(r.Handle))
			if errors.Is(err, syscall.EAGAIN) {
				return tree.ErrWait
			}
			return err
		}}, true
	case *fuse.UnlockRequest:
		want := lockOf(&r.Header, r.LockOwner, r.Lock, r.LockFlags)
		return call{run: func(ctx context.Context, _ *reply) error { return f.backend.Unlock(ctx, want) }}, true
	case *fuse.QueryLockRequest:
		want := lockOf(&r.Header, r.LockOwner, r.Lock, r.LockFlags)
		return call{run: func(ctx context.Context, out *reply) error {
			found, ok, err := f.backend.QueryLock(ctx, want)
			if err == nil {
				out.lock(found, ok)
			}
			return err
		}}, true
	}
	return call{}, false
}

// lock appends a struct fuse_lk_out.
func (r *reply) lock(l locks.Lock, found bool) {
	typ := uint32(fuse.LockUnlock)
	switch {
	case found && l.Type == locks.Read:
		typ = uint32(fuse.LockRead)
	case found:
		typ = uint32(fuse.LockWrite)
	}
	r.u64(l.Start)
	r.u64(l.End)
	r.u32(typ)
	r.u32(l.Pid)
}
