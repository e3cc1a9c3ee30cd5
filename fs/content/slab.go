package content

import (
	"sort"
	"time"

	"github.com/mutualfs/mutualfs/fs/tree"
)

// piece is a run of bytes of a file. Its data may have room to grow (cap).
type piece struct {
	off  uint64
	data []byte
}

func (p piece) end() uint64 { return p.off + uint64(len(p.data)) }

// slab holds dirty bytes of the file range [base, base+size): pieces in ascending
// order that do not overlap but may touch. The file's mu guards it. Once frozen it
// takes no more writes; it still can be cut.
type slab struct {
	base        uint64
	size        int
	pieces      []piece
	bufs        [][]byte // every buffer that pieces lie in
	mem         int64    // their capacity
	first, last tree.Seq // journal records in it; 0: none
	born        time.Time
}

// find returns the index of the first piece that ends after off.
func (s *slab) find(off uint64) int {
	return sort.Search(len(s.pieces), func(i int) bool { return s.pieces[i].end() > off })
}

// write copies p, which lies within the slab's range, over what is there.
func (s *slab) write(pool *pool, off uint64, p []byte) {
	for len(p) > 0 {
		i := s.find(off)
		n := 0
		if i < len(s.pieces) && s.pieces[i].off <= off {
			n = copy(s.pieces[i].data[off-s.pieces[i].off:], p)
		} else {
			gap := len(p)
			if i < len(s.pieces) && s.pieces[i].off-off < uint64(gap) {
				gap = int(s.pieces[i].off - off)
			}
			n = s.insert(pool, i, off, p[:gap])
		}
		off += uint64(n)
		p = p[n:]
	}
}

// fill copies those bytes of p that lie in gaps.
func (s *slab) fill(pool *pool, off uint64, p []byte) {
	for len(p) > 0 {
		i := s.find(off)
		n := len(p)
		if i < len(s.pieces) && s.pieces[i].off <= off {
			n = int(min(uint64(n), s.pieces[i].end()-off))
		} else {
			if i < len(s.pieces) {
				n = int(min(uint64(n), s.pieces[i].off-off))
			}
			s.write(pool, off, p[:n])
		}
		off += uint64(n)
		p = p[n:]
	}
}

// insert puts a prefix of p, which lies in the gap before piece i, into the slab
// and returns its length: into the room behind the piece before, or a new buffer.
// New buffers of a growing run are ever larger, so that a run is few pieces.
func (s *slab) insert(pool *pool, i int, off uint64, p []byte) int {
	want := len(p)
	if i > 0 && s.pieces[i-1].end() == off {
		d := s.pieces[i-1].data
		if room := cap(d) - len(d); room > 0 {
			n := min(room, len(p))
			s.pieces[i-1].data = append(d, p[:n]...)
			return n
		}
		want = max(want, 4*len(d))
	}
	left := int(s.base + uint64(s.size) - off)
	if off == s.base && len(p) >= wholeSlab {
		want = left
	}
	buf := pool.get(min(want, left))
	s.bufs = append(s.bufs, buf)
	s.mem += int64(cap(buf))
	limit := min(cap(buf), left)
	n := copy(buf[:limit], p)
	s.pieces = append(s.pieces, piece{})
	copy(s.pieces[i+1:], s.pieces[i:])
	s.pieces[i] = piece{off, buf[:n:limit]}
	return n
}

// wholeSlab is how long a write at the start of a slab must be to be taken for the start
// of a stream, which gets one buffer for the whole slab.
const wholeSlab = 64 << 10

// cut removes the bytes of [from, to).
func (s *slab) cut(from, to uint64) {
	if to <= s.base || from >= s.base+uint64(s.size) || from >= to {
		return
	}
	out := make([]piece, 0, len(s.pieces)+1)
	for _, p := range s.pieces {
		if p.end() <= from || p.off >= to {
			out = append(out, p)
			continue
		}
		if p.off < from {
			n := from - p.off
			out = append(out, piece{p.off, p.data[:n:n]}) // no room: what follows may still be in use
		}
		if p.end() > to {
			out = append(out, piece{to, p.data[to-p.off:]})
		}
	}
	s.pieces = out
}

// overlay copies the slab's bytes of [off, off+len(p)) into p and adds what it copied to got.
func (s *slab) overlay(off uint64, p []byte, got *spans) {
	end := off + uint64(len(p))
	for i := s.find(off); i < len(s.pieces) && s.pieces[i].off < end; i++ {
		pc := s.pieces[i]
		from, to := max(off, pc.off), min(end, pc.end())
		copy(p[from-off:to-off], pc.data[from-pc.off:])
		got.add(from, to)
	}
}

// bytes counts the dirty bytes.
func (s *slab) bytes() (n int) {
	for _, p := range s.pieces {
		n += len(p.data)
	}
	return n
}

// covers reports whether all of [from, to) is dirty.
func (s *slab) covers(from, to uint64) bool {
	for i := s.find(from); from < to; i++ {
		if i >= len(s.pieces) || s.pieces[i].off > from {
			return false
		}
		from = s.pieces[i].end()
	}
	return true
}

// full reports whether the whole range is dirty.
func (s *slab) full() bool { return s.bytes() == s.size }

// end is where the dirty bytes end.
func (s *slab) end() uint64 {
	if len(s.pieces) == 0 {
		return 0
	}
	return s.pieces[len(s.pieces)-1].end()
}

// spans is an ascending list of disjoint ranges that do not touch.
type spans []span

type span struct{ from, to uint64 }

// add joins [from, to) to the list.
func (s *spans) add(from, to uint64) {
	if from >= to {
		return
	}
	l := *s
	i := sort.Search(len(l), func(i int) bool { return l[i].to >= from })
	j := i
	for ; j < len(l) && l[j].from <= to; j++ {
		from, to = min(from, l[j].from), max(to, l[j].to)
	}
	if i == j {
		l = append(l, span{})
		copy(l[i+1:], l[i:])
		l[i] = span{from, to}
	} else {
		l[i] = span{from, to}
		l = append(l[:i+1], l[j:]...)
	}
	*s = l
}

// gaps calls do for each part of [from, to) that is not in the list, in order, until it fails.
func (s spans) gaps(from, to uint64, do func(from, to uint64) error) error {
	for _, r := range s {
		if r.to <= from {
			continue
		}
		if r.from >= to {
			break
		}
		if r.from > from {
			if err := do(from, r.from); err != nil {
				return err
			}
		}
		from = r.to
	}
	if from < to {
		return do(from, to)
	}
	return nil
}
