package main

import "testing"

func TestSettledDespiteLostStripes(t *testing.T) {
	s := statusReport{Fresh: true, Stripes: stripeCounts{Protected: 5, Lost: 2}, Registers: registerCounts{Protected: 1}}
	if !s.settled() {
		t.Error("stripes that no waiting brings back are waited for")
	}
	for name, change := range map[string]func(*statusReport){
		"not fresh":          func(s *statusReport) { s.Fresh = false },
		"degraded stripes":   func(s *statusReport) { s.Stripes.Degraded = 1 },
		"absent registers":   func(s *statusReport) { s.Registers.Unavailable = 1 },
		"shards to hand off": func(s *statusReport) { s.Backlog.HandoffShards = 1 },
	} {
		x := s
		change(&x)
		if x.settled() {
			t.Errorf("settled with %s", name)
		}
	}
}
