package register

import (
	"context"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

// Kinds of calls that tests of the tests tamper with.
const (
	KindPrepare = kindPrepare
	KindPropose = kindPropose
	KindSilence = kindSilence
	KindViewOf  = kindViewOf
	KindRecall  = kindRecall
)

// WithoutPromise returns the changes of a store as an acceptor makes them
// that forgets its promises.
func WithoutPromise(b Batch) Batch {
	out := make(Batch, len(b))
	for i, op := range b {
		if len(op.Key) > 0 && op.Key[0] == keyRecord && !op.Delete {
			r, err := decodeRecord(op.Value)
			if err != nil {
				panic(err)
			}
			r.Promised = ballot{}
			op.Value = encodeRecord(&r)
		}
		out[i] = op
	}
	return out
}

// PretendPromise turns a Prepare into a mere question and its answer into a promise.
func PretendPromise(ctx context.Context, req overlay.Call, call func(context.Context, overlay.Call) (overlay.Call, error)) (overlay.Call, error) {
	m, err := decodePrepare(req)
	if err != nil {
		return overlay.Call{}, err
	}
	q := queryMsg{ID: m.ID, Want: wantState}
	resp, err := call(ctx, q.encode())
	if err != nil {
		return resp, err
	}
	r, err := decodeReply(resp)
	if err != nil {
		return resp, err
	}
	if r.Status == statusUnknown {
		r.Status = statusOK
	}
	return r.encode(), nil
}

// IsSearch reports whether a Prepare is one of a search before a shared creation.
func IsSearch(req overlay.Call) bool {
	m, err := decodePrepare(req)
	return err == nil && m.Table != 0
}

// WithoutSeq returns a Propose that is not recognised as a repeated one.
func WithoutSeq(req overlay.Call) overlay.Call {
	m, err := decodePropose(req)
	if err != nil {
		panic(err)
	}
	m.Change.Seq = 0
	return m.encode()
}

// ViewOf returns the peers of a register's view in the service's own store.
func (s *Service) ViewOf(id blocks.RegisterID) []blocks.PeerID {
	r, err := s.acc.load(id)
	if err != nil || r == nil {
		return nil
	}
	return r.State.View.peers()
}
