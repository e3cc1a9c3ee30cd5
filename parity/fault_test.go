package parity

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// reported runs the store until ctx ends and collects damage reports.
type reported struct {
	stripe           blocks.StripeID
	missing, corrupt []int
}

func withDamage(t *testing.T, ring *fakeRing) (*Store, <-chan reported) {
	ch := make(chan reported, 64)
	s := newStore(t, ring, func(c *Config) {
		c.OnDamage = func(id blocks.StripeID, missing, corrupt []int) { ch <- reported{id, missing, corrupt} }
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s, ch
}

func wantDamage(t *testing.T, ch <-chan reported, id blocks.StripeID, missing, corrupt []int) {
	t.Helper()
	select {
	case d := <-ch:
		if d.stripe != id || !slices.Equal(d.missing, missing) || !slices.Equal(d.corrupt, corrupt) {
			t.Fatalf("reported missing %v corrupt %v, want %v %v", d.missing, d.corrupt, missing, corrupt)
		}
	case <-time.After(5 * time.Second):
		t.Fatalf("no damage reported, want missing %v corrupt %v", missing, corrupt)
	}
}

func TestDamageIsReadAroundAndReported(t *testing.T) {
	content := randomBytes(seed(t), 200_000)
	for name, c := range map[string]struct {
		damage           func(r *fakeRing, id blocks.StripeID)
		missing, corrupt []int
	}{
		"rotten data":     {func(r *fakeRing, id blocks.StripeID) { r.at(id, 1).rot(id, 1) }, nil, []int{1}},
		"dropped data":    {func(r *fakeRing, id blocks.StripeID) { r.at(id, 2).drop(id, 2) }, []int{2}, nil},
		"lying data":      {func(r *fakeRing, id blocks.StripeID) { r.at(id, 0).lie(id, 0) }, nil, []int{0}},
		"one of each":     {func(r *fakeRing, id blocks.StripeID) { r.at(id, 0).rot(id, 0); r.at(id, 3).drop(id, 3) }, []int{3}, []int{0}},
		"two lie":         {func(r *fakeRing, id blocks.StripeID) { r.at(id, 1).lie(id, 1); r.at(id, 2).lie(id, 2) }, nil, []int{1, 2}},
		"parity lies too": {func(r *fakeRing, id blocks.StripeID) { r.at(id, 0).drop(id, 0); r.at(id, 4).lie(id, 4) }, []int{0}, []int{4}},
	} {
		t.Run(name, func(t *testing.T) {
			ring := newRing(6, 1)
			s, ch := withDamage(t, ring)
			rc := mustWrite(t, s, content)
			c.damage(ring, rc.Ref.ID)
			checkRead(t, s, rc.Ref, content, 0, len(content))
			wantDamage(t, ch, rc.Ref.ID, c.missing, c.corrupt)
		})
	}
}

// A unit that is read from a lying shard's neighbour rows: the liar is found
// among the shards that reconstruction needs.
func TestLiarAmongTheReconstructing(t *testing.T) {
	content := randomBytes(seed(t), 1<<20)
	ring := newRing(6, 1)
	s, ch := withDamage(t, ring)
	rc := mustWrite(t, s, content)
	id := rc.Ref.ID
	ring.at(id, 0).drop(id, 0)
	ring.at(id, 2).lie(id, 2)
	checkRead(t, s, rc.Ref, content, 5000, 4096)
	wantDamage(t, ch, id, []int{0}, []int{2})
}

func TestSmallReadFetchesOneUnit(t *testing.T) {
	ring := newRing(6, 1)
	s := newStore(t, ring, nil)
	content := randomBytes(seed(t), 1<<20)
	rc := mustWrite(t, s, content)
	checkRead(t, s, rc.Ref, content, 300_000, 4096)
	gets, n := 0, 0
	for _, p := range ring.peers {
		gets, n = gets+p.gets, n+p.getBytes
	}
	if gets != 1 || n != MaxUnit+TagSize {
		t.Errorf("%d Gets of %d bytes for 4 KiB", gets, n)
	}
	checkRead(t, s, rc.Ref, content, 0, len(content))
	gets = -gets
	for _, p := range ring.peers {
		gets += p.gets
	}
	if gets != 4 {
		t.Errorf("%d Gets for a whole stripe", gets)
	}
}

// A ring that has changed: nothing lies where it is presumed.
func TestShiftedRing(t *testing.T) {
	content := randomBytes(seed(t), 300_000)
	ring := newRing(9, 2)
	s, damage := withDamage(t, ring)
	rc := mustWrite(t, s, content)
	for shift := range 9 {
		ring.mu.Lock()
		ring.shift = shift
		ring.mu.Unlock()
		checkRead(t, s, rc.Ref, content, 0, len(content))
		checkRead(t, s, rc.Ref, content, 299_000, 1000)
	}
	// Nothing was damaged: the first report is that of real damage.
	ring.at(rc.Ref.ID, 0).rot(rc.Ref.ID, 0)
	ring.mu.Lock()
	ring.shift = 0
	ring.mu.Unlock()
	for len(s.damage.queue) > 0 { // spurious reports are dropped by Run
		checkRead(t, s, rc.Ref, content, 0, 1)
	}
	checkRead(t, s, rc.Ref, content, 0, 1)
	wantDamage(t, damage, rc.Ref.ID, nil, []int{0})
}

// Shards beyond homes and stand-ins are found by searching all peers.
func TestSearch(t *testing.T) {
	content := randomBytes(seed(t), 300_000)
	ring := newRing(20, 1)
	s := newStore(t, nearRing(ring, 7), nil)
	rc := mustWrite(t, s, content)
	ring.mu.Lock()
	ring.shift = 10
	ring.mu.Unlock()
	checkRead(t, s, rc.Ref, content, 0, len(content))
}

func TestUnavailableIsNotLost(t *testing.T) {
	content := randomBytes(seed(t), 100_000)
	p := make([]byte, len(content))
	for name, c := range map[string]struct {
		hit  func(p *fakePeer)
		want error
	}{
		"down":   {func(p *fakePeer) { p.down = true }, blocks.ErrUnavailable},
		"silent": {func(p *fakePeer) { p.silent = true }, blocks.ErrUnavailable},
		"wiped":  {func(p *fakePeer) { clear(p.shards) }, blocks.ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			ring := newRing(6, 1)
			s := newStore(t, ring, nil)
			rc := mustWrite(t, s, content)
			for i := range 3 {
				ring.at(rc.Ref.ID, i).set(c.hit)
			}
			err := s.Read(t.Context(), rc.Ref, 0, p)
			if !errors.Is(err, c.want) || errors.Is(err, blocks.ErrNotFound) {
				t.Fatalf("read with three of six %s: %v", name, err)
			}
			if _, err := s.Repair(t.Context(), rc.Ref.ID, nil); !errors.Is(err, c.want) {
				t.Fatalf("repair with three of six %s: %v", name, err)
			}
			for _, p := range ring.peers {
				p.set(func(p *fakePeer) { p.down, p.silent = false, false })
			}
			if c.want == blocks.ErrUnavailable {
				checkRead(t, s, rc.Ref, content, 0, len(content))
			}
		})
	}
}

func TestHedging(t *testing.T) {
	for name, hit := range map[string]func(p *fakePeer){
		"slow":                 func(p *fakePeer) { p.delay = 2 * time.Second },
		"hung":                 func(p *fakePeer) { p.hung = true },
		"deaf to its context":  func(p *fakePeer) { p.deaf = true },
		"slower than readable": func(p *fakePeer) { p.delay = time.Hour },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				content := randomBytes(seed(t), 1<<20)
				ring := newRing(6, 1)
				s := newStore(t, ring, nil)
				rc := mustWrite(t, s, content)
				slow := []*fakePeer{ring.at(rc.Ref.ID, 0), ring.at(rc.Ref.ID, 4)}
				for _, p := range slow {
					p.set(hit)
				}
				start := time.Now()
				checkRead(t, s, rc.Ref, content, 0, len(content))
				if d := time.Since(start); d < 50*time.Millisecond || d > 150*time.Millisecond {
					t.Errorf("read took %v with two slow peers", d)
				}
				for _, p := range slow {
					close(p.release)
				}
				synctest.Wait()
			})
		})
	}
}

