package fuzz

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// step is a call that was made, and what came of it.
type step struct {
	op        Op
	want, got Result
}

// mismatch is a difference between the mount and the model.
type mismatch struct {
	what  string
	steps []step
	procs int
}

func (m *mismatch) Error() string { return m.what }

// shown is how many calls before a mismatch are printed.
const shown = 40

// Report shows what differs and the last calls.
func (m *mismatch) Report() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", m.what)
	from := max(len(m.steps)-shown, 0)
	if from > 0 {
		fmt.Fprintf(&b, "… %d calls before\n", from)
	}
	for _, s := range m.steps[from:] {
		fmt.Fprintf(&b, "  %v = %v\n", s.op, s.want)
	}
	if n := len(m.steps); n > 0 {
		fmt.Fprintf(&b, "  the last on the mount: %v\n", m.steps[n-1].got)
	}
	return b.String()
}

// below is where a process's root lies in its subtree: deep, so that a symlink with ".." seldom leads out of it.
const below = "1/2/3/root"

// bases are the mounts, which show one tree, and the model. Pairs of processes use the mounts in turn.
type bases struct {
	mounts []string
	model  string
}

// makeRoots makes a subtree on both sides and lets pairs begin there anew.
func (b bases) makeRoots(pairs []pair, name string) error {
	for _, base := range []string{b.mounts[0], b.model} {
		if err := os.MkdirAll(filepath.Join(base, name, below), 0o755); err != nil {
			return err
		}
	}
	return b.place(pairs, filepath.Join(name, below))
}

// place closes all descriptors of pairs; their paths begin at rel.
func (b bases) place(pairs []pair, rel string) error {
	for i, p := range pairs {
		if err := p.place(filepath.Join(b.mounts[i%len(b.mounts)], rel), filepath.Join(b.model, rel)); err != nil {
			return err
		}
	}
	return nil
}

// compare lists how a part of each mount differs from the model, and the mounts from each other.
func (b bases) compare(rel string) (diffs []string) {
	want, err := snapshot(filepath.Join(b.model, rel))
	if err != nil {
		return []string{"model: " + err.Error()}
	}
	var first map[string]node
	for i, m := range b.mounts {
		got, err := snapshot(filepath.Join(m, rel))
		if err != nil {
			return append(diffs, fmt.Sprintf("mount %d: %v", i, err))
		}
		for _, d := range diffTrees(want, got) {
			diffs = append(diffs, fmt.Sprintf("mount %d: %s", i, d))
		}
		if i == 0 {
			first = got
		}
		for _, p := range sortedKeys(got) {
			if n, ok := first[p]; ok && n.attr.Ino != got[p].attr.Ino {
				diffs = append(diffs, fmt.Sprintf("%s is inode %d on one mount, %d on the other", p, n.attr.Ino, got[p].attr.Ino))
			}
		}
	}
	return diffs[:min(len(diffs), 10)]
}

func (b bases) remove(rel string) error {
	return errors.Join(os.RemoveAll(filepath.Join(b.mounts[0], rel)), os.RemoveAll(filepath.Join(b.model, rel)))
}

// play makes calls on pairs until next says that there are no more or a mismatch comes up.
func play(pairs []pair, next func() (Op, bool), done func(Op, Result)) error {
	m := &mismatch{procs: len(pairs)}
	for {
		o, ok := next()
		if !ok {
			break
		}
		want, got, err := pairs[o.Proc].do(o)
		m.steps = append(m.steps, step{o, trimmed(want), trimmed(got)})
		if err != nil {
			m.what = err.Error()
			return m
		}
		if d := Diff(&o, want, got); d != "" {
			m.what = fmt.Sprintf("%v: %s", o, d)
			return m
		}
		done(o, want)
	}
	return &finished{m}
}

// finished is the end without a mismatch, with the calls in case the trees differ.
type finished struct{ *mismatch }

// trimmed keeps of the data what is printed.
func trimmed(r Result) Result {
	if len(r.Data) > 64 {
		r.Data = append([]byte(nil), r.Data[:64]...)
	}
	return r
}

// replay makes the calls of ops in a fresh subtree and returns what differs, nil if nothing does.
func replay(pairs []pair, b bases, name string, ops []Op) *mismatch {
	if b.makeRoots(pairs, name) != nil {
		return nil
	}
	defer b.remove(name)
	i := 0
	err := play(pairs, func() (Op, bool) {
		if i == len(ops) {
			return Op{}, false
		}
		i++
		return ops[i-1], true
	}, func(Op, Result) {})
	var end *finished
	var bad *mismatch
	switch {
	case errors.As(err, &end):
		if err := b.place(pairs, name); err != nil {
			end.what = err.Error()
			return end.mismatch
		}
		if d := b.compare(name); len(d) > 0 {
			end.what = "trees: " + strings.Join(d[:min(len(d), 5)], "\n       ")
			return end.mismatch
		}
		return nil
	case errors.As(err, &bad):
		return bad
	}
	return nil
}

// shrinkLimit bounds the search for a shorter list.
const shrinkLimit = 60 * time.Second

// shrink looks for a shorter list of calls that shows a mismatch. It returns nil if the same calls show none.
func shrink(bad *mismatch, b bases) *mismatch {
	pairs := make([]pair, bad.procs)
	for i := range pairs {
		p, err := startPair()
		if err != nil {
			return nil
		}
		defer p.end()
		pairs[i] = p
	}
	n := 0
	try := func(ops []Op) *mismatch {
		n++
		return replay(pairs, b, fmt.Sprintf("shrink%d", n), ops)
	}
	best := try(opsOf(bad.steps))
	if best == nil {
		return nil
	}
	deadline := time.Now().Add(shrinkLimit)
	for size := len(best.steps) / 2; size > 0; {
		smaller := false
		for at := 0; at+size <= len(best.steps) && time.Now().Before(deadline); {
			ops := opsOf(best.steps)
			if m := try(append(ops[:at:at], ops[at+size:]...)); m != nil && !strings.Contains(m.what, errHangs.Error()) {
				best, smaller = m, true
			} else {
				at += size
			}
		}
		if !smaller || size > len(best.steps) {
			size /= 2
		}
		if time.Now().After(deadline) {
			break
		}
	}
	return best
}

func opsOf(steps []step) []Op {
	ops := make([]Op, len(steps))
	for i, s := range steps {
		ops[i] = s.op
	}
	return ops
}
