package register

import (
	"context"
	"fmt"
	"sync"

	"github.com/mutualfs/mutualfs/blocks"
)

// maxWaiters bounds how many calls wait for one register.
const maxWaiters = 1024

// gate lets one caller at a time work on a register; callers may wait for
// each other, with their contexts, through I/O and calls, which a mutex must not.
type gate struct {
	mu    sync.Mutex
	slots map[blocks.RegisterID]*slot
}

type slot struct {
	token chan struct{}
	users int
}

// lock waits for the register; the function returned gives it up. ErrBusy:
// too many wait already.
func (g *gate) lock(ctx context.Context, id blocks.RegisterID) (func(), error) {
	g.mu.Lock()
	if g.slots == nil {
		g.slots = map[blocks.RegisterID]*slot{}
	}
	s := g.slots[id]
	if s == nil {
		s = &slot{token: make(chan struct{}, 1)}
		g.slots[id] = s
	}
	if s.users >= maxWaiters {
		g.mu.Unlock()
		return nil, fmt.Errorf("%w: %d calls wait for register %s", blocks.ErrBusy, s.users, id.Short())
	}
	s.users++
	g.mu.Unlock()
	select {
	case s.token <- struct{}{}:
		return func() { <-s.token; g.leave(id, s) }, nil
	case <-ctx.Done():
		g.leave(id, s)
		return nil, fmt.Errorf("wait for register %s: %w", id.Short(), context.Cause(ctx))
	}
}

func (g *gate) leave(id blocks.RegisterID, s *slot) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s.users--; s.users == 0 {
		delete(g.slots, id)
	}
}
