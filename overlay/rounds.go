package overlay

import (
	"hash/fnv"
	"sync"

	"github.com/mutualfs/mutualfs/blocks"
)

// PlacementHash hashes what placement depends on: the storage peers that
// count, and which of them are believed to be reachable.
func (t *Table) PlacementHash() uint64 {
	var e blocks.Encoder
	for _, p := range t.infos {
		if !p.Live.Counts() || p.Vnodes == 0 {
			continue
		}
		e.ID(p.ID.ID)
		e.Uint(uint64(p.Vnodes))
		e.Uint(uint64(p.Drives))
		e.String(p.Zone)
		e.Bool(p.Live.Reachable())
	}
	h := fnv.New64a()
	h.Write(e.Buf)
	return h.Sum64()
}

// Rounds follows the rounds in which peers look through what they take care of, to
// tell what was found after it was made. The zero value is ready.
type Rounds struct {
	mu   sync.Mutex
	seen map[blocks.PeerID]round
}

// round says which round of which run of a peer is new enough.
type round struct{ session, number uint64 }

// Asked reports whether the peer has answered before.
func (r *Rounds) Asked(p blocks.PeerID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.seen[p]
	return ok
}

// Fresh takes an answer of the peer: in its run session, round completed was its last, and next is the
// number of the first round that begins after the request. It reports whether the last round
// began after the first answer.
func (r *Rounds) Fresh(p blocks.PeerID, session, completed, next uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	first, ok := r.seen[p]
	if !ok {
		if r.seen == nil {
			r.seen = map[blocks.PeerID]round{}
		}
		r.seen[p] = round{session, next}
		return false
	}
	if first.session != session { // restarted meanwhile: all its rounds are new
		return completed > 0
	}
	return completed >= first.number
}
