package overlay_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
	"github.com/mutualfs/mutualfs/overlay/overlaytest"
)

// seed is printed, and read from MUTUALFS_SEED to replay a run.
func seed(t testing.TB) uint64 {
	s := rand.Uint64()
	if env := os.Getenv("MUTUALFS_SEED"); env != "" {
		var err error
		if s, err = strconv.ParseUint(env, 10, 64); err != nil {
			t.Fatalf("MUTUALFS_SEED: %v", err)
		}
	}
	t.Logf("MUTUALFS_SEED=%d", s)
	return s
}

var testRing = blocks.HashID([]byte("ring"))

func peerID(i int) blocks.PeerID {
	return blocks.PeerID{ID: blocks.HashID([]byte("peer"), []byte{byte(i >> 8), byte(i)})}
}

// memStore is a Store that survives the restart of its peer.
type memStore struct {
	mu    sync.Mutex
	state []byte
}

func (s *memStore) Load() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.state), nil
}

func (s *memStore) Save(b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = slices.Clone(b)
	return nil
}

// cluster runs real peers over a Wire.
type cluster struct {
	t      *testing.T
	wire   *overlaytest.Wire
	seed   uint64
	tune   func(*overlay.Config)
	stores map[int]*memStore
	peers  map[int]*overlay.Peer
	stop   map[int]func()
	starts uint64
}

func newCluster(t *testing.T, tune func(*overlay.Config)) *cluster {
	s := seed(t)
	c := &cluster{t: t, wire: overlaytest.NewWire(s), seed: s, tune: tune, stores: map[int]*memStore{}, peers: map[int]*overlay.Peer{}, stop: map[int]func(){}}
	c.wire.Delay(time.Millisecond, 5*time.Millisecond)
	return c
}

func addrOf(i int) string { return fmt.Sprintf("peer%d.example:4242", i) }

func (c *cluster) start(i int) *overlay.Peer {
	c.t.Helper()
	if c.stores[i] == nil {
		c.stores[i] = &memStore{}
	}
	end := c.wire.End(peerID(i), addrOf(i))
	c.starts++
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], c.seed)
	binary.BigEndian.PutUint64(key[8:], c.starts)
	cfg := overlay.Config{Ring: testRing, Self: peerID(i), Addr: addrOf(i), Capacity: 1 << 40, Vnodes: 8, Drives: 1, K: 4, M: 2,
		Transport: end, Dial: end.Dial, Store: c.stores[i], Rand: rand.NewChaCha8(key)}
	if c.tune != nil {
		c.tune(&cfg)
	}
	p, err := overlay.New(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	end.Attach(p)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	c.peers[i] = p
	c.stop[i] = func() {
		end.Attach(nil)
		cancel()
		if err := <-done; err != nil {
			c.t.Errorf("peer %d: %v", i, err)
		}
		delete(c.peers, i)
		delete(c.stop, i)
	}
	return p
}

func (c *cluster) startAll(n int) {
	c.t.Helper()
	c.start(0)
	for i := 1; i < n; i++ {
		if err := c.start(i).Join(c.t.Context(), []string{addrOf(0)}); err != nil {
			c.t.Fatal(err)
		}
	}
}

func (c *cluster) stopAll() {
	for _, stop := range c.stop {
		stop()
	}
}

// eventually waits in virtual time until ok returns "" for every peer.
func (c *cluster) eventually(limit time.Duration, ok func(i int, p *overlay.Peer) string) {
	c.t.Helper()
	deadline := time.Now().Add(limit)
	for {
		why := ""
		for i, p := range c.peers {
			if s := ok(i, p); s != "" {
				why = fmt.Sprintf("peer %d: %s", i, s)
				break
			}
		}
		if why == "" {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("not within %v: %s", limit, why)
		}
		time.Sleep(100 * time.Millisecond) // virtual
	}
}

// counts asks that every peer has so many peers of a liveness.
func counts(live overlay.Liveness, n int) func(int, *overlay.Peer) string {
	return func(_ int, p *overlay.Peer) string {
		got := 0
		for _, info := range p.Table().Peers {
			if info.Live == live {
				got++
			}
		}
		if got != n {
			return fmt.Sprintf("%d peers are %v, want %d", got, live, n)
		}
		return ""
	}
}

