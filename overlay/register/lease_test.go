package register_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
	"github.com/mutualfs/mutualfs/overlay/register"
)

// mount is a client that works under a lease: it acquires it, and gives it
// back when asked. now is what it last saw. acked is the newest version, of those that change the value, that any mount was told of.
type mount struct {
	*peer
	id    blocks.RegisterID
	mu    sync.Mutex
	now   blocks.Register
	seq   uint64
	acked *atomic.Uint64
}

// breaker is what a test does to calls, see chaosRing.
type breaker = func(ctx context.Context, to blocks.PeerID, req overlay.Call, call func(context.Context, overlay.Call) (overlay.Call, error)) (overlay.Call, error)

func newMount(p *peer, id blocks.RegisterID) *mount {
	m := &mount{peer: p, id: id, acked: &atomic.Uint64{}}
	p.svc.OnRecall(func(ctx context.Context, _ blocks.RegisterID, _ bool) { m.change(ctx, blocks.LeaseRelease) })
	return m
}

func (m *mount) epoch() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	l, _, _ := m.now.LeaseOf(m.peer.id)
	if l.Holder != m.peer.id {
		return 0
	}
	return l.Epoch
}

// holds asks for the lease that the mount believes to have.
func (m *mount) holds() bool {
	e := m.epoch()
	return e != 0 && m.svc.Holds(m.id, e)
}

// shares is holds of a lease that is not the mount's alone.
func (m *mount) shares() bool {
	m.mu.Lock()
	_, shared, _ := m.now.LeaseOf(m.peer.id)
	m.mu.Unlock()
	return shared && m.holds()
}

// old reports whether the mount may answer from memory though a change that it has not seen has been acknowledged.
func (m *mount) old() bool {
	acked := blocks.Version(m.acked.Load())
	m.mu.Lock()
	seen := m.now.Version
	m.mu.Unlock()
	return seen < acked && m.holds()
}

// change proposes a change with the action, rebasing it until it is made. To share and to release leave the value as it is.
func (m *mount) change(ctx context.Context, action blocks.LeaseAction) error {
	m.mu.Lock()
	c := blocks.Change{Base: m.now.Version, Origin: m.peer.id, Lease: action}
	if l, shared, _ := m.now.LeaseOf(m.peer.id); shared && action == blocks.LeaseRelease {
		c.Lease, c.Epoch = blocks.LeaseLeave, l.Epoch
	}
	value := action != blocks.LeaseShare && action != blocks.LeaseRelease
	if value {
		m.seq++
		c.Seq, c.Delta = m.seq, []byte{1}
	}
	m.mu.Unlock()
	for {
		r, err := m.svc.Propose(ctx, m.id, c)
		if err == nil && value && r.Version == c.Base+1 {
			for old := m.acked.Load(); old < uint64(r.Version) && !m.acked.CompareAndSwap(old, uint64(r.Version)); old = m.acked.Load() {
			}
		}
		if err == nil || errors.Is(err, blocks.ErrConflict) {
			m.mu.Lock()
			if r.Version >= m.now.Version {
				m.now = r
			}
			m.mu.Unlock()
			c.Base = r.Version
		}
		if !errors.Is(err, blocks.ErrConflict) {
			return err
		}
	}
}

// leaseWorld has storage peers, two mounts, and one register, whose lease the first mount has.
func leaseWorld(t *testing.T, storage, m int, broken breaker) (*world, *mount, *mount) {
	w := newWorld(t, m, 0)
	w.broken = broken
	for range storage {
		w.join(true)
	}
	a, b := newMount(w.join(false), regID(1)), newMount(w.join(false), regID(1))
	synctest.Wait()
	if err := a.change(t.Context(), blocks.LeaseAcquire); err != nil {
		t.Fatal(err)
	}
	if !a.holds() {
		t.Fatal("the lease acquired is not held")
	}
	b.now, b.acked = a.now, a.acked // a register is created by one mount only
	return w, a, b
}

