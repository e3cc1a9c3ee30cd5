package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

const (
	// pinFor is how long a copy that another peer relies on is not given away.
	pinFor = time.Minute
	// dropWithin bounds the time from asking for a pin to the deletion that relies on it.
	dropWithin = pinFor / 2
	// maxPins bounds the pins held at once.
	maxPins = 1 << 14
	// maxMoves bounds the orders to move that a peer carries out at once; more are refused as busy.
	maxMoves = 32
)

// guard keeps two peers from deleting each other's last copy. Whoever wants to drop a copy marks
// it, then asks the peer with the other copy to pin that. A marked copy cannot be pinned, a
// pinned one cannot be marked: of two who rely on each other at least one is refused.
type guard struct {
	mu    sync.Mutex
	pins  map[shardName]time.Time
	drops map[shardName]bool
}

func (g *guard) expire(now time.Time) {
	for n, until := range g.pins {
		if !now.Before(until) {
			delete(g.pins, n)
		}
	}
}

func (g *guard) pin(n shardName) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if len(g.pins) >= maxPins {
		g.expire(now)
	}
	if g.drops[n] || len(g.pins) >= maxPins {
		return fmt.Errorf("%w: shard %d of stripe %s is on its way elsewhere", blocks.ErrBusy, n.index, n.stripe.Short())
	}
	g.pins[n] = now.Add(pinFor)
	return nil
}

func (g *guard) startDrop(n shardName) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.drops[n] || time.Now().Before(g.pins[n]) {
		return fmt.Errorf("%w: shard %d of stripe %s is relied on", blocks.ErrBusy, n.index, n.stripe.Short())
	}
	g.drops[n] = true
	return nil
}

func (g *guard) endDrop(n shardName) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.drops, n)
}

// moveRequest orders the peer that has a shard to copy it to another virtual node; with there,
// to delete its own copy and to rely on the one that is there.
type moveRequest struct {
	from  shardName
	to    blocks.VnodeID
	there bool
}

func (m *moveRequest) encode(e *blocks.Encoder) {
	m.from.encode(e)
	e.ID(m.to.ID)
	e.Bool(m.there)
}

func (m *moveRequest) decode(d *blocks.Decoder) {
	m.from.decode(d)
	m.to.ID = d.ID()
	m.there = d.Bool()
}

// vnode finds a virtual node in the table.
func (s *Service) vnode(id blocks.VnodeID) (overlay.Vnode, error) {
	t := s.cfg.Ring.Table()
	if vs := t.Vnodes(); len(vs) > 0 {
		if v := vs[t.Successor(id.ID)]; v.ID == id {
			return v, nil
		}
	}
	return overlay.Vnode{}, fmt.Errorf("%w: virtual node %s is not on the ring", blocks.ErrUnavailable, id.Short())
}

// moveLocal carries out a move.
func (s *Service) moveLocal(ctx context.Context, m *moveRequest) error {
	if m.from.vnode == m.to {
		return fmt.Errorf("%w: move to where it is", blocks.ErrInvalid)
	}
	v, err := s.vnode(m.to)
	if err != nil {
		return err
	}
	ctx = Background(ctx)
	if m.there {
		return s.dropLocal(ctx, m.from, v)
	}
	return s.copyLocal(ctx, m, v)
}

// copyLocal copies a shard to another virtual node, durably.
func (s *Service) copyLocal(ctx context.Context, m *moveRequest, v overlay.Vnode) error {
	shard, err := s.getLocal(m.from.vnode, m.from.stripe, m.from.index, 0, 0)
	if err != nil {
		return err
	}
	shard.Home = m.to
	to := &holder{s, v}
	epoch, err := to.Put(ctx, shard)
	if err != nil {
		return err
	}
	return to.Sync(ctx, epoch)
}

