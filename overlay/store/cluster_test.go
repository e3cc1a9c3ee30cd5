package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/reedsolomon"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
	"github.com/mutualfs/mutualfs/overlay/overlaytest"
)

// seedOf returns the seed of a test: MUTUALFS_SEED, or one that is printed.
func seedOf(t *testing.T) uint64 {
	seed := uint64(time.Now().UnixNano()) ^ rand.Uint64()
	if s := os.Getenv("MUTUALFS_SEED"); s != "" {
		v, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("MUTUALFS_SEED: %v", err)
		}
		seed = v
	}
	t.Logf("MUTUALFS_SEED=%d", seed)
	return seed
}

type reader struct{ r *rand.Rand }

func (r reader) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(r.r.Uint32())
	}
	return len(p), nil
}

// testPeer is one peer of a cluster.
type testPeer struct {
	info  overlay.PeerInfo
	ring  *overlaytest.Ring
	local *memLocal
	kv    *memKV
	disks *blocks.Store // instead of local and kv, if not nil
	svc   *Service
	stop  func()
}

// faultFunc is what overlaytest.Net asks.
type faultFunc = func(ctx context.Context, from, to blocks.PeerID, kind overlay.Kind, reply bool) error

// cluster is a ring of peers in memory, and a writer and reader of stripes.
type cluster struct {
	t       *testing.T
	rnd     *rand.Rand
	net     *overlaytest.Net
	ringID  blocks.ID
	k, m    int
	rs      reedsolomon.Encoder
	peers   []*testPeer
	client  *Service
	content map[blocks.StripeID][]byte
	tune    func(*Config) // of peers started from now on
	fault   atomic.Pointer[faultFunc]
	mu      sync.Mutex
	rebuilt int
}

func newCluster(t *testing.T, seed uint64, k, m, peers int) *cluster {
	rs, err := reedsolomon.New(k, m, reedsolomon.WithMaxGoroutines(1))
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, rnd: rand.New(rand.NewPCG(seed, 1)), k: k, m: m, rs: rs, content: map[blocks.StripeID][]byte{}}
	c.ringID = c.id()
	c.net = overlaytest.NewNet(c.ringID)
	c.net.Fault = func(ctx context.Context, from, to blocks.PeerID, kind overlay.Kind, reply bool) error {
		if f := c.fault.Load(); f != nil {
			return (*f)(ctx, from, to, kind, reply)
		}
		return nil
	}
	ring := c.net.Set(overlay.PeerInfo{ID: blocks.PeerID{ID: c.id()}})
	c.client, err = New(Config{Ring: ring, K: k, M: m, Rand: reader{c.rnd}})
	if err != nil {
		t.Fatal(err)
	}
	for range peers {
		c.add()
	}
	t.Cleanup(c.stopAll)
	return c
}

func (c *cluster) id() (id blocks.ID) {
	_, _ = reader{c.rnd}.Read(id[:])
	return id
}

// add makes a peer join with an empty disk.
func (c *cluster) add() *testPeer {
	p := &testPeer{local: newMemLocal(), kv: newMemKV()}
	p.info = overlay.PeerInfo{ID: blocks.PeerID{ID: c.id()}, Capacity: 1, Vnodes: 8, Drives: 1}
	p.ring = c.net.Set(p.info)
	c.peers = append(c.peers, p)
	c.start(p)
	return p
}

func (c *cluster) start(p *testPeer) {
	cfg := Config{Ring: p.ring, Local: p.local, KV: p.kv, K: c.k, M: c.m, Rebuild: c.rebuild(p), Rand: reader{c.rnd}}
	if p.disks != nil {
		cfg.Local, cfg.KV = p.disks, p.disks.Registers()
	}
	if c.tune != nil {
		c.tune(&cfg)
	}
	svc, err := New(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	p.svc = svc
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = svc.Run(ctx) }()
	p.stop = func() { cancel(); <-done }
	p.ring.SetDown(false)
	c.live(p, overlay.Alive)
}

// live sets what all tables say of the peer.
func (c *cluster) live(p *testPeer, l overlay.Liveness) {
	p.info.Live = l
	c.net.Set(p.info)
}

// count returns how many blocks the peer has.
func (p *testPeer) count() (n int) {
	if p.disks == nil {
		return p.local.len()
	}
	_ = p.disks.Scan(blocks.ID{}, blocks.ID{}, func(blocks.Location) bool { n++; return true })
	return n
}

