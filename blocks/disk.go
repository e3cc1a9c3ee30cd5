package blocks

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"syscall"

	"github.com/rs/zerolog"
)

// writeBackFrom is the size from which a block is sent to the medium at once.
const writeBackFrom = 64 << 10

// disk is one virtual disk: its file and which of its units are free.
type disk struct {
	vnode       VnodeID
	path        string
	file        File
	incarnation uint64
	capacity    int64
	buffer      func(n int) []byte // for what is read

	mu     sync.Mutex
	free   *freeMap
	punch  []extent // nobody's any more, not yet given back to the host
	shards int64
}

// fate says how a disk file was found.
type fate int

const (
	diskKept fate = iota // it was there
	diskMade             // it was not, or not to be used
)

// openDisk opens the disk file at path, or makes it. want says whose it must be;
// its incarnation is used if a file is made. known is what the index says of
// the disk, nil for nothing: a third copy of the superblock.
func openDisk(fsys FS, path, dir string, want superblock, known *superblock, log *zerolog.Logger) (*disk, fate, error) {
	f, err := fsys.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return makeDisk(fsys, path, dir, want)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("open disk %s: %w", path, err)
	}
	s, err := readSuperblocks(f, path, known, log)
	if errors.Is(err, ErrCorrupt) {
		log.Error().Str("disk", path).Err(err).Msg("both superblocks are lost: disk set aside as .damaged, starting an empty one")
		f.Close()
		if err := fsys.Rename(path, path+".damaged"); err != nil {
			return nil, 0, fmt.Errorf("set aside disk %s: %w", path, err)
		}
		return makeDisk(fsys, path, dir, want)
	}
	if err == nil {
		err = s.check(path, want)
	}
	if err == nil {
		err = repairSuperblocks(f, path, s, log)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return newDisk(path, f, s), diskKept, nil
}

func newDisk(path string, f File, s *superblock) *disk {
	d := &disk{vnode: s.vnode, path: path, file: f, incarnation: s.incarnation, capacity: s.capacity}
	d.reset()
	return d
}

// reset makes all units free but those of the superblocks.
func (d *disk) reset() {
	units := uint32(d.capacity / unitSize)
	d.free = newFreeMap(units)
	d.free.claim(extent{0, 1})
	d.free.claim(extent{units - 1, 1})
	d.shards, d.punch = 0, nil
}

func makeDisk(fsys FS, path, dir string, s superblock) (*disk, fate, error) {
	f, err := fsys.Create(path)
	if err != nil {
		return nil, 0, fmt.Errorf("make disk %s: %w", path, err)
	}
	unit := s.encode()
	err = errors.Join(f.Truncate(s.capacity), f.WriteVec([][]byte{unit}, 0),
		f.WriteVec([][]byte{unit}, s.capacity-unitSize), f.Sync(), fsys.SyncDir(dir))
	if err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("make disk %s: %w", path, hostError(err))
	}
	return newDisk(path, f, &s), diskMade, nil
}

// check says why a disk is not the one wanted.
func (s *superblock) check(path string, want superblock) error {
	what, has, wants := "", "", ""
	switch {
	case s.ring != want.ring:
		what, has, wants = "ring", s.ring.Short(), want.ring.Short()
	case s.peer != want.peer:
		what, has, wants = "peer", s.peer.Short(), want.peer.Short()
	case s.vnode != want.vnode:
		what, has, wants = "virtual node", s.vnode.Short(), want.vnode.Short()
	default:
		return nil
	}
	return fmt.Errorf("%w: disk %s belongs to %s %s, not to %s: use the right data directory, or move the file away to start with an empty disk",
		ErrInvalid, path, what, has, wants)
}

// readSuperblocks returns the first good copy: at the begin, at the end, in the index.
func readSuperblocks(f File, path string, known *superblock, log *zerolog.Logger) (*superblock, error) {
	unit := make([]byte, unitSize)
	read := func(off int64) (*superblock, error) {
		if _, err := f.ReadAt(unit, off); err != nil && err != io.EOF {
			log.Error().Str("disk", path).Err(err).Msg("superblock unreadable")
			return nil, ErrCorrupt
		}
		return decodeSuperblock(unit)
	}
	s, err := read(0)
	if !errors.Is(err, ErrCorrupt) {
		return s, err
	}
	size, serr := f.Size()
	if serr != nil {
		return nil, fmt.Errorf("size of disk %s: %w", path, serr)
	}
	if size >= 2*unitSize {
		clear(unit)
		if s, err = read(size/unitSize*unitSize - unitSize); !errors.Is(err, ErrCorrupt) {
			return s, err
		}
	}
	if known != nil {
		return known, nil
	}
	return nil, fmt.Errorf("%w: disk %s has no superblock", ErrCorrupt, path)
}

// repairSuperblocks gives the file its size and both copies of the superblock.
func repairSuperblocks(f File, path string, s *superblock, log *zerolog.Logger) error {
	size, err := f.Size()
	if err != nil {
		return fmt.Errorf("size of disk %s: %w", path, err)
	}
	changed := size != s.capacity
	if changed {
		log.Warn().Str("disk", path).Int64("size", size).Int64("capacity", s.capacity).Msg("disk file has the wrong size: corrected, what was cut off is damaged")
		err = f.Truncate(s.capacity)
	}
	want, unit := s.encode(), make([]byte, unitSize)
	for _, off := range []int64{0, s.capacity - unitSize} {
		if err != nil {
			break
		}
		clear(unit)
		if _, rerr := f.ReadAt(unit, off); rerr == nil && string(unit) == string(want) {
			continue
		}
		log.Warn().Str("disk", path).Int64("offset", off).Msg("superblock repaired from its copy")
		changed, err = true, f.WriteVec([][]byte{want}, off)
	}
	if err == nil && changed {
		err = f.Sync()
	}
	if err != nil {
		return fmt.Errorf("repair disk %s: %w", path, hostError(err))
	}
	return nil
}

