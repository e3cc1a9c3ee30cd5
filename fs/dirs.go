package fs

import (
	"context"
	"errors"
	"sync"
	"syscall"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
)

// dirHandles are the open directories. A handle reads its directory once, part by part as far as it is asked for (and again after
// rewinddir), so a listing neither repeats nor misses an entry that stayed while others come and go; a position is an index into
// what was read.
type dirHandles struct {
	mu   sync.Mutex
	last uint64
	open map[uint64]*dirHandle
}

type dirHandle struct {
	mu sync.Mutex // never held across the backend's call
	listing
}

// listing is what has been read of a directory.
type listing struct {
	begun   bool
	entries []tree.Entry
	parent  tree.Ino
	next    blocks.RegisterID // where what has not been read begins, zero: it all has
}

func (d *dirHandles) add() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last++
	d.open[d.last] = &dirHandle{}
	return d.last
}

func (d *dirHandles) get(fh uint64) *dirHandle {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.open[fh]
}

func (d *dirHandles) remove(fh uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.open, fh)
}

// upTo returns the handle's listing, read so far that it has position off, if the directory has; at offset 0 it is read anew.
func (h *dirHandle) upTo(ctx context.Context, b Backend, dir tree.Ino, off uint64) (listing, error) {
	h.mu.Lock()
	if off == 0 {
		h.listing = listing{}
	}
	l := h.listing
	h.mu.Unlock()
	for !l.begun || off >= uint64(len(l.entries))+2 && !l.next.IsZero() {
		entries, parent, next, err := b.ReadDir(ctx, dir, l.next)
		if err != nil {
			return l, err
		}
		if !l.begun {
			b.Accessed(dir)
		}
		h.mu.Lock()
		if h.begun == l.begun && h.next == l.next { // else somebody else was first
			if !l.begun {
				h.parent = parent
			}
			h.begun, h.entries, h.next = true, append(h.entries, entries...), next
		}
		l = h.listing
		h.mu.Unlock()
	}
	return l, nil
}

// readDir fills the reply with entries from position off, at most size bytes, with
// attributes and references to the inodes if plus. Positions 0 and 1 are "." and "..".
func (f *Face) readDir(ctx context.Context, out *reply, dir tree.Ino, fh, off uint64, size int, plus bool) error {
	h := f.dirs.get(fh)
	if h == nil {
		return syscall.EBADF
	}
	l, err := h.upTo(ctx, f.backend, dir, off)
	if err != nil {
		return err
	}
	end := outHeader + min(size, maxRead)
	for ; off < uint64(len(l.entries))+2; off++ {
		var e tree.Entry
		switch off {
		case 0:
			e = tree.Entry{Name: ".", Attr: tree.Attr{Ino: dir, Mode: syscall.S_IFDIR}}
		case 1:
			e = tree.Entry{Name: "..", Attr: tree.Attr{Ino: l.parent, Mode: syscall.S_IFDIR}}
		default:
			e = l.entries[off-2]
		}
		need := direntSize(e.Name)
		if plus {
			need += entrySize
		}
		if len(out.buf)+need > end {
			break
		}
		if plus {
			f.direntPlus(ctx, out, dir, &e)
		}
		out.dirent(e.Attr.Ino, e.Attr.Mode, e.Name, off+1)
	}
	return nil
}

// direntPlus appends the attributes of an entry. The snapshot's may be old by now: they are asked for anew, from
// memory, and the kernel gets no reference to what cannot be told at once.
func (f *Face) direntPlus(ctx context.Context, out *reply, dir tree.Ino, e *tree.Entry) {
	if e.Full {
		a, err := f.backend.Lookup(tree.NoWait(ctx), dir, e.Name)
		if err == nil && a.Ino == e.Attr.Ino {
			out.entry(a.Ino, &a)
			return
		}
		if err == nil {
			f.backend.Forget(a.Ino, 1)
		} else if !errors.Is(err, tree.ErrWait) {
			out.entry(0, &tree.Attr{})
			return
		}
	}
	out.entry(0, &tree.Attr{})
}
