package overlay

import (
	"context"

	"github.com/mutualfs/mutualfs/blocks"
)

// Class ranks calls; each has its own streams and limits underneath, so that
// bulk cannot delay heartbeats.
type Class uint8

const (
	Control Class = iota
	Metadata
	Data
	Repair
)

// Call is a request or a response: a small typed body and a raw payload that
// is not copied more than necessary. A callee must not keep the slices of a request after
// it has answered; a caller owns the slices of a response.
type Call struct {
	Kind    Kind
	Body    []byte
	Payload []byte
}

// Transport carries calls between peers. The simulator has its own, so that
// the production codec runs in it. Errors are classed: ErrUnavailable if
// the peer was not reached or the connection broke (the call may or may not have
// been served), ErrDeadline and ErrCanceled when ctx ended first. What the callee's handler
// reports travels inside the response.
// A zero `to` is whoever proves to be a member of the ring at addr: a bootstrap address
// need not come with an ID.
type Transport interface {
	Call(ctx context.Context, to blocks.PeerID, addr string, class Class, req Call) (Call, error)
}

// Handler serves the calls of other peers, concurrently. from has been authenticated.
type Handler func(ctx context.Context, from blocks.PeerID, req Call) Call

// Kind numbers the calls on the wire; the numbers are part of the format. Each
// room has a range: 0x01xx membership, 0x02xx Chord, 0x03xx shards,
// 0x04xx repair and inventory, 0x05xx registers, 0x06xx mounts (lease recall, freed locks).
type Kind uint16
