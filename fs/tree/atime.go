package tree

import (
	"context"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

// Access times follow the rule of the mount option relatime: what is read gets a new one if the old one is not later than the
// last change, or a day old. It is kept in memory first, and goes to the container with its lease or after AtimeAge, many at a time. A
// mount without the lease does not note what it reads: a read is never worth a round trip.

// atimeDay is when an access time is old whatever has changed since.
const atimeDay = Time(24 * time.Hour)

// maxAtimes bounds the access times that one operation sets; what is beyond waits for the next.
const maxAtimes = 1024

// Accessed says that an inode has been read. It does not wait.
func (t *Tree) Accessed(ino Ino) {
	if t.cfg.NoAtime || t.ghostOf(ino) != nil {
		return
	}
	at := now()
	_ = t.readIno(NoWait(context.Background()), ino, func(c *container, _ *State, n *Inode) error { // what is not in memory under a lease is left as it is
		if !t.leased(c) {
			return nil
		}
		t.withNode(ino, func(x *node) {
			last := n.Atime
			if x.atime != 0 {
				last = max(last, x.atime)
			}
			if last > max(n.Mtime, x.grownMtime) && last > n.Ctime && at-last < atimeDay {
				return
			}
			x.atime = at
			t.accessed[ino] = struct{}{}
		})
		return nil
	})
}

// noteAtimes makes the operation that sets the access times of some inodes as memory has them, and reports whether there was
// anything to set. mu of c must be held.
func (t *Tree) noteAtimes(c *container, inos []Ino) bool {
	o := &Op{Kind: OpAtime}
	t.mu.Lock()
	for _, ino := range inos {
		x, n := t.nodes[ino], c.st.inode(ino)
		if x == nil || n == nil || len(o.Inodes) == maxAtimes {
			continue
		}
		if x.atime != 0 && x.atime > n.Atime {
			o.Inodes = append(o.Inodes, &Inode{Ino: ino, Atime: x.atime})
		}
		t.settleAtime(ino, x)
	}
	t.mu.Unlock()
	if len(o.Inodes) == 0 {
		return false
	}
	if _, err := Apply(c.st, o); err != nil {
		return false // a transaction is in the way; access times are not worth more
	}
	t.enqueue(c, o)
	return true
}

// settleAtime forgets what is in the container now, or is given up. t.mu must be held.
func (t *Tree) settleAtime(ino Ino, x *node) {
	x.atime = 0
	delete(t.accessed, ino)
	if ino != RootIno && x.idle() {
		delete(t.nodes, ino)
	}
}

// readIn lists what was read of a container. mu of c must be held.
func (t *Tree) readIn(c *container) (inos []Ino) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for ino := range t.accessed {
		if n := t.nodes[ino]; n != nil && n.home == c.id {
			inos = append(inos, ino)
		}
	}
	return inos
}

// flushAtimes journals all access times of containers that are leased here; the others are given up.
func (t *Tree) flushAtimes() {
	var all []noteAt
	t.mu.RLock()
	for ino := range t.accessed {
		all = append(all, noteAt{ino: ino})
	}
	t.mu.RUnlock()
	for home, inos := range t.byHome(all) {
		for len(inos) > 0 {
			part := inos[:min(len(inos), maxAtimes)]
			inos = inos[len(part):]
			t.flushAtimesOf(home, part)
		}
	}
}

func (t *Tree) flushAtimesOf(home blocks.RegisterID, inos []Ino) {
	c, err := t.cont(home)
	if err != nil {
		return
	}
	c.mu.Lock()
	if t.fast(c) {
		t.noteAtimes(c, inos)
	}
	c.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, ino := range inos {
		if x := t.nodes[ino]; x != nil && x.atime != 0 {
			t.settleAtime(ino, x)
		} else {
			delete(t.accessed, ino)
		}
	}
}
