package overlay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/rs/zerolog"
)

// Peer is this process as a member of the ring. It implements Ring.
type Peer struct {
	cfg      Config
	log      zerolog.Logger
	handlers map[Kind]Serve
	ms       *members
	gossip   *gossip
	chord    *chord
	current  atomic.Pointer[Table]
	wake     chan struct{} // the watch has something to do
	started  chan struct{} // closed when the gossip runs

	strangers chan stranger // to be asked about
	learning  chan struct{} // one at a time asks who a stranger is

	pubMu   sync.Mutex // guards what follows; orders snapshots
	changed chan struct{}

	rngMu sync.Mutex // guards rng
	rng   *rand.Rand
}

var _ Ring = (*Peer)(nil)

// New makes a peer that knows what its Store kept. It starts nothing.
func New(cfg Config) (*Peer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	var seed [16]byte
	if _, err := io.ReadFull(cfg.Rand, seed[:]); err != nil {
		return nil, fmt.Errorf("seed the ring's timers: %w", err)
	}
	own := meta{incarnation: 1, capacity: cfg.Capacity, vnodes: cfg.Vnodes, drives: max(cfg.Drives, 1), zone: cfg.Zone, addr: cfg.Addr}
	var known []record
	if cfg.Store != nil {
		saved, err := cfg.Store.Load()
		if err != nil {
			return nil, fmt.Errorf("load the known peers: %w", err)
		}
		if len(saved) > 0 {
			var inc uint64
			inc, known, err = decodeSaved(cfg.Ring, saved)
			if errors.Is(err, blocks.ErrCorrupt) { // the others will find us, or a seed is found
				cfg.Log.Warn().Err(err).Msg("the list of known peers is damaged and ignored")
			} else if err != nil {
				return nil, err
			}
			own.incarnation = inc + 1
		}
	}
	p := &Peer{cfg: cfg, log: cfg.Log, handlers: map[Kind]Serve{}, ms: newMembers(cfg.Ring, cfg.Self, own, cfg.Timings),
		wake: make(chan struct{}, 1), started: make(chan struct{}), strangers: make(chan stranger, 1), learning: make(chan struct{}, 1), changed: make(chan struct{}),
		rng: rand.New(rand.NewPCG(binary.BigEndian.Uint64(seed[:8]), binary.BigEndian.Uint64(seed[8:])))}
	p.ms.restore(known)
	p.gossip = newGossip(p)
	p.chord = newChord(p)
	p.Handle(KindGossip, p.gossip.serve)
	p.Handle(KindHello, p.serveHello)
	p.Handle(KindPing, func(_ context.Context, _ blocks.PeerID, req Call) (Call, error) { return Call{Kind: req.Kind}, nil })
	p.chord.register()
	p.publish()
	return p, nil
}

// Run serves the ring until ctx ends. It may be called once.
func (p *Peer) Run(ctx context.Context) error {
	p.save()
	if err := p.gossip.start(); err != nil {
		return err
	}
	close(p.started)
	var wg sync.WaitGroup
	for _, loop := range []func(context.Context){p.watch, p.gossip.announce, p.chord.stabilizeLoop, p.chord.fingerLoop, p.chord.rectifyLoop} {
		wg.Go(func() { loop(ctx) })
	}
	wg.Wait()
	p.gossip.stop()
	p.save()
	return nil
}

// Self returns this peer's ID.
func (p *Peer) Self() blocks.PeerID { return p.cfg.Self }

// Table returns the newest snapshot.
func (p *Peer) Table() *Table { return p.current.Load() }

// Changed returns a channel that is closed when the table changes next.
func (p *Peer) Changed() <-chan struct{} {
	p.pubMu.Lock()
	defer p.pubMu.Unlock()
	return p.changed
}

// publish makes the newest snapshot known, if anything has changed.
func (p *Peer) publish() {
	if old, now := p.swap(); old != nil {
		p.logChanges(old, now)
	}
}

// swap replaces the snapshot; it returns both, or nil if there was none or nothing has changed.
func (p *Peer) swap() (old, now *Table) {
	p.pubMu.Lock()
	defer p.pubMu.Unlock()
	t, fresh := p.ms.table()
	if !fresh {
		return nil, nil
	}
	old = p.current.Swap(t)
	close(p.changed)
	p.changed = make(chan struct{})
	p.chord.tableChanged()
	return old, t
}

