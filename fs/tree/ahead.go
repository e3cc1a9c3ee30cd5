package tree

import (
	"context"
	"maps"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mutualfs/mutualfs/blocks"
)

// Directories are read ahead. Who lists a directory and then enters, or asks for, one of those in it goes on with the next in most
// cases: find, ls -l, rsync, tar. Each costs round trips to a majority of its replicas, one after the other for such a
// caller, so the next ones are read, and their leases taken, while he looks at this one.
const (
	aheadWindow   = 16      // directories that are read ahead of the one in use
	aheadParallel = 8       // at the same time
	aheadPlaces   = 1 << 14 // directories whose place in a listing is remembered
)

// place is where a listing had a directory: the i-th of ids. lease: the listed one is leased here.
type place struct {
	ids   []blocks.RegisterID
	i     int
	lease bool
}

// ahead remembers listings, and what is to be read for them.
type ahead struct {
	queue chan place // directories that came into use

	mu     sync.Mutex
	places map[blocks.RegisterID]place // of directories that are not in memory
}

func newAhead() ahead {
	return ahead{queue: make(chan place, aheadParallel), places: map[blocks.RegisterID]place{}}
}

// listed remembers the directories of a listing that are not in memory, in its order.
func (a *ahead) listed(ids []blocks.RegisterID, lease bool) {
	if len(ids) < 2 || len(ids) > aheadPlaces {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.places)+len(ids) > aheadPlaces {
		clear(a.places)
	}
	for i, id := range ids {
		a.places[id] = place{ids, i, lease}
	}
}

// missed is called when a container that is not in memory is asked for.
func (a *ahead) missed(id blocks.RegisterID) {
	a.mu.Lock()
	p, ok := a.places[id]
	delete(a.places, id)
	a.mu.Unlock()
	if ok {
		a.used(p)
	}
}

// used has those after p read ahead; not if there is much to read already.
func (a *ahead) used(p place) {
	select {
	case a.queue <- p:
	default:
	}
}

// take forgets and returns the places of those in the window behind p.
func (a *ahead) take(p place) map[blocks.RegisterID]place {
	out := map[blocks.RegisterID]place{}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, id := range p.ids[p.i+1 : min(p.i+1+aheadWindow, len(p.ids))] {
		if q, ok := a.places[id]; ok {
			out[id] = q
			delete(a.places, id)
		}
	}
	return out
}

// readAhead reads what has been asked for, until ctx ends.
func (t *Tree) readAhead(ctx context.Context) {
	var g errgroup.Group
	g.SetLimit(aheadParallel)
	defer func() { _ = g.Wait() }() // errors are those of whoever asks for the directory
	for {
		select {
		case <-ctx.Done():
			return
		case p := <-t.ahead.queue:
			for id, q := range maps.All(t.ahead.take(p)) {
				g.Go(func() error { t.readOneAhead(ctx, id, q); return nil })
			}
		}
	}
}

// readOneAhead brings a directory into memory unless somebody is at it.
func (t *Tree) readOneAhead(ctx context.Context, id blocks.RegisterID, p place) {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.CommitTimeout)
	defer cancel()
	c, err := t.cont(id)
	if err != nil {
		return
	}
	select {
	case c.busy <- struct{}{}:
		defer c.release()
	default:
		return
	}
	c.mu.Lock()
	idle := c.st == nil && !c.removed && !c.closed
	if idle {
		c.ahead = p
		c.reads, c.readsAt = readsForLease-1, time.Now() // the read that it is done for is the second
	}
	c.mu.Unlock()
	if !idle || t.validate(ctx, c) != nil || !p.lease {
		return
	}
	if err := t.maybeLease(ctx, c); err != nil {
		t.log.Debug().Err(err).Str("container", id.Short()).Msg("read a directory ahead")
	}
}

// noteUse is called when a container is asked for, with its mu held.
func (t *Tree) noteUse(c *container) {
	switch {
	case c.ahead.ids != nil:
		t.ahead.used(c.ahead)
		c.ahead = place{}
	case c.st == nil:
		t.ahead.missed(c.id)
	}
}
