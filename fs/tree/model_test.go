package tree_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
	"github.com/mutualfs/mutualfs/fs/tree/treetest"
)

// mnode is a file of the model, as simple as can be.
type mnode struct {
	mode   uint32
	nlink  int
	target string
	data   string
	xattr  string
	names  map[string]*mnode
	up     *mnode
}

type model struct{ root *mnode }

func newModel() *model {
	r := &mnode{mode: syscall.S_IFDIR | 0o755, names: map[string]*mnode{}}
	r.up = r
	return &model{r}
}

func (n *mnode) dir() bool { return n.names != nil }

func (m *model) dump() []string {
	var out []string
	var walk func(d *mnode, path string)
	walk = func(d *mnode, path string) {
		for name, n := range d.names {
			p := path + "/" + name
			links := n.nlink
			if n.dir() {
				links = 2
				for _, c := range n.names {
					if c.dir() {
						links++
					}
				}
			}
			line := fmt.Sprintf("%s %o %d", p, n.mode, links)
			switch n.mode & syscall.S_IFMT {
			case syscall.S_IFLNK:
				line += " " + n.target
			case syscall.S_IFREG:
				line += fmt.Sprintf(" %d %q", len(n.data), n.data)
			}
			if n.xattr != "" {
				line += " user.x=" + n.xattr
			}
			out = append(out, line)
			if n.dir() {
				walk(n, p)
			}
		}
	}
	walk(m.root, "")
	sort.Strings(out)
	return out
}

func (m *model) make(d *mnode, name string, mode uint32, target string) error {
	if d.names[name] != nil {
		return syscall.EEXIST
	}
	n := &mnode{mode: mode, nlink: 1, target: target, up: d}
	if mode&syscall.S_IFMT == syscall.S_IFDIR {
		n.names = map[string]*mnode{}
	}
	d.names[name] = n
	return nil
}

func (m *model) unlink(d *mnode, name string) error {
	n := d.names[name]
	switch {
	case n == nil:
		return syscall.ENOENT
	case n.dir():
		return syscall.EISDIR
	}
	n.nlink--
	delete(d.names, name)
	return nil
}

func (m *model) rmdir(d *mnode, name string) error {
	n := d.names[name]
	switch {
	case n == nil:
		return syscall.ENOENT
	case !n.dir():
		return syscall.ENOTDIR
	case len(n.names) > 0:
		return syscall.ENOTEMPTY
	}
	delete(d.names, name)
	return nil
}

func (m *model) link(n, d *mnode, name string) error {
	switch {
	case d.names[name] != nil:
		return syscall.EEXIST
	case n.dir():
		return syscall.EPERM
	}
	n.nlink++
	d.names[name] = n
	return nil
}

// above reports whether a is d or above it.
func above(a, d *mnode) bool {
	for {
		if a == d {
			return true
		}
		if d.up == d {
			return false
		}
		d = d.up
	}
}

func (m *model) rename(d *mnode, name string, e *mnode, newName string, flags tree.RenameFlags) error {
	n, old := d.names[name], e.names[newName]
	switch {
	case n == nil:
		return syscall.ENOENT
	case flags == tree.RenameNoReplace && old != nil:
		return syscall.EEXIST
	case flags == tree.RenameExchange && old == nil:
		return syscall.ENOENT
	case flags == tree.RenameExchange:
		if n.dir() && above(n, e) || old.dir() && above(old, d) {
			return syscall.EINVAL
		}
		d.names[name], e.names[newName] = old, n
		if n.dir() {
			n.up = e
		}
		if old.dir() {
			old.up = d
		}
		return nil
	case n.dir() && above(n, e) && n != old:
		return syscall.EINVAL
	case old == n:
		return nil
	case old != nil && n.dir() && !old.dir():
		return syscall.ENOTDIR
	case old != nil && !n.dir() && old.dir():
		return syscall.EISDIR
	case old != nil && old.dir() && len(old.names) > 0:
		return syscall.ENOTEMPTY
	}
	if old != nil {
		old.nlink--
	}
	delete(d.names, name)
	e.names[newName] = n
	if n.dir() {
		n.up = e
	}
	return nil
}

// walker runs random operations on a mount and the model.
type walker struct {
	t *testing.T
	r *rand.Rand
	m *model
}

