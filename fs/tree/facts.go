package tree

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"syscall"

	"github.com/mutualfs/mutualfs/blocks"
)

// Facts is what an audit needs to know of the agreed state of one register. It is a value of its own: nothing
// in it belongs to a mount.
type Facts struct {
	ID        blocks.RegisterID
	Version   blocks.Version
	Kind      Kind
	Holder    blocks.PeerID // of a session: whose it is, zero if it is over
	Dead      bool
	Ino       Ino               // of a directory; of a map: of its file
	Parent    blocks.RegisterID // of a directory; of a page: its head; of a map: the promoted inode
	ParentIno Ino
	Pages     []blocks.RegisterID // the table of a directory that is spread over pages
	Next      blocks.RegisterID   // of a page, zero for the last
	Maps      []blocks.RegisterID // of a promoted inode
	Names     []NameFacts
	Inodes    []InodeFacts
	Refs      map[blocks.RegisterID]uint32 // of a promoted inode: names per directory
	Free      []blocks.StripeID
	FreeRegs  []blocks.RegisterID
	// Txns are the transactions that had an intent here. One that has been decided is in effect in what is above; of
	// one that is Undecided, Brings and Pending are the registers and the stripes that it would bring here.
	Txns      []blocks.RegisterID
	Undecided bool
	Brings    []blocks.RegisterID
	Pending   []blocks.StripeID
}

// NameFacts is a name in a directory or page.
type NameFacts struct {
	Name string
	Dentry
}

// InodeFacts is an inode that lies in a container, a directory's own excepted. Of a map: the inode whose extents it has, as far as
// they are there.
type InodeFacts struct {
	Ino     Ino
	Nlink   uint32
	Mode    uint32
	Keepers []blocks.RegisterID // sessions that have it open
	Stripes []blocks.StripeRef
}

// Agreed reads the newest agreed state of a register, what is newer than version since, and leaves leases where they
// are. The error is of class ErrNotFound if the register has been deleted.
type Agreed interface {
	ReadAgreed(ctx context.Context, id blocks.RegisterID, since blocks.Version) (blocks.Register, error)
}

// Surveyor reads facts. Its methods may be called concurrently.
type Surveyor struct {
	regs Agreed
	key  []byte
}

// NewSurveyor returns a Surveyor for containers that are sealed with the volume key.
func NewSurveyor(regs Agreed, volumeKey []byte) *Surveyor { return &Surveyor{regs, volumeKey} }

// Facts reads a container. The error is of class ErrNotFound if it has ended, ErrCorrupt if it cannot be understood.
func (s *Surveyor) Facts(ctx context.Context, id blocks.RegisterID) (*Facts, error) {
	f, _, err := s.read(ctx, id, nil)
	return f, err
}

// Again reads a container once more. steady says that since old was read no inode has come or gone but by being
// made or removed: whatever an inode has was seen both times.
func (s *Surveyor) Again(ctx context.Context, old *Facts) (f *Facts, steady bool, err error) {
	r, err := s.regs.ReadAgreed(ctx, old.ID, old.Version)
	if err != nil {
		return nil, false, err
	}
	if r.Version == old.Version && len(old.Txns) == 0 {
		return old, true, nil
	}
	return s.read(ctx, old.ID, old)
}

func (s *Surveyor) read(ctx context.Context, id blocks.RegisterID, old *Facts) (f *Facts, steady bool, err error) {
	c := &container{id: id}
	if c.seal, err = newSealer(s.key, id, nil); err != nil {
		return nil, false, err
	}
	var late blocks.RegisterID // a transaction that has ended: see Tree.complete
	for range maxResolutions {
		r, err := s.regs.ReadAgreed(ctx, id, 0)
		if err != nil {
			return nil, false, err
		}
		if len(r.Snapshot) == 0 {
			return &Facts{ID: id, Version: r.Version, Kind: KindSession, Holder: r.Lease.Holder}, true, nil
		}
		st, err := c.stateOf(r)
		if err != nil {
			return nil, false, err
		}
		var txns []blocks.RegisterID
		if in := st.intent; in != nil {
			ended, err := s.resolve(ctx, st)
			if err != nil {
				return nil, false, err
			}
			if ended && late != in.Txn {
				late = in.Txn
				continue // and was resolved here before it ended
			}
			if ended {
				if _, err := Apply(st, &Op{Kind: OpResolve, Txn: in.Txn}); err != nil {
					return nil, false, err
				}
			}
			txns = append(txns, in.Txn)
		}
		f = factsOf(id, r.Version, st)
		f.Txns = txns
		// A decision changes what an intent means, and no version of its container.
		return f, old != nil && c.steady(old, r) && old.Undecided == f.Undecided, nil
	}
	return nil, false, fmt.Errorf("%w: container %s: one transaction after the other", blocks.ErrBusy, id.Short())
}

