package overlay

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/mutualfs/mutualfs/blocks"
	"github.com/rs/zerolog"
)

// Bounds of the gossip.
const (
	packetQueue    = 512  // packets that wait for the library; more are dropped
	streamQueue    = 16   // streams that wait for it; more are closed
	packetsOut     = 256  // packets on their way; more are dropped
	packetsPerPeer = 8    // and to one peer
	packetSize     = 4096 // bytes; they travel in frames of a stream, not in datagrams
	syncTimeout    = 5 * time.Second
	announceWait   = 2 * time.Second
)

// gossip drives the memberlist library over our own transport: packets are
// calls of class Control, streams come from Config.Dial. The library's own
// encryption is off, because every byte travels in TLS between members of the ring.
//
// The library wants an IP address and a port of each node. Ours are made up
// (an address of the range fd00::/8 out of the peer's ID): the node's name, which is the
// peer's ID in hexadecimal digits, leads to the real address in the membership
// table. So peers may have host names as addresses and may move without a conflict.
type gossip struct {
	peer    *Peer
	packets chan *memberlist.Packet
	streams chan net.Conn
	news    chan struct{} // this peer's metadata has changed

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	list   *memberlist.Memberlist // set by start

	mu  sync.Mutex
	all int // packets on their way
	out map[blocks.PeerID]int
}

var (
	_ memberlist.NodeAwareTransport = (*gossip)(nil)
	_ memberlist.Delegate           = (*gossip)(nil)
	_ memberlist.EventDelegate      = (*gossip)(nil)
	_ memberlist.AliveDelegate      = (*gossip)(nil)
	_ memberlist.PingDelegate       = (*gossip)(nil)
)

func newGossip(p *Peer) *gossip {
	g := &gossip{peer: p, packets: make(chan *memberlist.Packet, packetQueue), streams: make(chan net.Conn, streamQueue),
		news: make(chan struct{}, 1), out: map[blocks.PeerID]int{}}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	return g
}

func (g *gossip) start() error {
	t := &g.peer.cfg.Timings
	c := memberlist.DefaultLANConfig()
	c.Name = g.peer.cfg.Self.String()
	c.Transport = g
	c.RequireNodeNames = true
	c.TCPTimeout = syncTimeout
	c.ProbeInterval, c.ProbeTimeout = t.ProbeInterval, t.ProbeTimeout
	c.GossipInterval, c.PushPullInterval = t.GossipInterval, t.SyncInterval
	c.DisableTcpPings = true // packets are as reliable as streams here
	c.EnableCompression = false
	c.UDPBufferSize = packetSize
	c.Delegate, c.Events, c.Alive, c.Ping = g, g, g, g
	c.Logger = log.New(gossipLog{g.peer.log}, "", 0)
	var err error
	if g.list, err = memberlist.Create(c); err != nil {
		return fmt.Errorf("start the gossip: %w", err)
	}
	return nil
}

// stop ends what start began and waits for our part of it; the library's last goroutines
// end by themselves soon after.
func (g *gossip) stop() {
	if err := g.list.Shutdown(); err != nil {
		g.peer.log.Warn().Err(err).Msg("gossip did not shut down cleanly")
	}
	g.wg.Wait()
	for {
		select {
		case conn := <-g.streams:
			conn.Close()
		default:
			return
		}
	}
}

// join compares tables with a peer that the membership knows.
func (g *gossip) join(id blocks.PeerID) error {
	_, err := g.list.Join([]string{id.String() + "/" + nodeAddr(id).String()})
	if err != nil {
		return fmt.Errorf("%w: exchange membership with peer %s: %v", blocks.ErrUnavailable, id.Short(), err)
	}
	return nil
}

// announce tells the ring whenever this peer's metadata has changed, until ctx ends.
func (g *gossip) announce(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.news:
			if err := g.list.UpdateNode(announceWait); err != nil {
				g.peer.log.Debug().Err(err).Msg("metadata not gossiped yet")
			}
		}
	}
}

// nodeIP is the made-up address of a peer.
func nodeIP(id blocks.PeerID) net.IP {
	ip := make(net.IP, net.IPv6len)
	ip[0] = 0xfd
	copy(ip[1:], id.ID[:])
	return ip
}

