package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// waitPoll is how often the peers are asked for wait.
const waitPoll = 500 * time.Millisecond

func newWaitCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "wait", Short: "Wait until everything is fully protected", Args: cobra.NoArgs,
		Long: "Wait until every stripe and every register is where it should be, on as many peers as the ring can give it, and nothing is left to hand off.\nExit code 1 when the time is up.",
	}
	data := dataFlag(cmd)
	timeout := cmd.Flags().Duration("timeout", 0, "how long to wait, as in 5m; 0 for ever")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx := cmd.Context()
		if *timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, *timeout)
			defer cancel()
		}
		last, err := waitProtected(ctx, newControlClient(*data))
		if errors.Is(err, context.DeadlineExceeded) {
			fmt.Fprintf(os.Stderr, "mutualfs: not fully protected after %s: %s\n", *timeout, last.outstanding())
			return exitError{1}
		}
		return err
	}
	return cmd
}

// settled reports whether nothing is left to do. Lost stripes do not count: no waiting brings them back.
func (s *statusReport) settled() bool {
	return s.Fresh && s.Stripes.Degraded+s.Registers.Degraded+s.Registers.Unavailable == 0 && s.Backlog == backlog{}
}

// outstanding says what is left to do.
func (s *statusReport) outstanding() string {
	if s.Health == "" {
		return "no answer from the peer"
	}
	return fmt.Sprintf("%d stripes and %d registers degraded, %d stripes and %d registers unavailable, %d shards to hand off",
		s.Stripes.Degraded, s.Registers.Degraded, s.Stripes.Away, s.Registers.Unavailable, s.Backlog.HandoffShards)
}

// waitProtected reads statuses until one is settled.
func waitProtected(ctx context.Context, c *controlClient) (last statusReport, err error) {
	bar := newBar("protected")
	watching, stop := context.WithCancel(ctx)
	defer stop()
	err = each(watching, c, "POST", "/wait", nil, func(s statusReport) {
		last = s
		bar.set(s.Stripes.Protected+s.Registers.Protected, s.Stripes.total()+s.Registers.total())
		if s.settled() {
			bar.finish()
			stop()
		}
	})
	switch {
	case last.settled():
		return last, nil
	case ctx.Err() != nil:
		return last, ctx.Err()
	case err == nil:
		err = errors.New("the peer ended")
	}
	return last, err
}

// bar is a progress bar on a terminal, nothing elsewhere.
type bar struct{ p *progressbar.ProgressBar }

func newBar(what string) bar {
	if !term.IsTerminal(int(os.Stderr.Fd())) {
		return bar{}
	}
	return bar{progressbar.NewOptions64(1, progressbar.OptionSetDescription(what), progressbar.OptionSetWriter(os.Stderr),
		progressbar.OptionShowCount(), progressbar.OptionSetPredictTime(false), progressbar.OptionClearOnFinish())}
}

func (b bar) set(done, total uint64) {
	if b.p != nil && total > 0 {
		b.p.ChangeMax64(int64(total))
		_ = b.p.Set64(int64(min(done, total-1))) // the last step is finish's
	}
}

func (b bar) finish() {
	if b.p != nil {
		_ = b.p.Finish()
	}
}
