package audit_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/audit"
	"github.com/mutualfs/mutualfs/fs/tree"
)

// mender mends through a mount.
type mender struct {
	*tree.Tree
	w *world
}

// DeleteStripe is audit.Mender.
func (m mender) DeleteStripe(_ context.Context, id blocks.StripeID) error {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	delete(m.w.stripes, id)
	return nil
}

// RepairStripe is audit.Mender.
func (m mender) RepairStripe(_ context.Context, id blocks.StripeID) error {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	s := m.w.stripes[id]
	s.Shards = 3
	m.w.stripes[id] = s
	return nil
}

// find audits, and wants exactly these kinds.
func (w *world) find(kinds ...audit.Kind) *audit.Report {
	w.t.Helper()
	r := w.audit()
	var got []audit.Kind
	for _, f := range r.Findings {
		got = append(got, f.Kind)
	}
	slices.Sort(got)
	slices.Sort(kinds)
	if !slices.Equal(got, kinds) {
		w.t.Fatalf("found %+v, want %v", r.Findings, kinds)
	}
	return r
}

// repair mends what was found, and wants nothing to be left.
func (w *world) repair(r *audit.Report) {
	w.t.Helper()
	done, err := audit.Repair(w.t.Context(), r, mender{w.mounts[0], w})
	must(w.t, err)
	for _, o := range done {
		if o.Err != nil {
			w.t.Errorf("%s: %v", o.Kind, o.Err)
		}
	}
	w.clean()
}

func (w *world) register(m *tree.Tree, ino tree.Ino) blocks.RegisterID {
	return m.OwnerOf(ino).Register
}

// What can go wrong is made to go wrong in a volume, found, and mended: nothing that was reachable or has content is lost.
func TestRepair(t *testing.T) {
	w := newWorld(t)
	m := w.mount(1)
	ctx := t.Context()
	at := func(in tree.Ino, name string) tree.Attr {
		t.Helper()
		a, err := m.Lookup(ctx, in, name)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return a
	}
	d, e := w.dir(m, tree.RootIno, "d"), w.dir(m, tree.RootIno, "e")
	f := w.file(m, d, "f")
	must(t, second(m.Link(ctx, f, e, "g")))
	w.file(m, e, "stays")
	sub := w.dir(m, d, "sub")
	w.file(m, sub, "inner")
	w.clean()
	dr, er, fr, sr := w.register(m, d), w.register(m, e), w.register(m, f), w.register(m, sub)

	must(t, m.MendLinks(ctx, fr, f, []blocks.RegisterID{dr, dr, dr}))
	w.repair(w.find(audit.WrongNlink, audit.WrongReference))
	if n := at(d, "f").Nlink; n != 2 {
		t.Errorf("%d links after the repair", n)
	}

	must(t, m.MendParent(ctx, sr, er, e))
	w.repair(w.find(audit.WrongParent))

	must(t, m.MendName(ctx, er, "g", f))
	w.repair(w.find(audit.WrongNlink, audit.WrongReference))

	must(t, m.MendName(ctx, dr, "sub", sub))
	w.repair(w.find(audit.OrphanRegister))
	lf := at(tree.RootIno, tree.LostAndFound)
	found := at(lf.Ino, ino(sub))
	if in := at(found.Ino, "inner"); in.Size != 100 {
		t.Errorf("the file in what was found has %d bytes", in.Size)
	}

	must(t, m.MendName(ctx, dr, "f", f))
	w.repair(w.find(audit.OrphanRegister))
	if a := at(lf.Ino, ino(f)); a.Nlink != 1 || a.Size != 100 {
		t.Errorf("the file that was found: %+v", a)
	}

	x := w.dir(m, e, "x")
	must(t, m.Settle(ctx))
	r, err := w.ring.ReadAgreed(ctx, w.register(m, x), 0)
	must(t, err)
	must(t, second(w.views[0].Propose(ctx, r.ID, blocks.Change{Base: r.Version, Origin: peer(1), Delete: true})))
	w.repair(w.find(audit.Dangling))
	if _, err := m.Lookup(ctx, e, "x"); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("the name that dangled: %v", err)
	}

	lost := w.put("never committed")
	weak := w.put("weak")
	must(t, m.Writeback(ctx, tree.Writeback{Ino: at(e, "stays").Ino, Size: 100, Extents: []tree.Extent{{Len: 100, Stripe: weak}}}))
	w.disks(func() { w.stripes[weak.ID] = audit.Stripe{Ref: weak, Shards: 2} })
	w.repair(w.find(audit.Unreferenced, audit.UnderProtected))
	if _, have := w.stripes[lost.ID]; have {
		t.Error("the stripe that nobody needs is still there")
	}
	if a := at(e, "stays"); a.Size != 100 {
		t.Errorf("a file that nothing was wrong with: %+v", a)
	}
}

