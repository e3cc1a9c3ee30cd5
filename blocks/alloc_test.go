package blocks

import "testing"

// The free map agrees with a plain list of units, through segments' borders and
// with a last segment that is not whole.
func TestFreeMapAgainstModel(t *testing.T) {
	r := seeded(t)
	for _, units := range []uint32{100, segmentUnits, 2*segmentUnits + 777} {
		m := newFreeMap(units)
		model := make([]bool, units)
		var held []extent
		used := uint32(0)
		mark := func(e extent, to bool) {
			for i := e.start; i < e.start+e.n; i++ {
				if model[i] == to {
					t.Fatalf("unit %d of %+v is %v already", i, e, to)
				}
				model[i] = to
			}
		}
		for step := range 20_000 {
			if r.IntN(100) < 52 {
				n := 1 + uint32(r.IntN(80))
				if r.IntN(20) == 0 {
					n = 1 + uint32(r.IntN(4000))
				}
				e, ok := m.alloc(n)
				if ok {
					if e.n != n || e.start+n > units || e.start/segmentUnits != (e.start+n-1)/segmentUnits {
						t.Fatalf("alloc(%d) = %+v", n, e)
					}
					mark(e, true)
					held, used = append(held, e), used+n
				} else if step%50 == 0 && hasRun(model, n) {
					t.Fatalf("alloc(%d) fails, but there is such a run", n)
				}
			} else if len(held) > 0 {
				i := r.IntN(len(held))
				e := held[i]
				if m.claim(extent{e.start, 1}) {
					t.Fatalf("unit %d claimed twice", e.start)
				}
				m.release(e)
				mark(e, false)
				used -= e.n
				held[i] = held[len(held)-1]
				held = held[:len(held)-1]
			}
			if pad := uint32(0); m.used != used+pad {
				t.Fatalf("used %d, want %d", m.used, used)
			}
		}
		for _, e := range held {
			m.release(e)
		}
		if e, ok := m.alloc(min(units, segmentUnits)); !ok {
			t.Fatalf("everything free, and no room: %+v", e)
		}
	}
}

func hasRun(model []bool, n uint32) bool {
	run := uint32(0)
	for i, used := range model {
		if i%segmentUnits == 0 {
			run = 0
		}
		if run++; used {
			run = 0
		}
		if run >= n {
			return true
		}
	}
	return false
}

func TestFreeMapClaim(t *testing.T) {
	m := newFreeMap(1000)
	for _, c := range []struct {
		e    extent
		want bool
	}{
		{extent{10, 5}, true}, {extent{14, 1}, false}, {extent{15, 1}, true}, {extent{9, 2}, false}, {extent{8, 2}, true},
		{extent{999, 1}, true}, {extent{999, 2}, false}, {extent{1000, 1}, false}, {extent{0, 0}, false},
		{extent{4_000_000_000, 500_000_000}, false}, {extent{20, segmentUnits + 1}, false},
	} {
		if got := m.claim(c.e); got != c.want {
			t.Errorf("claim %+v: %v", c.e, got)
		}
	}
}

func TestMergeExtents(t *testing.T) {
	got := mergeExtents([]extent{{9, 1}, {1, 2}, {5, 4}, {3, 1}, {20, 1}})
	want := []extent{{1, 3}, {5, 5}, {20, 1}}
	if len(got) != len(want) {
		t.Fatalf("%v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("%v", got)
		}
	}
}
