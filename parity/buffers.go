package parity

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

// buffers recycles memory by power-of-two size classes.
type buffers struct{ classes [32]sync.Pool }

// buffer is recycled when its last user has let go of it.
type buffer struct {
	data  []byte
	users atomic.Int32
	pool  *sync.Pool
}

// get returns n > 0 bytes of anything, with one user.
func (b *buffers) get(n int) *buffer {
	class := bits.Len(uint(n - 1))
	pool := &b.classes[class]
	buf, _ := pool.Get().(*buffer)
	if buf == nil {
		buf = &buffer{data: make([]byte, 1<<class), pool: pool}
	}
	buf.data = buf.data[:n]
	buf.users.Store(1)
	return buf
}

func (b *buffer) hold() { b.users.Add(1) }

func (b *buffer) release() {
	if b.users.Add(-1) == 0 {
		b.pool.Put(b)
	}
}

// cut returns n slices of size bytes each of the buffer.
func (b *buffer) cut(n, size int) [][]byte {
	parts := make([][]byte, n)
	for i := range parts {
		parts[i] = b.data[i*size : (i+1)*size : (i+1)*size]
	}
	return parts
}
