package blocks

// Version counts the changes of a register; 0 is before its creation.
type Version uint64

// Lease names a mount and its right to a register: alone, so that nobody else may read or change it unasked, or
// with others, so that nobody may change it. The zero lease is nobody's. Each grant of a register has an epoch of its own, a higher one than all before.
type Lease struct {
	Holder PeerID
	Epoch  uint64
}

// LeaseAction says what a change does to the lease.
type LeaseAction uint8

const (
	LeaseKeep    LeaseAction = iota // leave it as it is
	LeaseAcquire                    // make it the origin's alone
	LeaseRelease                    // give it back, if the origin holds it alone
	LeaseShare                      // let the origin read, with others; nothing, if it holds the lease alone
	LeaseLeave                      // give back what the origin shares since Epoch
)

// Change is one proposed step of a register. Its values are opaque to those
// who agree on it: they order and keep what they cannot read. It is refused while another mount holds the lease alone; and while
// others share it, unless it is quiet. To share a lease and to leave it makes no new version, if that is all that a change does.
type Change struct {
	Base     Version // the version it was made from; 0 creates the register
	Origin   PeerID  // the mount that proposes it
	Seq      uint64  // the origin's sequence number, growing per register; 0: not deduplicated (lease changes only)
	Snapshot []byte  // if not nil, the whole new value
	Delta    []byte  // else what is appended to the value
	Lease    LeaseAction
	Epoch    uint64 // of LeaseLeave, which needs no base: another epoch, and it does nothing
	Quiet    bool   // those who share the lease need not know: what they answer from memory does not depend on it
	Delete   bool   // the register ends here; its ID is never used again
	Shared   bool   // of a creation: other mounts may create the same ID; the first wins, the others meet a conflict. Dearer: all storage peers are asked
}

// LeaseOf returns the lease of a mount, and whether it is a shared one; others: another mount shares it, too.
func (r *Register) LeaseOf(mount PeerID) (l Lease, shared, others bool) {
	l = r.Lease
	for _, x := range r.Readers {
		if x.Holder == mount {
			l, shared = x, true
		} else {
			others = true
		}
	}
	return l, shared, others
}

// Register is a register's agreed state, or the part of it that is newer than
// what the reader had.
type Register struct {
	ID      RegisterID
	Version Version
	View    []PeerID // the replica set, the coordinator's choice first
	Lease   Lease    // who holds it alone; without a holder, the newest epoch
	Readers []Lease  // who share it; none while one holds it alone
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
