package overlay

import (
	"context"
	"sync"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// Pace of the watch.
const (
	watchTick   = 500 * time.Millisecond
	tableEvery  = 20 * time.Millisecond // at most one snapshot in each, unless a hint asks for it
	saveEvery   = 2 * time.Second
	seedEvery   = 2 * time.Second
	seedSlowest = 5 * time.Second
	compareRest = time.Second // between comparisons of tables because of strangers
)

// watch moves the silent along their time scales, pings whoever is not alive,
// for ever, joins again those whom the gossip lost, and has snapshots made and saved.
func (p *Peer) watch(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	tick := time.NewTicker(watchTick)
	defer tick.Stop()
	saved, seeded, compared, pause := time.Now(), time.Time{}, time.Time{}, seedEvery
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
		case id := <-p.strangers:
			if now.Sub(compared) >= compareRest {
				compared = now
				wg.Go(func() { p.compare(id) })
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

// compareIfStrange has tables compared with a peer whose pointers lead to a
// peer that we do not know: gossip reaches nearly everybody, and Chord finds out who
// was missed.
func (p *Peer) compareIfStrange(with blocks.PeerID, pointers []Vnode) {
	t := p.Table()
	for _, v := range pointers {
		if _, ok := t.Peers[v.Peer]; !ok && !v.ID.IsZero() {
			select {
			case p.strangers <- with:
			default:
			}
			return
		}
	}
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
