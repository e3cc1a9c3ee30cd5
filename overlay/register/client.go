package register

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

// Bounds of a client's attempts.
const (
	maxRounds   = 6 // through all candidates, if ctx does not end before
	roundPause  = 50 * time.Millisecond
	recallPause = 20 * time.Millisecond
	readHedge   = 500 * time.Millisecond // how long the data is awaited from the first choice alone
)

// Read returns the register's newest state, and what of its value is newer
// than since (0: all). A change acknowledged before the call began is in it. A
// lease that another mount holds is recalled first. ErrNotFound: the register
// was deleted (a majority says so). ErrUnavailable: too few replicas can be
// reached, or none is known. ErrBusy: a mount does not give the lease back.
func (s *Service) Read(ctx context.Context, id blocks.RegisterID, since blocks.Version) (blocks.Register, error) {
	var out blocks.Register
	err := s.untilFree(ctx, id, true, func(seize uint64) (inTheWay blocks.Lease, err error) {
		st, p, err := s.readOnce(ctx, id, since, seize)
		if err != nil {
			return inTheWay, err
		}
		s.leases.note(s, id, nil, false, st, 0)
		out = st.register(id, since, p)
		if st.Deleted {
			return inTheWay, fmt.Errorf("read register %s: %w: it was deleted", id.Short(), blocks.ErrNotFound)
		}
		return st.inTheWay(s.self, false), nil
	})
	return out, err
}

// readOnce reads from a quorum, or through a coordinator if that does not
// settle what the newest state is, or if a lease is to be seized.
func (s *Service) readOnce(ctx context.Context, id blocks.RegisterID, since blocks.Version, seize uint64) (*state, patch, error) {
	if seize == 0 {
		st, p, err := s.quorumRead(ctx, id, since)
		if err == nil || ctx.Err() != nil {
			return st, p, err
		}
	}
	o, err := s.submit(ctx, proposeMsg{ID: id, Read: true, Seize: seize, Change: blocks.Change{Base: since, Origin: s.self}})
	if err != nil {
		return nil, patch{}, fmt.Errorf("read register %s: %w", id.Short(), err)
	}
	p, err := decodePatch(o.patch)
	return o.State, p, err
}

// Propose makes one change. With ErrConflict the first result is the newest state
// and what of the value is newer than c.Base; on success it is the state after the change,
// or for a change that had been applied before, the newest and what is newer
// than c.Base. Leases that are in the way are recalled first; one that this mount shares it leaves. ErrNotFound: the register was
// deleted. ErrUnavailable, ErrDeadline: the change may or may not happen;
// proposing it again with the same Seq is safe. ErrNoSpace: the value would be too large.
func (s *Service) Propose(ctx context.Context, id blocks.RegisterID, c blocks.Change) (blocks.Register, error) {
	var out blocks.Register
	if c.Base == 0 && !c.Shared && !s.feasible(s.view(id)) {
		v, err := s.firstView(ctx, id)
		if err != nil {
			return out, fmt.Errorf("create register %s: %w", id.Short(), err)
		}
		s.learn(id, v)
	}
	if epoch := s.leases.sharedEpoch(id); epoch != 0 && disturbs(&c) {
		if err := s.leave(ctx, id, epoch); err != nil {
			return out, err
		}
	}
	fl := s.leases.begin(id, c)
	defer s.leases.end(id, fl)
	asks := c.Lease == blocks.LeaseAcquire || c.Lease == blocks.LeaseShare
	if asks && s.cfg.Mount {
		s.ready(ctx, id)
	}
	var failed error
	err := s.untilFree(ctx, id, !disturbs(&c), func(seize uint64) (inTheWay blocks.Lease, err error) {
		sent := s.now()
		m := proposeMsg{ID: id, Seize: seize, Change: c, Renew: asks && !s.holdsAny(id)}
		o, err := s.submit(ctx, m)
		if err != nil {
			return inTheWay, fmt.Errorf("propose to register %s: %w", id.Short(), err)
		}
		if o.Verdict == verdictHeld {
			return o.State.inTheWay(s.self, disturbs(&c)), nil
		}
		p, err := decodePatch(o.patch)
		if err != nil {
			return inTheWay, fmt.Errorf("propose to register %s: %w", id.Short(), err)
		}
		s.leases.note(s, id, fl, o.Granted, o.State, sent)
		since := c.Base
		if o.Verdict == verdictApply {
			since = o.State.Version
		}
		out = o.State.register(id, since, p)
		switch o.Verdict {
		case verdictConflict:
			failed = fmt.Errorf("propose to register %s: %w: version %d is not %d", id.Short(), blocks.ErrConflict, o.State.Version, c.Base)
		case verdictGone:
			failed = fmt.Errorf("propose to register %s: %w: it was deleted", id.Short(), blocks.ErrNotFound)
		}
		return inTheWay, nil
	})
	if err == nil {
		err = failed
	}
	return out, err
}

