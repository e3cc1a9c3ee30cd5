package locks

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"syscall"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// shard is what this mount knows of one lock register. l.mu guards all but busy.
type shard struct {
	id   blocks.RegisterID
	seal Sealer
	busy chan struct{} // one step at a time

	own map[uint64][]Lock // this mount's locks: what counts, whatever the register says
	n   int

	known   bool // version, held and waits are those of the register, as of the last step
	version blocks.Version
	held    []entry // of other mounts
	waits   []entry // of all mounts, first come first
	dirty   bool    // the register may say something else of this mount than own does
	marks   uint64  // how often it became so: a proposal settles only what was so when it was made

	leased  bool // the shard's lease is this mount's: own is all there is
	closed  bool // it is being recalled
	doubt   bool // a change under the lease was refused: somebody may have taken it
	looking bool // the worker is at it
	epoch   uint64
	noLease time.Time           // no lease is asked for before
	fresh   map[uint64]struct{} // inodes that no other mount can have changed under a lock since the lease began

	waiters []*waiter
	change  chan struct{} // closed at the next change; nil: nobody looks
}

// Bounds of a step.
const (
	maxTries  = 32
	tryPause  = 5 * time.Millisecond // before the second try, doubled up to maxPause
	maxPause  = 200 * time.Millisecond
	closeWait = 50 * time.Millisecond // how long a try waits for the end of a description whose descriptor was closed just now
	closeNear = 200 * time.Millisecond
)

func (sh *shard) mark() {
	sh.dirty = true
	sh.marks++
}

func (sh *shard) moved() {
	if sh.change != nil {
		close(sh.change)
		sh.change = nil
	}
}

// inMemory reports whether memory alone may decide. l.mu must be held.
func (l *Locks) inMemory(sh *shard) bool {
	return sh.leased && !sh.closed && l.cfg.Registers.Holds(sh.id, sh.epoch)
}

// fast answers from memory, or not at all.
func (l *Locks) fast(sh *shard, r request, lock bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.inMemory(sh) {
		return ErrWait
	}
	if lock {
		if _, ok := sh.fresh[r.want.Ino]; !ok {
			return ErrWait
		}
	}
	p := l.plan(sh, r)
	if p.err == syscall.EAGAIN && l.closingNow(*r.want) {
		return ErrWait
	}
	l.commit(sh, p)
	return p.err
}

// step carries a request out where memory alone does not suffice. release: the lease is given back with it.
func (l *Locks) step(ctx context.Context, sh *shard, r request, release bool) error {
	err := l.steps(ctx, sh, r, release)
	if err != nil && r.want != nil && r.want.Type == Unlock && !errors.Is(err, syscall.ENOLCK) {
		// For its owner the lock is gone whatever becomes of the others' knowledge; the worker goes on trying.
		l.mu.Lock()
		l.drop(sh, *r.want)
		l.mu.Unlock()
		l.poke()
	}
	return err
}

func (l *Locks) steps(ctx context.Context, sh *shard, r request, release bool) error {
	select {
	case sh.busy <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("lock register %s is in use: %w", sh.id.Short(), context.Cause(ctx))
	}
	defer func() { <-sh.busy }()
	var last error
	fresh := false
	for try := range maxTries {
		if try > 1 {
			if err := pause(ctx, min(tryPause<<min(try, 10), maxPause)); err != nil {
				return errors.Join(err, last)
			}
		}
		done, err := l.try(ctx, sh, r, release, &fresh)
		if done {
			return err
		}
		last = err
	}
	return fmt.Errorf("lock register %s: %w: it changes too fast", sh.id.Short(), blocks.ErrBusy)
}

// try is one attempt of a step. fresh says that the register was read in this step.
func (l *Locks) try(ctx context.Context, sh *shard, r request, release bool, fresh *bool) (done bool, err error) {
	if err := l.prepare(ctx, sh, r, release, fresh); err != nil {
		return true, err
	}
	l.mu.Lock()
	if sh.leased && !release {
		p := l.plan(sh, r)
		l.commit(sh, p)
		l.mu.Unlock()
		return true, p.err
	}
	if !sh.leased && !sh.known { // lost meanwhile
		l.mu.Unlock()
		return false, blocks.ErrConflict
	}
	l.bury(sh)
	p := l.plan(sh, r)
	next, moved := l.next(sh, p)
	switch {
	case !moved && !release && !*fresh && (p.err != nil || r.want == nil):
		sh.known = false // what it was denied for may be gone
		l.mu.Unlock()
		return false, blocks.ErrConflict
	case !moved && !release:
		l.commit(sh, p)
		l.mu.Unlock()
		return true, p.err
	}
	c, marks := blocks.Change{Base: sh.version, Origin: l.cfg.Mount}, sh.marks
	switch {
	case release:
		c.Lease = blocks.LeaseRelease
	case l.wantLease(sh, next):
		c.Lease = blocks.LeaseAcquire
	}
	l.mu.Unlock()
	if c.Snapshot, err = sh.seal.Seal(next.encode()); err != nil {
		return true, err
	}
	got, err := l.cfg.Registers.Propose(ctx, sh.id, c)
	return l.settle(sh, p, marks, next, c, got, err)
}

