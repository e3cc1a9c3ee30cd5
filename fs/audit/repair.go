package audit

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
)

// Mender changes the volume. All but the last two are methods of tree.Tree; each checks that what it changes is still so.
type Mender interface {
	MendName(ctx context.Context, in blocks.RegisterID, name string, ino tree.Ino) error
	MendLinks(ctx context.Context, in blocks.RegisterID, ino tree.Ino, dirs []blocks.RegisterID) error
	MendParent(ctx context.Context, dir, parent blocks.RegisterID, ino tree.Ino) error
	MendFree(ctx context.Context, in blocks.RegisterID, stripe blocks.StripeID) error
	EndOrphan(ctx context.Context, in blocks.RegisterID, ino tree.Ino, sessions []blocks.RegisterID) error
	EndRegister(ctx context.Context, id blocks.RegisterID, version blocks.Version) error
	Find(ctx context.Context, what *tree.Facts, ino tree.Ino, namedIn blocks.RegisterID, name string) error
	Tend(ctx context.Context, id blocks.RegisterID) error
	// DeleteStripe deletes a stripe that no register names.
	DeleteStripe(ctx context.Context, id blocks.StripeID) error
	// RepairStripe makes anew what is missing of a stripe. An error says that it could not yet.
	RepairStripe(ctx context.Context, id blocks.StripeID) error
}

// Outcome is what became of a finding.
type Outcome struct {
	Finding
	Err error // nil: it was mended
}

// errNoRemedy says that only people can decide what is right.
var errNoRemedy = errors.New("nothing can be done about it here")

// mendLimit bounds the repair of one finding.
const mendLimit = 30 * time.Second

// Repair mends what a proven report found. What it cannot mend it leaves as it is.
func Repair(ctx context.Context, r *Report, m Mender) ([]Outcome, error) {
	if err := r.certain(); err != nil {
		return nil, err
	}
	j := newJudge(r.Look)
	var out []Outcome
	for _, f := range r.Findings {
		if ctx.Err() != nil {
			return out, context.Cause(ctx)
		}
		one, cancel := context.WithTimeout(ctx, mendLimit)
		out = append(out, Outcome{f, j.mend(one, f, m)})
		cancel()
	}
	for id := range j.reached {
		if f := r.Look.Registers[id]; len(f.Free)+len(f.FreeRegs)+len(f.Txns) > 0 {
			one, cancel := context.WithTimeout(ctx, mendLimit)
			_ = m.Tend(one, id) // a free list waits for the next who comes: no harm
			cancel()
		}
	}
	return out, ctx.Err()
}

// Sweep deletes what a proven report says that nothing names and that some peer has had for as long as grace: stripes, and registers
// that hold nothing of their own. Directories and files without a name wait for Repair.
func Sweep(ctx context.Context, r *Report, grace time.Duration, m Mender) ([]Outcome, error) {
	if err := r.certain(); err != nil {
		return nil, err
	}
	j := newJudge(r.Look)
	var out []Outcome
	for _, f := range r.Findings {
		if ctx.Err() != nil {
			return out, context.Cause(ctx)
		}
		if f.Age < grace || f.Kind != Unreferenced && (f.Kind != OrphanRegister || !j.hollow(r.Look.Registers[f.Register])) {
			continue
		}
		one, cancel := context.WithTimeout(ctx, mendLimit)
		out = append(out, Outcome{f, j.mend(one, f, m)})
		cancel()
	}
	return out, nil
}

// certain returns why nothing may be changed for a report, nil if it may.
func (r *Report) certain() error {
	switch {
	case r.Incomplete != "":
		return fmt.Errorf("%w: %s", blocks.ErrUnavailable, r.Incomplete)
	case !r.Proven && !r.Clean():
		return fmt.Errorf("%w: the volume was changing all the time; repeat it when less is going on", blocks.ErrBusy)
	}
	return nil
}

