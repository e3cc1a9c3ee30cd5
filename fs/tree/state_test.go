package tree

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
)

func testSeed(t testing.TB) *rand.Rand {
	s := uint64(time.Now().UnixNano())
	if v, err := strconv.ParseUint(os.Getenv("MUTUALFS_SEED"), 10, 64); err == nil {
		s = v
	}
	t.Logf("MUTUALFS_SEED=%d", s)
	return rand.New(rand.NewPCG(s, 2))
}

func sid(i int) blocks.StripeID {
	return blocks.StripeID{ID: blocks.HashID([]byte{1, byte(i), byte(i >> 8)})}
}
func rid(i int) blocks.RegisterID { return blocks.RegisterID{ID: blocks.HashID([]byte{2, byte(i)})} }
func ext(off, l uint64, i int) Extent {
	return Extent{Off: off, Len: l, Stripe: blocks.StripeRef{ID: sid(i), Len: 1 << 20, K: 4, M: 2}}
}

func testDir() *State { return newDir(10, 0o755, 1, 2, 100, nil, rid(9), 1) }

// The rules of POSIX, operation by operation.
func TestApply(t *testing.T) {
	const reg, dir = syscall.S_IFREG | 0o644, syscall.S_IFDIR | 0o755
	file := func(name string, ino Ino) *Op { return &Op{Kind: OpMake, Time: 200, Name: name, Ino: ino, Mode: reg} }
	mkdir := func(name string, ino Ino) *Op {
		return &Op{Kind: OpMake, Time: 200, Name: name, Ino: ino, Mode: dir, Child: rid(int(ino))}
	}
	long := string(bytes.Repeat([]byte("x"), MaxName+1))
	for _, c := range []struct {
		name  string
		setup []*Op
		op    *Op
		err   error
		check func(s *State) bool
	}{
		{"make", nil, file("a", 20), nil, func(s *State) bool {
			n := s.inodes[20]
			return n.Nlink == 1 && n.Mtime == 200 && s.Self.Mtime == 200 && s.Self.Ctime == 200 && s.Nlink() == 2
		}},
		{"make twice", []*Op{file("a", 20)}, file("a", 21), syscall.EEXIST, nil},
		{"name too long", nil, file(long, 20), syscall.ENAMETOOLONG, nil},
		{"name with a slash", nil, file("a/b", 20), syscall.EINVAL, nil},
		{"dot", nil, file(".", 20), syscall.EINVAL, nil},
		{"mkdir counts", nil, mkdir("d", 20), nil, func(s *State) bool { return s.Nlink() == 3 }},
		{"rmdir", []*Op{mkdir("d", 20)}, &Op{Kind: OpRmdir, Time: 300, Name: "d", Ino: 20}, nil, func(s *State) bool { return s.Nlink() == 2 && s.Len() == 0 }},
		{"rmdir of a file", []*Op{file("a", 20)}, &Op{Kind: OpRmdir, Name: "a"}, syscall.ENOTDIR, nil},
		{"unlink of a directory", []*Op{mkdir("d", 20)}, &Op{Kind: OpUnlink, Name: "d"}, syscall.EISDIR, nil},
		{"unlink of nothing", nil, &Op{Kind: OpUnlink, Name: "d"}, syscall.ENOENT, nil},
		{"unlink, open", []*Op{file("a", 20)}, &Op{Kind: OpUnlink, Time: 300, Name: "a", Ino: 20, Keep: true, Session: rid(9)}, nil, func(s *State) bool {
			return s.inodes[20].Nlink == 0 && s.inodes[20].Ctime == 300 && s.Len() == 0
		}},
		{"unlink, open elsewhere", []*Op{file("a", 20), {Kind: OpKeep, Inos: []Ino{19, 20}, Session: rid(9)}},
			&Op{Kind: OpUnlink, Name: "a", Ino: 20, Session: rid(8)}, nil, func(s *State) bool { n := s.inodes[20]; return n != nil && n.Nlink == 0 && n.keptBy(rid(9)) }},
		{"unlink, closed since", []*Op{file("a", 20), {Kind: OpKeep, Inos: []Ino{20}, Session: rid(9)}},
			&Op{Kind: OpUnlink, Name: "a", Ino: 20, Session: rid(9)}, nil, func(s *State) bool { return s.inodes[20] == nil }},
		{"release with a name", []*Op{file("a", 20), {Kind: OpKeep, Inos: []Ino{20}, Session: rid(9)}}, &Op{Kind: OpRelease, Inos: []Ino{20}, Session: rid(9)}, nil,
			func(s *State) bool { n := s.inodes[20]; return n != nil && len(n.Keepers) == 0 }},
		{"release of one of two", []*Op{file("a", 20), {Kind: OpKeep, Inos: []Ino{20}, Session: rid(9)}, {Kind: OpUnlink, Name: "a", Ino: 20, Keep: true, Session: rid(8)}},
			&Op{Kind: OpRelease, Inos: []Ino{20}, Session: rid(8)}, nil, func(s *State) bool { n := s.inodes[20]; return n != nil && n.keptBy(rid(9)) }},
		{"release of the last", []*Op{file("a", 20), {Kind: OpUnlink, Name: "a", Ino: 20, Keep: true, Session: rid(8)}},
			&Op{Kind: OpRelease, Inos: []Ino{20}, Session: rid(8)}, nil, func(s *State) bool { return s.inodes[20] == nil }},
		{"an ended directory has its orphans", []*Op{file("a", 20), {Kind: OpUnlink, Name: "a", Ino: 20, Keep: true, Session: rid(8)}, {Kind: OpDie}},
			&Op{Kind: OpTruncate, Ino: 20, Size: 7}, nil, func(s *State) bool { return s.Dead && s.inodes[20].Size == 7 }},
		{"an ended directory takes no names", []*Op{file("a", 20), {Kind: OpUnlink, Name: "a", Ino: 20, Keep: true, Session: rid(8)}, {Kind: OpDie}},
			file("b", 21), syscall.ENOENT, nil},
		{"unlink frees", []*Op{file("a", 20), {Kind: OpWriteback, Ino: 20, Size: 10, Extents: []Extent{ext(0, 10, 1)}}},
			&Op{Kind: OpUnlink, Name: "a", Ino: 20}, nil, func(s *State) bool { _, ok := s.free[sid(1)]; return ok && s.inodes[20] == nil }},
		{"link", []*Op{file("a", 20)}, &Op{Kind: OpLink, Time: 300, Ino: 20, New: "b"}, nil, func(s *State) bool { return s.inodes[20].Nlink == 2 && s.inodes[20].Ctime == 300 }},
		{"link onto a name", []*Op{file("a", 20)}, &Op{Kind: OpLink, Ino: 20, New: "a"}, syscall.EEXIST, nil},
		{"rename", []*Op{file("a", 20)}, &Op{Kind: OpRename, Time: 300, Name: "a", New: "b", Ino: 20}, nil, func(s *State) bool {
			return s.entries["b"].Ino == 20 && s.Len() == 1 && s.inodes[20].Ctime == 300
		}},
		{"rename over", []*Op{file("a", 20), file("b", 21)}, &Op{Kind: OpRename, Name: "a", New: "b", Ino: 20, Ino2: 21}, nil, func(s *State) bool {
			return s.entries["b"].Ino == 20 && s.Len() == 1 && s.inodes[21] == nil
		}},
		{"rename, not replacing", []*Op{file("a", 20), file("b", 21)}, &Op{Kind: OpRename, Name: "a", New: "b", Ino2: 21, Flags: 1}, syscall.EEXIST, nil},
		{"rename of nothing", nil, &Op{Kind: OpRename, Name: "a", New: "b"}, syscall.ENOENT, nil},
		{"rename of a file onto a directory", []*Op{file("a", 20), mkdir("d", 21)}, &Op{Kind: OpRename, Name: "a", New: "d", Ino2: 21}, syscall.EISDIR, nil},
		{"rename of a directory onto a file", []*Op{file("a", 20), mkdir("d", 21)}, &Op{Kind: OpRename, Name: "d", New: "a", Ino2: 20}, syscall.ENOTDIR, nil},
		{"rename onto a second name of the same file", []*Op{file("a", 20), {Kind: OpLink, Ino: 20, New: "b"}},
			&Op{Kind: OpRename, Name: "a", New: "b", Ino: 20, Ino2: 20}, nil, func(s *State) bool { return s.Len() == 2 && s.inodes[20].Nlink == 2 }},
		{"exchange", []*Op{file("a", 20), mkdir("d", 21)}, &Op{Kind: OpRename, Name: "a", New: "d", Ino: 20, Ino2: 21, Flags: 2}, nil, func(s *State) bool {
			return s.entries["a"].Ino == 21 && s.entries["d"].Ino == 20 && s.Nlink() == 3
		}},
		{"chown", []*Op{file("a", 20)}, &Op{Kind: OpSetattr, Time: 300, Ino: 20, Set: setUid | setMtime, Uid: 7, Mtime: 5}, nil, func(s *State) bool {
			n := s.inodes[20]
			return n.Uid == 7 && n.Gid == 0 && n.Mtime == 5 && n.Ctime == 300 && n.Mode == reg
		}},
		{"setattr of nothing", nil, &Op{Kind: OpSetattr, Ino: 20}, syscall.ENOENT, nil},
		{"truncate drops privileges", []*Op{{Kind: OpMake, Name: "a", Ino: 20, Mode: syscall.S_IFREG | 0o6755}}, &Op{Kind: OpTruncate, Time: 300, Ino: 20, Size: 9, Set: setMode}, nil,
			func(s *State) bool {
				return s.inodes[20].Mode == syscall.S_IFREG|0o755 && s.inodes[20].Size == 9 && s.inodes[20].Mtime == 300
			}},
		{"truncate of a directory", nil, &Op{Kind: OpTruncate, Ino: 10}, syscall.EISDIR, nil},
		{"truncate too far", []*Op{file("a", 20)}, &Op{Kind: OpTruncate, Ino: 20, Size: MaxFile + 1}, syscall.EFBIG, nil},
		{"xattr create", []*Op{file("a", 20), {Kind: OpSetXattr, Ino: 20, Name: "user.x"}}, &Op{Kind: OpSetXattr, Ino: 20, Name: "user.x", Flags: xattrCreate}, syscall.EEXIST, nil},
		{"xattr replace", []*Op{file("a", 20)}, &Op{Kind: OpSetXattr, Ino: 20, Name: "user.x", Flags: xattrReplace}, syscall.ENODATA, nil},
		{"xattr remove", []*Op{file("a", 20)}, &Op{Kind: OpRemoveXattr, Ino: 20, Name: "user.x"}, syscall.ENODATA, nil},
		{"writeback past the size", []*Op{file("a", 20)}, &Op{Kind: OpWriteback, Ino: 20, Size: 5, Extents: []Extent{ext(0, 10, 1)}}, blocks.ErrInvalid, nil},
		{"frozen by a transaction", []*Op{{Kind: OpIntent, Txn: rid(1)}}, file("a", 20), errIntent, nil},
		{"die, not empty", []*Op{file("a", 20)}, &Op{Kind: OpDie}, syscall.ENOTEMPTY, nil},
		{"a dead directory", []*Op{{Kind: OpDie}}, file("a", 20), syscall.ENOENT, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := testDir()
			for _, o := range c.setup {
				if _, err := Apply(s, o); err != nil {
					t.Fatal(err)
				}
			}
			before := encodeState(s)
			_, err := Apply(s, c.op)
			if !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			if err != nil && !bytes.Equal(before, encodeState(s)) {
				t.Fatal("an operation that failed has changed the state")
			}
			if c.check != nil && !c.check(s) {
				t.Fatalf("wrong state: %+v", s)
			}
		})
	}
}

