package overlay

import (
	"testing"

	"github.com/mutualfs/mutualfs/blocks"
)

func TestRounds(t *testing.T) {
	var r Rounds
	p := blocks.PeerID{ID: blocks.HashID([]byte("p"))}
	steps := []struct {
		session, completed, next uint64
		want                     bool
	}{
		{1, 5, 7, false}, // round 6 runs: it may have begun before
		{1, 6, 7, false},
		{1, 7, 8, true},
		{2, 0, 1, false}, // restarted, no round yet
		{2, 1, 2, true},
	}
	if r.Asked(p) {
		t.Error("asked before the first answer")
	}
	for i, s := range steps {
		if got := r.Fresh(p, s.session, s.completed, s.next); got != s.want {
			t.Errorf("step %d: fresh %v, want %v", i, got, s.want)
		}
	}
	if !r.Asked(p) {
		t.Error("not asked after answers")
	}
}

func TestPlacementHash(t *testing.T) {
	peer := func(name string) PeerInfo {
		return PeerInfo{ID: blocks.PeerID{ID: blocks.HashID([]byte(name))}, Vnodes: 8, Drives: 1}
	}
	hash := func(change func(*PeerInfo)) uint64 {
		a, b := peer("a"), peer("b")
		change(&b)
		return NewTable(blocks.HashID([]byte("ring")), []PeerInfo{a, b}).PlacementHash()
	}
	base := hash(func(*PeerInfo) {})
	for name, change := range map[string]func(*PeerInfo){
		"zone": func(p *PeerInfo) { p.Zone = "z" }, "vnodes": func(p *PeerInfo) { p.Vnodes++ }, "drives": func(p *PeerInfo) { p.Drives++ },
		"down": func(p *PeerInfo) { p.Live = Down }, "gone": func(p *PeerInfo) { p.Live = Gone },
	} {
		if hash(change) == base {
			t.Errorf("%s does not change the hash", name)
		}
	}
	for name, same := range map[string]func(*PeerInfo){
		"used": func(p *PeerInfo) { p.Used = 1 }, "address": func(p *PeerInfo) { p.Addr = "x:1" }, "suspect": func(p *PeerInfo) { p.Live = Suspect },
	} {
		if hash(same) != base {
			t.Errorf("%s changes the hash", name)
		}
	}
}
