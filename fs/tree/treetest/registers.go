// Package treetest has registers in memory for tests of the tree and of those who use it: one
// Ring, and one view of it per mount, with leases, recalls and faults.
package treetest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// Ring holds the registers of all mounts.
type Ring struct {
	mu     sync.Mutex
	regs   map[blocks.RegisterID]*register
	mounts map[blocks.PeerID]*Mount
}

type register struct {
	version  blocks.Version
	lease    blocks.Lease   // of who holds it alone
	readers  []blocks.Lease // of those who share it
	epoch    uint64
	deleted  bool
	base     blocks.Version
	snapshot []byte
	deltas   [][]byte
	applied  map[blocks.PeerID]uint64
}

// NewRing returns an empty ring.
func NewRing() *Ring {
	return &Ring{regs: map[blocks.RegisterID]*register{}, mounts: map[blocks.PeerID]*Mount{}}
}

// Fault is what goes wrong with one call. Lost makes a proposal take effect and fail nevertheless.
type Fault struct {
	Err   error
	Lost  bool
	Delay time.Duration // of the request
	Late  time.Duration // of the answer
}

// Mount is one mount's view: a tree.Registers.
type Mount struct {
	ring *Ring
	id   blocks.PeerID

	mu       sync.Mutex
	recall   func(ctx context.Context, id blocks.RegisterID, read bool)
	fault    func(write bool, id blocks.RegisterID, c *blocks.Change) Fault
	mistrust bool
	dead     bool
	reads    int
	writes   int
	granted  map[blocks.RegisterID]uint64 // epochs of leases given to this view
}

// Mount returns the view of a mount, a fresh one at each call: the one before is dead.
func (r *Ring) Mount(id blocks.PeerID) *Mount {
	m := &Mount{ring: r, id: id, granted: map[blocks.RegisterID]uint64{}}
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.mounts[id]; old != nil {
		old.Kill()
	}
	r.mounts[id] = m
	return m
}

// Kill makes all further calls of this view fail, as if its process had died.
func (m *Mount) Kill() {
	m.mu.Lock()
	m.dead = true
	m.mu.Unlock()
}

// SetFault sets who decides what goes wrong. nil: nothing.
func (m *Mount) SetFault(f func(write bool, id blocks.RegisterID, c *blocks.Change) Fault) {
	m.mu.Lock()
	m.fault = f
	m.mu.Unlock()
}

// SetMistrust makes Holds false: the mount has not heard from a majority.
func (m *Mount) SetMistrust(on bool) {
	m.mu.Lock()
	m.mistrust = on
	m.mu.Unlock()
}

// Calls returns how many reads and proposals were made.
func (m *Mount) Calls() (reads, writes int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.reads, m.writes
}

// OnRecall sets who gives leases back.
func (m *Mount) OnRecall(f func(ctx context.Context, id blocks.RegisterID, read bool)) {
	m.mu.Lock()
	m.recall = f
	m.mu.Unlock()
}

// Holds reports whether the lease is this mount's.
func (m *Mount) Holds(id blocks.RegisterID, epoch uint64) bool {
	m.mu.Lock()
	granted, known := m.granted[id]
	bad := m.mistrust || m.dead || !known || granted != epoch
	m.mu.Unlock()
	if bad {
		return false
	}
	m.ring.mu.Lock()
	defer m.ring.mu.Unlock()
	x := m.ring.regs[id]
	l := blocks.Lease{Holder: m.id, Epoch: epoch}
	return x != nil && (x.lease == l || slices.Contains(x.readers, l))
}

