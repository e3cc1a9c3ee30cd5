package tree

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/mutualfs/mutualfs/blocks"
)

// Config says what a Tree is made of. Zero limits mean the defaults of Default.
type Config struct {
	Registers  Registers
	Root       blocks.RegisterID // of the root directory, see Format
	Mount      blocks.PeerID     // whose operations these are; one Tree at a time per mount
	VolumeKey  []byte            // 32 bytes
	JournalDir string            // of this mount alone
	Rand       io.Reader         // nil: crypto/rand
	Log        *zerolog.Logger   // nil: none
	Hooks      Hooks             // nil until SetContent
	// DeleteStripe removes the shards of a stripe that no file uses any more; it is called again
	// after an error. nil: stripes stay on the free lists.
	DeleteStripe func(ctx context.Context, id blocks.StripeID) error

	FlushAge      time.Duration // operations are committed at most so long after they were answered
	FlushOps      int           // so many pending operations of one container are committed at once
	FlushParallel int           // containers that are committed at the same time
	CommitTimeout time.Duration // bounds one attempt to commit
	LeasePause    time.Duration // after a recall, so long no lease on that container is taken
	IntentWait    time.Duration // so long a foreign transaction may be pending before it is aborted
	JournalBytes  int64         // all of the journal; writers wait beyond it
	SegmentBytes  int64         // one file of the journal
	CacheBytes    int64         // approximate memory for containers; those in use come on top
	FreeParallel  int           // stripes that are deleted at the same time
	FreeEvery     time.Duration // so often what could not be freed is tried again, and the mounts that keep orphans are looked at
	NoAtime       bool          // reading sets no access times
	AtimeAge      time.Duration // so long access times are kept in memory alone
	NoteAge       time.Duration // so long it stays noted that a file is open after it was closed
	SplitEntries  int           // names of a directory, or of one of its pages, beyond which it is split
	FileExtents   int           // extents of a file beyond which it gets a container of its own
	MapExtents    int           // extents of such a file beyond which they go to maps
	MapBytes      uint64        // what of a file one map covers: a multiple of what content gathers in one stripe
}

// Default returns the limits that a mount has unless it is told otherwise.
func Default() Config {
	return Config{
		FlushAge:      time.Second,
		FlushOps:      4096,
		FlushParallel: 16,
		CommitTimeout: 10 * time.Second,
		LeasePause:    3 * time.Second,
		IntentWait:    time.Second,
		JournalBytes:  4 << 30,
		SegmentBytes:  64 << 20,
		CacheBytes:    256 << 20,
		FreeParallel:  16,
		FreeEvery:     30 * time.Second,
		NoteAge:       5 * time.Second,
		AtimeAge:      time.Minute,
		SplitEntries:  8000,
		FileExtents:   64,
		MapExtents:    4096,
		MapBytes:      MapBytes,
	}
}

// Validate says what is missing or out of range.
func (c *Config) Validate() error {
	switch {
	case c.Registers == nil:
		return fmt.Errorf("%w: tree: no registers", blocks.ErrInvalid)
	case c.Root.IsZero() || c.Mount.IsZero():
		return fmt.Errorf("%w: tree: the root's and the mount's ID must be set", blocks.ErrInvalid)
	case len(c.VolumeKey) != 32:
		return fmt.Errorf("%w: tree: a volume key of %d bytes, not 32", blocks.ErrInvalid, len(c.VolumeKey))
	case c.JournalDir == "":
		return fmt.Errorf("%w: tree: no directory for the journal", blocks.ErrInvalid)
	case c.JournalBytes < 2*c.SegmentBytes:
		return fmt.Errorf("%w: tree: a journal of %d bytes in segments of %d", blocks.ErrInvalid, c.JournalBytes, c.SegmentBytes)
	}
	return nil
}

func (c *Config) fill() {
	d := Default()
	def(&c.FlushAge, d.FlushAge)
	def(&c.FlushOps, d.FlushOps)
	def(&c.FlushParallel, d.FlushParallel)
	def(&c.CommitTimeout, d.CommitTimeout)
	def(&c.LeasePause, d.LeasePause)
	def(&c.IntentWait, d.IntentWait)
	def(&c.JournalBytes, d.JournalBytes)
	def(&c.SegmentBytes, d.SegmentBytes)
	def(&c.CacheBytes, d.CacheBytes)
	def(&c.FreeParallel, d.FreeParallel)
	def(&c.FreeEvery, d.FreeEvery)
	def(&c.NoteAge, d.NoteAge)
	def(&c.AtimeAge, d.AtimeAge)
	def(&c.SplitEntries, d.SplitEntries)
	def(&c.FileExtents, d.FileExtents)
	def(&c.MapExtents, d.MapExtents)
	def(&c.MapBytes, d.MapBytes)
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.Hooks == nil {
		c.Hooks = noHooks{}
	}
}

