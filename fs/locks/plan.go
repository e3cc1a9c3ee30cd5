package locks

import (
	"slices"
	"syscall"
	"time"
)

// request is what one call wants of a shard. The zero request only grants what waiters can have.
type request struct {
	want   *Lock   // a lock, or of type Unlock the end of the owner's locks in the range
	handle uint64  // the open file description that asks
	w      *waiter // set if the call is to wait
}

// waiter is a blocking call that has not got its lock.
type waiter struct {
	want   Lock
	handle uint64
	ticket uint64
	queued bool
	gone   bool          // the caller has given up
	done   chan struct{} // closed when the lock was granted
	got    bool
}

// grant is a lock that a plan sets.
type grant struct {
	Lock
	handle uint64
	w      *waiter
}

// plan is what a step will do: it is made on what is known, agreed if others share the shard, and then done.
type plan struct {
	grants []grant
	own    map[uint64][]Lock // of the inodes that the grants change
	n      int               // how many locks this mount has afterwards
	err    error             // of the request
}

// errBlocked: the request has joined the waiters.
var errBlocked error = syscall.EINPROGRESS

func (p *plan) list(sh *shard, ino uint64) []Lock {
	if list, ok := p.own[ino]; ok {
		return list
	}
	return sh.own[ino]
}

func (p *plan) add(sh *shard, g grant) {
	before := p.list(sh, g.Ino)
	after := set(before, g.Lock)
	p.own[g.Ino] = after
	p.n += len(after) - len(before)
	p.grants = append(p.grants, g)
}

// plan decides about the request and then, in their order, about the waiters. l.mu must be held.
func (l *Locks) plan(sh *shard, r request) *plan {
	p := &plan{own: map[uint64][]Lock{}, n: sh.n}
	switch {
	case r.want == nil, r.w != nil && r.w.queued:
	case r.want.Type == Unlock:
		p.add(sh, grant{*r.want, r.handle, nil})
		if p.n > sh.n && l.full(sh, p) { // a hole in a lock makes two of one
			return &plan{own: map[uint64][]Lock{}, n: sh.n, err: syscall.ENOLCK}
		}
	case !l.blocked(sh, p, *r.want) && (r.w == nil || !l.yields(sh, p, *r.want, 0)):
		p.add(sh, grant{*r.want, r.handle, nil})
		if l.full(sh, p) {
			return &plan{own: map[uint64][]Lock{}, n: sh.n, err: syscall.ENOLCK}
		}
	case r.w == nil:
		l.forgo(sh, p, r)
		p.err = syscall.EAGAIN
	case l.deadlock(*r.want):
		p.err = syscall.EDEADLK
	case l.waiting >= l.cfg.MaxWaiters:
		p.err = syscall.ENOLCK
	default:
		l.ticket++
		r.w.queued, r.w.ticket = true, l.ticket
		sh.waiters = append(sh.waiters, r.w)
		l.forgo(sh, p, r)
		l.waiting++
		p.err = errBlocked
	}
	for _, w := range sh.waiters {
		if !w.gone && !l.blocked(sh, p, w.want) && !l.yields(sh, p, w.want, w.ticket) && !l.full(sh, p) {
			p.add(sh, grant{w.want, w.handle, w})
		}
	}
	if r.w != nil && r.w.queued {
		p.err = errBlocked
		if slices.ContainsFunc(p.grants, func(g grant) bool { return g.w == r.w }) {
			p.err = nil
		}
	}
	return p
}

// forgo ends the lock that the request was to change, as flock(2) does when the new one cannot be had. Range locks stay.
func (l *Locks) forgo(sh *shard, p *plan, r request) {
	if r.want.Kind != Flock {
		return
	}
	for _, h := range p.list(sh, r.want.Ino) {
		if same(h, *r.want) && h.Type != r.want.Type {
			h.Type = Unlock
			p.add(sh, grant{h, r.handle, nil})
			return
		}
	}
}

func (l *Locks) full(sh *shard, p *plan) bool { return p.n+len(sh.held) > l.cfg.MaxLocks }

// blocked reports whether a lock of another owner is in the way. If it is another mount's, that mount's life is looked at.
func (l *Locks) blocked(sh *shard, p *plan, want Lock) bool {
	_, found := l.blocker(sh, p, want)
	return found
}

