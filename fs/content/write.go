package content

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/mutualfs/mutualfs/fs/tree"
)

// Write journals p and takes it over at off, or at the end of the file if app. It
// waits while too much is dirty. p belongs to the caller again afterwards.
func (fs *Files) Write(ctx context.Context, ino tree.Ino, off uint64, p []byte, app bool) error {
	if len(p) == 0 {
		return nil
	}
	if err := fs.room.wait(ctx, fs.pressure); err != nil {
		return err
	}
	f := fs.table.acquire(ino)
	defer fs.table.release(f)
	if err := f.order.take(ctx); err != nil {
		return err
	}
	defer f.order.give()
	if app {
		var err error
		if off, err = fs.size(ctx, f); err != nil {
			return err
		}
	}
	if off > tree.MaxFile || uint64(len(p)) > tree.MaxFile-off {
		return syscall.EFBIG
	}
	f.mu.Lock()
	f.pend = tree.Seq(fs.last.Load()) + 1
	f.mu.Unlock()
	seq, err := fs.cfg.Inodes.AppendData(ctx, ino, off, p)
	if err != nil {
		f.mu.Lock()
		f.pend = 0
		f.mu.Unlock()
		return err
	}
	now := time.Now()
	if err := fs.take(f, seq, off, p, now); err != nil {
		return err
	}
	fs.cfg.Inodes.Grown(ino, off, uint64(len(p)), tree.TimeOf(now))
	return nil
}

// size returns the file's size. The caller holds the order token. Memory is looked at first, then the
// tree, so that growth that is being committed is not missed.
func (fs *Files) size(ctx context.Context, f *file) (uint64, error) {
	f.mu.Lock()
	grown := f.grown
	f.mu.Unlock()
	c, err := fs.cfg.Inodes.Content(ctx, f.ino, 0, 0)
	return max(c.Size, grown), err
}

// take copies a journaled write into memory. The caller holds the order token, or replays, in
// which case now is zero and full slabs wait: while older records are replayed over newer content, no
// state in between may be committed.
func (fs *Files) take(f *file, seq tree.Seq, off uint64, p []byte, now time.Time) error {
	for old := fs.last.Load(); old < uint64(seq) && !fs.last.CompareAndSwap(old, uint64(seq)); {
		old = fs.last.Load()
	}
	f.mu.Lock()
	f.pend = 0
	if f.dropped {
		f.mu.Unlock()
		return syscall.ESTALE
	}
	var mem int64
	var jobs []*job
	end := off + uint64(len(p))
	for at := off; at < end; {
		i := at / uint64(fs.cfg.StripeSize)
		next := min(end, (i+1)*uint64(fs.cfg.StripeSize))
		s := fs.dirtySlab(f, i, now)
		had := s.mem
		s.write(fs.pool, at, p[at-off:next-off])
		mem += s.mem - had
		if s.first == 0 {
			s.first = seq
		}
		s.last = seq
		if !now.IsZero() && f.slots[i].frozen == nil && s.full() {
			jobs = append(jobs, f.freeze([]*slab{s}))
		}
		at = next
	}
	f.last = seq
	if end > f.grown {
		f.grown, f.grownAt = end, seq
	}
	if !now.IsZero() {
		f.mtime = tree.TimeOf(now)
	}
	f.mu.Unlock()
	fs.room.add(mem)
	fs.pipe.put(jobs...)
	if fs.room.inUse() > fs.cfg.DirtyLimit/2 {
		fs.pressure()
	}
	return nil
}

// dirtySlab returns the slab of index i that takes writes. The caller holds f.mu.
func (fs *Files) dirtySlab(f *file, i uint64, now time.Time) *slab {
	sl := f.slots[i]
	if sl == nil {
		sl = &slot{}
		f.slots[i] = sl
	}
	if sl.dirty == nil {
		if now.IsZero() {
			now = time.Now()
		}
		sl.dirty = &slab{base: i * uint64(fs.cfg.StripeSize), size: fs.cfg.StripeSize, born: now}
	}
	return sl.dirty
}

// ReplayData takes over a data record of the journal. It never waits, whatever the limit.
func (fs *Files) ReplayData(ino tree.Ino, seq tree.Seq, off uint64, p []byte) {
	if len(p) == 0 || off > tree.MaxFile || uint64(len(p)) > tree.MaxFile-off {
		return
	}
	f := fs.table.acquire(ino)
	defer fs.table.release(f)
	if err := fs.take(f, seq, off, p, time.Time{}); err != nil {
		fs.cfg.Log.Warn().Uint64("ino", uint64(ino)).Err(err).Msg("journaled data of a removed file dropped")
		return
	}
	// The journal does not say when it was written. Too late a time of modification makes backups and builds look
	// once more, too early a one would let them miss the change. A utimes after the write wins: see tree.Writeback.
	f.mu.Lock()
	f.mtime = tree.TimeOf(time.Now())
	f.mu.Unlock()
}

// Truncate cuts or grows the file to size.
func (fs *Files) Truncate(ctx context.Context, ino tree.Ino, size uint64) error {
	return fs.resize(ctx, ino, size, false)
}

// Grow makes the file at least size bytes long. Unlike Truncate it never shortens it.
func (fs *Files) Grow(ctx context.Context, ino tree.Ino, size uint64) error {
	return fs.resize(ctx, ino, size, true)
}

