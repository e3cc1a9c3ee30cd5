package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// serverPID is the process that serves a data directory, also one in the background; 0: none.
func serverPID(t *testing.T, dir string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "LOCK"))
	if err != nil {
		return 0
	}
	var pid int
	if _, err := fmt.Sscanf(string(text), "pid %d", &pid); err != nil {
		t.Fatalf("LOCK says %q", text)
	}
	name, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil || !strings.HasPrefix(name, Binary) {
		return 0
	}
	return pid
}

// endServer kills what serves a data directory and detaches its mount.
func endServer(t *testing.T, dir, mnt string) {
	t.Helper()
	if pid := serverPID(t, dir); pid != 0 {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		awaitEnd(t, dir)
	}
	_ = exec.Command("fusermount3", "-uz", mnt).Run()
}

func awaitEnd(t *testing.T, dir string) {
	t.Helper()
	Eventually(t, 20*time.Second, func() error {
		if pid := serverPID(t, dir); pid != 0 {
			return fmt.Errorf("process %d still runs", pid)
		}
		return nil
	})
}

func mounted(t *testing.T, mnt string) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); f[1] == mnt {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// limited runs a command that must end in time.
func limited(t *testing.T, limit time.Duration, name string, args ...string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("%s %s takes longer than %v", name, strings.Join(args, " "), limit)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// TestLifeOfAMount goes through the ways in which a mount begins and ends, always in the background as users have it.
func TestLifeOfAMount(t *testing.T) {
	dir, mnt := filepath.Join(t.TempDir(), "data"), emptyDir(t)
	t.Cleanup(func() { endServer(t, dir, mnt) })
	Run(t, "", "init", "--data", dir, "--listen", freeAddr(t), "--capacity", "1GiB")
	up := func(args ...string) {
		t.Helper()
		Run(t, "", append(append([]string{"mount", "--data", dir}, args...), mnt)...)
		if line := mounted(t, mnt); !strings.Contains(line, "fuse.mutualfs") || !strings.HasPrefix(line, dir+" ") {
			t.Fatalf("the mount table says %q", line)
		}
	}
	written := 0
	write := func() {
		t.Helper()
		if err := os.WriteFile(fmt.Sprintf("%s/file%d", mnt, written), fmt.Append(nil, written), 0o644); err != nil {
			t.Fatal(err)
		}
		written++
	}
	check := func() {
		t.Helper()
		for i := range written {
			if text, err := os.ReadFile(fmt.Sprintf("%s/file%d", mnt, i)); err != nil || string(text) != fmt.Sprint(i) {
				t.Fatalf("file%d reads %q, %v", i, text, err)
			}
		}
	}

	up()
	write()
	// In use: unmount says so, and the mount goes on.
	f, err := os.Open(mnt + "/file0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := TryRun("", "unmount", mnt); err == nil || !strings.Contains(err.Error(), "busy") {
		t.Errorf("unmount of a mount in use: %v", err)
	}
	write()
	check()
	f.Close()
	Run(t, "", "unmount", mnt)
	if pid := serverPID(t, dir); pid != 0 {
		t.Errorf("unmount returned while process %d still runs", pid)
	}

	up("-o", "rw,noatime,nofail,x-systemd.automount,_netdev")
	check()
	write()
	if line := mounted(t, mnt); strings.Contains(line, "nosuid") || strings.Contains(line, "nodev") {
		t.Errorf("mounted by root as %q", line)
	}
	if err := limited(t, 20*time.Second, "fusermount3", "-u", mnt); err != nil {
		t.Error(err)
	}
	awaitEnd(t, dir)

	up()
	check()
	write()
	if err := syscall.Kill(serverPID(t, dir), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, dir)

	// SIGTERM while a file is open and being written.
	up()
	check()
	if f, err = os.Create(mnt + "/open"); err == nil {
		_, err = f.WriteString("still there")
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(serverPID(t, dir), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, dir)
	if _, err := f.WriteString("more"); err == nil {
		t.Error("a write to a mount that has ended succeeds")
	}
	f.Close()
	if line := mounted(t, mnt); line != "" {
		t.Errorf("after SIGTERM there is still %q", line)
	}
	up()
	check()
	if text, err := os.ReadFile(mnt + "/open"); err != nil || string(text) != "still there" {
		t.Errorf("what was written before SIGTERM reads %q, %v", text, err)
	}

	// The mount that a killed process leaves is cleaned up by the next.
	write()
	if err := syscall.Kill(serverPID(t, dir), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, dir)
	if _, err := os.Stat(mnt); !errors.Is(err, syscall.ENOTCONN) && !errors.Is(err, syscall.ECONNABORTED) {
		t.Errorf("the dead mount says %v", err)
	}
	up()
	check()
	Run(t, "", "unmount", mnt)

	readOnly(t, dir, mnt)
	fstab(t, dir, mnt, check)
}

func readOnly(t *testing.T, dir, mnt string) {
	t.Helper()
	Run(t, "", "mount", "--data", dir, "-o", "ro,nosuid,nodev", mnt)
	if line := mounted(t, mnt); !strings.Contains(line, "nosuid") || !strings.Contains(line, "nodev") {
		t.Errorf("mounted with nosuid,nodev as %q", line)
	}
	if err := os.WriteFile(mnt+"/x", nil, 0o644); !errors.Is(err, syscall.EROFS) {
		t.Errorf("a write to a read-only mount: %v", err)
	}
	Run(t, "", "unmount", mnt)
}

// fstab calls the program as mount(8) does for a line of /etc/fstab.
func fstab(t *testing.T, dir, mnt string, check func()) {
	t.Helper()
	link := filepath.Join(t.TempDir(), "mount.mutualfs")
	if err := os.Symlink(Binary, link); err != nil {
		t.Fatal(err)
	}
	if err := limited(t, time.Minute, link, dir, mnt, "-n", "-o", "rw,_netdev,nofail"); err != nil {
		t.Fatal(err)
	}
	check()
	if err := limited(t, time.Minute, "umount", mnt); err != nil {
		t.Error(err)
	}
	awaitEnd(t, dir)
	if err := limited(t, time.Minute, link, "none", mnt, "-o", "data="+dir); err != nil {
		t.Fatal(err)
	}
	check()
	Run(t, "", "unmount", mnt)
	checkRefused(t, exec.Command(link, dir, mnt+"/missing", "-o", "rw"), 1, "does not exist: make it with mkdir")
	checkRefused(t, exec.Command(link, dir, mnt, "-o", "colour=blue"), 2, "colour=blue")
}
