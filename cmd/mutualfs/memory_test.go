package main

import "testing"

func TestHeapPercent(t *testing.T) {
	for _, c := range []struct {
		live uint64
		want int
	}{
		{0, maxPercent}, {1 << 20, maxPercent}, {4 << 20, 300}, {12 << 20, 100}, {48 << 20, 25}, {1 << 40, minPercent},
	} {
		if got := heapPercent(c.live); got != c.want {
			t.Errorf("heapPercent(%d) = %d, want %d", c.live, got, c.want)
		}
	}
}
