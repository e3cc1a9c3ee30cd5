package tree

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/mutualfs/mutualfs/blocks"
)

// pageSum is what a page adds to its directory's attributes.
type pageSum struct {
	subdirs      uint32
	mtime, ctime Time
	next         blocks.RegisterID
}

func (s *State) sum() *pageSum {
	return &pageSum{s.subdirs, s.Self.Mtime, s.Self.Ctime, s.next}
}

// sumOf returns what a page adds, from memory if the lease is trusted even if the page was dropped.
func (t *Tree) sumOf(ctx context.Context, id blocks.RegisterID) (pageSum, error) {
	c, err := t.cont(id)
	if err != nil {
		return pageSum{}, err
	}
	c.mu.Lock()
	if c.st == nil && c.sum != nil && !c.closed && !c.frozen && !c.fenced && t.sure(c) {
		defer c.mu.Unlock()
		return *c.sum, nil
	}
	c.mu.Unlock()
	var sum pageSum
	err = t.read(ctx, id, func(_ *container, s *State) error {
		sum = *s.sum()
		return nil
	})
	return sum, err
}

// pagesSum is what all pages of a directory add.
type pagesSum struct {
	pageSum
	ids  []blocks.RegisterID
	sure bool // all are leased
}

// sumPages walks over all pages of a directory, from the first.
func (t *Tree) sumPages(ctx context.Context, first blocks.RegisterID) (all pagesSum, err error) {
	all.sure = true
	for id := first; !id.IsZero(); {
		p, err := t.sumOf(ctx, id)
		if errors.Is(err, syscall.ENOENT) {
			err = &elsewhere{first}
		}
		if err != nil {
			return all, err
		}
		all.ids = append(all.ids, id)
		all.subdirs += p.subdirs
		all.mtime, all.ctime = max(all.mtime, p.mtime), max(all.ctime, p.ctime)
		if c, err := t.cont(id); err == nil && all.sure {
			c.mu.Lock()
			all.sure = t.leased(c) && !c.closed
			c.mu.Unlock()
		}
		id = p.next
	}
	return all, nil
}

// withPages completes the attributes of a directory that has pages, first being the first of them.
func (t *Tree) withPages(ctx context.Context, a Attr, setAt Time, head, first blocks.RegisterID) (Attr, error) {
	sum, gen, known := t.sums.get(head)
	all := pagesSum{pageSum: sum, sure: true}
	if !known {
		var err error
		if all, err = t.sumPages(ctx, first); err != nil {
			return a, err
		}
		if all.sure {
			t.sums.put(head, gen, all.pageSum)
		}
	}
	a.Nlink += all.subdirs
	if all.mtime > setAt {
		a.Mtime = all.mtime
	}
	a.Ctime = max(a.Ctime, all.ctime)
	if !all.sure {
		a.Valid = 0
	}
	return a, nil
}

// dirAttr returns what stat shows of an inode that read finds, a directory's pages included.
func (t *Tree) dirAttr(ctx context.Context, read func(f func(c *container, s *State, n *Inode) error) error) (a Attr, err error) {
	for range maxResolutions {
		var head, first blocks.RegisterID
		var setAt Time
		err = read(func(c *container, s *State, n *Inode) error {
			a = t.show(c, n)
			if s.paged() && n == &s.Self {
				head, first, setAt = c.id, s.pages[0].ID, s.setAt
			}
			return nil
		})
		if err != nil || first.IsZero() {
			return a, err
		}
		if a, err = t.withPages(ctx, a, setAt, head, first); !isElsewhere(err) {
			return a, err
		}
	}
	return a, errors.Join(blocks.ErrBusy, err)
}

// gather ends the pages of a directory that has no names, so that it is an ordinary empty one. ENOTEMPTY: it has names.
func (t *Tree) gather(ctx context.Context, head blocks.RegisterID) error {
	for range maxResolutions {
		var first blocks.RegisterID
		err := t.read(ctx, head, func(_ *container, s *State) error {
			if s.paged() {
				first = s.pages[0].ID
			} else if !s.empty() {
				return syscall.ENOTEMPTY
			}
			return nil
		})
		if err != nil || first.IsZero() {
			return err
		}
		if err = t.allEmpty(ctx, first); err == nil {
			if !MayWait(ctx) {
				return ErrWait
			}
			err = t.gatherPages(ctx, head, first)
		}
		if err != nil && !errors.Is(err, errAgain) && !overtaken(err) && !isElsewhere(err) {
			return err
		}
	}
	return fmt.Errorf("%w: directory %s", blocks.ErrBusy, head.Short())
}

// allEmpty returns ENOTEMPTY if a page has names.
func (t *Tree) allEmpty(ctx context.Context, first blocks.RegisterID) error {
	for id := first; !id.IsZero(); {
		err := t.read(ctx, id, func(_ *container, s *State) error {
			if id = s.next; len(s.entries) > 0 {
				return syscall.ENOTEMPTY
			}
			return nil
		})
		if errors.Is(err, syscall.ENOENT) {
			err = &elsewhere{first}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *Tree) gatherPages(ctx context.Context, head, first blocks.RegisterID) error {
	all, err := t.sumPages(ctx, first)
	if err != nil {
		return err
	}
	ids := append([]blocks.RegisterID{head}, all.ids...)
	return t.transact(ctx, ids, func(get func(blocks.RegisterID) *container) ([]part, error) {
		h := get(head)
		if !h.st.paged() || h.st.pages[0].ID != first {
			return nil, errAgain
		}
		var parts []part
		var sum pageSum
		at := now()
		o := &Op{Kind: OpGather, Time: at, Mtime: h.st.Self.Mtime}
		for id := first; !id.IsZero(); {
			c := get(id)
			if c == nil { // split since
				return nil, errAgain
			}
			if len(c.st.entries) > 0 {
				return nil, syscall.ENOTEMPTY
			}
			parts = append(parts, part{c: c, op: &Op{Kind: OpDie, Time: at}})
			for r := range c.st.freeRegs {
				o.Regs = append(o.Regs, r)
			}
			p := c.st.sum()
			sum.mtime, sum.ctime = max(sum.mtime, p.mtime), max(sum.ctime, p.ctime)
			id = p.next
		}
		if sum.mtime > h.st.setAt {
			o.Mtime = sum.mtime
		}
		o.Atime = max(h.st.Self.Ctime, sum.ctime)
		return append(parts, part{c: h, op: o, onCommit: all.ids}), nil
	}, nil)
}
