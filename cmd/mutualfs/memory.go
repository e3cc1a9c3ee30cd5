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
// number of bytes whatever its size. Large caches and buffers have no pointers, so that collecting them is cheap.
const (
	heapGrowth = 12 << 20 // bytes allocated between two collections
	minPercent = 15       // of the live heap, bounds the work of a very large one
	maxPercent = 400      // bounds the growth of a very small one
	tuneEvery  = time.Second
)

// heapPercent is the growth, in percent of the live heap, at which it is collected.
func heapPercent(live uint64) int {
	return int(min(max(heapGrowth*100/max(live, 1), minPercent), maxPercent))
}

// tuneMemory sets the collector after the size of the live heap until ctx ends. An operator's GOGC is left alone.
func tuneMemory(ctx context.Context) error {
	if os.Getenv("GOGC") != "" {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(tuneEvery)
	defer tick.Stop()
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	set := 0
	for {
		metrics.Read(live)
		if want := heapPercent(live[0].Value.Uint64()); want*4 < set*3 || want*3 > set*4 { // not for every small change: it stops the world
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
