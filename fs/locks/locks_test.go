package locks

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree/treetest"
)

// plain seals nothing.
type plain struct{}

func (plain) Seal(b []byte) ([]byte, error) { return append([]byte{}, b...), nil }
func (plain) Open(b []byte) ([]byte, error) { return b, nil }

func noSeal(blocks.RegisterID) (Sealer, error) { return plain{}, nil }

var root = blocks.RegisterID{ID: blocks.HashID([]byte("root"))}

func mountID(i int) blocks.PeerID { return blocks.PeerID{ID: blocks.HashID([]byte{byte(i)})} }

// world is a ring with some mounts.
type world struct {
	ring *treetest.Ring

	mu     sync.Mutex
	mounts map[blocks.PeerID]*mount
}

type mount struct {
	*Locks
	regs *treetest.Mount
	stop func()
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{ring: treetest.NewRing(), mounts: map[blocks.PeerID]*mount{}}
	if err := Format(t.Context(), w.ring.Mount(mountID(99)), mountID(99), root, noSeal); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) mount(t *testing.T, i int, adapt ...func(*Config)) *mount {
	t.Helper()
	m, run := w.prepare(t, i, adapt...)
	run()
	return m
}

// prepare makes a mount whose Run begins with the function returned.
func (w *world) prepare(t *testing.T, i int, adapt ...func(*Config)) (m *mount, run func()) {
	t.Helper()
	m = &mount{regs: w.ring.Mount(mountID(i))}
	c := Default()
	c.Registers, c.Mount, c.Root, c.Seal = m.regs, mountID(i), root, noSeal
	c.PollEvery, c.LeasePause, c.AliveEvery = 20*time.Millisecond, 10*time.Millisecond, 10*time.Millisecond
	c.Tell = func(_ context.Context, to blocks.PeerID, id blocks.RegisterID) error {
		w.mu.Lock()
		other := w.mounts[to]
		w.mu.Unlock()
		if other == nil {
			return blocks.ErrUnavailable
		}
		other.Freed(id)
		return nil
	}
	for _, f := range adapt {
		f(&c)
	}
	var err error
	if m.Locks, err = New(c); err != nil {
		t.Fatal(err)
	}
	m.regs.OnRecall(func(ctx context.Context, id blocks.RegisterID, _ bool) { m.Recall(ctx, id) })
	w.mu.Lock()
	w.mounts[mountID(i)] = m
	w.mu.Unlock()
	return m, func() {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = m.Run(ctx)
		}()
		m.stop = sync.OnceFunc(func() { cancel(); <-done })
		t.Cleanup(m.stop)
	}
}

func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func lk(ino, owner uint64, typ Type, start, end uint64) Lock {
	return Lock{Ino: ino, Kind: Posix, Owner: owner, Type: typ, Start: start, End: end, Pid: uint32(owner)}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustBe(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("%v, want %v", err, want)
	}
}

func TestAloneAsksNobody(t *testing.T) {
	m := newWorld(t).mount(t, 1)
	ctx := limited(t)
	must(t, m.Lock(ctx, lk(1, 1, Write, 0, 9), 0, false))
	reads, writes := m.regs.Calls()
	for i := range uint64(100) {
		must(t, m.Lock(ctx, lk(1, 1, Read, i, i+5), 0, true))
		mustBe(t, m.Lock(ctx, lk(1, 2, Write, i, i), 0, true), syscall.EAGAIN)
		must(t, m.Unlock(ctx, lk(1, 1, Unlock, 0, Last), true))
	}
	if r, w := m.regs.Calls(); r != reads || w != writes {
		t.Fatalf("%d reads and %d proposals under the lease", r-reads, w-writes)
	}
}