// share makes the lease that the mount has one that it shares.
func (m *mount) share(t *testing.T) {
	t.Helper()
	for _, action := range []blocks.LeaseAction{blocks.LeaseRelease, blocks.LeaseShare} {
		if err := m.change(t.Context(), action); err != nil {
			t.Fatal(err)
		}
	}
	if !m.shares() {
		t.Fatal("the lease is not shared")
	}
}

// both counts the instants at which both mounts hold, and not with each other, or one answers what is old, each millisecond until
// the function returned is called.
func both(t *testing.T, a, b *mount) func() int {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var bad atomic.Int64
	wg.Go(func() {
		for ctx.Err() == nil {
			if !a.shares() && a.holds() && b.holds() || !b.shares() && b.holds() && a.holds() || a.old() || b.old() {
				bad.Add(1)
			}
			sleep(ctx, time.Millisecond)
		}
	})
	return func() int {
		cancel()
		wg.Wait()
		return int(bad.Load())
	}
}

func TestLeaseIsKeptWhileTheMountLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, _ := leaseWorld(t, 3, 1, nil)
		defer w.stop()
		for range 600 {
			time.Sleep(100 * time.Millisecond)
			if !a.holds() {
				t.Fatal("the lease was lost")
			}
		}
	})
}

func TestLeaseOfADeadMountIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := leaseWorld(t, 3, 1, nil)
		defer w.stop()
		time.Sleep(20 * time.Second)
		w.kill(a.peer)
		begin := time.Now()
		if err := b.change(t.Context(), blocks.LeaseAcquire); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took < 7*time.Second || took > 10*time.Second {
			t.Errorf("taking the lease of a dead mount took %v", took)
		}
		if !b.holds() {
			t.Error("the lease taken is not held")
		}
	})
}

func TestLeaseIsFreeAfterGoodbye(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := leaseWorld(t, 3, 1, nil)
		defer w.stop()
		time.Sleep(20 * time.Second)
		a.svc.Goodbye(t.Context())
		if a.holds() {
			t.Error("the lease is held after the goodbye")
		}
		w.kill(a.peer)
		begin := time.Now()
		if err := b.change(t.Context(), blocks.LeaseAcquire); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > time.Second {
			t.Errorf("taking the lease after a goodbye took %v", took)
		}
	})
}

func TestLeaseThatIsNotGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := leaseWorld(t, 3, 1, nil)
		defer w.stop()
		a.svc.OnRecall(func(context.Context, blocks.RegisterID, bool) {})
		begin := time.Now()
		_, err := b.svc.Read(t.Context(), b.id, 0)
		if took := time.Since(begin); !errors.Is(err, blocks.ErrBusy) || took > 12*time.Second {
			t.Errorf("after %v: %v", took, err)
		}
		if !a.holds() {
			t.Error("a lease was taken from a mount that lives")
		}
	})
}

// Lease asks who holds: a mount that lives keeps what it has, a dead one loses it, a restarted one gives it back.
func TestLeaseIsLookedAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := leaseWorld(t, 3, 1, nil)
		defer w.stop()
		a.svc.OnRecall(func(context.Context, blocks.RegisterID, bool) {})
		held := func(want blocks.PeerID) {
			t.Helper()
			l, err := b.svc.Lease(t.Context(), b.id)
			if err != nil || l.Holder != want {
				t.Errorf("%v, %v; want %v", l, err, want)
			}
		}
		held(a.peer.id)
		if !a.holds() {
			t.Error("it was taken from a mount that lives")
		}
		w.kill(a.peer)
		held(a.peer.id) // not silent for long enough
		time.Sleep(10 * time.Second)
		held(blocks.PeerID{})
	})
}

