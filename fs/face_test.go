package fs

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"bazil.org/fuse"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
)

func TestErrnoOf(t *testing.T) {
	for _, c := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0},
		{syscall.ENOTEMPTY, syscall.ENOTEMPTY},
		{fmt.Errorf("x: %w", syscall.EEXIST), syscall.EEXIST},
		{fmt.Errorf("x: %w", blocks.ErrUnavailable), syscall.EHOSTUNREACH},
		{fmt.Errorf("x: %w", blocks.ErrNotFound), syscall.ESTALE},
		{fmt.Errorf("x: %w", blocks.ErrNoSpace), syscall.ENOSPC},
		{context.DeadlineExceeded, syscall.ETIMEDOUT},
		{errors.New("anything"), syscall.EIO},
	} {
		if got := errnoOf(c.err); got != c.want {
			t.Errorf("%v is %v, want %v", c.err, got, c.want)
		}
	}
	// Whatever class it is: not to reach enough peers is never "no such file".
	for code := range 256 {
		err := blocks.FromCode(blocks.Code(code), "x")
		if errnoOf(err) == syscall.ENOENT {
			t.Errorf("%v became ENOENT", err)
		}
	}
}

// The kernel's structures, byte for byte (linux/fuse.h, little-endian).
func TestReplyBytes(t *testing.T) {
	a := tree.Attr{Ino: 0x0102, Mode: syscall.S_IFREG | syscall.S_ISVTX | 0o644, Nlink: 1, Uid: 2, Gid: 3, Rdev: 4, Size: 5, Blocks: 6,
		Atime: 7e9 + 8, Mtime: 9e9 + 10, Ctime: -1, Valid: 1500 * time.Millisecond}
	attr := "0201000000000000" + "0500000000000000" + "0600000000000000" +
		"0700000000000000" + "0900000000000000" + "ffffffffffffffff" +
		"08000000" + "0a000000" + "ffc99a3b" +
		"a4830000" + "01000000" + "02000000" + "03000000" + "04000000" + "00000200" + "00000000"
	for name, c := range map[string]struct {
		fill func(r *reply)
		want string
	}{
		"attr":   {func(r *reply) { r.attr(&a) }, "0100000000000000" + "0065cd1d" + "00000000" + attr},
		"entry":  {func(r *reply) { r.entry(a.Ino, &a) }, "0201000000000000" + "0000000000000000" + "0100000000000000" + "0100000000000000" + "0065cd1d" + "0065cd1d" + attr},
		"dirent": {func(r *reply) { r.dirent(9, syscall.S_IFDIR, "abc", 4) }, "0900000000000000" + "0400000000000000" + "03000000" + "04000000" + "6162630000000000"},
		"full":   {func(r *reply) { r.dirent(9, syscall.S_IFLNK, "abcdefgh", 4) }, "0900000000000000" + "0400000000000000" + "08000000" + "0a000000" + "6162636465666768"},
	} {
		r := newReply(false)
		c.fill(r)
		if got := hex.EncodeToString(r.buf[outHeader:]); got != c.want {
			t.Errorf("%s:\n%s, want\n%s", name, got, c.want)
		}
		sealed := hex.EncodeToString(r.seal(0x11, 0)[:outHeader])
		if want := fmt.Sprintf("%02x000000", len(r.buf)) + "00000000" + "1100000000000000"; sealed != want {
			t.Errorf("%s: header %s, want %s", name, sealed, want)
		}
		if got := hex.EncodeToString(r.seal(0x11, syscall.ENOENT)); got != "10000000"+"feffffff"+"1100000000000000" {
			t.Errorf("%s: error %s", name, got)
		}
		r.free()
	}
	if n := direntSize("abc"); n != 32 {
		t.Errorf("an entry of three letters takes %d bytes", n)
	}
}

func TestUnixMode(t *testing.T) {
	for want, m := range map[uint32]os.FileMode{
		syscall.S_IFREG | 0o4755: os.ModeSetuid | 0o755,
		syscall.S_IFDIR | 0o1777: os.ModeDir | os.ModeSticky | 0o777,
		syscall.S_IFDIR | 0o2750: os.ModeDir | os.ModeSetgid | 0o750,
		syscall.S_IFIFO | 0o600:  os.ModeNamedPipe | 0o600,
		syscall.S_IFCHR | 0o660:  os.ModeDevice | os.ModeCharDevice | 0o660,
		syscall.S_IFBLK | 0o660:  os.ModeDevice | 0o660,
		syscall.S_IFSOCK | 0o777: os.ModeSocket | 0o777,
		syscall.S_IFLNK | 0o777:  os.ModeSymlink | 0o777,
	} {
		if got := unixMode(m); got != want {
			t.Errorf("%v is %o, want %o", m, got, want)
		}
	}
}

// An interrupt alone cancels nothing: the caller must be about to die.
func TestInterruptsOfTheLiving(t *testing.T) {
	w := newWaiters()
	ctx, cancel := context.WithCancelCause(t.Context())
	x := w.enter(1, uint32(os.Getpid()), cancel, false)
	w.interrupt(1)
	w.interrupt(2) // not known yet
	select {
	case <-ctx.Done():
		t.Error("the request of a living process was cancelled")
	case <-time.After(3 * dyingEvery):
	}
	w.leave(1, x)
	if len(w.all) != 0 {
		t.Errorf("%d requests left", len(w.all))
	}
	for id := range fuse.RequestID(2 * maxEarly) {
		w.interrupt(id)
	}
	if len(w.early) > maxEarly {
		t.Errorf("%d early interrupts are remembered", len(w.early))
	}
}

// A wait for a lock ends with any interrupt, also one that overtook its request.
func TestInterruptsOfLockWaits(t *testing.T) {
	w := newWaiters()
	for _, early := range []bool{false, true} {
		ctx, cancel := context.WithCancelCause(t.Context())
		if early {
			w.interrupt(1)
		}
		x := w.enter(1, uint32(os.Getpid()), cancel, true)
		if !early {
			w.interrupt(1)
		}
		<-ctx.Done()
		if context.Cause(ctx) != errInterrupted {
			t.Error(context.Cause(ctx))
		}
		w.leave(1, x)
	}
}

// The library's insides are as library.go expects them.
func TestLibrary(t *testing.T) {
	if libraryErr != nil {
		t.Fatal(libraryErr)
	}
}

func TestFindMount(t *testing.T) {
	m, ok, err := FindMount("/proc")
	if err != nil || !ok || m.Type != "proc" {
		t.Errorf("/proc: %+v, %v, %v", m, ok, err)
	}
	if m, ok, err := FindMount("/proc/self"); err != nil || ok {
		t.Errorf("/proc/self is no mount: %+v, %v, %v", m, ok, err)
	}
	if got := unescape(`/a\040b\134c`); got != `/a b\c` {
		t.Errorf("unescaped to %q", got)
	}
}
