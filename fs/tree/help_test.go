package tree_test

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
	"github.com/mutualfs/mutualfs/fs/tree/treetest"
)

var (
	volumeKey = bytes.Repeat([]byte{7}, 32)
	rootID    = blocks.RegisterID{ID: blocks.HashID([]byte("root"))}
)

func peer(i int) blocks.PeerID { return blocks.PeerID{ID: blocks.HashID([]byte{byte(i)})} }

// seed returns the seed of this run and prints it.
func seed(t testing.TB) uint64 {
	s := uint64(time.Now().UnixNano())
	if v, err := strconv.ParseUint(os.Getenv("MUTUALFS_SEED"), 10, 64); err == nil {
		s = v
	}
	t.Logf("MUTUALFS_SEED=%d", s)
	return s
}

func newRing(t testing.TB) *treetest.Ring {
	t.Helper()
	r := treetest.NewRing()
	if err := tree.Format(t.Context(), r.Mount(peer(99)), peer(99), rootID, volumeKey, 0, 0, nil); err != nil {
		t.Fatal(err)
	}
	return r
}

// mount is a running tree.
type mount struct {
	*tree.Tree
	regs *treetest.Mount
	dir  string
	stop context.CancelFunc
	done chan error
	once sync.Once
}

func start(t testing.TB, r *treetest.Ring, i int, dir string, edit func(*tree.Config)) *mount {
	t.Helper()
	m := &mount{regs: r.Mount(peer(i)), dir: dir, done: make(chan error, 1)}
	cfg := tree.Default()
	cfg.Registers, cfg.Root, cfg.Mount, cfg.VolumeKey, cfg.JournalDir = m.regs, rootID, peer(i), volumeKey, dir
	cfg.FlushAge = 5 * time.Millisecond
	cfg.LeasePause = 20 * time.Millisecond
	cfg.IntentWait = 10 * time.Millisecond
	cfg.CommitTimeout = 5 * time.Second
	cfg.SegmentBytes, cfg.JournalBytes = 1<<20, 1<<30
	if edit != nil {
		edit(&cfg)
	}
	var err error
	if m.Tree, err = tree.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.stop = cancel
	go func() { m.done <- m.Run(ctx) }()
	t.Cleanup(func() { m.end(t) })
	return m
}

// end unmounts.
func (m *mount) end(t testing.TB) {
	m.once.Do(func() {
		m.stop()
		if err := <-m.done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// kill ends the mount as kill -9 does, and returns a copy of its journal's directory.
func (m *mount) kill(t testing.TB) string {
	t.Helper()
	m.regs.Kill()
	dir := t.TempDir()
	copyDir(t, m.dir, dir)
	m.end(t)
	return dir
}

func copyDir(t testing.TB, from, to string) {
	t.Helper()
	names, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		b, err := os.ReadFile(filepath.Join(from, n.Name()))
		if os.IsNotExist(err) {
			continue // trimmed meanwhile
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, n.Name()), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// dump lists everything that can be reached, one line per name.
func dump(t testing.TB, m *mount) []string {
	t.Helper()
	var out []string
	var walk func(dir tree.Ino, path string)
	walk = func(dir tree.Ino, path string) {
		ents, _, err := m.List(t.Context(), dir)
		if err != nil {
			t.Fatalf("ReadDir %s: %v", path, err)
		}
		for _, e := range ents {
			p := path + "/" + e.Name
			a, err := m.Lookup(t.Context(), dir, e.Name)
			if err == syscall.ENOENT && e.Attr.IsDir() {
				continue // ended by a removal that never came to the name
			}
			if err != nil {
				t.Fatalf("Lookup %s: %v", p, err)
			}
			if e.Full && e.Attr.Ino != a.Ino || a.Mode&syscall.S_IFMT != e.Attr.Mode&syscall.S_IFMT {
				t.Errorf("%s: listed as %+v, found as %+v", p, e.Attr, a)
			}
			line := fmt.Sprintf("%s %o %d", p, a.Mode, a.Nlink)
			switch a.Mode & syscall.S_IFMT {
			case syscall.S_IFLNK:
				target, err := m.Readlink(t.Context(), a.Ino)
				if err != nil {
					t.Fatalf("Readlink %s: %v", p, err)
				}
				line += " " + target
			case syscall.S_IFREG:
				c, err := m.Content(t.Context(), a.Ino, 0, math.MaxUint64)
				if err != nil {
					t.Fatalf("Content %s: %v", p, err)
				}
				line += fmt.Sprintf(" %d %q", c.Size, c.Inline)
				for _, e := range c.Extents {
					line += fmt.Sprintf(" %d+%d=%s:%d", e.Off, e.Len, e.Stripe.ID.Short(), e.At)
				}
			}
			names, err := m.Listxattr(t.Context(), a.Ino)
			if err != nil {
				t.Fatalf("Listxattr %s: %v", p, err)
			}
			for _, n := range names {
				v, _ := m.Getxattr(t.Context(), a.Ino, n)
				line += fmt.Sprintf(" %s=%s", n, v)
			}
			out = append(out, line)
			if a.IsDir() {
				walk(a.Ino, p)
			}
			m.Forget(a.Ino, 1)
		}
	}
	walk(tree.RootIno, "")
	sort.Strings(out)
	return out
}

func equal(t testing.TB, what string, got, want []string) {
	t.Helper()
	for i := 0; i < len(got) || i < len(want); i++ {
		g, w := "(nothing)", "(nothing)"
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			t.Fatalf("%s: line %d\n got %s\nwant %s\n(%d lines, want %d)", what, i, g, w, len(got), len(want))
		}
	}
}

func rng(s uint64) *rand.Rand { return rand.New(rand.NewPCG(s, 1)) }

// cutJournal makes copies of a journal of one segment, each cut off at another byte.
func cutJournal(t testing.TB, dir string, each int) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.seg"))
	if err != nil || len(names) != 1 {
		t.Fatalf("segments %v, %v", names, err)
	}
	b, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for n := 0; n <= len(b); n += each * 11 {
		d := t.TempDir()
		if err := os.WriteFile(filepath.Join(d, filepath.Base(names[0])), b[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		out = append(out, d)
	}
	return out
}
