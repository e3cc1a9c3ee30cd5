// Package bench measures the mount beside the plain local disk, in one run:
//
//	make bench
//
// It is one Go benchmark that prints a table of medians and ratios, and one of what the processes of the six peers needed for it.
package bench

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/test/cluster"
)

var (
	rounds = flag.Int("rounds", 3, "how often each is measured; the median counts")
	table  = flag.String("table", "", "file to write the table to, besides the output")
	others []place
)

func init() {
	flag.Func("beside", "NAME=DIR or NAME=DIR=COMMAND: measure in DIR, on another file system, too; COMMAND mounts it anew before cold reads", func(s string) error {
		part := strings.SplitN(s, "=", 3)
		if len(part) < 2 || part[0] == "" || part[1] == "" {
			return fmt.Errorf("%q is not NAME=DIR or NAME=DIR=COMMAND", s)
		}
		cold := dropCaches
		if len(part) == 3 {
			cold = func() { sh(part[2]); dropCaches() }
		}
		others = append(others, place{part[0], part[1], cold, nil})
		return nil
	})
}

// Sizes of the work.
const (
	bigSize    = 512 << 20
	blockSize  = 4 << 10
	randomOps  = 4000
	smallFiles = 5000
)

// place is a directory to measure in. cold forgets caches before a read. procs are the processes behind it, the mount first.
type place struct {
	name  string
	dir   string
	cold  func()
	procs []*cluster.Peer
}

// work is one thing measured. prepare is not timed; run returns how much it did, in unit per second.
type work struct {
	name    string
	unit    string
	amount  float64
	prepare func(p place)
	run     func(p place)
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func sh(script string) {
	out, err := exec.Command("bash", "-euo", "pipefail", "-c", script).CombinedOutput()
	if err != nil {
		panic(fmt.Sprintf("%s: %v\n%s", script, err, out))
	}
}

func dropCaches() {
	sh("sync")
	_ = os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0) // root only; else reads are warm
}

// smallTree makes files of 0.5 to 16 KiB, most of them small, in 100 directories, and a tar of them.
func smallTree(dir string) (tree, tarball string) {
	rng := rand.New(rand.NewPCG(1, 1))
	tree = filepath.Join(dir, "small")
	for i := range smallFiles {
		d := filepath.Join(tree, fmt.Sprintf("d%02d", i%100))
		must(os.MkdirAll(d, 0o755))
		n := 512 << rng.IntN(6)
		content := make([]byte, n-rng.IntN(n/2))
		for j := range content {
			content[j] = byte(rng.Uint32())
		}
		must(os.WriteFile(filepath.Join(d, fmt.Sprintf("f%04d", i)), content, 0o644))
	}
	tarball = filepath.Join(dir, "small.tar")
	sh("tar -C " + tree + " -cf " + tarball + " .")
	return tree, tarball
}

func writeBig(path string) {
	f, err := os.Create(path)
	must(err)
	buf := make([]byte, 1<<20)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(buf)
	for off := 0; off < bigSize; off += len(buf) {
		buf[0] = byte(off >> 20)
		_, err = f.Write(buf)
		must(err)
	}
	must(f.Sync())
	must(f.Close())
}

func readBig(path string) {
	f, err := os.Open(path)
	must(err)
	buf := make([]byte, 1<<20)
	for n := 0; n < bigSize; {
		m, err := f.Read(buf)
		must(err)
		n += m
	}
	must(f.Close())
}

func randomBlocks(path string, write bool) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(err)
	rng := rand.New(rand.NewPCG(2, 2))
	buf := bytes.Repeat([]byte{7}, blockSize)
	for range randomOps {
		off := rng.Int64N(bigSize/blockSize) * blockSize
		if write {
			_, err = f.WriteAt(buf, off)
		} else {
			_, err = f.ReadAt(buf, off)
		}
		must(err)
	}
	if write {
		must(f.Sync())
	}
	must(f.Close())
}

