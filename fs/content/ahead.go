package content

import (
	"context"
	"sync"

	"github.com/mutualfs/mutualfs/fs/tree"
)

// Bounds of the detection of streams.
const (
	maxStreamFiles = 4096      // files whose streams are remembered
	streamsPerFile = 4         // readers of one file at different places
	streamSlack    = 512 << 10 // parallel reads of one stream may arrive so far out of order, bytes
	aheadQueue     = 256       // stripes waiting to be fetched ahead
	firstWindow    = 1 << 20   // bytes fetched ahead when a stream is seen first
)

// reader fetches stripes, on demand and ahead.
type reader struct {
	cfg   Config
	cache *cache
	queue chan tree.Extent

	mu      sync.Mutex
	streams map[tree.Ino]*[streamsPerFile]stream
}

// stream is a reader that goes through a file in order.
type stream struct {
	next   uint64 // where its furthest read ended
	ahead  uint64 // up to here it has been fetched, or asked for
	window int
	used   uint64 // for the choice of the one to forget
}

// plan is what the reading so far says about a read.
type plan struct{ sequential bool }

func newReader(cfg Config) *reader {
	return &reader{
		cfg: cfg, cache: newCache(cfg.CacheBytes, cfg.StripeSize, cfg.Stripes.Read),
		queue: make(chan tree.Extent, aheadQueue), streams: make(map[tree.Ino]*[streamsPerFile]stream),
	}
}

// plan notes a read and asks for what comes next if it continues a stream.
func (r *reader) plan(ino tree.Ino, c tree.Content, off uint64, n int) plan {
	if len(c.Extents) == 0 {
		return plan{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	all := r.streams[ino]
	if all == nil {
		r.forget()
		all = &[streamsPerFile]stream{}
		r.streams[ino] = all
	}
	s, known := match(all, off, uint64(n))
	if !known && off != 0 {
		return plan{}
	}
	r.extend(s, c)
	return plan{sequential: true}
}

// forget makes room for one more file. The caller holds mu.
func (r *reader) forget() {
	for ino := range r.streams {
		if len(r.streams) < maxStreamFiles {
			return
		}
		delete(r.streams, ino)
	}
}

// match finds the stream that a read belongs to, or begins one in place of the least recently used.
func match(all *[streamsPerFile]stream, off, n uint64) (s *stream, known bool) {
	var newest uint64
	old := &all[0]
	for i := range all {
		s := &all[i]
		newest = max(newest, s.used)
		if s.used < old.used {
			old = s
		}
	}
	for i := range all {
		s := &all[i]
		if s.used != 0 && s.continues(off) {
			s.next = max(s.next, off+n)
			s.used = newest + 1
			return s, true
		}
	}
	*old = stream{next: off + n, used: newest + 1}
	return old, false
}

// continues reports whether a read at off belongs to the stream: exactly at its end until it is one for
// sure, near it from then on.
func (s *stream) continues(off uint64) bool {
	if s.window == 0 {
		return off == s.next
	}
	return off+streamSlack >= s.next && off <= s.next+streamSlack
}

// extend widens the window and queues the stripes in it. What does not fit in the
// queue is asked for again by the next read. The caller holds mu; nothing waits.
func (r *reader) extend(s *stream, c tree.Content) {
	if s.window == 0 {
		s.window = min(firstWindow, r.cfg.ReadAhead)
		s.ahead = s.next
	}
	end := min(s.next+uint64(s.window), c.Size, c.Part.To)
	if end <= s.ahead {
		return
	}
	if s.ahead < s.next {
		s.ahead = s.next
	}
	for i := findExtent(c.Extents, s.ahead); i < len(c.Extents) && c.Extents[i].Off < end; i++ {
		e := c.Extents[i]
		select {
		case r.queue <- e:
			s.ahead = e.Off + e.Len
		default:
			return
		}
	}
	s.ahead = max(s.ahead, end)
	s.window = min(2*s.window, r.cfg.ReadAhead)
}

// aheadLoop fetches stripes into the cache.
func (r *reader) aheadLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-r.queue:
			r.fetchAhead(ctx, e)
		}
	}
}

func (r *reader) fetchAhead(ctx context.Context, e tree.Extent) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	if uint64(e.At)+e.Len > uint64(e.Stripe.Len) || e.Len == 0 {
		return
	}
	// A failure shows when the data is read.
	_ = r.cache.warm(ctx, e.Stripe, e.At, int(e.Len), wholeStripe(e, true))
}
