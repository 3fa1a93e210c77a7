package election

import (
	"testing"
)

// TestHandback: a router that another member sends goes back to the leader when
// that one has all of it, not before, and without a gap.
func TestHandback(t *testing.T) {
	half := RouterState{}
	whole := RouterState{Whole: true}
	late := RouterState{Whole: true, Behind: maxBehind + 1}
	for _, tt := range []struct {
		name     string
		failback bool
		then     func(w *world, a, b *node) // once a hears it again
		want     string
	}{
		{"half the table", true, func(w *world, a, b *node) { a.states["s"] = half }, "b"},
		{"the whole table", true, func(w *world, a, b *node) { a.states["s"] = whole }, "a"},
		{"but late", true, func(w *world, a, b *node) { a.states["s"] = late }, "b"},
		{"the whole table, later", true, func(w *world, a, b *node) {
			a.states["s"] = half
			w.run(5 * heartbeat)
			w.want("half the table", w.senders("s"), "b")
			a.states["s"] = whole
		}, "a"},
		{"never", false, func(w *world, a, b *node) { a.states["s"] = whole }, "b"},
		{"never, but b loses it", false, func(w *world, a, b *node) {
			a.states["s"] = half
			w.run(5 * heartbeat)
			b.hears["s"] = false
		}, "a"},
		{"never, but b is gone", false, func(w *world, a, b *node) {
			a.states["s"] = half
			w.run(5 * heartbeat)
			b.dead = true
		}, "a"},
		{"never, but b is forced standby", false, func(w *world, a, b *node) { b.e.Force(b.local(), ForceStandby) }, "a"},
		{"never, but a is forced active", false, func(w *world, a, b *node) { a.e.Force(a.local(), ForceActive) }, "a"},
		{"b is unfit", false, func(w *world, a, b *node) {
			a.states["s"] = whole
			b.e.SetUnfit(b.local(), "log full")
		}, "a"},
		{"b is unfit, but a has half the table", false, func(w *world, a, b *node) {
			a.states["s"] = half
			b.e.SetUnfit(b.local(), "log full")
		}, "b"},
		{"a is gone: b is the leader", false, func(w *world, a, b *node) { a.dead = true }, "b"},
		{"c comes first, then", true, func(w *world, a, b *node) {
			a.states["s"] = half
			w.nodes["c"].e.Force(w.nodes["c"].local(), ForceActive)
		}, "c"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.pubsub, w.grace = true, expiry
			w.config = func(c *Config) { c.Linger, c.Failback = linger, tt.failback }
			for _, name := range []string{"a", "b", "c"} {
				w.start(name).hears["s"] = true
				w.run(10 * ms)
			}
			w.until("first election", 3*heartbeat, func() bool { return w.senders("s") == "a" })
			w.run(3 * heartbeat)
			a, b := w.nodes["a"], w.nodes["b"]
			a.hears["s"] = false
			w.until("b expects it", 2*heartbeat, func() bool { return b.duty("s").Expect })
			w.until("b sends it", w.grace+2*heartbeat, func() bool { return w.senders("s") == "b" })
			w.run(2 * heartbeat)
			if d := b.duty("s"); !d.Keeps || d.Shared || d.Expect {
				t.Fatalf("b: %+v", d)
			}
			a.states["s"] = half
			a.hears["s"] = true
			tt.then(w, a, b)
			gap, most := int64(0), int64(0)
			for end := w.now + 10*heartbeat; w.now < end; w.run(ms) {
				if w.senders("s") != "" {
					gap = 0
					continue
				}
				gap += ms
				most = max(most, gap)
			}
			w.want("who sends s", w.senders("s"), tt.want)
			if most > 20*ms && !b.dead {
				t.Errorf("%d ms without a sender", most/ms)
			}
			for name, n := range w.nodes {
				if d := n.duty("s"); !n.dead && (d.Shared || d.Expect && name != "a") {
					t.Errorf("%s in the end: %+v", name, d)
				}
			}
		})
	}
}

// TestWholeDoesNotMatterAtFirst: a router that nobody sends is not waited for.
func TestWholeDoesNotMatterAtFirst(t *testing.T) {
	w := settled(t, "a", "b")
	w.grace = expiry
	for _, n := range w.nodes {
		n.e.cfg.Grace = expiry
		n.states["s"] = RouterState{Behind: 2 * maxBehind}
		n.hears["s"] = true
	}
	w.run(heartbeat)
	w.want("who sends s", w.senders("s"), "a")
}

