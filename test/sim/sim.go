// Package sim runs many peers of a ring in one process, in virtual time, over a network
// that loses, delays and cuts messages: the production code of overlay.Peer
// (membership, gossip library, Chord, the real encoding), only the transport is not.
//
// One seed decides about positions, capacities, who joins through whom, who is
// killed, and which messages are lost. Not decided by it are the order in which goroutines
// run and whom the gossip library picks, for it draws from Go's global source: the same seed gives
// the same story, not the same trace.
//
// It must know peers as a machine does (start, kill, network). It must not
// reach into their state: what it verifies it asks for by exported methods.
package sim

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
	"github.com/mutualfs/mutualfs/overlay/overlaytest"
)

// World is a ring of simulated machines. Its methods are for one goroutine.
type World struct {
	Wire  *overlaytest.Wire
	Rand  *rand.Rand
	Peers []*Machine // all that ever were, in order of birth
	ring  blocks.ID
	code  [2]int
	times overlay.Timings
	spare *rand.ChaCha8
}

// Machine is one peer's machine: what survives its crashes.
type Machine struct {
	ID     blocks.PeerID
	Addr   string
	Vnodes int
	Peer   *overlay.Peer // nil while it is down
	world  *World
	disk   disk
	end    *overlaytest.End
	cancel context.CancelFunc
	done   chan error
}

// disk is an overlay.Store.
type disk struct {
	mu    sync.Mutex
	state []byte
}

func (d *disk) Load() ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Clone(d.state), nil
}

func (d *disk) Save(b []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.state = bytes.Clone(b)
	return nil
}

// NewWorld makes an empty world with the code k+m.
func NewWorld(seed uint64, k, m int, times overlay.Timings) *World {
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], seed)
	w := &World{Wire: overlaytest.NewWire(seed), Rand: rand.New(rand.NewPCG(seed, 2)), code: [2]int{k, m}, times: times, spare: rand.NewChaCha8(key)}
	w.ring, _ = blocks.RandomID(w.spare) // a ChaCha8 does not fail
	return w
}

// Add makes a machine with between least and most virtual nodes; it does not start it.
func (w *World) Add(least, most int) *Machine {
	id, _ := blocks.RandomID(w.spare)
	m := &Machine{ID: blocks.PeerID{ID: id}, Addr: fmt.Sprintf("m%d.sim:4242", len(w.Peers)), Vnodes: least + w.Rand.IntN(most-least+1), world: w}
	w.Peers = append(w.Peers, m)
	return m
}

// Start boots the machine's peer.
func (m *Machine) Start() error {
	w := m.world
	m.end = w.Wire.End(m.ID, m.Addr)
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], w.Rand.Uint64())
	p, err := overlay.New(overlay.Config{Ring: w.ring, Self: m.ID, Addr: m.Addr, Capacity: uint64(m.Vnodes) << 30, Vnodes: m.Vnodes, Drives: 1,
		K: w.code[0], M: w.code[1], Transport: m.end, Dial: m.end.Dial, Store: &m.disk, Rand: rand.NewChaCha8(key), Timings: w.times})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.Peer, m.cancel, m.done = p, cancel, make(chan error, 1)
	m.end.Attach(p)
	go func() { m.done <- p.Run(ctx) }()
	return nil
}

// Join starts the machine and has it enter the ring at another.
func (m *Machine) Join(ctx context.Context, at *Machine) error {
	if err := m.Start(); err != nil {
		return err
	}
	return m.Peer.Join(ctx, []string{at.Addr})
}

// Kill cuts the machine's power: from one moment to the next nobody answers.
func (m *Machine) Kill() error {
	m.end.Attach(nil)
	m.cancel()
	err := <-m.done
	m.Peer = nil
	return err
}

// Up returns the machines that run.
func (w *World) Up() []*Machine {
	return slices.DeleteFunc(slices.Clone(w.Peers), func(m *Machine) bool { return m.Peer == nil })
}

// Any returns one of them.
func (w *World) Any() *Machine {
	up := w.Up()
	return up[w.Rand.IntN(len(up))]
}

