package parity

import (
	"bytes"
	"fmt"
	"math/bits"
	"slices"

	"github.com/mutualfs/mutualfs/blocks"
)

// agree finds the codeword that the good shards belong to and returns all
// shards of it. Those that contradict it count as corrupt. With the volume key the seal decides which
// codeword is right. Without it the one on which most shards agree does, and where there is a
// contradiction at least k+1 must, and more than on any other.
func (s *Store) agree(v *survey) (*buffer, [][]byte, error) {
	size := v.g.ShardSize()
	buf := s.bufs.get(v.g.Shards() * size)
	shards := buf.cut(v.g.Shards(), size)
	chosen, err := s.choose(v, shards)
	if err == nil {
		err = s.codeword(v, chosen, shards)
	}
	if err != nil {
		buf.release()
		return nil, nil, err
	}
	same := v.agreeing(shards)
	for i := range v.good {
		if v.good[i] && same&(1<<i) == 0 {
			v.good[i], v.corrupt[i] = false, true
		}
	}
	return buf, shards, nil
}

// choose returns k good shards whose codeword is right. shards is scratch.
func (s *Store) choose(v *survey, shards [][]byte) ([]int, error) {
	var from []int
	for i := range v.good {
		if v.good[i] {
			from = append(from, i)
		}
	}
	opens, err := s.opener(v)
	if err != nil {
		return nil, err
	}
	var best []int
	var bestSet uint64
	var fault error
	tied, tries := false, 0
	chosen := chooseEach(from, v.g.K, func(subset []int) bool {
		tries++
		if fault = s.codeword(v, subset, shards); fault != nil {
			return true
		}
		if opens != nil {
			return opens(shards) || tries >= maxSubsets
		}
		set := v.agreeing(shards)
		switch n := bits.OnesCount64(set) - bits.OnesCount64(bestSet); {
		case n > 0:
			best, bestSet, tied = slices.Clone(subset), set, false
		case n == 0 && set != bestSet:
			tied = true
		}
		return bits.OnesCount64(bestSet) == len(from) || tries >= maxSubsets
	})
	switch n := bits.OnesCount64(bestSet); {
	case fault != nil:
		return nil, fault
	case opens != nil && chosen != nil && opens(shards):
		return chosen, nil
	case opens != nil:
		return nil, fmt.Errorf("%w: no %d shards of stripe %s open", blocks.ErrCorrupt, v.g.K, v.j.id.Short())
	case n == len(from) || n > v.g.K && !tied:
		return best, nil
	}
	return nil, fmt.Errorf("%w: the shards of stripe %s contradict each other", blocks.ErrCorrupt, v.j.id.Short())
}

// opener returns what checks the seals of a whole stripe; nil without the volume key.
func (s *Store) opener(v *survey) (func(shards [][]byte) bool, error) {
	if s.vault == nil {
		return nil, nil
	}
	seal, err := s.vault.sealer(v.j.id, v.g)
	if err != nil {
		return nil, err
	}
	return func(shards [][]byte) bool {
		buf := s.bufs.get(MaxUnit)
		defer buf.release()
		size := v.g.Sealed()
		for unit := range v.g.Units() {
			shard, row := v.g.Place(unit)
			if seal.open(buf.data[:0], shards[shard][row*size:(row+1)*size], unit) != nil {
				return false
			}
		}
		return true
	}, nil
}

// agreeing is the set of good shards that are as in shards.
func (v *survey) agreeing(shards [][]byte) (set uint64) {
	for i := range v.good {
		if v.good[i] && bytes.Equal(shards[i], v.data[i]) {
			set |= 1 << i
		}
	}
	return set
}

// codeword computes all shards from a subset of k.
func (s *Store) codeword(v *survey, subset []int, out [][]byte) error {
	in := make([][]byte, len(out))
	for i := range in {
		in[i] = out[i][:0]
	}
	for _, i := range subset {
		copy(out[i], v.data[i])
		in[i] = out[i]
	}
	enc, err := s.coders.get(v.g.K, v.g.M)
	if err == nil {
		err = enc.Reconstruct(in)
	}
	if err != nil {
		return fmt.Errorf("rebuild stripe %s: %w", v.j.id.Short(), err)
	}
	return nil
}
