package register

import (
	"fmt"

	"github.com/mutualfs/mutualfs/blocks"
)

// verdict says what becomes of a change.
type verdict uint8

const (
	verdictApply    verdict = iota // it makes a new state
	verdictDone                    // it has been applied already
	verdictConflict                // it is based on another version
	verdictHeld                    // another mount holds the lease
	verdictGone                    // the register was deleted
)

// judge decides about change c on state s and, with verdictApply, returns the
// following state (tag not set) and what happens to the value. renew asks for
// a new epoch for a lease that the origin holds already. It is pure.
func judge(s *state, c *blocks.Change, renew bool) (verdict, *state, patch, error) {
	var p patch
	switch {
	case s.Deleted && !(c.Seq != 0 && c.Seq <= s.Applied[c.Origin]):
		return verdictGone, nil, p, nil
	case c.Seq != 0 && c.Seq <= s.Applied[c.Origin]:
		return verdictDone, nil, p, nil
	case !s.Lease.Holder.IsZero() && s.Lease.Holder != c.Origin:
		return verdictHeld, nil, p, nil
	case c.Base != s.Version:
		return verdictConflict, nil, p, nil
	}
	n := s.next()
	n.Version++
	if c.Seq != 0 {
		if n.Applied == nil {
			n.Applied = map[blocks.PeerID]uint64{}
		}
		n.Applied[c.Origin] = c.Seq
	}
	switch {
	case c.Delete:
		n.Deleted, n.Lease.Holder, n.Bytes, n.Deltas, n.Base = true, blocks.PeerID{}, 0, 0, n.Version
		return verdictApply, n, patch{Whole: true}, nil
	case c.Snapshot != nil || s.Version == 0:
		value := c.Snapshot
		if value == nil {
			value = c.Delta
		}
		n.Base, n.Bytes, n.Deltas = n.Version, uint64(len(value)), 0
		p = patch{Whole: true, Snapshot: value}
	case len(c.Delta) > 0:
		n.Bytes += uint64(len(c.Delta))
		n.Deltas++
		p = patch{Deltas: []delta{{n.Version, c.Delta}}}
	}
	if n.Bytes > MaxValue || n.Deltas > MaxDeltas {
		return verdictApply, nil, p, fmt.Errorf("%w: the value would have %d bytes in a snapshot and %d deltas, the most are %d and %d: propose a smaller snapshot",
			blocks.ErrNoSpace, n.Bytes, n.Deltas, MaxValue, MaxDeltas)
	}
	switch mine := s.Lease.Holder == c.Origin; {
	case c.Lease == blocks.LeaseRelease && mine:
		n.Lease.Holder = blocks.PeerID{}
	case c.Lease == blocks.LeaseAcquire && (!mine || renew):
		n.Lease = blocks.Lease{Holder: c.Origin, Epoch: s.Lease.Epoch + 1}
	}
	return verdictApply, n, p, nil
}

// seize returns the state in which the silent holder has lost its lease.
func seize(s *state) *state {
	n := s.next()
	n.Version++
	n.Lease = blocks.Lease{Epoch: s.Lease.Epoch + 1}
	return n
}
