package register

import (
	"fmt"
	"slices"

	"github.com/mutualfs/mutualfs/blocks"
)

// formatRecord is the first byte of a stored record.
const formatRecord = 1

// Bounds of what a decoder accepts.
const (
	maxMembers = 64 // of one set of a view
	peerSize   = blocks.IDSize
)

// record is what an acceptor keeps of a register beside the value.
type record struct {
	Promised  ballot
	Forgotten bool // a tombstone: dropped from the view; State has the tag and view that say so, and no more
	State     state
}

func putBallot(e *blocks.Encoder, b ballot) { e.Uint(b.N); e.ID(b.Peer.ID) }

func getBallot(d *blocks.Decoder) ballot {
	return ballot{N: d.Uint(), Peer: blocks.PeerID{ID: d.ID()}}
}

func putTag(e *blocks.Encoder, t tag) { putBallot(e, t.Ballot); e.Uint(t.Step) }

func getTag(d *blocks.Decoder) tag { return tag{Ballot: getBallot(d), Step: d.Uint()} }

func putMembers(e *blocks.Encoder, set []member) {
	e.Uint(uint64(len(set)))
	for _, m := range set {
		e.ID(m.Peer.ID)
		e.Uint64(m.Incarnation)
	}
}

func getMembers(d *blocks.Decoder) []member {
	n := d.Count(peerSize + 8)
	if n > maxMembers || n == 0 {
		for range n { // skip: an oversized set is refused by the caller's length check
			d.ID()
			d.Uint64()
		}
		return nil
	}
	set := make([]member, n)
	for i := range set {
		set[i] = member{blocks.PeerID{ID: d.ID()}, d.Uint64()}
	}
	return set
}

func putView(e *blocks.Encoder, v view) {
	e.Uint(v.Number)
	putMembers(e, v.Members)
	putMembers(e, v.Prev)
}

func getView(d *blocks.Decoder) view {
	return view{Number: d.Uint(), Members: getMembers(d), Prev: getMembers(d)}
}

// State flags.
const (
	flagDeleted = 1 << iota
	flagFirst
	flagReaders
)

func putState(e *blocks.Encoder, s *state) {
	putTag(e, s.Tag)
	e.Uint(uint64(s.Version))
	e.Uint(uint64(s.Base))
	e.Uint(s.Bytes)
	e.Uint(s.Deltas)
	putView(e, s.View)
	e.ID(s.Lease.Holder.ID)
	e.Uint(s.Lease.Epoch)
	var flags byte
	if s.Deleted {
		flags |= flagDeleted
	}
	if s.First > 0 {
		flags |= flagFirst
	}
	if len(s.Readers) > 0 {
		flags |= flagReaders
	}
	e.Byte(flags)
	if s.First > 0 {
		e.Uint(s.First)
	}
	if len(s.Readers) > 0 {
		e.Uint(uint64(len(s.Readers)))
		for _, l := range s.Readers {
			e.ID(l.Holder.ID)
			e.Uint(l.Epoch)
		}
	}
	origins := make([]blocks.PeerID, 0, len(s.Applied))
	for o := range s.Applied {
		origins = append(origins, o)
	}
	slices.SortFunc(origins, func(a, b blocks.PeerID) int { return a.Compare(b.ID) })
	e.Uint(uint64(len(origins)))
	for _, o := range origins {
		e.ID(o.ID)
		e.Uint(s.Applied[o])
	}
}

func getState(d *blocks.Decoder) state {
	s := state{Tag: getTag(d), Version: blocks.Version(d.Uint()), Base: blocks.Version(d.Uint()), Bytes: d.Uint(),
		Deltas: d.Uint(), View: getView(d),
		Lease: blocks.Lease{Holder: blocks.PeerID{ID: d.ID()}, Epoch: d.Uint()}}
	flags := d.Byte()
	s.Deleted = flags&flagDeleted != 0
	if flags&flagFirst != 0 {
		s.First = d.Uint()
	}
	if flags&flagReaders != 0 {
		for range d.Count(peerSize + 1) {
			s.Readers = append(s.Readers, blocks.Lease{Holder: blocks.PeerID{ID: d.ID()}, Epoch: d.Uint()})
		}
	}
	n := d.Count(peerSize + 1)
	if n > 0 {
		s.Applied = make(map[blocks.PeerID]uint64, n)
	}
	for range n {
		o := blocks.PeerID{ID: d.ID()}
		s.Applied[o] = d.Uint()
	}
	return s
}

func encodeRecord(r *record) []byte {
	e := blocks.Encoder{Buf: make([]byte, 0, 256)}
	e.Byte(formatRecord)
	e.Bool(r.Forgotten)
	putBallot(&e, r.Promised)
	putState(&e, &r.State)
	return e.Buf
}

func decodeRecord(b []byte) (record, error) {
	d := blocks.NewDecoder(b)
	if f := d.Byte(); f != formatRecord {
		return record{}, fmt.Errorf("%w: a register's record has format %d, want %d", blocks.ErrCorrupt, f, formatRecord)
	}
	r := record{Forgotten: d.Bool(), Promised: getBallot(d), State: getState(d)}
	return r, d.Done()
}

func encodePatch(p patch) []byte {
	size := 16 + len(p.Snapshot)
	for _, x := range p.Deltas {
		size += 16 + len(x.Data)
	}
	e := blocks.Encoder{Buf: make([]byte, 0, size)}
	e.Bool(p.Whole)
	e.Bytes(p.Snapshot)
	e.Uint(uint64(len(p.Deltas)))
	for _, x := range p.Deltas {
		e.Uint(uint64(x.Version))
		e.Bytes(x.Data)
	}
	return e.Buf
}

// decodePatch aliases b.
func decodePatch(b []byte) (patch, error) {
	if len(b) == 0 {
		return patch{}, nil
	}
	d := blocks.NewDecoder(b)
	p := patch{Whole: d.Bool(), Snapshot: d.Bytes()}
	if n := d.Count(2); n > 0 {
		p.Deltas = make([]delta, n)
		for i := range p.Deltas {
			p.Deltas[i] = delta{blocks.Version(d.Uint()), d.Bytes()}
		}
	}
	return p, d.Done()
}
