package register

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mutualfs/mutualfs/blocks"
)

// Keys of the store: a prefix byte, the register's ID, and for a delta its
// version (uint64, big-endian).
const (
	keyRecord   = 'm'
	keySnapshot = 's'
	keyDelta    = 'd'
)

func keyOf(prefix byte, id blocks.RegisterID) []byte {
	return append(append(make([]byte, 0, 1+blocks.IDSize+8), prefix), id.ID[:]...)
}

func deltaKey(id blocks.RegisterID, v blocks.Version) []byte {
	return binary.BigEndian.AppendUint64(keyOf(keyDelta, id), uint64(v))
}

// acceptor is one peer's memory of registers. What it promises or accepts is
// durable before it answers. gate orders the calls for one register.
type acceptor struct {
	kv    KV
	gate  gate
	moved func()                  // called when the view of a stored register has changed
	born  func(blocks.RegisterID) // called when a register has come that was not stored before
}

// load returns a register's record, nil if there is none.
func (a *acceptor) load(id blocks.RegisterID) (*record, error) {
	b, err := a.kv.Get(keyOf(keyRecord, id))
	if errors.Is(err, blocks.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("load register %s: %w", id.Short(), err)
	}
	r, err := decodeRecord(b)
	if err != nil {
		return nil, fmt.Errorf("load register %s: %w", id.Short(), err)
	}
	return &r, nil
}

func (a *acceptor) answer(s status, r *record) *reply {
	out := &reply{Status: s, Incarnation: a.kv.Incarnation()}
	if r != nil {
		out.Promised, out.Tag, out.Version = r.Promised, r.State.Tag, r.State.Version
		if r.Forgotten {
			out.State = &r.State
		}
	}
	return out
}

