package mux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// testSeed is printed, and taken from MUTUALFS_SEED to replay a run.
func testSeed(t testing.TB) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if env := os.Getenv("MUTUALFS_SEED"); env != "" {
		var err error
		if seed, err = strconv.ParseUint(env, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("MUTUALFS_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func TestConcurrentCalls(t *testing.T) {
	a, b := start(t, testConfig(t)), start(t, testConfig(t))
	ctx := within(t, 20*time.Second)
	rnd := testSeed(t)
	var wg sync.WaitGroup
	for i := range 64 {
		from, to := a, b
		if i%2 == 1 {
			from, to = b, a
		}
		size := rnd.IntN(32 << 10)
		wg.Go(func() {
			for n := range 20 {
				payload := make([]byte, size)
				for j := range payload {
					payload[j] = byte(i + n + j)
				}
				if err := check(ctx, from, to.ID(), to.Addr(), uint8(i)%classes, fmt.Appendf(nil, "%d.%d", i, n), payload); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	eventually(t, 5*time.Second, "one session per lane is left", func() bool { return a.sessions() == int(lanes) })
}

func TestSelf(t *testing.T) {
	a := start(t, testConfig(t))
	ctx := within(t, 20*time.Second)
	for _, to := range [][20]byte{a.ID(), {}} {
		if err := check(ctx, a, to, a.Addr(), Data, []byte("x"), []byte("y")); err != nil {
			t.Error(err)
		}
	}
	if id, err := a.Identify(ctx, a.Addr()); err != nil || id != a.ID() {
		t.Errorf("identify itself: %x, %v", id, err)
	}
	if p := a.Peers(); len(p) != 0 {
		t.Errorf("peers: %+v", p)
	}
}

func TestDeadlineAndCancel(t *testing.T) {
	hold := make(chan struct{})
	var ended, started atomic.Int64
	var left atomic.Int64
	cfg := testConfig(t)
	cfg.Handler = func(ctx context.Context, _ [20]byte, _ string, _ uint8, kind uint16, body, payload []byte) (uint16, []byte, []byte) {
		if kind != 1 && kind != 2 {
			return kind + 1, body, payload
		}
		if d, ok := ctx.Deadline(); ok {
			left.Store(int64(time.Until(d)))
		}
		started.Add(1)
		<-ctx.Done()
		ended.Add(1)
		if kind == 2 {
			<-hold
		}
		return 99, []byte("late"), []byte("late")
	}
	a, b := start(t, testConfig(t)), start(t, cfg)
	ctx := within(t, 20*time.Second)

	short, cancel := context.WithTimeout(ctx, 150*time.Millisecond)
	defer cancel()
	if _, _, _, err := a.Call(short, b.ID(), b.Addr(), Metadata, 2, nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a call past its deadline: %v", err)
	}
	if d := time.Duration(left.Load()); d <= 0 || d > 151*time.Millisecond {
		t.Errorf("the handler was left %v", d)
	}
	eventually(t, 5*time.Second, "the handler is told", func() bool { return ended.Load() == 1 })
	close(hold)

	// Cancelled calls, more than there are streams: all handlers end, nobody
	// gets a late answer, and the streams serve again.
	for round := range 3 {
		before := started.Load()
		ctx2, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		n := a.cfg.Streams[Metadata]
		for range n {
			wg.Go(func() {
				if _, _, _, err := a.Call(ctx2, b.ID(), "", Metadata, 1, nil, nil); !errors.Is(err, context.Canceled) {
					t.Errorf("a cancelled call: %v", err)
				}
			})
		}
		eventually(t, 5*time.Second, "all are being served", func() bool { return started.Load() == before+int64(n) })
		cancel()
		wg.Wait()
		for i := range 2 * n {
			if err := check(ctx, a, b.ID(), "", Metadata, fmt.Appendf(nil, "%d %d", round, i), nil); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, 5*time.Second, "all handlers end", func() bool { return ended.Load() == started.Load() })
	}
	if n := a.saw(Broken); n != 0 {
		t.Errorf("%d sessions broke", n)
	}
}

// Calls cancelled at random moments, in the middle of large requests too, leave
// nothing behind that another call could take for its answer.
func TestCancelAtRandom(t *testing.T) {
	a, b := start(t, testConfig(t)), start(t, testConfig(t))
	ctx := within(t, 20*time.Second)
	rnd := testSeed(t)
	payload := make([]byte, 3<<20)
	for i := range 60 {
		ctx2, cancel := context.WithTimeout(ctx, time.Duration(rnd.IntN(3000))*time.Microsecond)
		_ = check(ctx2, a, b.ID(), b.Addr(), Metadata, nil, payload[:rnd.IntN(len(payload))])
		cancel()
		if err := check(ctx, a, b.ID(), b.Addr(), Metadata, fmt.Appendf(nil, "after %d", i), nil); err != nil {
			t.Fatal(err)
		}
	}
	if n := a.saw(Broken); n != 0 {
		t.Errorf("%d sessions broke", n)
	}
}

// A handler that ignores its context holds its stream for DrainTimeout only, and its answer goes nowhere.
func TestDeafHandler(t *testing.T) {
	block := make(chan struct{})
	cfg := testConfig(t)
	cfg.Handler = func(_ context.Context, _ [20]byte, _ string, _ uint8, kind uint16, body, payload []byte) (uint16, []byte, []byte) {
		if kind == 1 {
			<-block
		}
		return kind + 1, body, payload
	}
	defer sync.OnceFunc(func() { close(block) })()
	one := testConfig(t)
	one.Streams = [classes]int{1, 1, 1, 1}
	one.DrainTimeout = 100 * time.Millisecond
	b, a := start(t, cfg), start(t, one)
	ctx := within(t, 10*time.Second)
	if err := check(ctx, a, b.ID(), b.Addr(), Data, nil, nil); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if _, _, _, err := a.Call(short, b.ID(), "", Data, 1, []byte("deaf"), nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a deaf handler: %v", err)
	}
	if err := check(ctx, a, b.ID(), "", Data, []byte("next"), nil); err != nil {
		t.Fatal(err)
	}
}

func TestLimits(t *testing.T) {
	cfg := testConfig(t)
	release := make(chan struct{})
	var inside, most atomic.Int64
	cfg.Handler = func(_ context.Context, _ [20]byte, _ string, _ uint8, kind uint16, _, _ []byte) (uint16, []byte, []byte) {
		switch kind {
		case 1:
			n := inside.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			<-release
			inside.Add(-1)
		case 2:
			return 2, make([]byte, MaxBody+1), nil
		}
		return kind, nil, nil
	}
	cfg.Serving[Repair] = 2
	b := start(t, cfg)
	defer sync.OnceFunc(func() { close(release) })()
	few := testConfig(t)
	few.MaxWaiting = 1
	few.Streams[Repair] = 3
	a := start(t, few)
	ctx := within(t, 10*time.Second)
	for _, size := range [][2]int{{MaxBody + 1, 0}, {0, MaxPayload + 1}} {
		if _, _, _, err := a.Call(ctx, b.ID(), b.Addr(), Data, 7, make([]byte, size[0]), make([]byte, size[1])); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%v bytes: %v", size, err)
		}
	}
	if _, _, _, err := a.Call(ctx, b.ID(), b.Addr(), Data, 2, nil, nil); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large a response: %v", err)
	}
	// Five calls: two are served, one has a stream, one waits for one, one is too many.
	var busy, ok atomic.Int64
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			_, _, _, err := a.Call(ctx, b.ID(), b.Addr(), Repair, 1, nil, nil)
			switch {
			case errors.Is(err, ErrBusy):
				busy.Add(1)
			case err != nil:
				t.Error(err)
			default:
				ok.Add(1)
			}
		})
	}
	eventually(t, 5*time.Second, "one is refused, two are inside", func() bool { return busy.Load() == 1 && inside.Load() == 2 })
	for range 4 {
		release <- struct{}{}
	}
	wg.Wait()
	if ok.Load() != 4 || most.Load() != 2 {
		t.Errorf("%d served, at most %d at once", ok.Load(), most.Load())
	}
}

func TestRawStreams(t *testing.T) {
	cfg := testConfig(t)
	froms := make(chan [20]byte, 1)
	cfg.StreamHandler = func(from [20]byte, conn net.Conn) {
		go func() {
			defer conn.Close()
			froms <- from
			_, _ = io.Copy(conn, io.LimitReader(conn, 1<<20))
		}()
	}
	a, b := start(t, testConfig(t)), start(t, cfg)
	conn, err := a.Dial(within(t, 20*time.Second), b.ID(), b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = conn.Write(make([]byte, 1<<20)) }()
	if n, err := io.Copy(io.Discard, conn); n != 1<<20 || err != nil {
		t.Errorf("%d bytes came back, %v", n, err)
	}
	if from := <-froms; from != a.ID() {
		t.Errorf("from %x", from)
	}
	if conn.RemoteAddr() == nil || conn.Close() != nil || conn.Close() != nil {
		t.Error("no address, or a Close that fails")
	}
	// Close frees who reads.
	if conn, err = a.Dial(within(t, 20*time.Second), b.ID(), b.Addr()); err != nil {
		t.Fatal(err)
	}
	<-froms
	read := make(chan error, 1)
	go func() {
		_, err := conn.Read(make([]byte, 1))
		read <- err
	}()
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-read:
		if err == nil {
			t.Error("read after Close")
		}
	case <-time.After(5 * time.Second):
		t.Error("Read hangs after Close")
	}
	// Nobody takes streams at a: it is closed, not left to hang.
	conn, err = b.Dial(within(t, 20*time.Second), a.ID(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read: %v", err)
	}
}
