package register

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

// Bounds of the maintenance.
const (
	maxRepairs  = 8     // registers repaired at the same time
	maxDirty    = 65536 // registers remembered for repair; the next scan finds the others
	scanRetry   = 5     // times Retry, from a scan that left something undone to the next
	scanShare   = 10    // times what the last scan took, at least, until such a one
	repairLimit = 10 * time.Second
)

// worker is the state of the maintenance of the registers stored here.
type worker struct {
	mu    sync.Mutex
	dirty map[blocks.RegisterID]bool
	kick  chan struct{}
	moves uint64 // views changed here
	born  bool   // registers have come here since the last scan began

	begun, completed uint64 // scans
	asked            uint64 // the last scan that somebody waits for
	movesAt          uint64 // moves when the last scan began
	seen             uint64 // moves when the last complete scan had begun
	counts           Counts // of the last complete scan
}

// begin notes that a scan begins.
func (w *worker) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.begun++
	w.born = false
	w.movesAt = w.moves
}

// done notes that the scan was complete.
func (w *worker) done(c Counts) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.completed, w.seen, w.counts = w.begun, w.movesAt, c
}

func (w *worker) init() {
	w.dirty = map[blocks.RegisterID]bool{}
	w.kick = make(chan struct{}, 1)
}

// mark remembers that a replica of the register missed something.
func (w *worker) mark(id blocks.RegisterID) {
	w.mu.Lock()
	if len(w.dirty) < maxDirty {
		w.dirty[id] = true
	}
	w.mu.Unlock()
	w.wake()
}

// move notes that a register here has another view: other peers may have to
// take care of it now.
func (w *worker) move() {
	w.mu.Lock()
	w.moves++
	w.mu.Unlock()
	w.wake()
}

// bear notes that a register has come here that no scan has counted.
func (w *worker) bear() {
	w.mu.Lock()
	first := !w.born
	w.born = true
	w.mu.Unlock()
	if first {
		w.wake()
	}
}

func (w *worker) wake() {
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

func (w *worker) take() []blocks.RegisterID {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]blocks.RegisterID, 0, len(w.dirty))
	for id := range w.dirty {
		out = append(out, id)
	}
	clear(w.dirty)
	slices.SortFunc(out, func(a, b blocks.RegisterID) int { return a.Compare(b.ID) })
	return out
}

// maintain scans all registers stored here after each change of the table or
// of a view and each Scan, repairs what is not as it should be, and retries what failed.
func (s *Service) maintain(ctx context.Context) {
	var ended, scanned time.Time // the last round, the last scan
	var took time.Duration       // by the last scan
	for ctx.Err() == nil {
		changed := s.ring.Changed()
		stale := s.work.stale(s.ring.Table().PlacementHash())
		dirty, soon := s.work.pending()
		due := scanned.Add(s.cfg.Scan)
		if soon {
			due = scanned.Add(min(max(scanRetry*s.cfg.Retry, scanShare*took), s.cfg.Scan))
		}
		scan := stale || !time.Now().Before(due)
		switch {
		case stale:
			due = ended.Add(max(s.cfg.Settle, took))
		case dirty:
			due = ended.Add(s.cfg.Retry)
		}
		timer := time.NewTimer(time.Until(due))
		select {
		case <-ctx.Done():
		case <-changed:
		case <-s.work.kick:
		case <-timer.C:
			s.repairAll(ctx, s.work.take(), false)
			if scan {
				begin := time.Now()
				if err := s.scan(ctx); err != nil && ctx.Err() == nil {
					s.cfg.Log.Warn().Err(err).Msg("scan of the registers stopped")
				}
				scanned = time.Now()
				took = scanned.Sub(begin)
			}
			ended = time.Now()
		}
		timer.Stop()
	}
}

// pending reports whether there are registers to repair, and whether the next
// scan should be soon: the last one left something undone, or there are new registers.
func (w *worker) pending() (dirty, soon bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.dirty) > 0, w.counts.Backlog > 0 || w.born
}

// stale reports whether something has changed that the last scan did not
// see, or somebody waits for a new one.
func (w *worker) stale(table uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.completed == 0 || w.counts.TableHash != table || w.moves != w.seen || w.asked > w.completed
}

func (s *Service) repairAll(ctx context.Context, ids []blocks.RegisterID, standIn bool) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, maxRepairs)
	for _, id := range ids {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			limited, cancel := context.WithTimeout(ctx, repairLimit)
			defer cancel()
			if err := s.repair(limited, id, standIn); err != nil && ctx.Err() == nil {
				s.cfg.Log.Debug().Err(err).Str("register", id.Short()).Msg("repair will be tried again")
			}
		})
	}
	wg.Wait()
}

