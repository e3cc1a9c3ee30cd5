package blocks

import (
	"fmt"
	"sync"
)

// gate lets operations in until it is closed, and then waits for them to end.
type gate struct {
	mu     sync.Mutex
	inside int
	closed bool
	idle   chan struct{}
}

func newGate() *gate { return &gate{idle: make(chan struct{})} }

func (g *gate) enter() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return fmt.Errorf("%w: the store is closed", ErrUnavailable)
	}
	g.inside++
	return nil
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside--; g.closed && g.inside == 0 {
		close(g.idle)
	}
}

// close reports whether this call closed the gate; everybody has left then.
func (g *gate) close() bool {
	g.mu.Lock()
	first := !g.closed
	g.closed = true
	if first && g.inside == 0 {
		close(g.idle)
	}
	g.mu.Unlock()
	<-g.idle
	return first
}
