package fs

import (
	"context"
	"sync"

	"bazil.org/fuse"

	"github.com/mutualfs/mutualfs/fs/tree"
)

// notifiers is how many invalidations are sent at the same time. The kernel may let one wait for a lock on
// its directory that a request holds whose answer takes long: others should not wait with it.
const notifiers = 4

// notices queues what the kernel must forget. They are sent from goroutines of
// their own: a handler that notified the kernel of the inode it is
// called for would wait for itself. A notice that is queued already is not queued
// again, so the queues are bounded by what the kernel knows.
type notices struct {
	send    func(notice)
	answers *answers
	lanes   [notifiers]lane // by inode: the order of invalidations does not matter
}

// lane is one queue and its goroutine.
type lane struct {
	mu     sync.Mutex
	queued map[notice]struct{}
	queue  []notice
	wake   chan struct{}
}

type notice struct {
	ino    tree.Ino
	name   string          // of an entry in ino; "" for the inode itself
	expire bool            // the entry may still be right: the kernel must ask
	mark   *sync.WaitGroup // not nil: everything before it has been sent
}

var _ tree.Notifier = (*notices)(nil)

func newNotices(conn *fuse.Conn, a *answers) *notices {
	n := &notices{answers: a, send: func(x notice) {
		// Errors mean that the kernel had nothing cached, or that the mount is gone.
		if x.expire {
			expireEntry(device(conn), x.ino, x.name)
		} else if x.name != "" {
			_ = conn.InvalidateEntry(fuse.NodeID(x.ino), x.name)
		} else {
			_ = conn.InvalidateNode(fuse.NodeID(x.ino), 0, 0)
		}
	}}
	for i := range n.lanes {
		n.lanes[i].queued = map[notice]struct{}{}
		n.lanes[i].wake = make(chan struct{}, 1)
	}
	return n
}

// ExpireEntry makes the kernel look the name up anew, and leaves it where it is until then.
func (n *notices) ExpireEntry(dir tree.Ino, name string) {
	n.push(notice{ino: dir, name: name, expire: true})
}

// InvalidateEntry makes the kernel forget the name.
func (n *notices) InvalidateEntry(dir tree.Ino, name string) { n.push(notice{ino: dir, name: name}) }

// InvalidateInode makes the kernel forget attributes and data.
func (n *notices) InvalidateInode(ino tree.Ino) { n.push(notice{ino: ino}) }

func (n *notices) push(x notice) { n.lanes[uint64(x.ino)%notifiers].push(x) }

// Settle waits until the kernel has all that was answered or queued before.
func (n *notices) Settle(ctx context.Context) {
	n.answers.settle(ctx)
	var mark sync.WaitGroup
	for i := range n.lanes {
		mark.Add(1)
		n.lanes[i].push(notice{mark: &mark})
	}
	done := make(chan struct{})
	go func() { mark.Wait(); close(done) }() // ends when the lanes have come so far, or are stopped
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// run sends notices until stop is closed.
func (n *notices) run(stop <-chan struct{}) {
	var wg sync.WaitGroup
	for i := range n.lanes {
		wg.Go(func() { n.lanes[i].run(stop, n.send) })
	}
	wg.Wait()
}

func (l *lane) push(x notice) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.queued == nil { // stopped
		if x.mark != nil {
			x.mark.Done()
		}
		return
	}
	if _, ok := l.queued[x]; ok {
		return
	}
	l.queued[x] = struct{}{}
	l.queue = append(l.queue, x)
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *lane) pop() (notice, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		l.queue = nil
		return notice{}, false
	}
	x := l.queue[0]
	l.queue = l.queue[1:]
	delete(l.queued, x)
	return x, true
}

func (l *lane) run(stop <-chan struct{}, send func(notice)) {
	defer l.end()
	for {
		select {
		case <-stop:
			return
		case <-l.wake:
		}
		for x, ok := l.pop(); ok; x, ok = l.pop() {
			if x.mark != nil {
				x.mark.Done()
			} else {
				send(x)
			}
		}
	}
}

// end lets nobody wait for a lane that has stopped.
func (l *lane) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, x := range l.queue {
		if x.mark != nil {
			x.mark.Done()
		}
	}
	l.queue, l.queued = nil, nil
}

// answers counts the answers that are being given from memory and may let the kernel keep what they say,
// from before they are computed until they are sent. They are counted by turns, so that one can wait for
// those of the turn before while new ones come.
type answers struct {
	mu    sync.Mutex
	turn  uint64
	count map[uint64]int           // by turn, those above 0
	idle  map[uint64]chan struct{} // closed when the turn's last answer is out
}

func newAnswers() *answers {
	return &answers{count: map[uint64]int{}, idle: map[uint64]chan struct{}{}}
}

// begin notes an answer; its turn is to be given to end.
func (a *answers) begin() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.count[a.turn]++
	return a.turn
}

func (a *answers) end(turn uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.count[turn]--; a.count[turn] > 0 {
		return
	}
	delete(a.count, turn)
	if idle := a.idle[turn]; idle != nil {
		close(idle)
		delete(a.idle, turn)
	}
}

// settle begins a new turn and waits until the answers of all turns before are out, or ctx ends.
func (a *answers) settle(ctx context.Context) {
	a.mu.Lock()
	a.turn++
	var wait []chan struct{}
	for turn := range a.count {
		if a.idle[turn] == nil {
			a.idle[turn] = make(chan struct{})
		}
		wait = append(wait, a.idle[turn])
	}
	a.mu.Unlock()
	for _, idle := range wait {
		select {
		case <-idle:
		case <-ctx.Done():
			return
		}
	}
}
