package overlay

import (
	"slices"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// Liveness is what a peer believes of another, on four separate time scales.
type Liveness uint8

const (
	Alive   Liveness = iota // answers
	Suspect                 // silent for seconds: route around it
	Down                    // silent for tens of seconds: write to stand-ins, with a hint
	Gone                    // silent for repair_after: re-create what it held
	Left                    // drained and left on purpose: it holds nothing
)

// String is the word that status prints.
func (l Liveness) String() string {
	if names := [...]string{"alive", "suspect", "down", "gone", "left"}; int(l) < len(names) {
		return names[l]
	}
	return "unknown"
}

// Reachable reports whether calls to the peer are worth trying first.
func (l Liveness) Reachable() bool { return l == Alive || l == Suspect }

// Counts reports whether the peer still has its places on the ring: all but
// those that are gone or have left.
func (l Liveness) Counts() bool { return l < Gone }

// PeerInfo is one peer as the membership table has it.
type PeerInfo struct {
	ID          blocks.PeerID
	Addr        string // host:port
	Zone        string
	Capacity    uint64 // bytes offered; 0: a client, which has no virtual nodes
	Used        uint64 // bytes used, as last gossiped
	Vnodes      int
	Drives      int // virtual node i lies on drive i mod Drives
	Live        Liveness
	Since       time.Time // when Live became what it is, by this peer's clock
	Incarnation uint64    // grows with each start and each change of what the peer says of itself

	lost bool // suspect, and pings in a row have failed since: no pointer of Chord leads to it
}

// routable reports whether pointers may lead to the peer.
func (p *PeerInfo) routable() bool { return p.Live == Alive || p.Live == Suspect && !p.lost }

// Vnode is a virtual node on the ring.
type Vnode struct {
	ID    blocks.VnodeID
	Peer  blocks.PeerID
	Index int // which of its peer's virtual nodes
	Drive int
}

// VnodePosition is where virtual node index of a peer lies on the ring:
// a hash, so that positions need not be agreed on.
func VnodePosition(ring blocks.ID, peer blocks.PeerID, index int) blocks.VnodeID {
	return blocks.VnodeID{ID: blocks.HashID([]byte("vnode"), ring[:], peer.ID[:], []byte{byte(index >> 8), byte(index)})}
}

// Table is an immutable snapshot of the membership and of the ring that
// follows from it: the one-hop cache of Chord. All methods may be called concurrently.
type Table struct {
	Ring  blocks.ID
	Peers map[blocks.PeerID]PeerInfo // the caller must not change it

	infos  []PeerInfo                // by ID
	vnodes []Vnode                   // ring order; of peers that count
	places []place                   // of vnodes, same order
	owned  map[blocks.PeerID][]Vnode // of vnodes, by index
	zones  int                       // how many named zones have virtual nodes
	bare   bool                      // some virtual node has no zone
}

// place says where a virtual node lies in numbers that are quick to compare.
type place struct {
	peer  int32 // index in infos
	zone  int32 // -1: none
	drive int32
}

// NewTable computes the ring of the peers that count.
func NewTable(ring blocks.ID, peers []PeerInfo) *Table {
	return nextTable(nil, ring, peers, func(p PeerInfo) []Vnode { return vnodesOf(ring, p) })
}

// vnodesOf computes the virtual nodes of a peer.
func vnodesOf(ring blocks.ID, p PeerInfo) []Vnode {
	vs := make([]Vnode, p.Vnodes)
	for i := range vs {
		vs[i] = Vnode{VnodePosition(ring, p.ID, i), p.ID, i, i % max(p.Drives, 1)}
	}
	return vs
}

// nextTable makes a table; where nothing that shapes the ring differs from
// the last table, it shares that one's ring.
func nextTable(last *Table, ring blocks.ID, peers []PeerInfo, vnodes func(PeerInfo) []Vnode) *Table {
	t := &Table{Ring: ring, Peers: make(map[blocks.PeerID]PeerInfo, len(peers)), infos: slices.Clone(peers)}
	slices.SortFunc(t.infos, func(a, b PeerInfo) int { return a.ID.Compare(b.ID.ID) })
	for _, p := range t.infos {
		t.Peers[p.ID] = p
	}
	if last != nil && slices.EqualFunc(last.infos, t.infos, sameShape) {
		t.vnodes, t.places, t.owned, t.zones, t.bare = last.vnodes, last.places, last.owned, last.zones, last.bare
		return t
	}
	t.layRing(vnodes)
	return t
}

// sameShape reports whether a and b have the same places on the ring.
func sameShape(a, b PeerInfo) bool {
	return a.ID == b.ID && a.Vnodes == b.Vnodes && a.Drives == b.Drives && a.Zone == b.Zone && a.Live.Counts() == b.Live.Counts()
}

func (t *Table) layRing(vnodes func(PeerInfo) []Vnode) {
	type both struct {
		v Vnode
		p place
	}
	var ring []both
	t.owned = make(map[blocks.PeerID][]Vnode, len(t.infos))
	zones := map[string]int32{}
	for i, p := range t.infos {
		if !p.Live.Counts() || p.Vnodes == 0 {
			continue
		}
		zone := int32(-1)
		if p.Zone == "" {
			t.bare = true
		} else if z, ok := zones[p.Zone]; ok {
			zone = z
		} else {
			zone = int32(len(zones))
			zones[p.Zone] = zone
		}
		t.owned[p.ID] = vnodes(p)
		for _, v := range t.owned[p.ID] {
			ring = append(ring, both{v, place{int32(i), zone, int32(v.Drive)}})
		}
	}
	slices.SortFunc(ring, func(a, b both) int { return a.v.ID.Compare(b.v.ID.ID) })
	t.zones = len(zones)
	t.vnodes, t.places = make([]Vnode, len(ring)), make([]place, len(ring))
	for i, b := range ring {
		t.vnodes[i], t.places[i] = b.v, b.p
	}
}

// Vnodes returns all virtual nodes in ring order. The caller must not change it.
func (t *Table) Vnodes() []Vnode { return t.vnodes }

// Successor returns the index in Vnodes of the first virtual node at or after
// id, clockwise; 0 on an empty ring.
func (t *Table) Successor(id blocks.ID) int {
	i, _ := slices.BinarySearchFunc(t.vnodes, id, func(v Vnode, id blocks.ID) int { return v.ID.Compare(id) })
	if i == len(t.vnodes) {
		return 0
	}
	return i
}

// live returns the liveness of the peer of the virtual node at index i.
func (t *Table) live(i int) Liveness { return t.infos[t.places[i].peer].Live }

func (t *Table) routable(i int) bool { return t.infos[t.places[i].peer].routable() }

// preceding returns up to limit virtual nodes before id that pointers may lead to, nearest first.
func (t *Table) preceding(id blocks.ID, limit int) (out []Vnode) {
	at := t.Successor(id) + len(t.vnodes)
	for i := 1; i <= len(t.vnodes) && len(out) < limit; i++ {
		if j := (at - i) % len(t.vnodes); t.routable(j) {
			out = append(out, t.vnodes[j])
		}
	}
	return out
}

// Owner returns the presumed owner of id: the first virtual node at or after it
// whose peer answers as far as is known. False: there is none.
func (t *Table) Owner(id blocks.ID) (Vnode, bool) {
	for i, start := 0, t.Successor(id); i < len(t.vnodes); i++ {
		if at := (start + i) % len(t.vnodes); t.routable(at) {
			return t.vnodes[at], true
		}
	}
	return Vnode{}, false
}

// vnode returns virtual node index of a peer, also of one that the table does not have.
func (t *Table) vnode(peer blocks.PeerID, index int) Vnode {
	if vs := t.owned[peer]; index < len(vs) {
		return vs[index]
	}
	return Vnode{ID: VnodePosition(t.Ring, peer, index), Peer: peer, Index: index, Drive: index % max(t.Peers[peer].Drives, 1)}
}

// storage counts the peers with virtual nodes that pointers may lead to.
func (t *Table) storage() int {
	n := 0
	for i := range t.infos {
		if t.infos[i].routable() && t.infos[i].Vnodes > 0 {
			n++
		}
	}
	return n
}