// bubble runs f in virtual time, and a little longer: the gossip library's
// goroutines end by themselves some time after it was shut down.
func bubble(t *testing.T, f func(t *testing.T)) {
	synctest.Test(t, func(t *testing.T) {
		defer time.Sleep(time.Minute)
		f(t)
	})
}

func TestRingOfFewRoutesEverywhere(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, nil)
		defer c.stopAll()
		c.startAll(5)
		c.eventually(10*time.Second, counts(overlay.Alive, 5))
		time.Sleep(time.Second)
		r, err := c.peers[3].Check(t.Context())
		if err != nil || r.Failed > 0 || r.Routes != 40*39 || r.Vnodes != 40 {
			t.Fatalf("check: %+v, %v", r, err)
		}
		if r.MeanHops() < 0.5 || r.MaxHops > 6 {
			t.Errorf("mean of %.2f hops, at most %d", r.MeanHops(), r.MaxHops)
		}
		for range 50 {
			id, _ := blocks.RandomID(rand.NewChaCha8([32]byte{1}))
			want, _ := c.peers[0].Table().Owner(id)
			got, hops, err := c.peers[2].Lookup(t.Context(), id)
			if err != nil || got.ID != want.ID || hops > 1 {
				t.Fatalf("lookup of %s: %v in %d hops, %v; want %v", id.Short(), got, hops, err, want)
			}
		}
	})
}

func TestPeerDiesAndReturns(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, nil)
		defer c.stopAll()
		c.startAll(5)
		c.eventually(10*time.Second, counts(overlay.Alive, 5))
		vnodes := len(c.peers[0].Table().Vnodes())
		c.stop[4]()
		c.eventually(30*time.Second, counts(overlay.Down, 1))
		if got := len(c.peers[0].Table().Vnodes()); got != vnodes {
			t.Fatalf("%d virtual nodes count, want %d: a peer that is down keeps its places", got, vnodes)
		}
		time.Sleep(20 * time.Minute)
		c.eventually(time.Minute, counts(overlay.Gone, 1))
		if got := len(c.peers[0].Table().Vnodes()); got != vnodes-8 {
			t.Fatalf("%d virtual nodes count, want %d", got, vnodes-8)
		}
		c.start(4)
		c.eventually(time.Minute, counts(overlay.Alive, 5))
	})
}

func TestRestartedPeerKnowsThoseThatAreDown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, nil)
		defer c.stopAll()
		c.startAll(4)
		c.eventually(10*time.Second, counts(overlay.Alive, 4))
		time.Sleep(5 * time.Second)
		c.stop[3]()
		c.stop[2]()
		p := c.start(2)
		if got := len(p.Table().Peers); got != 4 {
			t.Fatalf("a restarted peer knows %d peers, want 4", got)
		}
		if got := len(p.Table().Vnodes()); got != 32 {
			t.Fatalf("its ring has %d virtual nodes, want 32", got)
		}
		c.eventually(time.Minute, counts(overlay.Alive, 3))
		// And a new one learns of the one that is down from the others.
		if err := c.start(5).Join(t.Context(), []string{addrOf(1)}); err != nil {
			t.Fatal(err)
		}
		c.eventually(time.Minute, counts(overlay.Alive, 4))
		c.eventually(time.Minute, counts(overlay.Down, 1))
	})
}

func TestLeave(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, nil)
		defer c.stopAll()
		c.startAll(4)
		c.eventually(10*time.Second, counts(overlay.Alive, 4))
		if err := c.peers[2].Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.stop[2]()
		c.eventually(10*time.Second, counts(overlay.Left, 1))
		if got := len(c.peers[0].Table().Vnodes()); got != 24 {
			t.Fatalf("%d virtual nodes, want 24", got)
		}
		time.Sleep(time.Minute)
		c.eventually(time.Second, counts(overlay.Left, 1))
		c.start(2)
		c.eventually(20*time.Second, counts(overlay.Alive, 4))
	})
}

