package overlay

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"testing"

	"github.com/mutualfs/mutualfs/blocks"
)

// deaf is a Transport that reaches nobody.
type deaf struct{}

func (deaf) Call(context.Context, blocks.PeerID, string, Class, Call) (Call, error) {
	return Call{}, blocks.ErrUnavailable
}

func (deaf) dial(context.Context, blocks.PeerID, string) (net.Conn, error) {
	return nil, blocks.ErrUnavailable
}

// lonePeer is a peer that does not run.
func lonePeer(t *testing.T, vnodes int) *Peer {
	t.Helper()
	p, err := New(Config{Ring: blocks.ID{1}, Self: testPeer(1), Addr: "a:1", Capacity: uint64(vnodes), Vnodes: vnodes, K: 4, M: 2,
		Transport: deaf{}, Dial: deaf{}.dial, Rand: rand.NewChaCha8([32]byte{})})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// at is a virtual node at position b<<152 of peer `peer`.
func at(b, peer byte) Vnode {
	return Vnode{ID: blocks.VnodeID{ID: blocks.ID{b}}, Peer: testPeer(peer)}
}

func TestRingOfOneOwnsEverything(t *testing.T) {
	p := lonePeer(t, 4)
	r := testRand(t)
	for range 50 {
		id := randID(r)
		want, ok := p.Table().Owner(id)
		got, hops, err := p.Lookup(t.Context(), id)
		if err != nil || !ok || got != want || hops != 0 {
			t.Fatalf("lookup: %v in %d hops, %v; want %v", got, hops, err, want)
		}
	}
	for i, n := range p.RingInfo() {
		if !n.Member || n.Predecessor == nil || len(n.Successors) != 3 || n.Vnode.Index != i {
			t.Errorf("%+v", n)
		}
	}
	if r, err := p.CheckPart(t.Context()); err != nil || r.Failed > 0 || r.Routes != 12 {
		t.Errorf("check: %+v, %v", r, err)
	}
}

func TestClientAloneFindsNobody(t *testing.T) {
	p := lonePeer(t, 0)
	if _, _, err := p.Lookup(t.Context(), blocks.ID{7}); !errors.Is(err, blocks.ErrUnavailable) {
		t.Errorf("%v, want unavailable", err)
	}
}

func TestTrim(t *testing.T) {
	self := at(100, 1)
	ring := []Vnode{at(110, 1), at(120, 2), at(130, 2), at(140, 3), at(150, 4), at(10, 5), at(100, 1), at(105, 6)}
	for _, c := range []struct {
		name string
		list []Vnode
		span int
		skip func(Vnode) bool
		want []Vnode
	}{
		{"spans distinct other peers", ring, 3, nil, ring[:5]},
		{"does not go beyond self", ring, 9, nil, ring[:6]},
		{"leaves out who is gone", ring, 2, func(v Vnode) bool { return v.Peer == testPeer(2) }, []Vnode{ring[0], ring[3], ring[4]}},
		{"ends where the order does", []Vnode{at(120, 2), at(110, 3)}, 9, nil, []Vnode{at(120, 2)}},
		{"names nobody twice", []Vnode{at(120, 2), at(120, 2), at(130, 3)}, 9, nil, []Vnode{at(120, 2), at(130, 3)}},
		{"of nothing", nil, 3, nil, []Vnode{}},
	} {
		if got := trim(self, c.list, c.span, c.skip); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// TestDerivedPointersAreThoseOfTheRing compares the pointers of a small ring with their definitions.
func TestDerivedPointersAreThoseOfTheRing(t *testing.T) {
	r := testRand(t)
	for range 50 {
		tab := randTable(r, 2+r.IntN(7), 0)
		ring := tab.Vnodes()
		for i, v := range ring {
			n := &node{self: v}
			n.derive(ring, 8)
			if !n.member || n.pred != ring[(i+len(ring)-1)%len(ring)] {
				t.Fatalf("predecessor of %v: %v", v, n.pred)
			}
			if len(ring) > 1 && n.succ[0] != ring[(i+1)%len(ring)] {
				t.Fatalf("successor of %v: %v", v, n.succ[0])
			}
			for _, f := range n.fingers {
				if want := firstAt(ring, v.ID.AddPower(f.exp)); f.v != want {
					t.Fatalf("finger %d of %v: %v, want %v", f.exp, v, f.v, want)
				}
			}
		}
	}
}

func TestRectify(t *testing.T) {
	p := lonePeer(t, 1)
	c := p.chord
	n := c.nodes[0]
	self := n.self
	before := func(exp int, peer byte) Vnode { // 2^exp before self
		var zero blocks.ID
		return Vnode{ID: blocks.VnodeID{ID: zero.AddPower(exp).Distance(self.ID.ID)}, Peer: testPeer(peer)}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n.hasPred = false
	far, near := before(150, 2), before(140, 3)
	if c.notified(n, far); !n.hasPred || n.pred != far {
		t.Fatal("an unknown predecessor is not taken up")
	}
	if c.notified(n, near); n.pred != near || n.busy != 0 {
		t.Fatal("a nearer predecessor is not taken up at once")
	}
	if c.notified(n, far); n.pred != near {
		t.Fatal("a farther predecessor was believed without a ping")
	}
	if n.busy != 1 || len(c.doubts) != 1 {
		t.Fatal("the old predecessor is not in doubt")
	}
	if c.notified(n, self); n.pred != near {
		t.Fatal("a virtual node is its own predecessor")
	}
	d := <-c.doubts
	c.mu.Unlock()
	c.rectify(t.Context(), d) // nobody answers here: the old one is dead
	c.mu.Lock()
	if n.busy != 0 || n.small(c) != true && n.pred != far {
		t.Fatalf("predecessor %v, busy %d", n.pred, n.busy)
	}
}

// small is for the test above: rectify changes nothing while pointers follow from the table.
func (n *node) small(c *chord) bool { return c.small }

func TestStepAnswers(t *testing.T) {
	p := lonePeer(t, 1)
	c := p.chord
	n := c.nodes[0]
	ask := func(id blocks.ID, presumed bool) (stepAnswer, error) {
		return c.step(stepRequest{id, 0, presumed})
	}
	self := n.self.ID.ID
	succ := Vnode{ID: blocks.VnodeID{ID: self.AddPower(150)}, Peer: testPeer(2)}
	pred := Vnode{ID: blocks.VnodeID{ID: self.AddPower(159)}, Peer: testPeer(3)}
	c.mu.Lock()
	n.succ, n.pred, n.hasPred = []Vnode{succ}, pred, true
	n.fingers = []finger{{155, Vnode{ID: blocks.VnodeID{ID: self.AddPower(155)}, Peer: testPeer(4)}}}
	c.mu.Unlock()

	if a, err := ask(self, true); err != nil || !a.owner {
		t.Errorf("its own position: %+v, %v", a, err)
	}
	if a, err := ask(pred.ID.ID.AddPower(3), false); err != nil || !a.owner {
		t.Errorf("just after the predecessor: %+v, %v", a, err)
	}
	if _, err := ask(self.AddPower(10), true); !errors.Is(err, blocks.ErrNotOwner) {
		t.Errorf("%v, want not the owner", err)
	}
	if a, err := ask(self.AddPower(10), false); err != nil || a.owner || len(a.closer) > 0 || a.final[0] != succ {
		t.Errorf("between it and its successor: %+v, %v", a, err)
	}
	if a, err := ask(self.AddPower(157), false); err != nil || len(a.closer) != 2 || a.closer[0].Peer != testPeer(4) || a.closer[1] != succ {
		t.Errorf("far away: %+v, %v", a, err)
	}
	c.mu.Lock()
	n.hasPred = false
	c.mu.Unlock()
	if _, err := ask(self.AddPower(10), true); !errors.Is(err, blocks.ErrBusy) {
		t.Errorf("%v, want busy without a predecessor", err)
	}
	if a, err := ask(self.AddPower(10), false); err != nil || !a.unsure {
		t.Errorf("%+v, %v, want unsure", a, err)
	}
	if _, err := c.step(stepRequest{self, 9, false}); !errors.Is(err, blocks.ErrBusy) {
		t.Errorf("%v, want busy: there is no such virtual node", err)
	}
}

func TestSetFinger(t *testing.T) {
	n := &node{self: at(0, 1)}
	a, b := at(200, 2), at(100, 3)
	for _, s := range []struct {
		exp     int
		v       Vnode
		changed bool
		want    []finger
	}{
		{159, a, true, []finger{{159, a}}},
		{158, a, false, []finger{{159, a}}}, // the farther one says it already
		{157, b, true, []finger{{159, a}, {157, b}}},
		{157, b, false, []finger{{159, a}, {157, b}}},
		{159, b, true, []finger{{159, b}}},
		{158, n.self, false, []finger{{159, b}}},
	} {
		if got := n.setFinger(s.exp, s.v); got != s.changed || !slices.Equal(n.fingers, s.want) {
			t.Fatalf("finger %d = %v: %v, %v; want %v", s.exp, s.v, got, n.fingers, s.want)
		}
	}
}

func TestConfigIsValidated(t *testing.T) {
	good := Config{Ring: blocks.ID{1}, Self: testPeer(1), Addr: "a:1", Capacity: 1, Vnodes: 1, K: 4, M: 2, Transport: deaf{}, Dial: deaf{}.dial}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	if good.span() != 8 || good.Timings.RepairAfter != DefaultTimings().RepairAfter || good.Rand == nil {
		t.Errorf("defaults are missing: %+v", good)
	}
	for name, spoil := range map[string]func(*Config){
		"no ring":         func(c *Config) { c.Ring = blocks.ID{} },
		"no transport":    func(c *Config) { c.Transport = nil },
		"no code":         func(c *Config) { c.K = 0 },
		"too many vnodes": func(c *Config) { c.Vnodes = MaxVnodes + 1 },
		"no vnodes":       func(c *Config) { c.Vnodes = 0 },
		"no port":         func(c *Config) { c.Addr = "host" },
	} {
		c := good
		spoil(&c)
		if err := c.Validate(); !errors.Is(err, blocks.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