// Extents against an array of bytes: which stripe has each byte, and which stripes are free.
func TestExtents(t *testing.T) {
	r := testSeed(t)
	const size = 400
	for range 60 {
		n := &Inode{Size: size}
		var want [size]int
		freed := map[blocks.StripeID]int{}
		f := func(id blocks.StripeID) { freed[id]++ }
		made := 0
		for range 80 {
			off := uint64(r.IntN(size))
			l := uint64(1 + r.IntN(min(60, size-int(off))))
			switch r.IntN(6) {
			case 0:
				n.punch(off, l, f)
				clear(want[off : off+l])
			case 1:
				n.truncate(off, f)
				clear(want[off:])
				n.truncate(size, f)
			default:
				made++
				n.put(ext(off, l, made), f)
				for i := off; i < off+l; i++ {
					want[i] = made
				}
			}
			checkExtents(t, n, want[:], freed, made)
		}
	}
}

func checkExtents(t *testing.T, n *Inode, want []int, freed map[blocks.StripeID]int, made int) {
	t.Helper()
	got := make([]blocks.StripeID, len(want))
	used := map[blocks.StripeID]bool{}
	var at uint64
	for _, e := range n.Extents {
		if e.Off < at || e.Len == 0 {
			t.Fatalf("extents out of order: %v", n.Extents)
		}
		at = e.Off + e.Len
		for i := e.Off; i < at; i++ {
			got[i] = e.Stripe.ID
		}
		used[e.Stripe.ID] = true
	}
	for i, w := range want {
		if w == 0 && !got[i].IsZero() || w != 0 && got[i] != sid(w) {
			t.Fatalf("byte %d lies in %s, want stripe %d", i, got[i].Short(), w)
		}
	}
	for i := 1; i <= made; i++ {
		if used[sid(i)] && freed[sid(i)] != 0 || !used[sid(i)] && freed[sid(i)] != 1 {
			t.Fatalf("stripe %d: used %v, freed %d times", i, used[sid(i)], freed[sid(i)])
		}
	}
}

