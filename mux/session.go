package mux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
	"github.com/rs/zerolog"
)

const (
	windowSize    = 1 << 20 // receive window of a stream, bytes
	controlQueue  = 256     // frames that wait for the control stream
	goodbyeWait   = time.Second
	firstFrame    = 10 * time.Second // a stream must say what it is for
	closeWait     = 10 * time.Second // for the other side's end of a closed stream
	writeWait     = 10 * time.Second // yamux gives a stuck connection up; the heartbeat is sooner
	maxEarly      = 64               // cancellations remembered that came before their call
	rttWeight     = 8                // of the past, in the moving average of round trips
	acceptBacklog = 256
)

// session is a connection to a peer.
type session struct {
	m        *Mux
	log      zerolog.Logger
	peer     [20]byte
	instance uint64
	lane     lane
	addr     string // where the peer was dialled, or says that it listens
	dialled  bool   // by this side
	since    time.Time
	conn     *wireConn
	yamux    *yamux.Session
	first    *yamux.Stream   // the control stream, if this side dialled
	ctx      context.Context // ends with the session
	cancel   context.CancelCauseFunc
	wg       sync.WaitGroup // all goroutines but run
	frames   chan header    // to the control stream
	farewell chan struct{}  // closed when a goodbye has been written
	rtt      atomic.Int64   // ns, moving average
	nextID   atomic.Uint64

	mu           sync.Mutex
	pools        [classes]pool
	outbound     int  // own calls and raw streams, waiting ones included
	retired      bool // no new calls of ours
	retireSent   bool
	retireGot    bool
	rawIn        int
	rawOut       int
	incoming     int // accepted streams of calls
	running      map[uint64]context.CancelFunc
	early        [maxEarly]uint64 // IDs cancelled before their call was seen
	earlyNext    int
	farewellOnce sync.Once
}

// yamuxLog passes the library's remarks on, for debugging only.
type yamuxLog struct{ log zerolog.Logger }

func (l yamuxLog) Print(v ...any)                 { l.log.Debug().Msg(fmt.Sprint(v...)) }
func (l yamuxLog) Println(v ...any)               { l.log.Debug().Msg(fmt.Sprint(v...)) }
func (l yamuxLog) Printf(format string, v ...any) { l.log.Debug().Msgf(format, v...) }

func (m *Mux) newSession(conn *wireConn, id [20]byte, l lane, instance uint64, addr string, dialled bool) (*session, error) {
	s := &session{
		m: m, log: m.log.With().Hex("peer", id[:4]).Uint8("lane", uint8(l)).Logger(),
		peer: id, instance: instance, lane: l, addr: addr, dialled: dialled, since: time.Now(), conn: conn,
		frames: make(chan header, controlQueue), farewell: make(chan struct{}), running: map[uint64]context.CancelFunc{},
	}
	cfg := yamux.DefaultConfig()
	cfg.LogOutput, cfg.Logger = nil, yamuxLog{s.log}
	cfg.EnableKeepAlive = false
	cfg.MaxStreamWindowSize = windowSize
	cfg.AcceptBacklog = acceptBacklog
	cfg.StreamCloseTimeout = closeWait
	cfg.ConnectionWriteTimeout = writeWait
	var err error
	if dialled {
		s.yamux, err = yamux.Client(conn, cfg)
	} else {
		s.yamux, err = yamux.Server(conn, cfg)
	}
	if err != nil {
		return nil, fmt.Errorf("make a session: %w", err)
	}
	if dialled { // the first stream, before any call can open one
		if s.first, err = s.yamux.OpenStream(); err != nil {
			s.yamux.Close()
			return nil, fmt.Errorf("%w: no control stream: %w", ErrUnreachable, err)
		}
	}
	s.ctx, s.cancel = context.WithCancelCause(m.ctx)
	return s, nil
}

// fail ends the session; the first reason counts. It does not wait.
func (s *session) fail(why error) {
	s.cancel(why)
	s.conn.Close()
}

// abort ends a session that was never run.
func (s *session) abort(why error) {
	s.fail(why)
	s.yamux.Close()
}

func (s *session) usable() bool {
	if s.ctx.Err() != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.retired
}

// run owns the session's goroutines and returns when they have ended.
func (s *session) run() {
	s.log.Debug().Str("addr", s.addr).Bool("dialled", s.dialled).Msg("session up")
	s.m.notify(Event{Type: Connected, Peer: s.peer, Addr: s.addr})
	s.wg.Go(s.control)
	s.wg.Go(s.watch)
	<-s.ctx.Done()
	s.m.remove(s)
	s.conn.Close()
	s.report(context.Cause(s.ctx))
	s.yamux.Close()
	s.wg.Wait()
}

