package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"bazil.org/fuse"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs"
	"github.com/mutualfs/mutualfs/fs/content"
	"github.com/mutualfs/mutualfs/fs/locks"
	"github.com/mutualfs/mutualfs/fs/tree"
)

// volume is the mounted file system.
type volume struct {
	mountpoint string
	tree       *tree.Tree
	files      *content.Files
	locks      *locks.Locks
}

// Limits of starting and ending a mount.
const (
	readyLimit = 30 * time.Second
	flushLimit = 5 * time.Minute
)

// openVolume makes the rooms of fs over the running ring.
func (p *peer) openVolume(mountpoint string, mo mountOptions) (*volume, fs.Backend, error) {
	c := p.dir.config
	lk, err := p.openLocks()
	if err != nil {
		return nil, nil, err
	}
	tc := tree.Default()
	tc.Registers, tc.Root, tc.Mount, tc.VolumeKey = recalls{p.registers, lk}, p.dir.ring.root(), p.ring.Self(), p.dir.volumeKey
	tc.JournalDir, tc.JournalBytes, tc.Rand, tc.Log = p.dir.file("journal"), int64(c.Journal), rand.Reader, &p.log
	tc.DeleteStripe, tc.NoAtime = p.stripes.Delete, mo.noAtime
	t, err := tree.New(tc)
	if err != nil {
		return nil, nil, err
	}
	cc := content.Default()
	cc.Inodes, cc.Stripes, cc.StripeSize = t, p.stripes, p.dir.ring.StripeSize
	cc.Sync, cc.DirtyLimit, cc.CacheBytes, cc.Log = content.SyncMode(c.Sync), int64(c.Dirty), int64(c.Cache), p.log
	files, err := content.New(cc)
	if err != nil {
		return nil, nil, err
	}
	t.SetContent(files)
	t.DirtyFloor(files.DirtyFloor)
	backend, err := fs.NewVolume(fs.VolumeConfig{Tree: t, Content: files, Locks: lk, Statfs: p.statfs})
	return &volume{mountpoint, t, files, lk}, backend, err
}

// statfs is logical: what the ring's peers offer, less the parity.
func (p *peer) statfs(context.Context) (fs.Statfs, error) {
	var capacity, used uint64
	for _, info := range p.ring.Table().Peers {
		if info.Live.Counts() {
			capacity += info.Capacity
			used += min(info.Used, info.Capacity)
		}
	}
	k, n := uint64(p.dir.ring.DataShards), uint64(p.dir.ring.DataShards+p.dir.ring.Tolerate)
	free := (capacity - used) / n * k
	return fs.Statfs{Total: capacity / n * k, Free: free, Avail: free, Files: 0}, nil
}

// serveMount mounts, tells the parent that the mount answers, and serves until it is unmounted or ctx ends;
// then it stores everything.
func (p *peer) serveMount(ctx context.Context, mountpoint string, mo mountOptions) error {
	v, backend, err := p.openVolume(mountpoint, mo)
	if err != nil {
		return err
	}
	p.opened.Store(v)
	defer p.opened.Store(nil)
	l := newLayers(ctx)
	l.start("content", v.files.Run)
	l.start("tree", v.tree.Run)
	l.start("locks", v.locks.Run)
	l.start("sweep", func(ctx context.Context) error { return p.sweepLoop(ctx, v) })
	err = p.mountAndServe(l.ctx, v, backend, mo.fuse)
	if cause := context.Cause(l.ctx); cause != nil && ctx.Err() == nil {
		err = cause
	}
	end, cancel := context.WithTimeout(context.Background(), flushLimit)
	defer cancel()
	if syncErr := v.store(end); syncErr != nil {
		p.log.Warn().Err(syncErr).Msg("not everything could be stored; it stays in the journal for the next mount")
	}
	// The tree may hand data to the content until it ends, so the content ends last.
	err = errors.Join(err, l.stop())
	p.registers.Goodbye(end)
	return err
}