// resolve puts a transaction that has been decided into effect in a state. ended: its register has ended.
func (s *Surveyor) resolve(ctx context.Context, st *State) (ended bool, err error) {
	tc := &container{id: st.intent.Txn}
	if tc.seal, err = newSealer(s.key, tc.id, nil); err != nil {
		return false, err
	}
	r, err := s.regs.ReadAgreed(ctx, tc.id, 0)
	if errors.Is(err, blocks.ErrNotFound) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("read transaction %s: %w", tc.id.Short(), err)
	}
	txn, err := tc.stateOf(r)
	if err != nil {
		return false, err
	}
	if txn.Txn != TxnPending {
		_, err = Apply(st, &Op{Kind: OpResolve, Txn: tc.id, Drop: txn.Txn == TxnCommitted})
	}
	return false, err
}

// steady looks through what has been agreed since old. What a snapshot has taken the place of is not known.
func (c *container) steady(old *Facts, r blocks.Register) bool {
	if r.Version == old.Version {
		return true
	}
	if r.Base > old.Version {
		return false
	}
	for _, d := range r.Deltas[old.Version-r.Base:] {
		if len(d) == 0 {
			continue
		}
		ops, err := c.openDelta(d)
		if err != nil || slices.ContainsFunc(ops, carries) {
			return false
		}
	}
	return true
}

// carries reports whether an operation may bring an inode with its content from elsewhere, or take one away. What is not
// known to leave inodes where they are, may.
func carries(o *Op) bool {
	switch o.Kind {
	case OpMake, OpUnlink, OpLink, OpSetattr, OpSetXattr, OpRemoveXattr, OpWriteback, OpTruncate, OpPunch, OpRelease, OpFreeClear, OpReparent, OpTxn, OpKeep, OpAtime:
		return false
	case OpRmdir, OpRename, OpTouch:
		return len(o.Inodes) > 0
	}
	return true
}

func factsOf(id blocks.RegisterID, v blocks.Version, s *State) *Facts {
	f := &Facts{ID: id, Version: v, Kind: s.Kind, Dead: s.Dead, Ino: s.Self.Ino, Parent: s.Parent, ParentIno: s.ParentIno, Next: s.next, Refs: s.refs,
		Free: sortedIDs(s.free, stripeID), FreeRegs: sortedIDs(s.freeRegs, registerID)}
	for _, p := range s.pages {
		f.Pages = append(f.Pages, p.ID)
	}
	for _, m := range s.maps {
		f.Maps = append(f.Maps, m.ID)
	}
	if s.Kind == KindMap {
		f.Inodes = append(f.Inodes, InodeFacts{Ino: s.Self.Ino, Mode: syscall.S_IFREG, Stripes: s.Self.stripes()})
	}
	for _, name := range slices.Sorted(maps.Keys(s.entries)) {
		f.Names = append(f.Names, NameFacts{name, s.entries[name]})
	}
	for _, ino := range slices.Sorted(maps.Keys(s.inodes)) {
		n := s.inodes[ino]
		f.Inodes = append(f.Inodes, InodeFacts{Ino: ino, Nlink: n.Nlink, Mode: n.Mode, Keepers: n.Keepers, Stripes: n.stripes()})
	}
	if in := s.intent; in != nil {
		f.Undecided, f.Brings = true, slices.Concat(in.OnCommit, in.OnAbort)
		f.plan(in.Op)
	}
	return f
}

// plan notes what an operation that is not in effect would bring.
func (f *Facts) plan(o *Op) {
	if o == nil {
		return
	}
	f.Brings = append(f.Brings, o.Regs...)
	for _, m := range o.Maps {
		f.Brings = append(f.Brings, m.ID)
	}
	for _, id := range []blocks.RegisterID{o.Child, o.Entry.Child} {
		if !id.IsZero() {
			f.Brings = append(f.Brings, id)
		}
	}
	f.Pending = append(f.Pending, o.Stripes...)
	for i := range o.Extents {
		f.Pending = append(f.Pending, o.Extents[i].Stripe.ID)
	}
	for _, n := range o.Inodes {
		for _, s := range n.stripes() {
			f.Pending = append(f.Pending, s.ID)
		}
	}
}

// stripes lists the stripes that an inode's content lies in, each once.
func (n *Inode) stripes() []blocks.StripeRef {
	var all []blocks.StripeRef
	seen := map[blocks.StripeID]bool{}
	for i := range n.Extents {
		if ref := n.Extents[i].Stripe; !seen[ref.ID] {
			seen[ref.ID] = true
			all = append(all, ref)
		}
	}
	return all
}

// RenameLock names the register of the lock that moves of directories take.
func RenameLock(root blocks.RegisterID) blocks.RegisterID { return lockID(root) }
