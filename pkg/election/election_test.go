package election

import (
	"fmt"
	"strings"
	"testing"
)

// settled returns a world of which the first member has become active.
func settled(t *testing.T, names ...string) *world {
	t.Helper()
	w := newWorld(t, names...)
	w.until("first election", 3*heartbeat, func() bool { return w.senders("r") == names[0] })
	return w
}

func TestNothingBeforeTheFirstRound(t *testing.T) {
	w := newWorld(t)
	n := w.start("a")
	if role, _, _ := n.e.Role(); role != Starting || n.duty("r").Send || n.e.Lease() != 0 {
		t.Errorf("%s, duty %+v, lease %d before the first round", role, n.duty("r"), n.e.Lease())
	}
	w.mode = "hang"
	w.run(2 * Deadline(heartbeat, expiry))
	w.want("senders after two rounds without answer", w.senders("r"), "")
	w.mode = ""
	w.until("senders", heartbeat, func() bool { return w.senders("r") == "a" })
}

func TestOldestIsActive(t *testing.T) {
	w := settled(t, "b", "c", "a")
	w.run(5 * heartbeat)
	w.want("senders", w.senders("r"), "b")
	w.want("active over time", strings.Join(w.history, ","), ",b")
	for _, name := range []string{"a", "c"} {
		if _, why, _ := w.nodes[name].e.Role(); why != "b is older" {
			t.Errorf("%s is standby because %q", name, why)
		}
	}
}

func TestEqualTimestamps(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"c", "b"} {
		w.start(name).e.takeTimestamp(uint64(redisEpoch) + 7)
	}
	w.until("senders", 2*heartbeat, func() bool { return w.senders("r") == "b" })
	w.run(5 * heartbeat)
	w.want("senders", w.senders("r"), "b")
}

// TestStartTogether: whatever the latency, those that start at once agree on
// one, and no one is active in between.
func TestStartTogether(t *testing.T) {
	for _, latency := range []int64{1 * ms, 20 * ms, 100 * ms, 240 * ms} {
		for gap := int64(0); gap <= 600*ms; gap += 40 * ms {
			w := newWorld(t)
			w.latency = latency
			w.start("b")
			w.run(gap)
			w.start("a")
			w.run(3 * heartbeat)
			if a := w.active(); len(a) != 1 || len(w.history) > 2 {
				t.Errorf("latency %d ms, %d ms apart: active over time %q", latency/ms, gap/ms, w.history)
			}
		}
	}
}

func TestTakeoverFromADeadOne(t *testing.T) {
	for _, latency := range []int64{ms, 20 * ms} {
		w := newWorld(t)
		w.latency = latency
		w.start("a")
		w.run(2 * heartbeat)
		w.start("b")
		w.run(3 * heartbeat)
		token := w.nodes["a"].e.Token()
		w.nodes["a"].dead = true
		took := w.until("takeover", 2*expiry, func() bool { return w.senders("r") == "b" })
		if most := takeover + 4*latency; took > most {
			t.Errorf("latency %d ms: took %d ms, want at most %d", latency/ms, took/ms, most/ms)
		}
		if got := w.nodes["b"].e.Token(); got <= token {
			t.Errorf("token %d after %d", got, token)
		}
	}
}

// TestTokensRise: each takeover has a larger token than all before, also when
// Redis has forgotten them.
func TestTokensRise(t *testing.T) {
	w := settled(t, "a", "b")
	last := w.nodes["a"].e.Token()
	for i := range 6 {
		from, to := "a", "b"
		if i%2 == 1 {
			from, to = to, from
		}
		if i == 3 {
			w.token = 0
		}
		w.nodes[from].e.Renew(w.nodes[from].local())
		w.until("takeover", 3*heartbeat, func() bool { return w.senders("r") == to })
		if got := w.nodes[to].e.Token(); got <= last {
			t.Fatalf("takeover %d: token %d after %d", i, got, last)
		}
		last = w.nodes[to].e.Token()
	}
}

func TestLeavingHandsOverAtOnce(t *testing.T) {
	w := settled(t, "a", "b")
	w.run(3 * heartbeat)
	a := w.nodes["a"]
	a.e.Leave(a.local())
	a.e.Look(a.local())
	if a.duty("r").Send {
		t.Error("sends after leaving")
	}
	w.run(10 * ms) // a says so
	w.announce()
	w.until("takeover", 50*ms, func() bool { return w.senders("r") == "b" })
	a.e.Claimed(a.local(), 99)
	a.e.Force(a.local(), ForceActive)
	if role, _, _ := a.e.Role(); role != Standby || a.duty("r").Send {
		t.Errorf("%s after leaving, duty %+v", role, a.duty("r"))
	}
}

