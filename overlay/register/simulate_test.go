package register_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
	"github.com/mutualfs/mutualfs/overlay/register"
)

// model is a run: a ring under chaos, and clients.
type model struct {
	*world
	opt      options
	rng      *lockedRand // of the nemesis
	hist     history
	existing []int // registers that have been made
	clients  []*client
}

// client is one user of a mount: it has its own numbers, and knows what it has read.
type client struct {
	m      *model
	n      int
	p      *peer
	origin blocks.PeerID
	rng    *lockedRand
	known  map[int]blocks.Register
	values map[int][]byte
}

// Of one run.
const (
	mounts     = 4
	perMount   = 2
	firstMade  = 16   // registers made before the storm
	createEach = 2    // registers that a client makes in the middle of everything
	ownIDs     = 1000 // numbers from here on are registers that one client makes
	sharedIDs  = 100  // numbers from here on are made by all at once
	sharedMade = 200  // of the latter
)

func (c *client) someRegister() int {
	c.m.hist.mu.Lock()
	defer c.m.hist.mu.Unlock()
	return c.m.existing[c.rng.IntN(len(c.m.existing))]
}

func (m *model) exists(reg int) {
	m.hist.mu.Lock()
	defer m.hist.mu.Unlock()
	if !slices.Contains(m.existing, reg) {
		m.existing = append(m.existing, reg)
	}
}

// create makes a register whose first element is the operation's number.
func (c *client) create(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	m, op := c.m, c.m.hist.next()
	reg := ownIDs + int(op)
	e := event{reg: reg, client: c.n, op: op, call: m.hist.now()}
	for ctx.Err() == nil && !e.done {
		_, err := c.p.svc.Propose(ctx, regID(reg), blocks.Change{Origin: c.origin, Seq: op, Snapshot: binary.BigEndian.AppendUint64(nil, op)})
		if errors.Is(err, blocks.ErrConflict) {
			m.hist.fail(fmt.Errorf("a creation met another one: %w", err))
			break
		}
		e.done = err == nil
		sleep(ctx, 50*time.Millisecond)
	}
	e.ret = m.hist.now()
	m.hist.add(e)
	if e.done {
		m.exists(reg)
	}
}

// run makes n operations on random registers.
func (c *client) run(ctx context.Context, n int) {
	for i := range n {
		if i%(n/createEach) == n/createEach/2 {
			c.create(ctx)
		}
		switch reg := c.someRegister(); {
		case c.rng.chance(c.m.opt.births): // a register that others may be making
			c.append(ctx, sharedIDs+c.rng.IntN(sharedMade*(i+1)/n+1))
		case c.rng.chance(40):
			c.read(ctx, reg)
		default:
			c.append(ctx, reg)
		}
		sleep(ctx, c.rng.upTo(20*time.Millisecond))
	}
}

// merge adds what r brings to a client's copy of the value.
func merge(old []byte, r blocks.Register) []byte {
	if r.Snapshot != nil {
		old = r.Snapshot
	}
	old = bytes.Clone(old)
	for _, d := range r.Deltas {
		old = append(old, d...)
	}
	return old
}

func (c *client) read(ctx context.Context, reg int) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	e := event{reg: reg, client: c.n, call: c.m.hist.now()}
	r, err := c.p.svc.Read(ctx, regID(reg), c.known[reg].Version)
	e.ret = c.m.hist.now()
	if err == nil {
		c.learn(reg, r)
		e.done, e.read = true, c.values[reg]
	}
	c.m.hist.add(e)
}

func (c *client) learn(reg int, r blocks.Register) {
	c.values[reg], c.known[reg] = merge(c.values[reg], r), r
}

// change is the proposal that appends el, or makes the register with it.
func (c *client) change(reg int, op uint64) blocks.Change {
	el := binary.BigEndian.AppendUint64(nil, op)
	ch := blocks.Change{Base: c.known[reg].Version, Origin: c.origin, Seq: op, Delta: el}
	if ch.Base == 0 {
		ch.Snapshot, ch.Delta, ch.Shared = el, nil, true
	} else if c.rng.chance(5) {
		ch.Snapshot, ch.Delta = append(bytes.Clone(c.values[reg]), el...), nil
	}
	return ch
}

func (c *client) append(ctx context.Context, reg int) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	op := c.m.hist.next()
	shared := reg >= sharedIDs && reg < ownIDs
	e := event{reg: reg, client: c.n, op: op, call: c.m.hist.now()}
	for ctx.Err() == nil {
		base := c.known[reg].Version
		if base == 0 && !shared {
			r, err := c.p.svc.Read(ctx, regID(reg), 0)
			if err != nil {
				sleep(ctx, 100*time.Millisecond)
				continue
			}
			c.learn(reg, r)
			continue
		}
		ch := c.change(reg, op)
		r, err := c.p.svc.Propose(ctx, regID(reg), ch)
		if err == nil {
			if r.Base == r.Version && r.Version == base+1 {
				c.values[reg], c.known[reg] = append(bytes.Clone(c.values[reg]), binary.BigEndian.AppendUint64(nil, op)...), r
			} else {
				c.learn(reg, r)
			}
			e.done = true
			break
		}
		if errors.Is(err, blocks.ErrConflict) {
			c.learn(reg, r)
		} else {
			sleep(ctx, 50*time.Millisecond)
		}
	}
	e.ret = c.m.hist.now()
	c.m.hist.add(e)
	if e.done && shared {
		c.m.exists(reg)
	}
}

