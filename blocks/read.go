package blocks

import (
	"errors"
	"fmt"
)

// block is an entry of the index: a key and what lies there.
type block struct {
	key blockKey
	h   *blockHeader
}

// location describes a block to others.
func (d *drive) location(b block) Location {
	e := b.h.extent()
	d.mu.Lock()
	start, bad := d.bad[b.key]
	d.mu.Unlock()
	return Location{
		Vnode: b.key.vnode, Header: b.h.Header, Path: d.disks[b.key.vnode].path,
		Offset: e.offset(), Length: e.length(), Damaged: bad && start == b.h.start,
	}
}

// blocksOf returns all blocks of the stripe, by shard index.
func (d *drive) blocksOf(s StripeID) ([]block, error) {
	prefix := stripePrefix(s)
	list, _, err := d.page(prefix, prefixEnd(prefix), 1<<16)
	return list, err
}

// page returns up to limit blocks of the keys from <= key < to, in order, and the key to
// go on from, nil at the end. It is consistent block by block.
func (d *drive) page(from, to []byte, limit int) (list []block, next []byte, err error) {
	d.mu.Lock()
	changes := d.pending.within(from, to)
	d.mu.Unlock()
	var bad error
	add := func(b block) bool {
		if d.disks[b.key.vnode] == nil || b.h == nil {
			return true // deleted, or of a virtual node that is not here any more
		}
		if len(list) == limit {
			next = b.key.encode()
			return false
		}
		list = append(list, b)
		return true
	}
	err = d.index.Scan(from, to, func(key, value []byte) bool {
		k, ok := decodeBlockKey(key)
		if !ok {
			bad = fmt.Errorf("%w: malformed key", ErrCorrupt)
			return false
		}
		for len(changes) > 0 && changes[0].key.compare(&k) < 0 {
			if !add(block{changes[0].key, changes[0].h}) {
				return false
			}
			changes = changes[1:]
		}
		if len(changes) > 0 && changes[0].key == k {
			b := block{k, changes[0].h}
			changes = changes[1:]
			return add(b)
		}
		var h *blockHeader
		if h, bad = d.decodeEntry(k, value); bad != nil {
			return false
		}
		return add(block{k, h})
	})
	for _, c := range changes {
		if next != nil || err != nil || bad != nil || !add(block{c.key, c.h}) {
			break
		}
	}
	if err := errors.Join(err, bad); err != nil {
		return nil, nil, d.indexFailed(err)
	}
	return list, next, nil
}

// get reads a range of a shard, wherever on the drive it lies, on the preferred
// virtual node first.
func (d *drive) get(prefer VnodeID, s StripeID, index uint8, off, n uint32) (Shard, error) {
	if err := d.gate.enter(); err != nil {
		return Shard{}, err
	}
	defer d.gate.leave()
	e := d.eras.enter()
	defer d.eras.leave(e)
	failed := fmt.Errorf("%w: shard %d of stripe %s", ErrNotFound, index, s)
	if d.disks[prefer] != nil {
		k := blockKey{s, index, prefer}
		h, err := d.find(k)
		if err != nil {
			return Shard{}, err
		}
		if h != nil {
			shard, err := d.read(block{k, h}, off, n)
			if !errors.Is(err, ErrCorrupt) {
				return shard, err
			}
			failed = err
		}
	}
	prefix := append(stripePrefix(s), index)
	list, _, err := d.page(prefix, prefixEnd(prefix), 1<<16)
	if err != nil {
		return Shard{}, err
	}
	for _, b := range list {
		if b.key.vnode == prefer {
			continue
		}
		shard, err := d.read(b, off, n)
		if !errors.Is(err, ErrCorrupt) {
			return shard, err
		}
		failed = err
	}
	return Shard{}, failed
}

