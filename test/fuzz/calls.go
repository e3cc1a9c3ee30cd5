package fuzz

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxRead bounds what one call reads, bytes.
const maxRead = 256 << 10

// calls are the kinds of calls and what they do.
var calls map[string]func(c *child, o *Op, r *Result) error

func init() {
	calls = map[string]func(*child, *Op, *Result) error{
		"root":     func(c *child, o *Op, _ *Result) error { c.root = o.Path; return nil },
		"closeall": closeAll,
		"open":     open,
		"close":    func(c *child, o *Op, _ *Result) error { fd := c.fds[o.Slot]; c.fds[o.Slot] = -1; return unix.Close(fd) },
		"dup":      dup,
		"read":     readOn,
		"pread": func(c *child, o *Op, r *Result) error {
			return read(r, o.Len, func(p []byte) (int, error) { return unix.Pread(c.fd(o.Slot), p, o.Off) })
		},
		"write": func(c *child, o *Op, r *Result) error { return count(r)(unix.Write(c.fd(o.Slot), fill(o.Fill, o.Len))) },
		"pwrite": func(c *child, o *Op, r *Result) error {
			return count(r)(unix.Pwrite(c.fd(o.Slot), fill(o.Fill, o.Len), o.Off))
		},
		"seek": func(c *child, o *Op, r *Result) (err error) {
			r.N, err = seek(c.fd(o.Slot), o.Off, o.Flags)
			return err
		},
		"ftruncate": func(c *child, o *Op, _ *Result) error { return unix.Ftruncate(c.fd(o.Slot), o.Off) },
		"truncate":  func(c *child, o *Op, _ *Result) error { return truncate(c, o) },
		"fsync":     func(c *child, o *Op, _ *Result) error { return unix.Fsync(c.fd(o.Slot)) },
		"fdatasync": func(c *child, o *Op, _ *Result) error { return unix.Fdatasync(c.fd(o.Slot)) },
		"fallocate": fallocate,
		"mmapwrite": mmapWrite,
		"mmapdirty": mmapDirty,
		"holes":     holes,
		"mmapread":  mmapRead,
		"copyrange": copyRange,
		"append":    appendLocked,

		"stat": func(c *child, o *Op, r *Result) error {
			return stat(r, func(st *unix.Stat_t) error { return unix.Fstatat(c.at(o.At), c.path(o.At, o.Path), st, o.Flags) })
		},
		"fstat": func(c *child, o *Op, r *Result) error {
			return stat(r, func(st *unix.Stat_t) error { return unix.Fstat(c.fd(o.Slot), st) })
		},
		"access": func(c *child, o *Op, _ *Result) error {
			return unix.Faccessat(c.at(o.At), c.path(o.At, o.Path), o.Mode, 0)
		},
		"mkdir": func(c *child, o *Op, _ *Result) error { return unix.Mkdirat(c.at(o.At), c.path(o.At, o.Path), o.Mode) },
		"mknod": func(c *child, o *Op, _ *Result) error {
			return unix.Mknodat(c.at(o.At), c.path(o.At, o.Path), o.Mode, int(o.Off))
		},
		"unlink": func(c *child, o *Op, _ *Result) error {
			return unix.Unlinkat(c.at(o.At), c.path(o.At, o.Path), o.Flags)
		},
		"rename": func(c *child, o *Op, _ *Result) error {
			return unix.Renameat2(c.at(o.At), c.path(o.At, o.Path), c.at(o.At2), c.path(o.At2, o.Path2), uint(o.Flags))
		},
		"link": func(c *child, o *Op, _ *Result) error {
			return unix.Linkat(c.at(o.At), c.path(o.At, o.Path), c.at(o.At2), c.path(o.At2, o.Path2), o.Flags)
		},
		"symlink": func(c *child, o *Op, _ *Result) error {
			return unix.Symlinkat(o.Path2, c.at(o.At), c.path(o.At, o.Path))
		},
		"readlink": func(c *child, o *Op, r *Result) error {
			return read(r, 8192, func(p []byte) (int, error) { return unix.Readlinkat(c.at(o.At), c.path(o.At, o.Path), p) })
		},
		"chmod": func(c *child, o *Op, _ *Result) error {
			return unix.Fchmodat(c.at(o.At), c.path(o.At, o.Path), o.Mode, 0)
		},
		"fchmod": func(c *child, o *Op, _ *Result) error { return unix.Fchmod(c.fd(o.Slot), o.Mode) },
		"chown": func(c *child, o *Op, _ *Result) error {
			return unix.Fchownat(c.at(o.At), c.path(o.At, o.Path), int(o.Off), int(o.Len), o.Flags)
		},
		"fchown":   func(c *child, o *Op, _ *Result) error { return unix.Fchown(c.fd(o.Slot), int(o.Off), int(o.Len)) },
		"utimens":  utimens,
		"readdir":  readDir,
		"freaddir": func(c *child, o *Op, r *Result) (err error) { r.Names, err = readNames(c.fd(o.Slot)); return err },

		"with": with,
		"stored": func(c *child, o *Op, r *Result) error {
			if err := calls["pwrite"](c, o, r); err != nil {
				return err
			}
			return unix.Fsync(c.fd(o.Slot))
		},
		"flock": func(c *child, o *Op, _ *Result) error { return unix.Flock(c.fd(o.Slot), o.Flags|unix.LOCK_NB) },
		"setlk": func(c *child, o *Op, _ *Result) error {
			return unix.FcntlFlock(uintptr(c.fd(o.Slot)), unix.F_SETLK, &unix.Flock_t{Type: int16(o.Flags), Start: o.Off, Len: o.Len})
		},
		"getlk": func(c *child, o *Op, r *Result) error { // which of several locks in the way is told is nobody's promise
			l := unix.Flock_t{Type: int16(o.Flags), Start: o.Off, Len: o.Len}
			err := unix.FcntlFlock(uintptr(c.fd(o.Slot)), unix.F_GETLK, &l)
			r.N = int64(btoi(l.Type != unix.F_UNLCK))
			return err
		},

		// There is no getxattrat: these begin at the root.
		"getxattr": func(c *child, o *Op, r *Result) error {
			return read(r, o.Len, func(p []byte) (int, error) { return unix.Lgetxattr(c.path(noSlot, o.Path), o.Name, p) })
		},
		"setxattr": func(c *child, o *Op, _ *Result) error {
			return unix.Lsetxattr(c.path(noSlot, o.Path), o.Name, xattrValue(o), o.Flags)
		},
		"listxattr":   listXattr,
		"removexattr": func(c *child, o *Op, _ *Result) error { return unix.Lremovexattr(c.path(noSlot, o.Path), o.Name) },
		"fgetxattr": func(c *child, o *Op, r *Result) error {
			return read(r, o.Len, func(p []byte) (int, error) { return unix.Fgetxattr(c.fd(o.Slot), o.Name, p) })
		},
		"fsetxattr": func(c *child, o *Op, _ *Result) error {
			return unix.Fsetxattr(c.fd(o.Slot), o.Name, xattrValue(o), o.Flags)
		},
	}
}

