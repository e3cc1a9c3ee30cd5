package parity

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/mutualfs/mutualfs/blocks"
)

// Store writes, reads, deletes and repairs stripes. Its methods may be called
// concurrently, before and while Run runs; after Run has ended they fail with ErrUnavailable.
type Store struct {
	cfg    Config
	vault  *vault // nil: storage only
	coders coders
	bufs   buffers
	bytes  *semaphore.Weighted // of MaxBytes
	damage damageQueue

	mu     sync.Mutex
	closed bool
	calls  sync.WaitGroup // goroutines of calls; added to under mu while not closed
	peers  map[blocks.PeerID]*peer
}

// New checks the configuration and the erasure code. It starts nothing.
func New(cfg Config) (*Store, error) {
	cfg.fill()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("parity: %w", err)
	}
	s := &Store{cfg: cfg, bytes: semaphore.NewWeighted(cfg.MaxBytes), peers: map[blocks.PeerID]*peer{}}
	s.damage.init(cfg.DamageQueue)
	if cfg.VolumeKey != nil {
		v, err := newVault(slices.Clone(cfg.VolumeKey))
		if err != nil {
			return nil, fmt.Errorf("parity: %w", err)
		}
		s.vault = v
	}
	if err := selfTest(&s.coders); err != nil {
		return nil, fmt.Errorf("parity: %w", err)
	}
	return s, nil
}

// Run reports damage until ctx ends, then refuses further work and waits for
// the calls under way, which their timeouts bound.
func (s *Store) Run(ctx context.Context) error {
	s.damage.run(ctx, func(d damage) { s.tellDamage(ctx, d) })
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.calls.Wait()
	return nil
}

// spawn runs f in a goroutine that Run waits for; false if the Store is closed.
func (s *Store) spawn(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.calls.Add(1)
	go func() {
		defer s.calls.Done()
		f()
	}()
	return true
}

func (s *Store) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

func errClosed() error { return fmt.Errorf("%w: the store is shut down", blocks.ErrUnavailable) }

// reserve waits until n bytes of shards may be under way and returns what gives
// them back. More than the limit counts as the limit.
func (s *Store) reserve(ctx context.Context, n int) (release func(), err error) {
	w := min(int64(n), s.cfg.MaxBytes)
	if err := s.bytes.Acquire(ctx, w); err != nil {
		return nil, fmt.Errorf("wait for memory for shards: %w", classed(err))
	}
	return func() { s.bytes.Release(w) }, nil
}

func (s *Store) sealer(id blocks.StripeID, g Geometry) (*sealer, error) {
	if s.vault == nil {
		return nil, fmt.Errorf("%w: stripe %s: no volume key here", blocks.ErrRefused, id.Short())
	}
	return s.vault.sealer(id, g)
}
