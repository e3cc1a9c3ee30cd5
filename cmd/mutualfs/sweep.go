package main

import (
	"context"
	"time"

	"github.com/mutualfs/mutualfs/fs/audit"
)

// The sweep of what mounts that were killed have left: an audit now and then, by one of the mounts. What it deletes is proven to be
// nobody's (docs/audit.md); the grace comes on top.
const (
	sweepFirst = time.Hour      // after the start of the mount
	sweepEvery = 24 * time.Hour // from one to the next
	sweepGrace = 24 * time.Hour // what some peer has had for less is left alone
)

// sweepLoop sweeps until ctx ends.
func (p *peer) sweepLoop(ctx context.Context, v *volume) error {
	wait := time.NewTimer(sweepFirst)
	defer wait.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-wait.C:
		}
		if err := p.sweep(ctx, v); err != nil && ctx.Err() == nil {
			p.log.Warn().Err(err).Msg("sweep of what nobody needs")
		}
		wait.Reset(sweepEvery)
	}
}

// sweep audits, and deletes what has long been nobody's. Of several mounts only the one with the lowest ID does it.
func (p *peer) sweep(ctx context.Context, v *volume) error {
	for id, info := range p.ring.Table().Peers {
		if info.Live.Reachable() && id.Compare(p.ring.Self().ID) < 0 {
			if mounted, err := p.settlePeer(ctx, id); err == nil && mounted {
				return nil
			}
		}
	}
	a, err := p.auditor()
	if err != nil {
		return err
	}
	r, err := a.Run(ctx, nil)
	if err != nil {
		return err
	}
	for _, f := range r.Findings {
		if f.Kind != audit.Unreferenced && f.Kind != audit.OrphanRegister {
			p.log.Warn().Str("kind", string(f.Kind)).Str("path", f.Path).Str("container", f.Register.Short()).Msg("the audit found something: see mutualfs check")
		}
	}
	if !r.Proven || r.Incomplete != "" {
		return nil // nothing to sweep, or not now
	}
	done, err := audit.Sweep(ctx, r, sweepGrace, p.mender(v))
	if len(done) > 0 {
		failed := 0
		for _, o := range done {
			if o.Err != nil {
				failed++
				p.log.Debug().Err(o.Err).Str("kind", string(o.Kind)).Msg("sweep")
			}
		}
		p.log.Info().Int("deleted", len(done)-failed).Int("failed", failed).Msg("swept what nobody needs")
	}
	return err
}
