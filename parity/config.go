package parity

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"time"

	"github.com/rs/zerolog"

	"github.com/mutualfs/mutualfs/blocks"
)

// Placer says on which holders a stripe belongs.
type Placer interface {
	// Homes returns at least min(n, virtual nodes on the ring) holders: first
	// the home list of the stripe, n entries in ring order, some of
	// which may not be Up; after them stand-ins, live holders in the order in which they
	// should be used: those on peers that are not homes first, then
	// further virtual nodes of live peers.
	Homes(ctx context.Context, id blocks.StripeID, n int) ([]blocks.Holder, error)
	// Search returns one holder of every peer that may hold shards, for when the
	// homes do not suffice. Only if it names every peer whose disks still count, those that
	// are down included (not Up), can a stripe be proven lost.
	Search(ctx context.Context, id blocks.StripeID) ([]blocks.Holder, error)
}

// Config is what a Store needs. New fills zero fields with the defaults.
type Config struct {
	K, M      int    // data and parity shards of a full stripe; M may be 0
	VolumeKey []byte // KeySize bytes; nil: storage only, the Store can Repair and Delete
	Placer    Placer
	Rand      io.Reader // cryptographic, safe for concurrent use; stripe IDs come from it
	Log       zerolog.Logger
	// OnDamage is told, from Run's goroutine, which shards a read found missing or
	// corrupt, so that they can be repaired. It should not wait long: reports that
	// do not fit in the queue are dropped, the next read finds the damage again.
	OnDamage func(stripe blocks.StripeID, missing, corrupt []int)
	// Release is given, whole, the data of a shard that a Get returned and Read has no use for any more, so that the
	// memory can be used again. nil: it is left to the garbage collector.
	Release func(data []byte)

	HedgeAfter   time.Duration // a read goes to other shards when a holder is slower than this and than its own 95th percentile
	GetTimeout   time.Duration // one Get
	PutTimeout   time.Duration // one Put; then the next stand-in is used
	HaveTimeout  time.Duration // one Have or Delete
	SyncTimeout  time.Duration // one Sync of a drive
	ReadTimeout  time.Duration // a whole Read
	WriteTimeout time.Duration // a whole Write, once its memory has been granted
	RetryFor     time.Duration // how long a Read of which too few shards are within reach is tried again; negative: not at all
	ShunFor      time.Duration // how long a peer whose call timed out counts as not Up, and a slow one is avoided by reads

	MaxBytes     int64 // memory of shards under way, all operations together
	MaxPeerCalls int   // calls under way to one peer
	MaxRepairs   int   // stripes put right at the same time by one Sync
	DamageQueue  int   // damaged stripes waiting for OnDamage
}

// Default is a 4+2 configuration without key and placer.
func Default() Config {
	return Config{
		K: 4, M: 2, Rand: rand.Reader, Log: zerolog.Nop(),
		HedgeAfter: 50 * time.Millisecond,
		GetTimeout: 3 * time.Second, PutTimeout: 3 * time.Second, HaveTimeout: time.Second,
		SyncTimeout: 5 * time.Second,                                // a busy hard disk needs seconds
		ReadTimeout: 9 * time.Second, WriteTimeout: 9 * time.Second, // below the 10 s that a call on the mount may take
		RetryFor: 2 * time.Second, // longer than the pause between dials of a peer that returns
		ShunFor:  5 * time.Second, // by then membership has made up its mind
		MaxBytes: 128 << 20, MaxPeerCalls: 64, MaxRepairs: 4, DamageQueue: 256,
	}
}

func orDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

func (c *Config) fill() {
	d := Default()
	if c.K == 0 && c.M == 0 {
		c.K, c.M = d.K, d.M
	}
	if c.Rand == nil {
		c.Rand = d.Rand
	}
	if c.Release == nil {
		c.Release = func([]byte) {}
	}
	orDefault(&c.HedgeAfter, d.HedgeAfter)
	orDefault(&c.GetTimeout, d.GetTimeout)
	orDefault(&c.PutTimeout, d.PutTimeout)
	orDefault(&c.HaveTimeout, d.HaveTimeout)
	orDefault(&c.SyncTimeout, d.SyncTimeout)
	orDefault(&c.ReadTimeout, d.ReadTimeout)
	orDefault(&c.WriteTimeout, d.WriteTimeout)
	orDefault(&c.RetryFor, d.RetryFor)
	orDefault(&c.ShunFor, d.ShunFor)
	orDefault(&c.MaxBytes, d.MaxBytes)
	orDefault(&c.MaxPeerCalls, d.MaxPeerCalls)
	orDefault(&c.MaxRepairs, d.MaxRepairs)
	orDefault(&c.DamageQueue, d.DamageQueue)
}

// Validate reports what is wrong with the configuration, class ErrInvalid.
func (c *Config) Validate() error {
	switch {
	case c.K < 1 || c.M < 0 || c.K+c.M > MaxShards:
		return fmt.Errorf("%w: %d data and %d parity shards; at least 1 and 0, at most %d together", blocks.ErrInvalid, c.K, c.M, MaxShards)
	case c.VolumeKey != nil && len(c.VolumeKey) != KeySize:
		return fmt.Errorf("%w: the volume key has %d bytes, not %d", blocks.ErrInvalid, len(c.VolumeKey), KeySize)
	case c.Placer == nil:
		return fmt.Errorf("%w: no placer", blocks.ErrInvalid)
	case c.MaxBytes < 0 || c.MaxPeerCalls < 0 || c.MaxRepairs < 0 || c.DamageQueue < 0:
		return fmt.Errorf("%w: negative limit", blocks.ErrInvalid)
	}
	for _, d := range []time.Duration{c.HedgeAfter, c.GetTimeout, c.PutTimeout, c.HaveTimeout, c.SyncTimeout, c.ReadTimeout, c.WriteTimeout, c.ShunFor} {
		if d < 0 {
			return fmt.Errorf("%w: negative duration %v", blocks.ErrInvalid, d)
		}
	}
	return nil
}
