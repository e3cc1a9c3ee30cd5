package index

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/blocks/blockstest"
)

// indexDamages are ways to damage the files of a closed index.
var indexDamages = []struct {
	pattern string
	damage  func(path string) error
}{
	{"MANIFEST-*", func(p string) error { return os.Truncate(p, 10) }},
	{"*.sst", os.Remove},
	{"*.sst", func(p string) error { return os.Truncate(p, 100) }},
	{"*.sst", func(p string) error { // in the middle of the data: found when it is read
		b, err := os.ReadFile(p)
		if err == nil {
			b[len(b)/3] ^= 1
			err = os.WriteFile(p, b, 0o600)
		}
		return err
	}},
	{"", os.RemoveAll},
}

// A store on the host's file system, whose index is damaged in several ways while it is
// closed: all blocks are found again, and the registers have a new incarnation.
func TestStoreWithDamagedIndex(t *testing.T) {
	vnode := blocks.VnodeID{ID: blocks.HashID([]byte("vnode"))}
	dir := filepath.Join(t.TempDir(), "drive")
	conf := blocks.Config{
		Ring: blocks.HashID([]byte("ring")), Peer: blocks.PeerID{ID: blocks.HashID([]byte("peer"))}, Indexes: Pebble{},
		Drives: []blocks.DriveConfig{{Dir: dir}}, Vnodes: []blocks.VnodeConfig{{ID: vnode, Capacity: 16 << 20}},
	}
	s, err := blocks.Open(conf)
	if err != nil {
		t.Fatal(err)
	}
	const shards = 30
	for i := range shards {
		if _, err := s.Put(vnode, blockstest.Shard(i, 0)); err != nil {
			t.Fatal(err)
		}
	}
	regs := s.Registers().Incarnation()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range indexDamages {
		files, err := filepath.Glob(filepath.Join(dir, "index", c.pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("no file to damage: %q, %v", c.pattern, err)
		}
		for _, f := range files {
			if err := c.damage(f); err != nil {
				t.Fatal(err)
			}
		}
		s, err := blocks.Open(conf)
		if err != nil {
			t.Fatalf("%s: %v", c.pattern, err)
		}
		for i := range shards {
			want := blockstest.Shard(i, 0)
			got, err := s.Get(vnode, want.Stripe, 0, 0, 0)
			if err != nil || !bytes.Equal(got.Data, want.Data) || got.Header != want.Header {
				t.Fatalf("%s: shard %d: %v", c.pattern, i, err)
			}
		}
		if now := s.Registers().Incarnation(); now == regs {
			t.Errorf("%s: the registers are lost, and the incarnation is the old one", c.pattern)
		} else {
			regs = now
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "index.damaged")); err != nil {
		t.Error(err)
	}
	s, err = blocks.Open(conf)
	if err != nil {
		t.Fatal(err)
	}
	if s.Registers().Incarnation() != regs {
		t.Error("a good index, and a new incarnation")
	}
	if _, err := blocks.Open(conf); !errors.Is(err, blocks.ErrBusy) {
		t.Errorf("opened twice: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