// hostError gives an error of the host its class.
func hostError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

var headerBuffers = sync.Pool{New: func() any { b := make([]byte, 0, unitSize); return &b }}

var zeros [unitSize]byte

// write stores a block in its extent, not durably.
func (d *disk) write(h *blockHeader, data []byte) error {
	buf := headerBuffers.Get().(*[]byte)
	defer headerBuffers.Put(buf)
	head := h.append((*buf)[:0])
	head = append(head, zeros[:int(headerSpace(uint32(len(h.sums))))-len(head)]...)
	*buf = head
	e := h.extent()
	tail := int(e.length()) - len(head) - len(data)
	if err := d.file.WriteVec([][]byte{head, data, zeros[:tail]}, e.offset()); err != nil {
		return fmt.Errorf("write block to %s: %w", d.path, hostError(err))
	}
	if e.length() >= writeBackFrom {
		d.file.WriteBack(e.offset(), e.length())
	}
	return nil
}

// readRange returns payload bytes [off, off+n) after verifying all units touched.
// Every failure of the medium is ErrCorrupt.
func (d *disk) readRange(h *blockHeader, off, n uint32) ([]byte, error) {
	first, end := off/h.Unit, (uint64(off)+uint64(n)+uint64(h.Unit)-1)/uint64(h.Unit)
	from := uint64(first) * uint64(h.Unit)
	to := min(end*uint64(h.Unit), uint64(h.Size))
	buf := d.buffer(int(to - from))
	if _, err := d.file.ReadAt(buf, h.payloadAt()+int64(from)); err != nil {
		if errors.Is(err, fs.ErrClosed) {
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		return nil, fmt.Errorf("%w: read block of %s at %d: %w", ErrCorrupt, d.path, h.extent().offset(), err)
	}
	for i, rest := first, buf; len(rest) > 0; i++ {
		k := min(int(h.Unit), len(rest))
		if checksum(rest[:k]) != h.sums[i] {
			return nil, fmt.Errorf("%w: unit %d of the block of %s at %d", ErrCorrupt, i, d.path, h.extent().offset())
		}
		rest = rest[k:]
	}
	at := uint64(off) - from
	if at == 0 && uint64(n) == uint64(len(buf)) {
		return buf, nil // whole: it can be used again
	}
	return buf[at : at+uint64(n) : at+uint64(n)], nil
}

// readHeader reads and checks the header of the block that begins at unit start.
func (d *disk) readHeader(start uint32) (*blockHeader, error) {
	buf := make([]byte, unitSize)
	off := int64(start) * unitSize
	if _, err := d.file.ReadAt(buf, off); err != nil && err != io.EOF {
		return nil, fmt.Errorf("%w: read block header of %s at %d: %w", ErrCorrupt, d.path, off, err)
	}
	if n, ok := peekUnits(buf); ok && headerSpace(n) > unitSize {
		buf = make([]byte, headerSpace(n))
		if _, err := d.file.ReadAt(buf, off); err != nil {
			return nil, fmt.Errorf("%w: read block header of %s at %d: %w", ErrCorrupt, d.path, off, err)
		}
	}
	h, err := decodeHeader(buf)
	if err == nil && (h.incarnation != d.incarnation || h.start != start) {
		err = fmt.Errorf("%w: block header of another place", ErrCorrupt)
	}
	if err != nil {
		return nil, fmt.Errorf("%s at %d: %w", d.path, off, err)
	}
	return h, nil
}

// verify reads the whole block from the medium and compares it with h.
func (d *disk) verify(h *blockHeader) error {
	e := h.extent()
	d.file.Drop(e.offset(), e.length())
	got, err := d.readHeader(h.start)
	if err != nil {
		return err
	}
	if string(got.append(nil)) != string(h.append(nil)) {
		return fmt.Errorf("%w: %s at %d holds another block than the index says", ErrCorrupt, d.path, e.offset())
	}
	_, err = d.readRange(h, 0, h.Size)
	return err
}

// scan calls fn with every whole block of the disk file, in the order of
// their place, and counts what looked like one and was damaged.
func (d *disk) scan(fn func(*blockHeader) error) (damaged int, err error) {
	for unit := uint32(1); int64(unit) < d.capacity/unitSize-1; {
		off, err := d.file.NextData(int64(unit) * unitSize)
		if err == io.EOF {
			break
		}
		if err != nil {
			return damaged, fmt.Errorf("scan disk %s: %w", d.path, err)
		}
		unit = max(unit, uint32(off/unitSize))
		h, err := d.readHeader(unit)
		if err == nil {
			_, err = d.readRange(h, 0, h.Size)
			if err != nil {
				damaged++
			}
		}
		if err != nil || !d.free.inside(h.extent()) {
			unit++
			continue
		}
		if err := fn(h); err != nil {
			return damaged, err
		}
		unit += h.extent().n
	}
	return damaged, nil
}

// alloc takes an extent of n units.
func (d *disk) alloc(n uint32) (extent, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.free.alloc(n)
}

// retire takes an extent that nobody needs any more; it is free after the next punchHoles.
func (d *disk) retire(e extent) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.punch = append(d.punch, e)
}