// randomOp makes an operation that may or may not apply.
func randomOp(r *rand.Rand, s *State, at Time, next *Ino) *Op {
	name := func() string { return string(rune('a' + r.IntN(4))) }
	var inos []Ino
	for ino := range s.inodes {
		inos = append(inos, ino)
	}
	slices.Sort(inos)
	ino := Ino(10)
	if len(inos) > 0 && r.IntN(8) > 0 {
		ino = inos[r.IntN(len(inos))]
	}
	o := &Op{Time: at, Name: name(), Ino: ino}
	switch r.IntN(12) {
	case 0, 1, 2:
		*next++
		o.Kind, o.Ino, o.Mode = OpMake, *next, syscall.S_IFREG|0o644
	case 3, 4:
		o.Kind, o.Ino = OpUnlink, s.entries[o.Name].Ino
		if o.Keep = r.IntN(2) == 0; o.Keep {
			o.Session = rid(8 + r.IntN(2))
		}
	case 5, 6:
		o.Kind, o.New, o.Ino = OpRename, name(), s.entries[o.Name].Ino
		o.Ino2 = s.entries[o.New].Ino
		o.Flags = uint32([]RenameFlags{0, 0, RenameExchange}[r.IntN(3)])
		if o.Keep = r.IntN(2) == 0; o.Keep {
			o.Session = rid(8 + r.IntN(2))
		}
	case 7:
		o.Kind, o.Name, o.Set, o.Mode, o.Mtime = OpSetattr, "", uint8(1+r.IntN(31)), uint32(r.IntN(512)), Time(r.IntN(1000))
	case 8:
		i := r.IntN(1000)
		o.Kind, o.Name, o.Size, o.Extents, o.Mtime = OpWriteback, "", 100, []Extent{ext(uint64(r.IntN(50)), 50, i)}, at
	case 10, 11: // mostly of what has lost its name
		for _, i := range inos {
			if s.inodes[i].Nlink == 0 || r.IntN(8) == 0 {
				o.Inos = append(o.Inos, i)
			}
		}
		o.Kind, o.Name, o.Ino, o.Session = OpRelease, "", 0, rid(8+r.IntN(2))
		if r.IntN(4) == 0 {
			o.Kind = OpKeep
		}
	case 9:
		if r.IntN(2) == 0 {
			o.Kind, o.New, o.Name = OpLink, o.Name, ""
		} else {
			o.Kind, o.Data = OpSetXattr, []byte("v")
		}
	}
	return o
}

