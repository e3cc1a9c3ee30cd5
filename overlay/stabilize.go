package overlay

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// Bounds of a round.
const (
	maxPhases    = 8  // exchanges one after the other
	maxParallel  = 16 // peers asked at once
	deadAfter    = 3  // calls in a row that fail before a pointer to a suspect is given up
	deadAnyway   = 8  // and before one to any peer is
	retryAfter   = 4  // after a failure, or without a predecessor, the next round comes in this fraction of the shortest interval
	joinPatience = 3  // rounds in which nobody is on the ring before a ring is begun from the table
	tableHints   = 3  // virtual nodes that the table suggests as successors, and as an unknown predecessor
)

// stabilizeLoop runs rounds, quickly while the ring changes, slowly while it does not.
func (c *chord) stabilizeLoop(ctx context.Context) {
	t := &c.peer.cfg.Timings
	pause := t.StabilizeMin
	timer := time.NewTimer(0)
	defer timer.Stop()
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.kick:
			c.follow(c.peer.Table())
			pause = t.StabilizeMin
			if wait := t.StabilizeMin/retryAfter - time.Since(last); wait > 0 {
				timer.Reset(wait)
				continue
			}
		case <-timer.C:
		}
		changed, soon := c.round(ctx)
		last = time.Now()
		switch {
		case soon:
			pause = t.StabilizeMin / retryAfter
		case changed:
			pause = t.StabilizeMin
		default:
			pause = min(max(pause, t.StabilizeMin)*3/2, t.StabilizeMax)
		}
		timer.Reset(c.peer.jitter(pause))
	}
}

// task is the round of one virtual node: it looks for the nearest successor that
// answers for itself, then replaces the whole list at once.
type task struct {
	n      *node
	self   Vnode
	member bool
	pred   Vnode   // zero: unknown
	behind []Vnode // who may be the unknown predecessor
	cands  []Vnode
	asked  []blocks.VnodeID
	best   Vnode // answered
	state  answer
	stop   bool // no more questions
	keep   bool // the state stays as it is this time
	busy   bool // the virtual node answers busy meanwhile
	joins  bool // somebody answered who is not on the ring yet
}

// round stabilizes all virtual nodes of this peer, one message per peer and phase. soon: something is missing, the next round should not wait.
func (c *chord) round(ctx context.Context) (changed, soon bool) {
	t := c.peer.Table()
	tasks := c.tasks(t)
	if len(tasks) == 0 {
		return false, false
	}
	var preds []*task
	for _, w := range tasks {
		if w.member && w.pred.Peer != c.peer.cfg.Self && !w.pred.ID.IsZero() {
			preds = append(preds, w)
		}
	}
	for phase := range maxPhases {
		b := newBatch()
		for _, w := range tasks {
			if next, ok := w.next(); ok {
				w.asked = append(w.asked, next.ID)
				b.add(next.Peer, ask{next.Index, true, w.member, w.self.Index}, func(a answer, err error) { c.heardFrom(w, next, a, err) })
			}
		}
		if phase == 0 {
			for _, w := range preds {
				b.add(w.pred.Peer, ask{target: w.pred.Index}, func(a answer, err error) { c.predAnswered(w, a, err) })
			}
			for _, w := range tasks {
				for _, v := range w.behind {
					b.add(v.Peer, ask{target: v.Index, state: true}, func(a answer, err error) { c.behindAnswered(w, v, a, err) })
				}
			}
		}
		if len(b.peers) == 0 {
			break
		}
		soon = c.send(ctx, b) || soon
		if ctx.Err() != nil {
			break
		}
	}
	for _, w := range tasks {
		changed = c.adopt(t, w) || changed
	}
	return changed, soon || c.unsure()
}

// unsure reports whether a virtual node on the ring does not know its predecessor, and so can answer for nothing.
func (c *chord) unsure() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.nodes, func(n *node) bool { return n.member && !n.hasPred })
}

