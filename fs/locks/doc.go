// Package locks keeps advisory locks, flock(2) and fcntl(2) ranges, that hold on all mounts of a ring.
// docs/locks.md has the protocol and what is promised.
//
// It must know: what locks exclude each other, registers and their leases (Registers). It must not
// know: FUSE, the tree, how data is kept (Files), what a register is kept on.
//
// The file's inode number chooses one of Shards registers. A mount that alone locks files of a shard holds the
// register's exclusive lease and decides from memory. When another comes the lease is recalled: the holder publishes
// its locks, and from then on both change the register, each reading what is newer when its change is refused.
//
// A lock in a register names the mount and its session: a register that exists only for its lease. While the
// lease is the mount's, its locks hold. The peers take it from a mount that they have not heard for a while, as
// they take any lease; then its locks are nobody's, and the mount finds out before it believes in them again.
//
// One mutex guards all that is in memory; it is never held across a call. Of a shard's steps with the ring there
// is one at a time. Run owns the goroutines; blocking calls wait in that of their caller.
//
// # Formats
//
// A lock register's value is a sealed snapshot, never deltas. Numbers are varints unless a width is given:
//
//	value = 1 (1 byte), list of lives, list of entries that hold, list of entries that wait, first come first
//	life  = mount ID (20), session register ID (20)
//	entry = place of its life in the list, ticket (0 for a lock), inode number (8), kind (1: 0 flock, 1 range),
//	        owner (8), type (1: 1 read, 2 write), first byte, length - 1, process ID
//
// The IDs of the registers are the hash of "mutualfs locks", the root directory's register ID and one byte,
// the shard's number; a session's is random and used once.
package locks
