package register_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
	"github.com/mutualfs/mutualfs/overlay/register"
)

// fill creates n registers with the value "a".
func (w *world) fill(p *peer, n int) {
	for i := range n {
		if _, err := p.svc.Propose(w.t.Context(), regID(i), blocks.Change{Origin: p.id, Seq: 1, Snapshot: []byte("a")}); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) awaitProtected(n uint64, limit time.Duration) {
	w.t.Helper()
	var c register.RingCounts
	var err error
	watch := w.peers[len(w.peers)-1].svc.Watch()
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if c, err = watch.Counts(w.t.Context()); err == nil && c.Fresh && c.Protected == n && c.Degraded+c.Unavailable == 0 {
			return
		}
	}
	w.t.Fatalf("not protected after %v: %+v, %v", limit, c, err)
}

// A deleted register stays deleted when stores are lost, one after the other, and does not count.
func TestDeletedStaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 4)
		defer w.stop()
		client := w.join(false)
		synctest.Wait()
		w.fill(client, 5)
		if _, err := client.svc.Propose(t.Context(), regID(0), blocks.Change{Base: 1, Origin: client.id, Seq: 2, Delete: true}); err != nil {
			t.Fatal(err)
		}
		w.awaitProtected(4, 5*time.Second)
		for _, lost := range w.peers[:4] {
			w.kill(lost)
			lost.kv = newStore(w.rng)
			w.start(lost)
			w.awaitProtected(4, 10*time.Second)
		}
		if r, err := client.svc.Read(t.Context(), regID(0), 0); !errors.Is(err, blocks.ErrNotFound) {
			t.Errorf("a deleted register: version %d, %v", r.Version, err)
		}
	})
}

func TestPeerThatLostItsStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 4)
		defer w.stop()
		client := w.join(false)
		synctest.Wait()
		w.fill(client, 30)
		w.awaitProtected(30, 5*time.Second)
		for _, lost := range w.peers[:4] { // each in turn: the value must be carried on
			w.kill(lost)
			lost.kv = newStore(w.rng)
			w.start(lost)
			w.awaitProtected(30, 10*time.Second)
		}
		for i := range 30 {
			if r, err := client.svc.Read(t.Context(), regID(i), 0); err != nil || value(r) != "a" {
				t.Errorf("register %d: %q, %v", i, value(r), err)
			}
		}
	})
}

func TestTooManyStoresLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 3)
		defer w.stop()
		client := w.join(false)
		synctest.Wait()
		w.fill(client, 5)
		synctest.Wait() // the third member has it all too
		for _, lost := range w.peers[:2] {
			w.kill(lost)
			lost.kv = newStore(w.rng)
		}
		for _, lost := range w.peers[:2] {
			w.start(lost)
		}
		time.Sleep(10 * time.Second)
		for i := range 5 {
			if _, err := client.svc.Read(t.Context(), regID(i), 0); !errors.Is(err, blocks.ErrUnavailable) {
				t.Errorf("two empty stores of three outvote the full one: %v", err)
			}
		}
		c, err := client.svc.RingCounts(t.Context())
		if err != nil || c.Unavailable != 5 {
			t.Errorf("%+v, %v", c, err)
		}
	})
}

func TestMembersThatWereDownCatchUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 3)
		defer w.stop()
		client := w.join(false)
		synctest.Wait()
		w.fill(client, 20)
		down := w.peers[1]
		w.kill(down)
		w.live(down, overlay.Down)
		for i := range 20 {
			for v := range 3 {
				if _, err := client.svc.Propose(t.Context(), regID(i), blocks.Change{Base: blocks.Version(v + 1), Origin: client.id, Seq: uint64(v + 2), Delta: []byte("b")}); err != nil {
					t.Fatal(err)
				}
			}
		}
		c, err := client.svc.RingCounts(t.Context())
		for deadline := time.Now().Add(5 * time.Second); err == nil && c.Degraded != 20 && time.Now().Before(deadline); {
			time.Sleep(100 * time.Millisecond)
			c, err = client.svc.RingCounts(t.Context())
		}
		if err != nil || c.Degraded != 20 {
			t.Fatalf("%+v, %v", c, err)
		}
		down.info.Live = overlay.Alive
		w.start(down)
		w.awaitProtected(20, 5*time.Second)
		w.kill(w.peers[0]) // now the one that was down is needed
		for i := range 20 {
			if r, err := client.svc.Read(t.Context(), regID(i), 0); err != nil || value(r) != "abbb" {
				t.Errorf("register %d: %q, %v", i, value(r), err)
			}
		}
	})
}

