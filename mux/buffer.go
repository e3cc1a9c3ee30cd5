package mux

import (
	"math/bits"
	"sync"
)

// Buffers are pooled by size: classes of 4, 5, 6 and 7 times a power of two, so
// that at most a quarter is wasted.
const (
	minPooled = 4 << 10
	maxPooled = 1 << 25
)

var pools [64]sync.Pool // of *[]byte

// bufferClass returns the class whose size is the smallest that holds n, and
// that size; minPooled <= n <= maxPooled.
func bufferClass(n int) (class, size int) {
	shift := bits.Len(uint(n)) - 3 // n>>shift is 4 … 7
	if q := (n + 1<<shift - 1) >> shift; q < 8 {
		return (shift-10)*4 + q - 4, q << shift
	}
	return (shift - 9) * 4, 8 << shift
}

// getBuffer returns a buffer of n bytes with unspecified content.
func getBuffer(n int) []byte {
	if n < minPooled || n > maxPooled {
		return make([]byte, n)
	}
	class, size := bufferClass(n)
	if p, _ := pools[class].Get().(*[]byte); p != nil {
		return (*p)[:n]
	}
	return make([]byte, n, size)
}

// Buffer returns n bytes with unspecified content for a payload that is given away, or for Release.
func Buffer(n int) []byte { return getBuffer(n) }

// Release hands back a payload that Call returned, whole, for reuse. It is
// optional; the caller must not touch the slice afterwards.
func Release(payload []byte) {
	c := cap(payload)
	if c < minPooled || c > maxPooled {
		return
	}
	class, size := bufferClass(c)
	if size != c {
		return // not one of ours
	}
	b := payload[:0]
	pools[class].Put(&b)
}