// Two mounts read with each other; who wants to change, or to have the lease alone, recalls both.
func TestLeaseIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := leaseWorld(t, 3, 1, nil)
		defer w.stop()
		asked := map[*mount]int{}
		for _, m := range []*mount{a, b} {
			m.svc.OnRecall(func(ctx context.Context, _ blocks.RegisterID, read bool) {
				asked[m]++
				if read {
					t.Error("a change came as a read")
				}
				m.change(ctx, blocks.LeaseRelease)
			})
		}
		a.share(t)
		if err := b.change(t.Context(), blocks.LeaseShare); err != nil || !a.shares() || !b.shares() {
			t.Fatalf("they do not share: %v", err)
		}
		if _, err := b.svc.Read(t.Context(), b.id, 0); err != nil || asked[a] != 0 {
			t.Errorf("a read asked for what is shared: %v", err)
		}
		b.seq++
		quiet := blocks.Change{Base: b.now.Version, Origin: b.peer.id, Seq: b.seq, Delta: []byte{2}, Quiet: true}
		if r, err := b.svc.Propose(t.Context(), b.id, quiet); err != nil || !a.shares() || !b.shares() {
			t.Errorf("a quiet change: %+v, %v", r, err)
		}
		if err := a.change(t.Context(), blocks.LeaseKeep); err != nil || a.holds() || b.holds() || asked[b] != 1 || asked[a] != 0 {
			t.Errorf("a change by one that shares: %v, the other was asked %d times, it itself %d times", err, asked[b], asked[a])
		}
		for _, m := range []*mount{a, b} {
			if err := m.change(t.Context(), blocks.LeaseShare); err != nil || !m.shares() {
				t.Fatal(err)
			}
		}
		if err := b.change(t.Context(), blocks.LeaseAcquire); err != nil || a.holds() || !b.holds() || b.shares() || asked[a] != 1 {
			t.Errorf("alone: %v, the other was asked %d times", err, asked[a])
		}
		read := false
		b.svc.OnRecall(func(ctx context.Context, _ blocks.RegisterID, r bool) { read = r; b.change(ctx, blocks.LeaseRelease) })
		if _, err := a.svc.Read(t.Context(), a.id, 0); err != nil || !read {
			t.Errorf("a read came as a change, or not at all: %v", err)
		}
	})
}

// One of those who share dies: a change waits until the others are sure of it.
func TestSharedLeaseOfADeadMountIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := leaseWorld(t, 3, 1, nil)
		defer w.stop()
		a.share(t)
		if err := b.change(t.Context(), blocks.LeaseShare); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		w.kill(a.peer)
		if _, err := b.svc.Read(t.Context(), b.id, 0); err != nil || !b.shares() {
			t.Errorf("a read beside a dead reader: %v", err)
		}
		begin := time.Now()
		if err := b.change(t.Context(), blocks.LeaseKeep); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took < 7*time.Second || took > 10*time.Second {
			t.Errorf("a change beside a dead reader took %v", took)
		}
	})
}

// Peek sees what the holder of a lease has proposed, and leaves the lease where it is.
func TestPeekRecallsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := leaseWorld(t, 3, 1, nil)
		defer w.stop()
		if err := a.change(t.Context(), blocks.LeaseKeep); err != nil {
			t.Fatal(err)
		}
		r, err := b.svc.Peek(t.Context(), b.id)
		if err != nil || r.Version != a.now.Version || len(r.Deltas) == 0 || r.Lease.Holder != a.peer.id || !a.holds() {
			t.Errorf("%+v, %v; want version %d, leased", r, err, a.now.Version)
		}
	})
}

func TestLeaseAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, _ := leaseWorld(t, 3, 1, nil)
		defer w.stop()
		old := a.epoch()
		w.kill(a.peer)
		w.start(a.peer)
		synctest.Wait()
		if a.svc.Holds(a.id, old) {
			t.Error("a lease of the process before is trusted")
		}
		if err := a.change(t.Context(), blocks.LeaseAcquire); err != nil {
			t.Fatal(err)
		}
		if !a.holds() || a.epoch() == old {
			t.Errorf("epoch %d after %d", a.epoch(), old)
		}
	})
}

