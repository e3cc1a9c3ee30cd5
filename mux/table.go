package mux

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"
)

var (
	errReplaced = fmt.Errorf("%w: the session is being replaced", ErrUnreachable)
	errSelf     = fmt.Errorf("%w: it is this peer itself", ErrRefused)
	errGoodbye  = fmt.Errorf("%w: it has shut down", ErrUnreachable)
	errRetired  = errors.New("superseded by another session")
)

// peer is what the table knows of another peer while there are sessions to it.
type peer struct {
	instance uint64
	lanes    [lanes][]*session
}

// pick returns the session for new calls to the peer, or to whoever was
// dialled at addr if to is zero.
func (m *Mux) pick(to [20]byte, addr string, l lane) *session {
	m.mu.Lock()
	defer m.mu.Unlock()
	if to != ([20]byte{}) {
		if p := m.peers[to]; p != nil {
			return best(p.lanes[l])
		}
		return nil
	}
	for _, p := range m.peers {
		if s := best(p.lanes[l]); s != nil && s.dialled && s.addr == addr {
			return s
		}
	}
	return nil
}

// best is the session that both sides choose when they have several: one
// dialled by the peer with the smaller ID, the newest of these.
func best(all []*session) *session {
	var b *session
	for _, s := range all {
		if !s.usable() {
			continue
		}
		if b == nil || s.preferred() || !b.preferred() {
			b = s
		}
	}
	return b
}

// preferred reports whether the peer with the smaller ID dialled.
func (s *session) preferred() bool {
	return s.dialled == (bytes.Compare(s.m.self[:], s.peer[:]) < 0)
}

// add enters an established session. Sessions of an earlier life of the peer are
// closed; all but the best of this life are retired, so that no call under way fails.
func (m *Mux) add(s *session) error {
	m.mu.Lock()
	if m.closing {
		m.mu.Unlock()
		return ErrClosed
	}
	if m.count >= m.cfg.MaxSessions {
		m.mu.Unlock()
		return fmt.Errorf("%w: there are %d sessions already", ErrBusy, m.cfg.MaxSessions)
	}
	p := m.peers[s.peer]
	if p == nil {
		p = &peer{instance: s.instance}
		m.peers[s.peer] = p
	}
	var dead, retired []*session
	if p.instance != s.instance {
		for l := range p.lanes {
			dead = append(dead, p.lanes[l]...)
		}
		p.instance = s.instance
	}
	p.lanes[s.lane] = append(p.lanes[s.lane], s)
	m.count++
	for _, old := range dead {
		m.unlink(old)
	}
	if b := best(p.lanes[s.lane]); b != nil {
		for _, other := range p.lanes[s.lane] {
			if other != b {
				retired = append(retired, other)
			}
		}
	}
	m.wg.Go(s.run)
	m.mu.Unlock()
	for _, old := range dead {
		old.fail(fmt.Errorf("%w: the peer has connected anew", ErrUnreachable))
	}
	for _, old := range retired {
		old.retire()
	}
	return nil
}

// unlink takes a session out of the table; m.mu is held.
func (m *Mux) unlink(s *session) bool {
	p := m.peers[s.peer]
	if p == nil {
		return false
	}
	i := slices.Index(p.lanes[s.lane], s)
	if i < 0 {
		return false
	}
	p.lanes[s.lane] = slices.Delete(p.lanes[s.lane], i, i+1)
	m.count--
	if len(p.lanes[laneControl])+len(p.lanes[laneBulk]) == 0 {
		delete(m.peers, s.peer)
	}
	return true
}

func (m *Mux) remove(s *session) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unlink(s)
}

// newer reports whether a session that was made after s says that the peer is well.
func (m *Mux) newer(s *session) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.peers[s.peer]
	if p == nil {
		return false
	}
	for l := range p.lanes {
		for _, other := range p.lanes[l] {
			if other.since.After(s.since) && other.ctx.Err() == nil {
				return true
			}
		}
	}
	return false
}

// Peer is a connected peer, for status.
type Peer struct {
	ID       [20]byte
	Addr     string        // where it listens, as it says, or where it was dialled; "" if unknown
	Control  bool          // there is a session for control and metadata
	Bulk     bool          // there is a session for data and repair
	Since    time.Time     // when the oldest of them was made
	RTT      time.Duration // moving average over heartbeats; 0: not yet measured
	InFlight int           // own calls that are not answered yet
}

// Peers lists all peers with a session, by ID.
func (m *Mux) Peers() []Peer {
	m.mu.Lock()
	var all []*session
	for _, p := range m.peers {
		for l := range p.lanes {
			all = append(all, p.lanes[l]...)
		}
	}
	m.mu.Unlock()
	byID := map[[20]byte]*Peer{}
	for _, s := range all {
		p := byID[s.peer]
		if p == nil {
			p = &Peer{ID: s.peer, Since: s.since}
			byID[s.peer] = p
		}
		s.describe(p)
	}
	list := make([]Peer, 0, len(byID))
	for _, p := range byID {
		list = append(list, *p)
	}
	slices.SortFunc(list, func(a, b Peer) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	return list
}

// describe adds what the session knows to the status of its peer.
func (s *session) describe(p *Peer) {
	if s.addr != "" {
		p.Addr = s.addr
	}
	if s.since.Before(p.Since) {
		p.Since = s.since
	}
	rtt := time.Duration(s.rtt.Load())
	switch s.lane {
	case laneControl:
		p.Control = true
		if rtt > 0 {
			p.RTT = rtt
		}
	case laneBulk:
		p.Bulk = true
		if p.RTT == 0 {
			p.RTT = rtt
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p.InFlight += s.outbound
}