// repair makes the register's view what it should be and brings members that
// are behind up to date, if this peer is the one to do it, or stands in for the one.
func (s *Service) repair(ctx context.Context, id blocks.RegisterID, standIn bool) error {
	r, err := s.acc.load(id)
	if err != nil || r == nil || r.Forgotten || r.State.Tag == (tag{}) {
		return err
	}
	if gone, err := s.retire(ctx, id, &r.State); gone || err != nil || !standIn && !s.mine(r.State.View) {
		return err
	}
	return s.coordinate(ctx, id, view{}, creation{}, func(c *coord) error {
		if c.st.Tag == (tag{}) {
			return nil
		}
		if len(c.st.View.Prev) > 0 {
			if err := s.settle(ctx, id, c); err != nil {
				return err
			}
		}
		if want := s.wanted(ctx, id, c.st.View); !sameSet(want, c.st.View.Members) {
			if err := s.reconfigure(ctx, id, c, want); err != nil {
				return err
			}
		}
		return s.catchUp(ctx, id, c)
	})
}

// retire forgets a register whose newest state, which a quorum has, is not
// this peer's to keep any more: it was away when it was told so.
func (s *Service) retire(ctx context.Context, id blocks.RegisterID, own *state) (bool, error) {
	if s.isHome(id) {
		return false, nil
	}
	s.learn(id, own.View)
	st, _, err := s.quorumRead(ctx, id, own.Version)
	if err != nil || slices.Contains(st.View.peers(), s.self) {
		return false, err
	}
	_, err = s.acc.forget(ctx, forgetMsg{ID: id, Tag: st.Tag, View: st.View})
	return err == nil, err
}

func (s *Service) isHome(id blocks.RegisterID) bool {
	return slices.Contains(s.ring.Table().HomePeers(id.ID, 2*s.cfg.M+1, nil), s.self)
}

// mine reports whether this peer takes care of a register with that view: it
// is the first member that is reachable and, as far as is known, still has the
// store that it had.
func (s *Service) mine(v view) bool {
	before, member := s.before(v)
	return member && len(before) == 0
}

// before returns the members of a view that take care of its register sooner than this peer, and whether this peer is a
// member.
func (s *Service) before(v view) (sooner []blocks.PeerID, member bool) {
	t := s.ring.Table()
	for _, m := range v.all() {
		if m.Peer == s.self {
			if m.Incarnation == s.incarnation() {
				return sooner, true
			}
			continue
		}
		now := s.peer(m.Peer).incarnation.Load()
		if t.Peers[m.Peer].Live.Reachable() && t.Peers[m.Peer].ID == m.Peer && (now == 0 || now == m.Incarnation) {
			sooner = append(sooner, m.Peer)
		}
	}
	return nil, false
}

// wanted returns the members that the register's view should have: its home
// peers with the stores that they have now, and as long as some of these cannot
// be reached, old members in their place.
func (s *Service) wanted(ctx context.Context, id blocks.RegisterID, v view) []member {
	t := s.ring.Table()
	home := t.HomePeers(id.ID, 2*s.cfg.M+1, nil)
	if len(home) == 0 {
		return v.Members
	}
	var ask []blocks.PeerID
	for _, p := range home {
		if t.Peers[p].Live.Reachable() && s.peer(p).incarnation.Load() == 0 {
			ask = append(ask, p)
		}
	}
	s.greet(ctx, ask, false)
	var set []member
	for _, p := range home {
		now := s.peer(p).incarnation.Load()
		i := slices.IndexFunc(v.Members, func(m member) bool { return m.Peer == p })
		switch {
		case i >= 0 && (now == 0 || now == v.Members[i].Incarnation):
			set = append(set, v.Members[i])
		case now != 0 && t.Peers[p].Live.Reachable():
			set = append(set, member{p, now})
		case i >= 0:
			set = append(set, v.Members[i])
		}
	}
	for _, m := range v.Members {
		if len(set) >= len(home) {
			break
		}
		taken := slices.ContainsFunc(set, func(x member) bool { return x.Peer == m.Peer })
		if !taken && t.Peers[m.Peer].ID == m.Peer && t.Peers[m.Peer].Live.Counts() {
			set = append(set, m)
		}
	}
	return set
}

func sameSet(a, b []member) bool {
	if len(a) != len(b) {
		return false
	}
	for _, m := range a {
		if !slices.Contains(b, m) {
			return false
		}
	}
	return true
}

