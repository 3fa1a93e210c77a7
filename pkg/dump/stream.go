package dump

import (
	"errors"
	"sync"
	"time"

	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/sink"
)

// A Sink is what a Stream needs of a sink.Sink.
type Sink interface {
	Hand(stream uint32, pos uint64, b *record.Batch, from int) (n int, err error)
	Reset(stream uint32, pos uint64) error
}

const (
	batchBytes   = 256 << 10
	backoffLeast = int64(50 * time.Millisecond / time.Microsecond)
	backoffMost  = int64(5 * time.Second / time.Microsecond)
)

// A Stream takes one dump after the other to a sink, as a stream of its own there.
// Report may be called by another goroutine than the rest. Times are
// microseconds on a clock of the caller that never goes back.
type Stream struct {
	sink   Sink
	id     uint32
	window int

	// Owned by the caller of all but Report, which only looks at next with mu held.
	d    *Dump
	free *record.Batch

	mu      sync.Mutex
	batches []flight // what is not acknowledged, in order
	begun   bool     // the sink has the stream
	start   uint64   // position of the dump's first record
	next    uint64   // position of the next record to be made
	handed  uint64   // of the next one to hand over
	acked   uint64   // of the first one that is not acknowledged
	failed  bool     // the sink stopped the stream
	left    uint64   // after that: records without a report
	failing int64    // since when nothing was acknowledged but failures came; 0: not
	rest    int64    // nothing is tried before
	backoff int64
	err     error // the last
	moved   chan struct{}
}

// A flight is a batch and the position of its first record.
type flight struct {
	pos uint64
	b   *record.Batch
}

// NewStream returns a stream that is called id in s and has at most window records
// made and not acknowledged, about.
func NewStream(s Sink, id uint32, window int) *Stream {
	return &Stream{sink: s, id: id, window: window, moved: make(chan struct{}, 1)}
}

// Begin takes on a dump. The one before must be Done or abandoned.
func (s *Stream) Begin(d *Dump) {
	s.d = d
	s.mu.Lock()
	s.start, s.failing, s.err = s.next, 0, nil
	s.mu.Unlock()
}

// Moved receives when a report has come since the last look at it.
func (s *Stream) Moved() <-chan struct{} { return s.moved }

// Fill makes further records if there is room for them.
func (s *Stream) Fill() {
	s.mu.Lock()
	room := s.window - int(s.next-s.acked)
	s.mu.Unlock()
	if s.d == nil || s.d.Ended() || room <= 0 {
		return
	}
	b := s.batch()
	s.d.Fill(b, room, batchBytes)
	s.add(b)
}

func (s *Stream) batch() *record.Batch {
	b := s.free
	s.free = nil
	if b == nil {
		b = new(record.Batch)
	}
	b.Reset()
	return b
}

// add puts a batch behind the others.
func (s *Stream) add(b *record.Batch) {
	if b.Len() == 0 {
		s.free = b
		return
	}
	s.mu.Lock()
	s.batches = append(s.batches, flight{s.next, b})
	s.next += uint64(b.Len())
	s.mu.Unlock()
}

// Hand hands over what was made and reports whether the sink took all of it. It
// does not block. The caller makes sure that it may be handed over now.
func (s *Stream) Hand(now int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed || !s.begun {
		if now < s.rest || s.failed && s.left > 0 {
			return false
		}
		from := s.next // of what an abandoned dump has left, nothing is sent again
		if len(s.batches) > 0 {
			from = max(s.acked, s.batches[0].pos)
		}
		if err := s.sink.Reset(s.id, from); err != nil {
			s.fail(err, now, 0)
			return false
		}
		s.begun, s.failed, s.handed, s.acked = true, false, from, from
	}
	for i := range s.batches {
		f := &s.batches[i]
		if s.handed >= f.pos+uint64(f.b.Len()) {
			continue
		}
		n, err := s.sink.Hand(s.id, s.handed, f.b, int(s.handed-f.pos))
		s.handed += uint64(n)
		switch {
		case errors.Is(err, sink.ErrStopped), errors.Is(err, sink.ErrClosed):
			return false // the report of the failure is on its way, or it is the end
		case err != nil:
			s.fail(err, now, s.handed-s.acked)
			return false
		case s.handed < f.pos+uint64(f.b.Len()):
			return false
		}
	}
	return true
}

// fail lets the stream rest after a failure.
func (s *Stream) fail(err error, now int64, left uint64) {
	s.failed, s.left, s.err = true, left, err
	if errors.Is(err, sink.ErrBatchRefused) {
		return // goes on one by one, at once
	}
	if s.failing == 0 {
		s.failing = now
	}
	if now >= s.rest { // else several reports of one failure
		s.backoff = min(max(2*s.backoff, backoffLeast), backoffMost)
		s.rest = now + s.backoff
	}
}

// Report follows a report of the sink about the stream.
func (s *Stream) Report(r *sink.Report, now int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Acked > s.acked && r.Acked <= s.handed {
		s.acked = r.Acked
		s.failing, s.backoff = 0, 0
		for len(s.batches) > 0 && s.acked >= s.batches[0].pos+uint64(s.batches[0].b.Len()) {
			s.batches[0] = flight{}
			s.batches = s.batches[1:]
		}
	}
	if r.Err != nil {
		s.fail(r.Err, now, uint64(r.Outstanding))
	} else if s.failed {
		s.left = uint64(r.Outstanding)
	}
	select {
	case s.moved <- struct{}{}:
	default:
	}
}

// Done reports whether the dump is as a whole acknowledged.
func (s *Stream) Done() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.d != nil && s.d.Ended() && s.acked == s.next
}

// Idle reports whether nothing is under way to the sink.
func (s *Stream) Idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.idle()
}

func (s *Stream) idle() bool {
	if s.failed {
		return s.left == 0
	}
	return s.acked == s.handed
}

// Failing returns the last error of a stream of which nothing was acknowledged
// since, and the time of the first such error. It returns nil if all is well.
func (s *Stream) Failing() (since int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failing == 0 {
		return 0, nil
	}
	return s.failing, s.err
}

// Interrupt ends the dump where it is: what was not handed over is dropped, and
// dump_close says why. It reports whether there is anything to wait for, until
// Done; nothing, if no one has heard of the dump.
func (s *Stream) Interrupt(why string) bool {
	if s.d == nil || s.Done() {
		return false
	}
	whole, begun := s.cut()
	if !begun {
		s.d = nil
		return false
	}
	if whole {
		return true // all of it is on its way
	}
	b := s.batch()
	s.d.interrupt(b, why)
	s.add(b)
	return true
}

// Abandon forgets the dump. What was handed over may still arrive.
func (s *Stream) Abandon() {
	s.cut()
	s.d = nil
	s.mu.Lock()
	s.batches = nil
	s.mu.Unlock()
}

// cut drops what was not handed over. It reports whether that was nothing and will
// be nothing, and whether anything of the dump was handed over.
func (s *Stream) cut() (whole, begun bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	whole = s.d != nil && s.d.Ended() && s.handed == s.next
	for n := len(s.batches); n > 0 && s.batches[n-1].pos >= s.handed; n-- {
		s.batches[n-1] = flight{}
		s.batches = s.batches[:n-1]
	}
	if n := len(s.batches); n > 0 {
		f := &s.batches[n-1]
		f.b.Recs = f.b.Recs[:s.handed-f.pos]
	}
	s.next = s.handed
	return whole, s.handed > s.start
}
