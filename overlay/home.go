package overlay

import "github.com/mutualfs/mutualfs/blocks"

// HomeList returns the first n virtual nodes clockwise from id on failure
// domains as distinct as the ring allows: distinct zones first (where there
// are zones), then distinct peers, then distinct drives, then distinct virtual disks. With
// fewer than n domains they are used evenly: no peer serves a second time
// before each has served once. keep says which peers to consider, nil for all. It returns
// fewer than n only if there are fewer virtual nodes.
//
// Each choice is the first virtual node clockwise whose peer, zone and drive have
// been chosen least so far, compared in this order. Costs of virtual nodes only
// grow, so the least cost never falls, and one walk serves all choices
// of one cost: a long list on a large ring without zones looks at little more than n virtual nodes.
func (t *Table) HomeList(id blocks.ID, n int, keep func(PeerInfo) bool) []Vnode {
	w := homeWalk{t: t, keep: keep, start: t.Successor(id)}
	return w.run(n, false)
}

// HomePeers returns the first n distinct peers clockwise from id, fewer if
// there are fewer: where the replicas of a register belong.
func (t *Table) HomePeers(id blocks.ID, n int, keep func(PeerInfo) bool) []blocks.PeerID {
	w := homeWalk{t: t, keep: keep, start: t.Successor(id)}
	home := w.run(n, true)
	if len(home) == 0 {
		return nil
	}
	peers := make([]blocks.PeerID, len(home))
	for i, v := range home {
		peers[i] = v.Peer
	}
	return peers
}

// cost is how often a virtual node's peer, zone and drive have been chosen.
type cost struct{ peer, zone, drive int32 }

func (a cost) less(b cost) bool {
	if a.peer != b.peer {
		return a.peer < b.peer
	}
	if a.zone != b.zone {
		return a.zone < b.zone
	}
	return a.drive < b.drive
}

// stackPeers is how many peers a walk can remember without allocating.
const stackPeers = 512

// homeWalk is one computation of a home list. Lists are short, so uses are
// counted by looking through what has been chosen.
type homeWalk struct {
	t     *Table
	keep  func(PeerInfo) bool
	start int
	known []uint8 // what keep said, by peer: 0 not asked yet, 1 yes, 2 no
	buf   [stackPeers]uint8
	taken []int32 // indices in t.vnodes, in the order of choice
	tbuf  [32]int32
}

func (w *homeWalk) run(n int, distinctPeers bool) []Vnode {
	n = min(n, len(w.t.vnodes))
	if n <= 0 {
		return nil
	}
	w.taken = w.tbuf[:0]
	if w.keep != nil {
		w.known = w.buf[:min(len(w.t.infos), stackPeers)]
		if len(w.t.infos) > stackPeers {
			w.known = make([]uint8, len(w.t.infos))
		}
	}
	var least cost
	at := 0
	for len(w.taken) < n {
		if at = w.next(at, least); at < len(w.t.vnodes) {
			w.taken = append(w.taken, int32(w.index(at)))
			at++
			if !w.zonesFull(least) {
				continue
			} // else no use to walk on for a fresh zone
		}
		var ok bool
		if least, ok = w.leastCost(); !ok || distinctPeers && least.peer > 0 {
			break
		}
		at = 0
	}
	home := make([]Vnode, len(w.taken))
	for i, v := range w.taken {
		home[i] = w.t.vnodes[v]
	}
	return home
}

// index is the index in vnodes of the i-th one clockwise.
func (w *homeWalk) index(i int) int {
	if i += w.start; i >= len(w.t.vnodes) {
		i -= len(w.t.vnodes)
	}
	return i
}

// next returns the first one at or after step at with exactly the cost least.
func (w *homeWalk) next(at int, least cost) int {
	for ; at < len(w.t.vnodes); at++ {
		if c, ok := w.cost(w.index(at)); ok && c == least {
			break
		}
	}
	return at
}

// leastCost returns the least cost of those that are left, false if none is. It
// stops at the least that is possible at all.
func (w *homeWalk) leastCost() (cost, bool) {
	var best cost
	found := false
	floor := w.floor()
	for at := range w.t.vnodes {
		if c, ok := w.cost(w.index(at)); ok && (!found || c.less(best)) {
			best, found = c, true
			if best == floor {
				break
			}
		}
	}
	return best, found
}

// zonesFull reports whether nothing can cost as little as least any more because
// every zone has been used more often than that.
func (w *homeWalk) zonesFull(least cost) bool {
	return !w.t.bare && w.t.zones > 0 && w.floor().zone > least.zone
}

// floor is a lower bound of what a virtual node of a fresh peer costs.
func (w *homeWalk) floor() cost {
	if w.t.bare || w.t.zones == 0 || len(w.taken) < w.t.zones {
		return cost{}
	}
	var buf [64]int32
	used := buf[:min(w.t.zones, len(buf))]
	if w.t.zones > len(buf) {
		used = make([]int32, w.t.zones)
	}
	for _, v := range w.taken {
		used[w.t.places[v].zone]++
	}
	least := used[0]
	for _, u := range used {
		least = min(least, u)
	}
	return cost{zone: least}
}

// cost returns what choosing vnode i would cost, false if it must not be chosen.
func (w *homeWalk) cost(i int) (cost, bool) {
	p := w.t.places[i]
	var c cost
	for _, v := range w.taken {
		if int(v) == i {
			return c, false
		}
		q := w.t.places[v]
		if p.peer == q.peer {
			c.peer++
			if p.drive == q.drive {
				c.drive++
			}
		}
		if p.zone >= 0 && p.zone == q.zone {
			c.zone++
		}
	}
	return c, w.considers(p.peer)
}

func (w *homeWalk) considers(peer int32) bool {
	if w.keep == nil {
		return true
	}
	if w.known[peer] == 0 {
		w.known[peer] = 2
		if w.keep(w.t.infos[peer]) {
			w.known[peer] = 1
		}
	}
	return w.known[peer] == 1
}
