package tree

import (
	"fmt"
	"slices"
	"sort"
	"syscall"

	"github.com/mutualfs/mutualfs/blocks"
)

// MapBytes is how much of a file one extent map covers, unless Config says otherwise. No stripe has content of two such
// ranges: else a map could not tell when its last use ends.
const MapBytes = 256 << 20

// maxMaps bounds the maps of one file, by what a register holds.
const maxMaps = 1 << 17

// MapRef says that the extents of the range Index of a file, or some of them, lie in the map ID. Bytes is how many bytes of
// content it has.
type MapRef struct {
	Index uint64
	ID    blocks.RegisterID
	Bytes uint64
}

// Range is the bytes [From, To) of a file.
type Range struct{ From, To uint64 }

// fileMaps is what a promoted inode has besides its own extents, which win over what its maps have; the maps win over
// what is inline. Only a spill changes a map that has a name here, and what it moves is in one place before and after it.
type fileMaps struct {
	mapSpan uint64   // bytes that one map covers; 0: there has been no map yet
	maps    []MapRef // by index
	cuts    []Range  // what is not to be seen any more of the maps: ascending, apart from each other, each of one map's range
}

// mapOf returns where in the table the map of a range is, or would be.
func (m *fileMaps) mapOf(index uint64) (int, bool) {
	i := sort.Search(len(m.maps), func(i int) bool { return m.maps[i].Index >= index })
	return i, i < len(m.maps) && m.maps[i].Index == index
}

// spanOf returns the bytes that a range has.
func (m *fileMaps) spanOf(index uint64) Range {
	return Range{index * m.mapSpan, (index + 1) * m.mapSpan}
}

// mapped is how many bytes of content the maps have.
func (m *fileMaps) mapped() (n uint64) {
	for i := range m.maps {
		n += m.maps[i].Bytes
	}
	return n
}

// cutMaps hides [from, to) of what the maps have. A map that lies in it has no use any more.
func (s *State) cutMaps(from, to uint64) {
	if len(s.maps) == 0 || from >= to {
		return
	}
	kept := s.maps[:0:0]
	for _, m := range s.maps {
		r := s.spanOf(m.Index)
		switch {
		case to <= r.From || from >= r.To:
			kept = append(kept, m)
		case from <= r.From && to >= r.To:
			s.freeRegs[m.ID] = struct{}{}
			s.cuts = without(s.cuts, r)
		default:
			kept = append(kept, m)
			s.cuts = with(s.cuts, Range{max(from, r.From), min(to, r.To)}, r)
		}
	}
	s.maps = kept
}

// dropMaps ends all maps: their content has no use any more.
func (s *State) dropMaps() { s.cutMaps(0, ^uint64(0)) }

// with returns the ranges and r, which lies within bounds, as ascending ranges; those within bounds do not touch.
func with(l []Range, r, bounds Range) []Range {
	var out []Range
	for _, x := range l {
		if x.To < r.From || x.From > r.To || x.To <= bounds.From || x.From >= bounds.To {
			out = append(out, x)
			continue
		}
		r = Range{min(r.From, x.From), max(r.To, x.To)}
	}
	i := sort.Search(len(out), func(i int) bool { return out[i].From > r.From })
	return slices.Insert(out, i, r)
}

// without returns the ranges that do not lie in r, which no range crosses the ends of.
func without(l []Range, r Range) []Range {
	return slices.DeleteFunc(slices.Clone(l), func(x Range) bool { return x.From >= r.From && x.To <= r.To })
}

// inside returns the ranges, as far as they lie in r.
func inside(l []Range, r Range) (out []Range) {
	for _, x := range l {
		if f, t := max(x.From, r.From), min(x.To, r.To); f < t {
			out = append(out, Range{f, t})
		}
	}
	return out
}

// clip returns the extents, as far as they lie in r.
func clip(l []Extent, r Range) []Extent {
	i := sort.Search(len(l), func(i int) bool { return l[i].Off+l[i].Len > r.From })
	var out []Extent
	for ; i < len(l) && l[i].Off < r.To && r.From < r.To; i++ {
		out = append(out, l[i].In(r))
	}
	return out
}

// In returns what of an extent lies in r; there must be something.
func (x Extent) In(r Range) Extent {
	from, to := max(x.Off, r.From), min(x.Off+x.Len, r.To)
	x.Off, x.At, x.Len = from, x.At+uint32(from-x.Off), to-from
	return x
}

