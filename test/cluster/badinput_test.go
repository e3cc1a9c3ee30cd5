package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// badLimit bounds a command that must fail.
const badLimit = 60 * time.Second

// refused runs the program, which must fail in time with one line on standard error that says all of want.
// env replaces the environment if it is not nil.
func refused(t *testing.T, code int, env []string, stdin string, args []string, want ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), badLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, Binary, args...)
	cmd.Stdin, cmd.Env = strings.NewReader(stdin), env
	checkRefused(t, cmd, code, want...)
}

func checkRefused(t *testing.T, cmd *exec.Cmd, code int, want ...string) {
	t.Helper()
	var errs bytes.Buffer
	cmd.Stderr = &errs
	err := cmd.Run()
	what := strings.Join(cmd.Args, " ")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != code {
		t.Errorf("%s: %v, want exit code %d: %s", what, err, code, errs.String())
		return
	}
	// Of a peer in the foreground the log comes before it.
	lines := strings.Split(strings.TrimSpace(errs.String()), "\n")
	said := 0
	for _, l := range lines {
		if strings.HasPrefix(l, "mutualfs: ") {
			said++
		}
	}
	last := lines[len(lines)-1]
	if code == 2 && len(lines) > 1 {
		last = lines[len(lines)-2] // then comes the hint at help
	}
	if said != 1 || strings.Contains(errs.String(), "panic") || strings.Contains(errs.String(), "goroutine ") {
		t.Errorf("%s: want one line of error, got:\n%s", what, errs.String())
	}
	for _, w := range want {
		if !strings.Contains(last, w) {
			t.Errorf("%s: the error does not say %q: %s", what, w, last)
		}
	}
}

func emptyDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "mnt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestBadTokens(t *testing.T) {
	a := Init(t, Options{})
	token := strings.TrimSpace(Run(t, "", "invite", "--data", a.Dir))
	dir := filepath.Join(t.TempDir(), "b")
	join := []string{"join", "--data", dir, "--listen", freeAddr(t), "--capacity", "1GiB"}
	flipped := []byte(token)
	flipped[len(flipped)/2] ^= 1
	for name, text := range map[string]string{
		"none": "", "garbage": "hello\n", "cut off": token[:len(token)-7], "cut in the middle": token[:len(token)/2],
		"flipped": string(flipped), "only the prefix": "mutualfs1-", "binary": "\x00\xff\x00", "twice": token + token,
		"long": strings.Repeat("mutualfs1-", 20000),
	} {
		t.Run(name, func(t *testing.T) {
			want := "mutualfs invite"
			refused(t, 1, nil, text, join, "token", want)
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a data directory was made: %v", err)
			}
		})
	}
	// A good token where a ring is already.
	refused(t, 1, nil, token, []string{"join", "--data", a.Dir, "--listen", freeAddr(t), "--capacity", "1GiB"}, a.Dir, "holds a ring already", "--data")
	refused(t, 1, nil, "", []string{"init", "--data", a.Dir, "--capacity", "1GiB"}, a.Dir, "holds a ring already")
}

func TestBadUsage(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	for _, c := range []struct {
		args string
		want string
	}{
		{"init --data " + dir + " --capacity 5parsec", "5parsec"},
		{"init --data " + dir + " --capacity 1B", "64MiB"},
		{"init --data " + dir + " --capacity 0", "must store something"},
		{"init --data " + dir + " --listen nowhere", "HOST:PORT"},
		{"init --data " + dir + " --listen :7440", "name the address"},
		{"init --data " + dir + " --capacity 1GiB --data-shards 60 --tolerate 60", "at most 64"},
		{"init --data " + dir + " --nonsense", "--nonsense"},
		{"mount --data " + dir + " -o colour=blue /mnt", "colour=blue"},
		{"mount --data " + dir, "arg"},
		{"nonsense", "nonsense"},
	} {
		t.Run(c.args, func(t *testing.T) { refused(t, 2, nil, "", strings.Fields(c.args), c.want) })
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a data directory was made: %v", err)
	}
	for _, command := range []string{"status", "wait", "ring", "scrub", "invite", "serve"} {
		refused(t, 1, nil, "", []string{command, "--data", dir}, dir, "holds no ring")
	}
	refused(t, 1, nil, "", []string{"unmount", t.TempDir()}, "is not a mutualfs mount")
}

