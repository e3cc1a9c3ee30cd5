package blocks

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
)

// IDSize is the length of an ID in bytes (160 bits).
const IDSize = 20

// ID is a position on the identifier circle, big-endian: the circle runs
// from 00… to ff… and wraps around.
type ID [IDSize]byte

// PeerID names a peer: the hash of its Ed25519 public key.
type PeerID struct{ ID }

// VnodeID names a virtual node by its position on the circle.
type VnodeID struct{ ID }

// StripeID names a stripe. It is fresh and random for every stripe written,
// so a stripe is immutable and its ID is also its position on the circle.
type StripeID struct{ ID }

// RegisterID names a metadata register; it is random, and its position on
// the circle says which peers should hold the register.
type RegisterID struct{ ID }

// HashID hashes parts, each preceded by its length (uint32, big-endian), with
// SHA-256 and keeps the first 160 bits.
func HashID(parts ...[]byte) ID {
	h := sha256.New()
	var n [4]byte
	for _, p := range parts {
		binary.BigEndian.PutUint32(n[:], uint32(len(p)))
		h.Write(n[:])
		h.Write(p)
	}
	var id ID
	copy(id[:], h.Sum(nil))
	return id
}

// RandomID draws an ID from r, which must be a cryptographic source outside
// of tests. It fails only if r does.
func RandomID(r io.Reader) (ID, error) {
	var id ID
	if _, err := io.ReadFull(r, id[:]); err != nil {
		return ID{}, fmt.Errorf("draw a random ID: %w", err)
	}
	return id, nil
}

// ParseID reads the 40 hexadecimal digits that String prints.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != 2*IDSize {
		return ID{}, fmt.Errorf("%w: an ID has %d hexadecimal digits, %q has %d characters", ErrInvalid, 2*IDSize, s, len(s))
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return ID{}, fmt.Errorf("%w: %q is not an ID: %v", ErrInvalid, s, err)
	}
	return id, nil
}

// String prints the ID as 40 hexadecimal digits.
func (a ID) String() string { return hex.EncodeToString(a[:]) }

// Short prints the first 8 digits, for logs and tables.
func (a ID) Short() string { return hex.EncodeToString(a[:4]) }

// IsZero reports whether a is the zero ID, which names nothing.
func (a ID) IsZero() bool { return a == ID{} }

// MarshalText prints the ID for JSON and TOML.
func (a ID) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads what MarshalText prints.
func (a *ID) UnmarshalText(b []byte) error {
	id, err := ParseID(string(b))
	if err == nil {
		*a = id
	}
	return err
}

// Compare orders IDs as numbers: -1, 0 or +1.
func (a ID) Compare(b ID) int { return bytes.Compare(a[:], b[:]) }

// Between reports whether x lies in the arc (a, b] when one walks clockwise
// from a to b. The arc from a to itself is the whole circle.
func Between(a, x, b ID) bool {
	switch a.Compare(b) {
	case -1:
		return a.Compare(x) < 0 && x.Compare(b) <= 0
	case +1:
		return a.Compare(x) < 0 || x.Compare(b) <= 0
	}
	return true
}

// AddPower returns a + 2^exp on the circle, 0 <= exp < 160: where finger exp
// of a virtual node at a starts.
func (a ID) AddPower(exp int) ID {
	i := IDSize - 1 - exp/8
	carry := uint16(1) << (exp % 8)
	for ; i >= 0 && carry > 0; i-- {
		sum := uint16(a[i]) + carry
		a[i] = byte(sum)
		carry = sum >> 8
	}
	return a
}

// Distance returns how far b lies clockwise from a.
func (a ID) Distance(b ID) ID {
	var d ID
	borrow := 0
	for i := IDSize - 1; i >= 0; i-- {
		v := int(b[i]) - int(a[i]) - borrow
		borrow = 0
		if v < 0 {
			v, borrow = v+256, 1
		}
		d[i] = byte(v)
	}
	return d
}
