package register_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
	"github.com/mutualfs/mutualfs/overlay/overlaytest"
	"github.com/mutualfs/mutualfs/overlay/register"
	"github.com/mutualfs/mutualfs/overlay/register/registertest"
)

// world is a ring of in-memory peers.
type world struct {
	t      testing.TB
	m      int
	net    *overlaytest.Net
	chaos  *chaos
	rng    *lockedRand
	peers  []*peer
	wrap   func(register.KV) register.KV // of every store
	skew   bool                          // every peer's timers run at a rate of their own
	broken func(ctx context.Context, to blocks.PeerID, req overlay.Call, call func(context.Context, overlay.Call) (overlay.Call, error)) (overlay.Call, error)
}

type peer struct {
	id   blocks.PeerID
	rate int // of its timers, percent
	kv   *registertest.KV
	ring *overlaytest.Ring
	info overlay.PeerInfo
	svc  *register.Service
	stop func()
}

func peerID(i int) blocks.PeerID {
	return blocks.PeerID{ID: blocks.HashID([]byte("peer"), []byte{byte(i)})}
}

func newNet() *overlaytest.Net { return overlaytest.NewNet(blocks.HashID([]byte("ring"))) }

func newStore(rng *lockedRand) *registertest.KV { return registertest.New(uint64(rng.IntN(1<<40) + 1)) }

func newWorld(t testing.TB, m, n int) *world {
	rng := newRand(1)
	w := &world{t: t, m: m, net: newNet(), chaos: newChaos(1), rng: rng}
	for range n {
		w.join(true)
	}
	return w
}

// join adds a peer with a store and a mount, or without a store.
func (w *world) join(storage bool) *peer {
	i := len(w.peers)
	p := &peer{id: peerID(i), rate: 75 + 13*i%60}
	p.info = overlay.PeerInfo{ID: p.id, Addr: fmt.Sprint("peer", i)}
	if storage {
		p.info.Vnodes, p.info.Capacity = 8, 1<<30
		p.kv = newStore(w.rng)
	}
	w.peers = append(w.peers, p)
	w.start(p)
	return p
}

func (w *world) start(p *peer) {
	p.ring = w.net.Set(p.info)
	cfg := register.Config{Ring: &chaosRing{Ring: p.ring, net: w.chaos, broken: w.broken}, M: w.m, Mount: true, Rand: w.rng}
	if p.kv != nil {
		cfg.KV = p.kv
		if w.wrap != nil {
			cfg.KV = w.wrap(p.kv)
		}
	}
	if w.skew {
		skew(&cfg, p.rate)
	}
	svc, err := register.New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	p.svc = svc
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); svc.Run(ctx) }()
	p.stop = func() { cancel(); <-done }
	p.ring.SetDown(false)
}

// skew makes all waits of a peer longer or shorter than those of the others.
func skew(cfg *register.Config, percent int) {
	d := register.Default()
	for _, f := range []struct{ to, from *time.Duration }{
		{&cfg.Beat, &d.Beat}, {&cfg.LeaseTrust, &d.LeaseTrust}, {&cfg.LeaseExpire, &d.LeaseExpire}, {&cfg.CallTry, &d.CallTry},
		{&cfg.Try, &d.Try}, {&cfg.RecallTry, &d.RecallTry}, {&cfg.RecallTotal, &d.RecallTotal},
		{&cfg.Settle, &d.Settle}, {&cfg.Scan, &d.Scan}, {&cfg.Retry, &d.Retry},
	} {
		*f.to = *f.from * time.Duration(percent) / 100
	}
}

func (w *world) stop() {
	for _, p := range w.peers {
		p.stop()
	}
}

// kill ends a peer's process; what was under way is not answered.
func (w *world) kill(p *peer) {
	p.ring.SetDown(true)
	p.stop()
}

// live sets what the tables say of a peer.
func (w *world) live(p *peer, l overlay.Liveness) {
	p.info.Live = l
	w.net.Set(p.info)
}

func regID(i int) blocks.RegisterID {
	return blocks.RegisterID{ID: blocks.HashID([]byte("register"), []byte{byte(i >> 8), byte(i)})}
}

func value(r blocks.Register) string {
	s := string(r.Snapshot)
	for _, d := range r.Deltas {
		s += string(d)
	}
	return s
}

