package fs

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/content"
	"github.com/mutualfs/mutualfs/fs/locks"
	"github.com/mutualfs/mutualfs/fs/tree"
	"github.com/mutualfs/mutualfs/fs/tree/treetest"
)

// The rooms fit together.
var (
	_ Names          = (*tree.Tree)(nil)
	_ content.Inodes = (*tree.Tree)(nil)
	_ tree.Hooks     = (*content.Files)(nil)
)

// memStripes keeps stripes in memory, for all mounts.
type memStripes struct {
	mu      sync.Mutex
	next    uint64
	stripes map[blocks.StripeID][]byte
}

func (m *memStripes) drop(_ context.Context, id blocks.StripeID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.stripes, id)
	return nil
}

func (m *memStripes) Write(_ context.Context, _ blocks.Owner, p []byte) (blocks.Receipt, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var id blocks.StripeID
	m.next++
	binary.BigEndian.PutUint64(id.ID[:], m.next)
	m.stripes[id] = bytes.Clone(p)
	return blocks.Receipt{Ref: blocks.StripeRef{ID: id, Len: uint32(len(p)), K: 1, M: 2}}, nil
}

func (m *memStripes) Sync(context.Context, []blocks.Receipt) ([]int, error) { return nil, nil }

func (m *memStripes) Discard(r blocks.Receipt) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.stripes, r.Ref.ID)
}

func (m *memStripes) Read(_ context.Context, ref blocks.StripeRef, off uint32, p []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.stripes[ref.ID]
	if uint64(off)+uint64(len(p)) > uint64(len(s)) {
		return fmt.Errorf("stripe %s: %w", ref.ID.Short(), blocks.ErrNotFound)
	}
	copy(p, s[off:])
	return nil
}

// shared is what the mounts of a test have in common.
type shared struct {
	ring    *treetest.Ring
	stripes *memStripes
	root    blocks.RegisterID
	key     []byte
	lazy    bool // mounts write nothing back by themselves
	maps    bool // files have containers of their own, and maps of extents, early
}

func newShared(t *testing.T) *shared {
	s := &shared{ring: treetest.NewRing(), stripes: &memStripes{stripes: map[blocks.StripeID][]byte{}},
		root: blocks.RegisterID{ID: blocks.HashID([]byte("root"))}, key: bytes.Repeat([]byte{3}, 32)}
	if err := tree.Format(t.Context(), s.ring.Mount(mountID(99)), mountID(99), s.root, s.key, 0, 0, nil); err != nil {
		t.Fatal(err)
	}
	if err := locks.Format(t.Context(), s.ring.Mount(mountID(99)), mountID(99), s.root, s.seal); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *shared) seal(id blocks.RegisterID) (locks.Sealer, error) {
	return tree.NewValueSealer(s.key, id, crand.Reader)
}

func mountID(i int) blocks.PeerID { return blocks.PeerID{ID: blocks.HashID([]byte{byte(i)})} }

// mounted is a Volume over a real tree and real content.
type mounted struct {
	*Volume
	regs  *treetest.Mount
	locks *locks.Locks
	dir   string
	end   func()
}

// recalls has the locks answer for their registers, the tree for the others.
type recalls struct {
	*treetest.Mount
	locks *locks.Locks
}

func (r recalls) OnRecall(f func(context.Context, blocks.RegisterID, bool)) {
	r.Mount.OnRecall(func(ctx context.Context, id blocks.RegisterID, read bool) {
		if !r.locks.Recall(ctx, id) {
			f(ctx, id, read)
		}
	})
}

func (s *shared) mount(t *testing.T, i int, dir string) *mounted {
	t.Helper()
	m := &mounted{regs: s.ring.Mount(mountID(i)), dir: dir}
	tc := tree.Default()
	lc := locks.Default()
	lc.Registers, lc.Mount, lc.Root, lc.Seal = m.regs, mountID(i), s.root, s.seal
	lc.PollEvery, lc.LeasePause = 50*time.Millisecond, 10*time.Millisecond
	var err error
	if m.locks, err = locks.New(lc); err != nil {
		t.Fatal(err)
	}
	tc.Registers, tc.Root, tc.Mount, tc.VolumeKey, tc.JournalDir = recalls{m.regs, m.locks}, s.root, mountID(i), s.key, dir
	tc.FlushAge, tc.LeasePause, tc.CommitTimeout, tc.SegmentBytes = 5*time.Millisecond, 10*time.Millisecond, 2*time.Second, 64<<10
	cc := content.Config{Stripes: s.stripes, StripeSize: 32 << 10, MaxAge: 20 * time.Millisecond, DirtyLimit: 1 << 20}
	if s.maps {
		tc.FileExtents, tc.MapExtents, tc.MapBytes, cc.MapBytes = 2, 4, 64<<10, 64<<10
	}
	tc.DeleteStripe, tc.FreeEvery = s.stripes.drop, 50*time.Millisecond // what is still needed is missed
	if s.lazy {
		tc.FlushAge, cc.MaxAge = time.Hour, time.Hour
	}
	tr, err := tree.New(tc)
	if err != nil {
		t.Fatal(err)
	}
	cc.Inodes = tr
	files, err := content.New(cc)
	if err != nil {
		t.Fatal(err)
	}
	tr.SetContent(files)
	tr.DirtyFloor(files.DirtyFloor)
	if m.Volume, err = NewVolume(VolumeConfig{Tree: tr, Content: files, Locks: m.locks, Statfs: func(context.Context) (Statfs, error) { return Statfs{Total: 1}, nil }}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = tr.Run(ctx) })
	wg.Go(func() { _ = files.Run(ctx) })
	wg.Go(func() { _ = m.locks.Run(ctx) })
	m.end = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(m.end)
	return m
}

