package store

import (
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"slices"
	"sync"

	"github.com/mutualfs/mutualfs/blocks"
)

// memShard is a block of a memLocal.
type memShard struct {
	shard blocks.Shard
	sum   uint32
}

// memLocal is a Local in memory.
type memLocal struct {
	mu     sync.Mutex
	epoch  blocks.Epoch
	blocks map[shardName]memShard
	full   bool
	puts   int
	scans  int
}

func newMemLocal() *memLocal { return &memLocal{epoch: 1, blocks: map[shardName]memShard{}} }

var _ Local = (*memLocal)(nil)

func (m *memLocal) Put(vnode blocks.VnodeID, s blocks.Shard) (blocks.Epoch, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.full {
		return 0, fmt.Errorf("%w: memory", blocks.ErrNoSpace)
	}
	m.puts++
	name := shardName{vnode, s.Stripe, int(s.Index)}
	if _, ok := m.blocks[name]; !ok {
		s.Data = bytes.Clone(s.Data)
		m.blocks[name] = memShard{s, crc32.ChecksumIEEE(s.Data)}
	}
	return m.epoch, nil
}

func (m *memLocal) Get(prefer blocks.VnodeID, stripe blocks.StripeID, index int, off, n uint32) (blocks.Shard, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	err := fmt.Errorf("%w: shard", blocks.ErrNotFound)
	for name, b := range m.blocks {
		if name.stripe != stripe || name.index != index {
			continue
		}
		if crc32.ChecksumIEEE(b.shard.Data) != b.sum {
			err = fmt.Errorf("%w: shard", blocks.ErrCorrupt)
			continue
		}
		s := b.shard
		end := s.Size
		if n > 0 {
			end = min(end, off+n)
		}
		s.Off, s.Data = off, bytes.Clone(s.Data[off:end])
		return s, nil
	}
	return blocks.Shard{}, err
}

func (m *memLocal) list(keep func(shardName) bool) []blocks.Location {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []blocks.Location
	for name, b := range m.blocks {
		if keep(name) {
			out = append(out, blocks.Location{Vnode: name.vnode, Header: b.shard.Header, Length: int64(b.shard.Size), Path: "memory"})
		}
	}
	return out
}

func (m *memLocal) Have(stripe blocks.StripeID) ([]blocks.Location, error) {
	return m.list(func(n shardName) bool { return n.stripe == stripe }), nil
}

func (m *memLocal) Delete(stripe blocks.StripeID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range m.blocks {
		if name.stripe == stripe {
			delete(m.blocks, name)
		}
	}
	return nil
}

func (m *memLocal) DeleteShard(vnode blocks.VnodeID, stripe blocks.StripeID, index int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.blocks, shardName{vnode, stripe, index})
	return nil
}

func (m *memLocal) Sync(_ context.Context, _ int, epoch blocks.Epoch) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if epoch != m.epoch {
		return fmt.Errorf("%w: epoch %d", blocks.ErrLost, epoch)
	}
	return nil
}

func (m *memLocal) Scan(from, to blocks.ID, fn func(blocks.Location) bool) error {
	m.mu.Lock()
	m.scans++
	m.mu.Unlock()
	for _, l := range m.list(func(n shardName) bool { return blocks.Between(from, n.stripe.ID, to) }) {
		if !fn(l) {
			break
		}
	}
	return nil
}

func (m *memLocal) Verify(l blocks.Location) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.blocks[nameOf(&l)]
	switch {
	case !ok:
		return fmt.Errorf("%w: shard", blocks.ErrNotFound)
	case crc32.ChecksumIEEE(b.shard.Data) != b.sum:
		return fmt.Errorf("%w: shard", blocks.ErrCorrupt)
	}
	return nil
}

// rot flips a bit of the first block that pick takes.
func (m *memLocal) rot(pick func(shardName) bool) (shardName, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, b := range m.blocks {
		if pick(name) {
			b.shard.Data[0] ^= 1
			return name, true
		}
	}
	return shardName{}, false
}

func crc(p []byte) uint32 { return crc32.ChecksumIEEE(p) }

func (m *memLocal) wipe() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.blocks)
	m.epoch++
}

func (m *memLocal) len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.blocks)
}

// memKV is a KV in memory.
type memKV struct {
	mu sync.Mutex
	m  map[string][]byte
}

func newMemKV() *memKV { return &memKV{m: map[string][]byte{}} }

func (k *memKV) Get(key []byte) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	v, ok := k.m[string(key)]
	if !ok {
		return nil, fmt.Errorf("%w: key", blocks.ErrNotFound)
	}
	return bytes.Clone(v), nil
}

func (k *memKV) Apply(changes []blocks.KVChange, _ bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range changes {
		if c.Delete {
			delete(k.m, string(c.Key))
		} else {
			k.m[string(c.Key)] = bytes.Clone(c.Value)
		}
	}
	return nil
}

func (k *memKV) Scan(prefix []byte, fn func(key, value []byte) bool) error {
	k.mu.Lock()
	var keys []string
	for key := range k.m {
		if bytes.HasPrefix([]byte(key), prefix) {
			keys = append(keys, key)
		}
	}
	k.mu.Unlock()
	slices.Sort(keys)
	for _, key := range keys {
		if v, err := k.Get([]byte(key)); err == nil && !fn([]byte(key), v) {
			break
		}
	}
	return nil
}