func works(tree, tarball string) []work {
	big := func(p place) string { return filepath.Join(p.dir, "big") }
	none := func(place) {}
	cold := func(p place) { p.cold() }
	return []work{
		{"sequential write + fsync", "MB/s", bigSize / 1e6, none, func(p place) { writeBig(big(p)) }},
		{"sequential read, cold", "MB/s", bigSize / 1e6, cold, func(p place) { readBig(big(p)) }},
		{"4 KiB random read, cold", "ops/s", randomOps, cold, func(p place) { randomBlocks(big(p), false) }},
		{"4 KiB random write, one fsync", "ops/s", randomOps, none, func(p place) { randomBlocks(big(p), true) }},
		{"untar + sync", "files/s", smallFiles, none, func(p place) {
			sh("mkdir " + p.dir + "/tar && tar -C " + p.dir + "/tar -xf " + tarball + " && sync -f " + p.dir + " && sync " + p.dir)
		}},
		{"rsync in + sync", "files/s", smallFiles, none, func(p place) {
			sh("rsync -a " + tree + "/ " + p.dir + "/rsync/ && sync -f " + p.dir + " && sync " + p.dir)
		}},
		{"rsync again", "files/s", smallFiles, cold, func(p place) { sh("rsync -a " + tree + "/ " + p.dir + "/rsync/") }},
		{"find, cold", "files/s", smallFiles, cold, func(p place) { sh("find " + p.dir + "/tar -size +100M") }},
		{"read all, cold", "files/s", smallFiles, cold, func(p place) { sh("cat $(find " + p.dir + "/tar -type f) >/dev/null") }},
		{"rm -rf + sync", "files/s", smallFiles, none, func(p place) {
			sh("rm -rf " + p.dir + "/tar && sync -f " + p.dir + " && sync " + p.dir)
		}},
		{"cleanup", "", 0, none, func(p place) { sh("rm -rf " + p.dir + "/rsync " + big(p)) }},
	}
}

func BenchmarkTable(b *testing.B) {
	bin := b.TempDir()
	must(cluster.Build(bin))
	local := b.TempDir()
	tree, tarball := smallTree(b.TempDir())
	places := []place{
		{"local disk", local, dropCaches, nil},
		ringOfOne(b),
		sixPeers(b),
	}
	places = append(places, others...)
	results, needs := map[string][]float64{}, needs{}
	list := works(tree, tarball)
	for range *rounds {
		for _, w := range list {
			for _, p := range places {
				w.prepare(p)
				before, start := usage(p), time.Now()
				w.run(p)
				rate := w.amount / time.Since(start).Seconds()
				results[w.name+p.name] = append(results[w.name+p.name], rate)
				needs.add(w.name+p.name, before, usage(p))
				b.Logf("%-32s %-12s %10.0f %s", w.name, p.name, rate, w.unit)
			}
		}
	}
	text := render(list, places, results) + "\n" + needs.render(list, places[2])
	fmt.Print("\n" + text + "\n")
	if *table != "" {
		must(os.WriteFile(*table, []byte(text), 0o644))
	}
}

func ringOfOne(b *testing.B) place {
	p := cluster.Init(b, cluster.Options{Capacity: "8GiB"})
	p.Mnt = filepath.Join(b.TempDir(), "mnt")
	p.Start()
	return place{"ring of one", p.Mnt, remount(p), []*cluster.Peer{p}}
}

// remount makes reads cold: the mount forgets all, and so does the kernel.
func remount(p *cluster.Peer) func() {
	return func() {
		p.Unmount()
		dropCaches()
		p.Start()
	}
}

func sixPeers(b *testing.B) place {
	first := cluster.Init(b, cluster.Options{Capacity: "8GiB"})
	first.Start()
	peers := []*cluster.Peer{first}
	for i := 1; i < 6; i++ {
		p := first.Join(b, fmt.Sprintf("peer%d", i), cluster.Options{Capacity: "8GiB"})
		p.Start()
		peers = append(peers, p)
	}
	client := first.Join(b, "client", cluster.Options{Capacity: "0"})
	client.Mnt = filepath.Join(b.TempDir(), "mnt")
	client.Start()
	client.Wait(time.Minute)
	return place{"six peers", client.Mnt, remount(client), append([]*cluster.Peer{client}, peers...)}
}

func median(v []float64) float64 {
	s := slices.SortedFunc(slices.Values(v), cmp.Compare)
	return s[len(s)/2]
}

// render is a table in Markdown: medians, and in brackets the share of the local disk.
func render(list []work, places []place, results map[string][]float64) string {
	var b strings.Builder
	b.WriteString("| |")
	for _, p := range places {
		b.WriteString(" " + p.name + " |")
	}
	b.WriteString("\n|---|" + strings.Repeat("---:|", len(places)) + "\n")
	for _, w := range list {
		if w.amount == 0 {
			continue
		}
		base := median(results[w.name+places[0].name])
		fmt.Fprintf(&b, "| %s (%s) |", w.name, w.unit)
		for i, p := range places {
			m := median(results[w.name+p.name])
			if i == 0 {
				fmt.Fprintf(&b, " %.0f |", m)
			} else {
				fmt.Fprintf(&b, " %.0f (%.2f) |", m, m/base)
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}
