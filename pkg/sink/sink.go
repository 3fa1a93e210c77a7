// Package sink hands batches of records to where they go, Kafka first of all,
// and reports how far each stream of them has arrived.
//
// A stream is the ordered output of one router's log. Records of a stream are
// numbered by the caller, from 0 and without gaps: their positions. What the
// package promises:
//
//   - Records of a stream reach the topic in the order of their positions.
//   - Report.Acked never passes a record that is not stored by every in-sync
//     replica (or set aside in the dead-letter file because Kafka can never take
//     it).
//   - When anything else fails, the stream stops: Hand refuses, the outstanding
//     reports are drained, and the caller starts again at Acked by Reset. So a
//     later record never stays in front of an earlier one.
//   - A sink holds little: never more than its window of unacknowledged records,
//     because what it holds it will send, also after the process was paused,
//     unless it is fenced.
//
// An outage of Kafka is no failure, however long it lasts: records stay
// outstanding and go out when it is over, unless a Recaller takes them back.
//
// A record that was a Kafka record before keeps what it brought: key and value,
// empty or null, timestamp, headers (before bmpha's own). Where it must go to a
// certain partition, by its router or as it says, a broker is asked first how many
// there are; until one has told, Hand takes nothing of it. More partitions are
// noticed as librdkafka does, by topic.metadata.refresh.interval.ms, or at once by
// a record for one of them. A partition that the brokers deny for two seconds does
// not exist, and its records are set aside. So are those with a timestamp that
// Kafka does not accept.
//
// # Fencing
//
// With Options.TransactionalID the sink of NewKafka sends in transactions, and a
// Fencer can shut it out. It is for what no clock and no election can cover: a
// process that stands still with records in librdkafka, which sends them when it
// goes on, after another has taken over. Without fencing these are at most the
// window, and they arrive late and twice; with it they are never committed.
//
//   - Consumers must read with isolation.level=read_committed. One that reads
//     uncommitted records sees those of aborted transactions as well: all that a
//     fenced sender had in its last one, and everything that was sent again after a
//     failure.
//   - A record can be read when its transaction is committed: CommitInterval later
//     at most, and the time of the commit. Acked moves then, too.
//   - A collector that dies leaves a transaction open, and consumers wait at its
//     first record, on that partition, until its successor has fenced it, or until
//     the brokers give it up: after transaction.timeout.ms (10 s here), looked at
//     every 10 s.
//   - The ids are TransactionalID, and that with "+single" and "+apart" appended,
//     for the three producers. On brokers with ACLs each collector needs Write and
//     Describe on the ids of all of them, by prefix.
//   - The brokers need min.insync.replicas of __transaction_state (2 by default) to
//     commit anything.
//   - One failed record aborts the transaction, and with it the others' records in
//     it: their streams stop with ErrAborted and send them again. Nothing of that is
//     seen by a consumer that reads committed records.
//   - While a transaction ends Hand takes nothing.
//   - When a producer is fenced in the middle of a commit, its outcome cannot be
//     known. Its records are reported as failed and sent again, once Confirm allows
//     it, and may be there twice: Stats.Unsure counts them.
//
// An outage of Kafka is no failure here either. If it lasts longer than
// transaction.timeout.ms for the sink, but not for the brokers, these abort the
// transaction and the producer counts as fenced: it is made anew, Confirm is asked
// and the records are sent again.
//
// There are three sinks: NewKafka is the one to use, over librdkafka with the
// window kept in C; NewReference does the same over confluent-kafka-go's Go
// interface, for comparison and as a fallback; NewFile writes lines to look at.
//
// The package knows nothing of BMP, roles or routers.
package sink

import (
	"context"
	"errors"
	"time"

	"github.com/bmpha/bmpha/pkg/record"
)

var (
	// ErrStopped is returned by Hand for a stream that has failed and was not
	// Reset.
	ErrStopped = errors.New("stream stopped after a failure")

	// ErrClosed is returned by the methods of a closed sink.
	ErrClosed = errors.New("sink is closed")

	// ErrBatchRefused is in the Report.Err of a stream of which a broker refused
	// a whole batch for something in it. After a Reset at Acked its records go
	// one by one, so that just those at fault are set aside. It is no reason for
	// concern.
	ErrBatchRefused = errors.New("batch refused, to be sent one by one")

	// ErrAborted is in the Report.Err of a stream that has records in a
	// transaction that was aborted for something else, such as another stream's
	// failure. They go again after a Reset.
	ErrAborted = errors.New("transaction aborted, to be sent again")

	// ErrFenced is the Report.Err of the streams with records in a transaction
	// that the brokers refused because its producer is not the latest of its
	// transactional id any more: another one has fenced it, or the brokers have
	// aborted the transaction because it took longer than
	// transaction.timeout.ms. Options.Confirm is asked before anything else is
	// committed.
	ErrFenced = errors.New("fenced: the brokers no longer take this producer's transaction")

	// ErrRecalled is the Report.Err of the streams that had something outstanding
	// when Recall was called, whatever else had gone wrong with them.
	ErrRecalled = errors.New("taken back before it was acknowledged")
)

