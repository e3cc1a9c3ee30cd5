package store

import (
	"encoding/binary"
	"sync"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// arcCount is how many fixed arcs the circle is cut into: arc i holds the IDs whose first
// byte is i. It is part of the wire format.
const arcCount = 256

func arcOf(id blocks.ID) int { return int(id[0]) }

// arcRange returns the first and the last ID of an arc.
func arcRange(arc int) (from, to blocks.ID) {
	from[0] = byte(arc)
	for i := range to {
		to[i] = 0xff
	}
	to[0] = byte(arc)
	return from, to
}

// digests is a hash per arc of what lies in it: equal hashes, equal contents.
type digests [arcCount]uint64

func (m *digests) encode(e *blocks.Encoder) {
	for _, v := range m {
		e.Uint64(v)
	}
}

func (m *digests) decode(d *blocks.Decoder) {
	for i := range m {
		m[i] = d.Uint64()
	}
}

// mix is the finalizer of SplitMix64.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// digestOf hashes one thing in an arc; the digest of an arc is the sum. Stripe
// IDs are random already, so this need only keep things of one stripe apart.
func digestOf(stripe blocks.StripeID, vnode blocks.VnodeID, index int) uint64 {
	s := binary.BigEndian.Uint64(stripe.ID[4:]) ^ uint64(binary.BigEndian.Uint32(stripe.ID[12:]))<<17
	v := binary.BigEndian.Uint64(vnode.ID[:])
	return mix(mix(s+uint64(index)*0x9e3779b97f4a7c15) ^ v)
}

// digestOfTomb hashes a tombstone.
func digestOfTomb(stripe blocks.StripeID) uint64 { return digestOf(stripe, blocks.VnodeID{}, 256) }

// arcs keeps the digests of this peer. Changes only mark an arc; its hash is computed again
// from the index when someone asks: no cost on the way of a write, nothing
// that could drift from the truth.
type arcs struct {
	mu      sync.Mutex
	changes [arcCount]uint64 // how often it was touched, from 1
	hashed  [arcCount]uint64 // changes when the hash was computed
	hash    digests
}

func newArcs() *arcs {
	a := &arcs{}
	for i := range a.changes {
		a.changes[i] = 1
	}
	return a
}

func (a *arcs) touch(stripe blocks.StripeID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.changes[arcOf(stripe.ID)]++
}

// stale returns the arcs that have changed since they were hashed, and the state of all.
func (a *arcs) stale() (list []int, changes [arcCount]uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range a.changes {
		if a.changes[i] != a.hashed[i] {
			list = append(list, i)
		}
	}
	return list, a.changes
}

func (a *arcs) set(list []int, changes *[arcCount]uint64, fresh *digests) digests {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, i := range list {
		a.hashed[i], a.hash[i] = changes[i], fresh[i]
	}
	return a.hash
}

// scanAllFrom is how many stale arcs are worth a scan of the whole circle.
const scanAllFrom = arcCount / 4

// digests returns the hashes of all arcs as of now.
func (s *Service) digests() (digests, error) {
	list, changes := s.arcs.stale()
	var fresh digests
	add := func(l blocks.Location) bool {
		if !s.isDamaged(&l) {
			fresh[arcOf(l.Header.Stripe.ID)] += digestOf(l.Header.Stripe, l.Vnode, int(l.Header.Index))
		}
		return true
	}
	if len(list) >= scanAllFrom {
		from, _ := arcRange(0)
		_, to := arcRange(arcCount - 1)
		if err := s.scanLocal(from, to, add); err != nil {
			return digests{}, err
		}
	}
	for _, i := range list {
		if len(list) < scanAllFrom {
			from, to := arcRange(i)
			if err := s.scanLocal(from, to, add); err != nil {
				return digests{}, err
			}
		}
		if err := s.notes.tombs(i, func(stripe blocks.StripeID) bool {
			fresh[i] += digestOfTomb(stripe)
			return true
		}); err != nil {
			return digests{}, err
		}
	}
	return s.arcs.set(list, &changes, &fresh), nil
}

// grace is how long at least a shard stays where it was after it was copied to its home: a reader
// that looked there before the copy came must still find it here.
const grace = 10 * time.Second

// maxYoung bounds the stripes that are remembered as just written.
const maxYoung = 1 << 16

// young remembers, for at least settle and at most twice that, which stripes got a shard
// from their writer, who may not be done with them.
type young struct {
	settle time.Duration

	mu        sync.Mutex
	cur, prev map[blocks.StripeID]bool
	since     time.Time // when cur began
}

func (y *young) rotate() {
	age := time.Since(y.since)
	if age < y.settle && len(y.cur) < maxYoung && y.cur != nil {
		return
	}
	y.prev = y.cur
	if age >= 2*y.settle {
		y.prev = nil
	}
	y.cur, y.since = map[blocks.StripeID]bool{}, time.Now()
}

func (y *young) add(stripe blocks.StripeID) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.rotate()
	y.cur[stripe] = true
}

func (y *young) has(stripe blocks.StripeID) bool {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.rotate()
	return y.cur[stripe] || y.prev[stripe]
}

// epochs remembers the newest epoch of each drive that something was put under.
type epochs struct {
	mu    sync.Mutex
	drive map[int]blocks.Epoch
}

func (e *epochs) put(drive int, epoch blocks.Epoch) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.drive[drive] = epoch
}

func (e *epochs) get(drive int) (blocks.Epoch, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	epoch, ok := e.drive[drive]
	return epoch, ok
}
