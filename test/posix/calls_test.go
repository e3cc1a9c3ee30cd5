package posix

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What the suites of others leave out. Each gets a directory of its own on the mount.
var calls = []struct {
	name string
	test func(t *testing.T, dir string)
}{
	{"data and holes", dataAndHoles},
	{"blocks", blocks},
	{"fallocate", fallocate},
	{"removed working directory", removedDirectory},
	{"extended attributes", xattrs},
	{"times", times},
	{"access times", accessTimes},
	{"names", names},
	{"append from two descriptors", appends},
	{"mapped memory", mapped},
	{"listing while it changes", listing},
	{"renames that cannot be", renames},
	{"special files", special},
	{"statfs", statfs},
	{"opened and removed", openedAndRemoved},
}

func TestCalls(t *testing.T) {
	p := mount(t)
	for _, c := range calls {
		t.Run(c.name, func(t *testing.T) { c.test(t, folder(t, p)) })
	}
}

// must ends the test on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fails demands an errno.
func fails(t *testing.T, what string, err error, want unix.Errno) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func create(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func dataAndHoles(t *testing.T, dir string) {
	f := create(t, filepath.Join(dir, "f"))
	fd := int(f.Fd())
	_, err := f.WriteAt(bytes.Repeat([]byte("x"), 4096), 1<<20)
	must(t, err)
	must(t, f.Truncate(3<<20))
	for _, when := range []string{"dirty", "stored"} {
		for _, c := range []struct {
			off    int64
			whence int
			want   int64
		}{
			{0, unix.SEEK_DATA, 1 << 20}, {0, unix.SEEK_HOLE, 0}, {1 << 20, unix.SEEK_HOLE, 1<<20 + 4096}, {1<<20 + 5, unix.SEEK_DATA, 1<<20 + 5}, {2 << 20, unix.SEEK_HOLE, 2 << 20},
		} {
			if at, err := unix.Seek(fd, c.off, c.whence); at != c.want || err != nil {
				t.Errorf("%s: whence %d from %d: %d, %v; want %d", when, c.whence, c.off, at, err, c.want)
			}
		}
		_, err = unix.Seek(fd, 2<<20, unix.SEEK_DATA)
		fails(t, "no data follows", err, unix.ENXIO)
		_, err = unix.Seek(fd, 3<<20, unix.SEEK_HOLE)
		fails(t, "hole at the end", err, unix.ENXIO)
		must(t, f.Sync())
	}
}

func stat(t *testing.T, path string) (st unix.Stat_t) {
	t.Helper()
	must(t, unix.Lstat(path, &st))
	return st
}

// Space is shown at once, and neither for holes nor twice.
func blocks(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	f := create(t, path)
	_, err := f.WriteAt(make([]byte, 1<<20), 1<<40)
	must(t, err)
	check := func(when string, least, most int64) {
		t.Helper()
		var st unix.Statx_t
		must(t, unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &st))
		if n := int64(st.Blocks * 512); n < least || n > most {
			t.Errorf("%s: %d bytes are shown to be in use, not %d to %d", when, n, least, most)
		}
	}
	check("written", 1<<20, 1<<20)
	must(t, f.Sync())
	check("stored", 1<<20, 1<<20)
	_, err = f.WriteAt(make([]byte, 1<<20), 1<<40)
	must(t, err)
	check("written again", 1<<20, 2<<20) // until it is stored, nobody has compared
	must(t, f.Sync())
	check("stored again", 1<<20, 1<<20)
	must(t, f.Truncate(0))
	check("cut", 0, 0)
}

func fallocate(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	const size, off, n = 65536, 4096, 8192
	for _, c := range []struct {
		mode  uint32
		errno error
		zeros int
	}{
		{0, nil, 0}, {unix.FALLOC_FL_KEEP_SIZE, nil, 0},
		{unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, nil, n},
		{unix.FALLOC_FL_ZERO_RANGE, nil, n}, {unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE, nil, n},
		{unix.FALLOC_FL_COLLAPSE_RANGE, unix.EOPNOTSUPP, 0}, {unix.FALLOC_FL_INSERT_RANGE, unix.EOPNOTSUPP, 0},
	} {
		must(t, os.WriteFile(path, bytes.Repeat([]byte("y"), size), 0o644))
		f := create(t, path)
		if err := unix.Fallocate(int(f.Fd()), c.mode, off, n); !errors.Is(err, c.errno) {
			t.Errorf("mode %#x: %v, want %v", c.mode, err, c.errno)
		}
		data, err := os.ReadFile(path)
		must(t, err)
		if len(data) != size || bytes.Count(data, []byte{0}) != c.zeros {
			t.Errorf("mode %#x: %d bytes with %d zeros", c.mode, len(data), bytes.Count(data, []byte{0}))
		}
	}
}

