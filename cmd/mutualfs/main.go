// Command mutualfs pools the disks of machines that trust each other into one folder.
//
// This package has the command line, the configuration and the wiring of the rooms; it has no
// algorithms. Exit codes: 0 done, 1 failed (the reason is on standard error; for wait: the time was up;
// for ring --check: a route failed; for scrub: damage that could not be repaired),
// 2 wrong usage.
//
// One file a command; peer.go wires the rooms; control.go is the socket between a running
// peer and the other commands.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the build.
var version = "devel"

// exitError carries an exit code; its text, if any, has been printed.
type exitError struct{ code int }

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// usageError is a wrong command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func main() {
	// A second signal ends the program at once.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, asMountHelper(os.Args)))
}

func run(ctx context.Context, args []string) int {
	root := newRootCommand()
	root.SetArgs(args[1:])
	err := root.ExecuteContext(ctx)
	var code exitError
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return code.code
	case errors.As(err, &usage):
		fmt.Fprintf(os.Stderr, "mutualfs: %s\nTry 'mutualfs help'.\n", oneLine(err.Error()))
		return 2
	}
	fmt.Fprintf(os.Stderr, "mutualfs: %s\n", oneLine(err.Error()))
	return 1
}

// oneLine puts joined errors on one line.
func oneLine(s string) string { return strings.ReplaceAll(strings.TrimSpace(s), "\n", "; ") }

// asMountHelper turns the call of mount(8) through a mount.mutualfs link, "mount.mutualfs DIR MOUNTPOINT -o opts",
// into "mutualfs mount --data DIR MOUNTPOINT -o opts", so that /etc/fstab works.
func asMountHelper(args []string) []string {
	if !strings.HasPrefix(filepath.Base(args[0]), "mount.") {
		return args
	}
	out := []string{"mutualfs", "mount"}
	var names []string
	for i := 1; i < len(args); i++ {
		switch a := args[i]; {
		case a == "-o" && i+1 < len(args):
			out = append(out, "-o", args[i+1])
			i++
		case strings.HasPrefix(a, "-"): // -n -v -s: nothing to us
		default:
			names = append(names, a)
		}
	}
	if len(names) > 1 {
		if names[0] != "mutualfs" && names[0] != "none" {
			out = append(out, "--data", names[0])
		}
		names = names[1:]
	}
	return append(out, names...)
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "mutualfs",
		Short:         "One folder over the disks of machines that trust each other",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(
		newMountCommand(), newUnmountCommand(), newInitCommand(), newInviteCommand(), newJoinCommand(),
		newServeCommand(), newStatusCommand(), newWaitCommand(), newLocateCommand(), newRingCommand(),
		newScrubCommand(), newCheckCommand(), newVersionCommand(),
	)
	for _, c := range append(root.Commands(), root) {
		if args := c.Args; args != nil {
			c.Args = func(cmd *cobra.Command, a []string) error {
				if err := args(cmd, a); err != nil {
					return usageError{fmt.Errorf("%s: %w", cmd.Name(), err)}
				}
				return nil
			}
		}
	}
	return root
}

// dataFlag adds --data.
func dataFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("data", defaultDataDir(), "directory of this peer's data")
}

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := version
			if info, ok := debug.ReadBuildInfo(); ok {
				v += " " + info.GoVersion
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "mutualfs", v)
			return err
		},
	}
}
