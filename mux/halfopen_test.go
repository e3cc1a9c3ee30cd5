package mux

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// Who accepts and then says nothing costs a caller its own patience, and the
// dial a bounded time.
func TestDialIntoSilence(t *testing.T) {
	cfg := testConfig(t)
	cfg.HandshakeTimeout = time.Second
	a := start(t, cfg)
	l := listen(t, "127.0.0.1:0") // the kernel accepts, nobody answers
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	begun := time.Now()
	_, _, _, err := a.Call(ctx, [20]byte{1}, l.Addr().String(), Control, 1, nil, nil)
	if took := time.Since(begun); !errors.Is(err, context.DeadlineExceeded) || took > 900*time.Millisecond {
		t.Errorf("an impatient call: %v after %v", err, took)
	}
	_, _, _, err = a.Call(within(t, 20*time.Second), [20]byte{1}, l.Addr().String(), Control, 1, nil, nil)
	if !errors.Is(err, ErrUnreachable) {
		t.Errorf("a patient call: %v", err)
	}
	eventually(t, 5*time.Second, "the failure detector hears of the dial", func() bool { return a.saw(Unreachable) > 0 })
	if n := a.saw(Unreachable); n != 1 {
		t.Errorf("%d failed dials, want one shared by both calls", n)
	}
}

// Shutting down does not wait for a handshake that goes nowhere.
func TestShutdownDuringHandshakes(t *testing.T) {
	cfg := testConfig(t)
	cfg.HandshakeTimeout = time.Minute
	a := start(t, cfg)
	l := listen(t, "127.0.0.1:0")
	failed := make(chan error, 1)
	go func() {
		_, _, _, err := a.Call(context.Background(), [20]byte{1}, l.Addr().String(), Control, 1, nil, nil)
		failed <- err
	}()
	in, err := net.Dial("tcp", a.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	begun := time.Now()
	a.stop()
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("Run took %v to return", took)
	}
	select {
	case err := <-failed:
		if err == nil {
			t.Error("the call succeeded")
		}
	case <-time.After(5 * time.Second):
		t.Error("the call hangs")
	}
}

// Handshakes that take their time are bounded in number and in time.
func TestHandshakeSlots(t *testing.T) {
	cfg := testConfig(t)
	cfg.HandshakeTimeout = time.Second
	cfg.MaxHandshakes = 1
	b := start(t, cfg)
	slow, err := net.Dial("tcp", b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	next, err := net.Dial("tcp", b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	_ = next.SetDeadline(time.Now().Add(900 * time.Millisecond))
	var timeout net.Error
	if _, err := io.ReadAll(next); errors.As(err, &timeout) && timeout.Timeout() {
		t.Error("a second handshake was let in")
	}
	a := start(t, testConfig(t))
	eventually(t, 5*time.Second, "the slot is free again", func() bool {
		return check(within(t, time.Second), a, b.ID(), b.Addr(), Control, nil, nil) == nil
	})
}

func TestStreamsAreReused(t *testing.T) {
	a, b := start(t, testConfig(t)), start(t, testConfig(t))
	ctx := within(t, 10*time.Second)
	for range 200 {
		if err := check(ctx, a, b.ID(), b.Addr(), Metadata, nil, make([]byte, 5000)); err != nil {
			t.Fatal(err)
		}
	}
	s := a.pick(b.ID(), "", laneControl)
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.pools[Metadata].open; n != 1 {
		t.Errorf("%d streams were opened for calls one after the other", n)
	}
	if n := s.yamux.NumStreams(); n != 2 {
		t.Errorf("%d streams in the session, want that of calls and that of control", n)
	}
}

// A cancellation that overtakes its request counts.
func TestEarlyCancel(t *testing.T) {
	s := &session{ctx: context.Background(), running: map[uint64]context.CancelFunc{}}
	for id := uint64(1); id <= 2*maxEarly; id++ {
		s.cancelCall(id)
	}
	for id, want := range map[uint64]bool{2 * maxEarly: true, maxEarly + 1: true, maxEarly: false, 3 * maxEarly: false} {
		ctx, cancel := s.beginCall(header{id: id, deadline: 60000}, time.Now())
		if got := ctx.Err() != nil; got != want {
			t.Errorf("call %d is cancelled: %v, want %v", id, got, want)
		}
		s.cancelCall(id)
		if ctx.Err() == nil {
			t.Errorf("call %d cannot be cancelled", id)
		}
		s.endCall(id)
		cancel()
	}
	if len(s.running) != 0 {
		t.Errorf("%d calls are left", len(s.running))
	}
}

func TestThrottle(t *testing.T) {
	var th throttle
	now := time.Now()
	for i, c := range []struct {
		after      time.Duration
		suppressed int
		ok         bool
	}{{0, 0, true}, {1, 0, false}, {2, 0, false}, {refuseInterval, 2, true}, {refuseInterval + 1, 0, false}, {3 * refuseInterval, 1, true}} {
		if n, ok := th.pass(now.Add(c.after)); n != c.suppressed || ok != c.ok {
			t.Errorf("step %d: %d, %v", i, n, ok)
		}
	}
}

// The address that a peer listens on reaches the handlers of those it calls, also
// when it does not know it itself.
func TestFromAddr(t *testing.T) {
	var from atomic.Value
	cfg := testConfig(t)
	cfg.Handler = func(_ context.Context, _ [20]byte, addr string, _ uint8, _ uint16, _, _ []byte) (uint16, []byte, []byte) {
		from.Store(addr)
		return 0, nil, nil
	}
	b := start(t, cfg)
	silent := testConfig(t)
	silent.Listen = ""
	named := testConfig(t)
	named.Advertise = "peer.example:7000"
	everywhere := testConfig(t)
	everywhere.Listen = "0.0.0.0:0"
	any := start(t, everywhere)
	_, port, err := net.SplitHostPort(any.Addr())
	if err != nil {
		t.Fatal(err)
	}
	for want, n := range map[string]*node{"": start(t, silent), "peer.example:7000": start(t, named), "127.0.0.1:" + port: any} {
		if _, _, _, err := n.Call(within(t, 20*time.Second), b.ID(), b.Addr(), Control, 1, nil, nil); err != nil {
			t.Fatal(err)
		}
		if got := from.Load(); got != want {
			t.Errorf("the handler was told %q, want %q", got, want)
		}
	}
}
