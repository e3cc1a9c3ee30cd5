// Package fuzz does random things to mounts and compares what happens with what should.
//
//	TestOperations   random calls by several processes on a mount and on a local directory (the model),
//	                 compared call by call and as trees, with remounts, kills of the mount and of peers in between
//	TestShared       the same by processes on two mounts that take turns, each call on the mount of its process: what one
//	                 has done the other sees as soon as the call has returned; advisory locks among the calls
//	TestOneFile      reads, writes, truncations, mmap and holes of one file against bytes in memory
//	TestTorture      eight processes on each of two mounts make, move, link and remove names in shared directories, and append to
//	                 files under locks, while peers are killed; what was acknowledged is what is there at the end, once
//
// Everything random comes from one seed, which is printed: always the same one, so that go test makes the same calls each time, unless
// MUTUALFS_SEED=N names another. MUTUALFS_FUZZ_TIME=1h runs each test so long and from a new seed (make fuzz T=1h). How far a run comes
// depends on the machine, what it does on the way does not (TestTwoMounts aside, whose processes race). Calls are values (Op), made by child processes (the test's own binary, started anew), so that
// descriptors stay open over many calls and a call that hangs does not hang the test. A mismatch prints the last
// calls and, if the same calls show it in a fresh directory, a shorter list that does.
//
// Differences between a mount and the model that are accepted, because file systems differ in them:
//
//   - size of directories, inode numbers, blocks, st_dev; times that the clock gives (that the clock gave one is compared:
//     explicit times lie far from now); atime, except right after it was set
//   - where holes begin and end (TestOneFile checks that what SEEK_HOLE calls a hole is zero)
//   - set-group-ID without the group's execute permission: whether a write removes it depends on groups that FUSE does not tell
//   - chown(-1, -1), which removes set-user-ID, is left out: the kernel does not tell a FUSE server; which of EINVAL and EISDIR read(2) of a directory returns
//   - mtime of a FIFO: what is written into a pipe does not reach a FUSE server
//   - opening a device: left out, for what a driver does is no matter of ours
//   - TestShared leaves out what two mounts do not promise each other: reading through a descriptor that was open before the other
//     wrote, data that is neither closed nor stored, directories and descriptors of O_PATH that have lost their name, FIFOs,
//     and locks of directories
package fuzz
