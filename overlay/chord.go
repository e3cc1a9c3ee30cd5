package overlay

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/mutualfs/mutualfs/blocks"
)

// finger is the first virtual node at or after a position 2^Exp ahead.
type finger struct {
	exp int
	v   Vnode
}

// node is one of this peer's virtual nodes with its pointers.
type node struct {
	self    Vnode
	member  bool // on the ring: it may be pointed to
	busy    int  // changes under way: its state is in doubt
	hasPred bool
	pred    Vnode
	succ    []Vnode  // nearest first; replaced whole, never changed in place
	fingers []finger // farthest first; only those beyond the successor
	failed  int      // rounds in which nobody was found to join at
}

// chord keeps the pointers of this peer's virtual nodes. See docs/ring.md for the
// protocol and for where it differs from the paper.
type chord struct {
	peer *Peer
	span int // distinct other peers that a successor list covers

	kick    chan struct{}         // the reachable ring has changed
	doubts  chan doubt            // predecessors to be verified
	last    *Table                // the table of the last kick; under the peer's pubMu
	lastNum int                   // and how many storage peers it could reach
	mu      sync.Mutex            // guards what follows
	nodes   []*node               // by index; fixed
	small   bool                  // pointers follow from the membership table
	settled bool                  // small with others: this peer is on the ring
	fails   map[blocks.PeerID]int // calls in a row that failed
}

// doubtQueue bounds the predecessors that wait to be verified; a notify that
// finds no place comes again with the next round.
const doubtQueue = 256

func newChord(p *Peer) *chord {
	c := &chord{peer: p, span: p.cfg.span(), kick: make(chan struct{}, 1),
		doubts: make(chan doubt, doubtQueue), fails: map[blocks.PeerID]int{}}
	for _, v := range vnodesOf(p.cfg.Ring, PeerInfo{ID: p.cfg.Self, Vnodes: p.cfg.Vnodes, Drives: max(p.cfg.Drives, 1)}) {
		c.nodes = append(c.nodes, &node{self: v})
	}
	return c
}

func (c *chord) register() {
	c.peer.Handle(KindExchange, c.serveExchange)
	c.peer.Handle(KindStep, c.serveStep)
	c.peer.Handle(KindRingInfo, c.serveRingInfo)
	c.peer.Handle(KindCheck, c.serveCheck)
}

