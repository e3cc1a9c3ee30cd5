package tree

import (
	"context"
	"errors"
	"maps"
	"slices"
	"syscall"

	"github.com/mutualfs/mutualfs/blocks"
)

// lister gathers the entries of a directory, or of a page.
type lister struct {
	t        *Tree
	dir      Ino
	entries  []Entry
	children []listed
	leased   bool // this mount has a lease of the directory, perhaps with others
}

// listed is an entry whose attributes lie in a container of their own.
type listed struct {
	i     int
	child blocks.RegisterID
	sure  bool
}

// ReadDir lists the part of a directory that begins at a page, zero being the beginning, and returns the page where the next
// part begins, zero after the last. parent comes with the first part. The pages are a list, and each is read as it is at one moment, together with the
// one behind it: what is there all the time is listed once, whatever comes, goes, or splits between two calls.
func (t *Tree) ReadDir(ctx context.Context, dir Ino, from blocks.RegisterID) (entries []Entry, parent Ino, next blocks.RegisterID, err error) {
	id := from
	if from.IsZero() {
		if id, err = t.home(dir); err != nil {
			return nil, 0, next, err
		}
	}
	l := lister{t: t, dir: dir}
	err = t.read(ctx, id, func(c *container, s *State) error {
		if !s.named() || s.Self.Ino != dir {
			return syscall.ENOTDIR
		}
		if s.Kind == KindDir {
			parent = s.ParentIno
		}
		if next = s.next; s.paged() {
			next = s.pages[0].ID
		}
		l.add(c, s)
		return nil
	})
	if !from.IsZero() && (isElsewhere(err) || errors.Is(err, syscall.ENOENT)) {
		return nil, 0, blocks.RegisterID{}, nil // pages end when none of them has a name
	}
	if err != nil {
		return nil, 0, blocks.RegisterID{}, err
	}
	l.fillChildren(ctx)
	return l.entries, parent, next, nil
}

// add lists one container, by name: who reads a directory twice finds the same order. Its mu is held.
func (l *lister) add(c *container, s *State) {
	t := l.t
	sure := t.leased(c) && !c.closed
	l.leased = t.sure(c)
	if l.entries == nil {
		l.entries = make([]Entry, 0, len(s.entries))
	}
	for _, name := range slices.Sorted(maps.Keys(s.entries)) {
		e := s.entries[name]
		v := Entry{Name: name, Attr: Attr{Ino: e.Ino, Mode: e.Type}}
		if e.Child.IsZero() {
			v.Attr, v.Full = t.show(c, s.inodes[e.Ino]), true
		} else {
			l.children = append(l.children, listed{len(l.entries), e.Child, sure})
		}
		l.entries = append(l.entries, v)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range s.entries {
		if t.nodes[e.Ino] == nil {
			h := c.id
			if !e.Child.IsZero() {
				h = e.Child
			}
			t.nodes[e.Ino] = &node{home: h}
		}
	}
}

// fillChildren adds the attributes that memory has at hand. The directories among the others are read ahead once one of them is used.
func (l *lister) fillChildren(ctx context.Context) {
	var rest []blocks.RegisterID
	for _, ch := range l.children {
		e := &l.entries[ch.i]
		a, err := l.t.dirAttr(NoWait(ctx), func(f func(c *container, s *State, n *Inode) error) error {
			return l.t.peek(ch.child, func(c *container, s *State) error {
				if n := s.inode(e.Attr.Ino); n != nil {
					return f(c, s, n)
				}
				return syscall.ENOENT
			})
		})
		if err != nil {
			if isDir(e.Attr.Mode) {
				rest = append(rest, ch.child)
			}
			continue
		}
		if e.Attr, e.Full = a, true; !ch.sure {
			e.Attr.Valid = 0
		}
	}
	if len(rest) > 0 {
		l.t.ahead.listed(rest, l.leased)
	}
}

// peek is a read from memory that does not count as a use of the container: ErrWait if memory cannot answer.
func (t *Tree) peek(id blocks.RegisterID, f func(c *container, s *State) error) error {
	t.mu.RLock()
	c := t.conts[id]
	t.mu.RUnlock()
	if c == nil {
		return ErrWait
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if ok, err := t.readFast(c, false, false, f); ok {
		return err
	}
	return ErrWait
}
