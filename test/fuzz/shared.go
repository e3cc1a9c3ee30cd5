package fuzz

import "golang.org/x/sys/unix"

// sharedKinds are calls of processes on two mounts that take turns. A mount promises the other names and attributes as soon
// as a call has returned, and data from close or fsync on to who opens the file afterwards: so data is read and written
// between an open and a close of its own ("with"), or stored at once ("stored").
var sharedKinds = append(nameKinds[:len(nameKinds):len(nameKinds)], weighted(weights{
	{8, func(g *generator, o *Op) {
		o.Kind, o.Slot, o.Flags, o.Mode = "open", g.rng.IntN(slots), g.openFlags(), g.mode()
		if g.chance(80) {
			g.existing(o)
		} else {
			g.fresh(o)
		}
	}},
	{4, func(g *generator, o *Op) {
		o.Kind, o.Slot, o.Flags = "open", g.rng.IntN(slots), unix.O_RDONLY|unix.O_DIRECTORY
		g.existing(o)
	}},
	{6, func(g *generator, o *Op) { o.Kind, o.Slot = "close", g.slot(o.Proc, g.chance(30)) }},
	{1, func(g *generator, o *Op) {
		o.Kind, o.Slot, o.Slot2 = "dup", g.slot(o.Proc, g.chance(20)), g.rng.IntN(slots)
	}},
	{14, func(g *generator, o *Op) {
		g.with(o, g.one("write", "write", "pwrite", "pwrite", "pwrite", "ftruncate", "fallocate", "mmapwrite", "fsync"))
		o.Flags = []int{unix.O_WRONLY, unix.O_RDWR, unix.O_RDWR}[g.rng.IntN(3)] |
			g.flag(50, unix.O_CREAT) | g.flag(10, unix.O_EXCL) | g.flag(10, unix.O_TRUNC) | g.flag(20, unix.O_APPEND) | g.flag(4, unix.O_SYNC)
	}},
	{10, func(g *generator, o *Op) { g.with(o, g.one("pread", "pread", "mmapread", "holes", "fstat")) }},
	{8, func(g *generator, o *Op) { g.fd(o, "stored"); o.Off, o.Len, o.Fill = g.off(), g.len(), g.seed() }},
	{3, func(g *generator, o *Op) { g.fd(o, "ftruncate"); o.Off = g.size() }},
	{2, func(g *generator, o *Op) { o.Kind, o.Path, o.Off = "truncate", g.path(), g.size() }},
	{8, func(g *generator, o *Op) { g.fd(o, "fstat"); o.Slot = g.slot(o.Proc, g.chance(30)) }},
	{3, func(g *generator, o *Op) { g.fd(o, "fchmod"); o.Mode, o.Slot = g.mode(), g.slot(o.Proc, g.chance(20)) }},
	{2, func(g *generator, o *Op) { g.fd(o, "fchown"); o.Off, o.Len = g.pick(0, 1000, 1001), g.id() }},
	{4, func(g *generator, o *Op) { o.Kind, o.Slot = "freaddir", g.slot(o.Proc, true) }},
	{1, func(g *generator, o *Op) { g.fd(o, "fgetxattr"); o.Name, o.Len = g.xattr(), 1000 }},
	{1, func(g *generator, o *Op) {
		g.fd(o, "fsetxattr")
		o.Name, o.Fill, o.Len = g.xattr(), g.seed(), g.rng.Int64N(300)
	}},
	{6, func(g *generator, o *Op) {
		g.fd(o, "flock")
		o.Check, o.Flags = false, int(g.pick(unix.LOCK_SH, unix.LOCK_EX, unix.LOCK_EX, unix.LOCK_UN))
	}},
	{8, func(g *generator, o *Op) { g.lock(o, "setlk", unix.F_RDLCK, unix.F_WRLCK, unix.F_WRLCK, unix.F_UNLCK) }},
	{4, func(g *generator, o *Op) { g.lock(o, "getlk", unix.F_RDLCK, unix.F_WRLCK) }},
})...)

// with opens a file, makes one call and closes it.
func (g *generator) with(o *Op, then string) {
	o.Kind, o.Then, o.Slot, o.Mode = "with", then, spare, g.mode()
	o.Off, o.Len, o.Fill = g.off(), g.len(), g.seed()
	switch then {
	case "mmapwrite", "mmapread":
		o.Off = max(o.Off, 0)
	case "fallocate":
		o.Off2 = int64(g.fallocFlags())
	}
	if g.existing(o); g.chance(20) {
		g.fresh(o)
	}
}

// lock asks for or about a lock of a small range, so that locks meet.
func (g *generator) lock(o *Op, kind string, types ...int64) {
	g.fd(o, kind)
	o.Check, o.Flags, o.Off, o.Len = false, int(g.pick(types...)), g.rng.Int64N(8), g.rng.Int64N(5)
}

// with is a call between an open and a close.
func with(c *child, o *Op, r *Result) error {
	if err := open(c, o, r); err != nil || r.Skip {
		return err
	}
	then := *o
	then.Flags = int(o.Off2) // those of the call, where it has any
	err := calls[o.Then](c, &then, r)
	if e := unix.Close(c.fds[spare]); err == nil {
		err = e
	}
	c.fds[spare] = -1
	return err
}

// unsure reports whether a descriptor's file has no name and is none that a mount keeps because it is open: a
// directory, or what was opened with O_PATH, which opens nothing.
func (c *child) unsure(slot int) bool {
	var st unix.Stat_t
	if unix.Fstat(c.fd(slot), &st) != nil || st.Nlink > 0 {
		return false
	}
	flags, err := unix.FcntlInt(uintptr(c.fd(slot)), unix.F_GETFL, 0)
	return st.Mode&unix.S_IFMT == unix.S_IFDIR || err == nil && flags&unix.O_PATH != 0
}

// leftOut reports whether two mounts do not promise that a call has the same outcome as on one file system. Besides, what a FIFO
// has is one machine's, and so are locks of directories.
func (c *child) leftOut(o *Op) bool {
	if o.At != noSlot && c.unsure(o.At) || o.At2 != noSlot && c.unsure(o.At2) {
		return true
	}
	var st unix.Stat_t
	lock := o.Kind == "flock" || o.Kind == "setlk" || o.Kind == "getlk"
	switch {
	case o.Kind == "open" || o.Kind == "with":
		if unix.Fstatat(c.at(o.At), c.path(o.At, o.Path), &st, 0) != nil {
			return false
		}
	case o.Kind == "close" || !usesSlot[o.Kind]:
		return false
	case c.unsure(o.Slot):
		return true
	case !lock || unix.Fstat(c.fd(o.Slot), &st) != nil:
		return false
	}
	k := st.Mode & unix.S_IFMT
	return k != unix.S_IFREG && (k != unix.S_IFDIR || lock)
}