// prepare promises the ballot, once, and tells the accepted state.
func (a *acceptor) prepare(ctx context.Context, m prepareMsg) (*reply, error) {
	unlock, err := a.gate.lock(ctx, m.ID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	r, err := a.load(m.ID)
	if err != nil {
		return nil, err
	}
	if r == nil {
		r = &record{}
	}
	if r.Forgotten && m.Number <= r.State.View.Number {
		return a.answer(statusForgotten, r), nil
	}
	if m.Ballot.compare(r.Promised) <= 0 {
		return a.answer(statusRefused, r), nil
	}
	r.Promised = m.Ballot
	if err := a.kv.Apply(Batch{{Key: keyOf(keyRecord, m.ID), Value: encodeRecord(r)}}, true); err != nil {
		return nil, fmt.Errorf("promise for register %s: %w", m.ID.Short(), err)
	}
	out := a.answer(statusOK, r)
	if r.Forgotten {
		// It is a member again, with nothing of the new view's time. Its tag
		// without a state is a floor: a state with it was chosen, so an older one, that
		// a member of a former view still has, must not be taken for the newest.
		out.State, out.Version = nil, 0
		return out, nil
	}
	if r.State.Tag != (tag{}) {
		out.State = &r.State
	}
	return out, nil
}

// accept takes the proposed state if no higher ballot was promised and the
// state that it starts from is the acceptor's own.
func (a *acceptor) accept(ctx context.Context, m acceptMsg) (*reply, error) {
	p, err := decodePatch(m.patch)
	if err != nil {
		return nil, fmt.Errorf("accept for register %s: %w", m.ID.Short(), err)
	}
	if len(m.State.View.Members) == 0 {
		return nil, fmt.Errorf("accept for register %s: %w: the view is empty", m.ID.Short(), blocks.ErrInvalid)
	}
	unlock, err := a.gate.lock(ctx, m.ID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	old, err := a.load(m.ID)
	if err != nil {
		return nil, err
	}
	if old == nil {
		old = &record{}
	}
	if m.State.Tag.Ballot.compare(old.Promised) < 0 {
		return a.answer(statusRefused, old), nil
	}
	switch c := m.State.Tag.compare(old.State.Tag); {
	case c == 0 && !old.Forgotten:
		return a.answer(statusOK, old), nil // a repeated message
	case c <= 0:
		return a.answer(statusRefused, old), nil
	case !m.Full && (old.Forgotten || old.State.Tag != m.Prev):
		return a.answer(statusBehind, old), nil
	}
	next := &record{Promised: m.State.Tag.Ballot, State: m.State}
	batch, err := a.batch(m.ID, old, next, m.Full, p)
	if err != nil {
		return nil, err
	}
	if err := a.kv.Apply(batch, true); err != nil {
		return nil, fmt.Errorf("accept for register %s: %w", m.ID.Short(), err)
	}
	if next.State.View.Number > 1 && next.State.View.Number != old.State.View.Number {
		a.moved()
	}
	if old.State.Tag == (tag{}) {
		a.born(m.ID)
	}
	return a.answer(statusOK, next), nil
}

// batch lists what makes next, with the value that p leads to, the stored
// state in place of old.
func (a *acceptor) batch(id blocks.RegisterID, old, next *record, full bool, p patch) (Batch, error) {
	var b Batch
	anew := full || p.Whole || next.State.Deleted
	if anew && old.State.Deltas > 0 {
		err := a.kv.Scan(keyOf(keyDelta, id), func(key, _ []byte) bool {
			b = append(b, blocks.KVChange{Key: append([]byte(nil), key...), Delete: true})
			return true
		})
		if err != nil {
			return nil, fmt.Errorf("list the deltas of register %s: %w", id.Short(), err)
		}
	}
	if anew {
		b = append(b, blocks.KVChange{Key: keyOf(keySnapshot, id), Value: p.Snapshot, Delete: len(p.Snapshot) == 0})
	}
	for _, d := range p.Deltas {
		if len(d.Data) > 0 && !next.State.Deleted {
			b = append(b, blocks.KVChange{Key: deltaKey(id, d.Version), Value: d.Data})
		}
	}
	return append(b, blocks.KVChange{Key: keyOf(keyRecord, id), Value: encodeRecord(next)}), nil
}

// query tells the tag, and the state and the value since m.Since if wanted.
func (a *acceptor) query(ctx context.Context, m queryMsg) (*reply, error) {
	unlock, err := a.gate.lock(ctx, m.ID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	r, err := a.load(m.ID)
	switch {
	case err != nil:
		return nil, err
	case r == nil:
		return a.answer(statusUnknown, nil), nil
	case r.Forgotten:
		return a.answer(statusForgotten, r), nil
	case r.State.Tag == tag{}:
		return a.answer(statusUnknown, r), nil
	}
	out := a.answer(statusOK, r)
	if m.Want == wantTag {
		return out, nil
	}
	out.State = &r.State
	if m.Want == wantState {
		return out, nil
	}
	p, err := a.value(m.ID, &r.State, m.Since)
	if err != nil {
		return nil, err
	}
	out.patch = encodePatch(p)
	return out, nil
}

// value reads what of the value is newer than since.
func (a *acceptor) value(id blocks.RegisterID, s *state, since blocks.Version) (patch, error) {
	var p patch
	if s.Deleted || since == s.Version {
		return p, nil
	}
	if since < s.Base || since > s.Version || since == 0 {
		p.Whole, since = true, s.Base
		b, err := a.kv.Get(keyOf(keySnapshot, id))
		if err != nil && !errors.Is(err, blocks.ErrNotFound) {
			return p, fmt.Errorf("read the snapshot of register %s: %w", id.Short(), err)
		}
		p.Snapshot = b
	}
	if !p.Whole && s.Version-since <= fewDeltas {
		return a.fewDeltas(id, since, s.Version)
	}
	err := a.kv.Scan(keyOf(keyDelta, id), func(key, data []byte) bool {
		if v := blocks.Version(binary.BigEndian.Uint64(key[1+blocks.IDSize:])); v > since {
			p.Deltas = append(p.Deltas, delta{v, append([]byte(nil), data...)})
		}
		return true
	})
	if err != nil {
		return p, fmt.Errorf("read the deltas of register %s: %w", id.Short(), err)
	}
	return p, nil
}

// fewDeltas is how many deltas are read one by one instead of by a scan of all.
const fewDeltas = 16

func (a *acceptor) fewDeltas(id blocks.RegisterID, since, to blocks.Version) (p patch, err error) {
	for v := since + 1; v <= to; v++ {
		data, err := a.kv.Get(deltaKey(id, v))
		switch {
		case errors.Is(err, blocks.ErrNotFound):
		case err != nil:
			return p, fmt.Errorf("read a delta of register %s: %w", id.Short(), err)
		default:
			p.Deltas = append(p.Deltas, delta{v, data})
		}
	}
	return p, nil
}

// forget drops the value of a register whose view the peer is no longer in
// and leaves a tombstone that says where it went.
func (a *acceptor) forget(ctx context.Context, m forgetMsg) (*reply, error) {
	unlock, err := a.gate.lock(ctx, m.ID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	r, err := a.load(m.ID)
	if err != nil || r == nil {
		return a.answer(statusUnknown, nil), err
	}
	if r.State.Tag.compare(m.Tag) >= 0 || r.State.View.Number > m.View.Number {
		return a.answer(statusRefused, r), nil
	}
	for _, x := range m.View.all() {
		if x.Incarnation == a.kv.Incarnation() {
			return a.answer(statusRefused, r), nil
		}
	}
	next := &record{Promised: r.Promised, Forgotten: true, State: state{Tag: m.Tag, View: m.View}}
	batch, err := a.batch(m.ID, r, next, true, patch{})
	if err != nil {
		return nil, err
	}
	if err := a.kv.Apply(batch, true); err != nil {
		return nil, fmt.Errorf("forget register %s: %w", m.ID.Short(), err)
	}
	a.moved()
	return a.answer(statusOK, next), nil
}
