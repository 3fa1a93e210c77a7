// Package sim runs whole clusters on a virtual clock: collectors made of the
// very step functions of packages election, gate, hold and seam, routers, a Redis and
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
//	    replay, which is marked unless it was never written, and no more often than
//	    the sender started.
//	I3  Bounded memory. Logs hold no more than their budget and a chunk for each
//	    router.
//	I4  Conservation. Received = acknowledged + freed + dropped + held, for each
//	    stream, at all times.
//	I5  Lease. No record is handed over on a check of the clock at or after the
//	    end of the own lease.
//	I6  Liveness. Some time after the last fault exactly one collector is active,
//	    each router has exactly one sender that hears it, nothing waits at a
//	    sender, no standby holds more than the margin and the age of a mark, and
//	    nothing is in a transaction that is still open, or behind one.
//	I7  Repeats are marked. Of the copies of a change at most one is without
//	    FlagReplayed and FlagShared, but for what a sender received within the
//	    margin after it took over or went on, or what was said while the way to it was silent.
//	    Copies with a token older than one before are told apart by that. With fencing
//	    that holds of what a sender held when it went on, too, whatever its predecessor
//	    writes after that.
//	I8  Table. The table that a consumer builds from Kafka equals the router's
//	    at rest.
//	I9  Decoding. No record is decoded with the state of another place in the
//	    session.
//	I10 A standby never makes a router wait.
//	I11 Left out by right. What a router says again and a collector leaves out is,
//	    at that moment, the last word in Kafka, or in the collector's own log on
//	    its way there.
//	I12 Planned changes repeat nothing, where the end of the topic is read back and
//	    nothing else happens, but for dumps of sessions that have just begun, and what
//	    comes late and says what was said before. With transactions of somebody else,
//	    which hide what was written, they repeat nothing without a mark.
//	I13 No steps back. No sender says an older word about a route than another has
//	    said before, but within the margin after it took over, marked or shared, with
//	    an old token, or if it was said while the way to that sender was silent.
//	I14 Never none. A router that someone hears is not without a sender for longer
//	    than two expiries and heartbeats, the handover, the grace, the time for reading
//	    back and 3 s, once the last fault has had its effect.
//	I15 Never two. Nor has it two for as long.
//	I16 Fenced is silent. With fencing, where senders are replaced only because they died,
//	    stood still or stopped, and Redis, Kafka and links are well, no record
//	    that consumers see has an older token than one before it.
//
// In four of five runs a collector that takes over reads back the end of the topic
// and leaves out what is there already (package seam); what it leaves out counts as
// said for I1, and I8 sees whether it should have. In half of the runs collectors
// hear each other directly, and in a third they keep their roles by that while Redis
// is away.
//
// In one of five runs senders use transactions and are fenced by their successors
// (kafka.fencing); consumers then see what is committed, and nothing behind what is
// not.
//
// A transaction of somebody else on a partition hides what comes behind it, for up to
// 20 s. Who takes over reads to the partition's end with all that is written, committed
// or not; if consumers do not see that in time, nothing is known of it. Nor is what was
// held known not to be in Kafka if a sender that is gone could not be fenced.
//
// The way from a router to a collector can be silent: nothing arrives, and neither end
// knows. A host is asked for a sign of life every 3 s, and the collector ends the session
// after 10 s without one. If the way heals before, the router's host answers at once, but
// what the router has said meanwhile comes in a burst when TCP next sends it again, up to
// as much later as the silence lasted. A sender's mark goes no further than its host was
// heard (gate.Vouch), so that what is said in a silence is not lost with the session, and
// after a silence it waits for the burst. One that is too short to be noticed as such can
// end with a sender that stops before the burst is in Kafka: others may have forgotten
// what was in it. A session that was open before its
// collector began to send, and whose host was not heard since, is not whole (gate.Ground).
//
// A host that reaches neither Redis nor Kafka may be one whose routers have another
// sender by now. What it has handed over and Kafka does not acknowledge it takes back
// after an expiry, and before it goes on it asks Redis once more; what is on the wire may
// arrive all the same. Without reading back it does neither, and what it says late when
// the host is back is excused (I7, I8, I13).
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
// I8), for which a silence does not count; a sender stopped between the end of a short
// silence and the burst after it (I1, I8 and I11, of what was in the burst only);
// two senders, of which the one that was behind spoke last and then stopped (I8
// only); one that was cut off from Redis and sends beside another, which cannot
// know of it and leaves out what the first has overtaken (I11, and I1 of that
// prefix). A run with a single fault is not excused, unless the fault is that all
// collectors were stopped or forced to be standby and had to drop, or that Kafka
// takes nothing of a router of which standbys know no mark for long because it does
// not end its table dumps; two senders of such a router are excused as above, too. In
// such a run logs have room for all that is said during the fault.
//
// Clocks of hosts are off by some ms, in one of five by up to a minute. Records have
// the time at which they were handed over, by their sender's clock.
package sim
