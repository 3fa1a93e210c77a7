// Package hold keeps what a router said until it is known to be in Kafka.
//
// A Log is the ordered memory of one router: BMP messages as received, with the
// opening and closing of the sessions that they came over. Entries enter at the
// end, are read by a Cursor, and leave at the tail. The package does not know
// why: whether an entry may leave is the gate's to say (package gate).
//
// What it promises:
//
//   - Entries come out in the order in which they went in, byte for byte.
//   - The memory of all logs together stays below the limit of their Budget,
//     and each log can always grow to its guaranteed share, so that one router
//     cannot starve another.
//   - In steady state nothing is allocated: entries lie in chunks without
//     pointers, chunks are used again.
//
// It does no I/O, starts no goroutine and knows no clock. A Log is not safe for
// concurrent use, with one exception that keeps encoding out of the lock: a
// Cursor may be read up to a position that was the end of the log under the
// lock, while other goroutines append, as long as the tail does not pass it.
package hold