func TestTwoMountsExclude(t *testing.T) {
	w := newWorld(t)
	a, b := w.mount(t, 1), w.mount(t, 2)
	ctx := limited(t)
	must(t, a.Lock(ctx, lk(1, 1, Write, 0, 9), 0, false))
	mustBe(t, b.Lock(ctx, lk(1, 1, Read, 5, 5), 0, false), syscall.EAGAIN) // the same number, another mount
	must(t, b.Lock(ctx, lk(1, 1, Read, 10, 12), 0, false))
	found, ok, err := b.Query(ctx, lk(1, 2, Write, 0, Last), false)
	if err != nil || !ok || found.Type == Write && found.Pid != 0 {
		t.Fatalf("%v %v %v", found, ok, err)
	}
	must(t, a.Lock(ctx, lk(1, 1, Read, 0, 9), 0, false)) // downgrade
	must(t, b.Lock(ctx, lk(1, 1, Read, 5, 5), 0, false))
	mustBe(t, a.Lock(ctx, lk(1, 1, Write, 0, 9), 0, false), syscall.EAGAIN)
	must(t, b.Unlock(ctx, lk(1, 1, Unlock, 0, Last), false))
	must(t, a.Lock(ctx, lk(1, 1, Write, 0, 9), 0, false))
}

func TestWaitersAreTold(t *testing.T) {
	w := newWorld(t)
	slow := func(c *Config) { c.PollEvery = time.Hour }
	a, b := w.mount(t, 1, slow), w.mount(t, 2, slow)
	ctx := limited(t)
	must(t, a.Lock(ctx, lk(1, 1, Write, 0, 9), 0, false))
	got := make(chan error, 1)
	go func() { got <- b.LockWait(ctx, lk(1, 1, Write, 0, 9), 0) }()
	waitFor(t, func() bool { return waiting(b) == 1 })
	must(t, a.Unlock(ctx, lk(1, 1, Unlock, 0, Last), false))
	must(t, <-got)
	mustBe(t, a.Lock(ctx, lk(1, 1, Read, 0, 0), 0, false), syscall.EAGAIN)
}

// What is told before Run has begun is not lost.
func TestToldBeforeRun(t *testing.T) {
	w := newWorld(t)
	slow := func(c *Config) { c.PollEvery = time.Hour }
	a, runA := w.prepare(t, 1, slow)
	b, runB := w.prepare(t, 2, slow)
	ctx := limited(t)
	must(t, a.Lock(ctx, lk(1, 1, Write, 0, 9), 0, false))
	got := make(chan error, 1)
	go func() { got <- b.LockWait(ctx, lk(1, 1, Write, 0, 9), 0) }()
	waitFor(t, func() bool { // its wait is agreed: whoever unlocks tells
		r, err := b.regs.Read(ctx, b.shardOf(1).id, 0)
		must(t, err)
		v, err := decodeValue(r.Snapshot)
		must(t, err)
		return len(v.waits) == 1
	})
	must(t, a.Unlock(ctx, lk(1, 1, Unlock, 0, Last), false))
	runA()
	runB()
	must(t, <-got)
}

func waiting(m *mount) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.waiting
}

func waitFor(t *testing.T, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not happen")
		}
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	w := newWorld(t)
	a, b := w.mount(t, 1), w.mount(t, 2)
	must(t, a.Lock(limited(t), lk(1, 1, Write, 0, 9), 0, false))
	for _, m := range []*mount{a, b} {
		ctx, cancel := context.WithCancel(limited(t))
		got := make(chan error, 1)
		go func() { got <- m.LockWait(ctx, lk(1, 2, Write, 0, 9), 0) }()
		waitFor(t, func() bool { return waiting(m) == 1 })
		cancel()
		mustBe(t, <-got, context.Canceled)
	}
	must(t, a.Unlock(limited(t), lk(1, 1, Unlock, 0, Last), false))
	must(t, b.Lock(limited(t), lk(1, 3, Write, 0, 9), 0, false)) // nobody got it instead
}

