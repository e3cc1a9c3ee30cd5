package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

const (
	// maxDamageQueue bounds the stripes that wait to be checked; more are left to the scrub.
	maxDamageQueue = 4096
	// maxChecks bounds the checks of single stripes that this peer does for others at once.
	maxChecks = 8
	// checkTries and checkRetry bound how often and how soon a check that failed is tried again;
	// later the rounds of the repairer and the next read do it.
	checkTries = 4
	checkRetry = 2 * time.Second
)

// damageQueue holds stripes that were found damaged, each once.
type damageQueue struct {
	mu     sync.Mutex
	list   []blocks.StripeID
	queued map[blocks.StripeID]bool
	wake   chan struct{} // of one
}

// OnDamage says that a shard of the stripe was found missing or damaged: the
// stripe is checked soon. It never waits.
func (s *Service) OnDamage(stripe blocks.StripeID) {
	if s.cfg.Local != nil {
		s.arcs.touch(stripe)
	}
	q := &s.damage
	q.mu.Lock()
	if !q.queued[stripe] && len(q.list) < maxDamageQueue {
		q.queued[stripe] = true
		q.list = append(q.list, stripe)
	}
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *damageQueue) next() (stripe blocks.StripeID, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.list) == 0 {
		return stripe, false
	}
	stripe = q.list[0]
	q.list = q.list[1:]
	delete(q.queued, stripe)
	return stripe, true
}

// damageLoop has the stripes of the queue checked, one after the other.
func (s *Service) damageLoop(ctx context.Context) {
	for {
		stripe, ok := s.damage.next()
		if !ok {
			select {
			case <-ctx.Done():
				return
			case <-s.damage.wake:
			}
			continue
		}
		if _, err := s.checkSomewhere(ctx, stripe); err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn().Err(err).Stringer("stripe", stripe).Msg("damaged stripe not checked")
		}
	}
}

// Mend has the stripe's repairer check it and make anew what is missing, and waits for that.
func (s *Service) Mend(ctx context.Context, stripe blocks.StripeID) (CheckReport, error) {
	return s.checkSomewhere(ctx, stripe)
}

// checkSomewhere has the stripe's repairer check it, and tries again a few times.
func (s *Service) checkSomewhere(ctx context.Context, stripe blocks.StripeID) (report CheckReport, err error) {
	for try := range checkTries {
		if try > 0 {
			if err := sleep(ctx, checkRetry<<try); err != nil {
				return report, err
			}
		}
		v := view{table: s.cfg.Ring.Table(), live: map[blocks.PeerID]bool{}}
		for _, p := range v.table.Peers {
			v.live[p.ID] = s.reachable(p)
		}
		repairer, ok := v.repairer(stripe)
		switch {
		case !ok:
			err = fmt.Errorf("%w: no storage peer is up", blocks.ErrUnavailable)
		case repairer == s.self:
			report, err = s.checkStripe(ctx, stripe)
		default:
			err = s.ask(ctx, repairer, overlay.Metadata, kindCheck, &stripeName{stripe}, &report)
		}
		if err == nil && (report.Protected || report.Settling || report.Good == 0) {
			return report, nil
		}
	}
	return report, err
}

// CheckReport says how a stripe is after a check.
type CheckReport struct {
	Good      int  // different good shards, each read and verified
	Total     int  // of so many
	Rebuilt   int  // of the good ones, made anew by this check
	Protected bool // all there, and well spread
	Settling  bool // left alone, as its writer may not be done
	Deleted   bool
}

func (m *CheckReport) encode(e *blocks.Encoder) {
	e.Uint(uint64(m.Good))
	e.Uint(uint64(m.Total))
	e.Uint(uint64(m.Rebuilt))
	e.Bool(m.Protected)
	e.Bool(m.Settling)
	e.Bool(m.Deleted)
}

func (m *CheckReport) decode(d *blocks.Decoder) {
	m.Good, m.Total, m.Rebuilt = int(uint16(d.Uint())), int(uint16(d.Uint())), int(uint16(d.Uint()))
	m.Protected, m.Settling, m.Deleted = d.Bool(), d.Bool(), d.Bool()
}

// checkStripe asks all live peers to verify their shards of the stripe, and puts it right.
func (s *Service) checkStripe(ctx context.Context, stripe blocks.StripeID) (CheckReport, error) {
	st, v, all := s.survey(Background(ctx), stripe, true)
	if st.dead || len(st.copies) == 0 {
		if st.dead {
			return CheckReport{Deleted: true, Protected: true}, s.deleteEverywhere(Background(ctx), v, st)
		}
		return CheckReport{}, nil
	}
	p := planStripe(st, v)
	report := CheckReport{Good: p.good, Total: int(st.ref.K) + int(st.ref.M), Protected: p.protected, Settling: p.settling}
	if p.idle() || report.Settling {
		return report, nil
	}
	if !all {
		return report, fmt.Errorf("%w: not all peers said what they have of stripe %s", blocks.ErrUnavailable, stripe.Short())
	}
	err := s.execute(ctx, v, &job{*st, p})
	before := p.good
	st, v, _ = s.survey(Background(ctx), stripe, false)
	if p = planStripe(st, v); st.ref.K > 0 {
		report.Good, report.Protected, report.Rebuilt = p.good, p.protected, max(0, p.good-before)
	}
	return report, err
}

