package blocks

import "math/bits"

const (
	segmentUnits = 16384 // 64 MiB; an extent lies in one segment
	wordsPerSeg  = segmentUnits / 64

	// smallExtent: extents of fewer units are placed from the end of the disk, the
	// others from its begin, so that small ones do not break up the runs
	// that large ones need.
	smallExtent = 16
)

// segment is a part of the free map. A nil bitmap means that used is 0 or all.
type segment struct {
	used   uint32
	maxRun uint32 // no free run is longer
	words  *[wordsPerSeg]uint64
}

// freeMap knows which units of a disk are in use: a bitmap in segments of
// 64 MiB, next fit. Not safe for concurrent use.
type freeMap struct {
	units uint32
	used  uint32
	segs  []segment
	big   cursor
	small cursor
}

// cursor is where the next search begins.
type cursor struct {
	seg  int
	unit uint32 // in the segment
}

// newFreeMap makes the map of a disk of so many units, all free.
func newFreeMap(units uint32) *freeMap {
	m := &freeMap{units: units, segs: make([]segment, (units+segmentUnits-1)/segmentUnits)}
	for i := range m.segs {
		m.segs[i].maxRun = segmentUnits
	}
	if rest := units % segmentUnits; rest > 0 {
		m.segs[len(m.segs)-1].set(rest, segmentUnits-rest)
	}
	m.small.seg = len(m.segs) - 1
	return m
}

func (s *segment) bitmap() *[wordsPerSeg]uint64 {
	if s.words == nil {
		s.words = new([wordsPerSeg]uint64)
		if s.used == segmentUnits {
			for i := range s.words {
				s.words[i] = ^uint64(0)
			}
		}
	}
	return s.words
}

// each calls fn with the words that [at, at+n) touches and the mask of its bits.
func each(w *[wordsPerSeg]uint64, at, n uint32, fn func(word *uint64, mask uint64)) {
	for n > 0 {
		bit := at % 64
		k := min(64-bit, n)
		mask := (^uint64(0) >> (64 - k)) << bit
		fn(&w[at/64], mask)
		at, n = at+k, n-k
	}
}

func (s *segment) set(at, n uint32) {
	each(s.bitmap(), at, n, func(w *uint64, mask uint64) { *w |= mask })
	if s.used += n; s.used == segmentUnits {
		s.words, s.maxRun = nil, 0
	}
}

func (s *segment) clear(at, n uint32) {
	each(s.bitmap(), at, n, func(w *uint64, mask uint64) { *w &^= mask })
	s.maxRun = segmentUnits
	if s.used -= n; s.used == 0 {
		s.words = nil
	}
}

// count returns how many of the units are in use.
func (s *segment) count(at, n uint32) uint32 {
	if s.words == nil {
		if s.used == 0 {
			return 0
		}
		return n
	}
	c := 0
	each(s.words, at, n, func(w *uint64, mask uint64) { c += bits.OnesCount64(*w & mask) })
	return uint32(c)
}

// find returns the first free run of n units at or after from, and if there is none
// the longest run seen.
func (s *segment) find(from, n uint32) (at uint32, longest uint32, ok bool) {
	if s.words == nil {
		if s.used > 0 || segmentUnits-from < n {
			return 0, 0, false
		}
		return from, 0, true
	}
	run := uint32(0)
	for i := from; i < segmentUnits; {
		w := s.words[i/64] >> (i % 64)
		left := 64 - i%64
		if w&1 == 0 {
			free := min(uint32(bits.TrailingZeros64(w)), left)
			run, i = run+free, i+free
			if run >= n {
				return i - run, longest, true
			}
			continue
		}
		longest, run = max(longest, run), 0
		i += min(uint32(bits.TrailingZeros64(^w)), left)
	}
	return 0, max(longest, run), false
}

// alloc takes n units; false: there is no run of that length.
func (m *freeMap) alloc(n uint32) (extent, bool) {
	if n == 0 || n > segmentUnits {
		return extent{}, false
	}
	c, step := &m.big, 1
	if n < smallExtent {
		c, step = &m.small, len(m.segs)-1
	}
	seg, from := c.seg, c.unit
	for range len(m.segs) + 1 {
		s := &m.segs[seg]
		if s.used+n <= segmentUnits && s.maxRun >= n {
			at, longest, ok := s.find(from, n)
			if ok {
				s.set(at, n)
				m.used += n
				c.seg, c.unit = seg, (at+n)%segmentUnits
				return extent{uint32(seg)*segmentUnits + at, n}, true
			}
			if from == 0 {
				s.maxRun = longest
			}
		}
		seg, from = (seg+step)%len(m.segs), 0
	}
	return extent{}, false
}

// inside reports whether the extent may exist on this disk.
func (m *freeMap) inside(e extent) bool {
	return e.n > 0 && e.n <= segmentUnits && uint64(e.start)+uint64(e.n) <= uint64(m.units) &&
		e.start%segmentUnits+e.n <= segmentUnits
}

// claim marks the extent as used; false, and no change, if some of it is used
// already or outside of the disk.
func (m *freeMap) claim(e extent) bool {
	if !m.inside(e) {
		return false
	}
	s := &m.segs[e.start/segmentUnits]
	if s.count(e.start%segmentUnits, e.n) > 0 {
		return false
	}
	s.set(e.start%segmentUnits, e.n)
	m.used += e.n
	return true
}

// release gives back an extent that alloc or claim took.
func (m *freeMap) release(e extent) {
	s := &m.segs[e.start/segmentUnits]
	n := s.count(e.start%segmentUnits, e.n)
	if n != e.n {
		return // never: extents are released once
	}
	s.clear(e.start%segmentUnits, e.n)
	m.used -= e.n
}