// enter counts a call and applies the fault that is due.
func (m *Mount) enter(ctx context.Context, id blocks.RegisterID, c *blocks.Change) (Fault, error) {
	m.mu.Lock()
	if c == nil {
		m.reads++
	} else {
		m.writes++
	}
	dead, fault := m.dead, m.fault
	m.mu.Unlock()
	if dead {
		return Fault{}, fmt.Errorf("%w: the mount is dead", blocks.ErrInvalid)
	}
	var f Fault
	if fault != nil {
		f = fault(c != nil, id, c)
	}
	if f.Delay > 0 {
		select {
		case <-time.After(f.Delay):
		case <-ctx.Done():
			return f, ctx.Err()
		}
	}
	if f.Err != nil && !f.Lost {
		return f, f.Err
	}
	return f, ctx.Err()
}

// Fence takes a lease away from its holder, as when it was not heard for long.
func (r *Ring) Fence(id blocks.RegisterID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if x := r.regs[id]; x != nil && (!x.lease.Holder.IsZero() || len(x.readers) > 0) {
		x.lease, x.readers = blocks.Lease{}, nil
		x.version++
		x.deltas = append(x.deltas, nil)
	}
}

// FenceAll takes all leases of a mount.
func (r *Ring) FenceAll(m blocks.PeerID) {
	r.mu.Lock()
	var ids []blocks.RegisterID
	for id, x := range r.regs {
		if x.lease.Holder == m || x.shares(m) {
			ids = append(ids, id)
		}
	}
	r.mu.Unlock()
	for _, id := range ids {
		r.Fence(id)
	}
}

// Largest returns the bytes of the largest value.
func (r *Ring) Largest() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	most := 0
	for _, x := range r.regs {
		n := len(x.snapshot)
		for _, d := range x.deltas {
			n += len(d)
		}
		most = max(most, n)
	}
	return most
}

// Live counts the registers that have not been deleted.
func (r *Ring) Live() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, x := range r.regs {
		if !x.deleted {
			n++
		}
	}
	return n
}

// shares reports whether a mount is one of those that share the lease.
func (x *register) shares(mount blocks.PeerID) bool {
	return slices.ContainsFunc(x.readers, func(l blocks.Lease) bool { return l.Holder == mount })
}

// leave ends what a mount shares, and reports whether others share a register's lease.
func (r *Ring) leave(id blocks.RegisterID, mount blocks.PeerID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	x := r.regs[id]
	if x == nil || len(x.readers) == 0 {
		return false
	}
	x.drop(mount)
	return len(x.readers) > 0
}

// inTheWay returns whose lease must be given back before a mount reads, or changes the register.
func (x *register) inTheWay(mount blocks.PeerID, change bool) (blocks.PeerID, bool) {
	if h := x.lease.Holder; !h.IsZero() {
		return h, h != mount
	}
	if change && len(x.readers) > 0 {
		return x.readers[0].Holder, true
	}
	return blocks.PeerID{}, false
}

// disturbs reports whether a change is in the way of those who share the lease.
func disturbs(c blocks.Change) bool {
	bare := c.Seq == 0 && c.Snapshot == nil && len(c.Delta) == 0
	return c.Lease == blocks.LeaseAcquire || c.Delete || !c.Quiet && !bare
}

