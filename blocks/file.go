package blocks

import "io"

// File is an open disk file. All methods may be called at the same time by
// many goroutines; ranges that overlap are the caller's business.
type File interface {
	io.ReaderAt
	// WriteVec writes the parts one after the other from off on, all of them
	// or an error. The parts are not kept.
	WriteVec(parts [][]byte, off int64) error
	// WriteBack asks for the range to be written out soon, without waiting: a
	// hint that makes the next Sync short.
	WriteBack(off, n int64)
	// Drop asks for the range to be forgotten by the host's cache, so that the
	// next read comes from the medium: a hint.
	Drop(off, n int64)
	// Sync returns when everything written is durable (data and size).
	Sync() error
	// Punch gives the range back to the host; it reads as zeros afterwards.
	Punch(off, n int64) error
	// NextData returns the first offset >= off that may hold data, io.EOF if
	// there is only hole behind it.
	NextData(off int64) (int64, error)
	Truncate(size int64) error
	Size() (int64, error)
	// Allocated returns how many bytes the host spends on the file.
	Allocated() (int64, error)
	Close() error
}

// FS is what a Drive needs of the host's file system. Errors for a missing
// file match io/fs.ErrNotExist, for a full host syscall.ENOSPC. A name made,
// renamed or removed is durable after SyncDir of its directory.
type FS interface {
	// Create makes a file that must not exist.
	Create(path string) (File, error)
	Open(path string) (File, error)
	Remove(path string) error
	Rename(from, to string) error
	Exists(path string) (bool, error)
	// MkdirAll makes a directory and its parents, durably.
	MkdirAll(dir string) error
	SyncDir(dir string) error
	// Lock takes the lock file for this process; if another one has it, the
	// error of class ErrBusy says which.
	Lock(path string) (io.Closer, error)
	// Space returns the bytes that the file system of dir has free for us and in
	// all.
	Space(dir string) (free, total int64, err error)
}
