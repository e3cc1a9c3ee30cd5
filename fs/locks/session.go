package locks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/mutualfs/mutualfs/blocks"
)

// session is the register whose lease says that this process lives. It has no value. While the lease is
// this process's, the locks that name the session are; once it was taken, they are nobody's for ever.
type session struct {
	busy  chan struct{} // one at a time makes or renews it
	id    blocks.RegisterID
	epoch uint64
}

// alive returns the life to be named in registers; it makes a session, or finds out whether the one there is
// still holds, if that is not known. Locks that were lost with a session are marked.
func (l *Locks) alive(ctx context.Context) (life, error) {
	if x, ok := l.living(); ok {
		return x, nil
	}
	s := &l.session
	select {
	case s.busy <- struct{}{}:
	case <-ctx.Done():
		return life{}, context.Cause(ctx)
	}
	defer func() { <-s.busy }()
	for try := range maxTries {
		if try > 1 {
			if err := pause(ctx, maxPause); err != nil {
				return life{}, err
			}
		}
		if x, ok := l.living(); ok {
			return x, nil
		}
		l.mu.Lock()
		id := s.id
		l.mu.Unlock()
		var err error
		if id.IsZero() {
			err = l.begin(ctx)
		} else {
			err = l.renew(ctx, id)
		}
		if err != nil && !errors.Is(err, blocks.ErrConflict) {
			return life{}, fmt.Errorf("the session of the locks: %w", err)
		}
	}
	return life{}, fmt.Errorf("the session of the locks: %w", blocks.ErrBusy)
}

// living returns the life if it is known to go on.
func (l *Locks) living() (life, bool) {
	l.mu.Lock()
	id, epoch, x := l.session.id, l.session.epoch, l.life
	l.mu.Unlock()
	return x, !id.IsZero() && l.cfg.Registers.Holds(id, epoch)
}

// begin makes a session under an ID that nobody has used.
func (l *Locks) begin(ctx context.Context) error {
	var id blocks.RegisterID
	if _, err := io.ReadFull(l.cfg.Rand, id.ID[:]); err != nil {
		return err
	}
	if err := l.endFormer(ctx, id); err != nil {
		return err
	}
	r, err := l.cfg.Registers.Propose(ctx, id, blocks.Change{Origin: l.cfg.Mount, Seq: 1, Snapshot: []byte{}, Lease: blocks.LeaseAcquire})
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.session.id, l.session.epoch = id, r.Lease.Epoch
	l.life = life{l.cfg.Mount, id}
	return nil
}

// renew asks whether the session's lease was taken. If not, nothing has happened, and it is made trustworthy again.
func (l *Locks) renew(ctx context.Context, id blocks.RegisterID) error {
	r, err := l.cfg.Registers.Read(ctx, id, 0)
	ended := errors.Is(err, blocks.ErrNotFound)
	if err != nil && !ended {
		return err
	}
	if ended || r.Deleted || r.Lease.Holder != l.cfg.Mount {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.session.id = blocks.RegisterID{}
		l.life = life{}
		for _, sh := range l.shards {
			if !sh.leased {
				l.lose(sh)
			}
		}
		return nil
	}
	if r, err = l.cfg.Registers.Propose(ctx, id, blocks.Change{Base: r.Version, Origin: l.cfg.Mount, Lease: blocks.LeaseAcquire}); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.session.epoch = r.Lease.Epoch
	return nil
}

// lose marks all locks of this mount in a shard as lost. l.mu must be held.
func (l *Locks) lose(sh *shard) {
	if sh.n == 0 {
		return
	}
	l.log.Warn().Str("register", sh.id.Short()).Int("locks", sh.n).Msg("locks were lost with the contact to the ring")
	for _, list := range sh.own {
		for _, h := range list {
			l.lost[Lock{Ino: h.Ino, Kind: h.Kind, Owner: h.Owner}] = struct{}{}
		}
	}
	clear(sh.own)
	sh.n = 0
}

// endFormer deletes the session register of the process before, which a crash has left, and remembers the new one.
func (l *Locks) endFormer(ctx context.Context, id blocks.RegisterID) error {
	if l.cfg.SessionFile == "" {
		return nil
	}
	b, err := os.ReadFile(l.cfg.SessionFile)
	if err == nil && len(b) == blocks.IDSize {
		former := blocks.RegisterID{}
		copy(former.ID[:], b)
		l.background(func(ctx context.Context) error { return l.endSession(ctx, former) })
	}
	if err := os.WriteFile(l.cfg.SessionFile, id.ID[:], 0o600); err != nil {
		return fmt.Errorf("remember the session of the locks: %w", err)
	}
	return nil
}

// endSession deletes a session register: of a life that is over.
func (l *Locks) endSession(ctx context.Context, id blocks.RegisterID) error {
	for range maxTries {
		r, err := l.cfg.Registers.Read(ctx, id, 0)
		if errors.Is(err, blocks.ErrNotFound) || err == nil && r.Deleted {
			return nil
		}
		if err != nil {
			return err
		}
		_, err = l.cfg.Registers.Propose(ctx, id, blocks.Change{Base: r.Version, Origin: l.cfg.Mount, Delete: true})
		if err == nil || !errors.Is(err, blocks.ErrConflict) {
			return err
		}
	}
	return blocks.ErrBusy
}