// Peers that answer evenly slowly are not hedged once that is known.
func TestHedgeAdapts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		content := randomBytes(seed(t), 100_000)
		ring := newRing(6, 1)
		s := newStore(t, ring, nil)
		rc := mustWrite(t, s, content)
		for _, p := range ring.peers {
			p.set(func(p *fakePeer) { p.delay = 200 * time.Millisecond })
		}
		for range 20 {
			checkRead(t, s, rc.Ref, content, 0, len(content))
		}
		before := 0
		for _, p := range ring.peers {
			before += p.gets
		}
		for range 20 {
			checkRead(t, s, rc.Ref, content, 0, len(content))
		}
		after := 0
		for _, p := range ring.peers {
			after += p.gets
		}
		if n := after - before; n > 20*4+10 {
			t.Errorf("%d Gets for 20 reads of four shards", n)
		}
	})
}

// A hung peer costs a few hedges, not one for every read.
func TestHungPeerIsAvoidedByReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		content := randomBytes(seed(t), 100_000)
		ring := newRing(6, 1)
		s := newStore(t, ring, nil)
		rc := mustWrite(t, s, content)
		hung := ring.at(rc.Ref.ID, 1)
		hung.set(func(p *fakePeer) { p.hung = true })
		start := time.Now()
		for range 50 {
			checkRead(t, s, rc.Ref, content, 0, len(content))
		}
		if d := time.Since(start); d > time.Duration(maxSlow)*50*time.Millisecond {
			t.Errorf("50 reads took %v", d)
		}
		hung.set(func(p *fakePeer) { p.hung = false; p.gets = 0 })
		time.Sleep(s.cfg.ShunFor)
		checkRead(t, s, rc.Ref, content, 0, len(content))
		if hung.gets != 1 {
			t.Errorf("after its return the peer is asked %d times", hung.gets)
		}
		// Slow to read from is still a place to write to.
		hung.set(func(p *fakePeer) { p.delay = time.Second })
		for range maxSlow {
			checkRead(t, s, rc.Ref, content, 0, len(content))
		}
		checkPlaced(t, mustWrite(t, s, content), 6)
	})
}

