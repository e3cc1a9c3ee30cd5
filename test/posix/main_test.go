// Package posix checks on a real mount what POSIX and Linux say of a file system: with the tests that others
// wrote for file systems like this one, and with tables of what they leave out. The mount is served by a process of its own.
package posix

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/mutualfs/mutualfs/test/cluster"
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "mutualfs-test-")
	if err == nil {
		err = cluster.Build(dir)
	}
	code := 1
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// mount makes a ring of one and mounts it for the test.
func mount(t *testing.T) *cluster.Peer {
	t.Helper()
	p := cluster.Init(t, cluster.Options{})
	p.Mnt = filepath.Join(t.TempDir(), "mnt")
	p.Start()
	return p
}

// folder makes a directory of its own for a subtest.
func folder(t *testing.T, p *cluster.Peer) string {
	t.Helper()
	dir, err := os.MkdirTemp(p.Mnt, "")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}