// prepare makes sure that a plan can be made: the lease is sure, or the life is and the register is known.
func (l *Locks) prepare(ctx context.Context, sh *shard, r request, release bool, fresh *bool) error {
	l.mu.Lock()
	leased := sh.leased
	l.mu.Unlock()
	if leased {
		if err := l.confirm(ctx, sh); err != nil {
			return err
		}
	}
	l.mu.Lock()
	leased = sh.leased
	l.mu.Unlock()
	if leased && !release {
		return nil
	}
	if _, err := l.alive(ctx); err != nil {
		return err
	}
	l.mu.Lock()
	known := sh.known || sh.leased
	l.mu.Unlock()
	if known {
		return nil
	}
	reg, err := l.cfg.Registers.Read(ctx, sh.id, 0)
	if err != nil {
		return fmt.Errorf("read lock register %s: %w", sh.id.Short(), err)
	}
	*fresh = true
	return l.adopt(sh, reg)
}

// settle takes what became of a proposal.
func (l *Locks) settle(sh *shard, p *plan, marks uint64, next value, c blocks.Change, got blocks.Register, err error) (bool, error) {
	if err != nil {
		l.mu.Lock()
		sh.known, sh.dirty, sh.doubt = false, true, sh.leased
		l.mu.Unlock()
		switch {
		case errors.Is(err, blocks.ErrConflict), errors.Is(err, blocks.ErrRefused):
			return false, err
		}
		return true, fmt.Errorf("change lock register %s: %w", sh.id.Short(), err)
	}
	l.mu.Lock()
	if p.own != nil && l.stale(next) { // the session ended meanwhile: what was agreed names a life that is over
		sh.known, sh.dirty = false, true
		l.mu.Unlock()
		return false, blocks.ErrConflict
	}
	sh.version, sh.known, sh.dirty = got.Version, true, sh.marks != marks
	sh.waits = next.waits
	sh.held = slices.DeleteFunc(next.held, func(e entry) bool { return e.life == l.life })
	switch c.Lease {
	case blocks.LeaseRelease:
		sh.leased = false
	case blocks.LeaseAcquire:
		if got.Lease.Holder == l.cfg.Mount {
			sh.leased, sh.epoch = true, got.Lease.Epoch
			clear(sh.fresh)
		}
	}
	l.commit(sh, p)
	tell := l.grantable(sh)
	l.mu.Unlock()
	for _, m := range tell {
		l.tell(m, sh.id)
	}
	return true, p.err
}

// stale reports whether v names a former life of this mount.
func (l *Locks) stale(v value) bool {
	for _, list := range [][]entry{v.held, v.waits} {
		for _, e := range list {
			if e.Mount == l.cfg.Mount && e.life != l.life {
				return true
			}
		}
	}
	return false
}

// bury drops what lives that are over have left. l.mu must be held.
func (l *Locks) bury(sh *shard) {
	n := len(sh.held) + len(sh.waits)
	dead := func(e entry) bool { return l.isDead(e.life) }
	sh.held, sh.waits = slices.DeleteFunc(sh.held, dead), slices.DeleteFunc(sh.waits, dead)
	sh.dirty = sh.dirty || len(sh.held)+len(sh.waits) < n
}

// next is the value that the register gets by a plan, and whether it differs from what is there. l.mu must be held.
func (l *Locks) next(sh *shard, p *plan) (v value, moved bool) {
	moved = sh.dirty || sh.leased || len(p.grants) > 0
	v.held = slices.Clone(sh.held)
	inos := slices.Collect(maps.Keys(sh.own))
	for ino := range p.own {
		if _, ok := sh.own[ino]; !ok {
			inos = append(inos, ino)
		}
	}
	slices.Sort(inos)
	for _, ino := range inos {
		for _, h := range p.list(sh, ino) {
			v.held = append(v.held, entry{life: l.life, Lock: h})
		}
	}
	waiting := map[uint64]*waiter{}
	for _, w := range sh.waiters {
		if !w.gone && !slices.ContainsFunc(p.grants, func(g grant) bool { return g.w == w }) {
			waiting[w.ticket] = w
		}
	}
	for _, e := range sh.waits {
		if e.Mount == l.cfg.Mount {
			if e.life != l.life || waiting[e.Ticket] == nil {
				moved = true
				continue
			}
			delete(waiting, e.Ticket)
		}
		v.waits = append(v.waits, e)
	}
	for _, w := range sh.waiters {
		if waiting[w.ticket] == w && len(v.waits) < l.cfg.MaxLocks {
			v.waits = append(v.waits, entry{life: l.life, Ticket: w.ticket, Lock: w.want})
			moved = true
		}
	}
	return v, moved
}

