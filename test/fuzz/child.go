package fuzz

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// child makes calls in a process of its own.
type child struct {
	root string
	fds  [slots + 1]int // the last one is spare's
}

// spare is the slot of a descriptor that is closed by the call that opened it.
const spare = slots

// Serve reads calls from r, makes them and writes their results to w until r ends.
func Serve(r io.Reader, w io.Writer) error {
	runtime.LockOSThread() // the file-system user ID is the thread's
	unix.Umask(0)
	c := &child{}
	for i := range c.fds {
		c.fds[i] = -1
	}
	dec, enc := gob.NewDecoder(r), gob.NewEncoder(w)
	for {
		var o Op
		if err := dec.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := enc.Encode(c.do(&o)); err != nil {
			return err
		}
	}
}

// do makes one call.
func (c *child) do(o *Op) (r Result) {
	call := calls[o.Kind]
	if call == nil {
		fmt.Fprintln(os.Stderr, "no such call:", o.Kind)
		return Result{Errno: syscall.ENOSYS}
	}
	if o.UID != 0 {
		_ = unix.Setfsgid(o.UID)
		_ = unix.Setfsuid(o.UID)
	}
	var err error
	if r.Skip = o.Shared && c.leftOut(o); !r.Skip {
		err = call(c, o, &r)
	}
	if o.UID != 0 {
		_ = unix.Setfsuid(0)
		_ = unix.Setfsgid(0)
	}
	if err != nil && !errors.As(err, &r.Errno) {
		r.Errno = syscall.EIO // for the other side has none
		fmt.Fprintln(os.Stderr, o, err)
	}
	if o.Check && r.Attr == nil && !r.Skip {
		r.Attr = c.check(o)
	}
	return r
}

// check stats what the call was about, nil if it is not there.
func (c *child) check(o *Op) *Attr {
	var st unix.Stat_t
	var err error
	switch {
	case usesSlot[o.Kind] && o.Shared && c.unsure(o.Slot): // open has failed: it is what the slot had before
		return nil
	case usesSlot[o.Kind]:
		err = unix.Fstat(c.fd(o.Slot), &st)
	case o.Path2 != "" && o.Kind != "symlink":
		err = unix.Fstatat(c.at(o.At2), c.path(o.At2, o.Path2), &st, unix.AT_SYMLINK_NOFOLLOW)
	default:
		err = unix.Fstatat(c.at(o.At), c.path(o.At, o.Path), &st, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return nil
	}
	return attrOf(&st)
}

func attrOf(st *unix.Stat_t) *Attr {
	a := &Attr{Mode: st.Mode, Nlink: uint32(st.Nlink), Uid: st.Uid, Gid: st.Gid, Rdev: uint64(st.Rdev), Size: st.Size, Ino: st.Ino,
		Atime: Timespec{st.Atim.Sec, st.Atim.Nsec}, Mtime: Timespec{st.Mtim.Sec, st.Mtim.Nsec}, Ctime: Timespec{st.Ctim.Sec, st.Ctim.Nsec}}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		a.Size = 0
	}
	return a
}

func (c *child) fd(slot int) int { return c.fds[slot] }

func (c *child) at(slot int) int {
	if slot == noSlot {
		return unix.AT_FDCWD
	}
	return c.fds[slot]
}

func (c *child) path(slot int, p string) string {
	if slot == noSlot {
		return c.root + "/" + p
	}
	return p
}

// set puts a new descriptor into a slot and closes what was there.
func (c *child) set(slot, fd int) {
	if c.fds[slot] >= 0 {
		_ = unix.Close(c.fds[slot])
	}
	c.fds[slot] = fd
}

// fill returns the bytes that a call writes: runs of text, so that a misplaced byte can be recognised.
func fill(seed uint64, n int64) []byte {
	rng := rand.New(rand.NewPCG(seed, 7))
	b := make([]byte, n)
	for i := 0; i < len(b); i += 8 {
		x := rng.Uint64() | 0x0101010101010101 // no zeros: those are holes
		for j := range min(8, len(b)-i) {
			b[i+j] = byte(x >> (8 * j))
		}
	}
	return b
}

// readNames lists an open directory from its start: names with their types, sorted.
func readNames(fd int) ([]string, error) {
	if _, err := unix.Seek(fd, 0, io.SeekStart); err != nil {
		return nil, err
	}
	names := []string{}
	buf := make([]byte, 4096)
	for {
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			break
		}
		for b := buf[:n]; len(b) > 0; {
			l := int(b[16]) | int(b[17])<<8
			name, _, _ := strings.Cut(string(b[19:l]), "\x00")
			if name != "." && name != ".." {
				names = append(names, fmt.Sprintf("%s:%d", name, b[18]))
			}
			b = b[l:]
		}
	}
	slices.Sort(names)
	return names, nil
}
