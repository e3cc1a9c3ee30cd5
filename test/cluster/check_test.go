package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestCheckRepairs kills a mount in the middle of writing and destroys a disk: check says what is left of the writing and which
// stripes are weak, --repair mends both, and no file suffers.
func TestCheckRepairs(t *testing.T) {
	peers := three(t, Options{})
	first := peers[0]
	kept := map[string][]byte{}
	for i := range 20 {
		name := filepath.Join(first.Mnt, fmt.Sprintf("kept%d", i))
		kept[name] = randomBytes(uint64(i), 200_000)
		if err := store(name, kept[name]); err != nil {
			t.Fatal(err)
		}
	}
	wantFindings(t, first, "")

	// Killed until something is left behind that no register names.
	var torn Audit
	for round := 0; ; round++ {
		if round == 10 {
			t.Fatal("ten mounts were killed while they wrote, and none left a stripe that nobody names")
		}
		written := make(chan error, 1)
		go func() {
			var err error
			for i := 0; err == nil; i++ {
				err = os.WriteFile(filepath.Join(first.Mnt, fmt.Sprintf("torn%d", i%10)), randomBytes(uint64(1000+i), 3_000_000), 0o644)
			}
			written <- err
		}()
		Eventually(t, time.Minute, func() error {
			names, err := filepath.Glob(filepath.Join(first.Mnt, "torn*"))
			if err == nil && len(names) < 5 {
				err = errors.New("little is written yet")
			}
			return err
		})
		first.Kill()
		<-written
		other, err := peers[1].Check()
		if err != nil || len(other.Unsettled) != 1 || slices.ContainsFunc(other.Findings, func(f Finding) bool { return f.Kind == "unreferenced-stripe" }) {
			t.Fatalf("with the mount dead: %+v, %v", other, err)
		}
		first.Start()
		first.Gathered(3)
		if torn = wantFindings(t, first, "unreferenced-stripe"); len(torn.Findings) > 0 {
			break
		}
	}
	repaired(t, first)

	// A disk file is gone: its shards are missing until they are made anew.
	first.Wait(time.Minute)
	peers[2].Stop()
	disks, err := filepath.Glob(filepath.Join(peers[2].Dir, "disk", "*.disk"))
	if err != nil || len(disks) == 0 {
		t.Fatalf("disks %v, %v", disks, err)
	}
	for _, d := range disks {
		if err := os.Remove(d); err != nil {
			t.Fatal(err)
		}
	}
	peers[2].Start()
	first.Gathered(3)
	wantFindings(t, first, "under-protected-stripe")
	repaired(t, first)
	for name, want := range kept {
		if got, err := os.ReadFile(name); err != nil || string(got) != string(want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}

// wantFindings checks, and wants findings of that kind alone, or none.
func wantFindings(t *testing.T, p *Peer, kind string) Audit {
	t.Helper()
	a, err := p.Check()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range a.Findings {
		if f.Kind != kind {
			t.Fatalf("found %v", f)
		}
	}
	return a
}

// repaired has everything repaired, and wants a check after it to find nothing.
func repaired(t *testing.T, p *Peer) {
	t.Helper()
	Eventually(t, time.Minute, func() error {
		a, err := p.Check("--repair")
		if err == nil && len(a.Findings) > 0 {
			err = fmt.Errorf("left: %v", a.Findings)
		}
		return err
	})
	wantFindings(t, p, "")
	if out := Run(t, "", "check", "--data", p.Dir); !strings.Contains(out, "nothing is wrong") {
		t.Errorf("check says %q", out)
	}
}
