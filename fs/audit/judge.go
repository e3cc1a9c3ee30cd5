package audit

import (
	"cmp"
	"fmt"
	"slices"
	"syscall"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
)

// Judge says what is wrong with what a look has seen, in a stable order. It is a pure function.
func Judge(l *Look) []Finding {
	j := newJudge(l)
	j.registers()
	for id := range j.reached {
		j.missingPage(l.Registers[id])
	}
	for id := range j.reached {
		switch f := l.Registers[id]; f.Kind {
		case tree.KindDir, tree.KindPage:
			j.container(f)
		case tree.KindFile:
			j.promoted(f)
		}
	}
	j.twoPlaces()
	j.stripes()
	slices.SortFunc(j.out, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Path, b.Path), a.Register.Compare(b.Register.ID),
			cmp.Compare(a.Name, b.Name), cmp.Compare(a.Ino, b.Ino), a.Stripe.Compare(b.Stripe.ID))
	})
	return j.out
}

// name is where a register is named.
type name struct {
	in   blocks.RegisterID // the directory or page
	name string
	ino  tree.Ino
	mode uint32
}

type judge struct {
	look    *Look
	heads   map[blocks.RegisterID]blocks.RegisterID // of a container of names that is in its place: its directory
	named   map[blocks.RegisterID][]name            // by child
	needed  map[blocks.RegisterID]bool              // registers that something other than a name, or the tree itself, needs
	reached map[blocks.RegisterID]bool              // from the root
	paths   map[blocks.RegisterID]string            // of directories that are reached
	inodes  map[tree.Ino]bool                       // see inTree
	out     []Finding
}

// newJudge walks through what a look has seen.
func newJudge(l *Look) *judge {
	j := &judge{look: l, heads: map[blocks.RegisterID]blocks.RegisterID{}, named: map[blocks.RegisterID][]name{},
		needed: map[blocks.RegisterID]bool{}, reached: map[blocks.RegisterID]bool{}, paths: map[blocks.RegisterID]string{}}
	j.index()
	j.account()
	j.reach()
	return j
}

func (j *judge) find(k Key, path, format string, args ...any) {
	j.out = append(j.out, Finding{Key: k, Path: path, Detail: fmt.Sprintf(format, args...)})
}

func isDir(mode uint32) bool { return mode&syscall.S_IFMT == syscall.S_IFDIR }

// index finds out which containers of names are in their places, and gathers their names of other registers.
func (j *judge) index() {
	for id, f := range j.look.Registers {
		if f.Kind != tree.KindDir || f.Dead {
			continue
		}
		j.heads[id] = id
		if len(f.Pages) == 0 {
			continue
		}
		for at := f.Pages[0]; !at.IsZero(); {
			p := j.look.Registers[at]
			if p == nil || p.Kind != tree.KindPage || p.Parent != id || !j.heads[at].IsZero() {
				break
			}
			j.heads[at], at = id, p.Next
		}
	}
	for id := range j.heads {
		for _, n := range j.look.Registers[id].Names {
			if !n.Child.IsZero() {
				j.named[n.Child] = append(j.named[n.Child], name{id, n.Name, n.Ino, n.Type})
			}
		}
	}
}

// account notes the registers that are there for something else than a name.
func (j *judge) account() {
	j.needed[j.look.Root] = true
	j.needed[tree.RenameLock(j.look.Root)] = true
	for _, f := range j.look.Registers {
		for _, list := range [][]blocks.RegisterID{f.FreeRegs, f.Txns, f.Brings, f.Maps} {
			for _, id := range list {
				j.needed[id] = true
			}
		}
	}
}

// reach walks from the root. The first name that leads to a directory is its path.
func (j *judge) reach() {
	todo := []blocks.RegisterID{j.look.Root}
	j.paths[j.look.Root] = "/"
	for len(todo) > 0 {
		id := todo[0]
		todo = todo[1:]
		f := j.look.Registers[id]
		if f == nil || j.reached[id] {
			continue
		}
		j.reached[id] = true
		j.reachMaps(f)
		for _, at := range append([]blocks.RegisterID{id}, j.pagesOf(f)...) {
			c := j.look.Registers[at]
			j.reached[at] = true
			for _, n := range c.Names {
				if n.Child.IsZero() || j.reached[n.Child] {
					continue
				}
				if _, known := j.paths[n.Child]; !known {
					j.paths[n.Child] = join(j.paths[id], n.Name)
				}
				todo = append(todo, n.Child)
			}
		}
	}
}

