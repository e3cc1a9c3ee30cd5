package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// randomBytes are bytes that neither compress nor repeat.
func randomBytes(seed uint64, n int) []byte {
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	b := make([]byte, n)
	_, _ = rng.Read(b)
	return b
}

// store writes a file and has it stored.
func store(name string, content []byte) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// three starts three peers that tolerate the loss of one; the first has a mount.
func three(t *testing.T, opt Options) []*Peer {
	t.Helper()
	opt.Args = []string{"--tolerate", "1", "--data-shards", "2"}
	peers := []*Peer{Init(t, opt)}
	opt.Args = nil
	for i := 1; i < 3; i++ {
		peers = append(peers, peers[0].Join(t, fmt.Sprintf("peer%d", i), opt))
	}
	peers[0].Mnt = emptyDir(t)
	for _, p := range peers {
		p.Start()
	}
	peers[0].Gathered(3)
	return peers
}

// zero overwrites part of a file.
func zero(t *testing.T, path string, off, n int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, n), off); err != nil {
		t.Fatal(err)
	}
}

func size(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// Each kind of damage to what a peer stores: everything is still read, the peer starts, and the damage is repaired.
func TestEveryKindOfDamage(t *testing.T) {
	peers := three(t, Options{Capacity: "256MiB"})
	mnt := peers[0].Mnt
	files := map[string][]byte{}
	add := func() {
		t.Helper()
		name := fmt.Sprintf("%s/file%d", mnt, len(files))
		content := randomBytes(uint64(len(files)), 1+len(files)*3_000_000)
		if err := store(name, content); err != nil {
			t.Fatal(err)
		}
		files[name] = content
	}
	check := func(when string) {
		t.Helper()
		for name, want := range files {
			if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%s: %s reads %d bytes, %v; want %d bytes", when, name, len(got), err, len(want))
			}
		}
	}
	for range 4 {
		add()
	}
	peers[0].Wait(time.Minute)
	victims := []*Peer{peers[1], peers[2]}
	for i, round := range []struct {
		name   string
		damage func(p *Peer)
	}{
		{"disk files truncated, zeroed, deleted, without superblocks, and replaced by garbage", func(p *Peer) {
			d := diskFiles(t, p)
			zero(t, d[0], 0, size(t, d[0]))
			if err := errors.Join(os.Truncate(d[1], size(t, d[1])/3), os.Remove(d[2]), os.Truncate(d[3], 0)); err != nil {
				t.Fatal(err)
			}
			zero(t, d[4], 0, 4096)
			zero(t, d[4], size(t, d[4])-4096, 4096)
			if err := os.WriteFile(d[5], randomBytes(99, 100_000), 0o600); err != nil {
				t.Fatal(err)
			}
			zero(t, d[6], size(t, d[6])/4, size(t, d[6])/2)
		}},
		{"the index deleted", func(p *Peer) { sh(t, "", "rm -r "+p.Dir+"/disk/index") }},
		{"the index damaged", func(p *Peer) {
			sh(t, "", "for f in "+p.Dir+"/disk/index/*; do head -c 5000 /dev/urandom >$f; done")
		}},
		{"all of the disks deleted", func(p *Peer) { sh(t, "", "rm -r "+p.Dir+"/disk") }},
	} {
		p := victims[i%2]
		p.Stop()
		round.damage(p)
		// A mount without anything in memory.
		peers[0].Unmount()
		p.Start()
		peers[0].Start()
		check(round.name)
		peers[0].Wait(time.Minute)
		add()
	}
	// All of it is good again: any one may be gone.
	peers[0].Wait(time.Minute)
	if s := peers[0].Status(); s.Health != "ok" || s.MayFail < 1 {
		t.Fatalf("after the repairs: %+v", s)
	}
	for _, p := range victims {
		if out := Run(t, "", "scrub", "--data", p.Dir); !strings.Contains(out, " 0 damaged") {
			t.Errorf("scrub of %s says %q", p.Name, out)
		}
	}
	victims[0].Kill()
	peers[0].Unmount()
	peers[0].Start()
	check("one peer dead")
}

