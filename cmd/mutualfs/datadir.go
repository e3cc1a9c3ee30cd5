package main

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/mutualfs/mutualfs/blocks"
)

// A data directory holds all that a peer is:
//
//	config.toml   the user's settings
//	ring.json     what the peers of the ring agree on
//	ring.secret   32 bytes, hexadecimal: opens the ring
//	volume.key    32 bytes, hexadecimal: opens content and names; not there with --storage-only
//	peer.key      this peer's identity
//	peers.state   the peers it knows
//	disk/         the first drive: index and virtual disks
//	journal/      of the mount
//	control.sock  for status and the other commands
//	log           of a mount in the background

// ringFile is ring.json: what is fixed when a ring is made.
type ringFile struct {
	Format     int       `json:"format"`
	Ring       blocks.ID `json:"ring"`
	DataShards int       `json:"data_shards"`
	Tolerate   int       `json:"tolerate"`
	StripeSize int       `json:"stripe_size"`
	// VnodeSize is how many bytes of capacity make a virtual node.
	VnodeSize uint64   `json:"vnode_size"`
	Bootstrap []string `json:"bootstrap"` // addresses from the token
	// MakeRoot is set on the peer that makes the root directory, until it has.
	MakeRoot bool `json:"make_root,omitempty"`
}

const ringFormat = 1

// Bounds of a ring's shape.
const (
	minVnodes  = 8
	maxVnodes  = 64
	maxShards  = 64
	stripeSize = 1 << 20
)

func (r *ringFile) validate() error {
	switch {
	case r.Format != ringFormat:
		return fmt.Errorf("the ring has format %d, this program knows format %d: use the same version on all peers", r.Format, ringFormat)
	case r.DataShards < 1 || r.Tolerate < 0 || r.DataShards+r.Tolerate > maxShards:
		return fmt.Errorf("a ring of %d data shards that tolerates %d peers: want at least 1 data shard and at most %d shards together", r.DataShards, r.Tolerate, maxShards)
	case r.StripeSize < 16<<10 || r.StripeSize > blocks.MaxStripe || r.VnodeSize == 0 || r.Ring.IsZero():
		return errors.New("the ring's description is damaged")
	}
	return nil
}

// vnodes is how many virtual nodes a capacity makes: in proportion, within bounds, and
// enough for a ring of one to lay out a whole stripe.
func (r *ringFile) vnodes(capacity uint64) int {
	if capacity == 0 {
		return 0
	}
	least := max(minVnodes, r.DataShards+r.Tolerate)
	return int(min(max(capacity/r.VnodeSize, uint64(least)), maxVnodes))
}

// root is the ID of the register of the root directory.
func (r *ringFile) root() blocks.RegisterID {
	return blocks.RegisterID{ID: blocks.HashID([]byte("root"), r.Ring[:])}
}

// dataDir is an opened data directory.
type dataDir struct {
	path      string
	config    Config
	ring      ringFile
	secret    []byte
	volumeKey []byte // nil: storage only
}

func (d *dataDir) file(name string) string { return filepath.Join(d.path, name) }

// defaultDataDir is /var/lib/mutualfs for root, else under $XDG_DATA_HOME.
func defaultDataDir() string {
	if os.Getuid() == 0 {
		return "/var/lib/mutualfs"
	}
	if base := os.Getenv("XDG_DATA_HOME"); base != "" {
		return filepath.Join(base, "mutualfs")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "mutualfs-data"
	}
	return filepath.Join(home, ".local", "share", "mutualfs")
}

// hasRing reports whether the directory holds a ring.
func hasRing(path string) (bool, error) {
	_, err := os.Stat(filepath.Join(path, "ring.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// openDataDir reads a data directory that init or join has made.
func openDataDir(path string) (*dataDir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	d := &dataDir{path: path}
	text, err := os.ReadFile(d.file("ring.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s holds no ring: make one with mutualfs init --data %s, or join one with mutualfs join", path, path)
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &d.ring); err != nil {
		return nil, fmt.Errorf("%s: %w", d.file("ring.json"), err)
	}
	if err := d.ring.validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", d.file("ring.json"), err)
	}
	if d.secret, err = readKey(d.file("ring.secret")); err != nil {
		return nil, err
	}
	if d.volumeKey, err = readKey(d.file("volume.key")); errors.Is(err, fs.ErrNotExist) {
		d.volumeKey, err = nil, nil
	}
	if err != nil {
		return nil, err
	}
	d.config, err = readConfig(d.file("config.toml"))
	return d, err
}

// createDataDir writes a new data directory. ring.json comes last: without it the directory holds no ring.
func createDataDir(d *dataDir) error {
	if err := os.MkdirAll(d.path, 0o700); err != nil {
		return err
	}
	if has, err := hasRing(d.path); err != nil || has {
		if err == nil {
			err = fmt.Errorf("%s holds a ring already: choose another directory with --data", d.path)
		}
		return err
	}
	if err := writeKey(d.file("ring.secret"), d.secret); err != nil {
		return err
	}
	if d.volumeKey != nil {
		if err := writeKey(d.file("volume.key"), d.volumeKey); err != nil {
			return err
		}
	}
	if err := writeFile(d.file("config.toml"), []byte(renderConfig(d.config)), 0o644); err != nil {
		return err
	}
	return d.writeRing()
}

func (d *dataDir) writeRing() error {
	text, err := json.MarshalIndent(&d.ring, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(d.file("ring.json"), append(text, '\n'), 0o600)
}

// keySize is the length of the ring's secret and of the volume key, bytes.
const keySize = 32

func newKey() ([]byte, error) {
	key := make([]byte, keySize)
	_, err := rand.Read(key)
	return key, err
}

func readKey(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(key) != keySize {
		return nil, fmt.Errorf("%s is damaged: it must hold %d hexadecimal digits", path, 2*keySize)
	}
	return key, nil
}

func writeKey(path string, key []byte) error {
	return writeFile(path, []byte(hex.EncodeToString(key)+"\n"), 0o600)
}

// writeFile replaces a file atomically and durably.
func writeFile(path string, data []byte, mode fs.FileMode) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Chmod(mode)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if e := tmp.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
