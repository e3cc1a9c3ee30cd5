package tree

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// replayer repeats what the journal has and the registers lack.
type replayer struct {
	t       *Tree
	ctx     context.Context
	flushed map[Ino]Seq                 // by the writebacks in the journal
	moved   map[Ino][]blocks.RegisterID // where inodes may have gone
	rmdirs  map[blocks.RegisterID]rmdir // of directories that are removed, as the journal has it
	made    map[blocks.RegisterID]*Op   // directories that the journal makes
	lost    int
}

// rmdir is the removal of a directory: its number, and the container that had the name.
type rmdir struct {
	seq    Seq
	parent blocks.RegisterID
}

// replay reads the journal twice: what the writebacks and moves in it say, then everything in order.
func (t *Tree) replay(ctx context.Context) error {
	r := &replayer{t: t, ctx: ctx, flushed: map[Ino]Seq{}, moved: map[Ino][]blocks.RegisterID{}, made: map[blocks.RegisterID]*Op{}, rmdirs: map[blocks.RegisterID]rmdir{}}
	err := t.j.replay(func(rec record) error {
		switch {
		case rec.kind == recMoved:
			r.moved[rec.ino] = append(r.moved[rec.ino], rec.reg)
		case rec.kind == recOp && rec.op.Kind == OpWriteback:
			r.flushed[rec.op.Ino] = max(r.flushed[rec.op.Ino], rec.op.Flushed)
		case rec.kind == recOp && rec.op.Kind == OpRmdir:
			r.rmdirs[rec.op.Child] = rmdir{rec.seq, rec.reg}
		}
		return nil
	})
	if err == nil {
		err = t.j.replay(r.record)
	}
	if err != nil {
		return err
	}
	if r.lost > 0 {
		t.log.Warn().Int("records", r.lost).Msg("data of files that exist no more was left out of the replay")
	}
	return t.j.start()
}

func (r *replayer) record(rec record) error {
	switch rec.kind {
	case recOp:
		return r.op(rec)
	case recData:
		return r.data(rec)
	}
	return nil
}

// container returns the container loaded as far as it can be; nil if it has ended.
func (r *replayer) container(id blocks.RegisterID) (*container, error) {
	t := r.t
	c, err := t.cont(id)
	if err != nil {
		return nil, err
	}
	for pause := retryMin; ; pause = min(2*pause, retryMax) {
		c.mu.Lock()
		removed, loaded := c.removed, c.st != nil
		c.mu.Unlock()
		if removed {
			return nil, nil
		}
		if loaded {
			return c, nil
		}
		if gone, err := r.removed(id); err != nil || gone {
			c.mu.Lock()
			c.removed, c.endedIn = gone, r.rmdirs[id].parent
			c.mu.Unlock()
			return nil, err
		}
		err := func() error {
			ctx, cancel := context.WithTimeout(r.ctx, t.cfg.CommitTimeout)
			defer cancel()
			if err := c.acquire(ctx); err != nil {
				return err
			}
			defer c.release()
			return t.validate(ctx, c)
		}()
		switch {
		case err == nil:
			continue
		case errors.Is(err, blocks.ErrNotFound):
			return nil, nil
		case r.ctx.Err() != nil || errors.Is(err, blocks.ErrCorrupt):
			return nil, err
		}
		t.log.Warn().Err(err).Str("container", id.Short()).Msg("the replay of the journal waits for a container")
		if err := sleep(r.ctx, pause); err != nil {
			return nil, err
		}
	}
}

