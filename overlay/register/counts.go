package register

import (
	"context"
	"sync"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

// Counts says how well registers are protected.
type Counts struct {
	Protected   uint64 // on all their home peers, all of these up to date; deleted ones do not count
	Degraded    uint64 // readable and writable, but not so
	Unavailable uint64 // fewer than a majority of the replicas answer
	Backlog     uint64 // of the degraded ones, those that can be helped now
	Complete    bool   // nothing is known to have changed since they were counted
	TableHash   uint64 // of the membership that they were counted for
}

func (c *Counts) add(d Counts) {
	c.Protected += d.Protected
	c.Degraded += d.Degraded
	c.Unavailable += d.Unavailable
	c.Backlog += d.Backlog
}

// countsReply is a peer's counts: of its scan number Completed; the first scan
// that begins after the request is number Next.
type countsReply struct {
	Session, Completed, Next uint64
	Counts                   Counts
}

func (r *countsReply) encode() overlay.Call {
	var e blocks.Encoder
	e.Uint64(r.Session)
	for _, n := range []uint64{r.Completed, r.Next, r.Counts.Protected, r.Counts.Degraded, r.Counts.Unavailable, r.Counts.Backlog} {
		e.Uint(n)
	}
	e.Bool(r.Counts.Complete)
	e.Uint64(r.Counts.TableHash)
	return overlay.Call{Body: e.Buf}
}

func decodeCounts(c overlay.Call) (countsReply, error) {
	d := blocks.NewDecoder(c.Body)
	r := countsReply{Session: d.Uint64(), Completed: d.Uint(), Next: d.Uint(),
		Counts: Counts{d.Uint(), d.Uint(), d.Uint(), d.Uint(), d.Bool(), d.Uint64()}}
	return r, d.Done()
}

// serveCounts answers with the counts of the last scan; the body, one byte, asks
// for a new one if it is 1.
func (s *Service) serveCounts(_ context.Context, _ blocks.PeerID, req overlay.Call) (overlay.Call, error) {
	d := blocks.NewDecoder(req.Body)
	kick := d.Bool()
	if err := d.Done(); err != nil {
		return overlay.Call{}, err
	}
	w := &s.work
	w.mu.Lock()
	r := countsReply{s.session, w.completed, w.begun + 1, w.counts}
	r.Counts.Complete = w.completed > 0 && w.moves == w.seen && len(w.dirty) == 0
	if kick {
		w.asked = max(w.asked, w.begun+1)
	}
	w.mu.Unlock()
	if kick {
		w.wake()
	}
	return r.encode(), nil
}

// Counts returns what the last scan found of the registers that this peer
// takes care of: each is counted by one peer, the first of its view that is reachable.
func (s *Service) Counts() Counts {
	s.work.mu.Lock()
	defer s.work.mu.Unlock()
	return s.work.counts
}

// RingCounts is the state of all registers of the ring.
type RingCounts struct {
	Counts        // summed; Complete only if all reachable storage peers answered, each completely and for this peer's table
	Peers    int  // reachable storage peers
	Answered int  // of them, those that said what they know
	Fresh    bool // of a Watch: all of it was found after the Watch was made
}

// Watch follows the state of the ring from the moment it was made.
type Watch struct {
	s      *Service
	rounds overlay.Rounds
}

// Watch begins to watch: all peers are asked to look anew.
func (s *Service) Watch() *Watch { return &Watch{s: s} }

// Counts asks all reachable storage peers. When it is Fresh and Protected is
// all there is, then all registers made before the Watch were found fully protected since.
func (w *Watch) Counts(ctx context.Context) (RingCounts, error) { return w.s.ringCounts(ctx, w) }

// RingCounts asks all reachable storage peers what they know already; it is never Fresh.
func (s *Service) RingCounts(ctx context.Context) (RingCounts, error) { return s.ringCounts(ctx, nil) }

func (s *Service) ringCounts(ctx context.Context, w *Watch) (RingCounts, error) {
	t := s.ring.Table()
	sum := RingCounts{Fresh: w != nil, Counts: Counts{Complete: true, TableHash: t.PlacementHash()}}
	var mu sync.Mutex
	var wg sync.WaitGroup
	var last error
	for id, p := range t.Peers {
		if p.Vnodes == 0 || !p.Live.Reachable() {
			continue
		}
		sum.Peers++
		wg.Go(func() {
			r, err := s.countsOf(ctx, id, w != nil && !w.rounds.Asked(id))
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				last = err
				return
			}
			sum.Answered++
			sum.add(r.Counts)
			sum.Complete = sum.Complete && r.Counts.Complete && r.Counts.TableHash == sum.TableHash
			sum.Fresh = sum.Fresh && w.rounds.Fresh(id, r.Session, r.Completed, r.Next)
		})
	}
	wg.Wait()
	sum.Complete = sum.Complete && sum.Answered == sum.Peers && sum.Peers > 0
	sum.Fresh = sum.Fresh && sum.Complete
	if sum.Answered == 0 {
		return sum, last
	}
	return sum, nil
}

func (s *Service) countsOf(ctx context.Context, p blocks.PeerID, kick bool) (countsReply, error) {
	var e blocks.Encoder
	e.Bool(kick)
	resp, err := s.call(ctx, p, overlay.Metadata, overlay.Call{Kind: kindCounts, Body: e.Buf}, s.cfg.CallTry)
	if err != nil {
		return countsReply{}, err
	}
	return decodeCounts(resp)
}
