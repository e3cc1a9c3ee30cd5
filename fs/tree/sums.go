package tree

import (
	"sync"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// sumAge is how long a sum is good: far less than between the end of a mount's trust in a lease and the moment when others may take it.
const sumAge = 100 * time.Millisecond

// sums remembers what the pages of large directories add to their attributes. The kernel asks for these after each change of a
// name, and to walk over hundreds of pages each time would make a name dearer the more there are.
type sums struct {
	mu  sync.Mutex
	of  map[blocks.RegisterID]*dirSum // by the directory's head
	gen uint64                        // the last one
}

type dirSum struct {
	pageSum           // what a walk has found, and what has changed since
	until   time.Time // before it the sum is good
	gen     uint64    // another one after every change that a walk may have seen or not
}

// get returns the sum of the pages of a directory if it is known, else the generation that a walk begins with.
func (s *sums) get(head blocks.RegisterID) (sum pageSum, gen uint64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.of[head]
	if d == nil {
		if s.of == nil {
			s.of = map[blocks.RegisterID]*dirSum{}
		}
		for id, old := range s.of {
			if len(s.of) < maxSums {
				break
			}
			if time.Now().After(old.until) {
				delete(s.of, id)
			}
		}
		s.gen++
		d = &dirSum{gen: s.gen}
		s.of[head] = d
	}
	return d.pageSum, d.gen, time.Now().Before(d.until)
}

// maxSums bounds the directories whose sums are remembered, those that were asked for just now aside.
const maxSums = 64

// put remembers what a walk has found that began with a generation.
func (s *sums) put(head blocks.RegisterID, gen uint64, sum pageSum) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.of[head]; d != nil && d.gen == gen {
		sum.mtime, sum.ctime = max(sum.mtime, d.mtime), max(sum.ctime, d.ctime)
		d.pageSum, d.until = sum, time.Now().Add(sumAge)
	}
}

// add says that a page was changed by an operation of this mount.
func (s *sums) add(head blocks.RegisterID, subdirs int, mtime, ctime Time) {
	if head.IsZero() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.of[head]
	if d == nil {
		return
	}
	d.mtime, d.ctime = max(d.mtime, mtime), max(d.ctime, ctime)
	if subdirs != 0 {
		s.gen++
		d.subdirs, d.gen = d.subdirs+uint32(subdirs), s.gen
	}
}

// drop says that a page was changed otherwise, or may be by others.
func (s *sums) drop(head blocks.RegisterID) {
	if head.IsZero() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.of[head]; d != nil {
		s.gen++
		*d = dirSum{gen: s.gen}
	}
}