// reconfigure changes the view: first a joint one, agreed by majorities of
// both, then the new one alone, then the old members forget.
func (s *Service) reconfigure(ctx context.Context, id blocks.RegisterID, c *coord, want []member) error {
	if len(want) == 0 || len(want) > maxMembers {
		return fmt.Errorf("%w: a view of %d members", blocks.ErrInvalid, len(want))
	}
	next := c.st.next()
	next.View = view{Number: c.st.View.Number + 1, Members: want, Prev: c.st.View.Members}
	if err := s.step(ctx, id, c, next, patch{}); err != nil {
		return fmt.Errorf("begin to change the view: %w", err)
	}
	return s.settle(ctx, id, c)
}

// settle ends a joint view. Who holds the lease, alone or with others, must have heard of it
// before: a mount's trust rests on majorities of both sets from then on, and so on one of
// the new set, which alone decides afterwards whether the holder is silent.
func (s *Service) settle(ctx context.Context, id blocks.RegisterID, c *coord) error {
	if err := s.announceAll(ctx, id, c); err != nil {
		return err
	}
	old := c.st.View
	next := c.st.next()
	next.View = view{Number: old.Number + 1, Members: old.Members}
	if err := s.step(ctx, id, c, next, patch{}); err != nil {
		return fmt.Errorf("end the change of the view: %w", err)
	}
	msg := forgetMsg{ID: id, Tag: next.Tag, View: next.View}
	for _, m := range old.Prev {
		stays := slices.ContainsFunc(next.View.Members, func(x member) bool { return x.Peer == m.Peer })
		if stays {
			continue
		}
		s.spawn(func(bg context.Context) {
			if _, err := s.ask(bg, m.Peer, msg.encode()); err != nil {
				s.cfg.Log.Debug().Err(err).Str("register", id.Short()).Str("peer", m.Peer.Short()).Msg("a former member did not hear that it may forget")
			}
		})
	}
	return nil
}

// announceAll tells all who hold the lease of the newest state, and takes it from the silent.
func (s *Service) announceAll(ctx context.Context, id blocks.RegisterID, c *coord) error {
	leases := c.st.leases()
	failed := make([]error, len(leases))
	var wg sync.WaitGroup
	for i, l := range leases {
		wg.Go(func() { failed[i] = s.announce(ctx, id, c.st, l.Holder) })
	}
	wg.Wait()
	for i, l := range leases {
		if failed[i] == nil {
			continue
		}
		if err := s.seize(ctx, id, c, l.Holder); err != nil {
			return err
		}
		if c.st.leaseWith(l.Epoch) != (blocks.Lease{}) {
			return fmt.Errorf("register %s: %w: mount %s must hear of the new view and does not answer: %w", id.Short(), blocks.ErrUnavailable, l.Holder.Short(), failed[i])
		}
	}
	return nil
}

// announce tells a mount of a new state.
func (s *Service) announce(ctx context.Context, id blocks.RegisterID, st *state, mount blocks.PeerID) error {
	var e blocks.Encoder
	e.ID(id.ID)
	putState(&e, st)
	_, err := s.call(ctx, mount, overlay.Control, overlay.Call{Kind: kindViewOf, Body: e.Buf}, s.cfg.RecallTry)
	return err
}

// catchUp proposes the newest state again to the members that do not have it.
func (s *Service) catchUp(ctx context.Context, id blocks.RegisterID, c *coord) error {
	tags := map[blocks.PeerID]reply{}
	msg := queryMsg{ID: id}
	var up []blocks.PeerID
	t := s.ring.Table()
	for _, p := range c.st.View.peers() {
		if t.Peers[p].Live.Reachable() {
			up = append(up, p)
		}
	}
	s.askAll(ctx, up, func(ctx context.Context, p blocks.PeerID) (reply, error) {
		return s.ask(ctx, p, msg.encode())
	}, func(p blocks.PeerID, r reply) bool { tags[p] = r; return false })
	for p, r := range tags {
		if r.Tag == c.st.Tag && r.Status == statusOK {
			continue
		}
		prop := &proposal{id: id, next: c.st, prev: c.st.Tag,
			msg: acceptMsg{ID: id, Prev: c.st.Tag, State: *c.st}}
		got, err := s.acceptOne(ctx, p, prop)
		if err != nil {
			return fmt.Errorf("catch up register %s: %w", id.Short(), err)
		}
		if got.Status != statusOK {
			c.met(got.Promised)
			return errOutbid
		}
	}
	return nil
}
