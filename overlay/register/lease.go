package register

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

// trust is what a mount knows of one peer's knowledge that it lives: an
// unbroken run of signs of life, each sent before the one before it had lost its worth.
type trust struct {
	mu    sync.Mutex
	since atomic.Int64 // when the run's first sign was sent
	last  atomic.Int64 // when its last answered sign was sent; 0: none
}

// ack notes at time now that the peer answered the sign sent at sent.
func (t *trust) ack(sent, now int64, worth time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	last := t.last.Load()
	if sent <= last {
		return
	}
	if last == 0 || now >= last+int64(worth) {
		t.since.Store(sent) // before last: who sees the new last sees the new run
	}
	t.last.Store(sent)
}

// unbroken reports whether the run that began before at still holds.
func (t *trust) unbroken(at, now int64, worth time.Duration) bool {
	last := t.last.Load()
	return last != 0 && now < last+int64(worth) && t.since.Load() <= at
}

// hold is a lease that this process was granted.
type hold struct {
	epoch   uint64
	shared  bool
	at      int64 // when the request that brought the grant was sent
	tag     tag   // of the newest state seen with this lease
	view    view
	members []*trust // of view.Members
	prev    []*trust // of view.Prev
}

// flight is the calls of Propose on one register that have not returned.
type flight struct {
	calls    int
	released bool   // one of them gives the lease back
	view     uint64 // a coordinator has told of a view with this number meanwhile
}

// leases are those of this mount.
type leases struct {
	mu       sync.RWMutex
	held     map[blocks.RegisterID]*hold
	flights  map[blocks.RegisterID]*flight
	recalls  map[blocks.RegisterID]chan struct{} // closed when the recall's callback has returned
	onRecall func(ctx context.Context, id blocks.RegisterID, read bool)
	closed   bool // after Goodbye nothing is held any more
}

func (l *leases) init() {
	l.held = map[blocks.RegisterID]*hold{}
	l.flights = map[blocks.RegisterID]*flight{}
	l.recalls = map[blocks.RegisterID]chan struct{}{}
}

// Holds reports whether this mount has the lease of the register that was granted with the epoch, alone or with others,
// and may trust it now: this process was granted it, has given it to nobody since, and a
// majority of the register's view has known without a break since before the grant that the mount lives. It
// costs no call. A lease that was granted to an earlier process, or whose trust
// broke, must be acquired again.
func (s *Service) Holds(id blocks.RegisterID, epoch uint64) bool {
	s.leases.mu.RLock()
	defer s.leases.mu.RUnlock()
	h := s.leases.held[id]
	return h != nil && h.epoch == epoch && s.trusted(h)
}

func (s *Service) holdsAny(id blocks.RegisterID) bool {
	s.leases.mu.RLock()
	defer s.leases.mu.RUnlock()
	h := s.leases.held[id]
	return h != nil && s.trusted(h)
}

func (s *Service) trusted(h *hold) bool {
	now := s.now()
	return s.most(h.members, h.at, now) && (len(h.prev) == 0 || s.most(h.prev, h.at, now))
}

func (s *Service) most(set []*trust, at, now int64) bool {
	n := 0
	for _, t := range set {
		if t.unbroken(at, now, s.cfg.LeaseTrust) {
			n++
		}
	}
	return n > len(set)/2
}

// OnRecall sets what is called when a lease of this mount is in somebody's way: f writes back what depends on it
// and proposes LeaseRelease or LeaseLeave before it returns. read: the other one wants to read, and would share the
// lease. Calls for one register do not overlap. Set it before Run.
func (s *Service) OnRecall(f func(ctx context.Context, id blocks.RegisterID, read bool)) {
	s.leases.mu.Lock()
	defer s.leases.mu.Unlock()
	s.leases.onRecall = f
}

// ready makes sure that a majority of the register's members knows of this mount before it
// asks for the lease: a grant is worth nothing to those who hear of it later.
func (s *Service) ready(ctx context.Context, id blocks.RegisterID) {
	var ask []blocks.PeerID
	now, v := s.now(), s.view(id)
	if v.quorum(func(m member) bool { return s.peer(m.Peer).trust.unbroken(now, now, s.cfg.LeaseTrust) }) {
		return
	}
	for _, p := range v.peers() {
		if !s.peer(p).trust.unbroken(now, now, s.cfg.LeaseTrust) {
			ask = append(ask, p)
		}
	}
	s.greet(ctx, ask, true)
}

// begin notes that a change is proposed. A lease that it gives back is not
// trusted from here on.
func (l *leases) begin(id blocks.RegisterID, c blocks.Change) *flight {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.flights[id]
	if f == nil {
		f = &flight{}
		l.flights[id] = f
	}
	f.calls++
	if c.Lease == blocks.LeaseRelease || c.Lease == blocks.LeaseLeave || c.Delete {
		f.released = true
		delete(l.held, id)
	}
	return f
}

func (l *leases) end(id blocks.RegisterID, f *flight) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f.calls--; f.calls == 0 && l.flights[id] == f {
		delete(l.flights, id)
	}
}

