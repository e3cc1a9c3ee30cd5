package tree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// sections are calls under way that make registers which nothing names until they end.
type sections struct {
	mu   sync.Mutex
	open map[chan struct{}]struct{}
}

// enter begins a section; the caller ends it.
func (s *sections) enter() (leave func()) {
	ch := make(chan struct{})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = map[chan struct{}]struct{}{}
	}
	s.open[ch] = struct{}{}
	return func() {
		s.mu.Lock()
		delete(s.open, ch)
		s.mu.Unlock()
		close(ch)
	}
}

// wait returns when all sections have ended that were open when it was called.
func (s *sections) wait(ctx context.Context) error {
	s.mu.Lock()
	var all []chan struct{}
	for ch := range s.open {
		all = append(all, ch)
	}
	s.mu.Unlock()
	for _, ch := range all {
		select {
		case <-ch:
		case <-ctx.Done():
			return fmt.Errorf("a call is under way: %w", ctx.Err())
		}
	}
	return nil
}

// Settle is Sync that also waits for the calls under way that make registers before something names them. When it returns,
// whatever register was there before and is not named will not be named by this mount. What is dirty in
// files is not committed by it: content's Sync comes first.
func (t *Tree) Settle(ctx context.Context) error {
	if err := t.awaitReady(ctx); err != nil {
		return err
	}
	if err := t.making.wait(ctx); err != nil {
		return err
	}
	t.emptyTrash(ctx)
	return t.Sync(ctx)
}

// JournalHolds reports whether a journal's directory, that no mount uses, has records: a mount was killed, and has not
// been started again since.
func JournalHolds(dir string) (bool, error) {
	names, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the journal's directory: %w", err)
	}
	for _, n := range names {
		if filepath.Ext(n.Name()) != ".seg" {
			continue
		}
		info, err := n.Info()
		if err != nil {
			return false, fmt.Errorf("journal file %s: %w", n.Name(), err)
		}
		if info.Size() > segmentHeader {
			return true, nil
		}
	}
	return false, nil
}
