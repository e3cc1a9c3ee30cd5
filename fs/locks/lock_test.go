package locks

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/mutualfs/mutualfs/blocks"
)

func TestSet(t *testing.T) {
	l := func(typ Type, start, end uint64) Lock {
		return Lock{Ino: 1, Kind: Posix, Owner: 1, Type: typ, Start: start, End: end}
	}
	for name, c := range map[string]struct {
		have []Lock
		want Lock
		then []Lock
	}{
		"first":             {nil, l(Read, 5, 9), []Lock{l(Read, 5, 9)}},
		"neighbours join":   {[]Lock{l(Read, 0, 4), l(Read, 10, 12)}, l(Read, 5, 9), []Lock{l(Read, 0, 12)}},
		"other types stay":  {[]Lock{l(Write, 0, 4)}, l(Read, 5, 9), []Lock{l(Write, 0, 4), l(Read, 5, 9)}},
		"split by unlock":   {[]Lock{l(Write, 0, 9)}, l(Unlock, 3, 5), []Lock{l(Write, 0, 2), l(Write, 6, 9)}},
		"split by change":   {[]Lock{l(Write, 0, 9)}, l(Read, 3, 5), []Lock{l(Write, 0, 2), l(Read, 3, 5), l(Write, 6, 9)}},
		"upgrade":           {[]Lock{l(Read, 0, 9)}, l(Write, 0, 9), []Lock{l(Write, 0, 9)}},
		"swallow":           {[]Lock{l(Read, 2, 3), l(Write, 5, 6)}, l(Write, 0, 9), []Lock{l(Write, 0, 9)}},
		"to the end":        {[]Lock{l(Write, 0, Last)}, l(Unlock, 7, Last), []Lock{l(Write, 0, 6)}},
		"nothing to unlock": {[]Lock{l(Write, 0, 3)}, l(Unlock, 4, Last), []Lock{l(Write, 0, 3)}},
	} {
		if got := set(c.have, c.want); !reflect.DeepEqual(got, c.then) && len(got)+len(c.then) > 0 {
			t.Errorf("%s: %v, want %v", name, got, c.then)
		}
	}
}

// TestSetAgainstBytes compares the list of ranges with one that knows the type of each byte.
func TestSetAgainstBytes(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	const size, owners = 24, 3
	var list []Lock
	var model [2][owners][size]Type
	for step := range 20000 {
		a, b := uint64(rng.IntN(size)), uint64(rng.IntN(size))
		w := Lock{Ino: 7, Kind: Kind(rng.IntN(2)), Owner: uint64(rng.IntN(owners)), Type: Type(rng.IntN(3)), Start: min(a, b), End: max(a, b)}
		before := append([]Lock(nil), list...)
		next := set(list, w)
		if !slices.Equal(list, before) {
			t.Fatalf("seed %d, step %d: the list was changed", seed, step)
		}
		list = next
		for i := w.Start; i <= w.End; i++ {
			model[w.Kind][w.Owner][i] = w.Type
		}
		var got [2][owners][size]Type
		var last Lock
		for _, l := range list {
			if l.Type == Unlock || same(l, last) && l.Start <= last.End || same(l, last) && l.Type == last.Type && l.Start == last.End+1 {
				t.Fatalf("seed %d, step %d: %v after %v", seed, step, l, last)
			}
			last = l
			for i := l.Start; i <= l.End; i++ {
				got[l.Kind][l.Owner][i] = l.Type
			}
		}
		if got != model {
			t.Fatalf("seed %d, step %d: after %v: %v", seed, step, w, list)
		}
	}
}

func someValue() value {
	a := life{blocks.PeerID{ID: blocks.HashID([]byte("a"))}, blocks.RegisterID{ID: blocks.HashID([]byte("s"))}}
	b := life{blocks.PeerID{ID: blocks.HashID([]byte("b"))}, blocks.RegisterID{ID: blocks.HashID([]byte("t"))}}
	return value{
		held:  []entry{{life: a, Lock: Lock{Ino: 9, Kind: Posix, Owner: 77, Type: Write, Start: 3, End: Last, Pid: 123}}},
		waits: []entry{{life: b, Ticket: 5, Lock: Lock{Ino: 9, Kind: Flock, Owner: 1 << 60, Type: Read, End: Last}}},
	}
}

func TestValueGolden(t *testing.T) {
	v := someValue()
	const want = "0102" + // format, lives
		"72ff6b02949dad95006c343e3db3150090d3afb4" + "071479cb3daa490322b999d5632414dfbf52e538" +
		"1f6d62f997f5d9527a64b501dcd5990320feefd6" + "c508c99e30231e27c9bcce19b093c31f86cd5d40" +
		"01" + "00" + "00" + "0000000000000009" + "01" + "000000000000004d" + "02" + "03" + "fcffffffffffffff7f" + "7b" +
		"01" + "01" + "05" + "0000000000000009" + "00" + "1000000000000000" + "01" + "00" + "ffffffffffffffff7f" + "00"
	if got := hex.EncodeToString(v.encode()); got != want {
		t.Fatalf("%s\nwant\n%s", got, want)
	}
	back, err := decodeValue(v.encode())
	if err != nil || !reflect.DeepEqual(back, v) {
		t.Fatalf("%v, %v", back, err)
	}
}

func FuzzValue(f *testing.F) {
	v := someValue()
	f.Add(v.encode())
	f.Add([]byte{1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := decodeValue(b)
		if err != nil {
			if !errors.Is(err, blocks.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		again, err := decodeValue(v.encode())
		if err != nil || !bytes.Equal(again.encode(), v.encode()) {
			t.Fatalf("%v: %v", v, err)
		}
	})
}
