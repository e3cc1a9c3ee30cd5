package fuzz

import "golang.org/x/sys/unix"

// kind fills in a call.
type kind func(g *generator, o *Op)

// weighted repeats kinds by how often they shall come.
func weighted(kinds []struct {
	n int
	k kind
}) (out []kind) {
	for _, w := range kinds {
		for range w.n {
			out = append(out, w.k)
		}
	}
	return out
}

type weights = []struct {
	n int
	k kind
}

var nameKinds = weighted(weights{
	{10, func(g *generator, o *Op) { o.Kind, o.Mode = "mkdir", g.mode(); g.fresh(o) }},
	{10, func(g *generator, o *Op) { o.Kind, o.Mode = "mknod", unix.S_IFREG|g.mode(); g.fresh(o) }},
	{3, func(g *generator, o *Op) {
		o.Kind, o.Mode, o.Off = "mknod", g.kindOfNode()|g.mode(), g.rdev()
		g.fresh(o)
	}},
	{6, func(g *generator, o *Op) { o.Kind = "unlink"; g.existing(o) }},
	{5, func(g *generator, o *Op) { o.Kind, o.Flags = "unlink", unix.AT_REMOVEDIR; g.existing(o) }},
	{14, rename},
	{9, func(g *generator, o *Op) {
		o.Kind, o.Flags, o.Path, o.Path2 = "link", g.flag(10, unix.AT_SYMLINK_FOLLOW), g.path(), g.free()
		g.at(o, &o.At, &o.Path)
		g.at(o, &o.At2, &o.Path2)
	}},
	{5, func(g *generator, o *Op) { o.Kind, o.Path2 = "symlink", g.target(); g.fresh(o) }},
	{3, func(g *generator, o *Op) { o.Kind = "readlink"; g.existing(o) }},
	{8, func(g *generator, o *Op) {
		o.Kind, o.Flags = "stat", g.flag(70, unix.AT_SYMLINK_NOFOLLOW)
		g.existing(o)
	}},
	{5, func(g *generator, o *Op) { o.Kind = "readdir"; g.existing(o) }},
	{5, func(g *generator, o *Op) { o.Kind, o.Mode = "chmod", g.mode(); g.existing(o) }},
	{4, func(g *generator, o *Op) {
		o.Kind, o.Off, o.Len, o.Flags = "chown", g.id(), g.pick(0, 1000, 1001), g.flag(80, unix.AT_SYMLINK_NOFOLLOW)
		g.existing(o)
	}},
	{8, func(g *generator, o *Op) {
		o.Kind, o.Atime, o.Mtime, o.Flags = "utimens", g.time(), g.time(), g.flag(50, unix.AT_SYMLINK_NOFOLLOW)
		g.existing(o)
	}},
	{2, func(g *generator, o *Op) { o.Kind, o.Mode = "access", uint32(g.rng.IntN(8)); g.existing(o) }},
	{4, func(g *generator, o *Op) {
		o.Kind, o.Path, o.Name, o.Fill, o.Len = "setxattr", g.path(), g.xattr(), g.seed(), g.rng.Int64N(300)
		o.Flags = int(g.pick(0, 0, 0, unix.XATTR_CREATE, unix.XATTR_REPLACE))
	}},
	{3, func(g *generator, o *Op) {
		o.Kind, o.Path, o.Name, o.Len = "getxattr", g.path(), g.xattr(), g.pick(0, 10, 1000)
	}},
	{2, func(g *generator, o *Op) { o.Kind, o.Path = "listxattr", g.path() }},
	{2, func(g *generator, o *Op) { o.Kind, o.Path, o.Name = "removexattr", g.path(), g.xattr() }},
})

var dataKinds = weighted(weights{
	{22, func(g *generator, o *Op) {
		o.Kind, o.Slot, o.Flags, o.Mode = "open", g.rng.IntN(slots), g.openFlags(), g.mode()
		if g.chance(60) {
			g.existing(o)
		} else {
			g.fresh(o)
		}
	}},
	{3, func(g *generator, o *Op) {
		o.Kind, o.Slot, o.Flags = "open", g.rng.IntN(slots), unix.O_RDONLY|unix.O_DIRECTORY
		g.existing(o)
	}},
	{6, func(g *generator, o *Op) { o.Kind, o.Slot = "close", g.slot(o.Proc, false) }},
	{2, func(g *generator, o *Op) {
		o.Kind, o.Slot, o.Slot2 = "dup", g.slot(o.Proc, g.chance(20)), g.rng.IntN(slots)
	}},
	{5, func(g *generator, o *Op) { g.fd(o, "read"); o.Len = g.len() }},
	{8, func(g *generator, o *Op) { g.fd(o, "pread"); o.Off, o.Len = g.off(), g.len() }},
	{8, func(g *generator, o *Op) { g.fd(o, "write"); o.Len, o.Fill = g.len(), g.seed() }},
	{12, func(g *generator, o *Op) { g.fd(o, "pwrite"); o.Off, o.Len, o.Fill = g.off(), g.len(), g.seed() }},
	{3, func(g *generator, o *Op) { g.fd(o, "seek"); o.Off, o.Flags = g.off(), g.rng.IntN(3) }},
	{5, func(g *generator, o *Op) { g.fd(o, "ftruncate"); o.Off = g.size() }},
	{3, func(g *generator, o *Op) { o.Kind, o.Path, o.Off = "truncate", g.path(), g.size() }},
	{2, func(g *generator, o *Op) { g.fd(o, g.one("fsync", "fdatasync")) }},
	{5, func(g *generator, o *Op) {
		g.fd(o, "fallocate")
		o.Flags, o.Off, o.Len = g.fallocFlags(), g.off(), g.len()
	}},
	{3, func(g *generator, o *Op) {
		g.fd(o, "mmapwrite")
		o.Off, o.Len, o.Fill = max(g.off(), 0), g.len(), g.seed()
	}},
	{2, func(g *generator, o *Op) { g.fd(o, "mmapread"); o.Off, o.Len = max(g.off(), 0), g.len() }},
	{2, func(g *generator, o *Op) {
		g.fd(o, "copyrange")
		o.Slot2, o.Off, o.Off2, o.Len = g.slot(o.Proc, false), max(g.off(), 0), max(g.off(), 0), g.len()
	}},
	{5, func(g *generator, o *Op) { g.fd(o, "fstat"); o.Slot = g.slot(o.Proc, g.chance(20)) }},
	{3, func(g *generator, o *Op) { g.fd(o, "fchmod"); o.Mode, o.Slot = g.mode(), g.slot(o.Proc, g.chance(20)) }},
	{2, func(g *generator, o *Op) { g.fd(o, "fchown"); o.Off, o.Len = g.pick(0, 1000, 1001), g.id() }},
	{2, func(g *generator, o *Op) { o.Kind, o.Slot = "freaddir", g.slot(o.Proc, true) }},
	{1, func(g *generator, o *Op) { g.fd(o, "fgetxattr"); o.Name, o.Len = g.xattr(), 1000 }},
	{1, func(g *generator, o *Op) {
		g.fd(o, "fsetxattr")
		o.Name, o.Fill, o.Len = g.xattr(), g.seed(), g.rng.Int64N(300)
	}},
})

