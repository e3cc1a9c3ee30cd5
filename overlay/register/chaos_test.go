package register_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
	"github.com/mutualfs/mutualfs/overlay/overlaytest"
	"github.com/mutualfs/mutualfs/overlay/register"
)

// seedOf returns the seed of a test: from MUTUALFS_SEED, or a new one; it is printed.
func seedOf(t testing.TB) uint64 {
	seed := rand.Uint64()
	if v := os.Getenv("MUTUALFS_SEED"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatalf("MUTUALFS_SEED: %v", err)
		}
		seed = n
	}
	t.Logf("MUTUALFS_SEED=%d", seed)
	return seed
}

// lockedRand is a source of randomness for many goroutines.
type lockedRand struct {
	mu sync.Mutex
	r  *rand.Rand
}

func newRand(seed uint64) *lockedRand { return newStream(seed, 1) }

// newStream is one of the independent sequences of a seed.
func newStream(seed, stream uint64) *lockedRand {
	return &lockedRand{r: rand.New(rand.NewPCG(seed, stream))}
}

func (l *lockedRand) IntN(n int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.r.IntN(n)
}

// seed begins a new sequence.
func (l *lockedRand) seed(n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.r = rand.New(rand.NewPCG(n, 1))
}

func (l *lockedRand) chance(percent int) bool { return l.IntN(100) < percent }

func (l *lockedRand) upTo(d time.Duration) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Duration(l.r.Int64N(int64(d) + 1))
}

// Read makes it an io.Reader.
func (l *lockedRand) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range p {
		p[i] = byte(l.r.Uint32())
	}
	return len(p), nil
}

// faults are what a chaotic network does, in percent of the calls.
type faults struct {
	drop, dropReply, repeat, slow int
	duel                          int           // of the proposals: another coordinator gets it
	delay                         time.Duration // at most, of every call
}

// chaos is a network that drops, delays, repeats and reorders calls, and that
// can be cut. The zero faults deliver everything at once. What happens to a link's
// calls depends on the seed and on how many came before on this link, not on the others.
type chaos struct {
	seed uint64
	wg   sync.WaitGroup

	mu      sync.Mutex
	faults  faults
	cut     map[[2]blocks.PeerID]bool // calls from the first to the second are lost
	links   map[[2]blocks.PeerID]*rand.Rand
	storage []blocks.PeerID // who may get a proposal in a duel
}

func newChaos(seed uint64) *chaos {
	return &chaos{seed: seed, cut: map[[2]blocks.PeerID]bool{}, links: map[[2]blocks.PeerID]*rand.Rand{}}
}

func (c *chaos) set(f faults) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults = f
}

// isolate cuts a peer off from the others, or joins it again.
func (c *chaos) isolate(p blocks.PeerID, others []blocks.PeerID, cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range others {
		c.cut[[2]blocks.PeerID{p, o}] = cut
		c.cut[[2]blocks.PeerID{o, p}] = cut
	}
}

// fate is what happens to one call.
type fate struct {
	to              blocks.PeerID
	wait, again     time.Duration // before it is delivered; until it is delivered once more, 0: never
	lost, replyLost bool
}

func (c *chaos) fate(from, to blocks.PeerID, kind overlay.Kind) fate {
	c.mu.Lock()
	defer c.mu.Unlock()
	x := fate{to: to, lost: c.cut[[2]blocks.PeerID{from, to}]}
	f := c.faults
	if f == (faults{}) || from == to {
		return x
	}
	r := c.links[[2]blocks.PeerID{from, to}]
	if r == nil {
		r = rand.New(rand.NewPCG(c.seed, binary.BigEndian.Uint64(from.ID[:])^bits.RotateLeft64(binary.BigEndian.Uint64(to.ID[:]), 17)))
		c.links[[2]blocks.PeerID{from, to}] = r
	}
	chance := func(percent int) bool { return percent > 0 && r.IntN(100) < percent }
	upTo := func(d time.Duration) time.Duration { return time.Duration(r.Int64N(int64(d) + 1)) }
	x.wait = upTo(f.delay)
	if chance(f.slow) {
		x.wait += upTo(3 * time.Second)
	}
	x.lost = x.lost || chance(f.drop)
	x.replyLost = chance(f.dropReply)
	if chance(f.repeat) {
		x.again = 1 + upTo(4*time.Second)
	}
	if kind == register.KindPropose && chance(f.duel) {
		x.to = c.storage[r.IntN(len(c.storage))]
		x.lost = x.lost || c.cut[[2]blocks.PeerID{from, x.to}]
	}
	return x
}

// chaosRing is a peer's ring on a chaotic network. broken, if not nil, may
// serve a call in place of the network.
type chaosRing struct {
	*overlaytest.Ring
	net    *chaos
	broken func(ctx context.Context, to blocks.PeerID, req overlay.Call, call func(context.Context, overlay.Call) (overlay.Call, error)) (overlay.Call, error)
}

var _ overlay.Ring = (*chaosRing)(nil)

func lost(ctx context.Context, to blocks.PeerID) (overlay.Call, error) {
	<-ctx.Done()
	return overlay.Call{}, fmt.Errorf("call to %s: %w", to.Short(), context.Cause(ctx))
}

func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// Call delivers req with the network's faults.
func (r *chaosRing) Call(ctx context.Context, to blocks.PeerID, class overlay.Class, req overlay.Call) (overlay.Call, error) {
	deliver := func(ctx context.Context, req overlay.Call) (overlay.Call, error) {
		f := r.net.fate(r.Self(), to, req.Kind)
		sleep(ctx, f.wait)
		if f.lost {
			return lost(ctx, to)
		}
		if f.again > 0 {
			again := overlay.Call{Kind: req.Kind, Body: append([]byte{}, req.Body...), Payload: append([]byte{}, req.Payload...)}
			r.net.wg.Go(func() {
				late, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				defer cancel()
				sleep(late, f.again)
				r.Ring.Call(late, f.to, class, again)
			})
		}
		resp, err := r.Ring.Call(ctx, f.to, class, req)
		if f.replyLost {
			return lost(ctx, to)
		}
		return resp, err
	}
	if r.broken != nil {
		return r.broken(ctx, to, req, deliver)
	}
	return deliver(ctx, req)
}

// forgetful is a store whose acceptor forgets its promises.
type forgetful struct{ register.KV }

func (f forgetful) Apply(b register.Batch, sync bool) error {
	return f.KV.Apply(register.WithoutPromise(b), sync)
}
