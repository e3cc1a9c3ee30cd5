package main

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/mux"
	"github.com/mutualfs/mutualfs/overlay"
)

// transport carries the overlay's calls over the mux. Classes have the same numbers in both.
type transport struct{ mux *mux.Mux }

var _ overlay.Transport = transport{}

const (
	_ = uint8(overlay.Control) - mux.Control
	_ = mux.Control - uint8(overlay.Control)
	_ = uint8(overlay.Repair) - mux.Repair
	_ = mux.Repair - uint8(overlay.Repair)
)

// muxErrors says which class a transport error has.
var muxErrors = []struct{ is, class error }{
	{mux.ErrUnreachable, blocks.ErrUnavailable},
	{mux.ErrClosed, blocks.ErrUnavailable},
	{mux.ErrRefused, blocks.ErrRefused},
	{mux.ErrBusy, blocks.ErrBusy},
	{mux.ErrTooLarge, blocks.ErrInvalid},
	{mux.ErrMalformed, blocks.ErrCorrupt},
	{context.DeadlineExceeded, blocks.ErrDeadline},
	{context.Canceled, blocks.ErrCanceled},
}

func classed(err error) error {
	for _, e := range muxErrors {
		if errors.Is(err, e.is) {
			return fmt.Errorf("%w: %w", e.class, err)
		}
	}
	return err
}

// Call is overlay.Transport.
func (t transport) Call(ctx context.Context, to blocks.PeerID, addr string, class overlay.Class, req overlay.Call) (overlay.Call, error) {
	kind, body, payload, err := t.mux.Call(ctx, to.ID, addr, uint8(class), uint16(req.Kind), req.Body, req.Payload)
	if err != nil {
		return overlay.Call{}, classed(err)
	}
	return overlay.Call{Kind: overlay.Kind(kind), Body: body, Payload: payload}, nil
}

func (t transport) dial(ctx context.Context, to blocks.PeerID, addr string) (net.Conn, error) {
	conn, err := t.mux.Dial(ctx, to.ID, addr)
	if err != nil {
		return nil, classed(err)
	}
	return conn, nil
}

// serve makes the overlay's handler one of the mux.
func serve(h overlay.Handler) mux.Handler {
	return func(ctx context.Context, from [20]byte, _ string, _ uint8, kind uint16, body, payload []byte) (uint16, []byte, []byte) {
		resp := h(ctx, blocks.PeerID{ID: from}, overlay.Call{Kind: overlay.Kind(kind), Body: body, Payload: payload})
		return uint16(resp.Kind), resp.Body, resp.Payload
	}
}
