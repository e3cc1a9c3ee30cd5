package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// session is this process in the notes of which files are open: a register without a value, whose lease says that the process
// lives. It is made before the first note is agreed; a note that names a session whose register has ended, or has lost
// its lease, is void.
type session struct {
	busy chan struct{} // capacity 1: one at a time makes or renews it

	mu    sync.Mutex
	id    blocks.RegisterID
	made  bool
	epoch uint64
	old   blocks.RegisterID               // the session before, whose register is to be deleted
	seen  map[blocks.RegisterID]time.Time // other sessions: when their lives were looked at last
	dead  map[blocks.RegisterID]struct{}  // other sessions that have ended
}

// maxSessions bounds what is remembered of other sessions; forgetting costs another look.
const maxSessions = 1024

func (s *session) init(rnd io.Reader) error {
	id, err := blocks.RandomID(rnd)
	if err != nil {
		return fmt.Errorf("draw the session's ID: %w", err)
	}
	s.busy, s.id = make(chan struct{}, 1), blocks.RegisterID{ID: id}
	s.seen, s.dead = map[blocks.RegisterID]time.Time{}, map[blocks.RegisterID]struct{}{}
	return nil
}

func (t *Tree) sessionID() blocks.RegisterID {
	t.session.mu.Lock()
	defer t.session.mu.Unlock()
	return t.session.id
}

func (s *session) now() (id blocks.RegisterID, made bool, epoch uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.id, s.made, s.epoch
}

// ensureSession makes the session's register unless it has been made. It comes before every proposal with a note.
func (t *Tree) ensureSession(ctx context.Context) error {
	if _, made, _ := t.session.now(); made {
		return nil
	}
	return t.renewSession(ctx)
}

