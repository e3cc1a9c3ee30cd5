package register

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

// Bounds of a coordinator's attempts.
const (
	maxTakeovers = 10                    // of one request
	maxHops      = 8                     // from view to view while preparing
	outbidPause  = 10 * time.Millisecond // after the first lost duel, doubled each time
	maxPause     = 500 * time.Millisecond
)

// errOutbid: another coordinator took over, or a proposal reached no
// majority and its fate is unknown; prepare again.
var errOutbid = fmt.Errorf("%w: outbid by another coordinator", blocks.ErrUnavailable)

// coord is what a coordinator remembers of a register. It is used only by
// who holds the register's gate.
type coord struct {
	leading bool
	ballot  ballot
	st      *state // while leading: the newest chosen state, under this ballot; its tag is zero before the creation
	seen    uint64 // the highest ballot number met
}

func (c *coord) met(b ballot) { c.seen = max(c.seen, b.N) }

func (s *Service) coordOf(id blocks.RegisterID) *coord {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.coord[id]
	if c == nil {
		for old := range s.coord {
			if len(s.coord) < maxCoordinated {
				break
			}
			delete(s.coord, old)
		}
		c = &coord{}
		s.coord[id] = c
	}
	return c
}

// coordinate calls f as the coordinator of the register, again with a new
// ballot as long as it is outbid. create is how to begin a register that may
// not exist yet; hint is a view that the caller knows.
func (s *Service) coordinate(ctx context.Context, id blocks.RegisterID, hint view, create creation, f func(*coord) error) error {
	if s.acc == nil {
		return fmt.Errorf("register %s: %w: this peer stores nothing", id.Short(), blocks.ErrRefused)
	}
	unlock, err := s.coords.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	c := s.coordOf(id)
	for attempt := range maxTakeovers {
		if attempt > 0 {
			if e := s.pause(ctx, min(outbidPause<<attempt, maxPause)); e != nil {
				return fmt.Errorf("coordinate register %s: %w (%w)", id.Short(), e, err)
			}
		}
		err = nil
		if !c.leading {
			err = s.lead(ctx, id, c, hint, create)
		}
		if err == nil {
			err = f(c)
		}
		if !errors.Is(err, errOutbid) {
			return err
		}
		c.leading = false
	}
	return fmt.Errorf("coordinate register %s: %w", id.Short(), err)
}

// lead takes over the register: it prepares with a new ballot until it has
// promises of a quorum of the newest view found, and has the newest state
// accepted under its ballot.
func (s *Service) lead(ctx context.Context, id blocks.RegisterID, c *coord, hint view, create creation) error {
	known, err := s.startView(ctx, id, c, hint, create)
	if err != nil {
		return err
	}
	if len(known.Members) == 0 {
		return s.leadShared(ctx, id, c)
	}
	c.seen++
	c.ballot = ballot{c.seen, s.self}
	best, err := s.prepareAll(ctx, id, c, known)
	if err != nil {
		return err
	}
	if best == nil && create.shared || best != nil && best.undecided() {
		return s.leadShared(ctx, id, c)
	}
	if best == nil {
		if !create.any() {
			return fmt.Errorf("register %s: %w: no member of its view has it", id.Short(), blocks.ErrUnavailable)
		}
		c.st, c.leading = &state{View: create.view}, true
		return nil
	}
	return s.adopt(ctx, id, c, best)
}

// adopt has the newest state accepted under the ballot of c and leads from there.
func (s *Service) adopt(ctx context.Context, id blocks.RegisterID, c *coord, best *state) error {
	next := best.next()
	next.Tag.Ballot = c.ballot
	if err := s.acceptAll(ctx, id, c, next, best.Tag, patch{}); err != nil {
		return err
	}
	c.st, c.leading = next, true
	return nil
}

// startView returns the newest view known from memory, the own store or, if
// there is none, by asking around; of a register to be created, the one fixed, or none.
func (s *Service) startView(ctx context.Context, id blocks.RegisterID, c *coord, hint view, create creation) (view, error) {
	known := hint
	if c.st != nil && c.st.View.Number > known.Number {
		known = c.st.View
	}
	r, err := s.acc.load(id)
	if err != nil {
		return view{}, err
	}
	if r != nil {
		c.met(r.Promised)
		if r.State.View.Number > known.Number {
			known = r.State.View
		}
	}
	if len(known.Members) == 0 {
		known = create.view
	}
	if len(known.Members) == 0 && !create.shared {
		return s.locate(ctx, id)
	}
	return known, nil
}

