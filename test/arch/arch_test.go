// Package arch checks which room may import which.
package arch

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/mutualfs/mutualfs/"

// allowed says which of our rooms a room's code (not its tests) may import, besides itself.
var allowed = map[string][]string{
	"blocks":  {},
	"mux":     {},
	"fs":      {"blocks"},
	"parity":  {"blocks"},
	"overlay": {"blocks"},
	"cmd":     {"blocks", "mux", "fs", "parity", "overlay"},
}

func TestRoomsImportAsAStar(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", module+"...").Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Fatalf("go list: %s", exit.Stderr)
	}
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		room := roomOf(p.ImportPath)
		seen[room] = true
		rules, known := allowed[room]
		if !known {
			if room != "test" {
				t.Errorf("%s is in no known room", p.ImportPath)
			}
			continue
		}
		for _, imp := range p.Imports {
			to := roomOf(imp)
			if to == "" || to == room || contains(rules, to) {
				continue
			}
			t.Errorf("%s must not import %s", p.ImportPath, imp)
		}
	}
	for room := range allowed {
		if !seen[room] {
			t.Errorf("room %s is missing", room)
		}
	}
}

// roomOf is the first element of a path inside the module, "" for other modules.
func roomOf(path string) string {
	rest, ok := strings.CutPrefix(path, module)
	if !ok {
		return ""
	}
	room, _, _ := strings.Cut(rest, "/")
	return room
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// testOnly are modules that no program may contain.
var testOnly = []string{"github.com/hanwen/go-fuse", "github.com/anishathalye/porcupine"}

func TestProgramHasNoTestModules(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", module+"cmd/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, pkg := range strings.Fields(string(out)) {
		for _, m := range testOnly {
			if strings.HasPrefix(pkg, m) {
				t.Errorf("the program contains %s, which is for tests only", pkg)
			}
		}
	}
}
