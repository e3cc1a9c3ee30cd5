package tree

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// pending is an operation that was answered and is not committed.
type pending struct {
	seq Seq
	op  *Op
}

// container is one register as this mount has it. Fast operations lock mu, look at st, and are
// done. Whoever must wait for the registers takes busy first: it then is the only
// one that reads, proposes by itself, or reloads; the flusher is the exception, it proposes what is pending
// under a lease, one batch at a time (flushing).
type container struct {
	id   blocks.RegisterID
	seal *sealer
	busy chan struct{} // capacity 1
	// leading is taken by who makes what is astray; capacity 1.
	leading chan struct{}

	mu       sync.Mutex
	st       *State // nil: not loaded
	version  blocks.Version
	lease    blocks.Lease
	shared   bool      // lease is one that others may have, too: memory answers who reads, and nobody else
	others   bool      // others shared the lease when the register was last looked at
	applied  Seq       // of this mount
	unborn   bool      // made here and not created yet: nobody else knows it
	replayed bool      // unborn, and an earlier process may have created it
	removed  bool      // the directory was removed here
	bearing  bool      // unborn, and a batch that names it is under way, its removal is not part of that
	closed   bool      // a recall is under way: no fast operations but writebacks
	frozen   bool      // a transaction or a release of the lease is under way: no fast operations at all
	fenced   bool      // st has pending operations on an old version: reload before anything else
	noLease  time.Time // until then the lease is not asked for alone
	noShare  time.Time // nor to share it
	owes     bool      // this mount has left something to free, without a lease
	ops      []pending
	inflight int // of ops, in the batch that is being committed
	since    time.Time
	flushing bool              // a batch, or a read of the register, is under way: no other batch
	queued   bool              // the flusher is at it
	done     chan struct{}     // closed when that ends
	birth    Seq               // of the operation that makes it
	parent   blocks.RegisterID // where the operation that names it is pending; zero: it is named
	endedIn  blocks.RegisterID // of a directory that was removed here: where the operation that removed its name is
	snapLen  int               // bytes of the last snapshot
	tailLen  int               // bytes of the deltas since
	tailN    int               // number of the deltas since
	used     time.Time
	reads    int // validated reads since readsAt
	readsAt  time.Time
	astray   []stray // pending operations that belong to other containers now
	salvage  *State  // the state before a reload, for what must not vanish
	ahead    place   // it was read ahead, and has not been asked for since
	pageInfo
}

func (t *Tree) newContainer(id blocks.RegisterID) (*container, error) {
	s, err := newSealer(t.cfg.VolumeKey, id, lockedRand{t})
	if err != nil {
		return nil, err
	}
	return &container{id: id, seal: s, busy: make(chan struct{}, 1), leading: make(chan struct{}, 1)}, nil
}

// cont returns the container, loaded or not.
func (t *Tree) cont(id blocks.RegisterID) (*container, error) {
	t.mu.RLock()
	c := t.conts[id]
	t.mu.RUnlock()
	if c != nil {
		return c, nil
	}
	c, err := t.newContainer(id)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.conts[id]; old != nil {
		return old, nil
	}
	t.conts[id] = c
	return c, nil
}

// leased reports whether nobody else can change the container or look into it. mu must be held.
func (t *Tree) leased(c *container) bool { return c.unborn || !c.shared && t.sure(c) }

// sure reports whether nobody else can change the container: what memory has is what there is. mu must be held.
func (t *Tree) sure(c *container) bool {
	return c.unborn || c.lease.Holder == t.cfg.Mount && t.regs.Holds(c.id, c.lease.Epoch)
}

// fast reports whether a change may be answered from memory now. mu must be held.
func (t *Tree) fast(c *container) bool { return c.open() && t.leased(c) }

// open reports whether nothing but the lease decides whether memory may answer. mu must be held.
func (c *container) open() bool {
	return c.st != nil && !c.closed && !c.frozen && !c.fenced && c.st.intent == nil
}

// leaseIs takes over what the register says of the lease. mu must be held.
func (t *Tree) leaseIs(c *container, r blocks.Register) {
	c.lease, c.shared, c.others = r.LeaseOf(t.cfg.Mount)
}

func (c *container) acquire(ctx context.Context) error {
	select {
	case c.busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("container %s is busy: %w", c.id.Short(), ctx.Err())
	}
}

func (c *container) release() { <-c.busy }

