package audit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/audit"
	"github.com/mutualfs/mutualfs/fs/tree"
	"github.com/mutualfs/mutualfs/fs/tree/treetest"
)

var (
	key  = bytes.Repeat([]byte{7}, 32)
	root = blocks.RegisterID{ID: blocks.HashID([]byte("root"))}
)

func peer(i int) blocks.PeerID { return blocks.PeerID{ID: blocks.HashID([]byte{byte(i)})} }

// world is a ring of registers in memory with mounts, and a set of stripes.
type world struct {
	t      *testing.T
	ring   *treetest.Ring
	mounts []*tree.Tree
	views  []*treetest.Mount

	mu      sync.Mutex
	stripes map[blocks.StripeID]audit.Stripe
	age     time.Duration // of all registers
	away    error         // of a peer that cannot be asked
	list    error         // of the listings
	between func()        // called by every Settle
	flying  sync.RWMutex  // held while a stripe is written and committed
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, ring: treetest.NewRing(), stripes: map[blocks.StripeID]audit.Stripe{}}
	if err := tree.Format(t.Context(), w.ring.Mount(peer(99)), peer(99), root, key, 0, 0, nil); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) mount(i int) *tree.Tree {
	w.t.Helper()
	cfg := tree.Default()
	view := w.ring.Mount(peer(i))
	w.views = append(w.views, view)
	cfg.Registers, cfg.Root, cfg.Mount, cfg.VolumeKey, cfg.JournalDir = view, root, peer(i), key, w.t.TempDir()
	cfg.FlushAge, cfg.LeasePause, cfg.SegmentBytes, cfg.JournalBytes = 5*time.Millisecond, 20*time.Millisecond, 1<<20, 1<<30
	cfg.SplitEntries = 50
	cfg.FileExtents, cfg.MapExtents, cfg.MapBytes = 2, 4, 1000
	cfg.DeleteStripe = func(_ context.Context, id blocks.StripeID) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.stripes, id)
		return nil
	}
	m, err := tree.New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
	w.mounts = append(w.mounts, m)
	return m
}

// Registers is audit.Ring.
func (w *world) Registers(_ context.Context, each func(blocks.RegisterID, time.Duration)) error {
	for _, id := range w.ring.IDs() {
		each(id, w.age)
	}
	return w.list
}

// Stripes is audit.Ring.
func (w *world) Stripes(_ context.Context, each func(audit.Stripe)) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.stripes {
		each(s)
	}
	return w.list
}

// Settle is audit.Ring.
func (w *world) Settle(ctx context.Context) ([]audit.Peer, error) {
	w.flying.Lock()
	defer w.flying.Unlock()
	peers := []audit.Peer{{ID: peer(100), Err: w.away}}
	for i, m := range w.mounts {
		peers = append(peers, audit.Peer{ID: peer(i + 1), Mounted: true, Err: m.Settle(ctx)})
	}
	if w.between != nil {
		w.between()
	}
	return peers, nil
}

