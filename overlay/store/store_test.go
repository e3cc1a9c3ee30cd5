package store

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
	"github.com/mutualfs/mutualfs/overlay/overlaytest"
)

func TestWritesAreProtectedAtOnce(t *testing.T) {
	bubble(t, 4, 2, 8, func(t *testing.T, c *cluster) {
		c.writeMany(50)
		c.readAll()
		c.whole(time.Minute)
		if c.rebuilt > 0 {
			t.Errorf("%d shards were rebuilt though nothing was lost", c.rebuilt)
		}
	})
}

func TestRingOfOne(t *testing.T) {
	bubble(t, 4, 2, 1, func(t *testing.T, c *cluster) {
		c.writeMany(20)
		c.whole(time.Minute)
		for range 5 {
			c.add()
			c.readAll()
		}
		c.whole(10 * time.Minute)
		c.kill(c.peers[0])
		c.kill(c.peers[3])
		c.readAll()
	})
}

// TestGrowthIsQuick spreads what one peer has over five more that all want it at once.
func TestGrowthIsQuick(t *testing.T) {
	bubble(t, 4, 2, 1, func(t *testing.T, c *cluster) {
		c.writeMany(300)
		fault := func(_ context.Context, _, _ blocks.PeerID, kind overlay.Kind, reply bool) error {
			if (kind == kindPut || kind == kindSync || kind == kindPin) && !reply {
				time.Sleep(2 * time.Millisecond) // virtual
			}
			return nil
		}
		c.fault.Store(&fault)
		for range 5 {
			c.add()
		}
		began := time.Now()
		c.protected(10 * time.Minute)
		took := time.Since(began)
		t.Logf("%d shards in %v", 300*5, took)
		if took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
		c.whole(10 * time.Minute)
	})
}

func TestFewerVnodesThanShards(t *testing.T) {
	bubble(t, 8, 3, 1, func(t *testing.T, c *cluster) {
		c.writeMany(5)
		c.readAll()
		n, err := c.client.Homes(t.Context(), blocks.StripeID{ID: c.id()}, 11)
		if err != nil || len(n) != 11 {
			t.Fatalf("%d homes, %v", len(n), err)
		}
	})
}

func TestHandBack(t *testing.T) {
	bubble(t, 4, 2, 9, func(t *testing.T, c *cluster) {
		c.kill(c.peers[0])
		c.kill(c.peers[1])
		c.writeMany(60)
		c.readAll()
		time.Sleep(5 * time.Minute)
		if c.rebuilt > 0 {
			t.Errorf("%d shards were rebuilt, though stand-ins have all", c.rebuilt)
		}
		c.start(c.peers[0])
		c.start(c.peers[1])
		c.whole(10 * time.Minute)
		c.readAll()
		if c.rebuilt > 0 {
			t.Errorf("%d shards were rebuilt instead of handed back", c.rebuilt)
		}
		if c.peers[0].local.len() == 0 {
			t.Error("nothing was handed back")
		}
	})
}

func TestNobodyRebuildsWhatIsOnlyAway(t *testing.T) {
	bubble(t, 4, 2, 8, func(t *testing.T, c *cluster) {
		c.writeMany(60)
		c.whole(time.Minute)
		c.kill(c.peers[2])
		time.Sleep(10 * time.Minute)
		if c.rebuilt > 0 {
			t.Fatalf("%d shards were rebuilt before the peer was given up", c.rebuilt)
		}
		n, err := c.client.RingCounts(t.Context())
		if err != nil || n.Degraded == 0 || n.WaitingShards != uint64(c.peers[2].local.len()) || n.Fresh {
			t.Fatalf("%+v, %v", n, err)
		}
		c.live(c.peers[2], overlay.Gone)
		c.whole(10 * time.Minute)
		if c.rebuilt != c.peers[2].local.len() {
			t.Errorf("%d shards were rebuilt of %d", c.rebuilt, c.peers[2].local.len())
		}
		c.start(c.peers[2]) // returns after all: surplus copies go
		c.whole(10 * time.Minute)
		c.readAll()
	})
}

func TestLostDisk(t *testing.T) {
	bubble(t, 4, 2, 6, func(t *testing.T, c *cluster) {
		c.writeMany(60)
		c.whole(time.Minute)
		c.kill(c.peers[1])
		c.peers[1].local.wipe()
		c.start(c.peers[1])
		c.whole(10 * time.Minute)
		if c.rebuilt != 60 {
			t.Errorf("%d shards were rebuilt of 60", c.rebuilt)
		}
	})
}

