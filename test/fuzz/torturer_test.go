package fuzz

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// What the processes of TestTorture fight for.
const (
	sharedDirs = 4  // directories in which everything lies
	prizes     = 24 // names that one process at a time may have
	logs       = 3  // files that all append to
	behind     = 8  // how far behind the newest contended number a process may pick
	plenty     = 40 // files of one process: with more it rather removes one
)

// contest is what all processes know together: how contended calls went.
type contest struct {
	next atomic.Int64

	mu      sync.Mutex
	made    map[int64]int64 // by number: creations of a file that anybody may take, less how often it was taken
	dirs    map[int64]int64 // how often a directory was made, less how often it was removed
	prizes  [prizes]prize
	appends map[string]int // records that were acknowledged, by file and process
}

// prize is a name that at most one process has. A process has it for certain from the answer of the call that got it to the
// start of the call that gives it up.
type prize struct {
	holder  string // who has it for certain, and by what call; "" nobody
	wins    int    // how often somebody got it
	changes int    // calls that were begun to get it or to give it up
	running int    // of them, those that have not been answered
}

func newContest() *contest {
	return &contest{made: map[int64]int64{}, dirs: map[int64]int64{}, appends: map[string]int{}}
}

// file is a file that one process alone touches, with all names that it has.
type file struct{ names []string }

// torturer is one process: what it was told.
type torturer struct {
	id      int
	p       *proc
	rng     *rand.Rand
	all     *contest
	files   []*file
	folders []string    // its own directories
	won     map[int]any // prizes that it has: *file, or the name of a folder
	calls   int
	n       int
}

func shared(d int) string { return fmt.Sprintf("s%d", d) }

func prizeName(i int) string { return fmt.Sprintf("%s/z%d", shared(i%sharedDirs), i) }

func freeFile(k int64) string { return fmt.Sprintf("%s/x%d", shared(int(k%sharedDirs)), k) }

func freeDir(k int64) string { return fmt.Sprintf("%s/d%d", shared(int(k%sharedDirs)), k) }

// call makes a call and returns whether it succeeded. Only the expected errors may come.
func (w *torturer) call(o Op, expected ...syscall.Errno) (bool, error) {
	o.At, o.At2 = noSlot, noSlot
	r, err := w.p.do(o)
	if err != nil {
		return false, fmt.Errorf("process %d: %w", w.id, err)
	}
	w.calls++
	if r.Errno == 0 {
		return true, nil
	}
	if slices.Contains(expected, r.Errno) {
		return false, nil
	}
	return false, fmt.Errorf("process %d: %v: %w", w.id, o, r.Errno)
}

// contended is the number of a name that others want, too.
func (w *torturer) contended() int64 {
	if w.rng.IntN(4) == 0 {
		return w.all.next.Add(1)
	}
	return max(w.all.next.Load()-w.rng.Int64N(behind), 0)
}

// unique is a new name in a shared directory or in one of its own.
func (w *torturer) unique(what string) string {
	dir := shared(w.rng.IntN(sharedDirs))
	if len(w.folders) > 0 && w.rng.IntN(3) == 0 {
		dir = w.folders[w.rng.IntN(len(w.folders))]
	}
	w.n++
	return fmt.Sprintf("%s/%s%d-%d", dir, what, w.id, w.n)
}

// steps are what a process does, as often as they are listed.
var steps = []func(*torturer) error{
	(*torturer).create, (*torturer).take, (*torturer).directory, (*torturer).directory, (*torturer).fill,
	(*torturer).add, (*torturer).move, (*torturer).move, (*torturer).link, (*torturer).unlink, (*torturer).replace, (*torturer).exchange,
	(*torturer).folder, (*torturer).moveFolder, (*torturer).endFolder, (*torturer).look,
	(*torturer).win, (*torturer).win, (*torturer).giveUp, (*torturer).watch, (*torturer).log,
}

func (w *torturer) step() error {
	if len(w.files) > plenty {
		return w.unlink()
	}
	return steps[w.rng.IntN(len(steps))](w)
}

