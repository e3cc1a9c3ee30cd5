package tree

import (
	"bytes"
	"fmt"
	"maps"
	"slices"

	"github.com/mutualfs/mutualfs/blocks"
)

// formatVersion begins every snapshot and batch.
const (
	formatVersion  = 3
	formatUnmapped = 2 // before files had maps; still read
	formatUnpaged  = 1 // before directories had pages; still read
)

const (
	inodeMin  = 16                // bytes of the smallest encoded inode
	extentMin = 5                 // bytes of the smallest encoded extent
	entryMin  = 3                 // bytes of the smallest encoded entry
	refMin    = blocks.IDSize + 1 // bytes of an encoded back reference
	flushMin  = blocks.IDSize + 1 // bytes of an encoded MountSeq
)

func encodeRegs(e *blocks.Encoder, ids []blocks.RegisterID) {
	e.Uint(uint64(len(ids)))
	for _, id := range ids {
		e.ID(id.ID)
	}
}

func decodeRegs(d *blocks.Decoder) []blocks.RegisterID {
	ids := make([]blocks.RegisterID, d.Count(blocks.IDSize))
	for i := range ids {
		ids[i].ID = d.ID()
	}
	return ids
}

func encodeEntry(e *blocks.Encoder, v Dentry) {
	child := !v.Child.IsZero()
	e.Uint(uint64(v.Type))
	e.Uint(uint64(v.Ino))
	e.Bool(child)
	if child {
		e.ID(v.Child.ID)
	}
}

func decodeEntry(d *blocks.Decoder) Dentry {
	v := Dentry{Type: uint32(d.Uint()), Ino: Ino(d.Uint())}
	if d.Bool() {
		v.Child.ID = d.ID()
	}
	return v
}

// Extents: count, then for each: gap since the end of the one before, length, whether
// the stripe is the one before's; if not, stripe ID, length, K, M; then At.
func encodeExtents(e *blocks.Encoder, ext []Extent) {
	e.Uint(uint64(len(ext)))
	var at uint64
	var last blocks.StripeRef
	for _, x := range ext {
		e.Uint(x.Off - at)
		e.Uint(x.Len)
		same := x.Stripe == last
		e.Bool(same)
		if !same {
			e.ID(x.Stripe.ID.ID)
			e.Uint(uint64(x.Stripe.Len))
			e.Byte(x.Stripe.K)
			e.Byte(x.Stripe.M)
		}
		e.Uint(uint64(x.At))
		at, last = x.Off+x.Len, x.Stripe
	}
}

func decodeExtents(d *blocks.Decoder) ([]Extent, error) {
	n := d.Count(extentMin - 1)
	if n == 0 {
		return nil, d.Err()
	}
	ext := make([]Extent, 0, n)
	var at uint64
	var last blocks.StripeRef
	for range n {
		x := Extent{Off: at + d.Uint(), Len: d.Uint()}
		if !d.Bool() {
			last = blocks.StripeRef{ID: blocks.StripeID{ID: d.ID()}, Len: uint32(d.Uint()), K: d.Byte(), M: d.Byte()}
		}
		x.Stripe, x.At = last, uint32(d.Uint())
		if d.Err() != nil {
			return nil, d.Err()
		}
		if err := checkExtent(x, at); err != nil {
			return nil, err
		}
		at = x.Off + x.Len
		ext = append(ext, x)
	}
	return ext, nil
}

func checkExtent(x Extent, from uint64) error {
	if x.Off < from || x.Len == 0 || x.Len > MaxFile || x.Off > MaxFile-x.Len ||
		x.Stripe.Len > blocks.MaxStripe || uint64(x.At)+x.Len > uint64(x.Stripe.Len) {
		return fmt.Errorf("%w: extent %d+%d at %d of a stripe of %d", blocks.ErrCorrupt, x.Off, x.Len, x.At, x.Stripe.Len)
	}
	return nil
}