// kill ends the mount as kill -9 does and returns its journal's directory.
func (m *mounted) kill(t *testing.T) string {
	t.Helper()
	m.regs.Kill()
	dir := t.TempDir()
	names, err := os.ReadDir(m.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		b, err := os.ReadFile(filepath.Join(m.dir, n.Name()))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, n.Name()), b, 0o600)
		}
		if err != nil && !os.IsNotExist(err) { // trimmed meanwhile
			t.Fatal(err)
		}
	}
	m.end()
	return dir
}

func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (m *mounted) create(t *testing.T, name string) tree.Ino {
	t.Helper()
	a, _, err := m.Make(limited(t), tree.RootIno, name, tree.MakeArgs{Mode: syscall.S_IFREG | 0o644})
	if err != nil {
		t.Fatal(err)
	}
	return a.Ino
}

func (m *mounted) all(t *testing.T, ino tree.Ino) []byte {
	t.Helper()
	p := make([]byte, 1<<20)
	n, err := m.Read(limited(t), ino, 0, p)
	if err != nil {
		t.Fatal(err)
	}
	return p[:n]
}

func TestVolumeFallocateAndSetattr(t *testing.T) {
	m := newShared(t).mount(t, 1, t.TempDir())
	ctx := limited(t)
	ino := m.create(t, "f")
	want := bytes.Repeat([]byte{7}, 100000)
	check := func(what string) {
		t.Helper()
		a, err := m.Getattr(ctx, ino)
		if err != nil || a.Size != uint64(len(want)) {
			t.Fatalf("%s: size %d, %v", what, a.Size, err)
		}
		if !bytes.Equal(m.all(t, ino), want) {
			t.Fatalf("%s: wrong content", what)
		}
	}
	fallocate := func(off, n uint64, mode uint32) {
		t.Helper()
		if err := m.Fallocate(ctx, ino, off, n, mode); err != nil {
			t.Fatalf("mode %#x: %v", mode, err)
		}
	}
	if err := m.Write(ctx, ino, 0, want, false); err != nil {
		t.Fatal(err)
	}
	check("written")
	fallocate(0, 200000, fallocKeepSize)
	fallocate(0, 50000, 0)
	check("allocated")
	fallocate(90000, 20000, 0)
	want = append(want, make([]byte, 10000)...)
	check("grown")
	fallocate(100, 5000, fallocPunchHole|fallocKeepSize)
	clear(want[100:5100])
	check("punched")
	fallocate(105000, 10000, fallocZeroRange)
	want = append(want, make([]byte, 5000)...)
	check("zeroed")
	if err := m.Fsync(ctx, ino); err != nil {
		t.Fatal(err)
	}
	fallocate(20000, 50000, fallocZeroRange|fallocKeepSize)
	clear(want[20000:70000])
	check("zeroed after fsync")
	for _, mode := range []uint32{fallocPunchHole, 0x08, 0x20, 0x40} {
		if err := m.Fallocate(ctx, ino, 0, 10, mode); err != syscall.EOPNOTSUPP {
			t.Errorf("mode %#x: %v", mode, err)
		}
	}
	if err := m.Fallocate(ctx, ino, 0, 0, 0); err != syscall.EINVAL {
		t.Errorf("no length: %v", err)
	}
	if err := m.Fallocate(ctx, ino, tree.MaxFile, 1, 0); err != syscall.EFBIG {
		t.Errorf("too large: %v", err)
	}

	size, mtime := uint64(60000), tree.Time(1234567890)
	a, err := m.Setattr(ctx, ino, tree.SetAttr{Size: &size, Mtime: &mtime})
	if err != nil || a.Size != size || a.Mtime != mtime {
		t.Fatalf("setattr: %+v, %v", a, err)
	}
	want = want[:size]
	check("truncated")
	if err := m.Write(ctx, ino, 10, []byte("late"), false); err != nil {
		t.Fatal(err)
	}
	copy(want[10:], "late")
	if _, err := m.Setattr(ctx, ino, tree.SetAttr{Mtime: &mtime}); err != nil {
		t.Fatal(err)
	}
	if err := m.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	if a, err = m.Getattr(ctx, ino); err != nil || a.Mtime != mtime {
		t.Fatalf("mtime %d after sync, %v", a.Mtime, err)
	}
	check("synced")
}

