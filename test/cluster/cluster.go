// Package cluster runs real peers and real mounts on loopback addresses for the end-to-end tests:
// processes of the built program, killed with SIGKILL, stopped and started again. Everything it starts
// it ends, by process ID, also when a test fails.
package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Binary is the program under test; TestMain builds it.
var Binary string

// Build compiles the program into dir.
func Build(dir string) error {
	Binary = filepath.Join(dir, "mutualfs")
	cmd := exec.Command("go", "build", "-o", Binary, "github.com/mutualfs/mutualfs/cmd/mutualfs")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %v\n%s", err, out)
	}
	return nil
}

// Peer is one data directory and, while it runs, its process.
type Peer struct {
	t    testing.TB
	Name string
	Dir  string
	Addr string
	Mnt  string // mount point, "" for a peer without a mount
	Prog string // program to run, "" for Binary

	ring *ring

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
}

// Options of a ring or a peer.
type Options struct {
	Capacity string            // default 4GiB
	Config   map[string]string // keys of config.toml to replace, values as they stand in TOML
	Args     []string          // more arguments for init or join
}

// Ports of peers lie below those that the kernel gives to connections: one of these could get a port between our look and the
// peer's start, or while the peer is down. Each process of tests draws from a lane of its own, each port once, so that
// none gets a port whose peer is down only for a while.
const (
	firstPort = 10000
	lanes     = 16
	laneWidth = 1400
)

var (
	portMu sync.Mutex
	lane   net.Listener // its first port, kept while the process lives
	drawn  = map[int]bool{}
)