// submit sends m to the first coordinator that answers: the members of the
// view in its order, those that are reachable first; a few rounds, each with more patience.
func (s *Service) submit(ctx context.Context, m proposeMsg) (*outcome, error) {
	var last error
	try := s.cfg.Try
	for round := range maxRounds {
		if round > 0 {
			if err := s.pause(ctx, roundPause<<round); err != nil {
				return nil, fmt.Errorf("%w (last: %w)", err, last)
			}
			try *= 2
		}
		m.Hint = s.view(m.ID)
		order := m.Hint.peers()
		switch shared := m.Change.Shared && m.Change.Base == 0 && !m.Read; {
		case len(order) > 0:
		case shared: // whoever coordinates searches
			order = s.ring.Table().HomePeers(m.ID.ID, 2*s.cfg.M+1, nil)
		default:
			v, err := s.locate(ctx, m.ID)
			if err != nil {
				last = err
				continue
			}
			m.Hint, order = v, v.peers()
		}
		for _, p := range s.prefer(order) {
			o, err := s.submitTo(ctx, p, m, try)
			if err == nil {
				s.learn(m.ID, o.State.View)
				return o, nil
			}
			last = err
			if ctx.Err() != nil {
				return nil, fmt.Errorf("%w (last: %w)", context.Cause(ctx), last)
			}
			if final(err) {
				return nil, err
			}
			if errors.Is(err, blocks.ErrBusy) {
				break // who is next would only fight with this one
			}
		}
		s.unlearn(m.ID, m.Change.Base == 0 && !m.Change.Shared)
	}
	return nil, last
}

// final reports whether asking again would bring the same answer.
func final(err error) bool {
	return errors.Is(err, blocks.ErrNoSpace) || errors.Is(err, blocks.ErrInvalid) || errors.Is(err, blocks.ErrNotFound)
}

func (s *Service) submitTo(ctx context.Context, to blocks.PeerID, m proposeMsg, try time.Duration) (*outcome, error) {
	resp, err := s.call(ctx, to, overlay.Metadata, m.encode(), try)
	if err != nil {
		return nil, err
	}
	o, err := decodeOutcome(resp)
	return &o, err
}

// quorumRead asks all members for their tags and one for the data as well. A
// tag that a quorum has is that of the newest state.
func (s *Service) quorumRead(ctx context.Context, id blocks.RegisterID, since blocks.Version) (*state, patch, error) {
	for range maxHops {
		v := s.view(id)
		if len(v.Members) == 0 {
			var err error
			if v, err = s.locate(ctx, id); err != nil {
				return nil, patch{}, err
			}
		}
		best, newer, err := s.readView(ctx, id, v, since)
		if err != nil {
			return nil, patch{}, err
		}
		if newer.Number > v.Number {
			s.learn(id, newer)
			continue
		}
		p, err := decodePatch(best.patch)
		return best.State, p, err
	}
	return nil, patch{}, fmt.Errorf("read register %s: %w: its view changes too fast", id.Short(), blocks.ErrUnavailable)
}

// readView reads from the members of v. It returns the answer with the data,
// or a newer view if it met one.
func (s *Service) readView(ctx context.Context, id blocks.RegisterID, v view, since blocks.Version) (best reply, newer view, err error) {
	order := s.prefer(v.peers())
	have := map[tag]map[blocks.PeerID]uint64{}
	var chosen tag
	err = s.askAll(ctx, order, func(ctx context.Context, p blocks.PeerID) (reply, error) {
		m, limit := queryMsg{ID: id, Since: since}, s.cfg.CallTry
		if p == order[0] {
			m.Want, limit = wantData, min(limit, readHedge)
		}
		return s.askWithin(ctx, p, m.encode(), limit)
	}, func(p blocks.PeerID, r reply) bool {
		if r.State != nil && r.State.View.Number > max(v.Number, newer.Number) {
			newer = r.State.View
			return true
		}
		if r.Status != statusOK {
			return false
		}
		if r.State != nil {
			best = r
		}
		if have[r.Tag] == nil {
			have[r.Tag] = map[blocks.PeerID]uint64{}
		}
		have[r.Tag][p] = r.Incarnation
		if v.quorum(func(m member) bool { return have[r.Tag][m.Peer] == m.Incarnation }) {
			chosen = r.Tag
		}
		return chosen != tag{} && best.State != nil && best.Tag == chosen
	})
	if newer.Number > v.Number {
		return best, newer, nil
	}
	if chosen == (tag{}) {
		return best, newer, fmt.Errorf("read register %s: %w: its %d replicas do not agree or do not answer: %w", id.Short(), blocks.ErrUnavailable, len(order), errors.Join(err))
	}
	if best.State == nil || best.Tag != chosen {
		if best, err = s.fetch(ctx, id, v, since, chosen); err != nil {
			return best, newer, err
		}
	}
	// The view that was asked may be one that was proposed and never chosen:
	// only a quorum of the state's own view shows that the state was chosen.
	if best.State.View.Number > v.Number {
		return best, best.State.View, nil
	}
	if !best.State.chosenBy(func(m member) bool { return have[chosen][m.Peer] == m.Incarnation }) {
		s.unlearn(id, false)
		return best, newer, fmt.Errorf("read register %s: %w: the view known was never chosen", id.Short(), blocks.ErrUnavailable)
	}
	return best, newer, nil
}

