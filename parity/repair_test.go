package parity

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// storageOnly is a store without the volume key on the same ring.
func storageOnly(t *testing.T, p Placer) *Store {
	return newStore(t, p, func(c *Config) { c.VolumeKey = nil })
}

func indexes(placed []blocks.Placed) []int {
	var list []int
	for _, pl := range placed {
		list = append(list, int(pl.Index))
	}
	slices.Sort(list)
	return list
}

func TestRepairEveryLoss(t *testing.T) {
	rnd := seed(t)
	for _, n := range []int{500, 20_000, 100_000} {
		ring := newRing(6, 1)
		s, blind := newStore(t, ring, nil), storageOnly(t, ring)
		content := randomBytes(rnd, n)
		rc := mustWrite(t, s, content)
		all := int(rc.Ref.K + rc.Ref.M)
		before := map[int][]byte{}
		for i := range all {
			before[i] = bytes.Clone(ring.at(rc.Ref.ID, i).shards[fakeKey{rc.Ref.ID, uint8(i)}].shard.Data)
		}
		losses(all, 2, func(lost uint) {
			var gone, rotten []int
			for i := range all {
				switch {
				case lost>>i&1 == 0:
				case rnd.IntN(2) == 0:
					gone = append(gone, i)
					ring.at(rc.Ref.ID, i).drop(rc.Ref.ID, i)
				default:
					rotten = append(rotten, i)
					ring.at(rc.Ref.ID, i).rot(rc.Ref.ID, i)
				}
			}
			rep, err := blind.Repair(t.Context(), rc.Ref.ID, nil)
			want := slices.Sorted(slices.Values(append(slices.Clone(gone), rotten...)))
			if err != nil || !slices.Equal(indexes(rep.Rebuilt), want) || !slices.Equal(rep.Corrupt, rotten) || len(rep.Elsewhere)+len(rep.Missing) > 0 || rep.Owner.Ino != 9 {
				t.Fatalf("lost %v rotten %v: %+v, %v", gone, rotten, rep, err)
			}
			for i := range all {
				sh := ring.at(rc.Ref.ID, i).shards[fakeKey{rc.Ref.ID, uint8(i)}]
				if !bytes.Equal(sh.shard.Data, before[i]) || lost>>i&1 == 1 && !sh.synced {
					t.Fatalf("shard %d after repair differs, or is not durable", i)
				}
			}
			checkHints(t, ring, rc)
		})
		checkRead(t, s, rc.Ref, content, 0, n)
	}
}

func TestRepairFindsLiars(t *testing.T) {
	ring := newRing(6, 1)
	s := newStore(t, ring, nil)
	content := randomBytes(seed(t), 100_000)
	rc := mustWrite(t, s, content)
	id := rc.Ref.ID
	ring.at(id, 1).lie(id, 1)
	rep, err := storageOnly(t, ring).Repair(t.Context(), id, nil)
	if err != nil || !slices.Equal(rep.Corrupt, []int{1}) || !slices.Equal(indexes(rep.Rebuilt), []int{1}) {
		t.Fatalf("one of six lies: %+v, %v", rep, err)
	}
	checkRead(t, s, rc.Ref, content, 0, len(content))
	// With only k+1 left nobody can say which one lies: nothing is changed.
	ring.at(id, 0).drop(id, 0)
	ring.at(id, 1).lie(id, 1)
	if rep, err := storageOnly(t, ring).Repair(t.Context(), id, nil); !errors.Is(err, blocks.ErrCorrupt) || len(rep.Rebuilt) > 0 {
		t.Fatalf("one of five lies: %+v, %v", rep, err)
	}
	// Who holds the key can.
	if rep, err := s.Repair(t.Context(), id, nil); err != nil || !slices.Equal(rep.Corrupt, []int{1}) || !slices.Equal(indexes(rep.Rebuilt), []int{0, 1}) {
		t.Fatalf("one of five lies, with the key: %+v, %v", rep, err)
	}
	checkRead(t, s, rc.Ref, content, 0, len(content))
	forged := newStore(t, ring, func(c *Config) { c.VolumeKey = bytes.Repeat([]byte{9}, KeySize) })
	if _, err := forged.Repair(t.Context(), id, nil); !errors.Is(err, blocks.ErrCorrupt) {
		t.Fatalf("repair with another volume's key: %v", err)
	}
}

func TestRepairToStandInsAndElsewhere(t *testing.T) {
	ring := newRing(8, 2)
	s := newStore(t, ring, nil)
	content := randomBytes(seed(t), 100_000)
	rc := mustWrite(t, s, content)
	id := rc.Ref.ID
	home := ring.at(id, 2)
	home.set(func(p *fakePeer) { p.down = true; clear(p.shards) })
	rep, err := s.Repair(t.Context(), id, nil)
	if err != nil || !slices.Equal(indexes(rep.Rebuilt), []int{2}) {
		t.Fatalf("%+v, %v", rep, err)
	}
	if to := rep.Rebuilt[0].Holder.Peer(); slices.ContainsFunc(rc.Placed, func(pl blocks.Placed) bool { return pl.Holder.Peer() == to }) {
		t.Error("the stand-in has a shard already, and a fresh peer was free")
	}
	home.set(func(p *fakePeer) { p.down = false })
	rep, err = s.Repair(t.Context(), id, nil)
	if err != nil || len(rep.Rebuilt) > 0 || len(rep.Elsewhere) != 1 || rep.Elsewhere[0].Header.Index != 2 {
		t.Fatalf("after the return: %+v, %v", rep, err)
	}
}