// renewSession makes the session's register, or finds out whether its lease is still this process's where that is not known. If
// it was taken, the notes are void: there is another session then, and what is open is noted once more.
func (t *Tree) renewSession(ctx context.Context) error {
	s := &t.session
	select {
	case s.busy <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("make the session: %w", ctx.Err())
	}
	defer func() { <-s.busy }()
	for range maxResolutions {
		if done, err := t.tryRenewSession(ctx); done || err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: the session does not come to rest", blocks.ErrBusy)
}

// tryRenewSession makes one attempt. done is false if the answer to an earlier one was lost. busy must be held.
func (t *Tree) tryRenewSession(ctx context.Context) (done bool, err error) {
	s := &t.session
	id, made, epoch := s.now()
	if made && t.regs.Holds(id, epoch) {
		return true, nil
	}
	ch := blocks.Change{Origin: t.cfg.Mount, Seq: 1, Snapshot: []byte{}, Lease: blocks.LeaseAcquire}
	if made {
		r, err := t.regs.Read(ctx, id, 0)
		if err != nil && !errors.Is(err, blocks.ErrNotFound) {
			return false, fmt.Errorf("read the session %s: %w", id.Short(), err)
		}
		if err != nil || r.Deleted || r.Lease.Holder != t.cfg.Mount {
			return true, t.lostSession()
		}
		ch = blocks.Change{Base: r.Version, Origin: t.cfg.Mount, Lease: blocks.LeaseAcquire}
	} else if err := t.rememberSession(id); err != nil {
		return false, err
	}
	r, err := t.propose(ctx, id, ch)
	if made && overtaken(err) {
		return false, nil // the next attempt reads what has become of it
	}
	if err != nil {
		return false, fmt.Errorf("make the session %s: %w", id.Short(), err)
	}
	s.mu.Lock()
	s.made, s.epoch = true, r.Lease.Epoch
	s.mu.Unlock()
	return true, nil
}

// lostSession begins another session. What is open is noted anew by the freer.
func (t *Tree) lostSession() error {
	s := &t.session
	t.log.Warn().Str("session", s.id.Short()).Msg("out of contact for so long that files which are open here and removed elsewhere may have ended")
	id, err := t.newID()
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.id, s.made, s.epoch = id, false, 0
	s.mu.Unlock()
	t.wakeFreer()
	return nil
}

// sessionFile is where the session's ID is kept for the next process, beside the journal.
const sessionFile = "session"

// rememberSession writes the session down, and ends that of the process before, which a crash has left.
func (t *Tree) rememberSession(id blocks.RegisterID) error {
	path := filepath.Join(t.cfg.JournalDir, sessionFile)
	if b, err := os.ReadFile(path); err == nil && len(b) == blocks.IDSize {
		var former blocks.RegisterID
		copy(former.ID[:], b)
		if former != id {
			t.judge(former, time.Time{})
			t.session.mu.Lock()
			t.session.old = former
			t.session.mu.Unlock()
		}
	}
	if err := os.WriteFile(path, id.ID[:], 0o600); err != nil {
		return fmt.Errorf("remember the session: %w", err)
	}
	return nil
}

// endSession deletes a session's register: nobody believes its notes any more.
func (t *Tree) endSession(ctx context.Context, id blocks.RegisterID) {
	if me, made, _ := t.session.now(); id == me && !made {
		return
	}
	for range maxResolutions {
		r, err := t.regs.Read(ctx, id, 0)
		if err == nil && !r.Deleted {
			_, err = t.regs.Propose(ctx, id, blocks.Change{Base: r.Version, Origin: t.cfg.Mount, Delete: true})
		}
		if !errors.Is(err, blocks.ErrConflict) {
			if err != nil && !errors.Is(err, blocks.ErrNotFound) {
				t.log.Debug().Err(err).Str("session", id.Short()).Msg("end a session")
			}
			return
		}
	}
}

// notes reports whether the operation notes that something is open.
func (o *Op) notes() bool {
	return o.Keep || o.Kind == OpKeep || o.Inner != nil && o.Inner.notes() ||
		slices.ContainsFunc(o.Inodes, func(n *Inode) bool { return len(n.Keepers) > 0 })
}

// quiet reports whether those who share a lease need not know of the operation: what is noted of open files, and of when
// something was read, is of use to those alone who change the container, and they read it anew.
func (o *Op) quiet() bool { return o.Kind == OpKeep || o.Kind == OpRelease || o.Kind == OpAtime }

func (o *Op) loud() bool { return !o.quiet() }

func (o *Op) use() use {
	if o.quiet() {
		return useNote
	}
	return useAlter
}

// keeps reports whether this mount has handles on the inode, of which a note is about to be made.
func (t *Tree) keeps(ino Ino) (open bool) {
	t.withNode(ino, func(n *node) {
		open = n.opens > 0
		n.kept = n.kept || open
	})
	return open
}

// noted returns a copy of an inode that goes to another container, where this mount may have no lease: if it is open here, that is noted.
func (t *Tree) noted(n *Inode) *Inode {
	c := n.clone()
	if t.keeps(n.Ino) {
		c.note(t.sessionID(), true)
	}
	return c
}

// noteOpen notes what is open here of a container whose lease is about to be given back, and reports whether there was anything
// to note. mu of c must be held.
func (t *Tree) noteOpen(c *container) bool {
	o := &Op{Kind: OpKeep, Time: now(), Session: t.sessionID()}
	for ino, n := range c.st.inodes {
		if !n.keptBy(o.Session) && t.keeps(ino) {
			o.Inos = append(o.Inos, ino)
		}
	}
	if len(o.Inos) == 0 {
		return false
	}
	slices.Sort(o.Inos)
	if _, err := Apply(c.st, o); err != nil {
		t.log.Warn().Err(err).Str("container", c.id.Short()).Msg("what is open could not be noted")
		return false
	}
	t.enqueue(c, o)
	return true
}

// noteAt is where it may be noted that an inode is open: the zero register is where the inode lies now.
type noteAt struct {
	reg blocks.RegisterID
	ino Ino
}

// postpone lets the freer end the note of a file that has been closed. Until then the file can be opened again at no cost.
func (t *Tree) postpone(ino Ino) {
	t.mu.Lock()
	t.leaving[noteAt{ino: ino}] = time.Now().Add(t.cfg.NoteAge)
	t.mu.Unlock()
}

// leave points an inode's node to where it went from a container, and lets the freer end the note there.
func (t *Tree) leave(ino Ino, from, to blocks.RegisterID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.nodes[ino]; n != nil && n.home == from {
		n.home = to
	}
	t.leaving[noteAt{from, ino}] = time.Now()
}

// hasteFor has the freer end the note at once of a file that has no name, as far as memory knows.
func (t *Tree) hasteFor(home blocks.RegisterID, ino Ino) {
	c, err := t.cont(home)
	if err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.st != nil && c.st.inodes[ino] != nil && c.st.inodes[ino].Nlink == 0 {
		t.mu.Lock()
		t.leaving[noteAt{ino: ino}] = time.Now()
		t.mu.Unlock()
		t.wakeFreer()
	}
}

// byHome sorts places by the containers.
func (t *Tree) byHome(places []noteAt) map[blocks.RegisterID][]Ino {
	t.mu.RLock()
	defer t.mu.RUnlock()
	homes := map[blocks.RegisterID][]Ino{}
	for _, p := range places {
		if n := t.nodes[p.ino]; p.reg.IsZero() && n != nil {
			p.reg = n.home
		}
		if !p.reg.IsZero() {
			homes[p.reg] = append(homes[p.reg], p.ino)
		}
	}
	return homes
}

// endNotes ends the notes of files that have been closed for a while (or all), or have gone elsewhere: one operation for each container.
func (t *Tree) endNotes(ctx context.Context, all bool) {
	at := time.Now()
	var todo []noteAt
	t.mu.Lock()
	for p, due := range t.leaving {
		if all || !due.After(at) {
			todo = append(todo, p)
			delete(t.leaving, p)
		}
	}
	t.mu.Unlock()
	for home, inos := range t.byHome(todo) {
		cctx, cancel := context.WithTimeout(ctx, t.cfg.CommitTimeout)
		if t.unnote(cctx, home, inos) != nil {
			t.mu.Lock()
			for _, ino := range inos {
				t.leaving[noteAt{home, ino}] = at
			}
			t.mu.Unlock()
		}
		cancel()
	}
}

// forgetAll is what the kernel does when the mount ends; of that it does not tell.
func (t *Tree) forgetAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for ino, n := range t.nodes {
		if n.lookups = 0; n.nameless && n.kept && n.opens == 0 {
			t.leaving[noteAt{ino: ino}] = time.Now()
		}
	}
}

