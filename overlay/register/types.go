package register

import (
	"cmp"
	"maps"
	"slices"

	"github.com/mutualfs/mutualfs/blocks"
)

// ballot orders the coordinators of a register. No two prepare phases ever
// succeed with the same one: an acceptor promises a ballot at most once.
type ballot struct {
	N    uint64
	Peer blocks.PeerID
}

func (a ballot) compare(b ballot) int {
	if c := cmp.Compare(a.N, b.N); c != 0 {
		return c
	}
	return a.Peer.Compare(b.Peer.ID)
}

// tag names one state of a register: equal tags, equal states. Step counts
// the states since the creation, those that change only the view included.
// The zero tag is before the creation.
type tag struct {
	Ballot ballot
	Step   uint64
}

func (a tag) compare(b tag) int {
	if c := a.Ballot.compare(b.Ballot); c != 0 {
		return c
	}
	return cmp.Compare(a.Step, b.Step)
}

// member is a replica: a peer with the store that it had when it became one.
type member struct {
	Peer        blocks.PeerID
	Incarnation uint64
}

// view is a register's replica set. While Prev is not empty the view is
// joint: everything needs a majority of Members and one of Prev.
type view struct {
	Number  uint64
	Members []member
	Prev    []member
}

// all returns the members of both sets, each once, Members first.
func (v view) all() []member {
	out := slices.Clone(v.Members)
	for _, m := range v.Prev {
		if !slices.Contains(out, m) {
			out = append(out, m)
		}
	}
	return out
}

// peers returns the peers of both sets, each once.
func (v view) peers() []blocks.PeerID {
	var out []blocks.PeerID
	for _, m := range v.all() {
		if !slices.Contains(out, m.Peer) {
			out = append(out, m.Peer)
		}
	}
	return out
}

// quorum reports whether those for whom has is true are a majority of the
// view, of both its sets while it is joint.
func (v view) quorum(has func(member) bool) bool {
	return majority(v.Members, has) && (len(v.Prev) == 0 || majority(v.Prev, has))
}

func majority(set []member, has func(member) bool) bool {
	n := 0
	for _, m := range set {
		if has(m) {
			n++
		}
	}
	return n > len(set)/2
}

// state is a register's agreed state without its value.
type state struct {
	Tag     tag
	Version blocks.Version
	Base    blocks.Version // of the snapshot
	Bytes   uint64         // of the snapshot and the deltas together
	Deltas  uint64         // how many deltas that are not empty there are
	View    view
	Lease   blocks.Lease   // who holds it alone; Epoch is the newest one of any grant
	Readers []blocks.Lease // who share it, in the order of the grants; none while one holds it alone
	Deleted bool
	Applied map[blocks.PeerID]uint64
	First   uint64 // of a shared creation: how many members must have accepted the first state; else 0
}

// undecided reports whether this is the first state of a shared creation: only a search shows that no
// other one was chosen.
func (s *state) undecided() bool { return s.First > 0 && s.Tag.Step <= 1 }

// chosenBy reports whether the state is chosen if those for whom has is true have accepted it.
func (s *state) chosenBy(has func(member) bool) bool {
	if s.undecided() {
		n := uint64(0)
		for _, m := range s.View.Members {
			if has(m) {
				n++
			}
		}
		if n < s.First {
			return false
		}
	}
	return s.View.quorum(has)
}

// next returns a copy to be changed into the following state.
func (s *state) next() *state {
	n := *s
	n.Applied = maps.Clone(s.Applied)
	n.Readers = slices.Clone(s.Readers)
	return &n
}

// leases returns all that are held, alone or shared.
func (s *state) leases() []blocks.Lease {
	if !s.Lease.Holder.IsZero() {
		return []blocks.Lease{s.Lease}
	}
	return s.Readers
}

// leaseOf returns what the mount holds, alone or shared; the zero lease: nothing.
func (s *state) leaseOf(mount blocks.PeerID) blocks.Lease {
	for _, l := range s.leases() {
		if l.Holder == mount {
			return l
		}
	}
	return blocks.Lease{}
}

// leaseWith returns the lease that was granted with the epoch, if it is held still; else the zero lease.
func (s *state) leaseWith(epoch uint64) blocks.Lease {
	for _, l := range s.leases() {
		if epoch != 0 && l.Epoch == epoch {
			return l
		}
	}
	return blocks.Lease{}
}

// inTheWay returns a lease that must be given back before the mount may read, or if change is set before it may change the
// register; the zero lease: there is none. To share a lease is in the way of a mount's own changes, too: one that comes late,
// after its mount has given it up and shares the lease again, must not pass it by.
func (s *state) inTheWay(mount blocks.PeerID, change bool) blocks.Lease {
	switch {
	case !s.Lease.Holder.IsZero() && s.Lease.Holder != mount:
		return s.Lease
	case s.Lease.Holder.IsZero() && change && len(s.Readers) > 0:
		return s.Readers[0]
	}
	return blocks.Lease{}
}

// delta is what one version appended to the value.
type delta struct {
	Version blocks.Version
	Data    []byte
}

// patch brings a value from one state to a later one: if Whole, the value
// begins anew with Snapshot; then Deltas follow, empty ones left out.
type patch struct {
	Whole    bool
	Snapshot []byte
	Deltas   []delta
}

// register makes the result that callers see: the state, and the value as p
// brings it there from version since.
func (s *state) register(id blocks.RegisterID, since blocks.Version, p patch) blocks.Register {
	r := blocks.Register{ID: id, Version: s.Version, View: s.View.peers(), Lease: s.Lease, Readers: slices.Clone(s.Readers), Deleted: s.Deleted,
		Base: since, Applied: maps.Clone(s.Applied)}
	if p.Whole {
		r.Base, r.Snapshot = s.Base, p.Snapshot
		if r.Snapshot == nil {
			r.Snapshot = []byte{}
		}
	}
	if r.Base < s.Version && !s.Deleted {
		r.Deltas = make([][]byte, s.Version-r.Base)
		for _, d := range p.Deltas {
			if d.Version > r.Base && d.Version <= s.Version {
				r.Deltas[d.Version-r.Base-1] = d.Data
			}
		}
	}
	return r
}
