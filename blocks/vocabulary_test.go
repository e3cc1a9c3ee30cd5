package blocks

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
)

func idFrom(last ...byte) ID {
	var id ID
	copy(id[IDSize-len(last):], last)
	return id
}

func bigID(id ID) *big.Int { return new(big.Int).SetBytes(id[:]) }

var circle = new(big.Int).Lsh(big.NewInt(1), 8*IDSize)

func TestHashIDGolden(t *testing.T) {
	for _, c := range []struct {
		parts []string
		want  string
	}{
		{nil, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4"},
		{[]string{""}, "df3f619804a92fdb4057192dc43dd748ea778adc"},
		{[]string{"ring", "peer"}, "98405eaab7c734336f619e5fe8cee505320e2196"},
	} {
		var parts [][]byte
		for _, p := range c.parts {
			parts = append(parts, []byte(p))
		}
		if got := HashID(parts...).String(); got != c.want {
			t.Errorf("HashID(%q) = %s, want %s", c.parts, got, c.want)
		}
	}
	if HashID([]byte("ab"), []byte("c")) == HashID([]byte("a"), []byte("bc")) {
		t.Error("where a part ends does not matter to the hash")
	}
}

func TestParseID(t *testing.T) {
	id := HashID([]byte("x"))
	got, err := ParseID(id.String())
	if err != nil || got != id {
		t.Fatalf("got %v, %v", got, err)
	}
	for _, s := range []string{"", "00", strings.Repeat("g", 40), id.String() + "00", strings.Repeat("é", 20)} {
		_, err := ParseID(s)
		wantError(t, err, ErrInvalid)
	}
	b, err := json.Marshal(map[string]ID{"id": id})
	if err != nil {
		t.Fatal(err)
	}
	var back map[string]ID
	if err := json.Unmarshal(b, &back); err != nil || back["id"] != id {
		t.Fatalf("json: %v, %v", back, err)
	}
}

func TestBetween(t *testing.T) {
	a, b, c := idFrom(10), idFrom(20), idFrom(30)
	for _, x := range []struct {
		a, x, b ID
		want    bool
	}{
		{a, b, c, true}, {a, c, c, true}, {a, a, c, false}, {a, idFrom(31), c, false},
		{c, a, b, true}, {c, b, b, true}, {c, c, b, false}, {c, idFrom(25), b, false}, {c, idFrom(0), b, true},
		{a, a, a, true}, {a, b, a, true},
	} {
		if got := Between(x.a, x.x, x.b); got != x.want {
			t.Errorf("%v in (%v, %v]: %v", x.x.Short(), x.a, x.b, got)
		}
	}
}

// The arithmetic of the circle agrees with that of big numbers.
func TestCircleArithmetic(t *testing.T) {
	r := seeded(t)
	random := func() (id ID) {
		_, _ = randReader{r}.Read(id[:])
		if r.IntN(3) == 0 { // long carries
			copy(id[r.IntN(IDSize):], bytes.Repeat([]byte{byte(-r.IntN(2))}, IDSize))
		}
		return id
	}
	for range 2000 {
		a, b, exp := random(), random(), r.IntN(160)
		sum := new(big.Int).Add(bigID(a), new(big.Int).Lsh(big.NewInt(1), uint(exp)))
		if got := bigID(a.AddPower(exp)); got.Cmp(sum.Mod(sum, circle)) != 0 {
			t.Fatalf("%v + 2^%d = %v", a, exp, a.AddPower(exp))
		}
		diff := new(big.Int).Sub(bigID(b), bigID(a))
		if got := bigID(a.Distance(b)); got.Cmp(diff.Mod(diff, circle)) != 0 {
			t.Fatalf("distance of %v and %v: %v", a, b, a.Distance(b))
		}
		if a.Compare(b) != bigID(a).Cmp(bigID(b)) {
			t.Fatalf("compare %v and %v", a, b)
		}
	}
}

func TestRandomID(t *testing.T) {
	id, err := RandomID(bytes.NewReader(bytes.Repeat([]byte{7}, IDSize)))
	if err != nil || id[0] != 7 || id[IDSize-1] != 7 {
		t.Fatalf("%v, %v", id, err)
	}
	if _, err := RandomID(strings.NewReader("short")); err == nil {
		t.Fatal("no error of a source that ends")
	}
	if (ID{}).IsZero() != true || id.IsZero() {
		t.Fatal("IsZero")
	}
}

func TestErrorCodes(t *testing.T) {
	for _, c := range codes {
		err := fmt.Errorf("op on thing: %w", c.err)
		if got := CodeOf(err); got != c.code {
			t.Errorf("code of %v is %d, want %d", err, got, c.code)
		}
		back := FromCode(c.code, err.Error())
		if !errors.Is(back, c.err) || back.Error() != err.Error() {
			t.Errorf("code %d came back as %v", c.code, back)
		}
	}
	want := map[Code]error{1: ErrNotFound, 2: ErrUnavailable, 3: ErrCorrupt, 4: ErrNoSpace, 5: ErrExists, 6: ErrConflict,
		7: ErrBusy, 8: ErrInvalid, 9: ErrRefused, 10: ErrLost, 11: ErrNotOwner, 12: ErrDeadline, 13: ErrCanceled}
	for code, err := range want { // the numbers are a format
		if CodeOf(err) != code {
			t.Errorf("%v has code %d, want %d", err, CodeOf(err), code)
		}
	}
	if CodeOf(nil) != CodeOK || FromCode(CodeOK, "") != nil {
		t.Error("no error is not CodeOK")
	}
	if CodeOf(context.DeadlineExceeded) != 12 || CodeOf(context.Canceled) != 13 || CodeOf(errors.New("x")) != CodeOther {
		t.Error("codes of errors that are not ours")
	}
	if err := FromCode(200, "strange"); err == nil || err.Error() != "strange" {
		t.Errorf("unknown code: %v", err)
	}
}

func TestCodecGolden(t *testing.T) {
	var e Encoder
	e.Uint(300)
	e.Int(-3)
	e.Byte(9)
	e.Bool(true)
	e.Bool(false)
	e.Uint32(0x01020304)
	e.Uint64(0x05060708090a0b0c)
	e.Bytes([]byte{0xaa})
	e.String("hi")
	e.ID(idFrom(1, 2))
	want := "ac02" + "05" + "09" + "01" + "00" + "01020304" + "05060708090a0b0c" + "01aa" + "026869" + strings.Repeat("00", 18) + "0102"
	if got := hex.EncodeToString(e.Buf); got != want {
		t.Fatalf("got  %s\nwant %s", got, want)
	}
	d := NewDecoder(e.Buf)
	if d.Uint() != 300 || d.Int() != -3 || d.Byte() != 9 || !d.Bool() || d.Bool() || d.Uint32() != 0x01020304 ||
		d.Uint64() != 0x05060708090a0b0c || !bytes.Equal(d.Bytes(), []byte{0xaa}) || d.String() != "hi" || d.ID() != idFrom(1, 2) {
		t.Fatal("decoded something else")
	}
	if err := d.Done(); err != nil {
		t.Fatal(err)
	}
}

func TestDecoderErrors(t *testing.T) {
	for name, c := range map[string]struct {
		in string
		fn func(*Decoder)
	}{
		"number cut":     {"80", func(d *Decoder) { d.Uint() }},
		"number too big": {"ffffffffffffffffffff01", func(d *Decoder) { d.Uint() }},
		"int cut":        {"", func(d *Decoder) { d.Int() }},
		"bool":           {"02", func(d *Decoder) { d.Bool() }},
		"word cut":       {"010203", func(d *Decoder) { d.Uint32() }},
		"bytes cut":      {"05aa", func(d *Decoder) { d.Bytes() }},
		"bytes huge":     {"ffffffffffffffffff01", func(d *Decoder) { d.Bytes() }},
		"count":          {"03aaaa", func(d *Decoder) { d.Count(1) }},
		"id cut":         {"00", func(d *Decoder) { d.ID() }},
		"left over":      {"0000", func(d *Decoder) { d.Byte() }},
	} {
		in, err := hex.DecodeString(c.in)
		if err != nil {
			t.Fatal(err)
		}
		d := NewDecoder(in)
		c.fn(d)
		if !errors.Is(d.Done(), ErrCorrupt) {
			t.Errorf("%s: %v", name, d.Done())
		}
		if name != "left over" && (d.Uint() != 0 || d.Len() != 0) {
			t.Errorf("%s: the error does not stick", name)
		}
	}
}

// Whatever the input: no panic, no more read than there is.
func FuzzDecoder(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, []byte("\x02hello\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"))
	f.Fuzz(func(t *testing.T, script, in []byte) {
		d := NewDecoder(in)
		for _, op := range script {
			before := d.Len()
			switch op % 10 {
			case 0:
				d.Uint()
			case 1:
				d.Int()
			case 2:
				d.Byte()
			case 3:
				d.Bool()
			case 4:
				d.Uint32()
			case 5:
				d.Uint64()
			case 6:
				if b := d.Bytes(); len(b) > before {
					t.Fatalf("%d bytes of %d", len(b), before)
				}
			case 7:
				_ = d.String()
			case 8:
				d.ID()
			case 9:
				if n := d.Count(4); n*4 > before {
					t.Fatalf("count %d of %d bytes", n, before)
				}
			}
			if d.Len() > before {
				t.Fatal("input grew")
			}
			if err := d.Err(); err != nil && !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
		}
	})
}

// What is encoded is decoded.
func TestCodecRoundTrip(t *testing.T) {
	r := seeded(t)
	for range 500 {
		u, i, b := r.Uint64()>>r.IntN(64), int64(r.Uint64())>>r.IntN(64), make([]byte, r.IntN(300))
		var e Encoder
		e.Uint(u)
		e.Int(i)
		e.Bytes(b)
		d := NewDecoder(e.Buf)
		if d.Uint() != u || d.Int() != i || !bytes.Equal(d.Bytes(), b) || d.Done() != nil {
			t.Fatalf("%d %d %d bytes", u, i, len(b))
		}
	}
}
