package store

import (
	"sync"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// breakFor is how long a peer that could not be reached counts as not up: long
// enough to keep a burst of puts from trying it one by one, short enough to
// leave the judgement to the membership.
const breakFor = time.Second

// breaker remembers which peers did not answer just now. There is at most one entry
// per peer of the ring.
type breaker struct {
	mu    sync.Mutex
	until map[blocks.PeerID]time.Time
}

func (b *breaker) open(p blocks.PeerID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	until, ok := b.until[p]
	if ok && !time.Now().Before(until) {
		delete(b.until, p)
		ok = false
	}
	return ok
}

func (b *breaker) failed(p blocks.PeerID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.until == nil {
		b.until = map[blocks.PeerID]time.Time{}
	}
	b.until[p] = time.Now().Add(breakFor)
}

func (b *breaker) answered(p blocks.PeerID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.until, p)
}

// fullFor is how long a virtual disk that was full is not tried again by hand-off.
const fullFor = 5 * time.Minute

// fullDisks remembers which virtual nodes had no space. There is at most one entry for
// each of the ring.
type fullDisks struct {
	mu    sync.Mutex
	until map[blocks.VnodeID]time.Time
}

func (f *fullDisks) add(v blocks.VnodeID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.until == nil {
		f.until = map[blocks.VnodeID]time.Time{}
	}
	f.until[v] = time.Now().Add(fullFor)
}

func (f *fullDisks) list() map[blocks.VnodeID]bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := map[blocks.VnodeID]bool{}
	for v, until := range f.until {
		if time.Now().Before(until) {
			list[v] = true
		} else {
			delete(f.until, v)
		}
	}
	return list
}
