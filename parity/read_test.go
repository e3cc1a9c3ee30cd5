package parity

import (
	"fmt"
	"math/bits"
	"testing"
)

// losses calls f with every set of up to m of n shards.
func losses(n, m int, f func(lost uint)) {
	for lost := uint(0); lost < 1<<n; lost++ {
		if bits.OnesCount(lost) <= m {
			f(lost)
		}
	}
}

func TestEveryLossPattern(t *testing.T) {
	rnd := seed(t)
	for _, code := range []struct{ k, m int }{{4, 2}, {8, 3}} {
		for _, n := range []int{1, 3000, 16384, 16385, 50000, 100_001, 8*16384 + 1, 300_000} {
			t.Run(fmt.Sprintf("%d+%d/%d", code.k, code.m, n), func(t *testing.T) {
				ring := newRing(code.k+code.m, 1)
				s := newStore(t, ring, func(c *Config) { c.K, c.M = code.k, code.m })
				content := randomBytes(rnd, n)
				rc := mustWrite(t, s, content)
				losses(int(rc.Ref.K+rc.Ref.M), code.m, func(lost uint) {
					for _, pl := range rc.Placed {
						down := lost>>pl.Index&1 == 1
						pl.Holder.(*fakeHolder).set(func(p *fakePeer) { p.down = down })
					}
					checkRead(t, s, rc.Ref, content, 0, n)
					off := rnd.IntN(n)
					checkRead(t, s, rc.Ref, content, off, 1+rnd.IntN(n-off))
				})
			})
		}
	}
}
