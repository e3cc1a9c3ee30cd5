package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// place is where a virtual disk lies, and how large it is.
type place struct {
	drive    int   // index of the drive
	capacity int64 // bytes
}

// layOut decides where the virtual disks of a peer lie. Those that exist stay where they are, whatever became of the
// capacity and the list of drives since they were made: what is on them is not lost by a change of the settings. New ones
// go round the drives, those with the fewest first, and share the capacity that is left.
func layOut(r *ringFile, capacity uint64, drives []string) ([]place, error) {
	found, err := findDisks(drives)
	if err != nil {
		return nil, err
	}
	n := r.vnodes(capacity)
	load, taken := make([]int, len(drives)), uint64(0)
	for number, p := range found {
		n = max(n, number+1)
		load[p.drive]++
		taken += uint64(p.capacity)
	}
	fresh := n - len(found)
	share := int64(capacity) / int64(n)
	if fresh > 0 && len(found) > 0 {
		left := capacity - min(taken, capacity)
		share = int64(min(max(left/uint64(fresh), minCapacity/minVnodes), max(r.VnodeSize, minCapacity/minVnodes)))
	}
	list := make([]place, n)
	for i := range list {
		p, ok := found[i]
		if !ok {
			p = place{i % len(drives), share}
			if len(found) > 0 {
				p.drive = leastLoaded(load)
			}
			load[p.drive]++
		}
		p.capacity = max(p.capacity, share) // a file that was cut off is to be made anew as it was
		list[i] = p
	}
	return list, nil
}

func leastLoaded(load []int) int {
	best := 0
	for i, n := range load {
		if n < load[best] {
			best = i
		}
	}
	return best
}

// findDisks looks for the disk files on all drives.
func findDisks(drives []string) (map[int]place, error) {
	found := map[int]place{}
	for drive, dir := range drives {
		for number := range maxVnodes {
			path := filepath.Join(dir, fmt.Sprintf("vnode-%02d.disk", number))
			info, err := os.Stat(path)
			if os.IsNotExist(err) {
				continue
			}
			if err != nil {
				return nil, err
			}
			if other, ok := found[number]; ok {
				return nil, fmt.Errorf("virtual disk %d is in %s and in %s: move the one away that does not belong there", number, drives[other.drive], dir)
			}
			found[number] = place{drive, info.Size()}
		}
	}
	return found, nil
}
