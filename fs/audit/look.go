package audit

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
)

// Stripe is what the storage peers that answered have of one stripe.
type Stripe struct {
	Ref    blocks.StripeRef
	Owner  blocks.Owner
	Shards int           // different good ones
	Dead   bool          // some peer knows that it was deleted
	Age    time.Duration // how long, at least, some peer has had a shard
}

// Look is what was seen of a volume: every register that some peer has or that another register names, and the stripes
// before and after these were read. The registers were read one after the other, so that a look at a volume that
// changes may show what never was.
type Look struct {
	Root      blocks.RegisterID
	Registers map[blocks.RegisterID]*tree.Facts
	Ended     map[blocks.RegisterID]bool          // named or listed, and deleted
	Unread    map[blocks.RegisterID]error         // what is in these is not known
	Nowhere   map[blocks.RegisterID]bool          // named, and no peer has it though all have said what they have
	Ages      map[blocks.RegisterID]time.Duration // of those that are listed: how long, at least, some peer has had them
	// Listed says that every storage peer that counts has said what registers it has: Registers has all.
	Listed bool
	// Before and After are the stripes on the disks. Counted says that every storage peer that counts has said what it had after.
	Before, After map[blocks.StripeID]Stripe
	Counted       bool
	// Keepers are the peers that may have files open, or in their journals: those that are mounted, and those that
	// cannot be asked.
	Keepers map[blocks.PeerID]bool
}

const (
	readParallel  = 16               // registers that are read at the same time
	readLimit     = 10 * time.Second // for one register
	progressEvery = 64               // registers between two reports
)

// look reads all registers: those that are listed, and those that they name. What a look before has seen is read again only
// if it has changed; steady says that since then no inode has come or gone but by being made or removed, in no register.
func (a *Auditor) look(ctx context.Context, old *Look, progress func(done, total int)) (l *Look, steady bool, err error) {
	l = &Look{Root: a.cfg.Root, Registers: map[blocks.RegisterID]*tree.Facts{}, Ended: map[blocks.RegisterID]bool{}, Nowhere: map[blocks.RegisterID]bool{}, Unread: map[blocks.RegisterID]error{}, Ages: map[blocks.RegisterID]time.Duration{}}
	r := &reading{a: a, old: old, look: l, steady: old != nil, seen: map[blocks.RegisterID]bool{}}
	r.add(a.cfg.Root)
	err = a.cfg.Ring.Registers(ctx, func(id blocks.RegisterID, age time.Duration) {
		l.Ages[id] = age
		r.add(id)
	})
	if l.Listed = err == nil; err != nil && !errors.Is(err, blocks.ErrUnavailable) {
		return nil, false, err
	}
	for len(r.todo) > 0 {
		todo, known := r.todo, len(r.seen)
		r.todo = nil
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(readParallel)
		for i, id := range todo {
			if progress != nil && i%progressEvery == 0 {
				progress(known-len(todo)+i, known)
			}
			g.Go(func() error { return r.one(gctx, id) })
		}
		if err := g.Wait(); err != nil {
			return nil, false, err
		}
	}
	return l, r.steady && l.Listed && sameRegisters(old, l), nil
}

// reading is a look that is under way.
type reading struct {
	a   *Auditor
	old *Look

	mu     sync.Mutex
	look   *Look
	steady bool
	seen   map[blocks.RegisterID]bool
	todo   []blocks.RegisterID
}

func (r *reading) add(ids ...blocks.RegisterID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range ids {
		if !id.IsZero() && !r.seen[id] && !r.a.cfg.Other(id) {
			r.seen[id] = true
			r.todo = append(r.todo, id)
		}
	}
}

// one reads a register and notes those that it names.
func (r *reading) one(ctx context.Context, id blocks.RegisterID) error {
	var was *tree.Facts
	if r.old != nil {
		was = r.old.Registers[id]
	}
	f, steady, err := r.a.read(ctx, id, was)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	r.mu.Lock()
	switch {
	case errors.Is(err, blocks.ErrNotFound):
		r.look.Ended[id] = true
	case errors.Is(err, blocks.ErrUnavailable) && r.look.Listed && !r.listed(id):
		r.look.Nowhere[id] = true
	case err != nil:
		r.look.Unread[id] = err
		r.steady = false
	default:
		r.look.Registers[id] = f
		r.steady = r.steady && (steady || passing(f))
	}
	r.mu.Unlock()
	if err == nil {
		r.add(references(f)...)
	}
	return nil
}

// listed reports whether some peer has the register.
func (r *reading) listed(id blocks.RegisterID) bool {
	_, have := r.look.Ages[id]
	return have
}

func (a *Auditor) read(ctx context.Context, id blocks.RegisterID, was *tree.Facts) (*tree.Facts, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	if was != nil {
		return a.cfg.Survey.Again(ctx, was)
	}
	f, err := a.cfg.Survey.Facts(ctx, id)
	return f, false, err
}

// passing reports whether a register is one that comes and goes: a transaction, whose doing shows in its participants, or a session.
func passing(f *tree.Facts) bool { return f.Kind == tree.KindTxn || f.Kind == tree.KindSession }

// sameRegisters reports whether two looks saw the same containers.
func sameRegisters(a, b *Look) bool {
	within := func(a, b *Look) bool {
		for id, f := range a.Registers {
			if !passing(f) && b.Registers[id] == nil {
				return false
			}
		}
		return true
	}
	return a != nil && a.Listed && within(a, b) && within(b, a)
}

// references lists the registers that a register names.
func references(f *tree.Facts) []blocks.RegisterID {
	ids := slices.Concat([]blocks.RegisterID{f.Parent, f.Next}, f.Pages, f.Maps)
	for i := range f.Names {
		ids = append(ids, f.Names[i].Child)
	}
	for id := range f.Refs {
		ids = append(ids, id)
	}
	for i := range f.Inodes {
		ids = append(ids, f.Inodes[i].Keepers...)
	}
	ids = append(ids, f.FreeRegs...)
	ids = append(ids, f.Txns...)
	return append(ids, f.Brings...)
}
