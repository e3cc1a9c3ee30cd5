package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

// checkShard refuses what no virtual disk should be asked to keep.
func checkShard(shard *blocks.Shard) error {
	h := &shard.Header
	if shard.Off != 0 || uint64(len(shard.Data)) != uint64(h.Size) || h.Size == 0 || h.Unit == 0 ||
		h.K == 0 || int(h.Index) >= int(h.K)+int(h.M) || h.StripeLen == 0 || h.StripeLen > blocks.MaxStripe || h.Stripe.IsZero() {
		return fmt.Errorf("%w: shard %d (of %d+%d) of stripe %s: %d bytes of %d at %d", blocks.ErrInvalid,
			h.Index, h.K, h.M, h.Stripe.Short(), len(shard.Data), h.Size, shard.Off)
	}
	return nil
}

func errDeleted(stripe blocks.StripeID) error {
	return fmt.Errorf("%w: stripe %s has been deleted", blocks.ErrRefused, stripe.Short())
}

// putLocal stores a shard on a virtual disk of this peer. The tombstone is looked for before and
// after: a deletion that comes meanwhile either sees the shard or is seen here.
func (s *Service) putLocal(vnode blocks.VnodeID, shard blocks.Shard, repair bool) (blocks.Epoch, error) {
	if err := checkShard(&shard); err != nil {
		return 0, err
	}
	if s.draining.Load() {
		return 0, fmt.Errorf("%w: peer %s is leaving", blocks.ErrNoSpace, s.self.Short())
	}
	burials := s.notes.burials.Load()
	dead, err := s.notes.dead(shard.Stripe)
	if err != nil {
		return 0, err
	}
	if dead {
		return 0, errDeleted(shard.Stripe)
	}
	name := shardName{vnode, shard.Stripe, int(shard.Index)}
	damaged := s.notes.isDamaged(name)
	if damaged {
		if err := s.cfg.Local.DeleteShard(vnode, shard.Stripe, int(shard.Index)); err != nil {
			return 0, err
		}
	}
	if repair {
		s.fresh.add(shard.Stripe)
	} else {
		s.young.add(shard.Stripe)
	}
	s.ages.Add(shard.Stripe.ID)
	epoch, err := s.cfg.Local.Put(vnode, shard)
	s.arcs.touch(shard.Stripe)
	if err != nil {
		return 0, err
	}
	s.epochs.put(s.driveOf(vnode), epoch)
	if damaged {
		if err := s.notes.healed(name); err != nil {
			return 0, err
		}
	}
	if s.notes.burials.Load() == burials {
		return epoch, nil // no deletion has come between
	}
	if dead, err = s.notes.dead(shard.Stripe); err != nil || !dead {
		return epoch, err
	}
	if err := s.cfg.Local.Delete(shard.Stripe); err != nil {
		return 0, err
	}
	s.arcs.touch(shard.Stripe)
	return 0, errDeleted(shard.Stripe)
}

func (s *Service) getLocal(prefer blocks.VnodeID, stripe blocks.StripeID, index int, off, n uint32) (blocks.Shard, error) {
	shard, err := s.cfg.Local.Get(prefer, stripe, index, off, n)
	if errors.Is(err, blocks.ErrCorrupt) {
		s.OnDamage(stripe)
	}
	return shard, err
}

// goodLocal lists the shards of a stripe that are not known to be damaged.
func (s *Service) goodLocal(stripe blocks.StripeID) ([]blocks.Location, error) {
	all, err := s.cfg.Local.Have(stripe)
	if err != nil {
		return nil, err
	}
	good := all[:0]
	for _, l := range all {
		if !s.isDamaged(&l) {
			good = append(good, l)
		}
	}
	return good, nil
}

// isDamaged reports whether a block is known to be damaged.
func (s *Service) isDamaged(l *blocks.Location) bool {
	return l.Damaged || s.notes.isDamaged(nameOf(l))
}

// scanLocal calls fn for every shard of a stripe in [from, to], from <= to, until it returns false.
func (s *Service) scanLocal(from, to blocks.ID, fn func(blocks.Location) bool) error {
	return s.cfg.Local.Scan(before(from), to, func(l blocks.Location) bool {
		id := l.Header.Stripe.ID
		return id.Compare(from) < 0 || id.Compare(to) > 0 || fn(l)
	})
}

// before returns the ID before id on the circle.
func before(id blocks.ID) blocks.ID {
	for i := len(id) - 1; i >= 0; i-- {
		id[i]--
		if id[i] != 0xff {
			break
		}
	}
	return id
}

