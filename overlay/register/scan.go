package register

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

// maxTags bounds the registers in one exchange of tags.
const maxTags = 1024

// found is a register of the store as a scan sees it.
type found struct {
	id blocks.RegisterID
	st state
}

// scan looks at all registers that this peer takes care of, arc by arc,
// repairs those that are not as they should be, and counts.
func (s *Service) scan(ctx context.Context) error {
	sum := Counts{TableHash: s.ring.Table().PlacementHash()}
	s.work.begin()
	var up []blocks.PeerID
	for id, p := range s.ring.Table().Peers {
		if p.Vnodes > 0 && p.Live.Reachable() {
			up = append(up, id)
		}
	}
	s.greet(ctx, up, false) // who has lost its store cannot take care of what was in it
	var list []found
	flush := func(least int) {
		for ctx.Err() == nil && len(list) > least {
			n := min(len(list), maxTags)
			counts, todo := s.compare(ctx, list[:n])
			if len(todo) > 0 {
				s.repairAll(ctx, todo, false)
				counts, _ = s.compare(ctx, list[:n])
			}
			sum.add(counts)
			list = list[n:]
		}
	}
	second := map[blocks.PeerID][]found{}
	for arc := range 256 {
		more, strays, err := s.arc(byte(arc), second)
		if err != nil {
			return err
		}
		s.repairAll(ctx, strays, false)
		list = append(list, more...)
		flush(maxTags)
		sum.add(s.standIn(ctx, second, maxTags))
	}
	flush(0)
	sum.add(s.standIn(ctx, second, 1))
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	s.work.done(sum)
	return nil
}

// arc lists the registers with IDs that begin with b and that this peer takes
// care of, and those that it may have to forget; it adds to second those that this peer would take care of but for one other.
func (s *Service) arc(b byte, second map[blocks.PeerID][]found) (list []found, strays []blocks.RegisterID, err error) {
	var all []found
	var bad error
	err = s.acc.kv.Scan([]byte{keyRecord, b}, func(key, value []byte) bool {
		r, err := decodeRecord(value)
		if err != nil || len(key) != 1+blocks.IDSize {
			bad = fmt.Errorf("register %x: %w", key, err)
			return true
		}
		if r.Forgotten || r.State.Tag == (tag{}) {
			return true
		}
		f := found{st: r.State}
		copy(f.id.ID[:], key[1:])
		all = append(all, f)
		return true
	})
	if err != nil {
		return nil, nil, fmt.Errorf("list the registers: %w", err)
	}
	if bad != nil {
		s.cfg.Log.Error().Err(bad).Msg("a register's record is damaged")
	}
	for _, f := range all {
		sooner, member := s.before(f.st.View)
		switch {
		case member && len(sooner) == 0:
			list = append(list, f)
			continue
		case !s.isHome(f.id):
			strays = append(strays, f.id)
		}
		if member && len(sooner) == 1 {
			second[sooner[0]] = append(second[sooner[0]], f)
		}
	}
	return list, strays, nil
}

// standIn looks whether the peers that should take care of registers know them as they are. One that was away when a register
// was made, or when it came into its view, does not know that it is its turn: it is brought up to date from here, and does the rest.
// Where that fails it counts as degraded. Peers with fewer registers than least are left for later.
func (s *Service) standIn(ctx context.Context, second map[blocks.PeerID][]found, least int) (c Counts) {
	for p, list := range second {
		for len(list) >= least && ctx.Err() == nil {
			n := min(len(list), maxTags)
			left := s.teach(ctx, p, list[:n])
			c.add(Counts{Degraded: left, Backlog: left})
			list = list[n:]
		}
		second[p] = list
	}
	return c
}

// teach brings registers up to date on a peer that does not have them as they are here, and returns how many it still has not.
func (s *Service) teach(ctx context.Context, p blocks.PeerID, list []found) uint64 {
	behind := s.behind(ctx, p, list)
	if len(behind) == 0 {
		return 0
	}
	ids := make([]blocks.RegisterID, len(behind))
	for i, f := range behind {
		ids[i] = f.id
	}
	s.repairAll(ctx, ids, true)
	if _, err := s.countsOf(ctx, p, true); err != nil { // its next scan counts them
		s.cfg.Log.Debug().Err(err).Str("peer", p.Short()).Msg("ask for a scan")
	}
	return uint64(len(s.behind(ctx, p, behind)))
}

// behind returns the registers that a peer does not have as they are here; none if it does not answer.
func (s *Service) behind(ctx context.Context, p blocks.PeerID, list []found) (out []found) {
	ids := make([]blocks.RegisterID, len(list))
	for i, f := range list {
		ids[i] = f.id
	}
	tags, err := s.tagsOf(ctx, p, ids)
	if err != nil {
		s.cfg.Log.Debug().Err(err).Str("peer", p.Short()).Msg("no tags of registers")
		return nil
	}
	for _, f := range list {
		if r := tags[f.id]; r.Status != statusOK || r.Tag.compare(f.st.Tag) < 0 {
			out = append(out, f)
		}
	}
	return out
}

