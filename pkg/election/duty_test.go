package election

import (
	"testing"
)

// TestRouterHeardElsewhere: a router that the active does not hear belongs to
// the oldest that does, and goes back when the active hears it again; never are
// there two.
func TestRouterHeardElsewhere(t *testing.T) {
	w := settled(t, "a", "b", "c")
	for _, n := range w.nodes {
		n.hears["s"] = true
	}
	w.run(3 * heartbeat)
	w.want("both heard", w.senders("s"), "a")
	hear := func(name string, hears bool) {
		w.nodes[name].hears["s"] = hears
		w.announce()
		w.run(20 * ms)
		w.announce()
		w.run(20 * ms)
		w.announce()
		w.run(20 * ms)
	}
	hear("a", false)
	w.want("s is lost to a", w.senders("s"), "b")
	w.want("r is not", w.senders("r"), "a")
	hear("b", false)
	w.want("s is lost to b", w.senders("s"), "c")
	hear("a", true)
	w.want("a hears s again", w.senders("s"), "a")
	hear("a", false)
	w.want("s is lost to a again", w.senders("s"), "c")
	hear("c", false)
	w.want("heard by no one: what is left is the last sender's", w.senders("s"), "c")
	w.run(3 * heartbeat)
	w.want("for as long as no one hears it", w.senders("s"), "c")
	hear("b", true)
	w.want("b hears s", w.senders("s"), "b")
	hear("b", false)
	w.nodes["b"].dead = true
	w.run(takeover + 10*ms)
	w.want("the last sender is gone: the leader", w.senders("s"), "a")
}

// TestGrace: a leader that loses a router for a moment keeps it, and one that
// just comes up goes to the leader, whoever hears it first.
func TestGrace(t *testing.T) {
	w := newWorld(t)
	w.grace = 2 * sec
	w.start("a")
	w.run(10 * ms)
	w.start("b")
	w.until("first election", 3*heartbeat, func() bool { return w.senders("r") == "a" })
	w.run(3 * heartbeat)
	a, b := w.nodes["a"], w.nodes["b"]
	a.hears["r"] = false
	w.announce()
	for range 15 {
		w.run(100 * ms)
		w.want("within the grace", w.senders("r"), "a")
	}
	a.hears["r"] = true
	w.announce()
	w.run(5 * sec)
	w.want("heard again", w.senders("r"), "a")
	a.hears["r"] = false
	w.announce()
	w.until("b sends", w.grace+heartbeat, func() bool { return w.senders("r") == "b" })

	b.hears["s"] = true
	w.run(sec)
	a.hears["s"] = true
	w.announce()
	for range 30 {
		w.want("heard by b first", w.senders("s"), map[bool]string{true: "a"}[a.sends["s"]])
		w.run(100 * ms)
	}
	w.want("heard by both", w.senders("s"), "a")
}

// TestHandover: who takes over from one that lives waits until that one has
// stopped, but not for ever.
func TestHandover(t *testing.T) {
	w := settled(t, "a", "b")
	w.run(3 * heartbeat)
	a, b := w.nodes["a"], w.nodes["b"]
	a.slow = true // records are under way
	a.e.Renew(a.local())
	w.run(2 * heartbeat)
	if role, _, _ := b.e.Role(); role != Active || b.duty("r").Send {
		t.Fatalf("b is %s, duty %+v", role, b.duty("r"))
	}
	a.slow = false
	w.announce()
	w.run(10 * ms)
	w.announce()
	w.run(10 * ms)
	w.want("a has stopped", w.senders("r"), "b")

	w = settled(t, "a", "b")
	w.run(3 * heartbeat)
	a, b = w.nodes["a"], w.nodes["b"]
	a.slow = true
	a.e.Renew(a.local())
	w.until("b takes over", handover+2*heartbeat, func() bool { return b.duty("r").Send })
	if d := b.duty("r"); !d.Shared {
		t.Errorf("a has not stopped and b says it is alone: %+v", d)
	}
}

