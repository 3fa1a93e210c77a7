package dump_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/dump"
)

func at(hh, mm, ss int) time.Time { return time.Date(2026, 11, 21, hh, mm, ss, 0, time.UTC) }

func TestSlotsFollowTheClock(t *testing.T) {
	for _, test := range []struct {
		period time.Duration
		slots  int
		now    time.Time
		want   time.Time
	}{
		{time.Minute, 1, at(10, 0, 0), at(10, 0, 0)},
		{time.Minute, 1, at(10, 0, 59), at(10, 0, 0)},
		{15 * time.Minute, 1, at(10, 14, 59), at(10, 0, 0)},
		{15 * time.Minute, 1, at(10, 15, 0), at(10, 15, 0)},
		{time.Hour, 1, at(10, 59, 59).Add(999 * time.Millisecond), at(10, 0, 0)},
		{24 * time.Hour, 1, at(10, 0, 0), at(0, 0, 0)},
		{time.Hour, 1, time.Unix(-1, 0), time.Unix(-3600, 0)},
	} {
		p := dump.Plan{Period: test.period, Slots: test.slots}
		for _, router := range []string{"192.0.2.1", "edge-1", ""} {
			if got := p.Slot(router, test.now); !got.Equal(test.want) {
				t.Errorf("%v: slot of %q at %v is %v, want %v", p, router, test.now, got.UTC(), test.want)
			}
		}
	}
}

// Routers spread over the slots, each keeps its own from period to period, and
// that depends on nothing but its name.
func TestRoutersSpreadOverSlots(t *testing.T) {
	p := dump.Plan{Period: time.Hour, Slots: 12}
	if p.Every() != 5*time.Minute {
		t.Errorf("a slot every %v, want 5m", p.Every())
	}
	routers := map[int]int{}
	for i := range 1200 {
		router := fmt.Sprintf("192.0.2.%d", i)
		slot := p.Slot(router, at(10, 30, 0))
		if age := at(10, 30, 0).Sub(slot); age < 0 || age >= p.Period || slot.Unix()%300 != 0 {
			t.Fatalf("slot of %s at 10:30 is %v", router, slot.UTC())
		}
		if next := p.Slot(router, slot.Add(p.Period)); !next.Equal(slot.Add(p.Period)) {
			t.Fatalf("slot of %s is %v and then %v", router, slot.UTC(), next.UTC())
		}
		if before := p.Slot(router, slot.Add(-time.Nanosecond)); !before.Equal(slot.Add(-p.Period)) {
			t.Fatalf("slot of %s is %v and before %v", router, slot.UTC(), before.UTC())
		}
		routers[slot.Minute()/5]++
	}
	if len(routers) != 12 {
		t.Errorf("routers are in %d slots, want 12", len(routers))
	}
	for slot, n := range routers {
		if n < 50 || n > 200 {
			t.Errorf("%d of 1200 routers are in slot %d", n, slot)
		}
	}
	// The plan is one between programs of different age.
	if got := p.Slot("192.0.2.1", at(10, 30, 0)); !got.Equal(at(9, 45, 0)) {
		t.Errorf("slot of 192.0.2.1 is %v, want 09:45, as ever", got.UTC())
	}
}

func TestDue(t *testing.T) {
	p := dump.Plan{Period: time.Hour, Slots: 1}
	never := time.Time{}
	for _, test := range []struct {
		name             string
		heard, done, now time.Time
		due              bool
	}{
		{"heard since long, never dumped", at(8, 0, 0), never, at(10, 0, 0), true},
		{"taken over late in the period", at(8, 0, 0), at(9, 0, 0), at(10, 59, 59), true},
		{"dumped by the one before", at(8, 0, 0), at(10, 0, 0), at(10, 0, 1), false},
		{"a slot ahead, by another's clock", at(8, 0, 0), at(11, 0, 0), at(10, 59, 59), false},
		{"heard since just now", at(10, 0, 1), never, at(10, 30, 0), false},
		{"heard since just now, in the next slot", at(10, 0, 1), never, at(11, 0, 0), true},
	} {
		slot, due := p.Due("r", test.heard, test.done, test.now)
		if due != test.due || !slot.Equal(test.now.Truncate(time.Hour)) {
			t.Errorf("%s: due %t for %v, want %t", test.name, due, slot.UTC(), test.due)
		}
	}
	if !p.Patient(at(10, 0, 0), at(10, 29, 59)) || p.Patient(at(10, 0, 0), at(10, 30, 0)) {
		t.Error("a table that is not settled is waited for for another time than half a period")
	}
}
