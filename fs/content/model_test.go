package content

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/fs/tree"
)

// world drives Files and a plain model of it with the same calls.
type world struct {
	t       testing.TB
	r       *rand.Rand
	cfg     Config
	inodes  *memInodes
	stripes *memStripes
	fs      *Files
	stop    func()
	model   map[tree.Ino][]byte
	limit   int // of a file's size
	step    int
}

const modelFiles = 4

func newWorld(t testing.TB, seed uint64, faults bool) *world {
	w := &world{t: t, r: rand.New(rand.NewPCG(seed, 2)), stripes: newMemStripes(), model: map[tree.Ino][]byte{}}
	w.inodes = newMemInodes(t, w.stripes)
	if faults {
		d := newDice(seed)
		w.stripes.dice, w.inodes.dice = d, d
		w.stripes.failWrite, w.stripes.failSync, w.stripes.lose = 30, 30, 20
		w.inodes.slow, w.inodes.fail = 3, 20
	}
	stripe := []int{Unit, 4 * Unit}[w.r.IntN(2)]
	w.limit = 6 * stripe
	w.cfg = Config{Inodes: w.inodes, Stripes: w.stripes, StripeSize: stripe, MaxAge: 5 * time.Millisecond,
		DirtyLimit: int64(10 * stripe), CacheBytes: int64(4 * stripe), WriteParallel: 3, ReadAhead: 4 * stripe}
	for i := range modelFiles {
		w.inodes.make(tree.Ino(i + 2))
		w.model[tree.Ino(i+2)] = nil
	}
	w.fs, w.stop = start(t, w.cfg)
	return w
}

// do makes a call as the face does: without waiting, and again if that does not do.
func (w *world) do(call func(ctx context.Context) error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err := tree.ErrWait
	if w.r.IntN(2) == 0 {
		err = call(tree.NoWait(ctx))
	}
	if errors.Is(err, tree.ErrWait) {
		err = call(ctx)
	}
	if err != nil {
		w.t.Fatalf("step %d: %v", w.step, err)
	}
}

// place draws an offset and a length, now and then around the edges that matter.
func (w *world) place() (off, n int) {
	edge := []int{w.cfg.StripeSize, Unit, tree.MaxInline, 1, w.limit / 2}[w.r.IntN(5)]
	off = w.r.IntN(w.limit)
	if w.r.IntN(3) == 0 {
		off = max(0, min(w.limit-1, edge*w.r.IntN(3)+w.r.IntN(3)-1))
	}
	n = 1 + w.r.IntN([]int{16, 5000, 2 * w.cfg.StripeSize}[w.r.IntN(3)])
	return off, min(n, w.limit-off)
}

func (w *world) run(steps int, kills bool) {
	for w.step = range steps {
		ino := tree.Ino(2 + w.r.IntN(modelFiles))
		m := w.model[ino]
		off, n := w.place()
		switch op := w.r.IntN(100); {
		case op < 40:
			p := make([]byte, n)
			for i := range p {
				p[i] = byte(w.r.Uint32())
			}
			app := w.r.IntN(5) == 0 && len(m)+n <= w.limit
			if app {
				off = len(m)
			}
			w.do(func(ctx context.Context) error { return w.fs.Write(ctx, ino, uint64(off)*uint64(b2i(!app)), p, app) })
			m = grow(m, off+n)
			copy(m[off:], p)
		case op < 70:
			w.check(ino, off, n)
		case op < 78:
			w.do(func(ctx context.Context) error { return w.fs.Truncate(ctx, ino, uint64(off)) })
			m = grow(m, off)[:off:off]
		case op < 84:
			w.do(func(ctx context.Context) error { return w.fs.Punch(ctx, ino, uint64(off), uint64(n)) })
			if off < len(m) {
				clear(m[off:min(off+n, len(m))])
			}
		case op < 88:
			w.do(func(ctx context.Context) error { return w.fs.Grow(ctx, ino, uint64(off)) })
			m = grow(m, off)
		case op < 93:
			w.do(func(ctx context.Context) error { return w.fs.Fsync(ctx, ino) })
			if got := w.inodes.durable(w.t, ino); !bytes.Equal(got, m) {
				w.t.Fatalf("step %d: inode %d is not durable after Fsync: %s", w.step, ino, diff(got, m))
			}
		case op < 95:
			_ = w.fs.Flush(context.Background(), ino) // may report an injected failure
		case op < 98:
			w.inodes.commit(w.fs.DirtyFloor)
		case kills:
			w.kill()
		}
		w.model[ino] = m
	}
	for ino := range w.model {
		w.check(ino, 0, w.limit)
	}
	w.do(w.fs.Sync)
	if kills { // what a killed mount has written nobody names
		s := w.inodes.stripes
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.wrong) > 0 {
			w.t.Fatal(s.wrong)
		}
		return
	}
	eventually(w.t, "no stripe is left behind", func() bool { return len(w.inodes.stripes.left()) == 0 })
}

func (w *world) kill() {
	w.stop()
	fs, err := New(w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.inodes.restart(fs)
	w.fs = fs
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = fs.Run(ctx) }()
	w.stop = func() { cancel(); <-done }
	for ino := range w.model {
		w.check(ino, 0, w.limit)
	}
}

func (w *world) check(ino tree.Ino, off, n int) {
	w.t.Helper()
	m := w.model[ino]
	got := make([]byte, n)
	for i := range got {
		got[i] = 0xa5 // must be overwritten
	}
	var k int
	w.do(func(ctx context.Context) (err error) { k, err = w.fs.Read(ctx, ino, uint64(off), got); return err })
	want := m[min(off, len(m)):min(off+n, len(m))]
	if !bytes.Equal(got[:k], want) {
		w.t.Fatalf("step %d: inode %d read at %d: %s", w.step, ino, off, diff(got[:k], want))
	}
}

func grow(m []byte, n int) []byte {
	if n > len(m) {
		m = append(slices.Clip(m), make([]byte, n-len(m))...)
	}
	return m
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func diff(got, want []byte) string {
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return "differs at " + strconv.Itoa(i) + " of " + strconv.Itoa(len(got)) + ", " + strconv.Itoa(len(want))
		}
	}
	return strconv.Itoa(len(got)) + " bytes, not " + strconv.Itoa(len(want))
}

func TestModel(t *testing.T) {
	w := newWorld(t, seed(t), false)
	w.run(4000, false)
}

func TestModelKillAndReplay(t *testing.T) {
	w := newWorld(t, seed(t), false)
	w.run(4000, true)
	w.stop()
}

func TestModelFaults(t *testing.T) {
	w := newWorld(t, seed(t), true)
	w.run(1500, true)
	w.stop()
}