// A full host drive: writes fail with ENOSPC, nothing that was acknowledged is lost, removals go through, and once there is
// room all goes on.
func TestFullDrive(t *testing.T) {
	drive := filepath.Join(t.TempDir(), "drive")
	if err := os.Mkdir(drive, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", drive, "tmpfs", 0, "size=256m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(drive, 0); err != nil {
			t.Error(err)
		}
	})
	p := &Peer{t: t, ring: &ring{}, Name: "full", Dir: filepath.Join(drive, "data"), Addr: freeAddr(t), Mnt: emptyDir(t)}
	p.ring.add(p)
	Run(t, "", append([]string{"init"}, p.shape(Options{Capacity: "16GiB"})...)...)
	p.Start()
	stored, kept := map[string][]byte{}, map[string][]byte{}
	failures := 0
	for i := 0; failures < 3; i++ {
		if i > 100 {
			t.Fatal("256 MiB hold more than 400 MB")
		}
		name, content := fmt.Sprintf("%s/file%d", p.Mnt, i), randomBytes(uint64(i), 4_000_000)
		err := store(name, content)
		switch {
		case err == nil && failures == 0:
			stored[name] = content
		case errors.Is(err, syscall.ENOSPC):
			failures++
		case err != nil:
			t.Fatalf("on a full drive: %v", err)
		}
	}
	if len(stored) < 10 {
		t.Fatalf("full after %d files", len(stored))
	}
	check := func(when string) {
		t.Helper()
		for name, want := range stored {
			if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%s: %s reads %d bytes, %v", when, name, len(got), err)
			}
		}
	}
	check("full")
	if err := os.Mkdir(p.Mnt+"/dir", 0o755); err != nil {
		t.Errorf("mkdir on a full drive: %v", err)
	}
	p.Kill()
	p.Start()
	check("full, killed and started")

	// Room is made by removing files on the mount.
	for i := range 5 {
		name := fmt.Sprintf("%s/file%d", p.Mnt, i)
		if err := os.Remove(name); err != nil {
			t.Fatalf("remove on a full drive: %v", err)
		}
		delete(stored, name)
	}
	Eventually(t, 30*time.Second, func() error {
		name, content := p.Mnt+"/after", randomBytes(1000, 4_000_000)
		if err := store(name, content); err != nil {
			return err
		}
		stored[name] = content
		return nil
	})
	p.Wait(time.Minute)
	check("after room was made")

	// Another program takes all there is; then it goes.
	hog := filepath.Join(drive, "hog")
	if err := exec.Command("dd", "if=/dev/zero", "of="+hog, "bs=1M").Run(); err == nil {
		t.Fatal("the drive cannot be filled")
	}
	for i := range 5 {
		name, content := fmt.Sprintf("%s/small%d", p.Mnt, i), randomBytes(uint64(i), 3000)
		if err := store(name, content); err == nil {
			kept[name] = content
		} else if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("with not a byte free: %v", err)
		}
	}
	check("not a byte free")
	if err := os.Remove(hog); err != nil {
		t.Fatal(err)
	}
	Eventually(t, 30*time.Second, func() error { return store(p.Mnt+"/last", []byte("x")) })
	for name, content := range kept {
		stored[name] = content
	}
	p.Unmount()
	p.Start()
	check("mounted again")
	p.Unmount()
}

// bounded runs a command that may fail, but must end in time; it is the call of the mount that ends, not the command that is killed.
func bounded(t *testing.T, limit time.Duration, command string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	out, err := exec.CommandContext(ctx, "sh", "-c", "exec "+command).CombinedOutput()
	if ctx.Err() != nil {
		t.Errorf("%s does not end within %v", command, limit)
	}
	return string(out), err
}

