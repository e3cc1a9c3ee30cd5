package cluster

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// Same compares two trees: names, types, modes, owners, links, sizes, times of files and links, extended
// attributes aside, and content byte by byte.
func Same(t testing.TB, want, got string) {
	t.Helper()
	diffs := Compare(want, got)
	for i, d := range diffs {
		if i == 20 {
			t.Errorf("… and %d more", len(diffs)-i)
			break
		}
		t.Error(d)
	}
	if len(diffs) > 0 {
		t.Fatalf("%s and %s differ in %d places", want, got, len(diffs))
	}
}

// Compare lists how two trees differ.
func Compare(want, got string) []string {
	var diffs []string
	names := map[string]bool{}
	walk := func(root string, f func(rel string) error) {
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(root, path)
			if err != nil || rel == "." {
				return err
			}
			return f(rel)
		})
		if err != nil {
			diffs = append(diffs, err.Error())
		}
	}
	walk(want, func(rel string) error {
		names[rel] = true
		if d := compareOne(filepath.Join(want, rel), filepath.Join(got, rel)); d != "" {
			diffs = append(diffs, rel+": "+d)
		}
		return nil
	})
	walk(got, func(rel string) error {
		if !names[rel] {
			diffs = append(diffs, rel+": should not be there")
		}
		return nil
	})
	return diffs
}

func compareOne(want, got string) string {
	a, err := os.Lstat(want)
	if err != nil {
		return err.Error()
	}
	b, err := os.Lstat(got)
	if err != nil {
		return err.Error()
	}
	if a.Mode() != b.Mode() {
		return fmt.Sprintf("mode %v, want %v", b.Mode(), a.Mode())
	}
	as, bs := a.Sys().(*syscall.Stat_t), b.Sys().(*syscall.Stat_t)
	if as.Uid != bs.Uid || as.Gid != bs.Gid {
		return fmt.Sprintf("owner %d:%d, want %d:%d", bs.Uid, bs.Gid, as.Uid, as.Gid)
	}
	if !a.IsDir() && as.Nlink != bs.Nlink {
		return fmt.Sprintf("%d links, want %d", bs.Nlink, as.Nlink)
	}
	if !a.ModTime().Equal(b.ModTime()) {
		return fmt.Sprintf("modified %v, want %v", b.ModTime(), a.ModTime())
	}
	switch {
	case a.Mode()&fs.ModeSymlink != 0:
		x, err1 := os.Readlink(want)
		y, err2 := os.Readlink(got)
		if err1 != nil || err2 != nil || x != y {
			return fmt.Sprintf("target %q, %v, want %q, %v", y, err2, x, err1)
		}
	case a.Mode().IsRegular():
		if a.Size() != b.Size() {
			return fmt.Sprintf("%d bytes, want %d", b.Size(), a.Size())
		}
		return compareContent(want, got)
	}
	return ""
}

func compareContent(want, got string) string {
	a, err := os.Open(want)
	if err != nil {
		return err.Error()
	}
	defer a.Close()
	b, err := os.Open(got)
	if err != nil {
		return err.Error()
	}
	defer b.Close()
	x, y := make([]byte, 256<<10), make([]byte, 256<<10)
	for off := 0; ; {
		n, err1 := io.ReadFull(a, x)
		m, err2 := io.ReadFull(b, y)
		if !bytes.Equal(x[:n], y[:m]) {
			for i := range min(n, m) {
				if x[i] != y[i] {
					return fmt.Sprintf("content differs at byte %d", off+i)
				}
			}
			return fmt.Sprintf("content ends at byte %d, want %d (%v)", off+m, off+n, err2)
		}
		off += n
		if err1 != nil {
			return ""
		}
	}
}
