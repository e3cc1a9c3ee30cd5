// Package index keeps the index of a drive in pebble.
//
// It must know: pebble, keys and values as bytes. It must not know: what they mean.
// pebble's own goroutines begin with Open and end with Close.
package index

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/rs/zerolog"

	"github.com/mutualfs/mutualfs/blocks"
)

// The sizes are small because many peers may run on one machine.
const (
	cacheSize    = 8 << 20
	memTableSize = 2 << 20
	openFiles    = 64
	bloomBits    = 10
)

// format is fixed, so that a new pebble does not silently make directories that
// an older mutualfs cannot read.
const format = pebble.FormatTableFormatV6

// Pebble opens indexes. The zero value uses the host's file system and logs nothing.
type Pebble struct {
	FS  vfs.FS          // nil: the host's
	Log *zerolog.Logger // nil: none
}

var _ blocks.Indexes = Pebble{}

func (p Pebble) fs() vfs.FS {
	if p.FS == nil {
		return vfs.Default
	}
	return p.FS
}

// Open implements blocks.Indexes.
func (p Pebble) Open(dir string) (blocks.Index, error) {
	s := &store{dir: dir, log: zerolog.Nop()}
	if p.Log != nil {
		s.log = p.Log.With().Str("index", dir).Logger()
	}
	opts := &pebble.Options{
		FS:                 p.fs(),
		Logger:             s,
		CacheSize:          cacheSize,
		MemTableSize:       memTableSize,
		MaxOpenFiles:       openFiles,
		FormatMajorVersion: format,
		EventListener:      &pebble.EventListener{BackgroundError: s.backgroundError, DataCorruption: s.dataCorruption},
	}
	for i := range opts.Levels {
		opts.Levels[i].FilterPolicy = bloom.FilterPolicy(bloomBits)
	}
	db, err := openRecovering(dir, opts)
	if err != nil {
		return nil, openError(err)
	}
	s.db = db
	return s, nil
}

// SetAside implements blocks.Indexes.
func (p Pebble) SetAside(dir string) error {
	f, aside := p.fs(), dir+".damaged"
	if _, err := f.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := f.RemoveAll(aside); err != nil {
		return err
	}
	if err := f.Rename(dir, aside); err != nil {
		return err
	}
	parent, err := f.OpenDir(f.PathDir(dir))
	if err != nil {
		return err
	}
	return errors.Join(parent.Sync(), parent.Close())
}

// classify gives errors of pebble their class.
func classify(err error) error {
	if err != nil && pebble.IsCorruptionError(err) {
		return corrupt(err)
	}
	return err
}

// corrupt makes an error of class ErrCorrupt; of pebble's text the first line says it.
func corrupt(err error) error {
	text, _, _ := strings.Cut(err.Error(), "\n")
	return fmt.Errorf("%w: %s", blocks.ErrCorrupt, text)
}

// refusals are errors of Open that do not come from what is in the directory.
var refusals = []error{
	fs.ErrPermission, syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EMFILE, syscall.ENFILE,
	syscall.ENOMEM, syscall.EAGAIN, syscall.EACCES, syscall.EPERM,
}

// openError gives an error of Open its class. pebble marks only some damages as such
// (not a missing or short table, for one), so all that is not the host's refusal, nor
// a format of the future, is damage.
func openError(err error) error {
	for _, r := range refusals {
		if errors.Is(err, r) {
			return err
		}
	}
	if strings.Contains(err.Error(), "format major version") || strings.Contains(err.Error(), "lock held") {
		return err
	}
	return corrupt(err)
}

// openRecovering opens the database; pebble panics on some damages.
func openRecovering(dir string, opts *pebble.Options) (db *pebble.DB, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: pebble gave up: %v", blocks.ErrCorrupt, r)
		}
	}()
	return pebble.Open(dir, opts)
}

// store is an open index.
type store struct {
	dir    string
	log    zerolog.Logger
	db     *pebble.DB
	failed atomic.Pointer[string] // why nothing is written any more
}

func (s *store) failure() error {
	if why := s.failed.Load(); why != nil {
		return fmt.Errorf("%w: index %s failed: %s", blocks.ErrUnavailable, s.dir, *why)
	}
	return nil
}

// Get implements blocks.Index.
func (s *store) Get(key []byte) ([]byte, error) {
	v, closer, err := s.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, blocks.ErrNotFound
	}
	if err != nil {
		return nil, classify(err)
	}
	v = append([]byte(nil), v...)
	return v, closer.Close()
}

// Apply implements blocks.Index.
func (s *store) Apply(changes []blocks.IndexChange, sync bool) error {
	if err := s.failure(); err != nil {
		return err
	}
	size := 64
	for i := range changes {
		size += len(changes[i].Key) + len(changes[i].Value) + 16
	}
	b := s.db.NewBatchWithSize(size)
	defer b.Close()
	for _, c := range changes {
		var err error
		if c.Delete {
			err = b.Delete(c.Key, nil)
		} else {
			err = b.Set(c.Key, c.Value, nil)
		}
		if err != nil {
			return classify(err)
		}
	}
	how := pebble.NoSync
	if sync {
		how = pebble.Sync
		if len(changes) == 0 { // an empty batch would not wait for those before
			if err := b.LogData(nil, nil); err != nil {
				return classify(err)
			}
		}
	}
	if err := b.Commit(how); err != nil {
		return classify(err)
	}
	return s.failure()
}

// Scan implements blocks.Index.
func (s *store) Scan(from, to []byte, fn func(key, value []byte) bool) error {
	bounds := &pebble.IterOptions{}
	if len(from) > 0 { // what is empty and not nil lets pebble panic in builds with the race detector
		bounds.LowerBound = from
	}
	if len(to) > 0 {
		bounds.UpperBound = to
	}
	it, err := s.db.NewIter(bounds)
	if err != nil {
		return classify(err)
	}
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return classify(errors.Join(err, it.Close()))
		}
		if !fn(it.Key(), v) {
			break
		}
	}
	return classify(errors.Join(it.Error(), it.Close()))
}

// Close implements blocks.Index. The log goes into tables first, which are better
// guarded against damage and quicker to open. An index that failed is left as it is: its
// goroutines may wait for a write that never ends.
func (s *store) Close() error {
	if err := s.failure(); err != nil {
		return err
	}
	err := s.db.Flush()
	if failed := s.failure(); failed != nil {
		return failed
	}
	return classify(errors.Join(err, s.db.Close()))
}

func (s *store) backgroundError(err error) {
	s.log.Error().Err(err).Msg("index: background error")
}

// dataCorruption replaces pebble's own answer, which is to end the process: who reads
// the damaged part gets ErrCorrupt.
func (s *store) dataCorruption(info pebble.DataCorruptionInfo) {
	s.log.Error().Str("path", info.Path).Err(info.Details).Msg("index: damaged file")
}

// Infof implements pebble.Logger: what pebble tells of its doings is for debugging.
func (s *store) Infof(format string, args ...any) { s.log.Debug().Msgf(format, args...) }

// Errorf implements pebble.Logger.
func (s *store) Errorf(format string, args ...any) { s.log.Error().Msgf(format, args...) }

// Fatalf implements pebble.Logger. It is called when the log cannot be
// written; pebble expects the process to end, we only end writing to this index.
func (s *store) Fatalf(format string, args ...any) {
	why := fmt.Sprintf(format, args...)
	s.failed.CompareAndSwap(nil, &why)
	s.log.Error().Str("why", why).Msg("index failed: the drive is read-only until it is opened again")
}
