package mux

import "errors"

// Errors of calls; ask with errors.Is. A call whose context ended returns the
// context's error (context.DeadlineExceeded, context.Canceled) instead.
var (
	// ErrUnreachable: the peer was not reached, or the connection broke. If it
	// broke, the call may or may not have been served.
	ErrUnreachable = errors.New("peer unreachable")
	// ErrRefused: one side does not accept the other's identity.
	ErrRefused = errors.New("identity refused")
	// ErrTooLarge: a body or payload is larger than MaxBody or MaxPayload.
	ErrTooLarge = errors.New("message too large")
	// ErrBusy: too many calls are waiting, here or at the peer.
	ErrBusy = errors.New("too many calls")
	// ErrClosed: the Mux has been shut down.
	ErrClosed = errors.New("mux is shut down")
	// ErrMalformed: bytes that are not of this protocol.
	ErrMalformed = errors.New("malformed frame")
)
