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
	size := uint64(fs.cfg.StripeSize)
	var due []uint64
	f.mu.Lock()
	cuts = f.cuts
	for i, s := range f.slots {
		if s.dirty != nil && s.frozen == nil && !f.pending && (cutoff.IsZero() || s.dirty.born.Before(cutoff)) {
			due = append(due, i)
		}
	}
	f.mu.Unlock()
	slices.Sort(due)
	var c tree.Content
	for _, i := range due {
		base := i * size
		if len(list) == foldMost {
			break
		}
		if base < c.Part.From || base+size > c.Part.To {
			var err error
			end := min((due[len(due)-1]+1)*size, base-base%fs.cfg.MapBytes+fs.cfg.MapBytes) // one map at a time
			if c, err = fs.cfg.Inodes.Content(ctx, f.ino, base, end-base); err != nil {
				break // then what is left is not folded this time
			}
		}
		ext := within(c.Extents, base, size)
		if end := min(c.Size, base+size); len(ext) > foldExtents && end > base {
			l := folded{index: i, extents: ext, data: fs.pool.get(int(end - base))}
			list = append(list, l)
			if fs.readCommitted(ctx, c, c.Size, base, l.data, plan{}) != nil {
				fs.freeFold(list)
				return nil, 0
			}
		}
	}
	return list, cuts
}

// sameFold returns of what was read that which is still what is committed. The caller holds the commit token.
func (fs *Files) sameFold(ctx context.Context, f *file, list []folded) (same []folded) {
	size := uint64(fs.cfg.StripeSize)
	for _, l := range list {
		c, err := fs.cfg.Inodes.Content(ctx, f.ino, l.index*size, size)
		if err == nil && slices.Equal(l.extents, within(c.Extents, l.index*size, size)) {
			same = append(same, l)
		}
	}
	return same
}

func (fs *Files) freeFold(list []folded) {
	for _, l := range list {
		if l.data != nil {
			fs.pool.put(l.data)
		}
	}
}

// within returns the extents, as far as they lie in [base, base+n).
func within(l []tree.Extent, base, n uint64) (in []tree.Extent) {
	for i := findExtent(l, base); i < len(l) && l[i].Off < base+n; i++ {
		in = append(in, l[i].In(tree.Range{From: base, To: base + n}))
	}
	return in
}

// fold fills the gaps of the slab from what was read for it, where there is an extent: holes stay
// holes. The caller holds f.mu and the commit token, and has looked whether it is what is committed.
func (fs *Files) fold(f *file, s *slab, list []folded, cuts uint64) {
	if f.cuts != cuts || f.pending {
		return
	}
	for _, l := range list {
		if l.index*uint64(s.size) != s.base {
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