// adopt takes over what a read returned. What it says of this life is not looked at: own is what counts.
func (l *Locks) adopt(sh *shard, r blocks.Register) error {
	b, err := sh.seal.Open(r.Snapshot)
	if err != nil {
		return fmt.Errorf("lock register %s: %w", sh.id.Short(), err)
	}
	v, err := decodeValue(b)
	if err != nil {
		return fmt.Errorf("lock register %s: %w", sh.id.Short(), err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	sh.known, sh.version, sh.waits = true, r.Version, v.waits
	sh.held = sh.held[:0:0]
	var mine []Lock
	for _, e := range v.held {
		switch {
		case e.Mount != l.cfg.Mount:
			sh.held = append(sh.held, e)
		case e.life == l.life:
			mine = append(mine, e.Lock)
		default:
			sh.dirty = true // of a former process: gone with the next change
		}
	}
	l.keep(sh, mine)
	return nil
}

// keep holds own against what the register has of this life: others have honoured that, and nothing else. While
// the life goes on the two differ only if a lease was taken from this mount: what was known to it alone is lost. l.mu must be held.
func (l *Locks) keep(sh *shard, mine []Lock) {
	for ino, list := range sh.own {
		for _, h := range list {
			if slices.ContainsFunc(mine, func(x Lock) bool {
				return same(x, h) && x.Type >= h.Type && x.Start <= h.Start && h.End <= x.End
			}) {
				continue
			}
			l.log.Warn().Str("register", sh.id.Short()).Uint64("ino", ino).Msg("a lock was lost with the contact to the ring")
			l.lost[Lock{Ino: ino, Kind: h.Kind, Owner: h.Owner}] = struct{}{}
		}
	}
	for k := range l.lost {
		list := sh.own[k.Ino]
		n := len(list)
		list = slices.DeleteFunc(slices.Clone(list), func(h Lock) bool { return same(h, k) })
		if len(list) < n {
			sh.dirty = true
			sh.n -= n - len(list)
			sh.own[k.Ino] = list
			if len(list) == 0 {
				delete(sh.own, k.Ino)
			}
		}
	}
}

// drop ends an owner's locks in memory at once; the worker tells it to the others. l.mu must be held.
func (l *Locks) drop(sh *shard, want Lock) {
	p := &plan{own: map[uint64][]Lock{}, n: sh.n}
	p.add(sh, grant{want, 0, nil})
	l.commit(sh, p)
	sh.mark()
}

// confirm makes sure that the lease which this mount believes to have was never taken. If it was, the locks are lost.
func (l *Locks) confirm(ctx context.Context, sh *shard) error {
	for range maxTries {
		l.mu.Lock()
		sure, epoch := !sh.leased || !sh.doubt && l.cfg.Registers.Holds(sh.id, sh.epoch), sh.epoch
		l.mu.Unlock()
		if sure {
			return nil
		}
		r, err := l.cfg.Registers.Read(ctx, sh.id, 0)
		if err != nil {
			return fmt.Errorf("read lock register %s: %w", sh.id.Short(), err)
		}
		// One above is this mount's own renewal, whose answer was lost: taking the lease away leaves nobody with it.
		if r.Lease.Holder != l.cfg.Mount || r.Lease.Epoch > epoch+1 {
			l.mu.Lock()
			sh.leased, sh.doubt = false, false
			l.mu.Unlock()
			return l.adopt(sh, r)
		}
		l.mu.Lock()
		sh.epoch, sh.version, sh.doubt = r.Lease.Epoch, r.Version, false
		l.mu.Unlock()
		r, err = l.cfg.Registers.Propose(ctx, sh.id, blocks.Change{Base: r.Version, Origin: l.cfg.Mount, Lease: blocks.LeaseAcquire})
		switch {
		case err == nil:
			l.mu.Lock()
			sh.epoch, sh.version = r.Lease.Epoch, r.Version
			l.mu.Unlock()
		case !errors.Is(err, blocks.ErrConflict):
			return fmt.Errorf("renew the lease of lock register %s: %w", sh.id.Short(), err)
		}
	}
	return fmt.Errorf("lock register %s: %w", sh.id.Short(), blocks.ErrBusy)
}

// sure makes sure that this mount's locks in a shard are its own still, or marks them as lost.
func (l *Locks) sure(ctx context.Context, sh *shard) error {
	l.mu.Lock()
	leased := sh.leased
	ok := leased && l.cfg.Registers.Holds(sh.id, sh.epoch)
	l.mu.Unlock()
	if ok {
		return nil
	}
	if !leased {
		_, err := l.alive(ctx)
		return err
	}
	select {
	case sh.busy <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-sh.busy }()
	return l.confirm(ctx, sh)
}

// pause waits about d.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d/2 + rand.N(d/2+1))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
