package audit

import (
	"time"

	"github.com/mutualfs/mutualfs/blocks"
	"github.com/mutualfs/mutualfs/fs/tree"
)

// Kind says what is wrong. The words are part of what `mutualfs check --json` promises.
type Kind string

const (
	Unreferenced    Kind = "unreferenced-stripe"    // no register names it
	Missing         Kind = "missing-stripe"         // a file needs it, and too few shards are left
	Shared          Kind = "shared-stripe"          // it belongs to two inodes, or to one and to a free list
	UnderProtected  Kind = "under-protected-stripe" // a file needs it, and shards are missing
	WrongNlink      Kind = "wrong-nlink"            // an inode counts other names than it has
	WrongParent     Kind = "wrong-parent"           // a directory says that it lies elsewhere than its name
	WrongReference  Kind = "wrong-reference"        // a promoted inode says that it has names where it has others
	Dangling        Kind = "dangling-name"          // it names nothing
	TwoNames        Kind = "two-names"              // a directory has more than one
	TwoPlaces       Kind = "two-places"             // an inode lies in two containers
	OrphanInode     Kind = "orphan-inode"           // nothing names it, and nobody has it open
	OrphanRegister  Kind = "orphan-register"        // nothing names it
	Cycle           Kind = "cycle"                  // directories that contain each other, cut off from the root
	MissingRegister Kind = "missing-register"       // it is named and no peer has it
	Unreadable      Kind = "unreadable-register"    // its value makes no sense
)

// Finding is one thing that is wrong. Of two looks equal Keys are the same finding.
type Finding struct {
	Key
	Path   string        // from the root, as far as there is one
	Detail string        // for people
	Links  uint32        // wrong-nlink: the names that there are
	Age    time.Duration // of what nothing names: how long, at least, some peer has had it
}

// Key is what a finding is about; what does not matter for its kind is zero.
type Key struct {
	Kind     Kind
	Register blocks.RegisterID
	Name     string
	Ino      tree.Ino
	Stripe   blocks.StripeID
}

// unowned reports whether the finding says that nobody needs something, which a mount that cannot be asked
// may know better.
func (k Kind) unowned() bool { return k == Unreferenced || k == OrphanRegister || k == OrphanInode }
