package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"bazil.org/fuse"
	"github.com/rs/zerolog"

	"github.com/mutualfs/mutualfs/fs/tree"
)

// Config is what a Face needs. Zero values of the limits take the defaults.
type Config struct {
	Backend    Backend
	Mountpoint string
	Source     string             // what the mount table shows as the device
	Options    []fuse.MountOption // besides those that every mount has
	Log        zerolog.Logger

	Readers      int           // goroutines that read requests; default 2–4 by the number of cores
	MaxWaiting   int           // requests that wait at once; default 4096
	CallTimeout  time.Duration // bound of every call; default 30 s
	FsyncTimeout time.Duration // bound of fsync and close, which move data; default 5 min
}

func (c *Config) fill() {
	if c.Readers == 0 {
		c.Readers = min(max(runtime.NumCPU(), 2), 4)
	}
	if c.MaxWaiting == 0 {
		c.MaxWaiting = 4096
	}
	if c.CallTimeout == 0 {
		c.CallTimeout = 30 * time.Second
	}
	if c.FsyncTimeout == 0 {
		c.FsyncTimeout = 5 * time.Minute
	}
}

// Face serves one mount.
type Face struct {
	cfg     Config
	backend Backend
	log     zerolog.Logger
	conn    *fuse.Conn
	dev     *os.File
	fd      int

	waiting chan struct{} // one slot for each request that waits
	wg      sync.WaitGroup
	notices *notices
	answers *answers
	dirs    dirHandles
	handles atomic.Uint64 // the last number of an open regular file

	endless     context.Context // ends with the readers: what waits for others without a bound
	stopEndless context.CancelFunc

	waiters waiters
}

// Mount mounts the backend on the mount point. Nothing is served before Run.
func Mount(cfg Config) (*Face, error) {
	if libraryErr != nil {
		return nil, libraryErr
	}
	cfg.fill()
	options := append([]fuse.MountOption{
		fuse.FSName(cfg.Source), fuse.Subtype("mutualfs"),
		fuse.DefaultPermissions(), fuse.AsyncRead(), fuse.MaxReadahead(1 << 20),
		fuse.LockingFlock(), fuse.LockingPOSIX(),
		fuse.MaxBackground(64), fuse.CongestionThreshold(48), fuse.HandleKillPriv(), fuse.CacheSymlinks(),
		initFlags(fuse.InitDoReaddirplus | fuse.InitReaddirplusAuto | fuse.InitPosixACL | fuse.InitDontMask),
	}, cfg.Options...)
	conn, err := fuse.Mount(cfg.Mountpoint, options...)
	if err != nil {
		return nil, mountError(cfg.Mountpoint, err)
	}
	dev := device(conn)
	f := &Face{
		cfg: cfg, backend: cfg.Backend, log: cfg.Log, conn: conn, dev: dev, fd: int(dev.Fd()),
		waiting: make(chan struct{}, cfg.MaxWaiting),
		answers: newAnswers(),
		dirs:    dirHandles{open: map[uint64]*dirHandle{}},
		waiters: newWaiters(),
	}
	f.notices = newNotices(conn, f.answers)
	f.endless, f.stopEndless = context.WithCancel(context.Background())
	raiseReadAhead(cfg.Mountpoint, cfg.Log)
	cfg.Backend.SetNotifier(f.notices)
	return f, nil
}

// Run serves the mount until it is unmounted and returns when the last request has been answered.
// Cancelling ctx does not unmount: see Unmount. It cancels what waits.
func (f *Face) Run(ctx context.Context) error {
	stopNotices := make(chan struct{})
	var notices sync.WaitGroup
	notices.Go(func() { f.notices.run(stopNotices) })
	var readers sync.WaitGroup
	errs := make([]error, f.cfg.Readers)
	for i := range errs {
		readers.Go(func() { errs[i] = f.read(ctx) })
	}
	readers.Wait()
	f.stopEndless()
	f.wg.Wait()
	close(stopNotices)
	notices.Wait()
	if err := f.conn.Close(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// read is one reader: it reads requests until the file system is unmounted.
func (f *Face) read(ctx context.Context) error {
	for {
		req, err := f.conn.ReadRequest()
		switch {
		case err == nil:
			f.serve(ctx, req)
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, syscall.EINTR), errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.ENOENT):
			// ENOENT: the request was interrupted before it was read.
		case isErrno(err):
			return fmt.Errorf("read from the FUSE device of %s: %w", f.cfg.Mountpoint, err)
		default:
			f.log.Error().Err(err).Msg("a request that the FUSE library could not read was left out")
		}
	}
}

func isErrno(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno)
}

// serve answers a request at once, or hands it to a goroutine that may wait.
func (f *Face) serve(ctx context.Context, req fuse.Request) {
	call := f.route(req)
	if call.run == nil { // needs no reply
		recycle(req.Hdr())
		return
	}
	out := newReply(call.large)
	if !call.waits {
		turn := f.answers.begin()
		err := call.run(tree.NoWait(ctx), out)
		if !errors.Is(err, tree.ErrWait) {
			f.send(req.Hdr(), out, err)
			f.answers.end(turn)
			return
		}
		f.answers.end(turn)
		out.reset()
	}
	if call.endless {
		f.serveEndless(req.Hdr(), call, out)
		return
	}
	out.uncached = true // a lease may be gone before the answer is out: see answers
	f.waiting <- struct{}{}
	limit := f.cfg.CallTimeout
	if call.moves {
		limit = f.cfg.FsyncTimeout
	}
	h := req.Hdr()
	ctx, cancel := context.WithCancelCause(ctx)
	w := f.waiters.enter(h.ID, h.Pid, cancel, false)
	f.wg.Go(func() {
		defer func() { <-f.waiting }()
		timed, stop := context.WithTimeout(ctx, limit)
		err := call.run(timed, out)
		stop()
		if err != nil && context.Cause(ctx) == errInterrupted {
			err = errInterrupted
		}
		f.waiters.leave(h.ID, w)
		cancel(nil)
		f.send(h, out, err)
	})
}

// serveEndless is serve for a call that may wait for ever, and that any signal to its caller ends.
func (f *Face) serveEndless(h *fuse.Header, call call, out *reply) {
	ctx, cancel := context.WithCancelCause(f.endless)
	w := f.waiters.enter(h.ID, h.Pid, cancel, true)
	f.wg.Go(func() {
		err := call.run(ctx, out)
		if err != nil && context.Cause(ctx) == errInterrupted {
			err = errInterrupted
		}
		f.waiters.leave(h.ID, w)
		cancel(nil)
		f.send(h, out, err)
	})
}

// send writes the answer and gives both buffers back.
func (f *Face) send(h *fuse.Header, out *reply, err error) {
	errno := errnoOf(err)
	if errno == syscall.EIO || errno == syscall.EHOSTUNREACH || errno == syscall.ETIMEDOUT {
		f.log.Warn().Err(err).Uint64("ino", uint64(h.Node)).Msg("a call on the mount failed")
	}
	f.write(out.seal(uint64(h.ID), errno))
	out.free()
	recycle(h)
}

// write sends bytes to the kernel. ENOENT means that the caller has gone, ENODEV that the mount has.
func (f *Face) write(b []byte) {
	for {
		_, err := syscall.Write(f.fd, b)
		if err == syscall.EINTR || err == syscall.EAGAIN {
			continue
		}
		if err != nil && err != syscall.ENOENT && err != syscall.ENODEV {
			f.log.Error().Err(err).Int("bytes", len(b)).Msg("the kernel refused a reply")
		}
		return
	}
}