// prepareAll collects promises for c.ballot until the newest state among
// them has a quorum of its own view, and returns it; nil if a quorum of the
// known view promised and none has a state.
func (s *Service) prepareAll(ctx context.Context, id blocks.RegisterID, c *coord, known view) (*state, error) {
	promised := map[blocks.PeerID]uint64{}
	asked := map[blocks.PeerID]uint64{} // with which view's number, plus one
	var best *state
	var floor tag // of what members that had been dropped know to be chosen
	for range maxHops {
		target := known
		if best != nil && best.View.Number >= known.Number {
			target = best.View
		}
		var ask []blocks.PeerID
		for _, p := range target.peers() {
			// Who was dropped from a former view may be in this one again.
			if _, ok := promised[p]; !ok && asked[p] <= target.Number {
				asked[p] = target.Number + 1
				ask = append(ask, p)
			}
		}
		enough := func() bool {
			v := known
			if best != nil {
				v = best.View
			}
			if floor != (tag{}) && (best == nil || best.Tag.compare(floor) < 0) {
				return false
			}
			return v.quorum(func(m member) bool { return promised[m.Peer] == m.Incarnation })
		}
		var outbid bool
		msg := prepareMsg{ID: id, Ballot: c.ballot, Number: target.Number}
		err := s.askAll(ctx, ask, func(ctx context.Context, p blocks.PeerID) (reply, error) {
			return s.ask(ctx, p, msg.encode())
		}, func(p blocks.PeerID, r reply) bool {
			c.met(r.Promised)
			switch r.Status {
			case statusOK:
				promised[p] = r.Incarnation
				if r.State != nil && (best == nil || r.Tag.compare(best.Tag) > 0) {
					best = r.State
				} else if r.State == nil && r.Tag.compare(floor) > 0 {
					floor = r.Tag
				}
			case statusRefused:
				outbid = true
			case statusForgotten:
				if r.State != nil && r.State.View.Number > known.Number {
					known = r.State.View
				}
			}
			return outbid || enough()
		})
		switch {
		case enough():
			return best, nil
		case outbid:
			return nil, errOutbid
		case len(ask) == 0:
			return nil, fmt.Errorf("register %s: %w: %d members of view %d answer, too few", id.Short(), blocks.ErrUnavailable, len(promised), target.Number)
		case ctx.Err() != nil:
			return nil, fmt.Errorf("prepare register %s: %w", id.Short(), errors.Join(context.Cause(ctx), err))
		}
	}
	return nil, fmt.Errorf("register %s: %w: its view changes too fast", id.Short(), blocks.ErrUnavailable)
}

