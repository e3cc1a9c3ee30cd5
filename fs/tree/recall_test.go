package tree_test

import (
	"context"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/fs/tree"
)

// kernel is a Notifier that records, and whose Settle waits for the test.
type kernel struct {
	mu    sync.Mutex
	names map[string]bool
	let   chan struct{} // Settle waits until it is closed, or for its context
	asked chan struct{} // gets a value at each Settle
}

func (k *kernel) InvalidateEntry(_ tree.Ino, name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.names[name] = true
}

func (k *kernel) ExpireEntry(dir tree.Ino, name string) { k.InvalidateEntry(dir, name) }

func (k *kernel) InvalidateInode(tree.Ino) {}

func (k *kernel) Settle(ctx context.Context) {
	k.asked <- struct{}{}
	select {
	case <-k.let:
	case <-ctx.Done():
	}
}

// leaseTwo has two mounts, of which the first has the lease of the root and a kernel that the test controls.
func leaseTwo(t *testing.T) (a, b *mount, k *kernel) {
	ring := newRing(t)
	a, b = start(t, ring, 1, t.TempDir(), nil), start(t, ring, 2, t.TempDir(), nil)
	mustMake(t, a, tree.RootIno, "file", regMode)
	for range 100 {
		if at, err := a.Getattr(t.Context(), tree.RootIno); err != nil {
			t.Fatal(err)
		} else if at.Valid > 0 {
			break
		}
	}
	if at, err := a.Lookup(t.Context(), tree.RootIno, "file"); err != nil || at.Valid == 0 {
		t.Fatalf("the kernel may keep the name for %v: no lease; %v", at.Valid, err)
	}
	k = &kernel{names: map[string]bool{}, let: make(chan struct{}), asked: make(chan struct{}, 8)}
	a.SetNotifier(k)
	return a, b, k
}

// The kernel has forgotten the names before another mount can change them, and what it is told meanwhile it may not keep.
func TestRecallTellsTheKernelFirst(t *testing.T) {
	a, b, k := leaseTwo(t)
	done := make(chan error, 1)
	go func() { done <- b.Unlink(t.Context(), tree.RootIno, "file") }()
	<-k.asked
	if at, err := a.Lookup(t.Context(), tree.RootIno, "file"); err != nil || at.Valid != 0 {
		t.Errorf("a lookup during the recall: valid for %v, %v", at.Valid, err)
	}
	select {
	case err := <-done:
		t.Fatalf("the other mount went on before the kernel was told: %v", err)
	default:
	}
	close(k.let)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	k.mu.Lock()
	told := k.names["file"]
	k.mu.Unlock()
	if !told {
		t.Error("the kernel was not told of the name")
	}
	if _, err := a.Lookup(t.Context(), tree.RootIno, "file"); err != syscall.ENOENT {
		t.Errorf("the name is still there: %v", err)
	}
}

// A kernel that takes no invalidations holds a recall up until all that it was told before has expired, no longer.
func TestRecallIsNotHeldUpByTheKernel(t *testing.T) {
	_, b, k := leaseTwo(t)
	defer close(k.let)
	begin := time.Now()
	if err := b.Unlink(t.Context(), tree.RootIno, "file"); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < 900*time.Millisecond || took > 20*time.Second {
		t.Errorf("the recall took %v", took)
	}
}
