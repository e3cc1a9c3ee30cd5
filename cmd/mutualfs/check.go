package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/spf13/cobra"
)

func newCheckCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "check", Short: "Compare all names with all stripes, and say what does not fit", Args: cobra.NoArgs,
		Long: "Read all names, attributes and free lists of the volume and the lists of stripes of all peers, and say what does not fit: stripes that no file\n" +
			"needs or that are missing, wrong link counts, names of nothing, what has lost its name. Every mount stores what it has first.\nExit code 1 if something was found; with --repair, if something is left. Repairs are made through the mount of the peer that is asked.",
	}
	data := dataFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print JSON")
	repair := cmd.Flags().Bool("repair", false, "mend what is found: what has lost its name goes to lost+found, what nobody needs is deleted")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		b := newBar("check")
		var last checkLine
		query := url.Values{}
		if *repair {
			query.Set("repair", "1")
		}
		err := each(cmd.Context(), newControlClient(*data), "POST", "/check", query, func(l checkLine) {
			last = l
			b.set(l.Done, l.Total)
		})
		b.finish()
		if err != nil {
			return err
		}
		r := last.Report
		switch {
		case r == nil && last.Error != "":
			return errors.New("the check could not be made: " + oneLine(last.Error))
		case r == nil:
			return errors.New("the check was cut off: the peer ended")
		case *asJSON:
			err = printJSON(cmd.OutOrStdout(), r)
		default:
			err = printAudit(cmd.OutOrStdout(), r)
		}
		if err == nil && len(r.Findings) > 0 {
			return exitError{1}
		}
		return err
	}
	return cmd
}

func printAudit(out io.Writer, r *auditReport) error {
	for _, f := range r.Repaired {
		fmt.Fprintln(out, "repaired", f)
	}
	fmt.Fprintf(out, "%d registers, %d names, %d inodes, %d stripes: ", r.Registers, r.Names, r.Inodes, r.Stripes)
	if len(r.Findings) == 0 {
		fmt.Fprintln(out, "nothing is wrong")
	} else {
		fmt.Fprintf(out, "%d findings\n", len(r.Findings))
	}
	for _, f := range r.Findings {
		fmt.Fprintln(out, f)
	}
	if r.Busy {
		fmt.Fprintln(out, "the volume was changing all the time; what is listed was there at every look")
	}
	if r.Incomplete != "" {
		fmt.Fprintln(out, "not everything could be seen:", r.Incomplete)
	}
	if len(r.Doubtful) > 0 {
		fmt.Fprintf(out, "%d stripes, files or directories are named by nothing, but may be needed by a peer that could not be asked:\n", len(r.Doubtful))
	}
	for _, p := range r.Unsettled {
		fmt.Fprintf(out, "  peer %s: %s\n", p.Peer.Short(), oneLine(p.Reason))
	}
	return nil
}

// String is a line for people.
func (f findingReport) String() string {
	var at []string
	if f.Path != "" {
		at = append(at, fmt.Sprintf("%q", f.Path))
	}
	if f.Stripe != nil {
		at = append(at, "stripe "+f.Stripe.Short())
	}
	if f.Ino != 0 && f.Path == "" {
		at = append(at, fmt.Sprintf("inode %d", f.Ino))
	}
	if f.Register != nil && f.Path == "" {
		at = append(at, "container "+f.Register.Short())
	}
	line := fmt.Sprintf("%s: %s: %s", f.Kind, strings.Join(at, ", "), f.Detail)
	if f.Error != "" {
		line += "; not repaired: " + oneLine(f.Error)
	}
	return line
}
