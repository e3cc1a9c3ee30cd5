package mux

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// Mux is a peer's end of all its sessions. All methods may be called concurrently.
type Mux struct {
	cfg      Config
	log      zerolog.Logger
	self     [20]byte
	ca       *authority
	cert     tls.Certificate
	listener net.Listener // nil: does not listen
	instance uint64       // random: tells a peer's restart from a second session
	serving  [classes]chan struct{}
	refusals throttle

	started chan struct{} // closed when Run has begun
	stopped chan struct{} // closed when it has begun to end
	ctx     context.Context
	wg      sync.WaitGroup // dials and sessions

	mu      sync.Mutex
	running bool
	closing bool
	peers   map[[20]byte]*peer
	dials   map[dialKey]*dial
	backoff map[place]*backoff
	count   int // sessions
}

// New checks the configuration and binds the listening socket, so that a port in
// use is reported here. It starts nothing. A Mux that is not Run must be Closed.
func New(cfg Config) (*Mux, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	m := &Mux{
		cfg: cfg, log: cfg.Log, self: cfg.Identity.ID(), listener: cfg.Listener,
		started: make(chan struct{}), stopped: make(chan struct{}),
		peers: map[[20]byte]*peer{}, dials: map[dialKey]*dial{}, backoff: map[place]*backoff{},
	}
	for class := range m.serving {
		m.serving[class] = make(chan struct{}, cfg.Serving[class])
	}
	if m.ca, err = newAuthority(cfg.RingID, cfg.RingSecret); err != nil {
		return nil, err
	}
	now := time.Now()
	if m.cert, err = m.ca.issue(cfg.Identity, now.Add(-certBefore), now.Add(certAfter)); err != nil {
		return nil, err
	}
	var nonce [8]byte
	if _, err := io.ReadFull(cfg.Rand, nonce[:]); err != nil {
		return nil, fmt.Errorf("draw an instance number: %w", err)
	}
	m.instance = binary.BigEndian.Uint64(nonce[:])
	if m.listener == nil && cfg.Listen != "" {
		if m.listener, err = net.Listen("tcp", cfg.Listen); err != nil {
			return nil, fmt.Errorf("listen for peers on %s: %w", cfg.Listen, err)
		}
	}
	return m, nil
}

// ID is this peer's ID.
func (m *Mux) ID() [20]byte { return m.self }

// Addr is where this peer listens, "" if it does not.
func (m *Mux) Addr() string {
	if m.listener == nil {
		return ""
	}
	return m.listener.Addr().String()
}

func (m *Mux) advertised() string {
	if m.cfg.Advertise != "" {
		return m.cfg.Advertise
	}
	return m.Addr()
}

// Close frees the socket of a Mux that was never Run.
func (m *Mux) Close() error {
	if m.listener == nil {
		return nil
	}
	return m.listener.Close()
}

