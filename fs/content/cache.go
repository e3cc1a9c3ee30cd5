package content

import (
	"container/list"
	"context"
	"sync"

	"github.com/mutualfs/mutualfs/blocks"
)

// cache keeps stripe content in clear, whole or in units of Unit bytes. Stripes never
// change, so it is always right. The least recently used stripe goes first. Large stripes lie in chunks
// of an arena, which are used again: they are read under mu only.
type cache struct {
	limit  int64
	fetch  func(ctx context.Context, ref blocks.StripeRef, off uint32, p []byte) error
	chunks *arena

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
	chunk []byte   // that some of them lie in; nil: none
	mem   int64
	going []*fetching
}

// fetching is a range of units being fetched.
type fetching struct {
	from, to int // units
	done     chan struct{}
}

// spareBytes is what the chunks of evicted stripes may keep for those that come next.
const spareBytes = 16 << 20

// newCache makes an empty cache of at most limit bytes, and a little more while it fetches. chunk is the length of large stripes.
func newCache(limit int64, chunk int, fetch func(context.Context, blocks.StripeRef, uint32, []byte) error) *cache {
	return &cache{limit: limit, fetch: fetch, chunks: newArena(chunk, max(1, spareBytes/chunk)), stripes: make(map[blocks.StripeID]*cached), lru: list.New()}
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
	defer c.mu.Unlock()
	e := c.stripes[ref.ID]
	if e == nil || to > len(e.units) {
		return false
	}
	units, ok := e.take(from, to)
	if ok {
		c.lru.MoveToFront(e.at)
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
			copyUnits(units, int(off)%Unit, p)
			c.mu.Unlock()
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
		if a > from || to > b {
			if err := c.fill(ctx, e, g, 0, nil); err != nil {
				return err
			}
			continue
		}
		return c.fill(ctx, e, g, int(off)-a*Unit, p) // straight from what is fetched, it may be evicted at once
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
	return c.fill(ctx, e, g, 0, nil)
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

// fill fetches the units of g into the entry, and copies what was fetched, from its byte at, into p.
func (c *cache) fill(ctx context.Context, e *cached, g *fetching, at int, p []byte) error {
	off := g.from * Unit
	n := min(g.to*Unit, int(e.ref.Len)) - off
	c.mu.Lock()
	large := e.chunk == nil && n > c.chunks.size/2 && n <= c.chunks.size // nobody else fetches so much of it meanwhile
	c.mu.Unlock()
	var chunk, buf []byte
	if large {
		chunk = c.chunks.get()
		buf = chunk[:n]
	} else {
		buf = make([]byte, n)
	}
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
	if err == nil {
		copy(p, buf[at:])
	}
	if err != nil || c.stripes[e.ref.ID] != e { // failed, or evicted while it was fetched
		if chunk != nil {
			c.chunks.put(chunk)
		}
		return err
	}
	for i := g.from; i < g.to; i++ {
		if e.units[i] == nil {
			at := (i - g.from) * Unit
			e.units[i] = buf[at:min(at+Unit, len(buf)):min(at+Unit, len(buf))]
			if chunk == nil {
				c.charge(e, len(e.units[i]))
			}
		}
	}
	if chunk != nil {
		e.chunk = chunk
		c.charge(e, len(chunk))
	}
	c.evict()
	return nil
}

// charge counts memory that an entry holds. The caller holds mu.
func (c *cache) charge(e *cached, n int) {
	e.mem += int64(n)
	c.used += int64(n)
}

// forget drops an entry. The caller holds mu.
func (c *cache) forget(e *cached) {
	c.lru.Remove(e.at)
	delete(c.stripes, e.ref.ID)
	c.used -= e.mem
	if e.chunk != nil {
		c.chunks.put(e.chunk)
	}
}

// evict drops the least recently used stripes until the limit is kept. The caller holds mu.
func (c *cache) evict() {
	for c.used > c.limit || len(c.stripes) > maxCached {
		last := c.lru.Back()
		if last == nil {
			return
		}
		c.forget(last.Value.(*cached))
	}
}

// drop empties the cache.
func (c *cache) drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.lru.Len() > 0 {
		c.forget(c.lru.Back().Value.(*cached))
	}
}

// maxCached bounds the stripes in the cache, whatever their size.
const maxCached = 1 << 16