// TestPause: a process that stood still past its expiry hands over nothing
// before it has seen Redis, and comes back as the youngest.
func TestPause(t *testing.T) {
	w := settled(t, "a", "b")
	w.run(3 * heartbeat)
	a := w.nodes["a"]
	before := a.e.Timestamp()
	a.paused = true
	w.until("takeover", 2*expiry, func() bool { return w.senders("r") == "b" })
	w.run(10 * sec)
	if now := a.local(); now < a.e.Lease() {
		t.Error("may hand over on waking, without another look at the clock")
	}
	a.paused = false
	for range 20 {
		w.run(heartbeat / 10)
		w.want("senders", w.senders("r"), "b")
	}
	if role, _, _ := a.e.Role(); role != Standby || a.e.Timestamp() <= before || a.e.Timestamp() <= w.nodes["b"].e.Timestamp() {
		t.Errorf("%s with timestamp %d, before %d", role, a.e.Timestamp(), before)
	}
}

// TestShortPause: one that did not last until the expiry changes nothing.
func TestShortPause(t *testing.T) {
	w := settled(t, "a", "b")
	w.run(3*heartbeat + heartbeat/3)
	a := w.nodes["a"]
	before := a.e.Timestamp()
	a.paused = true
	w.run(expiry / 2)
	a.paused = false
	w.run(3 * heartbeat)
	w.want("senders", w.senders("r"), "a")
	if a.e.Timestamp() != before {
		t.Errorf("timestamp went from %d to %d", before, a.e.Timestamp())
	}
}

// TestReplyFromBeforeAPause: what was asked before a pause is not believed
// after it.
func TestReplyFromBeforeAPause(t *testing.T) {
	e := New(Config{Name: "a", Instance: 1, Heartbeat: heartbeat, Expiry: expiry, Deadline: Deadline(heartbeat, expiry), Failures: 3, Window: window}, sec)
	now := sec
	round := func(sent int64) {
		value, claim := e.Wants()
		e.Done(now, Round{Sent: sent, RedisTime: redisEpoch + sent, Wrote: value})
		if claim {
			e.Claimed(now, 1)
		}
	}
	for range 8 {
		round(now - ms)
		now += heartbeat / 2
	}
	if role, _, _ := e.Role(); role != Active {
		t.Fatalf("%s after the first rounds", role)
	}
	sent := now
	now += 10 * sec
	round(sent)
	if role, why, _ := e.Role(); role == Active || e.Lease() != 0 {
		t.Errorf("%s (%s), lease %d, by an answer from before the pause", role, why, e.Lease())
	}
}

// TestRedisAway: whatever Redis does wrong, all become active after three rounds
// and say that they share; when it is back, with its data or without, the one
// that was active is so again, with its old timestamp, and no one else in
// between.
func TestRedisAway(t *testing.T) {
	for _, mode := range []string{"refuse", "hang", "errors"} {
		for _, empty := range []bool{false, true} {
			for _, d := range []int64{2 * sec, 30 * sec} {
				t.Run(fmt.Sprintf("%s, empty %v, %d s", mode, empty, d/sec), func(t *testing.T) {
					w := settled(t, "a", "b", "c")
					w.run(3 * heartbeat)
					before := w.nodes["a"].e.Timestamp()
					w.mode = mode
					took := w.until("all send", expiry, func() bool { return w.senders("r") == "a b c" })
					if most := heartbeat + 3*Deadline(heartbeat, expiry) + 10*ms; took > most {
						t.Errorf("all send after %d ms, want at most %d", took/ms, most/ms)
					}
					for name, n := range w.nodes {
						if n != w.nodes["a"] && !n.duty("r").Shared {
							t.Errorf("%s does not say that others may send", name)
						}
					}
					w.run(d)
					w.want("senders while Redis is away", w.senders("r"), "a b c")
					w.mode = ""
					if empty {
						w.keys, w.said, w.token = make(map[string]key), make(map[string]Member), 0
					}
					w.history = nil
					w.until("one sends", 2*heartbeat, func() bool { return w.senders("r") == "a" })
					w.run(5 * heartbeat)
					for _, active := range w.history {
						if !strings.HasPrefix(active, "a") {
							t.Errorf("active when Redis was back: %q", w.history)
						}
					}
					if w.nodes["a"].e.Timestamp() != before {
						t.Error("the outage renewed the timestamp")
					}
				})
			}
		}
	}
}

// TestRedisForgets: a Redis that restarts empty and fast, so that no one saw it
// away, makes no one else active.
func TestRedisForgets(t *testing.T) {
	for at := int64(0); at < heartbeat; at += 50 * ms {
		w := settled(t, "a", "b", "c")
		w.run(3*heartbeat + at)
		w.keys, w.said, w.token = make(map[string]key), make(map[string]Member), 0
		w.history = nil
		for range 50 { // also when all look often
			w.announce()
			w.run(heartbeat / 10)
		}
		w.want("active over time", strings.Join(w.history, ","), "a")
	}
}

