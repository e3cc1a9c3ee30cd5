package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// Left to itself Go collects when the heap has doubled: every few reads in a small peer, which costs time, and after
// hundreds of MiB in a mount with full caches, which costs memory. Here the heap may grow by about the same
// number of bytes whatever its size: large caches and buffers have no pointers, so that collecting them is cheap. What has pointers,
// as the names of large directories, must be looked through each time, and may grow by a part of its size.
const (
	heapGrowth = 12 << 20 // bytes allocated between two collections, at least
	scanGrowth = 2        // the heap may grow by this part of what must be looked through: 1/scanGrowth
	minPercent = 15       // of the live heap, bounds the work of a very large one
	maxPercent = 400      // bounds the growth of a very small one
	tuneEvery  = time.Second
)

// heapPercent is the growth, in percent of the live heap, at which it is collected; scan is what of it has pointers, bytes.
func heapPercent(live, scan uint64) int {
	return int(min(max(max(heapGrowth, scan/scanGrowth)*100/max(live, 1), minPercent), maxPercent))
}

// tuneMemory sets the collector after the size of the live heap until ctx ends. An operator's GOGC is left alone.
func tuneMemory(ctx context.Context) error {
	if os.Getenv("GOGC") != "" {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(tuneEvery)
	defer tick.Stop()
	heap := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/heap:bytes"}}
	set := 0
	for {
		metrics.Read(heap)
		if want := heapPercent(heap[0].Value.Uint64(), heap[1].Value.Uint64()); want*4 < set*3 || want*3 > set*4 { // not for every small change: it stops the world
			debug.SetGCPercent(want)
			set = want
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
