package blocks

import (
	"encoding/binary"
	"fmt"
)

// Encoder appends values to a buffer in the project's one binary encoding:
// unsigned varints (LEB128) for numbers, big-endian fixed words where said so, lengths before
// bytes, IDs as their 20 bytes. The zero Encoder is ready for use.
type Encoder struct{ Buf []byte }

// Uint appends an unsigned varint.
func (e *Encoder) Uint(v uint64) { e.Buf = binary.AppendUvarint(e.Buf, v) }

// Int appends a zig-zag varint.
func (e *Encoder) Int(v int64) { e.Buf = binary.AppendVarint(e.Buf, v) }

// Byte appends one byte.
func (e *Encoder) Byte(v byte) { e.Buf = append(e.Buf, v) }

// Bool appends one byte, 0 or 1.
func (e *Encoder) Bool(v bool) {
	if v {
		e.Byte(1)
	} else {
		e.Byte(0)
	}
}

// Uint32 appends four bytes, big-endian.
func (e *Encoder) Uint32(v uint32) { e.Buf = binary.BigEndian.AppendUint32(e.Buf, v) }

// Uint64 appends eight bytes, big-endian.
func (e *Encoder) Uint64(v uint64) { e.Buf = binary.BigEndian.AppendUint64(e.Buf, v) }

// Bytes appends the length of v and v.
func (e *Encoder) Bytes(v []byte) {
	e.Uint(uint64(len(v)))
	e.Buf = append(e.Buf, v...)
}

// String appends the length of v and v.
func (e *Encoder) String(v string) {
	e.Uint(uint64(len(v)))
	e.Buf = append(e.Buf, v...)
}

// ID appends the 20 bytes of v.
func (e *Encoder) ID(v ID) { e.Buf = append(e.Buf, v[:]...) }

// Decoder reads what an Encoder wrote. The first error sticks; afterwards all
// methods return zero values. Nothing is allocated for a length that the
// remaining input cannot hold.
type Decoder struct {
	buf []byte
	err error
}

// NewDecoder reads from b, which must not change meanwhile.
func NewDecoder(b []byte) *Decoder { return &Decoder{buf: b} }

func (d *Decoder) fail(what string) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: malformed message: %s", ErrCorrupt, what)
	}
	d.buf = nil
}

// Err returns the first error, of class ErrCorrupt.
func (d *Decoder) Err() error { return d.err }

// Done returns the first error, or one if input is left over.
func (d *Decoder) Done() error {
	if d.err == nil && len(d.buf) > 0 {
		d.fail(fmt.Sprintf("%d bytes left over", len(d.buf)))
	}
	return d.err
}

// Len returns how many bytes are left.
func (d *Decoder) Len() int { return len(d.buf) }

// Uint reads an unsigned varint.
func (d *Decoder) Uint() uint64 {
	v, n := binary.Uvarint(d.buf)
	if n <= 0 {
		d.fail("bad number")
		return 0
	}
	d.buf = d.buf[n:]
	return v
}

// Int reads a zig-zag varint.
func (d *Decoder) Int() int64 {
	v, n := binary.Varint(d.buf)
	if n <= 0 {
		d.fail("bad number")
		return 0
	}
	d.buf = d.buf[n:]
	return v
}

// Count reads a number of things that follow, each of at least size > 0 bytes:
// more than the input can hold is an error, so it may be used to allocate.
func (d *Decoder) Count(size int) int {
	v := d.Uint()
	if v > uint64(len(d.buf)/size) {
		d.fail("count larger than the message")
		return 0
	}
	return int(v)
}

func (d *Decoder) fixed(n int) []byte {
	if len(d.buf) < n {
		d.fail("too short")
		return nil
	}
	b := d.buf[:n:n]
	d.buf = d.buf[n:]
	return b
}

// Byte reads one byte.
func (d *Decoder) Byte() byte {
	if b := d.fixed(1); b != nil {
		return b[0]
	}
	return 0
}

// Bool reads one byte that must be 0 or 1.
func (d *Decoder) Bool() bool {
	switch d.Byte() {
	case 0:
		return false
	case 1:
		return true
	}
	d.fail("bad boolean")
	return false
}

// Uint32 reads four bytes, big-endian.
func (d *Decoder) Uint32() uint32 {
	if b := d.fixed(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// Uint64 reads eight bytes, big-endian.
func (d *Decoder) Uint64() uint64 {
	if b := d.fixed(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// Bytes reads a length and that many bytes, which alias the input.
func (d *Decoder) Bytes() []byte {
	n := d.Uint()
	if n > uint64(len(d.buf)) {
		d.fail("length larger than the message")
		return nil
	}
	return d.fixed(int(n))
}

// String reads a length and that many bytes.
func (d *Decoder) String() string { return string(d.Bytes()) }

// ID reads 20 bytes.
func (d *Decoder) ID() ID {
	var id ID
	copy(id[:], d.fixed(IDSize))
	return id
}
