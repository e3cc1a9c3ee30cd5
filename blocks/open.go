package blocks

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
)

// Names in a drive's directory.
const (
	lockName   = "LOCK"
	indexName  = "index"
	brokenName = "index.broken" // made when the index is found damaged while in use
)

const storeVersion = 1

// storeRecord is what the index says of itself.
type storeRecord struct {
	incarnation uint64 // of the register store: random, made with the index
	ring        ID
	peer        PeerID
}

func (r *storeRecord) encode() []byte {
	e := Encoder{}
	e.Uint(storeVersion)
	e.Uint64(r.incarnation)
	e.ID(r.ring)
	e.ID(r.peer.ID)
	return e.Buf
}

func decodeStoreRecord(b []byte) (*storeRecord, error) {
	d := NewDecoder(b)
	if v := d.Uint(); d.Err() == nil && v != storeVersion {
		return nil, fmt.Errorf("%w: index format %d, this program knows %d: use the newer mutualfs", ErrInvalid, v, storeVersion)
	}
	r := &storeRecord{incarnation: d.Uint64(), ring: d.ID(), peer: PeerID{d.ID()}}
	return r, d.Done()
}

// errIndexDamaged says that the index was found damaged and marked, so that the next
// opening makes it anew.
var errIndexDamaged = errors.New("the index is damaged")

// openDrive opens drive number n of the configuration with all its virtual disks. An index that
// turns out to be damaged on the way is made anew.
func openDrive(c *Config, n int) (*drive, error) {
	d, err := tryDrive(c, n)
	if errors.Is(err, errIndexDamaged) {
		d, err = tryDrive(c, n)
	}
	return d, err
}

func tryDrive(c *Config, n int) (_ *drive, err error) {
	conf := c.Drives[n]
	d := &drive{
		conf: conf, fs: c.FS, ring: c.Ring, peer: c.Peer, onDamage: c.OnDamage, log: c.Log.With().Str("drive", conf.Dir).Logger(),
		disks: map[VnodeID]*disk{}, gate: newGate(), eras: newEras(), pending: pending{stripes: map[StripeID][]*change{}},
		claims: map[blockKey]chan struct{}{}, bad: map[blockKey]uint32{}, dirty: map[*disk]bool{},
	}
	if err := d.fs.MkdirAll(conf.Dir); err != nil {
		return nil, fmt.Errorf("drive %s: %w", conf.Dir, hostError(err))
	}
	if d.lock, err = d.fs.Lock(filepath.Join(conf.Dir, lockName)); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			d.closeFiles()
		}
	}()
	epoch, err := randomUint64(c.Rand)
	if err != nil {
		return nil, err
	}
	d.epoch = Epoch(epoch)
	if err := d.openIndex(c); err != nil {
		return nil, err
	}
	stale := map[VnodeID]bool{}
	scan := map[VnodeID]bool{}
	for _, v := range c.Vnodes {
		if v.Drive != n {
			continue
		}
		if err := d.openVnode(c, v, stale, scan); err != nil {
			return nil, err
		}
	}
	if d.fresh != nil {
		if err := d.index.Apply([]IndexChange{{Key: keyStore, Value: d.fresh.encode()}}, true); err != nil {
			return nil, d.indexFailed(err)
		}
	}
	if err := d.load(stale, scan); err != nil {
		return nil, err
	}
	return d, nil
}

func randomUint64(r io.Reader) (uint64, error) {
	var b [8]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, fmt.Errorf("draw a random number: %w", err)
	}
	return binary.BigEndian.Uint64(b[:]), nil
}

// openIndex opens the index, or starts a new one if it cannot be used.
func (d *drive) openIndex(c *Config) error {
	dir, broken := filepath.Join(d.conf.Dir, indexName), filepath.Join(d.conf.Dir, brokenName)
	marked, err := d.fs.Exists(broken)
	if err != nil {
		return fmt.Errorf("drive %s: %w", d.conf.Dir, hostError(err))
	}
	if !marked {
		if err = d.tryIndex(c, dir); !errors.Is(err, ErrCorrupt) {
			return err
		}
	}
	d.log.Error().Err(err).Msg("the index is damaged: it is set aside as index.damaged and made anew from the disk files; the registers of this peer are lost")
	d.closeIndex()
	if err := c.Indexes.SetAside(dir); err != nil {
		return fmt.Errorf("set aside index %s: %w", dir, hostError(err))
	}
	if err := d.tryIndex(c, dir); err != nil {
		return err
	}
	if marked {
		if err := errors.Join(d.fs.Remove(broken), d.fs.SyncDir(d.conf.Dir)); err != nil {
			return fmt.Errorf("drive %s: %w", d.conf.Dir, hostError(err))
		}
	}
	return nil
}

