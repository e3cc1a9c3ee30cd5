package tree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mutualfs/mutualfs/blocks"
)

// The journal: files NNNNNNNNNNNNNNNN.seg, named by the number (16 hexadecimal
// digits) of their first record. A segment begins with 16 bytes: "mutualfs", the format version
// (uint32, big-endian) and four zero bytes. Records follow without gaps:
//
//	uint32  length of the body, bytes           all fixed words big-endian
//	uint32  crc32c of the body
//	body:   uint64 number; byte kind; register ID (20 bytes);
//	        kind 1, operation: the encoded Op
//	        kind 2, data: uint64 ino, uint64 offset, the bytes
//	        kind 3, moved: uint64 ino: it may now be in this register
//
// Numbers grow. A record that is cut off or whose sum is wrong ends the
// journal if nothing valid can follow: the process was killed while it wrote.
const (
	journalVersion = 1
	segmentHeader  = 16
	recordHeader   = 8
	recordFixed    = 8 + 1 + blocks.IDSize
	maxRecord      = 64 << 20
)

const (
	recOp    = 1
	recData  = 2
	recMoved = 3
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// record is a decoded record. Data aliases what it was read from.
type record struct {
	seq  Seq
	kind byte
	reg  blocks.RegisterID
	op   *Op
	ino  Ino
	off  uint64
	data []byte
}

func parseRecord(body []byte) (record, error) {
	d := blocks.NewDecoder(body)
	r := record{seq: Seq(d.Uint64()), kind: d.Byte(), reg: blocks.RegisterID{ID: d.ID()}}
	switch r.kind {
	case recOp:
		var err error
		if r.op, err = decodeOp(d, 0); err != nil {
			return r, err
		}
		return r, d.Done()
	case recData:
		r.ino, r.off = Ino(d.Uint64()), d.Uint64()
		if d.Err() == nil {
			r.data = body[len(body)-d.Len():]
		}
		return r, d.Err()
	case recMoved:
		r.ino = Ino(d.Uint64())
		return r, d.Done()
	}
	if d.Err() != nil {
		return r, d.Err()
	}
	return r, fmt.Errorf("%w: journal record of kind %d", blocks.ErrCorrupt, r.kind)
}

type segment struct {
	path  string
	first Seq
	last  Seq // of a closed segment
	size  int64
}

// journal appends records for many callers. Records get their numbers under mu, in
// order; one caller at a time writes what has gathered, in one pwritev, outside of it.
type journal struct {
	dir      string
	segBytes int64
	maxBytes int64

	mu      sync.Mutex
	changed chan struct{} // closed and renewed when room appears
	wrote   *sync.Cond
	next    Seq
	queue   [][]byte // gathered, not being written
	queued  Seq      // number of the last gathered record
	bytes   int64    // of queue
	written Seq      // all up to here are in the file
	failed  Seq      // all gathered up to here met the error
	err     error
	writing bool
	segs    []segment // the last one is open
	f       *os.File
	total   int64
	closed  bool

	host hostRoom
}

func openJournal(dir string, segBytes, maxBytes int64) (*journal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the journal's directory: %w", err)
	}
	j := &journal{dir: dir, segBytes: segBytes, maxBytes: maxBytes, changed: make(chan struct{}), host: hostRoom{free: freeBytes}}
	j.wrote = sync.NewCond(&j.mu)
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read the journal's directory: %w", err)
	}
	for _, n := range names {
		base, ok := strings.CutSuffix(n.Name(), ".seg")
		if !ok {
			continue
		}
		first, err := strconv.ParseUint(base, 16, 64)
		if err != nil || len(base) != 16 {
			return nil, fmt.Errorf("%w: journal file %s", blocks.ErrCorrupt, n.Name())
		}
		info, err := n.Info()
		if err != nil {
			return nil, fmt.Errorf("journal file %s: %w", n.Name(), err)
		}
		j.segs = append(j.segs, segment{path: filepath.Join(dir, n.Name()), first: Seq(first), size: info.Size()})
		j.total += info.Size()
	}
	slices.SortFunc(j.segs, func(a, b segment) int {
		if a.first < b.first {
			return -1
		}
		return 1
	})
	// A journal without a file begins at the clock's microseconds: should the directory have been
	// lost, numbers still grow, and no register takes a new operation for an old one.
	j.next = Seq(time.Now().UnixMicro())
	if len(j.segs) > 0 {
		j.next = j.segs[len(j.segs)-1].first
	}
	return j, nil
}