var allKinds = append(dataKinds[:len(dataKinds):len(dataKinds)], nameKinds...)

// fileKinds are calls on one file through a few descriptors.
var fileKinds = weighted(weights{
	{6, func(g *generator, o *Op) {
		o.Kind, o.Slot, o.Path, o.Mode = "open", g.rng.IntN(fileSlots), "f", 0o600
		o.Flags = unix.O_RDWR | unix.O_CREAT | g.flag(15, unix.O_APPEND) | g.flag(3, unix.O_TRUNC) | g.flag(5, unix.O_SYNC)
	}},
	{2, func(g *generator, o *Op) { o.Kind, o.Slot = "close", g.rng.IntN(fileSlots) }},
	{20, func(g *generator, o *Op) { g.file(o, "pwrite") }},
	{4, func(g *generator, o *Op) { g.file(o, "write") }},
	{20, func(g *generator, o *Op) { g.file(o, "pread") }},
	{6, func(g *generator, o *Op) { g.file(o, "ftruncate") }},
	{6, func(g *generator, o *Op) { g.file(o, "mmapdirty") }},
	{3, func(g *generator, o *Op) { g.file(o, "mmapwrite") }},
	{6, func(g *generator, o *Op) { g.file(o, "mmapread") }},
	{8, func(g *generator, o *Op) { g.file(o, "fallocate"); o.Flags = g.fallocFlags() }},
	{3, func(g *generator, o *Op) { g.file(o, "fsync") }},
	{2, func(g *generator, o *Op) { g.file(o, "holes") }},
	{2, func(g *generator, o *Op) { g.file(o, "copyrange"); o.Slot2, o.Off2 = o.Slot, g.rng.Int64N(fileSize) }},
})

// fileSlots are the descriptors, fileSize the bytes that fileKinds use.
const (
	fileSlots = 3
	fileSize  = 5 << 20
)

// file fills in a call on the file: seldom far away, often near the ends of pages and stripes.
func (g *generator) file(o *Op, kind string) {
	o.Kind, o.Slot, o.Fill, o.Check = kind, g.rng.IntN(fileSlots), g.seed(), false
	o.Off, o.Len = g.rng.Int64N(fileSize), 1+g.rng.Int64N(g.pick(100, 5000, 70_000, 256<<10))
	if g.chance(40) {
		o.Off = max(o.Off>>16<<16+g.pick(-1, 0, 1, -o.Len), 0)
	}
}

func (g *generator) fd(o *Op, kind string) { o.Kind, o.Slot = kind, g.slot(o.Proc, false) }

func (g *generator) existing(o *Op) {
	o.Path = g.path()
	g.at(o, &o.At, &o.Path)
}

func (g *generator) fresh(o *Op) {
	if o.Path = g.free(); g.chance(15) {
		o.Path = g.path()
	}
	g.at(o, &o.At, &o.Path)
}

func rename(g *generator, o *Op) {
	o.Kind, o.Path = "rename", g.path()
	if o.Path2 = g.free(); g.chance(35) {
		o.Path2 = g.path()
	}
	o.Flags = int(g.pick(0, 0, 0, 0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE, unix.RENAME_EXCHANGE, unix.RENAME_EXCHANGE|unix.RENAME_NOREPLACE))
	if o.Flags == unix.RENAME_EXCHANGE {
		o.Path2 = g.path()
	}
	g.at(o, &o.At, &o.Path)
	g.at(o, &o.At2, &o.Path2)
}

// target of a symlink never leads out of the tree by itself.
func (g *generator) target() string {
	return g.one("a", "b", "c", "a/b", "./c", "b/../d", "nowhere", "e", "f/", string(fill(g.seed(), 1+g.rng.Int64N(4090))))
}
