package fs

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"time"

	"bazil.org/fuse"
	"golang.org/x/sys/unix"

	"github.com/mutualfs/mutualfs/fs/tree"
)

// call is what a request asks for. run appends the reply's payload; it may be run twice: first with
// tree.NoWait, then, after tree.ErrWait, again. A nil run needs no reply.
type call struct {
	run   func(ctx context.Context, out *reply) error
	large bool // the reply may have maxRead bytes
	waits bool // not worth a try without waiting
	moves bool // moves data to the disks: the longer time-out
	// waits for others without a bound: no time-out, no slot of MaxWaiting, ended by any interrupt
	endless bool
}

// Opcodes that the library does not know.
const (
	opReaddirPlus = 44
	opRename2     = 45
	opLseek       = 46
)

// route finds the method for a request.
func (f *Face) route(req fuse.Request) call {
	switch r := req.(type) {
	case *fuse.LookupRequest:
		return call{run: func(ctx context.Context, out *reply) error { return f.lookup(ctx, out, r) }}
	case *fuse.GetattrRequest:
		return call{run: func(ctx context.Context, out *reply) error { return f.getattr(ctx, out, r) }}
	case *fuse.SetattrRequest:
		return call{run: func(ctx context.Context, out *reply) error { return f.setattr(ctx, out, r) }}
	case *fuse.ReadRequest:
		return call{large: true, run: func(ctx context.Context, out *reply) error { return f.readAny(ctx, out, r) }}
	case *fuse.WriteRequest:
		return call{run: func(ctx context.Context, out *reply) error { return f.writeFile(ctx, out, r) }}
	case *fuse.OpenRequest:
		return call{run: func(ctx context.Context, out *reply) error { return f.openAny(ctx, out, r) }}
	case *fuse.CreateRequest:
		return f.create(r)
	case *fuse.FlushRequest:
		return call{moves: true, run: func(ctx context.Context, out *reply) error {
			return f.backend.Flush(ctx, node(r.Node), uint64(r.LockOwner), uint64(r.Handle))
		}}
	case *fuse.ReleaseRequest:
		return call{run: func(context.Context, *reply) error { return f.release(r) }}
	case *fuse.FsyncRequest:
		return call{waits: true, moves: true, run: func(ctx context.Context, out *reply) error { return f.backend.Fsync(ctx, node(r.Node)) }}
	case *fuse.ForgetRequest:
		f.backend.Forget(node(r.Node), r.N)
		return call{}
	case *fuse.BatchForgetRequest:
		for _, x := range r.Forget {
			f.backend.Forget(node(x.NodeID), x.N)
		}
		return call{}
	case *fuse.InterruptRequest:
		f.waiters.interrupt(r.IntrID)
		return call{}
	case *fuse.UnrecognizedRequest:
		return f.routeRaw(r)
	}
	if c, ok := f.routeLocks(req); ok {
		return c
	}
	return f.routeNames(req)
}

