package store

import (
	"slices"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

// copyAt is one good copy of a shard that was found.
type copyAt struct {
	index int
	vnode blocks.VnodeID
	peer  blocks.PeerID
	home  blocks.VnodeID // the hint of its header
	size  uint32
}

// stripeState is what the peers that answered say of a stripe.
type stripeState struct {
	ref    blocks.StripeRef
	copies []copyAt
	dead   bool // some peer knows that it was deleted
	young  bool // some peer got a shard of it from its writer just now
	fresh  bool // some peer got one by hand-off or repair just now
}

// assignment says on which virtual node a missing shard is to be put.
type assignment struct {
	index int
	to    overlay.Vnode
}

// move says that a shard is to be copied to another virtual node, or, with there, that
// the copy is to go, because another one is there.
type move struct {
	from  copyAt
	to    overlay.Vnode
	there bool
}

// plan is what is to be done for a stripe, and how well it is protected.
type plan struct {
	good      int  // different shards found
	protected bool // all of them found, on peers as distinct as those that live allow
	lost      bool // fewer found than are needed to read it
	away      bool // of the lost: enough may be on peers that are down
	settling  bool // shards are missing, but its writer may not be done: to be left alone
	surplus   bool // copies are to be dropped, but not yet: see grace
	waiting   int  // missing shards that may be on a home that is down
	rebuild   []assignment
	moves     []move
}

func (p *plan) idle() bool { return len(p.rebuild)+len(p.moves) == 0 }

// view is the ring as one round sees it.
type view struct {
	table *overlay.Table
	live  map[blocks.PeerID]bool  // storage peers that answer now
	full  map[blocks.VnodeID]bool // virtual disks that just took no more: nothing is moved there
}

func (v *view) keepLive(p overlay.PeerInfo) bool { return v.live[p.ID] }

// planner fits the shards of one stripe to its homes. Any shard may lie on any
// home: what matters is that each home has one, so that a change of the ring
// moves only what must move.
type planner struct {
	st    *stripeState
	home  []overlay.Vnode
	taken []int // by place in home: index of the shard that it has or is to get, -1 none
	place []int // by shard: its place in home, -1 none yet
	kept  []int // by shard: which copy is kept or moved, -1 none
}

// planStripe decides what to do for one stripe. It is a pure function of what was found.
func planStripe(st *stripeState, v *view) plan {
	n := int(st.ref.K) + int(st.ref.M)
	p := &planner{st: st, home: homeList(v.table, st.ref.ID, n, nil)}
	p.taken, p.place, p.kept = filled(len(p.home)), filled(n), filled(n)
	p.keepInPlace()
	p.placeByHint()
	p.placeRest(v)
	out := p.outcome(v)
	out.protected = out.good == n && p.spread(v)
	out.settling = out.good < n && st.young
	out.lost = out.good < int(st.ref.K)
	out.away = out.lost && out.good+out.waiting >= int(st.ref.K)
	if out.lost {
		out.rebuild = nil // cannot be done
	}
	return out
}

func filled(n int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = -1
	}
	return s
}

func (p *planner) take(slot, index, kept int) {
	p.taken[slot], p.place[index], p.kept[index] = index, slot, kept
}

// keepInPlace leaves on each home a shard that is there: the one of its number if it can.
func (p *planner) keepInPlace() {
	for _, exact := range []bool{true, false} {
		for slot, h := range p.home {
			for c, at := range p.st.copies {
				if p.taken[slot] < 0 && at.vnode == h.ID && p.place[at.index] < 0 && (at.index == slot || !exact) {
					p.take(slot, at.index, c)
				}
			}
		}
	}
}

// placeByHint sends a copy elsewhere to the home that its header names, and lets
// a missing shard wait for the home of its number.
func (p *planner) placeByHint() {
	for c, at := range p.st.copies {
		if p.place[at.index] >= 0 {
			continue
		}
		if slot := slices.IndexFunc(p.home, func(h overlay.Vnode) bool { return h.ID == at.home }); slot >= 0 && p.taken[slot] < 0 {
			p.take(slot, at.index, c)
		}
	}
	found := make([]bool, len(p.place))
	for _, at := range p.st.copies {
		found[at.index] = true
	}
	for index := range p.place {
		if !found[index] && index < len(p.home) && p.taken[index] < 0 {
			p.take(index, index, -1)
		}
	}
}

// placeRest gives the others any home that is left, the one of their number
// or live ones first.
func (p *planner) placeRest(v *view) {
	for index := range p.place {
		if p.place[index] >= 0 {
			continue
		}
		best := -1
		for slot, h := range p.home {
			if p.taken[slot] < 0 && (best < 0 || !v.live[p.home[best].Peer] && v.live[h.Peer]) {
				best = slot
			}
		}
		if index < len(p.taken) && p.taken[index] < 0 && v.live[p.home[index].Peer] {
			best = index
		}
		if best >= 0 {
			p.take(best, index, slices.IndexFunc(p.st.copies, func(at copyAt) bool { return at.index == index }))
		}
	}
}

func (p *planner) inPlace(index int) bool {
	return p.kept[index] >= 0 && p.place[index] >= 0 && p.st.copies[p.kept[index]].vnode == p.home[p.place[index]].ID
}

// outcome turns the fit into work. Copies go only to live homes; a surplus copy
// goes only when the kept one is in its place.
func (p *planner) outcome(v *view) plan {
	var out plan
	for index, slot := range p.place {
		if p.kept[index] >= 0 {
			out.good++
		}
		if slot < 0 || p.inPlace(index) {
			continue
		}
		to := p.home[slot]
		switch {
		case p.kept[index] >= 0 && v.live[to.Peer] && !v.full[to.ID]:
			out.moves = append(out.moves, move{from: p.st.copies[p.kept[index]], to: to})
		case p.kept[index] < 0 && v.live[to.Peer]:
			out.rebuild = append(out.rebuild, assignment{index, to})
		case p.kept[index] < 0:
			out.waiting++
		}
	}
	for c, at := range p.st.copies {
		if c == p.kept[at.index] || !p.inPlace(at.index) {
			continue
		}
		if out.surplus = p.st.fresh; !out.surplus {
			out.moves = append(out.moves, move{from: at, to: p.home[p.place[at.index]], there: true})
		}
	}
	return out
}

// spread reports whether no peer has more of the stripe than it must have,
// given who lives.
func (p *planner) spread(v *view) bool {
	most := func(count map[blocks.PeerID]int) (n int) {
		for _, c := range count {
			n = max(n, c)
		}
		return n
	}
	actual, ideal := map[blocks.PeerID]int{}, map[blocks.PeerID]int{}
	for _, c := range p.kept {
		if c >= 0 {
			actual[p.st.copies[c].peer]++
		}
	}
	for _, h := range homeList(v.table, p.st.ref.ID, len(p.place), v.keepLive) {
		ideal[h.Peer]++
	}
	return most(actual) <= most(ideal)
}
