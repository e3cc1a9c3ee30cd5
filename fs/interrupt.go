package fs

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"bazil.org/fuse"
)

// The kernel sends an interrupt for a request when its caller gets a signal, any signal: a timer, a
// child that ended, the preemption of a Go program. A disk's file system would go on then, and programs
// rely on that: a write or an fsync of a file does not fail with EINTR. Only a caller that is about to
// die must not be kept. The interrupt does not tell, and there is only one for each request; so
// from then on the caller is looked at until the request is answered, and the request is cancelled when SIGKILL is
// pending for it. (The kernel makes every deadly signal a SIGKILL.)

// errInterrupted is why the request of a dying caller ends.
var errInterrupted error = syscall.EINTR

// dyingEvery is how often an interrupted caller is looked at.
const dyingEvery = 50 * time.Millisecond

// maxEarly bounds how many interrupts that overtook their request are remembered.
const maxEarly = 1024

// waiters are the requests that wait.
type waiters struct {
	mu    sync.Mutex
	all   map[fuse.RequestID]*waiter
	early map[fuse.RequestID]struct{}
}

type waiter struct {
	pid    uint32
	any    bool // any signal ends it
	cancel context.CancelCauseFunc
	done   chan struct{}
	wg     sync.WaitGroup
}

func newWaiters() waiters {
	return waiters{all: map[fuse.RequestID]*waiter{}, early: map[fuse.RequestID]struct{}{}}
}

// enter notes a request that waits. any: whatever signal its caller gets ends it, as is right for a wait for a lock.
func (w *waiters) enter(id fuse.RequestID, pid uint32, cancel context.CancelCauseFunc, any bool) *waiter {
	x := &waiter{pid: pid, any: any, cancel: cancel, done: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all[id] = x
	if _, interrupted := w.early[id]; interrupted {
		delete(w.early, id)
		x.wg.Go(x.watch)
	}
	return x
}

func (w *waiters) leave(id fuse.RequestID, x *waiter) {
	w.mu.Lock()
	delete(w.all, id)
	w.mu.Unlock()
	close(x.done)
	x.wg.Wait()
}

// interrupt takes note of an interrupt. Another reader may have got it before its request.
func (w *waiters) interrupt(id fuse.RequestID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if x := w.all[id]; x != nil {
		x.wg.Go(x.watch)
		return
	}
	if len(w.early) >= maxEarly {
		clear(w.early)
	}
	w.early[id] = struct{}{}
}

// watch cancels the request when its caller is about to die.
func (x *waiter) watch() {
	tick := time.NewTicker(dyingEvery)
	defer tick.Stop()
	for !x.any && !dying(x.pid) {
		select {
		case <-x.done:
			return
		case <-tick.C:
		}
	}
	x.cancel(errInterrupted)
}

// dying reports whether a thread has SIGKILL pending. One that cannot be seen (of another process
// namespace) is taken to live: every call has a bound anyway.
func dying(tid uint32) bool {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return false
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":")
		if name != "SigPnd" && name != "ShdPnd" {
			continue
		}
		set, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err == nil && set&(1<<(syscall.SIGKILL-1)) != 0 {
			return true
		}
	}
	return false
}
