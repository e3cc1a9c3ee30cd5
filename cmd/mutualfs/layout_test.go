package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// makeDisks makes empty files where layOut wants disks, and returns their names.
func makeDisks(t *testing.T, drives []string, list []place) string {
	t.Helper()
	var names []string
	for i, p := range list {
		path := filepath.Join(drives[p.drive], fmt.Sprintf("vnode-%02d.disk", i))
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err == nil {
			if info, _ := f.Stat(); info.Size() == 0 {
				err = f.Truncate(p.capacity)
			}
			f.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, path)
	}
	return strings.Join(names, " ")
}

func TestDisksStayWhereTheyAre(t *testing.T) {
	r := &ringFile{DataShards: 4, Tolerate: 2, VnodeSize: 64 << 20}
	drives := []string{t.TempDir()}
	lay := func(capacity uint64) []place {
		t.Helper()
		list, err := layOut(r, capacity, drives)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	old := lay(1 << 30)
	if len(old) != 16 || old[0].capacity != 64<<20 {
		t.Fatalf("1 GiB is laid out as %v", old)
	}
	before := makeDisks(t, drives, old)

	drives = append(drives, t.TempDir())
	for name, capacity := range map[string]uint64{"a drive more": 1 << 30, "less capacity": 512 << 20} {
		if after := makeDisks(t, drives, lay(capacity)); after != before {
			t.Errorf("%s: disks move:\n%s\n%s", name, before, after)
		}
	}
	more := lay(2 << 30)
	after := makeDisks(t, drives, more)
	if !strings.HasPrefix(after, before) || len(more) != 32 {
		t.Errorf("twice the capacity: %d disks:\n%s", len(more), after)
	}
	for i, p := range more[16:] {
		if p.drive != 1 || p.capacity != 64<<20 {
			t.Errorf("new disk %d is %+v, want 64 MiB on the new drive", 16+i, p)
		}
	}

	if err := os.WriteFile(filepath.Join(drives[1], "vnode-03.disk"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := layOut(r, 1<<30, drives); err == nil || !strings.Contains(err.Error(), drives[1]) {
		t.Errorf("a disk on two drives: %v", err)
	}
}

func TestDisksGoRoundTheDrives(t *testing.T) {
	r := &ringFile{DataShards: 4, Tolerate: 2, VnodeSize: 64 << 20}
	list, err := layOut(r, 1<<30, []string{t.TempDir(), t.TempDir(), t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range list {
		if p.drive != i%3 {
			t.Errorf("disk %d is on drive %d", i, p.drive)
		}
	}
}