// logChanges tells the operator who came, who is down, and who came back.
func (p *Peer) logChanges(old, now *Table) {
	for i := range now.infos {
		info := &now.infos[i]
		was, known := old.Peers[info.ID]
		switch {
		case info.ID == p.cfg.Self || known && was.Live == info.Live:
		case info.Live >= Down || known && was.Live >= Down || !known:
			p.log.Info().Stringer("peer", info.ID).Str("addr", info.Addr).Stringer("state", info.Live).Msg("peer")
		}
	}
}

// poke has a snapshot made soon.
func (p *Peer) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// jitter returns d, 20 % more or less.
func (p *Peer) jitter(d time.Duration) time.Duration {
	p.rngMu.Lock()
	defer p.rngMu.Unlock()
	return time.Duration(float64(d) * (0.8 + 0.4*p.rng.Float64()))
}

// Handle sets the handler of a kind of calls; before Run only.
func (p *Peer) Handle(kind Kind, h Serve) { p.handlers[kind] = h }

// Serve answers a call of another peer; it is a Handler. An unknown kind is ErrInvalid.
func (p *Peer) Serve(ctx context.Context, from blocks.PeerID, req Call) Call {
	switch info, known := p.Table().Peers[from]; {
	case !known && req.Kind != KindHello: // which says who it is
		p.wonder(stranger{id: from})
	case known && info.Live != Alive && info.Live != Left:
		p.ms.hurry(from) // it can reach us; see whether we can reach it
		p.poke()
	}
	return p.dispatch(ctx, from, req)
}

func (p *Peer) dispatch(ctx context.Context, from blocks.PeerID, req Call) Call {
	h := p.handlers[req.Kind]
	if h == nil {
		return Reply(Call{Kind: req.Kind}, fmt.Errorf("%w: calls of kind %#04x are not served here", blocks.ErrInvalid, uint16(req.Kind)))
	}
	resp, err := h(ctx, from, req)
	if resp.Kind == 0 {
		resp.Kind = req.Kind
	}
	return Reply(resp, err)
}

// Call asks another peer, or this one without the network.
func (p *Peer) Call(ctx context.Context, to blocks.PeerID, class Class, req Call) (Call, error) {
	if to == p.cfg.Self {
		if ctx.Err() != nil {
			return Call{}, ended(ctx, "call of this peer to itself")
		}
		return Unreply(p.dispatch(ctx, to, req))
	}
	info, ok := p.Table().Peers[to]
	if !ok {
		return Call{}, fmt.Errorf("%w: peer %s is unknown", blocks.ErrUnavailable, to.Short())
	}
	resp, err := p.cfg.Transport.Call(ctx, to, info.Addr, class, req)
	if err != nil {
		p.failed(to, err)
		return Call{}, err
	}
	if info.Live != Alive {
		p.Reachable(to)
	}
	return Unreply(resp)
}

// ended is the error of what ctx ended, with its class.
func ended(ctx context.Context, what string) error {
	class := blocks.ErrCanceled
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		class = blocks.ErrDeadline
	}
	return fmt.Errorf("%s: %w: %w", what, class, context.Cause(ctx))
}

// addr returns where a peer is to be reached.
func (p *Peer) addr(id blocks.PeerID) (string, bool) {
	info, ok := p.Table().Peers[id]
	return info.Addr, ok
}

// failed takes the hint that lies in a call's failure.
func (p *Peer) failed(id blocks.PeerID, err error) {
	if errors.Is(err, blocks.ErrUnavailable) {
		p.Unreachable(id)
	}
}

// Unreachable is a hint that the peer did not answer: it is suspected at once.
func (p *Peer) Unreachable(id blocks.PeerID) {
	p.ms.silent(id)
	p.publish()
}

// Reachable is a hint that the peer answers: it counts again at once.
func (p *Peer) Reachable(id blocks.PeerID) {
	p.ms.heard(id)
	p.publish()
}

// What is not worth gossip: a change of the bytes used by less than a thousandth of the
// capacity, within bounds.
const (
	usedStepMin = 1 << 20
	usedStepMax = 64 << 20
)

