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
//     because what it holds it will send, also after the process was paused.
//
// An outage of Kafka is no failure, however long it lasts: records stay
// outstanding and go out when it is over.
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
// There are three sinks: NewKafka is the one to use, over librdkafka with the
// window kept in C; NewReference does the same over confluent-kafka-go's Go
// interface, for comparison and as a fallback; NewFile writes lines to look at.
//
// The package knows nothing of BMP, roles or routers.
package sink

import (
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
	Rebuilt     uint64 // times the producer was made anew after a fatal error
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
