package store

import (
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

const (
	tombPrefix   = 'T'
	damagePrefix = 'D'
	scrubKey     = "S"
)

// maxDamaged bounds the marks of damage that are kept. Damage beyond it is found anew
// by the next scrub.
const maxDamaged = 1 << 16

// notes is what this peer has written down about stripes: which were deleted,
// so that a copy that comes back is not taken for one to be repaired,
// and which local blocks are damaged, so that they do not count.
type notes struct {
	kv   KV
	life time.Duration // of a tombstone

	burials atomic.Uint64 // tombstones written since the start

	mu      sync.Mutex
	damaged map[shardName]bool // as in kv
}

func tombKey(stripe blocks.StripeID) []byte { return append([]byte{tombPrefix}, stripe.ID[:]...) }

func damageKey(n shardName) []byte {
	key := append([]byte{damagePrefix}, n.stripe.ID[:]...)
	return append(append(key, n.vnode.ID[:]...), byte(n.index))
}

// load reads the marks of damage.
func (n *notes) load() error {
	return n.kv.Scan([]byte{damagePrefix}, func(key, _ []byte) bool {
		if len(key) == 2+2*blocks.IDSize {
			var name shardName
			copy(name.stripe.ID[:], key[1:])
			copy(name.vnode.ID[:], key[1+blocks.IDSize:])
			name.index = int(key[len(key)-1])
			n.mu.Lock()
			n.damaged[name] = true
			n.mu.Unlock()
		}
		return true
	})
}

// dead reports whether the stripe has been deleted.
func (n *notes) dead(stripe blocks.StripeID) (bool, error) {
	_, err := n.kv.Get(tombKey(stripe))
	if errors.Is(err, blocks.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// bury notes that the stripe has been deleted. It is not synced: after a
// power cut the other peers still know.
func (n *notes) bury(stripe blocks.StripeID) error {
	until := binary.BigEndian.AppendUint64(nil, uint64(time.Now().Add(n.life).Unix()))
	err := n.kv.Apply([]blocks.KVChange{{Key: tombKey(stripe), Value: until}}, false)
	n.burials.Add(1) // after the tombstone can be seen, before what it buries is looked for
	return err
}

// tombs calls fn for every deleted stripe of the arc until it returns false.
func (n *notes) tombs(arc int, fn func(blocks.StripeID) bool) error {
	return n.kv.Scan([]byte{tombPrefix, byte(arc)}, func(key, _ []byte) bool {
		var stripe blocks.StripeID
		if len(key) != 1+blocks.IDSize {
			return true
		}
		copy(stripe.ID[:], key[1:])
		return fn(stripe)
	})
}

// forget removes up to max tombstones whose time is over and says how many, and the arcs they were in.
func (n *notes) forget(now time.Time, limit int) (stripes []blocks.StripeID, err error) {
	var changes []blocks.KVChange
	err = n.kv.Scan([]byte{tombPrefix}, func(key, value []byte) bool {
		if len(key) == 1+blocks.IDSize && len(value) == 8 && int64(binary.BigEndian.Uint64(value)) < now.Unix() {
			var stripe blocks.StripeID
			copy(stripe.ID[:], key[1:])
			stripes = append(stripes, stripe)
			changes = append(changes, blocks.KVChange{Key: tombKey(stripe), Delete: true})
		}
		return len(changes) < limit
	})
	if err != nil || len(changes) == 0 {
		return nil, err
	}
	return stripes, n.kv.Apply(changes, false)
}

func (n *notes) isDamaged(name shardName) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.damaged[name]
}

// hurt marks a block as damaged; it reports whether that is news.
func (n *notes) hurt(name shardName) (bool, error) {
	n.mu.Lock()
	news := !n.damaged[name] && len(n.damaged) < maxDamaged
	if news {
		n.damaged[name] = true
	}
	n.mu.Unlock()
	if !news {
		return false, nil
	}
	return true, n.kv.Apply([]blocks.KVChange{{Key: damageKey(name)}}, false)
}

// healed takes the mark away: the block was replaced or removed.
func (n *notes) healed(name shardName) error {
	n.mu.Lock()
	was := n.damaged[name]
	delete(n.damaged, name)
	n.mu.Unlock()
	if !was {
		return nil
	}
	return n.kv.Apply([]blocks.KVChange{{Key: damageKey(name), Delete: true}}, false)
}
