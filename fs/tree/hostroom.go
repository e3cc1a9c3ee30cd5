package tree

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mutualfs/mutualfs/blocks"
)

// Written data leaves the last of the journal's drive to operations, which are small, and to the index that may share
// the drive: so files can still be removed when it is full, which is how it gets room again.
const (
	hostFloor = 64 << 20 // data is not journalled with less free, bytes
	hostBytes = 16 << 20 // so much may be written before the host is asked again
	hostAge   = time.Second

	// A write waits so long for older data to leave the journal before it fails.
	hostWait  = 3 * time.Second
	hostEvery = 100 * time.Millisecond
)

// hostRoom knows how much data the drive of the journal takes.
type hostRoom struct {
	free func(dir string) (int64, error)

	mu     sync.Mutex
	left   int64
	at     time.Time
	failed time.Time // a write has waited for room in vain
}

// waits reports whether it is worth to wait for room: not if that was just done in vain.
func (h *hostRoom) waits() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Since(h.failed) > hostWait
}

func (h *hostRoom) gaveUp() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failed = time.Now()
}

// freeBytes is what the host lets this process use.
func freeBytes(dir string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, err
	}
	return int64(s.Bavail) * s.Bsize, nil
}

// take accounts for n bytes of data about to be journalled in dir, or says why not.
func (h *hostRoom) take(dir string, n int64) error {
	h.mu.Lock()
	if time.Since(h.at) < hostAge && h.left >= n {
		h.left -= n
		h.mu.Unlock()
		return nil
	}
	h.mu.Unlock()
	free, err := h.free(dir)
	if err != nil {
		return fmt.Errorf("%w: free space of %s: %w", blocks.ErrUnavailable, dir, err)
	}
	if free-hostFloor < n {
		return fmt.Errorf("%w: the drive of the journal %s has %d MiB free, and %d MiB are kept for removals", blocks.ErrNoSpace, dir, free>>20, hostFloor>>20)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.left, h.at = min(free-hostFloor, hostBytes)-n, time.Now()
	return nil
}

// hostRoom waits a little until the drive of the journal has room for n bytes of data.
func (t *Tree) hostRoom(ctx context.Context, n int64) error {
	err := t.j.host.take(t.j.dir, n)
	if err == nil || !t.j.host.waits() {
		return err
	}
	if !MayWait(ctx) {
		return ErrWait
	}
	limit, cancel := context.WithTimeout(ctx, hostWait)
	defer cancel()
	tick := time.NewTicker(hostEvery)
	defer tick.Stop()
	for err != nil {
		t.kick()
		select {
		case <-limit.Done():
			t.j.host.gaveUp()
			return err
		case <-tick.C:
		}
		err = t.j.host.take(t.j.dir, n)
	}
	return nil
}
