package content

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
)

// seed returns the seed of a test's randomness, and prints it.
func seed(t testing.TB) uint64 {
	n := uint64(time.Now().UnixNano())
	if s := os.Getenv("MUTUALFS_SEED"); s != "" {
		var err error
		if n, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("MUTUALFS_SEED=%d", n)
	return n
}

// dice is a source of randomness for many goroutines.
type dice struct {
	mu sync.Mutex
	r  *rand.Rand
}

func newDice(seed uint64) *dice { return &dice{r: rand.New(rand.NewPCG(seed, 1))} }

// hit is true once in n times on average, never if n is 0.
func (d *dice) hit(n int) bool {
	if d == nil || n == 0 {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.r.IntN(n) == 0
}

// memStripes keeps stripes in memory. What was not synced can be lost.
type memStripes struct {
	dice                             *dice
	failWrite, failSync, lose, failR int // once in so many times
	noSpace                          atomic.Bool
	reads, readBytes                 atomic.Int64
	writes                           atomic.Int64
	held                             atomic.Int64  // writes that have come to hold
	hold                             chan struct{} // if not nil: writes wait for it

	mu      sync.Mutex
	next    uint64
	stripes map[blocks.StripeID][]byte
	synced  map[blocks.StripeID]bool
	named   map[blocks.StripeID]bool // by a Writeback
	wrong   []string                 // what should not have been done
}

func newMemStripes() *memStripes {
	return &memStripes{stripes: map[blocks.StripeID][]byte{}, synced: map[blocks.StripeID]bool{}, named: map[blocks.StripeID]bool{}}
}

func (m *memStripes) Write(ctx context.Context, _ blocks.Owner, content []byte) (blocks.Receipt, error) {
	if m.hold != nil {
		m.held.Add(1)
		select {
		case <-m.hold:
		case <-ctx.Done():
			return blocks.Receipt{}, ctx.Err()
		}
	}
	m.writes.Add(1)
	if m.noSpace.Load() {
		return blocks.Receipt{}, fmt.Errorf("fake: %w", blocks.ErrNoSpace)
	}
	if m.dice.hit(m.failWrite) {
		return blocks.Receipt{}, fmt.Errorf("fake: %w", blocks.ErrUnavailable)
	}
	if len(content) == 0 || len(content) > blocks.MaxStripe {
		return blocks.Receipt{}, fmt.Errorf("fake: %d bytes: %w", len(content), blocks.ErrInvalid)
	}
	p := bytes.Clone(content)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.next++
	var id blocks.StripeID
	binary.BigEndian.PutUint64(id.ID[:], m.next)
	m.stripes[id] = p
	return blocks.Receipt{Ref: blocks.StripeRef{ID: id, Len: uint32(len(content)), K: 4, M: 2}}, nil
}

func (m *memStripes) Sync(_ context.Context, receipts []blocks.Receipt) (lost []int, err error) {
	if m.dice.hit(m.failSync) {
		return nil, fmt.Errorf("fake: %w", blocks.ErrUnavailable)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, r := range receipts {
		if m.stripes[r.Ref.ID] == nil || m.dice.hit(m.lose) {
			delete(m.stripes, r.Ref.ID)
			lost = append(lost, i)
			continue
		}
		m.synced[r.Ref.ID] = true
	}
	return lost, nil
}

func (m *memStripes) Discard(r blocks.Receipt) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.named[r.Ref.ID] {
		m.wrong = append(m.wrong, "stripe "+r.Ref.ID.Short()+" was discarded, and a file has it")
	}
	delete(m.stripes, r.Ref.ID)
}

// left lists the stripes that no Writeback has named, and what was done wrong.
func (m *memStripes) left() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := slices.Clone(m.wrong)
	for id := range m.stripes {
		if !m.named[id] {
			out = append(out, "stripe "+id.Short()+" is left behind")
		}
	}
	return out
}

func (m *memStripes) Read(_ context.Context, ref blocks.StripeRef, off uint32, p []byte) error {
	m.reads.Add(1)
	m.readBytes.Add(int64(len(p)))
	if m.dice.hit(m.failR) {
		return fmt.Errorf("fake: %w", blocks.ErrUnavailable)
	}
	m.mu.Lock()
	s := m.stripes[ref.ID]
	m.mu.Unlock()
	if s == nil {
		return fmt.Errorf("fake: stripe %s: %w", ref.ID.Short(), blocks.ErrNotFound)
	}
	if int(off)%Unit != 0 || (int(off)+len(p))%Unit != 0 && int(off)+len(p) != len(s) || int(off)+len(p) > len(s) {
		return fmt.Errorf("fake: range %d+%d of %d is not of units: %w", off, len(p), len(s), blocks.ErrInvalid)
	}
	copy(p, s[off:])
	return nil
}

// powerCut loses all that was not synced.
func (m *memStripes) powerCut() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range m.stripes {
		if !m.synced[id] {
			delete(m.stripes, id)
		}
	}
}

