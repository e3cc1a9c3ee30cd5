package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// ScrubReport is what a scrub found on the virtual disks of this peer.
type ScrubReport struct {
	Shards  uint64            // verified
	Bytes   uint64            // of blocks read
	Damaged []blocks.Location // what was not as it should be; at most maxDamaged are listed
	// Of the stripes that the damaged blocks belong to:
	Repaired   int // protected again
	Unrepaired int // not yet; tried again in the background
}

// Scrub reads and verifies every block of this peer. A damaged one counts no more from
// then on; its stripe is repaired from the others; what is damaged is deleted when
// that has succeeded. progress may be nil; it is called from this goroutine with
// shards done and the number there were when the scrub began.
func (s *Service) Scrub(ctx context.Context, progress func(done, total uint64)) (ScrubReport, error) {
	var report ScrubReport
	if s.cfg.Local == nil {
		return report, fmt.Errorf("%w: this peer stores nothing", blocks.ErrInvalid)
	}
	total := uint64(0)
	from, _ := arcRange(0)
	_, to := arcRange(arcCount - 1)
	if err := s.scanLocal(from, to, func(blocks.Location) bool { total++; return true }); err != nil {
		return report, err
	}
	for arc := range arcCount {
		err := s.scrubArc(ctx, arc, &report, func(blocks.Location) error {
			if progress != nil {
				progress(report.Shards, max(total, report.Shards))
			}
			return nil
		})
		if err != nil {
			return report, err
		}
	}
	return report, s.repairDamaged(ctx, &report, 0)
}

// maxArcBlocks bounds the blocks of one arc that are gathered at once.
const maxArcBlocks = 1 << 20

// scrubArc verifies the blocks of an arc; each is called after each one.
func (s *Service) scrubArc(ctx context.Context, arc int, report *ScrubReport, each func(blocks.Location) error) error {
	from, to := arcRange(arc)
	var list []blocks.Location
	if err := s.scanLocal(from, to, func(l blocks.Location) bool {
		list = append(list, l)
		return len(list) < maxArcBlocks
	}); err != nil {
		return err
	}
	for _, l := range list {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		good, err := s.verifyLocal(l)
		if err != nil {
			return fmt.Errorf("verify shard %d of stripe %s: %w", l.Header.Index, l.Header.Stripe.Short(), err)
		}
		if !good && s.isDamaged(&l) && len(report.Damaged) < maxDamaged {
			report.Damaged = append(report.Damaged, l)
		}
		report.Shards++
		report.Bytes += uint64(l.Length)
		if err := each(l); err != nil {
			return err
		}
	}
	return nil
}

// repairDamaged has the stripes of the damaged blocks from number begin on checked, and deletes those
// blocks that are not needed any more.
func (s *Service) repairDamaged(ctx context.Context, report *ScrubReport, begin int) error {
	done := map[blocks.StripeID]bool{} // whether it is protected again
	for _, l := range report.Damaged[begin:] {
		stripe := l.Header.Stripe
		ok, checked := done[stripe]
		if !checked {
			r, err := s.checkSomewhere(ctx, stripe)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if ok = err == nil && r.Protected; ok {
				report.Repaired++
			} else {
				report.Unrepaired++
				s.OnDamage(stripe)
			}
			done[stripe] = ok
		}
		if ok && errors.Is(s.cfg.Local.Verify(l), blocks.ErrCorrupt) { // its successor lies elsewhere
			if err := s.removeLocal(nameOf(&l)); err != nil {
				return err
			}
		}
	}
	return nil
}

// scrubState is where the background scrub is: in KV, so that it goes on there after a restart.
type scrubState struct {
	began int64 // Unix seconds
	arc   int   // next
}

func (s *Service) loadScrub() (scrubState, error) {
	b, err := s.cfg.KV.Get([]byte(scrubKey))
	switch {
	case errors.Is(err, blocks.ErrNotFound) || err == nil && len(b) != 9:
		return scrubState{began: time.Now().Unix()}, nil
	case err != nil:
		return scrubState{}, err
	}
	return scrubState{int64(binary.BigEndian.Uint64(b)), int(b[8])}, nil
}

func (s *Service) saveScrub(st scrubState) error {
	b := binary.BigEndian.AppendUint64(nil, uint64(st.began))
	return s.cfg.KV.Apply([]blocks.KVChange{{Key: []byte(scrubKey), Value: append(b, byte(st.arc))}}, false)
}

// scrubLoop verifies all blocks once every ScrubEvery, an arc at a time, spread over that time and
// not faster than ScrubRate.
func (s *Service) scrubLoop(ctx context.Context) {
	limit := &limiter{rate: s.cfg.ScrubRate}
	gap := s.cfg.ScrubEvery / arcCount
	for sleep(ctx, gap) == nil {
		if err := s.scrubNext(ctx, limit); err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn().Err(err).Msg("background scrub interrupted")
		}
	}
}

// scrubNext verifies the arc whose turn it is.
func (s *Service) scrubNext(ctx context.Context, limit *limiter) error {
	st, err := s.loadScrub()
	if err != nil {
		return err
	}
	var report ScrubReport
	err = s.scrubArc(ctx, st.arc, &report, func(l blocks.Location) error { return limit.wait(ctx, l.Length) })
	if err != nil {
		return err
	}
	if err := s.repairDamaged(ctx, &report, 0); err != nil {
		return err
	}
	if st.arc++; st.arc == arcCount {
		s.cfg.Log.Info().Time("began", time.Unix(st.began, 0)).Msg("all blocks have been scrubbed")
		st = scrubState{began: time.Now().Unix()}
	}
	return s.saveScrub(st)
}