// store writes everything out that the journal still holds.
func (v *volume) store(ctx context.Context) error {
	return errors.Join(v.files.Sync(ctx), v.tree.Sync(ctx))
}

func (p *peer) mountAndServe(ctx context.Context, v *volume, backend fs.Backend, options []fuse.MountOption) error {
	ready, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	select {
	case <-v.tree.Ready():
	case <-ready.Done():
		return notReady(context.Cause(ready))
	}
	if err := p.awaitRoot(ready, backend); err != nil {
		return notReady(err)
	}
	face, err := fs.Mount(fs.Config{Backend: backend, Mountpoint: v.mountpoint, Source: p.dir.path, Options: options, Log: p.log})
	if err != nil {
		return err
	}
	p.volume.Store(v)
	defer p.volume.Store(nil)
	served := make(chan error, 1)
	go func() { served <- face.Run(context.WithoutCancel(ctx)) }()
	p.log.Info().Str("mountpoint", v.mountpoint).Str("data", p.dir.path).Msg("mounted")
	reportReady(nil)
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	// Asked to end: detach. A mount in use is detached lazily, its open files answer no longer once this process ends.
	if err := fs.Unmount(v.mountpoint, false); err != nil {
		p.log.Warn().Err(err).Msg("the mount is in use; it is detached all the same")
		if err := fs.Unmount(v.mountpoint, true); err != nil {
			return err
		}
		storeCtx, cancel := context.WithTimeout(context.Background(), flushLimit)
		defer cancel()
		return v.store(storeCtx)
	}
	return <-served
}

// locate finds the blocks of the file at a path below the mount point.
func (p *peer) locate(ctx context.Context, name string) (locateReport, error) {
	v := p.volume.Load()
	if v == nil {
		return locateReport{}, fmt.Errorf("%s is not mounted by the peer in %s", name, p.dir.path)
	}
	rel, ok := strings.CutPrefix(path.Clean(name), v.mountpoint)
	if !ok || rel != "" && rel[0] != '/' {
		return locateReport{}, fmt.Errorf("%s is not below the mount point %s", name, v.mountpoint)
	}
	ino := tree.RootIno
	for part := range strings.SplitSeq(strings.Trim(rel, "/"), "/") {
		if part == "" {
			continue
		}
		a, err := v.tree.Lookup(ctx, ino, part)
		if err != nil {
			return locateReport{}, fmt.Errorf("%s: %w", name, err)
		}
		defer v.tree.Forget(a.Ino, 1)
		ino = a.Ino
	}
	if err := v.files.FlushFile(ctx, ino); err != nil {
		return locateReport{}, err
	}
	r := locateReport{Path: name, Stripes: []stripeReport{}}
	for off := uint64(0); ; {
		c, err := v.tree.Content(ctx, ino, off, tree.MapBytes)
		if err != nil {
			return r, fmt.Errorf("%s: %w", name, err)
		}
		r.Size, r.Inline = c.Size, uint64(len(c.Inline))
		for _, e := range c.Extents {
			s, err := p.locateStripe(ctx, e)
			if err != nil {
				return r, err
			}
			r.Stripes = append(r.Stripes, s)
		}
		if off = c.Part.To; off >= c.Size {
			return r, nil
		}
	}
}

func (p *peer) locateStripe(ctx context.Context, e tree.Extent) (stripeReport, error) {
	s := stripeReport{Offset: e.Off, Length: e.Len, Stripe: e.Stripe.ID, At: e.At, K: int(e.Stripe.K), M: int(e.Stripe.M)}
	places, err := p.shards.Locate(ctx, e.Stripe)
	if err != nil && !errors.Is(err, blocks.ErrUnavailable) {
		return s, err
	}
	t := p.ring.Table()
	for _, at := range places {
		s.Shards = append(s.Shards, shardReport{Index: at.Index, Vnode: at.Vnode, Peer: at.Peer, Address: t.Peers[at.Peer].Addr,
			Disk: at.Path, Offset: at.Offset, Length: at.Length, AtHome: at.Home})
	}
	return s, nil
}