// pagesOf lists the pages of a directory that are in their places.
func (j *judge) pagesOf(f *tree.Facts) (ids []blocks.RegisterID) {
	if f.Kind != tree.KindDir || len(f.Pages) == 0 {
		return nil
	}
	for at := f.Pages[0]; !at.IsZero() && j.heads[at] == f.ID && !slices.Contains(ids, at); at = j.look.Registers[at].Next {
		ids = append(ids, at)
	}
	return ids
}

// missingPage finds a page that a directory counts on and that is not there.
func (j *judge) missingPage(f *tree.Facts) {
	if f.Kind != tree.KindDir || len(f.Pages) == 0 {
		return
	}
	next := f.Pages[0]
	for _, id := range j.pagesOf(f) {
		next = j.look.Registers[id].Next
	}
	if !next.IsZero() && (j.look.Ended[next] || j.look.Nowhere[next] || j.look.Registers[next] != nil) {
		j.find(Key{Kind: Dangling, Register: f.ID}, j.paths[f.ID], "its page %s is not there", next.Short())
	}
}

// reachMaps finds maps that a file counts on and that are not there.
func (j *judge) reachMaps(f *tree.Facts) {
	for _, id := range f.Maps {
		switch m := j.look.Registers[id]; {
		case m == nil && j.look.Ended[id], m != nil && (m.Kind != tree.KindMap || m.Parent != f.ID):
			j.find(Key{Kind: Dangling, Register: f.ID}, j.paths[f.ID], "its extent map %s is not there", id.Short())
		case m != nil:
			j.reached[id] = true
		}
	}
}

func join(dir, name string) string {
	if dir == "/" {
		return "/" + name
	}
	return dir + "/" + name
}

// path returns where a name in a container is.
func (j *judge) path(in blocks.RegisterID, name string) string {
	if p, ok := j.paths[j.heads[in]]; ok {
		return join(p, name)
	}
	return ""
}

// registers judges those that cannot be read, and those that the walk from the root did not come to.
func (j *judge) registers() {
	for id, err := range j.look.Unread {
		if isCorrupt(err) {
			j.find(Key{Kind: Unreadable, Register: id}, j.paths[id], "%v", err)
		}
	}
	for id := range j.look.Nowhere {
		if path, reached := j.paths[id]; reached {
			j.find(Key{Kind: MissingRegister, Register: id}, path, "no peer has container %s", id.Short())
		}
	}
	for id, f := range j.look.Registers {
		if f.Kind == tree.KindSession && j.look.Keepers[f.Holder] {
			continue // whoever has its lease ends it
		}
		_, placed := j.heads[id]
		if placed = placed && f.Kind == tree.KindPage; !placed && !j.reached[id] && !j.needed[id] && len(j.named[id]) == 0 {
			j.find(Key{Kind: OrphanRegister, Register: id, Ino: f.Ino}, "", "nothing names this %s", describe(f))
			j.out[len(j.out)-1].Age = j.look.Ages[id]
		}
	}
	j.cycles()
}

// describe says what a register holds.
func describe(f *tree.Facts) string {
	var names, size int
	names = len(f.Names)
	for i := range f.Inodes {
		size += len(f.Inodes[i].Stripes)
	}
	switch f.Kind {
	case tree.KindDir:
		return fmt.Sprintf("directory of %d names", names)
	case tree.KindFile:
		return fmt.Sprintf("file of %d stripes", size)
	case tree.KindMap:
		return fmt.Sprintf("extent map of %d stripes", size)
	case tree.KindPage:
		return fmt.Sprintf("page of %d names", names)
	case tree.KindTxn:
		return "transaction"
	case tree.KindSession:
		return "session of a mount"
	}
	return fmt.Sprintf("register of kind %d", f.Kind)
}

// cycles follows the names of what was not reached upwards: where that does not come to an end, there is a cycle.
func (j *judge) cycles() {
	done := map[blocks.RegisterID]bool{}
	for id, f := range j.look.Registers {
		if f.Kind != tree.KindDir || j.reached[id] || done[id] {
			continue
		}
		on := map[blocks.RegisterID]bool{}
		at := id
		for !done[at] && !on[at] && len(j.named[at]) > 0 {
			on[at] = true
			at = j.heads[j.named[at][0].in]
		}
		if on[at] {
			first := at
			for up := j.heads[j.named[at][0].in]; up != at; up = j.heads[j.named[up][0].in] {
				if up.Compare(first.ID) < 0 {
					first = up
				}
			}
			j.find(Key{Kind: Cycle, Register: first, Name: j.named[first][0].name, Ino: j.named[first][0].ino}, "", "directories contain each other and are cut off from the root")
		}
		for x := range on {
			done[x] = true
		}
	}
}
