package parity

import (
	"bytes"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// checkPlaced: all shards are placed, once, on as many distinct peers as possible.
func checkPlaced(t *testing.T, rc blocks.Receipt, peers int) {
	t.Helper()
	seen, on := map[uint8]bool{}, map[blocks.PeerID]int{}
	for _, pl := range rc.Placed {
		seen[pl.Index] = true
		on[pl.Holder.Peer()]++
	}
	n := int(rc.Ref.K + rc.Ref.M)
	if len(seen) != n || len(rc.Placed) != n {
		t.Errorf("%d shards placed of %d", len(seen), n)
	}
	if len(on) != min(n, peers) {
		t.Errorf("on %d peers, want %d", len(on), min(n, peers))
	}
	for _, shards := range on {
		if shards > (n+peers-1)/peers {
			t.Errorf("%d shards on one of %d peers", shards, peers)
		}
	}
}

func TestWritePlaces(t *testing.T) {
	content := randomBytes(seed(t), 100_000)
	for _, c := range []struct{ peers, vnodes, down, live int }{
		{6, 1, 0, 6}, {9, 8, 0, 9}, {9, 8, 3, 6}, {8, 4, 4, 4}, {6, 8, 2, 4}, {6, 8, 5, 1},
		{1, 8, 0, 1}, {1, 1, 0, 1}, {2, 8, 0, 2}, {3, 1, 0, 3}, {3, 8, 1, 2}, {5, 2, 0, 5},
	} {
		ring := newRing(c.peers, c.vnodes)
		for i := range c.down {
			ring.peers[i].down = true
		}
		s := newStore(t, ring, nil)
		for range 8 { // different first homes
			rc := mustWrite(t, s, content)
			checkPlaced(t, rc, c.live)
			checkHints(t, ring, rc)
			if lost, err := s.Sync(t.Context(), []blocks.Receipt{rc}); err != nil || len(lost) > 0 {
				t.Errorf("%+v: sync: %v %v", c, lost, err)
			}
			checkRead(t, s, rc.Ref, content, 0, len(content))
		}
	}
}

// checkHints: every stored header says where the shard belongs and what it is.
func checkHints(t *testing.T, ring *fakeRing, rc blocks.Receipt) {
	t.Helper()
	n := int(rc.Ref.K + rc.Ref.M)
	homes, err := ring.Homes(t.Context(), rc.Ref.ID, n)
	if err != nil {
		t.Fatal(err)
	}
	count := min(n, len(ring.peers)*ring.vnodes)
	for i := range n {
		p := ring.at(rc.Ref.ID, i)
		if p == nil {
			t.Fatalf("shard %d is nowhere", i)
		}
		h := p.shards[fakeKey{rc.Ref.ID, uint8(i)}].shard.Header
		if h.Home != homes[i%count].Vnode() || h.Ref() != rc.Ref || h.Owner.Ino != 9 || !valid(h) {
			t.Errorf("header of shard %d: %+v", i, h)
		}
	}
}

func TestSmallStripesCostLittle(t *testing.T) {
	ring := newRing(6, 1)
	s := newStore(t, ring, nil)
	rc := mustWrite(t, s, randomBytes(seed(t), 3<<10))
	if len(rc.Placed) != 3 || rc.Ref.K != 1 || rc.Ref.M != 2 {
		t.Errorf("3 KiB: %+v", rc.Ref)
	}
}

func TestWriteGoesPastFaults(t *testing.T) {
	content := randomBytes(seed(t), 100_000)
	for name, c := range map[string]struct {
		hit  func(p *fakePeer)
		most time.Duration
	}{
		"silent": {func(p *fakePeer) { p.silent = true }, 0},
		"full":   {func(p *fakePeer) { p.full = true }, 0},
		"hung":   {func(p *fakePeer) { p.hung = true }, 3 * time.Second},
		"deaf":   {func(p *fakePeer) { p.deaf = true }, 3 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ring := newRing(9, 4)
				s := newStore(t, ring, nil)
				for i := range 2 {
					ring.peers[i].set(c.hit)
				}
				for range 9 {
					start := time.Now()
					rc := mustWrite(t, s, content)
					checkPlaced(t, rc, 6)
					if d := time.Since(start); d > c.most {
						t.Errorf("write took %v", d)
					}
					checkRead(t, s, rc.Ref, content, 0, len(content))
				}
				for _, p := range ring.peers {
					close(p.release)
				}
				synctest.Wait()
			})
		})
	}
}

// A hung peer costs its time-out once, not for every stripe.
func TestHungPeerIsShunned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ring := newRing(9, 4)
		s := newStore(t, ring, nil)
		ring.peers[0].hung = true
		start := time.Now()
		for range 30 {
			mustWrite(t, s, []byte("some content"))
		}
		if d := time.Since(start); d > 4*time.Second {
			t.Errorf("30 writes took %v", d)
		}
	})
}

func TestFullRing(t *testing.T) {
	ring := newRing(6, 2)
	s := newStore(t, ring, nil)
	for _, p := range ring.peers {
		p.full = true
	}
	if _, err := s.Write(t.Context(), blocks.Owner{}, []byte("x")); !errors.Is(err, blocks.ErrNoSpace) {
		t.Errorf("write to full disks: %v", err)
	}
	ring.peers[0].full = false
	rc := mustWrite(t, s, randomBytes(seed(t), 100_000)) // one peer with room is one domain
	checkPlaced(t, rc, 1)
}

