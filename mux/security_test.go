package mux

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// withCert runs a node that shows another certificate than its own.
func withCert(t *testing.T, issue func(m *Mux) tls.Certificate) *node {
	t.Helper()
	cfg := testConfig(t)
	l := listen(t, "127.0.0.1:0")
	cfg.Listen, cfg.Listener = "", l
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	m.cert = issue(m)
	n := &node{Mux: m}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	<-m.started
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return n
}

// foreigner is a node that must be refused, and what a member says of it.
type foreigner struct {
	name string
	n    *node
	want string // what b says of it
}

func foreigners(t *testing.T) []foreigner {
	wrongSecret := testConfig(t)
	wrongSecret.RingSecret = testSecret("b")
	wrongRing := testConfig(t)
	wrongRing.RingID = [20]byte{9}
	now := time.Now()
	return []foreigner{
		{"wrong secret", start(t, wrongSecret), "not of this ring"},
		{"wrong ring", start(t, wrongRing), "not of this ring"},
		{"expired", withCert(t, func(m *Mux) tls.Certificate {
			c, err := m.ca.issue(m.cfg.Identity, now.Add(-48*time.Hour), now.Add(-24*time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			return c
		}), "check the clocks"},
		{"from the future", withCert(t, func(m *Mux) tls.Certificate {
			c, err := m.ca.issue(m.cfg.Identity, now.Add(24*time.Hour), now.Add(48*time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			return c
		}), "check the clocks"},
		{"self-signed", withCert(t, func(m *Mux) tls.Certificate {
			template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)}
			der, err := x509.CreateCertificate(rand.Reader, template, template, m.cfg.Identity.Public(), m.cfg.Identity.key)
			if err != nil {
				t.Fatal(err)
			}
			return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: m.cfg.Identity.key}
		}), "not of this ring"},
		{"another kind of key", withCert(t, func(m *Mux) tls.Certificate {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)}
			der, err := x509.CreateCertificate(rand.Reader, template, m.ca.cert, key.Public(), m.ca.key)
			if err != nil {
				t.Fatal(err)
			}
			return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
		}), "no Ed25519 key"},
		{"the CA itself", withCert(t, func(m *Mux) tls.Certificate {
			return tls.Certificate{Certificate: [][]byte{m.ca.cert.Raw}, PrivateKey: m.ca.key}
		}), "CA as its own key"},
	}
}

func TestForeignersAreRefused(t *testing.T) {
	var served atomic.Int64
	cfg := testConfig(t)
	cfg.Handler = func(context.Context, [20]byte, string, uint8, uint16, []byte, []byte) (uint16, []byte, []byte) {
		served.Add(1)
		return 0, nil, nil
	}
	b := start(t, cfg)
	ctx := within(t, 20*time.Second)

	for _, c := range foreigners(t) {
		t.Run(c.name, func(t *testing.T) {
			before := served.Load()
			if _, _, _, err := c.n.Call(ctx, b.ID(), b.Addr(), Control, 1, nil, nil); !errors.Is(err, ErrRefused) {
				t.Errorf("it calls: %v", err)
			}
			if served.Load() != before {
				t.Error("its call was served")
			}
			_, err := b.Identify(ctx, c.n.Addr())
			if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("it is called: %v, want %q", err, c.want)
			}
		})
	}
	if p := b.Peers(); len(p) != 0 {
		t.Errorf("peers: %+v", p)
	}
}

func TestClocksApart(t *testing.T) {
	a, b := start(t, testConfig(t)), withCert(t, func(m *Mux) tls.Certificate {
		now := time.Now().Add(72 * time.Hour) // as if made by a clock three days ahead
		c, err := m.ca.issue(m.cfg.Identity, now.Add(-certBefore), now.Add(certAfter))
		if err != nil {
			t.Fatal(err)
		}
		return c
	})
	if err := check(within(t, 20*time.Second), a, b.ID(), b.Addr(), Control, nil, nil); err != nil {
		t.Error(err)
	}
}

