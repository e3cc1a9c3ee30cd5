package store

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

// planCase is a ring, who lives, and copies of one stripe strewn over it.
type planCase struct {
	r  *rand.Rand
	v  view
	st stripeState
	n  int
}

func newPlanCase(r *rand.Rand) *planCase {
	c := &planCase{r: r}
	var infos []overlay.PeerInfo
	c.v.live = map[blocks.PeerID]bool{}
	for range 1 + r.IntN(10) {
		p := overlay.PeerInfo{Vnodes: 1 + r.IntN(8), Drives: 1 + r.IntN(2)}
		_, _ = reader{r}.Read(p.ID.ID[:])
		if r.IntN(5) == 0 {
			p.Live = overlay.Down
		} else {
			c.v.live[p.ID] = true
		}
		infos = append(infos, p)
	}
	c.v.table = overlay.NewTable(blocks.ID{}, infos)
	c.st.ref = blocks.StripeRef{Len: 1, K: uint8(1 + r.IntN(6)), M: uint8(r.IntN(4))}
	_, _ = reader{r}.Read(c.st.ref.ID.ID[:])
	c.n = int(c.st.ref.K) + int(c.st.ref.M)
	for _, node := range c.v.table.Vnodes() {
		if c.v.live[node.Peer] && r.IntN(3) == 0 {
			c.add(r.IntN(c.n), node)
		}
	}
	return c
}

func (c *planCase) has(index int, v blocks.VnodeID) int {
	return slices.IndexFunc(c.st.copies, func(at copyAt) bool { return at.index == index && at.vnode == v })
}

func (c *planCase) add(index int, v overlay.Vnode) {
	if c.has(index, v.ID) < 0 {
		c.st.copies = append(c.st.copies, copyAt{index: index, vnode: v.ID, peer: v.Peer, size: 1})
	}
}

func (c *planCase) good() int {
	seen := map[int]bool{}
	for _, at := range c.st.copies {
		seen[at.index] = true
	}
	return len(seen)
}

// apply does what the plan says.
func (c *planCase) apply(t *testing.T, p *plan) {
	for _, a := range p.rebuild {
		if slices.ContainsFunc(c.st.copies, func(at copyAt) bool { return at.index == a.index }) {
			t.Fatalf("shard %d is rebuilt though it is there", a.index)
		}
	}
	for _, a := range p.rebuild {
		c.add(a.index, a.to)
	}
	for _, m := range p.moves {
		if !c.v.live[m.to.Peer] {
			t.Fatal("a shard is moved to a peer that is down")
		}
		if m.there && c.has(m.from.index, m.to.ID) < 0 || m.from.vnode == m.to.ID {
			t.Fatalf("a shard is dropped for one that is not there: %+v", m)
		}
		c.add(m.from.index, m.to)
		if !m.there {
			continue
		}
		at := c.has(m.from.index, m.from.vnode)
		c.st.copies = slices.Delete(c.st.copies, at, at+1)
	}
}

func TestPlansConverge(t *testing.T) {
	r := rand.New(rand.NewPCG(seedOf(t), 3))
	for range 3000 {
		c := newPlanCase(r)
		readable := c.good() >= int(c.st.ref.K)
		var p plan
		for rounds := 0; ; rounds++ {
			before := c.good()
			p = planStripe(&c.st, &c.v)
			if p.good != before {
				t.Fatalf("%d good shards, not %d", p.good, before)
			}
			if p.idle() {
				break
			}
			if rounds > 3 {
				t.Fatalf("still work after %d rounds: %+v", rounds, p)
			}
			c.apply(t, &p)
			if c.good() < before {
				t.Fatalf("a shard was lost by %+v", p)
			}
		}
		allLive := len(c.v.live) == len(c.v.table.Peers)
		switch {
		case readable && p.lost, !readable && !p.lost:
			t.Fatalf("readable %v, plan %+v", readable, p)
		case readable && p.good+p.waiting != c.n:
			t.Fatalf("%d good, %d wait, of %d", p.good, p.waiting, c.n)
		case readable && allLive && (!p.protected || len(c.st.copies) != c.n):
			t.Fatalf("not protected: %+v, %d copies", p, len(c.st.copies))
		}
	}
}

// TestChangeMovesOnlyWhatMust takes one peer away from a stripe that is in order, or adds one.
func TestChangeMovesOnlyWhatMust(t *testing.T) {
	r := rand.New(rand.NewPCG(seedOf(t), 4))
	for range 500 {
		var infos []overlay.PeerInfo
		live := map[blocks.PeerID]bool{}
		for range 9 {
			p := overlay.PeerInfo{Vnodes: 8, Drives: 1}
			_, _ = reader{r}.Read(p.ID.ID[:])
			infos, live[p.ID] = append(infos, p), true
		}
		st := stripeState{ref: blocks.StripeRef{Len: 1, K: 4, M: 2}}
		_, _ = reader{r}.Read(st.ref.ID.ID[:])
		eight, nine := overlay.NewTable(blocks.ID{}, infos[:8]), overlay.NewTable(blocks.ID{}, infos)
		for i, h := range homeList(eight, st.ref.ID, 6, nil) {
			st.copies = append(st.copies, copyAt{index: i, vnode: h.ID, peer: h.Peer, size: 1})
		}
		p := planStripe(&st, &view{table: nine, live: live})
		if len(p.moves) > 1 || len(p.rebuild) > 0 || !p.protected {
			t.Fatalf("a peer joined: %+v", p)
		}
		lost := st.copies[2]
		st.copies = slices.Delete(st.copies, 2, 3)
		infos[8].Live = overlay.Left
		gone := overlay.NewTable(blocks.ID{}, slices.DeleteFunc(slices.Clone(infos), func(p overlay.PeerInfo) bool { return p.ID == lost.peer }))
		p = planStripe(&st, &view{table: gone, live: live})
		if len(p.moves) > 0 || len(p.rebuild) != 1 || p.rebuild[0].index != 2 {
			t.Fatalf("a peer is gone: %+v", p)
		}
	}
}

func TestRepairersPartitionTheCircle(t *testing.T) {
	r := rand.New(rand.NewPCG(seedOf(t), 5))
	for range 50 {
		c := newPlanCase(r)
		for range 50 {
			_, _ = reader{r}.Read(c.st.ref.ID.ID[:])
			want, any := c.v.repairer(c.st.ref.ID)
			owners := 0
			for p := range c.v.table.Peers {
				for _, seg := range c.v.segments(p) {
					if id := c.st.ref.ID.ID; seg.from.Compare(id) <= 0 && id.Compare(seg.to) <= 0 {
						if owners++; p != want {
							t.Fatalf("%s lies with %s, not with %s", id.Short(), p.Short(), want.Short())
						}
					}
				}
			}
			if any && owners != 1 {
				t.Fatalf("%d peers repair one stripe", owners)
			}
		}
	}
}

func BenchmarkPlanStripe(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 6))
	c := newPlanCase(r)
	for b.Loop() {
		planStripe(&c.st, &c.v)
	}
}
