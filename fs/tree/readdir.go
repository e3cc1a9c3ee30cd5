package tree

import (
	"context"
	"maps"
	"slices"
	"syscall"

	"github.com/mutualfs/mutualfs/blocks"
)

// lister gathers the entries of a directory.
type lister struct {
	t        *Tree
	dir      Ino
	parent   Ino
	entries  []Entry
	children []listed
}

// listed is an entry whose attributes lie in a container of their own.
type listed struct {
	i     int
	child blocks.RegisterID
	sure  bool
}

// ReadDir lists a directory. One with pages is read page by page, along the list: what is there all the time is listed
// once, whatever comes, goes, or splits meanwhile.
func (t *Tree) ReadDir(ctx context.Context, dir Ino) (entries []Entry, parent Ino, err error) {
	home, err := t.home(dir)
	if err != nil {
		return nil, 0, err
	}
	for range maxResolutions {
		l := lister{t: t, dir: dir}
		if err = l.walk(ctx, home); isElsewhere(err) { // the pages have ended
			continue
		}
		if err != nil {
			return nil, 0, err
		}
		l.fillChildren(ctx)
		return l.entries, l.parent, nil
	}
	return nil, 0, blocks.ErrBusy
}

func (l *lister) walk(ctx context.Context, head blocks.RegisterID) error {
	for id := head; !id.IsZero(); {
		err := l.t.read(ctx, id, func(c *container, s *State) error {
			if !s.named() || s.Self.Ino != l.dir {
				return syscall.ENOTDIR
			}
			if s.Kind == KindDir {
				l.parent = s.ParentIno
			}
			if id = s.next; s.paged() {
				id = s.pages[0].ID
			}
			l.add(c, s)
			return nil
		})
		if err == syscall.ENOENT && id != head {
			err = &elsewhere{head}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// add lists one container, by name: who reads a directory twice finds the same order. Its mu is held.
func (l *lister) add(c *container, s *State) {
	t := l.t
	sure := t.leased(c) && !c.closed
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
		l.t.ahead.listed(rest, l.children[0].sure)
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
