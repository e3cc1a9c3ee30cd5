package posix

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
)

// entry of a list: tag, permissions, and who, of a named user (2) or group (8).
type entry struct {
	tag, perm uint16
	id        uint32
}

func list(entries ...entry) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		if e.tag != 2 && e.tag != 8 {
			e.id = ^uint32(0)
		}
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

// randomList makes a list; one of ten is none.
func randomList(r *rand.Rand) []byte {
	perm := func() uint16 { return uint16(r.IntN(8)) }
	all := []entry{{tag: 1, perm: perm()}}
	named := false
	for i := range uint32(r.IntN(3)) {
		all, named = append(all, entry{2, perm(), 100 + i}), true
	}
	all = append(all, entry{tag: 4, perm: perm()})
	for i := range uint32(r.IntN(2)) {
		all, named = append(all, entry{8, perm(), 200 + i}), true
	}
	if named || r.IntN(3) == 0 {
		all = append(all, entry{tag: 16, perm: perm()})
	}
	all = append(all, entry{tag: 32, perm: perm()})
	if r.IntN(10) == 0 {
		all = slices.Delete(all, 0, 1)
	}
	return list(all...)
}

// look returns what can be seen of the lists of everything in a directory.
func look(t *testing.T, dir string) map[string]string {
	t.Helper()
	seen := map[string]string{}
	names, err := os.ReadDir(dir)
	must(t, err)
	for _, n := range append(names, nil) {
		path := dir
		if n != nil {
			path = filepath.Join(dir, n.Name())
		}
		var st unix.Stat_t
		must(t, unix.Lstat(path, &st))
		text := fmt.Sprintf("%o", st.Mode)
		for _, name := range []string{aclAccess, aclDefault} {
			b := make([]byte, 4096)
			k, err := unix.Getxattr(path, name, b)
			text += fmt.Sprintf(" %x %v", b[:max(k, 0)], err)
		}
		seen[filepath.Base(path)] = text
	}
	seen["."] = seen[filepath.Base(dir)]
	delete(seen, filepath.Base(dir))
	return seen
}

// Access-control lists, chmod, and what is made below a default list, beside the same calls in a local directory.
func TestACLs(t *testing.T) {
	dirs := []string{filepath.Join(folder(t, mount(t)), "acl"), filepath.Join(t.TempDir(), "acl")}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	defer unix.Umask(unix.Umask(0))
	for _, d := range dirs {
		must(t, os.Mkdir(d, 0o755))
	}
	paths := []string{"."}
	for i := range 400 {
		path, value, mode, mask := paths[r.IntN(len(paths))], randomList(r), uint32(r.IntN(0o7777+1)), r.IntN(0o777+1)
		fresh := fmt.Sprint("new", i)
		var what string
		var call func(dir string) error
		switch x := r.IntN(10); {
		case x < 2:
			what, call = "access", func(dir string) error { return unix.Setxattr(filepath.Join(dir, path), aclAccess, value, 0) }
		case x < 4:
			what, call = "default", func(dir string) error { return unix.Setxattr(filepath.Join(dir, path), aclDefault, value, 0) }
		case x == 4:
			name := []string{aclAccess, aclDefault}[r.IntN(2)]
			what, call = "remove "+name, func(dir string) error { return unix.Removexattr(filepath.Join(dir, path), name) }
		case x < 7:
			what, call = "chmod", func(dir string) error { return unix.Chmod(filepath.Join(dir, path), mode) }
		case x == 7:
			what, call = "open", func(dir string) error {
				fd, err := unix.Open(filepath.Join(dir, fresh), unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, mode&0o777)
				if err == nil {
					err = unix.Close(fd)
				}
				return err
			}
		case x == 8:
			what, call = "mkdir", func(dir string) error { return unix.Mkdir(filepath.Join(dir, fresh), mode&0o777) }
		default:
			what, call = "mknod", func(dir string) error { return unix.Mknod(filepath.Join(dir, fresh), unix.S_IFIFO|mode&0o777, 0) }
		}
		unix.Umask(mask)
		errs := [2]error{call(dirs[0]), call(dirs[1])}
		unix.Umask(0)
		if errs[0] != errs[1] {
			t.Fatalf("seed %d, call %d, %s of %s: %v, locally %v", seed, i, what, path, errs[0], errs[1])
		}
		if _, err := os.Lstat(filepath.Join(dirs[1], fresh)); err == nil {
			paths = append(paths, fresh)
		}
		here, there := look(t, dirs[0]), look(t, dirs[1])
		for name, want := range there {
			if here[name] != want {
				t.Fatalf("seed %d, call %d, %s of %s: %s is\n%s, locally\n%s", seed, i, what, path, name, here[name], want)
			}
		}
	}
	plain := file(t, dirs[0])
	fails(t, "a default list of a file", unix.Setxattr(plain, aclDefault, list(entry{1, 7, 0}, entry{4, 7, 0}, entry{32, 7, 0}), 0), unix.EACCES)
}

// The kernel checks the lists, also when another mount changes them, and they are there after a new mount.
func TestACLsAreChecked(t *testing.T) {
	p := mount(t)
	dir := folder(t, p)
	must(t, os.Chmod(dir, 0o755))
	path := file(t, dir)
	const user = 12345
	must(t, os.Chown(path, 0, user)) // our own group is another one
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	must(t, err)
	opens := func() error { // as a user who may go through no directory above
		runtime.LockOSThread() // the thread must live on: the mount's process ends with the one that started it
		defer runtime.UnlockOSThread()
		if err := unix.Setfsuid(user); err != nil {
			return err
		}
		fd, err := unix.Openat(at, filepath.Base(path), unix.O_RDONLY, 0)
		if err == nil {
			unix.Close(fd)
		}
		return errors.Join(err, unix.Setfsuid(0))
	}
	fails(t, "open by a stranger", opens(), unix.EACCES)
	allow := list(entry{1, 6, 0}, entry{2, 4, user}, entry{4, 0, 0}, entry{16, 4, 0}, entry{32, 0, 0})
	must(t, unix.Setxattr(path, aclAccess, allow, 0))
	must(t, opens())
	must(t, os.Chmod(path, 0o600)) // the mask permits nothing
	fails(t, "open with an empty mask", opens(), unix.EACCES)
	must(t, os.Chmod(path, 0o640))
	must(t, opens())
	unix.Close(at)
	p.Unmount()
	p.Start()
	at, err = unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	must(t, err)
	defer unix.Close(at)
	must(t, opens())
	got := make([]byte, 100)
	n, err := unix.Getxattr(path, aclAccess, got)
	must(t, err)
	if !bytes.Equal(got[:n], allow) {
		t.Errorf("after a new mount the list is %x, not %x", got[:n], allow)
	}
	must(t, unix.Removexattr(path, aclAccess))
	fails(t, "open without the list", opens(), unix.EACCES)
}

// file makes a file.
func file(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "file")
	must(t, os.WriteFile(path, []byte("content"), 0o600))
	return path
}
