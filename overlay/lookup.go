package overlay

import (
	"context"
	"fmt"
	"slices"

	"github.com/mutualfs/mutualfs/blocks"
)

// Bounds of a lookup.
const (
	alpha      = 2  // questions under way at once
	hopBudget  = 40 // virtual nodes on one path
	askBudget  = 96 // questions altogether
	maxTries   = 3  // questions to one virtual node that does not answer
	maxStrange = 2  // strangers on the way who are asked about

	routeAttempts = 4 // whole lookups until one gives up
)

// Lookup finds the virtual node that owns id: first by the membership table, in
// one hop to the presumed owner, which verifies that it is; else through Chord.
// hops counts the calls on the way to the answer. ErrUnavailable: nobody is known who could
// be asked, or the way ended; ErrDeadline: it took too long.
func (p *Peer) Lookup(ctx context.Context, id blocks.ID) (owner Vnode, hops int, err error) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Timings.Lookup)
	defer cancel()
	t := p.Table()
	presumed, ok := t.Owner(id)
	if !ok {
		return Vnode{}, 0, fmt.Errorf("%w: the ring has no virtual node that is alive", blocks.ErrUnavailable)
	}
	a, err := p.chord.ask(ctx, presumed, stepRequest{id, presumed.Index, true})
	if err == nil && a.owner {
		if presumed.Peer != p.cfg.Self {
			hops = 1
		}
		return presumed, hops, nil
	}
	for range routeAttempts {
		if owner, hops, err = p.chord.route(ctx, p.chord.entries(t, id), id); err == nil || ctx.Err() != nil {
			break
		}
		rest(ctx, p.jitter(p.cfg.Timings.StabilizeMin/retryAfter)) // the ring may be in the middle of a change
	}
	return owner, hops, err
}

// entries returns where to begin a lookup: this peer's virtual nodes nearest
// before id, or those that the table has there.
func (c *chord) entries(t *Table, id blocks.ID) []Vnode {
	c.mu.Lock()
	var out []Vnode
	for _, n := range c.nodes {
		if n.member {
			out = append(out, n.self)
		}
	}
	c.mu.Unlock()
	if len(out) == 0 {
		out = t.preceding(id, 2*alpha)
	}
	slices.SortFunc(out, func(a, b Vnode) int { return a.ID.Distance(id).Compare(b.ID.Distance(id)) })
	return out[:min(len(out), 2*alpha)]
}

// ask takes one step at v.
func (c *chord) ask(ctx context.Context, v Vnode, r stepRequest) (stepAnswer, error) {
	if v.Peer == c.peer.cfg.Self {
		return c.step(r)
	}
	ctx, cancel := context.WithTimeout(ctx, c.peer.cfg.Timings.PingTimeout)
	defer cancel()
	resp, err := c.peer.Call(ctx, v.Peer, Control, Call{Kind: KindStep, Body: r.encode()})
	if err != nil {
		return stepAnswer{}, err
	}
	return decodeStepAnswer(resp.Body, c.peer.Table())
}

// candidate is a virtual node that a lookup may ask.
type candidate struct {
	v     Vnode
	final bool          // presumed owner; else it precedes the ID
	by    blocks.PeerID // who named it; zero: the caller
	hops  int
	tries int // questions in vain
}

// search is the state of one iterative lookup.
type search struct {
	id    blocks.ID
	todo  []candidate // best first
	known map[blocks.VnodeID]bool
	asked int
	ends  int // presumed owners found
	tried int // and of them, done with

	strange int // strangers asked about
}

func (s *search) add(c candidate) {
	if c.hops > hopBudget || s.known[c.v.ID] {
		return
	}
	s.known[c.v.ID] = true
	if c.final {
		s.ends++
	}
	at := slices.IndexFunc(s.todo, func(o candidate) bool { return s.compare(c, o) < 0 })
	if at < 0 {
		at = len(s.todo)
	}
	s.todo = slices.Insert(s.todo, at, c)
}

// again has c, who gave no useful answer, asked once more: a presumed owner after the other ones, the others after the next few.
// A lost message must not send the lookup around the ring.
func (s *search) again(c candidate) {
	switch c.tries++; {
	case c.tries < maxTries:
		at := min(alpha, len(s.todo))
		if c.final {
			at = s.finals()
		}
		s.todo = slices.Insert(s.todo, at, c)
	case c.final:
		s.tried++
	}
}

// finals returns how many presumed owners are to be asked; they come first.
func (s *search) finals() int {
	n := slices.IndexFunc(s.todo, func(c candidate) bool { return !c.final })
	if n < 0 {
		n = len(s.todo)
	}
	return n
}

// compare puts presumed owners first, nearest after the ID first, then the others,
// nearest before the ID first.
func (s *search) compare(a, b candidate) int {
	switch {
	case a.final && !b.final:
		return -1
	case b.final && !a.final:
		return 1
	case a.final:
		return s.id.Distance(a.v.ID.ID).Compare(s.id.Distance(b.v.ID.ID))
	}
	return a.v.ID.Distance(s.id).Compare(b.v.ID.Distance(s.id))
}

// over reports whether all that were presumed to own the ID have been asked in
// vain: the ring is in the middle of a change, and asking more of those before it does not help.
func (s *search) over() bool { return s.ends > 0 && s.tried == s.ends }