func (w *world) audit() *audit.Report {
	w.t.Helper()
	a := audit.New(audit.Config{Root: root, Survey: tree.NewSurveyor(w.ring, key), Ring: w, Other: func(blocks.RegisterID) bool { return false }})
	r, err := a.Run(w.t.Context(), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func (w *world) clean() {
	w.t.Helper()
	if r := w.audit(); !r.Clean() || len(r.Doubtful) > 0 {
		w.t.Fatalf("found %+v, doubtful %+v", r.Findings, r.Doubtful)
	}
}

// put adds a stripe to the disks.
func (w *world) put(name string) blocks.StripeRef {
	ref := blocks.StripeRef{ID: blocks.StripeID{ID: blocks.HashID([]byte(name))}, Len: 100, K: 2, M: 1}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stripes[ref.ID] = audit.Stripe{Ref: ref, Shards: 3}
	return ref
}

func (w *world) file(m *tree.Tree, dir tree.Ino, name string) tree.Ino {
	w.t.Helper()
	a, _, err := m.Make(w.t.Context(), dir, name, tree.MakeArgs{Mode: syscall.S_IFREG | 0o644, Excl: true})
	if err != nil {
		w.t.Fatal(err)
	}
	ref := w.put(name)
	if err := m.Writeback(w.t.Context(), tree.Writeback{Ino: a.Ino, Size: 100, Extents: []tree.Extent{{Len: 100, Stripe: ref}}}); err != nil {
		w.t.Fatal(err)
	}
	return a.Ino
}

// pieces writes n pieces of 100 bytes, each a stripe of its own, to a file.
func (w *world) pieces(m *tree.Tree, dir tree.Ino, name string, n int) {
	w.t.Helper()
	a, _, err := m.Make(w.t.Context(), dir, name, tree.MakeArgs{Mode: syscall.S_IFREG | 0o644})
	if err != nil {
		w.t.Fatal(err)
	}
	for i := range n {
		off := uint64(200 * i)
		x := tree.Extent{Off: off, Len: 100, Stripe: w.put(fmt.Sprint(name, i, n))}
		if err := m.Writeback(w.t.Context(), tree.Writeback{Ino: a.Ino, Size: max(off+100, a.Size), Extents: []tree.Extent{x}}); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) dir(m *tree.Tree, in tree.Ino, name string) tree.Ino {
	w.t.Helper()
	a, _, err := m.Make(w.t.Context(), in, name, tree.MakeArgs{Mode: syscall.S_IFDIR | 0o755})
	if err != nil {
		w.t.Fatal(err)
	}
	return a.Ino
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A tree with all that a tree may have, kept by two live mounts, has nothing wrong in it.
func TestCleanTree(t *testing.T) {
	w := newWorld(t)
	a, b := w.mount(1), w.mount(2)
	ctx := t.Context()
	d, e := w.dir(a, tree.RootIno, "d"), w.dir(a, tree.RootIno, "e")
	f := w.file(a, d, "f")
	for _, err := range []error{second(a.Link(ctx, f, d, "g")), second(a.Link(ctx, f, e, "h")), a.Rename(ctx, d, "f", e, "f", 0)} {
		must(t, err)
	}
	w.clean()
	for i := range 120 { // three pages
		w.file(a, e, fmt.Sprintf("many%d", i))
	}
	must(t, second(b.Lookup(ctx, tree.RootIno, "e")))
	must(t, b.Unlink(ctx, e, "many7"))
	must(t, b.Rename(ctx, tree.RootIno, "d", e, "d", 0))
	open := w.file(b, tree.RootIno, "open")
	must(t, second(b.Open(ctx, open)))
	must(t, b.Unlink(ctx, tree.RootIno, "open"))
	w.clean()
	b.Release(open)
	w.pieces(a, e, "large", 20)
	w.clean()
	large, err := b.Lookup(ctx, e, "large")
	must(t, err)
	w.pieces(b, e, "large", 40)
	must(t, b.Truncate(ctx, large.Ino, 2500))
	w.clean()
	must(t, a.Unlink(ctx, e, "large"))
	w.clean()
	for i := range 120 {
		if i != 7 {
			must(t, a.Unlink(ctx, e, fmt.Sprintf("many%d", i)))
		}
	}
	w.clean()
}

func second[T any](_ T, err error) error { return err }

// The register of a mount's locks has no value and no name, and is nothing to report as long as the mount is there.
func TestSessions(t *testing.T) {
	w := newWorld(t)
	w.mount(1)
	for i, want := range map[int]bool{1: true, 50: false} {
		id := blocks.RegisterID{ID: blocks.HashID([]byte("session"), []byte{byte(i)})}
		view := w.views[0]
		if i != 1 {
			view = w.ring.Mount(peer(i))
		}
		must(t, second(view.Propose(t.Context(), id, blocks.Change{Origin: peer(i), Snapshot: []byte{}, Lease: blocks.LeaseAcquire})))
		found := slices.ContainsFunc(w.audit().Findings, func(f audit.Finding) bool {
			return f.Key == audit.Key{Kind: audit.OrphanRegister, Register: id}
		})
		if found == want {
			t.Errorf("session of mount %d: found %v", i, found)
		}
	}
}

// What nobody names is found; it is doubtful while a peer cannot be asked whether it needs it.
func TestAbandoned(t *testing.T) {
	w := newWorld(t)
	m := w.mount(1)
	w.file(m, tree.RootIno, "f")
	lost := w.put("never committed")
	want := audit.Key{Kind: audit.Unreferenced, Stripe: lost.ID}
	r := w.audit()
	if len(r.Findings) != 1 || r.Findings[0].Key != want || !r.Proven {
		t.Fatalf("found %+v, proven %v", r.Findings, r.Proven)
	}
	w.away = errors.New("away")
	r = w.audit()
	if !r.Clean() || len(r.Doubtful) != 1 || r.Doubtful[0].Key != want || len(r.Unsettled) != 1 {
		t.Fatalf("found %+v, doubtful %+v, unsettled %v", r.Findings, r.Doubtful, r.Unsettled)
	}
	w.away, w.list = nil, fmt.Errorf("%w: a storage peer", blocks.ErrUnavailable)
	if r = w.audit(); !r.Clean() || r.Incomplete == "" {
		t.Fatalf("found %+v with a storage peer that does not answer; incomplete %q", r.Findings, r.Incomplete)
	}
}

// A stripe that was written and not yet committed is in no finding: the mount commits it before the second look, or before the first.
func TestInFlight(t *testing.T) {
	w := newWorld(t)
	m := w.mount(1)
	a, _, err := m.Make(t.Context(), tree.RootIno, "f", tree.MakeArgs{Mode: syscall.S_IFREG | 0o644})
	must(t, err)
	for wait := 1; wait <= 2; wait++ { // the commit comes with the first or with the second Settle
		ref := w.put(fmt.Sprint("in flight ", wait))
		n := 0
		w.between = func() {
			if n++; n == wait {
				must(t, m.Writeback(t.Context(), tree.Writeback{Ino: a.Ino, Size: 100, Extents: []tree.Extent{{Len: 100, Stripe: ref}}}))
				must(t, m.Sync(t.Context()))
			}
		}
		w.clean()
	}
}

// While files move between directories nothing is certain: what is found is not proven.
func TestMovesAreNoProof(t *testing.T) {
	w := newWorld(t)
	m := w.mount(1)
	d := w.dir(m, tree.RootIno, "d")
	w.file(m, tree.RootIno, "f")
	w.put("never committed")
	from, to := tree.RootIno, d
	w.between = func() {
		must(t, m.Rename(t.Context(), from, "f", to, "f", 0))
		from, to = to, from
	}
	if r := w.audit(); r.Proven || len(r.Findings) != 1 {
		t.Fatalf("proven %v: %+v", r.Proven, r.Findings)
	}
	i := 0 // what does not move content is no hindrance
	w.between = func() {
		i++
		w.file(m, d, fmt.Sprint("new", i))
	}
	if r := w.audit(); !r.Proven || len(r.Findings) != 1 {
		t.Fatalf("proven %v: %+v", r.Proven, r.Findings)
	}
	w.between = func() {
		i++
		w.dir(m, d, fmt.Sprint("dir", i))
		must(t, m.Sync(t.Context())) // else no look need see it, and it hinders none
	}
	if r := w.audit(); r.Proven {
		t.Fatal("proven while directories are made")
	}
}

// Transactions that lose against others leave nothing behind.
func TestContention(t *testing.T) {
	w := newWorld(t)
	ms := []*tree.Tree{w.mount(1), w.mount(2)}
	a, b := w.dir(ms[0], tree.RootIno, "a"), w.dir(ms[0], tree.RootIno, "b")
	w.dir(ms[0], a, "d")
	w.file(ms[0], a, "f")
	for _, name := range []string{"a", "b"} {
		must(t, second(ms[1].Lookup(t.Context(), tree.RootIno, name)))
	}
	for range 20 {
		var wg sync.WaitGroup
		for i, m := range ms {
			wg.Go(func() {
				for _, name := range []string{"d", "f"} { // one of the two is there
					_ = m.Rename(t.Context(), a, name, b, name, 0)
					_ = m.Rename(t.Context(), b, name, a, name, 0)
				}
				if i == 0 {
					_ = m.Rename(t.Context(), a, "d", b, "d", tree.RenameNoReplace)
				}
			})
		}
		wg.Wait()
	}
	w.clean()
}

// An intent that arrives after its transaction was given up and deleted is in nobody's way, and means nothing.
func TestLateIntent(t *testing.T) {
	w := newWorld(t)
	m := w.mount(1)
	a, b := w.dir(m, tree.RootIno, "a"), w.dir(m, tree.RootIno, "b")
	w.file(m, a, "f")
	must(t, m.Sync(t.Context()))
	type proposal struct {
		id blocks.RegisterID
		c  blocks.Change
	}
	var held []proposal
	var mu sync.Mutex
	n := 0
	w.views[0].SetFault(func(write bool, id blocks.RegisterID, c *blocks.Change) treetest.Fault {
		mu.Lock()
		defer mu.Unlock()
		if !write || c.Base == 0 || c.Seq == 0 {
			return treetest.Fault{}
		}
		if n++; n == 2 { // the second participant's intent
			held = append(held, proposal{id, *c})
			return treetest.Fault{Err: fmt.Errorf("%w: lost for now", blocks.ErrInvalid)}
		}
		return treetest.Fault{}
	})
	if err := m.Rename(t.Context(), a, "f", b, "f", 0); err == nil {
		t.Fatal("renamed without an intent")
	}
	w.views[0].SetFault(nil)
	must(t, m.Settle(t.Context()))
	w.clean()
	if len(held) != 1 {
		t.Fatalf("%d proposals held up", len(held))
	}
	must(t, second(w.views[0].Propose(t.Context(), held[0].id, held[0].c)))
	w.clean()
	other := w.mount(2)
	for dir, want := range map[string]error{"a": nil, "b": syscall.ENOENT} {
		d, err := other.Lookup(t.Context(), tree.RootIno, dir)
		must(t, err)
		if _, err := other.Lookup(t.Context(), d.Ino, "f"); !errors.Is(err, want) {
			t.Errorf("%s/f: %v, want %v", dir, err, want)
		}
	}
	w.clean()
}
