package main

import (
	"encoding/json"
	"hash/crc32"
	"io"
	"strings"
)

func crc(s string) uint32 { return crc32.ChecksumIEEE([]byte(s)) }

func trimLine(b []byte) string { return strings.TrimSpace(string(b)) }

// printJSON is what --json prints.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