// routeNames is route for the calls that change or read names and extended attributes.
func (f *Face) routeNames(req fuse.Request) call {
	switch r := req.(type) {
	case *fuse.MkdirRequest:
		return f.make(r.Node, r.Name, tree.MakeArgs{Mode: unixMode(r.Mode), Umask: umask(r.Umask), Uid: r.Uid, Gid: r.Gid, Excl: true})
	case *fuse.MknodRequest:
		return f.make(r.Node, r.Name, tree.MakeArgs{Mode: unixMode(r.Mode), Umask: umask(r.Umask), Uid: r.Uid, Gid: r.Gid, Rdev: r.Rdev, Excl: true})
	case *fuse.SymlinkRequest:
		return f.make(r.Node, r.NewName, tree.MakeArgs{Mode: syscall.S_IFLNK | 0o777, Uid: r.Uid, Gid: r.Gid, Target: r.Target, Excl: true})
	case *fuse.RemoveRequest:
		return call{run: func(ctx context.Context, _ *reply) error {
			if r.Dir {
				return f.backend.Rmdir(ctx, node(r.Node), r.Name)
			}
			return f.backend.Unlink(ctx, node(r.Node), r.Name)
		}}
	case *fuse.RenameRequest:
		return call{run: func(ctx context.Context, _ *reply) error {
			return f.backend.Rename(ctx, node(r.Node), r.OldName, node(r.NewDir), r.NewName, 0)
		}}
	case *fuse.LinkRequest:
		return call{run: func(ctx context.Context, out *reply) error {
			a, err := f.backend.Link(ctx, node(r.OldNode), node(r.Node), r.NewName)
			out.entry(a.Ino, &a)
			return err
		}}
	case *fuse.ReadlinkRequest:
		return call{run: func(ctx context.Context, out *reply) error {
			target, err := f.backend.Readlink(ctx, node(r.Node))
			out.bytes([]byte(target))
			f.accessed(r.Node, err)
			return err
		}}
	case *fuse.GetxattrRequest:
		return call{large: true, run: func(ctx context.Context, out *reply) error {
			if err := xattrName(r.Name); err != nil {
				return err
			}
			value, err := f.backend.Getxattr(ctx, node(r.Node), r.Name)
			return sized(out, r.Size, value, err)
		}}
	case *fuse.ListxattrRequest:
		return call{large: true, run: func(ctx context.Context, out *reply) error { return f.listxattr(ctx, out, r) }}
	case *fuse.SetxattrRequest:
		return call{run: func(ctx context.Context, _ *reply) error {
			if err := xattrName(r.Name); err != nil {
				return err
			}
			if r.Name == tree.ACLAccess {
				return f.backend.SetACL(ctx, node(r.Node), r.Xattr, r.SetxattrFlags&fuse.SetxattrACLKillSGID != 0)
			}
			return f.backend.Setxattr(ctx, node(r.Node), r.Name, r.Xattr, r.Flags)
		}}
	case *fuse.RemovexattrRequest:
		return call{run: func(ctx context.Context, _ *reply) error {
			if err := xattrName(r.Name); err != nil {
				return err
			}
			err := f.backend.Removexattr(ctx, node(r.Node), r.Name)
			if errors.Is(err, syscall.ENODATA) && isACL(r.Name) {
				return nil // there is always a list, if only that of the mode
			}
			return err
		}}
	case *fuse.FAllocateRequest:
		return call{run: func(ctx context.Context, _ *reply) error {
			if r.Uid != 0 { // the kernel has no flag for this call that asks for it
				if err := f.killPriv(ctx, node(r.Node)); err != nil {
					return err
				}
			}
			return f.backend.Fallocate(ctx, node(r.Node), r.Offset, r.Length, uint32(r.Mode))
		}}
	case *fuse.StatfsRequest:
		return call{run: f.statfs}
	case *fuse.AccessRequest, *fuse.DestroyRequest: // the kernel checks permissions itself
		return call{run: func(context.Context, *reply) error { return nil }}
	}
	return call{run: func(context.Context, *reply) error { return syscall.ENOSYS }}
}

func node(n fuse.NodeID) tree.Ino { return tree.Ino(n) }

// xattrName is nil for the name of an extended attribute that may be kept.
func xattrName(name string) error {
	if !xattrSupported(name) {
		return syscall.EOPNOTSUPP
	}
	if strings.HasSuffix(name, ".") && strings.Count(name, ".") == 1 { // a name space alone
		return syscall.EINVAL
	}
	return nil
}

// xattrSupported reports whether the name space of an extended attribute is kept: of system only POSIX access-control lists are.
func xattrSupported(name string) bool {
	return strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "trusted.") || strings.HasPrefix(name, "security.") || isACL(name)
}

func isACL(name string) bool { return name == tree.ACLAccess || name == tree.ACLDefault }

// umask is what the kernel leaves to a server that keeps access-control lists: a default list counts instead.
func umask(m os.FileMode) uint32 { return uint32(m.Perm()) }

