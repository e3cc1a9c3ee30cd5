package parity

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// Write seals content (1 … blocks.MaxStripe bytes) as a new stripe and puts its
// shards on holders, in parallel. The receipt says where; the stripe is
// durable after Sync. ErrNoSpace: there is room for too few shards. ErrUnavailable: too few
// peers took one; nothing refers to what was put, and it is removed as far as possible.
func (s *Store) Write(ctx context.Context, owner blocks.Owner, content []byte) (blocks.Receipt, error) {
	g, err := Layout(len(content), s.cfg.K, s.cfg.M)
	if err != nil {
		return blocks.Receipt{}, err
	}
	rnd, err := blocks.RandomID(s.cfg.Rand)
	if err != nil {
		return blocks.Receipt{}, err
	}
	id := blocks.StripeID{ID: rnd}
	seal, err := s.sealer(id, g)
	if err != nil {
		return blocks.Receipt{}, err
	}
	size := g.ShardSize()
	release, err := s.reserve(ctx, g.Shards()*size)
	if err != nil {
		return blocks.Receipt{}, err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, s.cfg.WriteTimeout)
	defer cancel()
	holders, err := s.homes(ctx, id, g.Shards())
	if err != nil {
		return blocks.Receipt{}, err
	}
	buf := s.bufs.get(g.Shards() * size)
	defer buf.release()
	shards := buf.cut(g.Shards(), size)
	seal.seal(shards[:g.K], content)
	enc, err := s.coders.get(g.K, g.M)
	if err == nil {
		err = enc.Encode(shards)
	}
	if err != nil {
		return blocks.Receipt{}, fmt.Errorf("encode stripe %s: %w", id.Short(), err)
	}
	p := s.newPicker(holders, g.Shards())
	parcels := make([]parcel, g.Shards())
	h := g.header(id, owner, time.Now().Unix())
	for i := range parcels {
		h.Index = uint8(i)
		parcels[i] = parcel{Shard: blocks.Shard{Header: h, Data: shards[i]}, buf: buf}
	}
	placed, putErr := p.putAll(ctx, parcels)
	if err := p.enough(g, placed); err != nil {
		s.discard(id, placed)
		if errors.Is(putErr, blocks.ErrNoSpace) {
			err = fmt.Errorf("%w: %d shards of %d+%d placed", blocks.ErrNoSpace, len(placed), g.K, g.M)
		}
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", err, classed(ctx.Err()))
		}
		return blocks.Receipt{}, fmt.Errorf("write stripe %s: %w (%v)", id.Short(), err, putErr)
	}
	if putErr != nil {
		s.cfg.Log.Debug().Stringer("stripe", id).Err(putErr).Msg("stripe written without all of its shards")
	}
	return blocks.Receipt{Ref: h.Ref(), Placed: placed}, nil
}

// header is what the shards of a stripe have in common.
func (g Geometry) header(id blocks.StripeID, owner blocks.Owner, written int64) blocks.Header {
	return blocks.Header{Stripe: id, StripeLen: uint32(g.Len), K: uint8(g.K), M: uint8(g.M),
		Size: uint32(g.ShardSize()), Unit: uint32(g.Sealed()), Owner: owner, Written: written}
}

// homes asks the placer and never returns an empty list.
func (s *Store) homes(ctx context.Context, id blocks.StripeID, n int) ([]blocks.Holder, error) {
	holders, err := s.cfg.Placer.Homes(ctx, id, n)
	if err != nil {
		return nil, fmt.Errorf("homes of stripe %s: %w", id.Short(), classed(err))
	}
	if len(holders) == 0 {
		return nil, fmt.Errorf("%w: stripe %s: no virtual node on the ring", blocks.ErrUnavailable, id.Short())
	}
	return holders, nil
}

// Discard removes in the background, as far as it can, what a Write has put: nobody has come to name the stripe.
func (s *Store) Discard(r blocks.Receipt) { s.discard(r.Ref.ID, r.Placed) }

// discard removes in the background what a failed write left behind, one call
// for each peer. What stays is swept by its owner.
func (s *Store) discard(id blocks.StripeID, placed []blocks.Placed) {
	seen := map[blocks.PeerID]bool{}
	for _, pl := range placed {
		h := pl.Holder
		if seen[h.Peer()] {
			continue
		}
		seen[h.Peer()] = true
		s.spawn(func() {
			ctx, cancel := context.WithTimeout(context.Background(), s.cfg.HaveTimeout)
			defer cancel()
			if err := h.Delete(ctx, id); err != nil {
				s.cfg.Log.Debug().Stringer("stripe", id).Stringer("peer", h.Peer()).Err(err).Msg("shard of a failed write left behind")
			}
		})
	}
}
