package store

import (
	"context"
	"sync"
	"time"
)

// burst is how far ahead of its rate a limiter lets the bytes go.
const burst = time.Second

// limiter spreads bytes over time.
type limiter struct {
	rate int64 // bytes/s

	mu   sync.Mutex
	next time.Time // when the bytes granted so far are over
}

// wait grants n bytes, when it is their turn.
func (l *limiter) wait(ctx context.Context, n int64) error {
	l.mu.Lock()
	now := time.Now()
	if l.next.Before(now) {
		l.next = now
	}
	delay := l.next.Sub(now) - burst
	l.next = l.next.Add(time.Duration(float64(n) / float64(l.rate) * float64(time.Second)))
	l.mu.Unlock()
	return sleep(ctx, delay)
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