func (l *Locks) blocker(sh *shard, p *plan, want Lock) (Lock, bool) {
	for _, h := range p.list(sh, want.Ino) {
		if !same(h, want) && clash(h, want) {
			return h, true
		}
	}
	for _, e := range sh.held {
		if clash(e.Lock, want) {
			l.suspect(e.life)
			found := e.Lock
			found.Pid = 0 // of another machine
			return found, true
		}
	}
	return Lock{}, false
}

// yields reports whether another mount has waited longer for a lock that it could have now, and that the
// wanted one would take away. Only calls that wait give way: what is free is not refused to the others.
func (l *Locks) yields(sh *shard, p *plan, want Lock, ticket uint64) bool {
	for _, e := range sh.waits {
		if e.life == l.life {
			if ticket != 0 && e.Ticket == ticket {
				return false
			}
			continue
		}
		if clash(e.Lock, want) && l.ready(sh, p, e) {
			l.suspect(e.life)
			return true
		}
	}
	return false
}

// ready reports whether another mount's wait could end now.
func (l *Locks) ready(sh *shard, p *plan, e entry) bool {
	for _, h := range p.list(sh, e.Ino) {
		if clash(h, e.Lock) {
			return false
		}
	}
	for _, h := range sh.held {
		if (h.life != e.life || h.Owner != e.Owner) && clash(h.Lock, e.Lock) {
			return false
		}
	}
	return true
}

// deadlock reports whether the owner of want, if it waited, would wait for itself: by the range locks and waiting calls
// of this mount. flock knows no deadlocks.
func (l *Locks) deadlock(want Lock) bool {
	if want.Kind != Posix {
		return false
	}
	seen := map[uint64]bool{}
	next := []Lock{want}
	for len(next) > 0 {
		x := next[0]
		next = next[1:]
		for _, h := range l.shardOf(x.Ino).own[x.Ino] {
			if same(h, x) || !clash(h, x) || seen[h.Owner] {
				continue
			}
			if h.Owner == want.Owner {
				return true
			}
			seen[h.Owner] = true
			next = append(next, l.waitsOf(h.Owner)...)
		}
	}
	return false
}

// waitsOf returns what an owner of this mount waits for.
func (l *Locks) waitsOf(owner uint64) []Lock {
	var out []Lock
	for _, sh := range l.shards {
		for _, w := range sh.waiters {
			if w.want.Kind == Posix && w.want.Owner == owner && !w.gone {
				out = append(out, w.want)
			}
		}
	}
	return out
}

// commit does what a plan says. l.mu must be held. A lock whose caller has given up meanwhile is not kept.
func (l *Locks) commit(sh *shard, p *plan) {
	for _, g := range p.grants {
		if g.w != nil && g.w.gone {
			sh.mark()
			continue
		}
		before := len(sh.own[g.Ino])
		list := set(sh.own[g.Ino], g.Lock)
		if len(list) == 0 {
			delete(sh.own, g.Ino)
		} else {
			sh.own[g.Ino] = list
		}
		sh.n += len(list) - before
		l.handle(g)
		if g.w != nil {
			g.w.got = true
			l.unqueue(sh, g.w)
			close(g.w.done)
		}
	}
	sh.moved()
}

func (l *Locks) unqueue(sh *shard, w *waiter) {
	if i := slices.Index(sh.waiters, w); i >= 0 {
		sh.waiters = slices.Delete(sh.waiters, i, i+1)
		l.waiting--
	}
}

// handle notes which open file description a lock belongs to.
func (l *Locks) handle(g grant) {
	if g.handle == 0 || g.Type == Unlock {
		return
	}
	set := l.handles[g.handle]
	if set == nil {
		set = map[Lock]struct{}{}
		l.handles[g.handle] = set
	}
	set[Lock{Ino: g.Ino, Kind: g.Kind, Owner: g.Owner}] = struct{}{}
}

// wantLease says whether the shard's lease is worth asking for: nobody else has anything in it.
func (l *Locks) wantLease(sh *shard, next value) bool {
	foreign := func(e entry) bool { return e.life != l.life }
	return !time.Now().Before(sh.noLease) && !slices.ContainsFunc(next.held, foreign) && !slices.ContainsFunc(next.waits, foreign)
}
