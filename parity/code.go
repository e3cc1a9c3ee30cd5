package parity

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"sync"

	"github.com/klauspost/reedsolomon"

	"github.com/mutualfs/mutualfs/blocks"
)

// maxEncoders bounds how many codes are kept; more are made anew for each use.
const maxEncoders = 128

type shape struct{ k, m int }

// coders keeps an encoder for each shape in use.
type coders struct {
	mu   sync.Mutex
	kept map[shape]reedsolomon.Encoder
}

func (c *coders) get(k, m int) (reedsolomon.Encoder, error) {
	c.mu.Lock()
	enc := c.kept[shape{k, m}]
	c.mu.Unlock()
	if enc != nil {
		return enc, nil
	}
	enc, err := reedsolomon.New(k, m, reedsolomon.WithMaxGoroutines(1))
	if err != nil {
		return nil, fmt.Errorf("%w: code of %d+%d shards: %v", blocks.ErrInvalid, k, m, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kept == nil {
		c.kept = map[shape]reedsolomon.Encoder{}
	}
	if len(c.kept) < maxEncoders {
		c.kept[shape{k, m}] = enc
	}
	return enc, nil
}

// codeGolden is the SHA-256 of the shards of selfTestShards, 4+2.
const codeGolden = "5eb38c9b16bee39ec05c816f29fe90b808066f98292dfc0b72f313b2187fa69f"

// selfTestShards are 4 data shards of 64 bytes that count up, and their parity.
func selfTestShards(c *coders) ([][]byte, reedsolomon.Encoder, error) {
	enc, err := c.get(4, 2)
	if err != nil {
		return nil, nil, err
	}
	shards := make([][]byte, 6)
	for i := range shards {
		shards[i] = make([]byte, 64)
		for j := range shards[i] {
			if i < 4 {
				shards[i][j] = byte(i*64 + j)
			}
		}
	}
	return shards, enc, enc.Encode(shards)
}

func shardsSum(shards [][]byte) string {
	h := sha256.New()
	for _, s := range shards {
		h.Write(s)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// selfTest refuses to start with a code that is not the one that stored
// stripes were made with.
func selfTest(c *coders) error {
	shards, enc, err := selfTestShards(c)
	if err != nil {
		return fmt.Errorf("self-test of the erasure code: %w", err)
	}
	want := shardsSum(shards)
	if want != codeGolden {
		return fmt.Errorf("%w: self-test of the erasure code: parity %s, not %s", blocks.ErrCorrupt, want, codeGolden)
	}
	shards[0], shards[3] = nil, nil
	if err := enc.Reconstruct(shards); err != nil {
		return fmt.Errorf("self-test of the erasure code: %w", err)
	}
	if got := shardsSum(shards); got != codeGolden {
		return fmt.Errorf("%w: self-test of the erasure code: reconstructed %s, not %s", blocks.ErrCorrupt, got, codeGolden)
	}
	return nil
}
