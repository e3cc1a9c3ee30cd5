// Package fs is the FUSE face: it speaks the kernel's protocol and translates
// errors to errno. The POSIX meaning lies behind Backend, in packages tree and content.
//
// It must know: the FUSE protocol, errno. It must not know: the ring, stripes,
// how a directory is kept.
//
// # The loop
//
// The raw fuse.Conn is served here, not by the library's own file-system layer:
// a few readers each read a request and answer it at once if the
// backend can do so from local memory (tree.NoWait). What may wait (network, disk)
// is handed to a goroutine of its own, of which there are at most MaxWaiting;
// it has a deadline, and an interrupt cancels it. Replies are assembled and written here: one write
// of header and data on the device, and nothing of the attributes is lost on the way.
//
// What the library does not offer (READDIRPLUS, RENAME2, the device's file descriptor, the
// bytes of a request) is reached in library.go, the only file that knows its insides.
//
// Goroutines: Face.Run owns all. Slices: a request's data belong to the library until the
// reply is sent; the backend must have copied what it keeps.
package fs
