package content

import (
	"bytes"
	"testing"
)

// FuzzSlab compares a slab with plain bytes: three bytes of input are one call.
func FuzzSlab(f *testing.F) {
	f.Add([]byte{0, 10, 20, 0, 15, 30, 1, 12, 9, 2, 0, 80, 0, 70, 1})
	f.Add([]byte{0, 0, 255, 1, 100, 10, 2, 90, 30, 1, 0, 255, 0, 1, 1})
	f.Fuzz(func(t *testing.T, in []byte) {
		const base, size = 1 << 20, Unit
		s := &slab{base: base, size: size}
		pool := newPool(size)
		var have [size]bool
		var model [size]byte
		for k := 0; k+3 <= len(in); k += 3 {
			off := int(in[k+1]) * 63
			n := min(1+int(in[k+2])*int(in[k+2]), size-off)
			p := bytes.Repeat([]byte{byte(k + 1)}, n)
			switch in[k] % 3 {
			case 0:
				s.write(pool, base+uint64(off), p)
			case 1:
				s.cut(base+uint64(off), base+uint64(off+n))
			case 2:
				s.fill(pool, base+uint64(off), p)
			}
			for i := off; i < off+n; i++ {
				if in[k]%3 == 0 || in[k]%3 == 2 && !have[i] {
					model[i] = p[0]
				}
				have[i] = in[k]%3 != 1
			}
		}
		got := make([]byte, size)
		var spans spans
		s.overlay(base, got, &spans)
		count := 0
		for i := range have {
			if !have[i] {
				model[i] = 0
				continue
			}
			count++
		}
		if !bytes.Equal(got, model[:]) || s.bytes() != count || s.full() != (count == size) {
			t.Fatalf("slab has %d bytes, the model %d: %s", s.bytes(), count, diff(got, model[:]))
		}
		end := uint64(0)
		for _, p := range s.pieces {
			if p.off < end || len(p.data) == 0 || p.off < base || p.end() > base+size {
				t.Fatalf("pieces out of order or range at %d", p.off)
			}
			end = p.end()
		}
		if count == size != s.covers(base, base+size) {
			t.Fatal("covers does not agree")
		}
	})
}
