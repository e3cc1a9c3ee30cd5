package parity

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/mutualfs/mutualfs/blocks"
)

// KeySize is the length of the volume key, bytes.
const KeySize = 32

// stripeInfo precedes the stripe's ID in the HKDF info; part of the format.
const stripeInfo = "mutualfs stripe 1"

const (
	nonceSize = 12
	aadSize   = blocks.IDSize + 4 + 1 + 1
)

// vault derives the keys of stripes from the volume key.
type vault struct{ prk []byte }

func newVault(volumeKey []byte) (*vault, error) {
	if len(volumeKey) != KeySize {
		return nil, fmt.Errorf("%w: the volume key has %d bytes, not %d", blocks.ErrInvalid, KeySize, len(volumeKey))
	}
	prk, err := hkdf.Extract(sha256.New, volumeKey, nil)
	if err != nil {
		return nil, fmt.Errorf("derive from the volume key: %w", err)
	}
	return &vault{prk}, nil
}

// sealer seals and opens the units of one stripe, one at a time.
type sealer struct {
	g     Geometry
	aead  cipher.AEAD
	aad   [aadSize]byte
	nonce [nonceSize]byte // here, so that a unit allocates nothing
}

// sealer derives the stripe's key: HKDF-SHA256(volume key, no salt,
// stripeInfo | ID). The additional data are ID | Len | K | M, so that
// a reference with a wrong length or shape opens nothing.
func (v *vault) sealer(id blocks.StripeID, g Geometry) (*sealer, error) {
	key, err := hkdf.Expand(sha256.New, v.prk, stripeInfo+string(id.ID[:]), KeySize)
	if err != nil {
		return nil, fmt.Errorf("derive the key of stripe %s: %w", id.Short(), err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("stripe %s: %w", id.Short(), err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("stripe %s: %w", id.Short(), err)
	}
	s := &sealer{g: g, aead: aead}
	copy(s.aad[:], id.ID[:])
	binary.BigEndian.PutUint32(s.aad[blocks.IDSize:], uint32(g.Len))
	s.aad[blocks.IDSize+4], s.aad[blocks.IDSize+5] = byte(g.K), byte(g.M)
	return s, nil
}

// number sets the nonce: eight zero bytes and the unit's number, big-endian. Every
// stripe has a key of its own and is sealed once, so no nonce is used twice.
func (s *sealer) number(unit int) []byte {
	binary.BigEndian.PutUint32(s.nonce[nonceSize-4:], uint32(unit))
	return s.nonce[:]
}

// seal fills the data shards, each ShardSize bytes of anything, from content.
func (s *sealer) seal(shards [][]byte, content []byte) {
	size := s.g.Sealed()
	for unit := range s.g.K * s.g.Rows {
		shard, row := s.g.Place(unit)
		slot := shards[shard][row*size : (row+1)*size : (row+1)*size]
		n := s.g.UnitLen(unit)
		if n == 0 {
			clear(slot)
			continue
		}
		at := unit * s.g.Unit
		sealed := s.aead.Seal(slot[:0], s.number(unit), content[at:at+n], s.aad[:])
		clear(slot[len(sealed):])
	}
}

// open checks and decrypts the unit in row (Sealed bytes) and appends its
// content to dst, which must not overlap row.
func (s *sealer) open(dst, row []byte, unit int) error {
	_, err := s.aead.Open(dst, s.number(unit), row[:s.g.UnitLen(unit)+TagSize], s.aad[:])
	return err
}
