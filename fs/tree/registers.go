package tree

import (
	"context"

	"github.com/mutualfs/mutualfs/blocks"
)

// Registers is what the tree needs of the agreed registers.
type Registers interface {
	// Read returns the newest agreed state, what is newer than version since; it is
	// linearizable. A lease that another mount holds alone is recalled first.
	Read(ctx context.Context, id blocks.RegisterID, since blocks.Version) (blocks.Register, error)
	// Peek is Read of the whole value without the recall: what the holder of a lease has not proposed yet is not in it.
	Peek(ctx context.Context, id blocks.RegisterID) (blocks.Register, error)
	// Propose makes a change. Base 0 creates the register. ErrConflict: the register has changed
	// since Base, and the first result says how. A change with Seq not above Applied[Origin] has been
	// made already: success without effect. Any other error leaves it open whether the change was made.
	Propose(ctx context.Context, id blocks.RegisterID, c blocks.Change) (blocks.Register, error)
	// Holds reports whether this mount's lease of that epoch, alone or shared, can be trusted now. It does not wait.
	Holds(id blocks.RegisterID, epoch uint64) bool
	// Lease returns who holds a register's lease alone. It does not recall it; but a holder that cannot be reached, and that a
	// majority has not heard for long enough, loses it first.
	Lease(ctx context.Context, id blocks.RegisterID) (blocks.Lease, error)
	// OnRecall sets who is told that another mount wants the register: f flushes it
	// and releases the lease before it returns. read: the other one wants to read.
	OnRecall(f func(ctx context.Context, id blocks.RegisterID, read bool))
}

// Hooks is what the tree needs of the content of files.
type Hooks interface {
	// FlushFile writes the dirty data of ino and calls Writeback.
	FlushFile(ctx context.Context, ino Ino) error
	// TrimFile drops dirty data from size on: the file was truncated. It does not wait.
	TrimFile(ino Ino, size uint64)
	// PunchFile drops dirty data in [off, off+n). It does not wait.
	PunchFile(ino Ino, off, n uint64)
	// ReplayData makes p dirty again at off, before the tree answers its first call.
	ReplayData(ino Ino, seq Seq, off uint64, p []byte)
	// DropFile forgets all dirty data of ino, which is gone. It does not wait.
	DropFile(ino Ino)
}

type noHooks struct{}

func (noHooks) FlushFile(context.Context, Ino) error { return nil }
func (noHooks) TrimFile(Ino, uint64)                 {}
func (noHooks) PunchFile(Ino, uint64, uint64)        {}
func (noHooks) ReplayData(Ino, Seq, uint64, []byte)  {}
func (noHooks) DropFile(Ino)                         {}

type noNotifier struct{}

func (noNotifier) InvalidateEntry(Ino, string) {}
func (noNotifier) ExpireEntry(Ino, string)     {}
func (noNotifier) InvalidateInode(Ino)         {}
func (noNotifier) Settle(context.Context)      {}