// create makes a file that anybody may take, if nobody else has.
func (w *torturer) create() error {
	k := w.contended()
	won, err := w.call(Op{Kind: "mknod", Path: freeFile(k), Mode: unix.S_IFREG | 0o644}, syscall.EEXIST)
	w.count(w.all.made, k, won, 1)
	return err
}

// take renames such a file to a name of its own, if nobody else has.
func (w *torturer) take() error {
	k := w.contended()
	to := w.unique(fmt.Sprintf("y%d-", k))
	won, err := w.call(Op{Kind: "rename", Path: freeFile(k), Path2: to}, syscall.ENOENT)
	w.count(w.all.made, k, won, -1)
	if won {
		w.files = append(w.files, &file{[]string{to}})
	}
	return err
}

func (w *torturer) count(m map[int64]int64, k int64, won bool, by int64) {
	w.all.mu.Lock()
	defer w.all.mu.Unlock()
	if won {
		m[k] += by
	}
}

// directory makes or removes a directory that others make and remove and put files into.
func (w *torturer) directory() error {
	k := w.contended()
	o := Op{Kind: "mkdir", Path: freeDir(k), Mode: 0o755}
	by, expected := int64(1), []syscall.Errno{syscall.EEXIST}
	if w.rng.IntN(2) == 0 {
		o.Kind, o.Mode, o.Flags = "unlink", 0, unix.AT_REMOVEDIR
		by, expected = -1, []syscall.Errno{syscall.ENOENT, syscall.ENOTEMPTY}
	}
	won, err := w.call(o, expected...)
	w.count(w.all.dirs, k, won, by)
	return err
}

// fill puts a file into such a directory. While it is there, nobody can remove the directory.
func (w *torturer) fill() error {
	w.n++
	name := fmt.Sprintf("%s/t%d-%d", freeDir(w.contended()), w.id, w.n)
	ok, err := w.call(Op{Kind: "mknod", Path: name, Mode: unix.S_IFREG | 0o600}, syscall.ENOENT)
	if ok {
		w.files = append(w.files, &file{[]string{name}})
	}
	return err
}

// add makes a file that nobody else touches.
func (w *torturer) add() error {
	name := w.unique("t")
	ok, err := w.call(Op{Kind: "mknod", Path: name, Mode: unix.S_IFREG | 0o600})
	if ok {
		w.files = append(w.files, &file{[]string{name}})
	}
	return err
}

// mine picks one of its files and one of that's names, not those of prizes.
func (w *torturer) mine() (f *file, i int) {
	for range 8 {
		if len(w.files) == 0 {
			break
		}
		f = w.files[w.rng.IntN(len(w.files))]
		if i = w.rng.IntN(len(f.names)); !strings.Contains(f.names[i], "/z") {
			return f, i
		}
	}
	return nil, 0
}

// drop forgets a name of a file, and with the last one the file.
func (w *torturer) drop(f *file, i int) {
	if f.names = slices.Delete(f.names, i, i+1); len(f.names) == 0 {
		w.files = slices.DeleteFunc(w.files, func(x *file) bool { return x == f })
	}
}

func (w *torturer) move() error {
	f, i := w.mine()
	if f == nil {
		return w.add()
	}
	to := w.unique("m")
	ok, err := w.call(Op{Kind: "rename", Path: f.names[i], Path2: to})
	if ok {
		f.names[i] = to
	}
	return err
}

func (w *torturer) link() error {
	f, i := w.mine()
	if f == nil {
		return w.add()
	}
	to := w.unique("l")
	ok, err := w.call(Op{Kind: "link", Path: f.names[i], Path2: to})
	if ok {
		f.names = append(f.names, to)
	}
	return err
}

func (w *torturer) unlink() error {
	f, i := w.mine()
	if f == nil {
		return w.add()
	}
	ok, err := w.call(Op{Kind: "unlink", Path: f.names[i]})
	if ok {
		w.drop(f, i)
	}
	return err
}

// replace renames a file of its own over another one. Of two names of one file nothing happens.
func (w *torturer) replace() error {
	f, i := w.mine()
	g, j := w.mine()
	if f == nil || g == nil {
		return w.add()
	}
	ok, err := w.call(Op{Kind: "rename", Path: f.names[i], Path2: g.names[j]})
	if ok && f != g {
		f.names[i] = g.names[j]
		w.drop(g, j)
	}
	return err
}

