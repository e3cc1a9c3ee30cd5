package register_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
	"github.com/mutualfs/mutualfs/overlay/register"
)

// The model: a register's value is a list that is only appended to. An
// operation's number is its element, so every read shows which operations
// happened before it, in which order, and how often.

// event is one operation of the history.
type event struct {
	reg       int
	client    int
	call, ret int64
	op        uint64 // of an append; 0: a read
	read      []byte // what a read returned
	done      bool   // it succeeded
}

type history struct {
	mu     sync.Mutex
	events []event
	seq    uint64
	start  time.Time
	bad    error // what a client noticed
}

func (h *history) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.bad = err
}

func (h *history) next() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seq++
	return h.seq
}

func (h *history) now() int64 { return int64(time.Since(h.start)) }

func (h *history) add(e event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, e)
}

type input struct {
	reg    int
	append bool
}

// check returns what is wrong with the history, given the values at the end.
func (h *history) check(final map[int][]byte) error {
	if h.bad != nil {
		return h.bad
	}
	position := map[int]map[uint64]int{}
	for reg, v := range final {
		position[reg] = map[uint64]int{}
		for i := 0; i+8 <= len(v); i += 8 {
			op := binary.BigEndian.Uint64(v[i:])
			if _, twice := position[reg][op]; twice {
				return fmt.Errorf("register %d: operation %d happened twice", reg, op)
			}
			position[reg][op] = i / 8
		}
	}
	var ops []porcupine.Operation
	for _, e := range h.events {
		o := porcupine.Operation{ClientId: e.client, Call: e.call, Return: e.ret, Input: input{e.reg, e.op != 0}}
		switch at, in := position[e.reg][e.op]; {
		case e.op == 0 && !e.done:
			continue
		case e.op == 0:
			if !bytes.HasPrefix(final[e.reg], e.read) {
				return fmt.Errorf("register %d: a read saw what is not in the final value", e.reg)
			}
			o.Output = len(e.read) / 8
		case e.done && !in:
			return fmt.Errorf("register %d: operation %d succeeded and is lost", e.reg, e.op)
		case !in:
			continue
		default:
			o.Output = at
			if !e.done {
				o.Return = 1 << 62
			}
		}
		ops = append(ops, o)
	}
	model := porcupine.Model{
		Partition: func(all []porcupine.Operation) [][]porcupine.Operation {
			parts := map[int][]porcupine.Operation{}
			for _, o := range all {
				parts[o.Input.(input).reg] = append(parts[o.Input.(input).reg], o)
			}
			var out [][]porcupine.Operation
			for _, p := range parts {
				out = append(out, p)
			}
			return out
		},
		Init: func() any { return 0 },
		Step: func(state, in, out any) (bool, any) {
			if state.(int) != out.(int) {
				return false, state
			}
			if in.(input).append {
				return true, state.(int) + 1
			}
			return true, state
		},
	}
	if !porcupine.CheckOperations(model, ops) {
		return errors.New("the history is not linearizable")
	}
	return nil
}

var storm = faults{drop: 2, dropReply: 2, repeat: 3, slow: 2, delay: 20 * time.Millisecond}

// mix is one kind of bad day.
type mix struct {
	name  string
	runs  int // seeds
	setup options
}

// opsPerRun keeps histories short, so that checking them stays cheap, and long
// enough that every run lasts for minutes of virtual time and dozens of faults.
const opsPerRun = 5000

// mixes make a million operations together.
var mixes = []mix{
	{"calm", 50, options{peers: 5, m: 1, faults: faults{delay: 2 * time.Millisecond}}},
	{"storm", 46, options{peers: 6, m: 1, faults: storm, nemesis: true}},
	{"five replicas", 24, options{peers: 7, m: 2, faults: storm, nemesis: true}},
	{"duels", 24, options{peers: 5, m: 1, faults: faults{duel: 30, drop: 1, repeat: 3, delay: 10 * time.Millisecond}, nemesis: true}},
	{"skewed timers", 24, options{peers: 6, m: 1, faults: faults{slow: 4, dropReply: 1, repeat: 2, delay: 30 * time.Millisecond}, nemesis: true, skew: true}},
	{"moving views", 24, options{peers: 7, m: 1, faults: faults{drop: 1, repeat: 2, delay: 10 * time.Millisecond}, nemesis: true, moving: true}},
	{"shared creations", 12, options{peers: 6, m: 1, faults: storm, nemesis: true, births: 20}},
}

