// Package sim runs whole clusters on a virtual clock: collectors made of the
// very step functions of packages election, gate and hold, routers, a Redis and
// a Kafka, under faults drawn from a seed. A run is a plain event loop without
// goroutines, so that a seed always gives the same run and minutes of it take
// milliseconds.
//
// What is modelled is what the shell around the cores does (package collector)
// and what the world does to it. What is checked, during each run and at its end
// when the faults have stopped and everything has come to rest, is numbered:
//
//	I1  No loss. What a router said while all its sessions were open is in Kafka
//	    if one collector that received it stayed alive, unless a session opened
//	    anew and its table dump took the place of it; and in any case Kafka has
//	    the newest word about every prefix.
//	I2  Order. Of one sender, records never go back in its log but to begin a
//	    replay, which is marked, and no more often than the sender started.
//	I3  Bounded memory. Logs hold no more than their budget and a chunk for each
//	    router.
//	I4  Conservation. Received = acknowledged + freed + dropped + held, for each
//	    stream, at all times.
//	I5  Lease. No record is handed over on a check of the clock at or after the
//	    end of the own lease.
//	I6  Liveness. Some time after the last fault exactly one collector is active,
//	    each router has exactly one sender that hears it, nothing waits at a
//	    sender, and no standby holds more than the margin and the age of a mark.
//	I7  Repeats are marked. Of the copies of a change at most one is without
//	    FlagReplayed and FlagShared, but for what a sender received within the
//	    margin after it took over.
//	I8  Table. The table that a consumer builds from Kafka equals the router's
//	    at rest.
//	I9  Decoding. No record is decoded with the state of another place in the
//	    session.
//	I10 A standby never makes a router wait.
//	I11 Left out by right. What a router says again and a collector leaves out is,
//	    at that moment, the last word in Kafka, or in the collector's own log on
//	    its way there.
//
// In half of the runs a table that comes again is compared with what was said
// before (redump: diff), by the rule of gate.Ground. Routes have so few values
// that they often get one again that they had; I1 and I8 then compare values, but
// only of a prefix of which the last word was left out.
//
// The consumer of I8 ignores a record without FlagShared whose token is smaller
// than one that it has seen for the router: it comes from a sender that stood
// still while another took over. At the End-of-RIB of a session it forgets what
// was not named since that session's Peer Up, unless something was left out of
// that dump: then each route that has vanished is withdrawn.
//
// Where the design says that a promise has an end, a run is excused instead of
// failed, and counted: a standby that was full dropped what it had to (I1, I8);
// a sender's session lagged behind the others' by more than the margin (I1, I7,
// I8);
// two senders, of which the one that was behind spoke last and then stopped (I8
// only); one that was cut off from Redis and sends beside another, which cannot
// know of it and leaves out what the first has overtaken (I11, and I1 of that
// prefix). A run with a single fault is not excused, unless the fault is that all
// collectors were stopped or forced to be standby and had to drop.
package sim
