package store

import (
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// Counts is the state of the stripes that a peer is the repairer of, as its last
// round found it; summed over all live storage peers, of all stripes.
type Counts struct {
	Protected uint64 // stripes with all shards, on peers as distinct as the live ones allow
	Degraded  uint64 // not protected, and not lost
	Away      uint64 // of the degraded: not readable now, but enough shards may be on peers that are down
	Settling  uint64 // of the degraded: just written, its writer may not be done
	Lost      uint64 // not readable: fewer shards than needed are left, or were ever written

	RepairShards  uint64 // to be rebuilt now
	WaitingShards uint64 // missing, but maybe on a peer that is down: rebuilt when it is gone
	HandoffShards uint64 // to be moved to their homes, or surplus to be dropped
	HandoffBytes  uint64 // payload of those that are to be moved

	Complete  bool      // every live storage peer answered in the round
	Scanned   time.Time // when the round ended; of several peers, the oldest
	TableHash uint64    // of the members and the liveness that the round was for
}

func (c *Counts) encode(e *blocks.Encoder) {
	for _, v := range []uint64{c.Protected, c.Degraded, c.Away, c.Settling, c.Lost, c.RepairShards, c.WaitingShards, c.HandoffShards, c.HandoffBytes} {
		e.Uint(v)
	}
	e.Bool(c.Complete)
	ms := int64(-1)
	if !c.Scanned.IsZero() {
		ms = time.Since(c.Scanned).Milliseconds()
	}
	e.Int(ms) // an age, as clocks differ
	e.Uint64(c.TableHash)
}

func (c *Counts) decode(d *blocks.Decoder) {
	for _, v := range []*uint64{&c.Protected, &c.Degraded, &c.Away, &c.Settling, &c.Lost, &c.RepairShards, &c.WaitingShards, &c.HandoffShards, &c.HandoffBytes} {
		*v = d.Uint()
	}
	c.Complete = d.Bool()
	if ms := d.Int(); ms >= 0 && ms < int64(365*24*time.Hour/time.Millisecond) {
		c.Scanned = time.Now().Add(-time.Duration(ms) * time.Millisecond)
	}
	c.TableHash = d.Uint64()
}

// add sums the stripes and shards of o into c.
func (c *Counts) add(o *Counts) {
	c.Protected += o.Protected
	c.Degraded += o.Degraded
	c.Away += o.Away
	c.Lost += o.Lost
	c.Settling += o.Settling
	c.RepairShards += o.RepairShards
	c.WaitingShards += o.WaitingShards
	c.HandoffShards += o.HandoffShards
	c.HandoffBytes += o.HandoffBytes
}

// count adds one stripe.
func (c *Counts) count(p *plan) {
	switch {
	case p.protected:
		c.Protected++
	case p.settling:
		c.Degraded++
		c.Settling++
	case p.away:
		c.Degraded++
		c.Away++
	case p.lost:
		c.Lost++
	default:
		c.Degraded++
	}
	c.RepairShards += uint64(len(p.rebuild))
	c.WaitingShards += uint64(p.waiting)
	for _, m := range p.moves {
		c.HandoffShards++
		if !m.there {
			c.HandoffBytes += uint64(m.from.size)
		}
	}
}

// Whole reports whether everything is protected and where it belongs. Lost stripes do not
// count: no waiting brings them back, and most were never written completely.
func (c *Counts) Whole() bool {
	return c.Complete && c.Degraded+c.RepairShards+c.WaitingShards+c.HandoffShards == 0
}
