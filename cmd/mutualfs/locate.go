package main

import (
	"fmt"
	"io"
	"net/url"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

func newLocateCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "locate PATH", Short: "Show where the blocks of a file lie", Args: cobra.ExactArgs(1)}
	data := dataFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var r locateReport
		query := url.Values{"path": {absolute(args[0])}}
		if err := newControlClient(*data).get(cmd.Context(), "GET", "/locate", query, &r); err != nil {
			return err
		}
		if *asJSON {
			return printJSON(cmd.OutOrStdout(), r)
		}
		return printLocate(cmd.OutOrStdout(), r)
	}
	return cmd
}

func printLocate(out io.Writer, r locateReport) error {
	fmt.Fprintf(out, "%s: %d bytes", r.Path, r.Size)
	if r.Inline > 0 {
		fmt.Fprintf(out, ", kept in its directory's register")
	}
	fmt.Fprintln(out)
	for _, s := range r.Stripes {
		fmt.Fprintf(out, "\nbytes %d-%d: stripe %s from byte %d, %d+%d shards\n", s.Offset, s.Offset+s.Length-1, s.Stripe, s.At, s.K, s.M)
		w := tabwriter.NewWriter(out, 2, 0, 2, ' ', 0)
		fmt.Fprintln(w, "  SHARD\tVNODE\tPEER\tADDRESS\tDISK\tOFFSET\tLENGTH\t")
		for _, h := range s.Shards {
			note := ""
			if !h.AtHome {
				note = "not at home"
			}
			fmt.Fprintf(w, "  %d\t%s\t%s\t%s\t%s\t%d\t%d\t%s\n", h.Index, h.Vnode.Short(), h.Peer.Short(), h.Address, h.Disk, h.Offset, h.Length, note)
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	return nil
}