// compare asks all members for their tags of the registers and returns what
// is not as it should be and can be helped.
func (s *Service) compare(ctx context.Context, list []found) (Counts, []blocks.RegisterID) {
	asked := map[blocks.PeerID][]blocks.RegisterID{}
	for _, f := range list {
		for _, p := range f.st.View.peers() {
			asked[p] = append(asked[p], f.id)
		}
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	tags := map[blocks.PeerID]map[blocks.RegisterID]reply{}
	for p, ids := range asked {
		wg.Go(func() {
			got, err := s.tagsOf(ctx, p, ids)
			if err != nil {
				s.cfg.Log.Debug().Err(err).Str("peer", p.Short()).Msg("no tags of registers")
			}
			mu.Lock()
			defer mu.Unlock()
			tags[p] = got
		})
	}
	wg.Wait()
	var c Counts
	var todo []blocks.RegisterID
	for _, f := range list {
		switch whole, quorum, help := s.assess(ctx, f, tags); {
		case whole && f.st.Deleted: // it is kept so that nobody takes it for new
		case whole:
			c.Protected++
		case !quorum:
			c.Unavailable++
		default:
			c.Degraded++
			if help {
				c.Backlog++
				todo = append(todo, f.id)
			}
		}
	}
	return c, todo
}

// assess says whether all members have the newest state and are the ones
// wanted; whether a quorum answers; and whether something can be done.
func (s *Service) assess(ctx context.Context, f found, tags map[blocks.PeerID]map[blocks.RegisterID]reply) (whole, quorum, help bool) {
	newest := f.st.Tag
	for _, m := range f.st.View.all() {
		if r, ok := tags[m.Peer][f.id]; ok && r.Tag.compare(newest) > 0 {
			newest = r.Tag
		}
	}
	quorum = f.st.View.quorum(func(m member) bool {
		r, ok := tags[m.Peer][f.id]
		return ok && r.Incarnation == m.Incarnation
	})
	whole = len(f.st.View.Prev) == 0
	help = !whole
	for _, m := range f.st.View.all() {
		r, ok := tags[m.Peer][f.id]
		current := ok && r.Incarnation == m.Incarnation && r.Status == statusOK && r.Tag == newest
		whole = whole && current
		help = help || ok && !current
	}
	want := s.wanted(ctx, f.id, f.st.View)
	if !sameSet(want, f.st.View.Members) {
		whole, help = false, true
	}
	home := s.ring.Table().HomePeers(f.id.ID, 2*s.cfg.M+1, nil)
	for _, p := range home {
		if !slices.ContainsFunc(want, func(m member) bool { return m.Peer == p }) {
			whole = false
		}
	}
	return whole, quorum, help
}

// tagsOf asks one peer for its tags of many registers.
func (s *Service) tagsOf(ctx context.Context, p blocks.PeerID, ids []blocks.RegisterID) (map[blocks.RegisterID]reply, error) {
	var e blocks.Encoder
	e.Uint(uint64(len(ids)))
	for _, id := range ids {
		e.ID(id.ID)
	}
	resp, err := s.call(ctx, p, overlay.Metadata, overlay.Call{Kind: kindTags, Body: e.Buf}, s.cfg.CallTry)
	if err != nil {
		return nil, err
	}
	d := blocks.NewDecoder(resp.Body)
	incarnation := d.Uint64()
	out := make(map[blocks.RegisterID]reply, len(ids))
	for _, id := range ids {
		out[id] = reply{Status: status(d.Byte()), Incarnation: incarnation, Tag: getTag(d)}
	}
	if err := d.Done(); err != nil {
		return nil, err
	}
	s.meet(p, incarnation)
	return out, nil
}

func (s *Service) serveTags(_ context.Context, _ blocks.PeerID, req overlay.Call) (overlay.Call, error) {
	d := blocks.NewDecoder(req.Body)
	n := d.Count(blocks.IDSize)
	if n > maxTags {
		return overlay.Call{}, fmt.Errorf("%w: tags of %d registers at once, the most are %d", blocks.ErrInvalid, n, maxTags)
	}
	var e blocks.Encoder
	e.Uint64(s.acc.kv.Incarnation())
	for range n {
		id := blocks.RegisterID{ID: d.ID()}
		r, err := s.acc.load(id)
		switch {
		case err != nil:
			return overlay.Call{}, err
		case r == nil:
			e.Byte(byte(statusUnknown))
			putTag(&e, tag{})
		case r.Forgotten:
			e.Byte(byte(statusForgotten))
			putTag(&e, tag{})
		default:
			e.Byte(byte(statusOK))
			putTag(&e, r.State.Tag)
		}
	}
	return overlay.Call{Body: e.Buf}, d.Done()
}
