package register

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/overlay"
)

// Bounds of a listing.
const (
	listPage = 4096 // registers of one answer
	maxPages = 1 << 12
	maxAgeMS = 1 << 40 // of what a peer says
)

// ReadAgreed returns a register's newest agreed state like Read, but leaves the lease of another mount where it
// is: what that mount has answered and not committed yet is not in it.
func (s *Service) ReadAgreed(ctx context.Context, id blocks.RegisterID, since blocks.Version) (blocks.Register, error) {
	st, p, err := s.readOnce(ctx, id, since, 0)
	if err != nil {
		return blocks.Register{}, err
	}
	if st.Deleted {
		return blocks.Register{}, fmt.Errorf("read register %s: %w: it was deleted", id.Short(), blocks.ErrNotFound)
	}
	return st.register(id, since, p), nil
}

// List calls each for every register that some storage peer has and does not know to be deleted, with how long, at
// least, it has been there. A deleted one may be among them: a peer may not have heard of it. The error is of class
// ErrUnavailable if a storage peer that counts did not answer: the list has what the others said.
func (s *Service) List(ctx context.Context, each func(id blocks.RegisterID, age time.Duration)) error {
	ages := map[blocks.RegisterID]time.Duration{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	var errs []error
	for _, p := range s.storagePeers() {
		wg.Go(func() {
			err := s.listOf(ctx, p, func(id blocks.RegisterID, age time.Duration) {
				mu.Lock()
				defer mu.Unlock()
				ages[id] = max(ages[id], age)
			})
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("%w: list the registers of peer %s: %w", blocks.ErrUnavailable, p.Short(), err))
			}
		})
	}
	wg.Wait()
	for id, age := range ages {
		each(id, age)
	}
	return errors.Join(errs...)
}

// listOf reads all pages of one peer.
func (s *Service) listOf(ctx context.Context, p blocks.PeerID, each func(blocks.RegisterID, time.Duration)) error {
	var from blocks.ID
	for range maxPages {
		var e blocks.Encoder
		e.ID(from)
		resp, err := s.call(ctx, p, overlay.Metadata, overlay.Call{Kind: kindList, Body: e.Buf}, s.cfg.CallTry)
		if err != nil {
			return err
		}
		d := blocks.NewDecoder(resp.Body)
		more, next := d.Bool(), d.ID()
		for range d.Count(blocks.IDSize + 1) {
			id, ms := blocks.RegisterID{ID: d.ID()}, d.Uint()
			each(id, time.Duration(min(ms, maxAgeMS))*time.Millisecond)
		}
		if err := d.Done(); err != nil {
			return err
		}
		if !more {
			return nil
		}
		if next.Compare(from) <= 0 {
			return fmt.Errorf("%w: a page of registers that leads nowhere", blocks.ErrCorrupt)
		}
		from = next
	}
	return fmt.Errorf("%w: more than %d pages of registers", blocks.ErrNoSpace, maxPages)
}

// serveList lists this peer's registers from an ID on, one page: whether there are more, where to go on,
// and the IDs with their ages in milliseconds.
func (s *Service) serveList(_ context.Context, _ blocks.PeerID, req overlay.Call) (overlay.Call, error) {
	d := blocks.NewDecoder(req.Body)
	from := d.ID()
	if err := d.Done(); err != nil {
		return overlay.Call{}, err
	}
	var ids []blocks.RegisterID
	var next blocks.ID
	var bad error
	for b := int(from[0]); b < 256 && next.IsZero() && bad == nil; b++ {
		err := s.acc.kv.Scan([]byte{keyRecord, byte(b)}, func(key, value []byte) bool {
			if len(key) != 1+blocks.IDSize {
				return true
			}
			id := blocks.RegisterID{ID: blocks.ID(key[1:])}
			if id.Compare(from) < 0 {
				return true
			}
			if len(ids) == listPage {
				next = id.ID
				return false
			}
			r, err := decodeRecord(value)
			if err != nil {
				bad = fmt.Errorf("register %s: %w", id.Short(), err)
				return false
			}
			if !r.Forgotten && r.State.Tag != (tag{}) && !r.State.Deleted {
				ids = append(ids, id)
			}
			return true
		})
		if err != nil {
			return overlay.Call{}, fmt.Errorf("list the registers: %w", err)
		}
	}
	if bad != nil {
		return overlay.Call{}, bad
	}
	var e blocks.Encoder
	e.Bool(!next.IsZero())
	e.ID(next)
	e.Uint(uint64(len(ids)))
	for _, id := range ids {
		e.ID(id.ID)
		e.Uint(uint64(s.ages.Age(id.ID).Milliseconds()))
	}
	return overlay.Call{Body: e.Buf}, nil
}