func (fs *Files) resize(ctx context.Context, ino tree.Ino, size uint64, growOnly bool) error {
	if size > tree.MaxFile {
		return syscall.EFBIG
	}
	f := fs.table.acquire(ino)
	defer fs.table.release(f)
	if err := f.order.take(ctx); err != nil {
		return err
	}
	defer f.order.give()
	if growOnly {
		if old, err := fs.size(ctx, f); err != nil || old >= size {
			return err
		}
	}
	return fs.change(ctx, f, func() { fs.trim(f, size) }, func() { f.cap, f.least = size, size },
		func(ctx context.Context) error { return fs.cfg.Inodes.Truncate(ctx, ino, size) })
}

// Punch makes [off, off+n) a hole; the size stays.
func (fs *Files) Punch(ctx context.Context, ino tree.Ino, off, n uint64) error {
	if n == 0 {
		return nil
	}
	f := fs.table.acquire(ino)
	defer fs.table.release(f)
	if err := f.order.take(ctx); err != nil {
		return err
	}
	defer f.order.give()
	return fs.change(ctx, f, func() { fs.punch(f, off, n) }, func() {},
		func(ctx context.Context) error { return fs.cfg.Inodes.Punch(ctx, ino, off, n) })
}

// change makes a cut in memory and in the tree, in step with writers (the caller holds the order
// token) and commits. If the tree can answer at once, both happen between two commits. Else memory is
// cut first, and the commit token given back, for the tree may have to flush
// this very file before it can go on; what pending sets tells commits about the size meanwhile.
func (fs *Files) change(ctx context.Context, f *file, cut, pending func(), call func(context.Context) error) error {
	if err := f.commit.take(ctx); err != nil {
		return err
	}
	err := call(tree.NoWait(ctx))
	if err == nil {
		cut()
	}
	if !errors.Is(err, tree.ErrWait) || !tree.MayWait(ctx) {
		f.commit.give()
		return err
	}
	cut()
	f.mu.Lock()
	pending()
	f.pending = true
	f.mu.Unlock()
	f.commit.give()
	err = call(ctx)
	f.mu.Lock()
	f.cap, f.least, f.pending = noCap, 0, false
	f.mu.Unlock()
	return err
}

// TrimFile removes what is dirty beyond size.
func (fs *Files) TrimFile(ino tree.Ino, size uint64) {
	if f := fs.table.find(ino); f != nil {
		fs.trim(f, size)
		fs.table.release(f)
	}
}

// PunchFile removes what is dirty in [off, off+n).
func (fs *Files) PunchFile(ino tree.Ino, off, n uint64) {
	if f := fs.table.find(ino); f != nil {
		fs.punch(f, off, n)
		fs.table.release(f)
	}
}

func (fs *Files) trim(f *file, size uint64) {
	fs.cut(f, size, noCap)
	f.mu.Lock()
	f.grown = min(f.grown, size)
	f.mu.Unlock()
}

func (fs *Files) punch(f *file, off, n uint64) {
	end := off + n
	if end < off {
		end = noCap
	}
	fs.cut(f, off, end)
}

// cut removes dirty and frozen bytes of [from, to). Slabs with nothing left in them are freed.
func (fs *Files) cut(f *file, from, to uint64) {
	var freed []*slab
	f.mu.Lock()
	f.cuts++
	if f.mtime != 0 {
		f.mtime = max(f.mtime, tree.TimeOf(time.Now()))
	}
	for i, s := range f.slots {
		if s.frozen != nil {
			s.frozen.cut(from, to)
		}
		if s.dirty == nil {
			continue
		}
		if s.dirty.cut(from, to); len(s.dirty.pieces) == 0 {
			freed = append(freed, s.dirty)
			if s.dirty = nil; s.frozen == nil {
				delete(f.slots, i)
			}
		}
	}
	f.notify()
	f.mu.Unlock()
	fs.free(freed...)
}

// free gives back the memory of slabs that nothing refers to any more.
func (fs *Files) free(slabs ...*slab) {
	for _, s := range slabs {
		for _, b := range s.bufs {
			fs.pool.put(b)
		}
		fs.room.add(-s.mem)
		s.bufs, s.pieces, s.mem = nil, nil, 0
	}
}

// SetMtime is to be called before an mtime is set in the tree, so that no later Writeback undoes it.
func (fs *Files) SetMtime(ctx context.Context, ino tree.Ino, t tree.Time) error {
	f := fs.table.find(ino)
	if f == nil {
		return nil
	}
	defer fs.table.release(f)
	if err := f.commit.take(ctx); err != nil {
		return err
	}
	f.mu.Lock()
	f.mtime = t
	f.mu.Unlock()
	f.commit.give()
	return nil
}

// DropFile forgets all dirty data of an inode that is gone.
func (fs *Files) DropFile(ino tree.Ino) {
	f := fs.table.find(ino)
	if f == nil {
		return
	}
	defer fs.table.release(f)
	fs.drop(f)
}

func (fs *Files) drop(f *file) {
	fs.cut(f, 0, noCap)
	f.mu.Lock()
	f.dropped, f.failed = true, nil
	f.grown = 0
	f.notify()
	f.mu.Unlock()
}
