package content

import (
	"errors"
	"math/rand/v2"
	"syscall"
	"testing"
)

// Data and holes of a file that is written, cut and committed at random, against a list of what was written. Where a
// file that small is kept whole in its inode, its holes may have become data.
func TestSeek(t *testing.T) {
	const size, unit = 400 << 10, 8 << 10
	r := rand.New(rand.NewPCG(11, 12))
	for round := range 20 {
		fs, _, _ := rig(t, Config{StripeSize: 64 << 10})
		data := make([]bool, 0, size/unit)
		grow := func(n int) {
			for len(data) < n {
				data = append(data, false)
			}
		}
		for range 12 {
			from := r.IntN(size / unit)
			n := 1 + r.IntN(4)
			switch r.IntN(6) {
			default:
				mustWrite(t, fs, from*unit, noise(n*unit))
				grow(from + n)
				for i := range n {
					data[from+i] = true
				}
			case 0:
				if err := fs.Truncate(ctxFor(t), ino, uint64(from*unit)); err != nil {
					t.Fatal(err)
				}
				grow(from)
				data = data[:from]
			case 1:
				if err := fs.Punch(ctxFor(t), ino, uint64(from*unit), uint64(n*unit)); err != nil {
					t.Fatal(err)
				}
				for i := from; i < min(from+n, len(data)); i++ {
					data[i] = false
				}
			case 2:
				mustFsync(t, fs)
			}
			checkSeek(t, fs, round, data, unit)
		}
	}
}

func checkSeek(t *testing.T, fs *Files, round int, data []bool, unit int) {
	t.Helper()
	for off := 0; off <= len(data)*unit; off += unit / 2 {
		for _, hole := range []bool{false, true} {
			i := off / unit
			for i < len(data) && data[i] == hole {
				i++
			}
			want, wantErr := uint64(max(off, i*unit)), error(nil)
			if off >= len(data)*unit || !hole && i == len(data) {
				want, wantErr = 0, syscall.ENXIO
			}
			got, err := fs.Seek(ctxFor(t), ino, uint64(off), hole)
			if got != want || !errors.Is(err, wantErr) {
				t.Fatalf("round %d: seek from %d (hole %v) of %v: %d, %v; want %d, %v", round, off, hole, data, got, err, want, wantErr)
			}
		}
	}
}

func TestSeekInline(t *testing.T) {
	fs, _, _ := rig(t, Config{})
	mustWrite(t, fs, 0, noise(100))
	mustFsync(t, fs)
	if err := fs.Truncate(ctxFor(t), ino, 1<<20); err != nil {
		t.Fatal(err)
	}
	if at, err := fs.Seek(ctxFor(t), ino, 50, true); at != 100 || err != nil {
		t.Fatalf("hole at %d, %v", at, err)
	}
	if at, err := fs.Seek(ctxFor(t), ino, 99, false); at != 99 || err != nil {
		t.Fatalf("data at %d, %v", at, err)
	}
	if _, err := fs.Seek(ctxFor(t), ino, 100, false); !errors.Is(err, syscall.ENXIO) {
		t.Fatalf("data after the last: %v", err)
	}
}