// tasks takes stock of what is to be done.
func (c *chord) tasks(t *Table) []*task {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.small || !t.Peers[c.peer.cfg.Self].Live.Counts() {
		return nil
	}
	var tasks []*task
	for _, n := range c.nodes {
		w := &task{n: n, self: n.self, member: n.member}
		if n.hasPred && n.member {
			if c.gone(t, n.pred) {
				n.hasPred = false
			} else {
				w.pred = n.pred
			}
		}
		if n.member && !n.hasPred {
			w.behind = t.preceding(n.self.ID.ID, tableHints)
		}
		for _, v := range n.succ {
			if n.member && !c.gone(t, v) {
				w.cands = append(w.cands, v)
			}
		}
		w.cands = append(w.cands, c.suggest(t, n.self)...)
		slices.SortFunc(w.cands, func(a, b Vnode) int {
			return n.self.ID.Distance(a.ID.ID).Compare(n.self.ID.Distance(b.ID.ID))
		})
		w.cands = slices.CompactFunc(w.cands, func(a, b Vnode) bool { return a.ID == b.ID })
		tasks = append(tasks, w)
	}
	return tasks
}

// suggest returns who follows self by the membership table. They are candidates like any: none is
// adopted before it has answered.
func (c *chord) suggest(t *Table, self Vnode) []Vnode {
	var out []Vnode
	start := t.Successor(self.ID.ID)
	for i := 0; i < len(t.vnodes) && len(out) < tableHints; i++ {
		at := (start + i) % len(t.vnodes)
		if t.vnodes[at].ID != self.ID && t.live(at) == Alive {
			out = append(out, t.vnodes[at])
		}
	}
	return out
}

// gone reports whether the membership or our own calls have given v's peer up:
// one lost message is no death. The caller holds mu.
func (c *chord) gone(t *Table, v Vnode) bool {
	info, ok := t.Peers[v.Peer]
	fails := c.fails[v.Peer]
	return ok && !info.routable() || fails >= deadAnyway || fails >= deadAfter && info.Live != Alive
}

// next returns whom to ask next.
func (w *task) next() (Vnode, bool) {
	if w.stop {
		return Vnode{}, false
	}
	if !w.best.ID.IsZero() { // is there somebody between us and the best so far?
		if p := w.state.pred; w.state.hasPred && strictly(w.self, p, w.best) && !slices.Contains(w.asked, p.ID) {
			return p, true
		}
		w.stop = true
		return Vnode{}, false
	}
	if len(w.cands) == 0 {
		w.stop = true
		return Vnode{}, false
	}
	v := w.cands[0]
	w.cands = w.cands[1:]
	return v, true
}

// heardFrom takes a candidate's answer.
func (c *chord) heardFrom(w *task, v Vnode, a answer, err error) {
	first := w.best.ID.IsZero()
	switch {
	case err != nil:
		c.mu.Lock()
		dead := c.gone(c.peer.Table(), v)
		ours := w.member && first && len(w.n.succ) > 0 && w.n.succ[0].ID == v.ID
		c.mu.Unlock()
		if ours && !dead { // ask again before giving the successor up
			w.stop, w.keep = true, true
		}
	case a.status == isBusy:
		w.stop, w.keep = true, first
	case a.status == isJoining:
		w.joins = true
	case a.status == isMember && a.hasState:
		w.best, w.state = v, a
		c.peer.meet(v.Peer, append(slices.Clip(a.succ), a.pred)...)
		c.mu.Lock()
		if a.hasPred && strictly(w.self, a.pred, v) && w.member && !w.busy {
			w.n.busy++ // what we answer from here on is about to change
			w.busy = true
		}
		c.mu.Unlock()
	}
}

// predAnswered takes the predecessor's answer to a ping.
func (c *chord) predAnswered(w *task, a answer, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	dead := err != nil && c.gone(c.peer.Table(), w.pred) || err == nil && (a.status == isNot || a.status == isJoining)
	if dead && w.n.hasPred && w.n.pred.ID == w.pred.ID && !c.small {
		w.n.hasPred = false
	}
}