// A peer is away while registers are made; when it returns, those that it should take care of are brought to it and counted,
// although it has never heard of them.
func TestPeerThatMissedCreations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 3)
		defer w.stop()
		client := w.join(false)
		synctest.Wait()
		for round, down := range w.peers[:3] {
			w.kill(down)
			w.live(down, overlay.Down)
			w.fill(client, 20*(round+1)) // the first ones are there already
			down.info.Live = overlay.Alive
			w.start(down)
			w.awaitProtected(20*uint64(round+1), 5*time.Second)
		}
	})
}

// A member is away while the register moves on without it; when it returns it
// must not disturb, and forget.
func TestStraysForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 6)
		defer w.stop()
		client := w.join(false)
		synctest.Wait()
		w.fill(client, 20)
		away := w.peers[0]
		w.kill(away)
		w.live(away, overlay.Gone)
		w.awaitProtected(20, 10*time.Second)
		r, err := client.svc.Read(t.Context(), regID(0), 0)
		if err != nil || slices.Contains(r.View, away.id) {
			t.Fatalf("the view still has the peer that is gone: %v", err)
		}
		away.info.Vnodes = 0 // it has no home any more
		away.info.Live = overlay.Alive
		w.start(away)
		for deadline := time.Now().Add(90 * time.Second); ; time.Sleep(time.Second) {
			kept := 0
			for i := range 20 {
				if slices.Contains(away.svc.ViewOf(regID(i)), away.id) {
					kept++
				}
			}
			if kept == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("the stray keeps %d registers", kept)
			}
		}
	})
}

func TestTakeOverIsFast(t *testing.T) {
	for _, how := range []string{"dead", "silent"} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 1, 3)
				defer w.stop()
				client := w.join(false)
				synctest.Wait()
				w.fill(client, 1)
				r, err := client.svc.Read(t.Context(), regID(0), 0)
				if err != nil {
					t.Fatal(err)
				}
				i := slices.IndexFunc(w.peers, func(p *peer) bool { return p.id == r.View[0] })
				limit := 100 * time.Millisecond
				if how == "dead" {
					w.kill(w.peers[i])
				} else {
					all := []blocks.PeerID{client.id}
					for _, p := range w.peers {
						all = append(all, p.id)
					}
					w.chaos.isolate(w.peers[i].id, all, true)
					limit = 3 * time.Second
				}
				begin := time.Now()
				if _, err := client.svc.Read(t.Context(), regID(0), 0); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(begin); took > time.Second {
					t.Errorf("a read without the first member took %v", took)
				}
				for v := range 5 {
					if _, err := client.svc.Propose(t.Context(), regID(0), blocks.Change{Base: blocks.Version(v + 1), Origin: client.id, Seq: uint64(v + 2), Delta: []byte("b")}); err != nil {
						t.Fatal(err)
					}
				}
				if took := time.Since(begin); took > limit {
					t.Errorf("five changes without the coordinator took %v", took)
				}
			})
		})
	}
}

