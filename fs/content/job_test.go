package content

import "testing"

// Small writes share a stripe, but for those that lie in the ranges of two extent maps.
func TestPackKeepsMapsApart(t *testing.T) {
	const size, mapBytes = 1 << 20, 4 << 20
	f, pool := newFile(7), newPool(size)
	var slabs []*slab
	for _, i := range []uint64{9, 0, 3, 4} { // in the ranges 2, 0, 0 and 1
		s := &slab{base: i * size, size: size}
		s.write(pool, s.base+5, []byte("some bytes"))
		f.slots[i] = &slot{dirty: s}
		slabs = append(slabs, s)
	}
	var got []int
	for _, j := range f.pack(slabs, size, mapBytes) {
		got = append(got, len(j.slabs))
	}
	if len(got) != 3 || got[0] != 2 || got[1] != 1 || got[2] != 1 {
		t.Errorf("slabs packed as %v", got)
	}
}