// A Report tells how far one stream is.
type Report struct {
	Stream uint32
	// Acked is the position of the first record that is not acknowledged.
	Acked uint64
	// Outstanding is the number of records handed over and neither acknowledged
	// nor failed.
	Outstanding uint32
	// Err is set once the stream has failed; Hand refuses until Reset. The
	// stream may be Reset when Outstanding is 0.
	Err error
}

// Stats are counters since the start and gauges, for status and metrics.
type Stats struct {
	Handed      uint64 // records
	Acked       uint64 // records
	Failed      uint64 // records reported as failed, to be sent again
	Dead        uint64 // records written to the dead-letter file, again if sent again
	Bytes       uint64 // key, header and value bytes handed over
	Outstanding uint64 // records in flight, now
	Window      uint64 // most records that may be in flight
	Rebuilt     uint64 // times the producer was made anew after a fatal error or Recall
	Fenced      uint64 // times that a producer was refused as fenced, see ErrFenced
	Unsure      uint64 // of Failed, records of a commit whose outcome is not known: in Kafka twice, perhaps
	LastError   string
	LastErrorAt time.Time
	Connected   bool // a broker is reachable, as far as the sink knows
}

// A Sink is safe for concurrent use, except that a single stream is handed to by
// one goroutine at a time and Poll is called by one goroutine.
type Sink interface {
	// Topic returns the handle for a topic name, making one when it is new. It
	// does no network I/O.
	Topic(name string) (uint32, error)

	// Hand copies records b.Recs[from:] to stream, of which the first has the
	// position pos, and returns how many were taken: all of them, or fewer when
	// the window is full (err nil), or none with an error when the stream is
	// stopped or the sink closed. It does not block on the network. After a
	// failure it takes nothing for a moment, one that grows if the failure comes
	// back, so that the caller need not wait before a Reset.
	Hand(stream uint32, pos uint64, b *record.Batch, from int) (n int, err error)

	// Poll waits at most d for progress and appends one Report to dst for each
	// stream that moved since the last call.
	Poll(d time.Duration, dst []Report) []Report

	// Reset lets a stream start at position pos, at first use or after a
	// failure when nothing of it is outstanding. Streams are numbered by the
	// caller, from 0 to 1<<20-1, and best without large gaps: each takes memory.
	Reset(stream uint32, pos uint64) error

	// Stats returns a consistent-enough snapshot.
	Stats() Stats

	// Close waits at most d until everything handed over is reported and
	// releases the sink. It returns an error that says how many records were
	// left without a report. It ends a Poll that waits; who wants to know the
	// last positions polls until nothing is outstanding and closes then.
	Close(d time.Duration) error
}

// A Fencer can shut out another sink, in another process: its open transaction is
// aborted, and whatever it has in hand or in librdkafka can no longer be committed,
// also if it was stopped and does not know yet. The sink of NewKafka is one.
type Fencer interface {
	// Fence initialises the transactional ids of the sink whose
	// Options.TransactionalID is given, with the settings of this one. Once it has
	// returned nil, what the other had committed can be read, and nothing more
	// will come of it until it has asked its Options.Confirm. To fence an id
	// twice, or one that nobody has used, does no harm; to fence the own one
	// makes the own producers be made anew. It gives up soon after ctx ends and
	// may have fenced then or not.
	Fence(ctx context.Context, transactionalID string) error
}

// A Recaller can take back what was handed over and is not acknowledged. It is for
// a sender that hears nothing more from Kafka and may have a successor already:
// without it, what librdkafka and the kernel hold is delivered when the network is
// back, behind what the successor has sent meanwhile. The sinks of NewKafka and of
// NewReference are Recallers.
type Recaller interface {
	// Recall gives up all that is in flight, without waiting for a broker. Each
	// stream that has something there fails with ErrRecalled; its Outstanding falls
	// to 0 soon if Poll is called, and it may be Reset at Acked as after any other
	// failure. What waits to be set aside as a dead letter is not given up.
	//
	// What has reached a broker stays there, acknowledged or not. Nothing else
	// arrives later: what librdkafka has queued is purged, and the connections on
	// which some of it may still be on its way are reset, so that the kernel
	// forgets what it has not yet sent or seen received. (NewReference's sink only
	// closes them: there the kernel goes on for a while.)
	//
	// Stats.Connected is false from the return of Recall until all that is done and
	// a broker has answered anew; Hand takes nothing before it is done. Records that
	// are handed over while Recall runs are given up or wait their turn, and it is
	// left to the caller to hand over nothing until it has found out who sends now.
	//
	// With nothing outstanding it is cheap and harmless: connections are made anew,
	// and so Connected is found out. The sink of a TransactionalID does nothing:
	// there brokers refuse what is late. Recall may be called at any time, by
	// several goroutines, also of a closed sink.
	Recall()
}
