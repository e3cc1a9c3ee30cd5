package overlay

import (
	"fmt"

	"github.com/mutualfs/mutualfs/blocks"
)

// Kinds of Chord calls.
const (
	KindExchange Kind = 0x0201 // stabilize, notify and ping, for several virtual nodes at once
	KindStep     Kind = 0x0202 // one step of a lookup
	KindRingInfo Kind = 0x0203 // the callee's virtual nodes and all their pointers
	KindCheck    Kind = 0x0204 // the callee routes from each of its virtual nodes to every other
)

// Bounds of Chord messages.
const (
	maxAsks     = 1024 // in one exchange
	maxList     = 512  // successors of one virtual node
	maxFingers  = 8 * blocks.IDSize
	maxReported = 16 // failures that a check spells out
)

// On the wire a virtual node is its peer's ID and its index: the position follows from
// them, so none can claim a place that is not its own.
func encodeVnode(e *blocks.Encoder, v Vnode) {
	e.ID(v.Peer.ID)
	e.Uint(uint64(v.Index))
}

// vnodeSize is the least size of a virtual node on the wire.
const vnodeSize = blocks.IDSize + 1

func decodeVnode(d *blocks.Decoder, t *Table) (Vnode, error) {
	peer := blocks.PeerID{ID: d.ID()}
	index := d.Uint()
	if err := d.Err(); err != nil {
		return Vnode{}, err
	}
	if index >= MaxVnodes {
		return Vnode{}, fmt.Errorf("%w: virtual node %d", blocks.ErrInvalid, index)
	}
	return t.vnode(peer, int(index)), nil
}

func encodeVnodes(e *blocks.Encoder, vs []Vnode) {
	e.Uint(uint64(len(vs)))
	for _, v := range vs {
		encodeVnode(e, v)
	}
}

func decodeVnodes(d *blocks.Decoder, t *Table, limit int) ([]Vnode, error) {
	n := d.Count(vnodeSize)
	if n > limit {
		return nil, fmt.Errorf("%w: %d virtual nodes in one list", blocks.ErrInvalid, n)
	}
	vs := make([]Vnode, n)
	for i := range vs {
		var err error
		if vs[i], err = decodeVnode(d, t); err != nil {
			return nil, err
		}
	}
	return vs, d.Err()
}

// ask is one entry of an exchange: what virtual node `target` of the callee is
// asked for. On the wire: target, flags (1 byte: 1 = state wanted, 2 = notify), and
// with notify the index of the caller's virtual node that takes the target as its successor. An
// entry without flags is a ping. The request's body is: count, entries.
type ask struct {
	target   int
	state    bool
	notify   bool
	notifier int
}

func encodeAsks(asks []ask) []byte {
	var e blocks.Encoder
	e.Uint(uint64(len(asks)))
	for _, a := range asks {
		e.Uint(uint64(a.target))
		var flags byte
		if a.state {
			flags |= 1
		}
		if a.notify {
			flags |= 2
		}
		e.Byte(flags)
		if a.notify {
			e.Uint(uint64(a.notifier))
		}
	}
	return e.Buf
}

func decodeAsks(b []byte) ([]ask, error) {
	d := blocks.NewDecoder(b)
	n := d.Count(2)
	if n > maxAsks {
		return nil, fmt.Errorf("%w: %d questions in one exchange", blocks.ErrInvalid, n)
	}
	asks := make([]ask, n)
	for i := range asks {
		target, flags := d.Uint(), d.Byte()
		var notifier uint64
		if flags&2 != 0 {
			notifier = d.Uint()
		}
		if flags > 3 || target >= MaxVnodes || notifier >= MaxVnodes {
			return nil, fmt.Errorf("%w: question %d of an exchange", blocks.ErrInvalid, i)
		}
		asks[i] = ask{int(target), flags&1 != 0, flags&2 != 0, int(notifier)}
	}
	return asks, d.Done()
}

// status is what a virtual node is.
type status uint8

const (
	isMember  status = iota // on the ring
	isBusy                  // on the ring, in the middle of a change: ask again
	isJoining               // not on the ring yet
	isNot                   // the peer has no such virtual node
)

// answer is one entry of the response to an exchange. On the wire: status (1 byte),
// whether state follows (1 byte), and with state: whether the predecessor
// is known (1 byte), the predecessor, the successors (count, each). The
// response's body is: count, entries in the order of the questions.
type answer struct {
	status   status
	hasState bool
	hasPred  bool
	pred     Vnode
	succ     []Vnode
}

