package locks

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// maxDead bounds how many ended sessions are remembered; to forget one costs to ask again.
const maxDead = 1024

// Run looks after waiting calls, what could not be told to the others yet, and the lives of other mounts, until ctx
// ends; then it gives everything back.
func (l *Locks) Run(ctx context.Context) error {
	l.mu.Lock()
	l.bg = ctx
	early := l.early
	l.early, l.ran = nil, true
	l.mu.Unlock()
	for _, f := range early {
		l.background(f)
	}
	tick := time.NewTicker(l.cfg.PollEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			l.look(true)
		case <-l.wake:
			l.look(false)
		}
	}
	l.mu.Lock()
	l.bg = nil
	l.mu.Unlock()
	l.wg.Wait()
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.cfg.StepTimeout)
	defer cancel()
	l.end(end)
	return context.Cause(ctx)
}

// poke has the worker look what there is to do.
func (l *Locks) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// background runs f while Run runs, or as soon as it does; an error is logged, what matters is tried again by the worker.
func (l *Locks) background(f func(ctx context.Context) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	bg := l.bg
	if !l.ran {
		l.early = append(l.early, f)
	}
	if bg == nil {
		return
	}
	l.wg.Go(func() {
		ctx, cancel := context.WithTimeout(bg, l.cfg.StepTimeout)
		defer cancel()
		if err := f(ctx); err != nil && bg.Err() == nil {
			l.log.Debug().Err(err).Msg("locks: work in the background")
		}
	})
}

// look starts what is due: with all, also the waiting calls look for themselves.
func (l *Locks) look(all bool) {
	l.mu.Lock()
	var due []*shard
	for _, sh := range l.shards {
		if sh.looking || (sh.leased || !sh.dirty) && !(all && len(sh.waiters) > 0) {
			continue
		}
		sh.looking = true
		due = append(due, sh)
	}
	asks := l.ask
	l.ask = map[life]struct{}{}
	now := time.Now()
	for h, at := range l.closing {
		if now.Sub(at) > closeNear {
			delete(l.closing, h)
		}
	}
	for x, at := range l.suspects {
		if now.Sub(at) > 16*l.cfg.AliveEvery {
			delete(l.suspects, x)
		}
	}
	l.mu.Unlock()
	for _, sh := range due {
		l.again(sh)
	}
	for x := range asks {
		l.background(func(ctx context.Context) error { return l.lookAt(ctx, x) })
	}
}

// again has a shard's waiters, and what is not agreed yet, tried once more. sh.looking is set.
func (l *Locks) again(sh *shard) {
	l.background(func(ctx context.Context) error {
		err := l.step(ctx, sh, request{}, false)
		l.mu.Lock()
		sh.looking = false
		l.mu.Unlock()
		return err
	})
}

// suspect asks the worker to find out whether the mount that is in the way lives. l.mu must be held.
func (l *Locks) suspect(x life) {
	if time.Since(l.suspects[x]) < l.cfg.AliveEvery {
		return
	}
	l.suspects[x] = time.Now()
	l.ask[x] = struct{}{}
	l.poke()
}

func (l *Locks) isDead(x life) bool {
	_, dead := l.dead[x.Session]
	return dead
}

// lookAt finds out whether a life goes on. If not, its locks and waits are dropped, and its register ends.
func (l *Locks) lookAt(ctx context.Context, x life) error {
	lease, err := l.cfg.Registers.Lease(ctx, x.Session)
	if err != nil && !errors.Is(err, blocks.ErrNotFound) {
		return err
	}
	if err == nil && lease.Holder == x.Mount {
		return nil
	}
	l.log.Info().Str("mount", x.Mount.Short()).Msg("the locks of a mount that has gone are dropped")
	l.mu.Lock()
	if len(l.dead) >= maxDead {
		clear(l.dead)
	}
	l.dead[x.Session] = struct{}{}
	var due []*shard
	for _, sh := range l.shards {
		of := func(e entry) bool { return e.life == x }
		if slices.ContainsFunc(sh.held, of) || slices.ContainsFunc(sh.waits, of) {
			due = append(due, sh)
		}
	}
	l.mu.Unlock()
	for _, sh := range due {
		if err := l.step(ctx, sh, request{}, false); err != nil {
			return err
		}
	}
	if err == nil {
		return l.endSession(ctx, x.Session)
	}
	return nil
}

