package blocks

import "context"

// StripeRef is what a reader must know to find and open a stripe.
type StripeRef struct {
	ID  StripeID
	Len uint32 // clear content, bytes, 1 … MaxStripe
	K   uint8  // data shards of this stripe (small stripes have fewer than the ring's k)
	M   uint8  // parity shards
}

// MaxStripe bounds the clear content of one stripe, in bytes.
const MaxStripe = 8 << 20

// Owner says to which register (a directory, or a promoted inode) and inode a
// stripe belongs, so that a sweep can ask whether it is still in use.
type Owner struct {
	Register RegisterID
	Ino      uint64
}

// Header describes a shard; it is stored with it, so that a virtual disk can be
// indexed and scrubbed from the disk file alone.
type Header struct {
	Stripe    StripeID
	StripeLen uint32 // clear content of the whole stripe, bytes
	Index     uint8  // which shard: 0 … K+M-1, data first
	K, M      uint8
	Size      uint32  // payload of this shard, bytes
	Unit      uint32  // payload bytes under one checksum, > 0; the last unit may be shorter
	Owner     Owner   // whose stripe it is
	Home      VnodeID // where the shard belongs; other than the vnode that holds it: a hint to hand it back
	Written   int64   // when it was made, Unix seconds, by the writer's clock
}

// Ref returns the stripe reference that the header belongs to.
func (h *Header) Ref() StripeRef {
	return StripeRef{ID: h.Stripe, Len: h.StripeLen, K: h.K, M: h.M}
}

// Shard is a shard's header with a range of its payload: Data is
// payload[Off : Off+len(Data)].
type Shard struct {
	Header
	Off  uint32
	Data []byte
}

// Epoch is drawn anew at random each time a drive is opened. A Put that was
// answered under one epoch can only be synced under the same one: after a
// crash the shard may be gone.
type Epoch uint64

// Holder is a virtual node as the place where shards are put: on this machine or
// on another. Every call is bounded by ctx. Slices that go in belong to the
// caller again when the call returns; slices that come out belong to the
// caller.
type Holder interface {
	// Vnode is the position of the virtual node.
	Vnode() VnodeID
	// Peer is the peer that runs it: holders of one peer fail together, and
	// one Sync covers all of them that share a Drive.
	Peer() PeerID
	// Drive numbers the drive of the peer that the virtual disk lies on.
	Drive() int
	// Up reports whether the peer is believed to be reachable. It never waits.
	Up() bool
	// Get returns payload bytes [off, off+n) of shard index of the stripe, n = 0 for
	// all from off; checksums of all units touched have been verified. The
	// whole peer is searched, this virtual node first. ErrNotFound: the peer
	// has no such shard. ErrCorrupt: it has, and it is damaged.
	Get(ctx context.Context, stripe StripeID, index int, off, n uint32) (Shard, error)
	// Put stores a whole shard (Off 0, all of the payload). Putting the same
	// shard again is no error. It is durable only after Sync with the epoch returned.
	// ErrNoSpace: the virtual disk or its drive is full.
	Put(ctx context.Context, s Shard) (Epoch, error)
	// Have returns the headers of all shards of the stripe that the peer has,
	// on any of its virtual nodes; none is no error.
	Have(ctx context.Context, stripe StripeID) ([]Header, error)
	// Delete removes all shards of the stripe from the peer. None there is no error.
	Delete(ctx context.Context, stripe StripeID) error
	// Sync makes all that was Put on this holder's drive under the epoch durable.
	// ErrLost: the drive has been reopened since.
	Sync(ctx context.Context, epoch Epoch) error
}

// Receipt says which shards of a stripe have been put where. The stripe is
// durable only when they have been synced.
type Receipt struct {
	Ref    StripeRef
	Placed []Placed
}

// Placed is one shard of a receipt.
type Placed struct {
	Index  uint8
	Holder Holder
	Epoch  Epoch
}