func encodeAnswers(as []answer) []byte {
	var e blocks.Encoder
	e.Uint(uint64(len(as)))
	for i := range as {
		a := &as[i]
		e.Byte(byte(a.status))
		e.Bool(a.hasState)
		if a.hasState {
			e.Bool(a.hasPred)
			if a.hasPred {
				encodeVnode(&e, a.pred)
			}
			encodeVnodes(&e, a.succ)
		}
	}
	return e.Buf
}

func decodeAnswers(b []byte, t *Table) ([]answer, error) {
	d := blocks.NewDecoder(b)
	n := d.Count(2)
	if n > maxAsks {
		return nil, fmt.Errorf("%w: %d answers in one exchange", blocks.ErrInvalid, n)
	}
	as := make([]answer, n)
	for i := range as {
		a := &as[i]
		a.status, a.hasState = status(d.Byte()), d.Bool()
		if a.status > isNot {
			return nil, fmt.Errorf("%w: status %d", blocks.ErrInvalid, a.status)
		}
		if !a.hasState {
			continue
		}
		var err error
		if a.hasPred = d.Bool(); a.hasPred {
			if a.pred, err = decodeVnode(d, t); err != nil {
				return nil, err
			}
		}
		if a.succ, err = decodeVnodes(d, t, maxList); err != nil {
			return nil, err
		}
	}
	return as, d.Done()
}

// stepRequest asks virtual node `target` of the callee for the next step of a
// lookup. On the wire: ID, target, whether it is presumed to be the owner (1 byte): then
// the answer is ErrNotOwner if it is not.
type stepRequest struct {
	id       blocks.ID
	target   int
	presumed bool
}

func (r *stepRequest) encode() []byte {
	var e blocks.Encoder
	e.ID(r.id)
	e.Uint(uint64(r.target))
	e.Bool(r.presumed)
	return e.Buf
}

func decodeStepRequest(b []byte) (stepRequest, error) {
	d := blocks.NewDecoder(b)
	r := stepRequest{id: d.ID()}
	target := d.Uint()
	r.presumed = d.Bool()
	if err := d.Done(); err != nil {
		return stepRequest{}, err
	}
	if target >= MaxVnodes {
		return stepRequest{}, fmt.Errorf("%w: virtual node %d", blocks.ErrInvalid, target)
	}
	r.target = int(target)
	return r, nil
}

// stepAnswer is the answer to a step: either the target owns the ID, or who is
// to be asked next. On the wire: owner (1 byte); closer: virtual nodes that
// precede the ID (count, each, closest first); final: presumed owners, if the ID lies within the
// successor list (count, each, first one first); whether the predecessor is known (1 byte); the predecessor.
type stepAnswer struct {
	owner  bool
	unsure bool
	closer []Vnode
	final  []Vnode

	hasPred bool
	pred    Vnode // the better owner, if the target was wrongly presumed to be it
}

// maxNext bounds the virtual nodes that one step names, of each kind.
const maxNext = 4

func (a *stepAnswer) encode() []byte {
	var e blocks.Encoder
	switch {
	case a.owner:
		e.Byte(1)
	case a.unsure:
		e.Byte(2)
	default:
		e.Byte(0)
	}
	encodeVnodes(&e, a.closer)
	encodeVnodes(&e, a.final)
	e.Bool(a.hasPred)
	if a.hasPred {
		encodeVnode(&e, a.pred)
	}
	return e.Buf
}

func decodeStepAnswer(b []byte, t *Table) (stepAnswer, error) {
	d := blocks.NewDecoder(b)
	is := d.Byte()
	if is > 2 {
		return stepAnswer{}, fmt.Errorf("%w: step of kind %d", blocks.ErrInvalid, is)
	}
	a := stepAnswer{owner: is == 1, unsure: is == 2}
	var err error
	if a.closer, err = decodeVnodes(d, t, maxNext); err != nil {
		return stepAnswer{}, err
	}
	if a.final, err = decodeVnodes(d, t, maxNext); err != nil {
		return stepAnswer{}, err
	}
	if a.hasPred = d.Bool(); a.hasPred {
		if a.pred, err = decodeVnode(d, t); err != nil {
			return stepAnswer{}, err
		}
	}
	return a, d.Done()
}