func removedDirectory(t *testing.T, dir string) {
	path := filepath.Join(dir, "d")
	must(t, os.Mkdir(path, 0o755))
	d, err := os.Open(path)
	must(t, err)
	defer d.Close()
	must(t, os.Remove(path))
	var st unix.Stat_t
	must(t, unix.Fstat(int(d.Fd()), &st))
	if st.Nlink != 0 || st.Mode != unix.S_IFDIR|0o755 {
		t.Errorf("%d links, mode %o", st.Nlink, st.Mode)
	}
	_, err = d.Readdirnames(-1)
	fails(t, "list it", err, unix.ENOENT)
	_, err = unix.Openat(int(d.Fd()), "f", unix.O_CREAT|unix.O_RDWR, 0o644)
	fails(t, "create in it", err, unix.ENOENT)
	fails(t, "mkdir in it", unix.Mkdirat(int(d.Fd()), "e", 0o755), unix.ENOENT)
}

func xattrs(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	create(t, path)
	for _, size := range []int{0, 1, 65536} {
		for _, space := range []string{"user.", "trusted.", "security."} {
			name, want := space+strings.Repeat("n", 255-len(space)), bytes.Repeat([]byte{byte(size)}, size)
			must(t, unix.Setxattr(path, name, want, 0))
			got := make([]byte, size+1)
			if n, err := unix.Getxattr(path, name, got); err != nil || !bytes.Equal(got[:n], want) {
				t.Errorf("%s of %d bytes: %d, %v", space, size, n, err)
			}
			fails(t, "create again", unix.Setxattr(path, name, want, unix.XATTR_CREATE), unix.EEXIST)
		}
	}
	fails(t, "replace what is not there", unix.Setxattr(path, "user.x", nil, unix.XATTR_REPLACE), unix.ENODATA)
	fails(t, "remove what is not there", unix.Removexattr(path, "user.x"), unix.ENODATA)
	fails(t, "a value too long", unix.Setxattr(path, "user.x", make([]byte, 65537), 0), unix.E2BIG)
	fails(t, "an unknown name space", unix.Setxattr(path, "unknown.x", nil, 0), unix.EOPNOTSUPP)
	var err error
	for i := 0; i < 1000 && err == nil; i++ { // the list may have 64 KiB
		err = unix.Setxattr(path, fmt.Sprintf("user.%0100d", i), nil, 0)
	}
	fails(t, "more names than can be listed", err, unix.ENOSPC)
	list := make([]byte, 65536)
	if n, err := unix.Listxattr(path, list); err != nil || bytes.Count(list[:n], []byte{0}) < 500 {
		t.Errorf("the list has %d bytes, %v", n, err)
	}
}

func times(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	create(t, path)
	for _, sec := range []int64{0, -1, -1 << 31, 1 << 31, 1 << 33} {
		want := unix.Timespec{Sec: sec, Nsec: 999999999}
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{{Sec: sec, Nsec: 1}, want}, 0))
		if st := stat(t, path); st.Mtim != want || st.Atim != (unix.Timespec{Sec: sec, Nsec: 1}) {
			t.Errorf("%v became %v", want, st.Mtim)
		}
	}
	before := stat(t, path)
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_NOW}}, 0))
	if st := stat(t, path); st.Atim != before.Atim || time.Since(time.Unix(st.Mtim.Unix())) > time.Minute {
		t.Errorf("omit and now: %v, %v", st.Atim, st.Mtim)
	}
}

