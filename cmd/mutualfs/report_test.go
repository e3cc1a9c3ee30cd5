package main

import "testing"

// How many more peers may fail: a few shapes worked out by hand.
func TestMayFail(t *testing.T) {
	whole, regs := stripeCounts{Protected: 10}, registerCounts{Protected: 10}
	for name, c := range map[string]struct {
		s      shape
		may    int
		health string
	}{
		"six of six, 4+2":      {shape{k: 4, m: 2, counting: 6, alive: 6, stripes: whole, registers: regs}, 2, healthOK},
		"three of three, 4+2":  {shape{k: 4, m: 2, counting: 3, alive: 3, stripes: whole, registers: regs}, 1, healthOK},
		"three of three, 2+1":  {shape{k: 2, m: 1, counting: 3, alive: 3, stripes: whole, registers: regs}, 1, healthOK},
		"one of one":           {shape{k: 4, m: 2, counting: 1, alive: 1, stripes: whole, registers: regs}, 0, healthOK},
		"one of six away":      {shape{k: 4, m: 2, counting: 6, alive: 5, stripes: stripeCounts{Degraded: 10}, registers: registerCounts{Degraded: 5}}, 1, healthDegraded},
		"two of six away":      {shape{k: 4, m: 2, counting: 6, alive: 4, stripes: stripeCounts{Degraded: 10}, registers: registerCounts{Degraded: 5}}, 0, healthAtRisk},
		"ten of ten, 8+3":      {shape{k: 8, m: 3, counting: 11, alive: 11, stripes: whole, registers: regs}, 3, healthOK},
		"being written":        {shape{k: 4, m: 2, counting: 6, alive: 6, stripes: stripeCounts{Protected: 9, Degraded: 1, Settling: 1}, registers: regs}, 2, healthOK},
		"of a killed writer":   {shape{k: 4, m: 2, counting: 6, alive: 6, stripes: stripeCounts{Protected: 9, Lost: 2}, registers: regs}, 2, healthOK},
		"three of six away":    {shape{k: 4, m: 2, counting: 6, alive: 3, stripes: stripeCounts{Degraded: 9, Away: 9}, registers: registerCounts{Degraded: 5}}, 0, healthUnavailable},
		"nobody":               {shape{k: 4, m: 2, counting: 6, alive: 0}, 0, healthUnavailable},
		"registers not to use": {shape{k: 4, m: 2, counting: 6, alive: 3, stripes: whole, registers: registerCounts{Unavailable: 1}}, 0, healthUnavailable},
	} {
		if got := c.s.mayFail(); got != c.may {
			t.Errorf("%s: %d may fail, want %d", name, got, c.may)
		}
		if got := c.s.health(); got != c.health {
			t.Errorf("%s: %s, want %s", name, got, c.health)
		}
	}
}