// note takes what an answer says of the lease. The request was sent at sent.
func (l *leases) note(s *Service, id blocks.RegisterID, f *flight, granted bool, st *state, sent int64) {
	mine := st.leaseOf(s.self)
	h := s.newHold(st, mine.Epoch, sent)
	h.shared = st.shares(s.self)
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.held[id]
	switch {
	case old != nil && st.Tag.compare(old.tag) <= 0:
		// an answer that was overtaken
	case mine == blocks.Lease{} || l.closed:
		delete(l.held, id)
	case granted && f != nil && !f.released && f.view <= st.View.Number:
		l.held[id] = h
	case old != nil && old.epoch == mine.Epoch && old.view.Number <= st.View.Number:
		h.at = old.at
		l.held[id] = h
	case old != nil && old.epoch != mine.Epoch:
		delete(l.held, id)
	}
}

func (s *Service) newHold(st *state, epoch uint64, at int64) *hold {
	h := &hold{epoch: epoch, at: at, tag: st.Tag, view: st.View}
	for _, m := range st.View.Members {
		h.members = append(h.members, &s.peer(m.Peer).trust)
	}
	for _, m := range st.View.Prev {
		h.prev = append(h.prev, &s.peer(m.Peer).trust)
	}
	return h
}

// untilFree calls do until it finds no lease in the way (then it returns the zero
// lease, or the error), recalling what it finds in between, or leaving what this mount shares. do gets the
// epoch to be seized from a mount that could not be reached, else 0. read: shared leases are not in the way.
func (s *Service) untilFree(ctx context.Context, id blocks.RegisterID, read bool, do func(seize uint64) (blocks.Lease, error)) error {
	var seize uint64
	var lease blocks.Lease
	var since time.Time
	for {
		l, err := do(seize)
		if err != nil || l == (blocks.Lease{}) {
			return err
		}
		seize = 0
		if l.Holder == s.self {
			if err := s.leave(ctx, id, l.Epoch); err != nil {
				return err
			}
			continue
		}
		again := l == lease
		if !again {
			lease, since = l, time.Now()
		}
		if waited := time.Since(since); waited > s.cfg.RecallTotal+s.cfg.LeaseExpire {
			return fmt.Errorf("register %s: %w: mount %s has been asked for its lease for %v and cannot be reached, though others hear it",
				id.Short(), blocks.ErrBusy, lease.Holder, waited.Round(time.Second))
		}
		if again {
			if err := s.pause(ctx, min(recallPause+time.Since(since)/4, maxPause)); err != nil {
				return fmt.Errorf("register %s: wait for the lease of mount %s: %w", id.Short(), lease.Holder, err)
			}
		}
		err = s.recall(ctx, lease, id, read)
		switch {
		case err == nil && time.Since(since) > s.cfg.RecallTotal:
			return fmt.Errorf("register %s: %w: mount %s does not give its lease back", id.Short(), blocks.ErrBusy, lease.Holder)
		case ctx.Err() != nil:
			return fmt.Errorf("register %s: recall the lease of mount %s: %w", id.Short(), lease.Holder, context.Cause(ctx))
		case err != nil:
			seize = lease.Epoch
		}
	}
}

// leave gives back what this mount shares since the epoch.
func (s *Service) leave(ctx context.Context, id blocks.RegisterID, epoch uint64) error {
	_, err := s.Propose(ctx, id, blocks.Change{Base: 1, Origin: s.self, Lease: blocks.LeaseLeave, Epoch: epoch})
	return err
}

// sharedEpoch returns the epoch of a lease that this mount shares; 0: none that it knows of.
func (l *leases) sharedEpoch(id blocks.RegisterID) uint64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if h := l.held[id]; h != nil && h.shared {
		return h.epoch
	}
	return 0
}

// Lease returns who holds the register's lease alone now, linearizably, without recalling it. A holder that cannot be
// reached and is silent loses it first; one that answers keeps it. A lease that an earlier process of a mount left
// is given back by the present one when it is asked. Errors as of Read.
func (s *Service) Lease(ctx context.Context, id blocks.RegisterID) (blocks.Lease, error) {
	st, _, err := s.readOnce(ctx, id, 0, 0)
	if err == nil && !st.Deleted && !st.Lease.Holder.IsZero() && st.Lease.Holder != s.self {
		st, _, err = s.readOnce(ctx, id, 0, st.Lease.Epoch)
	}
	switch {
	case err != nil:
		return blocks.Lease{}, fmt.Errorf("lease of register %s: %w", id.Short(), err)
	case st.Deleted:
		return blocks.Lease{}, fmt.Errorf("lease of register %s: %w: it was deleted", id.Short(), blocks.ErrNotFound)
	}
	return st.Lease, nil
}

// Peek returns the newest agreed state and the whole value, linearizably, without recalling a lease: what its holder has not
// proposed yet is not in it. Errors as of Read.
func (s *Service) Peek(ctx context.Context, id blocks.RegisterID) (blocks.Register, error) {
	st, p, err := s.readOnce(ctx, id, 0, 0)
	if err != nil {
		return blocks.Register{}, err
	}
	r := st.register(id, 0, p)
	if st.Deleted {
		err = fmt.Errorf("read register %s: %w: it was deleted", id.Short(), blocks.ErrNotFound)
	}
	return r, err
}

