package tree_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
)

func quiet(c *tree.Config) { c.FlushAge = time.Second; c.SegmentBytes, c.JournalBytes = 64<<20, 4<<30 }

// Creates in directories of 1,000, with journal and commits in the background.
func BenchmarkCreate(b *testing.B) {
	m := start(b, newRing(b), 1, b.TempDir(), quiet)
	ctx := tree.NoWait(b.Context())
	dir := tree.RootIno
	for i := 0; b.Loop(); i++ {
		if i%1000 == 0 {
			dir = mustMake(b, m, tree.RootIno, fmt.Sprint("d", i), dirMode)
		}
		a, _, err := m.Make(ctx, dir, fmt.Sprint("f", i), tree.MakeArgs{Mode: regMode, Excl: true})
		if err != nil {
			b.Fatal(err)
		}
		m.Forget(a.Ino, 1)
	}
}

func BenchmarkLookup(b *testing.B) {
	m := start(b, newRing(b), 1, b.TempDir(), quiet)
	for i := range 1000 {
		mustMake(b, m, tree.RootIno, fmt.Sprint("f", i), regMode)
	}
	ctx := tree.NoWait(b.Context())
	for b.Loop() {
		a, err := m.Lookup(ctx, tree.RootIno, "f500")
		if err != nil {
			b.Fatal(err)
		}
		m.Forget(a.Ino, 1)
	}
}

func BenchmarkCreateUnlink(b *testing.B) {
	m := start(b, newRing(b), 1, b.TempDir(), quiet)
	ctx := b.Context()
	mustMake(b, m, tree.RootIno, "first", regMode)
	for b.Loop() {
		a, _, err := m.Make(ctx, tree.RootIno, "f", tree.MakeArgs{Mode: regMode, Excl: true})
		if err == nil {
			err = m.Unlink(ctx, tree.RootIno, "f")
		}
		if err != nil {
			b.Fatal(err)
		}
		m.Forget(a.Ino, 1)
	}
}

// One new name a commit, in a directory of 10,000.
func BenchmarkFlushBigDirectory(b *testing.B) {
	m := start(b, newRing(b), 1, b.TempDir(), func(c *tree.Config) { c.FlushAge = time.Hour })
	for i := range 10000 {
		mustMake(b, m, tree.RootIno, fmt.Sprint("f", i), regMode)
	}
	if err := m.Sync(b.Context()); err != nil {
		b.Fatal(err)
	}
	for i := 0; b.Loop(); i++ {
		mustMake(b, m, tree.RootIno, fmt.Sprint("g", i), regMode)
		if err := m.Fsync(b.Context(), tree.RootIno); err != nil {
			b.Fatal(err)
		}
	}
}

// The cost of one name in a directory of n, commits and splits included: creating, looking up (what the mount has in memory),
// listing, unlinking. One round is the whole life of a directory.
func BenchmarkDirectory(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var spent [5]time.Duration
			for b.Loop() {
				directoryLife(b, n, &spent)
			}
			b.ReportMetric(0, "ns/op")
			for i, what := range []string{"create", "lookup", "list", "stat", "unlink"} {
				b.ReportMetric(float64(spent[i].Nanoseconds())/float64(b.N)/float64(n), what+"-ns")
			}
		})
	}
}

func directoryLife(b *testing.B, n int, spent *[5]time.Duration) {
	m := start(b, newRing(b), 1, b.TempDir(), quiet)
	defer m.end(b)
	ctx := b.Context()
	dir := mustMake(b, m, tree.RootIno, "d", dirMode)
	phase := func(i int, f func(i int) error) {
		at := time.Now()
		for k := range n {
			if err := f(k); err != nil {
				b.Fatal(err)
			}
		}
		spent[i] += time.Since(at)
	}
	name := func(i int) string { return fmt.Sprint("file-", i) }
	phase(0, func(i int) error {
		a, _, err := m.Make(ctx, dir, name(i), tree.MakeArgs{Mode: regMode, Excl: true})
		m.Forget(a.Ino, 1)
		return err
	})
	at := time.Now()
	if err := m.Sync(ctx); err != nil {
		b.Fatal(err)
	}
	spent[0] += time.Since(at)
	phase(1, func(i int) error {
		a, err := m.Lookup(ctx, dir, name(i*7919%n))
		m.Forget(a.Ino, 1)
		return err
	})
	at = time.Now()
	if entries, _, err := m.List(ctx, dir); err != nil || len(entries) != n {
		b.Fatalf("%d entries, %v", len(entries), err)
	}
	spent[2] += time.Since(at)
	at = time.Now()
	for range 100 {
		if _, err := m.Getattr(ctx, dir); err != nil {
			b.Fatal(err)
		}
	}
	spent[3] += time.Since(at) * time.Duration(n) / 100 // of the directory, once: not per name
	phase(4, func(i int) error { return m.Unlink(ctx, dir, name(i)) })
	at = time.Now()
	if err := m.Rmdir(ctx, tree.RootIno, "d"); err != nil {
		b.Fatal(err)
	}
	if err := m.Sync(ctx); err != nil {
		b.Fatal(err)
	}
	spent[4] += time.Since(at)
}

// The cost of one write-back of 4 KiB to a file that has n of them already, somewhere in size bytes, and what its directory
// then costs another mount: the bytes that it reads before it can look up a name.
func BenchmarkFragments(b *testing.B) {
	for _, size := range []uint64{64 << 20, 1 << 40} {
		for _, n := range []int{1_000, 4_000, 16_000, 64_000} {
			b.Run(fmt.Sprintf("in %d MiB/%d", size>>20, n), func(b *testing.B) { fragments(b, size, n) })
		}
	}
}

func fragments(b *testing.B, size uint64, n int) {
	var all, last, sync, other time.Duration
	for b.Loop() {
		ring := newRing(b)
		m := start(b, ring, 1, b.TempDir(), quiet)
		dir := mustMake(b, m, tree.RootIno, "d", dirMode)
		ino := mustMake(b, m, dir, "f", regMode)
		mustMake(b, m, dir, "small", regMode)
		r := rng(1)
		begin := time.Now()
		for i := range n {
			if i == n-n/10 {
				last -= time.Since(begin)
			}
			e := tree.Extent{Off: r.Uint64N(size/4096) * 4096, Len: 4096, Stripe: blocks.StripeRef{ID: blocks.StripeID{ID: blocks.HashID([]byte(fmt.Sprint(i)))}, Len: 4096, K: 1, M: 2}}
			if err := m.Writeback(b.Context(), tree.Writeback{Ino: ino, Extents: []tree.Extent{e}, Size: size}); err != nil {
				b.Fatal(err)
			}
		}
		last += time.Since(begin)
		all += time.Since(begin)
		begin = time.Now()
		if err := m.Sync(b.Context()); err != nil {
			b.Fatal(err)
		}
		sync += time.Since(begin)
		x := start(b, ring, 2, b.TempDir(), quiet)
		<-x.Ready()
		begin = time.Now()
		find(b, x, "d", "small")
		other += time.Since(begin)
		x.end(b)
		m.end(b)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(all.Microseconds())/float64(b.N)/float64(n), "µs/write")
	b.ReportMetric(float64(last.Microseconds())/float64(b.N)/float64(n/10), "µs/write-at-the-end")
	b.ReportMetric(float64(sync.Microseconds())/float64(b.N)/1000, "ms/sync")
	b.ReportMetric(float64(other.Microseconds())/float64(b.N)/1000, "ms/lookup-elsewhere")
}