func closeAll(c *child, _ *Op, _ *Result) error {
	for i := range c.fds {
		c.set(i, -1)
	}
	return nil
}

// open never opens a device, never waits for the other end of a pipe, and closes what the slot had.
func open(c *child, o *Op, r *Result) error {
	var st unix.Stat_t
	path := c.path(o.At, o.Path)
	if err := unix.Fstatat(c.at(o.At), path, &st, 0); err == nil {
		if k := st.Mode & unix.S_IFMT; k == unix.S_IFCHR || k == unix.S_IFBLK {
			r.Skip = true
			return nil
		}
	}
	fd, err := unix.Openat(c.at(o.At), path, o.Flags|unix.O_NONBLOCK|unix.O_CLOEXEC, o.Mode)
	if err != nil {
		return err
	}
	c.set(o.Slot, fd)
	return nil
}

func dup(c *child, o *Op, _ *Result) error {
	fd, err := unix.FcntlInt(uintptr(c.fd(o.Slot)), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	c.set(o.Slot2, fd)
	return nil
}

func read(r *Result, n int64, f func([]byte) (int, error)) error {
	p := make([]byte, min(n, maxRead))
	got, err := f(p)
	if err != nil {
		return err
	}
	r.N, r.Data = int64(got), p[:min(got, len(p))]
	return nil
}

// readOn reads on. Where a directory's position is no number of bytes, read(2) refuses it sooner than the directory.
func readOn(c *child, o *Op, r *Result) error {
	err := read(r, o.Len, func(p []byte) (int, error) { return unix.Read(c.fd(o.Slot), p) })
	var st unix.Stat_t
	if err == unix.EINVAL && unix.Fstat(c.fd(o.Slot), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.EISDIR
	}
	return err
}

func count(r *Result) func(int, error) error {
	return func(n int, err error) error { r.N = int64(max(n, 0)); return err }
}

// seek of a directory is left to readdir: its positions are opaque.
func seek(fd int, off int64, whence int) (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return 0, nil
	}
	return unix.Seek(fd, off, whence)
}

