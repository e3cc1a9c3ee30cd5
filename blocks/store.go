package blocks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
)

// Store keeps the shards of a peer: its drives, and the virtual disks on them. All
// methods may be called by many goroutines at the same time.
type Store struct {
	drives []*drive
	where  map[VnodeID]int // the drive of each virtual node
	kv     KV
}

// Open opens all drives and virtual disks of the configuration, and makes those that do not
// exist. What was lost is made anew as far as possible and logged:
// superblocks from their copies, an index from the disk files, a missing disk file as an
// empty disk of a new incarnation. Run must be running for deletions to become durable
// and space to go back to the host by themselves; all else works without.
func Open(c Config) (*Store, error) {
	c.fill()
	if err := c.Validate(); err != nil {
		return nil, err
	}
	s := &Store{where: map[VnodeID]int{}}
	for i := range c.Drives {
		d, err := openDrive(&c, i)
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		s.drives = append(s.drives, d)
	}
	for _, v := range c.Vnodes {
		s.where[v.ID] = v.Drive
	}
	s.kv.d = s.drives[0]
	return s, nil
}

// Run does the housekeeping until ctx ends.
func (s *Store) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, d := range s.drives {
		wg.Go(func() { d.run(ctx) })
	}
	wg.Wait()
}

// Close waits for running calls, makes everything durable and closes the files.
func (s *Store) Close() error {
	var errs []error
	for _, d := range s.drives {
		errs = append(errs, d.close())
	}
	return errors.Join(errs...)
}

// Registers returns the store of the peer's registers. It lies on the first drive.
func (s *Store) Registers() *KV { return &s.kv }

// Epochs returns the epoch of each drive: the same as Put answers with.
func (s *Store) Epochs() []Epoch {
	list := make([]Epoch, len(s.drives))
	for i, d := range s.drives {
		list[i] = d.epoch
	}
	return list
}

// Drive returns the number of the drive that the virtual node's disk lies on.
func (s *Store) Drive(v VnodeID) (int, bool) {
	n, ok := s.where[v]
	return n, ok
}

// Incarnation is drawn at random when a virtual disk is made: it is another one
// after the disk file was lost. 0: there is no such virtual node.
func (s *Store) Incarnation(v VnodeID) uint64 {
	if n, ok := s.where[v]; ok {
		return s.drives[n].disks[v].incarnation
	}
	return 0
}

func (s *Store) drive(v VnodeID) (*drive, error) {
	n, ok := s.where[v]
	if !ok {
		return nil, fmt.Errorf("%w: virtual node %s is not on this peer", ErrNotOwner, v)
	}
	return s.drives[n], nil
}

// Put stores a whole shard on the virtual node's disk. It is durable after Sync of the
// drive with the epoch returned. The same shard again is no error, and repairs
// the block if it is damaged. ErrNoSpace: the virtual disk or its host drive is full.
// ErrExists: there is a shard of that name with other content. The data is not kept.
func (s *Store) Put(v VnodeID, shard Shard) (Epoch, error) {
	d, err := s.drive(v)
	if err != nil {
		return 0, err
	}
	return d.put(v, &shard)
}

// Get returns payload bytes [off, off+n) of a shard, n = 0 for all from off, after
// verifying the checksums of the units touched. All virtual nodes of the peer
// are searched, prefer first. ErrNotFound: the peer has no such shard.
// ErrCorrupt: it has, and none is good. The data belongs to the caller.
func (s *Store) Get(prefer VnodeID, stripe StripeID, index int, off, n uint32) (Shard, error) {
	if index < 0 || index > 255 {
		return Shard{}, fmt.Errorf("%w: shard index %d", ErrInvalid, index)
	}
	first, ok := s.where[prefer]
	if !ok {
		first = 0
	}
	var failed error
	for i := range s.drives {
		shard, err := s.drives[(first+i)%len(s.drives)].get(prefer, stripe, uint8(index), off, n)
		if err == nil || errors.Is(err, ErrInvalid) {
			return shard, err
		}
		if failed == nil || errors.Is(failed, ErrNotFound) {
			failed = err
		}
	}
	return Shard{}, failed
}

// Have returns the blocks of the stripe, except those known to be damaged.
func (s *Store) Have(stripe StripeID) ([]Location, error) {
	all, err := s.Locate(stripe)
	good := all[:0]
	for _, l := range all {
		if !l.Damaged {
			good = append(good, l)
		}
	}
	return good, err
}