// removed reports whether the removal of a directory is committed already. Such a directory need not be known to
// anybody: one that was made and removed in one commit has never had a register.
func (r *replayer) removed(id blocks.RegisterID) (bool, error) {
	x, ok := r.rmdirs[id]
	if !ok {
		return false, nil
	}
	p, err := r.container(x.parent)
	if err != nil || p == nil {
		return err == nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return x.seq <= p.applied && !p.unborn, nil
}

// op repeats an operation that is not part of the agreed state yet.
func (r *replayer) op(rec record) error {
	t, o := r.t, cloneOp(rec.op)
	c, err := r.container(rec.reg)
	if err != nil || c == nil {
		return err
	}
	c.mu.Lock()
	due := rec.seq > c.applied || c.unborn
	c.mu.Unlock()
	if due {
		if c, o, err = r.place(c, o); err != nil || c == nil {
			return err
		}
	}
	c.mu.Lock()
	var ef Effect
	if rec.seq > c.applied || c.unborn {
		if o, err = t.adapt(c, c.st, o); err == nil && o != nil {
			ef, err = Apply(c.st, o)
		}
		if err != nil || o == nil {
			t.log.Warn().Err(err).Str("container", c.id.Short()).Uint8("kind", uint8(rec.op.Kind)).Str("name", rec.op.Name).
				Msg("an operation of the journal does not apply any more")
			o = nil
		} else {
			c.ops = append(c.ops, pending{rec.seq, o})
			r.born(c, o, rec.seq)
		}
	}
	c.mu.Unlock()
	r.follow(c, rec)
	if o != nil && o.Kind == OpRmdir {
		r.ended(c, o)
	}
	t.settle(ef)
	return nil
}

// born makes the container of a directory whose name is not committed. mu of c must be held.
func (r *replayer) born(c *container, o *Op, seq Seq) {
	if o.Kind != OpMake || o.Child.IsZero() {
		return
	}
	cc, err := r.t.cont(o.Child)
	if err != nil {
		return
	}
	cc.mu.Lock()
	defer cc.mu.Unlock()
	if cc.st == nil {
		cc.st = newDir(o.Ino, o.Mode, o.Uid, o.Gid, o.Time, o.Data, c.st.head(c.id), c.st.Self.Ino)
		cc.unborn, cc.replayed, cc.parent, cc.birth, cc.since = true, true, c.id, seq, time.Now()
	}
}

func (r *replayer) ended(c *container, o *Op) {
	cc, err := r.t.cont(o.Child)
	if err != nil {
		return
	}
	cc.mu.Lock()
	cc.removed, cc.endedIn = true, c.id
	cc.mu.Unlock()
}

// follow keeps the inode's node as the operation left it, whether it was repeated or not.
func (r *replayer) follow(c *container, rec record) {
	t, o := r.t, rec.op
	switch o.Kind {
	case OpTruncate:
		t.mark(o.Ino, c.id)
		t.truncated(o.Ino, o.Size, rec.seq)
		t.hooks.TrimFile(o.Ino, o.Size)
	case OpPunch:
		t.mark(o.Ino, c.id)
		t.withNode(o.Ino, func(n *node) { n.mtimeSeq, n.grownMtime = rec.seq, 0 })
		t.hooks.PunchFile(o.Ino, o.Off, o.Size)
	case OpSetattr:
		if o.Set&setMtime != 0 {
			t.mark(o.Ino, c.id)
			t.withNode(o.Ino, func(n *node) { n.mtimeSeq, n.grownMtime = rec.seq, 0 })
		}
	}
}

// mark makes sure that there is a node, at home in the container unless it is known better.
func (t *Tree) mark(ino Ino, home blocks.RegisterID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.nodes[ino] == nil {
		t.at(ino, home)
	}
}

// data makes a data record dirty again that no writeback has covered.
func (r *replayer) data(rec record) error {
	t := r.t
	if rec.seq <= r.flushed[rec.ino] {
		return nil
	}
	places := append([]blocks.RegisterID{rec.reg}, r.moved[rec.ino]...)
	for i := 0; i < len(places); i++ {
		id := places[i]
		c, err := r.container(id)
		if err != nil {
			return err
		}
		if c == nil {
			continue
		}
		c.mu.Lock()
		split := c.st.named() && c.st.inodes[rec.ino] == nil
		c.mu.Unlock()
		if split {
			if x, err := r.chase(c, rec.ino); err != nil {
				return err
			} else if x != nil {
				c, id = x, x.id
			}
		}
		c.mu.Lock()
		n := c.st.inodes[rec.ino]
		var done bool
		if n != nil {
			done = rec.seq <= n.flushed(t.cfg.Mount)
		} else if h := c.st.left[rec.ino]; h != nil && !slices.Contains(places, h.to) {
			places = append(places, h.to) // moved by another mount, while it was open here
		}
		c.mu.Unlock()
		if n == nil {
			continue
		}
		if !done {
			t.mu.Lock()
			x := t.at(rec.ino, id)
			x.data = max(x.data, rec.seq)
			t.mu.Unlock()
			t.hooks.ReplayData(rec.ino, rec.seq, rec.off, rec.data)
			t.Grown(rec.ino, rec.off, uint64(len(rec.data)), now()) // when it was written is not recorded; later is safer than earlier
		}
		return nil
	}
	r.lost++
	return nil
}

// cloneOp copies what aliases a record's buffer. What the process of the journal had open is open no more.
func cloneOp(o *Op) *Op {
	n := *o
	if n.Keep = false; n.Kind == OpKeep {
		n.Kind = OpRelease
	}
	n.Data = append([]byte(nil), o.Data...)
	return &n
}
