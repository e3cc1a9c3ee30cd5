package sim

import (
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

// The size of the simulated ring; MUTUALFS_SIM_PEERS changes it.
const defaultPeers = 100

// span of a 4+2 ring's successor lists: max(4+2, 2*2+1)+2.
const span = 8

func size(t *testing.T) int { return number(t, "MUTUALFS_SIM_PEERS", defaultPeers) }

func seed(t *testing.T) uint64 {
	s := uint64(number(t, "MUTUALFS_SEED", int(rand.Uint64()>>1)))
	t.Logf("MUTUALFS_SEED=%d", s)
	return s
}

func number(t *testing.T, env string, def int) int {
	v := os.Getenv(env)
	if v == "" {
		return def
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		t.Fatalf("%s: %v", env, err)
	}
	return n
}

// Joins per second: what operators do, and what a script does.
const (
	calmly  = 3
	hastily = 50
)

// world runs f in a bubble, with a ring of n peers that joined one after the other.
func world(t *testing.T, n, perSecond int, f func(t *testing.T, w *World)) {
	s := seed(t)
	real := time.Now()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		w := NewWorld(s, 4, 2, overlay.Timings{})
		defer w.Close()
		w.Wire.Delay(time.Millisecond, 30*time.Millisecond)
		if err := w.Add(4, 12).Start(); err != nil {
			t.Fatal(err)
		}
		for len(w.Peers) < n {
			at := w.Any()
			if err := w.Add(4, 12).Join(t.Context(), at); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second / time.Duration(perSecond))
		}
		settle(t, w, w.Up(), 2*time.Minute)
		f(t, w)
		t.Logf("%v of virtual time; calls by kind: %v", time.Since(start).Round(time.Second), w.Wire.Calls())
	})
	t.Logf("%v of real time", time.Since(real).Round(time.Millisecond))
}

// settle waits until the machines form one ordered ring.
func settle(t *testing.T, w *World, machines []*Machine, limit time.Duration) {
	t.Helper()
	begin := time.Now()
	for {
		err := w.Ordered(machines, min(span, len(machines)-1))
		if err == nil {
			t.Logf("one ordered ring of %d virtual nodes on %d peers after %v", len(w.Ring(machines)), len(machines), time.Since(begin).Round(time.Second))
			return
		}
		if time.Since(begin) > limit {
			t.Fatalf("no ordered ring within %v: %v", limit, err)
		}
		time.Sleep(time.Second)
	}
}