// A folded batch does what the batch does, and operations survive their encoding.
func TestFold(t *testing.T) {
	r := testSeed(t)
	var before, after int
	for round := range 3000 {
		s, next := testDir(), Ino(100)
		for range r.IntN(8) {
			_, _ = Apply(s, randomOp(r, s, 150, &next)) // some state to begin with
		}
		from := encodeState(s)
		var ops []*Op
		for i := range r.IntN(25) {
			o := randomOp(r, s, Time(200+i), &next)
			if _, err := Apply(s, o); err == nil {
				ops = append(ops, o)
			}
		}
		folded, err := decodeBatch(encodeBatch(fold(ops, 10)))
		if err != nil {
			t.Fatal(err)
		}
		g, err := decodeState(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := applyAll(g, folded); err != nil {
			t.Fatalf("round %d: a folded batch does not apply: %v\n%s", round, err, show(ops))
		}
		if !bytes.Equal(encodeState(g), encodeState(s)) {
			t.Fatalf("round %d: folded differs\n%s\nfolded\n%s", round, show(ops), show(folded))
		}
		before, after = before+len(ops), after+len(folded)
	}
	if after > before*19/20 {
		t.Errorf("%d operations folded into %d: hardly any", before, after)
	}
}

func show(ops []*Op) (s string) {
	for _, o := range ops {
		s += fmt.Sprintf("  kind %d time %d name %q new %q ino %d ino2 %d flags %d\n", o.Kind, o.Time, o.Name, o.New, o.Ino, o.Ino2, o.Flags)
	}
	return s
}

// rsync's way to write a file is one new name.
func TestFoldRsync(t *testing.T) {
	ops := []*Op{
		{Kind: OpMake, Time: 1, Name: ".f.x", Ino: 20, Mode: syscall.S_IFREG | 0o600},
		{Kind: OpWriteback, Ino: 20, Size: 10, Extents: []Extent{ext(0, 10, 1)}},
		{Kind: OpSetattr, Time: 2, Ino: 20, Set: setMode, Mode: 0o644},
		{Kind: OpSetattr, Time: 3, Ino: 20, Set: setMtime, Mtime: 7},
		{Kind: OpRename, Time: 4, Name: ".f.x", New: "f", Ino: 20},
	}
	if got := fold(ops, 10); len(got) != 4 || got[0].Name != "f" {
		t.Errorf("folded into\n%s", show(got))
	}
	ops = append(ops[:4:4], &Op{Kind: OpUnlink, Time: 5, Name: ".f.x", Ino: 20})
	if got := fold(ops, 10); len(got) != 1 || got[0].Kind != OpTouch || len(got[0].Stripes) != 1 {
		t.Errorf("folded into\n%s", show(got))
	}
}

func sampleState(t testing.TB) *State {
	s := testDir()
	for _, o := range []*Op{
		{Kind: OpMake, Time: 200, Name: "f", Ino: 20, Mode: syscall.S_IFREG | 0o644, Uid: 3},
		{Kind: OpMake, Time: 201, Name: "d", Ino: 21, Mode: syscall.S_IFDIR | 0o755, Child: rid(3)},
		{Kind: OpMake, Time: 202, Name: "s", Ino: 22, Mode: syscall.S_IFLNK | 0o777, Data: []byte("f")},
		{Kind: OpSetXattr, Time: 203, Ino: 20, Name: "user.x", Data: []byte("v")},
		{Kind: OpWriteback, Ino: 20, Size: 4000, Extents: []Extent{ext(0, 100, 1), ext(200, 50, 1), ext(3000, 1000, 2)}, Mtime: 204, Mount: blocks.PeerID{ID: rid(7).ID}, Flushed: 9},
		{Kind: OpUnlink, Time: 205, Name: "f", Ino: 20, Keep: true, Session: rid(7)},
		{Kind: OpTouch, Time: 206, Stripes: []blocks.StripeID{sid(8)}, Regs: []blocks.RegisterID{rid(8)}},
		{Kind: OpIntent, Txn: rid(5), Parts: []blocks.RegisterID{rid(1), rid(2)}, Inner: &Op{Kind: OpMove, Time: 207, Name: "n",
			Entry: Dentry{Type: syscall.S_IFREG, Ino: 30}, Inodes: []*Inode{{Ino: 30, Mode: syscall.S_IFREG, Size: 3, Inline: []byte("abc")}}},
			Regs: []blocks.RegisterID{rid(6)}, Drop: true},
	} {
		if _, err := Apply(s, o); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// The formats are fixed: a change needs a new version number.
func TestGolden(t *testing.T) {
	sum := func(b []byte) string { h := sha256.Sum256(b); return hex.EncodeToString(h[:8]) }
	op := &Op{Kind: OpMake, Time: 1, Name: "f", Ino: 20, Mode: 0o100644}
	if got, want := hex.EncodeToString(encodeBatch([]*Op{op})), goldenBatch; got != want {
		t.Errorf("batch %s, want %s", got, want)
	}
	if got := sum(encodeState(sampleState(t))); got != goldenState {
		t.Errorf("snapshot %s, want %s", got, goldenState)
	}
	s := testDir()
	_, err := Apply(s, &Op{Kind: OpSpread, Time: 300, Regs: []blocks.RegisterID{rid(1), rid(2)}})
	if got := sum(encodeState(s)); err != nil || got != goldenSpread {
		t.Errorf("directory with pages %s, %v, want %s", got, err, goldenSpread)
	}
	p := newPage(testDir(), &share{span: span{lo: 5, hi: 1 << 40, next: rid(3)}}, rid(4))
	if got := sum(encodeState(p)); got != goldenPage {
		t.Errorf("page %s, want %s", got, goldenPage)
	}
	for _, st := range []*State{s, p} {
		if again, err := decodeState(encodeState(st)); err != nil || !bytes.Equal(encodeState(again), encodeState(st)) {
			t.Errorf("another encoding after decoding, or %v", err)
		}
	}
	if h := nameHash("file-1"); h != goldenHash {
		t.Errorf("hash %#x, want %#x", h, uint64(goldenHash))
	}
}

func TestStateRoundTrip(t *testing.T) {
	b := encodeState(sampleState(t))
	s, err := decodeState(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(encodeState(s), b) {
		t.Fatal("another encoding after decoding")
	}
	if _, err := Apply(s, &Op{Kind: OpResolve, Txn: rid(5), Drop: true}); err != nil {
		t.Fatal(err)
	}
	if s.entries["n"].Ino != 30 || s.intent != nil {
		t.Fatal("the decoded intent was not resolved")
	}
}

func TestSeal(t *testing.T) {
	a, err := newSealer(bytes.Repeat([]byte{1}, 32), rid(1), bytes.NewReader(bytes.Repeat([]byte{5}, 100)))
	if err != nil {
		t.Fatal(err)
	}
	b, err := newSealer(bytes.Repeat([]byte{1}, 32), rid(2), nil)
	if err != nil {
		t.Fatal(err)
	}
	v, err := a.seal(sealDelta, []byte("clear"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := a.open(sealDelta, v); err != nil || string(got) != "clear" {
		t.Errorf("open: %q, %v", got, err)
	}
	for name, f := range map[string]func() ([]byte, error){
		"as a snapshot":    func() ([]byte, error) { return a.open(sealSnapshot, v) },
		"another register": func() ([]byte, error) { return b.open(sealDelta, v) },
		"cut off":          func() ([]byte, error) { return a.open(sealDelta, v[:len(v)-1]) },
		"too short":        func() ([]byte, error) { return a.open(sealDelta, v[:3]) },
	} {
		if _, err := f(); !errors.Is(err, blocks.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzDecodeState(f *testing.F) {
	f.Add(encodeState(testDir()))
	f.Add(encodeState(sampleState(f)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := decodeState(b); err == nil {
			if _, err := decodeState(encodeState(s)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func FuzzDecodeBatch(f *testing.F) {
	f.Add(encodeBatch([]*Op{{Kind: OpMake, Name: "a", Ino: 3, Mode: syscall.S_IFREG}, sampleState(f).intent.op()}))
	f.Fuzz(func(t *testing.T, b []byte) {
		ops, err := decodeBatch(b)
		if err != nil {
			return
		}
		s := testDir()
		for _, o := range ops {
			_, _ = Apply(s, o) // must not panic
		}
		if _, err := decodeBatch(encodeBatch(ops)); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzRecord(f *testing.F) {
	e := newRecord(recOp, rid(1), 0)
	(&Op{Kind: OpUnlink, Name: "a"}).encode(&e)
	f.Add(e.Buf[recordHeader:])
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = parseRecord(b) // must not panic
		_, _ = frame(b)
	})
}

const (
	goldenBatch  = "0301012b02016614a48302"
	goldenSpread = "ad3f8be833a18fad"
	goldenPage   = "7743eb5223ce1e79"
	goldenHash   = 0x805f23521d73209c
	goldenState  = "841f82e4ebc82982"
)

// What is removed while the kernel knows it, and forgotten at once, leaves nothing of that in the batch.
func TestFoldForgotten(t *testing.T) {
	me := rid(9)
	born := []*Op{
		{Kind: OpMake, Time: 1, Name: "f", Ino: 20, Mode: syscall.S_IFREG | 0o600},
		{Kind: OpWriteback, Ino: 20, Size: 10, Extents: []Extent{ext(0, 10, 1)}},
	}
	unlink := &Op{Kind: OpUnlink, Time: 5, Name: "f", Ino: 20, Keep: true, Session: me}
	release := &Op{Kind: OpRelease, Time: 6, Inos: []Ino{20}, Session: me}
	if got := fold(append(born, unlink, release), 10); len(got) != 1 || got[0].Kind != OpTouch || len(got[0].Stripes) != 1 {
		t.Errorf("made and removed:\n%s", show(got))
	}
	if got := fold([]*Op{unlink, release}, 10); len(got) != 1 || got[0].Keep || got[0].notes() {
		t.Errorf("removed:\n%s", show(got))
	}
	rename := &Op{Kind: OpRename, Time: 5, Name: "g", New: "f", Ino: 21, Ino2: 20, Keep: true, Session: me}
	if got := fold([]*Op{rename, release}, 10); len(got) != 1 || got[0].Keep {
		t.Errorf("replaced:\n%s", show(got))
	}
	written := &Op{Kind: OpWriteback, Ino: 20, Size: 10, Extents: []Extent{ext(0, 10, 2)}}
	if got := fold([]*Op{unlink, written, release}, 10); len(got) != 3 {
		t.Errorf("removed, written and closed:\n%s", show(got))
	}
}
