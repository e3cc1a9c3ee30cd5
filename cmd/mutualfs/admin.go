package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
	"github.com/mutualfs/mutualfs/overlay/register"
	"github.com/mutualfs/mutualfs/overlay/store"
)

// controlHandler answers the other commands.
func (p *peer) controlHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /process", answer(func(*http.Request) (processInfo, error) { return processInfo{os.Getpid()}, nil }))
	mux.Handle("GET /status", answer(func(r *http.Request) (statusReport, error) { return p.status(r.Context(), p.known()) }))
	mux.Handle("POST /wait", stream(p.watch))
	mux.Handle("GET /ring", answer(func(r *http.Request) (ringReport, error) {
		return p.ringReport(r.Context(), r.URL.Query().Get("check") != "")
	}))
	mux.Handle("GET /locate", answer(func(r *http.Request) (locateReport, error) {
		return p.locate(r.Context(), r.URL.Query().Get("path"))
	}))
	mux.Handle("POST /scrub", stream(p.scrub))
	mux.Handle("POST /check", stream(p.check))
	handleProfiles(mux)
	return mux
}

// counts asks all peers how many stripes and registers they take care of, and how well those are protected.
type counts struct {
	stripes   func(ctx context.Context) (store.RingCounts, error)
	registers func(ctx context.Context) (register.RingCounts, error)
	watched   bool
}

// known is what the peers know already; watched, what they find from now on.
func (p *peer) known() counts { return counts{p.shards.RingCounts, p.registers.RingCounts, false} }

func (p *peer) watched() counts {
	return counts{p.shards.Watch().Counts, p.registers.Watch().Counts, true}
}

// status asks the ring.
func (p *peer) status(ctx context.Context, c counts) (statusReport, error) {
	t := p.ring.Table()
	d := p.dir
	s := statusReport{Ring: d.ring.Ring, Peer: p.ring.Self(), Tolerate: d.ring.Tolerate, Peers: peerReports(t)}
	stripes, err := c.stripes(ctx)
	if err != nil {
		return s, fmt.Errorf("count stripes: %w", err)
	}
	regs, err := c.registers(ctx)
	if err != nil {
		return s, fmt.Errorf("count registers: %w", err)
	}
	s.Stripes = stripeCounts{stripes.Protected, stripes.Degraded, stripes.Away, stripes.Settling, stripes.Lost}
	s.Registers = registerCounts{regs.Protected, regs.Degraded, regs.Unavailable}
	s.Backlog = backlog{stripes.HandoffShards, stripes.HandoffBytes, stripes.RepairShards, regs.Backlog}
	s.Fresh = stripes.Complete && regs.Complete
	if c.watched {
		s.Fresh = stripes.Fresh && regs.Fresh
	}
	if !stripes.Scanned.IsZero() {
		s.Counted = &stripes.Scanned
	}
	shape := shape{k: d.ring.DataShards, m: d.ring.Tolerate, stripes: s.Stripes, registers: s.Registers}
	for _, info := range t.Peers {
		if info.Capacity > 0 && info.Live.Counts() {
			shape.counting++
			if info.Live == overlay.Alive {
				shape.alive++
			}
		}
	}
	s.MayFail, s.Health = shape.mayFail(), shape.health()
	if v := p.volume.Load(); v != nil {
		st := v.files.Status()
		s.Mount = &mountReport{Mountpoint: v.mountpoint, Dirty: uint64(st.DirtyBytes), Errors: st.LastError}
	}
	return s, nil
}

func peerReports(t *overlay.Table) []peerReport {
	var list []peerReport
	for _, i := range t.Peers {
		list = append(list, peerReport{ID: i.ID, Address: i.Addr, Zone: i.Zone, Capacity: i.Capacity, Used: i.Used,
			Vnodes: i.Vnodes, State: i.Live.String(), Since: i.Since})
	}
	slices.SortFunc(list, func(a, b peerReport) int { return a.ID.Compare(b.ID.ID) })
	return list
}