// overlay returns what is to be seen of base where neither cuts nor top hide it, and all of top.
func overlay(base []Extent, cuts []Range, top []Extent) []Extent {
	hidden := slices.Clone(cuts)
	for i := range top {
		hidden = append(hidden, Range{top[i].Off, top[i].Off + top[i].Len})
	}
	slices.SortFunc(hidden, func(a, b Range) int { return compare(a.From, b.From) })
	out := make([]Extent, 0, len(base)+len(top))
	h := 0
	for _, x := range base {
		for h < len(hidden) && hidden[h].To <= x.Off {
			h++
		}
		at, end := x.Off, x.Off+x.Len
		for i := h; i < len(hidden) && hidden[i].From < end; i++ {
			if hidden[i].From > at {
				out = append(out, x.In(Range{at, hidden[i].From}))
			}
			at = max(at, hidden[i].To)
		}
		if at < end {
			out = append(out, x.In(Range{at, end}))
		}
	}
	out = append(out, top...)
	slices.SortFunc(out, func(a, b Extent) int { return compare(a.Off, b.Off) })
	return join(out)
}

func compare(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// join makes one extent of those that go on from one to the next in file and stripe. It changes l.
func join(l []Extent) []Extent {
	out := l[:0]
	for _, x := range l {
		if n := len(out) - 1; n >= 0 && out[n].Stripe.ID == x.Stripe.ID && out[n].Off+out[n].Len == x.Off && uint64(out[n].At)+out[n].Len == uint64(x.At) {
			out[n].Len += x.Len
			continue
		}
		out = append(out, x)
	}
	return out
}

// bytesOf adds up what the extents have.
func bytesOf(l []Extent) (n uint64) {
	for i := range l {
		n += l[i].Len
	}
	return n
}

// apart is the range of a stripe that has content of more than one.
const apart = ^uint64(0)

// ranges returns the index of the range that has all of a stripe's extents, or apart.
func ranges(l []Extent, span uint64) map[blocks.StripeID]uint64 {
	in := make(map[blocks.StripeID]uint64, len(l))
	for i := range l {
		at := l[i].Off / span
		if was, seen := in[l[i].Stripe.ID]; seen && was != at || l[i].Off+l[i].Len > (at+1)*span {
			at = apart
		}
		in[l[i].Stripe.ID] = at
	}
	return in
}

// divide takes the extents that can go to the maps of some ranges from the others. A stripe goes as a whole: one that is apart stays.
func divide(l []Extent, span uint64, to []MapRef) (move map[uint64][]Extent, stay []Extent) {
	move = make(map[uint64][]Extent, len(to))
	for _, m := range to {
		move[m.Index] = nil
	}
	in := ranges(l, span)
	for _, x := range l {
		at := in[x.Stripe.ID]
		if some, goes := move[at]; goes && at != apart {
			move[at] = append(some, x)
		} else {
			stay = append(stay, x)
		}
	}
	return move, stay
}

// setExtents replaces the extents.
func (n *Inode) setExtents(l []Extent) {
	n.Extents, n.Inline, n.shared, n.uses = l, slices.Clone(n.Inline), false, nil
	n.count()
}

// count makes uses anew, if there are more than a few extents.
func (n *Inode) count() {
	if len(n.Extents) <= fewExtents {
		return
	}
	n.uses = make(map[blocks.StripeID]int32, len(n.Extents))
	for i := range n.Extents {
		n.uses[n.Extents[i].Stripe.ID]++
	}
}

// newMap returns the state of an empty map of the range [lo, hi) of a file that lies in a container.
func newMap(file blocks.RegisterID, ino Ino, r Range) *State {
	s := newState(KindMap)
	s.Self = Inode{Ino: ino}
	s.Parent, s.ParentIno, s.span = file, ino, span{lo: r.From, hi: r.To}
	return s
}

func (s *State) checkMaps(o *Op) error {
	bad := false
	switch o.Kind {
	case OpSpill:
		bad = s.Kind != KindFile || s.only() == nil || s.only().Ino != o.Ino || o.Size == 0 || s.mapSpan != 0 && s.mapSpan != o.Size
		for i, m := range o.Maps {
			at, have := s.mapOf(m.Index)
			bad = bad || m.ID.IsZero() || m.Index > MaxFile/o.Size || have && s.maps[at].ID != m.ID || i > 0 && m.Index <= o.Maps[i-1].Index
		}
		if !bad && len(s.maps)+len(o.Maps) > maxMaps {
			return syscall.EFBIG
		}
	case OpFill:
		bad = s.Kind != KindMap || s.Self.Ino != o.Ino
		at := s.lo
		for _, x := range o.Extents {
			bad = bad || x.Off < at || x.Off+x.Len > s.hi
			at = x.Off + x.Len
		}
	}
	if bad {
		return fmt.Errorf("%w: operation %d on the maps of a file", blocks.ErrInvalid, o.Kind)
	}
	return nil
}

func (s *State) doMaps(o *Op) {
	switch o.Kind {
	case OpSpill:
		n := s.only()
		s.mapSpan = o.Size
		_, stay := divide(n.Extents, s.mapSpan, o.Maps)
		n.setExtents(stay)
		for _, m := range o.Maps {
			s.cuts = without(s.cuts, s.spanOf(m.Index))
			i, have := s.mapOf(m.Index)
			if !have {
				s.maps = slices.Insert(s.maps, i, m)
			}
			s.maps[i] = m
		}
	case OpFill:
		was := s.Self.Extents
		s.Self.Extents = overlay(was, o.Cuts, o.Extents)
		kept := make(map[blocks.StripeID]bool, len(s.Self.Extents))
		for i := range s.Self.Extents {
			kept[s.Self.Extents[i].Stripe.ID] = true
		}
		for i := range was {
			if id := was[i].Stripe.ID; !kept[id] {
				s.freeStripe(id)
			}
		}
	}
}

// Of a promoted inode, at the end of a snapshot: U span, and if it is not 0, maps, cuts. Of a map: U lo  U hi.
func (s *State) encodeMaps(e *blocks.Encoder) {
	switch s.Kind {
	case KindFile:
		if e.Uint(s.mapSpan); s.mapSpan != 0 {
			encodeMapRefs(e, s.maps)
			encodeRanges(e, s.cuts)
		}
	case KindMap:
		e.Uint(s.lo)
		e.Uint(s.hi)
	}
}

func (s *State) decodeMaps(d *blocks.Decoder) (err error) {
	switch s.Kind {
	case KindFile:
		if s.mapSpan = d.Uint(); s.mapSpan != 0 {
			if s.maps, err = decodeMapRefs(d); err == nil {
				s.cuts, err = decodeRanges(d)
			}
		}
		if d.Err() == nil && (s.mapSpan > MaxFile || len(s.maps) > 0 && s.maps[len(s.maps)-1].Index > MaxFile/s.mapSpan) {
			err = fmt.Errorf("%w: a map far beyond any file", blocks.ErrCorrupt)
		}
	case KindMap:
		if s.lo, s.hi = d.Uint(), d.Uint(); d.Err() == nil && (s.lo >= s.hi || s.hi > 2*MaxFile) {
			err = fmt.Errorf("%w: a map from %d to %d", blocks.ErrCorrupt, s.lo, s.hi)
		}
	}
	if err == nil {
		err = d.Err()
	}
	return err
}

// Maps: count, then for each: gap since the index of the one before, ID, bytes.
func encodeMapRefs(e *blocks.Encoder, l []MapRef) {
	e.Uint(uint64(len(l)))
	var next uint64
	for _, m := range l {
		e.Uint(m.Index - next)
		e.ID(m.ID.ID)
		e.Uint(m.Bytes)
		next = m.Index + 1
	}
}

func decodeMapRefs(d *blocks.Decoder) ([]MapRef, error) {
	l := make([]MapRef, 0, d.Count(blocks.IDSize+2))
	var next uint64
	for range cap(l) {
		m := MapRef{Index: next + d.Uint(), ID: blocks.RegisterID{ID: d.ID()}, Bytes: d.Uint()}
		if d.Err() != nil {
			return nil, d.Err()
		}
		if m.Index < next || m.Index > MaxFile {
			return nil, fmt.Errorf("%w: maps out of order", blocks.ErrCorrupt)
		}
		next = m.Index + 1
		l = append(l, m)
	}
	return l, d.Err()
}

// Ranges: count, then for each: gap since the end of the one before, length.
func encodeRanges(e *blocks.Encoder, l []Range) {
	e.Uint(uint64(len(l)))
	var at uint64
	for _, r := range l {
		e.Uint(r.From - at)
		e.Uint(r.To - r.From)
		at = r.To
	}
}

func decodeRanges(d *blocks.Decoder) ([]Range, error) {
	l := make([]Range, 0, d.Count(2))
	var at uint64
	for range cap(l) {
		gap, n := d.Uint(), d.Uint()
		if d.Err() != nil {
			return nil, d.Err()
		}
		if gap > 2*MaxFile || n == 0 || n > 2*MaxFile || at+gap+n > 2*MaxFile {
			return nil, fmt.Errorf("%w: a range of %d bytes at %d", blocks.ErrCorrupt, n, at+gap)
		}
		l = append(l, Range{at + gap, at + gap + n})
		at += gap + n
	}
	return l, d.Err()
}
