package blocks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

const (
	// syncPending is the number of unsynced changes from which a sync is begun
	// unasked, maxPending the number at which Put and Delete wait for it.
	syncPending = 4096
	maxPending  = 4 * syncPending
	// housekeeping is how often Run syncs what is left over and punches holes.
	housekeeping = time.Second
)

// drive is one host drive: an index, and the virtual disks on it.
type drive struct {
	conf     DriveConfig
	fs       FS
	log      zerolog.Logger
	onDamage func(Location)
	lock     io.Closer
	index    Index
	disks    map[VnodeID]*disk
	epoch    Epoch
	ring     ID
	peer     PeerID
	regs     uint64       // incarnation of the register store
	fresh    *storeRecord // of an index that was just made
	gate     *gate        // of all operations
	eras     *eras        // of those that read
	room     room

	mu      sync.Mutex
	pending pending
	claims  map[blockKey]chan struct{} // keys being changed
	bad     map[blockKey]uint32        // blocks known to be corrupt, by their first unit
	dirty   map[*disk]bool             // written since the last sync
	syncs   syncState
	syncer  sync.WaitGroup // the goroutine that syncs
}

// claim reserves the key for one changer at a time.
func (d *drive) claim(k blockKey) {
	d.mu.Lock()
	for d.claims[k] != nil {
		wait := d.claims[k]
		d.mu.Unlock()
		<-wait
		d.mu.Lock()
	}
	d.claims[k] = make(chan struct{})
	d.mu.Unlock()
}

func (d *drive) unclaim(k blockKey) {
	d.mu.Lock()
	close(d.claims[k])
	delete(d.claims, k)
	d.mu.Unlock()
}

// find returns the header of the block, nil if there is none.
func (d *drive) find(k blockKey) (*blockHeader, error) {
	d.mu.Lock()
	c := d.pending.get(&k)
	d.mu.Unlock()
	if c != nil {
		return c.h, nil
	}
	v, err := d.index.Get(k.encode())
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	var h *blockHeader
	if err == nil {
		h, err = d.decodeEntry(k, v)
	}
	if err != nil {
		return nil, d.indexFailed(err)
	}
	return h, nil
}

// decodeEntry reads an index value and compares it with its key.
func (d *drive) decodeEntry(k blockKey, v []byte) (*blockHeader, error) {
	h, err := decodeHeader(v)
	if err == nil && (h.Stripe != k.stripe || h.Index != k.index) {
		err = fmt.Errorf("%w: key and value differ", ErrCorrupt)
	}
	return h, err
}

// insert makes a change visible. cur is what the key named before. The key is
// claimed by the caller.
func (d *drive) insert(k blockKey, h, cur *blockHeader) {
	vd := d.disks[k.vnode]
	c := &change{key: k, h: h}
	d.mu.Lock()
	prev := d.pending.get(&k)
	switch {
	case prev == nil:
		c.fresh = cur == nil
	case !prev.taken:
		c.fresh, c.garbage = prev.fresh, prev.garbage
	}
	if cur != nil {
		c.garbage = append(c.garbage, garbage{vd, cur.extent()})
	}
	var free []garbage
	if h == nil && c.fresh {
		free = c.garbage
		if prev != nil {
			d.pending.remove(prev)
		}
	} else {
		d.pending.put(c)
	}
	if h != nil {
		d.dirty[vd] = true
	}
	d.syncs.last++
	delete(d.bad, k)
	start := d.pending.count > syncPending
	if start {
		d.startSync()
	}
	d.mu.Unlock()
	vd.mu.Lock()
	vd.shards += btoi(h != nil) - btoi(cur != nil)
	vd.mu.Unlock()
	d.eras.retire(free)
}

