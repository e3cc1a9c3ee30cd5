package overlay

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/mutualfs/mutualfs/blocks"
)

// testRand is seeded by MUTUALFS_SEED or at random; the seed is printed.
func testRand(t testing.TB) *rand.Rand {
	s := rand.Uint64()
	if env := os.Getenv("MUTUALFS_SEED"); env != "" {
		var err error
		if s, err = strconv.ParseUint(env, 10, 64); err != nil {
			t.Fatalf("MUTUALFS_SEED: %v", err)
		}
	}
	t.Logf("MUTUALFS_SEED=%d", s)
	return rand.New(rand.NewPCG(s, 3))
}

func randID(r *rand.Rand) (id blocks.ID) {
	for i := 0; i < len(id); i += 4 {
		binary.BigEndian.PutUint32(id[i:], r.Uint32())
	}
	return id
}

// randTable makes a ring of n peers, with zones if zones > 0.
func randTable(r *rand.Rand, n, zones int) *Table {
	var infos []PeerInfo
	for range n {
		p := PeerInfo{ID: blocks.PeerID{ID: randID(r)}, Vnodes: r.IntN(12), Drives: 1 + r.IntN(3), Live: Liveness(r.IntN(3))}
		if zones > 0 {
			p.Zone = fmt.Sprint("z", r.IntN(zones))
			if r.IntN(8) == 0 {
				p.Zone = ""
			}
		}
		if r.IntN(10) == 0 {
			p.Live = Gone
		}
		infos = append(infos, p)
	}
	return NewTable(blocks.HashID([]byte("ring")), infos)
}

// slowHomeList is the definition: at each choice the first clockwise of those
// that cost least.
func slowHomeList(t *Table, id blocks.ID, n int, keep func(PeerInfo) bool) []Vnode {
	var candidates, home []Vnode
	for i, start := 0, t.Successor(id); i < len(t.vnodes); i++ {
		v := t.vnodes[(start+i)%len(t.vnodes)]
		if keep == nil || keep(t.Peers[v.Peer]) {
			candidates = append(candidates, v)
		}
	}
	for len(home) < n && len(candidates) > 0 {
		best, bestCost := 0, []int{1 << 30}
		for i, v := range candidates {
			c := []int{0, 0, 0}
			for _, h := range home {
				if h.Peer == v.Peer {
					c[0]++
				}
				if z := t.Peers[v.Peer].Zone; z != "" && z == t.Peers[h.Peer].Zone {
					c[1]++
				}
				if h.Peer == v.Peer && h.Drive == v.Drive {
					c[2]++
				}
			}
			if slices.Compare(c, bestCost) < 0 {
				best, bestCost = i, c
			}
		}
		home = append(home, candidates[best])
		candidates = slices.Delete(candidates, best, best+1)
	}
	return home
}

func TestHomeListIsTheLeastCost(t *testing.T) {
	r := testRand(t)
	for round := range 400 {
		tab := randTable(r, 1+r.IntN(20), r.IntN(6))
		keep := func(p PeerInfo) bool { return p.Live != Down && p.ID.ID[0] < 200 }
		if r.IntN(2) == 0 {
			keep = nil
		}
		for range 10 {
			id, n := randID(r), r.IntN(24)
			got, want := tab.HomeList(id, n, keep), slowHomeList(tab, id, n, keep)
			if !slices.Equal(got, want) {
				t.Fatalf("round %d: home list of %s over %d peers, n=%d:\n got %v\nwant %v", round, id.Short(), len(tab.Peers), n, got, want)
			}
		}
	}
}

func TestHomeListSpreads(t *testing.T) {
	r := testRand(t)
	for range 200 {
		tab := randTable(r, 1+r.IntN(12), 0)
		uses, have := map[blocks.PeerID]int{}, map[blocks.PeerID]int{}
		for _, v := range tab.Vnodes() {
			have[v.Peer]++
		}
		n := r.IntN(30)
		home := tab.HomeList(randID(r), n, nil)
		if want := min(n, len(tab.Vnodes())); len(home) != want {
			t.Fatalf("%d homes, want %d", len(home), want)
		}
		seen := map[blocks.VnodeID]bool{}
		for _, v := range home {
			if seen[v.ID] {
				t.Fatalf("virtual node %s is named twice", v.ID.Short())
			}
			seen[v.ID] = true
			uses[v.Peer]++
		}
		for a := range have {
			for b := range have {
				if uses[a] > uses[b]+1 && uses[b] < have[b] {
					t.Fatalf("one peer serves %d times, another %d times of %d", uses[a], uses[b], have[b])
				}
			}
		}
	}
}

