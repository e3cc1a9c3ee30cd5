package cluster

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// pieces of a large file: where they are, and what is there.
type pieces map[int64]uint64

const pieceSize = 4 << 10

func (p pieces) at(off int64) []byte {
	b := make([]byte, pieceSize)
	for i := 0; i < pieceSize; i += 8 {
		binary.BigEndian.PutUint64(b[i:], p[off]+uint64(i))
	}
	return b
}

// write makes n pieces at random places of [0, size), and stores them.
func (p pieces) write(t *testing.T, name string, r *rand.Rand, n int, size int64) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	begin, slowest := time.Now(), time.Duration(0)
	for range n {
		off := r.Int64N(size/pieceSize) * pieceSize
		p[off] = r.Uint64()
		at := time.Now()
		if _, err := f.WriteAt(p.at(off), off); err != nil {
			t.Fatal(err)
		}
		slowest = max(slowest, time.Since(at))
	}
	wrote := time.Since(begin)
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %d pieces in %v (slowest %v), stored after %v", filepath.Base(name), n, wrote, slowest, time.Since(begin))
	if slowest > 10*time.Second {
		t.Errorf("a write took %v", slowest)
	}
}

// read compares some of the pieces, and what lies beside them, with a file of a size, and returns the blocks that it takes.
func (p pieces) read(t *testing.T, name string, most int, size int64) int64 {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, zero := make([]byte, pieceSize), make([]byte, pieceSize)
	n, begin := 0, time.Now()
	for off := range p {
		if n++; n > most {
			break
		}
		if _, err := f.ReadAt(got, off); err != nil || !bytes.Equal(got, p.at(off)) {
			t.Fatalf("the piece at %d: %v", off, err)
		}
		next := off + pieceSize
		if _, there := p[next]; there || next >= size {
			continue
		}
		if _, err := f.ReadAt(got, next); err != nil || !bytes.Equal(got, zero) {
			t.Fatalf("the hole at %d: %v", next, err)
		}
	}
	t.Logf("%s: %d pieces read in %v", filepath.Base(name), n, time.Since(begin))
	info, err := f.Stat()
	if err != nil || info.Size() != size {
		t.Fatalf("size %v, %v; want %d", info, err, size)
	}
	return info.Sys().(*syscall.Stat_t).Blocks
}

// A sparse file of 1 TiB costs what is written to it, and one in many pieces stays usable: written on one mount, read on
// another, cut, and removed.
func TestLargeFiles(t *testing.T) {
	const tib = 1 << 40
	r := rand.New(rand.NewPCG(1, 2))
	a, b := pair(t)
	for _, c := range []struct {
		name   string
		pieces int
		size   int64
	}{
		{"few", 10, tib},
		{"wide", 6000, tib},        // extent maps of nearly all its ranges
		{"dense", 16384, 64 << 20}, // one extent map
	} {
		p := pieces{}
		p.write(t, filepath.Join(a.Mnt, c.name), r, c.pieces, c.size)
		if blocks := p.read(t, filepath.Join(b.Mnt, c.name), 300, c.size); blocks*512 < int64(len(p))*pieceSize || blocks*512 > min(2*int64(len(p))*pieceSize, c.size) {
			t.Errorf("%s: %d bytes in pieces take %d", c.name, len(p)*pieceSize, blocks*512)
		}
		half := c.size / 2
		begin := time.Now()
		if err := os.Truncate(filepath.Join(b.Mnt, c.name), half); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(filepath.Join(b.Mnt, c.name), c.size); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: cut in %v", c.name, time.Since(begin))
		left := pieces{}
		for off, v := range p {
			if off < half {
				left[off] = v
			}
		}
		left.read(t, filepath.Join(a.Mnt, c.name), 300, c.size)
		f, err := os.Open(filepath.Join(a.Mnt, c.name))
		if err != nil {
			t.Fatal(err)
		}
		if off, err := syscall.Seek(int(f.Fd()), half, 3); err != syscall.ENXIO { // SEEK_DATA
			t.Errorf("%s: data at %d after the cut, %v", c.name, off, err)
		}
		f.Close()
	}
	Run(t, "", "check", "--data", a.Dir)
	begin := time.Now()
	for _, name := range []string{"few", "wide", "dense"} {
		if err := os.Remove(filepath.Join(a.Mnt, name)); err != nil {
			t.Fatal(err)
		}
	}
	if d := time.Since(begin); d > 10*time.Second {
		t.Errorf("removed in %v", d)
	}
	Run(t, "", "check", "--data", a.Dir)
}
