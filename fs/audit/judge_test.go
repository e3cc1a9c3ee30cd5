package audit

import (
	"fmt"
	"slices"
	"syscall"
	"testing"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
)

func reg(name string) blocks.RegisterID { return blocks.RegisterID{ID: blocks.HashID([]byte(name))} }
func mnt(name string) blocks.PeerID     { return blocks.PeerID{ID: blocks.HashID([]byte("mount " + name))} }

func stripe(name string) blocks.StripeRef {
	return blocks.StripeRef{ID: blocks.StripeID{ID: blocks.HashID([]byte("stripe " + name))}, Len: 100, K: 2, M: 1}
}

const (
	dir  = syscall.S_IFDIR
	file = syscall.S_IFREG
)

func names(list ...tree.NameFacts) []tree.NameFacts { return list }
func nm(name string, typ uint32, ino tree.Ino, child string) tree.NameFacts {
	n := tree.NameFacts{Name: name, Dentry: tree.Dentry{Type: typ, Ino: ino}}
	if child != "" {
		n.Child = reg(child)
	}
	return n
}

func in(ino tree.Ino, nlink uint32, stripes ...string) tree.InodeFacts {
	n := tree.InodeFacts{Ino: ino, Nlink: nlink, Mode: file}
	for _, s := range stripes {
		n.Stripes = append(n.Stripes, stripe(s))
	}
	return n
}

// sound is a volume without a fault: two directories, one in the other, one spread over two pages, a file with two names, a promoted
// inode with an extent map, an orphan that is open, free lists, a transaction that is pending.
func sound() *Look {
	l := &Look{Root: reg("root"), Registers: map[blocks.RegisterID]*tree.Facts{}, Ended: map[blocks.RegisterID]bool{}, Unread: map[blocks.RegisterID]error{}, Nowhere: map[blocks.RegisterID]bool{},
		Listed: true, Counted: true, Before: map[blocks.StripeID]Stripe{}, After: map[blocks.StripeID]Stripe{},
		Keepers: map[blocks.PeerID]bool{mnt("m"): true, mnt("n"): true}}
	add := func(name string, f tree.Facts) {
		f.ID = reg(name)
		l.Registers[f.ID] = &f
	}
	orphan := in(15, 0, "s5")
	orphan.Keepers = []blocks.RegisterID{reg("ended"), reg("session")}
	add("session", tree.Facts{Kind: tree.KindSession, Holder: mnt("m")})
	add("root", tree.Facts{Kind: tree.KindDir, Ino: 1, ParentIno: 1,
		Names:    names(nm("a", dir, 2, "a"), nm("f", file, 10, ""), nm("g", file, 10, ""), nm("p", file, 11, "p")),
		Inodes:   []tree.InodeFacts{in(10, 2, "s1", "s2"), orphan},
		Free:     []blocks.StripeID{stripe("s6").ID},
		FreeRegs: []blocks.RegisterID{reg("garbage")}})
	add("garbage", tree.Facts{Kind: tree.KindDir, Dead: true, Ino: 30})
	add("a", tree.Facts{Kind: tree.KindDir, Ino: 2, Parent: reg("root"), ParentIno: 1, Names: names(nm("b", dir, 3, "b"), nm("q", file, 11, "p"), nm("r", file, 11, "p")),
		Txns: []blocks.RegisterID{reg("txn")}, Undecided: true, Brings: []blocks.RegisterID{reg("soon")}, Pending: []blocks.StripeID{stripe("s7").ID}})
	add("txn", tree.Facts{Kind: tree.KindTxn})
	add("soon", tree.Facts{Kind: tree.KindDir, Ino: 31})
	add("m", tree.Facts{Kind: tree.KindMap, Ino: 11, Parent: reg("p"), Inodes: []tree.InodeFacts{in(11, 0, "s7")}})
	add("p", tree.Facts{Kind: tree.KindFile, Maps: []blocks.RegisterID{reg("m")}, Inodes: []tree.InodeFacts{in(11, 3, "s3")}, Refs: map[blocks.RegisterID]uint32{reg("root"): 1, reg("a"): 2}})
	add("b", tree.Facts{Kind: tree.KindDir, Ino: 3, Parent: reg("a"), ParentIno: 2, Pages: []blocks.RegisterID{reg("b1")}})
	add("b1", tree.Facts{Kind: tree.KindPage, Ino: 3, Parent: reg("b"), ParentIno: 3, Next: reg("b2"), Names: names(nm("x", file, 12, "")), Inodes: []tree.InodeFacts{in(12, 1, "s4")}})
	add("b2", tree.Facts{Kind: tree.KindPage, Ino: 3, Parent: reg("b"), ParentIno: 3, Names: names(nm("c", dir, 4, "c"))})
	add("locks", tree.Facts{Kind: tree.KindSession, Holder: mnt("n")})
	add("c", tree.Facts{Kind: tree.KindDir, Ino: 4, Parent: reg("b"), ParentIno: 3})
	l.Registers[tree.RenameLock(l.Root)] = &tree.Facts{ID: tree.RenameLock(l.Root), Kind: tree.KindLock}
	for i := 1; i <= 7; i++ {
		s := Stripe{Ref: stripe(fmt.Sprintf("s%d", i)), Shards: 3}
		l.Before[s.Ref.ID], l.After[s.Ref.ID] = s, s
	}
	return l
}

