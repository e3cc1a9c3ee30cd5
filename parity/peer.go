package parity

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

const (
	maxPeers  = 4096        // peers that are remembered; then all are forgotten
	maxHedge  = time.Second // a peer however slow is hedged after this
	p95Gain   = 1.0 / 16    // how fast the percentile follows
	minSample = time.Microsecond
	maxSlow   = 3 // hedged Gets in a row without an answer; then reads avoid the peer
)

// peer is what the Store has learnt of one peer.
type peer struct {
	slots chan struct{} // one for each call under way

	mu      sync.Mutex
	p95     time.Duration // of Get
	shunned time.Time     // until then not Up
	slow    int           // Gets hedged since the last answer
	avoided time.Time     // until then reads prefer other peers; writes do not care
}

func (s *Store) peer(id blocks.PeerID) *peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peers[id]
	if p == nil {
		if len(s.peers) >= maxPeers {
			clear(s.peers)
		}
		p = &peer{slots: make(chan struct{}, s.cfg.MaxPeerCalls)}
		s.peers[id] = p
	}
	return p
}

// observe moves the estimate of the 95th percentile: up by 19 steps for
// each slower call, down by one for each faster one, so that it rests where
// one in twenty is slower. Steps are in proportion to the estimate.
func (p *peer) observe(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	q := max(p.p95, minSample)
	step := float64(q) * p95Gain
	if d > q {
		q = min(d, q+max(time.Duration(step*0.95), time.Microsecond))
		if p.p95 == 0 {
			q = d
		}
	} else {
		q -= time.Duration(step * 0.05)
	}
	p.p95 = q
}

// hedgeAfter is how long a Get of the peer may take before others are asked.
func (p *peer) hedgeAfter(least time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return min(max(least, p.p95), max(least, maxHedge))
}

func (p *peer) shun(until time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shunned = until
}

// hedged notes that a Get has become slow. Without it a peer that hangs would cost every
// read its hedge until membership notices.
func (p *peer) hedged(avoid time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.slow++; p.slow >= maxSlow {
		p.slow, p.avoided = 0, time.Now().Add(avoid)
	}
}

func (p *peer) answered() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slow = 0
}

func (p *peer) isAvoided() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.avoided.IsZero() && time.Now().Before(p.avoided)
}

func (p *peer) isShunned() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.shunned.IsZero() && time.Now().Before(p.shunned)
}

// up reports whether a holder is worth calling first.
func (s *Store) up(h blocks.Holder) bool { return h.Up() && !s.peer(h.Peer()).isShunned() }

// classed gives an error of ctx its class.
func classed(err error) error {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: %w", blocks.ErrDeadline, err)
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("%w: %w", blocks.ErrCanceled, err)
	}
	return err
}

// result is what a call to a holder returned.
type result[T any] struct {
	value T
	err   error
}

// call runs f against a holder in a goroutine of its own, at most timeout
// long, within the peer's limit of calls, and returns when f does or its time is
// over. f must touch nothing that the caller uses after that. A peer that lets a call time out
// is shunned for a while.
func call[T any](ctx context.Context, s *Store, h blocks.Holder, timeout time.Duration, f func(context.Context) (T, error)) (T, error) {
	var zero T
	p := s.peer(h.Peer())
	own, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	done := make(chan result[T], 1)
	started := s.spawn(func() {
		select {
		case p.slots <- struct{}{}:
			defer func() { <-p.slots }()
		case <-own.Done():
			done <- result[T]{zero, own.Err()}
			return
		}
		v, err := f(own)
		done <- result[T]{v, err}
	})
	if !started {
		return zero, errClosed()
	}
	var r result[T]
	select {
	case r = <-done:
	case <-own.Done():
		r.err = own.Err()
	}
	if r.err == nil {
		return r.value, nil
	}
	if own.Err() != nil && ctx.Err() == nil {
		p.shun(time.Now().Add(s.cfg.ShunFor))
		return zero, fmt.Errorf("%w: no answer from peer %s for %v", blocks.ErrUnavailable, h.Peer().Short(), timeout)
	}
	return zero, classed(r.err)
}
