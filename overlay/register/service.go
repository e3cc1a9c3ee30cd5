package register

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

// Bounds of what a service keeps in memory.
const (
	maxCoordinated = 16384 // registers whose coordinator's state is kept
	maxViews       = 65536 // registers whose view a client remembers
	maxStragglers  = 256   // calls to one peer that nobody waits for any more
	avoidFor       = 5 * time.Second
)

// Service is a peer's part in the registers: acceptor and coordinator if it
// has a store, and client. All methods may be called concurrently.
type Service struct {
	cfg     Config
	ring    overlay.Ring
	self    blocks.PeerID
	session uint64
	started time.Time
	acc     *acceptor // nil: stores nothing
	coords  gate
	leases  leases
	heard   heard
	work    worker
	ages    *overlay.Ages // of the registers that came here

	bg      context.Context // ends with Run; before Run calls that nobody waits for are not made
	wg      sync.WaitGroup
	mu      sync.Mutex
	rng     *rand.Rand
	coord   map[blocks.RegisterID]*coord
	views   map[blocks.RegisterID]view
	peers   map[blocks.PeerID]*peerState
	running bool
}

// peerState is what is known of another peer by talking to it.
type peerState struct {
	incarnation atomic.Uint64 // 0: not known yet
	stragglers  atomic.Int64
	avoid       atomic.Int64 // until when (nanoseconds since Service.started) others are asked first
	trust       trust
}

// New makes the service and sets its handlers on the ring; it starts nothing.
func New(cfg Config) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.filled()
	var seed [24]byte
	if _, err := io.ReadFull(cfg.Rand, seed[:]); err != nil {
		return nil, fmt.Errorf("registers: draw a session number: %w", err)
	}
	s := &Service{cfg: cfg, ring: cfg.Ring, self: cfg.Ring.Self(), started: time.Now(),
		session: binary.BigEndian.Uint64(seed[:8]) | 1,
		rng:     rand.New(rand.NewPCG(binary.BigEndian.Uint64(seed[8:16]), binary.BigEndian.Uint64(seed[16:]))),
		coord:   map[blocks.RegisterID]*coord{}, views: map[blocks.RegisterID]view{}, peers: map[blocks.PeerID]*peerState{}, ages: overlay.NewAges()}
	if cfg.KV != nil {
		s.acc = &acceptor{kv: cfg.KV, moved: s.work.move, born: func(id blocks.RegisterID) {
			s.ages.Add(id.ID)
			s.work.bear()
		}}
	}
	s.work.init()
	s.leases.init()
	s.heard.init()
	s.handle()
	return s, nil
}

// handle sets the handlers of all kinds of calls.
func (s *Service) handle() {
	s.ring.Handle(kindRecall, s.serveRecall)
	s.ring.Handle(kindViewOf, s.serveViewOf)
	if s.acc == nil {
		return
	}
	s.ring.Handle(kindPrepare, serveAcceptor(decodePrepare, s.servePrepare))
	s.ring.Handle(kindAccept, serveAcceptor(decodeAccept, s.acc.accept))
	s.ring.Handle(kindQuery, serveAcceptor(decodeQuery, s.acc.query))
	s.ring.Handle(kindForget, serveAcceptor(decodeForget, s.acc.forget))
	s.ring.Handle(kindPropose, s.servePropose)
	s.ring.Handle(kindTags, s.serveTags)
	s.ring.Handle(kindHello, s.serveHello)
	s.ring.Handle(kindGoodbye, s.serveGoodbye)
	s.ring.Handle(kindSilence, s.serveSilence)
	s.ring.Handle(kindCounts, s.serveCounts)
	s.ring.Handle(kindList, s.serveList)
}

func serveAcceptor[M any](decode func(overlay.Call) (M, error), do func(context.Context, M) (*reply, error)) overlay.Serve {
	return func(ctx context.Context, _ blocks.PeerID, req overlay.Call) (overlay.Call, error) {
		m, err := decode(req)
		if err != nil {
			return overlay.Call{}, err
		}
		r, err := do(ctx, m)
		if err != nil {
			return overlay.Call{}, err
		}
		return r.encode(), nil
	}
}

// Run keeps views and replicas as they should be and, for a mount, its leases
// alive, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	s.mu.Lock()
	s.bg, s.running = ctx, true
	s.mu.Unlock()
	if s.cfg.Mount {
		s.wg.Go(func() { s.beat(ctx) })
	}
	if s.acc != nil {
		s.wg.Go(func() { s.maintain(ctx) })
	}
	<-ctx.Done()
	s.mu.Lock()
	s.running = false
	s.mu.Unlock()
	s.wg.Wait()
	return context.Cause(ctx)
}

// spawn runs f in a goroutine that Run waits for; it reports whether it does.
func (s *Service) spawn(f func(ctx context.Context)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.running {
		return false
	}
	ctx := s.bg
	s.wg.Go(func() { f(ctx) })
	return true
}

// peer returns what is known of a peer; the map is bounded by the ring's size.
func (s *Service) peer(id blocks.PeerID) *peerState {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peers[id]
	if p == nil {
		p = &peerState{}
		s.peers[id] = p
	}
	return p
}

// now is the monotonic time since the service was made, never 0.
func (s *Service) now() int64 { return int64(time.Since(s.started)) + 1 }

// jitter returns a random duration in [d/2, d).
func (s *Service) jitter(d time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return d/2 + time.Duration(s.rng.Int64N(int64(d/2)+1))
}

// pause waits a random while around d.
func (s *Service) pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(s.jitter(d))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// call asks one peer within limit and notes whether it answered.
func (s *Service) call(ctx context.Context, to blocks.PeerID, class overlay.Class, req overlay.Call, limit time.Duration) (overlay.Call, error) {
	try, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	resp, err := s.ring.Call(try, to, class, req)
	if ctx.Err() == nil {
		p := s.peer(to)
		if c := blocks.CodeOf(err); c == blocks.CodeOf(blocks.ErrUnavailable) || c == blocks.CodeOf(blocks.ErrDeadline) {
			p.avoid.Store(s.now() + int64(avoidFor))
		} else {
			p.avoid.Store(0)
		}
	}
	return resp, err
}

// ask is call with an acceptor's reply.
func (s *Service) ask(ctx context.Context, to blocks.PeerID, req overlay.Call) (reply, error) {
	return s.askWithin(ctx, to, req, s.cfg.CallTry)
}

func (s *Service) askWithin(ctx context.Context, to blocks.PeerID, req overlay.Call, limit time.Duration) (reply, error) {
	resp, err := s.call(ctx, to, overlay.Metadata, req, limit)
	if err != nil {
		return reply{}, err
	}
	r, err := decodeReply(resp)
	if err != nil {
		return reply{}, fmt.Errorf("answer of peer %s: %w", to.Short(), err)
	}
	s.meet(to, r.Incarnation)
	return r, nil
}
