package overlay

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

func testMembers() *members {
	return newMembers(blocks.ID{1}, testPeer(1), meta{incarnation: 5, vnodes: 1, drives: 1, addr: "a:1"}, DefaultTimings())
}

func (ms *members) liveOf(id blocks.PeerID) Liveness {
	t, _ := ms.table()
	return t.Peers[id].Live
}

func wantLive(t *testing.T, ms *members, id blocks.PeerID, want Liveness) {
	t.Helper()
	if got := ms.liveOf(id); got != want {
		t.Fatalf("peer %s is %v, want %v", id.Short(), got, want)
	}
}

var other = testPeer(2)

func otherMeta(inc uint64) meta { return meta{incarnation: inc, vnodes: 2, drives: 1, addr: "b:1"} }

func TestSilenceGoesFromSuspectToGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ms := testMembers()
		ms.gossipAlive(other, otherMeta(1), true)
		wantLive(t, ms, other, Alive)
		ms.silent(other)
		wantLive(t, ms, other, Suspect)
		time.Sleep(14 * time.Second)
		ms.age()
		wantLive(t, ms, other, Suspect)
		time.Sleep(time.Second)
		ms.age()
		wantLive(t, ms, other, Down)
		time.Sleep(time.Hour)
		ms.age()
		wantLive(t, ms, other, Down) // the gossip still has it alive: only our link is broken
		ms.gossipDead(other)
		time.Sleep(15*time.Minute - time.Second)
		ms.age()
		wantLive(t, ms, other, Down)
		time.Sleep(time.Second)
		ms.age()
		wantLive(t, ms, other, Gone)
		if tab, _ := ms.table(); len(tab.Vnodes()) != 1 {
			t.Errorf("%d virtual nodes, want our own only", len(tab.Vnodes()))
		}
		ms.heard(other)
		wantLive(t, ms, other, Alive)
		if tab, _ := ms.table(); len(tab.Vnodes()) != 3 {
			t.Errorf("%d virtual nodes, want all again", len(tab.Vnodes()))
		}
	})
}

func TestTheNewerIncarnationIsBelieved(t *testing.T) {
	ms := testMembers()
	ms.gossipAlive(other, otherMeta(7), true)
	stale := otherMeta(6)
	stale.addr = "old:1"
	ms.gossipAlive(other, stale, false)
	left := otherMeta(7)
	left.left = true
	ms.merge([]record{{other, left, Left, 0}}) // the same incarnation says nothing new
	tab, _ := ms.table()
	if p := tab.Peers[other]; p.Addr != "b:1" || p.Live != Alive {
		t.Fatalf("a stale record was believed: %+v", p)
	}
	left.incarnation = 8
	ms.merge([]record{{other, left, Alive, 0}})
	wantLive(t, ms, other, Left)
	ms.heard(other) // it still talks while it goes
	ms.gossipAlive(other, left, true)
	wantLive(t, ms, other, Left)
	ms.gossipAlive(other, otherMeta(9), true)
	wantLive(t, ms, other, Alive)
}

func TestOurOwnPastIsOutdone(t *testing.T) {
	ms := testMembers()
	if above := ms.merge([]record{{testPeer(1), meta{incarnation: 4}, Alive, 0}}); above != 0 {
		t.Errorf("an older record of ourselves matters: %d", above)
	}
	if above := ms.merge([]record{{testPeer(1), meta{incarnation: 40, left: true}, Left, 0}}); above != 40 {
		t.Errorf("want to go above 40, got %d", above)
	}
	wantLive(t, ms, testPeer(1), Alive)
}

func TestWhatOthersKnowOfTheSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ms := testMembers()
		ms.merge([]record{
			{testPeer(3), otherMeta(1), Gone, time.Hour},
			{testPeer(4), otherMeta(1), Down, 14 * time.Minute},
			{testPeer(5), otherMeta(1), Alive, 0}, // their word; ours comes with a ping
		})
		wantLive(t, ms, testPeer(3), Gone)
		wantLive(t, ms, testPeer(4), Down)
		wantLive(t, ms, testPeer(5), Suspect)
		time.Sleep(time.Minute)
		ms.age()
		wantLive(t, ms, testPeer(4), Gone)
		wantLive(t, ms, testPeer(5), Down)
		// A later sign of life that others had puts the end off.
		ms.merge([]record{{testPeer(5), otherMeta(1), Alive, 0}})
		time.Sleep(14*time.Minute + 30*time.Second)
		ms.age()
		wantLive(t, ms, testPeer(5), Down)
	})
}

func TestRestoreCountsSilenceFromTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ms := testMembers()
		ms.gossipAlive(other, otherMeta(1), true)
		ms.gossipAlive(testPeer(3), otherMeta(1), true)
		ms.all[testPeer(3)].live = Gone
		saved := encodeSaved(ms.ring, 5, ms.records(false)[1:])
		time.Sleep(30 * 24 * time.Hour)

		_, rs, err := decodeSaved(ms.ring, saved)
		if err != nil {
			t.Fatal(err)
		}
		again := testMembers()
		again.restore(rs)
		wantLive(t, again, other, Suspect)
		wantLive(t, again, testPeer(3), Gone)
		for _, r := range again.records(false)[1:] {
			if r.age >= 0 {
				t.Errorf("we tell others that %s was heard of %v ago, and know nothing", r.id.Short(), r.age)
			}
		}
		time.Sleep(15*time.Minute - time.Second)
		again.age()
		again.age()
		wantLive(t, again, other, Down)
		time.Sleep(time.Second)
		again.age()
		wantLive(t, again, other, Gone)
	})
}

func TestTheSilentArePingedForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ms := testMembers()
		exact := func(d time.Duration) time.Duration { return d }
		for i := range 20 {
			ms.merge([]record{{testPeer(byte(10 + i)), otherMeta(1), Gone, time.Hour}})
		}
		pinged := map[blocks.PeerID]int{}
		for range 600 {
			ids := ms.due(exact)
			if len(ids) > pingBurst {
				t.Fatalf("%d pings at once", len(ids))
			}
			for _, id := range ids {
				pinged[id]++
				ms.pinged(id, false)
			}
			time.Sleep(time.Second)
		}
		for id, n := range pinged {
			if n < 20 || n > 31 {
				t.Errorf("peer %s was pinged %d times in ten minutes", id.Short(), n)
			}
		}
		if len(pinged) != 20 {
			t.Errorf("%d of 20 were pinged at all", len(pinged))
		}
	})
}
