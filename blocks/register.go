package blocks

// Version counts the changes of a register; 0 is before its creation.
type Version uint64

// Lease names the mount that alone may change a register. The zero lease is
// nobody's. Epoch grows each time the lease changes hands.
type Lease struct {
	Holder PeerID
	Epoch  uint64
}

// LeaseAction says what a change does to the lease.
type LeaseAction uint8

const (
	LeaseKeep    LeaseAction = iota // leave it as it is
	LeaseAcquire                    // make it the origin's; refused while another mount holds it
	LeaseRelease                    // give it back, if the origin holds it
)

// Change is one proposed step of a register. Its values are opaque to those
// who agree on it: they order and keep what they cannot read.
type Change struct {
	Base     Version // the version it was made from; 0 creates the register
	Origin   PeerID  // the mount that proposes it
	Seq      uint64  // the origin's sequence number, growing per register; 0: not deduplicated (lease changes only)
	Snapshot []byte  // if not nil, the whole new value
	Delta    []byte  // else what is appended to the value
	Lease    LeaseAction
	Delete   bool // the register ends here; its ID is never used again
	Shared   bool // of a creation: other mounts may create the same ID; the first wins, the others meet a conflict. Dearer: all storage peers are asked
}

// Register is a register's agreed state, or the part of it that is newer than
// what the reader had.
type Register struct {
	ID      RegisterID
	Version Version
	View    []PeerID // the replica set, the coordinator's choice first
	Lease   Lease
	Deleted bool
	// The value is Snapshot, as of version Base, followed by Deltas, which are
	// those of versions Base+1 … Version (empty ones for changes of the lease
	// alone). If the reader's version is not older than Base, then Snapshot is
	// nil, Base is the reader's version, and the deltas begin after it.
	Base     Version
	Snapshot []byte
	Deltas   [][]byte
	Applied  map[PeerID]uint64 // highest sequence number applied, by origin
}
