package overlay

import (
	"fmt"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// Kinds of membership calls.
const (
	KindGossip Kind = 0x0101 // one packet of the gossip; no answer but an empty one
	KindHello  Kind = 0x0102 // who are you, and whom do you know
	KindPing   Kind = 0x0103 // are you there
)

// metaVersion is the first byte of a peer's metadata.
const metaVersion = 1

// meta is what a peer says of itself. On the wire: version (1 byte), incarnation,
// flags (1 byte: 1 = left), capacity, used, virtual nodes, drives, zone, address; at
// most 400 bytes, because memberlist carries 512.
type meta struct {
	incarnation    uint64
	left           bool
	capacity, used uint64
	vnodes, drives int
	zone, addr     string
}

func (m *meta) encode(e *blocks.Encoder) {
	e.Byte(metaVersion)
	e.Uint(m.incarnation)
	e.Bool(m.left)
	e.Uint(m.capacity)
	e.Uint(m.used)
	e.Uint(uint64(m.vnodes))
	e.Uint(uint64(m.drives))
	e.String(m.zone)
	e.String(m.addr)
}

func decodeMeta(d *blocks.Decoder) (meta, error) {
	if v := d.Byte(); d.Err() == nil && v != metaVersion {
		return meta{}, fmt.Errorf("%w: peer metadata of version %d", blocks.ErrInvalid, v)
	}
	m := meta{incarnation: d.Uint(), left: d.Bool(), capacity: d.Uint(), used: d.Uint()}
	vnodes, drives := d.Uint(), d.Uint()
	m.zone, m.addr = d.String(), d.String()
	if err := d.Err(); err != nil {
		return meta{}, err
	}
	if vnodes > MaxVnodes || drives > MaxDrives || len(m.zone) > maxZone || len(m.addr) > maxAddr {
		return meta{}, fmt.Errorf("%w: peer metadata out of bounds", blocks.ErrInvalid)
	}
	m.vnodes, m.drives = int(vnodes), int(drives)
	return m, nil
}

// record is what one peer tells another of a third (or of itself).
type record struct {
	id   blocks.PeerID
	meta meta
	live Liveness
	age  time.Duration // since anybody has heard of it; < 0: not since the teller started
}

// minRecord is the least size of a record on the wire.
const minRecord = blocks.IDSize + 11

// encodeRecords appends: count, then for each the peer's ID, its metadata, its
// liveness (1 byte), and 0 or its age in whole seconds plus 1.
func encodeRecords(e *blocks.Encoder, rs []record) {
	e.Uint(uint64(len(rs)))
	for i := range rs {
		e.ID(rs[i].id.ID)
		rs[i].meta.encode(e)
		e.Byte(byte(rs[i].live))
		if rs[i].age < 0 {
			e.Uint(0)
		} else {
			e.Uint(uint64(rs[i].age/time.Second) + 1)
		}
	}
}

// maxAge bounds an age on the wire, in seconds: a hundred years.
const maxAge = 100 * 365 * 86400

func decodeRecords(d *blocks.Decoder) ([]record, error) {
	n := d.Count(minRecord)
	if n > maxPeers {
		return nil, fmt.Errorf("%w: %d peers in one message", blocks.ErrInvalid, n)
	}
	rs := make([]record, 0, n)
	for range n {
		r := record{id: blocks.PeerID{ID: d.ID()}}
		var err error
		if r.meta, err = decodeMeta(d); err != nil {
			return nil, err
		}
		live, age := d.Byte(), d.Uint()
		if live > byte(Left) || age > maxAge || r.id.IsZero() {
			return nil, fmt.Errorf("%w: peer record out of bounds", blocks.ErrInvalid)
		}
		r.live, r.age = Liveness(live), time.Duration(age)*time.Second-time.Second
		rs = append(rs, r)
	}
	return rs, d.Err()
}

// hello is the body of a KindHello request (the caller's own record alone) and of its
// answer (the callee's own record first, then all that it knows). On the
// wire: the ring's ID, records.
type hello struct {
	ring    blocks.ID
	records []record
}

func (h *hello) encode() []byte {
	var e blocks.Encoder
	e.ID(h.ring)
	encodeRecords(&e, h.records)
	return e.Buf
}

func decodeHello(b []byte) (hello, error) {
	d := blocks.NewDecoder(b)
	h := hello{ring: d.ID()}
	var err error
	if h.records, err = decodeRecords(d); err != nil {
		return hello{}, err
	}
	if len(h.records) == 0 {
		return hello{}, fmt.Errorf("%w: a hello without a record", blocks.ErrInvalid)
	}
	return h, d.Done()
}

// savedVersion is the first byte of what a Store keeps: then the ring's ID,
// the peer's own incarnation, and the records of the others.
const savedVersion = 1

func encodeSaved(ring blocks.ID, incarnation uint64, rs []record) []byte {
	var e blocks.Encoder
	e.Byte(savedVersion)
	e.ID(ring)
	e.Uint(incarnation)
	encodeRecords(&e, rs)
	return e.Buf
}

func decodeSaved(ring blocks.ID, b []byte) (incarnation uint64, rs []record, err error) {
	d := blocks.NewDecoder(b)
	if v := d.Byte(); v != savedVersion {
		return 0, nil, fmt.Errorf("%w: list of known peers of version %d", blocks.ErrInvalid, v)
	}
	if of := d.ID(); d.Err() == nil && of != ring {
		return 0, nil, fmt.Errorf("%w: the list of known peers is of another ring", blocks.ErrInvalid)
	}
	incarnation = d.Uint()
	if rs, err = decodeRecords(d); err != nil {
		return 0, nil, fmt.Errorf("list of known peers: %w", err)
	}
	if err := d.Done(); err != nil {
		return 0, nil, fmt.Errorf("list of known peers: %w", err)
	}
	return incarnation, rs, nil
}
