package register

import (
	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

// The calls of this room. The numbers are part of the wire format.
const (
	kindPrepare overlay.Kind = 0x0501 // coordinator → acceptor
	kindAccept  overlay.Kind = 0x0502 // coordinator → acceptor
	kindQuery   overlay.Kind = 0x0503 // anyone → acceptor
	kindForget  overlay.Kind = 0x0504 // coordinator → former acceptor
	kindPropose overlay.Kind = 0x0505 // mount → coordinator
	kindTags    overlay.Kind = 0x0506 // worker → acceptor: many registers at once
	kindHello   overlay.Kind = 0x0507 // mount → storage peer, each second; peers ask for incarnations with it
	kindGoodbye overlay.Kind = 0x0508 // mount → storage peer
	kindSilence overlay.Kind = 0x0509 // coordinator → acceptor: have you heard that mount?
	kindCounts  overlay.Kind = 0x050a // anyone → storage peer
	kindList    overlay.Kind = 0x050b // anyone → storage peer: what registers have you?
	kindRecall  overlay.Kind = 0x0601 // anyone → mount: give the lease back
	kindViewOf  overlay.Kind = 0x0602 // coordinator → mount: the view of your lease changes
)

// status is how an acceptor answers.
type status uint8

const (
	statusOK        status = iota
	statusRefused          // has promised a higher ballot, or has a newer state
	statusBehind           // its state is not the one the change starts from
	statusForgotten        // was dropped from the view; State.View says where to go
	statusUnknown          // has never had a state of this register
)

// reply is an acceptor's answer to Prepare, Accept and Query.
type reply struct {
	Status      status
	Incarnation uint64
	Promised    ballot
	Tag         tag
	Version     blocks.Version
	State       *state // Prepare, Query beyond the tag, and with statusForgotten the view alone
	patch       []byte // the payload, Query with data only
}

func (r *reply) encode() overlay.Call {
	var e blocks.Encoder
	e.Byte(byte(r.Status))
	e.Uint64(r.Incarnation)
	putBallot(&e, r.Promised)
	putTag(&e, r.Tag)
	e.Uint(uint64(r.Version))
	e.Bool(r.State != nil)
	if r.State != nil {
		putState(&e, r.State)
	}
	return overlay.Call{Body: e.Buf, Payload: r.patch}
}

func decodeReply(c overlay.Call) (reply, error) {
	d := blocks.NewDecoder(c.Body)
	r := reply{Status: status(d.Byte()), Incarnation: d.Uint64(), Promised: getBallot(d), Tag: getTag(d),
		Version: blocks.Version(d.Uint()), patch: c.Payload}
	if d.Bool() {
		s := getState(d)
		r.State = &s
	}
	return r, d.Done()
}

// prepareMsg asks for a promise. Number is the number of the view that makes
// the callee a member, as far as the coordinator knows. Table, if not 0, names the storage peers that the
// coordinator of a shared creation counts.
type prepareMsg struct {
	ID     blocks.RegisterID
	Ballot ballot
	Number uint64
	Table  uint64
}

func (m *prepareMsg) encode() overlay.Call {
	var e blocks.Encoder
	e.ID(m.ID.ID)
	putBallot(&e, m.Ballot)
	e.Uint(m.Number)
	e.Uint64(m.Table)
	return overlay.Call{Kind: kindPrepare, Body: e.Buf}
}

func decodePrepare(c overlay.Call) (prepareMsg, error) {
	d := blocks.NewDecoder(c.Body)
	m := prepareMsg{ID: blocks.RegisterID{ID: d.ID()}, Ballot: getBallot(d), Number: d.Uint(), Table: d.Uint64()}
	return m, d.Done()
}

// acceptMsg proposes State, whose tag has the coordinator's ballot. Without
// Full the patch applies to the state with tag Prev only.
type acceptMsg struct {
	ID    blocks.RegisterID
	Prev  tag
	Full  bool
	State state
	patch []byte // encoded, the payload
}

func (m *acceptMsg) encode() overlay.Call {
	e := blocks.Encoder{Buf: make([]byte, 0, 384)}
	e.ID(m.ID.ID)
	putTag(&e, m.Prev)
	e.Bool(m.Full)
	putState(&e, &m.State)
	return overlay.Call{Kind: kindAccept, Body: e.Buf, Payload: m.patch}
}

func decodeAccept(c overlay.Call) (acceptMsg, error) {
	d := blocks.NewDecoder(c.Body)
	m := acceptMsg{ID: blocks.RegisterID{ID: d.ID()}, Prev: getTag(d), Full: d.Bool(), State: getState(d), patch: c.Payload}
	return m, d.Done()
}

// want says how much a query asks for.
type want uint8

const (
	wantTag   want = iota
	wantState      // and the state without the value
	wantData       // and what of the value is newer than Since
)

// queryMsg asks an acceptor what it has.
type queryMsg struct {
	ID    blocks.RegisterID
	Since blocks.Version
	Want  want
}

func (m *queryMsg) encode() overlay.Call {
	var e blocks.Encoder
	e.ID(m.ID.ID)
	e.Uint(uint64(m.Since))
	e.Byte(byte(m.Want))
	return overlay.Call{Kind: kindQuery, Body: e.Buf}
}

func decodeQuery(c overlay.Call) (queryMsg, error) {
	d := blocks.NewDecoder(c.Body)
	m := queryMsg{ID: blocks.RegisterID{ID: d.ID()}, Since: blocks.Version(d.Uint()), Want: want(d.Byte())}
	return m, d.Done()
}

// forgetMsg tells a former member that the state with the tag, which has the
// view, has been chosen without it.
type forgetMsg struct {
	ID   blocks.RegisterID
	Tag  tag
	View view
}

func (m *forgetMsg) encode() overlay.Call {
	var e blocks.Encoder
	e.ID(m.ID.ID)
	putTag(&e, m.Tag)
	putView(&e, m.View)
	return overlay.Call{Kind: kindForget, Body: e.Buf}
}

func decodeForget(c overlay.Call) (forgetMsg, error) {
	d := blocks.NewDecoder(c.Body)
	m := forgetMsg{ID: blocks.RegisterID{ID: d.ID()}, Tag: getTag(d), View: getView(d)}
	return m, d.Done()
}
