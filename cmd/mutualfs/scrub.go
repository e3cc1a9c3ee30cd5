package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

func newScrubCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "scrub", Short: "Verify every block of this peer, and repair what is damaged", Args: cobra.NoArgs,
	}
	data := dataFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		b := newBar("scrub")
		var last scrubReport
		err := each(cmd.Context(), newControlClient(*data), "POST", "/scrub", nil, func(r scrubReport) {
			last = r
			b.set(r.Done, r.Total)
		})
		b.finish()
		if err != nil {
			return err
		}
		if !last.Finished {
			return errors.New("the scrub was cut off: " + dash(last.Error))
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%d blocks verified, %d damaged, %d stripes repaired, %d not yet\n", last.Done, last.Damaged, last.Repaired, last.Unrepaired)
		if last.Unrepaired > 0 {
			return exitError{1}
		}
		return nil
	}
	return cmd
}
