package tree

import (
	"slices"
	"sort"
	"strings"
	"syscall"

	"github.com/mutualfs/mutualfs/blocks"
)

// Xattr is an extended attribute.
type Xattr struct {
	Name  string
	Value []byte
}

// MountSeq says that all data records of a mount's journal up to Seq are
// part of an inode's content.
type MountSeq struct {
	Mount blocks.PeerID
	Seq   Seq
}

// Inode is a file of any kind but the content of its stripes. Extents win over
// Inline where both have a byte; what neither has is a hole.
type Inode struct {
	Ino     Ino
	Mode    uint32
	Nlink   uint32 // of a directory: not kept here, see State.Nlink
	Uid     uint32
	Gid     uint32
	Rdev    uint32
	Size    uint64
	Atime   Time
	Mtime   Time
	Ctime   Time
	Target  string
	Xattrs  []Xattr // by name, ascending
	Inline  []byte
	Extents []Extent // ascending, disjoint, not adjacent in the same stripe
	Flushed []MountSeq
	Keepers []blocks.RegisterID // sessions that have it open, as far as it is noted: see session.go

	uses   map[blocks.StripeID]int32 // extents per stripe; made when there are more than fewExtents
	shared bool                      // Extents and Inline were given away: copy before changing in place
}

const fewExtents = 16

// husk is left behind by an inode that goes to another container while other mounts have it open, so that they find it.
type husk struct {
	to      blocks.RegisterID
	keepers []blocks.RegisterID // sessions that have not followed
}

// huskOf returns what an inode leaves behind that goes to another container; nil: there is nobody to look for it. mover is the session that knows.
func huskOf(n *Inode, to, mover blocks.RegisterID) *husk {
	h := &husk{to: to}
	for _, k := range n.Keepers {
		if k != mover {
			h.keepers = append(h.keepers, k)
		}
	}
	if len(h.keepers) == 0 || to.IsZero() {
		return nil
	}
	return h
}

func (n *Inode) kind() uint32 { return n.Mode & syscall.S_IFMT }

// attr fills everything but Nlink of directories and Valid.
func (n *Inode) attr() Attr {
	a := Attr{Ino: n.Ino, Mode: n.Mode, Nlink: n.Nlink, Uid: n.Uid, Gid: n.Gid, Rdev: n.Rdev,
		Size: n.Size, Atime: n.Atime, Mtime: n.Mtime, Ctime: n.Ctime}
	a.Blocks = (bytesOf(n.Extents) + uint64(len(n.Inline)) + 511) / 512
	return a
}

func (n *Inode) xattr(name string) (int, bool) {
	return slices.BinarySearchFunc(n.Xattrs, name, func(x Xattr, s string) int { return strings.Compare(x.Name, s) })
}

// xattrList is how long the list of the names is, bytes.
func (n *Inode) xattrList() (l int) {
	for i := range n.Xattrs {
		l += len(n.Xattrs[i].Name) + 1
	}
	return l
}

func (n *Inode) setXattr(name string, value []byte) {
	i, ok := n.xattr(name)
	v := slices.Clone(value)
	if v == nil {
		v = []byte{}
	}
	if ok {
		n.Xattrs[i].Value = v
		return
	}
	n.Xattrs = slices.Insert(n.Xattrs, i, Xattr{name, v})
}

func (n *Inode) removeXattr(name string) {
	if i, ok := n.xattr(name); ok {
		n.Xattrs = slices.Delete(n.Xattrs, i, i+1)
	}
}

// keptBy reports whether it is noted that a session has the inode open.
func (n *Inode) keptBy(s blocks.RegisterID) bool { return slices.Contains(n.Keepers, s) }

// note notes that a session has the inode open, or has not.
func (n *Inode) note(s blocks.RegisterID, open bool) { n.Keepers = noted(n.Keepers, s, open) }

func noted(list []blocks.RegisterID, s blocks.RegisterID, open bool) []blocks.RegisterID {
	i := slices.Index(list, s)
	switch {
	case open && i < 0:
		return append(list, s)
	case !open && i >= 0:
		return slices.Delete(list, i, i+1)
	}
	return list
}

// flushed returns up to which record the mount's data is part of the content.
func (n *Inode) flushed(m blocks.PeerID) Seq {
	for _, f := range n.Flushed {
		if f.Mount == m {
			return f.Seq
		}
	}
	return 0
}

func (n *Inode) setFlushed(m blocks.PeerID, s Seq) {
	for i, f := range n.Flushed {
		if f.Mount == m {
			n.Flushed[i].Seq = max(f.Seq, s)
			return
		}
	}
	n.Flushed = append(n.Flushed, MountSeq{m, s})
}

// freed collects stripes whose last use was dropped.
type freed func(blocks.StripeID)

func (n *Inode) use(id blocks.StripeID) {
	if n.uses != nil {
		n.uses[id]++
	} else if len(n.Extents) > fewExtents {
		n.uses = make(map[blocks.StripeID]int32, len(n.Extents))
		for i := range n.Extents {
			n.uses[n.Extents[i].Stripe.ID]++
		}
	}
}