// Close kills all machines and waits until the last goroutine has ended.
func (w *World) Close() {
	for _, m := range w.Up() {
		_ = m.Kill() // a peer that is killed has nothing to say
	}
	time.Sleep(time.Minute)
}

// Ring returns the virtual nodes of the given machines in ring order: what the peers should agree on.
func (w *World) Ring(machines []*Machine) []overlay.Vnode {
	var vs []overlay.Vnode
	for _, m := range machines {
		for i := range m.Vnodes {
			vs = append(vs, overlay.Vnode{ID: overlay.VnodePosition(w.ring, m.ID, i), Peer: m.ID, Index: i})
		}
	}
	slices.SortFunc(vs, func(a, b overlay.Vnode) int { return a.ID.Compare(b.ID.ID) })
	return vs
}

// Ordered reports whether the machines form one ordered ring: each virtual node's
// predecessor and successor are the right ones, and its list spans `span` distinct
// other peers. It says how many are wrong, and what is with the first.
func (w *World) Ordered(machines []*Machine, span int) error {
	ring := w.Ring(machines)
	at := map[blocks.VnodeID]int{}
	for i, v := range ring {
		at[v.ID] = i
	}
	var first []error
	wrong := 0
	for _, m := range machines {
		for _, n := range m.Peer.RingInfo() {
			i := at[n.Vnode.ID]
			if err := pointersRight(n, ring, i, span); err != nil {
				if wrong++; wrong <= 8 {
					first = append(first, err)
				}
			}
		}
	}
	if wrong > 0 {
		return fmt.Errorf("%d of %d virtual nodes are wrong:\n%w", wrong, len(ring), errors.Join(first...))
	}
	return nil
}

// Follows reports whether the virtual node after v on the ring has v as its predecessor.
func (w *World) Follows(v blocks.VnodeID) bool {
	next := Owner(w.Ring(w.Up()), v.AddPower(0))
	for _, m := range w.Up() {
		if m.ID == next.Peer {
			n := m.Peer.RingInfo()[next.Index]
			return n.Predecessor != nil && n.Predecessor.ID == v
		}
	}
	return false
}

func pointersRight(n overlay.VnodeInfo, ring []overlay.Vnode, i, span int) error {
	name := n.Vnode.ID.Short()
	pred, succ := ring[(i+len(ring)-1)%len(ring)], ring[(i+1)%len(ring)]
	switch {
	case !n.Member:
		return fmt.Errorf("%s has not joined", name)
	case n.Predecessor == nil:
		return fmt.Errorf("%s does not know its predecessor", name)
	case n.Predecessor.ID != pred.ID:
		return fmt.Errorf("%s has predecessor %s, not %s", name, n.Predecessor.ID.Short(), pred.ID.Short())
	case len(n.Successors) == 0 || n.Successors[0].ID != succ.ID:
		return fmt.Errorf("%s has successors %v, not %s first", name, n.Successors, succ.ID.Short())
	}
	peers := map[blocks.PeerID]bool{}
	for j, v := range n.Successors {
		if want := ring[(i+1+j)%len(ring)]; v.ID != want.ID {
			return fmt.Errorf("%s has successor %d %s, not %s", name, j, v.ID.Short(), want.ID.Short())
		}
		if v.Peer != n.Vnode.Peer {
			peers[v.Peer] = true
		}
	}
	if len(peers) < span {
		return fmt.Errorf("%s has a list over %d other peers, not %d", name, len(peers), span)
	}
	return nil
}

// Owner returns which virtual node of a ring owns id.
func Owner(ring []overlay.Vnode, id blocks.ID) overlay.Vnode {
	i, _ := slices.BinarySearchFunc(ring, id, func(v overlay.Vnode, id blocks.ID) int { return v.ID.Compare(id) })
	return ring[i%len(ring)]
}

// RandomID draws an ID.
func (w *World) RandomID() blocks.ID {
	id, _ := blocks.RandomID(w.spare)
	return id
}
