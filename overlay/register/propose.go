package register

import (
	"context"
	"fmt"
	"slices"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

// proposeMsg is what a mount asks of a coordinator. The value (Change.Snapshot or
// Delta) is the payload.
type proposeMsg struct {
	ID     blocks.RegisterID
	Read   bool   // change nothing, only tell the state and what is newer than Change.Base
	Renew  bool   // give the origin a new epoch if it holds the lease already
	Seize  uint64 // the epoch of a lease that is to be taken, if its mount is silent; else 0
	Hint   view   // the view as the mount knows it; of a register to be created, its first view
	Change blocks.Change
}

// Change flags on the wire.
const (
	flagRead = 1 << iota
	flagRenew
	flagSnapshot
	flagDelete
	flagShared
	flagQuiet
)

// reads reports whether those who share the lease may keep it.
func (m *proposeMsg) reads() bool { return m.Read || !disturbs(&m.Change) }

func (m *proposeMsg) encode() overlay.Call {
	e := blocks.Encoder{Buf: make([]byte, 0, 256)}
	e.ID(m.ID.ID)
	var flags byte
	for _, f := range []struct {
		on  bool
		bit byte
	}{{m.Read, flagRead}, {m.Renew, flagRenew}, {m.Change.Snapshot != nil, flagSnapshot}, {m.Change.Delete, flagDelete}, {m.Change.Shared, flagShared}, {m.Change.Quiet, flagQuiet}} {
		if f.on {
			flags |= f.bit
		}
	}
	e.Byte(flags)
	e.Uint(m.Seize)
	putView(&e, m.Hint)
	e.Uint(uint64(m.Change.Base))
	e.ID(m.Change.Origin.ID)
	e.Uint(m.Change.Seq)
	e.Byte(byte(m.Change.Lease))
	if m.Change.Lease == blocks.LeaseLeave {
		e.Uint(m.Change.Epoch)
	}
	payload := m.Change.Delta
	if m.Change.Snapshot != nil {
		payload = m.Change.Snapshot
	}
	return overlay.Call{Kind: kindPropose, Body: e.Buf, Payload: payload}
}

func decodePropose(c overlay.Call) (proposeMsg, error) {
	d := blocks.NewDecoder(c.Body)
	m := proposeMsg{ID: blocks.RegisterID{ID: d.ID()}}
	flags := d.Byte()
	m.Read, m.Renew = flags&flagRead != 0, flags&flagRenew != 0
	m.Seize, m.Hint = d.Uint(), getView(d)
	m.Change = blocks.Change{Base: blocks.Version(d.Uint()), Origin: blocks.PeerID{ID: d.ID()}, Seq: d.Uint(),
		Lease: blocks.LeaseAction(d.Byte()), Delete: flags&flagDelete != 0, Shared: flags&flagShared != 0, Quiet: flags&flagQuiet != 0}
	if m.Change.Lease == blocks.LeaseLeave {
		m.Change.Epoch = d.Uint()
	}
	if flags&flagSnapshot != 0 {
		m.Change.Snapshot = append([]byte{}, c.Payload...)
	} else {
		m.Change.Delta = c.Payload
	}
	return m, d.Done()
}

// outcome is a coordinator's answer: what became of the change, the newest
// state, and unless the change was applied what is newer than its base.
type outcome struct {
	Verdict verdict
	Granted bool // this change began the lease's present epoch
	State   *state
	patch   []byte
}

func (o *outcome) encode() overlay.Call {
	e := blocks.Encoder{Buf: make([]byte, 0, 256)}
	e.Byte(byte(o.Verdict))
	e.Bool(o.Granted)
	putState(&e, o.State)
	return overlay.Call{Kind: kindPropose, Body: e.Buf, Payload: o.patch}
}

func decodeOutcome(c overlay.Call) (outcome, error) {
	d := blocks.NewDecoder(c.Body)
	o := outcome{Verdict: verdict(d.Byte()), Granted: d.Bool(), patch: c.Payload}
	st := getState(d)
	o.State = &st
	return o, d.Done()
}

func (s *Service) servePropose(ctx context.Context, _ blocks.PeerID, req overlay.Call) (overlay.Call, error) {
	m, err := decodePropose(req)
	if err != nil {
		return overlay.Call{}, err
	}
	o, err := s.propose(ctx, m)
	if err != nil {
		return overlay.Call{}, err
	}
	return o.encode(), nil
}

// propose answers m as the register's coordinator.
func (s *Service) propose(ctx context.Context, m proposeMsg) (*outcome, error) {
	var create creation
	switch {
	case m.Change.Base != 0 || m.Read:
	case m.Change.Shared:
		create.shared = true
	default:
		create.view = m.Hint
	}
	if m.Seize != 0 && s.relay(ctx, m) {
		m.Seize = 0
	}
	var o *outcome
	err := s.coordinate(ctx, m.ID, m.Hint, create, func(c *coord) (err error) {
		if c.st.Tag == (tag{}) && !create.any() {
			c.leading = false
			return fmt.Errorf("register %s: %w: it is not known to exist", m.ID.Short(), blocks.ErrUnavailable)
		}
		if l := c.st.leaseWith(m.Seize); l != (blocks.Lease{}) {
			if err := s.seize(ctx, m.ID, c, l.Holder); err != nil {
				return err
			}
		}
		if m.Read {
			o, err = s.tell(ctx, m.ID, c, verdictDone, m.Change.Base)
			return err
		}
		o, err = s.apply(ctx, m, c)
		return err
	})
	return o, err
}

// relay asks the holder of the lease that is to be seized once more, from
// here: the mount that wants it may be cut off from the holder alone.
func (s *Service) relay(ctx context.Context, m proposeMsg) bool {
	r, err := s.acc.query(ctx, queryMsg{ID: m.ID, Want: wantState})
	if err != nil || r.State == nil {
		return false
	}
	l := r.State.leaseWith(m.Seize)
	if l == (blocks.Lease{}) {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Beat)
	defer cancel()
	return s.recall(ctx, l, m.ID, m.reads()) == nil
}

// apply judges the change on the newest state and takes the step.
func (s *Service) apply(ctx context.Context, m proposeMsg, c *coord) (*outcome, error) {
	v, next, p, err := judge(c.st, &m.Change, m.Renew)
	if err != nil {
		return nil, fmt.Errorf("propose to register %s: %w", m.ID.Short(), err)
	}
	if v != verdictApply {
		return s.tell(ctx, m.ID, c, v, m.Change.Base)
	}
	granted := next.leaseOf(m.Change.Origin).Epoch > c.st.Lease.Epoch
	created := c.st.Tag == tag{}
	if err := s.step(ctx, m.ID, c, next, p); err != nil {
		return nil, err
	}
	if created && !slices.Equal(next.View.peers(), s.ring.Table().HomePeers(m.ID.ID, 2*s.cfg.M+1, nil)) {
		s.work.mark(m.ID)
	}
	return &outcome{Verdict: v, Granted: granted, State: next}, nil
}

// tell answers with the newest state, after making sure that it is, and what
// is newer than since.
func (s *Service) tell(ctx context.Context, id blocks.RegisterID, c *coord, v verdict, since blocks.Version) (*outcome, error) {
	if c.st.Tag == (tag{}) {
		return nil, fmt.Errorf("register %s: %w: it is not known to exist", id.Short(), blocks.ErrUnavailable)
	}
	if err := s.confirm(ctx, id, c); err != nil {
		return nil, err
	}
	o := &outcome{Verdict: v, State: c.st}
	if v == verdictHeld || v == verdictGone {
		return o, nil
	}
	r, err := s.fetch(ctx, id, c.st.View, since, c.st.Tag)
	if err != nil {
		return nil, err
	}
	o.patch = r.patch
	return o, nil
}
