// Package parity turns content into shards on holders and back: it seals a
// stripe in units, adds Reed-Solomon parity, puts shards on virtual nodes, and
// reads any range as long as k of the k+m shards can be had.
//
// It knows stripes, shards and blocks.Holder; a Placer tells it which holders a
// stripe belongs on. It must not know peers' addresses, the ring, the network,
// files or names. A Store without the volume key cannot read or write content,
// but repairs: parity is computed over ciphertext.
//
// # Layout of a stripe
//
// Clear content of Len bytes is cut into units of Unit bytes, Rows of them in
// each of K data shards, in order:
//
//	content   | unit 0 | unit 1 | ... | unit Rows-1 | unit Rows | ...
//	shard 0     unit 0 ... unit Rows-1
//	shard i     unit i*Rows ... unit (i+1)*Rows-1
//	shard K...  parity, bytewise over shards 0 ... K-1
//
//	a row of a shard (Unit+16 bytes):
//	0        clear bytes of the unit, c        c+16            Unit+16
//	| AES-256-GCM ciphertext                   | tag, 16 bytes | zeros
//
// The last unit with content may be short, those after it are absent: zeros.
// docs/stripes.md has the numbers and the derivation of keys.
//
// # Slices and goroutines
//
// Content given to Write and the buffer given to Read belong to the caller again
// when the call returns. Calls to holders run in goroutines that the Store counts; a call that
// outlives its operation (a holder that does not honour its context) keeps only
// memory of the Store. Run reports damage and, at its end, waits for all of them.
package parity
