package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// A mount goes to the background by starting itself once more with -f in a session of its own. The
// child tells over an inherited pipe that the mount answers ("ok"), or what went wrong; its log goes to the
// data directory.

// readyEnv names the file descriptor of the pipe in the child's environment.
const readyEnv = "MUTUALFS_READY_FD"

// spawnBackground runs the same command line with -f and waits until it is ready. It returns the child's error.
func spawnBackground(ctx context.Context, args []string, logPath string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(self, args...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{w}
	cmd.Env = append(os.Environ(), readyEnv+"=3")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	text, err := io.ReadAll(bufio.NewReader(r))
	if err != nil {
		return err
	}
	line := strings.TrimSpace(string(text))
	switch {
	case line == "ok":
		return cmd.Process.Release()
	case line == "":
		err := cmd.Wait()
		return fmt.Errorf("the mount process ended before it was ready (%v): see %s", err, logPath)
	}
	_ = cmd.Wait()
	return errors.New(line)
}

// reportReady tells the parent, if there is one, how the start went. Once.
func reportReady(result error) {
	if os.Getenv(readyEnv) != "3" {
		return
	}
	os.Unsetenv(readyEnv)
	pipe := os.NewFile(3, "ready")
	defer pipe.Close()
	if result == nil {
		fmt.Fprintln(pipe, "ok")
	} else {
		fmt.Fprintln(pipe, oneLine(result.Error()))
	}
}