func (w *torturer) exchange() error {
	f, i := w.mine()
	g, j := w.mine()
	if f == nil || g == nil {
		return w.add()
	}
	ok, err := w.call(Op{Kind: "rename", Path: f.names[i], Path2: g.names[j], Flags: unix.RENAME_EXCHANGE})
	if ok {
		f.names[i], g.names[j] = g.names[j], f.names[i]
	}
	return err
}

// look compares the number of links of a file of its own.
func (w *torturer) look() error {
	f, i := w.mine()
	if f == nil {
		return w.add()
	}
	r, err := w.p.do(Op{Kind: "stat", Path: f.names[i], At: noSlot})
	switch {
	case err != nil:
		return err
	case r.Errno != 0:
		return fmt.Errorf("process %d: stat of its own %s: %w", w.id, f.names[i], r.Errno)
	case int(r.Attr.Nlink) != len(f.names):
		return fmt.Errorf("process %d: its own %s has %d links, want those of %q", w.id, f.names[i], r.Attr.Nlink, f.names)
	}
	return nil
}

// folder makes a directory of its own.
func (w *torturer) folder() error {
	if len(w.folders) > 4 {
		return w.endFolder()
	}
	name := w.unique("f")
	ok, err := w.call(Op{Kind: "mkdir", Path: name, Mode: 0o755})
	if ok {
		w.folders = append(w.folders, name)
	}
	return err
}