// tryIndex opens the index and reads, or prepares, its record of itself. A new record
// is written only when the disks have turned out to be ours.
func (d *drive) tryIndex(c *Config, dir string) (err error) {
	if d.index, err = c.Indexes.Open(dir); err != nil {
		return fmt.Errorf("open index %s: %w", dir, err)
	}
	v, err := d.index.Get(keyStore)
	if errors.Is(err, ErrNotFound) {
		r := storeRecord{ring: c.Ring, peer: c.Peer}
		if r.incarnation, err = randomUint64(c.Rand); err != nil {
			return err
		}
		d.regs, d.fresh = r.incarnation, &r
		return nil
	}
	if err != nil {
		return fmt.Errorf("read index %s: %w", dir, err)
	}
	r, err := decodeStoreRecord(v)
	if err != nil {
		return fmt.Errorf("index %s: %w", dir, err)
	}
	if r.ring != c.Ring || r.peer != c.Peer {
		return fmt.Errorf("%w: directory %s holds data of peer %s of ring %s, this is peer %s of ring %s: use the right data directory, or an empty one",
			ErrInvalid, d.conf.Dir, r.peer.Short(), r.ring.Short(), c.Peer.Short(), c.Ring.Short())
	}
	d.regs = r.incarnation
	return nil
}

func (d *drive) closeIndex() {
	if d.index != nil {
		if err := d.index.Close(); err != nil {
			d.log.Warn().Err(err).Msg("close index")
		}
		d.index = nil
	}
}

// indexFailed notes that the index turned out to be damaged, so that the next opening makes
// it anew, and classes the error.
func (d *drive) indexFailed(err error) error {
	if !errors.Is(err, ErrCorrupt) {
		return fmt.Errorf("%w: index of %s: %w", ErrUnavailable, d.conf.Dir, err)
	}
	if f, cerr := d.fs.Create(filepath.Join(d.conf.Dir, brokenName)); cerr == nil {
		f.Close()
		d.log.Error().Err(err).Msg("the index is damaged: it will be made anew when the drive is opened again")
		if serr := d.fs.SyncDir(d.conf.Dir); serr != nil {
			d.log.Warn().Err(serr).Msg("sync directory")
		}
	}
	return fmt.Errorf("%w: %w, restart to have that of %s made anew: %v", ErrUnavailable, errIndexDamaged, d.conf.Dir, err)
}

// openVnode opens one virtual disk. It is noted in stale if the index's entries for it are
// not to be believed, and in scan if the disk file must be read instead.
func (d *drive) openVnode(c *Config, v VnodeConfig, stale, scan map[VnodeID]bool) error {
	var known *superblock
	value, err := d.index.Get(keyDisk(v.ID))
	if err == nil {
		known, err = decodeSuperblock(value)
	}
	if err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrCorrupt) {
		return fmt.Errorf("index of %s: %w", d.conf.Dir, err)
	}
	want := superblock{ring: c.Ring, peer: c.Peer, vnode: v.ID, capacity: v.Capacity / unitSize * unitSize}
	if want.incarnation, err = randomUint64(c.Rand); err != nil {
		return err
	}
	path := filepath.Join(d.conf.Dir, fmt.Sprintf("vnode-%02d.disk", v.Number))
	vd, how, err := openDisk(d.fs, path, d.conf.Dir, want, known, &d.log)
	if err != nil {
		return err
	}
	vd.buffer = c.Buffer
	d.disks[v.ID] = vd
	if vd.capacity != want.capacity {
		d.log.Warn().Str("disk", path).Int64("capacity", vd.capacity).Int64("configured", want.capacity).Msg("the capacity of a disk is fixed when it is made: kept")
	}
	if known != nil && known.incarnation == vd.incarnation {
		return nil
	}
	if known != nil {
		d.log.Error().Str("disk", path).Msg("the disk file is not the one that the index knows: its entries are dropped")
	}
	stale[v.ID] = true
	if how == diskKept {
		scan[v.ID] = true
	}
	return nil
}
