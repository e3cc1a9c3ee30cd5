package mux

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"
)

var testRing = [20]byte{1, 2, 3}

func testSecret(name string) []byte {
	s := sha256.Sum256([]byte(name))
	return s[:]
}

// node is a running Mux.
type node struct {
	*Mux
	stop func() // ends Run and waits for it
	done chan error

	mu     sync.Mutex
	events []Event
}

func (n *node) saw(typ EventType) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	count := 0
	for _, e := range n.events {
		if e.Type == typ {
			count++
		}
	}
	return count
}

// echo answers kind+1 and what came.
func echo(_ context.Context, _ [20]byte, _ string, _ uint8, kind uint16, body, payload []byte) (uint16, []byte, []byte) {
	return kind + 1, body, payload
}

// testConfig is a Mux on a free loopback port that echoes.
func testConfig(t testing.TB) Config {
	t.Helper()
	id, err := NewIdentity(nil)
	if err != nil {
		t.Fatal(err)
	}
	return Config{Identity: id, RingID: testRing, RingSecret: testSecret("a"), Listen: "127.0.0.1:0", Handler: echo}
}

// start runs a Mux until the test ends.
func start(t testing.TB, cfg Config) *node {
	t.Helper()
	n := &node{done: make(chan error, 1)}
	if cfg.Notify == nil {
		cfg.Notify = func(e Event) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.events = append(n.events, e)
		}
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	n.Mux = m
	ctx, cancel := context.WithCancel(context.Background())
	go func() { n.done <- m.Run(ctx) }()
	<-m.started
	n.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-n.done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run does not return")
		}
	})
	t.Cleanup(n.stop)
	return n
}

// eventually polls until ok, for at most limit.
func eventually(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", limit, what)
		}
		<-tick.C
	}
}

func within(t testing.TB, limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}

// check makes one echoed call.
func check(ctx context.Context, from *node, to [20]byte, addr string, class uint8, body, payload []byte) error {
	kind, rbody, rpayload, err := from.Call(ctx, to, addr, class, 7, body, payload)
	if err != nil {
		return err
	}
	if kind != 8 || !bytes.Equal(rbody, body) || !bytes.Equal(rpayload, payload) {
		return fmt.Errorf("got kind %d, %d and %d bytes back, sent %d and %d", kind, len(rbody), len(rpayload), len(body), len(payload))
	}
	return nil
}

func listen(t testing.TB, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}