// read calls f with the current state of a container: from memory under a lease,
// else after a read of the register. f must not keep the state.
func (t *Tree) read(ctx context.Context, id blocks.RegisterID, f func(c *container, s *State) error) error {
	return t.readFor(ctx, id, false, f)
}

// readFor is read, of an ended container, too, if that has orphans and they are what is wanted.
func (t *Tree) readFor(ctx context.Context, id blocks.RegisterID, orphans bool, f func(c *container, s *State) error) error {
	if err := t.awaitReady(ctx); err != nil {
		return err
	}
	c, err := t.cont(id)
	if err != nil {
		return err
	}
	_, flush := ctx.(asFlush)
	c.mu.Lock()
	t.noteUse(c)
	ok, err := t.readFast(c, orphans, flush, f)
	c.mu.Unlock()
	if ok {
		return err
	}
	if !MayWait(ctx) {
		return ErrWait
	}
	if err := c.acquire(ctx); err != nil {
		return err
	}
	defer c.release()
	c.mu.Lock()
	ok, err = t.readFast(c, orphans, false, f) // somebody has got a lease meanwhile
	c.mu.Unlock()
	if ok {
		return err
	}
	if err := t.validate(ctx, c); err != nil {
		return err
	}
	if err := t.maybeLease(ctx, c); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.gone(orphans); err != nil {
		return err
	}
	return f(c, c.st)
}

// readFast calls f if memory can answer. mu must be held. flush: it belongs to what a recall waits for.
func (t *Tree) readFast(c *container, orphans, flush bool, f func(c *container, s *State) error) (ok bool, err error) {
	closed := c.closed
	c.closed = closed && !flush
	ok = c.open() && t.sure(c)
	c.closed = closed
	if !ok {
		return false, nil
	}
	if err := c.gone(orphans); err != nil {
		return true, err
	}
	return true, f(c, c.st)
}

// build makes the operation from the state that it will be applied to.
type build func(c *container, s *State) (*Op, error)

// mutate makes and applies one operation on a container. Under a lease it is journalled and
// answered; else it is committed before the answer. done, if not nil, is called with the container locked
// right after the operation was applied.
func (t *Tree) mutate(ctx context.Context, id blocks.RegisterID, b build, done func(c *container, o *Op, seq Seq)) (Effect, error) {
	return t.mutateFor(ctx, id, false, b, done)
}

// mutateFor is mutate, of an ended container, too, if that has orphans and they are what is to be changed.
func (t *Tree) mutateFor(ctx context.Context, id blocks.RegisterID, orphans bool, b build, done func(c *container, o *Op, seq Seq)) (Effect, error) {
	if err := t.awaitReady(ctx); err != nil {
		return Effect{}, err
	}
	if err := t.room(ctx); err != nil {
		return Effect{}, err
	}
	c, err := t.cont(id)
	if err != nil {
		return Effect{}, err
	}
	_, flush := ctx.(asFlush)
	for {
		ef, again, err := t.mutateFast(c, orphans, b, done, flush)
		if !again {
			return ef, err
		}
		if !MayWait(ctx) {
			return ef, ErrWait
		}
		if ef, again, err = t.mutateSlow(ctx, c, orphans, b, done); !again {
			return ef, err
		}
	}
}

// room waits until the journal has room.
func (t *Tree) room(ctx context.Context) error {
	for {
		ch := t.j.full()
		if ch == nil {
			return nil
		}
		t.kick()
		if !MayWait(ctx) {
			return ErrWait
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return fmt.Errorf("%w: the journal is full: %v", blocks.ErrUnavailable, ctx.Err())
		}
	}
}

// mutateFast applies, journals and answers. flush: it belongs to what a recall waits for.
func (t *Tree) mutateFast(c *container, orphans bool, b build, done func(*container, *Op, Seq), flush bool) (ef Effect, again bool, err error) {
	c.mu.Lock()
	closed := c.closed
	c.closed = closed && !flush
	ok := t.fast(c)
	c.closed = closed
	if !ok {
		c.mu.Unlock()
		return ef, true, nil
	}
	if err := c.gone(orphans); err != nil {
		c.mu.Unlock()
		return ef, false, err
	}
	o, err := b(c, c.st)
	if err != nil || o == nil {
		c.mu.Unlock()
		return ef, false, err
	}
	subdirs := c.st.subdirs
	if err = c.fits(o); err == nil {
		ef, err = Apply(c.st, o)
	}
	if err != nil {
		c.mu.Unlock()
		return ef, false, err
	}
	t.sums.add(c.head, int(c.st.subdirs)-int(subdirs), c.st.Self.Mtime, c.st.Self.Ctime)
	seq := t.enqueue(c, o)
	if done != nil {
		done(c, o, seq)
	}
	full := len(c.ops) >= t.cfg.FlushOps
	for _, n := range ef.ended {
		t.haunt(n, o.Time)
	}
	c.mu.Unlock()
	if full {
		t.kick()
	}
	t.settle(ef)
	if o.Kind == OpRelease { // nobody was promised anything: what a process that dies had open is open no more
		return ef, false, nil
	}
	return ef, false, t.j.wait(seq)
}

