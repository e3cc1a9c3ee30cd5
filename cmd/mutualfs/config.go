package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	_ "embed"

	"github.com/BurntSushi/toml"
	"github.com/rs/zerolog"
)

// Config is what the user may set in config.toml of a data directory. What all peers of
// a ring must agree on is not here: see ringFile.
type Config struct {
	Listen      string   `toml:"listen"`
	Advertise   string   `toml:"advertise"`
	Zone        string   `toml:"zone"`
	Capacity    Size     `toml:"capacity"`
	Drives      []string `toml:"drives"`
	Reserve     Percent  `toml:"reserve"`
	RepairAfter Duration `toml:"repair_after"`
	Sync        string   `toml:"sync"`
	Cache       Size     `toml:"cache"`
	Dirty       Size     `toml:"dirty"`
	Journal     Size     `toml:"journal"`
	LogLevel    string   `toml:"log_level"`
}

// DefaultConfig is what config.toml.example says.
func DefaultConfig() Config {
	return Config{
		Listen:      "127.0.0.1:7440",
		Reserve:     5,
		RepairAfter: Duration(15 * time.Minute),
		Sync:        "fsync",
		Cache:       256 << 20,
		Dirty:       256 << 20,
		Journal:     4 << 30,
		LogLevel:    "info",
	}
}

// Validate says which key is wrong, and why.
func (c *Config) Validate() error {
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return fmt.Errorf("listen = %q: want HOST:PORT, as in 192.168.1.5:7440", c.Listen)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("listen = %q: the port must be a number from 1 to 65535", c.Listen)
	}
	if ip := net.ParseIP(host); c.Advertise == "" && (host == "" || ip != nil && ip.IsUnspecified()) {
		return fmt.Errorf("listen = %q listens on all addresses: set advertise to the HOST:PORT that other peers should use", c.Listen)
	}
	if c.Advertise != "" {
		if _, _, err := net.SplitHostPort(c.Advertise); err != nil {
			return fmt.Errorf("advertise = %q: want HOST:PORT", c.Advertise)
		}
	}
	switch {
	case len(c.Zone) > 64:
		return fmt.Errorf("zone = %q: at most 64 bytes", c.Zone)
	case c.Capacity > 0 && c.Capacity < minCapacity:
		return fmt.Errorf("capacity = %q: at least %s, or 0 for a client that stores nothing", c.Capacity, Size(minCapacity))
	case c.Reserve < 0 || c.Reserve > 90:
		return fmt.Errorf("reserve = \"%g%%\": want 0%% to 90%%", float64(c.Reserve))
	case c.RepairAfter < Duration(time.Second):
		return fmt.Errorf("repair_after = %q: at least 1s", time.Duration(c.RepairAfter))
	case c.Sync != "fsync" && c.Sync != "close":
		return fmt.Errorf("sync = %q: want \"fsync\" or \"close\"", c.Sync)
	case c.Cache < 8<<20 || c.Dirty < 8<<20:
		return fmt.Errorf("cache and dirty must each be at least 8MiB")
	case c.Journal < 256<<20:
		return fmt.Errorf("journal = %q: at least 256MiB", c.Journal)
	}
	if _, err := zerolog.ParseLevel(c.LogLevel); err != nil || c.LogLevel == "" {
		return fmt.Errorf("log_level = %q: want debug, info, warn or error", c.LogLevel)
	}
	return nil
}

// minCapacity is the least that a storing peer offers, bytes.
const minCapacity = 64 << 20

// AdvertiseAddr is the address that other peers dial.
func (c *Config) AdvertiseAddr() string {
	if c.Advertise != "" {
		return c.Advertise
	}
	return c.Listen
}

// readConfig reads a config file over the defaults. Errors name file, line and key.
func readConfig(path string) (Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Config{}, err
	}
	return parseConfig(path, string(text))
}

func parseConfig(path, text string) (Config, error) {
	c := DefaultConfig()
	meta, err := toml.Decode(text, &c)
	var parse toml.ParseError
	switch {
	case errors.As(err, &parse):
		return Config{}, fmt.Errorf("%s, line %d: key %q: %s", path, parse.Position.Line, parse.LastKey, parse.Message)
	case err != nil:
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		key := unknown[0].String()
		return Config{}, fmt.Errorf("%s, line %d: unknown key %q", path, lineOfKey(text, key), key)
	}
	if err := c.Validate(); err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// lineOfKey finds where a top-level key or a table stands.
func lineOfKey(text, key string) int {
	last := key[strings.LastIndexByte(key, '.')+1:]
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimLeft(line, " \t[")
		if rest, ok := strings.CutPrefix(strings.Trim(line, `"'`), last); ok {
			rest = strings.TrimLeft(rest, " \t\"'")
			if strings.HasPrefix(rest, "=") || strings.HasPrefix(rest, "]") {
				return i + 1
			}
		}
	}
	return 1
}

//go:embed config.toml.tmpl
var configTemplate string

// renderConfig is the commented config file for the given settings. The keys that
// the template has are replaced by their values.
func renderConfig(c Config) string {
	drives := make([]string, len(c.Drives))
	for i, d := range c.Drives {
		drives[i] = strconv.Quote(d)
	}
	return strings.NewReplacer(
		"@listen@", strconv.Quote(c.Listen), "@advertise@", strconv.Quote(c.Advertise),
		"@zone@", strconv.Quote(c.Zone), "@capacity@", strconv.Quote(c.Capacity.String()),
		"@drives@", "["+strings.Join(drives, ", ")+"]", "@reserve@", fmt.Sprintf("\"%g%%\"", float64(c.Reserve)),
		"@repair_after@", strconv.Quote(c.RepairAfter.String()), "@sync@", strconv.Quote(c.Sync),
		"@cache@", strconv.Quote(c.Cache.String()), "@dirty@", strconv.Quote(c.Dirty.String()),
		"@journal@", strconv.Quote(c.Journal.String()), "@log_level@", strconv.Quote(c.LogLevel),
	).Replace(configTemplate)
}
