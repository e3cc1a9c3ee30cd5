package store

import (
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

// addWithDisks makes a peer join that has real virtual disks on a file system in memory.
func (c *cluster) addWithDisks() (*testPeer, *blocks.MemFS) {
	p := &testPeer{local: newMemLocal(), kv: newMemKV()}
	p.info = overlay.PeerInfo{ID: blocks.PeerID{ID: c.id()}, Capacity: 1, Vnodes: 8, Drives: 2}
	fs := blocks.NewMemFS()
	cfg := blocks.Config{Ring: c.ringID, Peer: p.info.ID, FS: fs, Indexes: fs.Indexes(), Rand: reader{c.rnd},
		Drives: []blocks.DriveConfig{{Dir: "/a"}, {Dir: "/b"}}, OnDamage: func(l blocks.Location) { p.svc.OnDamage(l.Header.Stripe) }}
	for i := range p.info.Vnodes {
		cfg.Vnodes = append(cfg.Vnodes, blocks.VnodeConfig{ID: overlay.VnodePosition(c.ringID, p.info.ID, i), Number: i, Drive: i % 2, Capacity: 16 << 20})
	}
	disks, err := blocks.Open(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		if err := disks.Close(); err != nil {
			c.t.Error(err)
		}
	})
	p.disks = disks
	p.ring = c.net.Set(p.info)
	c.peers = append(c.peers, p)
	c.start(p)
	return p, fs
}

// ruin overwrites a block.
func ruin(t *testing.T, fs *blocks.MemFS, l blocks.Location) {
	t.Helper()
	f, err := fs.Open(l.Path)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.WriteVec([][]byte{make([]byte, l.Length)}, l.Offset); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestOnVirtualDisks goes through a life on the real virtual disks.
func TestOnVirtualDisks(t *testing.T) {
	bubble(t, 3, 2, 0, func(t *testing.T, c *cluster) {
		var fs *blocks.MemFS
		for range 6 {
			_, fs = c.addWithDisks()
		}
		t.Cleanup(c.stopAll) // before the disks are closed
		c.kill(c.peers[1])
		c.writeMany(40)
		c.start(c.peers[1])
		c.whole(10 * time.Minute)
		c.addWithDisks()
		c.whole(10 * time.Minute)
		ids := (&schedule{cluster: c}).stripes()
		for _, id := range ids[:10] {
			c.delete(id)
		}
		c.whole(time.Minute)
		last := c.peers[5]
		var hurt []blocks.Location
		if err := last.disks.Scan(blocks.ID{}, blocks.ID{}, func(l blocks.Location) bool {
			hurt = append(hurt, l)
			return len(hurt) < 6
		}); err != nil {
			t.Fatal(err)
		}
		for _, l := range hurt {
			ruin(t, fs, l)
		}
		c.readAll()
		time.Sleep(time.Minute)
		report, err := last.svc.Scrub(t.Context(), nil)
		if err != nil || report.Unrepaired != 0 {
			t.Fatalf("%+v, %v", report, err)
		}
		c.whole(time.Minute)
		if u := last.disks.Usage(); u.Damaged != 0 {
			t.Errorf("%d blocks are still damaged", u.Damaged)
		}
		c.readAll()
	})
}
