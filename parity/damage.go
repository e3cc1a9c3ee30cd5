package parity

import (
	"context"
	"slices"
	"sync"

	"github.com/mutualfs/mutualfs/blocks"
)

type damage struct {
	stripe           blocks.StripeID
	shards           int // of the stripe
	missing, corrupt []int
}

// damageQueue hands damage from readers to Run. A stripe that waits already is
// not queued twice; when the queue is full, reports are dropped.
type damageQueue struct {
	queue   chan damage
	mu      sync.Mutex
	waiting map[blocks.StripeID]struct{}
}

func (q *damageQueue) init(n int) {
	q.queue = make(chan damage, n)
	q.waiting = map[blocks.StripeID]struct{}{}
}

// report never waits; false if the report was dropped.
func (q *damageQueue) report(d damage) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, dup := q.waiting[d.stripe]; dup {
		return true
	}
	select {
	case q.queue <- d:
		q.waiting[d.stripe] = struct{}{}
		return true
	default:
		return false
	}
}

// run passes reports on, one at a time, until ctx ends.
func (q *damageQueue) run(ctx context.Context, tell func(damage)) {
	for {
		select {
		case <-ctx.Done():
			return
		case d := <-q.queue:
			q.mu.Lock()
			delete(q.waiting, d.stripe)
			q.mu.Unlock()
			tell(d)
		}
	}
}

// tellDamage confirms a report and passes it on. A reader only knows that a
// shard was not on its home: when the ring has changed, it may well be on another
// peer, and there is nothing to repair.
func (s *Store) tellDamage(ctx context.Context, d damage) {
	if s.cfg.OnDamage == nil {
		return
	}
	if len(d.missing) > 0 {
		d.missing = s.stillMissing(ctx, d)
	}
	if len(d.missing)+len(d.corrupt) > 0 && ctx.Err() == nil {
		s.cfg.OnDamage(d.stripe, d.missing, d.corrupt)
	}
}

// stillMissing asks homes and stand-ins and returns which of the missing shards
// none of those that answered has.
func (s *Store) stillMissing(ctx context.Context, d damage) []int {
	near, err := s.homes(ctx, d.stripe, d.shards)
	if err != nil {
		return nil
	}
	v := &survey{j: job{id: d.stripe}, asked: map[blocks.PeerID]bool{}}
	s.ask(ctx, v, near)
	return slices.DeleteFunc(slices.Clone(d.missing), func(i int) bool {
		return slices.ContainsFunc(v.found, func(f Found) bool { return int(f.Header.Index) == i })
	})
}
