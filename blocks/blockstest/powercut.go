// Package blockstest checks a store of blocks against power cuts.
//
// It must know: what a Store promises. It must not know: how it keeps it.
package blockstest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/mutualfs/mutualfs/blocks"
)

// Medium is what a store lies on: files and indexes that lose power together.
type Medium interface {
	FS() blocks.FS
	Indexes() blocks.Indexes
	// OnOp has fn called before each operation that changes the medium.
	OnOp(fn func())
	// Crash returns the medium as a power cut at this moment would leave it.
	Crash(r *rand.Rand, keep int) Medium
}

// MemMedium is a MemFS with its own indexes.
type MemMedium struct{ M *blocks.MemFS }

// FS implements Medium.
func (m MemMedium) FS() blocks.FS { return m.M }

// Indexes implements Medium.
func (m MemMedium) Indexes() blocks.Indexes { return m.M.Indexes() }

// OnOp implements Medium.
func (m MemMedium) OnOp(fn func()) { m.M.OnOp(fn) }

// Crash implements Medium.
func (m MemMedium) Crash(r *rand.Rand, keep int) Medium { return MemMedium{m.M.Crash(r, keep)} }

const (
	vnodes   = 2
	capacity = 512 << 10
	stripes  = 24
	indexes  = 3
)

// key names a block of the workload.
type key struct{ vnode, stripe, index int }

// expectation is what may be found under a key after a power cut.
type expectation struct {
	there bool // as of the last sync
	maybe bool // changed since
}

// world runs a random workload and knows what must have survived.
type world struct {
	t      testing.TB
	medium Medium
	rand   *rand.Rand
	store  *blocks.Store
	epoch  blocks.Epoch

	mu     sync.Mutex // the store's own goroutines call cut
	blocks map[key]expectation
	regs   map[string][]string // values that a register may have, "" for none
	cuts   int
	every  int // cut the power at each such operation
	ops    int
	seed   uint64
}

func config(m Medium) blocks.Config {
	c := blocks.Config{
		Ring: blocks.HashID([]byte("ring")), Peer: blocks.PeerID{ID: blocks.HashID([]byte("peer"))},
		FS: m.FS(), Indexes: m.Indexes(), Drives: []blocks.DriveConfig{{Dir: "/drive"}},
	}
	for i := range vnodes {
		c.Vnodes = append(c.Vnodes, blocks.VnodeConfig{ID: vnode(i), Number: i, Capacity: capacity})
	}
	return c
}

func vnode(i int) blocks.VnodeID {
	return blocks.VnodeID{ID: blocks.HashID([]byte("vnode"), []byte{byte(i)})}
}

// Shard makes the one right shard of a name: size and content follow from it.
func Shard(stripe, index int) blocks.Shard {
	id := blocks.StripeID{ID: blocks.HashID([]byte("stripe"), binary.BigEndian.AppendUint32(nil, uint32(stripe)))}
	var seed [32]byte
	copy(seed[:], id.ID[:])
	seed[31] = byte(index)
	r := rand.New(rand.NewChaCha8(seed))
	size := 1 + r.IntN(12<<10)
	if stripe%5 == 0 {
		size = 40<<10 + r.IntN(60<<10)
	}
	data := make([]byte, size)
	rand.NewChaCha8(seed).Read(data)
	return blocks.Shard{
		Header: blocks.Header{Stripe: id, StripeLen: 1 << 20, Index: uint8(index), K: 4, M: 2, Size: uint32(size), Unit: 8 << 10, Written: 1},
		Data:   data,
	}
}

// PowerCuts runs a random workload of so many steps and cuts the power at every n-th
// operation on the medium; what is left must open, and hold what was promised.
func PowerCuts(t testing.TB, m Medium, seed uint64, steps, every int) {
	t.Logf("MUTUALFS_SEED=%d", seed)
	w := &world{t: t, medium: m, rand: rand.New(rand.NewPCG(seed, 0)), seed: seed, every: every,
		blocks: map[key]expectation{}, regs: map[string][]string{}}
	m.OnOp(w.cut)
	s, err := blocks.Open(config(m))
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	w.store, w.epoch = s, s.Epochs()[0]
	for range steps {
		w.step()
	}
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cuts < steps/every {
		t.Fatalf("only %d power cuts in %d steps", w.cuts, steps)
	}
	t.Logf("%d operations, %d power cuts", w.ops, w.cuts)
}

func (w *world) step() {
	k := key{w.rand.IntN(vnodes), w.rand.IntN(stripes), w.rand.IntN(indexes)}
	switch n := w.rand.IntN(100); {
	case n < 50:
		w.put(k)
	case n < 60:
		w.expect(k, func(e *expectation) { e.maybe = true })
		w.check(w.store.DeleteShard(vnode(k.vnode), Shard(k.stripe, k.index).Stripe, k.index))
	case n < 70:
		w.deleteStripe(k.stripe)
	case n < 85:
		w.setRegister(w.rand.IntN(2) == 0)
	default:
		w.sync()
	}
}

func (w *world) check(err error) {
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) expect(k key, fn func(*expectation)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.blocks[k]
	fn(&e)
	w.blocks[k] = e
}

func (w *world) put(k key) {
	w.expect(k, func(e *expectation) { e.maybe = true })
	_, err := w.store.Put(vnode(k.vnode), Shard(k.stripe, k.index))
	if !errors.Is(err, blocks.ErrNoSpace) {
		w.check(err)
	}
}

