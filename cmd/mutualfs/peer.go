package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/blocks/index"
	"github.com/mutualfs/mutualfs/fs/locks"
	"github.com/mutualfs/mutualfs/fs/tree"
	"github.com/mutualfs/mutualfs/mux"
	"github.com/mutualfs/mutualfs/overlay"
	"github.com/mutualfs/mutualfs/overlay/register"
	"github.com/mutualfs/mutualfs/overlay/store"
	"github.com/mutualfs/mutualfs/parity"
)

// peer is a data directory at work: all rooms but fs, wired.
type peer struct {
	dir *dataDir
	log zerolog.Logger

	lock      *os.File
	control   net.Listener
	disks     *blocks.Store // nil: a client
	vnodes    int           // virtual disks of disks
	mux       *mux.Mux
	ring      *overlay.Peer
	shards    *store.Service
	registers *register.Service
	stripes   *parity.Store
	volume    atomic.Pointer[volume] // nil: no mount
	opened    atomic.Pointer[volume] // from before its journal is replayed until it is stored; nil: none
}

// lockDataDir keeps a second process out of a data directory.
func lockDataDir(path string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(path, "LOCK"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		pid := make([]byte, 20)
		n, _ := f.ReadAt(pid, 0)
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s is in use by another mutualfs process (%s): one process serves a data directory", path, trimLine(pid[:n]))
		}
		return nil, err
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt(fmt.Appendf(nil, "pid %d\n", os.Getpid()), 0)
	}
	return f, err
}

// newPeer opens everything that can be refused (lock, port, disks) and starts nothing.
func newPeer(d *dataDir, log zerolog.Logger, mount bool) (p *peer, err error) {
	p = &peer{dir: d, log: log}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
			p = nil
		}
	}()
	if p.lock, err = lockDataDir(d.path); err != nil {
		return p, err
	}
	id, err := mux.LoadIdentity(d.file("peer.key"), rand.Reader)
	if err != nil {
		return p, err
	}
	if err := p.openDisks(blocks.PeerID{ID: id.ID()}); err != nil {
		return p, err
	}
	if err := p.openRing(id, mount); err != nil {
		return p, err
	}
	p.control, err = listenControl(d.path)
	return p, err
}

// drives are the directories of the peer's drives.
func (p *peer) drives() []string {
	return append([]string{p.dir.file("disk")}, p.dir.config.Drives...)
}

func (p *peer) openDisks(self blocks.PeerID) error {
	c := p.dir.config
	if c.Capacity == 0 {
		return nil
	}
	cfg := blocks.Config{
		Ring: p.dir.ring.Ring, Peer: self, Indexes: index.Pebble{Log: &p.log}, Rand: rand.Reader, Log: &p.log, Buffer: mux.Buffer,
		OnDamage: func(l blocks.Location) { p.shards.OnDamage(l.Header.Stripe) },
	}
	for _, dir := range p.drives() {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		reserve := float64(c.Reserve) / 100
		if reserve == 0 {
			reserve = -1
		}
		cfg.Drives = append(cfg.Drives, blocks.DriveConfig{Dir: dir, Reserve: reserve})
	}
	list, err := layOut(&p.dir.ring, uint64(c.Capacity), p.drives())
	if err != nil {
		return err
	}
	p.vnodes = len(list)
	for i, v := range list {
		cfg.Vnodes = append(cfg.Vnodes, blocks.VnodeConfig{
			ID: overlay.VnodePosition(p.dir.ring.Ring, self, i), Number: i, Drive: v.drive, Capacity: v.capacity,
		})
	}
	p.disks, err = blocks.Open(cfg)
	return err
}

// openRing makes the rooms between the disks and the file system.
func (p *peer) openRing(id *mux.Identity, mount bool) error {
	d, c := p.dir, p.dir.config
	var err error
	p.mux, err = mux.New(mux.Config{
		Identity: id, RingID: d.ring.Ring, RingSecret: d.secret, Listen: c.Listen, Advertise: c.AdvertiseAddr(),
		Log: p.log, Rand: rand.Reader, Notify: p.noteSession,
		Handler: serve(func(ctx context.Context, from blocks.PeerID, req overlay.Call) overlay.Call {
			return p.ring.Serve(ctx, from, req)
		}),
		Given:         func(kind uint16) bool { return store.Given(overlay.Kind(kind)) },
		StreamHandler: func(_ [20]byte, conn net.Conn) { p.ring.AcceptStream(conn) },
	})
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%s is in use by another program: change listen in %s", c.Listen, d.file("config.toml"))
	}
	if err != nil {
		return err
	}
	wire := transport{p.mux}
	timings := overlay.DefaultTimings()
	timings.RepairAfter = time.Duration(c.RepairAfter)
	p.ring, err = overlay.New(overlay.Config{
		Ring: d.ring.Ring, Self: blocks.PeerID{ID: id.ID()}, Addr: c.AdvertiseAddr(), Zone: c.Zone,
		Capacity: uint64(c.Capacity), Vnodes: p.vnodes, Drives: len(p.drives()),
		K: d.ring.DataShards, M: d.ring.Tolerate, Transport: wire, Dial: wire.dial,
		Seeds: seeds(d), Store: peersFile(d.file("peers.state")), Rand: rand.Reader, Log: p.log, Timings: timings,
	})
	if err != nil {
		return err
	}
	return p.openServices(mount)
}

