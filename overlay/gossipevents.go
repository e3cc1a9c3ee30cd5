package overlay

import (
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/mutualfs/mutualfs/blocks"
)

// What the gossip library tells and asks us. It calls with its own lock held: nothing here
// waits or calls back.

// NodeMeta is what this peer says of itself.
func (g *gossip) NodeMeta(limit int) []byte {
	m := g.peer.ms.ownMeta()
	var e blocks.Encoder
	m.encode(&e)
	if len(e.Buf) > limit {
		return nil // cannot be: see meta
	}
	return e.Buf
}

// NotifyMsg and GetBroadcasts: we gossip no messages of our own.
func (g *gossip) NotifyMsg([]byte)                {}
func (g *gossip) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState carries the peers that the library has forgotten or never knew.
func (g *gossip) LocalState(bool) []byte {
	var e blocks.Encoder
	encodeRecords(&e, g.peer.ms.records(true))
	return e.Buf
}

// MergeRemoteState takes them up.
func (g *gossip) MergeRemoteState(buf []byte, _ bool) {
	d := blocks.NewDecoder(buf)
	rs, err := decodeRecords(d)
	if err == nil {
		err = d.Done()
	}
	if err != nil {
		g.peer.log.Warn().Err(err).Msg("another peer's membership is not understood")
		return
	}
	g.peer.merge(rs)
}

// NotifyAlive refuses nodes that are none of ours.
func (g *gossip) NotifyAlive(n *memberlist.Node) error {
	_, _, err := parseNode(n)
	return err
}

func parseNode(n *memberlist.Node) (blocks.PeerID, meta, error) {
	id, err := parseName(n.Name)
	if err != nil {
		return id, meta{}, err
	}
	d := blocks.NewDecoder(n.Meta)
	m, err := decodeMeta(d)
	if err == nil {
		err = d.Done()
	}
	return id, m, err
}

// NotifyJoin: a peer is alive, newly or again.
func (g *gossip) NotifyJoin(n *memberlist.Node) { g.alive(n, true) }

// NotifyUpdate: a peer says something new of itself.
func (g *gossip) NotifyUpdate(n *memberlist.Node) { g.alive(n, false) }

func (g *gossip) alive(n *memberlist.Node, joined bool) {
	id, m, err := parseNode(n)
	if err != nil || id == g.peer.cfg.Self {
		return
	}
	g.peer.ms.gossipAlive(id, m, joined)
	g.peer.poke()
}

// NotifyLeave: the library has given a peer up, or it said goodbye.
func (g *gossip) NotifyLeave(n *memberlist.Node) {
	if id, err := parseName(n.Name); err == nil {
		g.peer.ms.gossipDead(id)
		g.peer.poke()
	}
}

// AckPayload adds nothing to the answers of probes.
func (g *gossip) AckPayload() []byte { return nil }

// NotifyPingComplete: a peer answered a probe.
func (g *gossip) NotifyPingComplete(n *memberlist.Node, _ time.Duration, _ []byte) {
	if id, err := parseName(n.Name); err == nil {
		g.peer.ms.heard(id)
		if g.peer.Table().Peers[id].Live != Alive {
			g.peer.poke()
		}
	}
}
