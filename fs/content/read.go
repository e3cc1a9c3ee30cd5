package content

import (
	"context"
	"fmt"
	"sort"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
)

// Read fills p from off with what the file contains now and returns how many bytes it had: fewer than
// asked for only at the end of the file. With tree.NoWait it answers from memory or not at all.
func (fs *Files) Read(ctx context.Context, ino tree.Ino, off uint64, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	// Memory first, the tree second: what is committed in between is seen twice, not missed.
	var got spans
	var least uint64
	limit := noCap
	if f := fs.table.find(ino); f != nil {
		least, limit = fs.overlay(f, off, p, &got)
		fs.table.release(f)
	}
	c, err := fs.around(ctx, ino, off, len(p))
	if err != nil {
		return 0, err
	}
	committed := min(c.Size, limit)
	size := max(committed, least)
	if off >= size {
		return 0, nil
	}
	p = p[:min(uint64(len(p)), size-off)]
	var plan plan
	if tree.MayWait(ctx) {
		plan = fs.rd.plan(ino, c, off, len(p))
	}
	err = got.gaps(off, off+uint64(len(p)), func(from, to uint64) error {
		return fs.readCommitted(ctx, c, committed, from, p[from-off:to-off], plan)
	})
	if err != nil {
		return 0, err
	}
	if !tree.MayWait(ctx) { // had it not been all here, the call would be made again
		fs.rd.plan(ino, c, off, len(p))
	}
	return len(p), nil
}

// around returns the committed content that a read may need, with what is read ahead of it. Its part begins and ends with
// stripes, so that their extents are whole.
func (fs *Files) around(ctx context.Context, ino tree.Ino, off uint64, n int) (tree.Content, error) {
	size := uint64(fs.cfg.StripeSize)
	if off > tree.MaxFile {
		return fs.cfg.Inodes.Content(ctx, ino, 0, 0)
	}
	end := off + uint64(n+fs.cfg.ReadAhead) + size - 1
	return fs.cfg.Inodes.Content(ctx, ino, off-off%size, end-end%size-(off-off%size))
}

// overlay copies what is dirty or on its way out into p. least is what the size is at least, limit where
// committed content ends at most.
func (fs *Files) overlay(f *file, off uint64, p []byte, got *spans) (least, limit uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.slots) > 0 {
		size := uint64(fs.cfg.StripeSize)
		for i := off / size; i*size < off+uint64(len(p)); i++ {
			s := f.slots[i]
			if s == nil {
				continue
			}
			if s.frozen != nil {
				s.frozen.overlay(off, p, got)
			}
			if s.dirty != nil {
				s.dirty.overlay(off, p, got)
			}
		}
	}
	return max(f.grown, f.least), f.cap
}

// readCommitted fills p from off with committed content, zeros where there is none or beyond limit.
func (fs *Files) readCommitted(ctx context.Context, c tree.Content, limit, off uint64, p []byte, plan plan) error {
	end := min(off+uint64(len(p)), max(limit, off))
	clear(p[end-off:])
	p = p[:end-off]
	for i := findExtent(c.Extents, off); len(p) > 0; i++ {
		if i >= len(c.Extents) || c.Extents[i].Off >= end {
			readInline(c, off, p)
			return nil
		}
		e := c.Extents[i]
		if e.Off > off {
			readInline(c, off, p[:e.Off-off])
			p = p[e.Off-off:]
			off = e.Off
		}
		n := min(uint64(len(p)), e.Off+e.Len-off)
		if err := fs.readExtent(ctx, e, off-e.Off, p[:n], plan); err != nil {
			return err
		}
		off += n
		p = p[n:]
	}
	return nil
}

// readInline fills p from off with what lies under the extents: inline bytes, or zeros.
func readInline(c tree.Content, off uint64, p []byte) {
	n := 0
	if off < uint64(len(c.Inline)) {
		n = copy(p, c.Inline[off:])
	}
	clear(p[n:])
}

// findExtent returns the index of the first extent that ends after off.
func findExtent(l []tree.Extent, off uint64) int {
	return sort.Search(len(l), func(i int) bool { return l[i].Off+l[i].Len > off })
}

func (fs *Files) readExtent(ctx context.Context, e tree.Extent, skip uint64, p []byte, plan plan) error {
	at := uint64(e.At) + skip
	if at+uint64(len(p)) > uint64(e.Stripe.Len) {
		return fmt.Errorf("extent at %d of %d bytes lies outside of stripe %s of %d bytes: %w",
			e.Off, e.Len, e.Stripe.ID.Short(), e.Stripe.Len, blocks.ErrCorrupt)
	}
	if fs.rd.cache.tryRead(e.Stripe, uint32(at), p) {
		return nil
	}
	if !tree.MayWait(ctx) {
		return tree.ErrWait
	}
	return fs.rd.cache.read(ctx, e.Stripe, uint32(at), p, wholeStripe(e, plan.sequential))
}

// wholeStripe says whether a miss fetches the whole stripe: if it is small, or if
// the file is read in order and most of the stripe is this extent.
func wholeStripe(e tree.Extent, sequential bool) bool {
	return e.Stripe.Len <= 4*Unit || sequential && 2*e.Len >= uint64(e.Stripe.Len)
}
