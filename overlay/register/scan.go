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
				s.repairAll(ctx, todo)
				counts, _ = s.compare(ctx, list[:n])
			}
			sum.add(counts)
			list = list[n:]
		}
	}
	for arc := range 256 {
		more, strays, err := s.arc(byte(arc))
		if err != nil {
			return err
		}
		s.repairAll(ctx, strays)
		list = append(list, more...)
		flush(maxTags)
	}
	flush(0)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	s.work.done(sum)
	return nil
}

// arc lists the registers with IDs that begin with b and that this peer takes
// care of, and those that it may have to forget.
func (s *Service) arc(b byte) (list []found, strays []blocks.RegisterID, err error) {
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
		switch {
		case s.mine(f.st.View):
			list = append(list, f)
		case !s.isHome(f.id):
			strays = append(strays, f.id)
		}
	}
	return list, strays, nil
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
