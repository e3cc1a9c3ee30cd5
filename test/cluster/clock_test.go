package cluster

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// buildAhead compiles the program with a wall clock that is an hour ahead: the standard library's time.Now is replaced for
// this build alone. The monotonic clock, by which all waits are measured, is as always.
func buildAhead(t *testing.T) string {
	t.Helper()
	root := strings.TrimSpace(sh(t, "", "go env GOROOT"))
	source := filepath.Join(root, "src", "time", "time.go")
	text, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	const now = "sec, nsec, mono := runtimeNow()\n\tif mono == 0 {"
	ahead := strings.Replace(string(text), now, strings.Replace(now, "\n", "\n\tsec += 3600\n", 1), 1)
	if ahead == string(text) {
		t.Fatalf("time.Now of %s has changed: adapt this test", source)
	}
	dir := t.TempDir()
	replaced := filepath.Join(dir, "time.go")
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {source: replaced}})
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string][]byte{replaced: []byte(ahead), dir + "/overlay.json": overlay} {
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	prog := filepath.Join(dir, "mutualfs")
	cmd := exec.Command("go", "build", "-overlay", dir+"/overlay.json", "-o", prog, "github.com/mutualfs/mutualfs/cmd/mutualfs")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return prog
}

// Peers and mounts whose clocks are an hour apart work together.
func TestClocksAnHourApart(t *testing.T) {
	ahead := buildAhead(t)
	peers := []*Peer{Init(t, Options{Args: []string{"--tolerate", "1", "--data-shards", "2"}})}
	for i := 1; i < 3; i++ {
		peers = append(peers, peers[0].Join(t, fmt.Sprintf("peer%d", i), Options{}))
	}
	late := peers[0].Join(t, "client", Options{Capacity: "0"})
	peers[1].Prog, late.Prog = ahead, ahead
	peers[0].Mnt, late.Mnt = emptyDir(t), emptyDir(t)
	for _, p := range []*Peer{peers[1], peers[2], peers[0], late} { // two wait for the one that they were invited by
		p.Start()
	}
	late.Gathered(3)
	mounts := []*Peer{peers[0], late}
	check := func(n int, when string) {
		t.Helper()
		for i := range n {
			for _, m := range mounts {
				if got, err := os.ReadFile(fmt.Sprintf("%s/file%d", m.Mnt, i)); err != nil || !bytes.Equal(got, randomBytes(uint64(i), 1+i*500_000)) {
					t.Fatalf("%s: file%d reads %d bytes, %v on %s", when, i, len(got), err, m.Name)
				}
			}
		}
	}
	for i := range 6 {
		if err := store(fmt.Sprintf("%s/file%d", mounts[i%2].Mnt, i), randomBytes(uint64(i), 1+i*500_000)); err != nil {
			t.Fatal(err)
		}
		check(i+1, "written")
	}
	info, err := os.Stat(peers[0].Mnt + "/file1")
	if err != nil {
		t.Fatal(err)
	}
	if ago := time.Since(info.ModTime()); ago > -50*time.Minute {
		t.Fatalf("a file of the mount that is ahead was written %v ago: the clocks are not apart", ago)
	}
	peers[0].Wait(time.Minute)
	if s := late.Status(); s.Health != "ok" || s.MayFail != 1 {
		t.Errorf("want all well: %+v", s)
	}

	// The clock of a peer jumps back by an hour while it is down: it is no stranger afterwards.
	peers[1].Kill()
	check(6, "one peer dead")
	peers[1].Prog = ""
	peers[1].Start()
	if err := store(late.Mnt+"/file6", randomBytes(6, 1+6*500_000)); err != nil {
		t.Fatal(err)
	}
	peers[0].Wait(time.Minute)
	peers[2].Kill()
	check(7, "after the jump")
}
