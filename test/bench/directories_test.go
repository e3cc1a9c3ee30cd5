package bench

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/test/cluster"
)

var most = flag.Int("entries", 100_000, "entries of the largest directory")

// BenchmarkDirectories measures what one entry of a directory costs on a mount, a ring of one, by the size of the directory:
//
//	go test -run '^$' -bench Directories -benchtime 1x -timeout 60m ./test/bench -args -entries 1000000
//
// Cold is after the mount has been made anew and the kernel's caches have been dropped.
func BenchmarkDirectories(b *testing.B) {
	must(cluster.Build(b.TempDir()))
	for n := 1000; n <= *most; n *= 10 {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				directory(b, n)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

func directory(b *testing.B, n int) {
	p := cluster.Init(b, cluster.Options{})
	p.Mnt = filepath.Join(b.TempDir(), "mnt")
	p.Start()
	dir := filepath.Join(p.Mnt, "d")
	must(os.Mkdir(dir, 0o755))
	name := func(i int) string { return filepath.Join(dir, fmt.Sprint("file-", i)) }
	const looks = 1000
	lookup := func() {
		for i := range looks {
			_, err := os.Lstat(name(i * 7919 % n))
			must(err)
		}
	}
	per := func(what string, count int, f func()) {
		begin := time.Now()
		f()
		b.ReportMetric(float64(time.Since(begin).Microseconds())/float64(count), "µs/"+what)
	}
	per("create", n, func() {
		for i := range n {
			f, err := os.Create(name(i))
			must(err)
			must(f.Close())
		}
		sh("sync " + p.Mnt)
	})
	per("lookup", looks, lookup)
	forget := remount(p)
	forget()
	per("cold-lookup", looks, lookup)
	forget()
	per("cold-list", n, func() {
		d, err := os.Open(dir)
		must(err)
		names, err := d.Readdirnames(-1)
		must(err)
		if len(names) != n {
			b.Fatalf("%d names, not %d", len(names), n)
		}
		must(d.Close())
	})
	per("remove", n, func() {
		must(os.RemoveAll(dir))
		sh("sync " + p.Mnt)
	})
}