// TestTooFewPeers stops one peer of six for a while under load, then kills four.
func TestTooFewPeers(t *testing.T) {
	peers, client := six(t)
	l := startLoad(t, client.Mnt+"/load", 2, 2, nil)
	l.work(5)
	peers[1].Signal(syscall.SIGSTOP)
	stopped := time.Now()
	Eventually(t, time.Minute, func() error { // the load goes on all the while
		if since := time.Since(stopped); since < 20*time.Second {
			return fmt.Errorf("stopped for %v", since)
		}
		return nil
	})
	peers[1].Signal(syscall.SIGCONT)
	l.work(5)
	written := l.end()

	// Cold: what is read below is in no cache.
	big := client.Mnt + "/big"
	content := randomBytes(1, 20_000_000)
	if err := errors.Join(store(big, content), os.Mkdir(client.Mnt+"/dir", 0o755), store(client.Mnt+"/dir/file", []byte("x"))); err != nil {
		t.Fatal(err)
	}
	written[big] = [32]byte{}
	client.Wait(time.Minute)
	client.Unmount()
	client.Start()
	for _, p := range peers[:4] {
		p.Kill()
	}
	unreachable := func(command string) {
		t.Helper()
		start := time.Now()
		out, err := bounded(t, time.Minute, command)
		t.Logf("%s: %v, %v, %s", command, time.Since(start).Round(time.Millisecond), err, strings.TrimSpace(out))
		if err == nil || strings.Contains(out, "No such file") {
			t.Errorf("%s with four of six peers dead: %v, %q", command, err, out)
		}
	}
	unreachable("dd if=" + big + " of=/dev/null bs=128k")
	unreachable("ls " + client.Mnt + "/dir")
	unreachable("dd if=/dev/zero of=" + client.Mnt + "/dir/new bs=1k count=1 conv=fsync")
	Eventually(t, time.Minute, func() error { // it is counted anew
		if s := client.Status(); s.Health != "unavailable" || s.MayFail != 0 {
			return fmt.Errorf("with four of six peers dead: health %q, %d more may fail", s.Health, s.MayFail)
		}
		return nil
	})
	interruptible(t, "dd", "if="+big, "of=/dev/null", "bs=128k", "skip=64")
	interruptible(t, "dd", "if=/dev/zero", "of="+client.Mnt+"/new", "bs=1M", "count=8", "conv=fsync")

	for _, p := range peers[:4] {
		p.Start()
	}
	client.Gathered(6)
	Eventually(t, time.Minute, func() error { return store(client.Mnt+"/again", []byte("x")) })
	delete(written, big)
	checkAll(t, written)
	if got, err := os.ReadFile(big); err != nil || !bytes.Equal(got, content) {
		t.Errorf("afterwards the big file reads %d bytes, %v", len(got), err)
	}
	client.Wait(2 * time.Minute)
	if s := client.Status(); s.Health != "ok" || s.MayFail < 2 {
		t.Errorf("afterwards: %+v", s)
	}
	client.Unmount()
}

// interruptible starts a command that waits in a call of the mount, kills it, and sees it end.
func interruptible(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		t.Logf("%s %s had ended before it was killed: %v", name, strings.Join(args, " "), err)
		return
	case <-time.After(2 * time.Second): // long enough to be inside a call that waits
	}
	_ = cmd.Process.Kill()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Errorf("%s %s cannot be killed", name, strings.Join(args, " "))
		<-done
	}
}

// A change of the settings must not take disks away: with one peer there is nobody to get the data back from.
func TestMoreDrivesAndLessCapacity(t *testing.T) {
	p := Init(t, Options{Capacity: "1GiB"})
	p.Mnt = emptyDir(t)
	content := randomBytes(1, 20_000_000)
	for i, config := range []map[string]string{
		{"capacity": `"1GiB"`},
		{"drives": fmt.Sprintf("[%q]", t.TempDir())},
		{"capacity": `"512MiB"`},
		{"capacity": `"2GiB"`},
	} {
		p.configure(Options{Config: config})
		p.Start()
		if err := store(fmt.Sprintf("%s/file%d", p.Mnt, i), content); err != nil {
			t.Fatal(err)
		}
		for j := range i + 1 {
			if got, err := os.ReadFile(fmt.Sprintf("%s/file%d", p.Mnt, j)); err != nil || !bytes.Equal(got, content) {
				t.Errorf("with %v: file%d reads %d bytes, %v", config, j, len(got), err)
			}
		}
		p.Unmount()
	}
}
