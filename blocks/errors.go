package blocks

import (
	"context"
	"errors"
)

// The errors that cross rooms. A room wraps them with %w and says what
// happened to what; callers ask with errors.Is. Three of them carry the
// weight: not found (proven absent), unavailable (try again, nothing is
// known), corrupt (there, and wrong). They are never mixed up: "cannot reach
// enough peers" is never "not found".
var (
	ErrNotFound    = errors.New("not found")
	ErrUnavailable = errors.New("unavailable")
	ErrCorrupt     = errors.New("corrupt")
	ErrNoSpace     = errors.New("no space")
	ErrExists      = errors.New("exists already")
	ErrConflict    = errors.New("changed meanwhile")
	ErrBusy        = errors.New("busy")
	ErrInvalid     = errors.New("invalid")
	ErrRefused     = errors.New("refused")
	ErrLost        = errors.New("lost before it was synced")
	ErrNotOwner    = errors.New("not the owner")
	ErrDeadline    = errors.New("deadline exceeded")
	ErrCanceled    = errors.New("canceled")
)

// Code is an error class on the wire. The numbers are part of the format.
type Code uint8

// CodeOK says that there was no error; CodeOther is any error not listed.
const (
	CodeOK    Code = 0
	CodeOther Code = 255
)

var codes = []struct {
	code Code
	err  error
}{
	{1, ErrNotFound}, {2, ErrUnavailable}, {3, ErrCorrupt}, {4, ErrNoSpace},
	{5, ErrExists}, {6, ErrConflict}, {7, ErrBusy}, {8, ErrInvalid},
	{9, ErrRefused}, {10, ErrLost}, {11, ErrNotOwner}, {12, ErrDeadline},
	{13, ErrCanceled},
}

// CodeOf returns the wire code of err's class.
func CodeOf(err error) Code {
	switch {
	case err == nil:
		return CodeOK
	case errors.Is(err, context.DeadlineExceeded):
		return CodeOf(ErrDeadline)
	case errors.Is(err, context.Canceled):
		return CodeOf(ErrCanceled)
	}
	for _, c := range codes {
		if errors.Is(err, c.err) {
			return c.code
		}
	}
	return CodeOther
}

// remoteError is an error that another peer reported: its text and its class.
type remoteError struct {
	text  string
	class error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.class }

// FromCode makes the error that the wire's code and text stand for, nil for
// CodeOK. An unknown code is an error of no class.
func FromCode(c Code, text string) error {
	if c == CodeOK {
		return nil
	}
	for _, k := range codes {
		if k.code == c {
			return &remoteError{text, k.err}
		}
	}
	return errors.New(text)
}
