package mux

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestIdentityFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "peer.key")
	var ids [8][20]byte
	var wg sync.WaitGroup
	for i := range ids { // all at once: one key
		wg.Go(func() {
			id, err := LoadIdentity(path, nil)
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = id.ID()
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] || id == ([20]byte{}) {
			t.Fatalf("IDs differ: %x", ids)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("the key file has mode %v, %v", info.Mode(), err)
	}
	files, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(files) != 1 {
		t.Errorf("left behind: %v, %v", files, err)
	}
	if err := os.WriteFile(path, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadIdentity(path, nil); err == nil || !strings.Contains(err.Error(), path+" is damaged") {
		t.Errorf("a damaged key: %v", err)
	}
	if got, _ := os.ReadFile(path); string(got) != "nonsense" {
		t.Error("a damaged key was replaced")
	}
	if _, err := LoadIdentity(filepath.Join(path, "x"), nil); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a key below a file: %v", err)
	}
}

// The ID of a fixed key: what names a peer on disk and on the ring must not change.
func TestPeerIDGolden(t *testing.T) {
	id, err := NewIdentity(bytes.NewReader(make([]byte, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	peer, pub := id.ID(), id.Public()
	if got, want := hex.EncodeToString(pub), "3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29"; got != want {
		t.Errorf("public key %s, want %s", got, want)
	}
	if got, want := hex.EncodeToString(peer[:]), "3b32da9947a440f311349a8931da8f6439d5020d"; got != want {
		t.Errorf("ID %s, want %s", got, want)
	}
}

// The CA key of a fixed secret: peers of two versions must agree on it.
func TestAuthorityGolden(t *testing.T) {
	a, err := newAuthority(testRing, make([]byte, SecretSize))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := hex.EncodeToString(a.cert.PublicKey.(ed25519.PublicKey)), "b360f3e28118c085862fb57eee9857f415b27e0a38605c9ec9e9a1c8ae11279c"; got != want {
		t.Errorf("CA key %s, want %s", got, want)
	}
	if _, err := newAuthority(testRing, make([]byte, SecretSize-1)); err == nil {
		t.Error("a short secret was accepted")
	}
}
