package register

import (
	"crypto/rand"
	"fmt"
	"io"
	"time"

	"github.com/rs/zerolog"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

// Bounds of a register's value.
const (
	// MaxValue is how many bytes the snapshot and the deltas of a register may
	// have together: the whole must fit one frame of the transport.
	MaxValue = 8 << 20
	// MaxDeltas is how many deltas may follow a snapshot.
	MaxDeltas = 8192
)

// Config says how a Service works. Zero fields get the value of Default.
type Config struct {
	Ring  overlay.Ring
	KV    KV   // nil: a client, which stores nothing and coordinates nothing
	M     int  // how many peers may fail: 2M+1 replicas
	Mount bool // tell the storage peers each Beat that this mount lives
	Log   zerolog.Logger
	Rand  io.Reader // back-off and session numbers

	Beat        time.Duration // how often a mount says that it lives
	LeaseTrust  time.Duration // how long an answered sign of life is good for, at the mount
	LeaseExpire time.Duration // how long a mount must be silent, at the peers, to lose its leases
	CallTry     time.Duration // one call to an acceptor
	Try         time.Duration // one attempt of a client with one coordinator, doubled per round
	RecallTry   time.Duration // one recall of a lease
	RecallTotal time.Duration // how long a mount that answers may keep a lease after a recall
	Settle      time.Duration // from a change of the table to the scan that follows it
	Scan        time.Duration // from one scan of all registers to the next when nothing changes
	Retry       time.Duration // from a failed repair to the next attempt
}

// Default returns the values of all fields but Ring, KV, Mount and M.
func Default() Config {
	return Config{
		Log: zerolog.Nop(), Rand: rand.Reader,
		Beat: time.Second, LeaseTrust: 4 * time.Second, LeaseExpire: 8 * time.Second,
		CallTry: 4 * time.Second, Try: 2 * time.Second,
		RecallTry: 3 * time.Second, RecallTotal: 10 * time.Second,
		Settle: 300 * time.Millisecond, Scan: 60 * time.Second, Retry: time.Second,
	}
}

func (c Config) filled() Config {
	d := Default()
	if c.Rand == nil {
		c.Rand = d.Rand
	}
	for _, f := range []struct{ have, want *time.Duration }{
		{&c.Beat, &d.Beat}, {&c.LeaseTrust, &d.LeaseTrust}, {&c.LeaseExpire, &d.LeaseExpire},
		{&c.CallTry, &d.CallTry}, {&c.Try, &d.Try}, {&c.RecallTry, &d.RecallTry}, {&c.RecallTotal, &d.RecallTotal},
		{&c.Settle, &d.Settle}, {&c.Scan, &d.Scan}, {&c.Retry, &d.Retry},
	} {
		if *f.have == 0 {
			*f.have = *f.want
		}
	}
	return c
}

// Validate says what is wrong with the configuration: class ErrInvalid.
func (c Config) Validate() error {
	c = c.filled()
	switch {
	case c.Ring == nil:
		return fmt.Errorf("%w: registers need a ring", blocks.ErrInvalid)
	case c.M < 0 || c.M > 15:
		return fmt.Errorf("%w: registers: %d peers may fail, want 0 … 15", blocks.ErrInvalid, c.M)
	case c.LeaseTrust < 2*c.Beat:
		return fmt.Errorf("%w: registers: a lease is trusted for %v with a beat each %v: one lost beat would end it", blocks.ErrInvalid, c.LeaseTrust, c.Beat)
	case c.LeaseExpire < c.LeaseTrust*3/2:
		return fmt.Errorf("%w: registers: a lease expires after %v and is trusted for %v: too near for clocks that differ in rate", blocks.ErrInvalid, c.LeaseExpire, c.LeaseTrust)
	}
	return nil
}