// mend does what a finding asks for.
func (j *judge) mend(ctx context.Context, f Finding, m Mender) error {
	at := j.look.Registers[f.Register]
	switch f.Kind {
	case Unreferenced:
		return m.DeleteStripe(ctx, f.Stripe)
	case UnderProtected:
		return m.RepairStripe(ctx, f.Stripe)
	case Dangling:
		if f.Name == "" {
			return errNoRemedy
		}
		return m.MendName(ctx, f.Register, f.Name, f.Ino)
	case TwoNames:
		return m.MendName(ctx, f.Register, f.Name, f.Ino)
	case WrongNlink, WrongReference:
		return m.MendLinks(ctx, f.Register, f.Ino, j.dirsOf(at))
	case WrongParent:
		head := j.look.Registers[j.heads[j.named[f.Register][0].in]]
		return m.MendParent(ctx, f.Register, head.ID, head.Ino)
	case OrphanInode:
		for i := range at.Inodes {
			if n := &at.Inodes[i]; n.Ino == f.Ino && n.Nlink == 0 {
				return m.EndOrphan(ctx, f.Register, f.Ino, n.Keepers)
			}
		}
		return m.Find(ctx, at, f.Ino, blocks.RegisterID{}, "")
	case OrphanRegister:
		return j.mendRegister(ctx, at, m)
	case Cycle:
		return m.Find(ctx, at, f.Ino, j.named[f.Register][0].in, f.Name)
	case Shared:
		return j.mendFree(ctx, f, m)
	}
	return errNoRemedy
}

// dirsOf lists the directories of a promoted inode's names, one for each; nil for other containers.
func (j *judge) dirsOf(f *tree.Facts) (dirs []blocks.RegisterID) {
	if f.Kind == tree.KindFile {
		for _, n := range j.named[f.ID] {
			dirs = append(dirs, j.heads[n.in])
		}
	}
	return dirs
}

func (j *judge) mendRegister(ctx context.Context, f *tree.Facts, m Mender) error {
	switch {
	case j.hollow(f):
		return m.EndRegister(ctx, f.ID, f.Version)
	case f.Kind == tree.KindDir:
		return m.Find(ctx, f, f.Ino, blocks.RegisterID{}, "")
	case f.Kind == tree.KindFile && len(f.Inodes) == 1:
		return m.Find(ctx, f, f.Inodes[0].Ino, blocks.RegisterID{}, "")
	}
	return errNoRemedy
}

// hollow reports whether a register that nothing names holds nothing that is not also in the tree: a transaction, an empty
// directory, a session of locks, an extent map whose stripes the tree has or nobody has any more, what a promotion or a split made that did not come about.
func (j *judge) hollow(f *tree.Facts) bool {
	if passing(f) {
		return true
	}
	if f.Kind == tree.KindMap {
		return j.treeHas(f)
	}
	if f.Undecided || len(f.Free)+len(f.FreeRegs)+len(f.Pages) > 0 {
		return false
	}
	for _, n := range f.Names {
		if !n.Child.IsZero() && !j.reached[n.Child] {
			return false
		}
	}
	for i := range f.Inodes {
		if !j.inTree(f.Inodes[i].Ino) {
			return false
		}
	}
	return true
}

// inTree reports whether an inode lies in a container that is reached.
func (j *judge) inTree(ino tree.Ino) bool {
	if j.inodes == nil {
		j.inodes = map[tree.Ino]bool{}
		for id := range j.reached {
			f := j.look.Registers[id]
			for i := range f.Inodes {
				j.inodes[f.Inodes[i].Ino] = true
			}
		}
	}
	return j.inodes[ino]
}

// treeHas reports whether all stripes of a register that are still there have an owner in the tree.
func (j *judge) treeHas(f *tree.Facts) bool {
	want := map[blocks.StripeID]bool{}
	for i := range f.Inodes {
		for _, s := range f.Inodes[i].Stripes {
			if _, there := j.look.After[s.ID]; there {
				want[s.ID] = true
			}
		}
	}
	for id := range j.reached {
		for i := range j.look.Registers[id].Inodes {
			for _, s := range j.look.Registers[id].Inodes[i].Stripes {
				delete(want, s.ID)
			}
		}
	}
	return len(want) == 0
}

// mendFree takes a stripe that an inode of the tree has off the free lists.
func (j *judge) mendFree(ctx context.Context, f Finding, m Mender) error {
	done := errNoRemedy
	for id, c := range j.look.Registers {
		for _, s := range c.Free {
			if s == f.Stripe && (j.reached[id] || j.needed[id]) {
				if done = m.MendFree(ctx, id, s); done != nil && !errors.Is(done, syscall.ENOENT) {
					return done
				}
			}
		}
	}
	return done
}
