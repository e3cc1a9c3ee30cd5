package main

import (
	"slices"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay/register"
)

// The registers and the notes on shards share the index of the first drive: each has a prefix.
var (
	registerPrefix = []byte("r")
	shardsPrefix   = []byte("s")
)

func under(prefix, key []byte) []byte { return slices.Concat(prefix, key) }

func scanUnder(kv *blocks.KV, prefix, key []byte, fn func(key, value []byte) bool) error {
	return kv.Scan(under(prefix, key), func(k, v []byte) bool { return fn(k[len(prefix):], v) })
}

// registerKV is register.KV.
type registerKV struct{ *blocks.KV }

var _ register.KV = registerKV{}

// Get is register.KV.
func (kv registerKV) Get(key []byte) ([]byte, error) { return kv.KV.Get(under(registerPrefix, key)) }

// Apply is register.KV.
func (kv registerKV) Apply(b register.Batch, sync bool) error {
	changes := make([]blocks.KVChange, len(b))
	for i, op := range b {
		changes[i] = blocks.KVChange{Key: under(registerPrefix, op.Key), Value: op.Value, Delete: op.Delete}
	}
	return kv.KV.Apply(changes, sync)
}

// Scan is register.KV.
func (kv registerKV) Scan(prefix []byte, fn func(key, value []byte) bool) error {
	return scanUnder(kv.KV, registerPrefix, prefix, fn)
}

// shardNotes is store.KV.
type shardNotes struct{ kv *blocks.KV }

// Get is store.KV.
func (n shardNotes) Get(key []byte) ([]byte, error) { return n.kv.Get(under(shardsPrefix, key)) }

// Apply is store.KV.
func (n shardNotes) Apply(changes []blocks.KVChange, sync bool) error {
	own := make([]blocks.KVChange, len(changes))
	for i, c := range changes {
		own[i] = blocks.KVChange{Key: under(shardsPrefix, c.Key), Value: c.Value, Delete: c.Delete}
	}
	return n.kv.Apply(own, sync)
}

// Scan is store.KV.
func (n shardNotes) Scan(prefix []byte, fn func(key, value []byte) bool) error {
	return scanUnder(n.kv, shardsPrefix, prefix, fn)
}
