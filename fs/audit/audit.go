package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
)

// Ring is what an audit needs of the ring.
type Ring interface {
	// Registers calls each for every register that some storage peer has and does not know to be deleted. The error is of class
	// ErrUnavailable if a storage peer that counts did not answer.
	Registers(ctx context.Context, each func(id blocks.RegisterID, age time.Duration)) error
	// Stripes is the same for the stripes of which some storage peer has a good shard.
	Stripes(ctx context.Context, each func(Stripe)) error
	// Settle has every peer of the ring finish what was under way when it was asked: see Peer. It returns all peers that the ring
	// has ever had and that have not left it.
	Settle(ctx context.Context) ([]Peer, error)
}

// Peer is what a peer said when it was asked to settle.
type Peer struct {
	ID      blocks.PeerID
	Mounted bool
	// Err is nil if all that the peer's mount had written is committed, no call that began before is under way that makes
	// registers which nothing names yet, and, without a mount, its journal is empty. So what was there before the call and that no
	// register names is nothing that this peer will ever name.
	Err error
}

// Config says what is audited.
type Config struct {
	Root   blocks.RegisterID
	Survey *tree.Surveyor
	Ring   Ring
	Other  func(blocks.RegisterID) bool // registers that are no containers: they are passed over
}

// Auditor audits one volume.
type Auditor struct{ cfg Config }

// New returns an Auditor.
func New(cfg Config) *Auditor { return &Auditor{cfg} }

const (
	maxLooks  = 6                      // looks of one audit
	lookPause = 500 * time.Millisecond // before one is repeated because what it saw has changed
)

// Report is the outcome of an audit.
type Report struct {
	Registers, Names, Inodes, Stripes int // that were seen
	// Findings were seen in every look but the first ones that saw more. Doubtful ones say that nobody needs something,
	// and a peer that did not settle may: they are no findings.
	Findings, Doubtful []Finding
	// Proven says that the findings were true at one moment: see Look and docs/audit.md. Only then may something be deleted for them.
	Proven    bool
	Unsettled []Peer // peers that could not be asked, or not finish
	// Incomplete says why not everything could be seen, "" if it was.
	Incomplete string
	Look       *Look // the last one
}

// Clean reports whether nothing was found.
func (r *Report) Clean() bool { return len(r.Findings) == 0 }

// Run looks until there is nothing to find, or what it found was there in two looks, one directly after the other, in between
// which everybody has settled and no inode has moved. After maxLooks it reports what was in all of them, not proven. progress may
// be nil.
func (a *Auditor) Run(ctx context.Context, progress func(phase string, done, total int)) (*Report, error) {
	say := func(phase string) func(done, total int) {
		return func(done, total int) {
			if progress != nil {
				progress(phase, done, total)
			}
		}
	}
	var last *Look
	var found []Finding
	before, err := a.list(ctx, nil)
	if err != nil {
		return nil, err
	}
	for n := 1; ; n++ {
		say("settle")(0, 0)
		peers, err := a.cfg.Ring.Settle(ctx)
		if err != nil {
			return nil, fmt.Errorf("ask the mounts to store what they have: %w", err)
		}
		look, steady, err := a.look(ctx, last, say(fmt.Sprintf("look %d", n)))
		if err != nil {
			return nil, err
		}
		say("stripes")(0, 0)
		look.Keepers = keepers(peers)
		look.Before = before
		if look.After, err = a.list(ctx, &look.Counted); err != nil {
			return nil, err
		}
		now := Judge(look)
		if last != nil {
			now = both(found, now)
		}
		if len(now) == 0 || last != nil && steady || n == maxLooks {
			return report(look, now, peers, last != nil && steady), nil
		}
		last, found, before = look, now, common(before, look.After)
		if n > 1 {
			if err := sleep(ctx, lookPause); err != nil {
				return nil, err
			}
		}
	}
}

// list reads what stripes there are; counted, if not nil, says whether that is all.
func (a *Auditor) list(ctx context.Context, counted *bool) (map[blocks.StripeID]Stripe, error) {
	all := map[blocks.StripeID]Stripe{}
	err := a.cfg.Ring.Stripes(ctx, func(s Stripe) { all[s.Ref.ID] = s })
	if counted != nil {
		*counted = err == nil
	}
	if err != nil && !errors.Is(err, blocks.ErrUnavailable) || ctx.Err() != nil {
		return nil, fmt.Errorf("list the stripes: %w", err)
	}
	return all, nil
}

// common keeps of the stripes that were there at the beginning those that still are.
func common(before, after map[blocks.StripeID]Stripe) map[blocks.StripeID]Stripe {
	out := make(map[blocks.StripeID]Stripe, len(before))
	for id := range before {
		if s, ok := after[id]; ok {
			out[id] = s
		}
	}
	return out
}

// both keeps the findings of now that there were before.
func both(before, now []Finding) []Finding {
	was := make(map[Key]bool, len(before))
	for _, f := range before {
		was[f.Key] = true
	}
	return slices.DeleteFunc(now, func(f Finding) bool { return !was[f.Key] })
}

func keepers(peers []Peer) map[blocks.PeerID]bool {
	m := map[blocks.PeerID]bool{}
	for _, p := range peers {
		m[p.ID] = p.Mounted || p.Err != nil
	}
	return m
}

func report(l *Look, found []Finding, peers []Peer, proven bool) *Report {
	r := &Report{Registers: len(l.Registers), Stripes: len(l.After), Proven: proven, Look: l}
	for _, f := range l.Registers {
		r.Names += len(f.Names)
		r.Inodes += len(f.Inodes)
	}
	for _, p := range peers {
		if p.Err != nil {
			r.Unsettled = append(r.Unsettled, p)
		}
	}
	for _, f := range found {
		if f.Kind.unowned() && len(r.Unsettled) > 0 {
			r.Doubtful = append(r.Doubtful, f)
		} else {
			r.Findings = append(r.Findings, f)
		}
	}
	switch {
	case !l.Listed:
		r.Incomplete = "a storage peer could not say which registers it has: what nothing names was not looked for"
	case !l.Counted:
		r.Incomplete = "a storage peer could not say which stripes it has: missing shards were not looked for"
	}
	return r
}

func sleep(ctx context.Context, d time.Duration) error {
	tm := time.NewTimer(d)
	defer tm.Stop()
	select {
	case <-tm.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
