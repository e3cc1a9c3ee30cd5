package blocks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

const (
	disk0 = "/drive/vnode-00.disk"
	disk1 = "/drive/vnode-01.disk"
)

// edit changes bytes of a file in place.
func edit(t testing.TB, m *MemFS, path string, off int64, n int, fn func([]byte)) {
	t.Helper()
	f, err := m.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, n)
	if _, err := f.ReadAt(b, off); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	fn(b)
	if err := f.WriteVec([][]byte{b}, off); err != nil {
		t.Fatal(err)
	}
}

func flip(b []byte) { b[0] ^= 1 }

// filled makes a store with n shards on two virtual disks, synced, and closes it.
func filled(t testing.TB, m *MemFS, n int) (Config, []Shard) {
	t.Helper()
	c := memConfig(m, 2, 4<<20)
	s := mustOpen(t, c)
	var all []Shard
	for i := range n {
		all = append(all, testShard(testStripe(i), uint8(i%6), uint32(100+i*3000)))
		mustPut(t, s, testVnode(i%2), all[i])
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return c, all
}

// A flipped bit is found, told once, and repaired by putting the shard again; units that are
// not touched are still read, and another copy is taken where there is one.
func TestDamagedBlock(t *testing.T) {
	m := NewMemFS()
	c := memConfig(m, 2, 4<<20)
	var told []Location
	c.OnDamage = func(l Location) { told = append(told, l) }
	s := mustOpen(t, c)
	defer s.Close()
	shard := testShard(testStripe(1), 3, 50_000)
	mustPut(t, s, testVnode(0), shard)
	locs, err := s.Have(shard.Stripe)
	if err != nil || len(locs) != 1 || locs[0].Path != disk0 {
		t.Fatalf("%+v, %v", locs, err)
	}
	edit(t, m, disk0, locs[0].Offset+512+20_000, 1, flip) // in unit 1

	for range 2 {
		_, err = s.Get(testVnode(0), shard.Stripe, 3, 0, 0)
		wantError(t, err, ErrCorrupt)
	}
	_, err = s.Get(testVnode(1), shard.Stripe, 3, 16<<10, 1)
	wantError(t, err, ErrCorrupt)
	if len(told) != 1 || told[0].Header != shard.Header || told[0].Offset != locs[0].Offset {
		t.Fatalf("told of %+v", told)
	}
	if got, err := s.Get(testVnode(0), shard.Stripe, 3, 32<<10, 100); err != nil || string(got.Data) != string(shard.Data[32<<10:][:100]) {
		t.Fatalf("a good unit of a damaged block: %v", err)
	}
	wantError(t, s.Verify(locs[0]), ErrCorrupt)
	if have, _ := s.Have(shard.Stripe); len(have) != 0 {
		t.Fatalf("have %+v", have)
	}
	if all, _ := s.Locate(shard.Stripe); len(all) != 1 || !all[0].Damaged || s.Usage().Damaged != 1 {
		t.Fatalf("locate %+v, usage %+v", all, s.Usage())
	}
	mustPut(t, s, testVnode(1), shard) // another copy
	wantShard(t, s, testVnode(0), shard)
	mustPut(t, s, testVnode(0), shard) // repair
	wantShard(t, s, testVnode(0), shard)
	if have, _ := s.Have(shard.Stripe); len(have) != 2 || s.Usage().Damaged != 0 {
		t.Fatalf("have %+v", have)
	}
	for _, l := range locs {
		if err := s.Verify(l); err != nil {
			t.Fatal(err)
		}
	}
}

// Damage to the header of a block is found by Verify, not needed by Get.
func TestDamagedHeader(t *testing.T) {
	m := NewMemFS()
	s := mustOpen(t, memConfig(m, 1, 4<<20))
	defer s.Close()
	shard := testShard(testStripe(1), 0, 5000)
	mustPut(t, s, testVnode(0), shard)
	locs, _ := s.Have(shard.Stripe)
	edit(t, m, disk0, locs[0].Offset+30, 1, flip)
	wantShard(t, s, testVnode(0), shard)
	wantError(t, s.Verify(locs[0]), ErrCorrupt)
	mustPut(t, s, testVnode(0), shard)
	locs, _ = s.Have(shard.Stripe)
	if len(locs) != 1 {
		t.Fatalf("have %+v", locs)
	}
	if err := s.Verify(locs[0]); err != nil {
		t.Fatal(err)
	}
}

const lastUnit = int64(4<<20 - unitSize)

// losses are what may happen to the files of a closed store.
var losses = map[string]struct {
	damage  func(t *testing.T, m *MemFS)
	lost    int // shards that may not be found, at most
	newDisk bool
	newRegs bool
}{
	"nothing":           {damage: func(*testing.T, *MemFS) {}},
	"first superblock":  {damage: func(t *testing.T, m *MemFS) { edit(t, m, disk0, 40, 1, flip) }},
	"second superblock": {damage: func(t *testing.T, m *MemFS) { edit(t, m, disk0, lastUnit+40, 1, flip) }},
	"both superblocks": {damage: func(t *testing.T, m *MemFS) {
		edit(t, m, disk0, 0, unitSize, func(b []byte) { clear(b) })
		edit(t, m, disk0, lastUnit, unitSize, func(b []byte) { clear(b) })
	}},
	"index":      {damage: func(t *testing.T, m *MemFS) { m.Indexes().Damage("/drive/index") }, newRegs: true},
	"index gone": {damage: func(t *testing.T, m *MemFS) { _ = m.Indexes().SetAside("/drive/index") }, newRegs: true},
	"index and a superblock": {damage: func(t *testing.T, m *MemFS) {
		m.Indexes().Damage("/drive/index")
		edit(t, m, disk0, 40, 1, flip)
	}, newRegs: true},
	"index and both superblocks": {damage: func(t *testing.T, m *MemFS) {
		m.Indexes().Damage("/drive/index")
		edit(t, m, disk0, 40, 1, flip)
		edit(t, m, disk0, lastUnit+40, 1, flip)
	}, lost: 10, newDisk: true, newRegs: true},
	"disk removed": {damage: func(t *testing.T, m *MemFS) {
		if err := m.Remove(disk0); err != nil {
			t.Fatal(err)
		}
	}, lost: 10, newDisk: true},
	"disk truncated": {damage: func(t *testing.T, m *MemFS) {
		f, _ := m.Open(disk0)
		if err := f.Truncate(100_000); err != nil {
			t.Fatal(err)
		}
	}, lost: 10},
	"disk emptied": {damage: func(t *testing.T, m *MemFS) {
		f, _ := m.Open(disk0)
		if err := f.Truncate(0); err != nil {
			t.Fatal(err)
		}
	}, lost: 10},
	"disk zeroed": {damage: func(t *testing.T, m *MemFS) {
		edit(t, m, disk0, 0, 4<<20, func(b []byte) { clear(b) })
	}, lost: 10},
	"index entry": {damage: func(t *testing.T, m *MemFS) {
		x, _ := m.Indexes().Open("/drive/index")
		k := blockKey{testStripe(0), 0, testVnode(0)}
		if err := x.Apply([]IndexChange{{Key: k.encode(), Value: []byte("nonsense")}}, true); err != nil {
			t.Fatal(err)
		}
	}},
	"index entries overlap": {damage: func(t *testing.T, m *MemFS) {
		x, _ := m.Indexes().Open("/drive/index")
		k := blockKey{testStripe(0), 0, testVnode(0)}
		v, err := x.Get(k.encode())
		if err != nil {
			t.Fatal(err)
		}
		h, _ := decodeHeader(v)
		h.Stripe = testStripe(99)
		k.stripe = h.Stripe
		if err := x.Apply([]IndexChange{{Key: k.encode(), Value: h.append(nil)}}, true); err != nil {
			t.Fatal(err)
		}
	}},
	"used under a damaged index": {damage: func(t *testing.T, m *MemFS) {
		if _, err := m.Create("/drive/" + brokenName); err != nil {
			t.Fatal(err)
		}
	}, newRegs: true},
}

// Whatever happens to files while the store is closed: it opens, returns only what
// was put, and knows which disks are not what they were.
func TestLostThings(t *testing.T) {
	for name, c := range losses {
		t.Run(name, func(t *testing.T) {
			m := NewMemFS()
			conf, all := filled(t, m, 20)
			s := mustOpen(t, conf)
			incarnation, regs := s.Incarnation(testVnode(0)), s.Registers().Incarnation()
			if err := errors.Join(s.Registers().Apply([]KVChange{{Key: []byte("k"), Value: []byte("v")}}, true), s.Close()); err != nil {
				t.Fatal(err)
			}
			c.damage(t, m)
			for round := range 2 { // the second time nothing is left to be mended
				s := mustOpen(t, conf)
				if got := s.Incarnation(testVnode(0)) != incarnation; got != c.newDisk {
					t.Errorf("round %d: new incarnation of the disk: %v", round, got)
				}
				if got := s.Registers().Incarnation() != regs; got != c.newRegs {
					t.Errorf("round %d: new incarnation of the registers: %v", round, got)
				}
				if _, err := s.Registers().Get([]byte("k")); (err != nil) != c.newRegs {
					t.Errorf("round %d: registers: %v", round, err)
				}
				compareAll(t, s, all, c.lost, c.newDisk)
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// compareAll gets all shards; at most lost of those on disk 0 may be missing or
// damaged. On a new disk they are not even claimed.
func compareAll(t *testing.T, s *Store, all []Shard, lost int, newDisk bool) {
	t.Helper()
	for i, shard := range all {
		v := testVnode(i % 2)
		got, err := s.Get(v, shard.Stripe, int(shard.Index), 0, 0)
		if err == nil {
			if got.Header != shard.Header || string(got.Data) != string(shard.Data) {
				t.Fatalf("shard %d: wrong data", i)
			}
			continue
		}
		if lost--; i%2 != 0 || lost < 0 || !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("shard %d: %v", i, err)
		}
		if have, _ := s.Have(shard.Stripe); len(have) > 0 {
			t.Fatalf("shard %d is not there but claimed: %+v", i, have)
		}
		if newDisk && !errors.Is(err, ErrNotFound) {
			t.Fatalf("shard %d on a new disk: %v", i, err)
		}
	}
	if lost > 5 {
		t.Fatal("nothing was damaged")
	}
}

// The index made anew from the disk files is the one that was lost.
func TestRebuildIsTheSame(t *testing.T) {
	m := NewMemFS()
	conf, all := filled(t, m, 40)
	s := mustOpen(t, conf)
	for i := 0; i < len(all); i += 3 {
		if err := s.Delete(all[i].Stripe); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 10 {
		mustPut(t, s, testVnode(i%2), testShard(testStripe(1000+i), 1, uint32(1+i*5000)))
	}
	if err := s.Close(); err != nil { // punches what was deleted
		t.Fatal(err)
	}
	list := func() (out []string, u Usage) {
		s := mustOpen(t, conf)
		defer s.Close()
		if err := s.Scan(ID{}, ID{}, func(l Location) bool {
			out = append(out, fmt.Sprintf("%+v", l))
			return true
		}); err != nil {
			t.Fatal(err)
		}
		return out, s.Usage()
	}
	before, used := list()
	m.Indexes().Damage("/drive/index")
	after, usedAfter := list()
	if strings.Join(before, "\n") != strings.Join(after, "\n") || len(before) < 30 || used != usedAfter {
		t.Fatalf("before %d blocks, after %d; usage %+v, %+v", len(before), len(after), used, usedAfter)
	}
}

// A disk of somebody else is refused, with the name of the file; nothing is changed.
func TestForeignDisk(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"ring":         func(c *Config) { c.Ring = HashID([]byte("other")) },
		"peer":         func(c *Config) { c.Peer = PeerID{HashID([]byte("other"))} },
		"virtual node": func(c *Config) { c.Vnodes[0].ID = testVnode(7) },
	} {
		for _, index := range []bool{true, false} {
			m := NewMemFS()
			conf, all := filled(t, m, 4)
			if !index {
				_ = m.Indexes().SetAside("/drive/index")
			}
			foreign := memConfig(m, 2, 4<<20)
			change(&foreign)
			_, err := Open(foreign)
			wantError(t, err, ErrInvalid)
			if text := err.Error(); !strings.Contains(text, "/drive") || !strings.Contains(text, name) || strings.Contains(text, "\n") {
				t.Errorf("%s: error %q", name, text)
			}
			s := mustOpen(t, conf)
			compareAll(t, s, all, 0, false)
			s.Close()
		}
	}
}

// A failed sync makes the drive read-only, and every waiter gets to know.
func TestFailedSync(t *testing.T) {
	m := NewMemFS()
	c := memConfig(m, 1, 4<<20)
	s := mustOpen(t, c)
	ctx := context.Background()
	shard := testShard(testStripe(1), 0, 5000)
	e := mustPut(t, s, testVnode(0), shard)
	if err := s.Sync(ctx, 0, e); err != nil {
		t.Fatal(err)
	}
	second := testShard(testStripe(2), 0, 5000)
	mustPut(t, s, testVnode(0), second)
	m.Fail(disk0, errors.New("medium error"))
	wantError(t, s.Sync(ctx, 0, e), ErrUnavailable)
	m.Fail(disk0, nil)
	wantError(t, s.Sync(ctx, 0, e), ErrUnavailable) // the first failure may have dropped pages
	_, err := s.Put(testVnode(0), testShard(testStripe(3), 0, 5000))
	wantError(t, err, ErrUnavailable)
	wantError(t, s.Delete(shard.Stripe), ErrUnavailable)
	wantShard(t, s, testVnode(0), shard)
	wantError(t, s.Close(), ErrUnavailable)
	s = mustOpen(t, c)
	defer s.Close()
	wantShard(t, s, testVnode(0), shard)
	wantError(t, s.Sync(ctx, 0, e), ErrLost)
}

// The power fails at every operation of an opening that mends something: the next one
// mends it.
func TestPowerCutWhileMending(t *testing.T) {
	r := seeded(t)
	for name, damage := range map[string]func(m *MemFS){
		"index":      func(m *MemFS) { m.Indexes().Damage("/drive/index") },
		"disk":       func(m *MemFS) { _ = m.Remove(disk0) },
		"superblock": func(m *MemFS) { edit(t, m, disk0, 0, 100, func(b []byte) { clear(b) }) },
		"both": func(m *MemFS) {
			_ = m.Indexes().SetAside("/drive/index")
			_ = m.Remove(disk0)
		},
	} {
		m := NewMemFS()
		conf, all := filled(t, m, 12)
		incarnation := mustOpen(t, conf)
		old := incarnation.Incarnation(testVnode(0))
		incarnation.Close()
		damage(m)
		lost := 0
		if name == "disk" || name == "both" {
			lost = 6
		}
		cuts, inside := 0, false
		m.OnOp(func() {
			if inside { // of the store opened after the cut
				return
			}
			inside = true
			defer func() { inside = false }()
			cuts++
			after := m.Crash(r, []int{0, 50, 100}[cuts%3])
			c := conf
			c.FS, c.Indexes = after, after.Indexes()
			s := mustOpen(t, c)
			defer s.Close()
			for i, shard := range all {
				got, err := s.Get(testVnode(i%2), shard.Stripe, int(shard.Index), 0, 0)
				if err == nil && string(got.Data) != string(shard.Data) || err != nil && (lost == 0 || i%2 == 1) {
					t.Fatalf("%s, cut %d: shard %d: %v", name, cuts, i, err)
				}
			}
			if now := s.Incarnation(testVnode(0)); lost == 0 && now != old {
				t.Fatalf("%s, cut %d: the disk has a new incarnation", name, cuts)
			}
		})
		s := mustOpen(t, conf)
		m.OnOp(nil)
		s.Close()
		if cuts < 2 {
			t.Errorf("%s: only %d power cuts", name, cuts)
		}
	}
}