func TestSyncOncePerDrive(t *testing.T) {
	ring := newRing(6, 4)
	s := newStore(t, ring, nil)
	var rcs []blocks.Receipt
	for range 20 {
		rcs = append(rcs, mustWrite(t, s, randomBytes(seed(t), 50_000)))
	}
	if lost, err := s.Sync(t.Context(), rcs); err != nil || len(lost) > 0 {
		t.Fatal(lost, err)
	}
	for i, p := range ring.peers {
		if p.syncs != 1 {
			t.Errorf("peer %d synced %d times", i, p.syncs)
		}
	}
}

func TestSyncPutsRight(t *testing.T) {
	content := randomBytes(seed(t), 100_000)
	for name, c := range map[string]struct {
		hit  func(p *fakePeer)
		hits int
		lost bool
	}{
		"two crash":            {(*fakePeer).crash, 2, false},
		"three crash":          {(*fakePeer).crash, 3, true},
		"two restart":          {func(p *fakePeer) { p.set(func(p *fakePeer) { p.epoch++ }) }, 2, false},
		"two silent":           {func(p *fakePeer) { p.set(func(p *fakePeer) { p.silent = true }) }, 2, false},
		"two down":             {func(p *fakePeer) { p.set(func(p *fakePeer) { p.down = true }) }, 2, false},
		"one crashed and full": {func(p *fakePeer) { p.crash(); p.set(func(p *fakePeer) { p.full = true }) }, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			ring := newRing(8, 2)
			s := newStore(t, ring, nil)
			rcs := []blocks.Receipt{mustWrite(t, s, content), mustWrite(t, s, content)}
			if _, err := s.Sync(t.Context(), rcs[:1]); err != nil {
				t.Fatal(err)
			}
			for _, pl := range rcs[1].Placed[:c.hits] {
				c.hit(pl.Holder.(*fakeHolder).fakePeer)
			}
			lost, err := s.Sync(t.Context(), rcs[1:])
			if err != nil || c.lost != slices.Equal(lost, []int{0}) {
				t.Fatalf("lost %v, %v", lost, err)
			}
			if c.lost {
				return
			}
			for _, p := range ring.peers { // a power cut of all of them
				p.crash()
				p.set(func(p *fakePeer) { p.down, p.silent = false, false })
			}
			checkRead(t, s, rcs[1].Ref, content, 0, len(content))
			for _, pl := range rcs[1].Placed[c.hits:min(len(rcs[1].Placed), c.hits+2)] { // and two more disks lost
				pl.Holder.(*fakeHolder).set(func(p *fakePeer) { clear(p.shards) })
			}
			checkRead(t, s, rcs[1].Ref, content, 0, len(content))
		})
	}
}

// A peer that returns while a write is under way does not make it fail.
func TestPeerReturnsDuringWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ring := newRing(6, 4)
		s := newStore(t, ring, nil)
		ring.peers[3].down = true
		for _, p := range ring.peers {
			p.delay = time.Second
		}
		time.AfterFunc(500*time.Millisecond, func() { ring.peers[3].set(func(p *fakePeer) { p.down = false }) })
		checkPlaced(t, mustWrite(t, s, randomBytes(seed(t), 100_000)), 5)
	})
}

// More writes than memory for their shards: they take turns.
func TestMemoryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ring := newRing(6, 1)
		content := randomBytes(seed(t), 1<<20)
		s := newStore(t, ring, func(c *Config) { c.MaxBytes = 4 << 20 }) // two stripes
		for _, p := range ring.peers {
			p.delay = time.Second
		}
		start := time.Now()
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if _, err := s.Write(t.Context(), blocks.Owner{}, content); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if d := time.Since(start); d != 4*time.Second {
			t.Errorf("8 writes, two at a time, took %v", d)
		}
	})
}

// Many operations at the same time, with peers failing and returning: what a
// read returns is always right.
func TestConcurrentWithFaults(t *testing.T) {
	rnd := seed(t)
	ring := newRing(8, 4)
	s := newStore(t, ring, nil)
	var good atomic.Int32
	var wg sync.WaitGroup
	for w := range 4 {
		content := randomBytes(rnd, 20_000+w*50_000)
		off := rnd.IntN(20_000)
		wg.Go(func() {
			for range 25 {
				rc, err := s.Write(t.Context(), blocks.Owner{}, content)
				if err != nil {
					t.Errorf("write: %v", err)
					return
				}
				lost, err := s.Sync(t.Context(), []blocks.Receipt{rc})
				if err != nil {
					t.Errorf("sync: %v", err)
					return
				}
				if len(lost) > 0 { // the faults moved while it was put right: to be written again
					continue
				}
				p := make([]byte, len(content)-off)
				err = s.Read(t.Context(), rc.Ref, uint32(off), p)
				if err != nil && !errors.Is(err, blocks.ErrUnavailable) { // they move during a read, too
					t.Errorf("read: %v", err)
					return
				}
				if err == nil {
					good.Add(1)
				}
				if err == nil && !bytes.Equal(p, content[off:]) {
					t.Error("wrong content")
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for i := 0; ; i++ {
		a, b := ring.peers[i%8], ring.peers[(i+3)%8]
		hit := rnd.IntN(3)
		for _, p := range []*fakePeer{a, b} {
			p.set(func(p *fakePeer) { p.down, p.silent, p.full = hit == 0, hit == 1, hit == 2 })
		}
		select {
		case <-done:
			if good.Load() < 50 {
				t.Errorf("only %d of 100 rounds went through", good.Load())
			}
			return
		case <-time.After(2 * time.Millisecond):
		}
		for _, p := range []*fakePeer{a, b} {
			p.set(func(p *fakePeer) { p.down, p.silent, p.full = false, false, false })
		}
	}
}
