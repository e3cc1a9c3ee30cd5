package content

import (
	"sort"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
)

// job takes frozen slabs of one file to one stripe, or inline, and to the commit. All
// slabs of a job are frozen with it and freed with it.
type job struct {
	f       *file
	slabs   []*slab
	parts   []part // what the stripe holds, in order; not changed after the job was made
	size    int    // of the stripe
	inline  bool   // to be committed inline, no stripe
	tries   int    // failed attempts in a row
	receipt blocks.Receipt
	named   bool // the stripe went into a Writeback: it may be the file's
}

// part is a run of file bytes in a stripe. Runs of one slab that touch are one part after the other.
type part struct {
	off  uint64
	data []byte
	slab *slab
}

// freeze moves dirty slabs, none of which has a frozen one before it, to a new job. The
// caller holds f.mu.
func (f *file) freeze(slabs []*slab) *job {
	j := &job{f: f, slabs: slabs}
	for _, s := range slabs {
		sl := f.slots[s.base/uint64(s.size)]
		sl.frozen, sl.dirty = s, nil
	}
	j.layOut()
	return j
}

// layOut makes the parts from what the slabs hold now.
func (j *job) layOut() {
	j.parts, j.size = nil, 0
	for _, s := range j.slabs {
		for _, p := range s.pieces {
			j.parts = append(j.parts, part{p.off, p.data, s})
			j.size += len(p.data)
		}
	}
}

// pack freezes slabs, in ascending order, into jobs of at most one stripe each, which lies in one map's range. The
// caller holds f.mu.
func (f *file) pack(slabs []*slab, stripe int, mapBytes uint64) (jobs []*job) {
	sort.Slice(slabs, func(i, j int) bool { return slabs[i].base < slabs[j].base })
	for len(slabs) > 0 {
		n, size := 0, 0
		for n < len(slabs) && (n == 0 || size+slabs[n].bytes() <= stripe && slabs[n].base/mapBytes == slabs[0].base/mapBytes) {
			size += slabs[n].bytes()
			n++
		}
		jobs = append(jobs, f.freeze(slabs[:n:n]))
		slabs = slabs[n:]
	}
	return jobs
}

// empty reports whether all that the job was to store has been cut away. The caller holds f.mu.
func (j *job) empty() bool {
	for _, s := range j.slabs {
		if len(s.pieces) > 0 {
			return false
		}
	}
	return true
}

// content returns the stripe's content: the one part itself, or a copy of all in a
// buffer of the pool, which done gives back.
func (j *job) content(pool *pool) (p []byte, done func()) {
	if len(j.parts) == 1 {
		return j.parts[0].data, func() {}
	}
	buf := pool.get(j.size)[:0]
	for _, part := range j.parts {
		buf = append(buf, part.data...)
	}
	return buf, func() { pool.put(buf) }
}

// extents returns where the stripe's bytes belong that have not been cut away since, ascending. The
// caller holds f.mu.
func (j *job) extents() (out []tree.Extent) {
	at := uint32(0)
	for _, part := range j.parts {
		end := part.off + uint64(len(part.data))
		for i := part.slab.find(part.off); i < len(part.slab.pieces) && part.slab.pieces[i].off < end; i++ {
			p := part.slab.pieces[i]
			from, to := max(part.off, p.off), min(end, p.end())
			out = addExtent(out, tree.Extent{Off: from, Len: to - from, Stripe: j.receipt.Ref, At: at + uint32(from-part.off)})
		}
		at += uint32(len(part.data))
	}
	return out
}

// addExtent appends e, joined to the last one if it continues it in file and stripe.
func addExtent(l []tree.Extent, e tree.Extent) []tree.Extent {
	if n := len(l) - 1; n >= 0 && l[n].Off+l[n].Len == e.Off && l[n].Stripe.ID == e.Stripe.ID && uint64(l[n].At)+l[n].Len == uint64(e.At) {
		l[n].Len += e.Len
		return l
	}
	return append(l, e)
}
