package overlay

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/mutualfs/mutualfs/blocks"
)

// direct is a Transport among peers that do not run.
type direct struct {
	from  blocks.PeerID
	peers map[blocks.PeerID]*Peer
}

func (d direct) Call(ctx context.Context, to blocks.PeerID, _ string, _ Class, req Call) (Call, error) {
	return d.peers[to].Serve(ctx, d.from, req), nil
}

// standing makes a ring of n peers with all pointers right, in which nothing happens by itself.
func standing(t *testing.T, n int) map[blocks.PeerID]*Peer {
	t.Helper()
	peers := map[blocks.PeerID]*Peer{}
	for i := range n {
		id := testPeer(byte(i + 1))
		p, err := New(Config{Ring: blocks.ID{1}, Self: id, Addr: fmt.Sprintf("a:%d", i+1), Capacity: 3, Vnodes: 3, K: 4, M: 2,
			Transport: direct{id, peers}, Dial: deaf{}.dial, Rand: rand.NewChaCha8([32]byte{byte(i)})})
		if err != nil {
			t.Fatal(err)
		}
		peers[id] = p
	}
	for _, p := range peers {
		for _, q := range peers {
			if p != q {
				p.ms.gossipAlive(q.cfg.Self, q.ms.ownMeta(), true)
			}
		}
		p.publish()
		table := p.Table()
		p.chord.follow(table)
		p.chord.mu.Lock()
		for _, v := range p.chord.nodes {
			v.derive(p.chord.reachable(table), p.chord.span)
		}
		p.chord.mu.Unlock()
	}
	return peers
}

// A virtual node that has lost its predecessor, which it gave up wrongly, has it again after its own next round: it does
// not wait for the predecessor's, which may be slow because nothing has changed for it.
func TestUnknownPredecessorIsAskedFor(t *testing.T) {
	for id, p := range standing(t, 12) {
		c := p.chord
		for i, n := range c.nodes {
			c.mu.Lock()
			was := n.pred
			n.hasPred = false
			c.mu.Unlock()
			if _, soon := c.round(t.Context()); soon {
				t.Errorf("%s/%d: after its round something is still missing", id.Short(), i)
			}
			c.mu.Lock()
			if !n.hasPred || n.pred != was {
				t.Errorf("%s/%d: predecessor %v known: %v, want %v", id.Short(), i, n.pred, n.hasPred, was)
			}
			c.mu.Unlock()
		}
	}
}

// An owner whose answers are lost is asked again before the lookup goes on to others, however many have been named meanwhile.
func TestPresumedOwnerIsAskedAgainFirst(t *testing.T) {
	s := &search{id: blocks.ID{200}, known: map[blocks.VnodeID]bool{}}
	for b := range byte(6) {
		s.add(candidate{v: at(100+10*b, b)})
	}
	s.add(candidate{v: at(201, 9), final: true})
	for try := range maxTries {
		next := s.todo[0]
		if s.todo = s.todo[1:]; !next.final {
			t.Fatalf("question %d goes to %v, want the presumed owner", try, next.v)
		}
		s.again(next)
		far := s.todo[0]
		if far.final {
			far = s.todo[1]
		}
		s.take(far, stepAnswer{closer: []Vnode{at(160+2*byte(try), 7), at(161+2*byte(try), 8)}})
	}
	if !s.over() {
		t.Error("the presumed owner was asked often enough, and the lookup is not over")
	}
}
