package main

import "testing"

func TestHeapPercent(t *testing.T) {
	for _, c := range []struct {
		live, scan uint64
		want       int
	}{
		{0, 0, maxPercent}, {1 << 20, 1 << 20, maxPercent}, {4 << 20, 4 << 20, 300}, {12 << 20, 12 << 20, 100}, {48 << 20, 8 << 20, 25},
		{1 << 40, 0, minPercent}, {400 << 20, 400 << 20, 50}, {400 << 20, 100 << 20, minPercent},
	} {
		if got := heapPercent(c.live, c.scan); got != c.want {
			t.Errorf("heapPercent(%d, %d) = %d, want %d", c.live, c.scan, got, c.want)
		}
	}
}
