package tree

import (
	"github.com/mutualfs/mutualfs/blocks"
)

// fold returns a shorter batch with the same outcome from the same state:
//
//   - Changes of attributes of one inode with nothing between them on that inode become one.
//   - A file that is made and renamed to a free name (as rsync and editors do) is made under that name.
//   - A file that is made and unlinked, not open, leaves only what it changed in the directory, and the
//     stripes that it had.
//   - A file that loses its last name and is released, with nothing between on it, was not kept.
//
// self is the directory's own number. Operations are not changed: those that differ are copies.
func fold(ops []*Op, self Ino) []*Op {
	if len(ops) < 2 {
		return ops
	}
	f := folder{self: self, ops: append([]*Op(nil), ops...), last: map[Ino]int{}, born: map[Ino]int{}, names: map[string]int{}, named: map[Ino]int{}, mine: map[Ino][]int{}}
	for i := range f.ops {
		f.step(i)
	}
	out := f.ops[:0]
	for _, o := range f.ops {
		if o != nil {
			out = append(out, o)
		}
	}
	return out
}

// folder walks over a batch; dropped operations become nil.
type folder struct {
	self  Ino
	ops   []*Op
	last  map[Ino]int    // the last operation on an inode
	born  map[Ino]int    // files made in this batch, whose every operation since is foldable
	names map[string]int // the last operation that mentions a name
	named map[Ino]int    // the last operation that named a born inode
	mine  map[Ino][]int  // all operations on a born inode
}

func (f *folder) step(i int) {
	o := f.ops[i]
	switch o.Kind {
	case OpMake:
		if o.Child.IsZero() {
			f.born[o.Ino], f.named[o.Ino] = i, i
		}
	case OpSetattr:
		if f.mergeSetattr(i) {
			return
		}
	case OpRename:
		if f.foldRename(i) {
			return
		}
		delete(f.born, o.Ino)
		delete(f.born, o.Ino2)
	case OpUnlink:
		if f.foldUnlink(i) {
			return
		}
		if o.Keep && f.onlyName(o) { // it may still be released
			f.note(i)
			f.named[o.Ino] = i
			return
		}
		delete(f.born, o.Ino)
	case OpKeep:
		f.forget(o.Inos)
	case OpRelease:
		if f.foldRelease(i); f.ops[i] == nil {
			return
		}
		f.forget(f.ops[i].Inos)
	case OpSetXattr, OpRemoveXattr, OpWriteback, OpTruncate, OpPunch:
	default:
		clear(f.born) // rare, and may concern anything
	}
	f.note(i)
}

// note remembers what operation i mentions.
func (f *folder) note(i int) {
	o := f.ops[i]
	f.last[o.Ino], f.last[o.Ino2] = i, i
	if namesEntry(o.Kind) {
		f.names[o.Name], f.names[o.New] = i, i
	}
	if _, ok := f.born[o.Ino]; ok {
		f.mine[o.Ino] = append(f.mine[o.Ino], i)
	}
}

// namesEntry reports whether Name and New are names in the directory.
func namesEntry(k OpKind) bool { return k != OpSetXattr && k != OpRemoveXattr }

func (f *folder) mergeSetattr(i int) bool {
	o := f.ops[i]
	j, ok := f.last[o.Ino]
	// The directory's own times change with every name.
	if !ok || o.Ino == f.self || f.ops[j] == nil || f.ops[j].Kind != OpSetattr || f.ops[j].Ino != o.Ino {
		return false
	}
	m := *f.ops[j]
	m.Time = o.Time
	m.Set |= o.Set
	for _, v := range []struct {
		bit      uint8
		dst, src *uint32
	}{{setMode, &m.Mode, &o.Mode}, {setUid, &m.Uid, &o.Uid}, {setGid, &m.Gid, &o.Gid}} {
		if o.Set&v.bit != 0 {
			*v.dst = *v.src
		}
	}
	if o.Set&setAtime != 0 {
		m.Atime = o.Atime
	}
	if o.Set&setMtime != 0 {
		m.Mtime = o.Mtime
	}
	f.ops[j], f.ops[i] = &m, nil
	return true
}

func (f *folder) foldRename(i int) bool {
	o := f.ops[i]
	at, ok := f.born[o.Ino]
	if !ok || o.Ino2 != 0 || o.Name == o.New || RenameFlags(o.Flags)&RenameExchange != 0 || f.ops[at].Name != o.Name {
		return false
	}
	if f.names[o.Name] != f.named[o.Ino] { // somebody else had the old name meanwhile
		return false
	}
	if j, used := f.names[o.New]; used && j >= at { // the new name was not free all the time
		return false
	}
	m := *f.ops[at]
	m.Name = o.New
	f.ops[at] = &m
	f.names[o.Name], f.names[o.New] = i, i
	f.named[o.Ino] = i
	f.ops[i] = &Op{Kind: OpTouch, Time: o.Time, Ino: o.Ino}
	f.last[o.Ino] = i
	f.mine[o.Ino] = append(f.mine[o.Ino], i)
	return true
}

// onlyName reports whether the operation is about the one name that a file which was made in this batch has had, under which nobody else was.
func (f *folder) onlyName(o *Op) bool {
	at, ok := f.born[o.Ino]
	return ok && f.ops[at].Name == o.Name && f.names[o.Name] == f.named[o.Ino]
}

func (f *folder) foldUnlink(i int) bool {
	o := f.ops[i]
	if o.Keep || !f.onlyName(o) {
		return false
	}
	touch := &Op{Kind: OpTouch, Time: o.Time}
	seen := map[blocks.StripeID]bool{}
	for _, j := range f.mine[o.Ino] {
		p := f.ops[j]
		if p == nil {
			continue
		}
		for k := range p.Extents {
			if id := p.Extents[k].Stripe.ID; !seen[id] {
				seen[id] = true
				touch.Stripes = append(touch.Stripes, id)
			}
		}
		f.ops[j] = nil
	}
	f.ops[i] = touch
	delete(f.born, o.Ino)
	delete(f.mine, o.Ino)
	delete(f.last, o.Ino)
	return true
}

// foldRelease takes out of a release what it releases of a removal in this batch that kept it, and lets the removal keep nothing.
func (f *folder) foldRelease(i int) {
	o := f.ops[i]
	var rest []Ino
	for _, ino := range o.Inos {
		j, ok := f.last[ino]
		if !ok || f.ops[j] == nil || !f.ops[j].Keep || f.ops[j].Session != o.Session || f.ops[j].removed() != ino {
			rest = append(rest, ino)
			continue
		}
		m := *f.ops[j]
		m.Keep = false
		f.ops[j] = &m
		if m.Kind == OpUnlink {
			f.foldUnlink(j)
		}
		delete(f.born, ino)
	}
	if len(rest) == 0 {
		f.ops[i] = nil
	} else if len(rest) < len(o.Inos) {
		m := *o
		m.Inos = rest
		f.ops[i] = &m
	}
}

// removed returns the inode that an operation on one directory may end, 0 if there is none.
func (o *Op) removed() Ino {
	switch {
	case o.Kind == OpUnlink:
		return o.Ino
	case o.Kind == OpRename && o.Ino2 != o.Ino && RenameFlags(o.Flags)&RenameExchange == 0:
		return o.Ino2
	}
	return 0
}

// forget says that something happened to these inodes that nothing is folded over.
func (f *folder) forget(inos []Ino) {
	for _, ino := range inos {
		delete(f.born, ino)
		delete(f.last, ino)
	}
}