// cutOff isolates the holder for a while in which the other wants the lease;
// afterwards they take turns. It returns the instants at which both held.
func cutOff(t *testing.T, cut time.Duration, shared bool, broken breaker) (twice int) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := leaseWorld(t, 3, 1, broken)
		defer w.stop()
		if shared {
			a.share(t)
		}
		count := both(t, a, b)
		ctx := t.Context()
		time.Sleep(20 * time.Second)
		all := []blocks.PeerID{b.peer.id}
		for _, p := range w.peers[:3] {
			all = append(all, p.id)
		}
		w.chaos.isolate(a.peer.id, all, true)
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := b.change(ctx, blocks.LeaseAcquire); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(cut)
		w.chaos.isolate(a.peer.id, all, false)
		wg.Wait()
		for range 3 {
			if err := a.change(ctx, blocks.LeaseAcquire); err != nil {
				t.Error(err)
			}
			if err := b.change(ctx, blocks.LeaseAcquire); err != nil {
				t.Error(err)
			}
		}
		twice = count()
	})
	return twice
}

func TestLeaseNeverHeldTwiceInPartitions(t *testing.T) {
	for cut := 2 * time.Second; cut < 14*time.Second; cut += 500 * time.Millisecond {
		for _, shared := range []bool{false, true} {
			if n := cutOff(t, cut, shared, nil); n > 0 {
				t.Errorf("cut off for %v, shared: %v: both mounts held at %d instants", cut, shared, n)
			}
		}
	}
}

// A peer that consents to take a lease without having missed the holder.
func TestLeaseTestsNoticeAHastyConsent(t *testing.T) {
	hasty := func(ctx context.Context, _ blocks.PeerID, req overlay.Call, call func(context.Context, overlay.Call) (overlay.Call, error)) (overlay.Call, error) {
		if req.Kind == register.KindRecall {
			return overlay.Call{}, blocks.ErrUnavailable
		}
		resp, err := call(ctx, req)
		if req.Kind == register.KindSilence && err == nil {
			resp.Body[0] = 0
		}
		return resp, err
	}
	for _, shared := range []bool{false, true} {
		noticed := false
		for cut := 2 * time.Second; cut < 14*time.Second && !noticed; cut += 2 * time.Second {
			noticed = cutOff(t, cut, shared, hasty) > 0
		}
		if !noticed {
			t.Errorf("not noticed, shared: %v", shared)
		}
	}
}

// wander moves the register to other replicas while mounts are cut off from
// some of the peers, or from all. It returns the instants at which both held.
func wander(t *testing.T, seed uint64, broken breaker) (twice int) {
	synctest.Test(t, func(t *testing.T) {
		w, a, b := leaseWorld(t, 7, 1, broken)
		w.rng.seed(seed)
		w.chaos.seed = seed
		defer w.stop()
		count := both(t, a, b)
		w.chaos.set(faults{drop: 3, dropReply: 3, repeat: 3, slow: 3, delay: 30 * time.Millisecond})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for _, m := range []*mount{a, b} {
			wg.Go(func() {
				for ctx.Err() == nil {
					try, done := context.WithTimeout(ctx, 30*time.Second)
					m.change(try, []blocks.LeaseAction{blocks.LeaseAcquire, blocks.LeaseShare, blocks.LeaseShare, blocks.LeaseKeep}[w.rng.IntN(4)])
					done()
					sleep(ctx, w.rng.upTo(5*time.Second))
				}
			})
		}
		for range 12 {
			w.upset(ctx, []*mount{a, b}[w.rng.IntN(2)])
		}
		w.chaos.set(faults{})
		time.Sleep(15 * time.Second)
		cancel()
		wg.Wait()
		w.chaos.wg.Wait()
		if err := a.change(t.Context(), blocks.LeaseAcquire); err != nil || !a.holds() {
			t.Errorf("after all is healed: holds %v, %v", a.holds(), err)
		}
		twice = count()
	})
	return twice
}

