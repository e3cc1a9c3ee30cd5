package register_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

// TestList: all registers but the deleted ones, and their ages; a peer that is away makes it an error.
func TestList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 4)
		defer w.stop()
		client := w.join(false)
		synctest.Wait()
		w.fill(client, 30)
		time.Sleep(time.Hour)
		if _, err := client.svc.Propose(t.Context(), regID(7), blocks.Change{Base: 1, Origin: client.id, Seq: 2, Delete: true}); err != nil {
			t.Fatal(err)
		}
		if _, err := client.svc.Propose(t.Context(), regID(100), blocks.Change{Origin: client.id, Seq: 1, Snapshot: []byte("new")}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		ages := map[blocks.RegisterID]time.Duration{}
		if err := client.svc.List(t.Context(), func(id blocks.RegisterID, age time.Duration) { ages[id] = age }); err != nil {
			t.Fatal(err)
		}
		for i := range 30 {
			age, ok := ages[regID(i)]
			if ok != (i != 7) || ok && age < time.Hour {
				t.Errorf("register %d: %v, %v old", i, ok, age)
			}
		}
		if age, ok := ages[regID(100)]; !ok || age > time.Minute {
			t.Errorf("the new register: %v, %v old", ok, age)
		}
		w.kill(w.peers[2])
		w.live(w.peers[2], overlay.Down)
		if err := client.svc.List(t.Context(), func(blocks.RegisterID, time.Duration) {}); !errors.Is(err, blocks.ErrUnavailable) {
			t.Errorf("with a peer down: %v", err)
		}
	})
}

// TestReadAgreed: the lease of another mount stays where it is.
func TestReadAgreed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 3)
		defer w.stop()
		a, b := w.join(false), w.join(false)
		synctest.Wait()
		r, err := a.svc.Propose(t.Context(), regID(0), blocks.Change{Origin: a.id, Seq: 1, Snapshot: []byte("x"), Lease: blocks.LeaseAcquire})
		if err != nil || r.Lease.Holder != a.id {
			t.Fatalf("%+v, %v", r, err)
		}
		got, err := b.svc.ReadAgreed(t.Context(), regID(0), 0)
		if err != nil || value(got) != "x" || got.Lease != r.Lease {
			t.Errorf("%+v, %v", got, err)
		}
		if !a.svc.Holds(regID(0), r.Lease.Epoch) {
			t.Error("the lease was given back")
		}
		if _, err := a.svc.Propose(t.Context(), regID(0), blocks.Change{Base: r.Version, Origin: a.id, Seq: 2, Delete: true}); err != nil {
			t.Fatal(err)
		}
		if _, err := b.svc.ReadAgreed(t.Context(), regID(0), 0); !errors.Is(err, blocks.ErrNotFound) {
			t.Errorf("after the deletion: %v", err)
		}
	})
}
