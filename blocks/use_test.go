package blocks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
)

// multiDrive is a store in memory with two drives and four virtual disks.
func multiDrive(m *MemFS) Config {
	c := memConfig(m, 4, 8<<20)
	c.Drives = append(c.Drives, DriveConfig{Dir: "/drive1"})
	c.Vnodes[1].Drive, c.Vnodes[3].Drive = 1, 1
	return c
}

// scanEntry is what Scan says of a block.
type scanEntry struct {
	id    ID
	index uint8
	vnode VnodeID
}

// expectedScan returns the entries of an arc in the order of the circle.
func expectedScan(all []scanEntry, from, to ID) []scanEntry {
	var top ID
	copy(top[:], bytes.Repeat([]byte{0xff}, IDSize))
	want := slices.DeleteFunc(slices.Clone(all), func(e scanEntry) bool { return !Between(from, e.id, to) })
	slices.SortFunc(want, func(a, b scanEntry) int {
		da, db := from.Distance(a.id), from.Distance(b.id)
		if a.id == from { // it is the last one of the whole circle
			da = top
		}
		if b.id == from {
			db = top
		}
		if c := da.Compare(db); c != 0 {
			return c
		}
		if a.index != b.index {
			return int(a.index) - int(b.index)
		}
		return a.vnode.Compare(b.vnode.ID)
	})
	return want
}

// Scan gives each block of the arc once, in the order of the circle, wherever it lies,
// synced or not, and for every kind of arc.
func TestScan(t *testing.T) {
	r := seeded(t)
	s := mustOpen(t, multiDrive(NewMemFS()))
	defer s.Close()
	var epochs = s.Epochs()
	var all []scanEntry
	for i := range 900 {
		shard, v := testShard(testStripe(i/3), uint8(i%3), 100), testVnode(r.IntN(4))
		mustPut(t, s, v, shard)
		if r.IntN(300) == 0 {
			for n, e := range epochs {
				if err := s.Sync(context.Background(), n, e); err != nil {
					t.Fatal(err)
				}
			}
		}
		if i%10 == 9 {
			if err := s.DeleteShard(v, shard.Stripe, i%3); err != nil {
				t.Fatal(err)
			}
			continue
		}
		all = append(all, scanEntry{shard.Stripe.ID, shard.Index, v})
	}
	var top ID
	copy(top[:], bytes.Repeat([]byte{0xff}, IDSize))
	arcs := [][2]ID{{{}, {}}, {top, top}, {{}, top}, {top, {}}, {all[5].id, all[5].id}, {all[7].id, all[100].id}, {all[100].id, all[7].id}}
	for range 20 {
		arcs = append(arcs, [2]ID{HashID([]byte{byte(r.Uint32())}), HashID([]byte{byte(r.Uint32())})})
	}
	for _, arc := range arcs {
		from, to := arc[0], arc[1]
		want := expectedScan(all, from, to)
		var got []scanEntry
		if err := s.Scan(from, to, func(l Location) bool {
			got = append(got, scanEntry{l.Header.Stripe.ID, l.Header.Index, l.Vnode})
			return true
		}); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("arc (%s, %s]: %d blocks, want %d", from.Short(), to.Short(), len(got), len(want))
		}
	}
	n := 0
	if err := s.Scan(ID{}, ID{}, func(l Location) bool {
		n++
		if err := s.DeleteShard(l.Vnode, l.Header.Stripe, int(l.Header.Index)); err != nil { // fn may call the store
			t.Fatal(err)
		}
		return n < 300
	}); err != nil || n != 300 {
		t.Fatalf("%d, %v", n, err)
	}
	if u := s.Usage(); u.Shards != int64(len(all)-300) {
		t.Fatalf("usage %+v", u)
	}
}

// Virtual nodes may be added later; one that is left out is not seen but not forgotten.
func TestVnodesComeAndGo(t *testing.T) {
	m := NewMemFS()
	c := multiDrive(m)
	few := c
	few.Vnodes = c.Vnodes[:2]
	shard := testShard(testStripe(1), 2, 10_000)
	s := mustOpen(t, few)
	mustPut(t, s, testVnode(1), shard)
	s.Close()
	s = mustOpen(t, c)
	wantShard(t, s, testVnode(3), shard)
	other := testShard(testStripe(2), 2, 10_000)
	mustPut(t, s, testVnode(3), other)
	s.Close()
	s = mustOpen(t, few)
	if _, err := s.Get(testVnode(3), other.Stripe, 2, 0, 0); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	if have, err := s.Have(other.Stripe); err != nil || len(have) != 0 {
		t.Fatalf("%+v, %v", have, err)
	}
	_, err := s.Put(testVnode(3), other)
	wantError(t, err, ErrNotOwner)
	s.Close()
	s = mustOpen(t, c)
	defer s.Close()
	wantShard(t, s, testVnode(0), other)
	if n, ok := s.Drive(testVnode(3)); !ok || n != 1 || s.Incarnation(testVnode(3)) == 0 || s.Incarnation(testVnode(9)) != 0 {
		t.Fatal("Drive, Incarnation")
	}
}

