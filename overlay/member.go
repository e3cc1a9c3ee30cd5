package overlay

import (
	"slices"
	"sync"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// member is a peer as the membership has it.
type member struct {
	id     blocks.PeerID
	meta   meta
	vnodes []Vnode // of meta; computed once
	live   Liveness
	since  time.Time // when live became what it is
	gossip bool      // memberlist believes that it lives
	seen   time.Time // when anybody last heard of it, as far as known; zero: not since the start
	ping   time.Time // when to ping it next, if it is not alive
	asked  bool      // a ping is out
	misses int       // pings in a row that failed
}

// members is the membership: who belongs to the ring, and what is believed of
// them. It knows no network; what happens to a peer is told to it. The
// gossip library forgets the dead, this does not: a ring must not shrink
// because somebody was restarted.
type members struct {
	ring    blocks.ID
	self    blocks.PeerID
	timings Timings
	start   time.Time

	mu      sync.Mutex
	all     map[blocks.PeerID]*member
	last    *Table
	stale   bool // something differs from last
	unsaved bool // something that a restart must find differs from what was saved
}

func newMembers(ring blocks.ID, self blocks.PeerID, own meta, t Timings) *members {
	ms := &members{ring: ring, self: self, timings: t, start: time.Now(), all: map[blocks.PeerID]*member{}}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	m := ms.add(self)
	ms.describe(m, own)
	m.live, m.gossip = Alive, true
	return ms
}

// add makes a member nothing is known of yet; nil if there are too many.
func (ms *members) add(id blocks.PeerID) *member {
	if len(ms.all) >= maxPeers {
		return nil
	}
	m := &member{id: id, live: Suspect, since: time.Now()}
	ms.all[id] = m
	ms.stale, ms.unsaved = true, true
	return m
}

// describe takes up what m says of itself, if it is newer, and reports whether it was.
func (ms *members) describe(m *member, mt meta) bool {
	if mt.incarnation <= m.meta.incarnation {
		return false
	}
	if m.vnodes == nil || m.meta.vnodes != mt.vnodes || m.meta.drives != mt.drives {
		m.vnodes = vnodesOf(ms.ring, PeerInfo{ID: m.id, Vnodes: mt.vnodes, Drives: mt.drives})
	}
	wasLeft := m.meta.left
	m.meta = mt
	ms.stale, ms.unsaved = true, true
	if mt.left {
		ms.set(m, Left)
	} else if wasLeft {
		ms.set(m, Suspect) // it came back; a ping or the gossip will tell
	}
	return true
}

func (ms *members) set(m *member, live Liveness) {
	if m.live == live {
		return
	}
	old := m.live
	m.live, m.since = live, time.Now()
	m.ping, m.misses = time.Time{}, 0
	ms.stale = true
	if old.Counts() != live.Counts() {
		ms.unsaved = true
	}
}

// heard: the peer has answered, or the gossip has it alive.
func (ms *members) heard(id blocks.PeerID) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if m := ms.all[id]; m != nil && m.live != Left {
		m.seen = time.Now()
		ms.set(m, Alive)
	}
}

// silent: a call did not reach the peer.
func (ms *members) silent(id blocks.PeerID) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if m := ms.all[id]; m != nil && m.live == Alive && id != ms.self {
		ms.set(m, Suspect)
	}
}

// gossipAlive takes up the gossip library's word that a peer lives and what it
// says of itself. Being alive there is the word of others, too: a
// peer that was found down by pings of our own stays so until it answers.
func (ms *members) gossipAlive(id blocks.PeerID, mt meta, joined bool) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	m := ms.all[id]
	if m == nil {
		if m = ms.add(id); m == nil {
			return
		}
	}
	ms.describe(m, mt)
	m.gossip = true
	m.seen = time.Now()
	if joined && m.live != Left {
		ms.set(m, Alive)
	}
}

// gossipDead: the gossip library gave the peer up.
func (ms *members) gossipDead(id blocks.PeerID) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	m := ms.all[id]
	if m == nil || id == ms.self {
		return
	}
	if m.gossip {
		m.gossip, m.seen, ms.stale = false, time.Now(), true
	}
	if m.live == Alive {
		ms.set(m, Suspect)
	}
}

// merge takes up what another peer knows. It returns an incarnation above
// which our own must be, because somebody remembers us with it (0: none).
func (ms *members) merge(rs []record) (own uint64) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	now := time.Now()
	for _, r := range rs {
		if r.id == ms.self {
			if r.meta.incarnation >= ms.all[ms.self].meta.incarnation && r.meta != ms.all[ms.self].meta {
				own = max(own, r.meta.incarnation)
			}
			continue
		}
		m := ms.all[r.id]
		fresh := m == nil
		if fresh {
			if m = ms.add(r.id); m == nil {
				continue
			}
		}
		ms.describe(m, r.meta)
		if r.age >= 0 {
			if at := now.Add(-r.age); m.seen.IsZero() || at.After(m.seen) {
				m.seen = at
			}
		}
		if fresh && m.live != Left {
			ms.set(m, max(Suspect, min(r.live, Gone)))
		}
	}
	return own
}