// Every kind of finding, seeded by hand into a sound volume: it is found, and nothing else is.
func TestJudge(t *testing.T) {
	drop := func(f *tree.Facts, name string) {
		f.Names = slices.DeleteFunc(f.Names, func(n tree.NameFacts) bool { return n.Name == name })
	}
	inode := func(f *tree.Facts, ino tree.Ino) *tree.InodeFacts {
		return &f.Inodes[slices.IndexFunc(f.Inodes, func(n tree.InodeFacts) bool { return n.Ino == ino })]
	}
	for name, c := range map[string]struct {
		spoil func(l *Look, at func(string) *tree.Facts)
		want  []Key
		path  string // of the first
	}{
		"nothing": {spoil: func(*Look, func(string) *tree.Facts) {}},
		"unreferenced stripe": {func(l *Look, _ func(string) *tree.Facts) {
			l.Before[stripe("x").ID] = Stripe{Ref: stripe("x"), Shards: 1}
		}, []Key{{Kind: Unreferenced, Stripe: stripe("x").ID}}, ""},
		"deleted stripe with a shard that came back": {spoil: func(l *Look, _ func(string) *tree.Facts) {
			l.Before[stripe("x").ID] = Stripe{Ref: stripe("x"), Shards: 1, Dead: true}
		}},
		"stripe written after the look began": {spoil: func(l *Look, _ func(string) *tree.Facts) {
			l.After[stripe("x").ID] = Stripe{Ref: stripe("x"), Shards: 3}
		}},
		"stripe that an unread register may name": {func(l *Look, _ func(string) *tree.Facts) {
			l.Before[stripe("x").ID] = Stripe{Ref: stripe("x"), Shards: 1}
			l.Unread[reg("a")] = fmt.Errorf("%w: seal", blocks.ErrCorrupt)
		}, []Key{{Kind: Unreadable, Register: reg("a")}}, "/a"},
		"stripe of a file that nobody can list": {spoil: func(l *Look, _ func(string) *tree.Facts) {
			l.Before[stripe("x").ID] = Stripe{Ref: stripe("x"), Shards: 1}
			l.Listed = false
		}},
		"missing stripe": {func(l *Look, _ func(string) *tree.Facts) {
			delete(l.After, stripe("s4").ID)
		}, []Key{{Kind: Missing, Register: reg("b1"), Ino: 12, Stripe: stripe("s4").ID}}, "/a/b/x"},
		"stripe with too few shards": {func(l *Look, _ func(string) *tree.Facts) {
			l.After[stripe("s3").ID] = Stripe{Ref: stripe("s3"), Shards: 1}
		}, []Key{{Kind: Missing, Register: reg("p"), Ino: 11, Stripe: stripe("s3").ID}}, "/p"},
		"stripe that was deleted though it is needed": {func(l *Look, _ func(string) *tree.Facts) {
			l.After[stripe("s1").ID] = Stripe{Ref: stripe("s1"), Shards: 3, Dead: true}
		}, []Key{{Kind: Missing, Register: reg("root"), Ino: 10, Stripe: stripe("s1").ID}}, "/f"},
		"under-protected stripe": {func(l *Look, _ func(string) *tree.Facts) {
			l.After[stripe("s1").ID] = Stripe{Ref: stripe("s1"), Shards: 2}
		}, []Key{{Kind: UnderProtected, Register: reg("root"), Ino: 10, Stripe: stripe("s1").ID}}, "/f"},
		"shards of a peer that did not answer": {spoil: func(l *Look, _ func(string) *tree.Facts) {
			l.After[stripe("s1").ID] = Stripe{Ref: stripe("s1"), Shards: 1}
			l.Counted = false
		}},
		"stripe of two inodes": {func(l *Look, at func(string) *tree.Facts) {
			n := inode(at("b1"), 12)
			n.Stripes = append(n.Stripes, stripe("s1"))
		}, []Key{{Kind: Shared, Register: reg("root"), Ino: 10, Stripe: stripe("s1").ID}}, "/f"},
		"stripe of an inode on a free list": {func(l *Look, at func(string) *tree.Facts) {
			at("c").Free = append(at("c").Free, stripe("s4").ID)
		}, []Key{{Kind: Shared, Register: reg("b1"), Ino: 12, Stripe: stripe("s4").ID}}, "/a/b/x"},
		"stripe on two free lists": {spoil: func(l *Look, at func(string) *tree.Facts) {
			at("c").Free = append(at("c").Free, stripe("s6").ID)
		}},
		"wrong nlink": {func(l *Look, at func(string) *tree.Facts) {
			inode(at("root"), 10).Nlink = 3
		}, []Key{{Kind: WrongNlink, Register: reg("root"), Ino: 10}}, "/f"},
		"wrong nlink of a promoted inode": {func(l *Look, at func(string) *tree.Facts) {
			inode(at("p"), 11).Nlink = 1
		}, []Key{{Kind: WrongNlink, Register: reg("p"), Ino: 11}}, "/a/q"},
		"promoted inode without one of its names": {func(l *Look, at func(string) *tree.Facts) {
			drop(at("a"), "q")
		}, []Key{{Kind: WrongNlink, Register: reg("p"), Ino: 11}, {Kind: WrongReference, Register: reg("p"), Ino: 11}}, "/a/r"},
		"wrong back reference": {func(l *Look, at func(string) *tree.Facts) {
			at("p").Refs = map[blocks.RegisterID]uint32{reg("root"): 2, reg("a"): 1}
		}, []Key{{Kind: WrongReference, Register: reg("p"), Ino: 11}}, "/a/q"},
		"wrong parent": {func(l *Look, at func(string) *tree.Facts) {
			at("c").Parent = reg("root")
		}, []Key{{Kind: WrongParent, Register: reg("c"), Ino: 4}}, "/a/b/c"},
		"page where the head belongs": {func(l *Look, at func(string) *tree.Facts) {
			at("c").Parent = reg("b2")
		}, []Key{{Kind: WrongParent, Register: reg("c"), Ino: 4}}, "/a/b/c"},
		"name of a directory that has ended": {func(l *Look, at func(string) *tree.Facts) {
			delete(l.Registers, reg("c"))
			l.Ended[reg("c")] = true
		}, []Key{{Kind: Dangling, Register: reg("b2"), Name: "c", Ino: 4}}, "/a/b/c"},
		"name of a dead directory": {func(l *Look, at func(string) *tree.Facts) {
			at("c").Dead = true
		}, []Key{{Kind: Dangling, Register: reg("b2"), Name: "c", Ino: 4}}, "/a/b/c"},
		"name of another inode": {func(l *Look, at func(string) *tree.Facts) {
			at("c").Ino = 5
		}, []Key{{Kind: Dangling, Register: reg("b2"), Name: "c", Ino: 4}}, "/a/b/c"},
		"page that is not there": {func(l *Look, at func(string) *tree.Facts) {
			delete(l.Registers, reg("b2"))
			delete(l.Registers, reg("c"))
			l.Ended[reg("b2")] = true
		}, []Key{{Kind: Dangling, Register: reg("b")}}, "/a/b"},
		"extent map that is not there": {func(l *Look, at func(string) *tree.Facts) {
			delete(l.Registers, reg("m"))
			delete(l.Before, stripe("s7").ID)
			l.Ended[reg("m")] = true
		}, []Key{{Kind: Dangling, Register: reg("p")}}, "/p"},
		"extent map of another file": {func(l *Look, at func(string) *tree.Facts) {
			at("m").Parent = reg("c")
		}, []Key{{Kind: Dangling, Register: reg("p")}}, "/p"},
		"extent map without a file": {func(l *Look, at func(string) *tree.Facts) {
			at("p").Maps = nil
		}, []Key{{Kind: OrphanRegister, Register: reg("m"), Ino: 11}}, ""},
		"missing stripe of an extent map": {func(l *Look, _ func(string) *tree.Facts) {
			delete(l.After, stripe("s7").ID)
		}, []Key{{Kind: Missing, Register: reg("m"), Ino: 11, Stripe: stripe("s7").ID}}, "/p"},
		"stripe of a file and of its extent map": {func(l *Look, at func(string) *tree.Facts) {
			at("m").Inodes = []tree.InodeFacts{in(11, 0, "s7", "s3")}
		}, []Key{{Kind: Shared, Register: min2(reg("m"), reg("p")), Ino: 11, Stripe: stripe("s3").ID}}, "/p"},
		"directory that no peer has": {func(l *Look, at func(string) *tree.Facts) {
			delete(l.Registers, reg("c"))
			l.Nowhere[reg("c")] = true
		}, []Key{{Kind: MissingRegister, Register: reg("c")}}, "/a/b/c"},
		"directory that cannot be read as peers are away": {spoil: func(l *Look, at func(string) *tree.Facts) {
			delete(l.Registers, reg("c"))
			l.Unread[reg("c")] = fmt.Errorf("%w: unknown", blocks.ErrUnavailable)
			l.Listed, l.Counted = false, false
		}},
		"directory with two names": {func(l *Look, at func(string) *tree.Facts) {
			at("root").Names = append(at("root").Names, nm("second", dir, 4, "c"))
		}, []Key{{Kind: TwoNames, Register: reg("root"), Name: "second", Ino: 4}}, "/second"},
		"inode in two containers": {func(l *Look, at func(string) *tree.Facts) {
			at("c").Names = names(nm("again", file, 12, ""))
			at("c").Inodes = []tree.InodeFacts{in(12, 1)}
		}, []Key{{Kind: TwoPlaces, Register: min2(reg("b1"), reg("c")), Ino: 12}}, ""},
		"inode without a name": {func(l *Look, at func(string) *tree.Facts) {
			drop(at("b1"), "x")
		}, []Key{{Kind: OrphanInode, Register: reg("b1"), Ino: 12}}, ""},
		"orphan whose mount is gone": {func(l *Look, at func(string) *tree.Facts) {
			delete(l.Keepers, mnt("m"))
		}, []Key{{Kind: OrphanInode, Register: reg("root"), Ino: 15}, {Kind: OrphanRegister, Register: reg("session")}}, ""},
		"directory without a name": {func(l *Look, at func(string) *tree.Facts) {
			drop(at("root"), "a")
			at("p").Refs = map[blocks.RegisterID]uint32{reg("root"): 1, reg("a"): 2}
		}, []Key{{Kind: OrphanRegister, Register: reg("a"), Ino: 2}}, ""},
		"promoted inode without a name": {func(l *Look, at func(string) *tree.Facts) {
			drop(at("root"), "p")
			drop(at("a"), "q")
			drop(at("a"), "r")
		}, []Key{{Kind: OrphanRegister, Register: reg("p")}}, ""},
		"page of a split that did not come about": {func(l *Look, at func(string) *tree.Facts) {
			f := *at("b1")
			f.ID = reg("b3")
			l.Registers[f.ID] = &f
		}, []Key{{Kind: OrphanRegister, Register: reg("b3"), Ino: 3}}, ""},
		"transaction that nothing waits for": {func(l *Look, at func(string) *tree.Facts) {
			l.Registers[reg("t2")] = &tree.Facts{ID: reg("t2"), Kind: tree.KindTxn}
		}, []Key{{Kind: OrphanRegister, Register: reg("t2")}}, ""},
		"session of a mount that is over": {func(l *Look, at func(string) *tree.Facts) {
			l.Registers[reg("s2")] = &tree.Facts{ID: reg("s2"), Kind: tree.KindSession, Holder: mnt("over")}
		}, []Key{{Kind: OrphanRegister, Register: reg("s2")}}, ""},
		"cycle": {func(l *Look, at func(string) *tree.Facts) {
			drop(at("root"), "a")
			at("c").Names = names(nm("a", dir, 2, "a"))
			at("a").Parent, at("a").ParentIno = reg("c"), 4
		}, []Key{cycleKey()}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			l := sound()
			c.spoil(l, func(n string) *tree.Facts { return l.Registers[reg(n)] })
			found := Judge(l)
			var got []Key
			for _, f := range found {
				got = append(got, f.Key)
			}
			if !slices.Equal(got, c.want) {
				t.Fatalf("found %+v\nwant %+v", found, c.want)
			}
			if len(found) > 0 && (found[0].Path != c.path || found[0].Detail == "") {
				t.Errorf("at %q (%s), want it at %q", found[0].Path, found[0].Detail, c.path)
			}
		})
	}
}

func min2(a, b blocks.RegisterID) blocks.RegisterID {
	if a.Compare(b.ID) < 0 {
		return a
	}
	return b
}

// cycleKey is the cycle a, b, c: its smallest member, as it is named.
func cycleKey() Key {
	k := Key{Kind: Cycle, Register: min2(min2(reg("a"), reg("b")), reg("c"))}
	switch k.Register {
	case reg("a"):
		k.Name, k.Ino = "a", 2
	case reg("b"):
		k.Name, k.Ino = "b", 3
	default:
		k.Name, k.Ino = "c", 4
	}
	return k
}