// memInodes is a tree of files with a journal, in memory.
type memInodes struct {
	t       testing.TB
	stripes *memStripes
	hooks   Hooks
	dice    *dice
	slow    int // once in so many times a call with NoWait would wait
	fail    int // once in so many times a Writeback fails

	mu      sync.Mutex
	seq     tree.Seq
	journal []record
	files   map[tree.Ino]*memInode
	saved   map[tree.Ino]memInode // what was agreed on by others: see commit
	applied tree.Seq              // of saved
	keep    bool                  // keep a journal
}

type memInode struct {
	tree.Content
	mtime tree.Time
}

type record struct {
	seq  tree.Seq
	kind byte // 'd'ata, 't'runcate, 'p'unch, 'w'riteback
	ino  tree.Ino
	off  uint64
	n    uint64
	data []byte
	w    tree.Writeback
}

func newMemInodes(t testing.TB, s *memStripes) *memInodes {
	return &memInodes{t: t, stripes: s, files: map[tree.Ino]*memInode{}, saved: map[tree.Ino]memInode{}, keep: true}
}

func (m *memInodes) make(ino tree.Ino) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.files[ino] = &memInode{}
	m.saved[ino] = memInode{}
}

func (m *memInodes) get(ino tree.Ino) (*memInode, error) {
	if f := m.files[ino]; f != nil {
		return f, nil
	}
	return nil, syscall.ENOENT
}

// log appends a record; the caller holds mu.
func (m *memInodes) log(r record) tree.Seq {
	m.seq++
	r.seq = m.seq
	if m.keep {
		m.journal = append(m.journal, r)
	}
	return m.seq
}

func (m *memInodes) mayAnswer(ctx context.Context) error {
	if !tree.MayWait(ctx) && m.dice.hit(m.slow) {
		return tree.ErrWait
	}
	return nil
}

func (m *memInodes) AppendData(ctx context.Context, ino tree.Ino, off uint64, p []byte) (tree.Seq, error) {
	if err := m.mayAnswer(ctx); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.get(ino); err != nil {
		return 0, err
	}
	r := record{kind: 'd', ino: ino, off: off}
	if m.keep {
		r.data = bytes.Clone(p)
	}
	return m.log(r), nil
}

func (m *memInodes) Grown(tree.Ino, uint64, uint64, tree.Time) {}

