package blocks

import (
	"errors"
	"fmt"
	"time"
)

// load builds the free maps from the index, after mending what is stale.
func (d *drive) load(stale, scan map[VnodeID]bool) error {
	if len(stale) > 0 {
		if err := d.drop(stale); err != nil {
			return err
		}
		if err := d.rescan(stale, scan); err != nil {
			return err
		}
	}
	wrong, err := d.claimAll()
	if err != nil || len(wrong) == 0 {
		return err
	}
	for v := range wrong {
		d.log.Error().Str("disk", d.disks[v].path).Msg("the index contradicts itself: the disk file is read instead")
	}
	if err := d.drop(wrong); err != nil {
		return err
	}
	if err := d.rescan(wrong, wrong); err != nil {
		return err
	}
	if wrong, err = d.claimAll(); err == nil && len(wrong) > 0 {
		err = fmt.Errorf("%w: index of %s contradicts the disk files", ErrCorrupt, d.conf.Dir)
	}
	return err
}

// claimAll marks what the index names as used, and returns the disks for
// which that is not possible.
func (d *drive) claimAll() (map[VnodeID]bool, error) {
	for _, vd := range d.disks {
		vd.reset()
	}
	wrong := map[VnodeID]bool{}
	err := d.index.Scan([]byte{keyBlock}, []byte{keyBlock + 1}, func(key, value []byte) bool {
		k, ok := decodeBlockKey(key)
		vd := d.disks[k.vnode]
		if !ok || vd == nil {
			return true
		}
		h, err := d.decodeEntry(k, value)
		if err != nil || h.incarnation != vd.incarnation || !vd.free.claim(h.extent()) {
			wrong[k.vnode] = true
			return true
		}
		vd.shards++
		return true
	})
	if err != nil {
		return nil, d.indexFailed(err)
	}
	return wrong, nil
}

// drop removes the index's entries of some virtual nodes, and its record of
// their disks first.
func (d *drive) drop(vnodes map[VnodeID]bool) error {
	var batch []IndexChange
	for v := range vnodes {
		batch = append(batch, IndexChange{Key: keyDisk(v), Delete: true})
	}
	var failed error
	flush := func() {
		if failed == nil {
			failed = d.index.Apply(batch, false)
		}
		batch = batch[:0]
	}
	err := d.index.Scan([]byte{keyBlock}, []byte{keyBlock + 1}, func(key, _ []byte) bool {
		if k, ok := decodeBlockKey(key); !ok || vnodes[k.vnode] {
			batch = append(batch, IndexChange{Key: append([]byte(nil), key...), Delete: true})
		}
		if len(batch) >= indexBatch {
			flush()
		}
		return failed == nil
	})
	flush()
	if err = errors.Join(err, failed); err != nil {
		return d.indexFailed(err)
	}
	return nil
}

// rescan writes the entries of disks that are to be read, and then the
// records of all that are stale.
func (d *drive) rescan(stale, scan map[VnodeID]bool) error {
	var last []IndexChange
	for v := range stale {
		vd := d.disks[v]
		if scan[v] {
			if err := d.rebuild(vd); err != nil {
				return err
			}
		}
		s := superblock{ring: d.ring, peer: d.peer, vnode: v, incarnation: vd.incarnation, capacity: vd.capacity}
		last = append(last, IndexChange{Key: keyDisk(v), Value: s.encode()[:superSize]})
	}
	if err := d.index.Apply(last, true); err != nil {
		return d.indexFailed(err)
	}
	return nil
}

// rebuild reads a disk file and makes an index entry for each whole block.
func (d *drive) rebuild(vd *disk) error {
	begin, found := time.Now(), 0
	if err := vd.file.Sync(); err != nil {
		return fmt.Errorf("sync disk %s: %w", vd.path, hostError(err))
	}
	var batch []IndexChange
	flush := func() error {
		err := d.index.Apply(batch, false)
		batch = batch[:0]
		if err != nil {
			return d.indexFailed(err)
		}
		return nil
	}
	damaged, err := vd.scan(func(h *blockHeader) error {
		found++
		k := blockKey{h.Stripe, h.Index, vd.vnode}
		batch = append(batch, IndexChange{Key: k.encode(), Value: h.append(nil)})
		if len(batch) >= indexBatch {
			return flush()
		}
		return nil
	})
	if err == nil {
		err = flush()
	}
	if err != nil {
		return err
	}
	d.log.Warn().Str("disk", vd.path).Int("blocks", found).Int("damaged", damaged).Dur("took", time.Since(begin)).Msg("index made anew from the disk file")
	return nil
}
