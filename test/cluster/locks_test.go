package cluster

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// python runs a program of testdata to its end and returns what it printed.
func python(t testing.TB, program string, args ...string) string {
	t.Helper()
	out, err := tryPython(program, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func tryPython(program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "python3", append([]string{"testdata/" + program}, args...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", program, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// together runs f for each number at the same time.
func together(t testing.TB, n int, f func(i int) error) {
	t.Helper()
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// twoMounts makes a ring of three peers, two of which mount it.
func twoMounts(t *testing.T) (a, b *Peer) {
	t.Helper()
	a = Init(t, Options{Args: []string{"--tolerate", "1", "--data-shards", "2"}})
	b = a.Join(t, "b", Options{})
	c := a.Join(t, "c", Options{})
	a.Mnt, b.Mnt = filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
	a.Start()
	c.Start()
	b.Start()
	a.Wait(time.Minute)
	return a, b
}

// holder is a process that holds a lock.
type holder struct {
	cmd *exec.Cmd
	in  io.Closer
}

func hold(t *testing.T, dir, kind string) *holder {
	t.Helper()
	cmd := exec.Command("python3", "testdata/lockers.py", "hold", dir, kind)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h := &holder{cmd, in}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "held\n" {
		t.Fatalf("%q, %v", line, err)
	}
	return h
}

// TestLocksAsOnALocalFileSystem makes the same calls on a mount and on a local directory.
func TestLocksAsOnALocalFileSystem(t *testing.T) {
	p := Init(t, Options{})
	p.Mnt = filepath.Join(t.TempDir(), "mnt")
	p.Start()
	seed := fmt.Sprint(rand.Uint32())
	t.Log("seed", seed, python(t, "lockers.py", "same", t.TempDir(), p.Mnt, seed, "4000"))
}

func TestLocksAcrossMounts(t *testing.T) {
	a, b := twoMounts(t)
	dirs := []string{a.Mnt, b.Mnt}
	const processes, each = 4, 25
	for _, kind := range []string{"flock", "posix"} {
		// Nobody's increment is lost.
		together(t, 2*processes, func(i int) error {
			_, err := tryPython("lockers.py", "count", dirs[i%2], kind, fmt.Sprint(each))
			return err
		})
		for _, dir := range dirs {
			text, err := os.ReadFile(dir + "/counter")
			if want := fmt.Sprintf("%020d", 2*processes*each); err != nil || string(text) != want {
				t.Fatalf("%s: the counter is %q, %v; want %s", kind, text, err, want)
			}
		}
		if err := os.Remove(a.Mnt + "/counter"); err != nil {
			t.Fatal(err)
		}

		// A wait ends with the lock, or with a signal.
		h := hold(t, a.Mnt, kind)
		for _, dir := range dirs {
			if out := python(t, "lockers.py", "wait", dir, kind, "1"); !strings.HasPrefix(out, "interrupted") {
				t.Fatalf("%s on %s while it is held: %s", kind, dir, out)
			}
		}
		time.AfterFunc(time.Second, func() { _ = h.in.Close() })
		out := python(t, "lockers.py", "wait", b.Mnt, kind, "30")
		var took float64
		if _, err := fmt.Sscanf(out, "got %g", &took); err != nil || took > 5 {
			t.Fatalf("%s: the end of a lock on the other mount: %s", kind, out)
		}
		t.Log(kind, "waited for the other mount:", out)
	}
}

// deadLimit is after what time the locks of a killed mount must have gone.
const deadLimit = 15 * time.Second

func TestKilledMountLosesItsLocks(t *testing.T) {
	a, b := twoMounts(t)
	for _, c := range []struct {
		name             string
		waiting, restart bool
	}{
		{"known to the holder alone", false, false},
		{"waited for", true, false},
		{"waited for, restarted", true, true},
	} {
		if !a.Running() {
			a.detach()
			a.Start()
			a.Wait(time.Minute)
		}
		hold(t, a.Mnt, "posix")
		got := make(chan string, 1)
		wait := func() {
			out, err := tryPython("lockers.py", "wait", b.Mnt, "posix", "60")
			got <- fmt.Sprint(out, err)
		}
		if c.waiting {
			if out := python(t, "lockers.py", "wait", b.Mnt, "posix", "1"); !strings.HasPrefix(out, "interrupted") {
				t.Fatal(out)
			}
			go wait()
		}
		a.Kill()
		killed := time.Now()
		if !c.waiting {
			go wait()
		}
		if c.restart {
			a.detach()
			a.Start()
		}
		out := <-got
		if took := time.Since(killed); !strings.HasPrefix(out, "got") || took > deadLimit {
			t.Fatalf("%s: %s after %v", c.name, out, took)
		}
		t.Logf("%s: %v after the kill", c.name, time.Since(killed))
	}
}

// torture has processes on the given directories change one database, and checks it on each.
func torture(t *testing.T, mode string, each int, dirs ...string) {
	t.Helper()
	name := "/" + mode + ".db"
	defer func() {
		for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
			_ = os.Remove(dirs[0] + name + suffix) // the next round begins anew
		}
	}()
	python(t, "database.py", "make", dirs[0]+name, mode)
	const processes = 4
	seed := fmt.Sprint(rand.Uint32())
	t.Log(mode, "seed", seed)
	together(t, processes, func(i int) error {
		_, err := tryPython("database.py", "torture", dirs[i%len(dirs)]+name, fmt.Sprint(i), fmt.Sprint(each), seed)
		return err
	})
	for _, dir := range dirs {
		if got, want := python(t, "database.py", "check", dir+name), fmt.Sprintf("ok %d %d", processes*each, processes*each); got != want {
			t.Fatalf("%s: %s, want %s", dir+name, got, want)
		}
	}
}

// TestSqlite goes on for MUTUALFS_FUZZ_TIME, if that is set (make torture).
func TestSqlite(t *testing.T) {
	a, b := twoMounts(t)
	var long time.Duration
	if v := os.Getenv("MUTUALFS_FUZZ_TIME"); v != "" {
		var err error
		if long, err = time.ParseDuration(v); err != nil {
			t.Fatalf("MUTUALFS_FUZZ_TIME: %v", err)
		}
	}
	for begin, rounds := time.Now(), 0; rounds == 0 || time.Since(begin) < long; rounds++ {
		torture(t, "wal", 50, a.Mnt) // shares memory: one mount
		torture(t, "truncate", 25, a.Mnt)
		torture(t, "delete", 25, a.Mnt, b.Mnt)
		torture(t, "persist", 25, b.Mnt, a.Mnt)
	}
}
