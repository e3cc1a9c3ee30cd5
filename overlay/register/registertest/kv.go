// Package registertest is an in-memory store for the tests of registers and
// of what uses them: it loses in a crash what was not synced.
package registertest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay/register"
)

// KV implements register.KV in memory.
type KV struct {
	// Fault, if not nil, is asked before each Apply; its error is returned
	// instead of applying. It may wait.
	Fault func(ctx context.Context) error

	mu          sync.Mutex
	incarnation uint64
	now         map[string][]byte
	keys        []string          // of now, sorted
	undo        map[string][]byte // what keys changed since the last sync were before; nil: absent
	syncs       int
	dead        bool
}

var _ register.KV = (*KV)(nil)

// New makes an empty store.
func New(incarnation uint64) *KV {
	return &KV{incarnation: incarnation, now: map[string][]byte{}, undo: map[string][]byte{}}
}

// Get returns a copy of the value.
func (k *KV) Get(key []byte) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	v, ok := k.now[string(key)]
	if !ok {
		return nil, fmt.Errorf("key %x: %w", key, blocks.ErrNotFound)
	}
	return append([]byte{}, v...), nil
}

// Apply applies the batch; with sync everything applied so far survives a crash.
func (k *KV) Apply(b register.Batch, sync bool) error {
	if k.Fault != nil {
		if err := k.Fault(context.Background()); err != nil {
			return err
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.dead {
		return fmt.Errorf("%w: the store's process has ended", blocks.ErrUnavailable)
	}
	for _, op := range b {
		if _, ok := k.undo[string(op.Key)]; !ok && !sync {
			k.undo[string(op.Key)] = k.now[string(op.Key)]
		}
		if op.Delete {
			k.set(string(op.Key), nil)
		} else {
			k.set(string(op.Key), append([]byte{}, op.Value...))
		}
	}
	if sync {
		k.syncs++
		clear(k.undo)
	}
	return nil
}

// Scan calls fn in the order of keys, outside of the store's lock.
func (k *KV) Scan(prefix []byte, fn func(key, value []byte) bool) error {
	k.mu.Lock()
	from, _ := slices.BinarySearch(k.keys, string(prefix))
	var found [][2][]byte
	for _, key := range k.keys[from:] {
		if !strings.HasPrefix(key, string(prefix)) {
			break
		}
		found = append(found, [2][]byte{[]byte(key), slices.Clone(k.now[key])})
	}
	k.mu.Unlock()
	for _, pair := range found {
		if !fn(pair[0], pair[1]) {
			break
		}
	}
	return nil
}

// set changes one key; nil deletes it.
func (k *KV) set(key string, value []byte) {
	at, have := slices.BinarySearch(k.keys, key)
	switch {
	case value == nil && have:
		k.keys = slices.Delete(k.keys, at, at+1)
		delete(k.now, key)
	case value != nil:
		if !have {
			k.keys = slices.Insert(k.keys, at, key)
		}
		k.now[key] = value
	}
}

// Incarnation returns what New was given.
func (k *KV) Incarnation() uint64 { return k.incarnation }

// Crash ends the use of this store, as by a process that died, and returns
// the one that the next process finds: what was not synced is lost.
func (k *KV) Crash() *KV {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.dead = true
	next := New(k.incarnation)
	next.Fault = k.Fault
	maps.Copy(next.now, k.now)
	next.keys = slices.Clone(k.keys)
	for key, v := range k.undo {
		next.set(key, v)
	}
	return next
}

// Syncs returns how many synced batches there were.
func (k *KV) Syncs() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.syncs
}
