package blocks

import (
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
)

// sectorSize is what a medium writes whole or not at all.
const sectorSize = 512

// MemFS is a file system in memory that can lose power: Crash returns what
// would be found afterwards. Whatever was not synced is there or not, sector
// by sector, name by name. It is meant for tests and simulations.
type MemFS struct {
	mu      sync.Mutex
	names   map[string]*memFile // as seen now
	durable map[string]*memFile // as of the last SyncDir
	locks   map[string]bool
	free    int64
	total   int64
	indexes *MemIndexes
	onOp    func()
}

var _ FS = (*MemFS)(nil)

// NewMemFS makes an empty file system that claims to have 1 TiB free.
func NewMemFS() *MemFS {
	return &MemFS{
		names: map[string]*memFile{}, durable: map[string]*memFile{}, locks: map[string]bool{},
		free: 1 << 40, total: 1 << 40, indexes: &MemIndexes{stores: map[string]*memStore{}},
	}
}

// Indexes returns the in-memory index stores that lose power together with m.
func (m *MemFS) Indexes() *MemIndexes { return m.indexes }

// OnOp has fn called before every operation that changes the medium or makes
// changes durable, of the files and of the indexes. It must be set before m
// is used; fn may call Crash.
func (m *MemFS) OnOp(fn func()) { m.onOp, m.indexes.onOp = fn, fn }

func (m *MemFS) op() {
	if m.onOp != nil {
		m.onOp()
	}
}

// SetSpace sets what Space answers.
func (m *MemFS) SetSpace(free, total int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.free, m.total = free, total
}

// Crash returns the file system as a power cut at this moment would leave it,
// drawing from r what of the unsynced has reached the medium: keep is the
// probability, in percent, of each sector and name. m itself is not changed. also are
// called at the same moment, to crash what else there is.
func (m *MemFS) Crash(r *rand.Rand, keep int, also ...func()) *MemFS {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, fn := range also {
		fn()
	}
	c := NewMemFS()
	c.free, c.total = m.free, m.total
	c.indexes = m.indexes.crash(r, keep)
	copies := map[*memFile]*memFile{}
	for _, path := range m.allNames() {
		f := m.durable[path]
		if now := m.names[path]; now != f && r.IntN(100) < keep {
			f = now
		}
		if f == nil {
			continue
		}
		if copies[f] == nil {
			copies[f] = &memFile{mu: &c.mu}
			f.crash(copies[f], r, keep)
		}
		c.names[path], c.durable[path] = copies[f], copies[f]
	}
	return c
}

func (m *MemFS) allNames() []string {
	all := maps.Clone(m.names)
	maps.Copy(all, m.durable)
	return slices.Sorted(maps.Keys(all))
}

func notExist(op, path string) error {
	return &fs.PathError{Op: op, Path: path, Err: fs.ErrNotExist}
}

// Create implements FS.
func (m *MemFS) Create(path string) (File, error) {
	m.op()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.names[path] != nil {
		return nil, &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
	}
	f := &memFile{mu: &m.mu, pages: map[int64]*[sectorSize]byte{}, past: map[int64][]*[sectorSize]byte{}}
	m.names[path] = f
	return &memHandle{memFile: f, fs: m, path: path}, nil
}

// Open implements FS.
func (m *MemFS) Open(path string) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.names[path]
	if f == nil {
		return nil, notExist("open", path)
	}
	return &memHandle{memFile: f, fs: m, path: path}, nil
}

// Remove implements FS.
func (m *MemFS) Remove(path string) error {
	m.op()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.names[path] == nil {
		return notExist("remove", path)
	}
	delete(m.names, path)
	return nil
}

// Rename implements FS.
func (m *MemFS) Rename(from, to string) error {
	m.op()
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.names[from]
	if f == nil {
		return notExist("rename", from)
	}
	delete(m.names, from)
	m.names[to] = f
	return nil
}

// Exists implements FS.
func (m *MemFS) Exists(path string) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.names[path] != nil, nil
}

// MkdirAll implements FS; directories are only a part of the names here.
func (m *MemFS) MkdirAll(string) error { return nil }

// SyncDir implements FS.
func (m *MemFS) SyncDir(dir string) error {
	m.op()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, path := range m.allNames() {
		if filepath.Dir(path) != dir {
			continue
		}
		if f := m.names[path]; f != nil {
			m.durable[path] = f
		} else {
			delete(m.durable, path)
		}
	}
	return nil
}

// Lock implements FS.
func (m *MemFS) Lock(path string) (io.Closer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.locks[path] {
		return nil, fmt.Errorf("%w: another mutualfs process (this one) uses %s", ErrBusy, filepath.Dir(path))
	}
	m.locks[path] = true
	return closerFunc(func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.locks, path)
		return nil
	}), nil
}

type closerFunc func() error