// accessTimes are those of relatime.
func accessTimes(t *testing.T, dir string) {
	file, sub, link := filepath.Join(dir, "file"), filepath.Join(dir, "sub"), filepath.Join(dir, "link")
	must(t, os.WriteFile(file, []byte("content"), 0o644))
	must(t, os.Mkdir(sub, 0o755))
	must(t, os.Symlink("target", link))
	old, older := unix.NsecToTimespec(1e18), unix.NsecToTimespec(9e17)
	for _, c := range []struct {
		path string
		read func() error
	}{
		{file, func() error { _, err := os.ReadFile(file); return err }},
		{sub, func() error { _, err := os.ReadDir(sub); return err }},
		{link, func() error { _, err := os.Readlink(link); return err }},
	} {
		lstat := func() (st unix.Stat_t) { must(t, unix.Lstat(c.path, &st)); return st }
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, c.path, []unix.Timespec{older, old}, unix.AT_SYMLINK_NOFOLLOW))
		if st := lstat(); st.Atim != older {
			t.Fatalf("%s: an access time of %v", c.path, st.Atim)
		}
		must(t, c.read())
		first := lstat()
		if age := time.Since(time.Unix(first.Atim.Unix())); age < 0 || age > time.Minute || first.Mtim != old {
			t.Errorf("%s was read, and has access time %v and time of modification %v", c.path, first.Atim, first.Mtim)
		}
		must(t, c.read())
		if again := lstat(); again.Atim != first.Atim {
			t.Errorf("%s was read again, and the access time went from %v to %v", c.path, first.Atim, again.Atim)
		}
	}
}

func names(t *testing.T, dir string) {
	long := strings.Repeat("n", 255)
	var odd []byte
	for c := 1; c < 256; c++ {
		if c != '/' {
			odd = append(odd, byte(c))
		}
	}
	for _, name := range []string{long, string(odd[:200]), string(odd[200:]), " ", "…"} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644))
	}
	fails(t, "256 bytes", os.WriteFile(filepath.Join(dir, long+"n"), nil, 0o644), unix.ENAMETOOLONG)
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		if data, err := os.ReadFile(filepath.Join(dir, e.Name())); err != nil || string(data) != e.Name() {
			t.Errorf("%q: %v", e.Name(), err)
		}
	}
	if len(entries) != 5 {
		t.Errorf("%d names", len(entries))
	}
	path := dir
	for len(path) < 4096-1-200 {
		path += "/" + strings.Repeat("p", min(200, 4095-len(path)-1))
		must(t, os.Mkdir(path, 0o755))
	}
	must(t, os.WriteFile(path+"/"+strings.Repeat("q", 4095-len(path)-1), nil, 0o644))
	target := strings.Repeat("t", 4095)
	must(t, os.Symlink(target, filepath.Join(dir, "link")))
	if got, err := os.Readlink(filepath.Join(dir, "link")); got != target || err != nil {
		t.Errorf("a target of %d bytes became %d, %v", len(target), len(got), err)
	}
}