// wreck breaks one thing after the other until ctx ends.
func (m *model) wreck(ctx context.Context) {
	var all []blocks.PeerID
	for _, p := range m.peers {
		all = append(all, p.id)
	}
	storage := m.opt.peers
	wiped := false
	for ctx.Err() == nil {
		sleep(ctx, time.Second+m.rng.upTo(2*time.Second))
		p := m.peers[m.rng.IntN(storage)]
		pause := time.Second + m.rng.upTo(6*time.Second)
		what := m.rng.IntN(6)
		if m.opt.moving && what != 4 {
			what = 3
		}
		switch what {
		case 0: // dies, and comes back with its disk
			m.kill(p)
			sleep(ctx, pause)
			p.kv = p.kv.Crash()
			m.start(p)
		case 1: // dies, is noticed, and comes back
			m.kill(p)
			m.live(p, overlay.Down)
			sleep(ctx, pause)
			p.kv = p.kv.Crash()
			p.info.Live = overlay.Alive
			m.start(p)
		case 2: // cut off
			m.chaos.isolate(p.id, all, true)
			sleep(ctx, pause)
			m.chaos.isolate(p.id, all, false)
		case 3: // given up by the tables, so that all views change, and back
			m.live(p, overlay.Gone)
			sleep(ctx, pause)
			m.live(p, overlay.Alive)
		case 4: // loses its disk; once others are protected again
			if wiped && !m.protected(ctx) {
				continue
			}
			wiped = true
			m.kill(p)
			sleep(ctx, pause)
			p.kv.Crash()
			p.kv = newStore(m.rng)
			m.start(p)
		case 5: // hears of no changes of the tables, the others do
			p.ring.SetLate(true)
			q := m.peers[m.rng.IntN(storage)]
			m.live(q, overlay.Gone)
			sleep(ctx, pause)
			m.live(q, overlay.Alive)
			p.ring.SetLate(false)
		}
	}
}

// protected reports whether a new count finds all registers fully protected.
func (w *world) protected(ctx context.Context) bool {
	watch := w.peers[0].svc.Watch()
	for range 40 {
		c, err := watch.Counts(ctx)
		if err == nil && c.Fresh {
			return c.Degraded+c.Unavailable == 0 && c.Protected > 0
		}
		sleep(ctx, 250*time.Millisecond)
	}
	return false
}

// options of a run of the model.
type options struct {
	seed     uint64
	ops      int
	faults   faults
	nemesis  bool
	moving   bool // the nemesis mostly changes the tables
	skew     bool // timers run at different rates
	births   int  // percent of the operations that are on registers which all make
	peers, m int
	kv       func(register.KV) register.KV
	broken   breaker
}

// runModel makes the operations, heals everything, and checks the history. It returns how many
// operations succeeded, and what is wrong.
func runModel(t *testing.T, o options) (done int, result error) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel(t, o)
		m.chaos.set(o.faults)
		ctx, cancel := context.WithCancel(t.Context())
		var nemesis, work sync.WaitGroup
		if o.nemesis {
			nemesis.Go(func() { m.wreck(ctx) })
		}
		for _, c := range m.clients {
			work.Go(func() { c.run(t.Context(), o.ops/len(m.clients)) })
		}
		work.Wait()
		cancel()
		nemesis.Wait()
		m.chaos.set(faults{})
		time.Sleep(10 * time.Second)
		final := map[int][]byte{}
		for _, reg := range m.existing {
			r, err := m.clients[0].p.svc.Read(t.Context(), regID(reg), 0)
			if err != nil {
				result = fmt.Errorf("after all is healed: %w", err)
			}
			final[reg] = merge(nil, r)
		}
		failed := 0
		for _, e := range m.hist.events {
			if e.done {
				done++
			} else {
				failed++
			}
		}
		if o.broken == nil && o.kv == nil && done < 9*failed {
			result = fmt.Errorf("%d operations succeeded and %d did not", done, failed)
		}
		m.stop()
		m.chaos.wg.Wait()
		if result == nil {
			result = m.hist.check(final)
		}
	})
	return done, result
}

// newModel makes the ring, the mounts and a few registers.
func newModel(t *testing.T, o options) *model {
	rng := newRand(o.seed)
	m := &model{world: &world{t: t, m: o.m, net: newNet(), chaos: newChaos(o.seed), rng: rng, wrap: o.kv, broken: o.broken, skew: o.skew}, opt: o, rng: rng}
	for range o.peers {
		m.chaos.storage = append(m.chaos.storage, m.join(true).id)
	}
	for i := range mounts {
		p := m.join(false)
		for j := range perMount {
			n := i*perMount + j
			origin := blocks.PeerID{ID: blocks.HashID([]byte("user"), []byte{byte(n)})}
			m.clients = append(m.clients, &client{m: m, n: n, p: p, origin: origin, rng: newStream(o.seed, uint64(n+2)),
				known: map[int]blocks.Register{}, values: map[int][]byte{}})
		}
	}
	m.hist.start = time.Now()
	synctest.Wait()
	for reg := range firstMade {
		m.existing = append(m.existing, reg)
		c := m.clients[0]
		if _, err := c.p.svc.Propose(t.Context(), regID(reg), blocks.Change{Origin: c.origin, Seq: m.hist.next(), Snapshot: []byte{}}); err != nil {
			t.Fatal(err)
		}
	}
	return m
}
