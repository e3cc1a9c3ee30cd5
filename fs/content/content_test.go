package content

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
)

const ino = tree.Ino(2)

// rig is Files over fakes, with one empty file.
func rig(t testing.TB, cfg Config) (*Files, *memInodes, *memStripes) {
	s := newMemStripes()
	m := newMemInodes(t, s)
	m.make(ino)
	cfg.Inodes, cfg.Stripes = m, s
	fs, _ := start(t, cfg)
	return fs, m, s
}

func ctxFor(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func noise(n int) []byte {
	p := make([]byte, n)
	r := rand.New(rand.NewPCG(uint64(n), 7))
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

func mustWrite(t testing.TB, fs *Files, off int, p []byte) {
	t.Helper()
	if err := fs.Write(ctxFor(t), ino, uint64(off), p, false); err != nil {
		t.Fatal(err)
	}
}

func mustFsync(t testing.TB, fs *Files) {
	t.Helper()
	if err := fs.Fsync(ctxFor(t), ino); err != nil {
		t.Fatal(err)
	}
}

func mustRead(t testing.TB, fs *Files, want []byte) {
	t.Helper()
	got := make([]byte, len(want)+10)
	n, err := fs.Read(ctxFor(t), ino, 0, got)
	if err != nil || !bytes.Equal(got[:n], want) {
		t.Fatalf("read: %v, %s", err, diff(got[:n], want))
	}
}

func (m *memInodes) content(ino tree.Ino) tree.Content {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.files[ino].Content
}

// eventually polls until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestSmallFileIsInline(t *testing.T) {
	fs, m, s := rig(t, Config{})
	p := noise(3000)
	mustWrite(t, fs, 0, p)
	mustFsync(t, fs)
	c := m.content(ino)
	if !bytes.Equal(c.Inline, p) || len(c.Extents) != 0 || s.writes.Load() != 0 {
		t.Fatalf("not inline: %d bytes inline, %d extents, %d stripes", len(c.Inline), len(c.Extents), s.writes.Load())
	}
	q := noise(6000)
	mustWrite(t, fs, 3000, q)
	mustFsync(t, fs)
	if c = m.content(ino); len(c.Extents) != 1 || c.Extents[0].Len != 9000 || c.Extents[0].Stripe.Len != 9000 {
		t.Fatalf("grown file is not one stripe of its exact size: %+v", c.Extents)
	}
	mustRead(t, fs, append(p, q...))
}

func TestScatteredWritesShareAStripe(t *testing.T) {
	fs, m, s := rig(t, Config{StripeSize: 64 << 10})
	mustWrite(t, fs, 0, noise(640<<10))
	mustFsync(t, fs)
	before := s.writes.Load()
	for i := range 10 {
		mustWrite(t, fs, i*64<<10+8192, noise(4096))
	}
	mustFsync(t, fs)
	if n := s.writes.Load() - before; n != 1 {
		t.Fatalf("%d stripes for ten small writes", n)
	}
	if c := m.content(ino); len(c.Extents) != 30 {
		t.Fatalf("%d extents", len(c.Extents))
	}
}

func TestFragmentsAreFolded(t *testing.T) {
	fs, m, _ := rig(t, Config{StripeSize: 1 << 20})
	want := noise(1 << 20)
	mustWrite(t, fs, 0, want)
	mustFsync(t, fs)
	most := 0
	for i := range 200 {
		off := (i * 37 % 256) * 4096
		p := noise(100 + i)
		copy(want[off:], p)
		mustWrite(t, fs, off, p)
		mustFsync(t, fs)
		most = max(most, len(m.content(ino).Extents))
	}
	if most > foldExtents+2 || most < foldExtents {
		t.Fatalf("up to %d extents", most)
	}
	mustRead(t, fs, want)
	if got := m.durable(t, ino); !bytes.Equal(got, want) {
		t.Fatal(diff(got, want))
	}
}

// A truncation while a stripe is being written: neither its bytes nor its size come back.
func TestTruncateWhileInFlight(t *testing.T) {
	for _, slow := range []int{0, 1} {
		s := newMemStripes()
		s.hold = make(chan struct{})
		m := newMemInodes(t, s)
		m.dice, m.slow = newDice(1), slow
		m.make(ino)
		fs, _ := start(t, Config{Inodes: m, Stripes: s, StripeSize: 16 << 10})
		p := noise(64 << 10)
		mustWrite(t, fs, 0, p)
		eventually(t, "four stripes under way", func() bool { return fs.Status().Stripes == 4 && s.held.Load() == 4 })
		if err := fs.Truncate(ctxFor(t), ino, 20000); err != nil {
			t.Fatal(err)
		}
		mustRead(t, fs, p[:20000])
		if err := fs.Punch(ctxFor(t), ino, 100, 1000); err != nil {
			t.Fatal(err)
		}
		clear(p[100:1100])
		mustWrite(t, fs, 200, p[5000:5100])
		copy(p[200:300], p[5000:5100])
		close(s.hold)
		mustFsync(t, fs)
		mustRead(t, fs, p[:20000])
		if got := m.durable(t, ino); !bytes.Equal(got, p[:20000]) {
			t.Fatalf("slow %d: %s", slow, diff(got, p[:20000]))
		}
		eventually(t, "memory and stripes freed", func() bool { return fs.Status().DirtyBytes == 0 && len(s.left()) == 0 })
	}
}

func TestErrorsAreReportedAndNothingIsDropped(t *testing.T) {
	fs, m, s := rig(t, Config{MaxAge: 10 * time.Millisecond})
	s.noSpace.Store(true)
	p := noise(100 << 10)
	mustWrite(t, fs, 0, p)
	if err := fs.Fsync(ctxFor(t), ino); !errors.Is(err, blocks.ErrNoSpace) {
		t.Fatalf("Fsync without space: %v", err)
	}
	if err := fs.Flush(ctxFor(t), ino); err != nil {
		t.Fatalf("reported twice: %v", err)
	}
	mustRead(t, fs, p)
	if st := fs.Status(); st.Failing != 1 || st.LastError == "" {
		t.Fatalf("status %+v", st)
	}
	s.noSpace.Store(false)
	mustFsync(t, fs)
	if got := m.durable(t, ino); !bytes.Equal(got, p) {
		t.Fatal(diff(got, p))
	}
}

func TestLateErrorIsReportedOnceAtClose(t *testing.T) {
	fs, _, s := rig(t, Config{MaxAge: 10 * time.Millisecond})
	s.noSpace.Store(true)
	mustWrite(t, fs, 0, noise(100<<10))
	eventually(t, "a failure", func() bool { return fs.Status().Failing == 1 })
	if err := fs.Flush(ctxFor(t), ino); !errors.Is(err, blocks.ErrNoSpace) {
		t.Fatalf("first close: %v", err)
	}
	if err := fs.Flush(ctxFor(t), ino); err != nil {
		t.Fatalf("second close: %v", err)
	}
}

func TestUnavailableIsBoundedByTheContext(t *testing.T) {
	fs, _, s := rig(t, Config{})
	s.dice, s.failWrite = newDice(1), 1
	mustWrite(t, fs, 0, noise(100<<10))
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := fs.Fsync(ctx, ino); !errors.Is(err, blocks.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Fsync: %v", err)
	}
}

func TestDirtyLimitMakesWritersWait(t *testing.T) {
	s := newMemStripes()
	s.hold = make(chan struct{})
	m := newMemInodes(t, s)
	m.make(ino)
	fs, _ := start(t, Config{Inodes: m, Stripes: s, StripeSize: 16 << 10, DirtyLimit: 64 << 10})
	mustWrite(t, fs, 0, noise(64<<10))
	if err := fs.Write(tree.NoWait(ctxFor(t)), ino, 0, []byte{1}, true); !errors.Is(err, tree.ErrWait) {
		t.Fatalf("write over the limit: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := fs.Write(ctx, ino, 0, []byte{1}, true); !errors.Is(err, blocks.ErrUnavailable) {
		t.Fatalf("write over the limit until the end of its context: %v", err)
	}
	close(s.hold)
	mustWrite(t, fs, 64<<10, noise(1000))
	mustRead(t, fs, append(noise(64<<10), noise(1000)...))
}

func TestDropFile(t *testing.T) {
	fs, m, s := rig(t, Config{StripeSize: 16 << 10})
	s.hold = make(chan struct{})
	mustWrite(t, fs, 0, noise(40<<10))
	eventually(t, "stripes are under way", func() bool { return s.held.Load() == 2 })
	m.mu.Lock()
	delete(m.files, ino)
	m.mu.Unlock()
	fs.DropFile(ino)
	if low := fs.DirtyFloor(); low > 1 {
		t.Fatalf("floor %d", low)
	}
	close(s.hold)
	eventually(t, "nothing left", func() bool {
		return fs.Status().DirtyBytes == 0 && fs.Status().DirtyFiles == 0 && fs.DirtyFloor() == 0 && len(s.left()) == 0
	})
}

// Data of a file that another mount removed is told to its writer, once: at fsync, or at close if the background came first.
func TestDataOfARemovedFileIsReported(t *testing.T) {
	for _, age := range []time.Duration{time.Hour, time.Millisecond} {
		fs, m, _ := rig(t, Config{MaxAge: age})
		mustWrite(t, fs, 0, noise(100))
		m.mu.Lock()
		delete(m.files, ino)
		m.mu.Unlock()
		tell := fs.Fsync
		if age < time.Second {
			eventually(t, "the data is dropped", func() bool { return fs.DirtyFloor() == 0 })
			tell = fs.Flush
		}
		if err := tell(ctxFor(t), ino); !errors.Is(err, syscall.ESTALE) {
			t.Errorf("told %v", err)
		}
		if err := fs.Flush(ctxFor(t), ino); err != nil {
			t.Errorf("told again: %v", err)
		}
		if err := fs.Sync(ctxFor(t)); err != nil {
			t.Errorf("sync: %v", err)
		}
	}
}

func TestAgeFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newMemStripes()
		m := newMemInodes(t, s)
		m.make(ino)
		fs, stop := start(t, Config{Inodes: m, Stripes: s, MaxAge: 2 * time.Second})
		defer stop()
		p := noise(10000)
		mustWrite(t, fs, 0, p)
		time.Sleep(1500 * time.Millisecond)
		synctest.Wait()
		if s.writes.Load() != 0 || fs.DirtyFloor() != 1 {
			t.Fatal("written before it was old")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := m.durable(t, ino); !bytes.Equal(got, p) || fs.DirtyFloor() != 0 || fs.Status().DirtyBytes != 0 {
			t.Fatalf("not committed by age: %s", diff(got, p))
		}
	})
}

