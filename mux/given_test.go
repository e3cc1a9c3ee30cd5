package mux

import (
	"bytes"
	"context"
	"sync"
	"testing"
)

// Payloads that a handler gives away serve it again, and every answer arrives as it was.
func TestGivenPayloads(t *testing.T) {
	const size, calls = 256 << 10, 200
	var mu sync.Mutex
	seen := map[*byte]bool{}
	cfg := testConfig(t)
	cfg.Given = func(kind uint16) bool { return kind == 7 }
	cfg.Handler = func(_ context.Context, _ [20]byte, _ string, _ uint8, kind uint16, body, _ []byte) (uint16, []byte, []byte) {
		p := Buffer(size)
		for i := range p {
			p[i] = body[0]
		}
		mu.Lock()
		seen[&p[0]] = true
		mu.Unlock()
		return kind, nil, p
	}
	server, client := start(t, cfg), start(t, testConfig(t))
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range calls / 4 {
				mark := byte(w*calls + i)
				_, _, p, err := client.Call(t.Context(), server.self, server.advertised(), classes-1, 7, []byte{mark}, nil)
				if err != nil {
					t.Error(err)
					return
				}
				if len(p) != size || bytes.Count(p, []byte{mark}) != size {
					t.Errorf("answer %d of %d arrived changed", i, w)
				}
				Release(p)
			}
		})
	}
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	if len(seen) == calls {
		t.Errorf("%d calls took %d buffers: none was used again", calls, len(seen))
	}
}
