package parity

import (
	"fmt"
	"slices"
	"strings"
)

// maxTold is how many of several errors are told in full.
const maxTold = 3

// severalErrors are the errors of one operation on many holders, told on one line and each text once.
type severalErrors []error

// several joins errors; nil if there are none.
func several(errs []error) error {
	errs = slices.DeleteFunc(slices.Clone(errs), func(err error) bool { return err == nil })
	if len(errs) == 0 {
		return nil
	}
	return severalErrors(errs)
}

func (s severalErrors) Error() string {
	var told []string
	left := 0
	for _, err := range s {
		text := err.Error()
		switch {
		case slices.Contains(told, text):
		case len(told) < maxTold:
			told = append(told, text)
		default:
			left++
		}
	}
	text := strings.Join(told, "; ")
	if left > 0 {
		text += fmt.Sprintf("; and %d more", left)
	}
	return text
}

// Unwrap lets errors.Is see all of them.
func (s severalErrors) Unwrap() []error { return s }
