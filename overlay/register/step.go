package register

import (
	"fmt"
	"slices"

	"github.com/mutualfs/mutualfs/blocks"
)

// verdict says what becomes of a change.
type verdict uint8

const (
	verdictApply    verdict = iota // it makes a new state
	verdictDone                    // it has been applied already
	verdictConflict                // it is based on another version
	verdictHeld                    // a lease is in the way
	verdictGone                    // the register was deleted
)

// maxReaders bounds those who share a lease. Who is one too many reads without.
const maxReaders = 64

// bare reports whether a change does nothing but to the lease.
func bare(c *blocks.Change) bool {
	return c.Seq == 0 && c.Snapshot == nil && len(c.Delta) == 0 && !c.Delete
}

// disturbs reports whether those who share the lease must have given it back before the change.
func disturbs(c *blocks.Change) bool {
	return c.Lease == blocks.LeaseAcquire || !c.Quiet && !bare(c) || c.Delete
}

// sharing reports whether a change is only about who shares the lease.
func sharing(c *blocks.Change) bool {
	return bare(c) && (c.Lease == blocks.LeaseShare || c.Lease == blocks.LeaseLeave)
}

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
	case s.inTheWay(c.Origin, disturbs(c)) != blocks.Lease{}:
		return verdictHeld, nil, p, nil
	case c.Lease == blocks.LeaseLeave && bare(c):
		if l := s.leaseWith(c.Epoch); l.Holder != c.Origin || !s.shares(c.Origin) {
			return verdictDone, nil, p, nil
		}
	case c.Base != s.Version:
		return verdictConflict, nil, p, nil
	}
	n := s.next()
	if !sharing(c) {
		n.Version++
	}
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
	switch alone := s.Lease.Holder == c.Origin; {
	case c.Lease == blocks.LeaseRelease && alone, c.Lease == blocks.LeaseLeave && !alone:
		n.drop(c.Origin)
	case c.Lease == blocks.LeaseAcquire && (!alone || renew):
		n.Lease = blocks.Lease{Holder: c.Origin, Epoch: s.Lease.Epoch + 1}
	case c.Lease == blocks.LeaseShare && !alone && (renew || !s.shares(c.Origin)):
		if n.drop(c.Origin); len(n.Readers) < maxReaders {
			n.Lease.Epoch++
			n.Readers = append(n.Readers, blocks.Lease{Holder: c.Origin, Epoch: n.Lease.Epoch})
		}
	}
	return verdictApply, n, p, nil
}

// shares reports whether the mount is one of those that share the lease.
func (s *state) shares(mount blocks.PeerID) bool {
	return s.Lease.Holder.IsZero() && s.leaseOf(mount) != blocks.Lease{}
}

// drop takes from a mount what it holds.
func (s *state) drop(mount blocks.PeerID) {
	if s.Lease.Holder == mount {
		s.Lease.Holder = blocks.PeerID{}
	}
	s.Readers = slices.DeleteFunc(s.Readers, func(l blocks.Lease) bool { return l.Holder == mount })
}

// seize returns the state in which a silent mount has lost its lease.
func seize(s *state, mount blocks.PeerID) *state {
	n := s.next()
	n.Version++
	n.Lease.Epoch++
	n.drop(mount)
	return n
}