func btoi(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// throttle waits while too many changes are pending.
func (d *drive) throttle() error {
	d.mu.Lock()
	full, last, err := d.pending.count >= maxPending, d.syncs.last, d.syncs.err
	d.mu.Unlock()
	if err != nil || !full {
		return err
	}
	return d.waitSync(context.Background(), last)
}

// put stores a shard on one of the drive's virtual disks.
func (d *drive) put(v VnodeID, s *Shard) (Epoch, error) {
	if err := d.gate.enter(); err != nil {
		return 0, err
	}
	defer d.gate.leave()
	vd := d.disks[v]
	if err := s.validate(); err != nil {
		return 0, err
	}
	if s.Off != 0 || len(s.Data) != int(s.Size) {
		return 0, fmt.Errorf("%w: shard of %d bytes put as [%d, +%d)", ErrInvalid, s.Size, s.Off, len(s.Data))
	}
	if err := d.throttle(); err != nil {
		return 0, err
	}
	k := blockKey{s.Stripe, s.Index, v}
	d.claim(k)
	defer d.unclaim(k)
	h := &blockHeader{Header: s.Header, incarnation: vd.incarnation, sums: sumUnits(s.Data, s.Unit)}
	cur, err := d.find(k)
	if err != nil {
		return 0, err
	}
	if cur != nil {
		if done, err := d.putAgain(vd, h, cur); done || err != nil {
			return d.epoch, err
		}
	}
	ext, err := d.allocate(vd, extentUnits(h.Size, h.Unit))
	if err != nil {
		return 0, err
	}
	h.start = ext.start
	if err := vd.write(h, s.Data); err != nil {
		vd.retire(ext)
		d.room.forget()
		return 0, err
	}
	d.insert(k, h, cur)
	return d.epoch, nil
}

// putAgain decides what to do about a shard that is there already: nothing (done), to
// write it anew, or to refuse because it is another one.
func (d *drive) putAgain(vd *disk, h, cur *blockHeader) (done bool, err error) {
	damaged := vd.verify(cur)
	if errors.Is(damaged, ErrUnavailable) {
		return false, damaged
	}
	same := string(sumBytes(h)) == string(sumBytes(cur))
	if damaged == nil && !same {
		return false, fmt.Errorf("%w: shard %d of stripe %s with other content", ErrExists, h.Index, h.Stripe)
	}
	old := cur.Header
	old.Written = h.Written
	return damaged == nil && old == h.Header, nil
}

// sumBytes is what two shards of the same content have in common.
func sumBytes(h *blockHeader) []byte {
	e := Encoder{}
	e.Uint32(h.Size)
	e.Uint32(h.Unit)
	for _, s := range h.sums {
		e.Uint32(s)
	}
	return e.Buf
}

// allocate finds room on the virtual disk and on the host.
func (d *drive) allocate(vd *disk, n uint32) (extent, error) {
	if err := d.room.take(d, int64(n)*unitSize); err != nil {
		return extent{}, err
	}
	if e, ok := vd.alloc(n); ok {
		return e, nil
	}
	if err := d.reclaim(vd); err != nil {
		return extent{}, err
	}
	if e, ok := vd.alloc(n); ok {
		return e, nil
	}
	return extent{}, fmt.Errorf("%w: virtual disk %s is full", ErrNoSpace, vd.path)
}

// reclaim makes deletions durable, as far as there are any on the disk, and what
// they freed ready for use.
func (d *drive) reclaim(vd *disk) error {
	d.mu.Lock()
	waiting, last := false, d.syncs.last
	for _, list := range d.pending.stripes {
		for _, c := range list {
			waiting = waiting || c.key.vnode == vd.vnode && len(c.garbage) > 0
		}
	}
	d.mu.Unlock()
	if waiting {
		if err := d.waitSync(context.Background(), last); err != nil {
			return err
		}
	}
	d.punchDisk(vd)
	return nil
}

func (d *drive) punchDisk(vd *disk) {
	if _, err := vd.punchHoles(); err != nil {
		d.log.Warn().Str("disk", vd.path).Err(err).Msg("freed space could not be given back to the host")
	}
}

// remove deletes one block; none there is no error.
func (d *drive) remove(k blockKey) error {
	if err := d.throttle(); err != nil {
		return err
	}
	d.claim(k)
	defer d.unclaim(k)
	cur, err := d.find(k)
	if err != nil || cur == nil {
		return err
	}
	d.insert(k, nil, cur)
	return nil
}

func (d *drive) deleteShard(v VnodeID, s StripeID, index uint8) error {
	if err := d.gate.enter(); err != nil {
		return err
	}
	defer d.gate.leave()
	return d.remove(blockKey{s, index, v})
}

func (d *drive) deleteStripe(s StripeID) error {
	if err := d.gate.enter(); err != nil {
		return err
	}
	defer d.gate.leave()
	list, err := d.blocksOf(s)
	if err != nil {
		return err
	}
	for _, b := range list {
		if err := d.remove(b.key); err != nil {
			return err
		}
	}
	return nil
}
