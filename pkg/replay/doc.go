// Package replay is a router for testing: it speaks BMP (RFC 7854) to several
// collectors at once, from a captured stream or a synthetic one, and knows its
// own table, so that what arrived at the far end can be compared with it.
//
// What the package promises:
//
//   - A Stream advances once; every collector that is connected gets each of its
//     messages, in order.
//   - A session that begins later, or again, begins as a router's does:
//     Initiation, Peer Up of the peers that are up (and Peer Down of those that
//     were and are not), the current table with one route per message, End-of-RIB
//     for each RIB and family, and from then on what is new. So the last message
//     about a route is always the right one, whatever was missed in between.
//   - A collector that does not read never holds up the others for long: its
//     queue is bounded, and a session that overflows is closed and begun anew.
//   - Memory is bounded by the table and the queues. Stop ends every goroutine.
//
// The package reads BMP and BGP with a small parser of its own and shares none
// with the decoders of this project, because its table serves as the truth that
// they are tested against.
package replay
