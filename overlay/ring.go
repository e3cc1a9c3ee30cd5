package overlay

import (
	"context"
	"fmt"

	"github.com/mutualfs/mutualfs/blocks"
)

// Ring is what the services on top of the ring (shards, registers) need of a
// peer. *Peer implements it; tests have an in-memory one.
type Ring interface {
	Self() blocks.PeerID
	// Table returns the newest snapshot, never nil; it is cheap.
	Table() *Table
	// Changed returns a channel that is closed when the table changes next.
	Changed() <-chan struct{}
	// Call asks another peer, or this one without the network. What the callee's
	// handler reported comes back as the same error class; a peer that the table
	// does not know is ErrUnavailable.
	Call(ctx context.Context, to blocks.PeerID, class Class, req Call) (Call, error)
	// Handle sets the handler of a kind of calls; before Run only.
	Handle(kind Kind, h Serve)
}

// Serve answers one call; an error travels back as its class and text. It is
// called concurrently. See Call for who owns the slices.
type Serve func(ctx context.Context, from blocks.PeerID, req Call) (Call, error)

// Reply encodes what a Serve returned as a response: the body is preceded by
// the error's code (one byte); with an error, the body is its text.
func Reply(resp Call, err error) Call {
	if err != nil {
		return Call{Kind: resp.Kind, Body: append([]byte{byte(blocks.CodeOf(err))}, err.Error()...)}
	}
	body := make([]byte, 0, 1+len(resp.Body))
	resp.Body = append(append(body, byte(blocks.CodeOK)), resp.Body...)
	return resp
}

// Unreply decodes what Reply encoded.
func Unreply(resp Call) (Call, error) {
	if len(resp.Body) == 0 {
		return Call{}, fmt.Errorf("%w: empty response", blocks.ErrCorrupt)
	}
	code := blocks.Code(resp.Body[0])
	if code != blocks.CodeOK {
		return Call{}, blocks.FromCode(code, string(resp.Body[1:]))
	}
	resp.Body = resp.Body[1:]
	return resp, nil
}
