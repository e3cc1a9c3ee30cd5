package content

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
)

// Fsync makes the file's data and metadata durable.
func (fs *Files) Fsync(ctx context.Context, ino tree.Ino) error {
	if err := fs.FlushFile(ctx, ino); err != nil {
		return err
	}
	return fs.cfg.Inodes.Fsync(ctx, ino)
}

// Flush is close: Fsync in mode SyncClose, else it reports an error that came late, once.
func (fs *Files) Flush(ctx context.Context, ino tree.Ino) error {
	if fs.cfg.Sync == SyncClose {
		return fs.Fsync(ctx, ino)
	}
	f := fs.table.find(ino)
	if f == nil {
		return nil
	}
	defer fs.table.release(f)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failed == nil || f.told {
		return nil
	}
	f.told = true
	return fmt.Errorf("earlier data of inode %d: %w", ino, f.failed)
}

// Dirty reports whether the file has data that is not committed.
func (fs *Files) Dirty(ino tree.Ino) bool {
	f := fs.table.find(ino)
	if f == nil {
		return false
	}
	defer fs.table.release(f)
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.clean()
}

// FlushFile returns when all data that was written before the call is committed. What can
// not be (ErrNoSpace, say) is reported after an attempt of its own; what may
// heal is tried until ctx ends. The data stays and is tried on in either case.
func (fs *Files) FlushFile(ctx context.Context, ino tree.Ino) error {
	f := fs.table.find(ino)
	if f == nil {
		return nil
	}
	defer fs.table.release(f)
	f.urgent.Add(1)
	defer f.urgent.Add(-1)
	f.mu.Lock()
	target, fails := f.last, f.fails
	f.mu.Unlock()
	fs.again(f, fs.pipe.due(time.Time{}, f)) // an attempt of its own, whatever the pause
	var pause time.Duration
	for {
		f.mu.Lock()
		changed, err, failed := f.changed, f.failed, f.fails > fails
		done, idle := f.flushed(target)
		lost := f.lost()
		f.mu.Unlock()
		switch {
		case done && lost:
			return fs.report(f, err)
		case done:
			return nil
		case !tree.MayWait(ctx):
			return tree.ErrWait
		case failed && !transient(err):
			return fs.report(f, err)
		}
		var e error
		if idle {
			e = fs.seal(ctx, f, time.Time{})
		}
		fs.pipe.hurry(f)
		if e == nil {
			e = fs.commitReady(ctx, f)
		}
		if pause = nextPause(pause, e); e != nil {
			err = e
		}
		if !wait(ctx, changed, pause) {
			if err == nil {
				err = blocks.ErrUnavailable
			}
			return fs.report(f, fmt.Errorf("%w (%w)", err, ctx.Err()))
		}
	}
}

// nextPause is how long to wait after err: longer each time, not at all without one.
func nextPause(last time.Duration, err error) time.Duration {
	if err == nil {
		return 0
	}
	return min(max(2*last, backoffMin), backoffMax)
}

// wait waits for a change, or if pause is not 0 for so long; false says that ctx ended before.
func wait(ctx context.Context, changed <-chan struct{}, pause time.Duration) bool {
	var after <-chan time.Time
	if pause != 0 {
		after, changed = time.After(pause), nil
	}
	select {
	case <-changed:
	case <-after:
	case <-ctx.Done():
		return false
	}
	return true
}

// report notes that the caller has been told of err.
func (fs *Files) report(f *file, err error) error {
	f.mu.Lock()
	f.told = true
	f.mu.Unlock()
	return fmt.Errorf("write out inode %d: %w", f.ino, err)
}

// transient reports whether waiting may help.
func transient(err error) bool {
	return !errors.Is(err, blocks.ErrNoSpace) && !errors.Is(err, blocks.ErrRefused) && !errors.Is(err, blocks.ErrInvalid)
}

