package content

import (
	"container/list"
	"context"
	"sync"

	"github.com/mutualfs/mutualfs/blocks"
)

// cache keeps stripe content in clear, whole or in units of Unit bytes. Stripes never
// change, so it is always right. The least recently used stripe goes first.
type cache struct {
	limit int64
	fetch func(ctx context.Context, ref blocks.StripeRef, off uint32, p []byte) error

	mu      sync.Mutex
	used    int64
	stripes map[blocks.StripeID]*cached
	lru     *list.List // of *cached, the most recent first
}

// cached is what is known of one stripe. The cache's mu guards it; the bytes never change.
type cached struct {
	ref   blocks.StripeRef
	at    *list.Element
	units [][]byte // each of Unit bytes, the last one shorter; nil: not there
	mem   int64
	going []*fetching
}

// fetching is a range of units being fetched.
type fetching struct {
	from, to int // units
	done     chan struct{}
}

func newCache(limit int64, fetch func(context.Context, blocks.StripeRef, uint32, []byte) error) *cache {
	return &cache{limit: limit, fetch: fetch, stripes: make(map[blocks.StripeID]*cached), lru: list.New()}
}

func (c *cache) bytes() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.used
}

// entry returns the stripe's entry, made if need be. The caller holds mu.
func (c *cache) entry(ref blocks.StripeRef) *cached {
	e := c.stripes[ref.ID]
	if e == nil {
		e = &cached{ref: ref, units: make([][]byte, (int(ref.Len)+Unit-1)/Unit)}
		e.at = c.lru.PushFront(e)
		c.stripes[ref.ID] = e
		return e
	}
	c.lru.MoveToFront(e.at)
	return e
}

// take returns the units [from, to) if all are there. The caller holds mu.
func (e *cached) take(from, to int) ([][]byte, bool) {
	for _, u := range e.units[from:to] {
		if u == nil {
			return nil, false
		}
	}
	return e.units[from:to], true
}

// copyUnits copies stripe bytes from off, the first of which lies in the first unit.
func copyUnits(units [][]byte, off int, p []byte) {
	for _, u := range units {
		p = p[copy(p, u[off:]):]
		off = 0
	}
}

// tryRead fills p from off if it is all there.
func (c *cache) tryRead(ref blocks.StripeRef, off uint32, p []byte) bool {
	from, to := unitsOf(off, len(p))
	c.mu.Lock()
	e := c.stripes[ref.ID]
	if e == nil || to > len(e.units) {
		c.mu.Unlock()
		return false
	}
	units, ok := e.take(from, to)
	if ok {
		c.lru.MoveToFront(e.at)
		units = append([][]byte(nil), units...)
	}
	c.mu.Unlock()
	if ok {
		copyUnits(units, int(off)%Unit, p)
	}
	return ok
}

// unitsOf returns the range of units that bytes [off, off+n) lie in, n > 0.
func unitsOf(off uint32, n int) (from, to int) {
	return int(off) / Unit, (int(off) + n + Unit - 1) / Unit
}

// read fills p from off; what is missing is fetched, the whole stripe if whole. Those who miss the
// same units wait for one fetch.
func (c *cache) read(ctx context.Context, ref blocks.StripeRef, off uint32, p []byte, whole bool) error {
	from, to := unitsOf(off, len(p))
	for {
		c.mu.Lock()
		e := c.entry(ref)
		if units, ok := e.take(from, to); ok {
			units = append([][]byte(nil), units...)
			c.mu.Unlock()
			copyUnits(units, int(off)%Unit, p)
			return nil
		}
		a, b := e.missing(from, to, whole)
		if g := e.goingOn(a, b); g != nil {
			c.mu.Unlock()
			select {
			case <-g.done:
				continue // there now, or its fetcher failed: then this one tries
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		g := &fetching{from: a, to: b, done: make(chan struct{})}
		e.going = append(e.going, g)
		c.mu.Unlock()
		buf, err := c.fill(ctx, e, g)
		if err != nil {
			return err
		}
		if a <= from && to <= b { // straight from what was fetched, it may be evicted already
			copy(p, buf[int(off)-a*Unit:])
			return nil
		}
	}
}

// warm fetches what is missing of bytes [off, off+n), or the whole stripe.
func (c *cache) warm(ctx context.Context, ref blocks.StripeRef, off uint32, n int, whole bool) error {
	from, to := unitsOf(off, n)
	c.mu.Lock()
	e := c.entry(ref)
	if _, ok := e.take(from, to); ok {
		c.mu.Unlock()
		return nil
	}
	a, b := e.missing(from, to, whole)
	if e.goingOn(a, b) != nil {
		c.mu.Unlock()
		return nil
	}
	g := &fetching{from: a, to: b, done: make(chan struct{})}
	e.going = append(e.going, g)
	c.mu.Unlock()
	_, err := c.fill(ctx, e, g)
	return err
}

// missing returns the range of units to fetch: the first run that is missing, or all.
func (e *cached) missing(from, to int, whole bool) (int, int) {
	if whole {
		return 0, len(e.units)
	}
	for e.units[from] != nil {
		from++
	}
	end := from + 1
	for end < to && e.units[end] == nil {
		end++
	}
	return from, end
}

// goingOn returns a fetch that overlaps the range of units.
func (e *cached) goingOn(from, to int) *fetching {
	for _, g := range e.going {
		if g.from < to && from < g.to {
			return g
		}
	}
	return nil
}

// fill fetches the units of g into the entry and returns their bytes.
func (c *cache) fill(ctx context.Context, e *cached, g *fetching) ([]byte, error) {
	off := g.from * Unit
	buf := make([]byte, min(g.to*Unit, int(e.ref.Len))-off)
	err := c.fetch(ctx, e.ref, uint32(off), buf)
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, o := range e.going {
		if o == g {
			e.going = append(e.going[:i], e.going[i+1:]...)
			break
		}
	}
	close(g.done)
	if err != nil {
		return nil, err
	}
	if c.stripes[e.ref.ID] != e { // evicted while it was fetched
		return buf, nil
	}
	for i := g.from; i < g.to; i++ {
		if e.units[i] == nil {
			at := (i - g.from) * Unit
			e.units[i] = buf[at:min(at+Unit, len(buf)):min(at+Unit, len(buf))]
			e.mem += int64(len(e.units[i]))
			c.used += int64(len(e.units[i]))
		}
	}
	c.evict()
	return buf, nil
}

// evict drops the least recently used stripes until the limit is kept. The caller holds mu.
func (c *cache) evict() {
	for c.used > c.limit || len(c.stripes) > maxCached {
		last := c.lru.Back()
		if last == nil {
			return
		}
		e := last.Value.(*cached)
		c.lru.Remove(last)
		delete(c.stripes, e.ref.ID)
		c.used -= e.mem
	}
}

// drop empties the cache.
func (c *cache) drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.stripes)
	c.lru.Init()
	c.used = 0
}

// maxCached bounds the stripes in the cache, whatever their size.
const maxCached = 1 << 16
