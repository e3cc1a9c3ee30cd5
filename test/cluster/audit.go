package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// ring is what the peers of a test share.
type ring struct {
	mu        sync.Mutex
	peers     []*Peer
	killed    bool   // a process was killed: writes that it broke off left what nobody needs
	unchecked string // why the audit at the end is left out
	once      sync.Once
}

func (r *ring) add(p *Peer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.peers = append(r.peers, p)
}

// Unchecked leaves out the audit at the end of the test.
func (p *Peer) Unchecked(why string) {
	p.ring.mu.Lock()
	defer p.ring.mu.Unlock()
	p.ring.unchecked = why
}

// Audit is what check --json prints, as far as the tests look at it.
type Audit struct {
	Findings, Doubtful []Finding
	Unsettled          []struct{ Peer, Reason string }
	Incomplete         string
	Busy               bool
}

// Finding is one of a check.
type Finding struct{ Kind, Path, Detail, Stripe, Register string }

func (f Finding) String() string { return f.Kind + " " + f.Path + ": " + f.Detail }

// auditLimit bounds a check.
const auditLimit = 2 * time.Minute

// Check runs mutualfs check. The error does not say that something was found.
func (p *Peer) Check(args ...string) (a Audit, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), auditLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, Binary, append([]string{"check", "--json", "--data", p.Dir}, args...)...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1 || len(out) == 0) {
		return a, fmt.Errorf("mutualfs check: %w: %s", err, errs.String())
	}
	if e := json.Unmarshal(out, &a); e != nil {
		return a, e
	}
	if failed := err != nil; failed != (len(a.Findings) > 0) {
		return a, fmt.Errorf("check ended with %v and %d findings", err, len(a.Findings))
	}
	return a, nil
}

// healLimit is how long repair may take at the end of a test.
const healLimit = time.Minute

// audit is made once, before the first process of the ring is ended at the end of a test: names and stripes must fit.
func (r *ring) audit(t testing.TB) {
	if _, bench := t.(*testing.B); bench || t.Failed() {
		return
	}
	r.mu.Lock()
	why, killed := r.unchecked, r.killed
	var asked *Peer
	all := true
	for _, p := range r.peers {
		up := p.started() && p.Running()
		all = all && up
		if up && (asked == nil || asked.Mnt == "" && p.Mnt != "") {
			asked = p
		}
	}
	r.mu.Unlock()
	if why != "" || asked == nil {
		return
	}
	err := poll(healLimit, func() error {
		a, err := asked.Check()
		if err != nil {
			return fatalError{err}
		}
		healing := false
		a.Findings = slices.DeleteFunc(a.Findings, func(f Finding) bool {
			healing = healing || f.Kind == "under-protected-stripe"
			return killed && f.Kind == "unreferenced-stripe" || !all && f.Kind == "under-protected-stripe"
		})
		switch {
		case len(a.Findings) == 0:
			return nil
		case healing && all:
			return fmt.Errorf("check found %v", a.Findings)
		}
		return fatalError{fmt.Errorf("check found %v", a.Findings)}
	})
	if err != nil && (all || !strings.Contains(err.Error(), "mutualfs check:")) {
		t.Errorf("audit at the end, asked of %s: %v\n%s", asked.Name, err, asked.LogTail())
	}
}