// flushed reports whether all records up to target are committed, and whether there
// is something that can be frozen now. The caller holds f.mu.
func (f *file) flushed(target tree.Seq) (done, idle bool) {
	done = f.grown == 0 || len(f.slots) > 0
	for _, s := range f.slots {
		if s.frozen != nil && s.frozen.first <= target {
			done = false
		}
		if s.dirty != nil && s.dirty.first <= target {
			done = false
			idle = idle || s.frozen == nil
		}
	}
	return done || f.dropped, idle
}

// Sync returns when all data written before is committed.
func (fs *Files) Sync(ctx context.Context) error {
	files := fs.table.all()
	for _, f := range files { // all are under way before the first is waited for
		fs.background(ctx, f, true)
	}
	var first error
	for _, f := range files {
		// Data of a file that another mount has removed is its writer's loss, not everybody's.
		if err := fs.FlushFile(ctx, f.ino); err != nil && first == nil && !errors.Is(err, syscall.ESTALE) {
			first = err
		}
		fs.table.release(f)
	}
	return first
}

// seal freezes the file's slabs that were begun before cutoff (all if it is zero) into jobs.
func (fs *Files) seal(ctx context.Context, f *file, cutoff time.Time) error {
	fold, cuts := fs.readFold(ctx, f, cutoff)
	defer fs.freeFold(fold)
	if err := f.commit.take(ctx); err != nil {
		return err
	}
	defer f.commit.give()
	c, err := fs.content(ctx, f)
	if err != nil {
		return err
	}
	fold = fs.sameFold(ctx, f, fold)
	f.mu.Lock()
	jobs := fs.freezeOld(f, c, cutoff, fold, cuts)
	if len(jobs) == 1 && jobs[0].inline {
		f.ready = append(f.ready, jobs[0])
		jobs = nil
	}
	f.mu.Unlock()
	fs.pipe.put(jobs...)
	return nil
}

// content is Inodes.Content for a file with dirty data, of extents those that a file has which may be inline: if the inode is
// gone, so is the data.
func (fs *Files) content(ctx context.Context, f *file) (tree.Content, error) {
	c, err := fs.cfg.Inodes.Content(ctx, f.ino, 0, tree.MaxInline)
	if gone(err) {
		fs.dropGone(f, err)
		return c, nil
	}
	if err != nil {
		f.fail(err)
	}
	return c, err
}

// freezeOld makes jobs. The caller holds f.mu and the commit token.
func (fs *Files) freezeOld(f *file, c tree.Content, cutoff time.Time, fold []folded, cuts uint64) []*job {
	size := f.size(c)
	if s := f.slots[0]; size <= tree.MaxInline && s != nil && s.dirty != nil && s.frozen == nil {
		if len(c.Extents) == 0 || s.dirty.covers(0, size) {
			j := f.freeze([]*slab{s.dirty})
			j.inline = true
			return []*job{j}
		}
	}
	var slabs []*slab
	for _, s := range f.slots {
		if s.dirty != nil && s.frozen == nil && (cutoff.IsZero() || s.dirty.born.Before(cutoff)) {
			fs.fold(f, s.dirty, fold, cuts)
			slabs = append(slabs, s.dirty)
		}
	}
	if len(slabs) == 0 {
		return nil
	}
	if len(c.Inline) > 0 {
		if s := f.slots[0]; s == nil || s.frozen == nil {
			first := fs.dirtySlab(f, 0, time.Now())
			fs.fillInline(first, c, f.cap)
			if !slices.Contains(slabs, first) {
				slabs = append(slabs, first)
			}
		}
	}
	return f.pack(slabs, fs.cfg.StripeSize, fs.cfg.MapBytes)
}

// pressure starts a flush because memory is short.
func (fs *Files) pressure() {
	select {
	case fs.press <- struct{}{}:
	default:
	}
}

// again queues what had failed.
func (fs *Files) again(f *file, list []delayed) {
	for _, d := range list {
		if d.j != nil {
			fs.pipe.put(d.j)
		} else if d.f != f {
			fs.enqueue(d.f)
		}
	}
}