// tableChanged is called with each new table, under the peer's pubMu.
func (c *chord) tableChanged() {
	t := c.peer.current.Load()
	num := t.storage()
	if c.last != nil && num == c.lastNum && len(t.vnodes) == len(c.last.vnodes) && (len(t.vnodes) == 0 || &t.vnodes[0] == &c.last.vnodes[0]) {
		return
	}
	first := c.last == nil
	c.last, c.lastNum = t, num
	if first {
		c.follow(t)
	}
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// follow decides how the pointers are kept. While no more peers can be reached than a
// successor list must span, they follow from the membership table. Beyond
// that, virtual nodes that were on the ring of the few keep the pointers of that time and
// stabilize them; new ones join.
func (c *chord) follow(t *Table) {
	num := t.storage()
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.fails { // nothing to remember of those who are not asked any more
		if info := t.Peers[id]; !info.routable() {
			delete(c.fails, id)
		}
	}
	if !t.Peers[c.peer.cfg.Self].Live.Counts() { // this peer has left
		for _, n := range c.nodes {
			n.member = false
		}
		return
	}
	if num > c.span {
		if c.small || c.nodesIdle() {
			for _, n := range c.nodes {
				n.member = c.small && c.settled
			}
		}
		c.small = false
		return
	}
	c.small, c.settled = true, num > 1
	reach := c.reachable(t)
	for _, n := range c.nodes {
		n.derive(reach, c.span)
	}
}

// nodesIdle reports whether no virtual node has been given pointers yet.
func (c *chord) nodesIdle() bool {
	return !slices.ContainsFunc(c.nodes, func(n *node) bool { return n.member || n.hasPred || len(n.succ) > 0 })
}

// reachable returns the virtual nodes that pointers may lead to, in ring order.
func (c *chord) reachable(t *Table) []Vnode {
	vs := make([]Vnode, 0, len(t.vnodes))
	for i, v := range t.vnodes {
		if t.routable(i) || v.Peer == c.peer.cfg.Self {
			vs = append(vs, v)
		}
	}
	return vs
}

// derive computes the pointers of n on the ring `reach`.
func (n *node) derive(reach []Vnode, span int) {
	at, found := slices.BinarySearchFunc(reach, n.self.ID.ID, func(v Vnode, id blocks.ID) int { return v.ID.Compare(id) })
	n.member, n.busy, n.failed = found, 0, 0
	n.hasPred, n.succ, n.fingers = false, nil, nil
	if !found {
		return
	}
	n.pred, n.hasPred = reach[(at+len(reach)-1)%len(reach)], true
	rest := make([]Vnode, 0, len(reach)-1)
	rest = append(append(rest, reach[at+1:]...), reach[:at]...)
	n.succ = trim(n.self, rest, span, nil)
	for exp := 8*blocks.IDSize - 1; exp >= 0 && len(reach) > 1; exp-- {
		f := firstAt(reach, n.self.ID.AddPower(exp))
		if f.ID == n.succ[0].ID {
			break
		}
		if f.ID != n.self.ID && (len(n.fingers) == 0 || n.fingers[len(n.fingers)-1].v.ID != f.ID) {
			n.fingers = append(n.fingers, finger{exp, f})
		}
	}
}

// firstAt returns the first virtual node at or after id on a ring that is not empty.
func firstAt(ring []Vnode, id blocks.ID) Vnode {
	i, _ := slices.BinarySearchFunc(ring, id, func(v Vnode, id blocks.ID) int { return v.ID.Compare(id) })
	return ring[i%len(ring)]
}

// trim cuts a list of successors of self so that it spans `span` distinct other
// peers: clockwise, not beyond self, without those that skip names.
func trim(self Vnode, list []Vnode, span int, skip func(Vnode) bool) []Vnode {
	out := make([]Vnode, 0, min(len(list), 2*span))
	var peers []blocks.PeerID
	var far blocks.ID
	for _, v := range list {
		d := self.ID.Distance(v.ID.ID)
		if v.ID == self.ID || d.Compare(far) < 0 || len(out) == maxList {
			break // once around
		}
		if d == far || skip != nil && skip(v) {
			continue
		}
		far = d
		out = append(out, v)
		if v.Peer != self.Peer && !slices.Contains(peers, v.Peer) {
			if peers = append(peers, v.Peer); len(peers) == span {
				break
			}
		}
	}
	return out
}

// strictly reports whether x lies in the open arc (a, b).
func strictly(a, x, b Vnode) bool {
	return x.ID != b.ID && x.ID != a.ID && blocks.Between(a.ID.ID, x.ID.ID, b.ID.ID)
}

func (c *chord) node(index int) *node {
	if index < 0 || index >= len(c.nodes) {
		return nil
	}
	return c.nodes[index]
}

// serveExchange answers other peers' rounds: state, notifications, pings.
func (c *chord) serveExchange(_ context.Context, from blocks.PeerID, req Call) (Call, error) {
	asks, err := decodeAsks(req.Body)
	if err != nil {
		return Call{}, err
	}
	answers := make([]answer, len(asks))
	for i, a := range asks {
		answers[i] = c.answer(from, a)
	}
	return Call{Kind: req.Kind, Body: encodeAnswers(answers)}, nil
}

func (c *chord) answer(from blocks.PeerID, a ask) answer {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.node(a.target)
	switch {
	case n == nil:
		return answer{status: isNot}
	case !n.member:
		return answer{status: isJoining}
	}
	var out answer
	if a.state {
		if n.busy > 0 {
			out.status = isBusy
		} else {
			out.hasState, out.hasPred, out.pred, out.succ = true, n.hasPred, n.pred, n.succ
		}
	}
	if a.notify && !c.small {
		c.notified(n, c.peer.Table().vnode(from, a.notifier))
	}
	return out
}

// doubt is a predecessor that somebody else claims to be.
type doubt struct {
	n     *node
	old   Vnode
	claim Vnode
}

// notified: claim takes n as its successor. It has just spoken itself, so it
// may be adopted if it is nearer than the predecessor; if it is not,
// the predecessor is pinged first. The caller holds mu.
func (c *chord) notified(n *node, claim Vnode) {
	switch {
	case claim.ID == n.self.ID || n.hasPred && claim.ID == n.pred.ID:
	case !n.hasPred || strictly(n.pred, claim, n.self):
		n.pred, n.hasPred = claim, true
	default:
		select {
		case c.doubts <- doubt{n, n.pred, claim}:
			n.busy++
		default:
		}
	}
}

// rectifyLoop verifies doubted predecessors, several at a time.
func (c *chord) rectifyLoop(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxParallel)
	for {
		select {
		case <-ctx.Done():
			return
		case d := <-c.doubts:
			slots <- struct{}{} // a ping is bounded, so is this
			wg.Go(func() {
				c.rectify(ctx, d)
				<-slots
			})
		}
	}
}