func TestCreateChangeRead(t *testing.T) {
	for _, n := range []int{1, 2, 3, 5, 6} {
		t.Run(fmt.Sprint(n, " peers"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 2, n)
				defer w.stop()
				client := w.join(false)
				ctx := t.Context()
				synctest.Wait()
				id := regID(1)
				r, err := client.svc.Propose(ctx, id, blocks.Change{Origin: client.id, Seq: 1, Snapshot: []byte("a")})
				if err != nil || r.Version != 1 {
					t.Fatalf("create: version %d, %v", r.Version, err)
				}
				if len(r.View) != min(n, 5) {
					t.Fatalf("the view has %d members on a ring of %d", len(r.View), n)
				}
				for i := range 3 {
					r, err = client.svc.Propose(ctx, id, blocks.Change{Base: r.Version, Origin: client.id, Seq: uint64(i + 2), Delta: []byte{byte('b' + i)}})
					if err != nil {
						t.Fatal(err)
					}
				}
				other := w.peers[0]
				got, err := other.svc.Read(ctx, id, 0)
				if err != nil || value(got) != "abcd" || got.Version != 4 {
					t.Fatalf("read %q version %d, %v", value(got), got.Version, err)
				}
				got, err = other.svc.Read(ctx, id, 2)
				if err != nil || value(got) != "cd" || got.Base != 2 || got.Snapshot != nil {
					t.Fatalf("read since 2: %q base %d, %v", value(got), got.Base, err)
				}
				got, err = other.svc.Propose(ctx, id, blocks.Change{Base: 3, Origin: other.id, Seq: 1, Delta: []byte("x")})
				if !errors.Is(err, blocks.ErrConflict) || value(got) != "d" || got.Version != 4 {
					t.Fatalf("conflict: %q version %d, %v", value(got), got.Version, err)
				}
				got, err = client.svc.Propose(ctx, id, blocks.Change{Base: 3, Origin: client.id, Seq: 4, Delta: []byte("d")})
				if err != nil || got.Version != 4 {
					t.Fatalf("a repeated change: version %d, %v", got.Version, err)
				}
				if _, err := client.svc.Propose(ctx, id, blocks.Change{Base: 4, Origin: client.id, Seq: 5, Delete: true}); err != nil {
					t.Fatal(err)
				}
				if _, err := other.svc.Read(ctx, id, 0); !errors.Is(err, blocks.ErrNotFound) {
					t.Fatalf("read of a deleted register: %v", err)
				}
				if _, err := other.svc.Read(ctx, regID(2), 0); !errors.Is(err, blocks.ErrUnavailable) {
					t.Fatalf("read of an unknown register: %v", err)
				}
			})
		})
	}
}

func TestLeaseRecall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 3)
		defer w.stop()
		a, b := w.join(false), w.join(false)
		ctx := t.Context()
		id := regID(1)
		synctest.Wait()
		r, err := a.svc.Propose(ctx, id, blocks.Change{Origin: a.id, Seq: 1, Snapshot: []byte("a"), Lease: blocks.LeaseAcquire})
		if err != nil || !a.svc.Holds(id, r.Lease.Epoch) {
			t.Fatalf("lease %v, %v", r.Lease, err)
		}
		a.svc.OnRecall(func(ctx context.Context, id blocks.RegisterID, _ bool) {
			if _, err := a.svc.Propose(ctx, id, blocks.Change{Base: r.Version, Origin: a.id, Seq: 2, Delta: []byte("b"), Lease: blocks.LeaseRelease}); err != nil {
				t.Error(err)
			}
		})
		got, err := b.svc.Read(ctx, id, 0)
		if err != nil || value(got) != "ab" {
			t.Fatalf("read %q, %v", value(got), err)
		}
		if a.svc.Holds(id, r.Lease.Epoch) {
			t.Fatal("holds a lease that it gave back")
		}
	})
}

func TestViewFollowsTheRing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, 1)
		defer w.stop()
		ctx := t.Context()
		first := w.peers[0]
		synctest.Wait()
		for i := range 50 {
			if _, err := first.svc.Propose(ctx, regID(i), blocks.Change{Origin: first.id, Seq: 1, Snapshot: []byte("a")}); err != nil {
				t.Fatal(err)
			}
		}
		for range 5 {
			w.join(true)
		}
		time.Sleep(5 * time.Second)
		watch := first.svc.Watch()
		c, err := watch.Counts(ctx)
		for deadline := time.Now().Add(5 * time.Second); err == nil && !c.Fresh && time.Now().Before(deadline); {
			time.Sleep(100 * time.Millisecond)
			c, err = watch.Counts(ctx)
		}
		if err != nil || !c.Fresh || c.Protected != 50 || c.Degraded+c.Unavailable+c.Backlog != 0 {
			t.Fatalf("after the join: %+v, %v", c, err)
		}
		first.stop()
		first.ring.SetDown(true)
		for i := range 50 {
			r, err := w.peers[1].svc.Read(ctx, regID(i), 0)
			if err != nil || value(r) != "a" || len(r.View) != 5 {
				t.Fatalf("register %d without the first peer: %q, view of %d, %v", i, value(r), len(r.View), err)
			}
		}
	})
}