// disks changes what the disks have.
func (w *world) disks(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func ino(i tree.Ino) string { return strconv.FormatUint(uint64(i), 10) }

// The sweep takes what nothing names and is old enough, and nothing else.
func TestSweep(t *testing.T) {
	w := newWorld(t)
	m := w.mount(1)
	d := w.dir(m, tree.RootIno, "d")
	w.file(m, d, "f")
	must(t, m.Settle(t.Context()))
	dr := w.register(m, d)
	must(t, m.MendName(t.Context(), w.register(m, tree.RootIno), "d", d)) // a directory with a file: for Repair alone
	w.age = time.Hour
	old, fresh := w.put("old"), w.put("fresh")
	w.disks(func() { w.stripes[old.ID] = audit.Stripe{Ref: old, Shards: 1, Age: time.Hour} })
	r := w.find(audit.Unreferenced, audit.Unreferenced, audit.OrphanRegister)
	done, err := audit.Sweep(t.Context(), r, time.Hour, mender{m, w})
	must(t, err)
	if len(done) != 1 || done[0].Stripe != old.ID || done[0].Err != nil {
		t.Fatalf("swept %+v", done)
	}
	r = w.find(audit.Unreferenced, audit.OrphanRegister)
	for _, f := range r.Findings {
		if f.Stripe != fresh.ID && f.Register != dr {
			t.Errorf("left is %+v", f)
		}
	}
	r.Proven = false
	if done, err := audit.Sweep(t.Context(), r, 0, mender{m, w}); err == nil || len(done) > 0 {
		t.Errorf("swept %v without a proof: %v", done, err)
	}
	r.Proven, r.Incomplete = true, "a peer is away"
	if done, err := audit.Repair(t.Context(), r, mender{m, w}); err == nil || len(done) > 0 {
		t.Errorf("repaired %v with a peer away: %v", done, err)
	}
}

// While two mounts make, move, link and remove files, audits go on and delete what they can prove that nothing names: all files
// keep their stripes.
func TestNothingLiveIsSwept(t *testing.T) {
	w := newWorld(t)
	ms := []*tree.Tree{w.mount(1), w.mount(2)}
	dirs := []tree.Ino{w.dir(ms[0], tree.RootIno, "a"), w.dir(ms[0], tree.RootIno, "b"), w.dir(ms[0], tree.RootIno, "c")}
	for _, name := range []string{"a", "b", "c"} {
		must(t, second(ms[1].Lookup(t.Context(), tree.RootIno, name)))
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i, m := range ms {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed(t), uint64(i)))
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				from, to := dirs[r.IntN(3)], dirs[r.IntN(3)]
				name := fmt.Sprint("f", i, r.IntN(20))
				switch r.IntN(6) {
				case 0, 1:
					a, _, err := m.Make(t.Context(), from, name, tree.MakeArgs{Mode: syscall.S_IFREG | 0o644})
					if err == nil {
						w.flying.RLock()
						ref := w.put(fmt.Sprint(i, " ", n))
						if err := m.Writeback(t.Context(), tree.Writeback{Ino: a.Ino, Size: 100, Extents: []tree.Extent{{Len: 100, Stripe: ref}}}); err != nil {
							w.disks(func() { delete(w.stripes, ref.ID) })
						}
						w.flying.RUnlock()
						m.Forget(a.Ino, 1)
					}
				case 2, 3:
					_ = m.Rename(t.Context(), from, name, to, name, 0)
				case 4:
					if a, err := m.Lookup(t.Context(), from, name); err == nil {
						_, _ = m.Link(t.Context(), a.Ino, to, name+"l")
						m.Forget(a.Ino, 1)
					}
				case 5:
					_ = m.Unlink(t.Context(), from, name)
				}
			}
		})
	}
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); {
		w.put(fmt.Sprint("never committed ", end))
		r := w.audit()
		_, _ = audit.Sweep(t.Context(), r, 0, mender{ms[0], w})
	}
	close(stop)
	wg.Wait()
	for _, f := range w.audit().Findings {
		if f.Kind != audit.Unreferenced {
			t.Errorf("%s %s: %s", f.Kind, f.Path, f.Detail)
		}
	}
}

func seed(t *testing.T) uint64 {
	s := uint64(time.Now().UnixNano())
	if v, err := strconv.ParseUint(os.Getenv("MUTUALFS_SEED"), 10, 64); err == nil {
		s = v
	}
	t.Logf("MUTUALFS_SEED=%d", s)
	return s
}
