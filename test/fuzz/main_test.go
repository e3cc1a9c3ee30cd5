package fuzz

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/test/cluster"
)

func TestMain(m *testing.M) {
	if os.Getenv(ChildVar) != "" {
		if err := Serve(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "fuzz child:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	dir, err := os.MkdirTemp("", "mutualfs-test-")
	if err == nil {
		err = cluster.Build(dir)
	}
	code := 1
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// usualSeed begins the runs that nobody gave a seed or a time: they make the same calls each time.
const usualSeed = 1

// seed is the run's: MUTUALFS_SEED, or a new one if MUTUALFS_FUZZ_TIME is set, or always the same.
func seed(t *testing.T) uint64 {
	s := uint64(usualSeed)
	if os.Getenv("MUTUALFS_FUZZ_TIME") != "" {
		s = uint64(time.Now().UnixNano())
	}
	if v := os.Getenv("MUTUALFS_SEED"); v != "" {
		var err error
		if s, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("MUTUALFS_SEED: %v", err)
		}
	}
	t.Logf("MUTUALFS_SEED=%d", s)
	return s
}

// duration is how long a test runs: MUTUALFS_FUZZ_TIME, or usual.
func duration(t *testing.T, usual time.Duration) time.Duration {
	v := os.Getenv("MUTUALFS_FUZZ_TIME")
	if v == "" {
		return usual
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		t.Fatalf("MUTUALFS_FUZZ_TIME: %v", err)
	}
	return d
}
