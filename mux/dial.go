package mux

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// After a failed dial the address is left alone for backoffFirst, then twice as
// long each time, up to backoffMax: a peer that comes back is found within that.
const (
	backoffFirst = 200 * time.Millisecond
	backoffMax   = 800 * time.Millisecond
	maxBackoffs  = 4096 // places remembered
)

type backoff struct {
	next  time.Duration
	until time.Time
	err   error
}

// place is whom one expects where: if another peer is there now, only those
// who look for the first one are turned away.
type place struct {
	to   [20]byte
	addr string
}

type dialKey struct {
	place
	lane lane
}

// dial is a dial under way, shared by all who want the session.
type dial struct {
	done chan struct{} // closed when s and err are set
	s    *session
	err  error
}

// session returns a session to the peer, dialling if there is none.
func (m *Mux) session(ctx context.Context, to [20]byte, addr string, l lane) (*session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s := m.pick(to, addr, l); s != nil {
		return s, nil
	}
	if addr == "" {
		return nil, fmt.Errorf("%w: no address is known", ErrUnreachable)
	}
	d, err := m.startDial(dialKey{place{to, addr}, l})
	if err != nil {
		return nil, err
	}
	select {
	case <-d.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if d.err != nil {
		if s := m.pick(to, addr, l); s != nil { // the peer dialled us meanwhile
			return s, nil
		}
		return nil, d.err
	}
	return d.s, nil
}

// startDial joins the dial that is under way, or starts one.
func (m *Mux) startDial(key dialKey) (*dial, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closing {
		return nil, ErrClosed
	}
	if d := m.dials[key]; d != nil {
		return d, nil
	}
	if b := m.backoff[key.place]; b != nil && time.Now().Before(b.until) {
		return nil, fmt.Errorf("not dialled again yet: %w", b.err)
	}
	if m.count >= m.cfg.MaxSessions {
		return nil, fmt.Errorf("%w: there are %d sessions already", ErrBusy, m.cfg.MaxSessions)
	}
	d := &dial{done: make(chan struct{})}
	m.dials[key] = d
	m.wg.Go(func() {
		ctx, cancel := context.WithTimeout(m.ctx, m.cfg.DialTimeout+m.cfg.HandshakeTimeout)
		defer cancel()
		d.s, d.err = m.connect(ctx, key.to, key.addr, key.lane)
		m.endDial(key, d)
	})
	return d, nil
}

func (m *Mux) endDial(key dialKey, d *dial) {
	m.mu.Lock()
	delete(m.dials, key)
	failed := d.err != nil && !errors.Is(d.err, errSelf) && !m.closing
	if failed {
		m.backOff(key.place, d.err)
	} else {
		delete(m.backoff, key.place)
	}
	m.mu.Unlock()
	close(d.done)
	if failed {
		m.log.Debug().Err(d.err).Str("addr", key.addr).Hex("peer", key.to[:4]).Msg("cannot reach a peer")
		m.notify(Event{Type: Unreachable, Peer: key.to, Addr: key.addr, Err: d.err})
	}
}

// backOff notes a failed dial; m.mu is held.
func (m *Mux) backOff(at place, err error) {
	b := m.backoff[at]
	if b == nil {
		if len(m.backoff) >= maxBackoffs {
			now := time.Now()
			for p, old := range m.backoff {
				if now.After(old.until) {
					delete(m.backoff, p)
				}
			}
			if len(m.backoff) >= maxBackoffs {
				return
			}
		}
		b = &backoff{next: backoffFirst}
		m.backoff[at] = b
	}
	b.err, b.until = err, time.Now().Add(b.next)
	b.next = min(2*b.next, backoffMax)
}

// refuseInterval is how often refused connections are logged.
const refuseInterval = 10 * time.Second

// throttle lets one message pass per interval and counts the others.
type throttle struct {
	mu         sync.Mutex
	next       time.Time
	suppressed int
}

func (t *throttle) pass(now time.Time) (suppressed int, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Before(t.next) {
		t.suppressed++
		return 0, false
	}
	suppressed, t.suppressed, t.next = t.suppressed, 0, now.Add(refuseInterval)
	return suppressed, true
}

// refuse logs that an incoming connection was refused.
func (m *Mux) refuse(from net.Addr, err error) {
	if n, ok := m.refusals.pass(time.Now()); ok {
		m.log.Warn().Err(err).Stringer("from", from).Int("suppressed", n).Msg("refused a connection")
	}
}
