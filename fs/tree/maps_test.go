package tree_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
	"github.com/mutualfs/mutualfs/fs/tree/treetest"
)

const mapBytes = 64

// tinyMaps gives nearly every file a container of its own, and its extents maps.
func tinyMaps(c *tree.Config) { c.FileExtents, c.MapExtents, c.MapBytes = 2, 4, mapBytes }

// stripes notes which stripes exist.
type stripes struct {
	mu      sync.Mutex
	used    func(i int) bool // called with mu held
	t       testing.TB
	number  map[blocks.StripeID]int
	deleted map[int]bool
}

func newStripes(t testing.TB) *stripes {
	return &stripes{t: t, used: func(int) bool { return false }, number: map[blocks.StripeID]int{}, deleted: map[int]bool{}}
}

func (s *stripes) make() (int, blocks.StripeRef) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := len(s.number) + 1
	id := blocks.StripeID{ID: blocks.HashID([]byte(fmt.Sprint("stripe ", i)))}
	s.number[id] = i
	return i, blocks.StripeRef{ID: id, Len: 1 << 20, K: 4, M: 2}
}

func (s *stripes) delete(_ context.Context, id blocks.StripeID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.number[id]
	if s.used(i) {
		s.t.Errorf("stripe %d is deleted and used", i)
	}
	s.deleted[i] = true
	return nil
}

// left lists the stripes that were not deleted and are not used.
func (s *stripes) left() (l []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range s.number {
		if !s.deleted[i] && !s.used(i) {
			l = append(l, i)
		}
	}
	slices.Sort(l)
	return l
}

// byteFile is a file as simple as can be: which stripe has each byte, and where in it.
type byteFile struct {
	s    *stripes
	has  []int // stripe
	at   []int // offset in the stripe
	text []byte
}

func (f *byteFile) uses(i int) bool { return slices.Contains(f.has, i) }

func (f *byteFile) resize(n int) {
	for len(f.has) < n {
		f.has, f.at = append(f.has, 0), append(f.at, 0)
	}
	f.has, f.at = f.has[:n], f.at[:n]
	f.text = f.text[:min(len(f.text), n)]
}

// step changes the file and returns how to do the same in a tree.
func (f *byteFile) step(r *rand.Rand, size int) (string, func(ctx context.Context, m *mount, ino tree.Ino) error) {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	off := r.IntN(size)
	n := 1 + r.IntN(min(size-off, 1+r.IntN(2*mapBytes)))
	switch k := r.IntN(30); {
	case k == 0:
		f.resize(off)
		return fmt.Sprint("truncate ", off), func(ctx context.Context, m *mount, ino tree.Ino) error { return m.Truncate(ctx, ino, uint64(off)) }
	case k == 1:
		f.resize(0)
		return "truncate 0", func(ctx context.Context, m *mount, ino tree.Ino) error { return m.Truncate(ctx, ino, 0) }
	case k < 6:
		for i := off; i < min(off+n, len(f.has)); i++ {
			if f.has[i] = 0; i < len(f.text) {
				f.text[i] = 0
			}
		}
		return fmt.Sprint("punch ", off, " ", n), func(ctx context.Context, m *mount, ino tree.Ino) error {
			return m.Punch(ctx, ino, uint64(off), uint64(n))
		}
	case k == 6 && len(f.has) < 50:
		text := []byte(fmt.Sprint("inline ", off))
		f.resize(0)
		f.resize(len(text))
		f.text = slices.Clone(text)
		return "inline", func(ctx context.Context, m *mount, ino tree.Ino) error {
			return m.Writeback(ctx, tree.Writeback{Ino: ino, Inline: text, Size: uint64(len(text))})
		}
	}
	return f.write(r, off, size)
}

