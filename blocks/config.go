package blocks

import (
	"crypto/rand"
	"fmt"
	"io"
	"path/filepath"

	"github.com/rs/zerolog"
)

// DefaultReserve is the fraction of a host drive that is left to others.
const DefaultReserve = 0.05

// Config says whose virtual disks a Store keeps, and where.
type Config struct {
	Ring   ID
	Peer   PeerID
	Drives []DriveConfig
	Vnodes []VnodeConfig

	Indexes Indexes         // where the indexes are kept; required
	FS      FS              // nil: the host's
	Rand    io.Reader       // nil: crypto/rand
	Log     *zerolog.Logger // nil: none
	// OnDamage is told of each block that Get finds corrupt, in the caller's
	// goroutine and without locks held. nil: nobody is.
	OnDamage func(Location)
	// Buffer returns n bytes, whatever their content, for what Get reads; the caller of Get may use them for
	// something else afterwards. nil: they are made.
	Buffer func(n int) []byte
}

// DriveConfig is one host drive. Everything on it lies in Dir.
type DriveConfig struct {
	Dir string
	// The drive accepts no more when less than this is free: ReserveBytes if
	// positive, else that fraction of the whole (0: DefaultReserve; negative: as
	// little as possible, 16 MiB).
	Reserve      float64
	ReserveBytes int64
}

// VnodeConfig is one virtual disk.
type VnodeConfig struct {
	ID       VnodeID
	Number   int   // names the file: vnode-NN.disk
	Drive    int   // index in Config.Drives
	Capacity int64 // bytes; only for a disk that is yet to be made
}

// Validate says what is wrong with the configuration, of class ErrInvalid.
func (c *Config) Validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: storage config: %s", ErrInvalid, fmt.Sprintf(format, args...))
	}
	if c.Ring.IsZero() || c.Peer.IsZero() {
		return bad("no ring or no peer")
	}
	if c.Indexes == nil {
		return bad("no index")
	}
	if len(c.Drives) == 0 {
		return bad("no drive")
	}
	dirs := map[string]bool{}
	for i, d := range c.Drives {
		if d.Dir == "" || dirs[filepath.Clean(d.Dir)] {
			return bad("drive %d: directory %q is empty or named twice", i, d.Dir)
		}
		if d.Reserve >= 1 {
			return bad("drive %s: the reserve is a fraction below 1, not %g", d.Dir, d.Reserve)
		}
		dirs[filepath.Clean(d.Dir)] = true
	}
	ids, names := map[VnodeID]bool{}, map[[2]int]bool{}
	for _, v := range c.Vnodes {
		name := [2]int{v.Drive, v.Number}
		switch {
		case v.ID.IsZero() || ids[v.ID]:
			return bad("virtual node %s is zero or named twice", v.ID)
		case v.Drive < 0 || v.Drive >= len(c.Drives):
			return bad("virtual node %s: there is no drive %d", v.ID, v.Drive)
		case v.Number < 0 || names[name]:
			return bad("virtual node %s: number %d is negative or taken", v.ID, v.Number)
		case v.Capacity < minCapacity || v.Capacity > maxCapacity:
			return bad("virtual node %s: capacity %d is not within %d and %d", v.ID, v.Capacity, minCapacity, int64(maxCapacity))
		}
		ids[v.ID], names[name] = true, true
	}
	return nil
}

// fill sets the defaults.
func (c *Config) fill() {
	if c.FS == nil {
		c.FS = OSFS{}
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.Log == nil {
		nop := zerolog.Nop()
		c.Log = &nop
	}
	if c.Buffer == nil {
		c.Buffer = func(n int) []byte { return make([]byte, n) }
	}
	if c.OnDamage == nil {
		c.OnDamage = func(Location) {}
	}
}

// reserve is how many bytes of total must stay free, what the index needs included.
func (d *DriveConfig) reserve(total int64) int64 {
	n := int64(d.Reserve * float64(total))
	switch {
	case d.ReserveBytes > 0:
		n = d.ReserveBytes
	case d.Reserve == 0:
		n = int64(DefaultReserve * float64(total))
	}
	return max(indexRoom, n)
}