// enqueue journals an applied operation and makes it pending. mu must be held.
func (t *Tree) enqueue(c *container, o *Op) Seq {
	seq := t.j.addOp(c.id, o)
	if len(c.ops) == 0 {
		c.since = time.Now()
	}
	c.ops = append(c.ops, pending{seq, o})
	c.pendLen += o.weight()
	c.used = time.Now()
	return seq
}

// mutateSlow commits one operation before it returns. again: a lease was taken, the fast way is open.
func (t *Tree) mutateSlow(ctx context.Context, c *container, orphans bool, b build, done func(*container, *Op, Seq)) (ef Effect, again bool, err error) {
	defer t.making.enter()()
	if err := t.flushName(ctx, c); err != nil {
		return ef, false, err
	}
	if err := c.acquire(ctx); err != nil {
		return ef, false, err
	}
	defer c.release()
	defer c.thaw()
	for {
		c.thaw()
		if err := t.validate(ctx, c); err != nil {
			return ef, false, err
		}
		if err := t.settlePending(ctx, c); err != nil {
			return ef, false, err
		}
		if err := t.compact(ctx, c); err != nil {
			return ef, false, err
		}
		c.mu.Lock()
		if t.fast(c) {
			c.mu.Unlock()
			return ef, true, nil
		}
		if err := c.gone(orphans); err != nil {
			c.mu.Unlock()
			return ef, false, err
		}
		if len(c.ops) > 0 || c.flushing { // a recall has begun since
			c.mu.Unlock()
			continue
		}
		o, err := b(c, c.st)
		if err == nil && o != nil {
			if err = Check(c.st, o); err == nil {
				err = c.fits(o)
			}
		}
		c.frozen = err == nil && o != nil // a recall that ends would open the fast way
		c.mu.Unlock()
		if err != nil || o == nil {
			return ef, false, err
		}
		seq := t.j.number()
		if err := t.prepare(ctx, c, o, seq); errors.Is(err, blocks.ErrConflict) {
			return ef, false, syscall.ENOTEMPTY
		} else if err != nil {
			return ef, false, err
		}
		ef, err = t.commitOne(ctx, c, seq, o, func() {
			if done != nil {
				done(c, o, seq)
			}
		})
		if err == nil {
			t.settle(ef)
			return ef, false, nil
		}
		if !overtaken(err) {
			return ef, false, err
		}
		made, err := t.wasMade(ctx, c, seq)
		if made && done != nil {
			c.mu.Lock()
			done(c, o, seq)
			c.mu.Unlock()
		}
		if made || err != nil {
			return ef, false, err
		}
	}
}

// flushName commits the name of a directory, and those above it, where they are pending. What is about to be agreed in the
// directory is not in the journal, and a replay that has to make the name again makes the directory from the journal alone.
func (t *Tree) flushName(ctx context.Context, c *container) error {
	c.mu.Lock()
	named := c.parent.IsZero()
	c.mu.Unlock()
	if named {
		return nil
	}
	return t.flushPath(ctx, c.id)
}