// restore takes up what a Store kept: nobody is known to live, and silence counts from now, because
// it may have been us who were away.
func (ms *members) restore(rs []record) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for _, r := range rs {
		if r.id == ms.self || ms.all[r.id] != nil {
			continue
		}
		m := ms.add(r.id)
		if m == nil {
			return
		}
		ms.describe(m, r.meta)
		if m.live != Left && r.live == Gone {
			ms.set(m, Gone)
		}
	}
	ms.unsaved = false
}

// own changes what this peer says of itself.
func (ms *members) own(change func(*meta)) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	m := ms.all[ms.self]
	next := m.meta
	next.incarnation++
	change(&next)
	ms.describe(m, next)
}

// ownMeta returns what this peer says of itself.
func (ms *members) ownMeta() meta {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	return ms.all[ms.self].meta
}

// age moves the silent from suspect to down to gone.
func (ms *members) age() {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	now := time.Now()
	for _, m := range ms.all {
		switch {
		case m.live == Suspect && now.Sub(m.since) >= ms.timings.DownAfter:
			ms.set(m, Down)
		case m.live == Down && !m.gossip && now.Sub(m.lastSeen(ms.start)) >= ms.timings.RepairAfter:
			ms.set(m, Gone)
		}
	}
}

// lastSeen is from when on silence counts.
func (m *member) lastSeen(start time.Time) time.Time {
	if m.seen.IsZero() {
		return start
	}
	return m.seen
}

// Pings of peers that are not alive, by how long they have been so.
const (
	pingSuspect = time.Second
	pingDown    = 3 * time.Second
	pingGone    = 20 * time.Second
	pingBurst   = 4 // at most so many of one liveness in one tick
)

// due returns whom to ping now: those that are not alive, for ever, the longer silent the rarer,
// a few at a time.
func (ms *members) due(jitter func(time.Duration) time.Duration) []blocks.PeerID {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	now := time.Now()
	count := map[Liveness]int{}
	var ids []blocks.PeerID
	for id, m := range ms.all { // in random order: nobody starves
		if m.live == Alive || m.live == Left || m.asked || id == ms.self || now.Before(m.ping) || count[m.live] == pingBurst {
			continue
		}
		count[m.live]++
		pause := map[Liveness]time.Duration{Suspect: pingSuspect, Down: pingDown, Gone: pingGone}[m.live]
		m.ping = now.Add(jitter(pause))
		m.asked = true
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b blocks.PeerID) int { return a.Compare(b.ID) })
	return ids
}

// lostAfter is how many pings in a row a suspect fails until no pointer leads to it any more; one, if
// the gossip has given it up as well.
const lostAfter = 3

func (m *member) isLost() bool {
	return m.live == Suspect && (m.misses >= lostAfter || m.misses > 0 && !m.gossip)
}

// pinged: the ping that due asked for has ended.
func (ms *members) pinged(id blocks.PeerID, answered bool) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	m := ms.all[id]
	if m == nil {
		return
	}
	was := m.isLost()
	m.asked = false
	if m.misses++; answered {
		m.misses = 0
	}
	if m.isLost() != was {
		ms.stale = true
	}
}

// hurry makes a ping of a peer that is not alive due at once.
func (ms *members) hurry(id blocks.PeerID) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if m := ms.all[id]; m != nil {
		m.ping = time.Time{}
	}
}

// alone reports whether no other peer is alive.
func (ms *members) alone() bool {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for id, m := range ms.all {
		if id != ms.self && m.live == Alive {
			return false
		}
	}
	return true
}

// lost returns whether the gossip lacks a peer, so that it must be joined again.
func (ms *members) lost(id blocks.PeerID) bool {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	m := ms.all[id]
	return m != nil && !m.gossip
}

// records returns what to tell other peers: this one first, the others by ID;
// with quiet, of the others only those that the gossip library does not carry itself.
func (ms *members) records(quiet bool) []record {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	rs := make([]record, 0, len(ms.all))
	for id, m := range ms.all {
		if quiet && m.gossip && id != ms.self {
			continue
		}
		r := record{id: id, meta: m.meta, live: m.live, age: -1}
		switch {
		case m.gossip || m.live == Alive:
			r.age = 0
		case !m.seen.IsZero():
			r.age = min(time.Since(m.seen), maxAge*time.Second)
		}
		rs = append(rs, r)
	}
	slices.SortFunc(rs, func(a, b record) int {
		if (a.id == ms.self) != (b.id == ms.self) {
			if a.id == ms.self {
				return -1
			}
			return 1
		}
		return a.id.Compare(b.id.ID)
	})
	return rs
}

// takeUnsaved returns whether something must be saved, and forgets it.
func (ms *members) takeUnsaved() bool {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	was := ms.unsaved
	ms.unsaved = false
	return was
}

// table returns the newest snapshot and whether it is new.
func (ms *members) table() (*Table, bool) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if ms.last != nil && !ms.stale {
		return ms.last, false
	}
	infos := make([]PeerInfo, 0, len(ms.all))
	for id, m := range ms.all {
		infos = append(infos, PeerInfo{ID: id, Addr: m.meta.addr, Zone: m.meta.zone, Capacity: m.meta.capacity,
			Used: m.meta.used, Vnodes: m.meta.vnodes, Drives: m.meta.drives, Live: m.live, Since: m.since,
			Incarnation: m.meta.incarnation, lost: m.isLost()})
	}
	ms.last = nextTable(ms.last, ms.ring, infos, func(p PeerInfo) []Vnode { return ms.all[p.ID].vnodes })
	ms.stale = false
	return ms.last, true
}
