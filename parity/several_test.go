package parity

import (
	"errors"
	"fmt"
	"testing"

	"github.com/mutualfs/mutualfs/blocks"
)

func TestSeveralErrorsAreOneLine(t *testing.T) {
	if err := several([]error{nil, nil}); err != nil {
		t.Errorf("no errors are %v", err)
	}
	full := fmt.Errorf("peer a: %w", blocks.ErrNoSpace)
	errs := []error{full, full, nil, errors.New("b"), errors.New("c"), errors.New("d"), errors.New("e")}
	err := several(errs)
	if want := "peer a: no space; b; c; and 2 more"; err.Error() != want {
		t.Errorf("told as %q, want %q", err, want)
	}
	if !errors.Is(err, blocks.ErrNoSpace) || errors.Is(err, blocks.ErrCorrupt) {
		t.Error("the class is lost")
	}
}
