package main

import (
	"context"
	"errors"
	"fmt"
)

// layers runs parts that need each other: each is started after those it needs, and stopped before them.
type layers struct {
	ctx  context.Context // ends when a part fails
	fail context.CancelCauseFunc
	list []*layer
}

type layer struct {
	name string
	stop context.CancelFunc
	done chan struct{}
	err  error
}

func newLayers(ctx context.Context) *layers {
	l := &layers{}
	l.ctx, l.fail = context.WithCancelCause(ctx)
	return l
}

// start runs f until the layers are stopped. If f ends earlier, or with an error, everything ends.
func (l *layers) start(name string, f func(ctx context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	x := &layer{name: name, stop: cancel, done: make(chan struct{})}
	l.list = append(l.list, x)
	go func() {
		defer close(x.done)
		err := f(ctx)
		if ctx.Err() == nil {
			if err == nil {
				err = errors.New("ended by itself")
			}
			l.fail(fmt.Errorf("%s: %w", name, err))
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			x.err = fmt.Errorf("%s: %w", name, err)
		}
	}()
}

// stop ends all parts, the last started first, and returns what they reported.
func (l *layers) stop() error {
	var errs []error
	for i := len(l.list) - 1; i >= 0; i-- {
		x := l.list[i]
		x.stop()
		<-x.done
		errs = append(errs, x.err)
	}
	l.fail(nil)
	return errors.Join(errs...)
}