func (c *chord) rectify(ctx context.Context, d doubt) {
	dead := !c.verify(ctx, d.old)
	c.mu.Lock()
	defer c.mu.Unlock()
	if d.n.busy > 0 {
		d.n.busy--
	}
	if dead && d.n.hasPred && d.n.pred.ID == d.old.ID && !c.small {
		d.n.pred = d.claim
	}
}

// serveStep answers one step of a lookup.
func (c *chord) serveStep(_ context.Context, _ blocks.PeerID, req Call) (Call, error) {
	r, err := decodeStepRequest(req.Body)
	if err != nil {
		return Call{}, err
	}
	a, err := c.step(r)
	if err != nil {
		return Call{}, err
	}
	return Call{Kind: req.Kind, Body: a.encode()}, nil
}

func (c *chord) step(r stepRequest) (stepAnswer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.node(r.target)
	if n == nil || !n.member {
		return stepAnswer{}, fmt.Errorf("%w: virtual node %d of peer %s is not on the ring", blocks.ErrBusy, r.target, c.peer.cfg.Self.Short())
	}
	var a stepAnswer
	if n.owns(r.id) {
		a.owner = true
		return a, nil
	}
	if r.presumed {
		if !n.hasPred {
			return a, fmt.Errorf("%w: virtual node %s does not know its predecessor", blocks.ErrBusy, n.self.ID.Short())
		}
		return a, fmt.Errorf("%w: %s is not owned by %s", blocks.ErrNotOwner, r.id.Short(), n.self.ID.Short())
	}
	a.unsure = !n.hasPred
	a.hasPred, a.pred = n.hasPred, n.pred
	a.closer = n.preceding(r.id, maxNext)
	far := n.self.ID.Distance(r.id)
	for i, v := range n.succ {
		if n.self.ID.Distance(v.ID.ID).Compare(far) >= 0 {
			a.final = n.succ[i:min(len(n.succ), i+maxNext)]
			break
		}
	}
	return a, nil
}

// owns reports whether id lies between the predecessor and n.
func (n *node) owns(id blocks.ID) bool {
	return id == n.self.ID.ID || n.hasPred && blocks.Between(n.pred.ID.ID, id, n.self.ID.ID)
}

// preceding returns the pointers that precede id most closely, closest first.
func (n *node) preceding(id blocks.ID, limit int) []Vnode {
	var out []Vnode
	add := func(v Vnode) {
		if v.ID.ID == id || v.ID == n.self.ID || !blocks.Between(n.self.ID.ID, v.ID.ID, id) {
			return
		}
		at, found := slices.BinarySearchFunc(out, v, func(a, b Vnode) int {
			return a.ID.Distance(id).Compare(b.ID.Distance(id))
		})
		if !found && at < limit {
			out = slices.Insert(out, at, v)
			out = out[:min(len(out), limit)]
		}
	}
	for _, f := range n.fingers {
		add(f.v)
	}
	for _, v := range n.succ {
		add(v)
	}
	return out
}
