// Package audit finds what is wrong with a volume as a whole, and what nobody needs any more: it reads the agreed state of
// every register, compares it with the stripes on the disks, and says what does not fit. docs/audit.md has the
// reasons.
//
//	look    every register and every stripe, read once      Look
//	judge   a pure function of a look                       Judge
//	audit   looks until something is certain                Auditor.Run
//
// It must know what names, inodes and free lists mean to each other (tree.Facts). It must not know how registers
// are agreed on, where shards lie, or how a mount keeps what it has not committed: Ring tells it what it needs. It changes
// nothing.
package audit
