package tree

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/mutualfs/mutualfs/blocks"
)

// sealer closes and opens the values of one register with AES-256-GCM. The key is
// HKDF-SHA256 of the volume key, with the register's ID as salt; a sealed value is
// a random nonce of 12 bytes, the ciphertext, and the tag of 16 bytes; the
// associated data is one byte: 'S' for snapshots, 'D' for deltas.
type sealer struct {
	aead cipher.AEAD
	rand io.Reader
}

func newSealer(volumeKey []byte, id blocks.RegisterID, rand io.Reader) (*sealer, error) {
	key, err := hkdf.Key(sha256.New, volumeKey, id.ID[:], "mutualfs register value 1", 32)
	if err != nil {
		return nil, fmt.Errorf("derive the key of register %s: %w", id.Short(), err)
	}
	b, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("key of register %s: %w", id.Short(), err)
	}
	a, err := cipher.NewGCM(b)
	if err != nil {
		return nil, fmt.Errorf("key of register %s: %w", id.Short(), err)
	}
	return &sealer{a, rand}, nil
}

// ValueSealer seals snapshots of a register that is no container, as those of containers are sealed.
type ValueSealer struct{ s *sealer }

// NewValueSealer derives the key of a register from the volume's.
func NewValueSealer(volumeKey []byte, id blocks.RegisterID, rand io.Reader) (*ValueSealer, error) {
	s, err := newSealer(volumeKey, id, rand)
	if err != nil {
		return nil, err
	}
	return &ValueSealer{s}, nil
}

// Seal closes a value.
func (v *ValueSealer) Seal(clear []byte) ([]byte, error) { return v.s.seal(sealSnapshot, clear) }

// Open opens a sealed value; the error is of class blocks.ErrCorrupt.
func (v *ValueSealer) Open(sealed []byte) ([]byte, error) { return v.s.open(sealSnapshot, sealed) }

const (
	sealSnapshot = 'S'
	sealDelta    = 'D'
)

func (s *sealer) seal(kind byte, clear []byte) ([]byte, error) {
	out := make([]byte, s.aead.NonceSize(), s.aead.NonceSize()+len(clear)+s.aead.Overhead())
	if _, err := io.ReadFull(s.rand, out); err != nil {
		return nil, fmt.Errorf("draw a nonce: %w", err)
	}
	return s.aead.Seal(out, out, clear, []byte{kind}), nil
}

func (s *sealer) open(kind byte, sealed []byte) ([]byte, error) {
	n := s.aead.NonceSize()
	if len(sealed) < n {
		return nil, fmt.Errorf("%w: sealed value of %d bytes", blocks.ErrCorrupt, len(sealed))
	}
	b, err := s.aead.Open(nil, sealed[:n], sealed[n:], []byte{kind})
	if err != nil {
		return nil, fmt.Errorf("%w: the seal of a register's value is broken", blocks.ErrCorrupt)
	}
	return b, nil
}