func within(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// moveFolder moves a directory of its own with all that is in it, or tries to move it into itself.
func (w *torturer) moveFolder() error {
	if len(w.folders) == 0 {
		return w.folder()
	}
	from, to := w.folders[w.rng.IntN(len(w.folders))], w.unique("g")
	var expected []syscall.Errno
	loop := within(to, from)
	if loop {
		expected = append(expected, syscall.EINVAL)
	}
	ok, err := w.call(Op{Kind: "rename", Path: from, Path2: to}, expected...)
	if ok && loop {
		return fmt.Errorf("process %d: %s was moved into itself, to %s", w.id, from, to)
	}
	if !ok {
		return err
	}
	w.paths(func(p string) string {
		if within(p, from) {
			return to + p[len(from):]
		}
		return p
	})
	return nil
}

// paths changes all that it remembers.
func (w *torturer) paths(f func(string) string) {
	for i, d := range w.folders {
		w.folders[i] = f(d)
	}
	for _, x := range w.files {
		for i, n := range x.names {
			x.names[i] = f(n)
		}
	}
}

// endFolder removes a directory of its own, which succeeds if nothing is in it.
func (w *torturer) endFolder() error {
	if len(w.folders) == 0 {
		return w.folder()
	}
	i := w.rng.IntN(len(w.folders))
	dir, used := w.folders[i], 0
	w.paths(func(p string) string {
		if p != dir && within(p, dir) {
			used++
		}
		return p
	})
	var expected []syscall.Errno
	if used > 0 {
		expected = append(expected, syscall.ENOTEMPTY)
	}
	ok, err := w.call(Op{Kind: "unlink", Path: dir, Flags: unix.AT_REMOVEDIR}, expected...)
	switch {
	case ok && used > 0:
		return fmt.Errorf("process %d: rmdir of %s succeeded, which has %d names", w.id, dir, used)
	case ok:
		w.folders = slices.Delete(w.folders, i, i+1)
	}
	return err
}

// begin notes that a prize may change hands; certain: this process has had it until now.
func (w *torturer) begin(i int, certain bool) {
	w.all.mu.Lock()
	defer w.all.mu.Unlock()
	z := &w.all.prizes[i]
	z.changes++
	z.running++
	if certain {
		z.holder = ""
	}
}

// end notes how the call went. It is an error if somebody else has the prize for certain.
func (w *torturer) end(i int, won bool, how string) error {
	w.all.mu.Lock()
	defer w.all.mu.Unlock()
	z := &w.all.prizes[i]
	z.running--
	if !won {
		return nil
	}
	if z.holder != "" {
		return fmt.Errorf("process %d got %s by %s, while %s has it", w.id, prizeName(i), how, z.holder)
	}
	z.wins++
	z.holder = fmt.Sprintf("process %d by %s", w.id, how)
	return nil
}

// win wants a prize, in one of the ways in which at most one can have it.
func (w *torturer) win() error {
	i := w.rng.IntN(prizes)
	if w.won[i] != nil {
		return w.giveUp()
	}
	name := prizeName(i)
	f, j := w.mine()
	var o Op
	switch way := w.rng.IntN(4); {
	case way == 0:
		o = Op{Kind: "mkdir", Path: name, Mode: 0o755}
	case way == 1 || f == nil:
		o = Op{Kind: "mknod", Path: name, Mode: unix.S_IFREG | 0o644}
	case way == 2:
		o = Op{Kind: "rename", Path: f.names[j], Path2: name, Flags: unix.RENAME_NOREPLACE}
	default:
		o = Op{Kind: "link", Path: f.names[j], Path2: name}
	}
	w.begin(i, false)
	won, err := w.call(o, syscall.EEXIST)
	if e := w.end(i, won, o.Kind); err == nil {
		err = e
	}
	if !won {
		return err
	}
	switch o.Kind {
	case "mkdir":
		w.won[i] = name
	case "mknod":
		x := &file{[]string{name}}
		w.files, w.won[i] = append(w.files, x), x
	case "rename":
		f.names[j], w.won[i] = name, f
	case "link":
		f.names, w.won[i] = append(f.names, name), f
	}
	return err
}

// giveUp removes or renames a prize that it has.
func (w *torturer) giveUp() error {
	for i := range prizes {
		if w.won[i] == nil || w.rng.IntN(2) == 0 {
			continue
		}
		o := Op{Kind: "unlink", Path: prizeName(i)}
		f, isFile := w.won[i].(*file)
		switch {
		case !isFile:
			o.Flags = unix.AT_REMOVEDIR
		case w.rng.IntN(2) == 0:
			o = Op{Kind: "rename", Path: o.Path, Path2: w.unique("m")}
		}
		w.begin(i, true)
		_, err := w.call(o)
		if e := w.end(i, false, ""); err == nil {
			err = e
		}
		if err != nil {
			return err
		}
		delete(w.won, i)
		if isFile {
			j := slices.Index(f.names, prizeName(i))
			if o.Kind == "rename" {
				f.names[j] = o.Path2
			} else {
				w.drop(f, j)
			}
		}
		return nil
	}
	return nil
}

// watch looks for a prize: one that somebody had for certain all the time must be there, one that nobody can have had must not.
func (w *torturer) watch() error {
	i := w.rng.IntN(prizes)
	now := func() prize {
		w.all.mu.Lock()
		defer w.all.mu.Unlock()
		return w.all.prizes[i]
	}
	before := now()
	seen, err := w.call(Op{Kind: "stat", Path: prizeName(i), Flags: unix.AT_SYMLINK_NOFOLLOW}, syscall.ENOENT)
	after := now()
	had := before.holder != "" && after.holder != "" && before.wins == after.wins
	free := before.holder == "" && before.running == 0 && before.changes == after.changes
	switch {
	case err == nil && had && !seen:
		return fmt.Errorf("process %d does not see %s, which %s has", w.id, prizeName(i), before.holder)
	case err == nil && free && seen:
		return fmt.Errorf("process %d sees %s, which nobody has", w.id, prizeName(i))
	}
	return err
}

// log appends to a file under a lock.
func (w *torturer) log() error {
	i := w.rng.IntN(logs)
	o := Op{Kind: "append", Path: fmt.Sprintf("%s/log%d", shared(i%sharedDirs), i), Flags: i % 2, Fill: uint64(w.id)}
	ok, err := w.call(o)
	if ok {
		w.all.mu.Lock()
		w.all.appends[fmt.Sprintf("%s %04d", o.Path, w.id)]++
		w.all.mu.Unlock()
	}
	return err
}
