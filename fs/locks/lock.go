package locks

import (
	"cmp"
	"slices"
)

// Kind says which of the two families of locks a lock is of; they do not see each other.
type Kind uint8

const (
	Flock Kind = iota // flock(2): the whole file, owned by an open file description
	Posix             // fcntl(2): a range, owned by a process (or, F_OFD_SETLK, by an open file description)
)

// Type is what a lock permits.
type Type uint8

const (
	Unlock Type = iota
	Read        // shared
	Write       // exclusive
)

// Last is the last byte that a lock can cover.
const Last uint64 = 1<<63 - 1

// Lock is one lock, or the wish for one.
type Lock struct {
	Ino        uint64
	Kind       Kind
	Owner      uint64 // whose, in the kernel of the mount; without meaning elsewhere
	Type       Type
	Start, End uint64 // bytes, both inclusive
	Pid        uint32 // what F_GETLK shows on the same mount
}

// same reports whether the two locks have one owner. Both must be of one mount.
func same(a, b Lock) bool { return a.Ino == b.Ino && a.Kind == b.Kind && a.Owner == b.Owner }

// clash reports whether the two locks of different owners exclude each other.
func clash(a, b Lock) bool {
	return a.Ino == b.Ino && a.Kind == b.Kind && a.Start <= b.End && b.Start <= a.End && (a.Type == Write || b.Type == Write)
}

// set returns the locks of one inode on one mount after want was carried out: the owner's locks in the range are
// replaced, what juts out on either side stays, neighbours of equal type become one. list is ordered by
// kind, owner and start, and is not changed. It does not look at what other owners hold.
func set(list []Lock, want Lock) []Lock {
	out := make([]Lock, 0, len(list)+2)
	for _, l := range list {
		switch {
		case !same(l, want):
			out = append(out, l)
		case l.Type == want.Type && touches(l, want):
			want.Start, want.End = min(l.Start, want.Start), max(l.End, want.End)
		default:
			out = append(out, outside(l, want)...)
		}
	}
	if want.Type != Unlock {
		out = append(out, want)
	}
	slices.SortFunc(out, func(a, b Lock) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Owner, b.Owner), cmp.Compare(a.Start, b.Start))
	})
	return out
}

// touches reports whether the ranges overlap or are neighbours.
func touches(a, b Lock) bool {
	return a.Start <= b.End+1 && b.Start <= a.End+1
}

// outside returns what of l lies outside of the range of cut.
func outside(l, cut Lock) []Lock {
	if l.Start > cut.End || cut.Start > l.End {
		return []Lock{l}
	}
	var out []Lock
	if l.Start < cut.Start {
		left := l
		left.End = cut.Start - 1
		out = append(out, left)
	}
	if l.End > cut.End {
		right := l
		right.Start = cut.End + 1
		out = append(out, right)
	}
	return out
}