func TestPartitionHeals(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, nil)
		defer c.stopAll()
		c.startAll(6)
		c.eventually(10*time.Second, counts(overlay.Alive, 6))
		side := map[blocks.PeerID]bool{peerID(0): true, peerID(1): true}
		c.wire.Cut(func(a, b blocks.PeerID) bool { return side[a] != side[b] })
		c.eventually(2*time.Minute, func(i int, p *overlay.Peer) string {
			if i < 2 {
				return counts(overlay.Down, 4)(i, p)
			}
			return counts(overlay.Down, 2)(i, p)
		})
		time.Sleep(5 * time.Minute)
		c.wire.Cut(nil)
		c.eventually(time.Minute, counts(overlay.Alive, 6))
	})
}

func TestCallSelfUnknownAndErrors(t *testing.T) {
	bubble(t, func(t *testing.T) {
		echo := func(_ context.Context, from blocks.PeerID, req overlay.Call) (overlay.Call, error) {
			if len(req.Body) == 0 {
				return overlay.Call{}, fmt.Errorf("%w: nothing there", blocks.ErrNotFound)
			}
			return overlay.Call{Body: slices.Clone(req.Body), Payload: slices.Clone(req.Payload)}, nil
		}
		c := newCluster(t, nil)
		defer c.stopAll()
		c.startAll(2)
		c.eventually(10*time.Second, counts(overlay.Alive, 2))
		for _, p := range c.peers {
			p.Handle(0x0777, echo) // no such call has come in yet
		}
		for _, to := range []int{0, 1} {
			resp, err := c.peers[0].Call(t.Context(), peerID(to), overlay.Data, overlay.Call{Kind: 0x0777, Body: []byte("b"), Payload: []byte("p")})
			if err != nil || string(resp.Body) != "b" || string(resp.Payload) != "p" || resp.Kind != 0x0777 {
				t.Errorf("to %d: %+v, %v", to, resp, err)
			}
			if _, err = c.peers[0].Call(t.Context(), peerID(to), overlay.Data, overlay.Call{Kind: 0x0777}); !errors.Is(err, blocks.ErrNotFound) {
				t.Errorf("to %d: %v, want not found", to, err)
			}
			if _, err = c.peers[0].Call(t.Context(), peerID(to), overlay.Data, overlay.Call{Kind: 0x0778}); !errors.Is(err, blocks.ErrInvalid) {
				t.Errorf("to %d: %v, want invalid", to, err)
			}
		}
		for class, end := range map[error]func(context.Context) (context.Context, context.CancelFunc){
			blocks.ErrCanceled: context.WithCancel,
			blocks.ErrDeadline: func(ctx context.Context) (context.Context, context.CancelFunc) {
				return context.WithTimeout(ctx, time.Nanosecond)
			},
		} {
			ctx, cancel := end(t.Context())
			if class == blocks.ErrCanceled {
				cancel()
			}
			time.Sleep(time.Millisecond)
			for _, to := range []int{0, 1} {
				if _, err := c.peers[0].Call(ctx, peerID(to), overlay.Data, overlay.Call{Kind: 0x0777, Body: []byte("b")}); !errors.Is(err, class) {
					t.Errorf("to %d: %v, want %v", to, err, class)
				}
			}
			if _, _, err := c.peers[0].Lookup(ctx, blocks.ID{1}); err != nil && !errors.Is(err, class) {
				t.Errorf("lookup: %v, want %v", err, class)
			}
			cancel()
		}
		if _, err := c.peers[0].Call(t.Context(), peerID(9), overlay.Data, overlay.Call{Kind: 1}); !errors.Is(err, blocks.ErrUnavailable) {
			t.Errorf("%v, want unavailable", err)
		}
	})
}

func TestUnreachableIsSuspectAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, nil)
		defer c.stopAll()
		c.startAll(3)
		c.eventually(10*time.Second, counts(overlay.Alive, 3))
		p := c.peers[0]
		changed := p.Changed()
		p.Unreachable(peerID(1))
		if live := p.Table().Peers[peerID(1)].Live; live != overlay.Suspect {
			t.Fatalf("%v, want suspect", live)
		}
		<-changed
		c.eventually(5*time.Second, counts(overlay.Alive, 3)) // a ping clears it
		p.Unreachable(peerID(0))
		if live := p.Table().Peers[peerID(0)].Live; live != overlay.Alive {
			t.Fatalf("a peer suspects itself: %v", live)
		}
	})
}
