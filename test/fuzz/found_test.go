package fuzz

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// found are calls that once had other results on a mount than on the model.
var found = []struct {
	name string
	ops  []Op
}{
	{"root writes to a set-user-ID file", []Op{
		{Kind: "open", Path: "a", Flags: unix.O_RDWR | unix.O_CREAT, Mode: 0o4755},
		{Kind: "write", Len: 3059, Check: true},
		{Kind: "ftruncate", Off: 10, Check: true},
		{Kind: "fallocate", Len: 30, Check: true},
	}},
	{"another user writes to a set-user-ID file", []Op{
		{Kind: "open", Path: "a", Flags: unix.O_RDWR | unix.O_CREAT, Mode: 0o6777},
		{Kind: "write", UID: 1000, Len: 3059, Check: true},
		{Kind: "open", Slot: 1, Path: "b", Flags: unix.O_RDWR | unix.O_CREAT, Mode: 0o6777},
		{Kind: "ftruncate", Slot: 1, UID: 1000, Off: 10, Check: true},
		{Kind: "open", Slot: 2, Path: "c", Flags: unix.O_RDWR | unix.O_CREAT, Mode: 0o6777},
		{Kind: "fallocate", Slot: 2, UID: 1000, Len: 30, Check: true},
	}},
	{"a write ends capabilities", []Op{
		{Kind: "open", Path: "a", Flags: unix.O_RDWR | unix.O_CREAT, Mode: 0o755},
		{Kind: "setxattr", Path: "a", Name: "security.capability", Fill: 1},
		{Kind: "write", Len: 3059},
		{Kind: "getxattr", Path: "a", Name: "security.capability", Len: 100},
	}},
	{"mapped memory leaves capabilities", []Op{
		{Kind: "open", Path: "a", Flags: unix.O_RDWR | unix.O_CREAT, Mode: 0o755},
		{Kind: "write", Len: 3059},
		{Kind: "setxattr", Path: "a", Name: "security.capability", Fill: 1},
		{Kind: "mmapwrite", Len: 1000},
		{Kind: "getxattr", Path: "a", Name: "security.capability", Len: 100},
	}},
	{"the name of an extended attribute is a name space alone", []Op{
		{Kind: "mkdir", Path: "a", Mode: 0o755},
		{Kind: "setxattr", Path: "a", Name: "user.", Len: 10},
		{Kind: "getxattr", Path: "a", Name: "user.", Len: 10},
	}},
	{"a removed directory is still open", []Op{
		{Kind: "mkdir", Path: "a", Mode: 0o755},
		{Kind: "open", Path: "a", Flags: unix.O_DIRECTORY},
		{Kind: "setxattr", Path: "a", Name: "user.a", Len: 10},
		{Kind: "unlink", Path: "a", Flags: unix.AT_REMOVEDIR},
		{Kind: "fstat"},
		{Kind: "fchmod", Mode: 0o700, Check: true},
		{Kind: "fgetxattr", Name: "user.a", Len: 10},
		{Kind: "fsync"},
		{Kind: "freaddir"},
	}},
	{"a replaced directory is still open", []Op{
		{Kind: "mkdir", Path: "a", Mode: 0o755},
		{Kind: "mkdir", Path: "b", Mode: 0o755},
		{Kind: "open", Path: "a", Flags: unix.O_DIRECTORY},
		{Kind: "rename", Path: "b", Path2: "a"},
		{Kind: "fstat"},
		{Kind: "fchmod", Mode: 0o700, Check: true},
		{Kind: "fsync"},
	}},
	{"a removed FIFO is still open", []Op{
		{Kind: "mknod", Path: "a", Mode: unix.S_IFIFO | 0o644},
		{Kind: "open", Path: "a", Flags: unix.O_RDWR},
		{Kind: "symlink", Path: "b", Path2: "c"},
		{Kind: "rename", Path: "b", Path2: "a"},
		{Kind: "fstat"},
		{Kind: "fchmod", Mode: 0o600, Check: true},
	}},
	{"a removed file is named by a descriptor without rights", []Op{
		{Kind: "mknod", Path: "a", Mode: unix.S_IFREG | 0o644},
		{Kind: "open", Path: "a", Flags: unix.O_PATH},
		{Kind: "unlink", Path: "a"},
		{Kind: "fstat"},
	}},
	{"fallocate that changes nothing sets the time of modification", []Op{
		{Kind: "open", Path: "a", Flags: unix.O_RDWR | unix.O_CREAT, Mode: 0o600},
		{Kind: "write", Len: 10000},
		{Kind: "utimens", Path: "a", Mtime: Timespec{1, 2}, Atime: Timespec{1, 2}},
		{Kind: "fallocate", Len: 5000, Check: true},
	}},
	{"a directory's capabilities outlive a change of its owner, a device's set-user-ID does not", []Op{
		{Kind: "mkdir", Path: "a", Mode: 0o755},
		{Kind: "setxattr", Path: "a", Name: "security.capability", Fill: 1},
		{Kind: "chown", Path: "a", Off: 1000, Len: 1000},
		{Kind: "listxattr", Path: "a"},
		{Kind: "mknod", Path: "b", Mode: unix.S_IFBLK | 0o4755},
		{Kind: "chown", Path: "b", Off: 1000, Len: 1000, Check: true},
	}},
	{"a removed file with data is named by a descriptor without rights", []Op{
		{Kind: "open", Path: "a", Flags: unix.O_RDWR | unix.O_CREAT, Mode: 0o600},
		{Kind: "write", Len: 5000},
		{Kind: "close"},
		{Kind: "open", Path: "a", Flags: unix.O_PATH},
		{Kind: "unlink", Path: "a"},
		{Kind: "fstat"},
	}},
}

// TestFound makes the calls that once showed a mismatch.
func TestFound(t *testing.T) {
	w := newWorld(t, 1, 1).processes(3)
	for i, f := range found {
		t.Run(f.name, func(t *testing.T) {
			ops := make([]Op, len(f.ops))
			for j, o := range f.ops {
				if o.At == 0 {
					o.At = noSlot
				}
				if o.At2 == 0 {
					o.At2 = noSlot
				}
				ops[j] = o
			}
			if m := replay(w.pairs, w.bases(), fmt.Sprintf("found%d", i), ops); m != nil {
				t.Error(m.Report())
			}
		})
	}
}