func appends(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	const writers, writes, length = 4, 200, 100
	var wg sync.WaitGroup
	for w := range writers {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		must(t, err)
		defer f.Close()
		wg.Go(func() {
			for range writes {
				if _, err := f.Write(bytes.Repeat([]byte{byte('a' + w)}, length)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	data, err := os.ReadFile(path)
	must(t, err)
	if len(data) != writers*writes*length {
		t.Fatalf("%d bytes", len(data))
	}
	for i := 0; i < len(data); i += length {
		if c := data[i : i+length]; bytes.Count(c, c[:1]) != length {
			t.Fatalf("the writes are mixed at %d", i)
		}
	}
}

func mapped(t *testing.T, dir string) {
	f := create(t, filepath.Join(dir, "f"))
	must(t, f.Truncate(1<<20))
	m, err := unix.Mmap(int(f.Fd()), 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	copy(m[5000:], "mapped")
	must(t, unix.Msync(m, unix.MS_SYNC))
	_, err = f.WriteAt([]byte("written"), 70000)
	must(t, err)
	if string(m[70000:70007]) != "written" {
		t.Error("a write is not seen in mapped memory")
	}
	must(t, unix.Munmap(m))
	direct, err := os.OpenFile(f.Name(), os.O_RDONLY|unix.O_DIRECT, 0)
	must(t, err)
	defer direct.Close()
	got := make([]byte, 1<<17)
	if _, err := direct.ReadAt(got, 0); err != nil || string(got[5000:5006]) != "mapped" || string(got[70000:70007]) != "written" {
		t.Errorf("read past the kernel's cache: %q, %v", got[5000:5006], err)
	}
}

// A listing has every name that stays, and none twice.
func listing(t *testing.T, dir string) {
	const n = 2000
	for i := range n {
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o644))
	}
	d, err := os.Open(dir)
	must(t, err)
	defer d.Close()
	var orders [2][]string
	for i := range orders {
		_, err := d.Seek(0, 0)
		must(t, err)
		orders[i], err = d.Readdirnames(-1)
		must(t, err)
	}
	if !slices.Equal(orders[0], orders[1]) {
		t.Error("read again, the directory has another order")
	}
	_, err = d.Seek(0, 0)
	must(t, err)
	seen := map[string]int{}
	for i := 0; ; i++ {
		list, err := d.Readdirnames(50)
		if err != nil {
			break
		}
		for _, name := range list {
			seen[name]++
		}
		_ = os.Remove(filepath.Join(dir, fmt.Sprint(i*3)))
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint("new", i)), nil, 0o644))
	}
	for i := range n {
		if name := fmt.Sprint(i); i%3 != 0 && seen[name] != 1 {
			t.Errorf("%s was listed %d times", name, seen[name])
		}
	}
}

func renames(t *testing.T, dir string) {
	a, b, c := filepath.Join(dir, "a"), filepath.Join(dir, "a/b"), filepath.Join(dir, "a/b/c")
	must(t, os.MkdirAll(c, 0o755))
	file := filepath.Join(dir, "file")
	create(t, file)
	fails(t, "into itself", unix.Rename(a, filepath.Join(c, "x")), unix.EINVAL)
	fails(t, "onto what is not empty", unix.Rename(c, a), unix.ENOTEMPTY)
	fails(t, "a file onto a directory", unix.Rename(file, c), unix.EISDIR)
	fails(t, "a directory onto a file", unix.Rename(b, file), unix.ENOTDIR)
	fails(t, "not replacing", unix.Renameat2(unix.AT_FDCWD, file, unix.AT_FDCWD, c, unix.RENAME_NOREPLACE), unix.EEXIST)
	must(t, unix.Renameat2(unix.AT_FDCWD, file, unix.AT_FDCWD, c, unix.RENAME_EXCHANGE))
	if st := stat(t, c); st.Mode&unix.S_IFMT != unix.S_IFREG {
		t.Errorf("exchanged: mode %o", st.Mode)
	}
}

func special(t *testing.T, dir string) {
	for i, mode := range []uint32{unix.S_IFIFO | 0o600, unix.S_IFSOCK | 0o640, unix.S_IFCHR | 0o604, unix.S_IFBLK | 0o660} {
		path, dev := filepath.Join(dir, fmt.Sprint(i)), uint64(0)
		if mode&unix.S_IFMT == unix.S_IFCHR || mode&unix.S_IFMT == unix.S_IFBLK {
			dev = unix.Mkdev(259, 300000)
		}
		must(t, unix.Mknod(path, mode, int(dev)))
		must(t, os.Chmod(path, os.FileMode(mode&0o777)))
		if st := stat(t, path); st.Mode != mode || st.Rdev != dev {
			t.Errorf("mode %o, device %d became %o, %d", mode, dev, st.Mode, st.Rdev)
		}
	}
}

func statfs(t *testing.T, dir string) {
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	if st.Blocks < st.Bfree || st.Bfree < st.Bavail || st.Bavail == 0 || st.Files < st.Ffree || st.Ffree == 0 || st.Namelen != 255 {
		t.Errorf("%+v", st)
	}
}

func openedAndRemoved(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	f := create(t, path)
	_, err := f.WriteString("still here")
	must(t, err)
	must(t, os.Remove(path))
	must(t, f.Chmod(0o600))
	must(t, f.Truncate(5))
	must(t, unix.Fsetxattr(int(f.Fd()), "user.a", []byte("1"), 0))
	_, err = f.WriteAt([]byte("S"), 0)
	must(t, err)
	must(t, f.Sync())
	var st unix.Stat_t
	must(t, unix.Fstat(int(f.Fd()), &st))
	got := make([]byte, 10)
	if n, _ := f.ReadAt(got, 0); string(got[:n]) != "Still" || st.Nlink != 0 || st.Size != 5 || st.Mode&0o777 != 0o600 {
		t.Errorf("%q, %+v", got[:n], st)
	}
}
