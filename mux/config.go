package mux

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/rs/zerolog"
)

// Classes of calls, the most urgent first. The first two travel apart from the others.
const (
	Control uint8 = iota
	Metadata
	Data
	Repair
	classes
)

// A lane is a session of its own.
type lane uint8

const (
	laneControl lane = iota
	laneBulk
	lanes
)

func laneOf(class uint8) lane {
	if class <= Metadata {
		return laneControl
	}
	return laneBulk
}

// Handler serves one call; it is called concurrently. from is authenticated,
// fromAddr is where from says that it listens ("" if it does not). ctx ends with the
// caller's deadline, when the caller gives up and when the session breaks.
type Handler func(ctx context.Context, from [20]byte, fromAddr string, class uint8, kind uint16, body, payload []byte) (rkind uint16, rbody, rpayload []byte)

// StreamHandler gets the streams that peers open with Dial. It owns conn and must close it.
type StreamHandler func(from [20]byte, conn net.Conn)

// EventType says what happened to a peer.
type EventType uint8

const (
	Connected   EventType = iota // a session is up
	Broken                       // a session ended without a farewell, and no newer one is up: crash, network, silence
	Goodbye                      // the peer shut down on purpose
	Unreachable                  // a dial failed or was refused
)

// Event is what a failure detector wants to hear at once.
type Event struct {
	Type EventType
	Peer [20]byte // zero if a dial without an expected ID failed
	Addr string
	Err  error // why; nil for Connected
}

// Config of a Mux. Zero values mean the defaults.
type Config struct {
	Identity   *Identity
	RingID     [20]byte
	RingSecret []byte // SecretSize bytes

	// Listen is the host:port to listen on; "" does not listen. Listener takes
	// its place if set, and belongs to the Mux then.
	Listen   string
	Listener net.Listener
	// Advertise is the host:port that peers are told; "" is the listener's. Its host may be
	// missing or unspecified: peers then put in the address that they see.
	Advertise string

	Handler       Handler       // nil: calls are answered with ErrBusy
	StreamHandler StreamHandler // nil: streams are closed
	// Given reports whether the handler gives away the payloads of its responses of this kind: they are whole, nobody
	// else has them, and they are used again for Buffer once they have been sent. nil: it never does.
	Given func(rkind uint16) bool
	// Notify hears of sessions; it must return quickly and not call the Mux.
	Notify func(Event)

	Log  zerolog.Logger
	Rand io.Reader // nil: crypto/rand

	DialTimeout      time.Duration // TCP connect: 3 s
	HandshakeTimeout time.Duration // TLS and hello: 5 s
	Heartbeat        time.Duration // interval: 1 s
	Silence          int           // heartbeats without a byte from the peer until the session is dead: 5
	CallTimeout      time.Duration // of calls whose context has no deadline: 60 s
	DrainTimeout     time.Duration // how long a cancelled call may keep its stream: 5 s

	MaxSessions   int          // 2048
	MaxHandshakes int          // incoming, at the same time: 256
	MaxRaw        int          // streams of Dial per session, each way: 32
	MaxWaiting    int          // calls per class and session that wait for a stream: 1024
	Streams       [classes]int // of calls per session, each way: 16, 32, 8, 4
	Serving       [classes]int // handlers at the same time, over all sessions: 256, 512, 128, 32
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// withDefaults fills what is not set and checks the rest.
func (c Config) withDefaults() (Config, error) {
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	setDefault(&c.DialTimeout, 3*time.Second)
	setDefault(&c.HandshakeTimeout, 5*time.Second)
	setDefault(&c.Heartbeat, time.Second)
	setDefault(&c.Silence, 5)
	setDefault(&c.CallTimeout, time.Minute)
	setDefault(&c.DrainTimeout, 5*time.Second)
	setDefault(&c.MaxSessions, 2048)
	setDefault(&c.MaxHandshakes, 256)
	setDefault(&c.MaxRaw, 32)
	setDefault(&c.MaxWaiting, 1024)
	for class := range classes {
		setDefault(&c.Streams[class], [classes]int{16, 32, 8, 4}[class])
		setDefault(&c.Serving[class], [classes]int{256, 512, 128, 32}[class])
	}
	if c.Identity == nil {
		return c, fmt.Errorf("mux: no identity given")
	}
	if len(c.Advertise) > maxAddr {
		return c, fmt.Errorf("mux: the advertised address %q is longer than %d bytes", c.Advertise, maxAddr)
	}
	for name, v := range map[string]int64{
		"DialTimeout": int64(c.DialTimeout), "HandshakeTimeout": int64(c.HandshakeTimeout), "Heartbeat": int64(c.Heartbeat),
		"Silence": int64(c.Silence), "CallTimeout": int64(c.CallTimeout), "DrainTimeout": int64(c.DrainTimeout),
		"MaxSessions": int64(c.MaxSessions), "MaxHandshakes": int64(c.MaxHandshakes), "MaxRaw": int64(c.MaxRaw), "MaxWaiting": int64(c.MaxWaiting),
	} {
		if v < 0 {
			return c, fmt.Errorf("mux: %s is negative", name)
		}
	}
	for class := range classes {
		if c.Streams[class] < 0 || c.Streams[class] > maxStreams || c.Serving[class] < 0 {
			return c, fmt.Errorf("mux: a limit of class %d is negative, or it has more than %d streams", class, maxStreams)
		}
	}
	return c, nil
}