// closed forgets that inodes may be noted as open. What has been opened again meanwhile stays as it is.
func (t *Tree) closed(inos []Ino) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, ino := range inos {
		if n := t.nodes[ino]; n != nil && n.opens == 0 {
			if n.kept = false; ino != RootIno && n.idle() {
				delete(t.nodes, ino)
			}
		}
	}
}

// unnote ends the notes in one container of inodes that are not open here any more, or have gone elsewhere. With the last note an inode
// without a name ends.
func (t *Tree) unnote(ctx context.Context, home blocks.RegisterID, inos []Ino) error {
	me := t.sessionID()
	var ended, away []Ino
	_, err := t.mutateFor(ctx, home, true, func(_ *container, s *State) (*Op, error) {
		o := &Op{Kind: OpRelease, Time: now(), Session: me}
		var void []Ino
		ended, away = nil, nil
		for _, ino := range inos {
			n, h := s.inodes[ino], s.left[ino]
			switch {
			case h != nil:
				away = append(away, ino)
				if slices.Contains(h.keepers, me) {
					o.Inos = append(o.Inos, ino)
				}
			case n == nil:
				away = append(away, ino)
			case t.wanted(ino):
			case n.keptBy(me):
				o.Inos, ended = append(o.Inos, ino), append(ended, ino)
			default:
				void = append(void, ino)
			}
		}
		if t.closed(void); len(o.Inos) == 0 {
			return nil, nil
		}
		return o, nil
	}, func(*container, *Op, Seq) { t.closed(ended) })
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ESTALE), isElsewhere(err):
		away = inos
	case err != nil:
		return err
	}
	for _, ino := range away {
		t.unnoteElsewhere(ctx, home, ino)
	}
	return nil
}

// unnoteElsewhere has the note of an inode ended where it lies, if it is not open; it is not in the container home.
func (t *Tree) unnoteElsewhere(ctx context.Context, home blocks.RegisterID, ino Ino) {
	if t.opened(ino) {
		return
	}
	if err := t.follow(ctx, home, ino); errors.Is(err, syscall.ESTALE) {
		t.closed([]Ino{ino})
	} else {
		t.postpone(ino)
	}
}

// noteAgain notes all that is open and was noted by a session that was lost.
func (t *Tree) noteAgain(ctx context.Context) {
	var open []noteAt
	t.mu.RLock()
	for ino, n := range t.nodes {
		if n.kept && n.opens > 0 {
			open = append(open, noteAt{ino: ino})
		}
	}
	t.mu.RUnlock()
	for home, inos := range t.byHome(open) {
		cctx, cancel := context.WithTimeout(ctx, t.cfg.CommitTimeout)
		_, err := t.mutateFor(cctx, home, true, func(_ *container, s *State) (*Op, error) {
			return &Op{Kind: OpKeep, Time: now(), Inos: inos, Session: t.sessionID()}, nil
		}, nil)
		cancel()
		if err != nil {
			t.log.Warn().Err(err).Str("container", home.Short()).Msg("what is open could not be noted again")
		}
	}
}