// TestModel runs the production code in virtual time through many seeds of each mix. MUTUALFS_SEED
// makes one run of each mix with that seed; MUTUALFS_MODEL=full, as make test does, all that mixes names.
func TestModel(t *testing.T) {
	seed := seedOf(t)
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	var done atomic.Int64
	t.Run("mixes", func(t *testing.T) {
		for _, x := range mixes {
			runs := x.runs
			switch {
			case os.Getenv("MUTUALFS_SEED") != "":
				runs = 1
			case os.Getenv("MUTUALFS_MODEL") != "full" || raceEnabled:
				runs = 1 + runs/50
			}
			t.Run(x.name, func(t *testing.T) {
				t.Parallel()
				for i := range runs {
					o := x.setup
					o.seed, o.ops = seed+uint64(i), opsPerRun
					n, err := runModel(t, o)
					done.Add(int64(n))
					if err != nil {
						t.Fatalf("MUTUALFS_SEED=%d: %v; %s", o.seed, err, again(t, o))
					}
				}
			})
		}
	})
	t.Logf("%d operations succeeded", done.Load())
}

// again says how often a failing seed fails: the faults are the same each time, the order
// in which goroutines run at one instant is not.
func again(t *testing.T, o options) string {
	const tries = 5
	failed := 0
	for range tries {
		if _, err := runModel(t, o); err != nil {
			failed++
		}
	}
	return fmt.Sprintf("the same seed again fails %d times of %d", failed, tries)
}

// The tests of the tests: broken variants must be caught. Each is given faults with which more than
// half of all seeds catch it, so that none of so many does is no chance.
func caught(t *testing.T, o options) {
	t.Helper()
	const seeds = 30
	for i := range seeds {
		o.seed = uint64(i + 1)
		if _, err := runModel(t, o); err != nil {
			t.Logf("seed %d: %v", o.seed, err)
			return
		}
	}
	t.Errorf("the model does not notice in %d seeds", seeds)
}

func TestModelCatchesForgottenPromises(t *testing.T) {
	duels := storm
	duels.duel = 30
	caught(t, options{ops: 2000, peers: 5, m: 1, faults: duels, nemesis: true, kv: func(kv register.KV) register.KV { return forgetful{kv} }})
}

func TestModelCatchesSkippedPrepare(t *testing.T) {
	caught(t, options{ops: 2000, peers: 5, m: 1, faults: storm, nemesis: true,
		broken: func(ctx context.Context, _ blocks.PeerID, req overlay.Call, call func(context.Context, overlay.Call) (overlay.Call, error)) (overlay.Call, error) {
			if req.Kind == register.KindPrepare {
				return register.PretendPromise(ctx, req, call)
			}
			return call(ctx, req)
		}})
}

func TestModelCatchesCreationWithoutPromises(t *testing.T) {
	duels := storm
	duels.duel = 60 // creations meet only where two coordinators are asked at once
	caught(t, options{ops: 2000, peers: 6, m: 1, faults: duels, nemesis: true, births: 60,
		broken: func(ctx context.Context, _ blocks.PeerID, req overlay.Call, call func(context.Context, overlay.Call) (overlay.Call, error)) (overlay.Call, error) {
			if req.Kind == register.KindPrepare && register.IsSearch(req) {
				return register.PretendPromise(ctx, req, call)
			}
			return call(ctx, req)
		}})
}

func TestModelCatchesRetriesAppliedTwice(t *testing.T) {
	caught(t, options{ops: 2000, peers: 5, m: 1, faults: storm, nemesis: true,
		broken: func(ctx context.Context, _ blocks.PeerID, req overlay.Call, call func(context.Context, overlay.Call) (overlay.Call, error)) (overlay.Call, error) {
			if req.Kind == register.KindPropose {
				return call(ctx, register.WithoutSeq(req))
			}
			return call(ctx, req)
		}})
}
