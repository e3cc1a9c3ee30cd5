package mux

import (
	"bytes"
	"testing"
	"time"
)

func TestCallsBothWays(t *testing.T) {
	a, b := start(t, testConfig(t)), start(t, testConfig(t))
	ctx := within(t, 30*time.Second)
	for _, size := range []int{0, 1, 5000, 256 << 10, 1<<20 + 1, MaxPayload} {
		for class := range classes {
			if size == MaxPayload && class != Data {
				continue
			}
			payload := bytes.Repeat([]byte{byte(size), 7, byte(class)}, size/3+1)[:size]
			if err := check(ctx, a, b.ID(), b.Addr(), class, []byte("body"), payload); err != nil {
				t.Fatalf("a to b, class %d, %d bytes: %v", class, size, err)
			}
			if err := check(ctx, b, a.ID(), "", class, nil, payload); err != nil { // over the session that a dialled
				t.Fatalf("b to a, class %d, %d bytes: %v", class, size, err)
			}
		}
	}
	if p := a.Peers(); len(p) != 1 || p[0].ID != b.ID() || !p[0].Control || !p[0].Bulk || p[0].Addr != b.Addr() {
		t.Errorf("peers of a: %+v", p)
	}
}