func (s *Service) recall(ctx context.Context, lease blocks.Lease, id blocks.RegisterID, read bool) error {
	var e blocks.Encoder
	e.ID(id.ID)
	e.Uint(lease.Epoch)
	e.Bool(read)
	_, err := s.call(ctx, lease.Holder, overlay.Metadata, overlay.Call{Kind: kindRecall, Body: e.Buf}, s.cfg.RecallTry)
	if errors.Is(err, blocks.ErrDeadline) && ctx.Err() == nil {
		// Slow is not dead: the peers will say whether it lives.
		return fmt.Errorf("%w: mount %s does not answer", blocks.ErrUnavailable, lease.Holder.Short())
	}
	return err
}

// serveRecall calls the mount back, once at a time for each register.
func (s *Service) serveRecall(ctx context.Context, _ blocks.PeerID, req overlay.Call) (overlay.Call, error) {
	d := blocks.NewDecoder(req.Body)
	id, epoch, read := blocks.RegisterID{ID: d.ID()}, d.Uint(), d.Bool()
	if err := d.Done(); err != nil {
		return overlay.Call{}, err
	}
	l := &s.leases
	l.mu.Lock()
	f, done := l.onRecall, l.recalls[id]
	if f == nil && done == nil {
		l.mu.Unlock()
		return overlay.Call{}, fmt.Errorf("recall of register %s: %w: this peer is not a mount", id.Short(), blocks.ErrRefused)
	}
	if done == nil {
		done = make(chan struct{})
		l.recalls[id] = done
		l.mu.Unlock()
		if !s.spawn(func(bg context.Context) {
			s.giveBack(bg, id, epoch, func(ctx context.Context) { f(ctx, id, read) }, done)
		}) {
			s.endRecall(id, done)
			return overlay.Call{}, fmt.Errorf("recall of register %s: %w: the mount is ending", id.Short(), blocks.ErrUnavailable)
		}
	} else {
		l.mu.Unlock()
	}
	select {
	case <-done:
		return overlay.Call{}, nil
	case <-ctx.Done():
		// It goes on; the caller asks again.
		return overlay.Call{}, nil
	}
}

func (s *Service) endRecall(id blocks.RegisterID, done chan struct{}) {
	s.leases.mu.Lock()
	defer s.leases.mu.Unlock()
	delete(s.leases.recalls, id)
	close(done)
}

// giveBack has the mount release the lease. One that was left by an earlier
// process of the same mount, of which nothing is known now, is released here.
func (s *Service) giveBack(ctx context.Context, id blocks.RegisterID, epoch uint64, f func(context.Context), done chan struct{}) {
	defer s.endRecall(id, done)
	ctx, cancel := context.WithTimeout(ctx, s.cfg.RecallTotal)
	defer cancel()
	f(ctx)
	s.leases.mu.RLock()
	known := s.leases.held[id] != nil
	s.leases.mu.RUnlock()
	if known || ctx.Err() != nil {
		return
	}
	st, _, err := s.quorumRead(ctx, id, 0)
	if err != nil || st.Deleted || st.leaseOf(s.self) != (blocks.Lease{Holder: s.self, Epoch: epoch}) {
		return
	}
	c := blocks.Change{Base: st.Version, Origin: s.self, Lease: blocks.LeaseRelease}
	if st.shares(s.self) {
		c.Lease, c.Epoch = blocks.LeaseLeave, epoch
	}
	if _, err := s.Propose(ctx, id, c); err != nil {
		s.cfg.Log.Warn().Err(err).Str("register", id.Short()).Msg("a lease left by an earlier process was not released")
	}
}

// serveViewOf takes the joint view of a register whose lease this mount
// may hold: from here on both its majorities must know that the mount lives.
func (s *Service) serveViewOf(_ context.Context, _ blocks.PeerID, req overlay.Call) (overlay.Call, error) {
	d := blocks.NewDecoder(req.Body)
	id, st := blocks.RegisterID{ID: d.ID()}, getState(d)
	if err := d.Done(); err != nil {
		return overlay.Call{}, err
	}
	s.leases.mu.Lock()
	if f := s.leases.flights[id]; f != nil {
		f.view = max(f.view, st.View.Number)
	}
	s.leases.mu.Unlock()
	s.leases.note(s, id, nil, false, &st, 0)
	return overlay.Call{}, nil
}

// Goodbye ends this mount's leases: whoever wants one may take it at once.
// Everything that depends on them must have been written before. The
// service holds nothing afterwards.
func (s *Service) Goodbye(ctx context.Context) {
	s.leases.mu.Lock()
	s.leases.closed = true
	clear(s.leases.held)
	s.leases.mu.Unlock()
	var e blocks.Encoder
	e.Uint64(s.session)
	var wg sync.WaitGroup
	for _, p := range s.storagePeers() {
		wg.Go(func() {
			s.call(ctx, p, overlay.Control, overlay.Call{Kind: kindGoodbye, Body: e.Buf}, s.cfg.CallTry)
		})
	}
	wg.Wait()
}
