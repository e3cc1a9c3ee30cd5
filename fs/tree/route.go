package tree

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/mutualfs/mutualfs/blocks"
)

const (
	maxHops  = 256 // containers that a search for a name's place visits
	freshHop = 3   // after so many of them it begins anew at the head, which is read
)

// pageInfo is what a container that is a page keeps while its state is not in memory, and how much it may still take.
type pageInfo struct {
	head    blocks.RegisterID // of a page: its directory
	top     uint64            // of a page: the highest hash that it owned while this mount knew it
	sum     *pageSum          // of a page that was dropped: right as long as its lease is trusted
	pendLen int               // bytes of the pending operations, roughly
	shrunk  bool              // names have left since the last snapshot: the next commit is one
}

// gone returns why nobody can use the container, nil if one can. orphans: it is for the open files that an ended one still has.
// mu must be held.
func (c *container) gone(orphans bool) error {
	switch {
	case c.st != nil && c.st.Dead && !c.removed:
		if orphans && len(c.st.inodes)+len(c.st.left) > 0 {
			return nil
		}
		return c.st.ended()
	case c.st == nil && !c.head.IsZero():
		return &elsewhere{c.head}
	case c.removed, c.st == nil:
		return syscall.ENOENT
	}
	return nil
}

// notePage keeps what a page's stub needs. mu must be held.
func (c *container) notePage() {
	if c.st.Kind == KindPage {
		c.head, c.top, c.sum = c.st.Parent, max(c.top, c.st.hi), nil
	}
}

// noteSplits is called with operations that were read.
func (c *container) noteSplits(ops []*Op) {
	for _, o := range ops {
		if o.Kind == OpSpread || o.Kind == OpSplit {
			c.shrunk = true
		}
	}
}

// weight is about what the operation adds to a value, in bytes.
func (o *Op) weight() int {
	return 64 + len(o.Name) + len(o.New) + len(o.Data) + 40*len(o.Extents) + 128*len(o.Inodes) + 32*len(o.Maps) + 8*len(o.Cuts)
}

