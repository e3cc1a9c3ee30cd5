package tree

import (
	"context"
	"encoding/binary"
	"errors"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/mutualfs/mutualfs/blocks"
)

// AppendData journals a data write. When it returns, the write survives the death of the process. p
// belongs to the caller again. The caller counts it in DirtyFloor at once.
func (t *Tree) AppendData(ctx context.Context, ino Ino, off uint64, p []byte) (Seq, error) {
	if err := t.awaitReady(ctx); err != nil {
		return 0, err
	}
	if off > MaxFile || uint64(len(p)) > MaxFile-off {
		return 0, syscall.EFBIG
	}
	if err := t.room(ctx); err != nil {
		return 0, err
	}
	if err := t.hostRoom(ctx, int64(len(p))); err != nil {
		return 0, err
	}
	home, err := t.home(ino)
	if err != nil {
		return 0, err
	}
	e := newRecord(recData, home, 16)
	e.Buf = binary.BigEndian.AppendUint64(e.Buf, uint64(ino))
	e.Buf = binary.BigEndian.AppendUint64(e.Buf, off)
	seq := t.j.add(e.Buf, p)
	t.withNode(ino, func(n *node) { n.data = max(n.data, seq) })
	return seq, t.j.wait(seq)
}

// capability is the extended attribute that gives an executable privileges; whoever changes the content or the owner ends it.
const capability = "security.capability"

// DropCapability removes a file's capabilities before a write by a process, where memory says that it has any; what comes out of
// mapped memory leaves them. Set-user-ID and set-group-ID are the caller's to drop: who may keep them depends on who writes.
func (t *Tree) DropCapability(ctx context.Context, ino Ino) error {
	has := false
	err := t.readIno(NoWait(ctx), ino, func(_ *container, _ *State, n *Inode) error {
		_, has = n.xattr(capability)
		has = has && !isDir(n.Mode)
		return nil
	})
	if err != nil || !has {
		return nil // what is not in memory is not worth a round trip for each write
	}
	if err = t.Removexattr(ctx, ino, capability); errors.Is(err, syscall.ENODATA) {
		return nil // somebody else did
	}
	return err
}

// Grown says that n bytes of an inode at off are dirty, or have been, and were written at now: Getattr shows
// the larger size, the space and this time until a Writeback tells the same.
func (t *Tree) Grown(ino Ino, off, n uint64, now Time) {
	t.withNode(ino, func(x *node) {
		x.grownEnd = max(x.grownEnd, off+n)
		x.grownBytes += n
		x.grownMtime = max(x.grownMtime, now)
	})
}

// Writeback makes stripes that are durable already part of a file. Under a lease it is
// journalled, else committed when it returns. ENOENT, ESTALE: the file is gone; the stripes are nobody's.
func (t *Tree) Writeback(ctx context.Context, w Writeback) error {
	if home, err := t.home(w.Ino); err == nil {
		if err := t.makeRoom(ctx, home); err != nil && !isElsewhere(err) {
			return err
		}
	}
	if err := t.relieve(ctx, w.Ino); err != nil {
		return err
	}
	_, err := t.mutateIno(asFlush{ctx}, w.Ino, func(*State, *Inode) (*Op, error) {
		o := &Op{Kind: OpWriteback, Ino: w.Ino, Size: w.Size, Mtime: w.Mtime, Mount: t.cfg.Mount, Flushed: w.Flushed,
			Extents: w.Extents, Inline: w.Inline != nil, Data: w.Inline}
		t.mu.RLock()
		defer t.mu.RUnlock()
		if x := t.nodes[w.Ino]; x != nil {
			if w.Flushed < x.mtimeSeq { // utimes came after these writes
				o.Mtime = 0
			}
		}
		return o, nil
	}, func(_ *container, o *Op, _ Seq) {
		t.withNode(w.Ino, func(x *node) {
			x.flushed = max(x.flushed, w.Flushed)
			x.grownBytes -= min(x.grownBytes, w.bytes())
			if !x.unwritten() {
				x.grownBytes = 0
			}
			if w.Size >= x.grownEnd {
				x.grownEnd = 0
			}
			if o.Mtime != 0 && w.Mtime >= x.grownMtime { // else what was written after the utimes is still to come
				x.grownMtime = 0
			}
		})
	})
	return err
}

// asFlush marks a call that a recall waits for.
type asFlush struct{ context.Context }

// Truncate sets a file's size. Dirty data beyond it is dropped.
func (t *Tree) Truncate(ctx context.Context, ino Ino, size uint64) error {
	_, err := t.truncate(ctx, ino, size)
	return err
}

func (t *Tree) truncate(ctx context.Context, ino Ino, size uint64) (Attr, error) {
	if size > MaxFile {
		return Attr{}, syscall.EFBIG
	}
	if err := t.DropCapability(ctx, ino); err != nil {
		return Attr{}, err
	}
	applied := false
	a, err := t.mutateIno(ctx, ino, func(_ *State, n *Inode) (*Op, error) {
		return &Op{Kind: OpTruncate, Time: now(), Ino: ino, Size: size}, nil
	}, func(_ *container, _ *Op, seq Seq) {
		t.truncated(ino, size, seq)
		applied = true
	})
	if applied {
		t.hooks.TrimFile(ino, size)
	}
	return a, err
}

// truncated notes a truncation.
func (t *Tree) truncated(ino Ino, size uint64, seq Seq) {
	t.withNode(ino, func(x *node) {
		if x.grownEnd > size {
			x.grownEnd = size
		}
		x.grownMtime = 0
		x.mtimeSeq = seq
		if size == 0 {
			x.grownBytes = 0
			x.flushed = max(x.flushed, seq)
		}
	})
}

