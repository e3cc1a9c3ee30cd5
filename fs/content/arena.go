package content

import (
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// arena hands out chunks of one size from memory beside Go's heap, in huge pages where the kernel has them: for hundreds of
// MiB that are filled once and used again the kernel then has 512 times fewer pages to clear and enter, and the collector nothing
// to do. A chunk has one owner, who gives it back.
type arena struct {
	size   int // bytes of a chunk
	stride int // from one chunk to the next: whole pages
	spare  int // chunks given back that keep their memory, at most

	mu      sync.Mutex
	regions *regions
	free    [][]byte // with memory behind them; the last one is used first
	bare    [][]byte // without: the kernel has it back
}

// regions is what an arena has mapped. plain: some of it is on the heap, because the kernel gave nothing.
type regions struct {
	mapped [][]byte
	plain  bool
}

const hugePage = 2 << 20

// newArena makes an empty arena. Its memory goes with it.
func newArena(size, spare int) *arena {
	page := unix.Getpagesize()
	a := &arena{size: size, stride: (size + page - 1) / page * page, spare: spare, regions: &regions{}}
	runtime.AddCleanup(a, func(r *regions) {
		for _, m := range r.mapped {
			_ = unix.Munmap(m) // there is nobody to tell
		}
	}, a.regions)
	return a
}

// get returns a chunk with unspecified content.
func (a *arena) get() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, l := range []*[][]byte{&a.free, &a.bare} {
		if n := len(*l); n > 0 {
			c := (*l)[n-1]
			*l = (*l)[:n-1]
			return c
		}
	}
	a.grow()
	c := a.bare[len(a.bare)-1]
	a.bare = a.bare[:len(a.bare)-1]
	return c
}

// grow maps chunks, as many as fill huge pages. mu must be held.
func (a *arena) grow() {
	n := (a.stride + hugePage - 1) / hugePage * hugePage
	m, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned to huge pages since Linux 6.7
	if err != nil {
		m, a.regions.plain = make([]byte, n), true
	} else {
		a.regions.mapped = append(a.regions.mapped, m)
		_ = unix.Madvise(m, unix.MADV_HUGEPAGE) // else in small ones
	}
	for at := n / a.stride * a.stride; at > 0; at -= a.stride {
		a.bare = append(a.bare, m[at-a.stride:at-a.stride+a.size:at-a.stride+a.size])
	}
}

// put takes a chunk back.
func (a *arena) put(c []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.free) < a.spare || a.regions.plain {
		a.free = append(a.free, c)
		return
	}
	_ = unix.Madvise(c[:a.size:a.size], unix.MADV_DONTNEED) // else it keeps its memory
	a.bare = append(a.bare, c)
}
