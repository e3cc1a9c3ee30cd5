package register

import "github.com/mutualfs/mutualfs/blocks"

// KV is the durable store of one peer's acceptor. It is called concurrently.
// Keys and values that go in belong to the caller again when the call
// returns; slices that come out of Get belong to the caller, those given to
// Scan's function only until it returns.
type KV interface {
	// Get returns the value of key, blocks.ErrNotFound if there is none.
	Get(key []byte) ([]byte, error)
	// Apply makes all changes happen, or nothing of it. With sync it is
	// durable when Apply returns; concurrent calls share the sync.
	Apply(changes Batch, sync bool) error
	// Scan calls fn for the keys with the prefix in ascending order until it
	// returns false. fn must not call the store.
	Scan(prefix []byte, fn func(key, value []byte) bool) error
	// Incarnation is drawn at random when the store is created: a peer that
	// lost its store must never pass for the one that had it.
	Incarnation() uint64
}

// Batch is changes that happen together, in order.
type Batch = []blocks.KVChange

var _ KV = (*blocks.KV)(nil)
