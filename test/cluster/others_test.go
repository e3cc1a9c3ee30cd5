package cluster

import (
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

// tool runs a program to its end and returns what it printed; a failure ends the test.
func tool(t testing.TB, dir, stdin, name string, args ...string) string {
	t.Helper()
	out, err := tryTool(dir, stdin, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func tryTool(dir, stdin, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), runLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(stdin)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_OPTIONAL_LOCKS=0", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b",
		"GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// history is a stream for git fast-import: commits of two branches, each of which changes some of the files.
func history(commits, files int) string {
	var b strings.Builder
	for i := range commits {
		branch := []string{"main", "other"}[i%2]
		fmt.Fprintf(&b, "commit refs/heads/%s\ncommitter a <a@b> %d +0000\ndata <<E\ncommit %d\nE\n", branch, 1_700_000_000+i, i)
		for f := i % 3; f < files; f += 3 {
			text := strings.Repeat(fmt.Sprintf("%s %d %d\n", branch, i, f), 1+f*7%200)
			fmt.Fprintf(&b, "M 100644 inline dir%d/file%d\ndata %d\n%s\n", f%7, f, len(text), text)
		}
	}
	return b.String()
}

// git clones, checks out, packs and makes work trees on one mount while the other reads the same repository: it never sees a broken one.
func TestGitOnTwoMounts(t *testing.T) {
	a, b := twoMounts(t)
	src := t.TempDir()
	tool(t, src, "", "git", "init", "-q", "--bare", "-b", "main")
	tool(t, src, history(10, 60), "git", "fast-import", "--quiet")
	tool(t, a.Mnt, "", "git", "clone", "-q", "--no-local", src, "clone")
	here, there := filepath.Join(a.Mnt, "clone"), filepath.Join(b.Mnt, "clone")
	reads := 0
	done, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- func() error {
			for {
				for _, args := range [][]string{{"log", "-p", "--all"}, {"rev-parse", "HEAD"}, {"ls-tree", "-r", "origin/other"}, {"status", "--short"}} {
					select {
					case <-done:
						return nil
					default:
					}
					if _, err := tryTool(there, "", "git", args...); err != nil {
						return err
					}
					reads++
				}
			}
		}()
	}()
	for i := range 2 {
		tool(t, here, "", "git", "checkout", "-q", []string{"other", "main"}[i%2])
		if err := os.WriteFile(filepath.Join(here, "new"), fmt.Append(nil, i), 0o644); err != nil {
			t.Fatal(err)
		}
		tool(t, here, "", "git", "add", "new")
		tool(t, here, "", "git", "commit", "-qm", "new")
		tool(t, here, "", "git", "worktree", "add", "-q", fmt.Sprint("../tree", i), "-b", fmt.Sprint("branch", i))
		tool(t, here, "", "git", "gc", "-q", "--prune=now")
		if i%2 == 1 {
			tool(t, here, "", "git", "worktree", "remove", fmt.Sprint("../tree", i))
		}
	}
	close(done)
	if err := <-ended; err != nil {
		t.Errorf("the other mount: %v", err)
	}
	t.Logf("%d commands on the other mount meanwhile", reads)
	for _, dir := range []string{here, there} {
		tool(t, dir, "", "git", "fsck", "--full", "--strict")
		if out := tool(t, dir, "", "git", "status", "--short"); out != "" {
			t.Errorf("%s: git status says %s", dir, out)
		}
	}
	if x, y := tool(t, here, "", "git", "show-ref"), tool(t, there, "", "git", "show-ref"); x != y {
		t.Errorf("references %s, on the other mount %s", x, y)
	}
}

// sourceTree makes a tree of all that rsync copies.
func sourceTree(t *testing.T, dir string) {
	t.Helper()
	path := func(name string) string { return filepath.Join(dir, name) }
	// An access-control list: the owner may read and write, user 1234 read, others nothing.
	list := []byte("\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\xd2\x04\x00\x00" + "\x04\x00\x00\x00\xff\xff\xff\xff" +
		"\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff")
	var errs []error
	for i := range 60 {
		sub := path(fmt.Sprint("dir", i%6))
		errs = append(errs, os.MkdirAll(sub, 0o750), os.WriteFile(filepath.Join(sub, fmt.Sprint("file", i)), []byte(strings.Repeat(fmt.Sprint(i), i*i)), 0o640))
	}
	errs = append(errs,
		os.Link(path("dir0/file0"), path("dir1/hard")), os.Link(path("dir1/hard"), path("hard2")),
		os.Symlink("dir0/file0", path("soft")), os.Symlink("nowhere", path("broken")),
		syscall.Mkfifo(path("fifo"), 0o600),
		syscall.Setxattr(path("dir2/file2"), "user.name", []byte("value"), 0), syscall.Setxattr(path("dir3"), "user.dir", []byte("x"), 0),
		syscall.Setxattr(path("dir1/file1"), "system.posix_acl_access", list, 0), syscall.Setxattr(path("dir2"), "system.posix_acl_default", list, 0),
		os.Chmod(path("dir4/file4"), 0o4755), os.Chown(path("dir5/file5"), 1234, 5678),
		os.Truncate(path("dir0/file6"), 3<<20), os.Chtimes(path("dir1/file7"), time.Unix(1e9, 7), time.Unix(1e9, 123456789)))
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// rsync from a local directory to a mount, inside a mount, and from one mount to the other: the second time it finds nothing to do, and what has
// changed since is all that it does the third time.
func TestRsync(t *testing.T) {
	a, b := twoMounts(t)
	for _, from := range []string{t.TempDir(), a.Mnt, b.Mnt} {
		rsyncTwice(t, filepath.Join(from, "src"), []*Peer{b, a})
	}
}

// rsyncTwice copies a tree to the first of the mounts.
func rsyncTwice(t *testing.T, src string, mounts []*Peer) {
	t.Helper()
	dst := filepath.Join(mounts[0].Mnt, "dst")
	sourceTree(t, src)
	defer func() {
		if err := errors.Join(os.RemoveAll(src), os.RemoveAll(dst)); err != nil {
			t.Error(err)
		}
	}()
	sync := func() string {
		t.Helper()
		return tool(t, "/", "", "rsync", "-aHAX", "--delete", "--itemize-changes", src+"/", dst)
	}
	if first := sync(); strings.Count(first, "\n") < 60 {
		t.Errorf("the first rsync did only\n%s", first)
	}
	for _, who := range mounts {
		if again := tool(t, "/", "", "rsync", "-aHAXc", "--delete", "--itemize-changes", src+"/", filepath.Join(who.Mnt, "dst")); again != "" {
			t.Errorf("the second rsync, to %s, still did\n%s", who.Name, again)
		}
	}
	if err := errors.Join(os.Remove(filepath.Join(src, "dir0/file12")), os.Rename(filepath.Join(src, "dir2"), filepath.Join(src, "moved")),
		os.WriteFile(filepath.Join(src, "dir3/file3"), []byte("changed"), 0o640)); err != nil {
		t.Fatal(err)
	}
	if third := sync(); !strings.Contains(third, "deleting   dir0/file12") || !strings.Contains(third, "dir3/file3") || strings.Contains(third, "dir4/file4") {
		t.Errorf("after some changes rsync did\n%s", third)
	}
	if again := sync(); again != "" {
		t.Errorf("the last rsync still did\n%s", again)
	}
}
