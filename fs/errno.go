package fs

import (
	"context"
	"errors"
	"syscall"

	"github.com/mutualfs/mutualfs/blocks"
)

// errnos is the one table from the rooms' error classes to errno. Not to reach enough peers
// is never "no such file".
var errnos = []struct {
	err   error
	errno syscall.Errno
}{
	{blocks.ErrUnavailable, syscall.EHOSTUNREACH},
	{blocks.ErrCorrupt, syscall.EIO},
	{blocks.ErrNotFound, syscall.ESTALE},
	{blocks.ErrNoSpace, syscall.ENOSPC},
	{blocks.ErrExists, syscall.EEXIST},
	{blocks.ErrInvalid, syscall.EINVAL},
	{blocks.ErrRefused, syscall.EACCES},
	{blocks.ErrBusy, syscall.EBUSY},
	{blocks.ErrDeadline, syscall.ETIMEDOUT},
	{context.DeadlineExceeded, syscall.ETIMEDOUT},
	{blocks.ErrCanceled, syscall.EINTR},
	{context.Canceled, syscall.EINTR},
}

// errnoOf returns the errno for err; EIO for an error of no class.
func errnoOf(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	for _, e := range errnos {
		if errors.Is(err, e.err) {
			return e.errno
		}
	}
	return syscall.EIO
}