// SetUsed says how many bytes are used on this peer; it is gossiped when it has changed noticeably.
func (p *Peer) SetUsed(used uint64) {
	old := p.ms.ownMeta()
	if max(used, old.used)-min(used, old.used) < min(max(old.capacity/1000, usedStepMin), usedStepMax) {
		return
	}
	p.tell(func(m *meta) { m.used = used })
}

// tell changes what this peer says of itself and has it gossiped.
func (p *Peer) tell(change func(*meta)) {
	p.ms.own(change)
	p.publish()
	select {
	case p.gossip.news <- struct{}{}:
	default:
	}
}

// merge takes up what another peer knows.
func (p *Peer) merge(rs []record) {
	if above := p.ms.merge(rs); above > 0 {
		p.tell(func(m *meta) { m.incarnation = max(m.incarnation, above+1) })
	}
	p.poke()
}

// AcceptStream takes a stream in that another peer's Config.Dial opened.
func (p *Peer) AcceptStream(conn net.Conn) { p.gossip.accept(conn) }

// Join enters the ring through any of its members: "host:port", or
// "ID@host:port" if the member's ID is known. It returns as soon as one of them
// has exchanged its membership with us; ErrUnavailable: none has. Run must be running.
func (p *Peer) Join(ctx context.Context, addrs []string) error {
	select {
	case <-p.started:
	case <-ctx.Done():
		return ended(ctx, "join the ring: the peer does not run")
	}
	err := fmt.Errorf("%w: no address to join the ring at", blocks.ErrUnavailable)
	for _, a := range addrs {
		if err = p.join(ctx, a); err == nil {
			return nil
		}
	}
	return err
}

func (p *Peer) join(ctx context.Context, addr string) error {
	var to blocks.PeerID
	if id, rest, ok := strings.Cut(addr, "@"); ok {
		var err error
		if to, err = parseName(id); err != nil {
			return err
		}
		addr = rest
	}
	id, err := p.hello(ctx, to, addr)
	if err != nil {
		return fmt.Errorf("join the ring at %s: %w", addr, err)
	}
	if id == p.cfg.Self {
		return fmt.Errorf("%w: %s is this peer itself", blocks.ErrUnavailable, addr)
	}
	return p.gossip.join(id)
}

// hello exchanges membership with the peer at addr and returns who it is.
func (p *Peer) hello(ctx context.Context, to blocks.PeerID, addr string) (blocks.PeerID, error) {
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	h := hello{p.cfg.Ring, p.ms.records(true)[:1]}
	resp, err := p.cfg.Transport.Call(ctx, to, addr, Control, Call{Kind: KindHello, Body: h.encode()})
	if err == nil {
		resp, err = Unreply(resp)
	}
	if err != nil {
		return blocks.PeerID{}, err
	}
	answer, err := decodeHello(resp.Body)
	if err != nil {
		return blocks.PeerID{}, err
	}
	p.merge(answer.records)
	p.publish()
	return answer.records[0].id, nil
}

func (p *Peer) serveHello(_ context.Context, from blocks.PeerID, req Call) (Call, error) {
	h, err := decodeHello(req.Body)
	if err != nil {
		return Call{}, err
	}
	if h.ring != p.cfg.Ring {
		return Call{}, fmt.Errorf("%w: this is another ring", blocks.ErrRefused)
	}
	if h.records[0].id == from { // one speaks for oneself only
		p.merge(h.records[:1])
		p.publish()
	}
	answer := hello{p.cfg.Ring, p.ms.records(false)}
	return Call{Kind: req.Kind, Body: answer.encode()}, nil
}

// leaveTold is how many peers Leave tells itself; the gossip tells the others.
const leaveTold = 8

// Leave tells the ring that this peer holds nothing any more and leaves on
// purpose. What it held must have been drained before.
func (p *Peer) Leave(ctx context.Context) error {
	select {
	case <-p.started:
	case <-ctx.Done():
		return ended(ctx, "leave the ring: the peer does not run")
	}
	p.tell(func(m *meta) { m.left = true })
	told, others := 0, 0
	for id, info := range p.Table().Peers {
		if id == p.cfg.Self || info.Live != Alive {
			continue
		}
		if others++; others > leaveTold {
			break
		}
		if _, err := p.hello(ctx, id, info.Addr); err == nil {
			told++
		}
	}
	if others > 0 && told == 0 {
		return fmt.Errorf("%w: no peer was told that this one leaves", blocks.ErrUnavailable)
	}
	return nil
}