// Punch makes [off, off+n) of a file a hole; the size stays.
func (t *Tree) Punch(ctx context.Context, ino Ino, off, n uint64) error {
	applied := false
	_, err := t.mutateIno(ctx, ino, func(*State, *Inode) (*Op, error) {
		return &Op{Kind: OpPunch, Time: now(), Ino: ino, Off: off, Size: min(n, MaxFile)}, nil
	}, func(_ *container, _ *Op, seq Seq) {
		t.withNode(ino, func(x *node) { x.mtimeSeq, x.grownMtime = seq, 0 })
		applied = true
	})
	if applied {
		t.hooks.PunchFile(ino, off, n)
	}
	return err
}

// Fsync commits everything that an inode or a directory depends on: its container's pending
// operations and the names of its ancestors as far as they are new. It reports, once, what was lost before.
func (t *Tree) Fsync(ctx context.Context, ino Ino) error {
	if err := t.awaitReady(ctx); err != nil {
		return err
	}
	id, err := t.home(ino)
	if err != nil {
		return err
	}
	if !MayWait(ctx) {
		return ErrWait
	}
	if err := t.flushPages(ctx, id); err != nil {
		return err
	}
	if err := t.flushPath(ctx, id); err != nil {
		return err
	}
	return t.LateError(ino)
}

// flushPath commits a container and those above it whose names for it are pending.
func (t *Tree) flushPath(ctx context.Context, id blocks.RegisterID) error {
	for !id.IsZero() {
		c, err := t.cont(id)
		if err != nil {
			return err
		}
		if err := t.flush(ctx, c, false); err != nil {
			return err
		}
		c.mu.Lock()
		if id = c.parent; id.IsZero() {
			id = c.head // a page has no name of its own
		}
		c.mu.Unlock()
	}
	return nil
}

// flushPages commits what is pending in the pages of a directory.
func (t *Tree) flushPages(ctx context.Context, head blocks.RegisterID) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(t.cfg.FlushParallel)
	for _, c := range t.dirty() {
		c.mu.Lock()
		mine := c.head == head
		c.mu.Unlock()
		if mine {
			g.Go(func() error { return t.flush(gctx, c, false) })
		}
	}
	return g.Wait()
}

// LateError returns, and forgets, what went wrong with an inode after the call that caused it was answered.
func (t *Tree) LateError(ino Ino) (err error) {
	t.withNode(ino, func(n *node) { err, n.err = n.err, nil })
	return err
}

// OwnerOf says whose the stripes of a file are.
func (t *Tree) OwnerOf(ino Ino) blocks.Owner {
	home, err := t.home(ino)
	if err != nil {
		return blocks.Owner{Ino: uint64(ino)}
	}
	return blocks.Owner{Register: t.headOf(home), Ino: uint64(ino)}
}

// errUnnoted says that another mount could end the file unseen.
var errUnnoted = errors.New("it is not noted that the file is open")

// Open counts a handle. keepCache: no other mount has changed the inode since it was last opened here. Where this mount has no lease, it is
// noted in the container first that the file is open here, so that whoever removes its last name leaves it.
func (t *Tree) Open(ctx context.Context, ino Ino) (keepCache bool, err error) {
	count := func(kept bool) {
		t.withNode(ino, func(x *node) {
			x.opens++
			x.kept = x.kept || kept
			keepCache, x.foreign = !x.foreign, false
		})
	}
	err = t.readIno(ctx, ino, func(c *container, _ *State, n *Inode) error {
		if isDir(n.Mode) {
			return syscall.EISDIR
		}
		if t.ghostOf(ino) != nil {
			return syscall.ESTALE
		}
		kept := n.keptBy(t.sessionID())
		if !kept && !t.leased(c) {
			return errUnnoted
		}
		count(kept)
		return nil
	})
	if !errors.Is(err, errUnnoted) {
		return keepCache, err
	}
	_, err = t.mutateIno(ctx, ino, func(_ *State, n *Inode) (*Op, error) {
		me := t.sessionID()
		if n.keptBy(me) {
			count(true)
			return nil, nil
		}
		return &Op{Kind: OpKeep, Time: now(), Inos: []Ino{ino}, Session: me}, nil
	}, func(*container, *Op, Seq) { count(true) })
	return keepCache, err
}

// Release ends a handle. With the last one an inode without a name ends too, unless another mount has it open.
func (t *Tree) Release(ino Ino) {
	last := false
	var home blocks.RegisterID
	t.withNode(ino, func(n *node) {
		n.opens--
		last = n.opens <= 0 && n.kept
		n.opens, home = max(n.opens, 0), n.home
	})
	if last {
		t.let(home, ino)
	}
}

// let ends the note of an inode that is not open here any more: at once where memory is enough, else a little later.
func (t *Tree) let(home blocks.RegisterID, ino Ino) {
	if t.unnote(NoWait(context.Background()), home, []Ino{ino}) != nil {
		t.postpone(ino)
		t.hasteFor(home, ino)
	}
}

// settle tells content and the nodes what an operation ended. No lock is held.
func (t *Tree) settle(ef Effect) {
	for _, n := range ef.ended {
		t.haunt(n, n.Ctime)
	}
	for _, ino := range ef.Gone {
		t.hooks.DropFile(ino)
		t.mu.Lock()
		if n := t.nodes[ino]; n != nil {
			n.grownEnd, n.grownBytes, n.grownMtime, n.data = 0, 0, 0, 0
			n.kept = n.kept && n.opens > 0
			if n.idle() {
				delete(t.nodes, ino)
			}
		}
		t.mu.Unlock()
	}
}
