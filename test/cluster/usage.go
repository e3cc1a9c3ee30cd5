package cluster

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Usage is what a peer's process has used so far, and the memory that it holds now.
type Usage struct {
	CPU time.Duration // user and system
	RSS int64         // bytes
}

// clockTick is the unit of CPU times in /proc.
const clockTick = 10 * time.Millisecond

// Usage reads /proc; the process must be running.
func (p *Peer) Usage() Usage {
	p.t.Helper()
	p.mu.Lock()
	pid := p.cmd.Process.Pid
	p.mu.Unlock()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		p.t.Fatalf("usage of %s: %v", p.Name, err)
	}
	_, after, _ := strings.Cut(string(text), ") ") // the fields from the third on
	fields := strings.Fields(after)
	number := func(i int) int64 {
		n, err := strconv.ParseInt(fields[i-3], 10, 64)
		if err != nil {
			p.t.Fatalf("usage of %s: %v", p.Name, err)
		}
		return n
	}
	return Usage{CPU: time.Duration(number(14)+number(15)) * clockTick, RSS: number(24) * int64(os.Getpagesize())}
}
