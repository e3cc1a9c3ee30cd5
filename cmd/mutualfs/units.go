package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes, written with a suffix.
type Size uint64

var sizeUnits = []struct {
	suffix string
	bytes  float64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"kB", 1e3},
	{"T", 1 << 40}, {"G", 1 << 30}, {"M", 1 << 20}, {"K", 1 << 10}, {"k", 1 << 10}, {"B", 1}, {"", 1},
}

// ParseSize reads "10GiB", "1.5T", "4096".
func ParseSize(s string) (Size, error) {
	for _, u := range sizeUnits {
		number, ok := strings.CutSuffix(strings.TrimSpace(s), u.suffix)
		if !ok {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
		if err != nil || v < 0 || math.IsNaN(v) || v*u.bytes > 1<<62 {
			break
		}
		return Size(v * u.bytes), nil
	}
	return 0, fmt.Errorf("%q is not a size: want a number with B, KiB, MiB, GiB or TiB, as in 10GiB", s)
}

// String prints the size so that ParseSize reads the same number of bytes.
func (s Size) String() string {
	for _, u := range sizeUnits[:4] {
		if n := uint64(u.bytes); s > 0 && uint64(s)%n == 0 {
			return fmt.Sprintf("%d%s", uint64(s)/n, u.suffix)
		}
	}
	return fmt.Sprintf("%dB", uint64(s))
}

// Human prints about three digits, for people.
func (s Size) Human() string {
	for _, u := range sizeUnits[:4] {
		if float64(s) >= u.bytes {
			return fmt.Sprintf("%.3g %s", float64(s)/u.bytes, u.suffix)
		}
	}
	return fmt.Sprintf("%d B", uint64(s))
}

// UnmarshalText is for TOML.
func (s *Size) UnmarshalText(b []byte) (err error) {
	*s, err = ParseSize(string(b))
	return err
}

// Set is for flags.
func (s *Size) Set(text string) error { return s.UnmarshalText([]byte(text)) }

// Type is for flags.
func (s *Size) Type() string { return "size" }

// Percent is written "5%".
type Percent float64

// UnmarshalText is for TOML.
func (p *Percent) UnmarshalText(b []byte) error {
	number, ok := strings.CutSuffix(strings.TrimSpace(string(b)), "%")
	v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if !ok || err != nil {
		return fmt.Errorf("%q is not a share: want a percentage, as in 5%%", b)
	}
	*p = Percent(v)
	return nil
}

// Duration is a time.Duration in TOML and flags.
type Duration time.Duration

// UnmarshalText is for TOML.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil || v < 0 {
		return fmt.Errorf("%q is not a time: want a number with s, m or h, as in 15m", b)
	}
	*d = Duration(v)
	return nil
}

// String prints what UnmarshalText reads, without needless zeros.
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
