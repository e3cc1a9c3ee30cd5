package locks

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/mutualfs/mutualfs/blocks"
)

// Registers is what the locks need of the agreed registers.
type Registers interface {
	Read(ctx context.Context, id blocks.RegisterID, since blocks.Version) (blocks.Register, error)
	Propose(ctx context.Context, id blocks.RegisterID, c blocks.Change) (blocks.Register, error)
	Holds(id blocks.RegisterID, epoch uint64) bool
	// Lease returns who holds a register's lease. It does not recall it; but a holder that cannot be reached, and that a
	// majority has not heard for long enough, loses it first.
	Lease(ctx context.Context, id blocks.RegisterID) (blocks.Lease, error)
}

// Sealer closes and opens the values of one register.
type Sealer interface {
	Seal(clear []byte) ([]byte, error)
	Open(sealed []byte) ([]byte, error)
}

// Files is what the locks need of the files' data, so that who gets a lock sees what the holder before has written.
type Files interface {
	// Store writes out the dirty data of ino, if another mount could not have it written by itself. With
	// nowait it returns ErrWait if there is something to do.
	Store(ctx context.Context, ino uint64, nowait bool) error
	// Refresh drops what this mount and its kernel believe of ino and may be old.
	Refresh(ctx context.Context, ino uint64) error
}

// ErrWait is returned to a call with nowait that cannot be answered from memory; nothing has happened.
var ErrWait = errors.New("a lock call would wait")

// ErrLost is why calls fail whose owner has lost its locks: the mount had no contact for so long that they were given to others.
var ErrLost = fmt.Errorf("the locks on this file were lost with the contact to the ring: %w", syscall.EIO)

// Shards is how many registers the locks of a ring are spread over, by inode number.
const Shards = 64

// Config says what Locks are made of. Zero limits mean the defaults of Default.
type Config struct {
	Registers Registers
	Files     Files
	Mount     blocks.PeerID
	Root      blocks.RegisterID // of the root directory: the registers' IDs derive from it
	Seal      func(id blocks.RegisterID) (Sealer, error)
	// Tell says to another mount that a lock in the register it waits for is free. nil: mounts find out by looking.
	Tell        func(ctx context.Context, mount blocks.PeerID, id blocks.RegisterID) error
	SessionFile string    // remembers the session register from one process to the next; "": not
	Rand        io.Reader // nil: crypto/rand
	Log         *zerolog.Logger

	PollEvery   time.Duration // so often waiting calls look for themselves
	LeasePause  time.Duration // after a recall, so long no lease on that shard is taken
	StepTimeout time.Duration // bounds what is done in the background
	TellTimeout time.Duration // bounds a Tell
	AliveEvery  time.Duration // a life that is in the way is looked at so often at most
	MaxLocks    int           // of all mounts in one shard: beyond it ENOLCK
	MaxWaiters  int           // calls of this mount that wait at the same time: beyond it ENOLCK
}

// Default returns the limits that a mount has unless it is told otherwise.
func Default() Config {
	return Config{
		PollEvery: 2 * time.Second, LeasePause: 3 * time.Second, StepTimeout: 20 * time.Second, TellTimeout: 3 * time.Second,
		AliveEvery: time.Second, MaxLocks: 16384, MaxWaiters: 4096,
	}
}

// Validate says what is missing.
func (c *Config) Validate() error {
	switch {
	case c.Registers == nil, c.Seal == nil:
		return fmt.Errorf("%w: locks: no registers, or no sealer", blocks.ErrInvalid)
	case c.Root.IsZero() || c.Mount.IsZero():
		return fmt.Errorf("%w: locks: the root's and the mount's ID must be set", blocks.ErrInvalid)
	case 2*c.MaxLocks > maxEntries:
		return fmt.Errorf("%w: locks: %d in a shard, more than a register can have", blocks.ErrInvalid, c.MaxLocks)
	}
	return nil
}

