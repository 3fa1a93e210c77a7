package intake

import (
	"errors"
	"math"
	"testing"
)

// TestSequence is the rules, batch after batch of one producer id and partition.
func TestSequence(t *testing.T) {
	type step struct {
		epoch       int16
		first, last int32
		want        string // taken, known, or the error
	}
	const end = math.MaxInt32
	tests := map[string][]step{
		"in order":            {{0, 0, 9, "taken"}, {0, 10, 10, "taken"}, {0, 11, 30, "taken"}},
		"again":               {{0, 0, 9, "taken"}, {0, 10, 19, "taken"}, {0, 0, 9, "known"}, {0, 10, 19, "known"}, {0, 20, 20, "taken"}},
		"gap":                 {{0, 0, 9, "taken"}, {0, 11, 12, "OUT_OF_ORDER_SEQUENCE_NUMBER"}, {0, 10, 12, "taken"}},
		"unknown, not from 0": {{3, 5000, 5009, "taken"}, {3, 5010, 5010, "taken"}, {3, 5000, 5009, "known"}},
		// What lies before was not taken here: to call it known might lose it.
		"unknown, before": {{3, 5000, 5009, "taken"}, {3, 4990, 4999, "OUT_OF_ORDER_SEQUENCE_NUMBER"}},
		"long ago": {{0, 0, 0, "taken"}, {0, 1, 1, "taken"}, {0, 2, 2, "taken"}, {0, 3, 3, "taken"}, {0, 4, 4, "taken"}, {0, 5, 5, "taken"},
			{0, 1, 1, "known"}, {0, 0, 0, "DUPLICATE_SEQUENCE_NUMBER"}},
		"packed otherwise":   {{0, 0, 9, "taken"}, {0, 0, 4, "DUPLICATE_SEQUENCE_NUMBER"}, {0, 5, 14, "OUT_OF_ORDER_SEQUENCE_NUMBER"}},
		"next epoch":         {{0, 0, 9, "taken"}, {1, 0, 4, "taken"}, {1, 5, 5, "taken"}, {0, 10, 10, "INVALID_PRODUCER_EPOCH"}, {1, 0, 4, "known"}},
		"next epoch, not 0":  {{0, 0, 9, "taken"}, {1, 10, 14, "OUT_OF_ORDER_SEQUENCE_NUMBER"}, {0, 10, 10, "taken"}},
		"round":              {{0, end - 1, end, "taken"}, {0, 0, 3, "taken"}, {0, end - 1, end, "known"}, {0, 4, 4, "taken"}},
		"round in one batch": {{0, end - 1, 1, "taken"}, {0, end - 1, 1, "known"}, {0, 2, 2, "taken"}, {0, 4, 4, "OUT_OF_ORDER_SEQUENCE_NUMBER"}},
		"half around":        {{0, 0, 1 << 29, "taken"}, {0, 1<<29 + 1, 1 << 30, "taken"}, {0, 1<<30 + 1, 1<<30 + 5, "taken"}, {0, 1<<30 + 7, 1<<30 + 8, "OUT_OF_ORDER_SEQUENCE_NUMBER"}},
	}
	for name, steps := range tests {
		t.Run(name, func(t *testing.T) {
			s := newSequences(10)
			offset := int64(0)
			for i, st := range steps {
				q := s.lock(1, []byte("t"), 0)
				_, known, err := q.check(st.epoch, st.first, st.last)
				got := "taken"
				var r *refusal
				switch {
				case errors.As(err, &r):
					got = r.kind.Message
				case known:
					got = "known"
				default:
					q.taken(st.epoch, st.first, st.last, offset)
					offset++
				}
				s.unlock(q)
				if got != st.want {
					t.Errorf("step %d: %s, want %s", i, got, st.want)
				}
			}
		})
	}
}

// TestSequencesBounded: those used longest ago are forgotten, those in use never.
func TestSequencesBounded(t *testing.T) {
	s := newSequences(3)
	take := func(id int64) *sequence {
		q := s.lock(id, []byte("t"), 0)
		q.taken(0, 0, 0, 0)
		return q
	}
	held := take(1)
	for id := int64(2); id < 100; id++ {
		s.unlock(take(id))
	}
	if len(s.all) != 3 || s.old.Len() != 3 {
		t.Errorf("%d, %d remembered", len(s.all), s.old.Len())
	}
	s.unlock(held)
	for id, want := range map[int64]bool{1: true, 97: false, 98: true, 99: true} {
		if _, got := s.all[sequenceKey{id, "t", 0}]; got != want {
			t.Errorf("producer %d: %v", id, got)
		}
	}
	// A batch that was not taken leaves nothing.
	before := len(s.all)
	s.unlock(s.lock(1000, []byte("t"), 0))
	if _, there := s.all[sequenceKey{1000, "t", 0}]; there || len(s.all) > before {
		t.Error("an empty sequence is kept")
	}
}
