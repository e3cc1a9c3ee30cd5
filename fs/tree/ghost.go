package tree

import "syscall"

// ghost is what this mount ended while the kernel refers to it: a directory that somebody has open or is in, a FIFO,
// whose handles no server sees, a descriptor of O_PATH. Nothing of it is left in a register. Its attributes live on in memory, where they
// can be read and changed until the kernel forgets it; data it has none.
type ghost struct{ c *container }

// haunt makes a ghost of what has ended if the kernel refers to it.
func (t *Tree) haunt(end *Inode, at Time) {
	st := newState(KindDir)
	n := end.clone()
	n.Nlink, n.Inline, n.Extents, n.uses = 0, nil, nil, nil
	if n.Ctime = max(n.Ctime, at); isDir(n.Mode) {
		st.Self = *n
	} else {
		st.inodes[n.Ino] = n
	}
	st.Dead = true
	t.withNode(n.Ino, func(x *node) {
		if n.Size = max(n.Size, x.grownEnd); x.grownMtime != 0 {
			n.Mtime = x.grownMtime
		}
		if x.lookups > 0 && x.ghost == nil {
			x.ghost = &ghost{&container{st: st}}
		}
	})
}

// ghostOf returns the ghost of an inode, nil if it has none.
func (t *Tree) ghostOf(ino Ino) *ghost {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if n := t.nodes[ino]; n != nil {
		return n.ghost
	}
	return nil
}

func (g *ghost) read(ino Ino, f func(c *container, s *State, n *Inode) error) error {
	g.c.mu.Lock()
	defer g.c.mu.Unlock()
	return f(g.c, g.c.st, g.c.st.inode(ino))
}

// mutate applies a change of attributes to memory alone.
func (g *ghost) mutate(t *Tree, ino Ino, b func(s *State, n *Inode) (*Op, error)) (Attr, error) {
	g.c.mu.Lock()
	defer g.c.mu.Unlock()
	st := g.c.st
	n := st.inode(ino)
	o, err := b(st, n)
	if err != nil || o == nil {
		return Attr{}, err
	}
	switch o.Kind {
	case OpSetattr, OpSetXattr, OpRemoveXattr:
	default:
		return Attr{}, syscall.ESTALE
	}
	st.Dead = false // for Apply; of operations on its names the kernel makes ENOENT itself
	_, err = Apply(st, o)
	st.Dead = true
	return t.show(g.c, n), err
}
