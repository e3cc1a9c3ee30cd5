// Package overlaytest has in-memory networks for tests: Net for the services on a
// ring (real tables, no membership behind them), and Wire for real overlay.Peers.
package overlaytest

import (
	"context"
	"fmt"
	"sync"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

// Net joins fake rings. The zero fault function delivers every call at once.
type Net struct {
	// Fault is asked before a request is delivered (reply false) and before
	// its response is (reply true): an error instead of nil is returned to the
	// caller in its place. It may wait. Nil: no faults.
	Fault func(ctx context.Context, from, to blocks.PeerID, kind overlay.Kind, reply bool) error

	ring    blocks.ID
	mu      sync.Mutex
	peers   map[blocks.PeerID]*Ring
	infos   map[blocks.PeerID]overlay.PeerInfo
	table   *overlay.Table
	changed chan struct{}
}

// NewNet makes an empty network.
func NewNet(ring blocks.ID) *Net {
	return &Net{ring: ring, peers: map[blocks.PeerID]*Ring{}, infos: map[blocks.PeerID]overlay.PeerInfo{},
		table: overlay.NewTable(ring, nil), changed: make(chan struct{})}
}

// Set adds a peer or changes what all tables say of it.
func (n *Net) Set(info overlay.PeerInfo) *Ring {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.peers[info.ID]
	if r == nil {
		r = &Ring{net: n, self: info.ID, serve: map[overlay.Kind]overlay.Serve{}}
		n.peers[info.ID] = r
	}
	n.infos[info.ID] = info
	all := make([]overlay.PeerInfo, 0, len(n.infos))
	for _, p := range n.infos {
		all = append(all, p)
	}
	n.table = overlay.NewTable(n.ring, all)
	close(n.changed)
	n.changed = make(chan struct{})
	return r
}

// Ring is one peer's view; it implements overlay.Ring.
type Ring struct {
	net   *Net
	self  blocks.PeerID
	mu    sync.Mutex
	down  bool
	late  *overlay.Table // what the peer takes for the table, if not nil
	serve map[overlay.Kind]overlay.Serve
}

var _ overlay.Ring = (*Ring)(nil)

// SetDown makes the peer unreachable (its process is dead), or reachable again.
// The tables are not told: see Net.Set.
func (r *Ring) SetDown(down bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down = down
}

// Self returns the peer's ID.
func (r *Ring) Self() blocks.PeerID { return r.self }

// SetLate lets the peer hear of no changes of the table, or of all of them at once.
func (r *Ring) SetLate(late bool) {
	var t *overlay.Table
	if late {
		t = r.Table()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.late = t
}

// Table returns the network's table, as far as the peer has heard of it.
func (r *Ring) Table() *overlay.Table {
	r.mu.Lock()
	late := r.late
	r.mu.Unlock()
	if late != nil {
		return late
	}
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	return r.net.table
}

// Changed is closed when the table changes.
func (r *Ring) Changed() <-chan struct{} {
	r.net.mu.Lock()
	defer r.net.mu.Unlock()
	return r.net.changed
}

// Handle sets or replaces (nil: removes) a handler, at any time.
func (r *Ring) Handle(kind overlay.Kind, h overlay.Serve) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.serve[kind] = h
}

func (r *Ring) handler(kind overlay.Kind) (overlay.Serve, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.down || r.serve[kind] == nil {
		return nil, fmt.Errorf("%w: peer %s does not answer", blocks.ErrUnavailable, r.self.Short())
	}
	return r.serve[kind], nil
}

// Call delivers req to the peer's handler in the caller's goroutine, with the
// faults of the network, through the same encoding of errors as the real one.
func (r *Ring) Call(ctx context.Context, to blocks.PeerID, _ overlay.Class, req overlay.Call) (overlay.Call, error) {
	r.net.mu.Lock()
	callee := r.net.peers[to]
	r.net.mu.Unlock()
	if callee == nil {
		return overlay.Call{}, fmt.Errorf("%w: peer %s is unknown", blocks.ErrUnavailable, to.Short())
	}
	fault := r.net.Fault
	if fault != nil && to != r.self {
		if err := fault(ctx, r.self, to, req.Kind, false); err != nil {
			return overlay.Call{}, err
		}
	}
	serve, err := callee.handler(req.Kind)
	if err != nil {
		return overlay.Call{}, err
	}
	resp, err := serve(ctx, r.self, req)
	if ctx.Err() != nil {
		return overlay.Call{}, fmt.Errorf("call to %s: %w", to.Short(), context.Cause(ctx))
	}
	if _, down := callee.handler(req.Kind); down != nil {
		return overlay.Call{}, down
	}
	if fault != nil && to != r.self {
		if err := fault(ctx, r.self, to, req.Kind, true); err != nil {
			return overlay.Call{}, err
		}
	}
	return overlay.Unreply(overlay.Reply(resp, err))
}
