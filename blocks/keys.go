package blocks

// Keys of the index. Blocks are ordered by stripe, shard index and virtual node, so that
// all shards of a stripe lie together and an arc of the circle is a range of keys.
//
//	'b' stripe(20) index(1) vnode(20)   → block header as on disk, without padding
//	'm' "store"                         → version, incarnation, ring, peer
//	'm' "disk" vnode(20)                → the disk's superblock
//	'r' key                             → value of the register store
const (
	keyBlock    = 'b'
	keyMeta     = 'm'
	keyRegister = 'r'
)

// blockKey names a block: which shard, on which virtual node.
type blockKey struct {
	stripe StripeID
	index  uint8
	vnode  VnodeID
}

const blockKeySize = 1 + IDSize + 1 + IDSize

func (k *blockKey) encode() []byte {
	b := make([]byte, 0, blockKeySize)
	b = append(append(b, keyBlock), k.stripe.ID[:]...)
	b = append(b, k.index)
	return append(b, k.vnode.ID[:]...)
}

// decodeBlockKey reads what encode returned; false: something else.
func decodeBlockKey(b []byte) (k blockKey, ok bool) {
	if len(b) != blockKeySize || b[0] != keyBlock {
		return k, false
	}
	copy(k.stripe.ID[:], b[1:])
	k.index = b[1+IDSize]
	copy(k.vnode.ID[:], b[2+IDSize:])
	return k, true
}

// compare orders as the encoded keys do.
func (k *blockKey) compare(o *blockKey) int {
	if c := k.stripe.Compare(o.stripe.ID); c != 0 {
		return c
	}
	if k.index != o.index {
		return int(k.index) - int(o.index)
	}
	return k.vnode.Compare(o.vnode.ID)
}

func stripePrefix(s StripeID) []byte { return append([]byte{keyBlock}, s.ID[:]...) }

// prefixEnd is the first key behind all that begin with p.
func prefixEnd(p []byte) []byte {
	end := append([]byte(nil), p...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}

var keyStore = []byte{keyMeta, 's', 't', 'o', 'r', 'e'}

func keyDisk(v VnodeID) []byte {
	return append([]byte{keyMeta, 'd', 'i', 's', 'k'}, v.ID[:]...)
}
