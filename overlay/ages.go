package overlay

import (
	"sync"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

const (
	ageGeneration  = time.Minute // arrivals within it are remembered as one
	maxGenerations = 64
	maxAges        = 1 << 18 // IDs remembered, all generations together
)

// Ages remembers since when things have been here, by the monotonic clock of this process. What
// it says is a lower bound: things that it has forgotten, or that were here before the process, are as
// old as the time since which it remembers. The zero value is not ready; see NewAges.
type Ages struct {
	mu    sync.Mutex
	floor time.Time // nothing that arrived later has been forgotten
	gens  []ageGen  // oldest first
	count int
}

type ageGen struct {
	end time.Time // of the last arrival
	ids map[blocks.ID]struct{}
}

// NewAges returns a memory that begins now.
func NewAges() *Ages { return &Ages{floor: time.Now()} }

// Add notes that id is here now, unless it is known to have come before.
func (a *Ages) Add(id blocks.ID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range a.gens {
		if _, ok := a.gens[i].ids[id]; ok {
			return
		}
	}
	now := time.Now()
	if n := len(a.gens); n == 0 || now.Sub(a.begin(n-1)) >= ageGeneration || len(a.gens[n-1].ids) >= maxAges/4 {
		a.gens = append(a.gens, ageGen{ids: map[blocks.ID]struct{}{}})
	}
	g := &a.gens[len(a.gens)-1]
	g.end = now
	g.ids[id] = struct{}{}
	a.count++
	for len(a.gens) > 1 && (a.count > maxAges || len(a.gens) > maxGenerations) {
		a.floor = a.gens[0].end
		a.count -= len(a.gens[0].ids)
		a.gens = a.gens[1:]
	}
}

// begin is when a generation may have begun. mu must be held.
func (a *Ages) begin(i int) time.Time {
	if i == 0 {
		return a.floor
	}
	return a.gens[i-1].end
}

// Age returns for how long, at least, id has been here.
func (a *Ages) Age(id blocks.ID) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range a.gens {
		if _, ok := a.gens[i].ids[id]; ok {
			return time.Since(a.gens[i].end)
		}
	}
	return time.Since(a.floor)
}
