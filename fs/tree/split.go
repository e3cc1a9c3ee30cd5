package tree

import (
	"context"
	"fmt"
	"math/bits"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/mutualfs/mutualfs/blocks"
)

// splitBytes is the size of a container of names beyond which it is split, its deltas and what is pending included.
const splitBytes = 3 << 20

// crowdedMax times the names that make it crowded, a container that cannot be split takes no more.
const crowdedMax = 4

// crowded reports whether a container should be split before anything is added to it. mu must be held.
func (t *Tree) crowded(c *container) bool {
	if c.st == nil || !c.st.named() || c.st.Dead || c.removed || c.st.Len() < 2 {
		return false
	}
	return c.st.Len() >= t.cfg.SplitEntries || !c.shrunk && c.snapLen+c.tailLen+c.pendLen > splitBytes
}

// makeRoom splits the container if it is crowded. What cannot be split is left as it is: fits has the last word.
func (t *Tree) makeRoom(ctx context.Context, id blocks.RegisterID) error {
	c, err := t.cont(id)
	if err != nil {
		return err
	}
	c.mu.Lock()
	crowded := t.crowded(c)
	c.mu.Unlock()
	if !crowded {
		return nil
	}
	if err := t.awaitReady(ctx); err != nil {
		return err
	}
	if !MayWait(ctx) {
		return ErrWait
	}
	err = t.divide(ctx, c)
	c.mu.Lock()
	full := c.st == nil || c.st.Len() >= crowdedMax*t.cfg.SplitEntries || c.snapLen+c.tailLen+c.pendLen > maxGrow
	c.mu.Unlock()
	if err != nil && !full && !isElsewhere(err) {
		t.log.Debug().Err(err).Str("container", id.Short()).Msg("split a container")
		return nil
	}
	return err
}

// makeRoomFor makes room where a name will be.
func (t *Tree) makeRoomFor(ctx context.Context, dir blocks.RegisterID, name string) error {
	id, err := t.locate(ctx, dir, name)
	if err != nil {
		return err
	}
	if err = t.makeRoom(ctx, id); isElsewhere(err) {
		return nil // whoever asked looks again
	}
	return err
}

// divide splits until no inode is in the way.
func (t *Tree) divide(ctx context.Context, c *container) error {
	for range maxResolutions {
		apart, err := t.split(ctx, c)
		if err != nil {
			return fmt.Errorf("split container %s: %w", c.id.Short(), err)
		}
		for _, ino := range apart {
			if err := t.promote(ctx, c.id, ino); err != nil {
				return err
			}
		}
		if len(apart) == 0 {
			return nil
		}
	}
	return nil
}

// share is a page to be, and the names that it gets.
type share struct {
	span
	c     *container
	names []string
	moved *State // of a new page, as it was made
}

// split moves names of a crowded container to new pages: all of a directory's, half of a page's. apart are
// inodes whose names would come to lie in different places: they must be promoted before.
func (t *Tree) split(ctx context.Context, c *container) (apart []Ino, err error) {
	defer t.making.enter()()
	if err := t.flushPath(ctx, c.id); err != nil {
		return nil, err
	}
	if err := c.acquire(ctx); err != nil {
		return nil, err
	}
	defer c.release()
	defer c.thaw()
	if err := t.freeze(ctx, c); err != nil {
		return nil, err
	}
	c.mu.Lock()
	crowded := t.crowded(c)
	c.mu.Unlock()
	if !crowded || c.st.paged() { // somebody else was first
		return nil, nil
	}
	var shares []*share
	if c.st.Kind == KindPage {
		shares = halve(c.st)
	} else {
		shares = spread(c.st, t.pagesFor(c))
	}
	if len(shares) == 0 {
		return nil, nil
	}
	if apart = straddling(c.st, shares); len(apart) > 0 {
		return apart, nil
	}
	if err := t.makePages(ctx, c, shares); err != nil {
		return nil, err
	}
	o := &Op{Kind: OpSpread, Time: now()}
	if c.st.Kind == KindPage {
		o = &Op{Kind: OpSplit, Child: shares[1].c.id, Off: shares[1].lo}
	} else {
		for _, h := range shares {
			o.Regs = append(o.Regs, h.c.id)
		}
	}
	return nil, t.handOver(ctx, c, o, shares)
}

// handOver proposes the split. Until then nobody knows the new pages.
func (t *Tree) handOver(ctx context.Context, c *container, o *Op, shares []*share) error {
	seq := t.j.number()
	_, err := t.commitOne(ctx, c, seq, o, func() {
		c.shrunk = true
		c.notePage()
		for _, h := range shares {
			if h.c != c {
				t.settleIn(h.moved, h.c.id)
			}
		}
	})
	if overtaken(err) {
		made, e := t.wasMade(ctx, c, seq)
		if !made && e == nil {
			for _, h := range shares {
				if h.c != c {
					t.discard(ctx, h.c)
				}
			}
		}
		return e // the caller looks again
	}
	if err == nil && o.Kind == OpSplit {
		t.teach(ctx, c.st.Parent, o.Child)
	}
	return err
}

