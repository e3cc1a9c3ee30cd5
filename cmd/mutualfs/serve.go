package main

import (
	"context"
	"io"
	"os"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func newServeCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "serve", Short: "Run a peer without a mount, in the foreground", Args: cobra.NoArgs}
	data := dataFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		d, err := openDataDir(*data)
		if err != nil {
			return err
		}
		log := newLogger(os.Stderr, d.config.LogLevel)
		p, err := newPeer(d, log, false)
		if err != nil {
			return err
		}
		log.Info().Str("data", d.path).Str("listen", d.config.Listen).Str("ring", d.ring.Ring.Short()).
			Str("capacity", d.config.Capacity.String()).Msg("serving")
		return p.Run(cmd.Context(), func(ctx context.Context) error {
			<-ctx.Done()
			return nil
		})
	}
	return cmd
}

// newLogger writes for people on a terminal, JSON lines elsewhere.
func newLogger(out *os.File, level string) zerolog.Logger {
	var w io.Writer = out
	if term.IsTerminal(int(out.Fd())) {
		w = zerolog.ConsoleWriter{Out: out, TimeFormat: time.TimeOnly}
	}
	l, err := zerolog.ParseLevel(level)
	if err != nil {
		l = zerolog.InfoLevel
	}
	return zerolog.New(w).Level(l).With().Timestamp().Logger()
}