// take learns from c's answer whom else to ask.
func (s *search) take(c candidate, a stepAnswer) {
	if c.final && a.unsure {
		s.again(c)
		return
	}
	if c.final {
		defer func() { s.tried++ }()
	}
	for _, v := range a.closer {
		if v.ID.Distance(s.id).Compare(c.v.ID.Distance(s.id)) < 0 || c.final {
			s.add(candidate{v: v, by: c.v.Peer, hops: c.hops + 1})
		}
	}
	if !c.final {
		for _, v := range a.final {
			s.add(candidate{v: v, final: true, by: c.v.Peer, hops: c.hops + 1})
		}
	} else if a.hasPred && s.id.Distance(a.pred.ID.ID).Compare(s.id.Distance(c.v.ID.ID)) < 0 {
		s.add(candidate{v: a.pred, final: true, by: c.v.Peer, hops: c.hops + 1})
	}
}

// route looks id up through Chord, beginning at the given virtual nodes. A
// question to a virtual node of this peer costs no hop.
func (c *chord) route(ctx context.Context, entries []Vnode, id blocks.ID) (Vnode, int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &search{id: id, known: map[blocks.VnodeID]bool{}}
	for _, v := range entries {
		hops := 1
		if v.Peer == c.peer.cfg.Self {
			hops = 0
		}
		s.add(candidate{v: v, hops: hops})
	}
	type result struct {
		c   candidate
		a   stepAnswer
		err error
	}
	results := make(chan result, alpha)
	last := fmt.Errorf("%w: nobody to ask", blocks.ErrUnavailable)
	for out := 0; ; {
		for ; out < alpha && len(s.todo) > 0 && s.asked < askBudget && !s.over(); out++ {
			next := s.todo[0]
			s.todo = s.todo[1:]
			s.asked++
			if next.v.Peer == c.peer.cfg.Self { // at once, and alone: it costs nothing
				a, err := c.step(stepRequest{id, next.v.Index, false})
				results <- result{next, a, err}
				out++
				break
			}
			_, known := c.peer.addr(next.v.Peer)
			strange := !known && next.tries == 0 && s.strange < maxStrange
			if strange {
				s.strange++
			}
			go func() {
				if strange {
					c.peer.whoIs(ctx, stranger{next.v.Peer, next.by})
				}
				a, err := c.ask(ctx, next.v, stepRequest{id, next.v.Index, false})
				results <- result{next, a, err}
			}()
		}
		if out == 0 || s.over() {
			return Vnode{}, 0, fmt.Errorf("%w: lookup of %s ended after %d questions: %v", blocks.ErrUnavailable, id.Short(), s.asked, last)
		}
		select {
		case <-ctx.Done():
			return Vnode{}, 0, ended(ctx, fmt.Sprintf("lookup of %s after %d questions", id.Short(), s.asked))
		case r := <-results:
			out--
			if r.err != nil {
				last = r.err
				s.again(r.c)
				continue
			}
			if r.a.owner {
				return r.c.v, r.c.hops, nil
			}
			s.take(r.c, r.a)
		}
	}
}

// fingerLoop renews the fingers, one of each virtual node at a time.
func (c *chord) fingerLoop(ctx context.Context) {
	t := &c.peer.cfg.Timings
	pause := t.StabilizeMin
	exp := make([]int, len(c.nodes))
	for i := range exp {
		exp[i] = maxFingers - 1
	}
	for ctx.Err() == nil {
		changed := false
		for i := range c.nodes {
			changed = c.fixFinger(ctx, i, &exp[i]) || changed
		}
		if changed {
			pause = t.StabilizeMin
		} else {
			pause = min(pause*3/2, t.StabilizeMax)
		}
		rest(ctx, c.peer.jitter(pause))
	}
}

// fixFinger looks up the finger at exp of virtual node i and goes on to the next nearer one;
// where the successor begins, it begins again.
func (c *chord) fixFinger(ctx context.Context, i int, exp *int) (changed bool) {
	c.mu.Lock()
	n := c.nodes[i]
	self, idle := n.self, c.small || !n.member || len(n.succ) == 0
	var succ Vnode
	if !idle {
		succ = n.succ[0]
	}
	c.mu.Unlock()
	if idle {
		return false
	}
	at := self.ID.AddPower(*exp)
	if blocks.Between(self.ID.ID, at, succ.ID.ID) {
		c.mu.Lock()
		n.fingers = slices.DeleteFunc(slices.Clone(n.fingers), func(f finger) bool { return f.exp <= *exp })
		c.mu.Unlock()
		*exp = maxFingers - 1
		return false
	}
	owner, _, err := c.peer.Lookup(ctx, at)
	if err != nil {
		*exp--
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.small {
		return false
	}
	changed = n.setFinger(*exp, owner)
	*exp--
	return changed
}

// setFinger sets the finger at exp and reports whether it differs; one that
// equals the next farther one is left out.
func (n *node) setFinger(exp int, v Vnode) (changed bool) {
	fs := make([]finger, 0, len(n.fingers)+1)
	for _, f := range n.fingers {
		if f.exp > exp {
			fs = append(fs, f)
		}
	}
	if v.ID != n.self.ID && (len(fs) == 0 || fs[len(fs)-1].v.ID != v.ID) {
		fs = append(fs, finger{exp, v})
	}
	for _, f := range n.fingers {
		if f.exp < exp && f.v.ID != v.ID {
			fs = append(fs, f)
		}
	}
	changed = !slices.Equal(fs, n.fingers)
	n.fingers = fs
	return changed
}
