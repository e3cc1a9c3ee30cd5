package blocks

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

const (
	unitSize   = 4096 // what extents are counted in
	blockAlign = 512  // payloads begin at a multiple of it

	headerFixed = 120 // bytes of a block header before its table of checksums
	headerMagic = "MFB1"

	// MaxShard bounds the payload of one shard, in bytes.
	MaxShard = 16 << 20
	// MaxShardUnits bounds the number of checksums of one shard.
	MaxShardUnits = 4096
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// extent is a run of units of a disk file.
type extent struct{ start, n uint32 }

func (e extent) offset() int64 { return int64(e.start) * unitSize }
func (e extent) length() int64 { return int64(e.n) * unitSize }

// blockHeader is what lies before the payload of a block: the shard's header,
// where the block belongs, and a checksum per unit of payload.
type blockHeader struct {
	Header
	incarnation uint64 // of the disk file
	start       uint32 // first unit of the extent
	sums        []uint32
}

// sumUnits returns the checksums of data in units of unit bytes.
func sumUnits(data []byte, unit uint32) []uint32 {
	sums := make([]uint32, 0, (len(data)+int(unit)-1)/int(unit))
	for len(data) > 0 {
		n := min(len(data), int(unit))
		sums = append(sums, checksum(data[:n]))
		data = data[n:]
	}
	return sums
}

// unitCount is the number of checksums of a payload.
func unitCount(size, unit uint32) uint32 {
	return uint32((uint64(size) + uint64(unit) - 1) / uint64(unit))
}

// headerSpace is what the header takes before a payload with n checksums.
func headerSpace(n uint32) uint32 {
	return (headerFixed + 4*n + blockAlign - 1) / blockAlign * blockAlign
}

// extentUnits is the number of units that a block with such a payload takes.
func extentUnits(size, unit uint32) uint32 {
	return (headerSpace(unitCount(size, unit)) + size + unitSize - 1) / unitSize
}

func (h *blockHeader) extent() extent {
	return extent{h.start, extentUnits(h.Size, h.Unit)}
}

// payloadAt is the offset of the payload in the disk file.
func (h *blockHeader) payloadAt() int64 {
	return int64(h.start)*unitSize + int64(headerSpace(unitCount(h.Size, h.Unit)))
}

// validate checks what a header must fulfil before it is trusted with sizes.
func (h *Header) validate() error {
	switch {
	case h.Stripe.IsZero():
		return fmt.Errorf("%w: shard without a stripe", ErrInvalid)
	case h.K == 0 || int(h.Index) >= int(h.K)+int(h.M):
		return fmt.Errorf("%w: shard %d of %d+%d", ErrInvalid, h.Index, h.K, h.M)
	case h.StripeLen == 0 || h.StripeLen > MaxStripe:
		return fmt.Errorf("%w: stripe of %d bytes", ErrInvalid, h.StripeLen)
	case h.Size == 0 || h.Size > MaxShard:
		return fmt.Errorf("%w: shard of %d bytes", ErrInvalid, h.Size)
	case h.Unit == 0 || unitCount(h.Size, h.Unit) > MaxShardUnits:
		return fmt.Errorf("%w: shard of %d bytes in units of %d", ErrInvalid, h.Size, h.Unit)
	}
	return nil
}

// append encodes the header, without padding.
func (h *blockHeader) append(b []byte) []byte {
	begin := len(b)
	e := Encoder{Buf: append(b, headerMagic...)}
	e.Byte(h.Index)
	e.Byte(h.K)
	e.Byte(h.M)
	e.Byte(0)
	e.ID(h.Stripe.ID)
	e.Uint32(h.StripeLen)
	e.Uint32(h.Size)
	e.Uint32(h.Unit)
	e.ID(h.Owner.Register.ID)
	e.Uint64(h.Owner.Ino)
	e.ID(h.Home.ID)
	e.Uint64(uint64(h.Written))
	e.Uint64(h.incarnation)
	e.Uint64(uint64(h.start))
	e.Uint32(uint32(len(h.sums)))
	e.Uint32(0)
	for _, s := range h.sums {
		e.Uint32(s)
	}
	crc := checksum(e.Buf[begin:])
	binary.BigEndian.PutUint32(e.Buf[begin+headerFixed-4:], crc)
	return e.Buf
}

// peekUnits returns the number of checksums that a header at the begin of b
// claims, so that the caller knows how much to read; false: no header.
func peekUnits(b []byte) (uint32, bool) {
	if len(b) < headerFixed || string(b[:4]) != headerMagic {
		return 0, false
	}
	n := binary.BigEndian.Uint32(b[headerFixed-8:])
	return n, n > 0 && n <= MaxShardUnits
}

// decodeHeader reads a header at the begin of b; b may be longer. Errors are of class
// ErrCorrupt.
func decodeHeader(b []byte) (*blockHeader, error) {
	n, ok := peekUnits(b)
	if !ok {
		return nil, fmt.Errorf("%w: no block header", ErrCorrupt)
	}
	end := headerFixed + 4*int(n)
	if len(b) < end {
		return nil, fmt.Errorf("%w: block header cut short", ErrCorrupt)
	}
	crc := crc32.Update(0, castagnoli, b[:headerFixed-4])
	crc = crc32.Update(crc, castagnoli, []byte{0, 0, 0, 0})
	crc = crc32.Update(crc, castagnoli, b[headerFixed:end])
	if crc != binary.BigEndian.Uint32(b[headerFixed-4:]) {
		return nil, fmt.Errorf("%w: block header checksum", ErrCorrupt)
	}
	return parseHeader(b[4:end])
}

// parseHeader reads the fields behind the magic; the checksum was right.
func parseHeader(b []byte) (*blockHeader, error) {
	d := NewDecoder(b)
	h := new(blockHeader)
	h.Index, h.K, h.M = d.Byte(), d.Byte(), d.Byte()
	if d.Byte() != 0 {
		return nil, fmt.Errorf("%w: block header flags", ErrCorrupt)
	}
	h.Stripe = StripeID{d.ID()}
	h.StripeLen, h.Size, h.Unit = d.Uint32(), d.Uint32(), d.Uint32()
	h.Owner.Register = RegisterID{d.ID()}
	h.Owner.Ino = d.Uint64()
	h.Home = VnodeID{d.ID()}
	h.Written = int64(d.Uint64())
	h.incarnation = d.Uint64()
	start := d.Uint64()
	n := d.Uint32()
	d.Uint32()
	h.start = uint32(start)
	if err := h.validate(); err != nil {
		return nil, fmt.Errorf("%w: block header: %v", ErrCorrupt, err)
	}
	if uint64(h.start) != start || n != unitCount(h.Size, h.Unit) {
		return nil, fmt.Errorf("%w: block header sizes", ErrCorrupt)
	}
	h.sums = make([]uint32, n)
	for i := range h.sums {
		h.sums[i] = d.Uint32()
	}
	if err := d.Done(); err != nil {
		return nil, err
	}
	return h, nil
}
