package main

import (
	"fmt"
	"io"
	"net/url"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/mutualfs/mutualfs/blocks"
)

func newRingCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "ring", Short: "Show the virtual nodes in ring order", Args: cobra.NoArgs}
	data := dataFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print JSON")
	check := cmd.Flags().Bool("check", false, "route a message from every virtual node to every other; exit code 1 if one fails")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		query := url.Values{}
		if *check {
			query.Set("check", "1")
		}
		var r ringReport
		if err := newControlClient(*data).get(cmd.Context(), "GET", "/ring", query, &r); err != nil {
			return err
		}
		var err error
		if *asJSON {
			err = printJSON(cmd.OutOrStdout(), r)
		} else {
			err = printRing(cmd.OutOrStdout(), r)
		}
		if err == nil && r.Check != nil && r.Check.Failures > 0 {
			return exitError{1}
		}
		return err
	}
	return cmd
}

func shortIDs(ids []blocks.VnodeID, most int) string {
	var s []string
	for i, id := range ids {
		if i == most {
			s = append(s, "…")
			break
		}
		s = append(s, id.Short())
	}
	return dash(strings.Join(s, " "))
}

func printRing(out io.Writer, r ringReport) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "VNODE\tPEER\tADDRESS\tPREDECESSOR\tSUCCESSORS\tFINGERS")
	for _, v := range r.Vnodes {
		if !v.Reachable {
			fmt.Fprintf(w, "%s\t%s/%d\t%s\tdoes not answer\t\t\n", v.ID.Short(), v.Peer.Short(), v.Index, v.Address)
			continue
		}
		pred := v.Predecessor
		if len(pred) > 8 {
			pred = pred[:8]
		}
		fmt.Fprintf(w, "%s\t%s/%d\t%s\t%s\t%s\t%s\n", v.ID.Short(), v.Peer.Short(), v.Index, v.Address, dash(pred), shortIDs(v.Successors, 3), shortIDs(v.Fingers, 6))
	}
	if err := w.Flush(); err != nil || r.Check == nil {
		return err
	}
	c := r.Check
	fmt.Fprintf(out, "\n%d routes, %d failures, %.2f hops on average, %d at most\n", c.Routes, c.Failures, c.MeanHops, c.MaxHops)
	for _, e := range c.Errors {
		fmt.Fprintln(out, "  "+e)
	}
	return nil
}
