package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// pair is a ring of one peer with a mount, and a second mount of it.
func pair(t *testing.T) (a, b *Peer) {
	t.Helper()
	a = Init(t, Options{})
	a.Mnt = filepath.Join(t.TempDir(), "mnt")
	a.Start()
	b = a.Join(t, "second", Options{Capacity: "0"})
	b.Mnt = filepath.Join(t.TempDir(), "mnt2")
	b.Start()
	return a, b
}

// cached is what one mount's kernel has been made to know of a directory: asked for often
// enough that the mount takes the lease and the kernel keeps the answers.
func cached(t *testing.T, dir string, names ...string) {
	t.Helper()
	for range 4 {
		for _, n := range names {
			if info, err := os.Stat(filepath.Join(dir, n)); err == nil && info.Mode().IsRegular() {
				if _, err := os.ReadFile(filepath.Join(dir, n)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if _, err := os.ReadDir(dir); err != nil {
			t.Fatal(err)
		}
	}
}

// view is one mount's side of the test of coherence.
type view struct {
	t     *testing.T
	dir   string
	round int
}

func (v view) path(name string) string { return filepath.Join(v.dir, name) }

func (v view) must(err error) {
	v.t.Helper()
	if err != nil {
		v.t.Fatalf("round %d: %v", v.round, err)
	}
}

func (v view) content() string { return strings.Repeat(fmt.Sprintf("%d ", v.round), 1+v.round*37%9000) }

// change does one of everything that another mount may have cached.
func (v view) change() {
	v.must(os.WriteFile(v.path("data"), []byte(v.content()), 0o644))
	v.must(os.Chmod(v.path("mode"), fs.FileMode(0o600|v.round%8)))
	v.must(syscall.Setxattr(v.path("mode"), "user.round", fmt.Append(nil, v.round), 0))
	v.must(os.Rename(v.path(fmt.Sprintf("old%d", v.round)), v.path(fmt.Sprintf("old%d", v.round+1))))
	v.must(os.WriteFile(v.path(fmt.Sprintf("new%d", v.round)), nil, 0o644))
	if v.round > 0 {
		v.must(os.Remove(v.path(fmt.Sprintf("new%d", v.round-1))))
	}
	v.must(os.Rename(v.path("spare"), v.path("over")))
	v.must(os.WriteFile(v.path("spare"), fmt.Append(nil, v.round), 0o644))
}

// check looks at all that change did, in an order that moves on with the rounds.
func (v view) check(mapped []byte) {
	v.t.Helper()
	absent := func(name string) {
		if _, err := os.Lstat(v.path(name)); !errors.Is(err, fs.ErrNotExist) {
			v.t.Errorf("round %d: %s is still there: %v", v.round, name, err)
		}
	}
	checks := []func(){
		func() {
			info, err := os.Stat(v.path("data"))
			v.must(err)
			if info.Size() != int64(len(v.content())) {
				v.t.Errorf("round %d: stat says %d bytes, want %d", v.round, info.Size(), len(v.content()))
			}
		},
		func() {
			got, err := os.ReadFile(v.path("data"))
			v.must(err)
			if want := v.content(); string(got) != want {
				v.t.Errorf("round %d: read %d bytes %.20q, want %d %.20q", v.round, len(got), got, len(want), want)
			}
			if mapped[0] != v.content()[0] {
				v.t.Errorf("round %d: the mapping has %q after the file was opened again, want %q", v.round, mapped[0], v.content()[0])
			}
		},
		func() {
			info, err := os.Stat(v.path("mode"))
			v.must(err)
			if info.Mode().Perm() != fs.FileMode(0o600|v.round%8) {
				v.t.Errorf("round %d: the mode is %v", v.round, info.Mode())
			}
		},
		func() {
			buf := make([]byte, 20)
			n, err := syscall.Getxattr(v.path("mode"), "user.round", buf)
			v.must(err)
			if string(buf[:n]) != fmt.Sprint(v.round) {
				v.t.Errorf("round %d: the attribute is %q", v.round, buf[:n])
			}
		},
		func() { absent(fmt.Sprintf("old%d", v.round)) },
		func() { _, err := os.Lstat(v.path(fmt.Sprintf("old%d", v.round+1))); v.must(err) },
		func() { _, err := os.Lstat(v.path(fmt.Sprintf("new%d", v.round))); v.must(err) },
		func() { absent(fmt.Sprintf("new%d", v.round-1)) },
		func() {
			entries, err := os.ReadDir(v.dir)
			v.must(err)
			var names []string
			for _, e := range entries {
				names = append(names, e.Name())
			}
			want := []string{"data", "mode", fmt.Sprintf("new%d", v.round), fmt.Sprintf("old%d", v.round+1), "over", "spare"}
			if !slices.Equal(names, want) {
				v.t.Errorf("round %d: the directory has %v, want %v", v.round, names, want)
			}
		},
		func() {
			got, err := os.ReadFile(v.path("over"))
			v.must(err)
			if want := fmt.Sprint(v.round - 1); string(got) != want {
				v.t.Errorf("round %d: the file renamed over another has %q, want %q", v.round, got, want)
			}
		},
	}
	for i := range checks {
		checks[(i+v.round)%len(checks)]()
	}
}

// What a mount and its kernel have cached is called back before another mount changes it: whatever is looked at
// first, and without waiting for anything, is right.
func TestCachesAreCalledBack(t *testing.T) {
	a, b := pair(t)
	dir := filepath.Join(a.Mnt, "shared")
	sh(t, "", "mkdir "+dir+" && cd "+dir+" && echo x >data && echo x >mode && echo x >old0 && printf -- -1 >spare && echo x >over")
	var maps [2][]byte
	for i, p := range []*Peer{a, b} {
		f, err := os.Open(filepath.Join(p.Mnt, "shared", "data"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if maps[i], err = syscall.Mmap(int(f.Fd()), 0, 1, syscall.PROT_READ, syscall.MAP_SHARED); err != nil {
			t.Fatal(err)
		}
		defer syscall.Munmap(maps[i])
	}
	begin := time.Now()
	const rounds = 200
	for i := range rounds {
		from, to := a, b
		if i/3%2 == 1 { // both directions, and some changes in a row from one side
			from, to = b, a
		}
		reader := view{t, filepath.Join(to.Mnt, "shared"), i}
		cached(t, reader.dir, "data", "mode", "over", "spare", fmt.Sprintf("old%d", i), fmt.Sprintf("old%d", i+1), fmt.Sprintf("new%d", i), fmt.Sprintf("new%d", i-1))
		view{t, filepath.Join(from.Mnt, "shared"), i}.change()
		mapped := maps[0]
		if to == b {
			mapped = maps[1]
		}
		reader.check(mapped)
		if t.Failed() {
			return
		}
	}
	t.Logf("%v a round", (time.Since(begin) / rounds).Round(time.Millisecond))
}

// race runs two functions at the same time.
func race(f, g func() error) (ef, eg error) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	wg.Go(func() { <-start; ef = f() })
	wg.Go(func() { <-start; eg = g() })
	close(start)
	wg.Wait()
	return ef, eg
}

// Moves of two directories into each other: one wins, on one mount and on two.
func TestMovesMakeNoCycle(t *testing.T) {
	a, b := pair(t)
	won := map[string]int{}
	begin := time.Now()
	const rounds = 200
	for i := range rounds {
		other := b
		if i%2 == 1 {
			other = a
		}
		base := filepath.Join(a.Mnt, "moves")
		sh(t, "", fmt.Sprintf("mkdir -p %s/x/in %s/y/in", base, base))
		there := filepath.Join(other.Mnt, "moves")
		ex, ey := race(
			func() error { return os.Rename(base+"/x", base+"/y/in/x") },
			func() error { return os.Rename(there+"/y", there+"/x/in/y") })
		if (ex == nil) == (ey == nil) {
			t.Fatalf("round %d: both moves say %v and %v", i, ex, ey)
		}
		won[fmt.Sprintf("%v %v", i%2 == 1, ex == nil)]++
		for _, p := range []*Peer{a, b} {
			want := "y/in/x/in"
			if ey == nil {
				want = "x/in/y/in"
			}
			if info, err := os.Stat(filepath.Join(p.Mnt, "moves", want)); err != nil || !info.IsDir() {
				t.Fatalf("round %d: %s does not see %s: %v (%v, %v)", i, p.Name, want, err, ex, ey)
			}
			if n, err := os.ReadDir(filepath.Join(p.Mnt, "moves")); err != nil || len(n) != 1 {
				t.Fatalf("round %d: %s sees %v, %v", i, p.Name, n, err)
			}
		}
		sh(t, "", "rm -r "+base)
	}
	t.Logf("won by (one mount, the first): %v; %v a round", won, (time.Since(begin) / rounds).Round(time.Millisecond))
}

// A file that one mount moves to another directory is always seen by the other, and never under both names.
func TestRenameIsSeenWhole(t *testing.T) {
	a, b := pair(t)
	sh(t, "", "mkdir "+a.Mnt+"/d1 "+a.Mnt+"/d2")
	exists := func(name string) bool {
		_, err := os.Lstat(filepath.Join(b.Mnt, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
		return err == nil
	}
	looks := 0
	begin := time.Now()
	const rounds = 100
	for i := range rounds {
		from, to := fmt.Sprintf("d1/f%d", i), fmt.Sprintf("d2/f%d", i)
		if err := os.WriteFile(filepath.Join(a.Mnt, from), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		var moved atomic.Bool
		var wg sync.WaitGroup
		wg.Go(func() {
			defer moved.Store(true)
			if err := os.Rename(filepath.Join(a.Mnt, from), filepath.Join(a.Mnt, to)); err != nil {
				t.Error(err)
			}
		})
		for done := false; !done && !t.Failed(); looks++ {
			done = moved.Load()
			// Once the old name has gone, the new one is there for good; once there is a new one, the old one has gone for good.
			if !exists(from) && !exists(to) {
				t.Errorf("round %d: neither name is seen", i)
			}
			if exists(to) && exists(from) {
				t.Errorf("round %d: both names are seen", i)
			}
			if done && (exists(from) || !exists(to)) {
				t.Errorf("round %d: the rename has been answered and is not seen", i)
			}
		}
		wg.Wait()
		if t.Failed() {
			return
		}
	}
	t.Logf("looked %d times; %v a round", looks, (time.Since(begin) / rounds).Round(time.Millisecond))
}

// removed takes the last name of a file away on one mount while another has it open.
var removed = []func(dir, name string) error{
	func(dir, name string) error { return os.Remove(filepath.Join(dir, name)) },
	func(dir, name string) error { return os.WriteFile(filepath.Join(dir, name), []byte("new"), 0o644) }, // see below
	func(dir, name string) error {
		return errors.Join(os.WriteFile(filepath.Join(dir, "other"), []byte("new"), 0o644), os.Rename(filepath.Join(dir, "other"), filepath.Join(dir, name)))
	},
	func(dir, name string) error {
		return errors.Join(os.Rename(filepath.Join(dir, name), filepath.Join(filepath.Dir(dir), "moved")), os.Remove(filepath.Join(filepath.Dir(dir), "moved")))
	},
	func(dir, _ string) error { return os.RemoveAll(dir) },
}

// A file that one mount has open and the other removes, however it does: it can be read, written and stored until it is closed. The
// file that has the name now is not touched.
func TestOpenFileIsRemovedElsewhere(t *testing.T) {
	a, b := pair(t)
	for i := range 40 {
		from, to := a, b
		if i%2 == 1 {
			from, to = b, a
		}
		must := func(what string, err error) {
			t.Helper()
			if err != nil {
				t.Fatalf("round %d: %s: %v", i, what, err)
			}
		}
		dir, name := fmt.Sprint("dir", i), fmt.Sprint("open", i)
		must("mkdir", os.Mkdir(filepath.Join(from.Mnt, dir), 0o755))
		path := filepath.Join(from.Mnt, dir, name)
		want := []byte(strings.Repeat(name, 20000))
		must("write", os.WriteFile(path, want, 0o644))
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		must("open", err)
		way := i / 2 % len(removed)
		if way == 1 { // the name is free before it is used again
			must("remove", os.Remove(filepath.Join(to.Mnt, dir, name)))
		}
		must("remove", removed[way](filepath.Join(to.Mnt, dir), name))
		same := func() {
			t.Helper()
			buf := make([]byte, len(want)+1)
			if n, err := f.ReadAt(buf, 0); err != io.EOF || !bytes.Equal(buf[:n], want) {
				t.Fatalf("round %d: read %d bytes %.20q of a removed file, %v", i, n, buf[:n], err)
			}
		}
		same()
		info, err := f.Stat()
		must("stat", err)
		if st := info.Sys().(*syscall.Stat_t); st.Nlink != 0 || st.Size != int64(len(want)) {
			t.Errorf("round %d: the removed file has %d links and %d bytes", i, st.Nlink, st.Size)
		}
		copy(want, "late")
		_, err = f.WriteAt([]byte("late"), 0)
		must("write", err)
		must("fsync", f.Sync())
		same()
		must("close", f.Close())
		if way == 1 || way == 2 {
			if got, err := os.ReadFile(path); err != nil || string(got) != "new" {
				t.Errorf("round %d: the new file has %.20q, %v", i, got, err)
			}
		}
	}
}

// A process stays in its working directory while another mount changes what is beside it: where it is can be told all the time.
func TestWorkingDirectoryStays(t *testing.T) {
	a, b := pair(t)
	if err := os.MkdirAll(filepath.Join(a.Mnt, "up/down"), 0o755); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(b.Mnt, "up/down")
	cached(t, filepath.Dir(dir), "down")
	cmd := exec.Command("cat")
	cmd.Dir = dir
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	for i := range 10 {
		for _, d := range []string{"", "up", "up/down"} {
			if err := os.WriteFile(filepath.Join(a.Mnt, d, fmt.Sprint("new", i)), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if at, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", cmd.Process.Pid)); err != nil || at != dir {
			t.Fatalf("round %d: the process is in %q, %v; want %q", i, at, err, dir)
		}
		cached(t, filepath.Dir(dir), "down")
	}
}
