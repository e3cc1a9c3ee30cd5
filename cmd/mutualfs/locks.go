package main

import (
	"context"
	"crypto/rand"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/locks"
	"github.com/mutualfs/mutualfs/fs/tree"
	"github.com/mutualfs/mutualfs/overlay"
	"github.com/mutualfs/mutualfs/overlay/register"
)

// kindFreed is the call of a mount to another one that waits for a lock: it may have it now. The body is the
// ID of the lock register; the answer is empty.
const kindFreed overlay.Kind = 0x0603

// openLocks makes the advisory locks of a mount.
func (p *peer) openLocks() (*locks.Locks, error) {
	c := locks.Default()
	c.Registers, c.Mount, c.Root, c.Seal = p.registers, p.ring.Self(), p.dir.ring.root(), p.sealLocks
	c.SessionFile, c.Rand, c.Log = p.dir.file("locks.session"), rand.Reader, &p.log
	c.Tell = func(ctx context.Context, mount blocks.PeerID, id blocks.RegisterID) error {
		var e blocks.Encoder
		e.ID(id.ID)
		_, err := p.ring.Call(ctx, mount, overlay.Metadata, overlay.Call{Kind: kindFreed, Body: e.Buf})
		return err
	}
	return locks.New(c)
}

func (p *peer) sealLocks(id blocks.RegisterID) (locks.Sealer, error) {
	return tree.NewValueSealer(p.dir.volumeKey, id, rand.Reader)
}

func (p *peer) serveFreed(_ context.Context, _ blocks.PeerID, req overlay.Call) (overlay.Call, error) {
	d := blocks.NewDecoder(req.Body)
	id := blocks.RegisterID{ID: d.ID()}
	if err := d.Done(); err != nil {
		return overlay.Call{}, err
	}
	if v := p.volume.Load(); v != nil {
		v.locks.Freed(id)
	}
	return overlay.Call{}, nil
}

// recalls has the locks answer for their registers, the tree for the others.
type recalls struct {
	*register.Service
	locks *locks.Locks
}

// OnRecall is tree.Registers.
func (r recalls) OnRecall(f func(ctx context.Context, id blocks.RegisterID, read bool)) {
	r.Service.OnRecall(func(ctx context.Context, id blocks.RegisterID, read bool) {
		if !r.locks.Recall(ctx, id) {
			f(ctx, id, read)
		}
	})
}
