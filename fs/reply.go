package fs

import (
	"encoding/binary"
	"sync"
	"syscall"
	"time"

	"github.com/mutualfs/mutualfs/fs/tree"
)

// Sizes of the kernel's structures, bytes (linux/fuse.h, protocol 7.33).
const (
	outHeader = 16
	entrySize = 128 // fuse_entry_out
	direntHdr = 24  // fuse_dirent
	maxRead   = 128 << 10
)

// reply gathers one answer: 16 bytes of header, then the payload, so that it
// leaves in one write. Buffers are pooled: large ones for file data and listings.
type reply struct {
	buf      []byte
	pool     *sync.Pool
	uncached bool // the kernel must not keep attributes and entries
}

var (
	smallReplies = sync.Pool{New: func() any { return &reply{buf: make([]byte, outHeader, 512)} }}
	largeReplies = sync.Pool{New: func() any { return &reply{buf: make([]byte, outHeader, outHeader+maxRead)} }}
)

func newReply(large bool) *reply {
	pool := &smallReplies
	if large {
		pool = &largeReplies
	}
	r := pool.Get().(*reply)
	r.pool, r.uncached = pool, false
	r.reset()
	return r
}

func (r *reply) reset() { r.buf = r.buf[:outHeader] }

func (r *reply) free() {
	if cap(r.buf) <= outHeader+maxRead {
		r.pool.Put(r)
	}
}

// seal fills the header in and returns the bytes to write.
func (r *reply) seal(unique uint64, errno syscall.Errno) []byte {
	if errno != 0 {
		r.reset()
	}
	binary.NativeEndian.PutUint32(r.buf[0:], uint32(len(r.buf)))
	binary.NativeEndian.PutUint32(r.buf[4:], uint32(-int32(errno)))
	binary.NativeEndian.PutUint64(r.buf[8:], unique)
	return r.buf
}

func (r *reply) u32(v uint32) { r.buf = binary.NativeEndian.AppendUint32(r.buf, v) }
func (r *reply) u64(v uint64) { r.buf = binary.NativeEndian.AppendUint64(r.buf, v) }

func (r *reply) bytes(b []byte) { r.buf = append(r.buf, b...) }

// room returns n bytes of the payload to be filled in, at most maxRead.
func (r *reply) room(n int) []byte {
	at := len(r.buf)
	r.buf = r.buf[:at+n]
	return r.buf[at:]
}

func split(t tree.Time) (sec uint64, nsec uint32) {
	s, n := int64(t)/1e9, int64(t)%1e9
	if n < 0 {
		s, n = s-1, n+1e9
	}
	return uint64(s), uint32(n)
}

// attrBody appends a struct fuse_attr (88 bytes).
func (r *reply) attrBody(a *tree.Attr) {
	as, an := split(a.Atime)
	ms, mn := split(a.Mtime)
	cs, cn := split(a.Ctime)
	r.u64(uint64(a.Ino))
	r.u64(a.Size)
	r.u64(a.Blocks)
	r.u64(as)
	r.u64(ms)
	r.u64(cs)
	r.u32(an)
	r.u32(mn)
	r.u32(cn)
	r.u32(a.Mode)
	r.u32(a.Nlink)
	r.u32(a.Uid)
	r.u32(a.Gid)
	r.u32(a.Rdev)
	r.u32(blockSize)
	r.u32(0)
}

// blockSize is the preferred size of reads and writes that stat shows, bytes.
const blockSize = 128 << 10

func (r *reply) valid(d time.Duration) (sec uint64, nsec uint32) {
	if r.uncached {
		return 0, 0
	}
	return uint64(d / time.Second), uint32(d % time.Second)
}

// attr appends a struct fuse_attr_out.
func (r *reply) attr(a *tree.Attr) {
	sec, nsec := r.valid(a.Valid)
	r.u64(sec)
	r.u32(nsec)
	r.u32(0)
	r.attrBody(a)
}

// entry appends a struct fuse_entry_out; node 0 gives the kernel no reference.
func (r *reply) entry(node tree.Ino, a *tree.Attr) {
	sec, nsec := r.valid(a.Valid)
	r.u64(uint64(node))
	r.u64(0) // generation: inode numbers are never used twice
	r.u64(sec)
	r.u64(sec)
	r.u32(nsec)
	r.u32(nsec)
	r.attrBody(a)
}

// dirent appends a struct fuse_dirent; next is the offset of the entry after it.
func (r *reply) dirent(ino tree.Ino, mode uint32, name string, next uint64) {
	r.u64(uint64(ino))
	r.u64(next)
	r.u32(uint32(len(name)))
	r.u32(mode & syscall.S_IFMT >> 12)
	r.buf = append(r.buf, name...)
	for len(name)%8 != 0 {
		r.buf = append(r.buf, 0)
		name += " "
	}
}

func direntSize(name string) int { return direntHdr + (len(name)+7)&^7 }