// unixMode undoes the library's translation of modes.
func unixMode(m os.FileMode) uint32 {
	mode := uint32(m.Perm())
	switch {
	case m&os.ModeDir != 0:
		mode |= syscall.S_IFDIR
	case m&os.ModeCharDevice != 0:
		mode |= syscall.S_IFCHR
	case m&os.ModeDevice != 0:
		mode |= syscall.S_IFBLK
	case m&os.ModeNamedPipe != 0:
		mode |= syscall.S_IFIFO
	case m&os.ModeSocket != 0:
		mode |= syscall.S_IFSOCK
	case m&os.ModeSymlink != 0:
		mode |= syscall.S_IFLNK
	default:
		mode |= syscall.S_IFREG
	}
	if m&os.ModeSetuid != 0 {
		mode |= syscall.S_ISUID
	}
	if m&os.ModeSetgid != 0 {
		mode |= syscall.S_ISGID
	}
	if m&os.ModeSticky != 0 {
		mode |= syscall.S_ISVTX
	}
	return mode
}

const permBits = 0o7777

func (f *Face) lookup(ctx context.Context, out *reply, r *fuse.LookupRequest) error {
	a, err := f.backend.Lookup(ctx, node(r.Node), r.Name)
	out.entry(a.Ino, &a)
	return err
}

func (f *Face) getattr(ctx context.Context, out *reply, r *fuse.GetattrRequest) error {
	a, err := f.backend.Getattr(ctx, node(r.Node))
	out.attr(&a)
	return err
}

func (f *Face) setattr(ctx context.Context, out *reply, r *fuse.SetattrRequest) error {
	set := tree.SetAttr{}
	now := tree.TimeOf(time.Now())
	if r.Valid.Mode() {
		mode := unixMode(r.Mode) & permBits
		set.Mode = &mode
	}
	if r.Valid.Uid() {
		set.Uid = &r.Uid
	}
	if r.Valid.Gid() {
		set.Gid = &r.Gid
	}
	if r.Valid.Size() {
		set.Size = &r.Size
	}
	set.Atime = pickTime(r.Valid.Atime(), r.Valid.AtimeNow(), r.Atime, now)
	set.Mtime = pickTime(r.Valid.Mtime(), r.Valid.MtimeNow(), r.Mtime, now)
	if r.Valid.SetattrKillSUIDGID() && set.Mode == nil {
		if err := f.killPriv(ctx, node(r.Node)); err != nil {
			return err
		}
	}
	a, err := f.backend.Setattr(ctx, node(r.Node), set)
	out.attr(&a)
	return err
}

func pickTime(given, now bool, t time.Time, clock tree.Time) *tree.Time {
	switch {
	case now:
		return &clock
	case given:
		x := tree.TimeOf(t)
		return &x
	}
	return nil
}

// killPriv clears set-user-ID, and set-group-ID of an executable, after a write by somebody without the privilege to keep them.
func (f *Face) killPriv(ctx context.Context, ino tree.Ino) error {
	a, err := f.backend.Getattr(ctx, ino)
	if err != nil {
		return err
	}
	mode := a.Mode & permBits &^ syscall.S_ISUID
	if mode&syscall.S_IXGRP != 0 {
		mode &^= syscall.S_ISGID
	}
	if mode == a.Mode&permBits {
		return nil
	}
	_, err = f.backend.Setattr(ctx, ino, tree.SetAttr{Mode: &mode})
	return err
}

func (f *Face) make(dir fuse.NodeID, name string, args tree.MakeArgs) call {
	return call{run: func(ctx context.Context, out *reply) error {
		a, _, err := f.backend.Make(ctx, node(dir), name, args)
		out.entry(a.Ino, &a)
		return err
	}}
}

// Open flags of the reply (linux/fuse.h). FOPEN_NOFLUSH is none of them, not even for who only reads: the close of
// any descriptor ends the process's range locks on the file, and FLUSH is how that is heard of.
const fopenKeepCache = 1 << 1

// create makes and opens in one request. It may be run twice, so it remembers what it has made.
func (f *Face) create(r *fuse.CreateRequest) call {
	var made *tree.Attr
	return call{run: func(ctx context.Context, out *reply) error {
		if made == nil {
			a, _, err := f.backend.Make(ctx, node(r.Node), r.Name, tree.MakeArgs{
				Mode: unixMode(r.Mode)&permBits | syscall.S_IFREG, Umask: umask(r.Umask), Uid: r.Uid, Gid: r.Gid, Excl: r.Flags&fuse.OpenExclusive != 0, Open: true})
			if err != nil {
				return err
			}
			made = &a
		}
		if _, err := f.backend.Open(ctx, made.Ino); err != nil {
			if !errors.Is(err, tree.ErrWait) {
				f.backend.Forget(made.Ino, 1)
			}
			return err
		}
		out.entry(made.Ino, made)
		out.u64(f.handles.Add(1))
		out.u32(0)
		out.u32(0)
		return nil
	}}
}

