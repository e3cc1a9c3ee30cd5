package blocks

import (
	"fmt"
)

const (
	superMagic   = "mutualfs disk\r\n\x00"
	superVersion = 1
	superSize    = 104 // bytes, checksum included; the rest of the unit is zero
)

// superblock says whose disk a disk file is. It lies in the first unit of the file
// and, again, in the last.
type superblock struct {
	ring        ID
	peer        PeerID
	vnode       VnodeID
	incarnation uint64 // random, of this file
	capacity    int64  // size of the file, a multiple of unitSize
}

// encode returns the whole unit.
func (s *superblock) encode() []byte {
	e := Encoder{Buf: make([]byte, 0, unitSize)}
	e.Buf = append(e.Buf, superMagic...)
	e.Uint32(superVersion)
	e.Uint32(unitSize)
	e.ID(s.ring)
	e.ID(s.peer.ID)
	e.ID(s.vnode.ID)
	e.Uint64(s.incarnation)
	e.Uint64(uint64(s.capacity))
	e.Uint32(checksum(e.Buf))
	return e.Buf[:unitSize]
}

// decodeSuperblock reads what encode returned. ErrCorrupt: damaged or none.
// ErrInvalid: a superblock of a format that this program does not know.
func decodeSuperblock(b []byte) (*superblock, error) {
	if len(b) < superSize || string(b[:len(superMagic)]) != superMagic {
		return nil, fmt.Errorf("%w: no superblock", ErrCorrupt)
	}
	sum := NewDecoder(b[superSize-4 : superSize]).Uint32()
	if sum != checksum(b[:superSize-4]) {
		return nil, fmt.Errorf("%w: superblock checksum", ErrCorrupt)
	}
	d := NewDecoder(b[len(superMagic) : superSize-4])
	if v := d.Uint32(); v != superVersion {
		return nil, fmt.Errorf("%w: disk format %d, this program knows %d: use the newer mutualfs", ErrInvalid, v, superVersion)
	}
	if u := d.Uint32(); u != unitSize {
		return nil, fmt.Errorf("%w: disk with units of %d bytes", ErrInvalid, u)
	}
	s := &superblock{ring: d.ID(), peer: PeerID{d.ID()}, vnode: VnodeID{d.ID()}, incarnation: d.Uint64(), capacity: int64(d.Uint64())}
	if err := d.Done(); err != nil {
		return nil, err
	}
	if s.capacity < minCapacity || s.capacity%unitSize != 0 || s.capacity > maxCapacity {
		return nil, fmt.Errorf("%w: superblock capacity %d", ErrCorrupt, s.capacity)
	}
	return s, nil
}

// Bounds of a disk's capacity, in bytes.
const (
	minCapacity = 64 << 10
	maxCapacity = 1 << 43 // so that a unit's number fits 31 bits
)
