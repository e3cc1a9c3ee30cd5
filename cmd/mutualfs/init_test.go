package main

import (
	"path/filepath"
	"testing"
)

// Peers that are made one after the other on one machine, and run only later, must not get the same address.
func TestDefaultAddressesDiffer(t *testing.T) {
	base := t.TempDir()
	shape := &shapeFlags{capacity: 1 << 30, capacitySet: func() bool { return true }}
	first, err := newRing(filepath.Join(base, "a"), shape, 1, 2)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{first.config.Listen: true}
	for _, name := range []string{"b", "c", "d"} {
		d, err := newRing(filepath.Join(base, name), shape, 1, 2)
		if err != nil {
			t.Fatal(err)
		}
		if seen[d.config.Listen] {
			t.Errorf("%s gets the address %s, which another has", name, d.config.Listen)
		}
		seen[d.config.Listen] = true
	}
	elsewhere, err := shape.config(filepath.Join(t.TempDir(), "e"), []string{first.config.Listen})
	if err != nil || elsewhere.Listen == first.config.Listen {
		t.Errorf("with a token that names %s: %s, %v", first.config.Listen, elsewhere.Listen, err)
	}
}
