package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/mutualfs/mutualfs/fs"
)

func newUnmountCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "unmount MOUNTPOINT", Aliases: []string{"umount"}, Short: "Unmount, and wait until all is stored", Args: cobra.ExactArgs(1),
	}
	timeout := cmd.Flags().Duration("timeout", 10*time.Minute, "how long to wait")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), *timeout)
		defer cancel()
		return unmount(ctx, absolute(args[0]))
	}
	return cmd
}

// unmount detaches the mount and waits until the process behind it has stored everything and ended. The
// mount table names the data directory, whose control socket names the process.
func unmount(ctx context.Context, path string) error {
	m, mounted, err := fs.FindMount(path)
	if err != nil {
		return err
	}
	if !mounted || m.Type != fsType {
		return fmt.Errorf("%s is not a mutualfs mount", path)
	}
	var process processInfo
	known := newControlClient(m.Source).get(ctx, "GET", "/process", nil, &process) == nil
	if err := fs.Unmount(path, false); err != nil {
		return err
	}
	if !known {
		return nil // a mount whose process was killed
	}
	if err := waitForExit(ctx, process.PID); err != nil {
		return fmt.Errorf("%s is detached, but process %d has not stored everything yet: %w", path, process.PID, err)
	}
	return nil
}

// processInfo is the answer of /process.
type processInfo struct {
	PID int `json:"pid"`
}

// waitForExit waits for the end of a process that need not be a child.
func waitForExit(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 200)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n > 0 {
			return nil
		}
	}
	return ctx.Err()
}