// pagesFor returns how many pages a directory needs that has none: so many that each is half full at most. mu is not needed: the container is frozen.
func (t *Tree) pagesFor(c *container) int {
	need := max(2, (2*c.st.Len()+t.cfg.SplitEntries-1)/t.cfg.SplitEntries, 2*(c.snapLen+c.tailLen)/splitBytes)
	return min(1<<bits.Len(uint(need-1)), maxPages)
}

// spread gives each of n pages its part of a directory's names.
func spread(s *State, n int) []*share {
	all := make([]*share, n)
	for i := range all {
		lo, hi := shares(i, n)
		all[i] = &share{span: span{lo: lo, hi: hi}}
	}
	shift := 64 - bits.TrailingZeros(uint(n))
	for name := range s.entries {
		h := all[nameHash(name)>>shift]
		h.names = append(h.names, name)
	}
	return all
}

// halve divides a page's names at the median of their hashes; nil if they are all equal. The first share stays.
func halve(s *State) []*share {
	hashes := make([]uint64, 0, len(s.entries))
	for name := range s.entries {
		hashes = append(hashes, nameHash(name))
	}
	slices.Sort(hashes)
	mid := hashes[len(hashes)/2]
	for i := len(hashes) / 2; mid == hashes[0]; i++ {
		if i == len(hashes) {
			return nil
		}
		mid = hashes[i]
	}
	keep, move := &share{span: span{lo: s.lo, hi: mid - 1}}, &share{span: span{lo: mid, hi: s.hi, next: s.next}}
	for name := range s.entries {
		h := keep
		if nameHash(name) >= mid {
			h = move
		}
		h.names = append(h.names, name)
	}
	return []*share{keep, move}
}

// straddling returns the inodes with names in more than one share.
func straddling(s *State, shares []*share) []Ino {
	var apart []Ino
	in := map[Ino]int{}
	for i, h := range shares {
		for _, name := range h.names {
			e := s.entries[name]
			if !e.Child.IsZero() || s.inodes[e.Ino].Nlink < 2 {
				continue
			}
			switch was := in[e.Ino]; was {
			case 0:
				in[e.Ino] = i + 1
			case i + 1, -1:
			default:
				in[e.Ino] = -1
				apart = append(apart, e.Ino)
			}
		}
	}
	return apart
}

// makePages creates the registers of the new pages, leased, and journals which inodes go there. The container is frozen.
func (t *Tree) makePages(ctx context.Context, c *container, shares []*share) error {
	head, fresh := c.st.head(c.id), shares
	if c.st.Kind == KindPage {
		shares[0].c, fresh = c, shares[1:]
	}
	for i := len(fresh) - 1; i >= 0; i-- {
		h := fresh[i]
		id, err := t.newID()
		if err != nil {
			return err
		}
		if h.c, err = t.cont(id); err != nil {
			return err
		}
		if i < len(fresh)-1 {
			h.next = fresh[i+1].c.id
		}
		h.c.mu.Lock()
		h.moved = newPage(c.st, h, head)
		h.c.st, h.c.unborn = h.moved, true
		h.c.notePage()
		h.c.mu.Unlock()
	}
	var last Seq
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(t.cfg.FlushParallel)
	for _, h := range fresh {
		g.Go(func() error { return t.flush(gctx, h.c, false) })
		for _, ino := range t.known(h.moved) {
			last = t.noteMove(ino, h.c.id)
		}
	}
	err := g.Wait()
	if err == nil && last > 0 {
		err = t.j.wait(last)
	}
	if err != nil {
		for _, h := range fresh {
			t.discard(context.WithoutCancel(ctx), h.c)
		}
	}
	return err
}

// settleIn points the nodes of a state's inodes to a container.
func (t *Tree) settleIn(s *State, id blocks.RegisterID) {
	for _, ino := range t.known(s) {
		t.withNode(ino, func(n *node) { n.home = id })
	}
}

// known lists the inodes of a state that this mount has nodes of: others cannot have data in the journal.
func (t *Tree) known(s *State) []Ino {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var k []Ino
	for ino := range s.inodes {
		if t.nodes[ino] != nil {
			k = append(k, ino)
		}
	}
	return k
}

// newPage returns the state of a page with the names of a share.
func newPage(s *State, h *share, head blocks.RegisterID) *State {
	p := newState(KindPage)
	p.Self = Inode{Ino: s.Self.Ino}
	p.Parent, p.ParentIno, p.span = head, s.Self.Ino, h.span
	p.entries = make(map[string]Dentry, len(h.names))
	for _, name := range h.names {
		e := s.entries[name]
		p.entries[name] = e
		if isDir(e.Type) {
			p.subdirs++
		}
		if e.Child.IsZero() && p.inodes[e.Ino] == nil {
			p.inodes[e.Ino] = s.inodes[e.Ino].clone()
		}
	}
	return p
}
