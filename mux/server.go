package mux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/hashicorp/yamux"
)

// acceptStreams serves the streams that the peer opens, until the session ends.
func (s *session) acceptStreams() {
	limit := s.m.cfg.MaxRaw
	for class := range classes {
		if laneOf(class) == s.lane {
			limit += maxStreams
		}
	}
	for {
		stream, err := s.yamux.AcceptStreamWithContext(s.ctx)
		if err != nil {
			return // the session ended: run knows why
		}
		s.mu.Lock()
		full := s.incoming >= limit
		if !full {
			s.incoming++
		}
		s.mu.Unlock()
		if full {
			stream.Close()
			continue
		}
		s.wg.Go(func() {
			err := s.serveStream(stream)
			s.mu.Lock()
			s.incoming--
			s.mu.Unlock()
			if errors.Is(err, ErrMalformed) || errors.Is(err, ErrTooLarge) {
				s.fail(fmt.Errorf("%w: %w", ErrUnreachable, err))
			}
		})
	}
}

// maxStreams bounds the streams of calls that a peer may open per class.
const maxStreams = 64

// serveStream reads what the stream is for, and serves it.
func (s *session) serveStream(stream *yamux.Stream) error {
	var scratch [headerSize]byte
	_ = stream.SetReadDeadline(time.Now().Add(firstFrame)) // never fails
	h, err := readHeader(stream, &scratch)
	_ = stream.SetReadDeadline(time.Time{})
	if err == nil && h.typ == typeRaw {
		s.serveRaw(stream)
		return nil
	}
	defer stream.Close()
	for ; err == nil; h, err = readHeader(stream, &scratch) {
		if h.typ != typeRequest || laneOf(h.class) != s.lane {
			return fmt.Errorf("%w: type %d, class %d on a stream of calls of lane %d", ErrMalformed, h.typ, h.class, s.lane)
		}
		if err := s.serveCall(stream, h); err != nil {
			return err
		}
	}
	return err
}

// serveRaw hands the stream on to its handler.
func (s *session) serveRaw(stream *yamux.Stream) {
	s.mu.Lock()
	full := s.rawIn >= s.m.cfg.MaxRaw
	if !full {
		s.rawIn++
	}
	s.mu.Unlock()
	if full || s.m.cfg.StreamHandler == nil || s.lane != laneControl {
		stream.Close()
		if !full {
			s.endRaw()
		}
		return
	}
	s.m.cfg.StreamHandler(s.peer, &rawConn{Stream: stream, ended: s.endRaw})
}

func (s *session) endRaw() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rawIn--
}

// serveCall reads one request, runs the handler and writes the response.
func (s *session) serveCall(stream io.ReadWriter, h header) error {
	arrived := time.Now()
	in := getBuffer(int(h.body) + int(h.payload))
	defer Release(in)
	if err := readFull(stream, in); err != nil {
		return err
	}
	ctx, cancel := s.beginCall(h, arrived)
	defer cancel()
	resp := header{typ: typeResponse, class: h.class, kind: h.kind, id: h.id}
	var r reply
	var err error
	if s.m.cfg.Handler == nil {
		err = ErrBusy
	} else {
		r, err = s.m.serve(ctx, s.peer, s.addr, h.class, h.kind, in[:h.body:h.body], in[h.body:])
	}
	switch {
	case errors.Is(err, ErrBusy):
		resp.status = statusBusy
	case err != nil:
		resp.status = statusCanceled
	case checkSize(r.body, r.payload) != nil:
		s.log.Error().Uint16("kind", h.kind).Int("body", len(r.body)).Int("payload", len(r.payload)).Msg("a response is too large")
		r, resp.status = reply{}, statusTooLarge
	default:
		resp.kind = r.kind
	}
	s.endCall(h.id)
	out := encodeFrame(resp, r.body, r.payload)
	defer Release(out)
	if r.payload != nil && s.m.cfg.Given != nil && s.m.cfg.Given(r.kind) {
		Release(r.payload) // copied into the frame
	}
	_, err = stream.Write(out)
	return err
}

// beginCall makes the context of an incoming call, which may have been cancelled already.
func (s *session) beginCall(h header, arrived time.Time) (context.Context, context.CancelFunc) {
	var ctx context.Context
	var cancel context.CancelFunc
	if h.deadline > 0 {
		ctx, cancel = context.WithDeadline(s.ctx, arrived.Add(time.Duration(h.deadline)*time.Millisecond))
	} else {
		ctx, cancel = context.WithCancel(s.ctx)
	}
	s.mu.Lock()
	s.running[h.id] = cancel
	early := slices.Contains(s.early[:], h.id)
	s.mu.Unlock()
	if early {
		cancel()
	}
	return ctx, cancel
}

func (s *session) endCall(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.running, id)
}

// cancelCall ends a call that the peer does not wait for any more. The request
// may still be on its way to the stream's goroutine.
func (s *session) cancelCall(id uint64) {
	s.mu.Lock()
	cancel := s.running[id]
	if cancel == nil {
		s.early[s.earlyNext%maxEarly] = id
		s.earlyNext++
	}
	s.mu.Unlock()
	if cancel != nil {
		cancel()
	}
}
