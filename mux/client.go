package mux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// pool holds the streams of a class for own calls; session.mu guards it.
type pool struct {
	free    []*caller // the one used last is used next
	open    int
	waiters []chan *caller // first come, first served; each of capacity 1
}

// caller owns one stream and runs one call after the other on it. Its goroutine
// alone touches the stream, so a call can be left at any moment; what it still does is then
// finished, or undone, here.
type caller struct {
	s      *session
	class  uint8
	jobs   chan *job // capacity 1: there is never a second
	stream *yamux.Stream

	mu    sync.Mutex
	phase phase
	cur   *job
}

type phase uint8

const (
	idle phase = iota
	writing
	reading
)

// job is one call. done has capacity 1, so nobody waits for a caller who left.
type job struct {
	id    uint64
	frame []byte // pooled; belongs to the caller goroutine
	done  chan result
	left  bool // guarded by caller.mu: nobody waits any more
}

type result struct {
	reply
	err error
}

// call runs one call on the session.
func (s *session) call(ctx context.Context, class uint8, kind uint16, body, payload []byte) (reply, error) {
	c, err := s.acquire(ctx, class)
	if err != nil {
		return reply{}, err
	}
	h := header{typ: typeRequest, class: class, kind: kind, id: s.nextID.Add(1)}
	if deadline, ok := ctx.Deadline(); ok {
		h.deadline = deadlineMillis(time.Until(deadline))
	}
	j := &job{id: h.id, frame: encodeFrame(h, body, payload), done: make(chan result, 1)}
	c.jobs <- j
	select {
	case r := <-j.done:
		return r.reply, r.err
	case <-ctx.Done():
		c.leave(j)
		return reply{}, ctx.Err()
	case <-s.ctx.Done():
	}
	select {
	case r := <-j.done:
		return r.reply, r.err
	default:
		return reply{}, s.broken()
	}
}

// acquire takes a free stream, makes one, or waits for one.
func (s *session) acquire(ctx context.Context, class uint8) (*caller, error) {
	s.mu.Lock()
	if s.retired || s.ctx.Err() != nil {
		s.mu.Unlock()
		return nil, errReplaced
	}
	p := &s.pools[class]
	if n := len(p.free); n > 0 {
		c := p.free[n-1]
		p.free = p.free[:n-1]
		s.outbound++
		s.mu.Unlock()
		return c, nil
	}
	if p.open < s.m.cfg.Streams[class] {
		c := s.newCaller(class)
		s.outbound++
		s.mu.Unlock()
		return c, nil
	}
	if len(p.waiters) >= s.m.cfg.MaxWaiting {
		s.mu.Unlock()
		return nil, fmt.Errorf("%w: %d calls of class %d wait for a stream", ErrBusy, s.m.cfg.MaxWaiting, class)
	}
	turn := make(chan *caller, 1)
	p.waiters = append(p.waiters, turn)
	s.outbound++
	s.mu.Unlock()
	select {
	case c := <-turn:
		return c, nil
	case <-ctx.Done():
		s.stopWaiting(class, turn)
		return nil, ctx.Err()
	case <-s.ctx.Done():
		return nil, errReplaced // not sent: another session may take it
	}
}

// newCaller adds a stream to the class; s.mu is held. The stream itself is opened by the caller's
// goroutine, since opening may wait.
func (s *session) newCaller(class uint8) *caller {
	c := &caller{s: s, class: class, jobs: make(chan *job, 1)}
	s.pools[class].open++
	s.wg.Go(c.run)
	return c
}

// stopWaiting gives up a place in the queue, or the stream that came at the same moment.
func (s *session) stopWaiting(class uint8, turn chan *caller) {
	s.mu.Lock()
	p := &s.pools[class]
	i := slices.Index(p.waiters, turn)
	if i >= 0 {
		p.waiters = slices.Delete(p.waiters, i, i+1)
		s.outbound--
	}
	s.mu.Unlock()
	if i < 0 {
		s.release(<-turn, true)
		return
	}
	s.maybeRetire()
}

// release ends a call: the stream goes to who waits for it, or back to the pool; a broken one
// is replaced if somebody waits.
func (s *session) release(c *caller, good bool) {
	s.mu.Lock()
	p := &s.pools[c.class]
	s.outbound--
	if !good {
		p.open--
		if len(p.waiters) > 0 && s.ctx.Err() == nil {
			c, good = s.newCaller(c.class), true
		}
	}
	switch {
	case !good:
	case len(p.waiters) > 0:
		p.waiters[0] <- c
		p.waiters = slices.Delete(p.waiters, 0, 1)
	default:
		p.free = append(p.free, c)
	}
	last := s.retired && s.outbound == 0
	s.mu.Unlock()
	if last {
		s.maybeRetire()
	}
}

// run serves one job after the other until the stream breaks or the session ends.
func (c *caller) run() {
	for {
		select {
		case j := <-c.jobs:
			r, good := c.do(j)
			c.s.release(c, good)
			j.done <- r
			if !good {
				c.discard()
				return
			}
		case <-c.s.ctx.Done():
			c.discard()
			return
		}
	}
}

func (c *caller) discard() {
	if c.stream != nil {
		c.stream.Close()
	}
}