func nameOf(l *blocks.Location) shardName {
	return shardName{l.Vnode, l.Header.Stripe, int(l.Header.Index)}
}

func (s *Service) haveLocal(stripe blocks.StripeID) ([]blocks.Header, error) {
	locations, err := s.goodLocal(stripe)
	if err != nil {
		return nil, err
	}
	have := make([]blocks.Header, len(locations))
	for i := range locations {
		have[i] = locations[i].Header
	}
	return have, nil
}

// deleteLocal notes the deletion before it removes anything: see putLocal.
func (s *Service) deleteLocal(stripe blocks.StripeID) error {
	if err := s.notes.bury(stripe); err != nil {
		return err
	}
	err := s.cfg.Local.Delete(stripe)
	s.arcs.touch(stripe)
	return err
}

// driveOf returns the drive of a virtual node of this peer, -1 if the table does not have it.
func (s *Service) driveOf(vnode blocks.VnodeID) int {
	t := s.cfg.Ring.Table()
	if vs := t.Vnodes(); len(vs) > 0 {
		if v := vs[t.Successor(vnode.ID)]; v.ID == vnode && v.Peer == s.self {
			return v.Drive
		}
	}
	return -1
}

// handle sets up the calls that this peer serves for others.
func (s *Service) handle() {
	for kind, h := range map[overlay.Kind]overlay.Serve{
		kindGet: s.serveGet, kindPut: s.servePut, kindHave: s.serveHave, kindDelete: s.serveDelete, kindSync: s.serveSync,
		kindDigest: s.serveDigest, kindInventory: s.serveInventory, kindInspect: s.serveInspect,
		kindPin: s.servePin, kindMove: s.serveMove, kindCheck: s.serveCheck, kindCounts: s.serveCounts, kindList: s.serveList,
	} {
		s.cfg.Ring.Handle(kind, h)
	}
}

// Given reports whether the payload of a response of this kind is nobody's once it has been sent: that of a Get is read
// for it alone.
func Given(k overlay.Kind) bool { return k == kindGet }

func (s *Service) serveGet(_ context.Context, _ blocks.PeerID, req overlay.Call) (overlay.Call, error) {
	var m getRequest
	if err := decode("get", req.Body, &m); err != nil {
		return overlay.Call{}, err
	}
	shard, err := s.getLocal(m.vnode, m.stripe, m.index, m.off, m.n)
	if err != nil {
		return overlay.Call{}, err
	}
	return overlay.Call{Kind: req.Kind, Body: encode(&shardHead{shard.Header, shard.Off}), Payload: shard.Data}, nil
}

func (s *Service) servePut(_ context.Context, _ blocks.PeerID, req overlay.Call) (overlay.Call, error) {
	var m putRequest
	if err := decode("put", req.Body, &m); err != nil {
		return overlay.Call{}, err
	}
	epoch, err := s.putLocal(m.vnode, blocks.Shard{Header: m.header, Data: req.Payload}, m.repair)
	if err != nil {
		return overlay.Call{}, err
	}
	return answer(req, &epochReply{epoch})
}

func (s *Service) serveHave(_ context.Context, _ blocks.PeerID, req overlay.Call) (overlay.Call, error) {
	var m stripeName
	if err := decode("have", req.Body, &m); err != nil {
		return overlay.Call{}, err
	}
	have, err := s.haveLocal(m.stripe)
	if err != nil {
		return overlay.Call{}, err
	}
	return answer(req, &headers{have})
}

func (s *Service) serveDelete(_ context.Context, _ blocks.PeerID, req overlay.Call) (overlay.Call, error) {
	var m stripeName
	if err := decode("delete", req.Body, &m); err != nil {
		return overlay.Call{}, err
	}
	return overlay.Call{Kind: req.Kind}, s.deleteLocal(m.stripe)
}

func (s *Service) serveSync(ctx context.Context, _ blocks.PeerID, req overlay.Call) (overlay.Call, error) {
	var m syncRequest
	if err := decode("sync", req.Body, &m); err != nil {
		return overlay.Call{}, err
	}
	return overlay.Call{Kind: req.Kind}, s.cfg.Local.Sync(ctx, m.drive, m.epoch)
}

func answer(req overlay.Call, m message) (overlay.Call, error) {
	return overlay.Call{Kind: req.Kind, Body: encode(m)}, nil
}
