package index

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/blocks/blockstest"
)

func seed(t *testing.T) uint64 {
	if s := os.Getenv("MUTUALFS_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("MUTUALFS_SEED: %v", err)
		}
		return n
	}
	return uint64(time.Now().UnixNano())
}

// medium is a MemFS whose index lies in pebble on a memory file system.
type medium struct {
	files *blocks.MemFS
	index *vfs.MemFS
	onOp  func()
}

func newMedium() *medium { return &medium{files: blocks.NewMemFS(), index: vfs.NewCrashableMem()} }

func (m *medium) FS() blocks.FS { return m.files }

func (m *medium) Indexes() blocks.Indexes {
	return Pebble{FS: errorfs.Wrap(m.index, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if m.onOp != nil && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			m.onOp()
		}
		return nil
	}))}
}

func (m *medium) OnOp(fn func()) {
	m.onOp = fn
	m.files.OnOp(fn)
}

func (m *medium) Crash(r *rand.Rand, keep int) blockstest.Medium {
	c := &medium{}
	c.files = m.files.Crash(r, keep, func() {
		c.index = m.index.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: keep, RNG: r})
	})
	return c
}

// The power fails at many operations of files and index alike.
func TestPowerCut(t *testing.T) {
	blockstest.PowerCuts(t, newMedium(), seed(t), 150, 3)
}

