package mux

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"
	"time"
)

func TestHeaderGolden(t *testing.T) {
	for _, c := range []struct {
		name string
		h    header
		want string
	}{
		{"request", header{typ: typeRequest, class: Data, kind: 0x0301, id: 0x0102030405060708, deadline: 1500, body: 100, payload: 262144},
			"6d4601020200030101020304050607080" + "00005dc" + "00000064" + "00040000"},
		{"response", header{typ: typeResponse, class: Repair, status: statusTooLarge, kind: 2, id: 9},
			"6d46010303030002000000000000000900000000" + "00000000" + "00000000"},
		{"hello", header{typ: typeHello, class: uint8(laneBulk), id: 0xfedcba9876543210, body: 14},
			"6d46010101000000fedcba987654321000000000" + "0000000e" + "00000000"},
		{"cancel", header{typ: typeCancel, id: 3}, "6d46010400000000" + "0000000000000003" + "000000000000000000000000"},
		{"ping", header{typ: typePing, id: 4}, "6d46010500000000" + "0000000000000004" + "000000000000000000000000"},
		{"pong", header{typ: typePong, id: 4}, "6d46010600000000" + "0000000000000004" + "000000000000000000000000"},
		{"retire", header{typ: typeRetire}, "6d46010700000000" + "0000000000000000" + "000000000000000000000000"},
		{"goodbye", header{typ: typeGoodbye}, "6d46010800000000" + "0000000000000000" + "000000000000000000000000"},
		{"raw", header{typ: typeRaw}, "6d46010900000000" + "0000000000000000" + "000000000000000000000000"},
	} {
		var b [headerSize]byte
		c.h.encode(b[:])
		if got := hex.EncodeToString(b[:]); got != c.want {
			t.Errorf("%s: encoded as\n%s, want\n%s", c.name, got, c.want)
		}
		if got, err := decodeHeader(b[:]); err != nil || got != c.h {
			t.Errorf("%s: decoded as %+v, %v", c.name, got, err)
		}
	}
}

func TestHeaderRefused(t *testing.T) {
	good := header{typ: typeRequest, class: Data, body: 1, payload: 1}
	for _, c := range []struct {
		name   string
		change func(b []byte)
		want   error
	}{
		{"magic", func(b []byte) { b[0] = 'M' }, ErrMalformed},
		{"version", func(b []byte) { b[2] = 2 }, ErrMalformed},
		{"type 0", func(b []byte) { b[3] = 0 }, ErrMalformed},
		{"type", func(b []byte) { b[3] = byte(typeEnd) }, ErrMalformed},
		{"class", func(b []byte) { b[4] = classes }, ErrMalformed},
		{"status", func(b []byte) { b[5] = byte(statusEnd) }, ErrMalformed},
		{"body", func(b []byte) { b[20] = 0xff }, ErrTooLarge},
		{"payload", func(b []byte) { b[24] = 0xff }, ErrTooLarge},
		{"ping with a body", func(b []byte) { b[3] = byte(typePing) }, ErrTooLarge},
	} {
		var b [headerSize]byte
		good.encode(b[:])
		c.change(b[:])
		if _, err := decodeHeader(b[:]); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
}

func FuzzDecodeHeader(f *testing.F) {
	var b [headerSize]byte
	h := header{typ: typeRequest, class: Data, kind: 0x0301, id: 1, deadline: 1500, body: 100, payload: 262144}
	h.encode(b[:])
	f.Add(b[:])
	f.Add(make([]byte, headerSize))
	f.Fuzz(func(t *testing.T, in []byte) {
		var scratch [headerSize]byte
		h, err := readHeader(bytes.NewReader(in), &scratch)
		if err != nil {
			return
		}
		if h.body > MaxBody || h.payload > MaxPayload || h.class >= classes {
			t.Fatalf("accepted %+v", h)
		}
		var out [headerSize]byte
		h.encode(out[:])
		if !bytes.Equal(out[:], in[:headerSize]) {
			t.Fatalf("%x decodes and encodes to %x", in[:headerSize], out)
		}
	})
}

func FuzzCompleteAddr(f *testing.F) {
	f.Add("0.0.0.0:7")
	f.Add(":65535")
	f.Add("[::]:1")
	f.Add("host:0")
	f.Fuzz(func(t *testing.T, in string) {
		got := completeAddr(in, fakeAddr("10.1.2.3:4"))
		if got == "" {
			return
		}
		if again := completeAddr(got, fakeAddr("10.9.9.9:4")); again != got {
			t.Fatalf("%q becomes %q, then %q", in, got, again)
		}
	})
}

type fakeAddr string

func (a fakeAddr) Network() string { return "tcp" }
func (a fakeAddr) String() string  { return string(a) }

func TestCompleteAddr(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1:7000": "192.0.2.1:7000", "host.example:7000": "host.example:7000",
		"0.0.0.0:7000": "10.1.2.3:7000", "[::]:7000": "10.1.2.3:7000", ":7000": "10.1.2.3:7000",
		"": "", "host": "", "host:0": "", "host:http": "", "host:70000": "",
	} {
		if got := completeAddr(in, fakeAddr("10.1.2.3:4")); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestDeadlineMillis(t *testing.T) {
	for d, want := range map[time.Duration]uint32{
		-time.Second: 1, 0: 1, 1: 1, time.Millisecond: 1, time.Millisecond + 1: 2, time.Minute: 60000, 1 << 62: 1<<32 - 1,
	} {
		if got := deadlineMillis(d); got != want {
			t.Errorf("%v: got %d ms, want %d", d, got, want)
		}
	}
}

func TestBufferClasses(t *testing.T) {
	last := -1
	for n := minPooled; n <= 1<<20; n += 509 {
		class, size := bufferClass(n)
		if size < n || size > n+n/4+1 || class < last || class > last+1 || class >= len(pools) {
			t.Fatalf("%d bytes: class %d of %d bytes after class %d", n, class, size, last)
		}
		if c, s := bufferClass(size); c != class || s != size {
			t.Fatalf("%d bytes: class %d of %d bytes is not its own class: %d of %d", n, class, size, c, s)
		}
		last = class
	}
	if class, size := bufferClass(maxPooled); class >= len(pools) || size != maxPooled {
		t.Fatalf("the largest: class %d of %d bytes", class, size)
	}
	Release(make([]byte, 5000)) // not ours
	Release(nil)
	b := getBuffer(300 << 10)
	if len(b) != 300<<10 || cap(b) != 320<<10 {
		t.Fatalf("got %d of %d bytes", len(b), cap(b))
	}
	Release(b[:10])
}