func TestPutAgain(t *testing.T) {
	s := mustOpen(t, memConfig(NewMemFS(), 2, 4<<20))
	defer s.Close()
	shard := testShard(testStripe(1), 1, 9000)
	e := mustPut(t, s, testVnode(0), shard)
	for _, sync := range []bool{false, true} {
		if sync {
			if err := s.Sync(context.Background(), 0, e); err != nil {
				t.Fatal(err)
			}
		}
		used := s.Usage().Used
		later := shard
		later.Written++ // a retry may be of another second
		mustPut(t, s, testVnode(0), later)
		wantShard(t, s, testVnode(0), shard)
		if u := s.Usage(); u.Used != used || u.Shards != 1 {
			t.Fatalf("usage %+v", u)
		}
		other := testShard(testStripe(1), 1, 9000)
		other.Data[5] ^= 1
		_, err := s.Put(testVnode(0), other)
		wantError(t, err, ErrExists)
	}
	home := shard
	home.Home = testVnode(1)
	mustPut(t, s, testVnode(0), home) // it belongs elsewhere now
	wantShard(t, s, testVnode(0), home)
	if u := s.Usage(); u.Shards != 1 {
		t.Fatalf("usage %+v", u)
	}
}

func TestInvalidCalls(t *testing.T) {
	s := mustOpen(t, memConfig(NewMemFS(), 1, 4<<20))
	defer s.Close()
	for name, change := range map[string]func(*Shard){
		"part":         func(x *Shard) { x.Off = 1 },
		"short":        func(x *Shard) { x.Data = x.Data[1:] },
		"no stripe":    func(x *Shard) { x.Stripe = StripeID{} },
		"index":        func(x *Shard) { x.Index = 6 },
		"k":            func(x *Shard) { x.K = 0; x.Index = 0 },
		"unit":         func(x *Shard) { x.Unit = 0 },
		"many units":   func(x *Shard) { x.Unit = 1 },
		"empty":        func(x *Shard) { x.Size, x.Data = 0, nil },
		"empty stripe": func(x *Shard) { x.StripeLen = 0 },
		"large stripe": func(x *Shard) { x.StripeLen = MaxStripe + 1 },
	} {
		shard := testShard(testStripe(1), 0, 9000)
		change(&shard)
		if _, err := s.Put(testVnode(0), shard); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	shard := testShard(testStripe(1), 0, 9000)
	e := mustPut(t, s, testVnode(0), shard)
	for _, x := range []struct{ off, n uint32 }{{9001, 0}, {0, 9001}, {9000, 1}, {1 << 31, 1 << 31}, {^uint32(0), 1}} {
		_, err := s.Get(testVnode(0), shard.Stripe, 0, x.off, x.n)
		wantError(t, err, ErrInvalid)
	}
	_, err := s.Get(testVnode(0), shard.Stripe, -1, 0, 0)
	wantError(t, err, ErrInvalid)
	if err := s.Sync(context.Background(), 1, e); err != nil { // the number is what somebody believes, the epoch is what is
		t.Errorf("sync with another drive's number: %v", err)
	}
	wantError(t, s.Sync(context.Background(), 0, e+1), ErrLost)
	wantError(t, s.Verify(Location{Vnode: testVnode(0), Header: testShard(testStripe(5), 0, 10).Header}), ErrNotFound)
	wantError(t, s.Verify(Location{Vnode: testVnode(5)}), ErrNotOwner)
}

// Puts, gets, deletions, scans and syncs at the same time: every answer is right,
// and in the end what should be there is.
func TestConcurrentUse(t *testing.T) {
	r := seeded(t)
	c := memConfig(NewMemFS(), 3, 4<<20) // small enough that space is used again
	c.OnDamage = func(l Location) { t.Errorf("damage: %+v", l) }
	s := mustOpen(t, c)
	ctx, cancel := context.WithCancel(context.Background())
	var run, wg sync.WaitGroup
	run.Go(func() { s.Run(ctx) })
	const workers = 8
	for w := range workers {
		rnd := [4]uint64{r.Uint64(), r.Uint64()}
		wg.Go(func() { worker(t, s, w, rnd[0]) })
	}
	wg.Wait()
	for i := range workers {
		shard := testShard(testStripe(1_000_000+i), 0, 20_000)
		wantShard(t, s, testVnode(0), shard)
	}
	cancel()
	run.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, c)
	defer s.Close()
	if err := s.Scan(ID{}, ID{}, func(l Location) bool {
		if err := s.Verify(l); err != nil {
			t.Error(err)
		}
		return true
	}); err != nil {
		t.Fatal(err)
	}
}

