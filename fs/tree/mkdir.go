package tree

import (
	"context"
	"errors"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// mkdir makes the child's container in memory, born leased, then the name. Without a lease on the
// parent the child is created first.
func (t *Tree) mkdir(ctx context.Context, dir Ino, parent blocks.RegisterID, name string, args MakeArgs) (Attr, error) {
	var a Attr
	defer t.making.enter()()
	id, err := t.newID()
	if err != nil {
		return a, err
	}
	cc, err := t.newContainer(id)
	if err != nil {
		return a, err
	}
	ino := t.newIno()
	born := false
	make := func(heir *Inode, c *container, s *State) (*Op, error) {
		if err := mayMake(s, dir, name); err != nil {
			return nil, err
		}
		o, err := makeOp(s, heir, name, args)
		if err != nil {
			return nil, err
		}
		o.Ino, o.Child = ino, id
		cc.mu.Lock()
		cc.st = newDir(ino, o.Mode, o.Uid, o.Gid, o.Time, o.Data, parent, dir)
		cc.unborn, cc.parent, cc.since = true, c.id, time.Now()
		cc.mu.Unlock()
		t.mu.Lock()
		t.conts[id] = cc
		t.mu.Unlock()
		born = true
		return o, nil
	}
	made := func(c *container, o *Op, seq Seq) {
		t.ref(ino, id)
		cc.mu.Lock()
		cc.birth = seq
		a = t.show(cc, &cc.st.Self)
		if len(c.ops) == 0 { // committed already
			cc.parent = blocks.RegisterID{}
		}
		cc.mu.Unlock()
	}
	err = errNoHeir
	for sure := false; errors.Is(err, errNoHeir); sure = true {
		heir, e := t.heirOf(ctx, parent, sure)
		if e != nil {
			return a, e
		}
		err = t.mutateName(ctx, parent, name, true, func(c *container, s *State) (*Op, error) { return make(heir, c, s) }, made)
	}
	if err != nil && born {
		t.discard(ctx, cc)
	}
	return a, err
}

// discard drops a container that got no name.
func (t *Tree) discard(ctx context.Context, cc *container) {
	cc.mu.Lock()
	cc.removed = true
	unborn, base := cc.unborn, cc.version
	cc.mu.Unlock()
	t.forgetContainer(cc.id)
	if unborn {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.cfg.CommitTimeout)
	defer cancel()
	ch := blocks.Change{Base: base, Origin: t.cfg.Mount, Seq: uint64(t.j.number()), Delete: true}
	if _, err := t.propose(ctx, cc.id, ch); err != nil {
		t.log.Debug().Err(err).Str("container", cc.id.Short()).Msg("a register without a name stays behind")
	}
}
