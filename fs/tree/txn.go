package tree

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// part is what a transaction does in one container.
type part struct {
	c        *container
	op       *Op
	onCommit []blocks.RegisterID
}

// transact makes one change over several containers. They are taken in the order of
// their IDs, each committed and agreed before the next, and stay frozen until the end. plan says what
// happens in which; before is called when the first part's intent is in place.
func (t *Tree) transact(ctx context.Context, ids []blocks.RegisterID, plan func(get func(blocks.RegisterID) *container) ([]part, error), before func() error) error {
	if !MayWait(ctx) {
		return ErrWait
	}
	defer t.making.enter()()
	slices.SortFunc(ids, func(a, b blocks.RegisterID) int { return a.Compare(b.ID) })
	ids = slices.Compact(ids)
	for _, id := range ids {
		if err := t.flushPath(ctx, id); err != nil {
			return err
		}
	}
	held := map[blocks.RegisterID]*container{}
	defer func() {
		for _, c := range held {
			c.thaw()
			c.release()
		}
	}()
	for _, id := range ids {
		c, err := t.cont(id)
		if err != nil {
			return err
		}
		if err := c.acquire(ctx); err != nil {
			return err
		}
		held[id] = c
		if err := t.freeze(ctx, c); err != nil {
			return err
		}
	}
	parts, err := plan(func(id blocks.RegisterID) *container { return held[id] })
	if err != nil || len(parts) == 0 {
		return err
	}
	for _, p := range parts {
		err := Check(p.c.st, p.op)
		if errors.Is(err, blocks.ErrInvalid) || errors.Is(err, errIntent) {
			// The parts were read one after the other, and do not fit each other: one has changed since.
			return fmt.Errorf("%w: container %s: %v", blocks.ErrConflict, p.c.id.Short(), err)
		}
		if err != nil {
			return err
		}
	}
	return t.runTxn(ctx, parts, before)
}

// freeze stops fast operations, commits what is pending and brings the state up to date. busy must be held.
func (t *Tree) freeze(ctx context.Context, c *container) error {
	c.mu.Lock()
	c.frozen = true
	c.mu.Unlock()
	for range maxResolutions {
		if err := t.flush(ctx, c, true); err != nil {
			return err
		}
		if err := t.validate(ctx, c); err != nil {
			return err
		}
		if err := t.compact(ctx, c); err != nil { // transactions leave deltas, and nothing pending that would replace them
			return err
		}
		c.mu.Lock()
		clean, gone := len(c.ops) == 0, c.gone(false)
		c.mu.Unlock()
		if gone != nil {
			return gone
		}
		if clean {
			return nil
		}
	}
	return fmt.Errorf("container %s does not come to rest: %w", c.id.Short(), errAgain)
}

// Pauses of calls that lose against others.
const (
	contendMin = 2 * time.Millisecond
	contendMax = 200 * time.Millisecond
)

// contend tries until the outcome is not decided by what others do to the same containers at the same time, or ctx ends.
// The pauses grow, and differ between callers, so that one of them gets through.
func (t *Tree) contend(ctx context.Context, what string, try func() error) error {
	for pause := contendMin; ; pause = min(2*pause, contendMax) {
		err := try()
		if !again(err) {
			return err
		}
		if e := sleep(ctx, pause/2+rand.N(pause)); e != nil {
			return fmt.Errorf("%w: %s: others change the same names: %v: %w", blocks.ErrBusy, what, err, e)
		}
	}
}

// runTxn takes a transaction through its steps: the register, the intents, the
// decision, the resolutions. A death at any step leaves either all or nothing to whoever comes next.
func (t *Tree) runTxn(ctx context.Context, parts []part, before func() error) error {
	id, err := t.newID()
	if err != nil {
		return err
	}
	tc, err := t.newContainer(id)
	if err != nil {
		return err
	}
	var regs []blocks.RegisterID
	for _, p := range parts {
		regs = append(regs, p.c.id)
	}
	done := false
	defer func() {
		if !done {
			t.toss(id) // the intent that would list it as garbage may never have come about
		}
	}()
	if err := t.createTxn(ctx, tc, regs); err != nil {
		return err
	}
	for i, p := range parts {
		o := &Op{Kind: OpIntent, Txn: id, Parts: regs, Inner: p.op, Regs: p.onCommit, Drop: i == len(parts)-1, Mount: t.cfg.Mount}
		_, err := t.commitOne(ctx, p.c, t.j.number(), o, nil)
		if err == nil && i == 0 && before != nil {
			err = before()
		}
		if err != nil {
			t.abandon(ctx, tc, parts[:i+1])
			return err
		}
	}
	if err := t.noteMoves(parts); err != nil {
		t.abandon(ctx, tc, parts)
		return err
	}
	if err := t.decide(ctx, tc, TxnCommitted); err != nil {
		t.abandon(ctx, tc, parts)
		return err
	}
	t.resolveAll(ctx, tc.id, parts, true)
	done = true
	return nil
}

// createTxn creates the transaction's register.
func (t *Tree) createTxn(ctx context.Context, tc *container, regs []blocks.RegisterID) error {
	st := newState(KindTxn)
	st.Txn = TxnPending
	st.refs = map[blocks.RegisterID]uint32{}
	for _, r := range regs {
		st.refs[r] = 1
	}
	v, err := tc.seal.seal(sealSnapshot, encodeState(st))
	if err != nil {
		return err
	}
	if _, err := t.propose(ctx, tc.id, blocks.Change{Origin: t.cfg.Mount, Seq: uint64(t.j.number()), Snapshot: v}); err != nil {
		return fmt.Errorf("begin a transaction: %w", err)
	}
	return nil
}