// kill stops a peer's process; the tables notice.
func (c *cluster) kill(p *testPeer) {
	p.ring.SetDown(true)
	p.stop()
	p.stop = func() {}
	c.live(p, overlay.Down)
}

func (c *cluster) stopAll() {
	for _, p := range c.peers {
		p.ring.SetDown(true)
		p.stop()
	}
}

func (c *cluster) encode(data []byte) [][]byte {
	shards := make([][]byte, c.k+c.m)
	size := (len(data) + c.k - 1) / c.k
	padded := make([]byte, size*(c.k+c.m))
	copy(padded, data)
	for i := range shards {
		shards[i] = padded[i*size : (i+1)*size : (i+1)*size]
	}
	if err := c.rs.Encode(shards); err != nil {
		c.t.Fatal(err)
	}
	return shards
}

func (c *cluster) shard(stripe blocks.StripeID, length, index int, data []byte) blocks.Shard {
	return blocks.Shard{Header: blocks.Header{Stripe: stripe, StripeLen: uint32(length), Index: uint8(index), K: uint8(c.k), M: uint8(c.m),
		Size: uint32(len(data)), Unit: 4096}, Data: data}
}

// write puts a new stripe as parity does: past homes that are down.
func (c *cluster) write(ctx context.Context) (blocks.StripeRef, error) {
	id := blocks.StripeID{ID: c.id()}
	data := make([]byte, 1+c.rnd.IntN(400))
	_, _ = reader{c.rnd}.Read(data)
	n := c.k + c.m
	holders, err := c.client.Homes(ctx, id, n)
	if err != nil {
		return blocks.StripeRef{}, err
	}
	spare := holders[n:]
	for i, piece := range c.encode(data) {
		shard := c.shard(id, len(data), i, piece)
		shard.Home = holders[i].Vnode()
		for h := holders[i]; ; h, spare = spare[0], spare[1:] {
			if h.Up() {
				epoch, err := h.Put(ctx, shard)
				if err == nil {
					err = h.Sync(ctx, epoch)
				}
				if err == nil {
					break
				}
			}
			if len(spare) == 0 {
				return blocks.StripeRef{}, fmt.Errorf("%w: no stand-in left for shard %d", blocks.ErrUnavailable, i)
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.content[id] = data
	return blocks.StripeRef{ID: id, Len: uint32(len(data)), K: uint8(c.k), M: uint8(c.m)}, nil
}

func (c *cluster) writeMany(n int) {
	c.t.Helper()
	for range n {
		if _, err := c.write(c.t.Context()); err != nil {
			c.t.Fatalf("write: %v", err)
		}
	}
}

// gather reads all different shards of a stripe that can be had.
func (c *cluster) gather(ctx context.Context, svc *Service, stripe blocks.StripeID) (shards [][]byte, length, good int, err error) {
	holders, err := svc.Search(ctx, stripe)
	if err != nil {
		return nil, 0, 0, err
	}
	shards = make([][]byte, c.k+c.m)
	for _, h := range holders {
		have, err := h.Have(ctx, stripe)
		if err != nil {
			continue
		}
		for _, head := range have {
			if shards[head.Index] != nil {
				continue
			}
			if s, err := h.Get(ctx, stripe, int(head.Index), 0, 0); err == nil {
				shards[head.Index], length = s.Data, int(s.StripeLen)
				good++
			}
		}
	}
	return shards, length, good, nil
}

// read returns the content of a stripe.
func (c *cluster) read(ctx context.Context, svc *Service, stripe blocks.StripeID) ([]byte, error) {
	shards, length, good, err := c.gather(ctx, svc, stripe)
	if err != nil || good < c.k {
		return nil, fmt.Errorf("%w: %d shards: %v", blocks.ErrUnavailable, good, err)
	}
	if err := c.rs.Reconstruct(shards); err != nil {
		return nil, err
	}
	return bytes.Join(shards[:c.k], nil)[:length], nil
}

func (c *cluster) readAll() {
	c.t.Helper()
	for id, want := range c.content {
		got, err := c.read(c.t.Context(), c.client, id)
		if err != nil || !bytes.Equal(got, want) {
			for _, p := range c.peers {
				places, _ := p.local.Have(id)
				for _, l := range places {
					c.t.Logf("shard %d on %s of %s (%d), home %s", l.Header.Index, l.Vnode.Short(), p.info.ID.Short(), p.info.Live, l.Header.Home.Short())
				}
			}
			c.t.Fatalf("stripe %s: %d bytes of %d, %v", id.Short(), len(got), len(want), err)
		}
	}
}

// rebuild is what parity does in the product.
func (c *cluster) rebuild(p *testPeer) Rebuild {
	return func(ctx context.Context, stripe blocks.StripeID, index int, to blocks.Holder) error {
		shards, length, good, err := c.gather(ctx, p.svc, stripe)
		if err != nil || good < c.k {
			return fmt.Errorf("%w: %d shards: %v", blocks.ErrUnavailable, good, err)
		}
		if err := c.rs.Reconstruct(shards); err != nil {
			return err
		}
		s := c.shard(stripe, length, index, shards[index])
		s.Home = to.Vnode()
		epoch, err := to.Put(ctx, s)
		if err != nil {
			return err
		}
		c.mu.Lock()
		c.rebuilt++
		c.mu.Unlock()
		return to.Sync(ctx, epoch)
	}
}

// protected waits until everything is found protected and in place since the call.
func (c *cluster) protected(within time.Duration) {
	c.t.Helper()
	w := c.client.Watch()
	until := time.Now().Add(within)
	for {
		n, err := w.Counts(c.t.Context())
		if err == nil && n.Fresh && n.Whole() {
			if int(n.Protected) != len(c.content) {
				c.t.Fatalf("%d stripes are protected of %d", n.Protected, len(c.content))
			}
			break
		}
		if time.Now().After(until) {
			c.t.Fatalf("not whole within %v: %+v, %v", within, n, err)
		}
		time.Sleep(100 * time.Millisecond) // virtual
	}
}

// stored counts the blocks of all peers that are alive.
func (c *cluster) stored() (total int) {
	for _, p := range c.peers {
		if p.info.Live == overlay.Alive {
			total += p.count()
		}
	}
	return total
}

// whole waits until all is protected and surplus copies are gone, and checks it by hand.
func (c *cluster) whole(within time.Duration) {
	c.t.Helper()
	c.protected(within)
	for until := time.Now().Add(5 * time.Minute); c.stored() > len(c.content)*(c.k+c.m) && time.Now().Before(until); {
		time.Sleep(time.Second) // virtual
	}
	c.checkPlaces()
}

// checkPlaces checks that every stripe has each shard once, all on its homes.
func (c *cluster) checkPlaces() {
	c.t.Helper()
	t := c.client.cfg.Ring.Table()
	if total, want := c.stored(), len(c.content)*(c.k+c.m); total != want {
		c.t.Errorf("%d blocks are stored, not %d", total, want)
	}
	for id, data := range c.content {
		places, err := c.client.Locate(c.t.Context(), blocks.StripeRef{ID: id, Len: uint32(len(data)), K: uint8(c.k), M: uint8(c.m)})
		if err != nil {
			c.t.Fatal(err)
		}
		var at []blocks.VnodeID
		for i, p := range places {
			if p.Index != i || !p.Home {
				c.t.Fatalf("stripe %s: %+v", id.Short(), places)
			}
			at = append(at, p.Vnode)
		}
		for _, h := range t.HomeList(id.ID, c.k+c.m, nil) {
			if !slices.Contains(at, h.ID) {
				c.t.Fatalf("stripe %s has nothing on its home %s", id.Short(), h.ID.Short())
			}
		}
	}
}

// delete deletes a stripe as parity does; peers that are away do not hear of it.
func (c *cluster) delete(id blocks.StripeID) {
	c.t.Helper()
	holders, err := c.client.Search(c.t.Context(), id)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, h := range holders {
		if err := h.Delete(c.t.Context(), id); err != nil && !errors.Is(err, blocks.ErrUnavailable) {
			c.t.Fatal(err)
		}
	}
	delete(c.content, id)
}

// bubble runs f in virtual time.
func bubble(t *testing.T, k, m, peers int, f func(t *testing.T, c *cluster)) {
	seed := seedOf(t)
	synctest.Test(t, func(t *testing.T) { f(t, newCluster(t, seed, k, m, peers)) })
}
