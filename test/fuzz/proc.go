package fuzz

import (
	"encoding/gob"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// ChildVar is set in the environment of child processes.
const ChildVar = "MUTUALFS_FUZZ_CHILD"

// callLimit bounds every call.
const callLimit = 60 * time.Second

var errHangs = errors.New("the call hangs")

// proc is a child process that makes calls.
type proc struct {
	cmd     *exec.Cmd
	enc     *gob.Encoder
	results chan Result
	longest time.Duration
	slowest Op
}

// startProc starts the running binary again as a child.
func startProc() (*proc, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), ChildVar+"=1")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &proc{cmd: cmd, enc: gob.NewEncoder(in), results: make(chan Result)}
	go func() {
		defer close(p.results)
		for dec := gob.NewDecoder(out); ; {
			var r Result
			if dec.Decode(&r) != nil {
				return
			}
			p.results <- r
		}
	}()
	return p, nil
}

// do makes a call.
func (p *proc) do(o Op) (Result, error) {
	start := time.Now()
	if err := p.enc.Encode(o); err != nil {
		return Result{}, fmt.Errorf("child: %w", err)
	}
	limit := time.NewTimer(callLimit)
	defer limit.Stop()
	select {
	case r, ok := <-p.results:
		if !ok {
			return r, errors.New("the child died")
		}
		if d := time.Since(start); d > p.longest {
			p.longest, p.slowest = d, o
		}
		return r, nil
	case <-limit.C:
		return Result{}, fmt.Errorf("%v: %w", o, errHangs)
	}
}

// end kills the child.
func (p *proc) end() {
	_ = p.cmd.Process.Kill()
	go func() {
		for range p.results { // its last answer
		}
	}()
	_ = p.cmd.Wait()
}

// pair is a process on the mount and its twin on the model.
type pair struct{ real, model *proc }

func startPair() (pair, error) {
	r, err := startProc()
	if err != nil {
		return pair{}, err
	}
	m, err := startProc()
	if err != nil {
		r.end()
		return pair{}, err
	}
	return pair{r, m}, nil
}

func (p pair) end() {
	p.real.end()
	p.model.end()
}

// place closes everything and lets paths begin anew.
func (p pair) place(real, model string) error {
	for _, x := range []struct {
		p    *proc
		root string
	}{{p.real, real}, {p.model, model}} {
		if _, err := x.p.do(Op{Kind: "closeall"}); err != nil {
			return err
		}
		if _, err := x.p.do(Op{Kind: "root", Path: x.root}); err != nil {
			return err
		}
	}
	return nil
}

// do makes a call on both and returns both results. What the model leaves out is not made on the mount either.
func (p pair) do(o Op) (want, got Result, err error) {
	if want, err = p.model.do(o); err != nil {
		return want, got, fmt.Errorf("model: %w", err)
	}
	if want.Skip {
		return want, want, nil
	}
	shared := o.Shared
	o.Shared = false // the model has decided
	got, err = p.real.do(o)
	if shared && usesSlot[o.Kind] && want.Attr == nil {
		got.Attr = nil
	}
	return want, got, err
}
