package store

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

// standIns is how many more stand-ins Homes lists than could be needed if all
// homes were down: for those that turn out to be full or silent.
const standIns = 4

type backgroundKey struct{}

// Background marks the calls made under ctx as repair traffic: they travel in
// a class of their own, behind those that someone waits for.
func Background(ctx context.Context) context.Context {
	return context.WithValue(ctx, backgroundKey{}, true)
}

func background(ctx context.Context) bool { return ctx.Value(backgroundKey{}) != nil }

func classOf(ctx context.Context, bulk bool) overlay.Class {
	switch {
	case background(ctx):
		return overlay.Repair
	case bulk:
		return overlay.Data
	}
	return overlay.Metadata
}

// homeList is where the n shards of a stripe belong: shards go to these
// virtual nodes, one each. With fewer than n virtual nodes they serve in
// turn again.
func homeList(t *overlay.Table, id blocks.StripeID, n int, keep func(overlay.PeerInfo) bool) []overlay.Vnode {
	home := t.HomeList(id.ID, n, keep)
	for i := 0; len(home) > 0 && len(home) < n; i++ {
		home = append(home, home[i])
	}
	return home
}

// Homes lists first the n virtual nodes on which the shards of the stripe belong,
// shard i on the i-th, whether they are up or not (with fewer virtual nodes
// than n they repeat). Stand-ins follow in the order in which to try them: fresh
// live peers first, then further virtual nodes of live peers; each at most once, none of them a home.
func (s *Service) Homes(_ context.Context, id blocks.StripeID, n int) ([]blocks.Holder, error) {
	t := s.cfg.Ring.Table()
	home := homeList(t, id, n, nil)
	if len(home) == 0 {
		return nil, fmt.Errorf("%w: no peer of the ring offers storage", blocks.ErrUnavailable)
	}
	holders := make([]blocks.Holder, 0, 2*n+standIns)
	for _, v := range home {
		holders = append(holders, &holder{s, v})
	}
	for _, v := range t.HomeList(id.ID, 2*n+standIns, s.reachable) {
		if !slices.ContainsFunc(home, func(h overlay.Vnode) bool { return h.ID == v.ID }) {
			holders = append(holders, &holder{s, v})
		}
	}
	return holders, nil
}

// Search lists one holder of every storage peer that counts: whoever may have a shard
// of the stripe is among them. The reachable ones come first, and among them the
// peers of the stripe's homes.
func (s *Service) Search(_ context.Context, id blocks.StripeID) ([]blocks.Holder, error) {
	t := s.cfg.Ring.Table()
	seen := map[blocks.PeerID]bool{}
	var up, down []blocks.Holder
	add := func(vs []overlay.Vnode) {
		for _, v := range vs {
			if seen[v.Peer] {
				continue
			}
			seen[v.Peer] = true
			if s.reachable(t.Peers[v.Peer]) {
				up = append(up, &holder{s, v})
			} else {
				down = append(down, &holder{s, v})
			}
		}
	}
	add(t.HomeList(id.ID, s.cfg.K+s.cfg.M, nil))
	add(t.Vnodes())
	if len(up)+len(down) == 0 {
		return nil, fmt.Errorf("%w: no peer of the ring offers storage", blocks.ErrUnavailable)
	}
	return append(up, down...), nil
}

// reachable reports whether calls to the peer are worth trying.
func (s *Service) reachable(p overlay.PeerInfo) bool {
	if p.ID == s.self {
		return s.cfg.Local != nil
	}
	return p.Live.Reachable() && !s.breaker.open(p.ID)
}

// call sends m to a peer, bounded also if ctx is not, and tells the breaker.
func (s *Service) call(ctx context.Context, to blocks.PeerID, class overlay.Class, kind overlay.Kind, m message, payload []byte) (overlay.Call, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.cfg.CallTimeout)
		defer cancel()
	}
	resp, err := s.cfg.Ring.Call(ctx, to, class, overlay.Call{Kind: kind, Body: encode(m), Payload: payload})
	switch {
	case err == nil:
		s.breaker.answered(to)
	case errors.Is(err, blocks.ErrUnavailable) && ctx.Err() == nil:
		s.breaker.failed(to)
	}
	return resp, err
}

// ask is call for answers without a payload.
func (s *Service) ask(ctx context.Context, to blocks.PeerID, class overlay.Class, kind overlay.Kind, m, answer message) error {
	resp, err := s.call(ctx, to, class, kind, m, nil)
	if err != nil {
		return err
	}
	return decode("answer of "+to.Short(), resp.Body, answer)
}