// do sends the request and reads the response; good says that the stream can be used again.
func (c *caller) do(j *job) (r result, good bool) {
	defer func() { Release(j.frame) }()
	if c.stream == nil {
		stream, err := c.s.yamux.OpenStream()
		if err != nil {
			return result{err: c.s.broken()}, false
		}
		c.stream = stream
	}
	if !c.enter(j, writing) {
		c.enter(nil, idle)
		return result{err: context.Canceled}, true // left before it was sent
	}
	if _, err := c.stream.Write(j.frame); err != nil {
		c.enter(nil, idle)
		return result{err: c.s.broken()}, false
	}
	if !c.enter(j, reading) { // left while it was being written
		c.drain(j)
	}
	r, err := c.receive(j)
	c.enter(nil, idle)
	if err != nil {
		if errors.Is(err, ErrMalformed) || errors.Is(err, ErrTooLarge) {
			c.s.fail(fmt.Errorf("%w: %w", ErrUnreachable, err))
		}
		return result{err: c.s.broken()}, false
	}
	return r, true
}

// enter changes the phase, and reports whether somebody still waits for the job.
func (c *caller) enter(j *job, p phase) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cur, c.phase = j, p
	if p == idle && c.stream != nil {
		_ = c.stream.SetDeadline(time.Time{}) // never fails
	}
	return j == nil || !j.left
}

// leave is called by who does not want to wait for the job any longer.
func (c *caller) leave(j *job) {
	c.mu.Lock()
	j.left = true
	var p phase
	if c.cur == j {
		p = c.phase
	}
	if p == writing {
		// A write that waits for the peer's window is given up; one that does not will end by itself.
		_ = c.stream.SetWriteDeadline(time.Now())
	}
	if p == reading {
		c.drain(j)
	}
	c.mu.Unlock()
}

// drain asks the peer to stop the call, and gives it a while to answer nevertheless: then
// the stream is in step again.
func (c *caller) drain(j *job) {
	_ = c.stream.SetReadDeadline(time.Now().Add(c.s.m.cfg.DrainTimeout))
	c.s.tell(header{typ: typeCancel, id: j.id})
}

// receive reads the response. Its ID must be that of the request: then it cannot be
// the answer of another call.
func (c *caller) receive(j *job) (result, error) {
	var scratch [headerSize]byte
	h, err := readHeader(c.stream, &scratch)
	if err != nil {
		return result{}, err
	}
	if h.typ != typeResponse || h.id != j.id {
		return result{}, fmt.Errorf("%w: type %d, ID %d where the response to %d should be", ErrMalformed, h.typ, h.id, j.id)
	}
	r := result{reply: reply{kind: h.kind}}
	if h.body > 0 {
		r.body = make([]byte, h.body)
		if err := readFull(c.stream, r.body); err != nil {
			return result{}, err
		}
	}
	if h.payload > 0 {
		r.payload = getBuffer(int(h.payload))
		if err := readFull(c.stream, r.payload); err != nil {
			return result{}, err
		}
	}
	switch h.status {
	case statusBusy:
		r.err = fmt.Errorf("%w at the peer", ErrBusy)
	case statusCanceled:
		r.err = fmt.Errorf("%w at the peer", context.DeadlineExceeded)
	case statusTooLarge:
		r.err = fmt.Errorf("%w: the response", ErrTooLarge)
	}
	return r, nil
}

func readFull(r io.Reader, b []byte) error {
	_, err := io.ReadFull(r, b)
	return err
}

// rawConn is a stream of Dial.
type rawConn struct {
	*yamux.Stream
	once  sync.Once
	ended func()
}

var _ net.Conn = (*rawConn)(nil)

// Close ends both directions here; the other side reads what was written, then EOF.
func (c *rawConn) Close() error {
	c.once.Do(c.ended)
	err := c.Stream.Close()
	_ = c.Stream.SetReadDeadline(time.Now()) // frees a Read that waits; never fails
	return err
}

// dialRaw opens a stream for the caller's own use.
func (s *session) dialRaw(ctx context.Context) (net.Conn, error) {
	s.mu.Lock()
	if s.retired || s.ctx.Err() != nil {
		s.mu.Unlock()
		return nil, errReplaced
	}
	if s.rawOut >= s.m.cfg.MaxRaw {
		s.mu.Unlock()
		return nil, fmt.Errorf("%w: %d streams are open", ErrBusy, s.m.cfg.MaxRaw)
	}
	s.rawOut++
	s.outbound++
	s.mu.Unlock()
	type opened struct {
		conn *rawConn
		err  error
	}
	done := make(chan opened, 1)
	s.wg.Go(func() {
		conn, err := s.openRaw()
		done <- opened{conn, err}
	})
	select {
	case o := <-done:
		if o.err != nil {
			return nil, o.err
		}
		return o.conn, nil
	case <-ctx.Done():
		s.wg.Go(func() {
			if o := <-done; o.err == nil {
				o.conn.Close()
			}
		})
		return nil, ctx.Err()
	}
}

// openRaw does what may wait for the network.
func (s *session) openRaw() (*rawConn, error) {
	ended := func() {
		s.mu.Lock()
		s.rawOut--
		s.outbound--
		s.mu.Unlock()
		s.maybeRetire()
	}
	stream, err := s.yamux.OpenStream()
	if err != nil {
		ended()
		return nil, s.broken()
	}
	conn := &rawConn{Stream: stream, ended: ended}
	var b [headerSize]byte
	h := header{typ: typeRaw}
	h.encode(b[:])
	if _, err := stream.Write(b[:]); err != nil {
		conn.Close()
		return nil, s.broken()
	}
	return conn, nil
}