// report tells the failure detector why the session ended, if it matters.
func (s *session) report(why error) {
	s.log.Debug().AnErr("why", why).Msg("session down")
	s.mu.Lock()
	over := s.retired || s.retireGot // another session tells how the peer is
	s.mu.Unlock()
	over = over || s.m.newer(s)
	switch {
	case errors.Is(why, errGoodbye):
		s.m.notify(Event{Type: Goodbye, Peer: s.peer, Addr: s.addr, Err: why})
	case over, errors.Is(why, errRetired), errors.Is(why, context.Canceled):
	default:
		s.m.notify(Event{Type: Broken, Peer: s.peer, Addr: s.addr, Err: why})
	}
}

// broken is the error of a call whose session ended.
func (s *session) broken() error {
	why := context.Cause(s.ctx)
	switch {
	case s.m.ctx.Err() != nil:
		return ErrClosed
	case why == nil:
		return fmt.Errorf("%w: the stream broke", ErrUnreachable)
	case errors.Is(why, ErrUnreachable):
		return why
	}
	return fmt.Errorf("%w: %w", ErrUnreachable, why)
}

// control runs the first stream of the session, and starts the acceptance of the
// others. It is what ends the session when the connection breaks: only after it has read all
// that came before is it known whether that was meant.
func (s *session) control() {
	stream := s.first
	if stream == nil {
		var err error
		if stream, err = s.yamux.AcceptStreamWithContext(s.ctx); err != nil {
			s.fail(fmt.Errorf("%w: no control stream: %w", ErrUnreachable, err))
			return
		}
	}
	s.wg.Go(func() { s.sendControl(stream) })
	s.wg.Go(s.acceptStreams)
	err := s.receiveControl(stream)
	s.fail(fmt.Errorf("%w: the connection broke: %w", ErrUnreachable, err))
}

// tell queues a frame for the control stream; if the queue is full the frame is
// lost, which costs a heartbeat or a late cancellation.
func (s *session) tell(h header) {
	select {
	case s.frames <- h:
	default:
	}
}

func (s *session) sendControl(stream io.Writer) {
	var b [headerSize]byte
	for {
		select {
		case h := <-s.frames:
			h.encode(b[:])
			if _, err := stream.Write(b[:]); err != nil {
				s.yamux.Close() // which ends control
				return
			}
			if h.typ == typeGoodbye {
				s.farewellOnce.Do(func() { close(s.farewell) })
			}
		case <-s.ctx.Done():
			return
		}
	}
}

func (s *session) receiveControl(stream io.Reader) error {
	var scratch [headerSize]byte
	for {
		h, err := readHeader(stream, &scratch)
		if err != nil {
			return err
		}
		switch h.typ {
		case typePing:
			h.typ = typePong
			s.tell(h)
		case typePong:
			s.measured(time.Since(s.since) - time.Duration(h.id))
		case typeCancel:
			s.cancelCall(h.id)
		case typeRetire:
			s.mu.Lock()
			s.retireGot = true
			s.mu.Unlock()
			s.maybeRetire()
		case typeGoodbye:
			s.fail(errGoodbye)
		default:
			return fmt.Errorf("%w: type %d on the control stream", ErrMalformed, h.typ)
		}
	}
}

func (s *session) measured(rtt time.Duration) {
	if rtt <= 0 || rtt > time.Hour {
		return
	}
	old := s.rtt.Load()
	if old == 0 {
		s.rtt.Store(int64(rtt))
		return
	}
	s.rtt.Store(old + (int64(rtt)-old)/rttWeight)
}

// watch sends heartbeats and ends the session when nothing at all has come from
// the peer for so many of them. It counts ticks, not time: a process
// that was stopped itself does not blame its peers.
func (s *session) watch() {
	tick := time.NewTicker(s.m.cfg.Heartbeat)
	defer tick.Stop()
	silent, seen := 0, s.conn.reads.Load()
	for {
		s.tell(header{typ: typePing, id: uint64(time.Since(s.since))})
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			return
		}
		if n := s.conn.reads.Load(); n != seen {
			silent, seen = 0, n
			continue
		}
		if silent++; silent >= s.m.cfg.Silence {
			s.fail(fmt.Errorf("%w: silent for %v", ErrUnreachable, time.Duration(silent)*s.m.cfg.Heartbeat))
			return
		}
	}
}

// goodbye tells the peer that this side shuts down, and waits a moment until
// that is written.
func (s *session) goodbye() {
	s.tell(header{typ: typeGoodbye})
	timer := time.NewTimer(goodbyeWait)
	defer timer.Stop()
	select {
	case <-s.farewell:
	case <-s.ctx.Done():
	case <-timer.C:
	}
}

// retire ends the use of a session that another one replaces: no new calls of ours; once
// both sides have finished theirs it is closed.
func (s *session) retire() {
	s.mu.Lock()
	s.retired = true
	s.mu.Unlock()
	s.maybeRetire()
}

func (s *session) maybeRetire() {
	s.mu.Lock()
	send := s.retired && s.outbound == 0 && !s.retireSent
	s.retireSent = s.retireSent || send
	over := s.retireSent && s.retireGot
	s.mu.Unlock()
	if send {
		s.tell(header{typ: typeRetire})
	}
	if over && !send {
		s.fail(errRetired)
	}
}