func TestTakingTurns(t *testing.T) {
	w := newWorld(t)
	a, b := w.mount(t, 1), w.mount(t, 2)
	ctx := limited(t)
	var wg sync.WaitGroup
	held := make(chan struct{}, 1) // a lock of the test's own: both in it would block
	var count [2]int
	for i, m := range []*mount{a, b, a, b, a, a} {
		wg.Go(func() {
			for range 20 {
				l := lk(1, uint64(i+1), Write, 0, 9)
				if err := m.LockWait(ctx, l, 0); err != nil {
					t.Error(err)
					return
				}
				select {
				case held <- struct{}{}:
				default:
					t.Error("two have the lock")
					return
				}
				count[i%2]++
				<-held
				if err := m.Unlock(ctx, l, false); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if count[0]+count[1] != 120 {
		t.Fatal(count)
	}
}

func TestKilledHolder(t *testing.T) {
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprint("shared ", shared), func(t *testing.T) {
			w := newWorld(t)
			a, b := w.mount(t, 1), w.mount(t, 2)
			ctx := limited(t)
			must(t, a.Lock(ctx, lk(1, 1, Write, 0, 9), 0, false))
			if shared {
				mustBe(t, b.Lock(ctx, lk(1, 1, Write, 0, 9), 0, false), syscall.EAGAIN)
			}
			a.regs.Kill()
			must(t, b.LockWait(ctx, lk(1, 1, Write, 0, 9), 0))
			b.mu.Lock()
			defer b.mu.Unlock()
			if n := len(b.shardOf(1).held); n != 0 {
				t.Fatalf("%d locks of others", n)
			}
		})
	}
}

func TestRestartDropsItsLocks(t *testing.T) {
	w := newWorld(t)
	file := func(c *Config) { c.SessionFile = t.TempDir() + "/session" }
	a, b := w.mount(t, 1, file), w.mount(t, 2)
	ctx := limited(t)
	must(t, a.Lock(ctx, lk(1, 1, Write, 0, 9), 0, false))
	mustBe(t, b.Lock(ctx, lk(1, 1, Write, 0, 9), 0, false), syscall.EAGAIN)
	a.regs.Kill()
	a = w.mount(t, 1)
	must(t, a.Lock(ctx, lk(1, 7, Write, 0, 9), 0, false))
	mustBe(t, b.Lock(ctx, lk(1, 1, Write, 0, 9), 0, false), syscall.EAGAIN)
}

func TestLostLocksAreTold(t *testing.T) {
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprint("shared ", shared), func(t *testing.T) {
			w := newWorld(t)
			a, b := w.mount(t, 1), w.mount(t, 2)
			ctx := limited(t)
			must(t, a.Lock(ctx, lk(1, 1, Write, 0, 9), 0, false))
			if shared {
				mustBe(t, b.Lock(ctx, lk(1, 1, Write, 0, 9), 0, false), syscall.EAGAIN)
			}
			// a is cut off, and its leases are taken.
			a.regs.SetMistrust(true)
			a.regs.SetFault(func(bool, blocks.RegisterID, *blocks.Change) treetest.Fault {
				return treetest.Fault{Err: blocks.ErrUnavailable}
			})
			mustBe(t, a.Check(ctx, 1), blocks.ErrUnavailable)
			w.ring.FenceAll(mountID(1))
			must(t, b.LockWait(ctx, lk(1, 1, Write, 0, 9), 0))
			a.regs.SetFault(nil)
			a.regs.SetMistrust(false)
			mustBe(t, a.Check(ctx, 1), ErrLost)
			mustBe(t, a.Lock(ctx, lk(1, 1, Write, 0, 9), 0, false), ErrLost)
			mustBe(t, a.Unlock(ctx, lk(1, 1, Unlock, 0, 9), false), ErrLost)
			must(t, a.Check(ctx, 1)) // it was told
			mustBe(t, a.Lock(ctx, lk(1, 1, Write, 0, 9), 0, false), syscall.EAGAIN)
		})
	}
}

func TestLapseWithoutLoss(t *testing.T) {
	w := newWorld(t)
	a := w.mount(t, 1)
	ctx := limited(t)
	must(t, a.Lock(ctx, lk(1, 1, Write, 0, 9), 0, false))
	a.regs.SetMistrust(true)
	if err := a.Lock(ctx, lk(1, 2, Write, 0, 9), 0, true); err != ErrWait {
		t.Fatal(err)
	}
	a.regs.SetMistrust(false)
	must(t, a.Check(ctx, 1))
	mustBe(t, a.Lock(ctx, lk(1, 2, Write, 0, 9), 0, false), syscall.EAGAIN)
}

func TestDeadlock(t *testing.T) {
	m := newWorld(t).mount(t, 1)
	ctx := limited(t)
	must(t, m.Lock(ctx, lk(1, 1, Write, 0, 0), 0, false))
	must(t, m.Lock(ctx, lk(2, 2, Write, 0, 0), 0, false))
	got := make(chan error, 1)
	go func() { got <- m.LockWait(ctx, lk(2, 1, Write, 0, 0), 0) }()
	waitFor(t, func() bool { return waiting(m) == 1 })
	mustBe(t, m.LockWait(ctx, lk(1, 2, Write, 0, 0), 0), syscall.EDEADLK)
	must(t, m.Unlock(ctx, lk(2, 2, Unlock, 0, Last), false))
	must(t, <-got)
}