// TestLeftUnseen: one that has left the list before we looked is not waited for.
func TestLeftUnseen(t *testing.T) {
	w := settled(t, "a", "b")
	w.run(3 * heartbeat)
	w.nodes["a"].dead = true
	delete(w.keys, "a")
	delete(w.said, "a")
	w.announce()
	w.until("takeover", 20*ms, func() bool { return w.senders("r") == "b" })
}

// TestRedisForgetsAndTheActiveDies: it is not waited for longer than it would be
// otherwise.
func TestRedisForgetsAndTheActiveDies(t *testing.T) {
	w := settled(t, "a", "b")
	w.run(3 * heartbeat)
	w.keys, w.said = make(map[string]key), make(map[string]Member)
	w.nodes["a"].dead = true
	w.until("takeover", takeover+10*ms, func() bool { return w.senders("r") == "b" })
}

// TestOneCutFromRedis: it goes on, and says that it is not alone; the others
// elect without it.
func TestOneCutFromRedis(t *testing.T) {
	w := settled(t, "a", "b")
	w.run(3 * heartbeat)
	a := w.nodes["a"]
	for range 50 {
		a.busy = false
		if a.local() >= a.e.Next() {
			a.e.Failed(a.local(), a.local(), "no route to host")
		}
		a.busy, a.doneAt = true, w.now+sec // no exchange of its own
		w.run(100 * ms)
	}
	if d := a.duty("r"); !d.Send || !d.Shared {
		t.Errorf("duty of the one that is cut off: %+v", d)
	}
	if d := w.nodes["b"].duty("r"); !d.Send {
		t.Errorf("duty of the other: %+v", d)
	}
}

func TestForce(t *testing.T) {
	w := settled(t, "a", "b", "c")
	w.run(3 * heartbeat)
	force := func(name string, m Mode) {
		n := w.nodes[name]
		n.e.Force(n.local(), m)
		w.run(20 * ms)
		w.announce()
		w.run(2 * heartbeat)
	}
	before := w.nodes["b"].e.Timestamp()
	force("b", ForceActive)
	w.want("forced active", w.senders("r"), "b")
	if w.keys["b"].value != ForcedActive {
		t.Errorf("b writes %d", w.keys["b"].value)
	}
	force("b", ForceStandby)
	w.want("forced standby", w.senders("r"), "a")
	if w.keys["b"].value != ForcedStandby {
		t.Errorf("b writes %d", w.keys["b"].value)
	}
	force("a", ForceStandby)
	w.want("the two oldest forced standby", w.senders("r"), "c")
	w.nodes["c"].dead = true
	w.run(2 * expiry)
	w.want("all that live forced standby", w.senders("r"), "")
	force("b", Auto)
	w.want("back to automatic", w.senders("r"), "b")
	if w.nodes["b"].e.Timestamp() != before || w.keys["b"].value != before {
		t.Errorf("timestamp %d, written %d, was %d", w.nodes["b"].e.Timestamp(), w.keys["b"].value, before)
	}
	w.mode = "refuse"
	w.run(2 * expiry)
	w.want("Redis away: all but those forced standby", w.senders("r"), "b")
}

// TestBackFromForced: all that were forced standby come back at about the same
// time, whatever the latency. The oldest is active in the end, and never do two
// send, each as if alone (the world watches that).
func TestBackFromForced(t *testing.T) {
	for _, latency := range []int64{2 * ms, 60 * ms, 200 * ms} {
		for gap := int64(0); gap < 400*ms; gap += 50 * ms {
			w := newWorld(t, "a", "b", "c")
			w.latency = latency
			w.run(3 * heartbeat)
			for _, n := range w.nodes {
				n.e.Force(n.local(), ForceStandby)
			}
			w.run(3 * heartbeat)
			w.want("forced standby", w.senders("r"), "")
			for _, name := range []string{"c", "b", "a"} {
				n := w.nodes[name]
				n.e.Force(n.local(), Auto)
				w.run(gap)
			}
			w.until("one sends", 3*heartbeat, func() bool { return w.senders("r") == "a" })
			w.run(2 * heartbeat)
			w.want("active", w.active(), "a")
		}
	}
}

// TestReasons: a collector never names itself as the older one.
func TestReasons(t *testing.T) {
	w := settled(t, "a", "b")
	b := w.nodes["b"]
	b.e.Force(b.local(), ForceActive)
	w.run(2 * heartbeat)
	b.e.Force(b.local(), Auto)
	if role, why, _ := b.e.Role(); role != Standby || why != "a is older" {
		t.Errorf("%s because %q", role, why)
	}
}

