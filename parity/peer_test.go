package parity

import (
	"testing"
	"time"
)

func TestPercentileFollows(t *testing.T) {
	rnd := seed(t)
	p := &peer{}
	feed := func(n int, most time.Duration) {
		for range n {
			p.observe(time.Duration(rnd.Int64N(int64(most))))
		}
	}
	within := func(lo, hi time.Duration) {
		t.Helper()
		if got := p.hedgeAfter(0); got < lo || got > hi {
			t.Errorf("hedge after %v, want %v to %v", got, lo, hi)
		}
	}
	feed(3000, 100*time.Millisecond)
	within(80*time.Millisecond, 110*time.Millisecond)
	feed(3000, 400*time.Millisecond)
	within(320*time.Millisecond, 440*time.Millisecond)
	feed(3000, 10*time.Millisecond)
	within(8*time.Millisecond, 12*time.Millisecond)
	feed(3000, time.Hour)
	within(maxHedge, maxHedge)
	if got := p.hedgeAfter(2 * time.Second); got != 2*time.Second {
		t.Errorf("hedge after %v, want what the configuration says", got)
	}
}
