package overlay

import (
	"context"
	"sync"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// Pace of the watch.
const (
	watchTick    = 500 * time.Millisecond
	tableEvery   = 20 * time.Millisecond // at most one snapshot in each, unless a hint asks for it
	saveEvery    = 2 * time.Second
	seedEvery    = 2 * time.Second
	seedSlowest  = 5 * time.Second
	strangerRest = time.Second // between questions about strangers
)

// watch moves the silent along their time scales, pings whoever is not alive,
// for ever, joins again those whom the gossip lost, and has snapshots made and saved.
func (p *Peer) watch(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	tick := time.NewTicker(watchTick)
	defer tick.Stop()
	saved, seeded, asked, pause := time.Now(), time.Time{}, time.Time{}, seedEvery
	for ctx.Err() == nil {
		p.ms.age()
		p.publish()
		for _, id := range p.ms.due(p.jitter) {
			wg.Go(func() { p.ping(ctx, id) })
		}
		now := time.Now()
		if now.Sub(saved) >= saveEvery && p.ms.takeUnsaved() {
			p.save()
			saved = now
		}
		if len(p.cfg.Seeds) > 0 && now.Sub(seeded) >= pause && p.ms.alone() {
			seeded, pause = now, min(2*pause, seedSlowest)
			wg.Go(func() { p.seed(ctx) })
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		case <-p.wake:
			rest(ctx, tableEvery)
		case who := <-p.strangers:
			if now.Sub(asked) >= strangerRest {
				asked = now
				wg.Go(func() { p.whoIs(ctx, who) })
			}
		}
	}
}

// rest waits for d or the end of ctx.
func rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// ping asks a peer that is not alive whether it is there. If the gossip has lost it, the
// two tables are compared: so two parts of a ring find together again.
func (p *Peer) ping(ctx context.Context, id blocks.PeerID) {
	ping, cancel := context.WithTimeout(ctx, p.cfg.Timings.PingTimeout)
	defer cancel()
	_, err := p.Call(ping, id, Control, Call{Kind: KindPing})
	if ctx.Err() != nil {
		return
	}
	p.ms.pinged(id, err == nil)
	p.poke()
	if err != nil {
		return
	}
	p.Reachable(id)
	if p.ms.lost(id) {
		p.compare(id)
	}
}

// compare exchanges whole tables with a peer.
func (p *Peer) compare(id blocks.PeerID) {
	if err := p.gossip.join(id); err != nil {
		p.log.Debug().Err(err).Stringer("peer", id).Msg("membership not compared")
	}
}

// A stranger is a peer that we do not know: gossip reaches nearly everybody, and calls and
// the pointers of Chord find out who was missed. Whoever named the stranger is asked for all that it
// knows. Like the news of a restart this makes the stranger a suspect, which is pinged at once.
type stranger struct {
	id blocks.PeerID
	by blocks.PeerID // who named it; zero: nobody but itself
}

// meet has strangers among the pointers that another peer named asked about soon.
func (p *Peer) meet(by blocks.PeerID, pointers ...Vnode) {
	for _, v := range pointers {
		if _, known := p.addr(v.Peer); !known && !v.ID.IsZero() {
			p.wonder(stranger{v.Peer, by})
			return
		}
	}
}

// wonder asks about a stranger soon, unless it is busy with another: then it will be met again.
func (p *Peer) wonder(who stranger) {
	select {
	case p.strangers <- who:
	default:
	}
}

// whoIs asks about a peer now, unless we know it, and waits for the answer.
func (p *Peer) whoIs(ctx context.Context, who stranger) {
	if _, known := p.addr(who.id); known {
		return
	}
	select {
	case p.learning <- struct{}{}: // the answer holds everybody: one for all who ask at once
		defer func() { <-p.learning }()
	case <-ctx.Done():
		return
	}
	t := p.Table()
	if _, known := t.Peers[who.id]; known {
		return
	}
	addr, ok := p.addr(who.by)
	if !ok || who.by == p.cfg.Self {
		if who.by, addr, ok = p.anybody(t); !ok {
			return
		}
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Timings.PingTimeout)
	defer cancel()
	if _, err := p.hello(ctx, who.by, addr); err != nil {
		p.log.Debug().Err(err).Stringer("stranger", who.id).Stringer("peer", who.by).Msg("not told who a stranger is")
	}
}

// anybody returns a peer that is alive, at random.
func (p *Peer) anybody(t *Table) (id blocks.PeerID, addr string, ok bool) {
	p.rngMu.Lock()
	from := p.rng.IntN(len(t.infos))
	p.rngMu.Unlock()
	for i := range t.infos {
		if info := &t.infos[(from+i)%len(t.infos)]; info.Live == Alive && info.ID != p.cfg.Self {
			return info.ID, info.Addr, true
		}
	}
	return id, "", false
}

func (p *Peer) seed(ctx context.Context) {
	if err := p.Join(ctx, p.cfg.Seeds); err != nil && ctx.Err() == nil {
		p.log.Info().Err(err).Msg("no seed reached yet")
	}
}

// save gives the Store what a restart must know.
func (p *Peer) save() {
	if p.cfg.Store == nil {
		return
	}
	rs := p.ms.records(false)
	if err := p.cfg.Store.Save(encodeSaved(p.cfg.Ring, rs[0].meta.incarnation, rs[1:])); err != nil {
		p.log.Warn().Err(err).Msg("the list of known peers is not saved")
	}
}
