package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

func newStatusCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "status", Short: "Show the peers, and how well the data is protected", Args: cobra.NoArgs}
	data := dataFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var s statusReport
		if err := newControlClient(*data).get(cmd.Context(), "GET", "/status", nil, &s); err != nil {
			return err
		}
		if *asJSON {
			return printJSON(cmd.OutOrStdout(), s)
		}
		return printStatus(cmd.OutOrStdout(), s)
	}
	return cmd
}

func printStatus(out io.Writer, s statusReport) error {
	fmt.Fprintf(out, "ring %s: %s; made to tolerate the loss of %d peers, %d more may fail right now\n\n", s.Ring.Short(), s.Health, s.Tolerate, s.MayFail)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PEER\tADDRESS\tZONE\tCAPACITY\tUSED\tVNODES\tSTATE\tSINCE")
	for _, p := range s.Peers {
		name := p.ID.Short()
		if p.ID == s.Peer {
			name += " *"
		}
		capacity, used := Size(p.Capacity).Human(), Size(p.Used).Human()
		if p.Capacity == 0 {
			capacity, used = "client", "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", name, p.Address, dash(p.Zone), capacity, used, p.Vnodes, p.State, p.Since.Local().Format(time.DateTime))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	printCounts(out, s)
	fmt.Fprintf(out, "backlog    %d shards (%s) to hand off, %d shards to rebuild, %d registers to bring up to date\n",
		s.Backlog.HandoffShards, Size(s.Backlog.HandoffBytes).Human(), s.Backlog.Repair, s.Backlog.Registers)
	if s.Mount != nil {
		fmt.Fprintf(out, "mount      %s, %s not yet stored\n", s.Mount.Mountpoint, Size(s.Mount.Dirty).Human())
		if s.Mount.Errors != "" {
			fmt.Fprintf(out, "           last error: %s\n", oneLine(s.Mount.Errors))
		}
	}
	return nil
}

func printCounts(out io.Writer, s statusReport) {
	st := s.Stripes
	fmt.Fprintf(out, "\nstripes    %d fully protected, %d degraded, %d lost\n", st.Protected, st.Degraded, st.Lost)
	if st.Away > 0 {
		fmt.Fprintf(out, "           %d of the degraded cannot be read until peers return\n", st.Away)
	}
	if st.Settling > 0 {
		fmt.Fprintf(out, "           %d of the degraded are just being written\n", st.Settling)
	}
	if st.Lost > 0 {
		fmt.Fprintf(out, "           of the lost too few shards are left, or were ever written: a writer that was killed leaves such stripes, which no file needs\n")
	}
	switch {
	case !s.Fresh:
		fmt.Fprintln(out, "           being counted anew: the ring has just changed")
	case s.Counted != nil:
		fmt.Fprintf(out, "           as counted %s ago\n", time.Since(*s.Counted).Round(time.Second))
	}
	r := s.Registers
	fmt.Fprintf(out, "registers  %d fully protected, %d degraded, %d unavailable\n", r.Protected, r.Degraded, r.Unavailable)
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
