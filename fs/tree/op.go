package tree

import (
	"fmt"
	"slices"

	"github.com/mutualfs/mutualfs/blocks"
)

// OpKind says what an operation does. The numbers are part of the format.
type OpKind uint8

const (
	OpMake        OpKind = 1  // Name, Ino, Mode, Uid, Gid, Rdev, Data (target; else the default ACL that it inherits), Child (directories), Keep, Session
	OpUnlink      OpKind = 2  // Name, Ino, Keep, Session
	OpRmdir       OpKind = 3  // Name, Ino, Child; what the child leaves behind: Stripes, Regs
	OpRename      OpKind = 4  // Name to New, Ino, Ino2 (what is replaced or exchanged), Flags, Keep, Session
	OpLink        OpKind = 5  // Ino gets the name New
	OpSetattr     OpKind = 6  // Ino, Set, Mode, Uid, Gid, Atime, Mtime
	OpSetXattr    OpKind = 7  // Ino, Name, Data, Flags; of an access ACL Set, Mode
	OpRemoveXattr OpKind = 8  // Ino, Name; of an access ACL Set, Mode
	OpWriteback   OpKind = 9  // Ino, Extents or Data, Size, Mtime, Mount, Flushed
	OpTruncate    OpKind = 10 // Ino, Size
	OpPunch       OpKind = 11 // Ino, Off, Size
	OpRelease     OpKind = 12 // Inos are not open in Session; those without a name that nobody has open end
	OpTouch       OpKind = 13 // the directory's times, and Ino's change time; Stripes become free
	OpFreeClear   OpKind = 14 // Stripes, Regs have been deleted
	OpMove        OpKind = 15 // Name: Ino2 goes out (Drop: it is replaced; Keep, Session), Child: where it goes; Session: who moves it), Entry comes in, Inodes: its inode
	OpPromote     OpKind = 16 // Ino goes into container Child; Session: who moves it
	OpReparent    OpKind = 17 // Child, Ino: the new parent of this directory
	OpDie         OpKind = 18 // this directory is replaced; it must be empty
	OpRef         OpKind = 19 // a promoted inode gains a name in Child (if not zero) and loses one in Txn (if not zero), Keep, Session
	OpIntent      OpKind = 20 // Txn, Parts, Inner, Regs (OnCommit), Abort (OnAbort), Drop (FreesTxn), Mount
	OpResolve     OpKind = 21 // Txn, Drop: commit, else abort
	OpTxn         OpKind = 22 // Flags: the new state of a transaction
	OpSpread      OpKind = 23 // a directory's names have gone to the pages Regs, each with the same share of the hashes
	OpSplit       OpKind = 24 // a page's hashes from Off on have gone to page Child
	OpLearn       OpKind = 25 // a directory's page Child begins at hash Off
	OpGather      OpKind = 26 // a directory's pages have ended, empty; Mtime and Atime (change time) are their newest; Regs: what they leave
	OpKeep        OpKind = 27 // Inos are open in Session
	OpAtime       OpKind = 28 // Inodes: numbers and access times, of those that are here
	OpSpill       OpKind = 29 // Ino: what of its extents can go to Maps has gone there; Size: bytes that a map covers
	OpFill        OpKind = 30 // a map of Ino hides Cuts of what it has, and gets Extents
	OpMend        OpKind = 31 // what an audit found: Name, Ino: the name goes; Ino, Drop: an inode without a name leaves; Ino, Regs: it counts its names again
	opKinds              = 32
)

// Bits of Op.Set.
const (
	setMode uint8 = 1 << iota
	setUid
	setGid
	setAtime
	setMtime
)

// Op is one operation on one container. Everything that Apply needs is in it,
// times and new numbers included; which fields matter is said beside the kinds.
// An Op is not changed once it has been made.
type Op struct {
	Kind    OpKind
	Time    Time
	Name    string
	New     string
	Ino     Ino
	Ino2    Ino
	Mode    uint32
	Uid     uint32
	Gid     uint32
	Rdev    uint32
	Data    []byte // target, value, inline content
	Inline  bool   // Data is the whole content of a file
	Child   blocks.RegisterID
	Flags   uint32
	Keep    bool // Session has the inode that is made, or loses a name, open; else, if there is a Session, it has not
	Drop    bool
	Size    uint64
	Off     uint64
	Atime   Time
	Mtime   Time
	Set     uint8
	Extents []Extent
	Flushed Seq
	Mount   blocks.PeerID
	Stripes []blocks.StripeID
	Regs    []blocks.RegisterID
	Abort   []blocks.RegisterID
	Parts   []blocks.RegisterID
	Txn     blocks.RegisterID
	Entry   Dentry
	Inodes  []*Inode
	Inner   *Op
	Inos    []Ino
	Session blocks.RegisterID
	Maps    []MapRef
	Cuts    []Range
}