func TestWithoutAMajority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 3)
		defer w.stop()
		client := w.join(false)
		synctest.Wait()
		w.fill(client, 1)
		w.kill(w.peers[0])
		w.kill(w.peers[1])
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := client.svc.Read(ctx, regID(0), 0); !errors.Is(err, blocks.ErrUnavailable) {
			t.Errorf("read: %v", err)
		}
		if _, err := client.svc.Propose(ctx, regID(0), blocks.Change{Base: 1, Origin: client.id, Seq: 2, Delta: []byte("b")}); !errors.Is(err, blocks.ErrUnavailable) {
			t.Errorf("change: %v", err)
		}
		if _, err := client.svc.Propose(ctx, regID(9), blocks.Change{Origin: client.id, Seq: 3, Snapshot: []byte("b")}); !errors.Is(err, blocks.ErrUnavailable) {
			t.Errorf("creation: %v", err)
		}
		short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		begin := time.Now()
		if _, err := client.svc.Read(short, regID(0), 0); err == nil || time.Since(begin) > 200*time.Millisecond {
			t.Errorf("a bounded read took %v: %v", time.Since(begin), err)
		}
	})
}

func TestLargeValues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 3)
		defer w.stop()
		client := w.join(false)
		synctest.Wait()
		big := bytes.Repeat([]byte("x"), register.MaxValue-10)
		r, err := client.svc.Propose(t.Context(), regID(0), blocks.Change{Origin: client.id, Seq: 1, Snapshot: big})
		if err != nil {
			t.Fatal(err)
		}
		if _, err = client.svc.Propose(t.Context(), regID(0), blocks.Change{Base: r.Version, Origin: client.id, Seq: 2, Delta: big[:11]}); !errors.Is(err, blocks.ErrNoSpace) {
			t.Fatalf("too much: %v", err)
		}
		if r, err = client.svc.Propose(t.Context(), regID(0), blocks.Change{Base: r.Version, Origin: client.id, Seq: 2, Delta: big[:10]}); err != nil {
			t.Fatal(err)
		}
		got, err := w.peers[0].svc.Read(t.Context(), regID(0), 0)
		if err != nil || len(value(got)) != register.MaxValue {
			t.Fatalf("%d bytes, %v", len(value(got)), err)
		}
		if r, err = client.svc.Propose(t.Context(), regID(0), blocks.Change{Base: r.Version, Origin: client.id, Seq: 3, Snapshot: []byte{}}); err != nil {
			t.Fatal(err)
		}
		if got, err = w.peers[0].svc.Read(t.Context(), regID(0), 0); err != nil || value(got) != "" || got.Snapshot == nil {
			t.Fatalf("%q, %v", value(got), err)
		}
	})
}

func BenchmarkUpdate(b *testing.B) {
	for _, peers := range []int{1, 3, 5} {
		for _, parallel := range []int{1, 32} {
			b.Run(fmt.Sprintf("peers=%d/parallel=%d", peers, parallel), func(b *testing.B) {
				w := newWorld(b, 2, peers)
				defer w.stop()
				client := w.join(false)
				w.fill(client, parallel)
				b.ReportAllocs()
				b.ResetTimer()
				done := make(chan error, parallel)
				for reg := range parallel {
					go func() {
						var err error
						for i := 0; i < b.N/parallel && err == nil; i++ {
							_, err = client.svc.Propose(b.Context(), regID(reg), blocks.Change{Base: blocks.Version(i + 1), Origin: client.id, Seq: uint64(i + 2), Snapshot: []byte("0123456789")})
						}
						done <- err
					}()
				}
				for range parallel {
					if err := <-done; err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkHolds(b *testing.B) {
	w := newWorld(b, 2, 5)
	defer w.stop()
	client := w.join(false)
	r, err := client.svc.Propose(b.Context(), regID(0), blocks.Change{Origin: client.id, Seq: 1, Snapshot: []byte("a"), Lease: blocks.LeaseAcquire})
	if err != nil {
		b.Fatal(err)
	}
	id := regID(0)
	b.ReportAllocs()
	for b.Loop() {
		if !client.svc.Holds(id, r.Lease.Epoch) {
			b.Fatal("the lease is not held")
		}
	}
}
