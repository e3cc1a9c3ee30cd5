package parity

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

type fakeKey struct {
	stripe blocks.StripeID
	index  uint8
}

type fakeShard struct {
	shard  blocks.Shard
	sum    uint32
	synced bool
}

// fakeHolder is a virtual node in memory, alone on its peer unless peers share
// a fakePeer.
type fakeHolder struct {
	*fakePeer
	vnode blocks.VnodeID
	drive int
}

// fakePeer stores shards and misbehaves as told.
type fakePeer struct {
	id blocks.PeerID

	mu       sync.Mutex
	shards   map[fakeKey]*fakeShard
	epoch    blocks.Epoch
	down     bool          // does not answer, and everybody knows
	silent   bool          // answers ErrUnavailable, nobody knows
	hung     bool          // never answers
	deaf     bool          // hung, and ignores its context
	full     bool          // no space
	delay    time.Duration // before each answer
	puts     int
	gets     int
	getBytes int
	syncs    int
	haves    int
	release  chan struct{} // ends deaf calls
}

func newPeer(n int) *fakePeer {
	return &fakePeer{id: blocks.PeerID{ID: blocks.HashID([]byte("peer"), []byte{byte(n)})}, shards: map[fakeKey]*fakeShard{},
		epoch: blocks.Epoch(n)<<32 + 1, release: make(chan struct{})}
}

func (p *fakePeer) holder(n int) *fakeHolder {
	return &fakeHolder{fakePeer: p, vnode: blocks.VnodeID{ID: blocks.HashID([]byte("vnode"), p.id.ID[:], []byte{byte(n)})}}
}

// crash loses what was not synced and opens the drive anew.
func (p *fakePeer) crash() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, s := range p.shards {
		if !s.synced {
			delete(p.shards, k)
		}
	}
	p.epoch++
}

func (p *fakePeer) set(f func(p *fakePeer)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(p)
}