func (f closerFunc) Close() error { return f() }

// Space implements FS.
func (m *MemFS) Space(string) (free, total int64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.free, m.total, nil
}

// memFile is the content of a file: its sectors as seen now, and for every
// sector changed since the last sync what it was then and since.
type memFile struct {
	mu      *sync.Mutex // the file system's, so that a crash is one moment
	size    int64
	synced  int64 // size at the last sync
	pages   map[int64]*[sectorSize]byte
	past    map[int64][]*[sectorSize]byte
	failing error // what every write and sync returns, if set
}

func (f *memFile) crash(c *memFile, r *rand.Rand, keep int) {
	*c = memFile{mu: c.mu, size: f.size, pages: maps.Clone(f.pages), past: map[int64][]*[sectorSize]byte{}}
	for _, s := range slices.Sorted(maps.Keys(f.past)) {
		if old := f.past[s]; r.IntN(100) >= keep {
			c.put(s, old[r.IntN(len(old))])
		}
	}
	if f.synced != f.size && r.IntN(100) >= keep {
		c.size = f.synced
		for s := range c.pages {
			if s*sectorSize >= c.size {
				delete(c.pages, s)
			}
		}
	}
	c.synced = c.size
}

// put replaces a sector; nil is a hole.
func (f *memFile) put(s int64, p *[sectorSize]byte) {
	if p == nil {
		delete(f.pages, s)
	} else {
		f.pages[s] = p
	}
}

// change replaces a sector and remembers what it was.
func (f *memFile) change(s int64, p *[sectorSize]byte) {
	f.past[s] = append(f.past[s], f.pages[s])
	f.put(s, p)
}

func (f *memFile) write(b []byte, off int64) {
	for len(b) > 0 {
		s, at := off/sectorSize, off%sectorSize
		p := new([sectorSize]byte)
		if old := f.pages[s]; old != nil {
			*p = *old
		}
		n := copy(p[at:], b)
		f.change(s, p)
		b, off = b[n:], off+int64(n)
	}
	f.size = max(f.size, off)
}

// memHandle is an open memFile.
type memHandle struct {
	*memFile
	fs   *MemFS
	path string
}

func (h *memHandle) ReadAt(b []byte, off int64) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for n < len(b) && off < h.size {
		s, at := off/sectorSize, off%sectorSize
		end := min(sectorSize, h.size-s*sectorSize)
		var got int
		if p := h.pages[s]; p != nil {
			got = copy(b[n:], p[at:end])
		} else {
			got = int(min(end-at, int64(len(b)-n)))
			clear(b[n : n+got])
		}
		n, off = n+got, off+int64(got)
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (h *memHandle) WriteVec(parts [][]byte, off int64) error {
	h.fs.op()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.failing != nil {
		return &fs.PathError{Op: "write", Path: h.path, Err: h.failing}
	}
	for _, p := range parts {
		h.write(p, off)
		off += int64(len(p))
	}
	return nil
}

func (h *memHandle) WriteBack(off, n int64) {}
func (h *memHandle) Drop(off, n int64)      {}

func (h *memHandle) Sync() error {
	h.fs.op()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.failing != nil {
		return &fs.PathError{Op: "sync", Path: h.path, Err: h.failing}
	}
	clear(h.past)
	h.synced = h.size
	return nil
}

func (h *memHandle) Punch(off, n int64) error {
	h.fs.op()
	h.mu.Lock()
	defer h.mu.Unlock()
	if off%sectorSize != 0 || n%sectorSize != 0 {
		return &fs.PathError{Op: "punch hole", Path: h.path, Err: syscall.EINVAL}
	}
	for s := off / sectorSize; s < (off+n)/sectorSize; s++ {
		if h.pages[s] != nil {
			h.change(s, nil)
		}
	}
	return nil
}

func (h *memHandle) NextData(off int64) (int64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := off / sectorSize; s*sectorSize < h.size; s++ {
		if h.pages[s] != nil {
			return max(off, s*sectorSize), nil
		}
	}
	return 0, io.EOF
}

func (h *memHandle) Truncate(size int64) error {
	h.fs.op()
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.pages {
		if s*sectorSize >= size {
			h.change(s, nil)
		}
	}
	if at := size % sectorSize; at > 0 && h.pages[size/sectorSize] != nil {
		p := *h.pages[size/sectorSize]
		clear(p[at:])
		h.change(size/sectorSize, &p)
	}
	h.size = size
	return nil
}

func (h *memHandle) Size() (int64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.size, nil
}

func (h *memHandle) Allocated() (int64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return int64(len(h.pages)) * sectorSize, nil
}

func (h *memHandle) Close() error { return nil }

// Fail makes every later write and sync of the file fail with err, nil ends it.
func (m *MemFS) Fail(path string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f := m.names[path]; f != nil {
		f.failing = err
	}
}
