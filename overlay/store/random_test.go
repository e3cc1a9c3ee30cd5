package store

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

var (
	_ Local = (*blocks.Store)(nil)
	_ KV    = (*blocks.KV)(nil)
)

// schedule does random things to a cluster, and never takes more away than the code allows.
type schedule struct {
	*cluster
	r     *rand.Rand
	quiet atomic.Bool // the network loses nothing
	lost  bool        // shards were lost for good since all was whole
}

// settled waits until all is whole, and checks it.
func (s *schedule) settled() {
	s.quiet.Store(true)
	s.whole(time.Hour)
	s.quiet.Store(false)
}

func (s *schedule) with(l overlay.Liveness) (list []*testPeer) {
	for _, p := range s.peers {
		if p.info.Live == l {
			list = append(list, p)
		}
	}
	return list
}

func (s *schedule) pick(list []*testPeer) *testPeer { return list[s.r.IntN(len(list))] }

// stripes returns the IDs in an order that depends on the seed alone.
func (s *schedule) stripes() []blocks.StripeID {
	return slices.SortedFunc(maps.Keys(s.content), func(a, b blocks.StripeID) int { return a.Compare(b.ID) })
}

// step does one thing. Peers are only lost for good when all else is whole.
func (s *schedule) step() string {
	away := len(s.with(overlay.Down))
	switch alive := s.with(overlay.Alive); s.r.IntN(9) {
	case 0, 1, 2:
		for range 5 {
			if _, err := s.write(s.t.Context()); err != nil {
				s.t.Fatalf("write: %v", err)
			}
		}
		return "write"
	case 3:
		if away < s.m && len(alive) > s.k+s.m { // else what is written now could be on too few peers
			if s.lost { // that counts as well, until it is repaired
				s.settled()
				s.lost = false
			}
			s.kill(s.pick(alive))
			return "kill"
		}
	case 4, 5:
		if away > 0 {
			s.start(s.pick(s.with(overlay.Down)))
			return "return"
		}
	case 6:
		if ids := s.stripes(); len(ids) > 0 {
			for range 3 {
				id := ids[s.r.IntN(len(ids))]
				if s.content[id] != nil {
					s.delete(id)
				}
			}
			return "delete"
		}
	case 7:
		if len(s.peers) < 14 {
			s.add()
			return "join"
		}
	case 8:
		if away == 0 && len(alive) > s.k+s.m {
			s.settled()
			p := s.pick(alive)
			s.kill(p)
			s.lost = true
			if s.r.IntN(2) == 0 {
				p.local.wipe()
				s.start(p)
				return "lose a disk"
			}
			p.local.wipe()
			s.live(p, overlay.Gone)
			return "lose a peer"
		}
	}
	return ""
}

func TestRandomSchedule(t *testing.T) {
	bubble(t, 3, 2, 8, func(t *testing.T, c *cluster) {
		s := &schedule{cluster: c, r: rand.New(rand.NewPCG(c.rnd.Uint64(), 2))}
		losing := s.r.Uint64()
		fault := func(_ context.Context, from, to blocks.PeerID, kind overlay.Kind, reply bool) error {
			h := digestOf(blocks.StripeID(from), blocks.VnodeID(to), int(kind))
			if kind >= kindDigest && !s.quiet.Load() && mix(h^losing^uint64(time.Now().UnixNano()))%64 == 0 {
				return fmt.Errorf("%w: lost on the way (reply %v)", blocks.ErrUnavailable, reply)
			}
			return nil
		}
		c.fault.Store(&fault)
		for range 80 {
			what := s.step()
			time.Sleep(time.Duration(s.r.Int64N(int64(20 * time.Second))))
			if what != "" {
				t.Logf("%s: %d alive, %d down, %d stripes", what, len(s.with(overlay.Alive)), len(s.with(overlay.Down)), len(c.content))
				c.readAll()
			}
		}
		for _, p := range s.with(overlay.Down) {
			c.start(p)
		}
		s.settled()
		c.readAll()
	})
}