// lookups has each machine look some IDs up and wants each owner right.
func lookups(t *testing.T, w *World, machines []*Machine, each int) {
	t.Helper()
	ring := w.Ring(machines)
	var wg sync.WaitGroup
	var mu sync.Mutex
	total, hops, longest := 0, 0, 0
	for _, m := range machines {
		ids := make([]blocks.ID, each)
		for i := range ids {
			ids[i] = w.RandomID()
		}
		wg.Go(func() {
			for _, id := range ids {
				got, h, err := m.Peer.Lookup(t.Context(), id)
				if want := Owner(ring, id); err != nil || got.ID != want.ID {
					t.Errorf("lookup of %s at %s: %s, %v; want %s", id.Short(), m.Addr, got.ID.Short(), err, want.ID.Short())
				}
				mu.Lock()
				total, hops, longest = total+1, hops+h, max(longest, h)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	t.Logf("%d lookups, %.2f hops on average, at most %d", total, float64(hops)/float64(total), longest)
}

// routes has the smallest machine do its part of a check: past the membership table.
func routes(t *testing.T, w *World) {
	t.Helper()
	m := slices.MinFunc(w.Up(), func(a, b *Machine) int { return a.Vnodes - b.Vnodes })
	r, err := m.Peer.CheckPart(t.Context())
	if err != nil || r.Failed > 0 {
		t.Errorf("%s: %d of %d routes failed, %v: %v", m.Addr, r.Failed, r.Routes, err, r.Failures)
	}
	t.Logf("%s: %d routes, %.2f hops on average, at most %d", m.Addr, r.Routes, r.MeanHops(), r.MaxHops)
}

// kill kills n machines at once.
func kill(t *testing.T, w *World, n int) {
	t.Helper()
	for range n {
		if err := w.Any().Kill(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTenPercentKilled(t *testing.T) {
	world(t, size(t), calmly, func(t *testing.T, w *World) {
		lookups(t, w, w.Up(), 10)
		kill(t, w, len(w.Peers)/10)
		settle(t, w, w.Up(), 2*time.Minute)
		lookups(t, w, w.Up(), 10)
		time.Sleep(time.Minute) // fingers; the dead are known to be down
		routes(t, w)
	})
}

func TestKilledWhileMessagesAreLost(t *testing.T) {
	world(t, size(t)/2, calmly, func(t *testing.T, w *World) {
		w.Wire.Loss(0.05)
		w.Wire.Delay(time.Millisecond, 200*time.Millisecond)
		lookups(t, w, w.Up(), 60)
		kill(t, w, len(w.Peers)/10)
		settle(t, w, w.Up(), 5*time.Minute) // one moment in which all of it is right, while it goes on
		lookups(t, w, w.Up(), 10)
		w.Wire.Loss(0)
		for _, m := range w.Peers {
			if m.Peer == nil {
				if err := m.Start(); err != nil { // what it knew is on its disk
					t.Fatal(err)
				}
			}
		}
		settle(t, w, w.Up(), 2*time.Minute)
		lookups(t, w, w.Up(), 10)
	})
}

func TestPartitionHeals(t *testing.T) {
	world(t, size(t)/2, calmly, func(t *testing.T, w *World) {
		side := map[blocks.PeerID]bool{}
		var sides [2][]*Machine
		for i, m := range w.Up() {
			side[m.ID] = i%2 == 0
			sides[i%2] = append(sides[i%2], m)
		}
		w.Wire.Cut(func(from, to blocks.PeerID) bool { return side[from] != side[to] })
		for _, s := range sides {
			settle(t, w, s, 3*time.Minute)
			lookups(t, w, s, 5)
		}
		time.Sleep(2 * time.Minute)
		w.Wire.Cut(nil)
		settle(t, w, w.Up(), 3*time.Minute)
		lookups(t, w, w.Up(), 10)
	})
}

// Below span+1 peers pointers follow from the table; on the way there and back the
// ring must stay one.
func TestShrinksBelowAListAndGrowsAgain(t *testing.T) {
	world(t, span+4, calmly, func(t *testing.T, w *World) {
		kill(t, w, 6)
		settle(t, w, w.Up(), time.Minute)
		lookups(t, w, w.Up(), 20)
		for _, m := range w.Peers {
			if m.Peer == nil {
				if err := m.Start(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
			}
		}
		settle(t, w, w.Up(), time.Minute)
		lookups(t, w, w.Up(), 20)
		routes(t, w)
	})
}

// Gossip reaches nearly everybody. Whom it missed must find what belongs to a peer that it
// does not know, as soon as that peer is on the ring, and get to know it through Chord.
func TestPeerThatGossipMissed(t *testing.T) {
	world(t, 3*span, calmly, func(t *testing.T, w *World) {
		deaf := w.Any()
		w.Wire.Deafen(deaf.ID)
		other := w.Peers[(slices.Index(w.Peers, deaf)+1)%len(w.Peers)]
		strange := 0
		for i := 0; i < 8 || strange == 0 && i < 32; i++ {
			added := w.Add(1, 1) // more could follow each other
			if err := added.Join(t.Context(), other); err != nil {
				t.Fatal(err)
			}
			want := overlay.VnodePosition(w.ring, added.ID, 0)
			for begin := time.Now(); !w.Follows(want); time.Sleep(10 * time.Millisecond) {
				if time.Since(begin) > time.Minute {
					t.Fatalf("%s is not on the ring after a minute", added.Addr)
				}
			}
			if _, known := deaf.Peer.Table().Peers[added.ID]; !known {
				strange++
			}
			if got, hops, err := deaf.Peer.Lookup(t.Context(), want.ID); err != nil || got.ID != want {
				t.Errorf("lookup of %s at the deaf peer: %s after %d hops, %v", want.Short(), got.ID.Short(), hops, err)
			}
		}
		if strange == 0 {
			t.Error("the deaf peer knew everybody before it looked up: the test has shown nothing")
		}
		settle(t, w, w.Up(), time.Minute)
	})
}

func TestManyJoinAtOnce(t *testing.T) {
	world(t, size(t)/2, hastily, func(t *testing.T, w *World) { lookups(t, w, w.Up(), 10) })
}

func TestAllLosePowerAtOnce(t *testing.T) {
	world(t, size(t)/4, hastily, func(t *testing.T, w *World) {
		time.Sleep(5 * time.Second)
		kill(t, w, len(w.Peers))
		for _, m := range w.Peers {
			if err := m.Start(); err != nil {
				t.Fatal(err)
			}
		}
		settle(t, w, w.Up(), 2*time.Minute)
		lookups(t, w, w.Up(), 10)
	})
}

// A ring that does not change must cost next to nothing: per peer and second at
// most so many calls of each kind.
func TestIdleIsCheap(t *testing.T) {
	for _, c := range []struct {
		name            string
		peers           int
		rounds, lookups float64
	}{
		{"pointers from the table", 6, 0, 0},
		{"pointers by chord", 25, 3, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			real := seed(t)
			synctest.Test(t, func(t *testing.T) {
				w := NewWorld(real, 4, 2, overlay.Timings{})
				defer w.Close()
				w.Wire.Delay(time.Millisecond, 5*time.Millisecond)
				first := w.Add(8, 8)
				if err := first.Start(); err != nil {
					t.Fatal(err)
				}
				for len(w.Peers) < c.peers {
					if err := w.Add(8, 8).Join(t.Context(), first); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(5 * time.Minute)
				before := w.Wire.Calls()
				time.Sleep(time.Minute)
				after := w.Wire.Calls()
				per := func(k overlay.Kind) float64 { return float64(after[k]-before[k]) / 60 / float64(c.peers) }
				t.Logf("calls per peer and second: gossip %.2f, ping %.2f, exchange %.2f, step %.2f", per(overlay.KindGossip), per(overlay.KindPing), per(overlay.KindExchange), per(overlay.KindStep))
				if per(overlay.KindGossip) > 3 || per(overlay.KindPing) > 0.01 || per(overlay.KindExchange) > c.rounds || per(overlay.KindStep) > c.lookups {
					t.Error("that is too many")
				}
			})
		})
	}
}