// Recall gives a lease back because another mount wants the register: what is known here alone is published with it. It
// reports whether the register is one of the locks'.
func (l *Locks) Recall(ctx context.Context, id blocks.RegisterID) bool {
	l.mu.Lock()
	if id == l.session.id && !id.IsZero() {
		l.mu.Unlock()
		return true // that it was asked shows that the process lives; the lease stays
	}
	sh := l.byID(id)
	if sh == nil {
		l.mu.Unlock()
		return false
	}
	sh.closed, sh.noLease = true, time.Now().Add(l.cfg.LeasePause)
	l.mu.Unlock()
	err := l.step(ctx, sh, request{}, true)
	l.mu.Lock()
	sh.closed = false
	l.mu.Unlock()
	if err != nil {
		l.log.Warn().Err(err).Str("register", id.Short()).Msg("the lease of a lock register could not be given back")
	}
	return true
}

func (l *Locks) byID(id blocks.RegisterID) *shard {
	for _, sh := range l.shards {
		if sh.id == id {
			return sh
		}
	}
	return nil
}

// Freed is told by another mount: a lock that is waited for here may be had now.
func (l *Locks) Freed(id blocks.RegisterID) {
	l.mu.Lock()
	sh := l.byID(id)
	if sh == nil {
		l.mu.Unlock()
		return
	}
	sh.known = sh.leased
	l.mu.Unlock()
	l.background(func(ctx context.Context) error { return l.step(ctx, sh, request{}, false) })
}

// grantable returns the other mounts that wait for a lock which they could have now. l.mu must be held.
func (l *Locks) grantable(sh *shard) []blocks.PeerID {
	var out []blocks.PeerID
	p := &plan{}
	for _, e := range sh.waits {
		if e.Mount != l.cfg.Mount && !slices.Contains(out, e.Mount) && l.ready(sh, p, e) {
			out = append(out, e.Mount)
		}
	}
	return out
}

func (l *Locks) tell(m blocks.PeerID, id blocks.RegisterID) {
	if l.cfg.Tell == nil {
		return
	}
	l.background(func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, l.cfg.TellTimeout)
		defer cancel()
		return l.cfg.Tell(ctx, m, id)
	})
}

// closingNow reports whether a flock that is in the way belongs to a description of which a descriptor was closed just
// now: the kernel tells the end of a description a little after close(2) has returned. l.mu must be held.
func (l *Locks) closingNow(want Lock) bool {
	if want.Kind != Flock || len(l.closing) == 0 {
		return false
	}
	for h, at := range l.closing {
		for k := range l.handles[h] {
			if k.Ino == want.Ino && k.Kind == Flock && k.Owner != want.Owner && time.Since(at) < closeNear {
				return true
			}
		}
	}
	return false
}

// closingSoon waits a moment for such a description's end, and reports whether it is worth to try again.
func (l *Locks) closingSoon(ctx context.Context, want Lock) bool {
	l.mu.Lock()
	if !l.closingNow(want) {
		l.mu.Unlock()
		return false
	}
	sh := l.shardOf(want.Ino)
	if sh.change == nil {
		sh.change = make(chan struct{})
	}
	change := sh.change
	l.mu.Unlock()
	t := time.NewTimer(closeWait)
	defer t.Stop()
	select {
	case <-change:
		return true
	case <-t.C:
	case <-ctx.Done():
	}
	return false
}

// end drops all locks of this mount, gives the leases back and deletes the session.
func (l *Locks) end(ctx context.Context) {
	l.mu.Lock()
	session := l.session.id
	var due []*shard
	for _, sh := range l.shards {
		if sh.leased || sh.n > 0 || sh.dirty || len(sh.waiters) > 0 {
			due = append(due, sh)
		}
		for _, w := range sh.waiters {
			w.gone = true
			l.waiting--
		}
		sh.waiters = nil
		sh.dirty = sh.dirty || sh.n > 0
		clear(sh.own)
		sh.n, sh.closed = 0, true
	}
	l.mu.Unlock()
	if session.IsZero() {
		return
	}
	slots := make(chan struct{}, formatParallel)
	var wg sync.WaitGroup
	for _, sh := range due {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if err := l.step(ctx, sh, request{}, true); err != nil {
				l.log.Debug().Err(err).Str("register", sh.id.Short()).Msg("release a lock register")
			}
		})
	}
	wg.Wait()
	if err := l.endSession(ctx, session); err != nil {
		l.log.Debug().Err(err).Msg("end the session of the locks")
	}
}
