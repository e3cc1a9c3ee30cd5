package store

import (
	"context"
	"sync"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

const (
	// minRest and maxRest bound how long the repairer waits after a round in which something failed.
	minRest = time.Second
	maxRest = time.Minute
)

// status is what the repairer says of itself.
type status struct {
	boot uint64        // random: which run of the process the round numbers are of
	kick chan struct{} // of one: begin a round now

	mu        sync.Mutex
	begun     uint64 // rounds begun, and so the number of the last
	completed uint64 // number of the last round that was completed
	counts    Counts
}

func (s *status) begin() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begun++
	return s.begun
}

func (s *status) complete(round uint64, c Counts) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.Scanned = time.Now()
	s.completed, s.counts = round, c
}

// done takes finished work off the backlog, until the next round counts anew.
func (s *status) done(repaired, moved, bytes uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &s.counts
	c.RepairShards -= min(repaired, c.RepairShards)
	c.HandoffShards -= min(moved, c.HandoffShards)
	c.HandoffBytes -= min(bytes, c.HandoffBytes)
}

// wake begins a round soon.
func (s *status) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// repairLoop makes rounds: after a change of the table, when kicked, again and again while there
// is work, and else every ScanEvery.
func (s *Service) repairLoop(ctx context.Context) {
	last := map[segment]segmentState{}
	backoff := minRest
	for ctx.Err() == nil {
		number, began := s.status.begin(), time.Now()
		r := s.newRound(ctx)
		next, err := r.scan(ctx, last)
		if err != nil {
			return // only ctx ends a scan
		}
		last = next
		s.status.complete(number, r.counts)
		took := time.Since(began)
		done, failed := r.work(ctx, max(sliceTime, took))
		var rest time.Duration
		switch {
		case failed > 0 && done == 0 || !r.counts.Complete:
			rest, backoff = backoff, min(2*backoff, maxRest)
		case done > 0:
			backoff = minRest
		default:
			rest, backoff = s.cfg.ScanEvery, minRest
			if r.counts.Settling > 0 {
				rest = min(rest, s.cfg.Settle)
			}
			if r.surplus {
				rest = min(rest, grace)
			}
		}
		s.waitForRound(ctx, max(rest, took), r.table)
	}
}

// waitForRound returns when the next round is due.
func (s *Service) waitForRound(ctx context.Context, rest time.Duration, table uint64) {
	t := time.NewTimer(rest)
	defer t.Stop()
	for {
		changed := s.cfg.Ring.Changed()
		if s.cfg.Ring.Table().PlacementHash() != table {
			_ = sleep(ctx, s.cfg.TableDelay)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			return
		case <-s.status.kick:
			return
		case <-changed:
		}
	}
}

// countsRequest asks for a peer's counts; kick: begin a round now.
type countsRequest struct{ kick bool }

func (m *countsRequest) encode(e *blocks.Encoder) { e.Bool(m.kick) }
func (m *countsRequest) decode(d *blocks.Decoder) { m.kick = d.Bool() }

// countsReply says which round the counts are of, and the number of the first round that
// begins after the request was served.
type countsReply struct {
	boot, completed, next uint64
	counts                Counts
}

func (m *countsReply) encode(e *blocks.Encoder) {
	e.Uint64(m.boot)
	e.Uint(m.completed)
	e.Uint(m.next)
	m.counts.encode(e)
}

func (m *countsReply) decode(d *blocks.Decoder) {
	m.boot, m.completed, m.next = d.Uint64(), d.Uint(), d.Uint()
	m.counts.decode(d)
}

func (s *Service) serveCounts(_ context.Context, _ blocks.PeerID, req overlay.Call) (overlay.Call, error) {
	var m countsRequest
	if err := decode("counts", req.Body, &m); err != nil {
		return overlay.Call{}, err
	}
	s.status.mu.Lock()
	reply := countsReply{s.status.boot, s.status.completed, s.status.begun + 1, s.status.counts}
	s.status.mu.Unlock()
	if m.kick {
		s.status.wake()
	}
	return answer(req, &reply)
}

// Counts returns what this peer's last round found; zero for a client, and before the first round.
func (s *Service) Counts() Counts {
	s.status.mu.Lock()
	defer s.status.mu.Unlock()
	return s.status.counts
}

// RingCounts is the state of all stripes of the ring.
type RingCounts struct {
	Counts        // summed; Complete only if all live storage peers answered, each completely and for this peer's table
	Peers    int  // live storage peers
	Answered int  // of them, those that said what they know
	Fresh    bool // of a Watch: all of it was found after the Watch was made
}

// Watch follows the state of the ring from the moment it was made.
type Watch struct {
	s      *Service
	rounds overlay.Rounds
}

// Watch begins to watch: all peers are asked to look anew. Nothing is running for it between the
// calls of Counts.
func (s *Service) Watch() *Watch { return &Watch{s: s} }

// Counts asks all live storage peers. When it is Fresh, and Whole, then all stripes written before
// the Watch was made were found fully protected since.
func (w *Watch) Counts(ctx context.Context) (RingCounts, error) { return w.s.ringCounts(ctx, w) }

// RingCounts asks all live storage peers what they know already; it is never Fresh.
func (s *Service) RingCounts(ctx context.Context) (RingCounts, error) { return s.ringCounts(ctx, nil) }

func (s *Service) ringCounts(ctx context.Context, w *Watch) (RingCounts, error) {
	t := s.cfg.Ring.Table()
	peers, hash := s.storagePeers(t), t.PlacementHash()
	sum := RingCounts{Peers: len(peers), Fresh: w != nil}
	sum.Complete = true
	var mu sync.Mutex
	answered, err := eachPeer(ctx, peers, func(ctx context.Context, p blocks.PeerID) error {
		var reply countsReply
		err := s.ask(ctx, p, overlay.Metadata, kindCounts, &countsRequest{w != nil && !w.rounds.Asked(p)}, &reply)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		c := &reply.counts
		sum.add(c)
		sum.Complete = sum.Complete && c.Complete && c.TableHash == hash
		if sum.Scanned.IsZero() || c.Scanned.Before(sum.Scanned) {
			sum.Scanned = c.Scanned
		}
		sum.Fresh = sum.Fresh && w.rounds.Fresh(p, reply.boot, reply.completed, reply.next)
		return nil
	})
	sum.Answered = len(answered)
	sum.TableHash = hash
	sum.Complete = sum.Complete && sum.Answered == sum.Peers && sum.Peers > 0
	sum.Fresh = sum.Fresh && sum.Complete
	if sum.Answered == 0 && err != nil {
		return sum, err
	}
	return sum, nil
}
