package main

import (
	"bytes"
	"compress/flate"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
)

// token is what invite prints and join reads: all that a new peer needs. It is as
// secret as the ring.
type token struct {
	Ring      ringFile `json:"ring"`
	Secret    []byte   `json:"secret"`
	VolumeKey []byte   `json:"volume_key,omitempty"`
}

const tokenPrefix = "mutualfs1-"

// maxToken bounds what join reads, bytes.
const maxToken = 64 << 10

// String prints the token: the prefix, then base64url of crc32 and compressed JSON.
func (t *token) String() (string, error) {
	text, err := json.Marshal(t)
	if err != nil {
		return "", err
	}
	var buf bytes.Buffer
	sum := crc32.ChecksumIEEE(text)
	buf.Write([]byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
	w, err := flate.NewWriter(&buf, flate.BestCompression)
	if err != nil {
		return "", err
	}
	if _, err := w.Write(text); err != nil {
		return "", err
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(buf.Bytes()), nil
}

// parseToken reads a token; white space around it does not matter.
func parseToken(s string) (*token, error) {
	bad := errors.New("this is not a mutualfs token, or it was cut off: copy the whole line that mutualfs invite printed")
	rest, ok := strings.CutPrefix(strings.TrimSpace(s), tokenPrefix)
	if !ok {
		return nil, bad
	}
	raw, err := base64.RawURLEncoding.DecodeString(rest)
	if err != nil || len(raw) < 4 {
		return nil, bad
	}
	packed := bytes.NewReader(raw[4:])
	text, err := io.ReadAll(io.LimitReader(flate.NewReader(packed), maxToken))
	sum := uint32(raw[0])<<24 | uint32(raw[1])<<16 | uint32(raw[2])<<8 | uint32(raw[3])
	if err != nil || packed.Len() > 0 || crc32.ChecksumIEEE(text) != sum {
		return nil, bad
	}
	var t token
	if err := json.Unmarshal(text, &t); err != nil {
		return nil, bad
	}
	if len(t.Secret) != keySize || t.VolumeKey != nil && len(t.VolumeKey) != keySize {
		return nil, bad
	}
	if err := t.Ring.validate(); err != nil {
		return nil, fmt.Errorf("the token is for a ring that this program cannot join: %w", err)
	}
	return &t, nil
}