// read reads a range of a block. The caller is in an era.
func (d *drive) read(b block, off, n uint32) (Shard, error) {
	size := b.h.Size
	if off > size || n > size-off {
		return Shard{}, fmt.Errorf("%w: bytes [%d, +%d) of shard %d of stripe %s, which has %d", ErrInvalid, off, n, b.h.Index, b.h.Stripe, size)
	}
	if n == 0 {
		n = size - off
	}
	data, err := d.disks[b.key.vnode].readRange(b.h, off, n)
	if errors.Is(err, ErrCorrupt) {
		d.damaged(b, err)
	}
	if err != nil {
		return Shard{}, fmt.Errorf("shard %d of stripe %s: %w", b.h.Index, b.h.Stripe, err)
	}
	return Shard{Header: b.h.Header, Off: off, Data: data}, nil
}

// damaged notes that a block is corrupt and tells who wants to know, once.
func (d *drive) damaged(b block, err error) {
	d.mu.Lock()
	start, known := d.bad[b.key]
	known = known && start == b.h.start
	if len(d.bad) < maxDamaged {
		d.bad[b.key] = b.h.start
	}
	d.mu.Unlock()
	if known {
		return
	}
	loc := d.location(b)
	d.log.Error().Err(err).Str("vnode", loc.Vnode.Short()).Str("stripe", b.h.Stripe.String()).Uint8("shard", b.h.Index).
		Str("disk", loc.Path).Int64("offset", loc.Offset).Msg("damaged block")
	d.onDamage(loc)
}

// maxDamaged bounds the damaged blocks that a drive remembers.
const maxDamaged = 1 << 16

// locate returns where the shards of a stripe lie.
func (d *drive) locate(s StripeID) ([]Location, error) {
	if err := d.gate.enter(); err != nil {
		return nil, err
	}
	defer d.gate.leave()
	list, err := d.blocksOf(s)
	if err != nil {
		return nil, err
	}
	locs := make([]Location, len(list))
	for i, b := range list {
		locs[i] = d.location(b)
	}
	return locs, nil
}

// verify reads a whole block from the medium. ErrNotFound: it is not there any more.
func (d *drive) verify(loc *Location) error {
	if err := d.gate.enter(); err != nil {
		return err
	}
	defer d.gate.leave()
	e := d.eras.enter()
	defer d.eras.leave(e)
	k := blockKey{loc.Header.Stripe, loc.Header.Index, loc.Vnode}
	h, err := d.find(k)
	if err != nil {
		return err
	}
	if h == nil {
		return fmt.Errorf("%w: shard %d of stripe %s", ErrNotFound, k.index, k.stripe)
	}
	err = d.disks[k.vnode].verify(h)
	switch {
	case errors.Is(err, ErrCorrupt):
		d.damaged(block{k, h}, err)
	case err == nil: // a read may have failed that does not now
		d.mu.Lock()
		if d.bad[k] == h.start {
			delete(d.bad, k)
		}
		d.mu.Unlock()
	}
	return err
}

// usage adds up the drive's virtual disks.
func (d *drive) usage() Usage {
	var u Usage
	for _, vd := range d.disks {
		v := vd.usage()
		u.add(v)
	}
	d.mu.Lock()
	u.Damaged = int64(len(d.bad))
	d.mu.Unlock()
	free, total, err := d.fs.Space(d.conf.Dir)
	if err != nil {
		d.log.Warn().Err(err).Msg("free space of the drive is not known")
		return u
	}
	u.HostFree, u.HostTotal = free, total
	u.Free = max(0, min(u.Free, free-d.conf.reserve(total)))
	return u
}

// usage of one virtual disk: its superblocks count as used.
func (d *disk) usage() Usage {
	d.mu.Lock()
	defer d.mu.Unlock()
	used := int64(d.free.used)
	for _, e := range d.punch {
		used -= int64(e.n)
	}
	return Usage{Capacity: d.capacity, Used: used * unitSize, Free: d.capacity - used*unitSize, Shards: d.shards}
}