// Run serves until ctx ends, then says goodbye on all sessions and returns when
// the last goroutine has ended. It can be called once.
func (m *Mux) Run(ctx context.Context) error {
	m.mu.Lock()
	if m.running {
		m.mu.Unlock()
		return errors.New("mux: Run was called twice")
	}
	m.running = true
	var cancel context.CancelFunc
	m.ctx, cancel = context.WithCancel(context.WithoutCancel(ctx)) // outlives ctx by the farewells
	m.mu.Unlock()
	defer cancel()
	close(m.started)

	failed := make(chan error, 1)
	if m.listener != nil {
		m.wg.Go(func() { failed <- m.accept(m.ctx) })
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	m.shutdown()
	cancel()
	if m.listener != nil {
		m.listener.Close()
	}
	m.wg.Wait()
	return err
}

// shutdown says goodbye on all sessions; nothing is dialled or accepted any more.
func (m *Mux) shutdown() {
	m.mu.Lock()
	m.closing = true
	var all []*session
	for _, p := range m.peers {
		for l := range p.lanes {
			all = append(all, p.lanes[l]...)
		}
	}
	m.mu.Unlock()
	close(m.stopped)
	var wg sync.WaitGroup
	for _, s := range all {
		wg.Go(s.goodbye)
	}
	wg.Wait()
}

// begin waits until the Mux runs.
func (m *Mux) begin(ctx context.Context) error {
	select {
	case <-m.stopped:
		return ErrClosed
	default:
	}
	select {
	case <-m.started:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pickAttempts bounds how often a call looks for a session again because the
// one it found was being replaced.
const pickAttempts = 4

// Call calls the peer to, and returns what its Handler returned. addr is where
// to dial it if there is no session; a zero to means whoever is there. Without a deadline in
// ctx, Config.CallTimeout applies. When ctx ends Call returns at once, except from a call to this peer
// itself, which runs its Handler in the caller's goroutine. Errors: ErrUnreachable, ErrRefused, ErrTooLarge, ErrBusy, ErrClosed, or that of
// the context.
func (m *Mux) Call(ctx context.Context, to [20]byte, addr string, class uint8, kind uint16, body, payload []byte) (uint16, []byte, []byte, error) {
	if class >= classes {
		return 0, nil, nil, fmt.Errorf("mux: there is no class %d", class)
	}
	if err := checkSize(body, payload); err != nil {
		return 0, nil, nil, err
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, m.cfg.CallTimeout)
		defer cancel()
	}
	if err := m.begin(ctx); err != nil {
		return 0, nil, nil, fmt.Errorf("call of kind %#04x: %w", kind, err)
	}
	r, err := m.call(ctx, to, addr, class, kind, body, payload)
	if err != nil {
		return 0, nil, nil, fmt.Errorf("call of kind %#04x to %s: %w", kind, peerName(to, addr), err)
	}
	return r.kind, r.body, r.payload, nil
}

type reply struct {
	kind          uint16
	body, payload []byte
}

func (m *Mux) call(ctx context.Context, to [20]byte, addr string, class uint8, kind uint16, body, payload []byte) (reply, error) {
	if to == m.self {
		return m.callSelf(ctx, class, kind, body, payload)
	}
	for attempt := 1; ; attempt++ {
		s, err := m.session(ctx, to, addr, laneOf(class))
		switch {
		case errors.Is(err, errSelf):
			return m.callSelf(ctx, class, kind, body, payload)
		case err != nil:
			return reply{}, err
		}
		r, err := s.call(ctx, class, kind, body, payload)
		if !errors.Is(err, errReplaced) || attempt == pickAttempts {
			return r, err
		}
	}
}

// callSelf serves a call to this peer itself without the network.
func (m *Mux) callSelf(ctx context.Context, class uint8, kind uint16, body, payload []byte) (reply, error) {
	if m.cfg.Handler == nil {
		return reply{}, ErrBusy
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(m.ctx, cancel)()
	r, err := m.serve(ctx, m.self, m.advertised(), class, kind, body, payload)
	if err == nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err == nil {
		err = checkSize(r.body, r.payload)
	}
	return r, err
}

// serve runs the handler when there is room for it.
func (m *Mux) serve(ctx context.Context, from [20]byte, addr string, class uint8, kind uint16, body, payload []byte) (reply, error) {
	select {
	case m.serving[class] <- struct{}{}:
	case <-ctx.Done():
		return reply{}, ctx.Err()
	}
	defer func() { <-m.serving[class] }()
	var r reply
	r.kind, r.body, r.payload = m.cfg.Handler(ctx, from, addr, class, kind, body, payload)
	return r, nil
}

// Dial opens a stream to the peer, next to control calls, for a protocol of
// the caller's own. It is given to the peer's StreamHandler. ctx bounds the opening only.
func (m *Mux) Dial(ctx context.Context, to [20]byte, addr string) (net.Conn, error) {
	if err := m.begin(ctx); err != nil {
		return nil, fmt.Errorf("open a stream: %w", err)
	}
	for attempt := 1; ; attempt++ {
		s, err := m.session(ctx, to, addr, laneControl)
		if err != nil {
			return nil, fmt.Errorf("open a stream to %s: %w", peerName(to, addr), err)
		}
		conn, err := s.dialRaw(ctx)
		if err == nil {
			return conn, nil
		}
		if !errors.Is(err, errReplaced) || attempt == pickAttempts {
			return nil, fmt.Errorf("open a stream to %s: %w", peerName(to, addr), err)
		}
	}
}

// Identify returns who listens at addr.
func (m *Mux) Identify(ctx context.Context, addr string) ([20]byte, error) {
	if err := m.begin(ctx); err != nil {
		return [20]byte{}, fmt.Errorf("ask who is at %s: %w", addr, err)
	}
	s, err := m.session(ctx, [20]byte{}, addr, laneControl)
	if errors.Is(err, errSelf) {
		return m.self, nil
	}
	if err != nil {
		return [20]byte{}, fmt.Errorf("ask who is at %s: %w", addr, err)
	}
	return s.peer, nil
}

func (m *Mux) notify(e Event) {
	if m.cfg.Notify != nil {
		m.cfg.Notify(e)
	}
}

func peerName(id [20]byte, addr string) string {
	if id == ([20]byte{}) {
		return addr
	}
	return fmt.Sprintf("%x (%s)", id[:4], addr)
}
