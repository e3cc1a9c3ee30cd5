package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/audit"
	"github.com/mutualfs/mutualfs/fs/locks"
	"github.com/mutualfs/mutualfs/fs/tree"
	"github.com/mutualfs/mutualfs/overlay/store"
)

// auditRing tells an audit what it needs of the ring.
type auditRing struct{ p *peer }

// Registers is audit.Ring.
func (r auditRing) Registers(ctx context.Context, each func(blocks.RegisterID, time.Duration)) error {
	return r.p.registers.List(ctx, each)
}

// Stripes is audit.Ring.
func (r auditRing) Stripes(ctx context.Context, each func(audit.Stripe)) error {
	return r.p.shards.List(ctx, func(h *store.Held) {
		each(audit.Stripe{Ref: h.Ref, Owner: h.Owner, Shards: h.Shards, Dead: h.Dead, Age: h.Age})
	})
}

// Settle is audit.Ring.
func (r auditRing) Settle(ctx context.Context) ([]audit.Peer, error) { return r.p.settleAll(ctx) }

// errStorageOnly says that a peer cannot read names.
var errStorageOnly = errors.New("was joined with a storage-only token: it cannot read what it stores; ask a peer that may be mounted")

func (p *peer) auditor() (*audit.Auditor, error) {
	if p.dir.volumeKey == nil {
		return nil, fmt.Errorf("%s %w", p.dir.path, errStorageOnly)
	}
	other := map[blocks.RegisterID]bool{}
	for _, id := range locks.RegisterIDs(p.dir.ring.root()) {
		other[id] = true
	}
	return audit.New(audit.Config{Root: p.dir.ring.root(), Survey: tree.NewSurveyor(p.registers, p.dir.volumeKey), Ring: auditRing{p},
		Other: func(id blocks.RegisterID) bool { return other[id] }}), nil
}

// check audits the volume and emits how far it is, and last what it found; with repair it mends that, and audits once more.
func (p *peer) check(r *http.Request, emit func(checkLine)) error {
	a, err := p.auditor()
	if err != nil {
		return err
	}
	v := p.volume.Load()
	repair := r.URL.Query().Get("repair") != ""
	if repair && v == nil {
		return fmt.Errorf("%w: repairs are made through a mount: ask a peer that has the ring mounted, with --data", blocks.ErrInvalid)
	}
	emit(checkLine{Phase: "begin"})
	run := func() (*audit.Report, error) {
		return a.Run(r.Context(), func(phase string, done, total int) {
			emit(checkLine{Phase: phase, Done: uint64(done), Total: uint64(total)})
		})
	}
	report, err := run()
	var done []audit.Outcome
	if err == nil && repair {
		if done, err = audit.Repair(r.Context(), report, p.mender(v)); err == nil && len(done) > 0 {
			report, err = run()
		}
	}
	if err != nil {
		emit(checkLine{Error: err.Error()})
		return nil
	}
	emit(checkLine{Report: newAuditReport(report, done)})
	return nil
}

// mender mends through a mount.
type mender struct {
	*tree.Tree
	p *peer
}

func (p *peer) mender(v *volume) mender { return mender{v.tree, p} }

// DeleteStripe is audit.Mender.
func (m mender) DeleteStripe(ctx context.Context, id blocks.StripeID) error {
	m.p.log.Info().Stringer("stripe", id).Msg("deleting a stripe that nothing names")
	return m.p.stripes.Delete(ctx, id)
}

// RepairStripe is audit.Mender.
func (m mender) RepairStripe(ctx context.Context, id blocks.StripeID) error {
	r, err := m.p.shards.Mend(ctx, id)
	if err == nil && !r.Protected {
		err = fmt.Errorf("%w: %d of %d shards are good", blocks.ErrUnavailable, r.Good, r.Total)
	}
	return err
}

// checkLine is a line of the check's stream; the last has the report or an error.
type checkLine struct {
	Phase  string       `json:"phase,omitempty"`
	Done   uint64       `json:"done,omitempty"`
	Total  uint64       `json:"total,omitempty"`
	Error  string       `json:"error,omitempty"`
	Report *auditReport `json:"report,omitempty"`
}

// auditReport is what check prints.
type auditReport struct {
	Registers int `json:"registers"`
	Names     int `json:"names"`
	Inodes    int `json:"inodes"`
	Stripes   int `json:"stripes"`
	// Repaired are findings of a first look that were mended; those that are still there are among Findings.
	Repaired   []findingReport `json:"repaired,omitempty"`
	Findings   []findingReport `json:"findings"`
	Doubtful   []findingReport `json:"doubtful"`
	Unsettled  []peerDoubt     `json:"unsettled"`
	Incomplete string          `json:"incomplete,omitempty"`
	// Busy says that the volume kept changing: what was found was there in every look, but at no moment all of it for certain.
	Busy bool `json:"busy"`
}

type findingReport struct {
	Kind     audit.Kind         `json:"kind"`
	Path     string             `json:"path,omitempty"`
	Register *blocks.RegisterID `json:"register,omitempty"`
	Name     string             `json:"name,omitempty"`
	Ino      uint64             `json:"ino,omitempty"`
	Stripe   *blocks.StripeID   `json:"stripe,omitempty"`
	Detail   string             `json:"detail"`
	Error    string             `json:"error,omitempty"` // why it could not be repaired
}

type peerDoubt struct {
	Peer   blocks.PeerID `json:"peer"`
	Reason string        `json:"reason"`
}

func newAuditReport(r *audit.Report, repaired []audit.Outcome) *auditReport {
	out := &auditReport{Registers: r.Registers, Names: r.Names, Inodes: r.Inodes, Stripes: r.Stripes, Incomplete: r.Incomplete,
		Busy: !r.Proven && len(r.Findings)+len(r.Doubtful) > 0, Findings: findingReports(r.Findings), Doubtful: findingReports(r.Doubtful), Unsettled: []peerDoubt{}}
	failed := map[audit.Key]error{}
	for _, o := range repaired {
		if failed[o.Key] = o.Err; o.Err == nil {
			out.Repaired = append(out.Repaired, findingReports([]audit.Finding{o.Finding})...)
		}
	}
	for i, f := range r.Findings {
		if err := failed[f.Key]; err != nil {
			out.Findings[i].Error = err.Error()
		}
	}
	for _, p := range r.Unsettled {
		out.Unsettled = append(out.Unsettled, peerDoubt{p.ID, p.Err.Error()})
	}
	return out
}

func findingReports(list []audit.Finding) []findingReport {
	out := []findingReport{}
	for _, f := range list {
		x := findingReport{Kind: f.Kind, Path: f.Path, Name: f.Name, Ino: uint64(f.Ino), Detail: f.Detail}
		if !f.Register.IsZero() {
			x.Register = &f.Register
		}
		if !f.Stripe.IsZero() {
			x.Stripe = &f.Stripe
		}
		out = append(out, x)
	}
	return out
}
