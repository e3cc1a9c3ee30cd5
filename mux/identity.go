package mux

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Identity is a peer's Ed25519 key.
type Identity struct {
	key ed25519.PrivateKey
	id  [20]byte
}

// PeerID derives the ID of the peer that has the public key: SHA-256 over
// "peer" and the key, each preceded by its length (uint32, big-endian); the first 20 bytes.
func PeerID(pub ed25519.PublicKey) [20]byte {
	h := sha256.New()
	var n [4]byte
	for _, part := range [][]byte{[]byte("peer"), pub} {
		binary.BigEndian.PutUint32(n[:], uint32(len(part)))
		h.Write(n[:])
		h.Write(part)
	}
	return [20]byte(h.Sum(nil)[:20])
}

// NewIdentity draws a key from r (nil: crypto/rand).
func NewIdentity(r io.Reader) (*Identity, error) {
	if r == nil {
		r = rand.Reader
	}
	seed := make([]byte, ed25519.SeedSize)
	if _, err := io.ReadFull(r, seed); err != nil {
		return nil, fmt.Errorf("draw a peer key: %w", err)
	}
	return identityOf(ed25519.NewKeyFromSeed(seed)), nil
}

func identityOf(key ed25519.PrivateKey) *Identity {
	return &Identity{key: key, id: PeerID(key.Public().(ed25519.PublicKey))}
}

// ID is the peer's ID.
func (i *Identity) ID() [20]byte { return i.id }

// Public is the public key.
func (i *Identity) Public() ed25519.PublicKey { return i.key.Public().(ed25519.PublicKey) }

const keyBlock = "PRIVATE KEY"

// LoadIdentity reads the key from the PEM file (PKCS #8); if there is none it
// draws one from r (nil: crypto/rand) and makes the file, mode 0600, whole or not at
// all. Of several processes that make it at the same time one wins, and all get its key.
func LoadIdentity(path string, r io.Reader) (*Identity, error) {
	id, err := readIdentity(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return id, err
	}
	if id, err = NewIdentity(r); err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(id.key)
	if err != nil {
		return nil, fmt.Errorf("encode the peer key: %w", err)
	}
	if err := createFile(path, pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der})); err != nil {
		return nil, fmt.Errorf("make the peer key %s: %w", path, err)
	}
	return readIdentity(path)
}

func readIdentity(path string) (*Identity, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the peer key: %w", err)
	}
	block, _ := pem.Decode(raw)
	if block == nil || block.Type != keyBlock {
		return nil, fmt.Errorf("the peer key %s is damaged: no PEM block %q in it", path, keyBlock)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the peer key %s is damaged: %w", path, err)
	}
	ed, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("the peer key %s is a %T, not an Ed25519 key", path, key)
	}
	return identityOf(ed), nil
}

// createFile makes path with the content, durably, unless it exists.
func createFile(path string, content []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".key-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
