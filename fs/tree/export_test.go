package tree

import (
	"context"

	"github.com/mutualfs/mutualfs/blocks"
)

// Noted reports whether it is agreed that this process has the inode open.
func (t *Tree) Noted(ino Ino) (noted bool) {
	_ = t.readIno(context.Background(), ino, func(_ *container, _ *State, n *Inode) error {
		noted = n.keptBy(t.sessionID())
		return nil
	})
	return noted
}

// SessionID names this process in notes.
func (t *Tree) SessionID() blocks.RegisterID { return t.sessionID() }

// List lists a whole directory.
func (t *Tree) List(ctx context.Context, dir Ino) (all []Entry, parent Ino, err error) {
	var from blocks.RegisterID
	for {
		entries, p, next, err := t.ReadDir(ctx, dir, from)
		if err != nil {
			return nil, 0, err
		}
		if all = append(all, entries...); from.IsZero() {
			parent = p
		}
		if from = next; next.IsZero() {
			return all, parent, nil
		}
	}
}