// Inode: ino, mode, nlink, uid, gid, rdev, size, atime, mtime, ctime, target, xattrs, inline,
// extents, flushed, keeper.
func encodeInode(e *blocks.Encoder, n *Inode) {
	e.Uint(uint64(n.Ino))
	e.Uint(uint64(n.Mode))
	e.Uint(uint64(n.Nlink))
	e.Uint(uint64(n.Uid))
	e.Uint(uint64(n.Gid))
	e.Uint(uint64(n.Rdev))
	e.Uint(n.Size)
	e.Int(int64(n.Atime))
	e.Int(int64(n.Mtime))
	e.Int(int64(n.Ctime))
	e.String(n.Target)
	e.Uint(uint64(len(n.Xattrs)))
	for _, x := range n.Xattrs {
		e.String(x.Name)
		e.Bytes(x.Value)
	}
	e.Bytes(n.Inline)
	encodeExtents(e, n.Extents)
	e.Uint(uint64(len(n.Flushed)))
	for _, f := range n.Flushed {
		e.ID(f.Mount.ID)
		e.Uint(uint64(f.Seq))
	}
	encodeRegs(e, n.Keepers)
}

func decodeInode(d *blocks.Decoder) (*Inode, error) {
	n := &Inode{Ino: Ino(d.Uint()), Mode: uint32(d.Uint()), Nlink: uint32(d.Uint()), Uid: uint32(d.Uint()), Gid: uint32(d.Uint()),
		Rdev: uint32(d.Uint()), Size: d.Uint(), Atime: Time(d.Int()), Mtime: Time(d.Int()), Ctime: Time(d.Int()), Target: d.String()}
	for range d.Count(2) {
		x := Xattr{d.String(), append([]byte{}, d.Bytes()...)}
		if l := len(n.Xattrs); l > 0 && n.Xattrs[l-1].Name >= x.Name {
			return nil, fmt.Errorf("%w: extended attributes out of order", blocks.ErrCorrupt)
		}
		n.Xattrs = append(n.Xattrs, x)
	}
	if b := d.Bytes(); len(b) > 0 {
		n.Inline = slices.Clone(b)
	}
	var err error
	if n.Extents, err = decodeExtents(d); err != nil {
		return nil, err
	}
	for range d.Count(flushMin) {
		n.Flushed = append(n.Flushed, MountSeq{blocks.PeerID{ID: d.ID()}, Seq(d.Uint())})
	}
	n.Keepers = decodeRegs(d)
	if d.Err() == nil && (n.Size > MaxFile || uint64(len(n.Inline)) > n.Size) {
		return nil, fmt.Errorf("%w: inode %d of size %d with %d bytes inline", blocks.ErrCorrupt, n.Ino, n.Size, len(n.Inline))
	}
	n.count()
	return n, d.Err()
}

func sortedIDs[K comparable, V any](m map[K]V, id func(K) blocks.ID) []K {
	return slices.SortedFunc(maps.Keys(m), func(a, b K) int { x, y := id(a), id(b); return bytes.Compare(x[:], y[:]) })
}

func stripeID(s blocks.StripeID) blocks.ID     { return s.ID }
func registerID(r blocks.RegisterID) blocks.ID { return r.ID }

// encodeInodes writes the inodes, those that have gone elsewhere among them: of these the type is 0, and the target is the
// register that they went to.
func (s *State) encodeInodes(e *blocks.Encoder) {
	inos := slices.AppendSeq(slices.Collect(maps.Keys(s.inodes)), maps.Keys(s.left))
	slices.Sort(inos)
	e.Uint(uint64(len(inos)))
	for _, ino := range inos {
		n := s.inodes[ino]
		if h := s.left[ino]; h != nil {
			n = &Inode{Ino: ino, Target: string(h.to.ID[:]), Keepers: h.keepers}
		}
		encodeInode(e, n)
	}
}

// encodeState makes the value of a snapshot. Equal states have equal encodings.
func encodeState(s *State) []byte {
	e := &blocks.Encoder{Buf: make([]byte, 0, 256+128*len(s.entries))}
	e.Byte(formatVersion)
	e.Byte(byte(s.Kind))
	e.Bool(s.Dead)
	e.Byte(byte(s.Txn))
	encodeInode(e, &s.Self)
	e.ID(s.Parent.ID)
	e.Uint(uint64(s.ParentIno))
	e.Uint(uint64(len(s.entries)))
	for _, name := range slices.Sorted(maps.Keys(s.entries)) {
		e.String(name)
		encodeEntry(e, s.entries[name])
	}
	s.encodeInodes(e)
	e.Uint(uint64(len(s.refs)))
	for _, r := range sortedIDs(s.refs, registerID) {
		e.ID(r.ID)
		e.Uint(uint64(s.refs[r]))
	}
	e.Uint(uint64(len(s.free)))
	for _, f := range sortedIDs(s.free, stripeID) {
		e.ID(f.ID)
	}
	encodeRegs(e, sortedIDs(s.freeRegs, registerID))
	e.Bool(s.intent != nil)
	if s.intent != nil {
		s.intent.op().encode(e)
	}
	s.encodePages(e)
	s.encodeMaps(e)
	return e.Buf
}

