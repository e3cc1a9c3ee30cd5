package cluster

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sh runs a shell command to its end; a failure ends the test.
func sh(t testing.TB, dir, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), runLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", script)
	cmd.Dir = dir
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out.String())
	}
	return strings.TrimSpace(out.String())
}

// realTree is a tree of real files: parts of the Go toolchain's own source, with links and odd modes added.
// at least so many files.
func realTree(t testing.TB, packages ...string) string {
	t.Helper()
	src := filepath.Join(t.TempDir(), "src")
	root := sh(t, "", "go env GOROOT")
	for _, p := range packages {
		dst := filepath.Join(src, p)
		if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
			t.Fatal(err)
		}
		sh(t, "", "cp -a "+filepath.Join(root, "src", p)+" "+dst)
	}
	sh(t, src, `
		mkdir -p odd/deep/er && ln -s ../nowhere odd/dangling && ln -s deep odd/dirlink
		echo one >odd/a && ln odd/a odd/b && ln odd/a odd/deep/c && chmod 4751 odd/a
		touch -d '1999-12-31 23:59:59.123456789' odd/deep/old && chmod 0 odd/deep/old
		: >odd/empty && truncate -s 5M odd/sparse && printf x | dd of=odd/sparse bs=1 seek=3000000 conv=notrunc status=none
		mkfifo odd/fifo && mkdir -m 1777 odd/sticky && touch "odd/ name with 'quotes'	and ü"
		head -c 3000000 /dev/urandom >odd/random && chown 1234:4321 odd/empty
		# rsync ignores the fraction of a second: a tree made this very second would hide lost times
		find odd -depth ! -name old -exec touch -h -d '2020-02-03 04:05:06.789012345' {} +`)
	return src
}

func countFiles(t testing.TB, root string) int {
	t.Helper()
	n := 0
	if err := filepath.WalkDir(root, func(string, fs.DirEntry, error) error { n++; return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}

// useTree does with a mount what users do, and compares.
func useTree(t testing.TB, src, mnt string) {
	t.Helper()
	sh(t, "", "cp -a "+src+" "+mnt+"/copied")
	Same(t, src, mnt+"/copied")
	if out := sh(t, "", "rsync -aH --itemize-changes "+src+"/ "+mnt+"/copied/"); out != "" {
		t.Fatalf("rsync after cp -a wants to change:\n%s", out)
	}
	sh(t, "", "mkdir "+mnt+"/synced && rsync -aH "+src+"/ "+mnt+"/synced/")
	Same(t, src, mnt+"/synced")
	sh(t, "", "mkdir "+mnt+"/untarred && tar --format=posix -C "+src+" -cf - . | tar -C "+mnt+"/untarred -xpf -")
	Same(t, src, mnt+"/untarred")
	sh(t, "", "rm -rf "+mnt+"/untarred && mv "+mnt+"/synced "+mnt+"/moved")
}

// gitTree clones a repository onto the mount and works in it.
func gitTree(t testing.TB, src, mnt string) {
	t.Helper()
	origin := filepath.Join(t.TempDir(), "origin")
	sh(t, "", `git init -q -b main `+origin+` && cp -a `+src+`/. `+origin+`/ && cd `+origin+` &&
		git -c user.name=t -c user.email=t@t add -A && git -c user.name=t -c user.email=t@t commit -qm one`)
	clone := mnt + "/clone"
	sh(t, "", "git clone -q --no-local "+origin+" "+clone)
	gitSound(t, clone)
	sh(t, clone, `echo '// two' >>scanner/scanner.go && git -c user.name=t -c user.email=t@t commit -qam two && git checkout -q -b other HEAD~1 && git gc -q && git checkout -q main`)
	gitSound(t, clone)
}

func gitSound(t testing.TB, dir string) {
	t.Helper()
	sh(t, dir, "git fsck --strict --no-progress")
	if out := sh(t, dir, "git status --porcelain"); out != "" {
		t.Fatalf("git status in %s:\n%s", dir, out)
	}
}

func TestRingOfOne(t *testing.T) {
	src := realTree(t, "net", "os", "encoding", "go", "time", "text")
	if n := countFiles(t, src); n < 1000 {
		t.Fatalf("only %d files to copy", n)
	}
	p := Init(t, Options{})
	p.Mnt = filepath.Join(t.TempDir(), "mnt")
	p.Start()
	useTree(t, src, p.Mnt)
	gitTree(t, filepath.Join(src, "text"), p.Mnt)
	p.Unmount()
	if entries, err := os.ReadDir(p.Mnt); err != nil || len(entries) > 0 {
		t.Fatalf("the mount point after unmount: %v, %v", entries, err)
	}
	p.Start()
	Same(t, src, p.Mnt+"/copied")
	Same(t, src, p.Mnt+"/moved")
	gitSound(t, p.Mnt+"/clone")
	p.Wait(time.Minute)
	if s := p.Status(); s.Health != "ok" || s.Stripes.Protected == 0 || s.Registers.Protected == 0 {
		t.Fatalf("status of a sound ring of one: %+v", s)
	}
}