// What one mount closes, the other opens and sees.
// Close to open holds between mounts that share the leases of the directory, too: close stores the data, for nobody would ask for it.
func TestVolumeCloseToOpenShared(t *testing.T) {
	s := newShared(t)
	a, b := s.mount(t, 1, t.TempDir()), s.mount(t, 2, t.TempDir())
	ino := a.create(t, "f")
	for i := range 10 {
		calls := func() (n int) {
			for _, m := range []*mounted{a, b} {
				reads, writes := m.regs.Calls()
				n += reads + writes
			}
			return n
		}
		for before := -1; before != calls(); {
			before = calls()
			for _, m := range []*mounted{a, b} {
				if _, err := m.Lookup(limited(t), tree.RootIno, "f"); err != nil {
					t.Fatal(err)
				}
			}
		}
		want := bytes.Repeat([]byte{byte(i)}, 1+i*3000)
		if _, err := a.Open(limited(t), ino); err != nil {
			t.Fatal(err)
		}
		if err := a.Write(limited(t), ino, 0, want, false); err != nil {
			t.Fatal(err)
		}
		if err := a.Flush(limited(t), ino, 0, 0); err != nil {
			t.Fatal(err)
		}
		a.Release(ino, 0)
		if _, err := b.Open(limited(t), ino); err != nil {
			t.Fatal(err)
		}
		if got := b.all(t, ino); !bytes.Equal(got, want) {
			t.Fatalf("round %d: %d bytes seen, not %d", i, len(got), len(want))
		}
		b.Release(ino, 0)
		a, b = b, a
	}
}

func TestVolumeCloseToOpen(t *testing.T) {
	s := newShared(t)
	a, b := s.mount(t, 1, t.TempDir()), s.mount(t, 2, t.TempDir())
	for i := range 10 {
		name := "f" + strconv.Itoa(i)
		want := bytes.Repeat([]byte(name), 1+i*3000)
		ino := a.create(t, name)
		if err := a.Write(limited(t), ino, 0, want, false); err != nil {
			t.Fatal(err)
		}
		if err := a.Flush(limited(t), ino, 0, 0); err != nil {
			t.Fatal(err)
		}
		at, err := b.Lookup(limited(t), tree.RootIno, name)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := b.Open(limited(t), at.Ino); err != nil {
			t.Fatal(err)
		}
		if got := b.all(t, at.Ino); !bytes.Equal(got, want) {
			t.Fatalf("%s: %d bytes seen, not %d", name, len(got), len(want))
		}
		a, b = b, a
	}
}

// withAndWithoutMaps runs a test with the limits of extents as they are, and with such that maps come and go all the time.
func withAndWithoutMaps(t *testing.T, f func(t *testing.T, s *shared)) {
	for name, maps := range map[string]bool{"few extents": false, "maps": true} {
		t.Run(name, func(t *testing.T) {
			s := newShared(t)
			s.maps = maps
			f(t, s)
		})
	}
}

// Everything that was answered is there after kill -9, again and again.
func TestVolumeKill(t *testing.T) { withAndWithoutMaps(t, testVolumeKill) }

func testVolumeKill(t *testing.T, s *shared) {
	seed := printedSeed(t)
	r := rand.New(rand.NewPCG(seed, 1))
	m := s.mount(t, 1, t.TempDir())
	model := map[string][]byte{}
	for round := range 8 {
		for range 60 {
			name := "f" + strconv.Itoa(r.IntN(3))
			at, err := m.Lookup(limited(t), tree.RootIno, name)
			if errors.Is(err, syscall.ENOENT) {
				at.Ino, err = m.create(t, name), nil
				model[name] = []byte{}
			}
			if err != nil {
				t.Fatal(err)
			}
			data := model[name]
			data, err = m.change(t, r, at.Ino, data)
			if err != nil {
				t.Fatal(err)
			}
			model[name] = data
		}
		m = s.mount(t, 1, m.kill(t))
		for name, want := range model {
			at, err := m.Lookup(limited(t), tree.RootIno, name)
			if err != nil {
				t.Fatalf("round %d: %s: %v", round, name, err)
			}
			if got := m.all(t, at.Ino); !bytes.Equal(got, want) {
				t.Fatalf("round %d: %s differs after a kill: %d bytes, not %d, first at %d", round, name, len(got), len(want), firstDiff(got, want))
			}
		}
	}
}