func TestBounds(t *testing.T) {
	m := newWorld(t).mount(t, 1, func(c *Config) { c.MaxLocks = 4 })
	ctx := limited(t)
	for i := range uint64(4) {
		must(t, m.Lock(ctx, lk(1, 1, Write, 10*i, 10*i+5), 0, false))
	}
	mustBe(t, m.Lock(ctx, lk(1, 1, Write, 100, 105), 0, false), syscall.ENOLCK)
	mustBe(t, m.Unlock(ctx, lk(1, 1, Unlock, 2, 3), false), syscall.ENOLCK)
	must(t, m.Lock(ctx, lk(1, 1, Write, 0, 40), 0, false))
}

func TestDescriptionsEnd(t *testing.T) {
	w := newWorld(t)
	a, b := w.mount(t, 1), w.mount(t, 2)
	ctx := limited(t)
	flock := Lock{Ino: 1, Kind: Flock, Owner: 5, Type: Write, End: Last}
	must(t, a.Lock(ctx, flock, 3, false))
	must(t, a.Lock(ctx, lk(1, 9, Write, 0, 5), 3, false))
	must(t, a.Closed(ctx, 1, 9, 3, false))
	must(t, b.Lock(ctx, lk(1, 1, Write, 0, 5), 0, false))
	mustBe(t, b.Lock(ctx, flock, 0, false), syscall.EAGAIN)
	a.Released(3)
	must(t, b.LockWait(ctx, flock, 0))
}

func TestFlockLosesWhatItCannotChange(t *testing.T) {
	w := newWorld(t)
	a, b := w.mount(t, 1), w.mount(t, 2)
	ctx := limited(t)
	flock := func(owner uint64, typ Type) Lock {
		return Lock{Ino: 1, Kind: Flock, Owner: owner, Type: typ, End: Last}
	}
	for _, other := range []*mount{a, b} {
		must(t, a.Lock(ctx, flock(1, Read), 0, false))
		must(t, other.Lock(ctx, flock(2, Read), 0, false))
		mustBe(t, a.Lock(ctx, flock(1, Write), 0, false), syscall.EAGAIN)
		must(t, other.Lock(ctx, flock(2, Write), 0, false))
		must(t, other.Unlock(ctx, flock(2, Unlock), false))
	}
}

func TestLostAnswers(t *testing.T) {
	w := newWorld(t)
	a, b := w.mount(t, 1), w.mount(t, 2)
	ctx := limited(t)
	must(t, a.Lock(ctx, lk(1, 1, Read, 0, 0), 0, false))
	must(t, b.Lock(ctx, lk(1, 1, Read, 0, 0), 0, false))
	a.regs.SetFault(func(write bool, _ blocks.RegisterID, _ *blocks.Change) treetest.Fault {
		return treetest.Fault{Err: blocks.ErrDeadline, Lost: write}
	})
	mustBe(t, a.Lock(ctx, lk(1, 2, Write, 5, 9), 0, false), blocks.ErrDeadline)
	a.regs.SetFault(nil)
	must(t, b.LockWait(ctx, lk(1, 2, Write, 5, 9), 0)) // the lock that nobody has goes away by itself
}

func TestEndGivesAllBack(t *testing.T) {
	w := newWorld(t)
	a, b := w.mount(t, 1), w.mount(t, 2)
	ctx := limited(t)
	before := w.ring.Live()
	must(t, a.Lock(ctx, lk(1, 1, Write, 0, 9), 0, false))
	must(t, a.Lock(ctx, lk(2, 1, Write, 0, 9), 0, false))
	mustBe(t, b.Lock(ctx, lk(1, 1, Write, 0, 9), 0, false), syscall.EAGAIN)
	a.stop()
	must(t, b.Lock(ctx, lk(1, 1, Write, 0, 9), 0, false))
	must(t, b.Lock(ctx, lk(2, 1, Write, 0, 9), 0, false))
	b.stop()
	if n := w.ring.Live(); n != before {
		t.Fatalf("%d registers more", n-before)
	}
}
