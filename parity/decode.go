package parity

import (
	"bytes"
	"fmt"
)

// maxSubsets bounds how many choices of k shards are tried when some of them lie.
const maxSubsets = 2000

// decode puts the content of all segments that can be had into p.
func (r *reading) decode() error {
	for i := range r.segs {
		w := &r.segs[i]
		if w.done {
			continue
		}
		if rows := r.rows(w.shard, w.segment); rows != nil && !r.lying[w.shard] {
			if r.open(w.segment, rows) {
				w.done = true
				continue
			}
			r.lying[w.shard] = true
		}
		if err := r.reconstruct(w); err != nil {
			return err
		}
	}
	return nil
}

// open checks and decrypts the rows of a data shard's segment into p.
func (r *reading) open(seg segment, rows []byte) bool {
	size := r.g.Sealed()
	var scratch *buffer
	for row := seg.lo; row < seg.hi; row++ {
		unit := seg.shard*r.g.Rows + row
		sealed := rows[(row-seg.lo)*size : (row-seg.lo+1)*size]
		lo, n := unit*r.g.Unit-r.off, r.g.UnitLen(unit) // where the unit lies relative to p
		if lo >= 0 && lo+n <= len(r.p) {
			if r.seal.open(r.p[lo:lo:lo+n], sealed, unit) != nil {
				return false
			}
			continue
		}
		if scratch == nil {
			scratch = r.s.bufs.get(MaxUnit)
			defer scratch.release()
		}
		if r.seal.open(scratch.data[:0], sealed, unit) != nil {
			return false
		}
		from, to := max(lo, 0), min(lo+n, len(r.p))
		copy(r.p[from:to], scratch.data[from-lo:n])
	}
	return true
}

// reconstruct computes a segment from other shards, if enough have arrived. If
// the seal of the result is wrong, other choices of k shards are tried; the one
// that opens shows which shards lie. If none does, more shards are asked for.
func (r *reading) reconstruct(w *want) error {
	var from []int
	var set uint64
	for i := range r.g.Shards() {
		if !r.lying[i] && r.has(i, w.segment) {
			from = append(from, i)
			set |= 1 << i
		}
	}
	if w.lack(r.g.K, set) > 0 {
		return nil
	}
	tries := 0
	var fault error
	chosen := chooseEach(from, r.g.K, func(subset []int) bool {
		tries++
		ok, err := r.tryOpen(w.segment, subset)
		fault = err
		return ok || err != nil || tries >= maxSubsets
	})
	switch {
	case fault != nil:
		return fault
	case chosen == nil || (tries >= maxSubsets && !r.opens(w.segment, chosen)):
		w.failed |= set
		return nil
	}
	w.done = true
	if tries > 1 {
		return r.findLiars(w.segment, from, chosen)
	}
	return nil
}

func (r *reading) opens(seg segment, subset []int) bool {
	ok, err := r.tryOpen(seg, subset)
	return ok && err == nil
}

// rebuild fills shard i's rows, for each i of wanted, from those of the subset.
func (r *reading) rebuild(seg segment, subset []int, wanted ...int) (*buffer, [][]byte, error) {
	size := (seg.hi - seg.lo) * r.g.Sealed()
	shards := make([][]byte, r.g.Shards())
	for _, i := range subset {
		shards[i] = r.rows(i, seg)
	}
	buf := r.s.bufs.get(max(1, len(wanted)) * size)
	required := make([]bool, r.g.Shards())
	for j, i := range wanted {
		shards[i] = buf.data[j*size : j*size : (j+1)*size]
		required[i] = true
	}
	enc, err := r.s.coders.get(r.g.K, r.g.M)
	if err == nil {
		err = enc.ReconstructSome(shards, required)
	}
	if err != nil {
		buf.release()
		return nil, nil, fmt.Errorf("reconstruct stripe %s: %w", r.ref.ID.Short(), err)
	}
	return buf, shards, nil
}

// tryOpen reconstructs the segment from a subset and opens it.
func (r *reading) tryOpen(seg segment, subset []int) (bool, error) {
	for _, i := range subset {
		if i == seg.shard {
			return r.open(seg, r.rows(i, seg)), nil
		}
	}
	buf, shards, err := r.rebuild(seg, subset, seg.shard)
	if err != nil {
		return false, err
	}
	defer buf.release()
	return r.open(seg, shards[seg.shard]), nil
}

// findLiars compares what the other shards hold with what the good subset says.
func (r *reading) findLiars(seg segment, from, good []int) error {
	var others []int
	for _, i := range from {
		if !contains(good, i) {
			others = append(others, i)
		}
	}
	buf, shards, err := r.rebuild(seg, good, others...)
	if err != nil {
		return err
	}
	defer buf.release()
	for _, i := range others {
		if !bytes.Equal(shards[i], r.rows(i, seg)) {
			r.lying[i] = true
		}
	}
	return nil
}

func contains(set []int, x int) bool {
	for _, v := range set {
		if v == x {
			return true
		}
	}
	return false
}

// chooseEach calls try with each choice of k of from, in lexical order, until it
// returns true, and returns that choice; nil if there is none. The slice is
// reused between calls.
func chooseEach(from []int, k int, try func([]int) bool) []int {
	at := make([]int, k)
	for i := range at {
		at[i] = i
	}
	subset := make([]int, k)
	for k <= len(from) {
		for i, a := range at {
			subset[i] = from[a]
		}
		if try(subset) {
			return subset
		}
		i := k - 1
		for i >= 0 && at[i] == len(from)-k+i {
			i--
		}
		if i < 0 {
			return nil
		}
		at[i]++
		for j := i + 1; j < k; j++ {
			at[j] = at[j-1] + 1
		}
	}
	return nil
}
