package tree

import (
	"errors"
	"syscall"
	"testing"
)

// A directory that is dropped from memory while it is being removed is not one that is gone: the transaction loads it again.
func TestRmdirOfWhatMemoryDropped(t *testing.T) {
	var tr Tree
	if _, err := tr.rmdirOp(&container{}, "d", Dentry{}); !errors.Is(err, errCross) {
		t.Errorf("dropped: %v", err)
	}
	if _, err := tr.rmdirOp(&container{removed: true}, "d", Dentry{}); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("removed: %v", err)
	}
}
