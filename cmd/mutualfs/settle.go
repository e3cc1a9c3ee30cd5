package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/audit"
	"github.com/mutualfs/mutualfs/fs/tree"
	"github.com/mutualfs/mutualfs/overlay"
)

// kindSettle asks a peer to finish what is under way: see audit.Peer. The body is empty; the answer is one byte, 1 if it
// is mounted, or an error.
const kindSettle overlay.Kind = 0x0604

// settleLimit bounds how long a mount may take to store what it has.
const settleLimit = 2 * time.Minute

// errJournal says that a killed mount may need what nobody names.
var errJournal = errors.New("its journal holds what a mount that was killed had not stored: mount it once more")

// settle has this peer's mount store what it has.
func (p *peer) settle(ctx context.Context) (mounted bool, err error) {
	if v := p.opened.Load(); v != nil {
		return true, errors.Join(v.files.Sync(ctx), v.tree.Settle(ctx))
	}
	holds, err := tree.JournalHolds(p.dir.file("journal"))
	if err == nil && holds {
		err = fmt.Errorf("%w: %w", blocks.ErrBusy, errJournal)
	}
	return false, err
}

func (p *peer) serveSettle(ctx context.Context, _ blocks.PeerID, req overlay.Call) (overlay.Call, error) {
	if err := blocks.NewDecoder(req.Body).Done(); err != nil {
		return overlay.Call{}, err
	}
	mounted, err := p.settle(ctx)
	if err != nil {
		return overlay.Call{}, err
	}
	var e blocks.Encoder
	e.Bool(mounted)
	return overlay.Call{Body: e.Buf}, nil
}

// settleAll asks all peers that the ring has ever had, but those that have left it.
func (p *peer) settleAll(ctx context.Context) ([]audit.Peer, error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	var all []audit.Peer
	for id, info := range p.ring.Table().Peers {
		if info.Live == overlay.Left {
			continue
		}
		wg.Go(func() {
			x := audit.Peer{ID: id}
			if info.Live.Reachable() {
				x.Mounted, x.Err = p.settlePeer(ctx, id)
			} else {
				x.Err = fmt.Errorf("%w: it is %s", blocks.ErrUnavailable, info.Live)
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, x)
		})
	}
	wg.Wait()
	slices.SortFunc(all, func(a, b audit.Peer) int { return a.ID.Compare(b.ID.ID) })
	return all, context.Cause(ctx)
}

func (p *peer) settlePeer(ctx context.Context, id blocks.PeerID) (mounted bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	resp, err := p.ring.Call(ctx, id, overlay.Metadata, overlay.Call{Kind: kindSettle})
	if err != nil {
		return false, err
	}
	d := blocks.NewDecoder(resp.Body)
	mounted = d.Bool()
	return mounted, d.Done()
}