// keepSession sees to it that the notes of this mount stay valid.
func (t *Tree) keepSession(ctx context.Context) {
	before, made, _ := t.session.now()
	if !made {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, t.cfg.CommitTimeout)
	defer cancel()
	if err := t.renewSession(ctx); err != nil {
		t.log.Debug().Err(err).Msg("renew the session")
	}
	if id, _, _ := t.session.now(); id != before {
		t.noteAgain(ctx)
	}
	t.session.mu.Lock()
	old := t.session.old
	t.session.old = blocks.RegisterID{}
	t.session.mu.Unlock()
	if !old.IsZero() {
		t.endSession(ctx, old)
	}
}

// judge remembers that a session has ended, as of at; the zero time: for good.
func (t *Tree) judge(id blocks.RegisterID, at time.Time) {
	s := &t.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.dead)+len(s.seen) > maxSessions {
		clear(s.dead)
		clear(s.seen)
	}
	if at.IsZero() {
		s.dead[id] = struct{}{}
	} else {
		s.seen[id] = at
	}
}

// over reports whether a session has ended: its register has, or no process holds its lease. It asks for each at most
// once in FreeEvery.
func (t *Tree) over(ctx context.Context, id blocks.RegisterID) bool {
	s := &t.session
	s.mu.Lock()
	me := s.id
	_, dead := s.dead[id]
	looked := time.Since(s.seen[id]) < t.cfg.FreeEvery
	s.mu.Unlock()
	if id == me || dead || looked {
		return dead && id != me
	}
	ctx, cancel := context.WithTimeout(ctx, t.cfg.CommitTimeout)
	defer cancel()
	lease, err := t.regs.Lease(ctx, id)
	switch {
	case errors.Is(err, blocks.ErrNotFound):
	case err != nil:
		t.log.Debug().Err(err).Str("session", id.Short()).Msg("look whether a session lives")
		t.judge(id, time.Now())
		return false
	case !lease.Holder.IsZero() && lease.Holder != t.cfg.Mount: // of this mount there is only this session
		t.judge(id, time.Now())
		return false
	default:
		t.endSession(ctx, id)
	}
	t.judge(id, time.Time{})
	return true
}

// keepers calls f for all that is noted as open.
func (s *State) keepers(f func(ino Ino, keepers []blocks.RegisterID)) {
	for ino, n := range s.inodes {
		if len(n.Keepers) > 0 {
			f(ino, n.Keepers)
		}
	}
	for ino, h := range s.left {
		f(ino, h.keepers)
	}
}

// anyKeeps reports whether a session that goes on has something open in a container that came to its end. This one's does not
// count: what is open here is asked for elsewhere.
func (t *Tree) anyKeeps(ctx context.Context, s *State) (yes bool) {
	me := t.sessionID()
	s.keepers(func(_ Ino, keepers []blocks.RegisterID) {
		yes = yes || slices.ContainsFunc(keepers, func(k blocks.RegisterID) bool { return k != me && !t.over(ctx, k) })
	})
	return yes
}

// endNotesOfTheDead drops what sessions that have ended noted in a container.
func (t *Tree) endNotesOfTheDead(ctx context.Context, c *container) error {
	me := t.sessionID()
	others := map[blocks.RegisterID]struct{}{}
	c.mu.Lock()
	if c.st != nil {
		c.st.keepers(func(_ Ino, keepers []blocks.RegisterID) {
			for _, k := range keepers {
				if k != me {
					others[k] = struct{}{}
				}
			}
		})
	}
	c.mu.Unlock()
	for id := range others {
		if !t.over(ctx, id) {
			continue
		}
		cctx, cancel := context.WithTimeout(ctx, t.cfg.CommitTimeout)
		_, err := t.mutateFor(cctx, c.id, true, func(_ *container, s *State) (*Op, error) {
			o := &Op{Kind: OpRelease, Time: now(), Session: id}
			s.keepers(func(ino Ino, keepers []blocks.RegisterID) {
				if slices.Contains(keepers, id) {
					o.Inos = append(o.Inos, ino)
				}
			})
			if len(o.Inos) == 0 {
				return nil, nil
			}
			slices.Sort(o.Inos)
			return o, nil
		}, nil)
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}