// Fields of an encoded operation, by bit; zero fields are not written.
const (
	fTime = iota
	fName
	fNew
	fIno
	fIno2
	fMode
	fUid
	fGid
	fRdev
	fData
	fInline
	fChild
	fFlags
	fKeep
	fDrop
	fSize
	fOff
	fAtime
	fMtime
	fSet
	fExtents
	fFlushed
	fMount
	fStripes
	fRegs
	fAbort
	fParts
	fTxn
	fEntry
	fInodes
	fInner
	fInos
	fSession
	fMaps
	fCuts
	fCount
)

func (o *Op) mask() uint64 {
	var m uint64
	set := func(bit int, on bool) {
		if on {
			m |= 1 << bit
		}
	}
	set(fTime, o.Time != 0)
	set(fName, o.Name != "")
	set(fNew, o.New != "")
	set(fIno, o.Ino != 0)
	set(fIno2, o.Ino2 != 0)
	set(fMode, o.Mode != 0)
	set(fUid, o.Uid != 0)
	set(fGid, o.Gid != 0)
	set(fRdev, o.Rdev != 0)
	set(fData, len(o.Data) != 0)
	set(fInline, o.Inline)
	set(fChild, !o.Child.IsZero())
	set(fFlags, o.Flags != 0)
	set(fKeep, o.Keep)
	set(fDrop, o.Drop)
	set(fSize, o.Size != 0)
	set(fOff, o.Off != 0)
	set(fAtime, o.Atime != 0)
	set(fMtime, o.Mtime != 0)
	set(fSet, o.Set != 0)
	set(fExtents, len(o.Extents) != 0)
	set(fFlushed, o.Flushed != 0)
	set(fMount, !o.Mount.IsZero())
	set(fStripes, len(o.Stripes) != 0)
	set(fRegs, len(o.Regs) != 0)
	set(fAbort, len(o.Abort) != 0)
	set(fParts, len(o.Parts) != 0)
	set(fTxn, !o.Txn.IsZero())
	set(fEntry, o.Entry != Dentry{})
	set(fInodes, len(o.Inodes) != 0)
	set(fInner, o.Inner != nil)
	set(fInos, len(o.Inos) != 0)
	set(fSession, !o.Session.IsZero())
	set(fMaps, len(o.Maps) != 0)
	set(fCuts, len(o.Cuts) != 0)
	return m
}

// encode appends the operation: kind (byte), mask of the fields present
// (varint), then these fields in the order of their bits.
func (o *Op) encode(e *blocks.Encoder) {
	m := o.mask()
	e.Byte(byte(o.Kind))
	e.Uint(m)
	for bit := range fCount {
		if m&(1<<bit) != 0 {
			o.encodeField(e, bit)
		}
	}
}

func (o *Op) encodeField(e *blocks.Encoder, bit int) {
	switch bit {
	case fTime:
		e.Int(int64(o.Time))
	case fName:
		e.String(o.Name)
	case fNew:
		e.String(o.New)
	case fIno:
		e.Uint(uint64(o.Ino))
	case fIno2:
		e.Uint(uint64(o.Ino2))
	case fMode, fUid, fGid, fRdev, fFlags:
		e.Uint(uint64(*o.word(bit)))
	case fData:
		e.Bytes(o.Data)
	case fInline, fKeep, fDrop: // the bit says it all
	case fChild:
		e.ID(o.Child.ID)
	case fSize:
		e.Uint(o.Size)
	case fOff:
		e.Uint(o.Off)
	case fAtime:
		e.Int(int64(o.Atime))
	case fMtime:
		e.Int(int64(o.Mtime))
	case fSet:
		e.Byte(o.Set)
	case fExtents:
		encodeExtents(e, o.Extents)
	case fFlushed:
		e.Uint(uint64(o.Flushed))
	case fMount:
		e.ID(o.Mount.ID)
	case fStripes:
		e.Uint(uint64(len(o.Stripes)))
		for _, s := range o.Stripes {
			e.ID(s.ID)
		}
	case fRegs, fAbort, fParts:
		encodeRegs(e, *o.regs(bit))
	case fTxn:
		e.ID(o.Txn.ID)
	case fEntry:
		encodeEntry(e, o.Entry)
	case fInodes:
		e.Uint(uint64(len(o.Inodes)))
		for _, n := range o.Inodes {
			encodeInode(e, n)
		}
	case fInner:
		o.Inner.encode(e)
	case fInos:
		e.Uint(uint64(len(o.Inos)))
		for _, ino := range o.Inos {
			e.Uint(uint64(ino))
		}
	case fSession:
		e.ID(o.Session.ID)
	case fMaps:
		encodeMapRefs(e, o.Maps)
	case fCuts:
		encodeRanges(e, o.Cuts)
	}
}

