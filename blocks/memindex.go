package blocks

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
)

// MemIndexes keeps indexes in memory, for tests and simulations. They lose
// unsynced changes, the newest first, when their MemFS crashes.
type MemIndexes struct {
	mu     sync.Mutex
	stores map[string]*memStore
	onOp   func()
}

var _ Indexes = (*MemIndexes)(nil)

type memStore struct {
	owner   *MemIndexes
	mu      sync.Mutex
	now     map[string][]byte
	keys    []string // of now, sorted; nil: to be made
	durable map[string][]byte
	log     [][]IndexChange // since durable
	damaged bool
}

// Open implements Indexes.
func (x *MemIndexes) Open(dir string) (Index, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	s := x.stores[dir]
	if s == nil {
		s = &memStore{owner: x, now: map[string][]byte{}, durable: map[string][]byte{}}
		x.stores[dir] = s
	}
	if s.damaged {
		return nil, fmt.Errorf("%w: index %s", ErrCorrupt, dir)
	}
	return s, nil
}

// SetAside implements Indexes.
func (x *MemIndexes) SetAside(dir string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.stores, dir)
	return nil
}

// Damage makes the index in dir unreadable for the next Open.
func (x *MemIndexes) Damage(dir string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if s := x.stores[dir]; s != nil {
		s.damaged = true
	}
}

func (x *MemIndexes) crash(r *rand.Rand, keep int) *MemIndexes {
	x.mu.Lock()
	defer x.mu.Unlock()
	c := &MemIndexes{stores: map[string]*memStore{}}
	for _, dir := range slices.Sorted(maps.Keys(x.stores)) {
		s := x.stores[dir]
		s.mu.Lock()
		n := &memStore{owner: c, durable: maps.Clone(s.durable), damaged: s.damaged}
		for _, batch := range s.log {
			if r.IntN(100) >= keep {
				break
			}
			applyTo(n.durable, batch)
		}
		n.now = maps.Clone(n.durable)
		s.mu.Unlock()
		c.stores[dir] = n
	}
	return c
}

func applyTo(m map[string][]byte, changes []IndexChange) {
	for _, c := range changes {
		if c.Delete {
			delete(m, string(c.Key))
		} else {
			m[string(c.Key)] = c.Value
		}
	}
}

// Get implements Index.
func (s *memStore) Get(key []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.now[string(key)]
	if !ok {
		return nil, ErrNotFound
	}
	return bytes.Clone(v), nil
}

// Apply implements Index.
func (s *memStore) Apply(changes []IndexChange, sync bool) error {
	if s.owner.onOp != nil {
		s.owner.onOp()
	}
	batch := slices.Clone(changes)
	for i := range batch {
		batch[i].Key, batch[i].Value = bytes.Clone(batch[i].Key), bytes.Clone(batch[i].Value)
	}
	s.mu.Lock()
	applyTo(s.now, batch)
	s.keys = nil
	s.log = append(s.log, batch)
	n := len(s.log)
	s.mu.Unlock()
	if !sync {
		return nil
	}
	if s.owner.onOp != nil {
		s.owner.onOp()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for n = min(n, len(s.log)); n > 0; n-- {
		applyTo(s.durable, s.log[0])
		s.log = s.log[1:]
	}
	return nil
}

// Scan implements Index.
func (s *memStore) Scan(from, to []byte, fn func(key, value []byte) bool) error {
	s.mu.Lock()
	if s.keys == nil {
		s.keys = slices.Sorted(maps.Keys(s.now))
	}
	i, _ := slices.BinarySearch(s.keys, string(from))
	var keys []string
	var values [][]byte
	for ; i < len(s.keys) && (len(to) == 0 || s.keys[i] < string(to)); i++ {
		keys = append(keys, s.keys[i])
		values = append(values, s.now[s.keys[i]])
	}
	s.mu.Unlock()
	for i, k := range keys {
		if !fn([]byte(k), values[i]) {
			break
		}
	}
	return nil
}

// Close implements Index.
func (s *memStore) Close() error { return nil }
