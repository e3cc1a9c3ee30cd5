package content

import (
	"context"
	"fmt"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
	"github.com/rs/zerolog"
)

// Inodes is what content needs of the tree. No method may call back into Files
// other than through Hooks, and none is called with a mutex of Files held.
type Inodes interface {
	// AppendData journals a write and returns its record's number, which is larger
	// than that of any record before.
	AppendData(ctx context.Context, ino tree.Ino, off uint64, p []byte) (tree.Seq, error)
	// Grown says that data up to end was written at now: what Getattr shows until the Writeback.
	Grown(ino tree.Ino, off, n uint64, now tree.Time)
	// Content returns the file's committed (or enqueued) content, of extents at least those in [off, off+n); its Size need
	// not include Grown.
	Content(ctx context.Context, ino tree.Ino, off, n uint64) (tree.Content, error)
	// Writeback makes new content the file's. A zero Mtime leaves the time as it is.
	Writeback(ctx context.Context, w tree.Writeback) error
	Truncate(ctx context.Context, ino tree.Ino, size uint64) error
	Punch(ctx context.Context, ino tree.Ino, off, n uint64) error
	Fsync(ctx context.Context, ino tree.Ino) error
	OwnerOf(ino tree.Ino) blocks.Owner
}

// Stripes stores and fetches immutable stripes.
type Stripes interface {
	// Write puts a new stripe; it is durable after Sync of its receipt.
	Write(ctx context.Context, owner blocks.Owner, content []byte) (blocks.Receipt, error)
	// Sync makes the receipts' stripes durable. lost are the indices of those
	// that must be written again; after an error nothing is known of any.
	Sync(ctx context.Context, receipts []blocks.Receipt) (lost []int, err error)
	// Discard deletes, as far as it can, a stripe that nothing has come to name. It does not wait.
	Discard(r blocks.Receipt)
	// Read fills p with the stripe's content from off.
	Read(ctx context.Context, ref blocks.StripeRef, off uint32, p []byte) error
}

// SyncMode says when data becomes durable without being asked.
type SyncMode string

const (
	SyncFsync SyncMode = "fsync" // at fsync, and by age
	SyncClose SyncMode = "close" // at every close, too
)

// Config of Files. Zero values take the defaults of Default.
type Config struct {
	Inodes  Inodes
	Stripes Stripes

	StripeSize    int           // bytes of content of one stripe, a multiple of Unit
	MapBytes      uint64        // no stripe has content of two such ranges of a file: see tree.MapBytes; a multiple of StripeSize
	Sync          SyncMode      // what Flush does
	DirtyLimit    int64         // bytes of memory for data not committed yet; beyond, writers wait
	SyncBytes     int64         // written stripes are synced when so many bytes have gathered
	WriteParallel int           // stripes written at the same time
	ReadAhead     int           // bytes fetched before they are asked for, at most, per stream
	ReadParallel  int           // stripes read ahead at the same time
	CacheBytes    int64         // bytes of stripe content kept
	MaxAge        time.Duration // dirty data older than this is written
	Log           zerolog.Logger
}

// Unit is what a random read fetches at least and is aligned to, in bytes.
const Unit = 16 << 10

// Default is the configuration of an ordinary mount, without its seams.
func Default() Config {
	return Config{
		StripeSize:    1 << 20,
		MapBytes:      tree.MapBytes,
		Sync:          SyncFsync,
		DirtyLimit:    256 << 20,
		SyncBytes:     32 << 20,
		WriteParallel: 8,
		ReadAhead:     8 << 20,
		ReadParallel:  8,
		CacheBytes:    128 << 20,
		MaxAge:        2 * time.Second,
		Log:           zerolog.Nop(),
	}
}

// withDefaults fills what is zero.
func (c Config) withDefaults() Config {
	d := Default()
	fill(&c.StripeSize, d.StripeSize)
	fill(&c.MapBytes, d.MapBytes)
	fill(&c.Sync, d.Sync)
	fill(&c.DirtyLimit, d.DirtyLimit)
	fill(&c.SyncBytes, min(d.SyncBytes, c.DirtyLimit/4))
	fill(&c.WriteParallel, d.WriteParallel)
	fill(&c.ReadAhead, d.ReadAhead)
	fill(&c.ReadParallel, d.ReadParallel)
	fill(&c.CacheBytes, d.CacheBytes)
	fill(&c.MaxAge, d.MaxAge)
	return c
}

func fill[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Validate says what is wrong with the configuration.
func (c Config) Validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("content: %w: "+format, append([]any{blocks.ErrInvalid}, args...)...)
	}
	switch {
	case c.Inodes == nil || c.Stripes == nil:
		return bad("no inodes or no stripes")
	case c.StripeSize < Unit || c.StripeSize > blocks.MaxStripe || c.StripeSize%Unit != 0:
		return bad("stripe size %d is not a multiple of %d up to %d", c.StripeSize, Unit, blocks.MaxStripe)
	case c.MapBytes%uint64(c.StripeSize) != 0:
		return bad("a map of %d bytes is not a multiple of stripes of %d", c.MapBytes, c.StripeSize)
	case c.Sync != SyncFsync && c.Sync != SyncClose:
		return bad("sync mode %q is neither %q nor %q", c.Sync, SyncFsync, SyncClose)
	case c.DirtyLimit < 2*int64(c.StripeSize):
		return bad("dirty limit %d is less than two stripes", c.DirtyLimit)
	case c.SyncBytes < 0 || c.CacheBytes < int64(c.StripeSize) || c.ReadAhead < 0:
		return bad("sync bytes, cache bytes (at least one stripe) or read-ahead out of range")
	case c.WriteParallel < 1 || c.ReadParallel < 1 || c.MaxAge <= 0:
		return bad("parallelism and age must be positive")
	}
	return nil
}