func worker(t *testing.T, s *Store, w int, seed uint64) {
	ctx := context.Background()
	fail := func(err error, but ...error) {
		for _, b := range but {
			if errors.Is(err, b) {
				return
			}
		}
		if err != nil {
			t.Error(err)
		}
	}
	last := testShard(testStripe(1_000_000+w), 0, 20_000)
	for {
		_, err := s.Put(testVnode(w%3), last)
		if err == nil {
			break
		}
		fail(err, ErrNoSpace)
		fail(s.Delete(testStripe(w)))
	}
	for i := range 400 {
		x := (seed + uint64(i)*2654435761) >> 3
		v, n := testVnode(int(x%3)), int(x>>8%40)
		shard := testShard(testStripe(n), uint8(x>>16%3), uint32(1+n*2500))
		switch x >> 24 % 8 {
		case 0, 1, 2:
			e, err := s.Put(v, shard)
			fail(err, ErrNoSpace)
			if err == nil && i%4 == 0 {
				fail(s.Sync(ctx, 0, e))
			}
		case 3:
			fail(s.Delete(shard.Stripe))
		case 4:
			fail(s.DeleteShard(v, shard.Stripe, int(shard.Index)))
		case 5:
			if i%10 == 0 {
				fail(s.Scan(HashID([]byte{1}), HashID([]byte{2}), func(Location) bool { return true }))
			}
			_, err := s.Have(shard.Stripe)
			fail(err)
		default:
			got, err := s.Get(v, shard.Stripe, int(shard.Index), 0, 0)
			fail(err, ErrNotFound)
			if err == nil && !bytes.Equal(got.Data, shard.Data) {
				t.Error("wrong data")
			}
		}
	}
}

// Waiters share rounds: far fewer syncs than waiters.
func TestGroupCommit(t *testing.T) {
	m := NewMemFS()
	s := mustOpen(t, memConfig(m, 1, 64<<20))
	defer s.Close()
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			e, err := s.Put(testVnode(0), testShard(testStripe(i), 0, 1000))
			if err == nil {
				err = s.Sync(context.Background(), 0, e)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	d := s.drives[0]
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pending.count != 0 || len(d.pending.stripes) != 0 || d.syncs.durable != d.syncs.last || len(d.claims) != 0 {
		t.Fatalf("left over: %d changes, %+v", d.pending.count, d.syncs)
	}
}

// A waiter whose context ends gets its answer at once; the sync goes on for the others.
func TestSyncCanceled(t *testing.T) {
	m := NewMemFS()
	s := mustOpen(t, memConfig(m, 1, 4<<20))
	gate := make(chan struct{})
	e := mustPut(t, s, testVnode(0), testShard(testStripe(1), 0, 1000))
	m.OnOp(func() { <-gate })
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err := s.Sync(ctx, 0, e)
	if CodeOf(err) != CodeOf(ErrCanceled) {
		t.Fatalf("got %v", err)
	}
	close(gate)
	if err := s.Sync(context.Background(), 0, e); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wantError(t, s.Sync(context.Background(), 0, e), ErrUnavailable)
}

func TestRegisters(t *testing.T) {
	m := NewMemFS()
	c := memConfig(m, 1, 1<<20)
	s := mustOpen(t, c)
	kv := s.Registers()
	set := func(k, v string) KVChange { return KVChange{Key: []byte(k), Value: []byte(v)} }
	if err := kv.Apply([]KVChange{set("a1", "x"), set("a2", "y"), set("b", "z"), set("a\xff", "w")}, true); err != nil {
		t.Fatal(err)
	}
	if err := kv.Apply([]KVChange{{Key: []byte("a2"), Delete: true}, set("a3", "")}, false); err != nil {
		t.Fatal(err)
	}
	mustPut(t, s, testVnode(0), testShard(testStripe(1), 0, 100)) // not to be seen among the registers
	incarnation := kv.Incarnation()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, c)
	defer s.Close()
	kv = s.Registers()
	var got []string
	scan := func(prefix string) string {
		got = nil
		if err := kv.Scan([]byte(prefix), func(k, v []byte) bool {
			got = append(got, fmt.Sprintf("%s=%s", k, v))
			return true
		}); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(got)
	}
	if got, want := scan("a"), "[a1=x a3= a\xff=w]"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := scan(""), "[a1=x a3= a\xff=w b=z]"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if _, err := kv.Get([]byte("a2")); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleted key: %v", err)
	}
	if v, err := kv.Get([]byte("b")); err != nil || string(v) != "z" {
		t.Errorf("%q, %v", v, err)
	}
	if kv.Incarnation() != incarnation || incarnation == 0 {
		t.Error("another incarnation")
	}
}