// replay calls f with every record in order. It must be called once, before the first append. Records
// are valid only during f. f may be nil: then only the end is found.
func (j *journal) replay(f func(record) error) error {
	for i := range j.segs {
		s := &j.segs[i]
		last, err := readSegment(s.path, s.first, i == len(j.segs)-1, f)
		if err != nil {
			return err
		}
		s.last = last
		if last >= j.next {
			j.next = last + 1
		}
	}
	return nil
}

// readSegment reads one segment and returns the number of its last record.
func readSegment(path string, first Seq, tail bool, f func(record) error) (Seq, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read the journal: %w", err)
	}
	if len(b) < segmentHeader && tail {
		return first - 1, nil
	}
	if len(b) < segmentHeader || string(b[:8]) != "mutualfs" || binary.BigEndian.Uint32(b[8:]) != journalVersion {
		return 0, fmt.Errorf("%w: %s is no journal segment of format %d", blocks.ErrCorrupt, path, journalVersion)
	}
	last := first - 1
	for at := segmentHeader; at < len(b); {
		body, n := frame(b[at:])
		if body == nil {
			return last, nil // torn: nothing behind it was answered
		}
		r, err := parseRecord(body)
		if err != nil || r.seq <= last {
			return 0, fmt.Errorf("%w: journal %s at %d, record %d: %v", blocks.ErrCorrupt, path, at, r.seq, err)
		}
		last = r.seq
		if f != nil {
			if err := f(r); err != nil {
				return 0, err
			}
		}
		at += n
	}
	return last, nil
}

// frame returns the body of the record that b begins with, and its whole length; nil if it is torn.
func frame(b []byte) ([]byte, int) {
	if len(b) < recordHeader {
		return nil, 0
	}
	n := binary.BigEndian.Uint32(b)
	if n < recordFixed || n > maxRecord || int64(n) > int64(len(b)-recordHeader) {
		return nil, 0
	}
	body := b[recordHeader : recordHeader+n]
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(b[4:]) {
		return nil, 0
	}
	return body, recordHeader + int(n)
}

// numberGap is left at each start, for numbers that were given and not journalled.
const numberGap = 1 << 16

// start opens a fresh segment. What replay found torn stays behind in the older ones.
func (j *journal) start() error {
	j.atLeast(j.next + numberGap)
	return j.roll(j.next)
}

func (j *journal) roll(first Seq) error {
	path := filepath.Join(j.dir, fmt.Sprintf("%016x.seg", uint64(first)))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("open a journal segment: %w", err)
	}
	head := make([]byte, segmentHeader)
	copy(head, "mutualfs")
	binary.BigEndian.PutUint32(head[8:], journalVersion)
	if _, err := f.WriteAt(head, 0); err != nil {
		return errors.Join(fmt.Errorf("begin a journal segment: %w", err), f.Close())
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if n := len(j.segs); n > 0 && j.segs[n-1].first == first { // an empty one of that name was overwritten
		j.total -= j.segs[n-1].size
		j.segs = j.segs[:n-1]
	}
	old := j.f
	j.f = f
	j.segs = append(j.segs, segment{path: path, first: first, size: segmentHeader})
	j.total += segmentHeader
	if j.written < first-1 {
		j.written, j.queued = first-1, max(j.queued, first-1)
	}
	if old != nil {
		return old.Close()
	}
	return nil
}

// full returns nil if there is room, else a channel that is closed when there may be.
func (j *journal) full() <-chan struct{} {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.total+j.bytes < j.maxBytes {
		return nil
	}
	return j.changed
}

// number reserves a number that no record has, for an operation that is not journalled.
func (j *journal) number() Seq {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := j.next
	j.next++
	return s
}

// atLeast lets numbers begin above s.
func (j *journal) atLeast(s Seq) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.next <= s {
		j.next = s + 1
	}
}

// add gathers a record and returns its number. head is the body without its number; it must not
// change any more. tail, the rest of the body, must not change until wait returns.
func (j *journal) add(head, tail []byte) Seq {
	n := len(head) + len(tail) - recordHeader
	j.mu.Lock()
	defer j.mu.Unlock()
	seq := j.next
	j.next++
	binary.BigEndian.PutUint32(head, uint32(n))
	binary.BigEndian.PutUint64(head[recordHeader:], uint64(seq))
	sum := crc32.Checksum(head[recordHeader:], castagnoli)
	if len(tail) > 0 {
		sum = crc32.Update(sum, castagnoli, tail)
	}
	binary.BigEndian.PutUint32(head[4:], sum)
	j.queue = append(j.queue, head)
	if len(tail) > 0 {
		j.queue = append(j.queue, tail)
	}
	j.bytes += int64(len(head) + len(tail))
	j.queued = seq
	return seq
}