// pick walks to a random directory of the model and returns its path.
func (w *walker) pick() (*mnode, []string) {
	d, path := w.m.root, []string(nil)
	for w.r.IntN(3) > 0 {
		name := w.name()
		c := d.names[name]
		if c == nil || !c.dir() {
			break
		}
		d, path = c, append(path, name)
	}
	return d, path
}

func (w *walker) name() string { return string(rune('a' + w.r.IntN(5))) }

// find looks a path up and returns the inode; the caller forgets it.
func find(t testing.TB, m *mount, path ...string) tree.Ino {
	t.Helper()
	ino := tree.RootIno
	for _, p := range path {
		a, err := m.Lookup(t.Context(), ino, p)
		if err != nil {
			t.Fatalf("lookup of %q in %v: %v", p, path, err)
		}
		ino = a.Ino
	}
	return ino
}

// step makes one random operation on both and compares the errors.
func (w *walker) step(m *mount) {
	w.t.Helper()
	ctx := w.t.Context()
	d, dp := w.pick()
	e, ep := w.pick()
	a, b := w.name(), w.name()
	di := find(w.t, m, dp...)
	n := d.names[a]
	var got, want error
	what := ""
	switch k := w.r.IntN(20); {
	case k < 4:
		what = "create"
		want = w.m.make(d, a, syscall.S_IFREG|0o644, "")
		_, _, got = m.Make(ctx, di, a, tree.MakeArgs{Mode: syscall.S_IFREG | 0o644, Excl: true})
	case k < 7:
		what = "mkdir"
		want = w.m.make(d, a, syscall.S_IFDIR|0o755, "")
		_, _, got = m.Make(ctx, di, a, tree.MakeArgs{Mode: syscall.S_IFDIR | 0o755, Excl: true})
	case k < 8:
		what = "symlink"
		want = w.m.make(d, a, syscall.S_IFLNK|0o777, "to "+b)
		_, _, got = m.Make(ctx, di, a, tree.MakeArgs{Mode: syscall.S_IFLNK | 0o777, Target: "to " + b, Excl: true})
	case k < 10:
		what = "unlink"
		want, got = w.m.unlink(d, a), m.Unlink(ctx, di, a)
	case k < 11:
		what = "rmdir"
		want, got = w.m.rmdir(d, a), m.Rmdir(ctx, di, a)
	case k < 15:
		flags := []tree.RenameFlags{0, 0, 0, tree.RenameNoReplace, tree.RenameExchange}[w.r.IntN(5)]
		what = fmt.Sprintf("rename %d to %v/%s", flags, ep, b)
		ei := find(w.t, m, ep...)
		want, got = w.m.rename(d, a, e, b, flags), m.Rename(ctx, di, a, ei, b, flags)
	case n == nil:
		return
	case k < 16:
		what = fmt.Sprintf("link to %v/%s", ep, b)
		ei, ni := find(w.t, m, ep...), find(w.t, m, append(dp, a)...)
		want = w.m.link(n, e, b)
		_, got = m.Link(ctx, ni, ei, b)
	case k < 17:
		what = "chmod"
		mode := uint32(w.r.IntN(0o1000))
		n.mode = n.mode&syscall.S_IFMT | mode
		_, got = m.Setattr(ctx, find(w.t, m, append(dp, a)...), tree.SetAttr{Mode: &mode})
	case k < 18:
		what = "setxattr"
		n.xattr = b
		got = m.Setxattr(ctx, find(w.t, m, append(dp, a)...), "user.x", []byte(b), 0)
	case n.mode&syscall.S_IFMT == syscall.S_IFREG:
		what = "write"
		n.data = fmt.Sprint("content ", w.r.IntN(1000))
		got = m.Writeback(ctx, tree.Writeback{Ino: find(w.t, m, append(dp, a)...), Inline: []byte(n.data), Size: uint64(len(n.data)), Mtime: 1})
	}
	if want == syscall.EINVAL && (errors.Is(got, syscall.ENOTDIR) || errors.Is(got, syscall.ENOTEMPTY)) {
		return // a loop that is wrong for a second reason
	}
	if !errors.Is(got, want) {
		w.t.Fatalf("%s %v/%s: %v, want %v", what, dp, a, got, want)
	}
}