func (p *fakePeer) enter(ctx context.Context) error {
	p.mu.Lock()
	delay, hung, deaf, gone := p.delay, p.hung, p.deaf, p.down || p.silent
	p.mu.Unlock()
	if deaf {
		<-p.release
	}
	if hung {
		<-ctx.Done()
		return ctx.Err()
	}
	if gone {
		return fmt.Errorf("%w: fake peer is down", blocks.ErrUnavailable)
	}
	if delay > 0 {
		t := time.NewTimer(delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return ctx.Err()
}

func (h *fakeHolder) Vnode() blocks.VnodeID { return h.vnode }
func (h *fakeHolder) Peer() blocks.PeerID   { return h.id }
func (h *fakeHolder) Drive() int            { return h.drive }
func (h *fakeHolder) Up() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.down
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (h *fakeHolder) Get(ctx context.Context, id blocks.StripeID, index int, off, n uint32) (blocks.Shard, error) {
	if err := h.enter(ctx); err != nil {
		return blocks.Shard{}, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gets++
	s := h.shards[fakeKey{id, uint8(index)}]
	if s == nil {
		return blocks.Shard{}, fmt.Errorf("%w: shard %d", blocks.ErrNotFound, index)
	}
	if s.sum == 0 {
		return blocks.Shard{}, fmt.Errorf("%w: shard %d", blocks.ErrCorrupt, index)
	}
	if n == 0 {
		n = s.shard.Size - off
	}
	if off+n > s.shard.Size {
		return blocks.Shard{}, fmt.Errorf("%w: range", blocks.ErrInvalid)
	}
	h.getBytes += int(n)
	return blocks.Shard{Header: s.shard.Header, Off: off, Data: bytes.Clone(s.shard.Data[off : off+n])}, nil
}

func (h *fakeHolder) Put(ctx context.Context, s blocks.Shard) (blocks.Epoch, error) {
	if err := h.enter(ctx); err != nil {
		return 0, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.full {
		return 0, fmt.Errorf("%w: fake disk", blocks.ErrNoSpace)
	}
	if s.Off != 0 || int(s.Size) != len(s.Data) {
		return 0, fmt.Errorf("%w: shard of %d bytes with %d", blocks.ErrInvalid, s.Size, len(s.Data))
	}
	h.puts++
	s.Data = bytes.Clone(s.Data)
	h.shards[fakeKey{s.Stripe, s.Index}] = &fakeShard{shard: s, sum: crc32.Checksum(s.Data, castagnoli) | 1}
	return h.epoch, nil
}

func (h *fakeHolder) Have(ctx context.Context, id blocks.StripeID) ([]blocks.Header, error) {
	if err := h.enter(ctx); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.haves++
	var hs []blocks.Header
	for k, s := range h.shards {
		if k.stripe == id {
			hs = append(hs, s.shard.Header)
		}
	}
	return hs, nil
}

func (h *fakeHolder) Delete(ctx context.Context, id blocks.StripeID) error {
	if err := h.enter(ctx); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for k := range h.shards {
		if k.stripe == id {
			delete(h.shards, k)
		}
	}
	return nil
}

func (h *fakeHolder) Sync(ctx context.Context, epoch blocks.Epoch) error {
	if err := h.enter(ctx); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.syncs++
	if epoch != h.epoch {
		return fmt.Errorf("%w: fake drive reopened", blocks.ErrLost)
	}
	for _, s := range h.shards {
		s.synced = true
	}
	return nil
}

// drop, rot and lie damage a shard on this peer.
func (p *fakePeer) drop(id blocks.StripeID, index int) {
	p.set(func(p *fakePeer) { delete(p.shards, fakeKey{id, uint8(index)}) })
}

func (p *fakePeer) rot(id blocks.StripeID, index int) {
	p.set(func(p *fakePeer) { p.shards[fakeKey{id, uint8(index)}].sum = 0 })
}

func (p *fakePeer) lie(id blocks.StripeID, index int) {
	p.set(func(p *fakePeer) {
		d := p.shards[fakeKey{id, uint8(index)}].shard.Data
		for i := range d {
			d[i] ^= 0x5a
		}
	})
}

// fakeRing places stripes on peers: homes start at a peer that the ID chooses.
type fakeRing struct {
	peers  []*fakePeer
	vnodes int // of each peer
	mu     sync.Mutex
	shift  int // the ring has changed by so much
}

func newRing(peers, vnodes int) *fakeRing {
	r := &fakeRing{vnodes: vnodes}
	for i := range peers {
		r.peers = append(r.peers, newPeer(i))
	}
	return r
}

func (r *fakeRing) Homes(_ context.Context, id blocks.StripeID, n int) ([]blocks.Holder, error) {
	r.mu.Lock()
	shift := r.shift
	r.mu.Unlock()
	start := int(binary.BigEndian.Uint32(id.ID[:4])%uint32(len(r.peers))) + shift
	var all []blocks.Holder
	for v := range r.vnodes {
		for i := range r.peers {
			all = append(all, r.peers[(start+i)%len(r.peers)].holder(v))
		}
	}
	n = min(n, len(all))
	up := func(h blocks.Holder) bool { return h.Up() }
	standins := slices.DeleteFunc(slices.Clone(all[n:]), func(h blocks.Holder) bool { return !up(h) })
	return append(all[:n:n], standins...), nil
}

func (r *fakeRing) Search(context.Context, blocks.StripeID) ([]blocks.Holder, error) {
	var all []blocks.Holder
	for _, p := range r.peers {
		all = append(all, p.holder(0))
	}
	return all, nil
}

// at returns the peer that has a shard; nil if none has.
func (r *fakeRing) at(id blocks.StripeID, index int) *fakePeer {
	for _, p := range r.peers {
		p.mu.Lock()
		s := p.shards[fakeKey{id, uint8(index)}]
		p.mu.Unlock()
		if s != nil {
			return p
		}
	}
	return nil
}

// seed is printed when a test fails; MUTUALFS_SEED replays it.
func seed(t testing.TB) *rand.Rand {
	n := rand.Uint64()
	if v, err := strconv.ParseUint(os.Getenv("MUTUALFS_SEED"), 10, 64); err == nil {
		n = v
	}
	t.Logf("MUTUALFS_SEED=%d", n)
	return rand.New(rand.NewPCG(n, 1))
}

// lockedRand is a reader of seeded bytes.
type lockedRand struct {
	mu sync.Mutex
	r  *rand.ChaCha8
}

func (l *lockedRand) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.r.Read(p)
}

var testKey = bytes.Repeat([]byte{7}, KeySize)

func newStore(t testing.TB, ring Placer, change func(*Config)) *Store {
	t.Helper()
	cfg := Default()
	cfg.VolumeKey, cfg.Placer = testKey, ring
	cfg.Rand = &lockedRand{r: rand.NewChaCha8([32]byte{1})}
	cfg.Release = func(data []byte) { clear(data) } // who still uses it will notice
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func mustWrite(t testing.TB, s *Store, content []byte) blocks.Receipt {
	t.Helper()
	rc, err := s.Write(t.Context(), blocks.Owner{Ino: 9}, content)
	if err != nil {
		t.Fatal(err)
	}
	return rc
}

func checkRead(t testing.TB, s *Store, ref blocks.StripeRef, content []byte, off, n int) {
	t.Helper()
	p := make([]byte, n)
	if err := s.Read(t.Context(), ref, uint32(off), p); err != nil {
		t.Fatalf("read [%d, %d) of %d+%d, %d bytes: %v", off, off+n, ref.K, ref.M, ref.Len, err)
	}
	if !bytes.Equal(p, content[off:off+n]) {
		t.Fatalf("read [%d, %d) of %d+%d, %d bytes: wrong content", off, off+n, ref.K, ref.M, ref.Len)
	}
}
