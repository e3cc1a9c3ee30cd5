package main

import (
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// The reports of the control socket. Their JSON keys are stable and documented in docs/operation.md.

// statusReport is what status prints.
type statusReport struct {
	Ring     blocks.ID     `json:"ring"`
	Peer     blocks.PeerID `json:"peer"`
	Peers    []peerReport  `json:"peers"`
	Tolerate int           `json:"tolerate"`
	// MayFail is how many more peers may be lost now without losing anything or stopping.
	MayFail   int            `json:"may_fail"`
	Stripes   stripeCounts   `json:"stripes"`
	Registers registerCounts `json:"registers"`
	Backlog   backlog        `json:"backlog"`
	// Fresh says that every live peer has counted all it holds for the present ring; Counted, when the oldest of these
	// counts ended. What was written since is not in them.
	Fresh   bool         `json:"fresh"`
	Counted *time.Time   `json:"counted,omitempty"`
	Health  string       `json:"health"`
	Mount   *mountReport `json:"mount,omitempty"`
}

type peerReport struct {
	ID       blocks.PeerID `json:"id"`
	Address  string        `json:"address"`
	Zone     string        `json:"zone,omitempty"`
	Capacity uint64        `json:"capacity"`
	Used     uint64        `json:"used"`
	Vnodes   int           `json:"vnodes"`
	State    string        `json:"state"`
	Since    time.Time     `json:"since"`
}

// stripeCounts counts stripes: with all shards where they should be; with fewer. Of the degraded, those that cannot
// be read until a peer returns, and those that are just being written. Lost are those of which fewer shards are left than are
// needed, and no absent peer can have more; most were never complete, because their writer died, and no file names them.
type stripeCounts struct {
	Protected uint64 `json:"protected"`
	Degraded  uint64 `json:"degraded"`
	Away      uint64 `json:"away"`
	Settling  uint64 `json:"settling"`
	Lost      uint64 `json:"lost"`
}

func (c stripeCounts) total() uint64 { return c.Protected + c.Degraded }

// registerCounts counts registers: on all the peers they should be on; on fewer; without a majority.
type registerCounts struct {
	Protected   uint64 `json:"protected"`
	Degraded    uint64 `json:"degraded"`
	Unavailable uint64 `json:"unavailable"`
}

func (c registerCounts) total() uint64 { return c.Protected + c.Degraded + c.Unavailable }

type backlog struct {
	HandoffShards uint64 `json:"handoff_shards"`
	HandoffBytes  uint64 `json:"handoff_bytes"`
	Repair        uint64 `json:"repair_shards"`
	Registers     uint64 `json:"registers"`
}

type mountReport struct {
	Mountpoint string `json:"mountpoint"`
	Dirty      uint64 `json:"dirty_bytes"`
	Errors     string `json:"error,omitempty"`
}

// Health values.
const (
	healthOK          = "ok"
	healthDegraded    = "degraded"
	healthAtRisk      = "at-risk"
	healthUnavailable = "unavailable"
)

// shape is what the assessment of a ring needs.
type shape struct {
	k, m      int
	counting  int // storage peers that have places on the ring
	alive     int // of those, the ones that answer
	stripes   stripeCounts
	registers registerCounts
}

// degraded reports whether stripes miss shards that nobody is just writing.
func (s shape) degraded() bool { return s.stripes.Degraded > s.stripes.Settling }

// stuck reports whether something cannot be read or written now.
func (s shape) stuck() bool { return s.alive == 0 || s.stripes.Away > 0 || s.registers.Unavailable > 0 }

// mayFail is how many more peers may be lost. A stripe has ceil((k+m)/peers) shards on a
// peer; while stripes are degraded, those of every absent peer are taken as missing. Metadata needs a majority of 2m+1 replicas, or
// of as many as there are peers.
func (s shape) mayFail() int {
	if s.counting == 0 || s.stuck() {
		return 0
	}
	absent := s.counting - s.alive
	perPeer := (s.k + s.m + s.counting - 1) / s.counting
	spare := s.m
	if s.degraded() {
		spare -= perPeer * max(absent, 1)
	}
	if !s.degraded() {
		perPeer = (s.k + s.m + s.alive - 1) / s.alive
	}
	replicas := min(2*s.m+1, s.counting)
	quorum := replicas/2 + 1
	return max(0, min(spare/perPeer, replicas-min(absent, replicas)-quorum))
}

func (s shape) health() string {
	switch {
	case s.stuck():
		return healthUnavailable
	case s.alive < s.counting || s.degraded() || s.registers.Degraded > 0:
		if s.mayFail() == 0 && s.counting > 2 {
			return healthAtRisk
		}
		return healthDegraded
	}
	return healthOK
}

// ringReport is what ring prints.
type ringReport struct {
	Vnodes []vnodeReport `json:"vnodes"`
	Check  *checkReport  `json:"check,omitempty"`
}

type vnodeReport struct {
	ID          blocks.VnodeID   `json:"id"`
	Peer        blocks.PeerID    `json:"peer"`
	Address     string           `json:"address"`
	Index       int              `json:"index"`
	Reachable   bool             `json:"reachable"`
	Predecessor string           `json:"predecessor,omitempty"`
	Successors  []blocks.VnodeID `json:"successors,omitempty"`
	Fingers     []blocks.VnodeID `json:"fingers,omitempty"`
}

type checkReport struct {
	Routes   uint64   `json:"routes"`
	Failures uint64   `json:"failures"`
	MeanHops float64  `json:"mean_hops"`
	MaxHops  int      `json:"max_hops"`
	Errors   []string `json:"errors,omitempty"`
}

// locateReport is what locate prints.
type locateReport struct {
	Path    string         `json:"path"`
	Size    uint64         `json:"size"`
	Inline  uint64         `json:"inline_bytes,omitempty"`
	Stripes []stripeReport `json:"stripes"`
}

type stripeReport struct {
	Offset uint64          `json:"offset"`
	Length uint64          `json:"length"`
	Stripe blocks.StripeID `json:"stripe"`
	At     uint32          `json:"at"`
	K      int             `json:"data_shards"`
	M      int             `json:"parity_shards"`
	Shards []shardReport   `json:"shards"`
}

type shardReport struct {
	Index   int            `json:"index"`
	Vnode   blocks.VnodeID `json:"vnode"`
	Peer    blocks.PeerID  `json:"peer"`
	Address string         `json:"address"`
	Disk    string         `json:"disk"`
	Offset  int64          `json:"offset"`
	Length  int64          `json:"length"`
	AtHome  bool           `json:"at_home"`
}

// scrubReport is a line of the scrub's stream; the last is Finished or has an error. Damaged counts blocks,
// the two after it the stripes that they belong to.
type scrubReport struct {
	Done       uint64 `json:"done"`
	Total      uint64 `json:"total"`
	Damaged    uint64 `json:"damaged"`
	Repaired   uint64 `json:"repaired"`
	Unrepaired uint64 `json:"unrepaired"`
	Finished   bool   `json:"finished"`
	Error      string `json:"error,omitempty"`
}
