package tree_test

import (
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/fs/tree"
)

// What was written before a utimes is stored after it, while what was written later is not yet: the file shows the time of the
// later write all along.
func TestMtimeOfWritesAroundUtimes(t *testing.T) {
	m := start(t, newRing(t), 1, t.TempDir(), nil)
	f := mustMake(t, m, tree.RootIno, "f", regMode)
	write := func(off uint64, at tree.Time) tree.Seq {
		t.Helper()
		seq, err := m.AppendData(t.Context(), f, off, []byte("data"))
		if err != nil {
			t.Fatal(err)
		}
		m.Grown(f, off, 4, at)
		return seq
	}
	shows := func(when string, want tree.Time) {
		t.Helper()
		if a, err := m.Getattr(t.Context(), f); err != nil || a.Mtime != want {
			t.Errorf("%s: mtime %d, %v; want %d", when, a.Mtime, err, want)
		}
	}
	base := tree.TimeOf(time.Now())
	early := write(0, base)
	set := tree.Time(123)
	if _, err := m.Setattr(t.Context(), f, tree.SetAttr{Mtime: &set}); err != nil {
		t.Fatal(err)
	}
	shows("set", set)
	late := write(4, base+10)
	shows("written", base+10)
	store := func(seq tree.Seq, content string) {
		t.Helper()
		w := tree.Writeback{Ino: f, Inline: []byte(content), Size: uint64(len(content)), Mtime: base + 10, Flushed: seq}
		if err := m.Writeback(t.Context(), w); err != nil {
			t.Fatal(err)
		}
	}
	store(early, "data")
	shows("half stored", base+10)
	store(late, "datadata")
	shows("stored", base+10)
}