// Locate returns the blocks of the stripe, damaged ones too.
func (s *Store) Locate(stripe StripeID) ([]Location, error) {
	var all []Location
	for _, d := range s.drives {
		list, err := d.locate(stripe)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	return all, nil
}

// Delete removes all blocks of the stripe. It is durable after the next
// Sync of anything, or by Run within a second or two.
func (s *Store) Delete(stripe StripeID) error {
	var errs []error
	for _, d := range s.drives {
		errs = append(errs, d.deleteStripe(stripe))
	}
	return errors.Join(errs...)
}

// DeleteShard removes one block; none there is no error.
func (s *Store) DeleteShard(v VnodeID, stripe StripeID, index int) error {
	d, err := s.drive(v)
	if err != nil {
		return err
	}
	if index < 0 || index > 255 {
		return fmt.Errorf("%w: shard index %d", ErrInvalid, index)
	}
	return d.deleteShard(v, stripe, uint8(index))
}

// Sync makes durable what was put on the drive under the epoch, and all
// deletions before it. Calls at the same time share one round. ErrLost: the drive was
// reopened since. ErrUnavailable: the drive failed; what was not
// synced must be put elsewhere.
//
// The epoch names the drive: it is random, and no other drive has it. What others believe of the number of
// a virtual node's drive may be out of date, after a drive was added; it is not relied on.
func (s *Store) Sync(ctx context.Context, drive int, epoch Epoch) error {
	for _, d := range s.drives {
		if d.epoch == epoch {
			return d.sync(ctx, epoch)
		}
	}
	return fmt.Errorf("%w: no drive has epoch %x: drive %d was reopened after the put", ErrLost, uint64(epoch), drive)
}

// Verify reads a block from the medium and checks all of it. ErrNotFound: it is not
// there any more. ErrCorrupt: it is damaged; OnDamage is told if it was not known.
func (s *Store) Verify(l Location) error {
	d, err := s.drive(l.Vnode)
	if err != nil {
		return err
	}
	return d.verify(&l)
}

// Usage adds up all drives.
func (s *Store) Usage() Usage {
	var u Usage
	for _, d := range s.drives {
		u.add(d.usage())
	}
	return u
}

// VnodeUsage is the usage of one virtual disk, without the host's figures.
func (s *Store) VnodeUsage(v VnodeID) (Usage, error) {
	d, err := s.drive(v)
	if err != nil {
		return Usage{}, err
	}
	return d.disks[v].usage(), nil
}

// scanPage is how many blocks of a drive Scan takes from the index at once.
const scanPage = 256

// cursor walks over the blocks of one drive in a range of keys.
type scanCursor struct {
	d        *drive
	list     []block
	from, to []byte // still to be read; from is nil at the end
}

// head returns the next block, without passing it; false at the end.
func (c *scanCursor) head() (block, bool, error) {
	for len(c.list) == 0 {
		if c.from == nil {
			return block{}, false, nil
		}
		err := c.d.gate.enter()
		if err == nil {
			c.list, c.from, err = c.d.page(c.from, c.to, scanPage)
			c.d.gate.leave()
		}
		if err != nil {
			return block{}, false, err
		}
	}
	return c.list[0], true, nil
}

// Scan calls fn with the blocks of all stripes in the arc (from, to] of the circle, clockwise from
// from, all blocks of a stripe together, until it returns false. from = to
// is the whole circle. It sees what is there all the while; what comes or
// goes meanwhile may be seen or not. fn may call the Store.
func (s *Store) Scan(from, to ID, fn func(Location) bool) error {
	var top ID
	for i := range top {
		top[i] = 0xff
	}
	begin := prefixEnd(stripePrefix(StripeID{from}))
	if from.Compare(to) < 0 {
		_, err := s.scanKeys(begin, prefixEnd(stripePrefix(StripeID{to})), fn)
		return err
	}
	more, err := true, error(nil)
	if from != top {
		more, err = s.scanKeys(begin, []byte{keyBlock + 1}, fn)
	}
	if err == nil && more {
		_, err = s.scanKeys([]byte{keyBlock}, prefixEnd(stripePrefix(StripeID{to})), fn)
	}
	return err
}

// scanKeys merges the drives; more is false if fn returned false.
func (s *Store) scanKeys(from, to []byte, fn func(Location) bool) (more bool, err error) {
	cursors := make([]*scanCursor, len(s.drives))
	for i, d := range s.drives {
		cursors[i] = &scanCursor{d: d, from: bytes.Clone(from), to: to}
	}
	for {
		var next *scanCursor
		var least block
		for _, c := range cursors {
			b, ok, err := c.head()
			if err != nil {
				return false, err
			}
			if ok && (next == nil || b.key.compare(&least.key) < 0) {
				next, least = c, b
			}
		}
		if next == nil {
			return true, nil
		}
		next.list = next.list[1:]
		if !fn(next.d.location(least)) {
			return false, nil
		}
	}
}
