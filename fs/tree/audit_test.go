package tree_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/audit"
	"github.com/mutualfs/mutualfs/fs/tree"
	"github.com/mutualfs/mutualfs/fs/tree/treetest"
)

// audited is a ring of registers as an audit sees it. It has no stripes.
type audited struct {
	ring   *treetest.Ring
	mounts []*mount
}

// Registers is audit.Ring.
func (a audited) Registers(_ context.Context, each func(blocks.RegisterID, time.Duration)) error {
	for _, id := range a.ring.IDs() {
		each(id, 0)
	}
	return nil
}

// Stripes is audit.Ring.
func (a audited) Stripes(context.Context, func(audit.Stripe)) error { return nil }

// Settle is audit.Ring.
func (a audited) Settle(ctx context.Context) (all []audit.Peer, err error) {
	for i, m := range a.mounts {
		all = append(all, audit.Peer{ID: peer(i + 1), Mounted: true})
		err = errors.Join(err, m.Settle(ctx))
	}
	return all, err
}

type sweeper struct{ *mount }

// DeleteStripe is audit.Mender.
func (sweeper) DeleteStripe(context.Context, blocks.StripeID) error {
	return errors.New("there is none")
}

// RepairStripe is audit.Mender.
func (sweeper) RepairStripe(context.Context, blocks.StripeID) error {
	return errors.New("there is none")
}

// sweep wants an audit to find nothing but registers that the sweep deletes, and nothing when it has.
func sweep(t *testing.T, what string, ring *treetest.Ring, mounts ...*mount) (swept int) {
	t.Helper()
	a := audit.New(audit.Config{Root: rootID, Survey: tree.NewSurveyor(ring, volumeKey), Ring: audited{ring, mounts}, Other: func(blocks.RegisterID) bool { return false }})
	for {
		r, err := a.Run(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Findings = slices.DeleteFunc(r.Findings, func(f audit.Finding) bool { // the tests make stripes up, some of them twice
			return f.Kind == audit.Missing || f.Kind == audit.Shared
		})
		done, err := audit.Sweep(t.Context(), r, 0, sweeper{mounts[0]})
		for _, o := range done {
			err = errors.Join(err, o.Err)
		}
		if err != nil || len(done) < len(r.Findings) {
			t.Fatalf("%s: swept %+v (%v) of %+v", what, done, err, r.Findings)
		}
		if len(done) == 0 {
			return swept
		}
		if swept += len(done); swept > 10 {
			t.Fatalf("%s: the sweep does not come to an end: %+v", what, done)
		}
	}
}

// Splits and mkdirs, with a death at each step, before and after it takes effect: what is left is either in the tree or swept.
func TestCrashLeavesNothing(t *testing.T) {
	few := func(c *tree.Config) { c.SplitEntries = 8 }
	for name, op := range map[string]func(ctx context.Context, m *mount) error{
		"split": func(ctx context.Context, m *mount) error {
			for i := range 12 {
				if _, _, err := m.Make(ctx, tree.RootIno, fmt.Sprint("f", i), tree.MakeArgs{Mode: regMode}); err != nil {
					return err
				}
			}
			return m.Sync(ctx)
		},
		"directories": func(ctx context.Context, m *mount) error {
			a, _, err := m.Make(ctx, tree.RootIno, "a", tree.MakeArgs{Mode: dirMode})
			for i := range 3 {
				if err == nil {
					a, _, err = m.Make(ctx, a.Ino, fmt.Sprint("d", i), tree.MakeArgs{Mode: dirMode})
				}
			}
			return errors.Join(err, m.Sync(ctx))
		},
		"promotion": func(ctx context.Context, m *mount) error {
			d, _, err := m.Make(ctx, tree.RootIno, "d", tree.MakeArgs{Mode: dirMode})
			if err != nil {
				return err
			}
			f, _, err := m.Make(ctx, tree.RootIno, "f", tree.MakeArgs{Mode: regMode})
			if err == nil {
				_, err = m.Link(ctx, f.Ino, d.Ino, "f")
			}
			return errors.Join(err, m.Sync(ctx))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			swept := 0
			for step := 0; ; step++ {
				ring := newRing(t)
				m := start(t, ring, 1, t.TempDir(), func(c *tree.Config) { few(c); c.FlushAge, c.CommitTimeout = time.Hour, 100*time.Millisecond })
				var n atomic.Int64
				m.regs.SetFault(func(write bool, _ blocks.RegisterID, c *blocks.Change) treetest.Fault {
					if !write || c.Seq == 0 {
						return treetest.Fault{}
					}
					i := int(n.Add(1)) - 1
					if i < step/2 {
						return treetest.Fault{}
					}
					return treetest.Fault{Err: fmt.Errorf("%w: killed", blocks.ErrInvalid), Lost: i == step/2 && step%2 == 1}
				})
				err := op(t.Context(), m)
				crashed := int(n.Load()) > step/2
				if !crashed && err != nil {
					t.Fatal(err)
				}
				dir := m.kill(t)
				again := start(t, ring, 1, dir, few)
				dump(t, again)
				swept += sweep(t, fmt.Sprintf("step %d", step), ring, again)
				if !crashed {
					break
				}
			}
			t.Logf("%d registers swept", swept)
		})
	}
}