// holder is a virtual node, of this peer or of another.
type holder struct {
	s *Service
	v overlay.Vnode
}

var _ blocks.Holder = (*holder)(nil)

func (h *holder) Vnode() blocks.VnodeID { return h.v.ID }
func (h *holder) Peer() blocks.PeerID   { return h.v.Peer }
func (h *holder) Drive() int            { return h.v.Drive }
func (h *holder) local() bool           { return h.v.Peer == h.s.self && h.s.cfg.Local != nil }

func (h *holder) Up() bool {
	p, ok := h.s.cfg.Ring.Table().Peers[h.v.Peer]
	return ok && h.s.reachable(p)
}

func (h *holder) Get(ctx context.Context, stripe blocks.StripeID, index int, off, n uint32) (blocks.Shard, error) {
	if h.local() {
		return h.s.getLocal(h.v.ID, stripe, index, off, n)
	}
	req := &getRequest{shardName{h.v.ID, stripe, index}, off, n}
	resp, err := h.s.call(ctx, h.v.Peer, classOf(ctx, n == 0 || n > smallCall), kindGet, req, nil)
	if err != nil {
		return blocks.Shard{}, fmt.Errorf("get shard %d of stripe %s from %s: %w", index, stripe.Short(), h.v.Peer.Short(), err)
	}
	var head shardHead
	if err := decode("answer to get", resp.Body, &head); err != nil {
		return blocks.Shard{}, err
	}
	got := blocks.Shard{Header: head.header, Off: head.off, Data: resp.Payload}
	end := uint64(got.Size)
	if n > 0 {
		end = min(end, uint64(off)+uint64(n))
	}
	if got.Stripe != stripe || int(got.Index) != index || got.Off != off || uint64(off)+uint64(len(got.Data)) != end {
		return blocks.Shard{}, fmt.Errorf("%w: %s answered with bytes %d+%d of shard %d of stripe %s instead of what was asked for",
			blocks.ErrCorrupt, h.v.Peer.Short(), got.Off, len(got.Data), got.Index, got.Stripe.Short())
	}
	return got, nil
}

func (h *holder) Put(ctx context.Context, shard blocks.Shard) (blocks.Epoch, error) {
	if h.local() {
		return h.s.putLocal(h.v.ID, shard, background(ctx))
	}
	if err := checkShard(&shard); err != nil {
		return 0, err
	}
	class := classOf(ctx, len(shard.Data) > smallCall)
	resp, err := h.s.call(ctx, h.v.Peer, class, kindPut, &putRequest{h.v.ID, background(ctx), shard.Header}, shard.Data)
	if err != nil {
		return 0, fmt.Errorf("put shard %d of stripe %s on %s: %w", shard.Index, shard.Stripe.Short(), h.v.Peer.Short(), err)
	}
	var epoch epochReply
	err = decode("answer to put", resp.Body, &epoch)
	return epoch.epoch, err
}

func (h *holder) Have(ctx context.Context, stripe blocks.StripeID) ([]blocks.Header, error) {
	if h.local() {
		return h.s.haveLocal(stripe)
	}
	var have headers
	if err := h.s.ask(ctx, h.v.Peer, classOf(ctx, false), kindHave, &stripeName{stripe}, &have); err != nil {
		return nil, fmt.Errorf("ask %s for stripe %s: %w", h.v.Peer.Short(), stripe.Short(), err)
	}
	return have.list, nil
}

func (h *holder) Delete(ctx context.Context, stripe blocks.StripeID) error {
	if h.local() {
		return h.s.deleteLocal(stripe)
	}
	if err := h.s.ask(ctx, h.v.Peer, classOf(ctx, false), kindDelete, &stripeName{stripe}, nothing{}); err != nil {
		return fmt.Errorf("delete stripe %s on %s: %w", stripe.Short(), h.v.Peer.Short(), err)
	}
	return nil
}

func (h *holder) Sync(ctx context.Context, epoch blocks.Epoch) error {
	if h.local() {
		return h.s.cfg.Local.Sync(ctx, h.v.Drive, epoch)
	}
	if err := h.s.ask(ctx, h.v.Peer, classOf(ctx, false), kindSync, &syncRequest{h.v.Drive, epoch}, nothing{}); err != nil {
		return fmt.Errorf("sync drive %d of %s: %w", h.v.Drive, h.v.Peer.Short(), err)
	}
	return nil
}
