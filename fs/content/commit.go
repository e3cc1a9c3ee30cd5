package content

import (
	"context"
	"errors"
	"slices"
	"syscall"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
)

// commitReady names the file's durable stripes (and inline content) in the tree and frees
// their memory. On failure they stay, and it is tried again later.
func (fs *Files) commitReady(ctx context.Context, f *file) error {
	if err := f.commit.take(ctx); err != nil {
		return err
	}
	defer f.commit.give()
	f.mu.Lock()
	idle := len(f.ready) == 0 && (f.grown == 0 || len(f.slots) > 0)
	f.mu.Unlock()
	if idle {
		return nil
	}
	c, err := fs.content(ctx, f)
	if err != nil {
		fs.pipe.later(f, nil, 0)
		return err
	}
	f.mu.Lock()
	w, jobs, redo := fs.build(f, c)
	first := name(w, jobs)
	f.mu.Unlock()
	fs.pipe.put(redo...)
	if w == nil {
		fs.finish(f, jobs, nil)
		return nil
	}
	err = fs.cfg.Inodes.Writeback(ctx, *w)
	if gone(err) {
		fs.dropGone(f, err)
		for _, j := range first {
			j.named = false // nobody's
		}
		err = nil
	}
	if err != nil {
		f.mu.Lock()
		f.ready = append(jobs, f.ready...)
		f.mu.Unlock()
		f.fail(err)
		fs.pipe.later(f, nil, 1)
		fs.cfg.Log.Warn().Uint64("ino", uint64(f.ino)).Err(err).Msg("content not committed, will be tried again")
		return err
	}
	fs.finish(f, jobs, w)
	return nil
}

// name marks the jobs whose stripes a Writeback names, and returns those that none has named before. The caller holds the
// file's mu.
func name(w *tree.Writeback, jobs []*job) (first []*job) {
	if w == nil {
		return nil
	}
	in := make(map[blocks.StripeID]bool, len(jobs))
	for i := range w.Extents {
		in[w.Extents[i].Stripe.ID] = true
	}
	for _, j := range jobs {
		if in[j.receipt.Ref.ID] && !j.named {
			j.named = true
			first = append(first, j)
		}
	}
	return first
}

// gone reports whether err proves that the inode does not exist.
func gone(err error) bool {
	return errors.Is(err, blocks.ErrNotFound) || errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ESTALE)
}

// dropGone drops the data of an inode that the tree says is gone: another mount has removed it, for what is removed here
// stays until its last handle is released. Who wrote the data is told once, at the next fsync or close.
func (fs *Files) dropGone(f *file, err error) {
	fs.cfg.Log.Warn().Uint64("ino", uint64(f.ino)).Err(err).Msg("data of a removed file dropped")
	fs.drop(f)
	f.mu.Lock()
	f.failed, f.told = syscall.ESTALE, false
	f.mu.Unlock()
}

// build takes the ready jobs and makes the Writeback of what they hold, nil if there is nothing to
// say. redo are jobs that have to be written (again) first. The caller holds f.mu and the commit token.
func (fs *Files) build(f *file, c tree.Content) (w *tree.Writeback, jobs, redo []*job) {
	if f.dropped {
		jobs, f.ready = f.ready, nil
		return nil, jobs, nil
	}
	w = &tree.Writeback{Ino: f.ino, Mtime: f.mtime}
	alone := len(f.ready) == 1
	ready := f.ready
	f.ready = nil
	for _, j := range ready {
		switch {
		case j.inline && !(alone && j.fitsInline(f, c)):
			j.inline = false
			fs.fillInline(j.slabs[0], c, f.cap)
			j.layOut()
			redo = append(redo, j)
		case j.inline:
			w.Inline = j.inlineContent(f, c)
			jobs = append(jobs, j)
		default:
			w.Extents = append(w.Extents, j.extents()...)
			jobs = append(jobs, j)
		}
	}
	slices.SortFunc(w.Extents, func(a, b tree.Extent) int {
		if a.Off < b.Off {
			return -1
		}
		return 1
	})
	rest := f.rest(jobs)
	w.Size = max(min(c.Size, f.cap), f.least)
	if n := len(w.Extents); n > 0 {
		w.Size = max(w.Size, w.Extents[n-1].Off+w.Extents[n-1].Len)
	}
	w.Size = max(w.Size, uint64(len(w.Inline)))
	w.Flushed = f.last
	if rest != nil {
		w.Flushed = *rest
		if w.Size < f.grown {
			w.Flushed = min(w.Flushed, f.grownAt-1)
		}
	} else {
		w.Size = max(w.Size, f.grown)
	}
	w.Flushed = max(w.Flushed, c.Flushed)
	if len(w.Extents) == 0 && w.Inline == nil && w.Size == c.Size {
		return nil, jobs, redo
	}
	return w, jobs, redo
}