func (w *world) deleteStripe(stripe int) {
	for v := range vnodes {
		for i := range indexes {
			w.expect(key{v, stripe, i}, func(e *expectation) { e.maybe = true })
		}
	}
	w.check(w.store.Delete(Shard(stripe, 0).Stripe))
}

func (w *world) setRegister(sync bool) {
	name, value := fmt.Sprintf("reg%d", w.rand.IntN(4)), fmt.Sprintf("value%d", w.rand.Uint32())
	change := blocks.KVChange{Key: []byte(name), Value: []byte(value)}
	if w.rand.IntN(5) == 0 {
		change, value = blocks.KVChange{Key: []byte(name), Delete: true}, ""
	}
	w.mu.Lock()
	if w.regs[name] == nil {
		w.regs[name] = []string{""}
	}
	w.regs[name] = append(w.regs[name], value)
	w.mu.Unlock()
	w.check(w.store.Registers().Apply([]blocks.KVChange{change}, sync))
	if sync {
		w.mu.Lock()
		for n, list := range w.regs { // all that were applied before are durable
			w.regs[n] = list[len(list)-1:]
		}
		w.mu.Unlock()
	}
}

// sync makes everything durable and takes the store's word for what there is.
func (w *world) sync() {
	w.check(w.store.Sync(context.Background(), 0, w.epoch))
	now := map[key]bool{}
	for stripe := range stripes {
		have, err := w.store.Have(Shard(stripe, 0).Stripe)
		w.check(err)
		for _, l := range have {
			for v := range vnodes {
				if l.Vnode == vnode(v) {
					now[key{v, stripe, int(l.Header.Index)}] = true
				}
			}
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for k := range w.blocks {
		w.blocks[k] = expectation{there: now[k]}
	}
}

// cut is called before each operation on the medium: what if the power failed now?
func (w *world) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ops++
	if w.ops%w.every != 0 || w.t.Failed() {
		return
	}
	w.cuts++
	r := rand.New(rand.NewPCG(w.seed, uint64(w.ops)))
	after := w.medium.Crash(r, []int{0, 30, 70, 100}[r.IntN(4)])
	if err := w.survived(after, r); err != nil {
		w.t.Errorf("MUTUALFS_SEED=%d, power cut at operation %d: %v", w.seed, w.ops, err)
	}
}

// survived opens what the power cut left and compares it with what is expected.
func (w *world) survived(after Medium, r *rand.Rand) (err error) {
	rebuilt := w.cuts%4 == 0
	if rebuilt {
		if err := after.Indexes().SetAside("/drive/index"); err != nil {
			return err
		}
	}
	s, err := blocks.Open(config(after))
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := w.compareBlocks(s, rebuilt); err != nil {
		return err
	}
	if !rebuilt {
		if err := w.compareRegisters(s); err != nil {
			return err
		}
	}
	if w.epoch != 0 {
		if err := s.Sync(context.Background(), 0, w.epoch); !errors.Is(err, blocks.ErrLost) {
			return fmt.Errorf("sync under the epoch before the power cut: %v", err)
		}
	}
	return goesOn(s, r)
}

func (w *world) compareBlocks(s *blocks.Store, rebuilt bool) error {
	for v := range vnodes {
		for stripe := range stripes {
			for index := range indexes {
				k := key{v, stripe, index}
				if err := compareBlock(s, k, w.blocks[k], rebuilt); err != nil {
					return fmt.Errorf("block %v (index made anew: %v): %w", k, rebuilt, err)
				}
			}
		}
	}
	return nil
}

func compareBlock(s *blocks.Store, k key, want expectation, rebuilt bool) error {
	shard := Shard(k.stripe, k.index)
	have, err := s.Have(shard.Stripe)
	if err != nil {
		return err
	}
	there := false
	for _, l := range have {
		if int(l.Header.Index) != k.index || l.Vnode != vnode(k.vnode) {
			continue
		}
		there = true
		if err := s.Verify(l); err != nil {
			return fmt.Errorf("the index names what is not durable: %w", err)
		}
		got, err := s.Get(l.Vnode, shard.Stripe, k.index, 0, 0)
		if err != nil {
			return err
		}
		if got.Header != shard.Header || !bytes.Equal(got.Data, shard.Data) {
			return errors.New("wrong data")
		}
	}
	switch {
	case want.maybe:
	case want.there && !there:
		return errors.New("synced and lost")
	case !want.there && there && !rebuilt: // a deleted block may be found in the disk file
		return errors.New("deleted, synced, and there again")
	}
	return nil
}

func (w *world) compareRegisters(s *blocks.Store) error {
next:
	for name, values := range w.regs {
		got, err := s.Registers().Get([]byte(name))
		if err != nil && !errors.Is(err, blocks.ErrNotFound) {
			return err
		}
		for _, v := range values {
			if v == string(got) {
				continue next
			}
		}
		return fmt.Errorf("register %s is %q, which is none of %q", name, got, values)
	}
	return nil
}

// goesOn uses the store a little more.
func goesOn(s *blocks.Store, r *rand.Rand) error {
	shard := Shard(1000+r.IntN(100), 0)
	e, err := s.Put(vnode(0), shard)
	if errors.Is(err, blocks.ErrNoSpace) {
		return nil
	}
	if err == nil {
		err = s.Sync(context.Background(), 0, e)
	}
	if err != nil {
		return fmt.Errorf("go on: %w", err)
	}
	got, err := s.Get(vnode(0), shard.Stripe, 0, 0, 0)
	if err != nil || !bytes.Equal(got.Data, shard.Data) {
		return fmt.Errorf("go on: wrong data or %w", err)
	}
	return nil
}