// newRecord begins the head of a record: place for length, sum and number, then kind and register.
func newRecord(kind byte, reg blocks.RegisterID, room int) blocks.Encoder {
	e := blocks.Encoder{Buf: make([]byte, recordHeader+8, recordHeader+recordFixed+room)}
	e.Byte(kind)
	e.ID(reg.ID)
	return e
}

// addOp gathers an operation.
func (j *journal) addOp(reg blocks.RegisterID, o *Op) Seq {
	e := newRecord(recOp, reg, 96+len(o.Name)+len(o.New)+len(o.Data))
	o.encode(&e)
	return j.add(e.Buf, nil)
}

// wait returns when record s is in the file, or could not be written. It writes itself if nobody does.
func (j *journal) wait(s Seq) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.written < s {
		if j.writing {
			j.wrote.Wait()
			if j.failed >= s && j.written < s {
				return j.err
			}
			continue
		}
		if err := j.writeQueue(); err != nil && j.written < s {
			return err
		}
	}
	return nil
}

const maxVec = 512 // slices of one pwritev

// writeQueue writes all that has gathered. mu is held at entry and exit, not while it writes. After
// an error what was gathered stays so, and the next caller tries again.
func (j *journal) writeQueue() error {
	q, upto, bytes := j.queue, j.queued, j.bytes
	j.queue, j.bytes = nil, 0
	j.writing = true
	seg := &j.segs[len(j.segs)-1]
	f, at := j.f, seg.size
	closed := j.closed
	j.mu.Unlock()

	err := os.ErrClosed
	if !closed {
		err = writeAll(f, q, at)
	}
	if err == nil && at+bytes >= j.segBytes {
		err = j.finish(upto, at+bytes)
		bytes = 0
	}
	j.mu.Lock()
	j.writing = false
	if err != nil {
		j.err, j.failed = fmt.Errorf("write the journal: %w", err), upto
		if j.written < upto && bytes != 0 {
			for i := range q { // their owners get them back with the error
				q[i] = slices.Clone(q[i])
			}
			j.queue, j.bytes = append(q, j.queue...), j.bytes+bytes
		}
	} else {
		j.written = upto
		if bytes != 0 {
			j.segs[len(j.segs)-1].size += bytes
			j.total += bytes
		}
	}
	j.wrote.Broadcast()
	return err
}

// finish closes the full segment and opens the next.
func (j *journal) finish(last Seq, size int64) error {
	j.mu.Lock()
	s := &j.segs[len(j.segs)-1]
	j.total += size - s.size
	s.last, s.size = last, size
	j.written = last
	first := last + 1
	j.mu.Unlock()
	return j.roll(first)
}

func writeAll(f *os.File, q [][]byte, at int64) error {
	for len(q) > 0 {
		vec := q[:min(len(q), maxVec)]
		want := 0
		for _, b := range vec {
			want += len(b)
		}
		n, err := unix.Pwritev(int(f.Fd()), vec, at)
		if err == nil && n < want { // rare: the rest piece by piece
			err = writeRest(f, vec, at, n)
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		at += int64(want)
		q = q[len(vec):]
	}
	return nil
}

func writeRest(f *os.File, vec [][]byte, at int64, done int) error {
	for _, b := range vec {
		if done >= len(b) {
			done -= len(b)
		} else {
			if _, err := f.WriteAt(b[done:], at+int64(done)); err != nil {
				return err
			}
			done = 0
		}
		at += int64(len(b))
	}
	return nil
}

// trim removes the segments whose records are all below floor.
func (j *journal) trim(floor Seq) error {
	j.mu.Lock()
	var gone []string
	for len(j.segs) > 1 && j.segs[0].last < floor {
		gone = append(gone, j.segs[0].path)
		j.total -= j.segs[0].size
		j.segs = j.segs[1:]
	}
	if len(gone) > 0 {
		close(j.changed)
		j.changed = make(chan struct{})
	}
	j.mu.Unlock()
	for _, p := range gone {
		if err := os.Remove(p); err != nil {
			return fmt.Errorf("remove an old journal segment: %w", err)
		}
	}
	return nil
}

// clear forgets all records: everything they say has been committed. Numbers go on.
func (j *journal) clear() error {
	j.mu.Lock()
	first := j.next
	j.segs[len(j.segs)-1].last = first - 1
	j.mu.Unlock()
	if err := j.roll(first); err != nil {
		return err
	}
	return j.trim(first)
}

func (j *journal) close() error {
	j.mu.Lock()
	j.closed = true
	f := j.f
	j.f = nil
	j.mu.Unlock()
	if f == nil {
		return nil
	}
	return f.Close()
}