// rest returns nil if the jobs hold all that is dirty, else the highest record before
// those that they do not hold. The caller holds f.mu.
func (f *file) rest(jobs []*job) *tree.Seq {
	mine := make(map[*slab]bool)
	for _, j := range jobs {
		for _, s := range j.slabs {
			mine[s] = true
		}
	}
	var low *tree.Seq
	for _, s := range f.slots {
		for _, sl := range []*slab{s.dirty, s.frozen} {
			if sl == nil || mine[sl] {
				continue
			}
			n := f.last
			if sl.first != 0 {
				n = sl.first - 1
			}
			if low == nil || n < *low {
				low = &n
			}
		}
	}
	return low
}

// fitsInline reports whether the file can be committed inline with this job: it is
// small, and all of it is known. The caller holds f.mu.
func (j *job) fitsInline(f *file, c tree.Content) bool {
	size := max(min(c.Size, f.cap), j.slabs[0].end())
	return size <= tree.MaxInline && (len(c.Extents) == 0 || j.slabs[0].covers(0, size))
}

// inlineContent is the whole content with the job's data. The caller holds f.mu.
func (j *job) inlineContent(f *file, c tree.Content) []byte {
	size := max(min(c.Size, f.cap), j.slabs[0].end())
	buf := make([]byte, size)
	copy(buf, c.Inline)
	var got spans
	j.slabs[0].overlay(0, buf, &got)
	return buf
}

// fillInline adds to the first slab what is inline, under no extent and not dirty, so that extents take the
// place of all that is inline. The caller holds f.mu.
func (fs *Files) fillInline(s *slab, c tree.Content, limit uint64) {
	var under spans
	for _, e := range c.Extents {
		under.add(e.Off, e.Off+e.Len)
	}
	had := s.mem
	_ = under.gaps(0, min(uint64(len(c.Inline)), limit), func(from, to uint64) error {
		s.fill(fs.pool, from, c.Inline[from:to])
		return nil
	})
	fs.room.add(s.mem - had)
}

// finish frees what was committed. w is nil if there was nothing to commit.
func (fs *Files) finish(f *file, jobs []*job, w *tree.Writeback) {
	var freed []*slab
	var next []*job
	f.mu.Lock()
	for _, j := range jobs {
		for _, s := range j.slabs {
			i := s.base / uint64(s.size)
			sl := f.slots[i]
			freed = append(freed, s)
			switch sl.frozen = nil; {
			case sl.dirty == nil:
				delete(f.slots, i)
			case sl.dirty.full():
				next = append(next, f.freeze([]*slab{sl.dirty}))
			}
		}
	}
	if f.dropped || (w == nil && len(f.slots) == 0) || (w != nil && w.Size >= f.grown) {
		f.grown = 0
	}
	f.failed, f.told, f.pause, f.retryAt = nil, false, 0, time.Time{}
	f.notify()
	f.mu.Unlock()
	fs.free(freed...)
	for _, j := range jobs {
		fs.discard(j)
	}
	fs.pipe.put(next...)
}
