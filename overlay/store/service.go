package store

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

// Service puts, finds, hands back and repairs shards for one peer.
type Service struct {
	cfg  Config
	self blocks.PeerID

	breaker  breaker
	damage   damageQueue
	notes    *notes // nil without Local, like all that follows is unused
	arcs     *arcs
	young    young
	ages     *overlay.Ages // of the stripes that got a shard here
	fresh    young         // stripes that got a shard by hand-off or repair within the grace
	epochs   epochs
	guard    guard
	status   status
	full     fullDisks
	limit    limiter // of hand-off and repair
	moves    chan struct{}
	checks   chan struct{}
	draining atomic.Bool
}

// New checks the configuration, fills in defaults, and sets the handlers of the ring
// if this peer has storage. It starts nothing.
func New(cfg Config) (*Service, error) {
	cfg.fill()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Service{
		cfg:    cfg,
		self:   cfg.Ring.Self(),
		damage: damageQueue{queued: map[blocks.StripeID]bool{}, wake: make(chan struct{}, 1)},
		arcs:   newArcs(),
		young:  young{settle: cfg.Settle},
		ages:   overlay.NewAges(),
		fresh:  young{settle: grace},
		epochs: epochs{drive: map[int]blocks.Epoch{}},
		guard:  guard{pins: map[shardName]time.Time{}, drops: map[shardName]bool{}},
		status: status{kick: make(chan struct{}, 1)},
		limit:  limiter{rate: cfg.RepairRate},
		moves:  make(chan struct{}, maxMoves),
		checks: make(chan struct{}, maxChecks),
	}
	if cfg.Local == nil {
		return s, nil
	}
	var boot [8]byte
	if _, err := io.ReadFull(cfg.Rand, boot[:]); err != nil {
		return nil, fmt.Errorf("draw a random number: %w", err)
	}
	s.status.boot = binary.BigEndian.Uint64(boot[:])
	s.notes = &notes{kv: cfg.KV, life: 2*cfg.RepairAfter + 24*time.Hour, damaged: map[shardName]bool{}}
	if err := s.notes.load(); err != nil {
		return nil, fmt.Errorf("read the marks of damage: %w", err)
	}
	s.handle()
	return s, nil
}

// Run does the work of this peer for the ring until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	loops := []func(context.Context){s.damageLoop}
	if s.cfg.Local != nil {
		loops = append(loops, s.repairLoop, s.scrubLoop, s.forgetLoop)
	}
	var wg sync.WaitGroup
	for _, loop := range loops {
		wg.Go(func() { loop(ctx) })
	}
	wg.Wait()
	return nil
}

const (
	// forgetEvery is how often tombstones are looked through.
	forgetEvery = time.Hour
	// forgetBatch bounds the tombstones removed in one go.
	forgetBatch = 4096
	// maxAbsence bounds how long tombstones outlive their time because some
	// peer is away that might bring shards back.
	maxAbsence = 30 * 24 * time.Hour
)

// forgetLoop removes tombstones whose time is over, unless a storage peer is
// away: it may have what they are there for.
func (s *Service) forgetLoop(ctx context.Context) {
	for sleep(ctx, forgetEvery) == nil {
		now := time.Now()
		for _, p := range s.cfg.Ring.Table().Peers {
			if p.Vnodes > 0 && !p.Live.Reachable() && p.Live != overlay.Left {
				now = time.Now().Add(-maxAbsence)
			}
		}
		for ctx.Err() == nil {
			gone, err := s.notes.forget(now, forgetBatch)
			if err != nil {
				s.cfg.Log.Warn().Err(err).Msg("tombstones not looked through")
			}
			for _, stripe := range gone {
				s.arcs.touch(stripe)
			}
			if len(gone) < forgetBatch {
				break
			}
		}
	}
}