func TestRepairUsesWhatTheCallerKnows(t *testing.T) {
	ring := newRing(20, 1)
	s := newStore(t, nearRing(ring, 6), nil)
	content := randomBytes(seed(t), 100_000)
	rc := mustWrite(t, s, content)
	var have []Found
	for _, pl := range rc.Placed {
		hs, err := pl.Holder.Have(t.Context(), rc.Ref.ID)
		if err != nil {
			t.Fatal(err)
		}
		have = append(have, Found{pl.Holder, hs[0]})
	}
	ring.shift = 10
	rep, err := s.Repair(t.Context(), rc.Ref.ID, have)
	if err != nil || len(rep.Good) != 6 || len(rep.Elsewhere) != 6 {
		t.Fatalf("%+v, %v", rep, err)
	}
}

func TestRepairOfNothing(t *testing.T) {
	ring := newRing(6, 1)
	s := newStore(t, ring, nil)
	var id blocks.StripeID
	if _, err := s.Repair(t.Context(), id, nil); !errors.Is(err, blocks.ErrNotFound) {
		t.Errorf("nobody has any: %v", err)
	}
	ring.peers[0].silent = true
	if _, err := s.Repair(t.Context(), id, nil); !errors.Is(err, blocks.ErrUnavailable) || errors.Is(err, blocks.ErrNotFound) {
		t.Errorf("one peer did not answer: %v", err)
	}
}

func TestRecreate(t *testing.T) {
	ring := newRing(8, 1)
	s := newStore(t, ring, nil)
	content := randomBytes(seed(t), 100_000)
	rc := mustWrite(t, s, content)
	id := rc.Ref.ID
	ring.at(id, 3).drop(id, 3)
	var to *fakeHolder
	for _, p := range ring.peers {
		if !slices.ContainsFunc(rc.Placed, func(pl blocks.Placed) bool { return pl.Holder.Peer() == p.id }) {
			to = p.holder(0)
		}
	}
	pl, err := storageOnly(t, ring).Recreate(t.Context(), id, 3, to, nil)
	if err != nil || pl.Holder != blocks.Holder(to) || ring.at(id, 3) != to.fakePeer || !to.shards[fakeKey{id, 3}].synced {
		t.Fatalf("%+v, %v", pl, err)
	}
	checkHints(t, ring, rc)
	if _, err := s.Recreate(t.Context(), id, 6, to, nil); !errors.Is(err, blocks.ErrInvalid) {
		t.Errorf("shard 6 of 6: %v", err)
	}
	to.full = true
	if _, err := s.Recreate(t.Context(), id, 3, to, nil); !errors.Is(err, blocks.ErrNoSpace) {
		t.Errorf("on a full disk: %v", err)
	}
}

func TestDelete(t *testing.T) {
	ring := newRing(9, 2)
	s := newStore(t, ring, nil)
	rc := mustWrite(t, s, randomBytes(seed(t), 100_000))
	down := ring.at(rc.Ref.ID, 0)
	down.set(func(p *fakePeer) { p.down = true })
	if err := s.Delete(t.Context(), rc.Ref.ID); !errors.Is(err, blocks.ErrUnavailable) {
		t.Errorf("delete with a home down: %v", err)
	}
	down.set(func(p *fakePeer) { p.down = false })
	if err := s.Delete(t.Context(), rc.Ref.ID); err != nil {
		t.Errorf("delete: %v", err)
	}
	for i := range 6 {
		if ring.at(rc.Ref.ID, i) != nil {
			t.Errorf("shard %d is still there", i)
		}
	}
	if err := s.Delete(t.Context(), rc.Ref.ID); err != nil {
		t.Errorf("delete again: %v", err)
	}
}

func TestRunWaitsForCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ring := newRing(6, 1)
		s := newStore(t, ring, nil)
		rc := mustWrite(t, s, []byte("content"))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); _ = s.Run(ctx) }()
		deaf := ring.at(rc.Ref.ID, 0)
		deaf.set(func(p *fakePeer) { p.deaf = true })
		checkRead(t, s, rc.Ref, []byte("content"), 0, 7)
		cancel()
		synctest.Wait()
		select {
		case <-ended:
			t.Error("Run has ended before its call")
		default:
		}
		if err := s.Read(t.Context(), rc.Ref, 0, make([]byte, 1)); !errors.Is(err, blocks.ErrUnavailable) {
			t.Errorf("read after the end: %v", err)
		}
		if _, err := s.Sync(t.Context(), []blocks.Receipt{rc}); !errors.Is(err, blocks.ErrUnavailable) {
			t.Errorf("sync after the end: %v", err)
		}
		close(deaf.release)
		<-ended
	})
}

// Reports of one stripe are told once while they wait, and never block.
func TestDamageQueueIsBounded(t *testing.T) {
	var q damageQueue
	q.init(2)
	for i := range 5 {
		d := damage{stripe: blocks.StripeID{ID: blocks.HashID([]byte{byte(i)})}, missing: []int{i}}
		if ok := q.report(d); ok != (i < 2) {
			t.Errorf("report %d: %v", i, ok)
		}
		if i < 2 && !q.report(d) {
			t.Error("a duplicate was dropped as new")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	n := 0
	q.run(ctx, func(damage) {
		if n++; n == 2 {
			cancel()
		}
	})
	if n != 2 {
		t.Errorf("%d reports told", n)
	}
}
