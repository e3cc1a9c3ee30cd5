package fuzz

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// node is what a tree has under one path.
type node struct {
	attr  Attr
	data  []byte
	extra []string // target, extended attributes
}

// snapshot reads a tree.
func snapshot(root string) (map[string]node, error) {
	tree := map[string]node{}
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		n, err := readNode(p)
		if err != nil {
			return fmt.Errorf("%s: %w", rel, err)
		}
		tree[rel] = n
		return nil
	})
	return tree, err
}

func readNode(p string) (node, error) {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return node{}, err
	}
	n := node{attr: *attrOf(&st)}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		n.data, err = os.ReadFile(p)
	case unix.S_IFLNK:
		var target string
		target, err = os.Readlink(p)
		n.extra = append(n.extra, "-> "+target)
	}
	if err != nil {
		return n, err
	}
	buf := make([]byte, 4096)
	l, err := unix.Llistxattr(p, buf)
	if err != nil {
		return n, fmt.Errorf("listxattr: %w", err)
	}
	for _, name := range strings.FieldsFunc(string(buf[:l]), func(r rune) bool { return r == 0 }) {
		value := make([]byte, 4096)
		k, err := unix.Lgetxattr(p, name, value)
		if err != nil {
			return n, fmt.Errorf("getxattr %s: %w", name, err)
		}
		n.extra = append(n.extra, fmt.Sprintf("%s=%x", name, value[:k]))
	}
	slices.Sort(n.extra)
	return n, nil
}

// diffTrees lists how two trees differ; hard links must join the same names.
func diffTrees(want, got map[string]node) (diffs []string) {
	byIno := map[uint64]uint64{}
	for _, p := range sortedKeys(want) {
		w := want[p]
		g, ok := got[p]
		if !ok {
			diffs = append(diffs, p+": missing")
			continue
		}
		if d := diffAttr(&w.attr, &g.attr, false); d != "" {
			diffs = append(diffs, p+": "+d)
		}
		if string(w.data) != string(g.data) {
			diffs = append(diffs, p+": data: "+diffBytes(w.data, g.data))
		}
		if !slices.Equal(w.extra, g.extra) {
			diffs = append(diffs, fmt.Sprintf("%s: %.200q, want %.200q", p, g.extra, w.extra))
		}
		if w.attr.Mode&syscall.S_IFMT == syscall.S_IFDIR {
			continue
		}
		if other, ok := byIno[w.attr.Ino]; ok && other != g.attr.Ino {
			diffs = append(diffs, p+": should be a link of another name")
		}
		byIno[w.attr.Ino] = g.attr.Ino
	}
	for _, p := range sortedKeys(got) {
		if _, ok := want[p]; !ok {
			diffs = append(diffs, p+": should not be there")
		}
	}
	return diffs
}

func sortedKeys(m map[string]node) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
