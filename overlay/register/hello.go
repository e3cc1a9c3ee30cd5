package register

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

// maxSessions bounds the processes of one mount that a peer remembers.
const maxSessions = 8

// heard is what a storage peer knows of mounts: when each was heard last. It
// is not stored: a peer that restarted counts from its start.
type heard struct {
	mu    sync.Mutex
	since time.Time
	at    map[blocks.PeerID]map[uint64]*sign
}

// sign is the last that was heard of one process of a mount.
type sign struct {
	at      time.Time
	goodbye bool
}

func (h *heard) init() { h.since, h.at = time.Now(), map[blocks.PeerID]map[uint64]*sign{} }

// note keeps a sign of life, or the goodbye, of a mount's process.
func (h *heard) note(mount blocks.PeerID, session uint64, goodbye bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := h.at[mount]
	if all == nil {
		all = map[uint64]*sign{}
		h.at[mount] = all
	}
	x := all[session]
	if x == nil {
		for len(all) >= maxSessions {
			oldest, first := uint64(0), true
			for k, v := range all {
				if first || v.at.Before(all[oldest].at) {
					oldest, first = k, false
				}
			}
			delete(all, oldest)
		}
		x = &sign{}
		all[session] = x
	}
	x.at, x.goodbye = time.Now(), x.goodbye || goodbye
}

// silent reports whether the mount has not been heard for limit, or each of its
// processes heard since has said goodbye.
func (h *heard) silent(mount blocks.PeerID, limit time.Duration) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	said := false
	for _, x := range h.at[mount] {
		if x.goodbye {
			said = true
		} else if time.Since(x.at) < limit {
			return false
		}
	}
	return said || time.Since(h.since) >= limit
}

func (s *Service) serveHello(_ context.Context, from blocks.PeerID, req overlay.Call) (overlay.Call, error) {
	d := blocks.NewDecoder(req.Body)
	session, mount, incarnation := d.Uint64(), d.Bool(), d.Uint64()
	if err := d.Done(); err != nil {
		return overlay.Call{}, err
	}
	s.meet(from, incarnation)
	if mount {
		s.heard.note(from, session, false)
	}
	var e blocks.Encoder
	e.Uint64(s.acc.kv.Incarnation())
	return overlay.Call{Body: e.Buf}, nil
}

func (s *Service) serveGoodbye(_ context.Context, from blocks.PeerID, req overlay.Call) (overlay.Call, error) {
	d := blocks.NewDecoder(req.Body)
	session := d.Uint64()
	if err := d.Done(); err != nil {
		return overlay.Call{}, err
	}
	s.heard.note(from, session, true)
	return overlay.Call{}, nil
}

func (s *Service) serveSilence(_ context.Context, _ blocks.PeerID, req overlay.Call) (overlay.Call, error) {
	d := blocks.NewDecoder(req.Body)
	mount := blocks.PeerID{ID: d.ID()}
	if err := d.Done(); err != nil {
		return overlay.Call{}, err
	}
	st := statusRefused
	if s.heard.silent(mount, s.cfg.LeaseExpire) {
		st = statusOK
	}
	return s.acc.answer(st, nil).encode(), nil
}

// silent reports whether a quorum of the view has not heard the mount for so
// long that its leases may be taken.
func (s *Service) silent(ctx context.Context, v view, mount blocks.PeerID) bool {
	var e blocks.Encoder
	e.ID(mount.ID)
	msg := overlay.Call{Kind: kindSilence, Body: e.Buf}
	agree := map[blocks.PeerID]uint64{}
	quorum := func() bool {
		return v.quorum(func(m member) bool { return agree[m.Peer] == m.Incarnation })
	}
	s.askAll(ctx, v.peers(), func(ctx context.Context, p blocks.PeerID) (reply, error) {
		return s.ask(ctx, p, msg)
	}, func(p blocks.PeerID, r reply) bool {
		if r.Status == statusOK {
			agree[p] = r.Incarnation
		}
		return quorum()
	})
	return quorum()
}

// seize takes its lease from a mount that is silent; if it is not, nothing happens.
func (s *Service) seize(ctx context.Context, id blocks.RegisterID, c *coord, mount blocks.PeerID) error {
	if err := s.confirm(ctx, id, c); err != nil {
		return err
	}
	if !s.silent(ctx, c.st.View, mount) {
		return nil
	}
	s.cfg.Log.Info().Str("register", id.Short()).Str("mount", mount.Short()).Msg("the lease of a silent mount is taken")
	if err := s.step(ctx, id, c, seize(c.st, mount), patch{}); err != nil {
		return fmt.Errorf("take the lease of mount %s: %w", mount.Short(), err)
	}
	return nil
}

// storagePeers are those that count and have virtual nodes.
func (s *Service) storagePeers() []blocks.PeerID {
	var out []blocks.PeerID
	for id, p := range s.ring.Table().Peers {
		if p.Vnodes > 0 && p.Live.Counts() {
			out = append(out, id)
		}
	}
	return out
}

// beat tells all storage peers that this mount lives, each Beat, until ctx ends.
func (s *Service) beat(ctx context.Context) {
	tick := time.NewTicker(s.cfg.Beat)
	defer tick.Stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		for _, p := range s.storagePeers() {
			wg.Go(func() { s.hello(ctx, p, true, s.cfg.LeaseTrust) })
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// hello says to one peer that this process lives, and learns its incarnation.
func (s *Service) hello(ctx context.Context, to blocks.PeerID, mount bool, limit time.Duration) error {
	var e blocks.Encoder
	e.Uint64(s.session)
	e.Bool(mount)
	e.Uint64(s.incarnation())
	sent := s.now()
	resp, err := s.call(ctx, to, overlay.Control, overlay.Call{Kind: kindHello, Body: e.Buf}, limit)
	if err != nil {
		return err
	}
	d := blocks.NewDecoder(resp.Body)
	incarnation := d.Uint64()
	if err := d.Done(); err != nil {
		return err
	}
	s.meet(to, incarnation)
	if mount {
		s.peer(to).trust.ack(sent, s.now(), s.cfg.LeaseTrust)
	}
	return nil
}

// incarnation is that of the own store, 0 for a client.
func (s *Service) incarnation() uint64 {
	if s.acc == nil {
		return 0
	}
	return s.acc.kv.Incarnation()
}

// meet notes the incarnation of a peer's store. Another one than before means that
// the peer has lost what it had: its registers need somebody's care.
func (s *Service) meet(p blocks.PeerID, incarnation uint64) {
	if incarnation == 0 {
		return
	}
	if old := s.peer(p).incarnation.Swap(incarnation); old != 0 && old != incarnation {
		s.work.move()
	}
}

// greet says hello to the peers in parallel and waits for their answers.
func (s *Service) greet(ctx context.Context, peers []blocks.PeerID, mount bool) {
	var wg sync.WaitGroup
	for _, p := range peers {
		wg.Go(func() {
			if err := s.hello(ctx, p, mount, s.cfg.Beat); err != nil {
				s.cfg.Log.Debug().Err(err).Str("peer", p.Short()).Msg("no answer to a greeting")
			}
		})
	}
	wg.Wait()
}
