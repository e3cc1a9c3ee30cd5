// Package overlay is the ring: who belongs to it, who is believed to live, who is
// responsible for which position, and where things should lie.
//
// It must know: peers, virtual nodes, positions, home lists. It must not know: what
// a shard or a register contains, files, how bytes travel (Transport), how streams
// are opened (Config.Dial). The services on top (overlay/store, overlay/register) see it as a Ring.
//
// The parts, each in its own files, and what they may know of each other:
//
//	table.go, home.go     Table: an immutable snapshot, and home lists from it. Pure.
//	member.go             members: the states alive … gone and when they change. No network.
//	gossip*.go            drives the memberlist library over Transport and Dial; tells members what it learns.
//	watch.go              pings the silent, joins again whom the gossip lost, saves what a restart must know.
//	chord.go, stabilize.go, lookup.go   the pointers of this peer's virtual nodes, rounds, lookups.
//	check.go              what `ring` and `ring --check` show.
//	peer.go               Peer: wires them, sends and serves calls.
//
// docs/ring.md describes the protocol and where it differs from the papers.
//
// Goroutines: New starts none. Run starts the loops and returns when they, their calls and the
// packets under way have ended; goroutines of the memberlist library itself end within a
// probe's time after that. Slices of a request belong to the caller; a handler must
// not keep them. Snapshots, and the slices that they return, are shared and must not be changed.
//
// Locks: members.mu, chord.mu and gossip.mu are held for memory operations
// only. Peer.pubMu orders snapshots; it may take members.mu, and chord.mu in New. The gossip library calls
// us with its own lock held, so what it calls takes members.mu at most.
package overlay