// TestRenew: signal 34 makes the collector the youngest, so that the next takes
// over; alone it stays active.
func TestRenew(t *testing.T) {
	w := settled(t, "a", "b", "c")
	w.run(3 * heartbeat)
	a := w.nodes["a"]
	a.e.Renew(a.local())
	w.run(10 * ms)
	w.announce()
	w.until("takeover", 100*ms, func() bool { return w.senders("r") == "b" })
	w.run(3 * heartbeat)
	w.want("senders", w.senders("r"), "b")
	if a.e.Timestamp() <= w.nodes["c"].e.Timestamp() {
		t.Error("not the youngest")
	}

	w = settled(t, "a")
	w.nodes["a"].e.Renew(w.nodes["a"].local())
	for range 30 {
		w.run(100 * ms)
		w.want("alone", w.senders("r"), "a")
	}
}

// TestUnfit: an active member that cannot do its job gives way to one that can,
// once, and nobody gives way when all are in the same trouble.
func TestUnfit(t *testing.T) {
	const why = "pmacct is gone"
	fit := func(w *world, names ...string) {
		for name, n := range w.nodes {
			n.e.SetUnfit(n.local(), why)
			for _, f := range names {
				if f == name {
					n.e.SetUnfit(n.local(), "")
				}
			}
		}
	}
	for _, tt := range []struct {
		name    string
		fit     []string // after a while
		then    []string // and then
		senders []string // first, after a while, in the end
	}{
		{"the active one cannot", []string{"b", "c"}, []string{"b", "c"}, []string{"a", "b", "b"}},
		{"and is well again: nothing goes back", []string{"b", "c"}, []string{"a", "b", "c"}, []string{"a", "b", "b"}},
		{"only the youngest can", []string{"c"}, []string{"c"}, []string{"a", "c", "c"}},
		{"nobody can", nil, nil, []string{"a", "a", "a"}},
		{"nobody can, and then another", nil, []string{"b"}, []string{"a", "a", "b"}},
		{"a standby cannot", []string{"a", "c"}, []string{"a", "c"}, []string{"a", "a", "a"}},
		{"they take turns", []string{"b"}, []string{"a"}, []string{"a", "b", "a"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := settled(t, "a", "b", "c")
			w.run(3 * heartbeat)
			w.want("senders", w.senders("r"), tt.senders[0])
			fit(w, tt.fit...)
			w.run(12 * heartbeat)
			w.want("senders after a while", w.senders("r"), tt.senders[1])
			fit(w, tt.then...)
			w.run(12 * heartbeat)
			w.want("senders in the end", w.senders("r"), tt.senders[2])
			changes := len(w.history)
			w.run(50 * heartbeat)
			if len(w.history) != changes {
				t.Errorf("active over time %q", w.history)
			}
		})
	}

	// What has hit all is mended for all, if not at the same moment.
	w := settled(t, "a", "b")
	w.run(3 * heartbeat)
	fit(w)
	w.run(6 * heartbeat)
	fit(w, "b")
	w.run(proof / 2)
	fit(w, "a", "b")
	w.run(12 * heartbeat)
	w.want("senders after what has hit all", w.senders("r"), "a")
	fit(w)
	w.run(6 * heartbeat)
	fit(w, "b")
	w.until("a gives way to one that has been well for long", proof+6*heartbeat, func() bool { return w.senders("r") == "b" })

	w = settled(t, "a", "b")
	w.run(3 * heartbeat)
	w.nodes["a"].e.SetUnfit(w.nodes["a"].local(), why)
	w.run(6 * heartbeat)
	if _, reason, _ := w.nodes["a"].e.Role(); reason != "b is older; "+why {
		t.Errorf("a is standby because %q", reason)
	}
}

// TestNameConflict: of two processes with one name the second sends nothing and
// says why, until the first is gone.
func TestNameConflict(t *testing.T) {
	w := settled(t, "a", "b")
	w.run(heartbeat)
	first := w.nodes["a"]
	second := w.start("a") // takes its place in the table
	w.nodes["a (first)"] = first
	w.run(5 * heartbeat)
	if role, why, _ := second.e.Role(); role != Standby || !strings.Contains(why, `another process is named "a"`) {
		t.Errorf("second: %s, %q", role, why)
	}
	w.want("senders", w.senders("r"), "a (first)")
	first.dead = true
	w.run(takeover + heartbeat)
	w.want("senders", w.senders("r"), "b")
	if role, why, _ := second.e.Role(); role != Standby || why != "b is older" {
		t.Errorf("second, after the first is gone: %s, %q", role, why)
	}
}
