package blocks

// Index is the ordered key-value store that a Drive keeps its directory of
// blocks and its registers in. Safe for many goroutines. Slices that go in
// are not kept; slices given to a callback are valid until it returns.
type Index interface {
	// Get returns a copy of the value, ErrNotFound if there is none.
	Get(key []byte) ([]byte, error)
	// Apply makes all changes or none, in order. With sync it returns when they
	// and all earlier ones are durable; without, they may be lost by a
	// crash, but only the newest first.
	Apply(changes []IndexChange, sync bool) error
	// Scan calls fn with the pairs of from <= key < to in order (an empty to: no
	// end) until fn returns false. It sees the state of one moment.
	Scan(from, to []byte, fn func(key, value []byte) bool) error
	Close() error
}

// IndexChange sets a key, or deletes it.
type IndexChange struct {
	Key, Value []byte
	Delete     bool
}

// Indexes opens the index of a drive.
type Indexes interface {
	// Open opens the index in dir and makes it if there is none, durably.
	// ErrCorrupt: it is there and cannot be used.
	Open(dir string) (Index, error)
	// SetAside moves an index that cannot be used out of the way, keeping
	// it as dir.damaged; an older one of that name is removed.
	SetAside(dir string) error
}
