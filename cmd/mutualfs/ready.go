package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs"
	"github.com/mutualfs/mutualfs/fs/tree"
	"github.com/mutualfs/mutualfs/overlay"
)

// How often a mount asks for the root directory while the ring gathers; how often, meanwhile, a peer that is alone
// asks those that it was told of why they do not take it in, and how long that may take.
const (
	rootEvery = 200 * time.Millisecond
	askEvery  = 3 * time.Second
	askLimit  = 3 * time.Second
)

// awaitRoot waits until the root directory can be read: the peers that have it may be starting too. It waits no longer
// if the ring refuses this peer.
func (p *peer) awaitRoot(ctx context.Context, backend fs.Backend) error {
	tick, ask := time.NewTicker(rootEvery), time.NewTicker(askEvery)
	defer tick.Stop()
	defer ask.Stop()
	for {
		_, err := backend.Getattr(ctx, tree.RootIno)
		if err == nil || !errors.Is(err, blocks.ErrUnavailable) && !errors.Is(err, blocks.ErrDeadline) {
			return err
		}
		select {
		case <-ctx.Done():
			if why := p.whyAlone(); why != nil {
				return why
			}
			return err
		case <-ask.C:
			if why := p.whyAlone(); errors.Is(why, blocks.ErrRefused) {
				return why
			}
		case <-tick.C:
		}
	}
}

// whyAlone tries to enter the ring if no other peer is known to live, and returns why it cannot.
func (p *peer) whyAlone() error {
	for _, info := range p.ring.Table().Peers {
		if info.ID != p.ring.Self() && info.Live == overlay.Alive {
			return nil
		}
	}
	list := seeds(p.dir)
	if len(list) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	return p.ring.Join(ctx, list)
}

// notReady wraps why a mount did not come up in time.
func notReady(err error) error {
	return fmt.Errorf("the ring does not answer: %w (are enough of its peers running, and is this one of them?)", err)
}