// dropLocal deletes a copy after the peer of keeper has proven that it has another, good and durable.
func (s *Service) dropLocal(ctx context.Context, n shardName, keeper overlay.Vnode) error {
	if err := s.guard.startDrop(n); err != nil {
		return err
	}
	defer s.guard.endDrop(n)
	ctx, cancel := context.WithTimeout(ctx, dropWithin)
	defer cancel()
	other := shardName{keeper.ID, n.stripe, n.index}
	var err error
	if keeper.Peer == s.self {
		err = s.pinLocal(ctx, other)
	} else {
		err = s.ask(ctx, keeper.Peer, overlay.Repair, kindPin, &other, nothing{})
	}
	if err != nil {
		return fmt.Errorf("keep shard %d of stripe %s, as %s was not shown to have it: %w", n.index, n.stripe.Short(), keeper.Peer.Short(), err)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return s.removeLocal(n)
}

// removeLocal deletes one block of this peer.
func (s *Service) removeLocal(n shardName) error {
	if err := s.cfg.Local.DeleteShard(n.vnode, n.stripe, n.index); err != nil {
		return err
	}
	s.arcs.touch(n.stripe)
	return s.notes.healed(n)
}

// pinLocal promises that the copy n is good and durable and stays for a while.
func (s *Service) pinLocal(ctx context.Context, n shardName) error {
	if err := s.guard.pin(n); err != nil {
		return err
	}
	drive := s.driveOf(n.vnode)
	if epoch, ok := s.epochs.get(drive); ok {
		// Reopened since: what is found now has been read back from the disk.
		if err := s.cfg.Local.Sync(ctx, drive, epoch); err != nil && !errors.Is(err, blocks.ErrLost) {
			return err
		}
	}
	good, err := s.inspectLocal(n.stripe, true)
	if err != nil {
		return err
	}
	for i := range good {
		if nameOf(&good[i]) == n {
			return nil
		}
	}
	return fmt.Errorf("%w: shard %d of stripe %s on virtual node %s", blocks.ErrNotFound, n.index, n.stripe.Short(), n.vnode.Short())
}

// inspectLocal lists the good shards of a stripe; with verify it reads them,
// and marks those that are damaged.
func (s *Service) inspectLocal(stripe blocks.StripeID, verify bool) ([]blocks.Location, error) {
	good, err := s.goodLocal(stripe)
	if err != nil || !verify {
		return good, err
	}
	left := good[:0]
	for _, l := range good {
		switch ok, err := s.verifyLocal(l); {
		case err != nil:
			return nil, err
		case ok:
			left = append(left, l)
		}
	}
	return left, nil
}

// verifyLocal reads one block; false: it is damaged, and now marked so, or no longer there.
func (s *Service) verifyLocal(l blocks.Location) (bool, error) {
	err := s.cfg.Local.Verify(l)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, blocks.ErrNotFound):
		s.arcs.touch(l.Header.Stripe)
		return false, nil
	case !errors.Is(err, blocks.ErrCorrupt):
		return false, err
	}
	news, hurtErr := s.notes.hurt(nameOf(&l))
	if news {
		s.arcs.touch(l.Header.Stripe)
		s.cfg.Log.Warn().Err(err).Stringer("stripe", l.Header.Stripe).Uint8("index", l.Header.Index).
			Stringer("vnode", l.Vnode).Str("path", l.Path).Int64("offset", l.Offset).Msg("damaged block")
	}
	return false, hurtErr
}

func (s *Service) servePin(ctx context.Context, _ blocks.PeerID, req overlay.Call) (overlay.Call, error) {
	var m shardName
	if err := decode("pin", req.Body, &m); err != nil {
		return overlay.Call{}, err
	}
	return overlay.Call{Kind: req.Kind}, s.pinLocal(ctx, m)
}

func (s *Service) serveMove(ctx context.Context, _ blocks.PeerID, req overlay.Call) (overlay.Call, error) {
	var m moveRequest
	if err := decode("move", req.Body, &m); err != nil {
		return overlay.Call{}, err
	}
	select {
	case s.moves <- struct{}{}:
		defer func() { <-s.moves }()
	default:
		return overlay.Call{}, fmt.Errorf("%w: %d shards are on their way already", blocks.ErrBusy, maxMoves)
	}
	return overlay.Call{Kind: req.Kind}, s.moveLocal(ctx, &m)
}
