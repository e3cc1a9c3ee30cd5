package blocks

import (
	"bytes"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A read takes from the host's medium what it asked for, not the neighbourhood.
func TestReadsDoNotReadAhead(t *testing.T) {
	const size = 4 << 20
	path := filepath.Join(t.TempDir(), "disk")
	f, err := OSFS{}.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.WriteVec([][]byte{bytes.Repeat([]byte{1}, size)}, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	f.Drop(0, size)
	if n := residentPages(t, f.(*osFile).fd, size); n != 0 {
		t.Skipf("the file system of %s keeps %d pages of a dropped file in memory", path, n)
	}
	if _, err := f.ReadAt(make([]byte, 3*unitSize), 0); err != nil {
		t.Fatal(err)
	}
	if n := residentPages(t, f.(*osFile).fd, size); n != 3 {
		t.Errorf("a read of 3 pages left %d in memory", n)
	}
}

// residentPages counts the pages of a file that are in memory.
func residentPages(t *testing.T, fd, size int) (n int) {
	t.Helper()
	m, err := unix.Mmap(fd, 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(m)
	state := make([]byte, size/unix.Getpagesize())
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(size), uintptr(unsafe.Pointer(&state[0])))
	if errno != 0 {
		t.Fatal(errno)
	}
	for _, s := range state {
		n += int(s & 1)
	}
	return n
}
