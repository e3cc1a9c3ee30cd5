package tree

import (
	"errors"
	"fmt"
	"math/bits"
	"sort"
	"syscall"

	"github.com/mutualfs/mutualfs/blocks"
)

// maxPages bounds the pages that a directory is spread to at once. Later splits make more.
const maxPages = 1024

// PageRef says that a page begins at hash Lo.
type PageRef struct {
	Lo uint64
	ID blocks.RegisterID
}

// span is the part of the hashes that a page owns, [lo, hi], and the page behind it, zero after the last.
type span struct {
	lo, hi uint64
	next   blocks.RegisterID
}

// elsewhere is the error of an operation on a name that another container of the directory has: id, as far as known here.
type elsewhere struct{ id blocks.RegisterID }

func (e *elsewhere) Error() string { return "the name belongs to container " + e.id.Short() }

func isElsewhere(err error) bool {
	var e *elsewhere
	return errors.As(err, &e)
}

// nameHash is FNV-1a of 64 bits with MurmurHash3's last mixing: the upper bits must be even, too. It is part of the format.
func nameHash(name string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 1099511628211
	}
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// paged reports whether the directory's names lie in pages.
func (s *State) paged() bool { return len(s.pages) > 0 }

// empty reports whether a directory has no names. One with pages counts as one that has: see Tree.gather.
func (s *State) empty() bool { return len(s.entries) == 0 && !s.paged() }

// pageOf returns where in the table a hash leads.
func (s *State) pageOf(h uint64) int {
	return sort.Search(len(s.pages), func(i int) bool { return s.pages[i].Lo > h }) - 1
}

// has returns nil if a name's place is here, else *elsewhere.
func (s *State) has(name string) error {
	switch {
	case s.paged():
		return &elsewhere{s.pages[s.pageOf(nameHash(name))].ID}
	case s.Kind != KindPage:
		return nil
	}
	switch h := nameHash(name); {
	case h < s.lo:
		return &elsewhere{s.Parent}
	case h > s.hi:
		return &elsewhere{s.next}
	}
	return nil
}

// ended is the error of whoever comes to a dead container: a page's directory lives on.
func (s *State) ended() error {
	if s.Kind == KindPage {
		return &elsewhere{s.Parent}
	}
	return syscall.ENOENT
}

// head returns the register of the directory that a container of names, with the ID id, belongs to.
func (s *State) head(id blocks.RegisterID) blocks.RegisterID {
	if s.Kind == KindPage {
		return s.Parent
	}
	return id
}

// checkPlace returns *elsewhere if a name of the operation does not belong here.
func (s *State) checkPlace(o *Op) error {
	if s.Kind == KindDir && !s.paged() || !namesEntry(o.Kind) {
		return nil
	}
	for _, name := range []string{o.Name, o.New} {
		if name == "" {
			continue
		}
		if err := s.has(name); err != nil {
			return err
		}
	}
	return nil
}

func (s *State) checkPages(o *Op) error {
	bad := false
	switch n := len(o.Regs); o.Kind {
	case OpSpread:
		bad = s.Kind != KindDir || s.paged() || n < 1 || n > maxPages || bits.OnesCount(uint(n)) != 1
	case OpSplit:
		bad = s.Kind != KindPage || o.Child.IsZero() || o.Off <= s.lo || o.Off > s.hi
	case OpLearn:
		bad = !s.paged() || o.Child.IsZero()
	case OpGather:
		bad = !s.paged()
	}
	if bad {
		return fmt.Errorf("%w: operation %d on pages", blocks.ErrInvalid, o.Kind)
	}
	return nil
}

// shares returns where the i-th of n equal parts of the hashes begins and ends; n is a power of two.
func shares(i, n int) (lo, hi uint64) {
	if n == 1 {
		return 0, ^uint64(0)
	}
	width := uint64(1) << (64 - bits.TrailingZeros(uint(n)))
	lo = uint64(i) * width
	return lo, lo + width - 1
}

func (s *State) doPages(o *Op, ef *Effect) {
	switch o.Kind {
	case OpSpread:
		for name := range s.entries {
			s.leave(name, ef)
		}
		for i, id := range o.Regs {
			lo, _ := shares(i, len(o.Regs))
			s.pages = append(s.pages, PageRef{lo, id})
		}
		s.setAt = o.Time
	case OpSplit:
		for name := range s.entries {
			if nameHash(name) >= o.Off {
				s.leave(name, ef)
			}
		}
		s.hi, s.next = o.Off-1, o.Child
	case OpLearn:
		if i := s.pageOf(o.Off); s.pages[i].Lo != o.Off {
			s.pages = append(s.pages, PageRef{})
			copy(s.pages[i+2:], s.pages[i+1:])
			s.pages[i+1] = PageRef{o.Off, o.Child}
		}
	case OpGather:
		s.pages, s.setAt = nil, 0
		s.Self.Mtime, s.Self.Ctime = o.Mtime, o.Atime
		s.leftovers(o)
	}
}

// leave takes a name away that a page has now, and its inode with the first of its names.
func (s *State) leave(name string, ef *Effect) {
	e := s.entries[name]
	delete(s.entries, name)
	if isDir(e.Type) {
		s.subdirs--
	}
	if e.Child.IsZero() && s.inodes[e.Ino] != nil {
		delete(s.inodes, e.Ino)
		ef.MovedOut = append(ef.MovedOut, e.Ino)
	}
}

// die ends an empty directory or page. Its orphans and its free stripes stay until the register is disposed of; its free
// registers have been taken over by the container that lists it as garbage.
func (s *State) die() {
	s.Dead = true
	clear(s.freeRegs)
}

// Pages, at the end of a snapshot. Of a directory: U (U lo  ID)*, and if there are any, I when the time of modification
// was set. Of a page: U lo  U hi  ID next.
func (s *State) encodePages(e *blocks.Encoder) {
	switch s.Kind {
	case KindDir:
		e.Uint(uint64(len(s.pages)))
		for _, p := range s.pages {
			e.Uint(p.Lo)
			e.ID(p.ID.ID)
		}
		if s.paged() {
			e.Int(int64(s.setAt))
		}
	case KindPage:
		e.Uint(s.lo)
		e.Uint(s.hi)
		e.ID(s.next.ID)
	}
}

func (s *State) decodePages(d *blocks.Decoder) error {
	switch s.Kind {
	case KindDir:
		for i := range d.Count(blocks.IDSize + 1) {
			p := PageRef{Lo: d.Uint(), ID: blocks.RegisterID{ID: d.ID()}}
			if d.Err() == nil && (i == 0) != (p.Lo == 0) || i > 0 && p.Lo <= s.pages[i-1].Lo {
				return fmt.Errorf("%w: pages out of order", blocks.ErrCorrupt)
			}
			s.pages = append(s.pages, p)
		}
		if s.paged() {
			s.setAt = Time(d.Int())
			if len(s.entries) > 0 {
				return fmt.Errorf("%w: a directory with names and pages", blocks.ErrCorrupt)
			}
		}
	case KindPage:
		s.lo, s.hi, s.next.ID = d.Uint(), d.Uint(), d.ID()
		if d.Err() == nil && s.lo > s.hi {
			return fmt.Errorf("%w: a page from %x to %x", blocks.ErrCorrupt, s.lo, s.hi)
		}
	}
	return d.Err()
}
