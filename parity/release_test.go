package parity

import (
	"bytes"
	"sync"
	"testing"
)

// A read gives back each piece that it was given, once, and not before its content was copied out.
func TestReadReleasesWhatItFetched(t *testing.T) {
	content := randomBytes(seed(t), 1<<20)
	ring := newRing(6, 1)
	var mu sync.Mutex
	released := map[*byte]int{}
	s := newStore(t, ring, func(c *Config) {
		c.Release = func(data []byte) {
			mu.Lock()
			defer mu.Unlock()
			released[&data[0]]++
			clear(data)
		}
	})
	rc := mustWrite(t, s, content)
	ring.at(rc.Ref.ID, 1).set(func(p *fakePeer) { p.down = true })
	got := make([]byte, len(content))
	if err := s.Read(t.Context(), rc.Ref, 0, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, content) {
		t.Error("wrong content")
	}
	mu.Lock()
	defer mu.Unlock()
	if len(released) < s.cfg.K {
		t.Errorf("%d pieces released, want at least %d", len(released), s.cfg.K)
	}
	for _, n := range released {
		if n != 1 {
			t.Errorf("a piece was released %d times", n)
		}
	}
}