func (m *memInodes) Content(ctx context.Context, ino tree.Ino, off, n uint64) (tree.Content, error) {
	if err := m.mayAnswer(ctx); err != nil {
		return tree.Content{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	f, err := m.get(ino)
	if err != nil {
		return tree.Content{}, err
	}
	return f.part(off, n), nil
}

// part returns content with nothing but what was asked for, as a file with maps may.
func (f *memInode) part(off, n uint64) tree.Content {
	c := f.Content
	c.Part = tree.Range{From: off, To: off + n}
	c.Extents = within(c.Extents, off, n)
	return c
}

func (m *memInodes) Writeback(_ context.Context, w tree.Writeback) error {
	if m.dice.hit(m.fail) {
		return fmt.Errorf("fake: %w", blocks.ErrUnavailable)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	f, err := m.get(w.Ino)
	if err != nil {
		return err
	}
	var end uint64
	for _, e := range w.Extents {
		m.stripes.mu.Lock()
		ok := m.stripes.synced[e.Stripe.ID]
		m.stripes.named[e.Stripe.ID] = true
		m.stripes.mu.Unlock()
		if !ok {
			m.t.Errorf("Writeback names stripe %s, which is not durable", e.Stripe.ID.Short())
		}
		if e.Off < end || e.Len == 0 || uint64(e.At)+e.Len > uint64(e.Stripe.Len) {
			m.t.Errorf("Writeback with a wrong extent: %+v after %d", e, end)
		}
		end = e.Off + e.Len
	}
	if w.Size < end || w.Size < uint64(len(w.Inline)) || len(w.Inline) > tree.MaxInline || (w.Inline != nil && end > 0) || w.Flushed < f.Flushed {
		m.t.Errorf("wrong Writeback: size %d, extents end at %d, %d bytes inline, flushed %d after %d", w.Size, end, len(w.Inline), w.Flushed, f.Flushed)
	}
	m.log(record{kind: 'w', ino: w.Ino, w: w})
	f.writeback(w)
	return nil
}

func (f *memInode) writeback(w tree.Writeback) {
	if w.Inline != nil {
		f.Inline, f.Extents = bytes.Clone(w.Inline), nil
	}
	for _, e := range w.Extents {
		f.cut(e.Off, e.Off+e.Len)
		f.Extents = append(f.Extents, e)
		slices.SortFunc(f.Extents, func(a, b tree.Extent) int { return int(int64(a.Off) - int64(b.Off)) })
	}
	f.truncate(w.Size)
	f.Flushed = w.Flushed
	if w.Mtime != 0 {
		f.mtime = w.Mtime
	}
}

// cut removes extents of [from, to) into a new slice.
func (f *memInode) cut(from, to uint64) {
	var out []tree.Extent
	for _, e := range f.Extents {
		end := e.Off + e.Len
		if end <= from || e.Off >= to {
			out = append(out, e)
			continue
		}
		if e.Off < from {
			l := e
			l.Len = from - e.Off
			out = append(out, l)
		}
		if end > to {
			r := e
			r.Off, r.Len, r.At = to, end-to, e.At+uint32(to-e.Off)
			out = append(out, r)
		}
	}
	f.Extents = out
}

func (f *memInode) truncate(size uint64) {
	if size < f.Size {
		f.cut(size, noCap)
		f.Inline = bytes.Clone(f.Inline[:min(size, uint64(len(f.Inline)))])
	}
	f.Size = size
}

func (f *memInode) punch(off, n uint64) {
	f.cut(off, off+n)
	f.Inline = bytes.Clone(f.Inline)
	if off < uint64(len(f.Inline)) {
		clear(f.Inline[off:min(off+n, uint64(len(f.Inline)))])
	}
}

func (m *memInodes) Truncate(ctx context.Context, ino tree.Ino, size uint64) error {
	if err := m.mayAnswer(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	f, err := m.get(ino)
	if err == nil {
		m.log(record{kind: 't', ino: ino, off: size})
		f.truncate(size)
	}
	m.mu.Unlock()
	if err == nil {
		m.hooks.TrimFile(ino, size)
	}
	return err
}

func (m *memInodes) Punch(ctx context.Context, ino tree.Ino, off, n uint64) error {
	if err := m.mayAnswer(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	f, err := m.get(ino)
	if err == nil {
		m.log(record{kind: 'p', ino: ino, off: off, n: n})
		f.punch(off, n)
	}
	return err
}

func (m *memInodes) Fsync(context.Context, tree.Ino) error { return nil }
func (m *memInodes) OwnerOf(ino tree.Ino) blocks.Owner     { return blocks.Owner{Ino: uint64(ino)} }

// commit makes the state now what survives a kill without the journal, and trims the journal.
func (m *memInodes) commit(floor func() tree.Seq) {
	m.mu.Lock()
	for ino, f := range m.files {
		m.saved[ino] = *f
	}
	m.applied = m.seq
	m.mu.Unlock()
	low := floor()
	m.mu.Lock()
	defer m.mu.Unlock()
	if low == 0 || low > m.applied+1 {
		low = m.applied + 1
	}
	for len(m.journal) > 0 && m.journal[0].seq < low {
		m.journal = m.journal[1:]
	}
}

// restart is a kill: what was committed, then the journal again.
func (m *memInodes) restart(hooks Hooks) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hooks = hooks
	for ino := range maps.Keys(m.files) {
		f := m.saved[ino]
		m.files[ino] = &f
	}
	for _, r := range m.journal {
		f := m.files[r.ino]
		if f == nil {
			continue
		}
		again := r.seq > m.applied
		switch r.kind {
		case 'd':
			if r.seq > f.Flushed {
				hooks.ReplayData(r.ino, r.seq, r.off, r.data)
			}
		case 't':
			if again {
				f.truncate(r.off)
			}
			hooks.TrimFile(r.ino, r.off)
		case 'p':
			if again {
				f.punch(r.off, r.n)
			}
			hooks.PunchFile(r.ino, r.off, r.n)
		case 'w':
			if again {
				f.writeback(r.w)
			}
		}
	}
}

// start runs Files until the test, or the returned function, ends it.
func start(t testing.TB, cfg Config) (*Files, func()) {
	fs, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if m, ok := cfg.Inodes.(*memInodes); ok && m.hooks == nil {
		m.hooks = fs
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = fs.Run(ctx) }()
	var once sync.Once
	stop := func() { once.Do(func() { cancel(); <-done }) }
	t.Cleanup(stop)
	return fs, stop
}

// durable reads a file from the tree and the synced stripes alone.
func (m *memInodes) durable(t testing.TB, ino tree.Ino) []byte {
	m.mu.Lock()
	c := m.files[ino].Content
	m.mu.Unlock()
	p := make([]byte, c.Size)
	copy(p, c.Inline)
	m.stripes.mu.Lock()
	defer m.stripes.mu.Unlock()
	for _, e := range c.Extents {
		s := m.stripes.stripes[e.Stripe.ID]
		if s == nil || !m.stripes.synced[e.Stripe.ID] {
			t.Fatalf("stripe %s of inode %d is not there", e.Stripe.ID.Short(), ino)
		}
		copy(p[e.Off:e.Off+e.Len], s[e.At:])
	}
	return p
}
