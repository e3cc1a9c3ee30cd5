// Package tree keeps the names, inodes and extents of the file system: containers, the operations that
// change them, the mount's journal, and the leases under which memory alone can answer.
//
// It must know: POSIX semantics of names and inodes, registers as versioned opaque values with a
// lease (Registers), its journal's files. It must not know: content (Hooks tells it what a recall and a
// truncation mean for dirty data), stripes beyond their references, shards, peers, FUSE.
//
// Design, order of commits, crash arguments and formats: docs/tree.md.
//
// # Locks and goroutines
//
// A container has two locks. mu guards its fields and is held for as long as memory takes; busy (a channel of
// one) belongs to the one goroutine that reads or changes the register by itself, and may be held
// across calls. The flusher needs only flushing, which is one batch under way. Order: busy before mu; mu of a
// directory before mu of a directory in it; mu of a container before Tree.mu; Tree.mu before nothing. Several
// busy are taken in the order of the registers' IDs.
//
// Run owns the goroutines: one flusher, which commits up to FlushParallel containers at a time,
// and one freer. Slices handed in belong to the caller again when the call returns, except those of Writeback, which must
// not change afterwards. Slices handed out by Content are shared and must not be changed; all others are the caller's.
package tree
