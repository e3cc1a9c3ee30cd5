package content

import (
	"context"
	"math/rand/v2"
	"testing"

	"github.com/mutualfs/mutualfs/fs/tree"
)

func benchFiles(b *testing.B) (*Files, *memInodes, *memStripes) {
	s := newMemStripes()
	m := newMemInodes(b, s)
	m.keep = false
	m.make(2)
	fs, _ := start(b, Config{Inodes: m, Stripes: s})
	return fs, m, s
}

const benchFile = 64 << 20

func writeAll(b *testing.B, fs *Files, p []byte) {
	for off := 0; off < benchFile; off += len(p) {
		if err := fs.Write(context.Background(), 2, uint64(off), p, false); err != nil {
			b.Fatal(err)
		}
	}
	if err := fs.Fsync(context.Background(), 2); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkSequentialWrite(b *testing.B) {
	fs, m, s := benchFiles(b)
	p := make([]byte, 128<<10)
	b.SetBytes(benchFile)
	b.ReportAllocs()
	for b.Loop() {
		writeAll(b, fs, p)
		b.StopTimer()
		_ = m.Truncate(context.Background(), 2, 0)
		clear(s.stripes)
		clear(s.synced)
		b.StartTimer()
	}
}

func BenchmarkSequentialReadCold(b *testing.B) {
	fs, _, _ := benchFiles(b)
	p := make([]byte, 128<<10)
	writeAll(b, fs, p)
	b.SetBytes(benchFile)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		fs.rd.cache.drop()
		b.StartTimer()
		for off := 0; off < benchFile; off += len(p) {
			if n, err := fs.Read(context.Background(), 2, uint64(off), p); err != nil || n != len(p) {
				b.Fatal(n, err)
			}
		}
	}
}

func BenchmarkRandomRead4K(b *testing.B) {
	fs, _, s := benchFiles(b)
	writeAll(b, fs, make([]byte, 128<<10))
	fs.rd.cache.drop()
	fs.rd.cache.limit = 8 << 20
	s.readBytes.Store(0)
	p := make([]byte, 4<<10)
	r := rand.New(rand.NewPCG(1, 1))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := fs.Read(context.Background(), 2, uint64(r.IntN(benchFile/len(p))*len(p)), p); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(s.readBytes.Load())/float64(b.N), "fetched-B/op")
}

func BenchmarkRandomWrite4K(b *testing.B) {
	fs, m, s := benchFiles(b)
	writeAll(b, fs, make([]byte, 128<<10))
	p := make([]byte, 4<<10)
	r := rand.New(rand.NewPCG(1, 1))
	b.ReportAllocs()
	for b.Loop() {
		if err := fs.Write(context.Background(), 2, uint64(r.IntN(benchFile/len(p))*len(p)), p, false); err != nil {
			b.Fatal(err)
		}
	}
	if err := fs.Fsync(context.Background(), 2); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(s.writes.Load()), "stripes")
	b.ReportMetric(float64(len(m.files[2].Extents)), "extents")
}

func BenchmarkSmallFiles(b *testing.B) {
	fs, m, _ := benchFiles(b)
	p := make([]byte, 3000)
	ino := tree.Ino(10)
	b.ReportAllocs()
	for b.Loop() {
		ino++
		m.make(ino)
		if err := fs.Write(context.Background(), ino, 0, p, false); err != nil {
			b.Fatal(err)
		}
	}
	if err := fs.Sync(context.Background()); err != nil {
		b.Fatal(err)
	}
}
