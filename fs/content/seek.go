package content

import (
	"context"
	"sort"
	"syscall"

	"github.com/mutualfs/mutualfs/fs/tree"
)

// Seek is lseek's SEEK_DATA, or SEEK_HOLE if hole: the first offset from off on that has data, or has none. Data is
// what an extent, the inode or memory has, whatever its value. The end of the file is a hole. ENXIO: off is not in
// the file, or no data follows.
func (fs *Files) Seek(ctx context.Context, ino tree.Ino, off uint64, hole bool) (uint64, error) {
	// Memory first, the tree second, as in Read.
	var dirty spans
	var least uint64
	limit := noCap
	if f := fs.table.find(ino); f != nil {
		dirty, least, limit = f.dirtyFrom(off)
		fs.table.release(f)
	}
	for first := true; ; first = false {
		c, err := fs.cfg.Inodes.Content(ctx, ino, min(off, tree.MaxFile), fs.cfg.MapBytes)
		if err != nil {
			return 0, err
		}
		m := layout{dirty: dirty, content: c, committed: min(c.Size, limit)}
		size := max(m.committed, least)
		if off >= size && (first || !hole) {
			return 0, syscall.ENXIO
		}
		at := m.nextData(off)
		if hole {
			at = off
			for end := m.dataEnd(at); end > at; end = m.dataEnd(at) {
				at = end
			}
		}
		switch {
		case at < min(c.Part.To, size):
			return at, nil
		case c.Part.To >= size && hole:
			return size, nil
		case c.Part.To >= size:
			return 0, syscall.ENXIO
		}
		off = max(off, c.Part.To) // the tree has not said what is there
	}
}

// dirtyFrom returns the ranges from off on that are dirty or on their way out, and the bounds of the size as overlay does.
func (f *file) dirtyFrom(off uint64) (dirty spans, least, limit uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.slots {
		for _, sl := range []*slab{s.dirty, s.frozen} {
			if sl == nil {
				continue
			}
			for _, p := range sl.pieces[sl.find(off):] {
				dirty.add(p.off, p.end())
			}
		}
	}
	return dirty, max(f.grown, f.least), f.cap
}

// layout says where a file has data.
type layout struct {
	dirty     spans
	content   tree.Content
	committed uint64 // what lies in content beyond is being truncated away
}

// dataEnd returns where a run of data ends that begins at or before off; off itself if it lies in a hole.
func (m layout) dataEnd(off uint64) uint64 {
	end := off
	if i := m.findDirty(off); i < len(m.dirty) && m.dirty[i].from <= off {
		end = m.dirty[i].to
	}
	if off >= m.committed {
		return end
	}
	if n := uint64(len(m.content.Inline)); off < n {
		end = max(end, min(n, m.committed))
	}
	if l := m.content.Extents; len(l) > 0 {
		if i := findExtent(l, off); i < len(l) && l[i].Off <= off {
			end = max(end, min(l[i].Off+l[i].Len, m.committed))
		}
	}
	return end
}

// nextData returns the first offset from off on that has data, or the largest number.
func (m layout) nextData(off uint64) uint64 {
	next := noCap
	if i := m.findDirty(off); i < len(m.dirty) {
		next = max(m.dirty[i].from, off)
	}
	if off >= m.committed {
		return next
	}
	if off < uint64(len(m.content.Inline)) {
		return off
	}
	if i := findExtent(m.content.Extents, off); i < len(m.content.Extents) {
		if at := max(m.content.Extents[i].Off, off); at < m.committed {
			next = min(next, at)
		}
	}
	return next
}

// findDirty returns the index of the first dirty range that ends after off.
func (m layout) findDirty(off uint64) int {
	return sort.Search(len(m.dirty), func(i int) bool { return m.dirty[i].to > off })
}