// write makes some extents of one stripe, most of the time in one map's range. The caller holds mu of the stripes.
func (f *byteFile) write(r *rand.Rand, off, size int) (string, func(ctx context.Context, m *mount, ino tree.Ino) error) {
	f.s.mu.Unlock()
	i, ref := f.s.make()
	f.s.mu.Lock()
	end := min(size, (off/mapBytes+1)*mapBytes)
	if r.IntN(10) == 0 {
		end = size
	}
	w := tree.Writeback{}
	at := 0
	for off < end && len(w.Extents) < 4 {
		l := 1 + r.IntN(min(20, end-off))
		w.Extents = append(w.Extents, tree.Extent{Off: uint64(off), Len: uint64(l), Stripe: ref, At: uint32(at)})
		if len(f.has) < off+l {
			f.resize(off + l)
		}
		for b := range l {
			f.has[off+b], f.at[off+b] = i, at+b
		}
		off, at = off+l+r.IntN(20), at+l
	}
	w.Size = uint64(len(f.has))
	return fmt.Sprintf("write %+v", w.Extents), func(ctx context.Context, m *mount, ino tree.Ino) error {
		w.Ino = ino
		return m.Writeback(ctx, w)
	}
}

// compare checks a file, whole and a part of it.
func (f *byteFile) compare(t *testing.T, what string, m *mount, ino tree.Ino, r *rand.Rand) {
	t.Helper()
	off := r.IntN(len(f.has) + 1)
	for _, part := range []tree.Range{{From: 0, To: math.MaxUint64}, {From: uint64(off), To: uint64(off + r.IntN(200))}, {From: uint64(off), To: uint64(off)}} {
		c, err := m.Content(t.Context(), ino, part.From, part.To-part.From)
		if err != nil {
			t.Fatalf("%s: content: %v", what, err)
		}
		if c.Size != uint64(len(f.has)) || c.Part.From > part.From || c.Part.To < part.To {
			t.Fatalf("%s: size %d, part %v of %v; want %d", what, c.Size, c.Part, part, len(f.has))
		}
		has, at := make([]int, len(f.has)), make([]int, len(f.has))
		last := c.Part.From
		for _, e := range c.Extents {
			if e.Off < last && c.Part.From > 0 || e.Len == 0 || e.Off+e.Len > c.Size {
				t.Fatalf("%s: extents %+v", what, c.Extents)
			}
			last = e.Off + e.Len
			for b := range int(e.Len) {
				has[int(e.Off)+b], at[int(e.Off)+b] = f.s.number[e.Stripe.ID], int(e.At)+b
			}
		}
		for b := int(min(c.Part.From, uint64(len(has)))); b < int(min(c.Part.To, uint64(len(has)))); b++ {
			text := byte(0)
			if b < len(f.text) && f.has[b] == 0 {
				text = f.text[b]
			}
			if has[b] != f.has[b] || has[b] != 0 && at[b] != f.at[b] || has[b] == 0 && b < len(c.Inline) && c.Inline[b] != text || has[b] == 0 && b >= len(c.Inline) && text != 0 {
				t.Fatalf("%s: byte %d is %d of stripe %d, want %d of %d", what, b, at[b], has[b], f.at[b], f.has[b])
			}
		}
	}
}

// Random changes of one file, whose extents are in its directory, in a container of its own, or in maps, in turn on two
// mounts, with deaths and with failing registers; no stripe is deleted that is used, and in the end nothing is left.
func TestModelMaps(t *testing.T) {
	for name, c := range map[string]struct {
		edit   func(*tree.Config)
		mounts int
		kill   bool
		faults bool
	}{
		"one mount":    {tinyMaps, 1, false, false},
		"tiny cache":   {func(c *tree.Config) { tinyMaps(c); c.CacheBytes, c.FlushOps = 1, 3 }, 1, false, false},
		"two mounts":   {tinyMaps, 2, false, false},
		"unleased":     {func(c *tree.Config) { tinyMaps(c); c.LeasePause = time.Hour }, 2, false, false},
		"killed":       {tinyMaps, 1, true, false},
		"faults":       {tinyMaps, 2, false, true},
		"without maps": {func(c *tree.Config) { c.FileExtents = 1 << 20 }, 2, false, false},
		"pages":        {func(c *tree.Config) { tinyMaps(c); tinyPages(c) }, 2, false, false},
	} {
		t.Run(name, func(t *testing.T) { testModelMaps(t, c.edit, c.mounts, c.kill, c.faults) })
	}
}