// drop says that one extent of the stripe is gone from Extents.
func (n *Inode) drop(id blocks.StripeID, f freed) {
	if n.uses == nil {
		for i := range n.Extents {
			if n.Extents[i].Stripe.ID == id {
				return
			}
		}
		f(id)
		return
	}
	if n.uses[id]--; n.uses[id] <= 0 {
		delete(n.uses, id)
		f(id)
	}
}

func (n *Inode) own() {
	if n.shared {
		n.Extents, n.Inline, n.shared = slices.Clone(n.Extents), slices.Clone(n.Inline), false
	}
}

// cut removes [off, end) from the extents and calls f for each stripe no longer used.
func (n *Inode) cut(off, end uint64, f freed) {
	i := sort.Search(len(n.Extents), func(i int) bool { return n.Extents[i].Off+n.Extents[i].Len > off })
	if i == len(n.Extents) || n.Extents[i].Off >= end {
		return
	}
	j := i + sort.Search(len(n.Extents)-i, func(j int) bool { return n.Extents[i+j].Off >= end })
	n.own()
	var keep [2]Extent
	k := 0
	if e := n.Extents[i]; e.Off < off {
		e.Len = off - e.Off
		keep[k] = e
		k++
	}
	if e := n.Extents[j-1]; e.Off+e.Len > end {
		d := end - e.Off
		if e.Off > end {
			d = 0
		}
		e.Off, e.At, e.Len = e.Off+d, e.At+uint32(d), e.Len-d
		keep[k] = e
		k++
	}
	gone := slices.Clone(n.Extents[i:j])
	n.Extents = slices.Replace(n.Extents, i, j, keep[:k]...)
	for _, e := range keep[:k] {
		if n.uses != nil {
			n.uses[e.Stripe.ID]++
		}
	}
	for i, e := range gone {
		if n.uses == nil && slices.ContainsFunc(gone[:i], func(g Extent) bool { return g.Stripe.ID == e.Stripe.ID }) {
			continue // counted once
		}
		n.drop(e.Stripe.ID, f)
	}
}

// put lays e over what is in its range.
func (n *Inode) put(e Extent, f freed) {
	if e.Len == 0 {
		return
	}
	if l := len(n.Extents); l > 0 && n.Extents[l-1].Off+n.Extents[l-1].Len > e.Off {
		n.cut(e.Off, e.Off+e.Len, f)
	}
	i := sort.Search(len(n.Extents), func(i int) bool { return n.Extents[i].Off >= e.Off })
	if i > 0 {
		if p := n.Extents[i-1]; p.Stripe.ID == e.Stripe.ID && p.Off+p.Len == e.Off && uint64(p.At)+p.Len == uint64(e.At) {
			n.own()
			n.Extents[i-1].Len += e.Len
			return
		}
	}
	if i < len(n.Extents) {
		n.own()
	}
	n.Extents = slices.Insert(n.Extents, i, e)
	n.use(e.Stripe.ID)
}

// truncate cuts content beyond size, and sets the size.
func (n *Inode) truncate(size uint64, f freed) {
	if size < n.Size {
		n.cut(size, ^uint64(0), f)
		if uint64(len(n.Inline)) > size {
			n.Inline = n.Inline[:size:size]
		}
	}
	n.Size = size
}

// punch makes [off, off+l) a hole.
func (n *Inode) punch(off, l uint64, f freed) {
	end := off + l
	n.cut(off, end, f)
	if uint64(len(n.Inline)) > off {
		n.own()
		clear(n.Inline[off:min(end, uint64(len(n.Inline)))])
	}
}

// writeback is Op Writeback on the inode.
func (n *Inode) writeback(ext []Extent, inline []byte, size uint64, f freed) {
	if inline != nil {
		n.cut(0, ^uint64(0), f)
		n.Inline, n.shared = slices.Clone(inline), false
		n.Size = size
		return
	}
	for _, e := range ext {
		n.put(e, f)
	}
	if l := uint64(len(n.Inline)); l > 0 && n.covers(l) {
		n.Inline = nil
	}
	if size < n.Size {
		n.truncate(size, f)
	}
	n.Size = size
}

// covers reports whether the extents have every byte of [0, end).
func (n *Inode) covers(end uint64) bool {
	var at uint64
	for i := range n.Extents {
		if n.Extents[i].Off > at {
			return false
		}
		if at = n.Extents[i].Off + n.Extents[i].Len; at >= end {
			return true
		}
	}
	return false
}

// freeAll calls f for every stripe and empties the content.
func (n *Inode) freeAll(f freed) {
	n.cut(0, ^uint64(0), f)
	n.Inline = nil
}

// clone returns a deep copy: nothing in it is shared with n.
func (n *Inode) clone() *Inode {
	c := *n
	c.uses, c.shared = nil, false
	c.Xattrs = slices.Clone(n.Xattrs)
	c.Inline = slices.Clone(n.Inline)
	c.Extents = slices.Clone(n.Extents)
	c.Flushed = slices.Clone(n.Flushed)
	c.Keepers = slices.Clone(n.Keepers)
	c.count()
	return &c
}