func TestWrongPeer(t *testing.T) {
	a, b := start(t, testConfig(t)), start(t, testConfig(t))
	ctx := within(t, 20*time.Second)
	other := [20]byte{1}
	if _, _, _, err := a.Call(ctx, other, b.Addr(), Control, 1, nil, nil); !errors.Is(err, ErrRefused) {
		t.Errorf("another peer than expected: %v", err)
	}
	if _, _, _, err := a.Call(ctx, other, "", Control, 1, nil, nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("no address: %v", err)
	}
	// The refusal must not stand in the way of the peer that is really there.
	if id, err := a.Identify(ctx, b.Addr()); err != nil || id != b.ID() {
		t.Errorf("identify: %x, %v", id, err)
	}
	if err := check(ctx, a, [20]byte{}, b.Addr(), Control, nil, nil); err != nil {
		t.Errorf("whoever is there: %v", err)
	}
}

// lines counts log lines.
type lines struct{ n atomic.Int64 }

func (l *lines) Write(p []byte) (int, error) {
	l.n.Add(1)
	return len(p), nil
}

func TestGarbage(t *testing.T) {
	var log lines
	cfg := testConfig(t)
	cfg.Log = zerolog.New(&log).Level(zerolog.InfoLevel)
	cfg.HandshakeTimeout = 200 * time.Millisecond
	b := start(t, cfg)
	for _, in := range []string{"GET / HTTP/1.0\r\n\r\n", "\x16\x03\x01\x40\x00\x01", "", strings.Repeat("\xff", 1<<16)} {
		conn, err := net.Dial("tcp", b.Addr())
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = conn.Write([]byte(in))
		_, err = io.Copy(io.Discard, conn) // ends when the other side closes
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("%.20q: the connection stays open", in)
		}
		conn.Close()
	}
	if n := log.n.Load(); n != 1 {
		t.Errorf("%d lines in the log, want 1", n)
	}
	if err := check(within(t, 20*time.Second), start(t, testConfig(t)), b.ID(), b.Addr(), Control, nil, nil); err != nil {
		t.Error(err)
	}
}

// A member of the ring that does not keep to the protocol loses its session, and
// nothing else happens.
func TestMemberSpeaksGarbage(t *testing.T) {
	rnd := testSeed(t)
	b := start(t, testConfig(t))
	rogue, err := NewIdentity(nil)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := b.ca.issue(rogue, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		conn, err := tls.Dial("tcp", b.Addr(), tlsConfig(cert))
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		junk := make([]byte, 2000)
		for i := range junk {
			junk[i] = byte(rnd.IntN(256))
		}
		if rnd.IntN(2) == 0 { // a good hello first
			h := header{typ: typeHello, id: rnd.Uint64()}
			h.encode(junk)
			copy(junk[headerSize:], []byte{0, byte(rnd.IntN(4)), 0, 1, 0, 0, 0, 1, 0, 0, byte(rnd.IntN(2)), 8})
		}
		_, _ = conn.Write(junk)
		_ = conn.CloseWrite()
		_, err = io.Copy(io.Discard, conn)
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			t.Error("the connection stays open")
		}
		conn.Close()
	}
	eventually(t, 5*time.Second, "no sessions are left", func() bool { return len(b.Peers()) == 0 })
	if err := check(within(t, 20*time.Second), start(t, testConfig(t)), b.ID(), b.Addr(), Data, nil, nil); err != nil {
		t.Error(err)
	}
}

func TestSessionLimit(t *testing.T) {
	cfg := testConfig(t)
	cfg.MaxSessions = 2
	b := start(t, cfg)
	ctx := within(t, 10*time.Second)
	x, y, z := start(t, testConfig(t)), start(t, testConfig(t)), start(t, testConfig(t))
	for _, n := range []*node{x, y} {
		if err := check(ctx, n, b.ID(), b.Addr(), Control, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := check(ctx, z, b.ID(), b.Addr(), Control, nil, nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("a third session: %v", err)
	}
	x.stop()
	eventually(t, 5*time.Second, "room for the third", func() bool { return check(ctx, z, b.ID(), b.Addr(), Control, nil, nil) == nil })
}

func TestNewChecks(t *testing.T) {
	good := testConfig(t)
	for name, change := range map[string]func(*Config){
		"no identity":  func(c *Config) { c.Identity = nil },
		"short secret": func(c *Config) { c.RingSecret = c.RingSecret[1:] },
		"port in use":  func(c *Config) { c.Listen = listen(t, "127.0.0.1:0").Addr().String() },
		"negative":     func(c *Config) { c.Heartbeat = -1 },
		"no limit":     func(c *Config) { c.Serving[1] = -1 },
	} {
		cfg := good
		change(&cfg)
		if m, err := New(cfg); err == nil {
			m.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}
