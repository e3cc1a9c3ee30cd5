package content

import (
	"context"
	"sort"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// writeLoop writes one stripe after the other.
func (fs *Files) writeLoop(ctx context.Context) {
	for {
		j := fs.pipe.next(ctx)
		if j == nil {
			return
		}
		fs.writeJob(ctx, j)
	}
}

func (fs *Files) writeJob(ctx context.Context, j *job) {
	fs.discard(j)
	j.f.mu.Lock()
	empty := j.empty()
	j.f.mu.Unlock()
	if empty { // cut away meanwhile: nothing to store, but to be taken off the file
		fs.pipe.gone()
		fs.markReady(j)
		fs.enqueue(j.f)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	content, done := j.content(fs.pool)
	receipt, err := fs.cfg.Stripes.Write(ctx, fs.cfg.Inodes.OwnerOf(j.f.ino), content)
	done()
	if err != nil {
		fs.pipe.gone()
		fs.retry(j, err)
		return
	}
	j.receipt = receipt
	fs.pipe.wrote(j)
}

// discard gives up the stripe that a job has written, unless it may be the file's.
func (fs *Files) discard(j *job) {
	if j.receipt.Ref.Len > 0 && !j.named {
		fs.cfg.Stripes.Discard(j.receipt)
	}
	j.receipt, j.named = blocks.Receipt{}, false
}

// retry has a job written again after a pause.
func (fs *Files) retry(j *job, err error) {
	j.tries++
	fs.cfg.Log.Warn().Uint64("ino", uint64(j.f.ino)).Int("tries", j.tries).Err(err).Msg("stripe not stored, will be tried again")
	fs.pipe.later(j.f, j, j.tries-1)
	j.f.fail(err)
}

// markReady hands a job on to whoever commits the file first: a task, or a call that waits for it.
func (fs *Files) markReady(j *job) {
	j.f.mu.Lock()
	j.f.ready = append(j.f.ready, j)
	j.f.notify()
	j.f.mu.Unlock()
}

// syncLoop makes written stripes durable, many at a time: what is written during one
// sync gathers for the next.
func (fs *Files) syncLoop(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-fs.pipe.kick:
		case <-timer.C:
		}
		jobs, wait := fs.pipe.batch(fs.cfg.SyncBytes, fs.room.inUse() > fs.cfg.DirtyLimit/2)
		if len(jobs) > 0 {
			fs.syncBatch(ctx, jobs)
			fs.pipe.synced()
			fs.pipe.hurrySync()
		} else if wait > 0 {
			timer.Reset(wait)
		}
	}
}

func (fs *Files) syncBatch(ctx context.Context, jobs []*job) {
	receipts := make([]blocks.Receipt, len(jobs))
	for i, j := range jobs {
		receipts[i] = j.receipt
	}
	sctx, cancel := context.WithTimeout(ctx, storeTimeout)
	lost, err := fs.cfg.Stripes.Sync(sctx, receipts)
	cancel()
	if err != nil {
		for _, j := range jobs {
			fs.retry(j, err)
		}
		return
	}
	for _, i := range lost {
		if i >= 0 && i < len(jobs) && jobs[i] != nil {
			fs.discard(jobs[i])
			fs.pipe.put(jobs[i])
			jobs[i] = nil
		}
	}
	files := make(map[*file]bool)
	for _, j := range jobs {
		if j != nil {
			j.tries = 0
			fs.markReady(j)
			files[j.f] = true
		}
	}
	for f := range files {
		fs.background(ctx, f, false)
	}
}

// enqueue asks for a background task for the file; one is enough until it begins.
func (fs *Files) enqueue(f *file) bool {
	if f.queued.Swap(true) {
		return true
	}
	select {
	case fs.tasks <- f:
		return true
	default:
		f.queued.Store(false) // the queue is full: the flusher finds it again
		return false
	}
}

// background is enqueue that waits for room in the queue. all: whatever is dirty, not only what is old.
func (fs *Files) background(ctx context.Context, f *file, all bool) {
	if all {
		f.all.Store(true)
	}
	if f.queued.Swap(true) {
		return
	}
	select {
	case fs.tasks <- f:
	case <-ctx.Done():
		f.queued.Store(false)
	}
}

// taskLoop seals what is old in files and commits what is durable.
func (fs *Files) taskLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case f := <-fs.tasks:
			f.queued.Store(false)
			fs.task(ctx, f)
		}
	}
}

func (fs *Files) task(ctx context.Context, f *file) {
	ctx, cancel := context.WithTimeout(ctx, taskTimeout)
	defer cancel()
	now := time.Now()
	cutoff := now.Add(-fs.cfg.MaxAge / 2) // with what is old goes what soon will be
	all := f.all.Swap(false)
	if all {
		cutoff = time.Time{}
	}
	f.mu.Lock()
	old := f.oldest()
	f.mu.Unlock()
	if !old.IsZero() && (all || now.Sub(old) >= fs.cfg.MaxAge) {
		if err := fs.seal(ctx, f, cutoff); err != nil {
			return // noted; the flusher comes again
		}
	}
	fs.table.keep(f)
	_ = fs.commitReady(ctx, f) // a failure is noted in the file, logged and tried again
	fs.table.release(f)
}

// flushLoop finds what is old, what is to be tried again and, when memory is short, what is to
// go first.
func (fs *Files) flushLoop(ctx context.Context) {
	tick := time.NewTicker(max(min(fs.cfg.MaxAge/4, 250*time.Millisecond), time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-fs.press:
			fs.relieve(ctx)
			wait(ctx, nil, relievePause)
		case now := <-tick.C:
			fs.again(nil, fs.pipe.due(now, nil))
			fs.flushOld(ctx, now)
		}
	}
}

// flushOld asks for a task for each file with data older than MaxAge.
func (fs *Files) flushOld(ctx context.Context, now time.Time) {
	for _, f := range fs.table.all() {
		f.mu.Lock()
		old := f.oldest()
		due := !old.IsZero() && now.Sub(old) >= fs.cfg.MaxAge
		due = due || (len(f.slots) == 0 && f.grown != 0) || (len(f.ready) > 0 && f.failed == nil)
		due = due && !now.Before(f.retryAt)
		f.mu.Unlock()
		if due {
			fs.background(ctx, f, false)
		}
		fs.table.release(f)
	}
}

// relieve flushes the files with the oldest data until no more than a quarter of the
// limit would be left, and has what is written synced.
func (fs *Files) relieve(ctx context.Context) {
	type dirty struct {
		f   *file
		old time.Time
		mem int64
	}
	var list []dirty
	var total int64
	for _, f := range fs.table.all() {
		d := dirty{f: f}
		f.mu.Lock()
		d.old = f.oldest()
		for _, s := range f.slots {
			if s.dirty != nil {
				d.mem += s.dirty.mem
			}
		}
		f.mu.Unlock()
		fs.table.release(f)
		total += d.mem
		if !d.old.IsZero() {
			list = append(list, d)
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].old.Before(list[j].old) })
	for _, d := range list {
		if total <= fs.cfg.DirtyLimit/4 {
			break
		}
		total -= d.mem
		fs.background(ctx, d.f, true)
	}
	fs.pipe.hurrySync()
}
