package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func newJoinCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "join", Short: "Join a ring with a token from standard input", Args: cobra.NoArgs,
		Example: "  mutualfs invite --data A | mutualfs join --data B",
	}
	data := dataFlag(cmd)
	shape := addShapeFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if term.IsTerminal(int(os.Stdin.Fd())) {
			fmt.Fprintln(os.Stderr, "Paste the token that mutualfs invite printed, then Enter and Ctrl-D:")
		}
		text, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), maxToken))
		if err != nil {
			return err
		}
		if len(text) == 0 {
			return errors.New("no token on standard input: mutualfs invite --data A | mutualfs join --data B")
		}
		t, err := parseToken(string(text))
		if err != nil {
			return err
		}
		path, err := filepath.Abs(*data)
		if err != nil {
			return err
		}
		d := &dataDir{path: path, ring: t.Ring, secret: t.Secret, volumeKey: t.VolumeKey}
		if d.config, err = shape.config(path, t.Ring.Bootstrap); err != nil {
			return err
		}
		if err := createDataDir(d); err != nil {
			return err
		}
		next := "mutualfs serve --data " + path
		if d.volumeKey != nil {
			next += ", or mutualfs mount --data " + path + " MOUNTPOINT"
		}
		fmt.Fprintf(cmd.OutOrStdout(), "Joined ring %s in %s: %s of capacity, listening on %s.\nNext: %s\n",
			d.ring.Ring.Short(), path, d.config.Capacity.Human(), d.config.Listen, next)
		return nil
	}
	return cmd
}