// Peers that come back cannot be dialled for some moments: a read waits a little for them, not for ever.
func TestReadWaitsForPeersThatReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ring := newRing(6, 1)
		s := newStore(t, ring, nil)
		rc := mustWrite(t, s, []byte("content"))
		silent := func(is bool) {
			for i := range 6 {
				if p := ring.at(rc.Ref.ID, i); p != nil {
					p.set(func(p *fakePeer) { p.silent = is })
				}
			}
		}
		silent(true)
		begun := time.Now()
		if err := s.Read(t.Context(), rc.Ref, 0, make([]byte, 7)); !errors.Is(err, blocks.ErrUnavailable) {
			t.Errorf("with nobody there: %v", err)
		}
		if took := time.Since(begun); took < s.cfg.RetryFor || took > 2*s.cfg.RetryFor {
			t.Errorf("gave up after %v", took)
		}
		time.AfterFunc(500*time.Millisecond, func() { silent(false) })
		checkRead(t, s, rc.Ref, []byte("content"), 0, 7)
	})
}

// A peer that hangs costs a Sync its patience once, not every Sync in turn.
func TestHungPeerDelaysOneSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ring := newRing(8, 1)
		s := newStore(t, ring, nil)
		first, second := mustWrite(t, s, randomBytes(seed(t), 100_000)), mustWrite(t, s, randomBytes(seed(t), 100_000))
		for _, pl := range first.Placed { // one that both lie on
			if p := ring.at(first.Ref.ID, int(pl.Index)); slices.ContainsFunc(second.Placed, func(o blocks.Placed) bool { return o.Holder.Peer() == pl.Holder.Peer() }) {
				p.set(func(p *fakePeer) { p.hung = true })
				break
			}
		}
		begun := time.Now()
		for _, rc := range []blocks.Receipt{first, second} {
			if lost, err := s.Sync(t.Context(), []blocks.Receipt{rc}); err != nil || len(lost) > 0 {
				t.Fatalf("sync: lost %v, %v", lost, err)
			}
		}
		if took := time.Since(begun); took > s.cfg.SyncTimeout+5*s.cfg.HaveTimeout {
			t.Errorf("two syncs took %v", took)
		}
	})
}

func TestReadsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ring := newRing(6, 1)
		s := newStore(t, ring, nil)
		rc := mustWrite(t, s, randomBytes(seed(t), 100_000))
		for _, p := range ring.peers {
			p.set(func(p *fakePeer) { p.hung = true })
		}
		start := time.Now()
		err := s.Read(t.Context(), rc.Ref, 0, make([]byte, 100))
		if d := time.Since(start); !errors.Is(err, blocks.ErrUnavailable) || d > 10*time.Second {
			t.Errorf("read of hung peers: %v after %v", err, d)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Millisecond, cancel)
		start = time.Now()
		err = s.Read(ctx, rc.Ref, 0, make([]byte, 100))
		if d := time.Since(start); !errors.Is(err, blocks.ErrCanceled) || d > time.Second {
			t.Errorf("canceled read: %v after %v", err, d)
		}
		if _, err := s.Write(t.Context(), blocks.Owner{}, []byte("x")); !errors.Is(err, blocks.ErrUnavailable) {
			t.Errorf("write to hung peers: %v", err)
		}
		synctest.Wait()
	})
}

func TestBadCalls(t *testing.T) {
	s := newStore(t, newRing(6, 1), nil)
	rc := mustWrite(t, s, bytes.Repeat([]byte("a"), 100))
	for _, c := range []struct {
		off uint32
		n   int
	}{{100, 1}, {0, 101}, {1 << 31, 1}, {^uint32(0), 2}} {
		if err := s.Read(t.Context(), rc.Ref, c.off, make([]byte, c.n)); !errors.Is(err, blocks.ErrInvalid) {
			t.Errorf("read %d at %d: %v", c.n, c.off, err)
		}
	}
	if err := s.Read(t.Context(), rc.Ref, 100, nil); err != nil {
		t.Errorf("read nothing at the end: %v", err)
	}
	for _, n := range []int{0, blocks.MaxStripe + 1} {
		if _, err := s.Write(t.Context(), blocks.Owner{}, make([]byte, n)); !errors.Is(err, blocks.ErrInvalid) {
			t.Errorf("write %d bytes: %v", n, err)
		}
	}
	blind := newStore(t, newRing(6, 1), func(c *Config) { c.VolumeKey = nil })
	if _, err := blind.Write(t.Context(), blocks.Owner{}, []byte("x")); !errors.Is(err, blocks.ErrRefused) {
		t.Errorf("write without a key: %v", err)
	}
	if err := blind.Read(t.Context(), rc.Ref, 0, make([]byte, 1)); !errors.Is(err, blocks.ErrRefused) {
		t.Errorf("read without a key: %v", err)
	}
	for _, c := range []Config{{K: -1, Placer: newRing(1, 1)}, {K: 60, M: 9, Placer: newRing(1, 1)}, {}, {Placer: newRing(1, 1), VolumeKey: []byte("short")}} {
		if _, err := New(c); !errors.Is(err, blocks.ErrInvalid) {
			t.Errorf("New(%+v): %v", c, err)
		}
	}
}

// A store with another key, or another reference to the stripe, opens nothing.
func TestWrongKey(t *testing.T) {
	ring := newRing(6, 1)
	s := newStore(t, ring, nil)
	content := []byte("secret content")
	rc := mustWrite(t, s, content)
	other := newStore(t, ring, func(c *Config) { c.VolumeKey = bytes.Repeat([]byte{8}, KeySize) })
	if err := other.Read(t.Context(), rc.Ref, 0, make([]byte, 5)); !errors.Is(err, blocks.ErrCorrupt) {
		t.Errorf("read with another key: %v", err)
	}
	for _, p := range ring.peers {
		for _, sh := range p.shards {
			if bytes.Contains(sh.shard.Data, content[:6]) {
				t.Error("content in clear on a holder")
			}
		}
	}
}

// near limits what Homes lists, so that only Search finds the rest.
type near struct {
	*fakeRing
	n int
}

func nearRing(r *fakeRing, n int) *near { return &near{r, n} }

func (r *near) Homes(ctx context.Context, id blocks.StripeID, n int) ([]blocks.Holder, error) {
	all, err := r.fakeRing.Homes(ctx, id, n)
	return all[:min(len(all), r.n)], err
}
