package treetest

import (
	"context"
	"fmt"
	"slices"

	"github.com/mutualfs/mutualfs/blocks"
)

// ReadAgreed returns the agreed state of a register and leaves leases where they are: a Ring is a tree.Agreed.
func (r *Ring) ReadAgreed(ctx context.Context, id blocks.RegisterID, since blocks.Version) (blocks.Register, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	x := r.regs[id]
	if x == nil {
		return blocks.Register{}, fmt.Errorf("%w: register %s is unknown", blocks.ErrUnavailable, id.Short())
	}
	if x.deleted {
		return blocks.Register{}, fmt.Errorf("%w: register %s was deleted", blocks.ErrNotFound, id.Short())
	}
	return x.show(id, since), ctx.Err()
}

// IDs lists the registers that have not been deleted, in order.
func (r *Ring) IDs() []blocks.RegisterID {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ids []blocks.RegisterID
	for id, x := range r.regs {
		if !x.deleted {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b blocks.RegisterID) int { return a.Compare(b.ID) })
	return ids
}
