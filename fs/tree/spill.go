package tree

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/mutualfs/mutualfs/blocks"
)

const (
	spillMaps    = 32 // maps that one spill fills
	crowdedInode = 8  // times the extents that make a spill due, a writer waits for it, and has its error
)

// relieve moves a file with many extents out of its directory, and the extents of one that has a container of its own to maps.
// What cannot be moved now is moved by a later call, unless there is far too much of it.
func (t *Tree) relieve(ctx context.Context, ino Ino) error {
	if !MayWait(ctx) {
		return nil
	}
	for range 2 { // promoted, it may need maps at once
		home, err := t.home(ino)
		if err != nil {
			return nil // whoever asked finds out
		}
		c, err := t.cont(home)
		if err != nil {
			return err
		}
		what, full := t.crowdedFile(c, ino)
		switch what {
		case 0:
			return nil
		case KindFile:
			err = t.promote(ctx, home, ino)
		case KindMap:
			err = t.spill(ctx, home, ino)
		}
		if err != nil && !isElsewhere(err) {
			t.log.Debug().Err(err).Uint64("ino", uint64(ino)).Msg("make room in a file's inode")
			if full {
				return fmt.Errorf("make room in the inode %d: %w", ino, err)
			}
			return nil
		}
	}
	return nil
}

// crowdedFile says what an inode with many extents needs: KindFile, a container of its own; KindMap, that its extents go to
// maps; 0, nothing now. full: it should take no more before.
func (t *Tree) crowdedFile(c *container, ino Ino) (what Kind, full bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.st == nil || c.st.Dead || c.removed {
		return 0, false
	}
	n := c.st.inodes[ino]
	if n == nil || n.kind() != syscall.S_IFREG {
		return 0, false
	}
	limit := t.cfg.MapExtents
	load := len(n.Extents) + len(c.st.cuts)
	switch {
	case c.st.Kind == KindFile:
		what = KindMap
	case c.st.named() && n.Nlink > 0:
		what, limit = KindFile, t.cfg.FileExtents
	}
	full = load > crowdedInode*limit
	if load <= limit || c.closed && !full { // a recall is waited for, and makes it another mount's business
		return 0, false
	}
	return what, full
}

// spill moves extents of a promoted inode, and what is cut of its maps, to the maps of those ranges that have most of them.
// The maps are made first, empty, and nobody knows them; then a transaction over the file and its maps does it, so what is
// moved is in one place at any time.
func (t *Tree) spill(ctx context.Context, home blocks.RegisterID, ino Ino) error {
	defer t.making.enter()()
	refs, fresh, err := t.chooseMaps(ctx, home, ino)
	if err != nil || len(refs) == 0 {
		return err
	}
	if err = t.makeMaps(ctx, home, ino, fresh); err == nil {
		ids := []blocks.RegisterID{home}
		for _, r := range refs {
			ids = append(ids, r.ID)
		}
		err = t.transact(ctx, ids, func(get func(blocks.RegisterID) *container) ([]part, error) {
			return t.planSpill(get, home, ino, refs)
		}, nil)
	}
	if err != nil {
		t.dropUnnamed(context.WithoutCancel(ctx), home, fresh)
	}
	return err
}

// freshMap is a map that is to be made.
type freshMap struct {
	id blocks.RegisterID
	r  Range
}