func (f *Face) openAny(ctx context.Context, out *reply, r *fuse.OpenRequest) error {
	var fh uint64
	var flags uint32
	if r.Dir {
		fh = f.dirs.add()
	} else {
		if r.OpenFlags&fuse.OpenKillSUIDGID != 0 {
			if err := f.killPriv(ctx, node(r.Node)); err != nil {
				return err
			}
		}
		keep, err := f.backend.Open(ctx, node(r.Node))
		if err != nil {
			return err
		}
		if keep {
			flags |= fopenKeepCache
		}
		fh = f.handles.Add(1)
	}
	out.u64(fh)
	out.u32(flags)
	out.u32(0)
	return nil
}

// accessed notes that something was read.
func (f *Face) accessed(n fuse.NodeID, err error) {
	if err == nil {
		f.backend.Accessed(node(n))
	}
}

func (f *Face) release(r *fuse.ReleaseRequest) error {
	if r.Dir {
		f.dirs.remove(uint64(r.Handle))
	} else {
		f.backend.Release(node(r.Node), uint64(r.Handle))
	}
	return nil
}

func (f *Face) readAny(ctx context.Context, out *reply, r *fuse.ReadRequest) error {
	if r.Dir {
		return f.readDir(ctx, out, node(r.Node), uint64(r.Handle), uint64(r.Offset), r.Size, false)
	}
	p := out.room(min(r.Size, maxRead))
	n, err := f.backend.Read(ctx, node(r.Node), uint64(r.Offset), p)
	out.buf = out.buf[:outHeader+n]
	if r.FileFlags&unix.O_NOATIME == 0 {
		f.accessed(r.Node, err)
	}
	return err
}

func (f *Face) writeFile(ctx context.Context, out *reply, r *fuse.WriteRequest) error {
	if r.Flags&fuse.WriteKillSUIDGID != 0 {
		if err := f.killPriv(ctx, node(r.Node)); err != nil {
			return err
		}
	}
	// What the page cache writes back was mapped memory. It has its place already, whatever the descriptor said, and no
	// process asked for it now.
	mapped := r.Flags&fuse.WriteCache != 0
	if !mapped {
		if err := f.backend.DropCapability(ctx, node(r.Node)); err != nil {
			return err
		}
	}
	atEnd := r.FileFlags&fuse.OpenAppend != 0 && !mapped
	if err := f.backend.Write(ctx, node(r.Node), uint64(r.Offset), r.Data, atEnd); err != nil {
		return err
	}
	out.u32(uint32(len(r.Data)))
	out.u32(0)
	return nil
}

// sized answers with a value or, if the caller only asked for it, with its length.
func sized(out *reply, size uint32, value []byte, err error) error {
	switch {
	case err != nil:
		return err
	case size == 0:
		out.u32(uint32(len(value)))
		out.u32(0)
	case uint32(len(value)) > size:
		return syscall.ERANGE
	default:
		out.bytes(value)
	}
	return nil
}

func (f *Face) listxattr(ctx context.Context, out *reply, r *fuse.ListxattrRequest) error {
	names, err := f.backend.Listxattr(ctx, node(r.Node))
	var list []byte
	for _, n := range names {
		list = append(append(list, n...), 0)
	}
	return sized(out, r.Size, list, err)
}

// fragment is the unit in which statfs counts, bytes.
const fragment = 4096

// freeInodes is how many more files statfs says there can be: they are not scarce.
const freeInodes = 1 << 40

func (f *Face) statfs(ctx context.Context, out *reply) error {
	s, err := f.backend.Statfs(ctx)
	if err != nil {
		return err
	}
	out.u64(s.Total / fragment)
	out.u64(s.Free / fragment)
	out.u64(s.Avail / fragment)
	out.u64(s.Files + freeInodes)
	out.u64(freeInodes)
	out.u32(fragment)
	out.u32(tree.MaxName)
	out.u32(fragment)
	out.bytes(make([]byte, 4+6*4))
	return nil
}