// decide ends a pending transaction. ErrConflict: it has been ended already.
func (t *Tree) decide(ctx context.Context, tc *container, as TxnState) error {
	d, err := tc.seal.seal(sealDelta, encodeBatch([]*Op{{Kind: OpTxn, Flags: uint32(as)}}))
	if err != nil {
		return err
	}
	_, err = t.propose(ctx, tc.id, blocks.Change{Base: 1, Origin: t.cfg.Mount, Seq: uint64(t.j.number()), Delta: d})
	if errors.Is(err, blocks.ErrNotFound) { // aborted, resolved and deleted by another
		err = fmt.Errorf("transaction %s: %w", tc.id.Short(), blocks.ErrConflict)
	}
	return err
}

// abandon aborts a transaction that did not get through, as far as it can; whoever meets
// what is left does the rest.
func (t *Tree) abandon(ctx context.Context, tc *container, parts []part) {
	if t.decide(ctx, tc, TxnAborted) != nil {
		return
	}
	t.resolveAll(ctx, tc.id, parts, false)
}

// resolveAll puts the decision into effect. Failures are left to the next who comes.
func (t *Tree) resolveAll(ctx context.Context, id blocks.RegisterID, parts []part, commit bool) {
	for _, p := range parts {
		if p.c.st == nil || p.c.st.intent == nil || p.c.st.intent.Txn != id {
			continue
		}
		ef, err := t.commitOne(ctx, p.c, t.j.number(), &Op{Kind: OpResolve, Txn: id, Drop: commit}, nil)
		if err != nil {
			t.log.Debug().Err(err).Str("container", p.c.id.Short()).Msg("resolve a transaction")
			p.c.mu.Lock()
			p.c.fenced = true
			p.c.mu.Unlock()
			continue
		}
		t.settle(ef)
	}
	t.wakeFreer()
}

// noteMoves journals where inodes with dirty data go, so that a replay finds them.
func (t *Tree) noteMoves(parts []part) error {
	var last Seq
	for _, p := range parts {
		if p.op.Kind == OpMove {
			for _, n := range p.op.Inodes {
				last = t.noteMove(n.Ino, p.c.id)
			}
		}
	}
	if last == 0 {
		return nil
	}
	return t.j.wait(last)
}

func (t *Tree) noteMove(ino Ino, to blocks.RegisterID) Seq {
	e := newRecord(recMoved, to, 8)
	e.Uint64(uint64(ino))
	return t.j.add(e.Buf, nil)
}

// complete helps a transaction that was met in c to its end. busy of c must be held.
func (t *Tree) complete(ctx context.Context, c *container, in *Intent) error {
	tc, err := t.newContainer(in.Txn)
	if err != nil {
		return err
	}
	wait := t.cfg.IntentWait
	if in.CreatedBy == t.cfg.Mount {
		wait = 0 // dead: a running one of ours would have c
	}
	state, err := t.awaitTxn(ctx, tc, wait)
	if err != nil {
		return fmt.Errorf("container %s is part of a transaction: %w", c.id.Short(), err)
	}
	if state == TxnPending {
		err := t.decide(ctx, tc, TxnAborted)
		if err != nil && !errors.Is(err, blocks.ErrConflict) {
			return err
		}
		if err == nil {
			t.toss(in.Txn)
		}
		if state, err = t.txnState(ctx, tc); err != nil {
			return err
		}
	}
	if state == TxnPending {
		c.fence() // ended while we looked: read again
		return nil
	}
	// Its register has ended: either it was resolved here, too, and the container has moved on since it was read; or this intent came when
	// the transaction had been aborted and was thought to have none left.
	// Without a number: what is pending here has older ones, and must not pass for committed.
	ef, err := t.commitOne(ctx, c, 0, &Op{Kind: OpResolve, Txn: in.Txn, Drop: state == TxnCommitted}, nil)
	if overtaken(err) { // resolved by another; or ended, and its register with it
		c.fence()
		return nil
	}
	if err != nil {
		return err
	}
	t.settle(ef)
	c.mu.Lock()
	t.rehome(c)
	c.mu.Unlock()
	t.wakeFreer()
	return nil
}

// intentPoll is how long after the first look at a pending transaction the second follows; the pauses grow from there.
const intentPoll = 5 * time.Millisecond

// awaitTxn reads how a transaction stands until it has ended or was pending for as long as limit.
func (t *Tree) awaitTxn(ctx context.Context, tc *container, limit time.Duration) (TxnState, error) {
	begin := time.Now()
	for pause := intentPoll; ; pause *= 2 {
		state, err := t.txnState(ctx, tc)
		left := limit - time.Since(begin)
		if err != nil || state != TxnPending || left <= 0 {
			return state, err
		}
		if err := sleep(ctx, min(pause, left)); err != nil {
			return state, err
		}
	}
}

// txnState reads how a transaction stands, 0 if its register has ended.
func (t *Tree) txnState(ctx context.Context, tc *container) (TxnState, error) {
	r, err := t.regs.Read(ctx, tc.id, 0)
	if errors.Is(err, blocks.ErrNotFound) || err == nil && r.Deleted {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read transaction %s: %w", tc.id.Short(), err)
	}
	st, err := tc.stateOf(r)
	if err != nil {
		return 0, err
	}
	return st.Txn, nil
}