// wasMade reports whether a change that met a conflict had been agreed at an earlier attempt, whose answer
// was lost, before others went on. busy must be held.
func (t *Tree) wasMade(ctx context.Context, c *container, seq Seq) (bool, error) {
	if err := t.validate(ctx, c); err != nil {
		return false, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.applied >= seq, nil
}

// thaw opens the fast way again.
func (c *container) thaw() {
	c.mu.Lock()
	c.frozen = false
	c.mu.Unlock()
}

// settlePending commits what is pending, unless a lease makes that needless: numbers must reach a register in
// their order. busy must be held.
func (t *Tree) settlePending(ctx context.Context, c *container) error {
	for range maxResolutions {
		c.mu.Lock()
		done := len(c.ops) == 0 || t.fast(c)
		c.mu.Unlock()
		if done {
			return nil
		}
		if err := t.flush(ctx, c, true); err != nil {
			return err
		}
		if err := t.validate(ctx, c); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: container %s does not come to rest", blocks.ErrBusy, c.id.Short())
}

// prepare does what must be agreed before the operation: a child directory exists before its name,
// and has ended before its name goes. ErrConflict: it is not empty.
func (t *Tree) prepare(ctx context.Context, c *container, o *Op, seq Seq) error {
	if o.Child.IsZero() {
		return nil
	}
	switch o.Kind {
	case OpMake:
		cc, err := t.cont(o.Child)
		if err != nil {
			return err
		}
		return t.flush(ctx, cc, false)
	case OpRmdir:
		return t.endChild(ctx, c, removal{o.Child, seq})
	}
	return nil
}

// commitOne proposes an operation that Check let pass, and applies it once it is agreed.
// ErrConflict: it was not made, the container has moved on. busy must be held and nothing be pending.
func (t *Tree) commitOne(ctx context.Context, c *container, seq Seq, o *Op, done func()) (Effect, error) {
	if o.notes() {
		if err := t.ensureSession(ctx); err != nil {
			return Effect{}, err
		}
	}
	delta, err := c.seal.seal(sealDelta, encodeBatch([]*Op{o}))
	if err != nil {
		return Effect{}, err
	}
	c.mu.Lock()
	ch := blocks.Change{Base: c.version, Origin: t.cfg.Mount, Seq: uint64(seq), Delta: delta, Quiet: o.quiet()}
	ch.Lease = t.wish(c, o.use())
	c.mu.Unlock()
	r, err := t.propose(ctx, c.id, ch)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.fenced = c.fenced || errors.Is(err, blocks.ErrNotFound) || t.leased(c) // without a lease the next call reads anyway
		return Effect{}, err
	}
	ef, err := Apply(c.st, o)
	if err != nil {
		return ef, fmt.Errorf("%w: container %s: an agreed operation does not apply: %v", blocks.ErrCorrupt, c.id.Short(), err)
	}
	t.agreed(c, r, ch, seq)
	t.sums.drop(c.head)
	c.owes = c.st.frees()
	for _, ino := range ef.MovedIn {
		t.withNode(ino, func(n *node) { n.home = c.id })
	}
	if done != nil {
		done()
	}
	return ef, nil
}

// agreed takes over the outcome of a change. mu must be held.
func (t *Tree) agreed(c *container, r blocks.Register, ch blocks.Change, seq Seq) {
	c.version = ch.Base + 1
	t.leaseIs(c, r)
	c.applied = max(c.applied, seq)
	if ch.Snapshot != nil {
		c.snapLen, c.tailLen, c.tailN = len(ch.Snapshot), 0, 0
		c.shrunk = false
	} else {
		c.tailLen += len(ch.Delta)
		c.tailN++
	}
	c.used = time.Now()
}

const (
	retryMin = 20 * time.Millisecond // first pause between attempts
	retryMax = 2 * time.Second       // longest
)

// propose repeats a change until its outcome is known or ctx ends. ErrConflict means that it was not made and
// never will be; nil that it is version Base+1.
func (t *Tree) propose(ctx context.Context, id blocks.RegisterID, ch blocks.Change) (blocks.Register, error) {
	for pause := retryMin; ; pause = min(2*pause, retryMax) {
		r, err := t.regs.Propose(ctx, id, ch)
		switch {
		case err == nil && (r.Version == ch.Base+1 || ch.Delete || ch.Seq == 0):
			return r, nil
		case err == nil || errors.Is(err, blocks.ErrConflict):
			// An earlier attempt may have been made before others went on; who counts on Base+1 must reload.
			return r, fmt.Errorf("register %s: %w", id.Short(), blocks.ErrConflict)
		case errors.Is(err, blocks.ErrNotFound), errors.Is(err, blocks.ErrInvalid), errors.Is(err, blocks.ErrCorrupt), errors.Is(err, blocks.ErrNoSpace):
			return r, fmt.Errorf("commit to register %s: %w", id.Short(), err)
		case errors.Is(err, blocks.ErrRefused):
			// Another mount holds the lease: a read recalls it.
			if _, err := t.regs.Read(ctx, id, ch.Base); err == nil && pause > retryMin {
				return r, fmt.Errorf("register %s: %w", id.Short(), blocks.ErrConflict)
			}
		}
		if err := sleep(ctx, pause); err != nil {
			return r, fmt.Errorf("commit to register %s: %w", id.Short(), err)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	tm := time.NewTimer(d)
	defer tm.Stop()
	select {
	case <-tm.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