func TestHomeListMovesLittleWhenAPeerLeaves(t *testing.T) {
	r := testRand(t)
	var infos []PeerInfo
	for range 20 {
		infos = append(infos, PeerInfo{ID: blocks.PeerID{ID: randID(r)}, Vnodes: 8, Drives: 1})
	}
	before := NewTable(blocks.ID{1}, infos)
	gone := infos[7].ID
	infos[7].Live = Gone
	after := NewTable(blocks.ID{1}, infos)
	for range 500 {
		id := randID(r)
		a, b := before.HomeList(id, 6, nil), after.HomeList(id, 6, nil)
		var kept []Vnode
		for _, v := range a {
			if v.Peer != gone {
				kept = append(kept, v)
			}
		}
		if !slices.Equal(b[:len(kept)], kept) {
			t.Fatalf("the homes of %s that stayed are no prefix of the new list:\n%v\n%v", id.Short(), a, b)
		}
	}
}

func TestHomePeersAreDistinct(t *testing.T) {
	r := testRand(t)
	for range 300 {
		tab := randTable(r, 1+r.IntN(12), r.IntN(4))
		keep := func(p PeerInfo) bool { return p.Live == Alive }
		storage := 0
		for _, p := range tab.Peers {
			if keep(p) && p.Vnodes > 0 {
				storage++
			}
		}
		n := r.IntN(14)
		peers := tab.HomePeers(randID(r), n, keep)
		if len(peers) != min(n, storage) {
			t.Fatalf("%d peers of %d, want %d", len(peers), storage, min(n, storage))
		}
		for i, p := range peers {
			if slices.Contains(peers[:i], p) || !keep(tab.Peers[p]) {
				t.Fatalf("%v is wrong in %v", p, peers)
			}
		}
	}
}

func TestTableSharesItsRing(t *testing.T) {
	r := testRand(t)
	a := randTable(r, 10, 2)
	infos := slices.Clone(a.infos)
	for i := range infos {
		infos[i].Used, infos[i].Addr = 7, "elsewhere:1"
		if infos[i].Live.Counts() {
			infos[i].Live = Alive
		}
	}
	r.Shuffle(len(infos), func(i, j int) { infos[i], infos[j] = infos[j], infos[i] })
	b := nextTable(a, a.Ring, infos, nil)
	if len(a.vnodes) > 0 && &a.vnodes[0] != &b.vnodes[0] {
		t.Error("a table whose ring has not changed has a ring of its own")
	}
	full := NewTable(a.Ring, infos)
	if !slices.Equal(full.vnodes, b.vnodes) || !slices.Equal(full.places, b.places) {
		t.Error("the shared ring is not the right one")
	}
}

func BenchmarkHomeList(b *testing.B) {
	for _, bm := range []struct{ peers, vnodes, zones int }{{1, 8, 0}, {6, 16, 0}, {6, 64, 0}, {100, 16, 0}, {1000, 16, 0}, {1000, 16, 3}} {
		b.Run(fmt.Sprintf("peers=%d/vnodes=%d/zones=%d", bm.peers, bm.vnodes, bm.zones), func(b *testing.B) {
			r := rand.New(rand.NewPCG(1, 2))
			var infos []PeerInfo
			for i := range bm.peers {
				p := PeerInfo{ID: blocks.PeerID{ID: randID(r)}, Vnodes: bm.vnodes, Drives: 1}
				if bm.zones > 0 {
					p.Zone = fmt.Sprint(i % bm.zones)
				}
				infos = append(infos, p)
			}
			t := NewTable(blocks.ID{1}, infos)
			keep := func(p PeerInfo) bool { return p.Live.Reachable() }
			b.ReportAllocs()
			for b.Loop() {
				if len(t.HomeList(randID(r), 6, keep)) != 6 {
					b.Fatal("too few homes")
				}
			}
		})
	}
}