func TestJoinMovesOnlyWhatMust(t *testing.T) {
	bubble(t, 4, 2, 10, func(t *testing.T, c *cluster) {
		c.writeMany(100)
		c.whole(time.Minute)
		before := 0
		for _, p := range c.peers {
			before += p.local.puts
		}
		joined := c.add()
		for range 20 {
			c.readAll()
			time.Sleep(500 * time.Millisecond)
		}
		c.whole(10 * time.Minute)
		after := 0
		for _, p := range c.peers {
			after += p.local.puts
		}
		if moved := after - before; moved != joined.local.len() || moved == 0 {
			t.Errorf("%d shards were put, %d of them stay on the new peer", moved, joined.local.len())
		}
	})
}

func TestDeletionIsNotUndone(t *testing.T) {
	bubble(t, 4, 2, 7, func(t *testing.T, c *cluster) {
		c.writeMany(60)
		c.whole(time.Minute)
		away := c.peers[3]
		c.kill(away)
		deleted := 0
		for id := range c.content {
			if deleted++; deleted <= 30 {
				c.delete(id)
			}
		}
		time.Sleep(20 * time.Minute)
		c.live(away, overlay.Gone)
		time.Sleep(26 * time.Hour) // longer than a tombstone's life with nobody away
		c.start(away)
		c.whole(10 * time.Minute)
		c.readAll()
	})
}