// hint returns where memory says that a name's place is: in the directory with the head, or one of its pages.
func (t *Tree) hint(head blocks.RegisterID, name string) blocks.RegisterID {
	t.mu.RLock()
	c := t.conts[head]
	t.mu.RUnlock()
	if c == nil {
		return head
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.st == nil || !c.st.paged() || c.removed {
		return head
	}
	return c.st.pages[c.st.pageOf(nameHash(name))].ID
}

// routed calls do with the container that has a name's place, as far as known, and again with others
// as long as do returns *elsewhere.
func (t *Tree) routed(ctx context.Context, head blocks.RegisterID, name string, do func(id blocks.RegisterID) error) error {
	return t.routedFrom(ctx, t.hint(head, name), head, name, do)
}

// routedFrom is routed beginning at a container.
func (t *Tree) routedFrom(ctx context.Context, id, head blocks.RegisterID, name string, do func(id blocks.RegisterID) error) error {
	for hop := range maxHops {
		err := do(id)
		var e *elsewhere
		switch {
		case err == nil && hop > 0:
			t.teach(ctx, head, id)
			return nil
		case errors.As(err, &e):
			id = e.id
			if hop == freshHop {
				id = head
			}
		case errors.Is(err, syscall.ENOENT) && id != head && t.endedPage(id, head):
			id = head
		default:
			return err
		}
	}
	return fmt.Errorf("%w: no place for %q", blocks.ErrBusy, name)
}

// readName calls f with the container that has the name's place.
func (t *Tree) readName(ctx context.Context, head blocks.RegisterID, name string, f func(c *container, s *State) error) error {
	return t.routed(ctx, head, name, func(id blocks.RegisterID) error {
		return t.read(ctx, id, func(c *container, s *State) error {
			if err := s.has(name); err != nil {
				return err
			}
			return f(c, s)
		})
	})
}

// mutateName makes one operation on the container that has the name's place. grow: one that adds to it.
func (t *Tree) mutateName(ctx context.Context, head blocks.RegisterID, name string, grow bool, b build, done func(c *container, o *Op, seq Seq)) error {
	return t.routed(ctx, head, name, func(id blocks.RegisterID) error {
		if grow {
			if err := t.makeRoom(ctx, id); err != nil {
				return err
			}
		}
		_, err := t.mutate(ctx, id, func(c *container, s *State) (*Op, error) {
			if err := s.has(name); err != nil {
				return nil, err
			}
			return b(c, s)
		}, done)
		return err
	})
}

// endedPage reports whether the register of a page of head has ended.
func (t *Tree) endedPage(id, head blocks.RegisterID) bool {
	c, err := t.cont(id)
	if err != nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.st == nil && c.head.IsZero() {
		c.head = head
	}
	return c.removed
}

// locate returns the container that has the name's place.
func (t *Tree) locate(ctx context.Context, head blocks.RegisterID, name string) (id blocks.RegisterID, err error) {
	err = t.readName(ctx, head, name, func(c *container, s *State) error {
		id = c.id
		return nil
	})
	return id, err
}

// headOf returns the register of the directory that a container of names belongs to.
func (t *Tree) headOf(id blocks.RegisterID) blocks.RegisterID {
	t.mu.RLock()
	c := t.conts[id]
	t.mu.RUnlock()
	if c == nil {
		return id
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.head.IsZero() {
		return c.head
	}
	return id
}

// teach enters a page that was found along the list into the head's table, if that costs nothing.
func (t *Tree) teach(ctx context.Context, head, page blocks.RegisterID) {
	if page == head {
		return
	}
	c, err := t.cont(page)
	if err != nil {
		return
	}
	c.mu.Lock()
	var lo uint64
	if c.st != nil && c.st.Kind == KindPage && !c.st.Dead {
		lo = c.st.lo
	}
	c.mu.Unlock()
	if lo == 0 { // the first is in every table
		return
	}
	_, err = t.mutate(NoWait(mayWait(ctx)), head, func(_ *container, s *State) (*Op, error) {
		if !s.paged() || s.pages[s.pageOf(lo)].Lo == lo {
			return nil, nil
		}
		return &Op{Kind: OpLearn, Child: page, Off: lo}, nil
	}, nil)
	if err != nil && !errors.Is(err, ErrWait) {
		t.log.Debug().Err(err).Str("container", head.Short()).Msg("enter a page into the table")
	}
}

// chase points the node of an inode that a split or a promotion has taken out of the container home to where it is.
func (t *Tree) chase(ctx context.Context, home blocks.RegisterID, ino Ino) (found bool, err error) {
	id, err := t.whereis(ctx, home, ino)
	if !id.IsZero() {
		t.withNode(ino, func(n *node) { n.home = id })
	}
	return !id.IsZero(), err
}

// whereis finds an inode that a split or a promotion has taken out of the container home; zero: it is nowhere. It reads the
// pages that have got names of home since this mount knew it.
func (t *Tree) whereis(ctx context.Context, home blocks.RegisterID, ino Ino) (found blocks.RegisterID, err error) {
	c, err := t.cont(home)
	if err != nil {
		return found, err
	}
	c.mu.Lock()
	var next blocks.RegisterID
	top := ^uint64(0)
	if c.st != nil {
		found = c.st.whither(ino)
	}
	if c.st != nil && c.st.paged() {
		next = c.st.pages[0].ID
	} else if c.st != nil && c.st.Kind == KindPage {
		next, top = c.st.next, c.top
	}
	c.mu.Unlock()
	for !next.IsZero() && found.IsZero() {
		id := next
		err = t.read(ctx, id, func(_ *container, s *State) error {
			if next = s.next; s.lo > top || s.Kind != KindPage {
				next = blocks.RegisterID{}
			} else if found = s.promoted(ino); s.inodes[ino] != nil {
				found = id
			}
			return nil
		})
		if isElsewhere(err) || errors.Is(err, syscall.ENOENT) {
			return found, nil // the pages have ended: no inode is left in them
		}
		if err != nil {
			return found, err
		}
	}
	return found, nil
}
