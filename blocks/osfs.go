package blocks

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// OSFS is the host's file system (Linux).
type OSFS struct{}

var _ FS = OSFS{}

// Create implements FS.
func (OSFS) Create(path string) (File, error) { return openOS(path, os.O_CREATE|os.O_EXCL) }

// Open implements FS.
func (OSFS) Open(path string) (File, error) { return openOS(path, 0) }

func openOS(path string, flag int) (File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|flag, 0o600)
	if err != nil {
		return nil, err
	}
	// Blocks lie at random places between holes: read-ahead would fill memory with neighbours and zeros. A refusal costs speed only.
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM)
	return &osFile{File: f, fd: int(f.Fd())}, nil
}

// Remove implements FS.
func (OSFS) Remove(path string) error { return os.Remove(path) }

// Rename implements FS.
func (OSFS) Rename(from, to string) error { return os.Rename(from, to) }

// Exists implements FS.
func (OSFS) Exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// MkdirAll implements FS.
func (o OSFS) MkdirAll(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return o.SyncDir(filepath.Dir(dir))
}

// SyncDir implements FS.
func (OSFS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Lock implements FS with flock, so that it ends with the process however it
// ends. The file holds the process ID of the owner.
func (OSFS) Lock(path string) (io.Closer, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		pid, _ := io.ReadAll(io.LimitReader(f, 32))
		f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		who := "unknown pid"
		if n, err := strconv.Atoi(strings.TrimSpace(string(pid))); err == nil {
			who = fmt.Sprintf("pid %d", n)
		}
		return nil, fmt.Errorf("%w: another mutualfs process (%s) uses %s", ErrBusy, who, filepath.Dir(path))
	}
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return f, nil
}

// Space implements FS.
func (OSFS) Space(dir string) (free, total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, fmt.Errorf("free space of %s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
}

// osFile is a file of the host. The descriptor stays in blocking mode (Fd),
// which is right for disk files.
type osFile struct {
	*os.File
	fd     int
	mu     sync.RWMutex // excludes Close, so that fd is not used after it
	closed bool
}

func (f *osFile) enter() error {
	f.mu.RLock()
	if f.closed {
		f.mu.RUnlock()
		return fmt.Errorf("%s: %w", f.Name(), fs.ErrClosed)
	}
	return nil
}

func (f *osFile) WriteVec(parts [][]byte, off int64) error {
	if err := f.enter(); err != nil {
		return err
	}
	defer f.mu.RUnlock()
	for len(parts) > 0 {
		if len(parts[0]) == 0 {
			parts = parts[1:]
			continue
		}
		n, err := unix.Pwritev(f.fd, parts, off)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "pwritev", Path: f.Name(), Err: err}
		}
		if n == 0 {
			return &os.PathError{Op: "pwritev", Path: f.Name(), Err: io.ErrShortWrite}
		}
		off += int64(n)
		parts = advance(parts, n)
	}
	return nil
}

// advance removes the first n bytes of parts, on a copy of the list.
func advance(parts [][]byte, n int) [][]byte {
	for n > 0 && n >= len(parts[0]) {
		n -= len(parts[0])
		parts = parts[1:]
	}
	if n == 0 {
		return parts
	}
	rest := append([][]byte{parts[0][n:]}, parts[1:]...)
	return rest
}

func (f *osFile) WriteBack(off, n int64) {
	if f.enter() == nil {
		_ = unix.SyncFileRange(f.fd, off, n, unix.SYNC_FILE_RANGE_WRITE)
		f.mu.RUnlock()
	}
}

func (f *osFile) Drop(off, n int64) {
	if f.enter() == nil {
		_ = unix.Fadvise(f.fd, off, n, unix.FADV_DONTNEED)
		f.mu.RUnlock()
	}
}

func (f *osFile) Sync() error {
	return f.call("fdatasync", func() error { return unix.Fdatasync(f.fd) })
}

func (f *osFile) Punch(off, n int64) error {
	return f.call("punch hole", func() error {
		return unix.Fallocate(f.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	})
}

func (f *osFile) call(op string, fn func() error) error {
	if err := f.enter(); err != nil {
		return err
	}
	defer f.mu.RUnlock()
	for {
		err := fn()
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &os.PathError{Op: op, Path: f.Name(), Err: err}
		}
		return nil
	}
}

func (f *osFile) NextData(off int64) (int64, error) {
	if err := f.enter(); err != nil {
		return 0, err
	}
	defer f.mu.RUnlock()
	next, err := unix.Seek(f.fd, off, unix.SEEK_DATA)
	switch {
	case err == unix.ENXIO:
		return 0, io.EOF
	case err == unix.EINVAL: // not supported here: everything may be data
		return off, nil
	case err != nil:
		return 0, &os.PathError{Op: "seek data", Path: f.Name(), Err: err}
	}
	return next, nil
}

func (f *osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (f *osFile) Allocated() (int64, error) {
	var st unix.Stat_t
	err := f.call("stat", func() error { return unix.Fstat(f.fd, &st) })
	return st.Blocks * 512, err
}

func (f *osFile) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	return f.File.Close()
}
