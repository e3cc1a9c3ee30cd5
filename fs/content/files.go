package content

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mutualfs/mutualfs/fs/tree"
)

// Bounds that are not configured.
const (
	taskWorkers  = 16                     // files sealed or committed in the background at the same time
	taskQueue    = 4096                   // files waiting for that
	syncAge      = 500 * time.Millisecond // a written stripe waits at most so long for its sync
	storeTimeout = 30 * time.Second       // one attempt at writing or syncing
	taskTimeout  = 10 * time.Second       // one attempt at committing in the background
	backoffMin   = 50 * time.Millisecond  // wait after a first failure, doubled with each
	backoffMax   = 5 * time.Second
	relievePause = 5 * time.Millisecond // between two searches for what to flush when memory is short
)

// Files is the content of all files of one mount.
type Files struct {
	cfg   Config
	pool  *pool
	room  room
	table table
	last  atomic.Uint64 // highest journal number returned to a writer
	pipe  *pipeline
	tasks chan *file
	press chan struct{} // memory is short: flush now
	rd    *reader
}

// New makes Files; nothing is written before Run.
func New(cfg Config) (*Files, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	fs := &Files{
		cfg:   cfg,
		pool:  newPool(cfg.StripeSize),
		room:  room{limit: cfg.DirtyLimit},
		pipe:  newPipeline(),
		tasks: make(chan *file, taskQueue),
		press: make(chan struct{}, 1),
		rd:    newReader(cfg),
	}
	return fs, nil
}

// Run writes dirty data out and reads ahead until ctx ends. What is dirty then stays in the
// journal only: call Sync before.
func (fs *Files) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for range fs.cfg.WriteParallel {
		wg.Go(func() { fs.writeLoop(ctx) })
	}
	for range taskWorkers {
		wg.Go(func() { fs.taskLoop(ctx) })
	}
	for range fs.cfg.ReadParallel {
		wg.Go(func() { fs.rd.aheadLoop(ctx) })
	}
	wg.Go(func() { fs.syncLoop(ctx) })
	wg.Go(func() { fs.flushLoop(ctx) })
	<-ctx.Done()
	fs.pipe.wake()
	wg.Wait()
	return ctx.Err()
}

// Hooks is what the tree calls. Its methods take no token and never wait for the network, FlushFile excepted.
type Hooks interface {
	FlushFile(ctx context.Context, ino tree.Ino) error
	TrimFile(ino tree.Ino, size uint64)
	PunchFile(ino tree.Ino, off, n uint64)
	ReplayData(ino tree.Ino, seq tree.Seq, off uint64, p []byte)
	DropFile(ino tree.Ino)
}

var _ Hooks = (*Files)(nil)

// DirtyFloor returns the lowest journal number whose data is in memory only, 0 if there
// is none: records from there on must be kept. A record that is being appended while it is asked may
// be missing, so the journal must keep what was appended since it asked.
func (fs *Files) DirtyFloor() (low tree.Seq) {
	for i := range fs.table {
		s := &fs.table[i]
		s.mu.Lock()
		for _, f := range s.files {
			f.mu.Lock()
			if n := f.floor(); n != 0 && (low == 0 || n < low) {
				low = n
			}
			f.mu.Unlock()
		}
		s.mu.Unlock()
	}
	return low
}

// Status shows what is on its way.
type Status struct {
	DirtyBytes  int64  // memory held by data that is not committed
	Stripes     int    // stripes being written or synced, or waiting for it
	DirtyFiles  int    // files with such data
	Failing     int    // files whose data could not be committed so far
	LastError   string // of one of them
	CachedBytes int64  // stripe content kept for reading
}

// Status returns a snapshot.
func (fs *Files) Status() Status {
	st := Status{DirtyBytes: fs.room.inUse(), Stripes: fs.pipe.count(), CachedBytes: fs.rd.cache.bytes()}
	for _, f := range fs.table.all() {
		f.mu.Lock()
		if !f.clean() {
			st.DirtyFiles++
		}
		if f.failed != nil {
			st.Failing++
			st.LastError = f.failed.Error()
		}
		f.mu.Unlock()
		fs.table.release(f)
	}
	return st
}
