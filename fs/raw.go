package fs

import (
	"bytes"
	"context"
	"encoding/binary"
	"syscall"

	"bazil.org/fuse"

	"github.com/mutualfs/mutualfs/fs/tree"
)

// routeRaw parses the requests that the library does not know. Those that this file system does not have are answered with
// ENOSYS, once: the kernel then does without.
func (f *Face) routeRaw(r *fuse.UnrecognizedRequest) call {
	in := requestBytes(&r.Header)
	switch r.Opcode {
	case opReaddirPlus:
		// fuse_read_in: fh u64, offset u64, size u32, …
		if len(in) < 20 {
			break
		}
		fh, off, size := binary.NativeEndian.Uint64(in), binary.NativeEndian.Uint64(in[8:]), binary.NativeEndian.Uint32(in[16:])
		return call{large: true, run: func(ctx context.Context, out *reply) error {
			return f.readDir(ctx, out, node(r.Node), fh, off, int(min(size, maxRead)), true)
		}}
	case opRename2:
		// fuse_rename2_in: newdir u64, flags u32, padding u32; then both names, each with a NUL.
		if len(in) < 16 {
			break
		}
		newDir, flags := binary.NativeEndian.Uint64(in), binary.NativeEndian.Uint32(in[8:])
		from, rest, ok1 := bytes.Cut(in[16:], []byte{0})
		to, _, ok2 := bytes.Cut(rest, []byte{0})
		if !ok1 || !ok2 {
			break
		}
		name, newName := string(from), string(to)
		return call{run: func(ctx context.Context, _ *reply) error {
			if flags&^uint32(tree.RenameNoReplace|tree.RenameExchange) != 0 {
				return syscall.EINVAL
			}
			return f.backend.Rename(ctx, node(r.Node), name, tree.Ino(newDir), newName, tree.RenameFlags(flags))
		}}
	case opLseek:
		// fuse_lseek_in: fh u64, offset u64, whence u32, padding u32. fuse_lseek_out: offset u64.
		if len(in) < 24 {
			break
		}
		off, whence := binary.NativeEndian.Uint64(in[8:]), binary.NativeEndian.Uint32(in[16:])
		return call{run: func(ctx context.Context, out *reply) error { return f.seek(ctx, out, node(r.Node), off, whence) }}
	default:
		return call{run: func(context.Context, *reply) error { return syscall.ENOSYS }}
	}
	return call{run: func(context.Context, *reply) error { return syscall.EIO }}
}

// The whence of lseek(2) that the kernel asks a file system for.
const (
	seekData = 3
	seekHole = 4
)

func (f *Face) seek(ctx context.Context, out *reply, ino tree.Ino, off uint64, whence uint32) error {
	if whence != seekData && whence != seekHole {
		return syscall.EINVAL
	}
	at, err := f.backend.Seek(ctx, ino, off, whence == seekHole)
	out.u64(at)
	return err
}
