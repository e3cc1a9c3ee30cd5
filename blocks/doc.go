// Package blocks holds the vocabulary that all rooms share (positions, shards,
// registers, error classes) and the store of a peer: virtual disks.
//
// It must know: bytes, files, checksums. It must not know: the network, the
// ring, what the code rate means, what a block contains.
//
// # The store
//
// A Store has a drive per host drive; a drive has a directory:
//
//	LOCK            flock of the process that uses it, and its process ID
//	index/          an Index: stripe → block, and the registers (package index)
//	index.damaged/  an index that could not be used, kept for those who want to look
//	index.broken    the index was found damaged while in use: do not open it
//	vnode-NN.disk   a virtual disk, sparse; vnode-NN.disk.damaged as above
//
// # The disk file
//
// Counted in units of 4 KiB. Numbers are big-endian, checksums crc32c.
//
//	unit    0          1 …                                                      last
//	        superblock │ block │ block │ free (hole) │ block │ …              superblock
//
// Superblock, in its first and its last unit, and a third time in the index:
//
//	0   magic "mutualfs disk\r\n\0"      16
//	16  format version, 1                 4
//	20  bytes in a unit, 4096             4
//	24  ring                             20
//	44  peer                             20
//	64  virtual node                     20
//	84  incarnation                       8   random, of this file
//	92  capacity = size of the file       8
//	100 checksum of bytes 0 … 99          4   the rest of the unit is zero
//
// Block, in an extent of whole units that does not cross a multiple of 64 MiB:
//
//	0   magic "MFB1"                      4
//	4   shard index, k, m, zero           4
//	8   stripe                           20
//	28  stripe length (clear)             4
//	32  payload size                      4
//	36  bytes under one checksum          4
//	40  owner: register                  20
//	60  owner: inode                      8
//	68  home: virtual node               20
//	88  written, Unix seconds             8
//	96  incarnation of the disk file      8
//	104 number of the first unit          8
//	112 number of checksums, n            4
//	116 checksum of the header            4   of bytes 0 … 120+4n with this field zero
//	120 checksums of the payload         4n
//	    zeros up to a multiple of 512
//	    payload
//	    zeros up to the end of the unit
//
// The incarnation and the place are in the header, so that what is left of an older file, or a
// copy at another place, is not taken for a block. The index holds the same
// header (without the zeros): a Get reads the payload only.
//
// # What is durable when
//
// Put writes the block into a free extent and notes the index entry in memory,
// where all who ask see it. A sync takes the noted entries, syncs the disk files written to, and
// then writes the entries to the index, durably: so the index never names a block that a power cut
// could take away, and what was not synced is gone as if it had never been put. At most one
// sync runs per drive; who comes meanwhile shares the next one.
//
// A deletion is noted likewise. Its extent is free again when the deletion is durable, everybody who
// might still read it has left (eras), and the hole is punched. Deletions that nobody syncs, and
// holes, are done by Run within about a second.
//
// A drive whose sync failed writes no more until it is opened again: the host may have dropped what
// it could not write.
//
// # Limits
//
// A lost index is made anew from the disk files. Blocks that were deleted and whose holes were not
// yet punched come back then; damaged ones are left out. The capacity of a disk
// file is fixed when it is made. The bitmap of free units takes up to 32 MiB of memory per TiB,
// and a store is opened by reading its whole index.
//
// # Ownership
//
// Slices that go in belong to the caller again when the call returns; slices that come out
// belong to the caller. Goroutines: Run's end with its context, the syncs' end
// before Close returns.
package blocks
