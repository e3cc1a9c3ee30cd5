package locks

import (
	"fmt"

	"github.com/mutualfs/mutualfs/blocks"
)

// life is one life of a mount's locks: the session register that its process made.
type life struct {
	Mount   blocks.PeerID
	Session blocks.RegisterID
}

// entry is a lock, or somebody's wait for one, in a lock register.
type entry struct {
	life
	Ticket uint64 // of a wait: names it on its mount; 0 for a lock
	Lock
}

// value is what a lock register has: who holds what, and who waits, first come first.
type value struct {
	held  []entry
	waits []entry
}

// Bounds of a lock register.
const (
	maxEntries  = 1 << 16 // a value with more is refused by the decoder
	formatValue = 1
)

// encode has the lives once, then the entries, which name them by their place.
func (v *value) encode() []byte {
	lives := map[life]uint64{}
	var order []life
	for _, list := range [][]entry{v.held, v.waits} {
		for _, e := range list {
			if _, ok := lives[e.life]; !ok {
				lives[e.life] = uint64(len(order))
				order = append(order, e.life)
			}
		}
	}
	var e blocks.Encoder
	e.Byte(formatValue)
	e.Uint(uint64(len(order)))
	for _, l := range order {
		e.ID(l.Mount.ID)
		e.ID(l.Session.ID)
	}
	for _, list := range [][]entry{v.held, v.waits} {
		e.Uint(uint64(len(list)))
		for _, x := range list {
			e.Uint(lives[x.life])
			e.Uint(x.Ticket)
			e.Uint64(x.Ino)
			e.Byte(byte(x.Kind))
			e.Uint64(x.Owner)
			e.Byte(byte(x.Type))
			e.Uint(x.Start)
			e.Uint(x.End - x.Start)
			e.Uint(uint64(x.Pid))
		}
	}
	return e.Buf
}

// minEntry is the least that an entry can have, bytes.
const minEntry = 23

func decodeValue(b []byte) (value, error) {
	var v value
	d := blocks.NewDecoder(b)
	if f := d.Byte(); d.Err() == nil && f != formatValue {
		return v, fmt.Errorf("%w: lock register of format %d", blocks.ErrCorrupt, f)
	}
	lives := make([]life, d.Count(2*blocks.IDSize))
	for i := range lives {
		lives[i] = life{blocks.PeerID{ID: d.ID()}, blocks.RegisterID{ID: d.ID()}}
	}
	for _, list := range []*[]entry{&v.held, &v.waits} {
		n := d.Count(minEntry)
		for range n {
			at := d.Uint()
			if at >= uint64(len(lives)) {
				return v, fmt.Errorf("%w: lock register: unknown life", blocks.ErrCorrupt)
			}
			x := entry{life: lives[at], Ticket: d.Uint()}
			x.Ino, x.Kind, x.Owner, x.Type = d.Uint64(), Kind(d.Byte()), d.Uint64(), Type(d.Byte())
			x.Start = d.Uint()
			x.End = x.Start + d.Uint()
			x.Pid = uint32(d.Uint())
			if d.Err() == nil && (x.Kind > Posix || x.Type < Read || x.Type > Write || x.End < x.Start || x.End > Last) {
				return v, fmt.Errorf("%w: lock register: a lock that cannot be", blocks.ErrCorrupt)
			}
			*list = append(*list, x)
		}
	}
	if len(v.held)+len(v.waits) > maxEntries {
		return v, fmt.Errorf("%w: lock register of %d entries", blocks.ErrCorrupt, len(v.held)+len(v.waits))
	}
	return v, d.Done()
}