// askAll calls the peers in parallel and hands their answers to take, one
// after the other, until it returns true, all have answered, or ctx ends. Calls
// that are still out are canceled. It returns the last error of a call.
func (s *Service) askAll(ctx context.Context, peers []blocks.PeerID, call func(context.Context, blocks.PeerID) (reply, error), take func(blocks.PeerID, reply) bool) error {
	type answer struct {
		from blocks.PeerID
		r    reply
		err  error
	}
	ctx, cancel := context.WithCancel(ctx)
	answers := make(chan answer, len(peers))
	defer cancel()
	for _, p := range peers {
		run := func(context.Context) {
			r, err := call(ctx, p)
			answers <- answer{p, r, err}
		}
		if !s.spawn(run) { // a client's call outside of Run
			go run(ctx)
		}
	}
	var last error
	for range peers {
		select {
		case a := <-answers:
			if a.err != nil {
				last = a.err
			} else if take(a.from, a.r) {
				return last
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return last
}

// step has the state that follows c.st accepted by a quorum of its view and
// makes it c.st. On an error the fate of next is unknown.
func (s *Service) step(ctx context.Context, id blocks.RegisterID, c *coord, next *state, p patch) error {
	next.Tag = tag{c.ballot, c.st.Tag.Step + 1}
	if err := s.acceptAll(ctx, id, c, next, c.st.Tag, p); err != nil {
		return err
	}
	c.st = next
	return nil
}

// acceptAll proposes next, which follows the state tagged prev by p, to all
// members, and returns nil when a quorum has accepted it. The other calls go on in the
// background. After an error the coordinator must prepare again.
func (s *Service) acceptAll(ctx context.Context, id blocks.RegisterID, c *coord, next *state, prev tag, p patch) error {
	type answer struct {
		from blocks.PeerID
		r    reply
		err  error
	}
	peers := next.View.peers()
	// Calls may outlive the request whose bytes p has: they use a copy.
	value := encodePatch(p)
	p, err := decodePatch(value)
	if err != nil {
		return err
	}
	prop := &proposal{id: id, next: next, prev: prev, patch: p,
		msg: acceptMsg{ID: id, Prev: prev, Full: p.Whole || prev == tag{}, State: *next, patch: value}}
	answers := make(chan answer, len(peers))
	c.leading = false
	for _, peer := range peers {
		if !s.spawn(func(bg context.Context) {
			r, err := s.acceptOne(bg, peer, prop)
			if err != nil || r.Status != statusOK {
				s.work.mark(id)
			}
			answers <- answer{peer, r, err}
		}) {
			return fmt.Errorf("register %s: %w: the service does not run", id.Short(), blocks.ErrUnavailable)
		}
	}
	acks := map[blocks.PeerID]uint64{}
	var last error
	for range peers {
		select {
		case a := <-answers:
			c.met(a.r.Promised)
			c.met(a.r.Tag.Ballot)
			switch {
			case a.err != nil:
				last = a.err
			case a.r.Status == statusRefused:
				return errOutbid
			case a.r.Status == statusOK:
				acks[a.from] = a.r.Incarnation
			}
			if next.chosenBy(func(m member) bool { return acks[m.Peer] == m.Incarnation }) {
				c.leading = true
				return nil
			}
		case <-ctx.Done():
			return fmt.Errorf("propose to register %s: %w", id.Short(), context.Cause(ctx))
		}
	}
	if last == nil {
		last = errOutbid
	}
	return fmt.Errorf("register %s: %w: %d members of view %d accepted, too few: %w", id.Short(), blocks.ErrUnavailable, len(acks), next.View.Number, last)
}

// proposal is a state on its way to the members.
type proposal struct {
	id    blocks.RegisterID
	next  *state
	prev  tag
	patch patch
	msg   acceptMsg
}

// acceptOne proposes to one member; to one that is behind it sends what is
// missing as well.
func (s *Service) acceptOne(ctx context.Context, to blocks.PeerID, p *proposal) (reply, error) {
	peer := s.peer(to)
	defer peer.stragglers.Add(-1)
	if peer.stragglers.Add(1) > maxStragglers {
		return reply{}, fmt.Errorf("%w: %d calls to peer %s are unanswered", blocks.ErrBusy, maxStragglers, to.Short())
	}
	r, err := s.ask(ctx, to, p.msg.encode())
	if err != nil || r.Status != statusBehind {
		return r, err
	}
	// A state of the same ballot is an ancestor: what is newer is enough.
	since, full := blocks.Version(0), true
	if r.Tag.Ballot == p.prev.Ballot && r.Tag.Step < p.prev.Step {
		since, full = r.Version, false
	}
	have, err := s.fetch(ctx, p.id, p.next.View, since, p.prev, p.next.Tag)
	if err != nil {
		return r, fmt.Errorf("bring peer %s up to date with register %s: %w", to.Short(), p.id.Short(), err)
	}
	value, err := decodePatch(have.patch)
	if err != nil {
		return r, err
	}
	if have.Tag == p.prev {
		if p.patch.Whole {
			value = p.patch
		} else {
			value.Deltas = append(value.Deltas, p.patch.Deltas...)
		}
	}
	msg := acceptMsg{ID: p.id, Prev: r.Tag, Full: full || value.Whole, State: *p.next, patch: encodePatch(value)}
	return s.ask(ctx, to, msg.encode())
}

// fetch reads the state and what of the value is newer than since from a
// member that has one of the tags, the own store first.
func (s *Service) fetch(ctx context.Context, id blocks.RegisterID, v view, since blocks.Version, tags ...tag) (reply, error) {
	msg := queryMsg{ID: id, Since: since, Want: wantData}
	has := func(r reply) bool {
		for _, t := range tags {
			if r.Status == statusOK && r.Tag == t {
				return true
			}
		}
		return false
	}
	if s.acc != nil {
		if r, err := s.acc.query(ctx, msg); err == nil && has(*r) {
			return *r, nil
		}
	}
	var last error
	for _, p := range s.prefer(v.peers()) {
		if p == s.self {
			continue
		}
		r, err := s.ask(ctx, p, msg.encode())
		if err == nil && has(r) {
			return r, nil
		}
		if err != nil {
			last = err
		}
	}
	if last == nil {
		last = blocks.ErrUnavailable
	}
	return reply{}, fmt.Errorf("fetch register %s: no member has the state asked for: %w", id.Short(), last)
}

// confirm makes sure that c.st is the newest state still: a quorum has it.
func (s *Service) confirm(ctx context.Context, id blocks.RegisterID, c *coord) error {
	same := map[blocks.PeerID]uint64{}
	msg := queryMsg{ID: id}
	quorum := func() bool {
		return c.st.chosenBy(func(m member) bool { return same[m.Peer] == m.Incarnation })
	}
	err := s.askAll(ctx, c.st.View.peers(), func(ctx context.Context, p blocks.PeerID) (reply, error) {
		return s.ask(ctx, p, msg.encode())
	}, func(p blocks.PeerID, r reply) bool {
		c.met(r.Promised)
		if r.Tag == c.st.Tag && r.Status == statusOK {
			same[p] = r.Incarnation
		}
		return quorum()
	})
	if quorum() {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("confirm register %s: %w", id.Short(), errors.Join(context.Cause(ctx), err))
	}
	return errOutbid
}

// prefer orders peers: those believed to be alive that have not failed
// lately, in the given order, then the others.
func (s *Service) prefer(peers []blocks.PeerID) []blocks.PeerID {
	t, now := s.ring.Table(), s.now()
	var good, slow, rest []blocks.PeerID
	for _, p := range peers {
		info, ok := t.Peers[p]
		switch {
		case !ok || info.Live != overlay.Alive:
			rest = append(rest, p)
		case s.peer(p).avoid.Load() > now:
			slow = append(slow, p)
		default:
			good = append(good, p)
		}
	}
	return append(append(good, slow...), rest...)
}
