package rig

import (
	"fmt"
	"testing"
	"time"
)

// TestStalls: what was lost is asked for by time, and a moment without a look is a
// moment in which all stood still.
func TestStalls(t *testing.T) {
	begin := time.Now()
	at := func(ms int) time.Time { return begin.Add(time.Duration(ms) * time.Millisecond) }
	s := &Stalls{looks: []look{
		{at: at(20)},
		{at: at(40), lost: 10 * time.Millisecond},
		{at: at(1060), late: time.Second, lost: time.Second},
		{at: at(1080), lost: 20 * time.Millisecond},
	}}
	for _, c := range []struct {
		from, to      int
		lost, longest time.Duration
	}{
		{0, 20, 0, 0},
		{0, 35, 10 * time.Millisecond, 0},
		{0, 40, 10 * time.Millisecond, 0},
		{0, 1080, 1030 * time.Millisecond, time.Second},
		{500, 600, 100 * time.Millisecond, time.Second}, // no more than there was
		{1065, 2000, 20 * time.Millisecond, 0},
		{1080, 2000, 0, 0},
		{600, 500, 0, time.Second},
	} {
		if lost, longest := s.Lost(at(c.from), at(c.to)), s.Longest(at(c.from), at(c.to)); lost != c.lost || longest != c.longest {
			t.Errorf("%d to %d: %s lost, %s at one go; want %s, %s", c.from, c.to, lost, longest, c.lost, c.longest)
		}
	}
}

// TestStallsLook: it looks, and a process that nobody hinders loses less than all its
// time.
func TestStallsLook(t *testing.T) {
	s := WatchStalls()
	begin := time.Now()
	must(t, WaitFor(within(t, 10*time.Second), func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.looks) < 3 {
			return fmt.Errorf("%d looks", len(s.looks))
		}
		return nil
	}))
	s.Close()
	if now := time.Now(); s.Lost(begin, now) > now.Sub(begin) {
		t.Errorf("%s lost of %s", s.Lost(begin, now), now.Sub(begin))
	}
}

// TestPressure is the kernel's text.
func TestPressure(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"some avg10=21.90 avg60=28.01 avg300=22.56 total=22191113603\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n": 22191113603 * time.Microsecond,
		"some avg10=0.00 avg60=0.00 avg300=0.00 total=0":                                                                0,
		"full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n":                                                              0,
		"some total=many\n": 0,
		"":                  0,
	} {
		if got := pressure([]byte(text)); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}
