// Package content keeps what files contain: dirty data on its way to stripes,
// extents on their way back, read-ahead.
//
// It must know: inode numbers, offsets, the journal's numbers, stripes as
// immutable byte strings (Stripes), what a tree says about a file's committed
// content (Inodes). It must not know: names, directories, leases, registers,
// shards, peers, encryption.
//
// # Writing
//
// A write is journaled (Inodes.AppendData), then copied into the file's slabs. A
// slab is the dirty data of one stripe-aligned range of a file, as pieces. At most
// two slabs exist per range: one dirty, which takes writes, and one frozen,
// which is on its way out and stays readable until its content is committed.
//
//	Write ─► journal ─► dirty slab ─► frozen slab, job ─► Stripes.Write ─► Stripes.Sync ─► Inodes.Writeback ─► freed
//	                    (age, full,   (one stripe)        WriteParallel    one at a time,   per file
//	                     fsync, room)                                      many jobs
//
// A job is one stripe: a full slab, or the small pieces of many slabs of one file
// one after the other, each an extent of its own. A file of at most tree.MaxInline
// bytes needs no stripe: its content goes inline into its inode.
//
// # Order
//
// Each file has two tokens. The order token is held by a writer from the
// journal to memory, and by truncate and punch, so that the journal's order is
// memory's. The commit token is held while content is committed (Writeback),
// while slabs are frozen, and while truncate and punch cut memory: what has been
// cut can not come back by a Writeback that was made before. Tokens are waited for
// under the caller's context; the mutex mu of a file guards memory only.
//
// # Slices and goroutines
//
// Slices handed in belong to the caller again when the call returns. Slabs own
// their buffers, which come from a pool and return to it once nothing refers to
// the slab. Cached stripe content does not leave the cache's mutex: the memory of
// large stripes is used again for others. Run owns all goroutines.
package content
