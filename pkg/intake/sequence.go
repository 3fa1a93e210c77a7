package intake

import (
	"container/list"
	"math"
	"sync"

	"github.com/twmb/franz-go/pkg/kerr"
)

const (
	// maxSequences is how many pairs of producer id and partition are remembered,
	// those used last.
	maxSequences = 1 << 16
	// remembered is how many batches of each, as many as Kafka remembers and as an
	// idempotent producer may have under way.
	remembered = 5
)

// sequences knows what idempotent producers have sent, so that nothing is taken
// twice. It belongs to the broker and not to a connection: a producer repeats over
// a new connection what was not acknowledged over the old one.
type sequences struct {
	limit int

	mu  sync.Mutex
	all map[sequenceKey]*sequence
	old *list.List // of *sequence, the one used last in front
}

type sequenceKey struct {
	producer  int64
	topic     string
	partition int32
}

// A sequence is what one producer id has sent to one partition. It is locked
// while a batch is being taken: its repetition, over another connection, has to
// wait for the outcome.
type sequence struct {
	key   sequenceKey
	place *list.Element
	users int // under sequences.mu: who holds or wants mu

	mu      sync.Mutex
	any     bool // something has been taken in epoch
	epoch   int16
	start   int32             // from here on everything has been taken
	batches [remembered]taken // the latest first
	n       int
}

type taken struct {
	first, last int32
	offset      int64
}

func newSequences(limit int) *sequences {
	return &sequences{limit: limit, all: make(map[sequenceKey]*sequence), old: list.New()}
}

// lock returns the sequence, locked.
func (s *sequences) lock(producer int64, topic []byte, partition int32) *sequence {
	s.mu.Lock()
	q := s.all[sequenceKey{producer, string(topic), partition}]
	if q == nil {
		q = &sequence{key: sequenceKey{producer, string(topic), partition}}
		q.place = s.old.PushFront(q)
		s.all[q.key] = q
		s.shrink()
	} else {
		s.old.MoveToFront(q.place)
	}
	q.users++
	s.mu.Unlock()
	q.mu.Lock()
	return q
}

func (s *sequences) unlock(q *sequence) {
	q.mu.Unlock()
	s.mu.Lock()
	q.users--
	if !q.any && q.users == 0 {
		// Nothing came of it.
		s.drop(q)
	}
	s.mu.Unlock()
}

// shrink forgets the sequence that was used longest ago, unless it is in use.
func (s *sequences) shrink() {
	for e := s.old.Back(); e != nil && len(s.all) > s.limit; {
		q, before := e.Value.(*sequence), e.Prev()
		if q.users == 0 && q.place != s.old.Front() {
			s.drop(q)
		}
		e = before
	}
}

func (s *sequences) drop(q *sequence) {
	delete(s.all, q.key)
	s.old.Remove(q.place)
}

// check says whether a batch is to be taken (a nil error), was taken already as
// offset, or does not follow what was taken. The rules are Kafka's: a producer of
// whom nothing is known may begin anywhere (KIP-360), because it may be older than
// what we know; a new epoch begins at 0.
func (q *sequence) check(epoch int16, first, last int32) (offset int64, known bool, err error) {
	switch {
	case !q.any:
		return 0, false, nil
	case epoch < q.epoch:
		return 0, false, refuse(kerr.InvalidProducerEpoch, "epoch %d of producer %d, which has gone on to %d", epoch, q.key.producer, q.epoch)
	case epoch > q.epoch:
		if first != 0 {
			return 0, false, refuse(kerr.OutOfOrderSequenceNumber, "producer %d begins epoch %d at %d", q.key.producer, epoch, first)
		}
		return 0, false, nil
	}
	for _, t := range q.batches[:q.n] {
		if t.first == first && t.last == last {
			return t.offset, true, nil
		}
	}
	at := q.batches[0].last
	switch {
	case first == next(at):
		return 0, false, nil
	case upTo(first, at) && upTo(last, at) && upTo(q.start, first):
		// Too long ago for its offset, but taken it was.
		return 0, false, refuse(kerr.DuplicateSequenceNumber, "producer %d repeats %d to %d, taken up to %d", q.key.producer, first, last, at)
	}
	return 0, false, refuse(kerr.OutOfOrderSequenceNumber, "producer %d sends %d to %d after %d", q.key.producer, first, last, at)
}

// Sequence numbers go round: after 2³¹-1 comes 0.
func next(n int32) int32 { return int32((int64(n) + 1) & math.MaxInt32) }

// upTo says whether a is b or comes before it rather than after it.
func upTo(a, b int32) bool { return (int64(b)-int64(a))&math.MaxInt32 < 1<<30 }

// taken remembers a batch.
func (q *sequence) taken(epoch int16, first, last int32, offset int64) {
	if !q.any || epoch != q.epoch {
		q.any, q.epoch, q.n, q.start = true, epoch, 0, first
	}
	if !upTo(q.start, last) {
		q.start = first // it has gone half around
	}
	copy(q.batches[1:], q.batches[:])
	q.batches[0] = taken{first, last, offset}
	q.n = min(q.n+1, remembered)
}
