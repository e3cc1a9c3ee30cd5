package overlay_test

import (
	"encoding/binary"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

func number(n int) (id blocks.ID) {
	binary.BigEndian.PutUint64(id[:], uint64(n))
	return id
}

// TestAgesAreLowerBounds: an age is never more than the truth, however much was forgotten.
func TestAgesAreLowerBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := overlay.NewAges()
		born := map[int]time.Time{}
		step := func(n int) {
			a.Add(number(n))
			if _, ok := born[n]; !ok {
				born[n] = time.Now()
			}
		}
		for n := range 500 {
			step(n)
			time.Sleep(17 * time.Second)
			step(n / 2) // again: not born anew
		}
		for n, at := range born {
			if age := a.Age(number(n)); age > time.Since(at) || age < 0 {
				t.Fatalf("%d came %v ago, the age is %v", n, time.Since(at), age)
			}
		}
		if age := a.Age(number(100)); age < 30*time.Minute {
			t.Errorf("what came first is only known to be %v old", age)
		}
		if age := a.Age(number(499)); age > 2*ageSlack {
			t.Errorf("what came just now is %v old", age)
		}
	})
}

const ageSlack = time.Minute
