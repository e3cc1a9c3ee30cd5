package fuzz

import (
	"fmt"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// slots is how many descriptors a process keeps.
const slots = 8

// noSlot as At means: paths begin at the process's root.
const noSlot = -1

// Op is one call. Only the fields that its kind needs are set.
type Op struct {
	Kind         string
	Proc         int    // which process makes it
	UID          int    // as whom (file-system user and group ID)
	Slot, Slot2  int    // descriptors
	At, At2      int    // descriptor of the directory where Path, Path2 begin, or noSlot
	Path, Path2  string // of names; Path2 also the target of a symlink
	Flags        int
	Mode         uint32
	Off, Len     int64
	Off2         int64
	Fill         uint64 // seed of the bytes to write
	Name         string // of an extended attribute
	Atime, Mtime Timespec
	Check        bool   // answer with the attributes of what was changed, too
	Then         string // of "with": the call that is made between open and close
	Shared       bool   // made on two mounts in turn: leave out what they do not promise each other (see leftOut)
}

// Timespec is a time as utimensat takes it.
type Timespec struct{ Sec, Nsec int64 }

// Attr is what stat tells, as far as it is compared.
type Attr struct {
	Mode, Nlink, Uid, Gid uint32
	Rdev                  uint64
	Size                  int64
	Atime, Mtime, Ctime   Timespec
	Ino                   uint64
}

// Result is what came of a call.
type Result struct {
	Errno syscall.Errno
	N     int64
	Data  []byte
	Names []string
	Attr  *Attr
	Skip  bool // the call was not made
}

// String shows the fields that are set.
func (o Op) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "p%d %s", o.Proc, o.Kind)
	if o.Then != "" {
		fmt.Fprintf(&b, " %s", o.Then)
	}
	add := func(ok bool, format string, args ...any) {
		if ok {
			fmt.Fprintf(&b, " "+format, args...)
		}
	}
	add(o.UID != 0, "uid=%d", o.UID)
	add(o.At != noSlot, "at=%d", o.At)
	add(o.Path != "", "%.60q", o.Path)
	add(o.At2 != noSlot, "at2=%d", o.At2)
	add(o.Path2 != "", "%.60q", o.Path2)
	if usesSlot[o.Kind] {
		fmt.Fprintf(&b, " fd=%d", o.Slot)
	}
	add(o.Kind == "dup" || o.Kind == "copyrange", "fd2=%d", o.Slot2)
	add(o.Flags != 0, "flags=%#x", o.Flags)
	add(o.Mode != 0, "mode=%#o", o.Mode)
	add(o.Off != 0, "off=%d", o.Off)
	add(o.Off2 != 0, "off2=%d", o.Off2)
	add(o.Len != 0, "len=%d", o.Len)
	add(o.Name != "", "xattr=%q", o.Name)
	add(o.Mtime != Timespec{}, "mtime=%v", o.Mtime)
	add(o.Check, "+stat")
	return b.String()
}

// usesSlot are the kinds that work on a descriptor.
var usesSlot = map[string]bool{
	"open": true, "close": true, "dup": true, "read": true, "pread": true, "write": true, "pwrite": true, "seek": true, "ftruncate": true,
	"fsync": true, "fdatasync": true, "fstat": true, "fchmod": true, "fchown": true, "fallocate": true,
	"freaddir": true, "fgetxattr": true, "fsetxattr": true, "mmapwrite": true, "mmapdirty": true, "holes": true, "mmapread": true, "copyrange": true,
	"stored": true, "flock": true, "setlk": true, "getlk": true,
}

// String shows a result in one line.
func (r Result) String() string {
	if r.Skip {
		return "left out"
	}
	s := "ok"
	if r.Errno != 0 {
		s = r.Errno.Error()
	}
	if r.N != 0 {
		s += fmt.Sprintf(" %d", r.N)
	}
	if r.Data != nil {
		s += fmt.Sprintf(" data %.40q", r.Data)
	}
	if r.Names != nil {
		s += fmt.Sprintf(" %q", r.Names)
	}
	if a := r.Attr; a != nil {
		s += " " + a.String()
	}
	return s
}