// free waits until no lease of another mount is in the way: it recalls it, or takes it from the dead.
func (m *Mount) free(ctx context.Context, id blocks.RegisterID, change bool) error {
	for range 20 {
		m.ring.mu.Lock()
		x := m.ring.regs[id]
		var holder *Mount
		held := false
		if x != nil {
			var who blocks.PeerID
			who, held = x.inTheWay(m.id, change)
			holder = m.ring.mounts[who]
		}
		m.ring.mu.Unlock()
		if !held {
			return nil
		}
		var f func(context.Context, blocks.RegisterID, bool)
		if holder != nil {
			holder.mu.Lock()
			if !holder.dead {
				f = holder.recall
			}
			holder.mu.Unlock()
		}
		if f == nil {
			m.ring.Fence(id)
			continue
		}
		f(ctx, id, !change)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return fmt.Errorf("%w: the lease of %s is not given back", blocks.ErrBusy, id.Short())
}

// Read is linearizable and recalls the lease of another mount first.
func (m *Mount) Read(ctx context.Context, id blocks.RegisterID, since blocks.Version) (blocks.Register, error) {
	return m.read(ctx, id, since, true)
}

// Peek is Read without the recall.
func (m *Mount) Peek(ctx context.Context, id blocks.RegisterID) (blocks.Register, error) {
	return m.read(ctx, id, 0, false)
}

func (m *Mount) read(ctx context.Context, id blocks.RegisterID, since blocks.Version, recall bool) (blocks.Register, error) {
	f, err := m.enter(ctx, id, nil)
	if err != nil {
		return blocks.Register{}, err
	}
	if f.Err != nil {
		return blocks.Register{}, f.Err
	}
	defer time.Sleep(f.Late)
	if recall {
		if err := m.free(ctx, id, false); err != nil {
			return blocks.Register{}, err
		}
	}
	m.ring.mu.Lock()
	defer m.ring.mu.Unlock()
	x := m.ring.regs[id]
	if x == nil {
		return blocks.Register{}, fmt.Errorf("%w: register %s is unknown", blocks.ErrUnavailable, id.Short())
	}
	if x.deleted {
		return x.show(id, since), fmt.Errorf("%w: register %s was deleted", blocks.ErrNotFound, id.Short())
	}
	return x.show(id, since), nil
}

// Lease tells who holds the lease; the dead lose it.
func (m *Mount) Lease(ctx context.Context, id blocks.RegisterID) (blocks.Lease, error) {
	f, err := m.enter(ctx, id, nil)
	if err != nil {
		return blocks.Lease{}, err
	}
	if f.Err != nil {
		return blocks.Lease{}, f.Err
	}
	m.ring.mu.Lock()
	x := m.ring.regs[id]
	if x == nil || x.deleted {
		m.ring.mu.Unlock()
		return blocks.Lease{}, fmt.Errorf("%w: register %s", blocks.ErrNotFound, id.Short())
	}
	lease, holder := x.lease, m.ring.mounts[x.lease.Holder]
	m.ring.mu.Unlock()
	if lease.Holder.IsZero() {
		return lease, nil
	}
	if holder != nil {
		holder.mu.Lock()
		ok := !holder.dead && holder.granted[id] == lease.Epoch
		holder.mu.Unlock()
		if ok {
			return lease, nil
		}
	}
	m.ring.Fence(id)
	return blocks.Lease{}, nil
}

func (x *register) show(id blocks.RegisterID, since blocks.Version) blocks.Register {
	r := blocks.Register{ID: id, Version: x.version, Lease: x.lease, Readers: slices.Clone(x.readers), Deleted: x.deleted, Applied: maps.Clone(x.applied)}
	if x.deleted {
		return r
	}
	r.Base, r.Snapshot = x.base, x.snapshot
	from := 0
	if since >= x.base && since > 0 {
		r.Base, r.Snapshot, from = since, nil, int(since-x.base)
	}
	r.Deltas = append([][]byte(nil), x.deltas[from:]...)
	return r
}

// Propose changes a register.
func (m *Mount) Propose(ctx context.Context, id blocks.RegisterID, c blocks.Change) (blocks.Register, error) {
	f, err := m.enter(ctx, id, &c)
	if err != nil {
		return blocks.Register{}, err
	}
	if disturbs(c) && m.ring.leave(id, m.id) {
		if err := m.free(ctx, id, true); err != nil {
			return blocks.Register{}, err
		}
	}
	r, err := m.propose(id, c)
	time.Sleep(f.Late)
	if f.Err != nil {
		return blocks.Register{}, f.Err
	}
	return r, err
}

func (m *Mount) propose(id blocks.RegisterID, c blocks.Change) (blocks.Register, error) {
	m.ring.mu.Lock()
	defer m.ring.mu.Unlock()
	x := m.ring.regs[id]
	if x == nil {
		if c.Base != 0 {
			return blocks.Register{}, fmt.Errorf("%w: register %s is unknown", blocks.ErrUnavailable, id.Short())
		}
		x = &register{applied: map[blocks.PeerID]uint64{}}
		m.ring.regs[id] = x
	}
	switch {
	case c.Seq > 0 && c.Seq <= x.applied[c.Origin]:
		return x.show(id, x.version), nil
	case x.deleted:
		return x.show(id, c.Base), fmt.Errorf("%w: register %s was deleted", blocks.ErrNotFound, id.Short())
	case c.Lease == blocks.LeaseLeave:
		x.readers = slices.DeleteFunc(slices.Clone(x.readers), func(l blocks.Lease) bool { return l == blocks.Lease{Holder: c.Origin, Epoch: c.Epoch} })
		return x.show(id, x.version), nil
	case c.Base != x.version:
		return x.show(id, c.Base), fmt.Errorf("%w: version %d", blocks.ErrConflict, x.version)
	}
	if _, held := x.inTheWay(c.Origin, disturbs(c)); held {
		return x.show(id, x.version), fmt.Errorf("%w: leased", blocks.ErrRefused)
	}
	m.mu.Lock()
	granted, known := m.granted[id]
	m.mu.Unlock()
	was := x.show(id, x.version)
	mine, _, _ := was.LeaseOf(m.id)
	x.change(c, !known || granted != mine.Epoch)
	if is := x.show(id, x.version); c.Lease == blocks.LeaseAcquire || c.Lease == blocks.LeaseShare {
		mine, _, _ = is.LeaseOf(m.id)
		m.mu.Lock()
		m.granted[id] = mine.Epoch
		m.mu.Unlock()
	}
	return x.show(id, x.version), nil
}

// change applies a change. renew: an acquisition by the holder is a new grant.
func (x *register) change(c blocks.Change, renew bool) {
	if c.Lease == blocks.LeaseShare && c.Seq == 0 {
		x.share(c.Origin, renew)
		return
	}
	x.version++
	if c.Seq > 0 {
		x.applied[c.Origin] = c.Seq
	}
	switch {
	case c.Snapshot != nil:
		x.base, x.snapshot, x.deltas = x.version, append([]byte{}, c.Snapshot...), nil
	default:
		x.deltas = append(x.deltas, append([]byte(nil), c.Delta...))
	}
	switch {
	case c.Lease == blocks.LeaseAcquire && (x.lease.Holder != c.Origin || renew):
		x.epoch++
		x.lease, x.readers = blocks.Lease{Holder: c.Origin, Epoch: x.epoch}, nil
	case c.Lease == blocks.LeaseShare:
		x.share(c.Origin, renew)
	case c.Lease == blocks.LeaseRelease && x.lease.Holder == c.Origin:
		x.lease = blocks.Lease{}
	}
	if c.Delete {
		x.deleted, x.snapshot, x.deltas, x.lease, x.readers = true, nil, nil, blocks.Lease{}, nil
	}
}

// share lets a mount read with others, unless it has the lease alone.
func (x *register) share(mount blocks.PeerID, renew bool) {
	if x.lease.Holder == mount || x.shares(mount) && !renew {
		return
	}
	x.epoch++
	x.drop(mount)
	x.readers = append(x.readers, blocks.Lease{Holder: mount, Epoch: x.epoch})
}

// drop takes from a mount what it holds.
func (x *register) drop(mount blocks.PeerID) {
	if x.lease.Holder == mount {
		x.lease = blocks.Lease{}
	}
	x.readers = slices.DeleteFunc(slices.Clone(x.readers), func(l blocks.Lease) bool { return l.Holder == mount })
}

// Clone returns a copy of all registers, without mounts and leases.
func (r *Ring) Clone() *Ring {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := NewRing()
	for id, x := range r.regs {
		y := *x
		y.applied = maps.Clone(x.applied)
		y.deltas = append([][]byte(nil), x.deltas...)
		n.regs[id] = &y
	}
	return n
}
