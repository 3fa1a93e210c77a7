package topic

import "testing"

func TestHistory(t *testing.T) {
	h := history{keep: 100, most: 8}
	for _, l := range []struct {
		at   int64
		ends []int64
	}{
		{10, []int64{5}},
		{20, []int64{7}},
		{30, []int64{-1, 3}},
		{40, []int64{9, 4}},
	} {
		copy(h.add(l.at, len(l.ends)), l.ends)
	}
	for _, c := range []struct {
		slot           int
		since, end, at int64
		ok             bool
	}{
		{0, 5, 5, 10, true}, // the oldest
		{0, 10, 5, 10, true},
		{0, 19, 5, 10, true},
		{0, 39, 7, 20, true}, // over a look that did not tell
		{0, 99, 9, 40, true},
		{1, 5, 3, 30, true},
		{1, 45, 4, 40, true},
		{2, 45, 0, 0, false},
	} {
		if end, at, ok := h.before(c.slot, c.since); end != c.end || at != c.at || ok != c.ok {
			t.Errorf("slot %d since %d: %d, %d, %v", c.slot, c.since, end, at, ok)
		}
	}
	h.lower(0, 6)
	if end, _, _ := h.before(0, 25); end != 6 {
		t.Errorf("lowered to %d", end)
	}
	if end, _, _ := h.before(0, 15); end != 5 {
		t.Errorf("lowered to %d", end)
	}
}

// What is remembered is bounded in time and in number, and always covers the time
// that is to be kept.
func TestHistoryBounded(t *testing.T) {
	h := history{keep: 100, most: 8}
	for at := int64(1000); at < 3000; at += 40 {
		h.add(at, 1)[0] = at
		if from, to := h.span(); to != at || at > 1200 && (from > at-100 || from < at-140) {
			t.Fatalf("from %d to %d", from, to)
		}
	}
	for at := int64(3000); at < 3100; at++ {
		h.add(at, 1)[0] = at
	}
	if len(h.looks) != 8 {
		t.Errorf("%d looks", len(h.looks))
	}
	if n := testing.AllocsPerRun(100, func() { h.add(4000, 1)[0] = 1 }); n != 0 {
		t.Errorf("%v allocations for a look", n)
	}
}