func (o *Op) word(bit int) *uint32 {
	switch bit {
	case fMode:
		return &o.Mode
	case fUid:
		return &o.Uid
	case fGid:
		return &o.Gid
	case fRdev:
		return &o.Rdev
	}
	return &o.Flags
}

func (o *Op) regs(bit int) *[]blocks.RegisterID {
	switch bit {
	case fRegs:
		return &o.Regs
	case fAbort:
		return &o.Abort
	}
	return &o.Parts
}

// decodeOp reads what encode wrote. Nothing in it aliases the input but Data.
func decodeOp(d *blocks.Decoder, depth int) (*Op, error) {
	o := &Op{Kind: OpKind(d.Byte())}
	m := d.Uint()
	if d.Err() != nil {
		return nil, d.Err()
	}
	if o.Kind == 0 || o.Kind >= opKinds || m >= 1<<fCount {
		return nil, fmt.Errorf("%w: operation of unknown kind %d, fields %x", blocks.ErrCorrupt, o.Kind, m)
	}
	for bit := range fCount {
		if m&(1<<bit) == 0 {
			continue
		}
		if err := o.decodeField(d, bit, depth); err != nil {
			return nil, err
		}
	}
	return o, d.Err()
}

func (o *Op) decodeField(d *blocks.Decoder, bit, depth int) (err error) {
	switch bit {
	case fTime:
		o.Time = Time(d.Int())
	case fName:
		o.Name = d.String()
	case fNew:
		o.New = d.String()
	case fIno:
		o.Ino = Ino(d.Uint())
	case fIno2:
		o.Ino2 = Ino(d.Uint())
	case fMode, fUid, fGid, fRdev, fFlags:
		*o.word(bit) = uint32(d.Uint())
	case fData:
		o.Data = d.Bytes()
	case fInline:
		o.Inline = true
	case fKeep:
		o.Keep = true
	case fDrop:
		o.Drop = true
	case fChild:
		o.Child.ID = d.ID()
	case fSize:
		o.Size = d.Uint()
	case fOff:
		o.Off = d.Uint()
	case fAtime:
		o.Atime = Time(d.Int())
	case fMtime:
		o.Mtime = Time(d.Int())
	case fSet:
		o.Set = d.Byte()
	case fExtents:
		o.Extents, err = decodeExtents(d)
	case fFlushed:
		o.Flushed = Seq(d.Uint())
	case fMount:
		o.Mount.ID = d.ID()
	case fStripes:
		o.Stripes = make([]blocks.StripeID, d.Count(blocks.IDSize))
		for i := range o.Stripes {
			o.Stripes[i].ID = d.ID()
		}
	case fRegs, fAbort, fParts:
		*o.regs(bit) = decodeRegs(d)
	case fTxn:
		o.Txn.ID = d.ID()
	case fEntry:
		o.Entry = decodeEntry(d)
	case fInodes:
		for range d.Count(inodeMin) {
			var n *Inode
			if n, err = decodeInode(d); err != nil {
				return err
			}
			o.Inodes = append(o.Inodes, n)
		}
	case fInner:
		if depth > 0 {
			return fmt.Errorf("%w: operations nested too deep", blocks.ErrCorrupt)
		}
		o.Inner, err = decodeOp(d, depth+1)
	case fInos:
		o.Inos = make([]Ino, d.Count(1))
		for i := range o.Inos {
			o.Inos[i] = Ino(d.Uint())
		}
	case fSession:
		o.Session.ID = d.ID()
	case fMaps:
		o.Maps, err = decodeMapRefs(d)
	case fCuts:
		o.Cuts, err = decodeRanges(d)
	}
	return err
}

// encodeBatch makes the value of a delta: version, count, operations.
func encodeBatch(ops []*Op) []byte {
	e := blocks.Encoder{Buf: make([]byte, 0, 64+96*len(ops))}
	e.Byte(formatVersion)
	e.Uint(uint64(len(ops)))
	for _, o := range ops {
		o.encode(&e)
	}
	return e.Buf
}

// decodeBatch reads a delta's value.
func decodeBatch(b []byte) ([]*Op, error) {
	d := blocks.NewDecoder(slices.Clone(b))
	if v := d.Byte(); d.Err() == nil && (v == 0 || v > formatVersion) {
		return nil, fmt.Errorf("%w: batch of format %d", blocks.ErrCorrupt, v)
	}
	ops := make([]*Op, 0, d.Count(2))
	for range cap(ops) {
		o, err := decodeOp(d, 0)
		if err != nil {
			return nil, err
		}
		ops = append(ops, o)
	}
	return ops, d.Done()
}
