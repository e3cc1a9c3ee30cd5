package store

import (
	"fmt"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

// The calls. Payloads of shards travel as Call.Payload, never in the body.
const (
	kindGet    overlay.Kind = 0x0301 // getRequest -> shardHead, payload
	kindPut    overlay.Kind = 0x0302 // putRequest, payload -> epoch (uint64)
	kindHave   overlay.Kind = 0x0303 // stripe -> count, headers
	kindDelete overlay.Kind = 0x0304 // stripe -> nothing
	kindSync   overlay.Kind = 0x0305 // syncRequest -> nothing

	kindDigest    overlay.Kind = 0x0401 // nothing -> digests
	kindInventory overlay.Kind = 0x0402 // inventoryRequest -> inventory
	kindInspect   overlay.Kind = 0x0403 // inspectRequest -> inspection
	kindPin       overlay.Kind = 0x0404 // shardName -> nothing
	kindMove      overlay.Kind = 0x0405 // moveRequest -> nothing
	kindCheck     overlay.Kind = 0x0406 // stripe -> checkReport
	kindCounts    overlay.Kind = 0x0407 // countsRequest -> countsReply
	kindList      overlay.Kind = 0x0408 // listRequest -> listing
)

// smallCall is the largest payload that travels with metadata, not with bulk: one
// unit of a stripe with its seal.
const smallCall = 20 << 10

// minHeader is the fewest bytes an encoded header can take.
const minHeader = 3*blocks.IDSize + 8

// message is a body that encodes and decodes itself.
type message interface {
	encode(e *blocks.Encoder)
	decode(d *blocks.Decoder)
}

func encode(m message) []byte {
	var e blocks.Encoder
	m.encode(&e)
	return e.Buf
}

func decode(what string, body []byte, m message) error {
	d := blocks.NewDecoder(body)
	m.decode(d)
	if err := d.Done(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

func encodeHeader(e *blocks.Encoder, h *blocks.Header) {
	e.ID(h.Stripe.ID)
	e.Uint(uint64(h.StripeLen))
	e.Byte(h.Index)
	e.Byte(h.K)
	e.Byte(h.M)
	e.Uint(uint64(h.Size))
	e.Uint(uint64(h.Unit))
	e.ID(h.Owner.Register.ID)
	e.Uint(h.Owner.Ino)
	e.ID(h.Home.ID)
	e.Int(h.Written)
}

func decodeHeader(d *blocks.Decoder) blocks.Header {
	var h blocks.Header
	h.Stripe.ID = d.ID()
	h.StripeLen = uint32(d.Uint())
	h.Index, h.K, h.M = d.Byte(), d.Byte(), d.Byte()
	h.Size = uint32(d.Uint())
	h.Unit = uint32(d.Uint())
	h.Owner.Register.ID = d.ID()
	h.Owner.Ino = d.Uint()
	h.Home.ID = d.ID()
	h.Written = d.Int()
	return h
}

// stripeName is the body of calls about a whole stripe.
type stripeName struct{ stripe blocks.StripeID }

func (m *stripeName) encode(e *blocks.Encoder) { e.ID(m.stripe.ID) }
func (m *stripeName) decode(d *blocks.Decoder) { m.stripe.ID = d.ID() }

// shardName names one shard on one virtual disk.
type shardName struct {
	vnode  blocks.VnodeID
	stripe blocks.StripeID
	index  int
}

func (m *shardName) encode(e *blocks.Encoder) {
	e.ID(m.vnode.ID)
	e.ID(m.stripe.ID)
	e.Byte(byte(m.index))
}

func (m *shardName) decode(d *blocks.Decoder) {
	m.vnode.ID = d.ID()
	m.stripe.ID = d.ID()
	m.index = int(d.Byte())
}

type getRequest struct {
	shardName
	off, n uint32
}

func (m *getRequest) encode(e *blocks.Encoder) {
	m.shardName.encode(e)
	e.Uint32(m.off)
	e.Uint32(m.n)
}

func (m *getRequest) decode(d *blocks.Decoder) {
	m.shardName.decode(d)
	m.off, m.n = d.Uint32(), d.Uint32()
}

// shardHead is a shard without its payload.
type shardHead struct {
	header blocks.Header
	off    uint32
}

func (m *shardHead) encode(e *blocks.Encoder) {
	encodeHeader(e, &m.header)
	e.Uint32(m.off)
}

func (m *shardHead) decode(d *blocks.Decoder) {
	m.header = decodeHeader(d)
	m.off = d.Uint32()
}

type putRequest struct {
	vnode  blocks.VnodeID
	repair bool // not by the stripe's writer
	header blocks.Header
}

func (m *putRequest) encode(e *blocks.Encoder) {
	e.ID(m.vnode.ID)
	e.Bool(m.repair)
	encodeHeader(e, &m.header)
}

func (m *putRequest) decode(d *blocks.Decoder) {
	m.vnode.ID = d.ID()
	m.repair = d.Bool()
	m.header = decodeHeader(d)
}

type epochReply struct{ epoch blocks.Epoch }

func (m *epochReply) encode(e *blocks.Encoder) { e.Uint64(uint64(m.epoch)) }
func (m *epochReply) decode(d *blocks.Decoder) { m.epoch = blocks.Epoch(d.Uint64()) }

type syncRequest struct {
	drive int
	epoch blocks.Epoch
}

func (m *syncRequest) encode(e *blocks.Encoder) {
	e.Uint(uint64(m.drive))
	e.Uint64(uint64(m.epoch))
}

func (m *syncRequest) decode(d *blocks.Decoder) {
	m.drive = int(uint32(d.Uint()) & 0x7fffffff)
	m.epoch = blocks.Epoch(d.Uint64())
}

type headers struct{ list []blocks.Header }

func (m *headers) encode(e *blocks.Encoder) {
	e.Uint(uint64(len(m.list)))
	for i := range m.list {
		encodeHeader(e, &m.list[i])
	}
}

func (m *headers) decode(d *blocks.Decoder) {
	n := d.Count(minHeader)
	for range n {
		m.list = append(m.list, decodeHeader(d))
	}
}

// nothing is an empty body.
type nothing struct{}

func (nothing) encode(*blocks.Encoder) {}
func (nothing) decode(*blocks.Decoder) {}
