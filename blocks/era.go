package blocks

import "sync"

// eras keep extents from being reused under a reader. Whoever uses the index's
// answers enters an era before and leaves it after; extents that become
// garbage belong to the current era and are retired when it and all
// older ones have been left.
type eras struct {
	mu   sync.Mutex
	list []*era // oldest first, the last one is current
}

type era struct {
	users   int
	garbage []garbage
}

type garbage struct {
	disk *disk
	extent
}

func newEras() *eras {
	return &eras{list: []*era{{}}}
}

func (x *eras) enter() *era {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.list[len(x.list)-1]
	e.users++
	return e
}

func (x *eras) leave(e *era) {
	x.mu.Lock()
	e.users--
	done := x.collect()
	x.mu.Unlock()
	retireAll(done)
}

// retire hands over extents that the index no longer names.
func (x *eras) retire(g []garbage) {
	if len(g) == 0 {
		return
	}
	x.mu.Lock()
	cur := x.list[len(x.list)-1]
	cur.garbage = append(cur.garbage, g...)
	x.list = append(x.list, &era{})
	done := x.collect()
	x.mu.Unlock()
	retireAll(done)
}

// collect removes the eras that are over and returns their garbage. x.mu is held.
func (x *eras) collect() []garbage {
	var done []garbage
	for len(x.list) > 1 && x.list[0].users == 0 {
		done = append(done, x.list[0].garbage...)
		x.list = x.list[1:]
	}
	return done
}

func retireAll(list []garbage) {
	for _, g := range list {
		g.disk.retire(g.extent)
	}
}
