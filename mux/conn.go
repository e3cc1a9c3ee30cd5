package mux

import (
	"crypto/tls"
	"encoding/binary"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	gatherLimit = 256 << 10 // bytes gathered before they are written
	recordSize  = 16 << 10  // clear bytes of a full TLS record
	yamuxHeader = 12
)

// gatherConn lies under TLS and gathers the records of one yamux frame, which
// TLS writes one by one, into one write. mu orders the bytes of the socket,
// so it is held while they are written.
type gatherConn struct {
	net.Conn
	mu     sync.Mutex
	gather bool
	buf    []byte
}

func (c *gatherConn) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gather = true
}

func (c *gatherConn) flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gather = false
	return c.writeOut()
}

func (c *gatherConn) writeOut() error {
	_, err := c.Conn.Write(c.buf)
	c.buf = c.buf[:0]
	return err
}

func (c *gatherConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.gather {
		return c.Conn.Write(p)
	}
	c.buf = append(c.buf, p...)
	if len(c.buf) >= gatherLimit {
		if err := c.writeOut(); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// wireConn is what yamux writes to and reads from. yamux writes the header of
// a data frame apart from its content: the header is held back and put in
// front of the content, in the same record and the same write.
type wireConn struct {
	*tls.Conn
	raw     *gatherConn
	reads   atomic.Uint64 // successful reads: signs of life
	holding bool          // Write is called by one goroutine only
	first   []byte        // the held header, then the first record
}

func newWireConn(t *tls.Conn, raw *gatherConn) *wireConn {
	return &wireConn{Conn: t, raw: raw, first: make([]byte, yamuxHeader, recordSize)}
}

func (c *wireConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.reads.Add(1)
	}
	return n, err
}

func (c *wireConn) Write(p []byte) (int, error) {
	if !c.holding {
		const typeData = 0
		if len(p) == yamuxHeader && p[1] == typeData && binary.BigEndian.Uint32(p[8:]) > 0 {
			copy(c.first[:yamuxHeader], p)
			c.holding = true
			return len(p), nil
		}
		return c.Conn.Write(p)
	}
	c.holding = false
	n := min(len(p), recordSize-yamuxHeader)
	c.first = append(c.first[:yamuxHeader], p[:n]...)
	c.raw.begin()
	_, err := c.Conn.Write(c.first)
	if err == nil && n < len(p) {
		_, err = c.Conn.Write(p[n:])
	}
	if ferr := c.raw.flush(); err == nil {
		err = ferr
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close closes the socket at once, without the farewell of TLS, which could wait: sessions
// have one of their own.
func (c *wireConn) Close() error { return c.raw.Conn.Close() }

func tuneSocket(c net.Conn) {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	// A refusal costs speed and nothing else. The buffers are left to the
	// kernel: a fixed size would end its tuning, at a lower bound.
	_ = t.SetNoDelay(true)
	_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3})
}
