package table

import "testing"

// TestTransitions: every state and every event.
func TestTransitions(t *testing.T) {
	for _, tt := range []struct {
		from State
		on   event
		to   State
		why  string
	}{
		{Begin, opened, Begin, "opened again before anything came"},
		{Begin, route, Dump, "the dump begins"},
		{Begin, marker, EndOfRIB, "a dump of nothing"},
		{Begin, swept, Begin, "the dump decides, although nothing is stale"},
		{Dump, opened, Begin, "a dump that was cut short"},
		{Dump, route, Dump, "it goes on"},
		{Dump, marker, EndOfRIB, "it is over"},
		{Dump, swept, Dump, "more may come, although nothing is stale"},
		{EndOfRIB, opened, Begin, "what was stale stays so for the next dump to decide"},
		{EndOfRIB, route, EndOfRIB, "live routes come beside the sweep"},
		{EndOfRIB, marker, EndOfRIB, "a second marker ends nothing"},
		{EndOfRIB, swept, Live, "the sweep is done"},
		{Live, opened, Begin, "a new generation"},
		{Live, route, Live, ""},
		{Live, marker, Live, "a marker out of turn"},
		{Live, swept, Live, ""},
	} {
		if got := tt.from.after(tt.on); got != tt.to {
			t.Errorf("%v after event %d: %v, want %v: %s", tt.from, tt.on, got, tt.to, tt.why)
		}
	}
	if n := int(numStates) * int(numEvents); n != 16 {
		t.Errorf("%d transitions are not all listed here", n)
	}
}