func def[T int | int64 | uint64 | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

// node is what the mount knows of an inode beyond the agreed state.
type node struct {
	home    blocks.RegisterID // the container that the inode lies in
	lookups uint64            // the kernel's references
	opens   int               // handles
	foreign bool              // another mount changed it since the last Open
	kept    bool              // there may be a note that it is open in this process
	// nameless says that this mount took the last name, from the kernel's memory as well, and kept the file until the kernel forgets it.
	nameless bool

	ghost *ghost // what is left of an inode that ended here; nil: it has not

	grownEnd   uint64 // end of the dirty data; 0: none
	grownBytes uint64 // dirty bytes, those written again counted again
	grownMtime Time
	atime      Time  // of a read that the container does not have; 0: none
	mtimeSeq   Seq   // the last operation that set the time of modification
	data       Seq   // the last data record
	flushed    Seq   // all data records up to here have been written back
	err        error // what the next Fsync has to report
}

func (n *node) unwritten() bool { return n.data > n.flushed }

func (n *node) idle() bool {
	return n.lookups == 0 && n.opens == 0 && !n.kept && n.atime == 0 && !n.unwritten() && n.err == nil
}

// Tree is one mount's view of the tree. All methods may be called concurrently once
// Run has been started; until it has replayed the journal they wait.
type Tree struct {
	cfg      Config
	regs     Registers
	log      zerolog.Logger
	hooks    Hooks
	notifier atomic.Pointer[Notifier]
	floor    func() Seq
	j        *journal
	randMu   sync.Mutex
	nextIno  atomic.Uint64
	ready    chan struct{}
	flushNow chan struct{}
	freeNow  chan struct{}
	making   sections
	ahead    ahead

	mu       sync.RWMutex // guards the two maps and the nodes in them
	conts    map[blocks.RegisterID]*container
	nodes    map[Ino]*node
	accessed map[Ino]struct{}     // nodes with an access time
	leaving  map[noteAt]time.Time // notes that are to be ended by the freer, and from when on

	trash map[blocks.RegisterID]int // transactions to be ended by the freer, and how often that was tried

	session session
	sums    sums
}

// New opens the journal and returns a Tree that answers once Run replayed it.
func New(cfg Config) (*Tree, error) {
	cfg.fill()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	t := &Tree{cfg: cfg, regs: cfg.Registers, log: zerolog.Nop(), hooks: cfg.Hooks, floor: func() Seq { return 0 },
		ready: make(chan struct{}), flushNow: make(chan struct{}, 1), freeNow: make(chan struct{}, 1),
		conts: map[blocks.RegisterID]*container{}, nodes: map[Ino]*node{}, leaving: map[noteAt]time.Time{}, accessed: map[Ino]struct{}{}, trash: map[blocks.RegisterID]int{}, ahead: newAhead()}
	if cfg.Log != nil {
		t.log = *cfg.Log
	}
	t.SetNotifier(noNotifier{})
	var b [8]byte
	if _, err := io.ReadFull(cfg.Rand, b[:]); err != nil {
		return nil, fmt.Errorf("draw inode numbers: %w", err)
	}
	// A random start in 63 bits: the ranges of mounts do not meet.
	t.nextIno.Store(binary.BigEndian.Uint64(b[:]) >> 1)
	var err error
	if err = t.session.init(cfg.Rand); err != nil {
		return nil, err
	}
	if t.j, err = openJournal(cfg.JournalDir, cfg.SegmentBytes, cfg.JournalBytes); err != nil {
		return nil, err
	}
	t.nodes[RootIno] = &node{home: cfg.Root, lookups: 1}
	t.regs.OnRecall(t.recall)
	return t, nil
}

// SetContent sets who holds the files' dirty data. Call it before Run.
func (t *Tree) SetContent(h Hooks) { t.hooks = h }

// DirtyFloor sets who tells the lowest number of a data record that is still
// dirty, 0 for none. Call it before Run. Data that a call of AppendData returned must be counted within FlushAge.
func (t *Tree) DirtyFloor(f func() Seq) { t.floor = f }

// SetNotifier sets who tells the kernel what has changed behind its back.
func (t *Tree) SetNotifier(n Notifier) { t.notifier.Store(&n) }

func (t *Tree) notify() Notifier { return *t.notifier.Load() }

// Run replays the journal, commits in the background and deletes what became free, until ctx ends; then it
// tries once more, for CommitTimeout, to commit everything, and returns. What could not be committed
// stays in the journal for the next start.
func (t *Tree) Run(ctx context.Context) error {
	if err := t.replay(ctx); err != nil {
		return errors.Join(fmt.Errorf("replay the journal: %w", err), t.j.close())
	}
	close(t.ready)
	var wg sync.WaitGroup
	wg.Go(func() { t.flusher(ctx) })
	wg.Go(func() { t.freer(ctx) })
	wg.Go(func() { t.readAhead(ctx) })
	wg.Wait()
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.cfg.CommitTimeout)
	defer cancel()
	t.flushAtimes()
	t.forgetAll()
	t.endNotes(end, true)
	if err := t.Sync(end); err != nil {
		t.log.Warn().Err(err).Msg("not everything could be committed; it stays in the journal")
		return t.j.close()
	}
	t.releaseAll(end)
	t.endSession(end, t.sessionID())
	if t.floor() == 0 {
		if err := t.j.clear(); err != nil {
			t.log.Warn().Err(err).Msg("the journal could not be emptied")
		}
	}
	return t.j.close()
}