// TestBehind: a sender that is late gives the router up to one that is not, once.
func TestBehind(t *testing.T) {
	start := func(t *testing.T, failback bool) *world {
		w := newWorld(t)
		w.pubsub, w.grace = true, 500*ms
		w.config = func(c *Config) { c.Linger, c.Failback = linger, failback }
		for _, name := range []string{"a", "b", "c"} {
			w.start(name)
			w.run(10 * ms)
		}
		w.until("first election", 3*heartbeat, func() bool { return w.senders("r") == "a" })
		w.run(3 * heartbeat)
		return w
	}
	behind := func(w *world, name string, d int64) {
		w.nodes[name].states["r"] = RouterState{Whole: true, Behind: d}
	}
	for _, tt := range []struct {
		name     string
		failback bool
		do       func(w *world)
		want     string
	}{
		{"a little", true, func(w *world) { behind(w, "a", maxBehind) }, "a"},
		{"by much", true, func(w *world) { behind(w, "a", 2*maxBehind) }, "b"},
		{"not for long", true, func(w *world) {
			behind(w, "a", 2*maxBehind)
			w.run(steady / 2)
			behind(w, "a", 0)
		}, "a"},
		{"and so are all others", true, func(w *world) {
			for name := range w.nodes {
				behind(w, name, 2*maxBehind)
			}
		}, "a"},
		{"and so is b", true, func(w *world) {
			behind(w, "b", 2*maxBehind)
			behind(w, "a", 2*maxBehind)
		}, "c"},
		{"b has half the table", true, func(w *world) {
			w.nodes["b"].states["r"] = RouterState{}
			behind(w, "a", 2*maxBehind)
		}, "c"},
		{"and is so no more", true, func(w *world) {
			behind(w, "a", 2*maxBehind)
			w.run(10 * heartbeat)
			w.want("while a is late", w.senders("r"), "b")
			behind(w, "a", 0)
		}, "a"},
		{"and is so no more, without failback", false, func(w *world) {
			behind(w, "a", 2*maxBehind)
			w.run(10 * heartbeat)
			behind(w, "a", 0)
		}, "b"},
		{"and then b is", false, func(w *world) {
			behind(w, "a", 2*maxBehind)
			w.run(10 * heartbeat)
			behind(w, "a", 0)
			w.run(10 * heartbeat)
			behind(w, "b", 2*maxBehind)
		}, "a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := start(t, tt.failback)
			tt.do(w)
			for range 1000 {
				w.run(10 * ms)
				if w.senders("r") == "" && w.now%heartbeat == 0 {
					t.Fatalf("nobody sends\n%s", w)
				}
			}
			w.want("who sends r", w.senders("r"), tt.want)
		})
	}
	t.Run("now and then", func(t *testing.T) {
		w := start(t, true)
		changes, last := 0, w.senders("r")
		begun := w.now
		for w.now-begun < 100*sec {
			d := int64(0)
			if (w.now-begun)/(3*sec)%2 == 0 {
				d = 2 * maxBehind
			}
			behind(w, "a", d)
			w.run(20 * ms)
			if s := w.senders("r"); s != last && s != "" {
				changes, last = changes+1, s
			}
		}
		if most := int(2*100*sec/(4*steady)) + 1; changes > most || changes == 0 {
			t.Errorf("%d changes in 100 s, want 1 to %d", changes, most)
		}
	})
}

// TestReasonsComeAndGo: trouble of several kinds, one after the other, does not
// make the active role wander.
func TestReasonsComeAndGo(t *testing.T) {
	whys := []string{"no broker is reached", "pmacct is gone", "log full", ""}
	w := lingering(t, "a", "b", "c")
	at := len(w.history)
	for i := range 400 {
		for j, name := range []string{"a", "b", "c"} {
			n := w.nodes[name]
			if why := whys[(i/(5+3*j)+j)%len(whys)]; why != n.e.Unfit() {
				n.e.SetUnfit(n.local(), why)
			}
		}
		w.run(100 * ms)
		if s := w.senders("r"); s == "" && i%10 == 0 {
			t.Logf("nobody sends at %d ms", w.now/ms)
		}
	}
	least := handover + 2*expiry // between two times that one gives way
	if n, most := len(w.history)-at, 2*3*int(40*sec/least+1); n > most {
		t.Errorf("active over time %q: %d changes in 40 s, want at most %d", w.history, n, most)
	}
	for _, n := range w.nodes {
		n.e.SetUnfit(n.local(), "")
	}
	w.run(3 * heartbeat)
	settled := w.active()
	at = len(w.history)
	w.run(20 * heartbeat)
	if len(w.history) != at || len(settled) != 1 {
		t.Errorf("all are well: %q", w.history[at:])
	}
}

