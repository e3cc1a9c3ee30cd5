package tree

import (
	"errors"
	"testing"

	"github.com/mutualfs/mutualfs/blocks"
)

func TestDataLeavesRoomForRemovals(t *testing.T) {
	free := int64(hostFloor + 1000)
	h := hostRoom{free: func(string) (int64, error) { return free, nil }}
	if err := h.take("dir", 600); err != nil {
		t.Fatal(err)
	}
	if err := h.take("dir", 300); err != nil {
		t.Fatal("the host was asked again too early, or the first write was counted twice: ", err)
	}
	free -= 900
	if err := h.take("dir", 200); !errors.Is(err, blocks.ErrNoSpace) {
		t.Errorf("data below the floor: %v", err)
	}
	free += 5000
	if err := h.take("dir", 200); err != nil {
		t.Errorf("after room was made: %v", err)
	}
	broken := hostRoom{free: func(string) (int64, error) { return 0, errors.New("no such drive") }}
	if err := broken.take("dir", 1); !errors.Is(err, blocks.ErrUnavailable) {
		t.Errorf("a drive that does not answer: %v", err)
	}
}
