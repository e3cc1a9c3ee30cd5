package overlay

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/rs/zerolog"
)

// Bounds of what a peer may say of itself.
const (
	MaxVnodes = 256   // virtual nodes of one peer
	MaxDrives = 64    // drives of one peer
	maxZone   = 64    // bytes of a zone's name
	maxAddr   = 255   // bytes of an address
	maxPeers  = 16384 // peers in the table; more are not taken up
)

// Store keeps what a peer must know after a restart: the peers of the ring,
// also those that are down. The bytes are opaque and replaced whole.
type Store interface {
	// Load returns what Save was given last, nil if nothing.
	Load() ([]byte, error)
	// Save replaces it, durably and atomically.
	Save(state []byte) error
}

// Config is what a peer needs.
type Config struct {
	Ring     blocks.ID
	Self     blocks.PeerID
	Addr     string // host:port under which other peers reach this one
	Zone     string // failure domain above the peer, may be empty
	Capacity uint64 // bytes offered; 0 for a client
	Vnodes   int    // 0 for a client
	Drives   int    // virtual node i lies on drive i mod Drives
	K, M     int    // the ring's code: the successor list spans max(K+M, 2M+1)+2 distinct peers

	Transport Transport
	// Dial opens a stream for a full exchange of membership; what arrives at
	// the other end goes to its AcceptStream.
	Dial  func(ctx context.Context, peer blocks.PeerID, addr string) (net.Conn, error)
	Seeds []string // as for Join; tried while no other peer is alive
	Store Store    // nil: nothing survives a restart

	Rand    io.Reader // nil: crypto/rand
	Log     zerolog.Logger
	Timings Timings // fields that are zero have their default
}

// Timings are the time scales; see DefaultTimings.
type Timings struct {
	DownAfter   time.Duration // silent so long since suspected: down
	RepairAfter time.Duration // not heard of by anybody for so long: gone

	ProbeInterval  time.Duration // membership: one peer is probed in each
	ProbeTimeout   time.Duration // membership: an answer takes at most so long
	GossipInterval time.Duration // membership: news are passed on in each
	SyncInterval   time.Duration // membership: whole tables are compared in each
	PingTimeout    time.Duration // one small call of the ring to one peer

	StabilizeMin time.Duration // between rounds of Chord while the ring changes
	StabilizeMax time.Duration // and while it does not
	Lookup       time.Duration // a lookup without a deadline of its own
}

// DefaultTimings suit peers on a LAN or a good WAN.
func DefaultTimings() Timings {
	return Timings{
		DownAfter:      15 * time.Second,       // shorter than a reboot, longer than a hiccup
		RepairAfter:    15 * time.Minute,       // longer than a reboot: copying all data of a peer is dear
		ProbeInterval:  time.Second,            // as memberlist suggests for a LAN
		ProbeTimeout:   500 * time.Millisecond, // the 99th percentile of a round trip, with a loaded machine in mind
		GossipInterval: 250 * time.Millisecond,
		SyncInterval:   30 * time.Second,
		PingTimeout:    time.Second,
		StabilizeMin:   time.Second,
		StabilizeMax:   8 * time.Second,
		Lookup:         10 * time.Second,
	}
}

func (t *Timings) fill() {
	d := DefaultTimings()
	for _, f := range []struct{ v, def *time.Duration }{
		{&t.DownAfter, &d.DownAfter}, {&t.RepairAfter, &d.RepairAfter},
		{&t.ProbeInterval, &d.ProbeInterval}, {&t.ProbeTimeout, &d.ProbeTimeout},
		{&t.GossipInterval, &d.GossipInterval}, {&t.SyncInterval, &d.SyncInterval},
		{&t.PingTimeout, &d.PingTimeout}, {&t.StabilizeMin, &d.StabilizeMin},
		{&t.StabilizeMax, &d.StabilizeMax}, {&t.Lookup, &d.Lookup},
	} {
		if *f.v <= 0 {
			*f.v = *f.def
		}
	}
}

// Validate fills in what has a default and says what is wrong with the rest.
func (c *Config) Validate() error {
	c.Timings.fill()
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: overlay: %s", blocks.ErrInvalid, fmt.Sprintf(format, args...))
	}
	switch {
	case c.Ring.IsZero() || c.Self.IsZero():
		return bad("the ring and the peer need an ID")
	case c.Transport == nil || c.Dial == nil:
		return bad("no transport")
	case c.Vnodes < 0 || c.Vnodes > MaxVnodes:
		return bad("%d virtual nodes, at most %d", c.Vnodes, MaxVnodes)
	case c.Drives < 0 || c.Drives > MaxDrives:
		return bad("%d drives, at most %d", c.Drives, MaxDrives)
	case len(c.Zone) > maxZone:
		return bad("the zone %q is longer than %d bytes", c.Zone, maxZone)
	case len(c.Addr) > maxAddr:
		return bad("the address %q is longer than %d bytes", c.Addr, maxAddr)
	case c.K < 1 || c.M < 0 || c.K+c.M > 255:
		return bad("the code %d+%d", c.K, c.M)
	case (c.Capacity == 0) != (c.Vnodes == 0):
		return bad("capacity %d with %d virtual nodes", c.Capacity, c.Vnodes)
	}
	if _, _, err := net.SplitHostPort(c.Addr); err != nil {
		return bad("the address %q is not host:port", c.Addr)
	}
	return nil
}

// span is how many distinct peers a successor list covers.
func (c *Config) span() int { return max(c.K+c.M, 2*c.M+1) + 2 }