// chooseMaps returns the maps that a spill goes to, by index, and those of them that do not exist yet.
func (t *Tree) chooseMaps(ctx context.Context, home blocks.RegisterID, ino Ino) (refs []MapRef, fresh []freshMap, err error) {
	var span uint64
	err = t.read(ctx, home, func(_ *container, s *State) error {
		if s.Kind != KindFile || s.inodes[ino] == nil {
			return errMoved
		}
		if span = s.mapSpan; span == 0 {
			span = t.cfg.MapBytes
		}
		for _, index := range fullest(s.inodes[ino].Extents, s.cuts, span, t.cfg.MapExtents/2) {
			m := MapRef{Index: index}
			if i, have := s.mapOf(index); have {
				m = s.maps[i]
			}
			refs = append(refs, m)
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	for i := range refs {
		if m := &refs[i]; m.ID.IsZero() {
			if m.ID, err = t.newID(); err != nil {
				return nil, nil, err
			}
			fresh = append(fresh, freshMap{m.ID, Range{m.Index * span, (m.Index + 1) * span}})
		}
	}
	return refs, fresh, nil
}

// fullest returns, ascending, the ranges that have most extents and cuts, as many as leave at most rest of them all.
func fullest(l []Extent, cuts []Range, span uint64, rest int) []uint64 {
	in := ranges(l, span)
	n := map[uint64]int{}
	total := len(cuts)
	for i := range l {
		if at := in[l[i].Stripe.ID]; at != apart {
			n[at]++
			total++
		}
	}
	for _, c := range cuts {
		n[c.From/span]++
	}
	order := make([]uint64, 0, len(n))
	for i := range n {
		order = append(order, i)
	}
	slices.SortFunc(order, func(a, b uint64) int {
		if n[a] != n[b] {
			return n[b] - n[a]
		}
		return compare(a, b)
	})
	k := 0
	for k < len(order) && k < spillMaps && total > rest {
		total -= n[order[k]]
		k++
	}
	slices.Sort(order[:k])
	return order[:k]
}

// makeMaps creates the registers of new maps, leased. Nobody knows them.
func (t *Tree) makeMaps(ctx context.Context, home blocks.RegisterID, ino Ino, fresh []freshMap) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(t.cfg.FlushParallel)
	for _, f := range fresh {
		c, err := t.cont(f.id)
		if err != nil {
			return errors.Join(err, g.Wait())
		}
		c.mu.Lock()
		c.st, c.unborn = newMap(home, ino, f.r), true
		c.mu.Unlock()
		g.Go(func() error { return t.flush(gctx, c, false) })
	}
	return g.Wait()
}

// planSpill makes the parts of a spill. The containers are frozen. The file comes last: it has the transaction on its free list.
func (t *Tree) planSpill(get func(blocks.RegisterID) *container, home blocks.RegisterID, ino Ino, refs []MapRef) ([]part, error) {
	s := get(home).st
	n := s.inodes[ino]
	if s.Kind != KindFile || n == nil {
		return nil, errAgain
	}
	o := &Op{Kind: OpSpill, Ino: ino, Size: s.mapSpan}
	if o.Size == 0 {
		o.Size = t.cfg.MapBytes
	}
	var parts []part
	move, _ := divide(n.Extents, o.Size, refs)
	for _, m := range refs {
		if i, have := s.mapOf(m.Index); have && s.maps[i].ID != m.ID {
			return nil, errAgain
		}
		c := get(m.ID)
		r := Range{m.Index * o.Size, (m.Index + 1) * o.Size}
		if c.st.Kind != KindMap || c.st.lo != r.From || c.st.hi != r.To {
			return nil, errAgain // what a map covers was decided otherwise meanwhile
		}
		fill := &Op{Kind: OpFill, Ino: ino, Extents: move[m.Index], Cuts: inside(s.cuts, r)}
		if len(fill.Extents)+len(fill.Cuts) == 0 {
			continue
		}
		m.Bytes = bytesOf(overlay(c.st.Self.Extents, fill.Cuts, fill.Extents))
		o.Maps = append(o.Maps, m)
		parts = append(parts, part{c: c, op: fill})
	}
	if len(parts) == 0 {
		return nil, errAgain
	}
	return append(parts, part{c: get(home), op: o}), nil
}

// dropUnnamed ends maps that were made for a spill which did not come to pass. One that did, although it failed, has given them names.
func (t *Tree) dropUnnamed(ctx context.Context, home blocks.RegisterID, fresh []freshMap) {
	if len(fresh) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, t.cfg.CommitTimeout)
	defer cancel()
	named := map[blocks.RegisterID]bool{}
	err := t.read(ctx, home, func(_ *container, s *State) error { // resolves what is left of it
		for _, m := range s.maps {
			named[m.ID] = true
		}
		return nil
	})
	for _, f := range fresh {
		if err != nil || named[f.id] {
			continue
		}
		if _, e := t.dispose(ctx, f.id); e != nil {
			t.log.Debug().Err(e).Str("container", f.id.Short()).Msg("an extent map without a file stays behind")
		}
	}
}

// Content returns what a file has in [off, off+n), and perhaps more of it, without dirty data. Inline may be shorter than
// Size: what follows is a hole; and where there are both, an extent wins over Inline.
func (t *Tree) Content(ctx context.Context, ino Ino, off, n uint64) (Content, error) {
	want := Range{off, off + min(n, ^uint64(0)-off)}
	for range maxResolutions {
		v := view{want: want}
		// A recall waits for the flush of files, which asks here before it writes back.
		if err := t.readIno(asFlush{ctx}, ino, func(_ *container, s *State, n *Inode) error { return v.take(s, n, t.cfg.Mount) }); err != nil {
			return Content{}, err
		}
		err := t.lookBelow(ctx, &v)
		if err == nil {
			return v.Content, nil
		}
		if !errors.Is(err, syscall.ENOENT) {
			return Content{}, err
		}
		// The map was dropped since: so the file has changed.
	}
	return Content{}, fmt.Errorf("%w: inode %d is being changed", blocks.ErrBusy, ino)
}

// view is a part of a file's content while it is put together.
type view struct {
	Content
	want Range
	maps []MapRef
	cuts []Range
}

// take notes what an inode says of the wanted part: all of the file, if it has no maps.
func (v *view) take(s *State, n *Inode, mount blocks.PeerID) error {
	if n.kind() != syscall.S_IFREG {
		return syscall.EINVAL
	}
	n.shared = true
	v.Content = Content{Size: n.Size, Inline: slices.Clip(n.Inline), Extents: slices.Clip(n.Extents), Part: Range{0, ^uint64(0)}, Flushed: n.flushed(mount)}
	if len(s.maps) == 0 {
		return nil
	}
	v.Part = v.want
	if v.want.From < v.want.To {
		i, _ := s.mapOf(v.want.From / s.mapSpan)
		for ; i < len(s.maps) && s.spanOf(s.maps[i].Index).From < v.want.To; i++ {
			v.maps = append(v.maps, s.maps[i])
		}
		next := ^uint64(0)
		if i < len(s.maps) {
			next = s.spanOf(s.maps[i].Index).From
		}
		if k := len(v.maps); k == 0 || s.spanOf(v.maps[k-1].Index).To < v.want.To {
			v.Part.To = next // up to the next map there is nothing that is not known here
		}
	}
	v.Extents = clip(v.Extents, v.Part)
	v.cuts = inside(s.cuts, v.Part)
	return nil
}

// lookBelow adds what the maps have. ENOENT: one of them has ended.
func (t *Tree) lookBelow(ctx context.Context, v *view) error {
	if len(v.maps) == 0 {
		return nil
	}
	var base []Extent
	for _, m := range v.maps {
		err := t.read(asFlush{ctx}, m.ID, func(_ *container, s *State) error {
			base = append(base, clip(s.Self.Extents, v.Part)...)
			return nil
		})
		if err != nil {
			return err
		}
	}
	v.Extents = overlay(base, v.cuts, v.Extents)
	return nil
}
