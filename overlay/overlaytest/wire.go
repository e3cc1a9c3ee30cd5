package overlaytest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

// Wire is a network below overlay.Peer: it carries the real messages of real
// peers, and loses, delays and cuts by a seed. It works in real time and in a
// testing/synctest bubble.
type Wire struct {
	mu    sync.Mutex // guards what follows
	rng   *rand.Rand
	ends  map[blocks.PeerID]*End
	addrs map[string]*End
	loss  float64
	least time.Duration
	most  time.Duration
	cut   func(from, to blocks.PeerID) bool
	deaf  blocks.PeerID
	calls map[overlay.Kind]int
}

// NewWire makes a network without faults and without delay.
func NewWire(seed uint64) *Wire {
	return &Wire{rng: rand.New(rand.NewPCG(seed, 1)), ends: map[blocks.PeerID]*End{}, addrs: map[string]*End{}, calls: map[overlay.Kind]int{}}
}

// Delay makes each way of a call take between least and most.
func (w *Wire) Delay(least, most time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.least, w.most = least, most
}

// Loss makes each way of a call be lost with probability p: one half of what is lost
// breaks at once, the other half is silence until the call's deadline.
func (w *Wire) Loss(p float64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.loss = p
}

// Cut lets no message pass from one peer to another where cut says so; nil: none.
func (w *Wire) Cut(cut func(from, to blocks.PeerID) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = cut
}

// Deafen lets no gossip reach one peer: no packet, and no stream either way. The zero ID: all hear.
func (w *Wire) Deafen(id blocks.PeerID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deaf = id
}

func (w *Wire) hears(id blocks.PeerID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.deaf.IsZero() || w.deaf != id
}

// Calls returns how many calls have been made, by kind.
func (w *Wire) Calls() map[overlay.Kind]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make(map[overlay.Kind]int, len(w.calls))
	for k, n := range w.calls {
		out[k] = n
	}
	return out
}

// End is one peer's connection to a Wire: an overlay.Transport, and a Dial.
type End struct {
	wire *Wire
	id   blocks.PeerID
	peer *overlay.Peer // guarded by wire.mu; nil: the process is dead
}

var _ overlay.Transport = (*End)(nil)

// End adds a peer to the network, or replaces its end.
func (w *Wire) End(id blocks.PeerID, addr string) *End {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := &End{wire: w, id: id}
	w.ends[id], w.addrs[addr] = e, e
	return e
}

// Attach says who answers at this end; nil: nobody, the process is dead.
func (e *End) Attach(p *overlay.Peer) {
	e.wire.mu.Lock()
	defer e.wire.mu.Unlock()
	e.peer = p
}

type fate int

const (
	arrives fate = iota
	breaks
	vanishes
)

// leg draws what happens to one message.
func (w *Wire) leg(from, to blocks.PeerID) (fate, time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var d time.Duration
	if w.most > 0 {
		d = w.least + time.Duration(w.rng.Int64N(int64(w.most-w.least)+1))
	}
	switch {
	case w.cut != nil && w.cut(from, to):
		return vanishes, d
	case w.loss > 0 && w.rng.Float64() < w.loss:
		return fate(1 + w.rng.IntN(2)), d
	}
	return arrives, d
}

// silence bounds how long a message without a deadline waits in vain.
const silence = 10 * time.Second

// pass takes one message from one peer to another.
func (w *Wire) pass(ctx context.Context, from, to blocks.PeerID) error {
	f, d := w.leg(from, to)
	if f == vanishes {
		d = silence
	}
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-ctx.Done():
			class := blocks.ErrCanceled
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				class = blocks.ErrDeadline
			}
			return fmt.Errorf("%w: call to %s: %w", class, to.Short(), context.Cause(ctx))
		case <-t.C:
		}
	}
	if f != arrives {
		return fmt.Errorf("%w: the connection to %s broke", blocks.ErrUnavailable, to.Short())
	}
	return nil
}

// callee finds who answers as `to`, or at addr.
func (e *End) callee(to blocks.PeerID, addr string) (*End, error) {
	w := e.wire
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.ends[to]
	if to.IsZero() {
		c = w.addrs[addr]
	}
	if c == nil || e.peer == nil {
		return nil, fmt.Errorf("%w: nobody at %s", blocks.ErrUnavailable, addr)
	}
	return c, nil
}

func (e *End) serving(kind overlay.Kind) (*overlay.Peer, error) {
	e.wire.mu.Lock()
	defer e.wire.mu.Unlock()
	if e.peer == nil {
		return nil, fmt.Errorf("%w: connection to %s refused", blocks.ErrUnavailable, e.id.Short())
	}
	if kind != 0 {
		e.wire.calls[kind]++
	}
	return e.peer, nil
}

// Call implements overlay.Transport.
func (e *End) Call(ctx context.Context, to blocks.PeerID, addr string, _ overlay.Class, req overlay.Call) (overlay.Call, error) {
	c, err := e.callee(to, addr)
	if err != nil {
		return overlay.Call{}, err
	}
	if err := e.wire.pass(ctx, e.id, c.id); err != nil {
		return overlay.Call{}, err
	}
	p, err := c.serving(req.Kind)
	if err != nil {
		return overlay.Call{}, err
	}
	if req.Kind == overlay.KindGossip && !e.wire.hears(c.id) {
		return overlay.Call{Kind: req.Kind}, nil
	}
	resp := p.Serve(ctx, e.id, req)
	if err := e.wire.pass(ctx, c.id, e.id); err != nil {
		return overlay.Call{}, err
	}
	if q, _ := c.serving(0); q != p {
		return overlay.Call{}, fmt.Errorf("%w: peer %s died", blocks.ErrUnavailable, c.id.Short())
	}
	return resp, nil
}

// Dial opens a stream; it is lossless once it is open.
func (e *End) Dial(ctx context.Context, to blocks.PeerID, addr string) (net.Conn, error) {
	c, err := e.callee(to, addr)
	if err != nil {
		return nil, err
	}
	if err := e.wire.pass(ctx, e.id, c.id); err != nil {
		return nil, err
	}
	if !e.wire.hears(c.id) || !e.wire.hears(e.id) {
		return nil, fmt.Errorf("%w: the stream to %s broke", blocks.ErrUnavailable, c.id.Short())
	}
	p, err := c.serving(0)
	if err != nil {
		return nil, err
	}
	near, far := net.Pipe()
	p.AcceptStream(far)
	return near, nil
}
