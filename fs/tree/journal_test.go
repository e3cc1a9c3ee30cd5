package tree

import (
	"fmt"
	"os"
	"sync"
	"testing"
)

func openTest(t *testing.T, dir string) *journal {
	t.Helper()
	j, err := openJournal(dir, 4096, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func readAll(t *testing.T, j *journal) (seqs []Seq, names []string) {
	t.Helper()
	err := j.replay(func(r record) error {
		seqs = append(seqs, r.seq)
		if r.op != nil {
			names = append(names, r.op.Name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return seqs, names
}

// Many callers, several segments: all records are there, in the order of their numbers.
func TestJournal(t *testing.T) {
	dir := t.TempDir()
	j := openTest(t, dir)
	readAll(t, j)
	if err := j.start(); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for k := range 4 {
		wg.Go(func() {
			for i := range 100 {
				if err := j.wait(j.addOp(rid(k), &Op{Kind: OpUnlink, Name: fmt.Sprint(k, " ", i)})); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	segments := len(j.segs)
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	k := openTest(t, dir)
	seqs, names := readAll(t, k)
	if len(names) != 400 || segments < 3 {
		t.Fatalf("%d records in %d segments", len(names), segments)
	}
	for i := 1; i < len(seqs); i++ {
		if seqs[i] <= seqs[i-1] {
			t.Fatal("numbers do not grow")
		}
	}
	if err := k.start(); err != nil {
		t.Fatal(err)
	}
	if k.next <= seqs[len(seqs)-1] {
		t.Error("a number is given twice")
	}
	if err := k.trim(seqs[len(seqs)-1]); err != nil { // all but the segment of the last record
		t.Fatal(err)
	}
	if n := len(k.segs); n != 2 {
		t.Errorf("%d segments after trimming", n)
	}
	if err := k.close(); err != nil {
		t.Fatal(err)
	}
}

// What an error left is written by the next caller.
func TestJournalError(t *testing.T) {
	dir := t.TempDir()
	j := openTest(t, dir)
	readAll(t, j)
	if err := j.start(); err != nil {
		t.Fatal(err)
	}
	good := j.f
	bad, err := os.Open(j.segs[len(j.segs)-1].path) // cannot be written
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = bad.Close() }()
	j.f = bad
	p := []byte("payload")
	e := newRecord(recData, rid(1), 16)
	e.Uint64(5)
	e.Uint64(0)
	if err := j.wait(j.add(e.Buf, p)); err == nil {
		t.Fatal("a write to a file that is open for reading succeeded")
	}
	clear(p)
	j.f = good
	if err := j.wait(j.addOp(rid(1), &Op{Kind: OpUnlink, Name: "a"})); err != nil {
		t.Fatal(err)
	}
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	if seqs, names := readAll(t, openTest(t, dir)); len(seqs) != 2 || len(names) != 1 {
		t.Errorf("%d records, operations %v", len(seqs), names)
	}
}
