package arch

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// TestPromisesNameTests finds every test that docs/promises.md names.
func TestPromisesNameTests(t *testing.T) {
	text, err := os.ReadFile("../../docs/promises.md")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile("`(Test[A-Za-z0-9]+)`").FindAllStringSubmatch(string(text), -1)
	if len(names) < 50 {
		t.Fatalf("only %d tests are named", len(names))
	}
	out, err := exec.Command("git", "grep", "-h", "^func Test", "--", ":/*_test.go").Output()
	if err != nil {
		t.Fatalf("git grep: %v", err)
	}
	for _, n := range names {
		if !strings.Contains(string(out), "func "+n[1]+"(") {
			t.Errorf("docs/promises.md names %s, which does not exist", n[1])
		}
	}
}
