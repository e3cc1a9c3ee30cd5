package mux

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func discardHandler(_ context.Context, _ [20]byte, _ string, _ uint8, kind uint16, _, _ []byte) (uint16, []byte, []byte) {
	return kind, []byte{0}, nil
}

func benchPair(b *testing.B) (*node, *node) {
	cfg := testConfig(b)
	cfg.Handler = discardHandler
	x, y := start(b, testConfig(b)), start(b, cfg)
	for class := range classes {
		if _, _, _, err := x.Call(within(b, 5*time.Second), y.ID(), y.Addr(), class, 1, nil, nil); err != nil {
			b.Fatal(err)
		}
	}
	return x, y
}

// BenchmarkPut is the shape of a shard being put: 256 KiB there, a few bytes back.
func BenchmarkPut(b *testing.B) {
	for _, c := range []struct {
		name string
		par  int
	}{{"one", 1}, {"eight", 8}} {
		b.Run(c.name, func(b *testing.B) {
			x, y := benchPair(b)
			payload := make([]byte, 256<<10)
			b.SetBytes(int64(len(payload)))
			b.ReportAllocs()
			run(b, c.par, func(ctx context.Context) error {
				_, _, _, err := x.Call(ctx, y.ID(), "", Data, 1, make([]byte, 100), payload)
				return err
			})
		})
	}
}

// BenchmarkGet is a shard being read: the payload comes back.
func BenchmarkGet(b *testing.B) {
	x, y := benchPair(b)
	payload := make([]byte, 256<<10)
	x.cfg.Handler = func(context.Context, [20]byte, string, uint8, uint16, []byte, []byte) (uint16, []byte, []byte) {
		return 1, nil, payload
	}
	b.SetBytes(int64(len(payload)))
	b.ReportAllocs()
	run(b, 8, func(ctx context.Context) error {
		_, _, p, err := y.Call(ctx, x.ID(), "", Data, 1, nil, nil)
		Release(p)
		return err
	})
}

func BenchmarkSmallCalls(b *testing.B) {
	for _, c := range []struct {
		name string
		par  int
	}{{"one", 1}, {"sixteen", 16}} {
		b.Run(c.name, func(b *testing.B) {
			x, y := benchPair(b)
			b.ReportAllocs()
			run(b, c.par, func(ctx context.Context) error {
				_, _, _, err := x.Call(ctx, y.ID(), "", Metadata, 1, make([]byte, 100), nil)
				return err
			})
		})
	}
}

// run makes b.N calls from par goroutines.
func run(b *testing.B, par int, call func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for range par {
		wg.Go(func() {
			for next.Add(1) <= int64(b.N) {
				if err := call(ctx); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// BenchmarkSmallCallUnderBulk reports the latency of control calls while eight bulk calls are always under way.
func BenchmarkSmallCallUnderBulk(b *testing.B) {
	x, y := benchPair(b)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	payload := make([]byte, 256<<10)
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				_, _, _, _ = x.Call(ctx, y.ID(), "", Data, 1, nil, payload)
			}
		})
	}
	times := make([]time.Duration, 0, b.N)
	b.ResetTimer()
	for range b.N {
		start := time.Now()
		if _, _, _, err := x.Call(ctx, y.ID(), "", Control, 1, make([]byte, 100), nil); err != nil {
			b.Fatal(err)
		}
		times = append(times, time.Since(start))
	}
	b.StopTimer()
	cancel()
	wg.Wait()
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), "p99-µs")
}
