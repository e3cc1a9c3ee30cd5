package fuzz

import (
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// generator makes random calls. It looks at the model, so that most of them are about things that exist.
type generator struct {
	rng   *rand.Rand
	root  string // of the model
	procs int
	kinds []kind
	paths []string
	age   int
	open  [][slots]bool // which descriptors are open, by process
	dirs  [][slots]bool // which of those are directories

	shared bool // on two mounts in turn
}

func newGenerator(seed, stream uint64, root string, procs int, kinds []kind) *generator {
	return &generator{rng: rand.New(rand.NewPCG(seed, stream)), root: root, procs: procs, kinds: kinds,
		open: make([][slots]bool, procs), dirs: make([][slots]bool, procs)}
}

// lookEvery is after how many calls the model is looked at again.
const lookEvery = 8

// Next is the next call.
func (g *generator) Next() Op {
	if g.age--; g.age < 0 {
		g.age = lookEvery
		g.look()
	}
	o := Op{At: noSlot, At2: noSlot, Proc: g.rng.IntN(g.procs), Check: g.rng.IntN(3) == 0, Shared: g.shared}
	if g.rng.IntN(8) == 0 {
		o.UID = 1000 + g.rng.IntN(2)
	}
	g.kinds[g.rng.IntN(len(g.kinds))](g, &o)
	return o
}

// Done tells the generator what came of a call on the model.
func (g *generator) Done(o Op, r Result) {
	p := o.Proc
	switch {
	case r.Errno != 0 || r.Skip:
		if o.Kind == "close" {
			g.open[p][o.Slot] = false
		}
	case o.Kind == "open":
		g.open[p][o.Slot], g.dirs[p][o.Slot] = true, o.Flags&unix.O_DIRECTORY != 0
	case o.Kind == "dup":
		g.open[p][o.Slot2], g.dirs[p][o.Slot2] = true, g.dirs[p][o.Slot]
	case o.Kind == "close":
		g.open[p][o.Slot] = false
	case o.Kind == "closeall":
		g.open[p] = [slots]bool{}
	}
}

func (g *generator) look() {
	g.paths = g.paths[:0]
	_ = filepath.WalkDir(g.root, func(p string, _ fs.DirEntry, err error) error {
		if rel, e := filepath.Rel(g.root, p); err == nil && e == nil && rel != "." {
			g.paths = append(g.paths, rel)
		}
		return nil
	})
}

func (g *generator) pick(n ...int64) int64   { return n[g.rng.IntN(len(n))] }
func (g *generator) one(s ...string) string  { return s[g.rng.IntN(len(s))] }
func (g *generator) chance(percent int) bool { return g.rng.IntN(100) < percent }
func (g *generator) mode() uint32 {
	return uint32(g.pick(0o644, 0o600, 0o755, 0o777, 0o4755, 0o2755, 0o2666, 0o1777, 0, 0o7777, 0o400))
}
func (g *generator) seed() uint64            { return g.rng.Uint64() }
func (g *generator) flag(percent, f int) int { return f * btoi(g.chance(percent)) }
func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// name is one of few, so that calls meet; seldom a strange one.
func (g *generator) name() string {
	if g.chance(97) {
		return string(rune('a' + g.rng.IntN(8)))
	}
	return g.one("", ".", "..", strings.Repeat("n", 255), strings.Repeat("n", 256), "ü\n\xff", "a/", "b/.", "a//b", ".hidden")
}

// path is one that exists, a name in a directory that exists, or any.
func (g *generator) path() string {
	if len(g.paths) > 0 && g.chance(85) {
		p := g.paths[g.rng.IntN(len(g.paths))]
		switch {
		case g.chance(75):
			return p
		case g.chance(3):
			return p + "/"
		case strings.Count(p, "/") < 4:
			return p + "/" + g.name()
		}
		return p
	}
	return g.name()
}

// free is a path that likely does not exist in a directory that likely does.
func (g *generator) free() string {
	if len(g.paths) > 0 && g.chance(60) {
		p := g.paths[g.rng.IntN(len(g.paths))]
		if g.chance(50) {
			p = filepath.Dir(p)
		}
		if p != "." && strings.Count(p, "/") < 4 {
			return p + "/" + g.name()
		}
	}
	return g.name()
}

// slot is mostly one that is open; dir asks for a directory's.
func (g *generator) slot(p int, dir bool) int {
	for range 12 {
		if s := g.rng.IntN(slots); g.open[p][s] && g.dirs[p][s] == dir {
			return s
		}
	}
	return g.rng.IntN(slots)
}

// at lets some paths begin at an open directory.
func (g *generator) at(o *Op, at *int, path *string) {
	if !g.chance(12) {
		return
	}
	if s := g.slot(o.Proc, true); g.open[o.Proc][s] {
		*at, *path = s, g.name()
	}
}

func (g *generator) off() int64 {
	switch g.rng.IntN(8) {
	case 0:
		return 0
	case 1:
		return g.pick(1, 511, 4095, 4096, 4097, 16384, 65536, 1<<20-1, 1<<20, 1<<20+1, 2<<20)
	case 2:
		return g.rng.Int64N(4 << 20)
	case 3:
		return g.pick(-1, 0, 1<<20, 3<<20)
	}
	return g.rng.Int64N(16 << 10)
}

func (g *generator) len() int64 {
	switch g.rng.IntN(8) {
	case 0:
		return g.pick(0, 1, 4096, 131072, 200_000)
	case 1:
		return g.rng.Int64N(128 << 10)
	}
	return g.rng.Int64N(6000)
}

// size of a truncation.
func (g *generator) size() int64 { return g.off() }

func (g *generator) time() Timespec {
	if g.chance(15) {
		return Timespec{0, g.pick(unix.UTIME_NOW, unix.UTIME_OMIT)}
	}
	return Timespec{g.pick(0, -1, 1, 1_000_000_000, 1_100_000_000, 1_234_567_890, 4_294_967_297, -2_000_000_000), g.pick(0, 1, 999_999_999, 123_456_789, 500_000_000)}
}

func (g *generator) id() int64 { return g.pick(-1, 0, 1000, 1001, 4_000_000_000) }

func (g *generator) xattr() string {
	return g.one("user.a", "user.b", "user.a", "user.b", "trusted.t", "security.s", "security.capability", "nonsense", "user.", "other.x")
}

func (g *generator) openFlags() int {
	f := []int{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_RDWR}[g.rng.IntN(4)]
	f |= g.flag(60, unix.O_CREAT) | g.flag(15, unix.O_EXCL) | g.flag(15, unix.O_TRUNC) | g.flag(20, unix.O_APPEND) | g.flag(8, unix.O_NOFOLLOW)
	return f | g.flag(3, unix.O_DIRECTORY) | g.flag(4, unix.O_SYNC) | g.flag(3, unix.O_PATH)
}

func (g *generator) fallocFlags() int {
	return []int{0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE,
		unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE}[g.rng.IntN(7)]
}

func (g *generator) rdev() int64 { return g.pick(0, 0x0103, 0x0105, int64(unix.Mkdev(259, 1234))) }

func (g *generator) kindOfNode() uint32 {
	return uint32(g.pick(syscall.S_IFIFO, syscall.S_IFSOCK, syscall.S_IFCHR, syscall.S_IFBLK, syscall.S_IFREG, 0, syscall.S_IFDIR))
}
