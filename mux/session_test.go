package mux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// proxy stands between two peers; it can be cut, or go silent without a sign.
type proxy struct {
	net.Listener
	target string
	wg     sync.WaitGroup
	mu     sync.Mutex
	conns  []net.Conn
	silent atomic.Bool
}

func newProxy(t *testing.T, target string) *proxy {
	p := &proxy{Listener: listen(t, "127.0.0.1:0"), target: target}
	p.wg.Go(func() {
		for {
			in, err := p.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", target)
			if err != nil {
				in.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, in, out)
			p.mu.Unlock()
			p.wg.Go(func() { p.copy(in, out) })
			p.wg.Go(func() { p.copy(out, in) })
		}
	})
	t.Cleanup(func() {
		p.Close()
		p.cut()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) copy(to, from net.Conn) {
	defer to.Close()
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		if p.silent.Load() {
			continue
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}

func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

// blocking never answers kind 1 before its context ends.
func blocking(inside *atomic.Int64) Handler {
	return func(ctx context.Context, _ [20]byte, _ string, _ uint8, kind uint16, body, payload []byte) (uint16, []byte, []byte) {
		if kind == 1 {
			inside.Add(1)
			<-ctx.Done()
			inside.Add(-1)
		}
		return kind + 1, body, payload
	}
}

func TestSessionBreaks(t *testing.T) {
	var inside atomic.Int64
	cfg := testConfig(t)
	cfg.Handler = blocking(&inside)
	a, b := start(t, testConfig(t)), start(t, cfg)
	p := newProxy(t, b.Addr())
	addr := p.Addr().String()
	ctx := within(t, 20*time.Second)
	errs := make(chan error, 8)
	for i := range cap(errs) {
		go func() {
			_, _, _, err := a.Call(ctx, b.ID(), addr, uint8(i)%classes, 1, nil, nil)
			errs <- err
		}()
	}
	eventually(t, 5*time.Second, "all are inside", func() bool { return inside.Load() == int64(cap(errs)) })
	p.cut()
	for range cap(errs) {
		if err := <-errs; !errors.Is(err, ErrUnreachable) {
			t.Errorf("a call on a broken session: %v", err)
		}
	}
	eventually(t, 5*time.Second, "handlers end, both sides know", func() bool {
		return inside.Load() == 0 && a.saw(Broken) > 0 && b.saw(Broken) > 0 && len(a.Peers())+len(b.Peers()) == 0
	})
	if err := check(ctx, a, b.ID(), addr, Data, nil, nil); err != nil {
		t.Errorf("after the break: %v", err)
	}
}

func TestSilence(t *testing.T) {
	var inside atomic.Int64
	slow := testConfig(t)
	slow.Handler = blocking(&inside)
	b := start(t, slow)
	cfg := testConfig(t)
	cfg.Heartbeat, cfg.Silence = 50*time.Millisecond, 10
	a := start(t, cfg)
	p := newProxy(t, b.Addr())
	ctx := within(t, 20*time.Second)
	if err := check(ctx, a, b.ID(), p.Addr().String(), Data, nil, nil); err != nil {
		t.Fatal(err)
	}
	// Heartbeats keep an idle session and a waiting call alive.
	wait, cancel := context.WithCancel(ctx)
	time.AfterFunc(800*time.Millisecond, cancel)
	if _, _, _, err := a.Call(wait, b.ID(), "", Data, 1, nil, nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("a waiting call: %v", err)
	}
	if rtt := a.Peers()[0].RTT; rtt <= 0 || rtt > time.Second {
		t.Errorf("round trip %v", rtt)
	}
	p.silent.Store(true)
	begun := time.Now()
	_, _, _, err := a.Call(ctx, b.ID(), "", Data, 7, nil, make([]byte, 8<<20))
	if took := time.Since(begun); !errors.Is(err, ErrUnreachable) || took > 5*time.Second {
		t.Errorf("a silent peer: %v after %v", err, took)
	}
	eventually(t, 5*time.Second, "the failure detector hears of it", func() bool { return a.saw(Broken) == 1 })
}

func TestCancelFreesAtOnce(t *testing.T) {
	a, b := start(t, testConfig(t)), start(t, testConfig(t))
	p := newProxy(t, b.Addr())
	ctx := within(t, 20*time.Second)
	if err := check(ctx, a, b.ID(), p.Addr().String(), Data, nil, nil); err != nil {
		t.Fatal(err)
	}
	p.silent.Store(true)
	for i := range 20 { // more than there are streams; each fills a window
		ctx2, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		begun := time.Now()
		_, _, _, err := a.Call(ctx2, b.ID(), "", Data, 7, nil, make([]byte, 8<<20))
		if took := time.Since(begun); !errors.Is(err, context.DeadlineExceeded) || took > time.Second {
			t.Fatalf("call %d: %v after %v", i, err, took)
		}
		cancel()
	}
}

func TestGoodbyeAndRestart(t *testing.T) {
	cfg := testConfig(t)
	a, b := start(t, testConfig(t)), start(t, cfg)
	addr := b.Addr()
	ctx := within(t, 30*time.Second)
	for class := range classes {
		if err := check(ctx, a, b.ID(), addr, class, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	b.stop()
	eventually(t, 5*time.Second, "a hears the goodbyes", func() bool { return a.saw(Goodbye) == 2 && len(a.Peers()) == 0 })
	if n := a.saw(Broken); n != 0 {
		t.Errorf("%d sessions broke", n)
	}
	if _, _, _, err := b.Call(ctx, a.ID(), a.Addr(), Control, 1, nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("a call after the end: %v", err)
	}
	// Refused dials: the first tells the failure detector, those that follow cost nothing.
	for range 1000 {
		if err := check(ctx, a, b.ID(), addr, Control, nil, nil); !errors.Is(err, ErrUnreachable) {
			t.Fatalf("a call to a dead peer: %v", err)
		}
	}
	if n := a.saw(Unreachable); n < 1 || n > 5 {
		t.Errorf("%d dials", n)
	}
	cfg.Listen = addr
	b = start(t, cfg)
	begun := time.Now()
	eventually(t, 5*time.Second, "b is reached again", func() bool { return check(ctx, a, b.ID(), addr, Control, nil, nil) == nil })
	if took := time.Since(begun); took > backoffMax+3*time.Second {
		t.Errorf("reached again after %v", took)
	}
}

// A restarted peer that connects replaces the sessions of its earlier life, which
// nobody has told to end.
func TestEarlierLife(t *testing.T) {
	b := start(t, testConfig(t))
	cfg := testConfig(t)
	old := start(t, cfg)
	p := newProxy(t, b.Addr())
	ctx := within(t, 10*time.Second)
	for _, class := range []uint8{Control, Data} {
		if err := check(ctx, old, b.ID(), p.Addr().String(), class, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	p.silent.Store(true) // its machine is off
	cfg.Listen = "127.0.0.1:0"
	again := start(t, cfg)
	if err := check(ctx, again, b.ID(), b.Addr(), Control, nil, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "the earlier sessions are closed", func() bool { return b.sessions() == 1 })
	for _, class := range []uint8{Control, Data} {
		if err := check(ctx, b, again.ID(), again.Addr(), class, nil, nil); err != nil {
			t.Error(err)
		}
	}
	if n := b.saw(Broken); n != 0 {
		t.Errorf("%d breaks reported of a peer that is up", n)
	}
}

func TestSimultaneousDials(t *testing.T) {
	for round := range 10 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			a, b := start(t, testConfig(t)), start(t, testConfig(t))
			ctx := within(t, 10*time.Second)
			gate := make(chan struct{})
			var wg sync.WaitGroup
			for i := range 16 {
				from, to := a, b
				if i%2 == 1 {
					from, to = b, a
				}
				wg.Go(func() {
					<-gate
					for n := range 30 {
						if err := check(ctx, from, to.ID(), to.Addr(), uint8(i/2)%classes, []byte{byte(i), byte(n)}, nil); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			close(gate)
			wg.Wait()
			eventually(t, 5*time.Second, "one session per lane is left", func() bool { return a.sessions() == 2 && b.sessions() == 2 })
			if a.saw(Broken)+b.saw(Broken)+a.saw(Goodbye)+b.saw(Goodbye) != 0 {
				t.Error("a session that was retired counts as broken")
			}
		})
	}
}

// One side dials twice at once, by ID and by address alone: neither call fails.
func TestDialsByIDAndAddress(t *testing.T) {
	for range 10 {
		a, b := start(t, testConfig(t)), start(t, testConfig(t))
		ctx := within(t, 10*time.Second)
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				to := [20]byte{}
				if i%2 == 0 {
					to = b.ID()
				}
				for range 20 {
					if err := check(ctx, a, to, b.Addr(), Control, []byte{byte(i)}, nil); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		if id, err := a.Identify(ctx, b.Addr()); err != nil || id != b.ID() {
			t.Errorf("identify: %x, %v", id, err)
		}
	}
}

func (n *node) sessions() int {
	n.Mux.mu.Lock()
	defer n.Mux.mu.Unlock()
	return n.count
}

// chunked splits what is read at the worst places.
type chunked struct{ net.Conn }

func (c chunked) Write(p []byte) (int, error) {
	for i := range p {
		if _, err := c.Conn.Write(p[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(p), nil
}

func TestGatherConn(t *testing.T) {
	x, y := net.Pipe()
	defer y.Close()
	var got bytes.Buffer
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(&got, y) })
	g := &gatherConn{Conn: chunked{x}}
	var want []byte
	for i := range 5 {
		part := bytes.Repeat([]byte{byte(i)}, 1000*i+1)
		want = append(want, part...)
		if i%2 == 0 {
			g.begin()
		}
		if n, err := g.Write(part); n != len(part) || err != nil {
			t.Fatal(n, err)
		}
		if i%2 == 1 {
			if err := g.flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := g.flush(); err != nil {
		t.Fatal(err)
	}
	x.Close()
	wg.Wait()
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%d bytes arrived, %d were written", got.Len(), len(want))
	}
}
