package tree

import (
	"context"
	"syscall"

	"github.com/mutualfs/mutualfs/blocks"
)

// Bounds of a register's value. The register service bounds them at 8 MiB and 8192 deltas.
const (
	minTail  = 64 << 10 // deltas of fewer bytes are not worth a snapshot
	maxTail  = 1024     // deltas since a snapshot
	maxValue = 7 << 20  // bytes of a snapshot and its deltas
	maxGrow  = 6 << 20  // bytes of a snapshot beyond which nothing is added to a container
)

// heavy reports whether the next commit should replace the value by a snapshot. mu must be held.
func (c *container) heavy() bool {
	return c.shrunk || c.tailLen > max(minTail, c.snapLen) || c.tailN > maxTail || c.tailLen > 0 && c.snapLen+c.tailLen > maxValue
}

// fits refuses what would let a full container grow. mu must be held.
func (c *container) fits(o *Op) error {
	if c.snapLen <= maxGrow || c.shrunk {
		return nil
	}
	switch o.Kind {
	case OpMake, OpLink, OpSetXattr, OpWriteback:
		return syscall.ENOSPC
	case OpMove:
		if o.Entry.Ino != 0 {
			return syscall.ENOSPC
		}
	}
	return nil
}

// compact replaces snapshot and deltas by a snapshot, if that is due: what a mount without a lease commits
// are deltas. busy must be held.
func (t *Tree) compact(ctx context.Context, c *container) error {
	c.mu.Lock()
	if c.st == nil || !c.heavy() || len(c.ops) > 0 || t.fast(c) {
		c.mu.Unlock()
		return nil
	}
	clear := encodeState(c.st)
	ch := blocks.Change{Base: c.version, Origin: t.cfg.Mount, Quiet: true}
	c.mu.Unlock()
	var err error
	if ch.Snapshot, err = c.seal.seal(sealSnapshot, clear); err != nil {
		return err
	}
	seq := t.j.number()
	ch.Seq = uint64(seq)
	r, err := t.propose(ctx, c.id, ch)
	if overtaken(err) {
		c.fence()
		return t.validate(ctx, c)
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	t.agreed(c, r, ch, seq)
	c.mu.Unlock()
	return nil
}