// marks is a view of one round by "me".
func marks(t *testing.T, rounds ...[]Member) int64 {
	t.Helper()
	e := New(Config{Name: "me", Instance: 1, Heartbeat: heartbeat, Expiry: expiry, Deadline: sec / 4, Failures: 3, Window: window}, sec)
	now := sec
	for _, members := range rounds {
		e.Done(now, Round{Sent: now - ms, RedisTime: redisEpoch + now, Members: members})
		now += heartbeat
	}
	return e.Duty(now, "r", true, false).LowWater
}

// TestLowWater: what a standby may rely on.
func TestLowWater(t *testing.T) {
	sends := func(name string, value uint64, mark int64) Member {
		return Member{Name: name, Value: value, TTL: expiry, Routers: map[string]RouterState{"r": {Hears: true, Sends: true, Mark: mark}}}
	}
	rests := func(name string, value uint64) Member {
		return Member{Name: name, Value: value, TTL: expiry, Routers: map[string]RouterState{"r": {Hears: true, Mark: -1}}}
	}
	gone := func(m Member) Member {
		m.Gone, m.Value = true, 0
		return m
	}
	native := Member{Name: "pmacct", Value: 1, Native: true, TTL: expiry}
	for _, tt := range []struct {
		name   string
		rounds [][]Member
		want   int64
	}{
		{"no sender: nothing may be forgotten", [][]Member{{rests("a", 1)}}, 0},
		{"no other member", [][]Member{nil}, 0},
		{"one sender", [][]Member{{sends("a", 1, 100)}}, 100},
		{"its mark moves", [][]Member{{sends("a", 1, 100)}, {sends("a", 1, 200)}}, 200},
		{"of two senders the one behind", [][]Member{{sends("a", 1, 100), sends("b", 2, 90)}}, 90},
		{"in any order", [][]Member{{sends("b", 2, 90), sends("a", 1, 100)}}, 90},
		{"a sender that has stopped vouches for what it sent", [][]Member{{sends("a", 1, 100)}, {rests("a", 1)}}, 100},
		{"and one that is gone", [][]Member{{sends("a", 1, 100)}, {gone(sends("a", 1, 150))}}, 150},
		{"but the one that sends now counts more", [][]Member{{sends("a", 1, 100)}, {gone(sends("a", 1, 150)), sends("b", 2, 90)}}, 90},
		{"a sender without a mark changes nothing", [][]Member{{sends("a", 1, 100)}, {sends("b", 2, -1)}}, 100},
		{"a native sender gives none", [][]Member{{sends("a", 2, 100)}, {sends("a", 2, 100), native}}, -1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := marks(t, tt.rounds...); got != tt.want {
				t.Errorf("low-water mark %d, want %d", got, tt.want)
			}
		})
	}
}

// TestNative: a pmacct takes part by its timestamp alone.
func TestNative(t *testing.T) {
	w := settled(t, "a")
	w.run(2 * heartbeat)
	a := w.nodes["a"]
	native := func(value uint64, d int64) {
		for end := w.now + d; w.now < end; {
			w.keys["pmacct"] = key{value, w.now + 3*sec}
			w.run(heartbeat)
		}
	}
	native(uint64(redisEpoch)+1000*uint64(sec), 3*heartbeat)
	w.want("a younger pmacct", w.senders("r"), "a")
	native(1_600_000_000_000_000, 3*heartbeat)
	w.want("an older pmacct", w.senders("r"), "")
	if d := a.duty("r"); d.Sender != "pmacct" || d.LowWater != -1 {
		t.Errorf("duty %+v", d)
	}
	a.e.Force(a.local(), ForceActive)
	native(1_600_000_000_000_000, 2*heartbeat)
	w.want("forced active", w.senders("r"), "a")
	a.e.Force(a.local(), Auto)
	native(1_600_000_000_000_000, 2*heartbeat)
	w.want("automatic again", w.senders("r"), "")
	w.until("pmacct is gone", 3*sec+100*ms, func() bool { return w.senders("r") == "a" })
	native(ForcedStandby, 2*heartbeat)
	w.want("a pmacct that yields", w.senders("r"), "a")
}
