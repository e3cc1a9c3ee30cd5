package content

import "sync"

// pool keeps buffers of a few sizes.
type pool struct {
	sizes []int
	free  []sync.Pool // of *[]byte
}

// smallestBuf is the smallest size kept; each next is four times as large.
const smallestBuf = 4 << 10

func newPool(largest int) *pool {
	p := &pool{}
	for n := smallestBuf; n < largest; n *= 4 {
		p.sizes = append(p.sizes, n)
	}
	p.sizes = append(p.sizes, largest)
	p.free = make([]sync.Pool, len(p.sizes))
	return p
}

// get returns a buffer with room for n bytes, 0 < n <= the largest size; its content is undefined.
func (p *pool) get(n int) []byte {
	for i, size := range p.sizes {
		if n <= size {
			if b, _ := p.free[i].Get().(*[]byte); b != nil {
				return (*b)[:n]
			}
			return make([]byte, n, size)
		}
	}
	return make([]byte, n)
}

// put takes a buffer back that get returned.
func (p *pool) put(b []byte) {
	for i, size := range p.sizes {
		if cap(b) == size {
			p.free[i].Put(&b)
			return
		}
	}
}
