package blocks

import (
	"cmp"
	"slices"
)

// punchHoles gives all retired extents back to the host, adjacent ones at
// once, and makes them free. It returns how many units that were, and the
// first error of the host, which costs space there and nothing else.
func (d *disk) punchHoles() (units uint32, err error) {
	d.mu.Lock()
	list := d.punch
	d.punch = nil
	d.mu.Unlock()
	if len(list) == 0 {
		return 0, nil
	}
	for _, hole := range mergeExtents(list) {
		if perr := d.file.Punch(hole.offset(), hole.length()); perr != nil && err == nil {
			err = perr
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range list {
		d.free.release(e)
		units += e.n
	}
	return units, err
}

// mergeExtents sorts extents and joins those that touch.
func mergeExtents(list []extent) []extent {
	sorted := slices.Clone(list)
	slices.SortFunc(sorted, func(a, b extent) int { return cmp.Compare(a.start, b.start) })
	merged := sorted[:1]
	for _, e := range sorted[1:] {
		if last := &merged[len(merged)-1]; last.start+last.n == e.start {
			last.n += e.n
		} else {
			merged = append(merged, e)
		}
	}
	return merged
}