// Ready is closed when the journal has been replayed.
func (t *Tree) Ready() <-chan struct{} { return t.ready }

func (t *Tree) awaitReady(ctx context.Context) error {
	select {
	case <-t.ready:
		return nil
	default:
	}
	if !MayWait(ctx) {
		return ErrWait
	}
	select {
	case <-t.ready:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the journal is being replayed: %w", ctx.Err())
	}
}

func (t *Tree) newIno() Ino {
	for {
		if n := Ino(t.nextIno.Add(1) & (1<<63 - 1)); n > RootIno {
			return n
		}
	}
}

func (t *Tree) newID() (blocks.RegisterID, error) {
	t.randMu.Lock()
	defer t.randMu.Unlock()
	id, err := blocks.RandomID(t.cfg.Rand)
	return blocks.RegisterID{ID: id}, err
}

// Read makes Tree a source of randomness for the sealers: Config.Rand by one caller at a time.
type lockedRand struct{ t *Tree }

func (r lockedRand) Read(p []byte) (int, error) {
	r.t.randMu.Lock()
	defer r.t.randMu.Unlock()
	return io.ReadFull(r.t.cfg.Rand, p)
}

func now() Time { return TimeOf(time.Now()) }

// home returns the container of an inode.
func (t *Tree) home(ino Ino) (blocks.RegisterID, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if n := t.nodes[ino]; n != nil {
		return n.home, nil
	}
	return blocks.RegisterID{}, syscall.ESTALE
}

// withNode calls f with the inode's node under the lock, if there is one.
func (t *Tree) withNode(ino Ino, f func(n *node)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.nodes[ino]; n != nil {
		f(n)
	}
}

// at makes sure that there is a node for ino, and returns it. mu must be held.
func (t *Tree) at(ino Ino, home blocks.RegisterID) *node {
	n := t.nodes[ino]
	if n == nil {
		n = &node{home: home}
		t.nodes[ino] = n
	}
	n.home = home
	return n
}

// Format creates the root directory and the lock for moves of directories. It is done once in the life
// of a ring. If the root exists already the error is of class blocks.ErrExists.
func Format(ctx context.Context, regs Registers, mount blocks.PeerID, root blocks.RegisterID, volumeKey []byte, uid, gid uint32, rnd io.Reader) error {
	if rnd == nil {
		rnd = rand.Reader
	}
	create := func(id blocks.RegisterID, s *State) error {
		sl, err := newSealer(volumeKey, id, rnd)
		if err != nil {
			return err
		}
		v, err := sl.seal(sealSnapshot, encodeState(s))
		if err != nil {
			return err
		}
		_, err = regs.Propose(ctx, id, blocks.Change{Origin: mount, Seq: 1, Snapshot: v})
		return err
	}
	if err := create(lockID(root), newState(KindLock)); err != nil && !errors.Is(err, blocks.ErrConflict) {
		return fmt.Errorf("create the rename lock: %w", err)
	}
	s := newDir(RootIno, 0o755, uid, gid, now(), nil, blocks.RegisterID{}, RootIno)
	err := create(root, s)
	if errors.Is(err, blocks.ErrConflict) {
		return fmt.Errorf("%w: the root directory %s", blocks.ErrExists, root.Short())
	}
	if err != nil {
		return fmt.Errorf("create the root directory: %w", err)
	}
	return nil
}

// lockID names the register of the lock that moves of directories take.
func lockID(root blocks.RegisterID) blocks.RegisterID {
	return blocks.RegisterID{ID: blocks.HashID([]byte("mutualfs rename lock"), root.ID[:])}
}
