package mux

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"time"
)

// Limits of one message, checked by the sender and, before it allocates
// anything, by the receiver. The body must hold a large directory's snapshot, the
// payload a shard of the largest stripe when the ring has one data shard, with its seals.
const (
	MaxBody    = 8 << 20
	MaxPayload = 9 << 20
)

// A frame is a header of 28 bytes, big-endian, a body and a payload:
//
//	 0  2  magic "mF"
//	 2  1  version 1
//	 3  1  type
//	 4  1  class (of a hello: lane)
//	 5  1  status of a response or a hello, else 0
//	 6  2  kind of call
//	 8  8  request ID (hello: instance; ping and pong: opaque)
//	16  4  deadline of a request in ms from its arrival, 0: none
//	20  4  length of the body
//	24  4  length of the payload
const (
	headerSize   = 28
	frameMagic   = "mF"
	frameVersion = 1
)

type frameType uint8

const (
	typeHello frameType = iota + 1
	typeRequest
	typeResponse
	typeCancel
	typePing
	typePong
	typeRetire
	typeGoodbye
	typeRaw
	typeEnd // one past the last
)

type status uint8

const (
	statusOK       status = iota
	statusBusy            // no room for the call, or for the session
	statusCanceled        // the call's deadline passed, or it was cancelled, before it was served
	statusTooLarge        // the response exceeds the limits
	statusRefused         // the session is refused for another reason
	statusEnd
)

type header struct {
	typ      frameType
	class    uint8
	status   status
	kind     uint16
	id       uint64
	deadline uint32
	body     uint32
	payload  uint32
}

func (h *header) encode(b []byte) {
	copy(b, frameMagic)
	b[2], b[3], b[4], b[5] = frameVersion, byte(h.typ), h.class, byte(h.status)
	binary.BigEndian.PutUint16(b[6:], h.kind)
	binary.BigEndian.PutUint64(b[8:], h.id)
	binary.BigEndian.PutUint32(b[16:], h.deadline)
	binary.BigEndian.PutUint32(b[20:], h.body)
	binary.BigEndian.PutUint32(b[24:], h.payload)
}

// decodeHeader reads headerSize bytes and checks everything that can be
// checked without knowing the state of the session.
func decodeHeader(b []byte) (header, error) {
	h := header{
		typ: frameType(b[3]), class: b[4], status: status(b[5]),
		kind:     binary.BigEndian.Uint16(b[6:]),
		id:       binary.BigEndian.Uint64(b[8:]),
		deadline: binary.BigEndian.Uint32(b[16:]),
		body:     binary.BigEndian.Uint32(b[20:]),
		payload:  binary.BigEndian.Uint32(b[24:]),
	}
	maxBody, maxPayload := uint32(0), uint32(0)
	switch h.typ {
	case typeHello:
		maxBody = maxAddr
	case typeRequest, typeResponse:
		maxBody, maxPayload = MaxBody, MaxPayload
	}
	switch {
	case string(b[:2]) != frameMagic:
		return header{}, fmt.Errorf("%w: starts with %x", ErrMalformed, b[:2])
	case b[2] != frameVersion:
		return header{}, fmt.Errorf("%w: version %d, not %d", ErrMalformed, b[2], frameVersion)
	case h.typ == 0 || h.typ >= typeEnd:
		return header{}, fmt.Errorf("%w: type %d", ErrMalformed, h.typ)
	case h.class >= classes:
		return header{}, fmt.Errorf("%w: class %d", ErrMalformed, h.class)
	case h.status >= statusEnd:
		return header{}, fmt.Errorf("%w: status %d", ErrMalformed, h.status)
	case h.body > maxBody || h.payload > maxPayload:
		return header{}, fmt.Errorf("%w: type %d with a body of %d bytes and a payload of %d", ErrTooLarge, h.typ, h.body, h.payload)
	}
	return h, nil
}

func readHeader(r io.Reader, scratch *[headerSize]byte) (header, error) {
	if _, err := io.ReadFull(r, scratch[:]); err != nil {
		return header{}, err
	}
	return decodeHeader(scratch[:])
}

// checkSize is the sender's side of the limits.
func checkSize(body, payload []byte) error {
	if len(body) > MaxBody || len(payload) > MaxPayload {
		return fmt.Errorf("%w: body of %d bytes (at most %d), payload of %d (at most %d)",
			ErrTooLarge, len(body), MaxBody, len(payload), MaxPayload)
	}
	return nil
}

// encodeFrame lays a whole frame out in one pooled buffer, so that it is one Write.
func encodeFrame(h header, body, payload []byte) []byte {
	h.body, h.payload = uint32(len(body)), uint32(len(payload))
	b := getBuffer(headerSize + len(body) + len(payload))
	h.encode(b)
	copy(b[headerSize:], body)
	copy(b[headerSize+len(body):], payload)
	return b
}

// deadlineMillis is what a request says of the time left: rounded up, never 0.
func deadlineMillis(left time.Duration) uint32 {
	ms := (left + time.Millisecond - 1) / time.Millisecond
	return uint32(min(max(ms, 1), math.MaxUint32))
}
