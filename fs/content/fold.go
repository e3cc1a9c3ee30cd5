package content

import (
	"context"
	"slices"
	"time"

	"github.com/mutualfs/mutualfs/fs/tree"
)

// Small overwrites leave a file in many small extents. When the range of a dirty slab
// has more than foldExtents of them, its neighbours are read and written with it: one extent for
// the whole range. So a range of one stripe has about so many extents at most, and
// one rewrite in foldExtents small writes pays for it.
const (
	foldExtents = 64
	foldMost    = 16 // slabs folded at the same time, per file
)

// folded is committed content that was read to fill the gaps of a slab.
type folded struct {
	index   uint64
	extents []tree.Extent // that it was read from
	data    []byte        // of the whole range, or as much as is committed
}

// readFold reads what slabs begun before cutoff need to be folded. It holds no token: what it read
// is used only if it is still what is committed.
func (fs *Files) readFold(ctx context.Context, f *file, cutoff time.Time) (list []folded, cuts uint64) {
	c, err := fs.cfg.Inodes.Content(ctx, f.ino)
	if err != nil || len(c.Extents) <= foldExtents {
		return nil, 0
	}
	f.mu.Lock()
	cuts = f.cuts
	for i, s := range f.slots {
		if len(list) == foldMost || f.pending {
			break
		}
		if s.dirty == nil || s.frozen != nil || !cutoff.IsZero() && !s.dirty.born.Before(cutoff) {
			continue
		}
		if ext := within(c.Extents, s.dirty.base, uint64(s.dirty.size)); len(ext) > foldExtents {
			list = append(list, folded{index: i, extents: ext})
		}
	}
	f.mu.Unlock()
	for n := range list {
		base := list[n].index * uint64(fs.cfg.StripeSize)
		end := min(c.Size, base+uint64(fs.cfg.StripeSize))
		if end <= base {
			continue
		}
		list[n].data = fs.pool.get(int(end - base))
		if fs.readCommitted(ctx, c, c.Size, base, list[n].data, plan{}) != nil {
			fs.freeFold(list)
			return nil, 0 // then it is not folded this time
		}
	}
	return list, cuts
}

func (fs *Files) freeFold(list []folded) {
	for _, l := range list {
		if l.data != nil {
			fs.pool.put(l.data)
		}
	}
}

// within returns the extents that lie in [base, base+n), in part at least.
func within(l []tree.Extent, base, n uint64) []tree.Extent {
	i := findExtent(l, base)
	j := i
	for j < len(l) && l[j].Off < base+n {
		j++
	}
	return l[i:j]
}

// fold fills the gaps of the slab from what was read for it, where there is an extent: holes stay
// holes. The caller holds f.mu and the commit token; c is what is committed.
func (fs *Files) fold(f *file, s *slab, c tree.Content, list []folded, cuts uint64) {
	if f.cuts != cuts || f.pending {
		return
	}
	for _, l := range list {
		if l.index*uint64(s.size) != s.base || !slices.Equal(l.extents, within(c.Extents, s.base, uint64(s.size))) {
			continue
		}
		had := s.mem
		for _, e := range l.extents {
			from, to := max(e.Off, s.base), min(e.Off+e.Len, s.base+uint64(len(l.data)))
			if from < to {
				s.fill(fs.pool, from, l.data[from-s.base:to-s.base])
			}
		}
		fs.room.add(s.mem - had)
	}
}