// upset gives up up to three storage peers and cuts the mount off from some peers, for a while.
func (w *world) upset(ctx context.Context, m *mount) {
	var some []blocks.PeerID
	for _, q := range w.peers {
		if w.rng.chance(70) {
			some = append(some, q.id)
		}
	}
	var gone []*peer
	for range 1 + w.rng.IntN(3) {
		gone = append(gone, w.peers[w.rng.IntN(7)])
	}
	w.chaos.isolate(m.peer.id, some, true)
	for _, p := range gone {
		w.live(p, overlay.Gone)
		sleep(ctx, w.rng.upTo(3*time.Second))
	}
	sleep(ctx, w.rng.upTo(15*time.Second))
	w.chaos.isolate(m.peer.id, some, false)
	sleep(ctx, w.rng.upTo(5*time.Second))
	for _, p := range gone {
		w.live(p, overlay.Alive)
	}
}

// The old majority must not keep a lease alive that the new one lets go.
func TestLeaseNeverHeldTwiceWhileViewsChange(t *testing.T) {
	seed := seedOf(t)
	for i := range 5 {
		if n := wander(t, seed+uint64(i), nil); n > 0 {
			t.Errorf("seed %d+%d: both mounts held at %d instants", seed, i, n)
		}
	}
}

// move lets all replicas of a register move while a mount holds its lease,
// then cuts the mount off from the new ones. It returns the instants at which both held.
func move(t *testing.T, shared bool, broken breaker) (twice int) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 0)
		w.broken = broken
		for range 3 {
			w.join(true)
		}
		id := w.movingID(9)
		a, b := newMount(w.join(false), id), newMount(w.join(false), id)
		defer w.stop()
		synctest.Wait()
		if err := a.change(t.Context(), blocks.LeaseAcquire); err != nil || !a.holds() {
			t.Fatal("the lease is not held", err)
		}
		b.now, b.acked = a.now, a.acked
		if shared {
			a.share(t)
		}
		count := both(t, a, b)
		cut := []blocks.PeerID{b.peer.id}
		for range 6 {
			cut = append(cut, w.join(true).id)
		}
		time.Sleep(10 * time.Second)
		r, err := b.svc.RingCounts(t.Context())
		if err != nil || !r.Complete || r.Protected != 1 {
			t.Fatalf("the register has not moved: %+v, %v", r, err)
		}
		w.chaos.isolate(a.peer.id, cut, true)
		if err := b.change(t.Context(), blocks.LeaseAcquire); err != nil || !b.holds() {
			t.Errorf("the lease was not taken: %v", err)
		}
		time.Sleep(time.Second)
		twice = count()
	})
	return twice
}

// movingID returns a register whose replicas are all others once n peers have joined.
func (w *world) movingID(n int) blocks.RegisterID {
	var infos []overlay.PeerInfo
	first := map[blocks.PeerID]bool{}
	for i := range n + 2 {
		if i == 3 || i == 4 { // the mounts
			continue
		}
		first[peerID(i)] = i < 3
		infos = append(infos, overlay.PeerInfo{ID: peerID(i), Vnodes: 8})
	}
	table := overlay.NewTable(w.net.Set(w.peers[0].info).Table().Ring, infos)
	for i := range 10000 {
		stays := false
		for _, p := range table.HomePeers(regID(i).ID, 2*w.m+1, nil) {
			stays = stays || first[p]
		}
		if !stays {
			return regID(i)
		}
	}
	w.t.Fatal("all registers keep some of their replicas")
	return blocks.RegisterID{}
}

func TestLeaseNeverHeldTwiceAfterAMove(t *testing.T) {
	for _, shared := range []bool{false, true} {
		if n := move(t, shared, nil); n > 0 {
			t.Errorf("shared: %v: both mounts held at %d instants", shared, n)
		}
	}
}

// A coordinator that ends the change of a view without the holder's knowing.
func TestLeaseTestsNoticeASilentMove(t *testing.T) {
	silent := func(ctx context.Context, _ blocks.PeerID, req overlay.Call, call func(context.Context, overlay.Call) (overlay.Call, error)) (overlay.Call, error) {
		if req.Kind == register.KindViewOf {
			return overlay.Call{}, nil
		}
		return call(ctx, req)
	}
	for _, shared := range []bool{false, true} {
		if move(t, shared, silent) == 0 {
			t.Errorf("not noticed, shared: %v", shared)
		}
	}
}
