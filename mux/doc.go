// Package mux carries calls between the peers of one ring: TCP, TLS 1.3, yamux,
// and framed calls with deadlines on top. Bytes in, bytes out.
//
// It must know: peers' keys, the ring's ID and secret, addresses, how urgent a
// class of calls is. It must not know: what a call means, who the members of the ring
// are, virtual nodes, blocks.
//
// # Sessions
//
// A pair of peers shares at most two sessions, dialled when first needed: lane 0
// for control and metadata, lane 1 for data and repair. Whoever dialled, both sides call
// over it. Each class has a few long-lived streams; a stream carries one call
// at a time, and a call never opens a stream while one is free. The first stream of
// a session carries heartbeats, cancellations and farewells. The wire is specified, to the byte, in
// docs/wire.md.
//
// # Identity
//
// A peer's ID is the first 20 bytes of SHA-256 over
//
//	uint32(4) "peer" uint32(32) public key        (integers big-endian)
//
// Both sides show a certificate for their key, signed by the ring's CA, whose
// key follows from the ring secret: who has no secret has no certificate, and is
// refused inside the TLS handshake, before a byte of it reaches this package.
//
// # Ownership
//
// Call borrows its slices until it returns; the slices that it returns belong to the
// caller, who may hand a payload back with Release. A Handler borrows its
// slices until it returns; the slices that it returns belong to the mux. All
// goroutines belong to Run, those of handlers included: Run returns when the last has ended. A
// connection from Dial, or given to the StreamHandler, belongs to who got it and must be closed by
// it; it breaks when its session does.
package mux
