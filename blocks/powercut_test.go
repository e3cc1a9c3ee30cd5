package blocks_test

import (
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/blocks/blockstest"
)

func seed(t *testing.T) uint64 {
	if s := os.Getenv("MUTUALFS_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("MUTUALFS_SEED: %v", err)
		}
		return n
	}
	return uint64(time.Now().UnixNano())
}

// The power fails at every write, sync and punch of a random workload, over
// the index in memory.
func TestPowerCutAtEveryOperation(t *testing.T) {
	blockstest.PowerCuts(t, blockstest.MemMedium{M: blocks.NewMemFS()}, seed(t), 300, 1)
}