func (c *Config) fill() {
	d := Default()
	for _, f := range []struct{ v, d *time.Duration }{{&c.PollEvery, &d.PollEvery}, {&c.LeasePause, &d.LeasePause},
		{&c.StepTimeout, &d.StepTimeout}, {&c.TellTimeout, &d.TellTimeout}, {&c.AliveEvery, &d.AliveEvery}} {
		if *f.v == 0 {
			*f.v = *f.d
		}
	}
	if c.MaxLocks == 0 {
		c.MaxLocks = d.MaxLocks
	}
	if c.MaxWaiters == 0 {
		c.MaxWaiters = d.MaxWaiters
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.Files == nil {
		c.Files = noFiles{}
	}
}

type noFiles struct{}

func (noFiles) Store(context.Context, uint64, bool) error { return nil }
func (noFiles) Refresh(context.Context, uint64) error     { return nil }

// Locks are the advisory locks of one mount. All methods may be called concurrently.
type Locks struct {
	cfg     Config
	log     zerolog.Logger
	session session
	wake    chan struct{} // the worker has something to do
	wg      sync.WaitGroup

	mu       sync.Mutex
	bg       context.Context                   // while Run runs
	ran      bool                              // Run has begun
	early    []func(ctx context.Context) error // what is to be done in the background as soon as it has
	shards   [Shards]*shard
	life     life // zero before the first session
	ticket   uint64
	waiting  int
	handles  map[uint64]map[Lock]struct{} // by open file description: ino, kind and owner of what it locked
	closing  map[uint64]time.Time         // descriptions of which a descriptor was closed, and when
	suspects map[life]time.Time           // when each was looked at last
	ask      map[life]struct{}            // to be looked at
	dead     map[blocks.RegisterID]struct{}
	lost     map[Lock]struct{} // ino, kind and owner: whose locks were lost and who was not told
}

// New makes the locks of a mount; nothing is asked of the ring before the first lock.
func New(cfg Config) (*Locks, error) {
	cfg.fill()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	l := &Locks{cfg: cfg, log: zerolog.Nop(), wake: make(chan struct{}, 1),
		handles: map[uint64]map[Lock]struct{}{}, closing: map[uint64]time.Time{}, suspects: map[life]time.Time{}, ask: map[life]struct{}{},
		dead: map[blocks.RegisterID]struct{}{}, lost: map[Lock]struct{}{}}
	if cfg.Log != nil {
		l.log = *cfg.Log
	}
	l.session.busy = make(chan struct{}, 1)
	for i := range l.shards {
		id := shardID(cfg.Root, i)
		seal, err := cfg.Seal(id)
		if err != nil {
			return nil, err
		}
		l.shards[i] = &shard{id: id, seal: seal, busy: make(chan struct{}, 1), own: map[uint64][]Lock{}, fresh: map[uint64]struct{}{}}
	}
	return l, nil
}

// SetFiles sets who knows the files' data. Call it before the first lock.
func (l *Locks) SetFiles(f Files) { l.cfg.Files = f }

// RegisterIDs lists the registers that hold the locks of the volume with that root.
func RegisterIDs(root blocks.RegisterID) []blocks.RegisterID {
	ids := make([]blocks.RegisterID, Shards)
	for i := range ids {
		ids[i] = shardID(root, i)
	}
	return ids
}

// shardID names the register of a shard.
func shardID(root blocks.RegisterID, i int) blocks.RegisterID {
	return blocks.RegisterID{ID: blocks.HashID([]byte("mutualfs locks"), root.ID[:], []byte{byte(i)})}
}

func (l *Locks) shardOf(ino uint64) *shard {
	return l.shards[(ino*0x9e3779b97f4a7c15)>>58]
}

// formatParallel is how many registers Format makes at the same time.
const formatParallel = 16

// Format makes the lock registers of a ring, once in its life, before the root directory names anything. It may be repeated.
func Format(ctx context.Context, regs Registers, mount blocks.PeerID, root blocks.RegisterID, seal func(blocks.RegisterID) (Sealer, error)) error {
	errs := make([]error, Shards)
	slots := make(chan struct{}, formatParallel)
	var wg sync.WaitGroup
	for i := range Shards {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			errs[i] = formatShard(ctx, regs, mount, shardID(root, i), seal)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func formatShard(ctx context.Context, regs Registers, mount blocks.PeerID, id blocks.RegisterID, seal func(blocks.RegisterID) (Sealer, error)) error {
	s, err := seal(id)
	if err != nil {
		return err
	}
	b, err := s.Seal((&value{}).encode())
	if err != nil {
		return err
	}
	_, err = regs.Propose(ctx, id, blocks.Change{Origin: mount, Seq: 1, Snapshot: b})
	if err != nil && !errors.Is(err, blocks.ErrConflict) {
		return fmt.Errorf("create lock register %s: %w", id.Short(), err)
	}
	return nil
}

// Lock takes a lock, or changes the one that the owner has. handle is the open file description, 0 if there is
// none. EAGAIN: another owner's is in the way. With nowait nothing but memory is asked: ErrWait.
func (l *Locks) Lock(ctx context.Context, want Lock, handle uint64, nowait bool) error {
	if err := check(want); err != nil {
		return err
	}
	sh := l.shardOf(want.Ino)
	if err := l.before(ctx, want, nowait); err != nil {
		return err
	}
	r := request{want: &want, handle: handle}
	if nowait {
		return l.fast(sh, r, true)
	}
	err := l.step(ctx, sh, r, false)
	if err == syscall.EAGAIN && l.closingSoon(ctx, want) {
		err = l.step(ctx, sh, r, false)
	}
	if err != nil {
		return err
	}
	return l.after(ctx, sh, want)
}

// LockWait is Lock that waits until the lock is free or ctx ends. EDEADLK: it would wait for itself.
func (l *Locks) LockWait(ctx context.Context, want Lock, handle uint64) error {
	if err := check(want); err != nil {
		return err
	}
	sh := l.shardOf(want.Ino)
	if err := l.before(ctx, want, false); err != nil {
		return err
	}
	w := &waiter{want: want, handle: handle, done: make(chan struct{})}
	err := l.step(ctx, sh, request{want: &want, handle: handle, w: w}, false)
	if err == errBlocked {
		l.poke()
		select {
		case <-w.done:
			err = nil
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	if err != nil && !l.giveUp(sh, w) {
		return err
	}
	return l.after(context.WithoutCancel(ctx), sh, want)
}

// giveUp ends a wait, unless the lock was granted at the last moment: then it reports true.
func (l *Locks) giveUp(sh *shard, w *waiter) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if w.got {
		return true
	}
	w.gone = true
	if w.queued {
		l.unqueue(sh, w)
		sh.mark()
		l.poke()
	}
	return false
}

// check refuses what is no lock.
func check(want Lock) error {
	if want.Type > Write || want.Kind > Posix || want.Start > want.End || want.End > Last {
		return syscall.EINVAL
	}
	return nil
}

// before is what must have happened before an owner's lock may change: its loss was told, its data is with the others.
func (l *Locks) before(ctx context.Context, want Lock, nowait bool) error {
	key := Lock{Ino: want.Ino, Kind: want.Kind, Owner: want.Owner}
	l.mu.Lock()
	_, lost := l.lost[key]
	writes := false
	if want.Type != Write {
		for _, h := range l.shardOf(want.Ino).own[want.Ino] {
			writes = writes || same(h, want) && h.Type == Write
		}
	}
	if lost && want.Type == Unlock {
		delete(l.lost, key)
	}
	l.mu.Unlock()
	switch {
	case lost:
		return ErrLost
	case writes:
		return l.cfg.Files.Store(ctx, want.Ino, nowait)
	}
	return nil
}

// after makes sure that who got a lock has it still and sees what the holder before it has written.
func (l *Locks) after(ctx context.Context, sh *shard, want Lock) error {
	if err := l.sure(ctx, sh); err != nil {
		return err
	}
	l.mu.Lock()
	epoch := sh.epoch
	_, fresh := sh.fresh[want.Ino]
	fresh = fresh && sh.leased
	l.mu.Unlock()
	if !fresh {
		if err := l.cfg.Files.Refresh(ctx, want.Ino); err != nil {
			want.Type = Unlock
			l.mu.Lock()
			l.drop(sh, want)
			l.mu.Unlock()
			l.poke()
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, lost := l.lost[Lock{Ino: want.Ino, Kind: want.Kind, Owner: want.Owner}]; lost {
		return ErrLost
	}
	if sh.leased && sh.epoch == epoch {
		if len(sh.fresh) >= maxFresh {
			clear(sh.fresh)
		}
		sh.fresh[want.Ino] = struct{}{}
	}
	return nil
}

// maxFresh bounds how many inodes of a shard are known to be unchanged by others since the lease began.
const maxFresh = 16384

// Unlock ends the owner's locks in the range. They are gone for the owner in any case; an error says that it
// cannot be known whether they were still there.
func (l *Locks) Unlock(ctx context.Context, want Lock, nowait bool) error {
	want.Type = Unlock
	if err := check(want); err != nil {
		return err
	}
	sh := l.shardOf(want.Ino)
	if !l.has(sh, want) {
		return l.before(ctx, want, nowait)
	}
	err := l.before(ctx, want, nowait)
	switch {
	case nowait && err == nil:
		return l.fast(sh, request{want: &want}, false)
	case nowait:
		return err
	case err != nil:
		l.mu.Lock()
		l.drop(sh, want)
		l.mu.Unlock()
		l.poke()
		return err
	}
	return l.step(ctx, sh, request{want: &want}, false)
}

// has reports whether the owner has a lock that want's range meets.
func (l *Locks) has(sh *shard, want Lock) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range sh.own[want.Ino] {
		if same(h, want) && h.Start <= want.End && want.Start <= h.End {
			return true
		}
	}
	return false
}

// Closed is close(2) of one descriptor: the process's range locks on the file end.
func (l *Locks) Closed(ctx context.Context, ino, owner, handle uint64, nowait bool) error {
	l.mu.Lock()
	if len(l.handles[handle]) > 0 && len(l.closing) < maxFresh {
		l.closing[handle] = time.Now()
	}
	l.mu.Unlock()
	return l.Unlock(ctx, Lock{Ino: ino, Kind: Posix, Owner: owner, End: Last}, nowait)
}

// Released is the end of an open file description: what was locked by it and is there still ends. It does not wait.
func (l *Locks) Released(handle uint64) {
	l.mu.Lock()
	keys := l.handles[handle]
	delete(l.handles, handle)
	delete(l.closing, handle)
	l.mu.Unlock()
	for k := range keys {
		k.End = Last
		if err := l.Unlock(context.Background(), k, true); errors.Is(err, ErrWait) {
			sh := l.shardOf(k.Ino)
			l.mu.Lock()
			l.drop(sh, k) // its data was flushed when the last descriptor was closed
			l.mu.Unlock()
			l.poke()
		}
	}
}

// Query returns a lock that is in the way of want, if there is one. Pid is 0 for one of another mount.
func (l *Locks) Query(ctx context.Context, want Lock, nowait bool) (Lock, bool, error) {
	if err := check(want); err != nil {
		return Lock{}, false, err
	}
	sh := l.shardOf(want.Ino)
	var found Lock
	var ok bool
	look := func() { found, ok = l.blocker(sh, &plan{}, want) }
	if nowait {
		l.mu.Lock()
		defer l.mu.Unlock()
		if !l.inMemory(sh) {
			return Lock{}, false, ErrWait
		}
		look()
		return found, ok, nil
	}
	if err := l.step(ctx, sh, request{}, false); err != nil {
		return Lock{}, false, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	look()
	return found, ok, nil
}

// Check reports whether the mount still has the locks that it gave on a file, of whatever owner: ErrLost,
// or why it cannot know. A file without locks is fine.
func (l *Locks) Check(ctx context.Context, ino uint64) error {
	sh := l.shardOf(ino)
	l.mu.Lock()
	lost, any := false, len(sh.own[ino]) > 0
	for k := range l.lost {
		lost = lost || k.Ino == ino
	}
	l.mu.Unlock()
	if lost {
		return ErrLost
	}
	if !any {
		return nil
	}
	if err := l.sure(ctx, sh); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(sh.own[ino]) == 0 {
		for k := range l.lost {
			if k.Ino == ino {
				return ErrLost
			}
		}
	}
	return nil
}