// freeAddr returns an address of the loopback interface that nobody uses now.
func freeAddr(t testing.TB) string {
	t.Helper()
	portMu.Lock()
	defer portMu.Unlock()
	address := func(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
	for i := 0; i < lanes && lane == nil; i++ {
		lane, _ = net.Listen("tcp", address(firstPort+i*laneWidth)) // taken: by another process of tests, probably
	}
	if lane == nil {
		t.Fatal("no lane of ports is free")
	}
	first := lane.Addr().(*net.TCPAddr).Port + 1
	for len(drawn) < laneWidth-1 {
		port := first + rand.IntN(laneWidth-1)
		if drawn[port] {
			continue
		}
		drawn[port] = true
		if l, err := net.Listen("tcp", address(port)); err == nil {
			l.Close()
			return address(port)
		}
	}
	t.Fatal("no port is free")
	return ""
}

// Run runs the program to its end and returns its standard output; a failure ends the test.
func Run(t testing.TB, stdin string, args ...string) string {
	t.Helper()
	out, err := TryRun(stdin, args...)
	if err != nil {
		t.Fatalf("mutualfs %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// runLimit bounds every command of a test.
const runLimit = 5 * time.Minute

// TryRun is Run that returns the error, with what was printed on standard error.
func TryRun(stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), runLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, Binary, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%w: %s", err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

func newPeer(t testing.TB, name string, r *ring) *Peer {
	t.Helper()
	p := &Peer{t: t, Name: name, Dir: filepath.Join(t.TempDir(), name), Addr: freeAddr(t), ring: r}
	r.add(p)
	return p
}

func (p *Peer) shape(opt Options) []string {
	capacity := opt.Capacity
	if capacity == "" {
		capacity = "4GiB"
	}
	return append([]string{"--data", p.Dir, "--listen", p.Addr, "--capacity", capacity}, opt.Args...)
}

// Init makes a ring with its first peer.
func Init(t testing.TB, opt Options) *Peer {
	t.Helper()
	p := newPeer(t, "peer0", &ring{})
	Run(t, "", append([]string{"init"}, p.shape(opt)...)...)
	p.configure(opt)
	return p
}

// Join makes a further peer of the ring.
func (first *Peer) Join(t testing.TB, name string, opt Options) *Peer {
	t.Helper()
	token := Run(t, "", "invite", "--data", first.Dir)
	p := newPeer(t, name, first.ring)
	Run(t, token, append([]string{"join"}, p.shape(opt)...)...)
	p.configure(opt)
	return p
}

func (p *Peer) configure(opt Options) {
	p.t.Helper()
	path := filepath.Join(p.Dir, "config.toml")
	text, err := os.ReadFile(path)
	if err != nil {
		p.t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	for key, value := range opt.Config {
		found := false
		for i, l := range lines {
			if strings.HasPrefix(l, key+" =") {
				lines[i], found = key+" = "+value, true
			}
		}
		if !found {
			p.t.Fatalf("config.toml has no key %s", key)
		}
	}
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// Start runs the peer: with a mount if Mnt is set. It returns when the peer answers.
func (p *Peer) Start() {
	p.t.Helper()
	if err := p.TryStart(); err != nil {
		p.t.Fatalf("start %s: %v\n%s", p.Name, err, p.LogTail())
	}
}

// startLimit bounds how long a peer may take to answer.
const startLimit = 60 * time.Second

// TryStart is Start that returns the error.
func (p *Peer) TryStart() error {
	args := []string{"serve", "--data", p.Dir}
	if p.Mnt != "" {
		// The mount of a killed process is there already, and answers nothing.
		if err := os.Mkdir(p.Mnt, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		args = []string{"mount", "--data", p.Dir, "-f", p.Mnt}
	}
	log, err := os.OpenFile(p.Dir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	prog := p.Prog
	if prog == "" {
		prog = Binary
	}
	cmd := exec.Command(prog, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		log.Close()
		return err
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		log.Close()
		close(done)
	}()
	p.mu.Lock()
	p.cmd, p.done = cmd, done
	p.mu.Unlock()
	p.t.Cleanup(func() { p.cleanup() })
	return poll(startLimit, func() error {
		select {
		case <-done:
			return fatalError{fmt.Errorf("the process ended: %s", cmd.ProcessState)}
		default:
		}
		s, err := p.status()
		if err == nil && p.Mnt != "" && (s.Mount == nil || s.Mount.Mountpoint != p.Mnt) {
			return errors.New("not mounted yet")
		}
		return err
	})
}

// cleanup ends the process and detaches its mount.
func (p *Peer) cleanup() {
	p.ring.once.Do(func() { p.ring.audit(p.t) })
	if p.t.Failed() && p.Mnt != "" {
		p.t.Log(p.LogTail())
	}
	p.mu.Lock()
	cmd, done := p.cmd, p.done
	p.mu.Unlock()
	select {
	case <-done:
	default:
		_ = cmd.Process.Kill()
		<-done
	}
	p.detach()
}

func (p *Peer) detach() {
	if p.Mnt != "" {
		_ = exec.Command("fusermount3", "-uz", p.Mnt).Run()
	}
}

// Kill ends the process at once (SIGKILL), as a crash would.
func (p *Peer) Kill() {
	p.t.Helper()
	p.mu.Lock()
	cmd, done := p.cmd, p.done
	p.mu.Unlock()
	p.ring.mu.Lock()
	p.ring.killed = true
	p.ring.mu.Unlock()
	_ = cmd.Process.Kill()
	<-done
}

// Signal sends a signal to the process.
func (p *Peer) Signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatalf("signal %s: %v", p.Name, err)
	}
}

// Stop ends the process in an orderly way and waits.
func (p *Peer) Stop() {
	p.t.Helper()
	p.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(runLimit):
		p.t.Fatalf("%s did not end after SIGTERM\n%s", p.Name, p.LogTail())
	}
}

// Unmount unmounts with the program and waits for the process.
func (p *Peer) Unmount() {
	p.t.Helper()
	Run(p.t, "", "unmount", p.Mnt)
	<-p.done
}

// started reports whether the peer has had a process.
func (p *Peer) started() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done != nil
}

// Running reports whether the process lives.
func (p *Peer) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// LogTail is the end of the peer's log.
func (p *Peer) LogTail() string {
	text, err := os.ReadFile(p.Dir + ".log")
	if err != nil {
		return err.Error()
	}
	if len(text) > 8<<10 {
		text = text[len(text)-8<<10:]
	}
	return p.Name + ":\n" + string(text)
}

// Counts are those of status.
type Counts struct{ Protected, Degraded, Away, Settling, Lost, Unavailable uint64 }

// Status is what status --json prints, as far as the tests look at it.
type Status struct {
	Peers []struct {
		ID, Address, State string
		Capacity, Used     uint64
	}
	Tolerate           int
	MayFail            int `json:"may_fail"`
	Stripes, Registers Counts
	Fresh              bool
	Health             string
	Mount              *struct{ Mountpoint string }
}

func (p *Peer) status() (Status, error) {
	var s Status
	out, err := TryRun("", "status", "--json", "--data", p.Dir)
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal([]byte(out), &s)
}

// Status asks the peer.
func (p *Peer) Status() Status {
	p.t.Helper()
	s, err := p.status()
	if err != nil {
		p.t.Fatalf("status of %s: %v\n%s", p.Name, err, p.LogTail())
	}
	return s
}

// Gathered waits until n storage peers are alive.
func (p *Peer) Gathered(n int) {
	p.t.Helper()
	Eventually(p.t, startLimit, func() error {
		alive := 0
		for _, info := range p.Status().Peers {
			if info.Capacity > 0 && info.State == "alive" {
				alive++
			}
		}
		if alive != n {
			return fmt.Errorf("%d storage peers are alive, want %d", alive, n)
		}
		return nil
	})
}

// Wait runs mutualfs wait.
func (p *Peer) Wait(limit time.Duration) {
	p.t.Helper()
	if _, err := TryRun("", "wait", "--data", p.Dir, "--timeout", limit.String()); err != nil {
		out, _ := TryRun("", "status", "--data", p.Dir)
		p.t.Fatalf("wait: %v\n%s\n%s", err, out, p.LogTail())
	}
}

// fatalError ends a poll.
type fatalError struct{ error }

func (e fatalError) Unwrap() error { return e.error }

// pollEvery is how often a condition is looked at.
const pollEvery = 100 * time.Millisecond

// poll calls f until it returns nil or the time is up.
func poll(limit time.Duration, f func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := f()
		var fatal fatalError
		if err == nil || errors.As(err, &fatal) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(pollEvery)
	}
}

// Eventually fails the test if f still returns an error after limit.
func Eventually(t testing.TB, limit time.Duration, f func() error) {
	t.Helper()
	if err := poll(limit, f); err != nil {
		t.Fatalf("after %v: %v", limit, err)
	}
}
