package parity

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/mutualfs/mutualfs/blocks"
)

// Found is a shard that some holder's peer has.
type Found struct {
	Holder blocks.Holder
	Header blocks.Header
}

// Report is what Repair found and did.
type Report struct {
	Ref       blocks.StripeRef
	Owner     blocks.Owner
	Good      []int           // shards that were there and agree with each other
	Corrupt   []int           // shards that were there and damaged
	Rebuilt   []blocks.Placed // shards made anew, synced
	Elsewhere []Found         // good shards that lie on another peer than their home's
	Missing   []int           // shards that are nowhere and could not be placed
}

// job is one stripe to repair.
type job struct {
	id     blocks.StripeID
	have   []Found          // known already
	ignore map[shardAt]bool // copies that do not count
}

// Repair makes a stripe whole. It needs no volume key: it asks homes and stand-ins (and if need be
// everybody) which shards they have, besides those that the caller knows of; reads all of them;
// rebuilds what is missing, damaged, or disagrees with the others, from any k; puts it on its home, or on a
// stand-in while the home is down, and syncs it. It never makes a new version of anything.
// The report is valid with an error too. ErrUnavailable: fewer than k shards were within reach, or not all could be placed.
// ErrCorrupt: everybody answered and fewer than k good shards are left, or the shards contradict
// each other and it cannot be told which are right. ErrNotFound: everybody
// answered and nobody has any.
func (s *Store) Repair(ctx context.Context, id blocks.StripeID, have []Found) (Report, error) {
	report, _, err := s.repair(ctx, job{id: id, have: have})
	return report, err
}

func (s *Store) repair(ctx context.Context, j job) (Report, *picker, error) {
	v, err := s.survey(ctx, j)
	if err != nil {
		return Report{}, nil, err
	}
	report := Report{Ref: v.head.Ref(), Owner: v.head.Owner}
	release, err := s.reserve(ctx, 2*v.g.Shards()*v.g.ShardSize())
	if err != nil {
		return report, nil, err
	}
	defer release()
	if err := s.loadEnough(ctx, v); err != nil {
		report.Corrupt = v.corruptShards()
		return report, nil, err
	}
	buf, shards, err := s.agree(v)
	report.Corrupt = v.corruptShards()
	if err != nil {
		return report, nil, err
	}
	defer buf.release()
	p := s.newPicker(v.near, v.g.Shards())
	var parcels []parcel
	for i := range shards {
		if v.good[i] {
			report.Good = append(report.Good, i)
			p.claim(v.from[i].Holder)
			if v.from[i].Holder.Peer() != p.home(i).Peer() {
				report.Elsewhere = append(report.Elsewhere, v.from[i])
			}
			continue
		}
		parcels = append(parcels, parcel{Shard: v.shard(i, shards[i]), buf: buf})
	}
	if len(parcels) == 0 {
		return report, p, nil
	}
	placed, err := p.putAll(ctx, parcels)
	failed := s.syncAll(ctx, placed)
	for _, pl := range placed {
		if syncErr := failed[keyOf(pl)]; syncErr != nil {
			err = errors.Join(err, syncErr)
			continue
		}
		report.Rebuilt = append(report.Rebuilt, pl)
	}
	for _, c := range parcels {
		if !slices.ContainsFunc(report.Rebuilt, func(pl blocks.Placed) bool { return pl.Index == c.Index }) {
			report.Missing = append(report.Missing, int(c.Index))
		}
	}
	if len(report.Missing) > 0 {
		return report, p, fmt.Errorf("repair stripe %s: shards %v not placed: %w", j.id.Short(), report.Missing, err)
	}
	s.cfg.Log.Info().Stringer("stripe", j.id).Int("rebuilt", len(report.Rebuilt)).Msg("stripe repaired")
	return report, p, nil
}

// Recreate puts one shard of a stripe on a given holder and syncs it there: a
// good copy if there is one, else rebuilt. have is what the caller knows of. Errors as of Repair.
func (s *Store) Recreate(ctx context.Context, id blocks.StripeID, index int, to blocks.Holder, have []Found) (blocks.Placed, error) {
	v, err := s.survey(ctx, job{id: id, have: have})
	if err != nil {
		return blocks.Placed{}, err
	}
	if index < 0 || index >= v.g.Shards() {
		return blocks.Placed{}, fmt.Errorf("%w: shard %d of stripe %s of %d+%d", blocks.ErrInvalid, index, id.Short(), v.g.K, v.g.M)
	}
	release, err := s.reserve(ctx, 2*v.g.Shards()*v.g.ShardSize())
	if err != nil {
		return blocks.Placed{}, err
	}
	defer release()
	if err := s.loadEnough(ctx, v); err != nil {
		return blocks.Placed{}, err
	}
	buf, shards, err := s.agree(v)
	if err != nil {
		return blocks.Placed{}, err
	}
	defer buf.release()
	sh := v.shard(index, shards[index])
	sh.Home = s.newPicker(v.near, v.g.Shards()).home(index).Vnode()
	buf.hold()
	epoch, err := call(ctx, s, to, s.cfg.PutTimeout, func(ctx context.Context) (blocks.Epoch, error) {
		defer buf.release()
		return to.Put(ctx, sh)
	})
	if err != nil {
		return blocks.Placed{}, fmt.Errorf("put shard %d of stripe %s on peer %s: %w", index, id.Short(), to.Peer().Short(), err)
	}
	placed := blocks.Placed{Index: uint8(index), Holder: to, Epoch: epoch}
	return placed, s.syncAll(ctx, []blocks.Placed{placed})[keyOf(placed)]
}

// Delete removes all shards of a stripe from its homes and stand-ins, one call for each
// peer. An error of class ErrUnavailable says that some of them could not be reached
// (or are down): the caller deletes again later.
func (s *Store) Delete(ctx context.Context, id blocks.StripeID) error {
	holders, err := s.homes(ctx, id, s.cfg.K+s.cfg.M)
	if err != nil {
		return err
	}
	return s.eachPeer(holders, func(h blocks.Holder) error {
		if !s.up(h) {
			return fmt.Errorf("%w: delete stripe %s: peer %s is down", blocks.ErrUnavailable, id.Short(), h.Peer().Short())
		}
		_, err := call(ctx, s, h, s.cfg.HaveTimeout, func(ctx context.Context) (struct{}, error) { return struct{}{}, h.Delete(ctx, id) })
		if err != nil && !errors.Is(err, blocks.ErrNotFound) {
			return fmt.Errorf("delete stripe %s on peer %s: %w", id.Short(), h.Peer().Short(), err)
		}
		return nil
	})
}