// view returns the newest view seen, without members if none is remembered.
func (s *Service) view(id blocks.RegisterID) view {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.views[id]
}

// learn remembers a view unless a newer one is.
func (s *Service) learn(id blocks.RegisterID, v view) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, ok := s.views[id]
	if ok && old.Number > v.Number {
		return
	}
	for other := range s.views {
		if ok || len(s.views) < maxViews {
			break
		}
		delete(s.views, other)
	}
	s.views[id] = v
}

// unlearn forgets a view that led nowhere, but not that of a register being
// created, which must stay the same in all attempts.
func (s *Service) unlearn(id blocks.RegisterID, creating bool) {
	if creating {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.views, id)
}

// locate finds the newest view of a register: its home peers are asked, then
// all that are reachable.
func (s *Service) locate(ctx context.Context, id blocks.RegisterID) (view, error) {
	t := s.ring.Table()
	first := t.HomePeers(id.ID, 2*s.cfg.M+1, nil)
	var rest []blocks.PeerID
	for p, info := range t.Peers {
		if info.Vnodes > 0 && info.Live.Reachable() && !slices.Contains(first, p) {
			rest = append(rest, p)
		}
	}
	slices.SortFunc(rest, func(a, b blocks.PeerID) int { return a.Compare(b.ID) })
	msg := queryMsg{ID: id, Want: wantState}
	var last error
	for _, group := range [][]blocks.PeerID{first, rest} {
		var found view
		err := s.askAll(ctx, group, func(ctx context.Context, p blocks.PeerID) (reply, error) {
			return s.ask(ctx, p, msg.encode())
		}, func(_ blocks.PeerID, r reply) bool {
			if r.State != nil && (len(found.Members) == 0 || r.State.View.Number > found.Number) {
				found = r.State.View
			}
			return r.Status == statusOK && r.State != nil
		})
		if len(found.Members) > 0 {
			s.learn(id, found)
			return found, nil
		}
		last = errors.Join(last, err)
	}
	if last != nil {
		return view{}, fmt.Errorf("find register %s: %w: nobody reachable knows it: %w", id.Short(), blocks.ErrUnavailable, last)
	}
	return view{}, fmt.Errorf("find register %s: %w: nobody knows it", id.Short(), blocks.ErrUnavailable)
}

// feasible reports whether a majority of the view may still come back.
func (s *Service) feasible(v view) bool {
	t := s.ring.Table()
	return v.quorum(func(m member) bool { return t.Peers[m.Peer].ID == m.Peer && t.Peers[m.Peer].Live.Counts() })
}

// firstView chooses the replicas of a new register: its home peers whose
// store is known, at least a majority of them.
func (s *Service) firstView(ctx context.Context, id blocks.RegisterID) (view, error) {
	home := s.ring.Table().HomePeers(id.ID, 2*s.cfg.M+1, nil)
	set := s.members(ctx, home)
	if len(set) <= len(home)/2 {
		return view{}, fmt.Errorf("%w: %d of its %d home peers can be reached", blocks.ErrUnavailable, len(set), len(home))
	}
	return view{Number: 1, Members: set}, nil
}

// members returns the peers with their incarnations, asking those not known;
// who does not answer is left out.
func (s *Service) members(ctx context.Context, peers []blocks.PeerID) []member {
	var ask []blocks.PeerID
	for _, p := range peers {
		if s.peer(p).incarnation.Load() == 0 {
			ask = append(ask, p)
		}
	}
	s.greet(ctx, ask, false)
	var set []member
	for _, p := range peers {
		if n := s.peer(p).incarnation.Load(); n != 0 {
			set = append(set, member{p, n})
		}
	}
	return set
}