func testModelMaps(t *testing.T, edit func(*tree.Config), mounts int, kill, faults bool) {
	r := rng(seed(t))
	ring, s := newRing(t), newStripes(t)
	var ms []*mount
	begin := func(i int, dir string) *mount {
		m := start(t, ring, i+1, dir, func(c *tree.Config) { edit(c); c.DeleteStripe = s.delete })
		if faults {
			m.regs.SetFault(unsteady(rng(uint64(i) + 77)))
		}
		return m
	}
	for i := range mounts {
		ms = append(ms, begin(i, t.TempDir()))
	}
	mustMake(t, ms[0], tree.RootIno, "first", regMode)
	live := containers(t, ring)
	d := mustMake(t, ms[0], tree.RootIno, "d", dirMode)
	for round := range 3 {
		name := fmt.Sprint("f", round)
		mustMake(t, ms[0], d, name, regMode)
		f := &byteFile{s: s}
		s.mu.Lock()
		s.used = f.uses
		s.mu.Unlock()
		for i := range 250 {
			k := r.IntN(mounts)
			if kill && r.IntN(25) == 0 {
				ms[k] = begin(k, ms[k].kill(t))
			}
			m := ms[k]
			ino := find(t, m, "d", name)
			what, do := f.step(r, 400)
			if err := do(t.Context(), m, ino); err != nil {
				t.Fatalf("step %d: %s: %v", i, what, err)
			}
			if i%20 == 0 {
				for j, m := range ms {
					f.compare(t, fmt.Sprintf("round %d step %d, mount %d: %s", round, i, j, what), m, find(t, m, "d", name), r)
				}
			}
			if i%40 == 0 {
				next := fmt.Sprintf("f%d-%d", round, i)
				if err := m.Rename(t.Context(), find(t, m, "d"), name, find(t, m, "d"), next, 0); err != nil {
					t.Fatal(err)
				}
				name = next
			}
		}
		s.mu.Lock()
		f.resize(0)
		s.mu.Unlock()
		if err := ms[0].Unlink(t.Context(), find(t, ms[0], "d"), name); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range ms {
		m.regs.SetFault(nil)
	}
	if err := ms[0].Rmdir(t.Context(), tree.RootIno, "d"); err != nil {
		t.Fatal(err)
	}
	for _, m := range ms {
		if err := m.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Contains(t.Name(), "unleased") {
		return // who has no lease deletes nothing
	}
	look := toucher(t, ms[0])
	eventually(t, "stripes are deleted", func() bool { look(); return len(s.left()) == 0 })
	if !kill && !faults { // what died may leave a register that nobody names
		eventually(t, fmt.Sprintf("registers are deleted but %d", live), func() bool { look(); return containers(t, ring) <= live })
	}
}

// containers counts the registers that hold one: a session goes on as long as its mount.
func containers(t *testing.T, ring *treetest.Ring) (n int) {
	t.Helper()
	survey := tree.NewSurveyor(ring, volumeKey)
	for _, id := range ring.IDs() {
		f, err := survey.Facts(t.Context(), id)
		if err == nil && f.Kind == tree.KindSession || errors.Is(err, blocks.ErrNotFound) {
			continue
		}
		n++
	}
	return n
}

// atRest reports whether it is agreed that nothing is to be freed but stripes.
func atRest(t *testing.T, ring *treetest.Ring) bool {
	t.Helper()
	survey := tree.NewSurveyor(ring, volumeKey)
	for _, id := range ring.IDs() {
		if f, err := survey.Facts(t.Context(), id); err == nil && (f.Kind == tree.KindTxn || len(f.FreeRegs) > 0) {
			return false
		}
	}
	return true
}

// toucher returns what commits something now and then, which has the mount look at what is free when nothing is pending.
func toucher(t *testing.T, m *mount) func() {
	t.Helper()
	var n int
	return func() {
		if n++; n%25 != 1 {
			return
		}
		mustMake(t, m, tree.RootIno, "touch", regMode)
		if err := errors.Join(m.Unlink(t.Context(), tree.RootIno, "touch"), m.Sync(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
}

// unsteady makes registers fail, slow, and lose answers.
func unsteady(r *rand.Rand) func(bool, blocks.RegisterID, *blocks.Change) treetest.Fault {
	var mu sync.Mutex
	return func(write bool, _ blocks.RegisterID, _ *blocks.Change) treetest.Fault {
		mu.Lock()
		defer mu.Unlock()
		switch k := r.IntN(60); {
		case write && k == 0:
			return treetest.Fault{Err: blocks.ErrUnavailable, Lost: true}
		case write && k == 1:
			return treetest.Fault{Err: blocks.ErrUnavailable}
		case k == 2:
			return treetest.Fault{Delay: time.Millisecond}
		}
		return treetest.Fault{}
	}
}

// pieces writes n pieces of 5 bytes, 16 bytes apart, each to a stripe of its own.
func pieces(ctx context.Context, m *mount, s *stripes, ino tree.Ino, from, n int, size uint64) error {
	for i := range n {
		_, ref := s.make()
		off := uint64(from + 16*i)
		size = max(size, off+5)
		if err := m.Writeback(ctx, tree.Writeback{Ino: ino, Extents: []tree.Extent{{Off: off, Len: 5, Stripe: ref}}, Size: size}); err != nil {
			return err
		}
	}
	return nil
}

// A file grows out of its directory, into maps, and ends, with a death at each step.
func TestCrashInSpill(t *testing.T) {
	const maps = 4
	write := func(from, n int) func(context.Context, *mount) error {
		return func(ctx context.Context, m *mount) error {
			return errors.Join(pieces(ctx, m, newStripes(t), find(t, m, "f"), from, n, 16*maps*mapBytes), m.Sync(ctx))
		}
	}
	for name, c := range map[string]struct {
		pieces int // that the file has before
		op     func(ctx context.Context, m *mount) error
	}{
		"promotion": {3, write(1000, 1)},
		"first map": {7, write(1000, 1)},
		"more maps": {12, write(100, 1)},
		"full of holes": {16, func(ctx context.Context, m *mount) error {
			return errors.Join(m.Punch(ctx, find(t, m, "f"), 3, 150), m.Sync(ctx))
		}},
		"truncation": {16, func(ctx context.Context, m *mount) error {
			return errors.Join(m.Truncate(ctx, find(t, m, "f"), 90), m.Sync(ctx))
		}},
		"unlink": {16, func(ctx context.Context, m *mount) error { return m.Unlink(ctx, tree.RootIno, "f") }},
		"replacement": {16, func(ctx context.Context, m *mount) error {
			return m.Rename(ctx, tree.RootIno, "g", tree.RootIno, "f", 0)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ring := newRing(t)
			m := start(t, ring, 1, t.TempDir(), tinyMaps)
			mustMake(t, m, tree.RootIno, "g", regMode)
			if err := pieces(t.Context(), m, newStripes(t), mustMake(t, m, tree.RootIno, "f", regMode), 0, c.pieces, 0); err != nil {
				t.Fatal(err)
			}
			before := dump(t, m)
			eventually(t, "nothing is left to free", func() bool { return m.Sync(t.Context()) == nil && atRest(t, ring) })
			m.end(t)
			base := ring.Clone()
			m = start(t, ring, 1, t.TempDir(), tinyMaps)
			if err := c.op(t.Context(), m); err != nil {
				t.Fatal(err)
			}
			after := dump(t, m)
			var seen [2]int
			for step := 0; !crashAt(t, base.Clone(), step, tinyMaps, c.op, before, after, &seen); step++ {
			}
			if seen[0] == 0 || seen[1] == 0 {
				t.Errorf("seen as before %d times, as afterwards %d times", seen[0], seen[1])
			}
		})
	}
}

// Another mount gives a file a container of its own, and maps, while this one has it open, and changes of it pending.
func TestPromotedElsewhere(t *testing.T) {
	for name, how := range map[string]struct{ fenced, killed, pages bool }{
		"leased": {}, "fenced": {fenced: true}, "killed": {killed: true}, "fenced, pages": {fenced: true, pages: true},
	} {
		t.Run(name, func(t *testing.T) {
			ring, s, ctx := newRing(t), newStripes(t), t.Context()
			edit := func(c *tree.Config) {
				tinyMaps(c)
				if how.pages {
					tinyPages(c)
				}
			}
			a := start(t, ring, 1, t.TempDir(), func(c *tree.Config) { edit(c); c.FlushAge = time.Hour })
			b := start(t, ring, 2, t.TempDir(), edit)
			for i := range 8 {
				mustMake(t, a, tree.RootIno, fmt.Sprint("n", i), regMode)
			}
			f := mustMake(t, a, tree.RootIno, "f", regMode)
			if _, err := a.Open(ctx, f); err != nil {
				t.Fatal(err)
			}
			if err := a.Sync(ctx); err != nil {
				t.Fatal(err)
			}
			mode := uint32(0o600)
			if _, err := a.Setattr(ctx, f, tree.SetAttr{Mode: &mode}); err != nil {
				t.Fatal(err)
			}
			if err := pieces(ctx, a, s, f, 500, 1, 0); err != nil {
				t.Fatal(err)
			}
			dir := ""
			switch {
			case how.killed:
				dir = a.kill(t)
				ring.FenceAll(peer(1))
			case how.fenced:
				a.regs.SetMistrust(true)
				ring.FenceAll(peer(1))
			}
			if err := pieces(ctx, b, s, find(t, b, "f"), 0, 12, 505); err != nil {
				t.Fatal(err)
			}
			if how.killed {
				a = start(t, ring, 1, dir, edit)
				f = find(t, a, "f")
			}
			a.regs.SetMistrust(false)
			if err := pieces(ctx, a, s, f, 600, 1, 0); err != nil {
				t.Errorf("a write on: %v", err)
			}
			if at, err := a.Getattr(ctx, f); err != nil || at.Size != 605 || at.Mode != syscall.S_IFREG|mode {
				t.Errorf("afterwards %+v, %v", at, err)
			}
			if err := a.Sync(ctx); err != nil {
				t.Fatal(err)
			}
			if l := dump(t, b); len(l) != 9 || strings.Count(l[0], "=") != 14 {
				t.Errorf("afterwards\n%s", strings.Join(l, "\n"))
			}
			equal(t, "both", dump(t, a), dump(t, b))
		})
	}
}

// Another mount removes a file that has a container of its own, after this one has lost the lease: what it had not
// committed becomes a file.
func TestPromotedRemovedElsewhere(t *testing.T) {
	ring, s, ctx := newRing(t), newStripes(t), t.Context()
	a := start(t, ring, 1, t.TempDir(), func(c *tree.Config) { tinyMaps(c); c.FlushAge = time.Hour })
	b := start(t, ring, 2, t.TempDir(), func(c *tree.Config) { tinyMaps(c); c.DeleteStripe = s.delete })
	f := mustMake(t, a, tree.RootIno, "f", regMode)
	if err := errors.Join(pieces(ctx, a, s, f, 0, 7, 0), a.Sync(ctx)); err != nil {
		t.Fatal(err)
	}
	// Cut off: nothing that it does in the background, as clearing a free list, commits what is pending.
	a.regs.SetFault(func(bool, blocks.RegisterID, *blocks.Change) treetest.Fault {
		return treetest.Fault{Err: blocks.ErrUnavailable}
	})
	if err := pieces(ctx, a, s, f, 1000, 1, 0); err != nil {
		t.Fatal(err)
	}
	a.regs.SetMistrust(true)
	ring.FenceAll(peer(1))
	if err := errors.Join(b.Unlink(ctx, tree.RootIno, "f"), b.Sync(ctx)); err != nil {
		t.Fatal(err)
	}
	look := toucher(t, b)
	eventually(t, "its stripes are deleted", func() bool { look(); return len(s.left()) == 1 })
	a.regs.SetFault(nil)
	a.regs.SetMistrust(false)
	if err := a.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	if l := dump(t, b); len(l) != 1 || !strings.Contains(l[0], fmt.Sprintf("/inode %d (conflict", f)) || strings.Count(l[0], "=") != 1 || !strings.Contains(l[0], "1000+5=") {
		t.Errorf("afterwards\n%s", strings.Join(l, "\n"))
	}
}
