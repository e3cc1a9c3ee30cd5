package content

import (
	"context"
	"fmt"
	"sync"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
)

// room counts the memory of data that is not committed yet. The limit is soft by one
// slab for each writer that got through before it was reached.
type room struct {
	limit int64

	mu    sync.Mutex
	used  int64
	freed chan struct{} // closed when memory is freed and somebody waits; else nil
}

func (r *room) add(n int64) {
	r.mu.Lock()
	r.used += n
	if n < 0 && r.freed != nil && r.used < r.limit {
		close(r.freed)
		r.freed = nil
	}
	r.mu.Unlock()
}

func (r *room) inUse() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.used
}

// wait returns when there is room for a write. full is called before it waits.
func (r *room) wait(ctx context.Context, full func()) error {
	for {
		r.mu.Lock()
		if r.used < r.limit {
			r.mu.Unlock()
			return nil
		}
		if !tree.MayWait(ctx) {
			r.mu.Unlock()
			return tree.ErrWait
		}
		if r.freed == nil {
			r.freed = make(chan struct{})
		}
		freed := r.freed
		r.mu.Unlock()
		full()
		select {
		case <-freed:
		case <-ctx.Done():
			return fmt.Errorf("wait for room for dirty data: %w (%w)", blocks.ErrUnavailable, ctx.Err())
		}
	}
}