func TestBadConfig(t *testing.T) {
	a := Init(t, Options{})
	good, err := os.ReadFile(filepath.Join(a.Dir, "config.toml"))
	if err != nil {
		t.Fatal(err)
	}
	set := func(key, line string) {
		t.Helper()
		lines := strings.Split(string(good), "\n")
		for i, l := range lines {
			if strings.HasPrefix(l, key+" =") {
				lines[i] = line
			}
		}
		if err := os.WriteFile(filepath.Join(a.Dir, "config.toml"), []byte(strings.Join(lines, "\n")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	mnt := emptyDir(t)
	for _, c := range []struct{ key, line, want string }{
		{"cache", `cache = "256Mib"`, "is not a size"},
		{"cache", `cacche = "256MiB"`, `unknown key "cacche"`},
		{"repair_after", `repair_after = "15"`, "s, m or h"},
		{"reserve", `reserve = "5"`, "percentage"},
		{"listen", `listen = "nowhere"`, "HOST:PORT"},
		{"sync", `sync = "never"`, `"fsync" or "close"`},
		{"dirty", `dirty =`, "line"},
	} {
		set(c.key, c.line)
		refused(t, 1, nil, "", []string{"serve", "--data", a.Dir}, "config.toml", c.want)
		refused(t, 1, nil, "", []string{"mount", "--data", a.Dir, mnt}, "config.toml", c.want)
	}
	if err := os.WriteFile(filepath.Join(a.Dir, "config.toml"), good, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"ring.json", "ring.secret", "volume.key"} {
		path := filepath.Join(a.Dir, f)
		old, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, old[:len(old)/2], 0o600); err != nil {
			t.Fatal(err)
		}
		refused(t, 1, nil, "", []string{"serve", "--data", a.Dir}, path)
		if err := os.WriteFile(path, old, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a.Start()
	a.Stop()
}

func TestBadMountPoints(t *testing.T) {
	a := Init(t, Options{})
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	full := filepath.Join(dir, "full")
	if err := errors.Join(os.WriteFile(file, nil, 0o644), os.Mkdir(full, 0o755), os.WriteFile(full+"/x", nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ path, want string }{
		{filepath.Join(dir, "missing"), "does not exist: make it with mkdir"},
		{file, "is not a directory"},
		{full, "-o nonempty"},
	} {
		for _, args := range [][]string{{"mount", "--data", a.Dir}, {"mount", "-f", "--data", a.Dir}} {
			refused(t, 1, nil, "", append(args, c.path), c.path, c.want)
		}
	}
	// The environment has no fusermount3. The error of the process in the background is printed by the one in front.
	mnt := emptyDir(t)
	refused(t, 1, []string{"PATH=" + dir}, "", []string{"mount", "--data", a.Dir, mnt}, "fusermount3 is missing", "fuse3")

	// There is no /dev/fuse.
	cmd := exec.Command("unshare", "-m", "sh", "-c",
		`mount -t tmpfs none /dev && mknod /dev/null c 1 3 && mknod /dev/urandom c 1 9 && exec "$@"`, "sh", Binary, "mount", "--data", a.Dir, mnt)
	checkRefused(t, cmd, 1, "/dev/fuse is missing", "modprobe fuse")

	// What was refused left nothing behind.
	a.Mnt = mnt
	a.Start()
	if err := os.WriteFile(filepath.Join(mnt, "file"), []byte("x"), 0o644); err != nil {
		t.Error(err)
	}
	refused(t, 1, nil, "", []string{"mount", "--data", a.Dir, mnt}, mnt, "is mounted already", "unmount")

	// Two processes on one data directory.
	other := emptyDir(t)
	refused(t, 1, nil, "", []string{"mount", "--data", a.Dir, other}, a.Dir, "in use by another mutualfs process", fmt.Sprint(a.cmd.Process.Pid))
	refused(t, 1, nil, "", []string{"serve", "--data", a.Dir}, a.Dir, "in use by another mutualfs process")
	if text, err := os.ReadFile(filepath.Join(mnt, "file")); err != nil || string(text) != "x" {
		t.Errorf("afterwards the first mount reads %q, %v", text, err)
	}
	a.Unmount()
}

func TestPortInUse(t *testing.T) {
	a := Init(t, Options{})
	l, err := net.Listen("tcp", a.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	refused(t, 1, nil, "", []string{"serve", "--data", a.Dir}, a.Addr, "in use by another program", "config.toml")
	refused(t, 1, nil, "", []string{"mount", "--data", a.Dir, emptyDir(t)}, a.Addr, "in use by another program", "config.toml")
	l.Close()
	a.Start()
	a.Stop()
}

// A peer must not take the disks of another for its own, be they of another ring or of another peer.
func TestDisksOfAnotherRing(t *testing.T) {
	a, b := Init(t, Options{Capacity: "128MiB"}), Init(t, Options{Capacity: "128MiB"})
	for _, p := range []*Peer{a, b} {
		p.Mnt = emptyDir(t)
		p.Start()
		if err := os.WriteFile(p.Mnt+"/name", []byte(p.Dir), 0o644); err != nil {
			t.Fatal(err)
		}
		p.Unmount()
	}
	sh(t, "", "mv "+b.Dir+"/disk "+b.Dir+"/own && cp -a --sparse=always "+a.Dir+"/disk "+b.Dir+"/disk")
	before := sh(t, "", "cd "+b.Dir+"/disk && sha256sum vnode-*.disk")
	refused(t, 1, nil, "", []string{"serve", "--data", b.Dir}, b.Dir+"/disk", "ring", "use the right data directory")
	// Nor with the index gone, so that only the disk files themselves say whose they are.
	sh(t, "", "rm -r "+b.Dir+"/disk/index")
	refused(t, 1, nil, "", []string{"mount", "--data", b.Dir, b.Mnt}, b.Dir+"/disk", "belongs to ring", "use the right data directory")
	if after := sh(t, "", "cd "+b.Dir+"/disk && sha256sum vnode-*.disk"); after != before {
		t.Error("the disks of the other ring were changed")
	}
	sh(t, "", "rm -r "+b.Dir+"/disk && mv "+b.Dir+"/own "+b.Dir+"/disk")
	b.Start()
	if text, err := os.ReadFile(b.Mnt + "/name"); err != nil || string(text) != b.Dir {
		t.Errorf("with its own disks again: %q, %v", text, err)
	}
	b.Unmount()
}

// A peer with the token of one ring and the secret of another, and whoever speaks nonsense, are refused; the ring goes on.
func TestForeigners(t *testing.T) {
	a := Init(t, Options{})
	a.Mnt = emptyDir(t)
	a.Start()
	other := Init(t, Options{})
	liar := a.Join(t, "liar", Options{})
	secret, err := os.ReadFile(filepath.Join(other.Dir, "ring.secret"))
	if err == nil {
		err = os.WriteFile(filepath.Join(liar.Dir, "ring.secret"), secret, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	noise(t, a.Addr)
	refused(t, 1, nil, "", []string{"mount", "--data", liar.Dir, emptyDir(t)}, a.Addr, "refused", "another ring, or the wrong secret")
	if s := a.Status(); len(s.Peers) != 1 || s.Health != "ok" {
		t.Errorf("after the foreigner: %+v", s)
	}
	if err := os.WriteFile(filepath.Join(a.Mnt, "file"), []byte("x"), 0o644); err != nil {
		t.Error(err)
	}
	a.Unmount()
}

// noise sends what no peer says to a peer's port.
func noise(t *testing.T, addr string) {
	t.Helper()
	for _, text := range []string{"", "GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\xff\xff" + strings.Repeat("\xaa", 70000), strings.Repeat("\x00", 1<<20)} {
		conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		_, err = io.WriteString(conn, text)
		if err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%d bytes of noise: %v", len(text), err)
		}
		if text != "" {
			if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%d bytes of noise: the peer keeps the connection", len(text))
			}
		}
		conn.Close()
	}
}