func TestPutAfterDeleteIsRefused(t *testing.T) {
	bubble(t, 2, 1, 3, func(t *testing.T, c *cluster) {
		ref, err := c.write(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		c.delete(ref.ID)
		holders, err := c.client.Homes(t.Context(), ref.ID, 3)
		if err != nil {
			t.Fatal(err)
		}
		_, err = holders[0].Put(t.Context(), c.shard(ref.ID, 4, 0, []byte("abcd")))
		if blocks.CodeOf(err) != blocks.CodeOf(blocks.ErrRefused) {
			t.Fatalf("put of a deleted stripe: %v", err)
		}
	})
}

func TestScrubRepairs(t *testing.T) {
	bubble(t, 4, 2, 6, func(t *testing.T, c *cluster) {
		c.writeMany(30)
		c.whole(time.Minute)
		time.Sleep(time.Minute)
		victim := c.peers[2]
		for range 5 {
			victim.local.rot(func(n shardName) bool {
				b := victim.local.blocks[n]
				return b.sum == crc(b.shard.Data)
			})
		}
		calls := uint64(0)
		report, err := victim.svc.Scrub(t.Context(), func(done, total uint64) {
			calls++
			if done != calls || total != 30 {
				t.Errorf("progress %d of %d", done, total)
			}
		})
		if err != nil || len(report.Damaged) != 5 || report.Repaired != 5 || report.Unrepaired != 0 || report.Shards != 30 {
			t.Fatalf("%+v, %v", report, err)
		}
		c.whole(time.Minute)
		c.readAll()
		report, err = victim.svc.Scrub(t.Context(), nil)
		if err != nil || len(report.Damaged) != 0 {
			t.Fatalf("second scrub: %+v, %v", report, err)
		}
	})
}

func TestReadFindsDamage(t *testing.T) {
	bubble(t, 4, 2, 6, func(t *testing.T, c *cluster) {
		c.writeMany(10)
		c.whole(time.Minute)
		time.Sleep(time.Minute)
		name, _ := c.peers[0].local.rot(func(shardName) bool { return true })
		holders, err := c.client.Homes(t.Context(), name.stripe, 6)
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range holders {
			if h.Peer() == c.peers[0].info.ID {
				if _, err := h.Get(t.Context(), name.stripe, name.index, 0, 0); blocks.CodeOf(err) != blocks.CodeOf(blocks.ErrCorrupt) {
					t.Fatalf("a damaged shard was read: %v", err)
				}
				break
			}
		}
		time.Sleep(10 * time.Second)
		if err := c.peers[0].local.Verify(blocks.Location{Vnode: name.vnode, Header: blocks.Header{Stripe: name.stripe, Index: uint8(name.index)}}); err != nil {
			t.Fatalf("not repaired: %v", err)
		}
		c.whole(time.Minute)
	})
}

func TestDrain(t *testing.T) {
	bubble(t, 4, 2, 8, func(t *testing.T, c *cluster) {
		c.writeMany(40)
		c.whole(time.Minute)
		p := c.peers[5]
		if err := p.svc.Drain(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if n := p.local.len(); n > 0 {
			t.Fatalf("%d shards are left", n)
		}
		c.live(p, overlay.Left)
		p.stop()
		p.ring.SetDown(true)
		c.whole(10 * time.Minute)
		c.readAll()
		if c.rebuilt > 0 {
			t.Errorf("%d shards were rebuilt", c.rebuilt)
		}
	})
}

func TestFullPeer(t *testing.T) {
	bubble(t, 4, 2, 8, func(t *testing.T, c *cluster) {
		full := c.peers[0]
		full.local.full = true
		c.writeMany(30)
		c.readAll()
		lost := c.peers[1]
		c.kill(lost)
		lost.local.wipe()
		c.live(lost, overlay.Gone) // some of what it had belongs on the full one now
		time.Sleep(3 * time.Minute)
		n, err := c.client.RingCounts(t.Context())
		if err != nil || n.Protected != 30 || !n.Whole() {
			t.Fatalf("%+v, %v", n, err)
		}
		full.local.full = false
		time.Sleep(10 * time.Minute)
		c.whole(10 * time.Minute)
		if full.local.len() == 0 {
			t.Error("nothing was handed to the peer that has space again")
		}
	})
}

func TestTooManyAway(t *testing.T) {
	bubble(t, 4, 2, 6, func(t *testing.T, c *cluster) {
		c.writeMany(20)
		for _, p := range c.peers[:3] {
			c.kill(p)
		}
		time.Sleep(3 * time.Minute)
		n, err := c.client.RingCounts(t.Context())
		if err != nil || n.Away != 20 || n.Degraded != 20 || n.Lost != 0 {
			t.Fatalf("%+v, %v", n, err)
		}
		for _, p := range c.peers[:3] {
			c.live(p, overlay.Gone)
		}
		time.Sleep(3 * time.Minute)
		if n, err = c.client.RingCounts(t.Context()); err != nil || n.Degraded != 0 || n.Lost != 20 {
			t.Fatalf("%+v, %v", n, err)
		}
		for _, p := range c.peers[:3] {
			c.start(p)
		}
		c.whole(10 * time.Minute)
		c.readAll()
	})
}

func TestBackgroundScrub(t *testing.T) {
	bubble(t, 4, 2, 0, func(t *testing.T, c *cluster) {
		c.tune = func(cfg *Config) { cfg.ScanEvery, cfg.ScrubEvery = time.Hour, arcCount*time.Minute }
		for range 6 {
			c.add()
		}
		c.writeMany(10)
		time.Sleep(time.Hour)
		name, _ := c.peers[0].local.rot(func(shardName) bool { return true })
		time.Sleep(time.Duration(arcOf(name.stripe.ID)/2) * time.Minute)
		c.kill(c.peers[0]) // it goes on where it was
		c.start(c.peers[0])
		time.Sleep((arcCount + 2) * time.Minute)
		if err := c.peers[0].local.Verify(blocks.Location{Vnode: name.vnode, Header: blocks.Header{Stripe: name.stripe, Index: uint8(name.index)}}); err != nil {
			t.Fatalf("not found by the scrub: %v", err)
		}
		c.whole(time.Minute)
	})
}

func TestTombstonesExpire(t *testing.T) {
	bubble(t, 4, 2, 0, func(t *testing.T, c *cluster) {
		c.tune = func(cfg *Config) { cfg.ScanEvery = time.Hour }
		for range 6 {
			c.add()
		}
		ref, err := c.write(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		c.delete(ref.ID)
		p := c.peers[0]
		time.Sleep(24 * time.Hour)
		if dead, err := p.svc.notes.dead(ref.ID); !dead || err != nil {
			t.Fatalf("forgotten too early: %v", err)
		}
		c.kill(c.peers[1])
		time.Sleep(24 * time.Hour)
		if dead, err := p.svc.notes.dead(ref.ID); !dead || err != nil {
			t.Fatalf("forgotten while a peer is away: %v", err)
		}
		c.start(c.peers[1])
		time.Sleep(2 * time.Hour)
		if dead, err := p.svc.notes.dead(ref.ID); dead || err != nil {
			t.Fatalf("not forgotten: %v", err)
		}
		c.whole(time.Minute)
	})
}

func TestConfig(t *testing.T) {
	bubble(t, 4, 2, 1, func(t *testing.T, c *cluster) {
		good := c.peers[0].svc.cfg
		for name, spoil := range map[string]func(*Config){
			"no ring":      func(cfg *Config) { cfg.Ring = nil },
			"no KV":        func(cfg *Config) { cfg.KV = nil },
			"no Rand":      func(cfg *Config) { cfg.Rand = nil },
			"no shards":    func(cfg *Config) { cfg.K = 0 },
			"many shards":  func(cfg *Config) { cfg.M = 300 },
			"negative":     func(cfg *Config) { cfg.Settle = -1 },
			"neg. rate":    func(cfg *Config) { cfg.RepairRate = -1 },
			"neg. workers": func(cfg *Config) { cfg.RepairParallel = -1 },
		} {
			cfg := good
			spoil(&cfg)
			if err := cfg.Validate(); blocks.CodeOf(err) != blocks.CodeOf(blocks.ErrInvalid) {
				t.Errorf("%s: %v", name, err)
			}
		}
		def := Default()
		if cfg := (Config{}); func() bool { cfg.fill(); return cfg.ScanEvery == def.ScanEvery }() == false {
			t.Error("zero values are not filled in")
		}
	})
}

func TestClientStoresNothing(t *testing.T) {
	bubble(t, 4, 2, 6, func(t *testing.T, c *cluster) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = c.client.Run(ctx) }()
		c.writeMany(5)
		c.whole(time.Minute)
		time.Sleep(time.Minute)
		name, _ := c.peers[3].local.rot(func(shardName) bool { return true })
		c.client.OnDamage(name.stripe) // the client has the repairer look
		time.Sleep(10 * time.Second)
		c.whole(time.Minute)
		if _, err := c.client.Scrub(t.Context(), nil); err == nil {
			t.Error("a client scrubbed something")
		}
		if err := c.peers[3].local.Verify(blocks.Location{Vnode: name.vnode, Header: blocks.Header{Stripe: name.stripe, Index: uint8(name.index)}}); err != nil {
			t.Error(err)
		}
		cancel()
		<-done
	})
}

func TestBadShardsAreRefused(t *testing.T) {
	bubble(t, 4, 2, 6, func(t *testing.T, c *cluster) {
		id := blocks.StripeID{ID: c.id()}
		holders, err := c.client.Homes(t.Context(), id, 6)
		if err != nil {
			t.Fatal(err)
		}
		for name, spoil := range map[string]func(*blocks.Shard){
			"index":  func(s *blocks.Shard) { s.Index = 6 },
			"size":   func(s *blocks.Shard) { s.Size++ },
			"empty":  func(s *blocks.Shard) { s.Size, s.Data = 0, nil },
			"offset": func(s *blocks.Shard) { s.Off = 1 },
			"unit":   func(s *blocks.Shard) { s.Unit = 0 },
			"code":   func(s *blocks.Shard) { s.K = 0 },
			"length": func(s *blocks.Shard) { s.StripeLen = blocks.MaxStripe + 1 },
			"stripe": func(s *blocks.Shard) { s.Stripe = blocks.StripeID{} },
		} {
			s := c.shard(id, 4, 0, []byte("abcd"))
			spoil(&s)
			for _, h := range holders {
				if _, err := h.Put(t.Context(), s); blocks.CodeOf(err) != blocks.CodeOf(blocks.ErrInvalid) {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	})
}

// BenchmarkPutGet puts and reads shards of 256 KiB on another peer, without a network or a disk below.
func BenchmarkPutGet(b *testing.B) {
	net := overlaytest.NewNet(blocks.ID{})
	rnd := reader{rand.New(rand.NewPCG(1, 2))}
	var peers [2]blocks.PeerID
	for i := range peers {
		_, _ = rnd.Read(peers[i].ID[:])
	}
	client := net.Set(overlay.PeerInfo{ID: peers[0]})
	ring := net.Set(overlay.PeerInfo{ID: peers[1], Vnodes: 8, Drives: 1})
	local := newMemLocal()
	if _, err := New(Config{Ring: ring, Local: local, KV: newMemKV(), K: 4, M: 2, Rand: rnd}); err != nil {
		b.Fatal(err)
	}
	s, err := New(Config{Ring: client, K: 4, M: 2, Rand: rnd})
	if err != nil {
		b.Fatal(err)
	}
	data := make([]byte, 256<<10)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		id, _ := blocks.RandomID(rnd)
		stripe := blocks.StripeID{ID: id}
		holders, err := s.Homes(b.Context(), stripe, 6)
		if err != nil {
			b.Fatal(err)
		}
		shard := blocks.Shard{Header: blocks.Header{Stripe: stripe, StripeLen: 1 << 20, K: 4, M: 2, Size: uint32(len(data)), Unit: 4096}, Data: data}
		if _, err := holders[0].Put(b.Context(), shard); err != nil {
			b.Fatal(err)
		}
		if _, err := holders[0].Get(b.Context(), stripe, 0, 0, 0); err != nil {
			b.Fatal(err)
		}
		local.wipe()
	}
}