// survey asks all live storage peers what they have of a stripe; all: everybody answered.
func (s *Service) survey(ctx context.Context, stripe blocks.StripeID, verify bool) (st *stripeState, v *view, all bool) {
	t := s.cfg.Ring.Table()
	st = &stripeState{ref: blocks.StripeRef{ID: stripe}}
	var mu sync.Mutex
	peers := s.storagePeers(t)
	live, _ := eachPeer(ctx, peers, func(ctx context.Context, p blocks.PeerID) error {
		found, err := s.inspect(ctx, p, stripe, verify)
		if err != nil {
			return err
		}
		l := listed{ref: blocks.StripeRef{ID: stripe}, flags: found.flags}
		for _, at := range found.places {
			h := &at.Header
			l.ref = h.Ref()
			l.shards = append(l.shards, listedShard{h.Index, at.Vnode, h.Home, h.Size})
		}
		mu.Lock()
		defer mu.Unlock()
		st.merge(p, &l)
		return nil
	})
	slices.SortFunc(st.copies, func(a, b copyAt) int {
		return cmp.Or(cmp.Compare(a.index, b.index), a.vnode.Compare(b.vnode.ID))
	})
	return st, &view{t, live, s.full.list()}, len(live) == len(peers)
}

// inspectRequest asks what a peer has of a stripe; verify: after reading it.
type inspectRequest struct {
	stripe blocks.StripeID
	verify bool
}

func (m *inspectRequest) encode(e *blocks.Encoder) {
	e.ID(m.stripe.ID)
	e.Bool(m.verify)
}

func (m *inspectRequest) decode(d *blocks.Decoder) { m.stripe.ID, m.verify = d.ID(), d.Bool() }

// inspection is what a peer has of a stripe, and where.
type inspection struct {
	flags  byte
	places []blocks.Location
}

func (m *inspection) encode(e *blocks.Encoder) {
	e.Byte(m.flags)
	e.Uint(uint64(len(m.places)))
	for i := range m.places {
		l := &m.places[i]
		e.ID(l.Vnode.ID)
		encodeHeader(e, &l.Header)
		e.Int(l.Offset)
		e.Int(l.Length)
		e.String(l.Path)
	}
}

func (m *inspection) decode(d *blocks.Decoder) {
	m.flags = d.Byte()
	for range d.Count(blocks.IDSize + minHeader + 3) {
		m.places = append(m.places, blocks.Location{Vnode: blocks.VnodeID{ID: d.ID()}, Header: decodeHeader(d),
			Offset: d.Int(), Length: d.Int(), Path: d.String()})
	}
}

func (s *Service) inspect(ctx context.Context, p blocks.PeerID, stripe blocks.StripeID, verify bool) (inspection, error) {
	var found inspection
	if p != s.self || s.cfg.Local == nil {
		err := s.ask(ctx, p, classOf(ctx, false), kindInspect, &inspectRequest{stripe, verify}, &found)
		return found, err
	}
	dead, err := s.notes.dead(stripe)
	if err != nil {
		return found, err
	}
	if dead {
		found.flags |= flagDead
	}
	found.flags |= s.ageFlags(stripe)
	found.places, err = s.inspectLocal(stripe, verify)
	return found, err
}

func (s *Service) serveInspect(ctx context.Context, _ blocks.PeerID, req overlay.Call) (overlay.Call, error) {
	var m inspectRequest
	if err := decode("inspect", req.Body, &m); err != nil {
		return overlay.Call{}, err
	}
	found, err := s.inspect(ctx, s.self, m.stripe, m.verify)
	if err != nil {
		return overlay.Call{}, err
	}
	return answer(req, &found)
}

func (s *Service) serveCheck(ctx context.Context, _ blocks.PeerID, req overlay.Call) (overlay.Call, error) {
	var m stripeName
	if err := decode("check", req.Body, &m); err != nil {
		return overlay.Call{}, err
	}
	select {
	case s.checks <- struct{}{}:
		defer func() { <-s.checks }()
	default:
		return overlay.Call{}, fmt.Errorf("%w: %d stripes are under check already", blocks.ErrBusy, maxChecks)
	}
	report, err := s.checkStripe(ctx, m.stripe)
	if err != nil {
		return overlay.Call{}, err
	}
	return answer(req, &report)
}

// ShardPlace is where one shard of a stripe lies.
type ShardPlace struct {
	Index  int
	Vnode  blocks.VnodeID
	Peer   blocks.PeerID
	Home   bool   // the virtual node is one of the stripe's homes
	Path   string // of the disk file on that peer
	Offset int64  // of the block in it
	Length int64
}

// Locate asks all live storage peers where the shards of a stripe are, in
// order of their indexes. With an error of class ErrUnavailable the list is
// what those who answered said.
func (s *Service) Locate(ctx context.Context, ref blocks.StripeRef) ([]ShardPlace, error) {
	t := s.cfg.Ring.Table()
	home := t.HomeList(ref.ID.ID, int(ref.K)+int(ref.M), nil)
	var mu sync.Mutex
	var places []ShardPlace
	_, err := eachPeer(ctx, s.storagePeers(t), func(ctx context.Context, p blocks.PeerID) error {
		found, err := s.inspect(ctx, p, ref.ID, false)
		if err != nil {
			return fmt.Errorf("%w: %w", blocks.ErrUnavailable, err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, l := range found.places {
			at := slices.ContainsFunc(home, func(v overlay.Vnode) bool { return v.ID == l.Vnode })
			places = append(places, ShardPlace{int(l.Header.Index), l.Vnode, p, at, l.Path, l.Offset, l.Length})
		}
		return nil
	})
	slices.SortFunc(places, func(a, b ShardPlace) int {
		return cmp.Or(cmp.Compare(a.Index, b.Index), a.Vnode.Compare(b.Vnode.ID))
	})
	return places, err
}
