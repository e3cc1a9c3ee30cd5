package store

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/rs/zerolog"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

// Local is the virtual disks of this peer. All methods may be called
// concurrently; slices follow blocks.Holder.
type Local interface {
	// Put stores a whole shard on the virtual disk. ErrNoSpace: it is full. The same
	// shard again is no error.
	Put(vnode blocks.VnodeID, s blocks.Shard) (blocks.Epoch, error)
	// Get reads payload bytes [off, off+n) (n = 0: to the end) of a shard from any virtual
	// disk, prefer first. ErrNotFound: no such shard; ErrCorrupt: damaged.
	Get(prefer blocks.VnodeID, stripe blocks.StripeID, index int, off, n uint32) (blocks.Shard, error)
	// Have lists the shards of a stripe on all virtual disks, except those known to be damaged.
	Have(stripe blocks.StripeID) ([]blocks.Location, error)
	// Delete removes all shards of a stripe; none is no error.
	Delete(stripe blocks.StripeID) error
	// DeleteShard removes one shard from one virtual disk; none is no error.
	DeleteShard(vnode blocks.VnodeID, stripe blocks.StripeID, index int) error
	// Sync makes durable what was put on the drive under the epoch, or says ErrLost.
	Sync(ctx context.Context, drive int, epoch blocks.Epoch) error
	// Scan calls fn for every shard of a stripe in the arc (from, to] of the circle,
	// damaged ones too, until fn returns false; from = to is the whole circle. Shards
	// put or deleted meanwhile may be missed.
	Scan(from, to blocks.ID, fn func(blocks.Location) bool) error
	// Verify reads the whole block and checks it. ErrCorrupt: it is damaged;
	// ErrNotFound: it is no longer there.
	Verify(blocks.Location) error
}

// KV is a small durable store for what a peer must not forget about stripes. Slices that
// go in are copied. It may be shared with others: see the package's doc for the keys.
type KV interface {
	// Get returns ErrNotFound for a key that is not set.
	Get(key []byte) ([]byte, error)
	// Apply makes all changes or none; with sync they are durable on return.
	Apply(changes []blocks.KVChange, sync bool) error
	// Scan calls fn for all keys with the prefix in order until it returns false; fn does
	// not keep the slices, and does not call the KV.
	Scan(prefix []byte, fn func(key, value []byte) bool) error
}

// Rebuild makes shard index of the stripe, from a good copy or from any k other
// shards, puts it on the holder, and syncs it there (parity.Store.Recreate). ErrUnavailable: fewer
// than k shards can be had now.
type Rebuild func(ctx context.Context, stripe blocks.StripeID, index int, to blocks.Holder) error

// Config is what a Service needs. Zero durations, rates and counts stand for the defaults.
type Config struct {
	Ring    overlay.Ring
	Local   Local   // nil: a client, which stores nothing
	KV      KV      // required with Local
	K, M    int     // of the ring: how many homes Search and Drain look at first
	Rebuild Rebuild // nil: missing shards are counted, not rebuilt

	RepairAfter    time.Duration // when the table says Gone; bounds the life of tombstones
	ScanEvery      time.Duration // between rounds of the repairer if nothing happens
	Settle         time.Duration // how long a stripe with missing shards is left alone after one was put: its writer may not be done
	TableDelay     time.Duration // from a change of the table to the round that follows: changes come in flocks
	CallTimeout    time.Duration // bound of a call whose context has no deadline
	RepairRate     int64         // bytes/s of hand-off and repair that this peer orders
	RepairParallel int           // stripes under repair at once, ordered by this peer
	ScrubEvery     time.Duration // from the beginning of one background scrub to the next
	ScrubRate      int64         // bytes/s of the background scrub

	Log  zerolog.Logger
	Rand io.Reader
}

// Default returns the defaults; Ring and the others that have none are unset.
func Default() Config {
	return Config{
		K: 4, M: 2,
		RepairAfter:    15 * time.Minute,
		ScanEvery:      time.Minute,
		Settle:         15 * time.Second,
		TableDelay:     time.Second,
		CallTimeout:    15 * time.Second,
		RepairRate:     128 << 20,
		RepairParallel: 4,
		ScrubEvery:     30 * 24 * time.Hour,
		ScrubRate:      8 << 20,
		Log:            zerolog.Nop(),
	}
}

func orDefault[T int | int64 | time.Duration](v *T, def T) {
	if *v == 0 {
		*v = def
	}
}

func (c *Config) fill() {
	def := Default()
	orDefault(&c.RepairAfter, def.RepairAfter)
	orDefault(&c.ScanEvery, def.ScanEvery)
	orDefault(&c.Settle, def.Settle)
	orDefault(&c.TableDelay, def.TableDelay)
	orDefault(&c.CallTimeout, def.CallTimeout)
	orDefault(&c.RepairRate, def.RepairRate)
	orDefault(&c.RepairParallel, def.RepairParallel)
	orDefault(&c.ScrubEvery, def.ScrubEvery)
	orDefault(&c.ScrubRate, def.ScrubRate)
}

// Validate says what is missing or impossible.
func (c *Config) Validate() error {
	switch {
	case c.Ring == nil:
		return fmt.Errorf("%w: store: no ring", blocks.ErrInvalid)
	case c.Rand == nil:
		return fmt.Errorf("%w: store: no source of randomness", blocks.ErrInvalid)
	case c.Local != nil && c.KV == nil:
		return fmt.Errorf("%w: store: virtual disks without a place for tombstones", blocks.ErrInvalid)
	case c.K < 1 || c.M < 0 || c.K+c.M > 255:
		return fmt.Errorf("%w: store: %d+%d shards", blocks.ErrInvalid, c.K, c.M)
	case min(c.RepairAfter, c.ScanEvery, c.Settle, c.TableDelay, c.CallTimeout, c.ScrubEvery) < 0:
		return fmt.Errorf("%w: store: negative duration", blocks.ErrInvalid)
	case min(c.RepairRate, c.ScrubRate, int64(c.RepairParallel)) < 0:
		return fmt.Errorf("%w: store: negative limit", blocks.ErrInvalid)
	}
	return nil
}
