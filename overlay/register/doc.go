// Package register keeps small versioned values, registers, on replica sets
// that agree by ballots: the metadata of the file system. docs/registers.md
// has the protocol, its invariants, and why leases are safe.
//
// It knows peers, home lists and calls (overlay.Ring), and a key-value store
// (KV). It must not know what a value means, nor who asks: values are opaque
// bytes, sealed by their owner, and a change is ordered and kept, not read.
//
// New sets the handlers, Run owns all goroutines; a peer with a store serves
// only while Run runs. Slices that go in belong to the caller again when the call
// returns; those that come out belong to the caller.
//
// # Formats
//
// Numbers are unsigned varints unless a width is given, IDs 20 bytes, lists
// preceded by their length. Built of these:
//
//	ballot  = number, peer ID
//	tag     = ballot, step
//	members = list of (peer ID, incarnation as 8 bytes)
//	view    = number, members, previous members (empty unless joint)
//	state   = tag, version, base, bytes, deltas, view, lease holder, lease epoch,
//	          flags (1 byte, bit 0: deleted), list of (origin, sequence number) by origin
//	patch   = whole (1 byte), snapshot, list of (version, bytes)
//
// The store has for each register
//
//	'm' ID            format (1 byte, 1), tombstone (1 byte), promised ballot, state
//	's' ID            snapshot, absent if empty
//	'd' ID version    one delta, the version as 8 bytes big-endian; absent if empty
//
// The calls, body and payload:
//
//	0501 prepare   ID, ballot, view number                          → reply
//	0502 accept    ID, previous tag, full (1 byte), state; patch    → reply
//	0503 query     ID, version since, wanted (0 tag, 1 state, 2 value) → reply; patch
//	0504 forget    ID, tag, view                                    → reply
//	     reply     status (1), incarnation (8), promised, tag, version, state present (1), state
//	0505 propose   ID, flags (1), epoch to seize, view, base, origin, sequence, lease action (1);
//	               snapshot or delta                                → verdict (1), granted (1), state; patch
//	0506 tags      list of IDs          → incarnation (8), for each: status (1), tag
//	0507 hello     session (8), mount (1), incarnation (8)          → incarnation (8)
//	0508 goodbye   session (8)
//	0509 silence   mount ID             → reply, status 0: it was not heard
//	050a counts    look anew (1)        → session (8), scan, next scan, four counts, complete (1), table hash (8)
//	050b list         ID to begin with   → more (1), ID to go on with, list of (ID, age in ms)
//	0601 recall    ID, epoch
//	0602 view of   ID, state
package register