// change makes one random call on a file and returns what the file contains then.
func (m *mounted) change(t *testing.T, r *rand.Rand, ino tree.Ino, data []byte) ([]byte, error) {
	const limit = 200000
	off := r.IntN(limit)
	n := 1 + r.IntN(min(limit-off, []int{100, 60000}[r.IntN(2)]))
	switch r.IntN(8) {
	case 0:
		size := uint64(off)
		_, err := m.Setattr(limited(t), ino, tree.SetAttr{Size: &size})
		return resized(data, off), err
	case 1:
		err := m.Fallocate(limited(t), ino, uint64(off), uint64(n), fallocPunchHole|fallocKeepSize)
		if off < len(data) {
			clear(data[off:min(off+n, len(data))])
		}
		return data, err
	case 2:
		return data, m.Fsync(limited(t), ino)
	}
	p := bytes.Repeat([]byte{byte(r.Uint32())}, n)
	err := m.Write(limited(t), ino, uint64(off), p, false)
	data = resized(data, max(len(data), off+n))
	copy(data[off:], p)
	return data, err
}

// Two mounts change the same files in turn, with and without leases.
func TestVolumeTwoMountsInTurn(t *testing.T) { withAndWithoutMaps(t, testVolumeTwoMountsInTurn) }

func testVolumeTwoMountsInTurn(t *testing.T, s *shared) {
	seed := printedSeed(t)
	r := rand.New(rand.NewPCG(seed, 2))
	mounts := []*mounted{s.mount(t, 1, t.TempDir()), s.mount(t, 2, t.TempDir())}
	model := map[string][]byte{}
	for _, name := range []string{"f", "g"} {
		mounts[0].create(t, name)
		model[name] = []byte{}
	}
	for step := range 150 {
		m := mounts[r.IntN(2)]
		name := []string{"f", "g"}[r.IntN(2)]
		at, err := m.Lookup(limited(t), tree.RootIno, name)
		if err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		if _, err := m.Open(limited(t), at.Ino); err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		if got := m.all(t, at.Ino); !bytes.Equal(got, model[name]) {
			t.Fatalf("step %d: %s: %d bytes, not %d, first at %d", step, name, len(got), len(model[name]), firstDiff(got, model[name]))
		}
		for range 1 + r.IntN(4) {
			if model[name], err = m.change(t, r, at.Ino, model[name]); err != nil {
				t.Fatalf("step %d: %v", step, err)
			}
		}
		if err := m.Flush(limited(t), at.Ino, 0, 0); err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		m.Release(at.Ino, 0)
		if r.IntN(10) == 0 {
			time.Sleep(15 * time.Millisecond) // not for something to happen: so that leases are taken, too
		}
	}
}

func printedSeed(t *testing.T) uint64 {
	seed := uint64(time.Now().UnixNano())
	if v, err := strconv.ParseUint(os.Getenv("MUTUALFS_SEED"), 10, 64); err == nil {
		seed = v
	}
	t.Logf("MUTUALFS_SEED=%d", seed)
	return seed
}

func resized(p []byte, n int) []byte {
	out := make([]byte, n)
	copy(out, p)
	return out
}

func firstDiff(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// An fsync of the root directory stores all files: a mount that dies right after it has lost nothing, even
// with its journal.
func TestFsyncOfTheRootStoresEverything(t *testing.T) {
	s := newShared(t)
	s.lazy = true
	ctx := limited(t)
	m := s.mount(t, 1, t.TempDir())
	dir, _, err := m.Make(ctx, tree.RootIno, "d", tree.MakeArgs{Mode: syscall.S_IFDIR | 0o755, Excl: true})
	if err != nil {
		t.Fatal(err)
	}
	f, _, err := m.Make(ctx, dir.Ino, "f", tree.MakeArgs{Mode: syscall.S_IFREG | 0o644})
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("0123456789"), 5000)
	if err := m.Write(ctx, f.Ino, 0, want, false); err != nil {
		t.Fatal(err)
	}
	if err := m.Fsync(ctx, tree.RootIno); err != nil {
		t.Fatal(err)
	}
	m.kill(t)
	m = s.mount(t, 2, t.TempDir())
	if dir, err = m.Lookup(ctx, tree.RootIno, "d"); err != nil {
		t.Fatal(err)
	}
	if f, err = m.Lookup(ctx, dir.Ino, "f"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want)+1)
	if n, err := m.Read(ctx, f.Ino, 0, got); err != nil || !bytes.Equal(got[:n], want) {
		t.Fatalf("%d bytes, %v; want %d", n, err, len(want))
	}
}