func TestMtimeSetAfterAWriteStays(t *testing.T) {
	fs, m, _ := rig(t, Config{})
	mustWrite(t, fs, 0, noise(100))
	if err := fs.SetMtime(ctxFor(t), ino, 12345); err != nil {
		t.Fatal(err)
	}
	mustFsync(t, fs)
	if got := m.files[ino].mtime; got != 12345 {
		t.Fatalf("mtime %d", got)
	}
}

func TestCloseModeSyncs(t *testing.T) {
	fs, m, _ := rig(t, Config{Sync: SyncClose})
	p := noise(50000)
	mustWrite(t, fs, 0, p)
	if err := fs.Flush(ctxFor(t), ino); err != nil {
		t.Fatal(err)
	}
	if got := m.durable(t, ino); !bytes.Equal(got, p) {
		t.Fatal(diff(got, p))
	}
}

// Many goroutines, each on bytes of its own in files that all share, read what they wrote.
func TestConcurrentWriters(t *testing.T) {
	s := newMemStripes()
	m := newMemInodes(t, s)
	d := newDice(seed(t))
	s.dice, s.failWrite, s.lose, m.dice, m.slow, m.fail = d, 30, 30, d, 4, 30
	for i := range 3 {
		m.make(ino + tree.Ino(i))
	}
	fs, _ := start(t, Config{Inodes: m, Stripes: s, StripeSize: 32 << 10, MaxAge: 2 * time.Millisecond, DirtyLimit: 512 << 10, CacheBytes: 64 << 10})
	const part, workers = 20000, 6
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 3))
			mine := map[tree.Ino][]byte{}
			for range 150 {
				n := ino + tree.Ino(r.IntN(3))
				if mine[n] == nil {
					mine[n] = make([]byte, part)
				}
				off := r.IntN(part - 1)
				p := bytes.Repeat([]byte{byte(r.Uint32())}, 1+r.IntN(min(9000, part-off)))
				p = p[:min(len(p), part-off)]
				copy(mine[n][off:], p)
				if err := fs.Write(ctxFor(t), n, uint64(w*part+off), p, false); err != nil {
					t.Error(err)
					return
				}
				if r.IntN(10) == 0 {
					if err := fs.Fsync(ctxFor(t), n); err != nil {
						t.Error(err)
					}
				}
				got := make([]byte, part)
				k, err := fs.Read(ctxFor(t), n, uint64(w*part), got)
				if err != nil || !bytes.Equal(got[:k], mine[n][:k]) || k < off+len(p) {
					t.Errorf("worker %d: %v, %s", w, err, diff(got[:k], mine[n]))
					return
				}
			}
		})
	}
	wg.Wait()
	if err := fs.Sync(ctxFor(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all clean", func() bool { return fs.Status().DirtyBytes == 0 && fs.DirtyFloor() == 0 })
}

func TestConfigValidate(t *testing.T) {
	s := newMemStripes()
	ok := Config{Inodes: newMemInodes(t, s), Stripes: s}
	if _, err := New(ok); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"no inodes":     func(c *Config) { c.Inodes = nil },
		"stripe size":   func(c *Config) { c.StripeSize = 1000 },
		"mode":          func(c *Config) { c.Sync = "sometimes" },
		"dirty limit":   func(c *Config) { c.DirtyLimit = 1 },
		"cache":         func(c *Config) { c.CacheBytes = 1 },
		"parallel":      func(c *Config) { c.WriteParallel = -1 },
		"age":           func(c *Config) { c.MaxAge = -1 },
		"negative sync": func(c *Config) { c.SyncBytes = -1 },
	} {
		c := ok
		change(&c)
		if _, err := New(c); !errors.Is(err, blocks.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// After Fsync a power cut of everything loses nothing; before, nothing half done is seen.
func TestPowerCut(t *testing.T) {
	d := newDice(seed(t))
	s := newMemStripes()
	s.dice, s.lose, s.failSync = d, 4, 4
	m := newMemInodes(t, s)
	m.make(ino)
	fs, stop := start(t, Config{Inodes: m, Stripes: s, StripeSize: 16 << 10})
	p := noise(300 << 10)
	mustWrite(t, fs, 0, p)
	// About 2 of 5 attempts fail here, and pauses double up to 5 s: 10 s are 8 attempts, which all fail once in some hundred runs.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := fs.Fsync(ctx, ino); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, fs, 300<<10, noise(200<<10))
	stop()
	s.powerCut()
	got := m.durable(t, ino) // fails if a stripe that was named is gone
	if !bytes.Equal(got[:len(p)], p) {
		t.Fatal(diff(got, p))
	}
}