// String shows what is compared.
func (a *Attr) String() string {
	return fmt.Sprintf("{mode %o nlink %d owner %d:%d rdev %x size %d mtime %v atime %v}", a.Mode, a.Nlink, a.Uid, a.Gid, a.Rdev, a.Size, a.Mtime, a.Atime)
}

// byClock reports whether a time is one that the clock gave: those that operations set lie before 2015 or after 2100.
func (t Timespec) byClock() bool { return t.Sec > 1_420_000_000 && t.Sec < 4_102_000_000 }

func sameTime(a, b Timespec) bool { return a == b || a.byClock() && b.byClock() }

// Diff says how two results of a call differ, "" if they do not.
func Diff(o *Op, want, got Result) string {
	atime := o.Kind == "utimens" && o.Atime.Nsec != unix.UTIME_OMIT && want.Errno == 0 &&
		want.Attr != nil && want.Attr.Mode&syscall.S_IFMT != syscall.S_IFLNK
	switch {
	case want.Skip:
		return ""
	case want.Errno != got.Errno:
		return fmt.Sprintf("errno %v, want %v", errnoName(got.Errno), errnoName(want.Errno))
	case want.N != got.N:
		return fmt.Sprintf("%d, want %d", got.N, want.N)
	case string(want.Data) != string(got.Data):
		return "data: " + diffBytes(want.Data, got.Data)
	case strings.Join(want.Names, "\x00") != strings.Join(got.Names, "\x00"):
		return fmt.Sprintf("names %q, want %q", got.Names, want.Names)
	case (want.Attr == nil) != (got.Attr == nil):
		return fmt.Sprintf("attributes %v, want %v", got.Attr, want.Attr)
	case want.Attr != nil:
		return diffAttr(want.Attr, got.Attr, atime)
	}
	return ""
}

func errnoName(e syscall.Errno) string {
	if e == 0 {
		return "0"
	}
	return fmt.Sprintf("%d (%v)", int(e), e)
}

func diffBytes(want, got []byte) string {
	for i := range min(len(want), len(got)) {
		if want[i] != got[i] {
			j := i
			for j < min(len(want), len(got)) && want[j] != got[j] {
				j++
			}
			return fmt.Sprintf("bytes %d to %d are %.24x…, want %.24x…", i, j, got[i:j], want[i:j])
		}
	}
	return fmt.Sprintf("%d bytes, want %d", len(got), len(want))
}

func diffAttr(want, got *Attr, atime bool) string {
	dir := want.Mode&syscall.S_IFMT == syscall.S_IFDIR
	switch {
	case comparedMode(want.Mode) != comparedMode(got.Mode):
		return fmt.Sprintf("mode %o, want %o", got.Mode, want.Mode)
	case want.Nlink != got.Nlink:
		return fmt.Sprintf("nlink %d, want %d", got.Nlink, want.Nlink)
	case want.Uid != got.Uid || want.Gid != got.Gid:
		return fmt.Sprintf("owner %d:%d, want %d:%d", got.Uid, got.Gid, want.Uid, want.Gid)
	case want.Rdev != got.Rdev:
		return fmt.Sprintf("rdev %x, want %x", got.Rdev, want.Rdev)
	case !dir && want.Size != got.Size:
		return fmt.Sprintf("size %d, want %d", got.Size, want.Size)
	case want.Mode&syscall.S_IFMT != syscall.S_IFIFO && !sameTime(want.Mtime, got.Mtime):
		return fmt.Sprintf("mtime %v, want %v", got.Mtime, want.Mtime)
	case atime && !sameTime(want.Atime, got.Atime):
		return fmt.Sprintf("atime %v, want %v", got.Atime, want.Atime)
	case !got.Ctime.byClock():
		return fmt.Sprintf("ctime %v", got.Ctime)
	}
	return ""
}

// comparedMode leaves out set-group-ID of files that their group may not execute: a write by somebody outside of the group
// removes it on local file systems, the kernel does not tell a FUSE server who is in which group.
func comparedMode(mode uint32) uint32 {
	if mode&syscall.S_IFMT == syscall.S_IFREG && mode&syscall.S_IXGRP == 0 {
		return mode &^ syscall.S_ISGID
	}
	return mode
}