// watch emits the status until the client goes. It is fresh only when what the mount had written before is stored and
// has been counted since.
func (p *peer) watch(r *http.Request, emit func(statusReport)) error {
	ctx := r.Context()
	stored := make(chan struct{})
	go func() {
		defer close(stored)
		p.storeMount(ctx)
	}()
	defer func() { <-stored }()
	w, counting := p.watched(), false
	tick := time.NewTicker(waitPoll)
	defer tick.Stop()
	for {
		select {
		case <-stored:
			if !counting {
				w, counting = p.watched(), true
			}
		default:
		}
		s, err := p.status(ctx, w)
		if err != nil {
			p.log.Debug().Err(err).Msg("wait: the ring could not be asked")
			s.Health = healthUnavailable
		}
		s.Fresh = s.Fresh && counting
		emit(s)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// storeMount has everything stored that was written to the mount before, if there is one, however long it takes.
func (p *peer) storeMount(ctx context.Context) {
	for ctx.Err() == nil {
		v := p.volume.Load()
		if v == nil {
			return
		}
		err := v.store(ctx)
		if err == nil {
			return
		}
		p.log.Debug().Err(err).Msg("wait: not everything could be stored yet")
		select {
		case <-ctx.Done():
		case <-time.After(waitPoll):
		}
	}
}

// ringReport gathers the virtual nodes of all peers.
func (p *peer) ringReport(ctx context.Context, check bool) (ringReport, error) {
	t := p.ring.Table()
	var r ringReport
	for id, info := range t.Peers {
		if info.Vnodes == 0 || !info.Live.Counts() {
			continue
		}
		list, err := p.ring.PeerRingInfo(ctx, id)
		if err != nil {
			for i := range info.Vnodes {
				r.Vnodes = append(r.Vnodes, vnodeReport{ID: overlay.VnodePosition(t.Ring, id, i), Peer: id, Address: info.Addr, Index: i})
			}
			continue
		}
		for _, v := range list {
			x := vnodeReport{ID: v.Vnode.ID, Peer: id, Address: info.Addr, Index: v.Vnode.Index, Reachable: true}
			if v.Predecessor != nil {
				x.Predecessor = v.Predecessor.ID.String()
			}
			for _, s := range v.Successors {
				x.Successors = append(x.Successors, s.ID)
			}
			for _, f := range v.Fingers {
				x.Fingers = append(x.Fingers, f.Vnode.ID)
			}
			r.Vnodes = append(r.Vnodes, x)
		}
	}
	slices.SortFunc(r.Vnodes, func(a, b vnodeReport) int { return a.ID.Compare(b.ID.ID) })
	if check {
		c, err := p.ring.Check(ctx)
		if err != nil {
			return r, err
		}
		r.Check = &checkReport{Routes: uint64(c.Routes), Failures: uint64(c.Failed), MeanHops: c.MeanHops(), MaxHops: c.MaxHops, Errors: c.Failures}
	}
	return r, nil
}

// scrubEvery is how many blocks pass between two reports of progress.
const scrubEvery = 64

func (p *peer) scrub(r *http.Request, emit func(scrubReport)) error {
	if p.disks == nil {
		return fmt.Errorf("%w: the peer in %s is a client and stores nothing", blocks.ErrInvalid, p.dir.path)
	}
	report, err := p.shards.Scrub(r.Context(), func(done, total uint64) {
		if done%scrubEvery == 0 {
			emit(scrubReport{Done: done, Total: total})
		}
	})
	last := scrubReport{Done: report.Shards, Total: report.Shards, Damaged: uint64(len(report.Damaged)),
		Repaired: uint64(report.Repaired), Unrepaired: uint64(report.Unrepaired), Finished: err == nil}
	if err != nil {
		last.Error = err.Error()
	}
	emit(last)
	return nil
}
