package blocks

import (
	"errors"
	"fmt"
)

// KV is the store of a peer's registers: keys and values that it does not understand,
// in the index of one drive.
type KV struct{ d *drive }

// KVChange sets a key of the KV, or deletes it.
type KVChange = IndexChange

// Incarnation was drawn at random when the store was made: it is another
// one after the store was lost.
func (kv *KV) Incarnation() uint64 { return kv.d.regs }

func registerKey(key []byte) []byte {
	return append(append(make([]byte, 0, 1+len(key)), keyRegister), key...)
}

// Get returns a copy of the value, ErrNotFound if there is none.
func (kv *KV) Get(key []byte) ([]byte, error) {
	if err := kv.d.gate.enter(); err != nil {
		return nil, err
	}
	defer kv.d.gate.leave()
	v, err := kv.d.index.Get(registerKey(key))
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, fmt.Errorf("%w: register key %x", ErrNotFound, key)
	case err != nil:
		return nil, kv.d.indexFailed(err)
	}
	return v, nil
}

// Apply makes all changes or none. With sync it returns when they, and all that were
// applied before, are durable; calls at the same time share the cost. ErrNoSpace: the host
// drive is all but full; deletions alone are still possible.
func (kv *KV) Apply(changes []KVChange, sync bool) error {
	if err := kv.d.gate.enter(); err != nil {
		return err
	}
	defer kv.d.gate.leave()
	own, sets := make([]IndexChange, len(changes)), int64(0)
	for i, c := range changes {
		own[i] = IndexChange{Key: registerKey(c.Key), Value: c.Value, Delete: c.Delete}
		if !c.Delete {
			sets += int64(len(c.Key) + len(c.Value))
		}
	}
	if sets > 0 { // deletions go on when the drive is full
		if err := kv.d.room.takeIndex(kv.d, sets); err != nil {
			return err
		}
	}
	if err := kv.d.index.Apply(own, sync); err != nil {
		return kv.d.indexFailed(err)
	}
	return nil
}

// Scan calls fn with all pairs whose key begins with prefix, in order, until it
// returns false. The slices are valid until fn returns; fn must not close the store.
func (kv *KV) Scan(prefix []byte, fn func(key, value []byte) bool) error {
	if err := kv.d.gate.enter(); err != nil {
		return err
	}
	defer kv.d.gate.leave()
	from := registerKey(prefix)
	err := kv.d.index.Scan(from, prefixEnd(from), func(k, v []byte) bool { return fn(k[1:], v) })
	if err != nil {
		return kv.d.indexFailed(err)
	}
	return nil
}