func (p *peer) openServices(mount bool) error {
	d := p.dir
	shards := store.Default()
	shards.Ring, shards.K, shards.M = p.ring, d.ring.DataShards, d.ring.Tolerate
	shards.RepairAfter, shards.Log, shards.Rand = time.Duration(d.config.RepairAfter), p.log, rand.Reader
	shards.Rebuild = func(ctx context.Context, stripe blocks.StripeID, index int, to blocks.Holder) error {
		_, err := p.stripes.Recreate(ctx, stripe, index, to, nil)
		return err
	}
	regs := register.Default()
	regs.Ring, regs.M, regs.Mount, regs.Log, regs.Rand = p.ring, d.ring.Tolerate, mount, p.log, rand.Reader
	if p.disks != nil {
		shards.Local, shards.KV = p.disks, shardNotes{p.disks.Registers()}
		regs.KV = registerKV{p.disks.Registers()}
	}
	var err error
	if p.shards, err = store.New(shards); err != nil {
		return err
	}
	if p.registers, err = register.New(regs); err != nil {
		return err
	}
	p.ring.Handle(kindFreed, p.serveFreed)
	p.ring.Handle(kindSettle, p.serveSettle)
	stripes := parity.Default()
	stripes.K, stripes.M, stripes.VolumeKey, stripes.Placer = d.ring.DataShards, d.ring.Tolerate, d.volumeKey, p.shards
	stripes.Rand, stripes.Log, stripes.Release = rand.Reader, p.log, mux.Release
	stripes.OnDamage = func(stripe blocks.StripeID, _, _ []int) { p.shards.OnDamage(stripe) }
	p.stripes, err = parity.New(stripes)
	return err
}

// seeds are the addresses of the token, without this peer's own.
func seeds(d *dataDir) []string {
	var list []string
	for _, a := range d.ring.Bootstrap {
		if a != d.config.AdvertiseAddr() {
			list = append(list, a)
		}
	}
	return list
}

// noteSession tells the ring at once what the network sees.
func (p *peer) noteSession(e mux.Event) {
	id := blocks.PeerID{ID: e.Peer}
	if p.ring == nil || id.IsZero() {
		return
	}
	if e.Type == mux.Connected {
		p.ring.Reachable(id)
	} else {
		p.ring.Unreachable(id)
	}
}

// close frees what newPeer opened, for a peer that does not run.
func (p *peer) close() error {
	var errs []error
	if p.control != nil {
		errs = append(errs, p.control.Close())
	}
	if p.mux != nil {
		errs = append(errs, p.mux.Close())
	}
	if p.disks != nil {
		errs = append(errs, p.disks.Close())
	}
	if p.lock != nil {
		errs = append(errs, p.lock.Close())
	}
	return errors.Join(errs...)
}

// usedEvery is how often a peer tells the ring how full it is.
const usedEvery = 5 * time.Second

// Run starts the rooms in order, runs main, and stops them in the opposite order.
func (p *peer) Run(ctx context.Context, main func(ctx context.Context) error) error {
	l := newLayers(ctx)
	if p.disks != nil {
		l.start("disks", func(ctx context.Context) error { p.disks.Run(ctx); return nil })
	}
	l.start("network", p.mux.Run)
	l.start("ring", p.ring.Run)
	l.start("stripes", p.stripes.Run)
	l.start("shards", p.shards.Run)
	l.start("registers", p.registers.Run)
	if p.disks != nil {
		l.start("usage", p.tellUsage)
	}
	l.start("memory", tuneMemory)
	l.start("control", func(ctx context.Context) error { return serveControl(ctx, p.control, p.controlHandler()) })
	err := p.makeRoot(l.ctx)
	if err == nil {
		err = main(l.ctx)
	}
	if cause := context.Cause(l.ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	err = errors.Join(err, l.stop())
	if p.disks != nil {
		err = errors.Join(err, p.disks.Close())
	}
	return errors.Join(err, p.lock.Close())
}

func (p *peer) tellUsage(ctx context.Context) error {
	tick := time.NewTicker(usedEvery)
	defer tick.Stop()
	for {
		p.ring.SetUsed(uint64(p.disks.Usage().Used))
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// makeRootLimit bounds the making of the root directory.
const makeRootLimit = 30 * time.Second

// makeRoot makes the root directory, once in the life of a ring: by the peer that made the ring, when it first runs.
func (p *peer) makeRoot(ctx context.Context) error {
	d := p.dir
	if !d.ring.MakeRoot {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, makeRootLimit)
	defer cancel()
	if err := locks.Format(ctx, p.registers, p.ring.Self(), d.ring.root(), p.sealLocks); err != nil {
		return err
	}
	err := tree.Format(ctx, p.registers, p.ring.Self(), d.ring.root(), d.volumeKey, uint32(os.Getuid()), uint32(os.Getgid()), rand.Reader)
	if err != nil && !errors.Is(err, blocks.ErrExists) {
		return err
	}
	d.ring.MakeRoot = false
	return d.writeRing()
}

// peersFile keeps what the ring wants to know after a restart.
type peersFile string

// Load is overlay.Store.
func (f peersFile) Load() ([]byte, error) {
	text, err := os.ReadFile(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return text, err
}

// Save is overlay.Store.
func (f peersFile) Save(state []byte) error { return writeFile(string(f), state, 0o600) }
