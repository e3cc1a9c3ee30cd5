// Package store keeps shards on the ring: it knows where they belong, puts and
// reads them there or on stand-ins, hands them back, and rebuilds what is
// missing. docs/placement.md thinks the protocol through.
//
// It must know the membership table (package overlay) and how to ask peers for
// shards. It must not know what is in a shard, how many bytes of a
// stripe make one, or how one is computed: that is Config.Rebuild. It keeps no
// data of its own but tombstones, marks of damage and the position of
// the scrub, all in Config.KV:
//
//	"T" stripe(20)                       -> uint64        deleted; kept until this Unix second
//	"D" stripe(20) vnode(20) index(1)    -> ""            this block is damaged
//	"S"                                  -> uint64 uint8  pass began at (Unix seconds), next arc
//
// Numbers are big-endian. No other key begins with one of these letters.
//
// A Service serves the calls of other peers (if it has a Local) from the
// goroutines of the ring; all its own goroutines belong to Run. No mutex is held across
// a call or I/O. Slices follow blocks.Holder: what goes in belongs to the
// caller again on return, what comes out belongs to the caller.
package store