// behindAnswered takes the answer of somebody who may be the unknown predecessor: if it names us as its successor, that is as good as a
// notification, which would only come with its own next round.
func (c *chord) behindAnswered(w *task, v Vnode, a answer, err error) {
	if err != nil || a.status != isMember || !a.hasState || len(a.succ) == 0 || a.succ[0].ID != w.self.ID {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if w.n.member && !c.small && (!w.n.hasPred || strictly(w.n.pred, v, w.self)) {
		w.n.pred, w.n.hasPred = v, true
	}
}

// adopt replaces the successor list at once and reports whether it differs.
func (c *chord) adopt(t *Table, w *task) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := w.n
	if w.busy && n.busy > 0 {
		n.busy--
	}
	if c.small || w.keep {
		return w.keep
	}
	skip := func(v Vnode) bool { return c.gone(t, v) }
	if w.best.ID.IsZero() {
		if !n.member && w.joins {
			n.failed++
			if n.failed >= joinPatience { // nobody is on the ring: begin it
				n.derive(c.reachable(t), c.span)
				n.hasPred = false
			}
		}
		return true
	}
	list := trim(n.self, append([]Vnode{w.best}, w.state.succ...), c.span, skip)
	if !n.member {
		n.member, n.hasPred, n.failed, n.fingers = true, false, 0, nil
	} else if slices.EqualFunc(list, n.succ, func(a, b Vnode) bool { return a.ID == b.ID }) {
		return false
	}
	n.succ = list
	return true
}

// batch is one phase of a round: questions by peer, and what to do with the answers.
type batch struct {
	peers []blocks.PeerID
	asks  map[blocks.PeerID][]ask
	done  map[blocks.PeerID][]func(answer, error)
}

func newBatch() *batch {
	return &batch{asks: map[blocks.PeerID][]ask{}, done: map[blocks.PeerID][]func(answer, error){}}
}

func (b *batch) add(to blocks.PeerID, a ask, done func(answer, error)) {
	if len(b.asks[to]) == maxAsks {
		return
	}
	if len(b.asks[to]) == 0 {
		b.peers = append(b.peers, to)
	}
	b.asks[to] = append(b.asks[to], a)
	b.done[to] = append(b.done[to], done)
}

// send asks all peers of the batch at once, and hands the answers out one after
// the other. It reports whether any call failed.
func (c *chord) send(ctx context.Context, b *batch) (failed bool) {
	answers, errs := make([][]answer, len(b.peers)), make([]error, len(b.peers))
	slots := make(chan struct{}, maxParallel)
	var wg sync.WaitGroup
	for i, id := range b.peers {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			answers[i], errs[i] = c.exchange(ctx, id, b.asks[id])
		})
	}
	wg.Wait()
	for i, id := range b.peers {
		failed = failed || errs[i] != nil
		for j, done := range b.done[id] {
			if errs[i] != nil {
				done(answer{}, errs[i])
			} else {
				done(answers[i][j], nil)
			}
		}
	}
	return failed
}

// exchange asks one peer and counts failures in a row.
func (c *chord) exchange(ctx context.Context, to blocks.PeerID, asks []ask) ([]answer, error) {
	call, cancel := context.WithTimeout(ctx, c.peer.cfg.Timings.PingTimeout)
	defer cancel()
	c.peer.whoIs(call, stranger{id: to}) // a pointer to whom nobody knows is given up like one to the dead
	resp, err := c.peer.Call(call, to, Control, Call{Kind: KindExchange, Body: encodeAsks(asks)})
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		c.peer.Unreachable(to)
	}
	c.mu.Lock()
	if err == nil {
		delete(c.fails, to)
	} else {
		c.fails[to]++
	}
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	answers, err := decodeAnswers(resp.Body, c.peer.Table())
	if err == nil && len(answers) != len(asks) {
		err = fmt.Errorf("%w: %d answers to %d questions", blocks.ErrCorrupt, len(answers), len(asks))
	}
	return answers, err
}

// verify pings v's peer until it answers or counts as dead.
func (c *chord) verify(ctx context.Context, v Vnode) bool {
	for range deadAnyway {
		a, err := c.exchange(ctx, v.Peer, []ask{{target: v.Index}})
		if err == nil {
			return a[0].status <= isBusy
		}
		c.mu.Lock()
		gone := c.gone(c.peer.Table(), v)
		c.mu.Unlock()
		if gone {
			return false
		}
		rest(ctx, c.peer.jitter(c.peer.cfg.Timings.StabilizeMin/retryAfter))
	}
	return ctx.Err() != nil
}