func nodeAddr(id blocks.PeerID) *net.TCPAddr { return &net.TCPAddr{IP: nodeIP(id), Port: 1} }

func parseName(name string) (blocks.PeerID, error) {
	id, err := blocks.ParseID(name)
	return blocks.PeerID{ID: id}, err
}

// FinalAdvertiseAddr implements memberlist.Transport.
func (g *gossip) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	a := nodeAddr(g.peer.cfg.Self)
	return a.IP, a.Port, nil
}

// WriteTo implements memberlist.Transport; the library uses WriteToAddress.
func (g *gossip) WriteTo([]byte, string) (time.Time, error) {
	return time.Time{}, fmt.Errorf("%w: a packet without a peer", blocks.ErrInvalid)
}

// DialTimeout implements memberlist.Transport; the library uses DialAddressTimeout.
func (g *gossip) DialTimeout(string, time.Duration) (net.Conn, error) {
	return nil, fmt.Errorf("%w: a stream without a peer", blocks.ErrInvalid)
}

// WriteToAddress sends a packet at the best of efforts and does not wait for it.
func (g *gossip) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	id, err := parseName(a.Name)
	if err != nil {
		return time.Time{}, err
	}
	now := time.Now()
	addr, ok := g.peer.addr(id)
	if ok && g.reserve(id) {
		go g.send(id, addr, b)
	}
	return now, nil
}

func (g *gossip) reserve(id blocks.PeerID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ctx.Err() != nil || g.all >= packetsOut || g.out[id] >= packetsPerPeer {
		return false
	}
	g.all++
	g.out[id]++
	g.wg.Add(1)
	return true
}

func (g *gossip) send(id blocks.PeerID, addr string, b []byte) {
	defer g.wg.Done()
	ctx, cancel := context.WithTimeout(g.ctx, 2*g.peer.cfg.Timings.ProbeTimeout)
	defer cancel()
	if _, err := g.peer.cfg.Transport.Call(ctx, id, addr, Control, Call{Kind: KindGossip, Body: b}); err != nil && g.ctx.Err() == nil {
		g.peer.failed(id, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.all--
	if g.out[id]--; g.out[id] == 0 {
		delete(g.out, id)
	}
}

// serve takes a packet in.
func (g *gossip) serve(_ context.Context, from blocks.PeerID, req Call) (Call, error) {
	select {
	case g.packets <- &memberlist.Packet{Buf: bytes.Clone(req.Body), From: nodeAddr(from), Timestamp: time.Now()}:
	default: // the sender counts on nothing
	}
	return Call{Kind: req.Kind}, nil
}

// accept takes a stream in, or closes it.
func (g *gossip) accept(conn net.Conn) {
	if g.ctx.Err() == nil {
		select {
		case g.streams <- conn:
			return
		default:
		}
	}
	conn.Close()
}

// DialAddressTimeout opens a stream.
func (g *gossip) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	id, err := parseName(a.Name)
	if err != nil {
		return nil, err
	}
	addr, ok := g.peer.addr(id)
	if !ok {
		return nil, fmt.Errorf("%w: peer %s is unknown", blocks.ErrUnavailable, id.Short())
	}
	ctx, cancel := context.WithTimeout(g.ctx, timeout)
	defer cancel()
	conn, err := g.peer.cfg.Dial(ctx, id, addr)
	if err != nil {
		g.peer.failed(id, err)
		return nil, fmt.Errorf("stream to peer %s: %w", id.Short(), err)
	}
	return conn, nil
}

// PacketCh implements memberlist.Transport.
func (g *gossip) PacketCh() <-chan *memberlist.Packet { return g.packets }

// StreamCh implements memberlist.Transport.
func (g *gossip) StreamCh() <-chan net.Conn { return g.streams }

// Shutdown implements memberlist.Transport.
func (g *gossip) Shutdown() error {
	g.cancel()
	g.mu.Lock() // none reserves from here on
	defer g.mu.Unlock()
	return nil
}

// gossipLog passes the library's lines on; what matters is logged where it is handled.
type gossipLog struct{ log zerolog.Logger }

func (l gossipLog) Write(b []byte) (int, error) {
	l.log.Trace().Msg(string(bytes.TrimSpace(b)))
	return len(b), nil
}
