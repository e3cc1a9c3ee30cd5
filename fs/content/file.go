package content

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
)

// noCap says that no truncation is under way.
const noCap = ^uint64(0)

// file is the state of a file that is in use or has dirty data.
type file struct {
	ino    tree.Ino
	refs   int          // calls that use it; guarded by the shard's mu
	order  token        // journal order = memory order
	commit token        // commits, freezing and cuts exclude each other
	urgent atomic.Int32 // calls that wait for its data to be committed
	queued atomic.Bool  // a background task for it has been asked for
	all    atomic.Bool  // the task is to take all that is dirty

	mu      sync.Mutex
	slots   map[uint64]*slot // by index of the slab
	last    tree.Seq         // newest record that has reached memory
	pend    tree.Seq         // not 0: a record of at least this number is on its way
	grown   uint64           // where the furthest write ended, until a commit states that size; 0: none
	grownAt tree.Seq         // the record of that write: if its data is cut, its size remains
	mtime   tree.Time        // of the newest write; 0: none since the file was clean
	cap     uint64           // committed content beyond is being truncated away; else noCap
	least   uint64           // the size that a truncation under way gives the file; else 0
	pending bool             // memory is cut, the tree not yet
	cuts    uint64           // counts truncations and punches
	ready   []*job           // durable, not committed
	failed  error            // what keeps the data from being committed, nil after a success
	told    bool             // failed has been reported
	fails   uint64           // counts failures
	pause   time.Duration    // after the newest of them in a row
	retryAt time.Time        // no background task before
	dropped bool             // the inode is gone
	changed chan struct{}    // closed at each commit and failure
}

// slot is one aligned range of a file: what takes writes, and what is on its way out.
type slot struct{ dirty, frozen *slab }

func newFile(ino tree.Ino) *file {
	return &file{
		ino: ino, order: newToken(), commit: newToken(),
		slots: make(map[uint64]*slot), cap: noCap, changed: make(chan struct{}),
	}
}

// clean reports whether nothing of f needs to be kept. The caller holds mu.
func (f *file) clean() bool {
	return !f.lost() && len(f.slots) == 0 && f.grown == 0 && f.pend == 0 && len(f.ready) == 0 && f.cap == noCap
}

// lost reports whether data was dropped and nobody has been told of it. The caller holds mu.
func (f *file) lost() bool { return f.dropped && f.failed != nil && !f.told }

// size is the file's size, given its committed content. The caller holds mu.
func (f *file) size(c tree.Content) uint64 { return max(min(c.Size, f.cap), f.least, f.grown) }

// notify wakes those who wait for commits and failures. The caller holds mu.
func (f *file) notify() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// fail notes what keeps data from being committed.
func (f *file) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failed = err
	f.fails++
	f.pause = min(max(2*f.pause, backoffMin), backoffMax)
	f.retryAt = time.Now().Add(f.pause)
	f.notify()
}

// floor is the lowest record of which something is in memory only, 0 if there is none. The caller holds mu.
func (f *file) floor() tree.Seq {
	low := f.pend
	if f.grown != 0 && (low == 0 || f.grownAt < low) {
		low = f.grownAt
	}
	for _, s := range f.slots {
		for _, sl := range []*slab{s.dirty, s.frozen} {
			if sl != nil && sl.first != 0 && (low == 0 || sl.first < low) {
				low = sl.first
			}
		}
	}
	return low
}

// oldest is when the oldest dirty slab was begun; zero if there is none. The caller holds mu.
func (f *file) oldest() (t time.Time) {
	for _, s := range f.slots {
		if s.dirty != nil && s.frozen == nil && (t.IsZero() || s.dirty.born.Before(t)) {
			t = s.dirty.born
		}
	}
	return t
}

// token is a lock that is waited for under a context.
type token chan struct{}

func newToken() token { return make(token, 1) }

// take waits for the token; with tree.NoWait it is ErrWait if the token is not free.
func (t token) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	default:
	}
	if !tree.MayWait(ctx) {
		return tree.ErrWait
	}
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for another call on the file: %w (%w)", blocks.ErrUnavailable, ctx.Err())
	}
}

func (t token) give() { <-t }

// shards of the table of files: calls on different files seldom meet.
const shards = 64

type table [shards]struct {
	mu    sync.Mutex
	files map[tree.Ino]*file
}

// acquire returns the file's state and keeps it until release.
func (t *table) acquire(ino tree.Ino) *file {
	s := &t[uint64(ino)%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.files[ino]
	if f == nil {
		if s.files == nil {
			s.files = make(map[tree.Ino]*file)
		}
		f = newFile(ino)
		s.files[ino] = f
	}
	f.refs++
	return f
}

// keep is acquire for a file that the caller has; release follows.
func (t *table) keep(f *file) {
	s := &t[uint64(f.ino)%shards]
	s.mu.Lock()
	f.refs++
	s.mu.Unlock()
}

// find is acquire for a file that has state, else nil.
func (t *table) find(ino tree.Ino) *file {
	s := &t[uint64(ino)%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.files[ino]
	if f != nil {
		f.refs++
	}
	return f
}

// release gives back what acquire or find returned.
func (t *table) release(f *file) {
	s := &t[uint64(f.ino)%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	f.refs--
	if f.refs > 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.clean() && s.files[f.ino] == f {
		delete(s.files, f.ino)
	}
}

// all returns every file that has state, acquired.
func (t *table) all() (out []*file) {
	for i := range t {
		s := &t[i]
		s.mu.Lock()
		for _, f := range s.files {
			f.refs++
			out = append(out, f)
		}
		s.mu.Unlock()
	}
	return out
}