func TestModel(t *testing.T) {
	for name, edit := range map[string]func(*tree.Config){
		"leased":   nil,
		"unleased": func(c *tree.Config) { c.LeasePause = time.Hour },
		"tiny cache, small batches": func(c *tree.Config) {
			c.CacheBytes, c.FlushOps = 1, 3
		},
		"leased, pages":   tinyPages,
		"unleased, pages": func(c *tree.Config) { tinyPages(c); c.LeasePause = time.Hour },
		"tiny cache, small batches, pages": func(c *tree.Config) {
			tinyPages(c)
			c.CacheBytes, c.FlushOps = 1, 3
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := &walker{t, rng(seed(t)), newModel()}
			ring := newRing(t)
			m := start(t, ring, 1, t.TempDir(), edit)
			if strings.HasPrefix(name, "unleased") {
				m.regs.SetMistrust(true)
			}
			for i := range 1500 {
				w.step(m)
				if i%250 == 249 {
					equal(t, fmt.Sprint("step ", i), dump(t, m), w.m.dump())
				}
			}
			m.end(t)
			equal(t, "from the registers", dump(t, start(t, ring, 2, t.TempDir(), edit)), w.m.dump())
		})
	}
}

func TestModelKilled(t *testing.T) { withAndWithoutPages(t, testModelKilled) }

func testModelKilled(t *testing.T, edit func(*tree.Config)) {
	w := &walker{t, rng(seed(t)), newModel()}
	ring, dir := newRing(t), t.TempDir()
	for range 25 {
		m := start(t, ring, 1, dir, edit)
		equal(t, "after the replay", dump(t, m), w.m.dump())
		for range w.r.IntN(120) {
			w.step(m)
		}
		dir = m.kill(t)
	}
}

func TestModelTwoMounts(t *testing.T) { withAndWithoutPages(t, testModelTwoMounts) }

func testModelTwoMounts(t *testing.T, edit func(*tree.Config)) {
	w := &walker{t, rng(seed(t)), newModel()}
	ring := newRing(t)
	ms := []*mount{start(t, ring, 1, t.TempDir(), edit), start(t, ring, 2, t.TempDir(), edit)}
	for i := range 800 {
		w.step(ms[w.r.IntN(2)])
		if i%100 == 99 {
			equal(t, "first", dump(t, ms[0]), w.m.dump())
			equal(t, "second", dump(t, ms[1]), w.m.dump())
		}
	}
}

// Registers that fail, are slow, and lose answers must not show.
func TestModelFaults(t *testing.T) { withAndWithoutPages(t, testModelFaults) }

func testModelFaults(t *testing.T, edit func(*tree.Config)) {
	w := &walker{t, rng(seed(t)), newModel()}
	ring := newRing(t)
	ms := []*mount{start(t, ring, 1, t.TempDir(), edit), start(t, ring, 2, t.TempDir(), edit)}
	for i, m := range ms {
		r := rng(uint64(i) + 77)
		var lock = make(chan struct{}, 1)
		m.regs.SetFault(func(write bool, _ blocks.RegisterID, _ *blocks.Change) treetest.Fault {
			lock <- struct{}{}
			defer func() { <-lock }()
			switch k := r.IntN(40); {
			case write && k == 0:
				return treetest.Fault{Err: blocks.ErrUnavailable, Lost: true}
			case write && k == 1:
				return treetest.Fault{Err: blocks.ErrUnavailable}
			case k == 2:
				return treetest.Fault{Delay: time.Millisecond}
			}
			return treetest.Fault{}
		})
	}
	for i := range 300 {
		w.step(ms[w.r.IntN(2)])
		if i%100 == 99 {
			equal(t, "first", dump(t, ms[0]), w.m.dump())
			equal(t, "second", dump(t, ms[1]), w.m.dump())
		}
	}
	for _, m := range ms {
		m.regs.SetFault(nil)
	}
}

// tinyPages makes directories split all the time.
func tinyPages(c *tree.Config) { c.SplitEntries = 2 }

func withAndWithoutPages(t *testing.T, f func(t *testing.T, edit func(*tree.Config))) {
	t.Run("one register", func(t *testing.T) { f(t, func(*tree.Config) {}) })
	t.Run("pages", func(t *testing.T) { f(t, tinyPages) })
}
