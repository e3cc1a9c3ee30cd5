package blocks

import (
	"fmt"
	"sync"
	"time"
)

const (
	// What the host has free is asked again after so much was written, and
	// after so long.
	roomBytes = 64 << 20
	roomAge   = time.Second

	// indexRoom always stays free for the index, which cannot go on once it
	// could not write its log.
	indexRoom = 16 << 20
)

// room keeps a host drive above its reserve, without asking for every block.
type room struct {
	mu   sync.Mutex
	left int64     // may be written before asking again
	at   time.Time // when it was asked

	index   int64 // the same for the registers, which may use the reserve
	indexAt time.Time
}

// take accounts for n bytes about to be written, or says why not.
func (r *room) take(d *drive, n int64) error {
	r.mu.Lock()
	if time.Since(r.at) < roomAge && r.left >= n {
		r.left -= n
		r.mu.Unlock()
		return nil
	}
	r.mu.Unlock()
	free, total, err := d.fs.Space(d.conf.Dir)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	reserve := d.conf.reserve(total)
	if free-reserve < n {
		return fmt.Errorf("%w: drive %s has %d bytes free, and %d are reserved", ErrNoSpace, d.conf.Dir, free, reserve)
	}
	above := free - reserve
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left, r.at = min(above, roomBytes)-n, time.Now()
	return nil
}

// forget has the host asked again before the next write.
func (r *room) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left = 0
}

// takeIndex accounts for n bytes that the registers write, or says why not.
func (r *room) takeIndex(d *drive, n int64) error {
	r.mu.Lock()
	if time.Since(r.indexAt) < roomAge && r.index >= n {
		r.index -= n
		r.mu.Unlock()
		return nil
	}
	r.mu.Unlock()
	free, _, err := d.fs.Space(d.conf.Dir)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if free-indexRoom < n {
		return fmt.Errorf("%w: drive %s has only %d bytes free", ErrNoSpace, d.conf.Dir, free)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.index, r.indexAt = min(free-indexRoom, roomBytes)-n, time.Now()
	return nil
}
