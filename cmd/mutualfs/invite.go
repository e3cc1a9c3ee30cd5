package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"

	"github.com/spf13/cobra"
)

// maxBootstrap bounds how many addresses a token carries.
const maxBootstrap = 8

func newInviteCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "invite", Short: "Print a token with which another peer can join the ring", Args: cobra.NoArgs,
		Long: "Print one token, to be given to mutualfs join on its standard input. It opens the ring: keep it as secret as the data.",
	}
	data := dataFlag(cmd)
	storageOnly := cmd.Flags().Bool("storage-only", false, "without the key to names and content: the new peer can store, and not mount")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		d, err := openDataDir(*data)
		if err != nil {
			return err
		}
		t := token{Ring: d.ring, Secret: d.secret}
		t.Ring.MakeRoot = false
		t.Ring.Bootstrap = bootstrapAddresses(cmd.Context(), d)
		if !*storageOnly {
			if d.volumeKey == nil {
				return fmt.Errorf("%s has no volume key, so it can invite with --storage-only alone", d.path)
			}
			t.VolumeKey = d.volumeKey
		}
		if host, _, err := net.SplitHostPort(d.config.AdvertiseAddr()); err == nil && net.ParseIP(host).IsLoopback() {
			fmt.Fprintf(os.Stderr, "Note: this peer listens on %s, which other machines cannot reach; set listen in %s for that.\n", d.config.AdvertiseAddr(), d.file("config.toml"))
		}
		text, err := t.String()
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), text)
		return err
	}
	return cmd
}

// bootstrapAddresses are this peer's address, those of the storing peers that it knows, and those that it joined by.
func bootstrapAddresses(ctx context.Context, d *dataDir) []string {
	addrs := []string{d.config.AdvertiseAddr()}
	var status statusReport // only a running peer knows the others
	if newControlClient(d.path).get(ctx, "GET", "/status", nil, &status) == nil {
		for _, p := range status.Peers {
			if p.Capacity > 0 {
				addrs = append(addrs, p.Address)
			}
		}
	}
	addrs = append(addrs, d.ring.Bootstrap...)
	seen := map[string]bool{}
	addrs = slices.DeleteFunc(addrs, func(a string) bool {
		drop := a == "" || seen[a]
		seen[a] = true
		return drop
	})
	return addrs[:min(len(addrs), maxBootstrap)]
}
