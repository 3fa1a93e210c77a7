package gate

import "testing"

// TestVouch: a mark does not pass what may be in no log, or only in that of another.
func TestVouch(t *testing.T) {
	const s = int64(1e6)
	var v Vouch
	want := func(now, m int64, from uint64, whole bool, bound int64, ok bool, when string) {
		t.Helper()
		if b, is := v.Bound(now, m, from, whole); b != bound && ok || is != ok {
			t.Errorf("%s: %d, %v, want %d, %v", when, b, is, bound, ok)
		}
	}
	v.Opened(10 * s)
	v.Took(10*s, 0, 5, true)
	want(11*s, 11*s, 5, false, 0, false, "in the first dump ever")
	v.Took(12*s, 5, 20, true)
	want(13*s, 11*s, 15, true, 0, false, "when the dump is over and not yet in Kafka")
	want(14*s, 14*s, 20, true, 14*s, true, "when it is")
	v.CaughtUp = 15 * s
	v.Took(15*s, 20, 21, false)
	want(16*s, 16*s, 20, true, 15*s, true, "while the socket has more")
	v.Took(17*s, 20, 40, true)
	want(18*s, 18*s, 30, true, 15*s, true, "while what was read late is not in Kafka")
	want(19*s, 19*s, 40, true, 19*s, true, "when it is")

	v.CaughtUp = 20 * s
	v.Opened(25 * s) // the session was gone for a while
	v.Took(25*s, 40, 41, true)
	want(26*s, 26*s, 41, false, 20*s, true, "in the dump of the next session")
	v.Stop(26*s, 26*s, true, 41, false)
	v.CaughtUp = 27 * s
	v.Opened(28 * s) // again, in the middle of that
	want(29*s, 29*s, 41, false, 20*s, true, "in the dump after that")
	want(30*s, 29*s, 41, true, 20*s, true, "when it is over")
	want(31*s, 30*s, 41, true, 30*s, true, "when it is in Kafka")
	if m, ok := v.StoppedAt(40 * s); m != 20*s || !ok {
		t.Errorf("who stopped within a dump vouches up to %d, %v", m, ok)
	}
	v.Stop(41*s, 41*s, true, 41, true)
	if m, ok := v.StoppedAt(40 * s); m != 40*s || !ok {
		t.Errorf("who stopped vouches up to %d, %v", m, ok)
	}
	v.CaughtUp = 42 * s
	v.Opened(45 * s)
	v.Stop(50*s, 46*s, true, 41, true)
	if m, ok := v.StoppedAt(60 * s); m != 42*s || !ok {
		t.Errorf("who stopped before a dump that was over was in Kafka vouches up to %d, %v", m, ok)
	}
	v.Stop(50*s, 0, false, 41, true)
	if _, ok := v.StoppedAt(60 * s); ok {
		t.Error("who stopped with nothing to vouch for does")
	}
	v = Vouch{}
	v.Opened(10 * s)
	v.Stop(11*s, 11*s, true, 0, false)
	if m, ok := v.StoppedAt(40 * s); ok {
		t.Errorf("who stopped within the first dump vouches up to %d", m)
	}

	v = Vouch{}
	v.Opened(10 * s)
	v.Took(10*s, 0, 5, true)
	want(12*s, 12*s, 5, true, 12*s, true, "when the first dump is over")
	v.Heard, v.CaughtUp = 20*s, 25*s
	want(25*s, 25*s, 5, true, 20*s, true, "while nothing is heard of the router")
	v.Heard, v.CaughtUp = 26*s, 27*s
	want(27*s, 27*s, 5, true, 26*s, true, "when its host is heard again")
	v.Opened(40 * s)
	want(41*s, 41*s, 6, false, 26*s, true, "in the dump of the session after one that nothing was heard of in the end")

	// What TCP kept in a silence comes later than the sign of life that ends it: a second
	// after something was read, or after as long as the silence was.
	v = Vouch{}
	v.Opened(10 * s)
	v.Took(10*s, 0, 5, true)
	want(12*s, 12*s, 5, true, 12*s, true, "when the first dump is over")
	hear := func(at int64) { v.Hear(at, 3*s, 30*s) }
	hear(13 * s)
	hear(17 * s)
	v.CaughtUp = 17 * s
	want(17*s, 17*s, 5, true, 17*s, true, "when a sign of life is no later than asked for")
	hear(25 * s)
	want(25*s, 25*s, 5, true, 17*s, true, "when a silence is over")
	want(32*s, 32*s, 5, true, 17*s, true, "while TCP may try again")
	hear(33 * s)
	want(33*s, 33*s, 5, true, 17*s, true, "in another silence")
	hear(34 * s)
	v.Took(35*s, 5, 6, true)
	want(35*s, 35*s, 6, true, 17*s, true, "while what was kept comes")
	hear(36 * s)
	want(36*s, 36*s, 6, true, 36*s, true, "when it has come")
	hear(46 * s)
	v.Opened(47 * s)
	want(48*s, 48*s, 6, false, 35*s, true, "in the dump of the session after one that was silent")
	v = Vouch{}
	v.Opened(10 * s)
	v.Took(10*s, 0, 5, true)
	want(12*s, 12*s, 5, true, 12*s, true, "when the first dump is over")
	hear(13 * s)
	hear(90 * s) // it was not looked at
	v.CaughtUp = 90 * s
	want(119*s, 119*s, 5, true, 13*s, true, "while TCP may try again, as far as one knows")
	hear(92 * s)
	hear(95 * s)
	want(120*s, 120*s, 5, true, 95*s, true, "when no session would have lived through such a silence")

	// Who does not send is not asked for a bound. What was late once is not for ever.
	v = Vouch{}
	v.Opened(10 * s)
	v.Took(11*s, 0, 5, true)
	v.CaughtUp = 60 * s
	v.Took(61*s, 3, 6, true)
	if v.Late != 6 || v.LateFrom != 10*s {
		t.Errorf("late from %d before %d while the first that came late is held", v.LateFrom, v.Late)
	}
	v.CaughtUp = 100 * s
	v.Took(101*s, 8, 9, true)
	if v.Late != 9 || v.LateFrom != 100*s {
		t.Errorf("late from %d before %d when it is not", v.LateFrom, v.Late)
	}
}
