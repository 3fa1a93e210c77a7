package gate

import "testing"

func TestCourse(t *testing.T) {
	const s = int64(1e6)
	var c Course
	want := func(at int64, whole bool, when string) {
		t.Helper()
		if got := c.Whole(at, false); got != whole {
			t.Errorf("%s: whole is %v", when, got)
		}
	}
	want(10*s, false, "before any session")
	c.Begin(10 * s)
	want(10*s, false, "at once")
	for at := 10 * s; at < 15*s; at += s / 10 {
		c.Take(at, false)
		want(at, false, "in the dump")
	}
	c.Take(15*s, true)
	want(15*s, false, "at the marker, of one family")
	for at := 15 * s; at < 16*s; at += s / 10 {
		c.Take(at, false)
	}
	want(16*s, true, "a second after the marker, with changes going on")
	c.End()
	want(17*s, true, "when the session is over")
	c.Begin(18 * s)
	c.End()
	want(20*s, false, "when the session was over before its dump")
	c.Begin(20 * s)
	want(20*s, false, "when the session opens again")
	if c.Whole(21*s, true) {
		t.Error("whole before all that has come was read")
	}
	want(21*s, true, "after a second of quiet")
	c.Begin(30 * s)
	for at := 30 * s; at < 60*s; at += s / 2 {
		c.Take(at, false)
		want(at, false, "before that")
	}
	want(60*s, true, "of a router that never pauses")
	c.Begin(100 * s)
	for at := 100 * s; at < 110*s; at += s / 2 {
		c.Take(at, true)
		want(at, false, "before the first marker was long ago")
	}
	want(110*s, true, "of a router whose peers come and go")
}
