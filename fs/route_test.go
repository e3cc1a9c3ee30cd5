package fs

import (
	"context"
	"encoding/binary"
	"testing"

	"bazil.org/fuse"

	"github.com/mutualfs/mutualfs/fs/tree"
)

// openBackend lets every file be opened.
type openBackend struct{ Backend }

func (openBackend) Accessed(tree.Ino) {}

func (openBackend) Open(context.Context, tree.Ino) (bool, error) { return false, nil }

// The close of any descriptor ends range locks: the kernel must tell of each. Descriptions are told apart.
func TestEveryOpenIsFlushed(t *testing.T) {
	f := &Face{backend: openBackend{}}
	seen := map[uint64]bool{}
	for _, flags := range []fuse.OpenFlags{fuse.OpenReadOnly, fuse.OpenWriteOnly, fuse.OpenReadWrite} {
		out := newReply(false)
		if err := f.openAny(t.Context(), out, &fuse.OpenRequest{Flags: flags}); err != nil {
			t.Fatal(err)
		}
		if got := binary.NativeEndian.Uint32(out.buf[outHeader+8:]); got != 0 {
			t.Errorf("open with %v answers with flags %#x", flags, got)
		}
		if h := binary.NativeEndian.Uint64(out.buf[outHeader:]); h == 0 || seen[h] {
			t.Errorf("handle %d", h)
		} else {
			seen[h] = true
		}
		out.free()
	}
}

// writtenBackend counts writes and what they end.
type writtenBackend struct {
	Backend
	writes, drops int
}

func (b *writtenBackend) Write(context.Context, tree.Ino, uint64, []byte, bool) error {
	b.writes++
	return nil
}

func (b *writtenBackend) DropCapability(context.Context, tree.Ino) error {
	b.drops++
	return nil
}

// A process that writes ends a file's capabilities, mapped memory that the kernel writes does not.
func TestMappedMemoryLeavesCapabilities(t *testing.T) {
	b := &writtenBackend{}
	f := &Face{backend: b}
	for i, flags := range []fuse.WriteFlags{0, fuse.WriteCache} {
		out := newReply(false)
		if err := f.writeFile(t.Context(), out, &fuse.WriteRequest{Data: []byte("x"), Flags: flags}); err != nil {
			t.Fatal(err)
		}
		if b.writes != i+1 || b.drops != 1 {
			t.Errorf("write %d with flags %v: %d writes, %d ends of capabilities", i, flags, b.writes, b.drops)
		}
		out.free()
	}
}