// op returns the operation that made the intent.
func (in *Intent) op() *Op {
	return &Op{Kind: OpIntent, Txn: in.Txn, Parts: in.Parts, Inner: in.Op, Regs: in.OnCommit, Abort: in.OnAbort, Drop: in.FreesTxn, Mount: in.CreatedBy}
}

func intentOf(o *Op) *Intent {
	return &Intent{Txn: o.Txn, Parts: o.Parts, Op: o.Inner, OnCommit: o.Regs, OnAbort: o.Abort, FreesTxn: o.Drop, CreatedBy: o.Mount}
}

// decodeState reads a snapshot's value.
func decodeState(b []byte) (*State, error) {
	d := blocks.NewDecoder(b)
	v := d.Byte()
	if d.Err() == nil && (v == 0 || v > formatVersion) {
		return nil, fmt.Errorf("%w: snapshot of format %d", blocks.ErrCorrupt, v)
	}
	s := newState(Kind(d.Byte()))
	if d.Err() == nil && (s.Kind < KindDir || s.Kind > KindMap) {
		return nil, fmt.Errorf("%w: container of unknown kind %d", blocks.ErrCorrupt, s.Kind)
	}
	s.Dead = d.Bool()
	s.Txn = TxnState(d.Byte())
	self, err := decodeInode(d)
	if err != nil {
		return nil, err
	}
	s.Self = *self
	s.Parent.ID = d.ID()
	s.ParentIno = Ino(d.Uint())
	if err := s.decodeNames(d); err != nil {
		return nil, err
	}
	for range d.Count(refMin) {
		if s.refs == nil {
			s.refs = map[blocks.RegisterID]uint32{}
		}
		s.refs[blocks.RegisterID{ID: d.ID()}] = uint32(d.Uint())
	}
	for range d.Count(blocks.IDSize) {
		s.free[blocks.StripeID{ID: d.ID()}] = struct{}{}
	}
	for _, r := range decodeRegs(d) {
		s.freeRegs[r] = struct{}{}
	}
	if d.Bool() {
		o, err := decodeOp(d, 0)
		if err != nil {
			return nil, err
		}
		s.intent = intentOf(o)
	}
	if v != formatUnpaged {
		if err := s.decodePages(d); err != nil {
			return nil, err
		}
	}
	if v > formatUnmapped {
		if err := s.decodeMaps(d); err != nil {
			return nil, err
		}
	}
	return s, d.Done()
}

func (s *State) decodeNames(d *blocks.Decoder) error {
	n := d.Count(entryMin)
	if s.named() {
		s.entries = make(map[string]Dentry, n)
	} else if n > 0 {
		return fmt.Errorf("%w: names in a container of kind %d", blocks.ErrCorrupt, s.Kind)
	}
	for range n {
		name := d.String()
		v := decodeEntry(d)
		s.entries[name] = v
		if isDir(v.Type) {
			s.subdirs++
		}
	}
	n = d.Count(inodeMin)
	s.inodes, s.left = make(map[Ino]*Inode, n), map[Ino]*husk{}
	for range n {
		x, err := decodeInode(d)
		if err != nil {
			return err
		}
		if x.Mode != 0 {
			s.inodes[x.Ino] = x
			continue
		}
		h := &husk{keepers: x.Keepers}
		if copy(h.to.ID[:], x.Target) != blocks.IDSize || len(x.Target) != blocks.IDSize {
			return fmt.Errorf("%w: inode %d has gone nowhere", blocks.ErrCorrupt, x.Ino)
		}
		s.left[x.Ino] = h
	}
	for name, v := range s.entries {
		if v.Child.IsZero() && s.inodes[v.Ino] == nil && d.Err() == nil {
			return fmt.Errorf("%w: the name %q points to no inode", blocks.ErrCorrupt, name)
		}
	}
	return d.Err()
}
