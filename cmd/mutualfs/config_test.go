package main

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// example returns config.toml.example, which must be what the program itself writes.
func example(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../config.toml.example")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestExampleIsDefault(t *testing.T) {
	if want := renderConfig(DefaultConfig()); example(t) != want {
		t.Fatalf("config.toml.example differs from what the program writes:\n%s", want)
	}
	c, err := parseConfig("config.toml.example", example(t))
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultConfig()
	want.Drives = []string{}
	if !reflect.DeepEqual(c, want) {
		t.Fatalf("the example reads as %+v, the default is %+v", c, want)
	}
}

func TestConfigRoundTrip(t *testing.T) {
	c := DefaultConfig()
	c.Capacity, c.Zone, c.Drives, c.Reserve, c.Sync = 3<<30+1, `a "zone"`, []string{"/d1", "/d 2"}, 2.5, "close"
	got, err := parseConfig("x", renderConfig(c))
	if err != nil || !reflect.DeepEqual(got, c) {
		t.Fatalf("%+v became %+v, %v", c, got, err)
	}
}

func TestConfigErrorsNameLineAndKey(t *testing.T) {
	for text, want := range map[string][]string{
		"listen = \"127.0.0.1:1\"\ncapasity = \"1GiB\"\n": {"f.toml, line 2", `"capasity"`},
		"\n[net]\nx = 1\n":               {"f.toml, line 2", `"net`},
		"cache = \"1 parsec\"\n":         {"f.toml, line 1", "cache", "parsec"},
		"reserve = \"5\"\n":              {"line 1", "reserve", "percentage"},
		"repair_after = \"15\"\n":        {"line 1", "repair_after", "s, m or h"},
		"listen = \"nowhere\"\n":         {"listen", "HOST:PORT"},
		"listen = \"0.0.0.0:7440\"\n":    {"advertise"},
		"sync = \"sometimes\"\n":         {"sync", "fsync"},
		"capacity = \"1B\"\n":            {"capacity", "64MiB"},
		"listen = 5\n":                   {"listen"},
		"log_level = \"chatty\"\n":       {"log_level"},
		"capacity = \"1GiB\"\ncapacity=": {"line 2"},
	} {
		_, err := parseConfig("f.toml", text)
		if err == nil {
			t.Errorf("%q was accepted", text)
			continue
		}
		for _, w := range want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q: %v does not say %q", text, err, w)
			}
		}
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]Size{"0": 0, "4096": 4096, "10GiB": 10 << 30, "1.5T": 3 << 39, "2 MB": 2e6, "64k": 64 << 10, "7B": 7} {
		got, err := ParseSize(text)
		if err != nil || got != want {
			t.Errorf("%q is %d, %v, want %d", text, got, err, want)
		}
		again, err := ParseSize(got.String())
		if err != nil || again != got {
			t.Errorf("%d prints as %q and reads as %d, %v", got, got.String(), again, err)
		}
	}
	for _, text := range []string{"", "GiB", "-1", "1XB", "1e300TiB", "NaN"} {
		if v, err := ParseSize(text); err == nil {
			t.Errorf("%q was accepted as %d", text, v)
		}
	}
}