func truncate(c *child, o *Op) error { return unix.Truncate(c.path(noSlot, o.Path), o.Off) }

// fallocate does by hand what a model on tmpfs does not know.
func fallocate(c *child, o *Op, _ *Result) error {
	fd := c.fd(o.Slot)
	err := unix.Fallocate(fd, uint32(o.Flags), o.Off, o.Len)
	if err != unix.EOPNOTSUPP || o.Flags&unix.FALLOC_FL_ZERO_RANGE == 0 {
		return err
	}
	if o.Flags&unix.FALLOC_FL_KEEP_SIZE == 0 {
		if err := unix.Fallocate(fd, 0, o.Off, o.Len); err != nil {
			return err
		}
	}
	return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, o.Off, o.Len)
}

// mapped calls f with a mapping of the file's [Off, Off+Len), or what of it lies within the file.
func mapped(c *child, o *Op, prot int, f func(p []byte) error) error {
	var st unix.Stat_t
	if err := unix.Fstat(c.fd(o.Slot), &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || o.Off >= st.Size {
		return nil
	}
	base := o.Off &^ 4095
	end := min(o.Off+o.Len, st.Size)
	p, err := unix.Mmap(c.fd(o.Slot), base, int(end-base), prot, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	err = f(p[o.Off-base:])
	if o.Kind == "mmapwrite" && err == nil {
		err = unix.Msync(p, unix.MS_SYNC)
	}
	if e := unix.Munmap(p); err == nil {
		err = e
	}
	return err
}

func mmapWrite(c *child, o *Op, r *Result) error {
	return mapped(c, o, unix.PROT_READ|unix.PROT_WRITE, func(p []byte) error { r.N = int64(copy(p, fill(o.Fill, int64(len(p))))); return nil })
}

// mmapDirty leaves it to the kernel when the pages are written.
func mmapDirty(c *child, o *Op, r *Result) error { return mmapWrite(c, o, r) }

// holes checks that what SEEK_DATA leaves out is zero and that the holes and data cover the file.
func holes(c *child, o *Op, _ *Result) error {
	fd := c.fd(o.Slot)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	back, err := unix.Seek(fd, 0, io.SeekCurrent)
	if err != nil {
		return err
	}
	defer unix.Seek(fd, back, io.SeekStart)
	for at := int64(0); at < st.Size; {
		data, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			data, err = st.Size, nil
		}
		if err != nil || data < at || data > st.Size {
			return fmt.Errorf("data after %d at %d of %d: %v", at, data, st.Size, err)
		}
		p := make([]byte, data-at)
		if _, err := unix.Pread(fd, p, at); err != nil {
			return err
		}
		for i, b := range p {
			if b != 0 {
				return fmt.Errorf("byte %d lies in a hole from %d to %d and is %#x", at+int64(i), at, data, b)
			}
		}
		if data == st.Size {
			return nil
		}
		if at, err = unix.Seek(fd, data, unix.SEEK_HOLE); err != nil || at <= data {
			return fmt.Errorf("hole after %d at %d: %v", data, at, err)
		}
	}
	return nil
}

func mmapRead(c *child, o *Op, r *Result) error {
	return mapped(c, o, unix.PROT_READ, func(p []byte) error { r.Data = slices.Clone(p); return nil })
}

// copyRange goes on after a part, as whoever copies does: copy_file_range(2) may stop early, and on a local disk it does now and then.
func copyRange(c *child, o *Op, r *Result) error {
	in, out := o.Off, o.Off2
	for {
		n, err := unix.CopyFileRange(c.fd(o.Slot), &in, c.fd(o.Slot2), &out, int(o.Len-r.N), 0)
		r.N += int64(max(n, 0))
		if n <= 0 || r.N == o.Len {
			if r.N > 0 {
				err = nil
			}
			return err
		}
	}
}

// recordSize is how long a record of appendLocked is, bytes.
const recordSize = 16

// record makes the n-th record of a file, by a process.
func record(n int64, who uint64) []byte { return fmt.Appendf(nil, "%010d %04d\n", n, who) }

// appendLocked adds a record to a file while it has the exclusive lock on it, by flock(2) or (Flags 1) by fcntl(2). The number in the record is
// one more than that of the last one; Fill says who it is. N is the number.
func appendLocked(c *child, o *Op, r *Result) (err error) {
	fd, err := unix.Open(c.path(noSlot, o.Path), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if e := unix.Close(fd); err == nil {
			err = e
		}
	}()
	if err := lockWhole(fd, o.Flags, unix.F_WRLCK, unix.LOCK_EX); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Size > 0 {
		last := make([]byte, recordSize)
		if n, err := unix.Pread(fd, last, st.Size-recordSize); err != nil || n != recordSize {
			return fmt.Errorf("the last record before %d: %d bytes: %w", st.Size, n, err)
		}
		if _, err := fmt.Sscanf(string(last), "%d", &r.N); err != nil {
			return fmt.Errorf("the last record before %d: %q", st.Size, last)
		}
	}
	r.N++
	if _, err := unix.Pwrite(fd, record(r.N, o.Fill), st.Size); err != nil {
		return err
	}
	return lockWhole(fd, o.Flags, unix.F_UNLCK, unix.LOCK_UN)
}

// lockWhole locks or unlocks a whole file; signals of the runtime do not end the wait.
func lockWhole(fd, kind int, typ int16, how int) error {
	for {
		var err error
		if kind == 0 {
			err = unix.Flock(fd, how)
		} else {
			err = unix.FcntlFlock(uintptr(fd), unix.F_SETLKW, &unix.Flock_t{Type: typ})
		}
		if err != unix.EINTR {
			return err
		}
	}
}

func stat(r *Result, f func(*unix.Stat_t) error) error {
	var st unix.Stat_t
	if err := f(&st); err != nil {
		return err
	}
	r.Attr = attrOf(&st)
	return nil
}

func utimens(c *child, o *Op, _ *Result) error {
	ts := []unix.Timespec{{Sec: o.Atime.Sec, Nsec: o.Atime.Nsec}, {Sec: o.Mtime.Sec, Nsec: o.Mtime.Nsec}}
	return unix.UtimesNanoAt(c.at(o.At), c.path(o.At, o.Path), ts, o.Flags)
}

func readDir(c *child, o *Op, r *Result) error {
	fd, err := unix.Openat(c.at(o.At), c.path(o.At, o.Path), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r.Names, err = readNames(fd)
	return err
}

func listXattr(c *child, o *Op, r *Result) error {
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(c.path(noSlot, o.Path), buf)
	if err != nil {
		return err
	}
	r.Names = strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	slices.Sort(r.Names)
	return nil
}

// xattrValue is what to set an attribute to. Capabilities have a format that the kernel checks.
func xattrValue(o *Op) []byte {
	if o.Name == "security.capability" {
		return []byte{1, 0, 0, 2, byte(o.Fill), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	}
	return fill(o.Fill, o.Len)
}
