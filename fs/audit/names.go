package audit

import (
	"errors"
	"maps"
	"slices"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
)

func isCorrupt(err error) bool { return errors.Is(err, blocks.ErrCorrupt) }

// container judges the names and inodes of a directory or page.
func (j *judge) container(f *tree.Facts) {
	counts := map[tree.Ino]uint32{}
	first := map[tree.Ino]string{}
	for _, n := range f.Names {
		if n.Child.IsZero() {
			if counts[n.Ino]++; first[n.Ino] == "" {
				first[n.Ino] = n.Name
			}
			continue
		}
		j.child(f, n)
	}
	for i := range f.Inodes {
		n := &f.Inodes[i]
		k := Key{Register: f.ID, Ino: n.Ino}
		switch have := counts[n.Ino]; {
		case have == 0 && n.Nlink == 0 && slices.ContainsFunc(n.Keepers, j.lives): // open somewhere
		case have == 0:
			k.Kind = OrphanInode
			j.find(k, "", "an inode without a name in %s, of %d stripes, that nobody has open", j.paths[j.heads[f.ID]], len(n.Stripes))
		case have != n.Nlink:
			k.Kind = WrongNlink
			j.out = append(j.out, Finding{Key: k, Path: j.path(f.ID, first[n.Ino]), Detail: nlinks(n.Nlink, have), Links: have})
		}
	}
}

// lives reports whether a session may go on: its mount is there, or it is not known.
func (j *judge) lives(session blocks.RegisterID) bool {
	f := j.look.Registers[session]
	if f == nil {
		return j.look.Unread[session] != nil
	}
	return j.look.Keepers[f.Holder]
}

// child judges a name whose inode has a container of its own.
func (j *judge) child(f *tree.Facts, n tree.NameFacts) {
	k := Key{Register: f.ID, Name: n.Name, Ino: n.Ino}
	path := j.path(f.ID, n.Name)
	c := j.look.Registers[n.Child]
	switch {
	case c == nil && j.look.Ended[n.Child]:
		k.Kind = Dangling
		j.find(k, path, "it names container %s, which has ended", n.Child.Short())
		return
	case c == nil:
		return // not read: a finding of its own
	case c.Dead, isDir(n.Type) != (c.Kind == tree.KindDir), c.Kind != tree.KindDir && c.Kind != tree.KindFile,
		c.Kind == tree.KindDir && c.Ino != n.Ino, c.Kind == tree.KindFile && !holds(c, n.Ino):
		k.Kind = Dangling
		j.find(k, path, "container %s does not hold what it names", n.Child.Short())
		return
	case c.Kind != tree.KindDir:
		return // see promoted
	}
	var right []name // the names that the directory agrees with
	for _, at := range j.named[n.Child] {
		if head := j.look.Registers[j.heads[at.in]]; c.Parent == head.ID && c.ParentIno == head.Ino {
			right = append(right, at)
		}
	}
	counts := right
	if len(right) == 0 {
		counts = j.named[n.Child]
	}
	switch {
	case !firstOf(f.ID, n.Name, counts):
		k.Kind = TwoNames
		j.find(k, path, "the directory has %d names", len(j.named[n.Child]))
	case len(right) == 0:
		j.find(Key{Kind: WrongParent, Register: n.Child, Ino: c.Ino}, path, "the directory says that it lies in container %s", c.Parent.Short())
	}
}

// holds reports whether a promoted inode is the one that is named.
func holds(c *tree.Facts, ino tree.Ino) bool { return len(c.Inodes) == 1 && c.Inodes[0].Ino == ino }

// firstOf reports whether a name is the one of several that counts: the smallest.
func firstOf(in blocks.RegisterID, nm string, names []name) bool {
	return !slices.ContainsFunc(names, func(n name) bool {
		c := n.in.Compare(in.ID)
		return c < 0 || c == 0 && n.name < nm
	}) && slices.ContainsFunc(names, func(n name) bool { return n.in == in && n.name == nm })
}

// promoted judges the back references of a promoted inode.
func (j *judge) promoted(f *tree.Facts) {
	if len(f.Inodes) != 1 {
		return // its names dangle
	}
	n := f.Inodes[0]
	refs := map[blocks.RegisterID]uint32{}
	var links uint32
	var path string
	for _, at := range j.named[f.ID] {
		if at.ino == n.Ino {
			refs[j.heads[at.in]]++
			links++
			if p := j.path(at.in, at.name); path == "" || p != "" && p < path {
				path = p
			}
		}
	}
	k := Key{Register: f.ID, Ino: n.Ino}
	if links != n.Nlink {
		k.Kind = WrongNlink
		j.out = append(j.out, Finding{Key: k, Path: path, Detail: nlinks(n.Nlink, links), Links: links})
	}
	if !maps.Equal(refs, f.Refs) {
		k.Kind = WrongReference
		j.find(k, path, "it says that it has names in %d directories, and has in %d", len(f.Refs), len(refs))
	}
}

// twoPlaces finds inodes that lie in two containers of the tree.
func (j *judge) twoPlaces() {
	at := map[tree.Ino]blocks.RegisterID{}
	for id := range j.reached {
		f := j.look.Registers[id]
		if f.Kind == tree.KindMap {
			continue
		}
		for i := range f.Inodes {
			ino := f.Inodes[i].Ino
			other, have := at[ino]
			if !have {
				at[ino] = id
				continue
			}
			if other.Compare(id.ID) < 0 {
				id, other = other, id
			}
			j.find(Key{Kind: TwoPlaces, Register: id, Ino: ino}, "", "it lies in container %s, too", other.Short())
		}
	}
}