func open(t *testing.T, p Pebble, dir string) blocks.Index {
	t.Helper()
	x, err := p.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func set(k, v string) blocks.IndexChange { return blocks.IndexChange{Key: []byte(k), Value: []byte(v)} }

func dump(t *testing.T, x blocks.Index, from, to string) string {
	t.Helper()
	var out []string
	err := x.Scan([]byte(from), []byte(to), func(k, v []byte) bool {
		out = append(out, fmt.Sprintf("%s=%s", k, v))
		return len(out) < 3
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, " ")
}

func TestIndex(t *testing.T) {
	for name, indexes := range map[string]blocks.Indexes{
		"pebble": Pebble{},
		"memory": blocks.NewMemFS().Indexes(),
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "index")
			x, err := indexes.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, sync := range []bool{false, true} {
				if err := x.Apply([]blocks.IndexChange{set("a", "1"), set("b", "2"), set("c", "3"), set("d", "4"),
					{Key: []byte("b"), Delete: true}}, sync); err != nil {
					t.Fatal(err)
				}
			}
			if err := x.Apply(nil, true); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if got, want := dump(t, x, "a", "d"), "a=1 c=3"; got != want {
					t.Fatalf("got %q, want %q", got, want)
				}
				if got, want := dump(t, x, "a", ""), "a=1 c=3 d=4"; got != want {
					t.Fatalf("got %q, want %q", got, want)
				}
				if v, err := x.Get([]byte("c")); err != nil || string(v) != "3" {
					t.Fatalf("got %q, %v", v, err)
				}
				if _, err := x.Get([]byte("b")); !errors.Is(err, blocks.ErrNotFound) {
					t.Fatalf("deleted key: %v", err)
				}
				if err := x.Close(); err != nil {
					t.Fatal(err)
				}
				if x, err = indexes.Open(dir); err != nil {
					t.Fatal(err)
				}
			}
			if err := x.Close(); err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second time there is an older one to be replaced, then none
				if err := indexes.SetAside(dir); err != nil {
					t.Fatal(err)
				}
			}
			if x, err = indexes.Open(dir); err != nil {
				t.Fatal(err)
			}
			if got := dump(t, x, "", ""); got != "" {
				t.Fatalf("after SetAside: %q", got)
			}
			if err := x.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Whatever file of the index is damaged, in whatever way: it opens, or the
// error says that it is corrupt, so that it is made anew.
func TestDamagedFiles(t *testing.T) {
	damage := map[string]func([]byte) []byte{
		"removed": func([]byte) []byte { return nil },
		"emptied": func(b []byte) []byte { return b[:0] },
		"halved":  func(b []byte) []byte { return b[:len(b)/2] },
		"zeroed":  func(b []byte) []byte { return make([]byte, len(b)) },
		"one bit": func(b []byte) []byte {
			if len(b) > 0 {
				b[len(b)/3] ^= 1
			}
			return b
		},
		"flipped": func(b []byte) []byte {
			for i := 0; i < len(b); i += 97 {
				b[i] ^= 0x10
			}
			return b
		},
	}
	const dir = "/index"
	pristine := vfs.NewMem()
	for i := range 3 { // so that there are tables and a log
		x := open(t, Pebble{FS: pristine}, dir)
		for j := range 100 {
			if err := x.Apply([]blocks.IndexChange{set(fmt.Sprintf("k%d-%d", i, j), "v")}, j == 99); err != nil {
				t.Fatal(err)
			}
		}
		if i < 2 { // the last one is left as a crash leaves it
			if err := x.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The open index still removes files that it does not need: the copy is of one moment in which it did not.
	frozen := vfs.NewMem()
	for tries := 0; ; tries++ {
		if _, err := vfs.Clone(pristine, frozen, dir, dir); err == nil {
			break
		} else if tries == 100 {
			t.Fatal(err)
		}
		frozen = vfs.NewMem()
	}
	files, err := frozen.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	corrupt := 0
	for _, name := range files {
		for how, fn := range damage {
			err := openDamaged(t, frozen, dir, name, fn)
			t.Logf("%s %s: %v", name, how, err)
			if err != nil && !errors.Is(err, blocks.ErrCorrupt) {
				t.Errorf("%s %s: %v", name, how, err)
			}
			if err != nil {
				corrupt++
			}
		}
	}
	if corrupt < len(files) {
		t.Errorf("only %d damages were noticed", corrupt)
	}
}

// openDamaged opens and reads a copy of the index in which one file is damaged.
func openDamaged(t *testing.T, pristine vfs.FS, dir, name string, damage func([]byte) []byte) error {
	t.Helper()
	fs := vfs.NewMem()
	if _, err := vfs.Clone(pristine, fs, dir, dir); err != nil {
		t.Fatal(err)
	}
	path := fs.PathJoin(dir, name)
	f, err := fs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(f)
	if err == nil {
		err = errors.Join(f.Close(), fs.Remove(path))
	}
	if err != nil {
		t.Fatal(err)
	}
	if b = damage(b); b != nil {
		f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
		if err == nil {
			_, err = f.Write(b)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	x, err := Pebble{FS: fs}.Open(dir)
	if err == nil {
		err = x.Scan(nil, nil, func(k, v []byte) bool { return true })
		_ = x.Close()
	}
	return err
}

// A directory that may not be read is no damaged one.
func TestOpenRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "index")
	refused := Pebble{FS: errorfs.Wrap(vfs.Default, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpOpen || op.Kind == errorfs.OpCreate {
			return os.ErrPermission
		}
		return nil
	}))}
	open(t, Pebble{}, dir).Close()
	if _, err := refused.Open(dir); err == nil || errors.Is(err, blocks.ErrCorrupt) {
		t.Fatalf("got %v", err)
	}
}

// When the log cannot be written, nothing is said to be durable any more, reads go on, and
// nothing hangs.
func TestFailedLog(t *testing.T) {
	var on errorfs.Toggle
	on.Injector = errorfs.InjectorFunc(func(op errorfs.Op) error {
		if strings.HasSuffix(op.Path, ".log") && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			return errors.New("injected")
		}
		return nil
	})
	x := open(t, Pebble{FS: errorfs.Wrap(vfs.NewMem(), &on)}, "/index")
	if err := x.Apply([]blocks.IndexChange{set("a", "1")}, true); err != nil {
		t.Fatal(err)
	}
	on.On()
	done := make(chan error, 8)
	for i := range cap(done) {
		go func() { done <- x.Apply([]blocks.IndexChange{set(fmt.Sprint(i), "2")}, true) }()
	}
	for range cap(done) {
		select {
		case err := <-done:
			if !errors.Is(err, blocks.ErrUnavailable) {
				t.Errorf("got %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("Apply hangs after the log failed")
		}
	}
	if v, err := x.Get([]byte("a")); err != nil || string(v) != "1" {
		t.Errorf("got %q, %v", v, err)
	}
	if err := x.Close(); !errors.Is(err, blocks.ErrUnavailable) {
		t.Errorf("close: %v", err)
	}
}