// TestEarlierVersion: beside a member of an earlier version, which takes a router as
// soon as it hears it and says nothing of how current it is.
func TestEarlierVersion(t *testing.T) {
	type say = RouterState
	for _, tt := range []struct {
		name    string
		us      uint64 // our timestamp; the other's is 100
		self    say
		other   say
		hears   bool
		sends   bool
		want    bool // we send
		because string
	}{
		{"it leads and hears the router again", 200, say{Hears: true, Sends: true, Keeps: true, Whole: true}, say{Hears: true}, true, true,
			false, "it takes the router at once, so there is nothing to keep"},
		{"it leads and does not hear it", 200, say{Hears: true, Sends: true, Keeps: true, Whole: true}, say{}, true, true,
			true, "as ever"},
		{"we lead and lag", 50, say{Hears: true, Sends: true, Whole: true, Lags: true, Behind: 10 * maxBehind}, say{Hears: true}, true, true,
			true, "it does not know that it should take the router"},
		{"we lead and it has stopped", 50, say{Hears: true, Whole: true}, say{Hears: true, Mark: -1}, true, false,
			true, "as ever"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := New(Config{
				Name: "me", Instance: 1, Heartbeat: heartbeat, Expiry: expiry, Deadline: Deadline(heartbeat, expiry), Failures: 3,
				Window: window, Handover: handover, Linger: linger, Failback: true, MaxBehind: maxBehind, Steady: steady,
			}, sec)
			e.takeTimestamp(tt.us)
			now := sec
			var d Duty
			for range 20 {
				self := Member{Name: "me", Instance: 1, Value: tt.us, Routers: map[string]RouterState{"r": tt.self}}
				it := Member{Name: "it", Instance: 2, Value: 100, TTL: expiry, Old: true, Routers: map[string]RouterState{"r": tt.other}}
				_, claim := e.Wants()
				e.Done(now, Round{Sent: now - ms, RedisTime: redisEpoch + now, Wrote: tt.us, Members: []Member{it, self}})
				if claim {
					e.Claimed(now, e.Token()+1)
				}
				d = e.Duty(now, "r", tt.hears, tt.sends)
				now += heartbeat / 2
			}
			if d.Send != tt.want {
				t.Errorf("%+v: %s", d, tt.because)
			}
		})
	}
}

// TestDutyAllocatesNothing: it is asked for every router at every turn.
func TestDutyAllocatesNothing(t *testing.T) {
	w := lingering(t, "a", "b", "c")
	for _, n := range w.nodes {
		if allocs := testing.AllocsPerRun(100, func() { n.duty("r") }); allocs != 0 {
			t.Errorf("%s: %v allocations", n.name, allocs)
		}
	}
}

func BenchmarkDuty(b *testing.B) {
	e := New(Config{Name: "me", Instance: 1, Heartbeat: heartbeat, Expiry: expiry, Deadline: sec / 4, Failures: 3, Window: window, Failback: true}, sec)
	state := map[string]RouterState{"r": {Hears: true, Sends: true, Whole: true}}
	e.Done(sec, Round{Sent: sec, RedisTime: redisEpoch, Members: []Member{
		{Name: "a", Value: 1, TTL: expiry, Routers: state}, {Name: "b", Value: 2, TTL: expiry, Routers: state},
	}})
	e.Done(sec, Round{Sent: sec, RedisTime: redisEpoch, Members: []Member{
		{Name: "a", Value: 1, TTL: expiry, Routers: state}, {Name: "b", Value: 2, TTL: expiry, Routers: state},
	}})
	b.ReportAllocs()
	for b.Loop() {
		e.Duty(sec, "r", true, false)
	}
}
