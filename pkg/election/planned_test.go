package election

import (
	"testing"
)

const linger = sec

// lingering returns a settled world in which planned changes are made before they
// break.
func lingering(t *testing.T, names ...string) *world {
	t.Helper()
	w := newWorld(t)
	w.pubsub = true
	w.config = func(c *Config) { c.Linger = linger }
	for _, name := range names {
		w.start(name)
		w.run(10 * ms)
	}
	w.until("first election", 3*heartbeat, func() bool { return w.senders("r") == names[0] })
	w.run(3 * heartbeat)
	return w
}

// planned are the ways to hand over on purpose.
var planned = []struct {
	name string
	do   func(n *node)
}{
	{"signal 34", func(n *node) { n.e.Renew(n.local()) }},
	{"forced standby", func(n *node) { n.e.Force(n.local(), ForceStandby) }},
	{"leaving", func(n *node) { n.e.Yield(n.local()) }},
}

// TestMakeBeforeBreak: the old sender goes on until its heir is ready, and nobody
// says that it shares.
func TestMakeBeforeBreak(t *testing.T) {
	for _, p := range planned {
		t.Run(p.name, func(t *testing.T) {
			w := lingering(t, "a", "b", "c")
			w.read = 200 * ms
			a, b := w.nodes["a"], w.nodes["b"]
			token := a.duty("r").Token
			p.do(a)
			begun, gap := w.now, int64(0)
			for w.senders("r") != "b" {
				if w.now-begun > linger {
					t.Fatalf("b does not send after %d ms\n%s", (w.now-begun)/ms, w)
				}
				if w.senders("r") == "" {
					gap += ms
				}
				if d := a.duty("r"); d.Send && (d.Shared || d.Sender != "b" && a.e.role != Active || d.Token != token) {
					t.Fatalf("while b reads, a: %+v, want token %d", d, token)
				}
				if d := b.duty("r"); d.Send && d.Shared || b.e.role == Active && !d.Send && !d.Expect {
					t.Fatalf("b: %+v", d)
				}
				w.run(ms)
			}
			if took := w.now - begun; took < w.read {
				t.Errorf("b took over after %d ms and had not read", took/ms)
			}
			if gap > 20*ms {
				t.Errorf("%d ms without a sender", gap/ms)
			}
			if got := b.duty("r").Token; got <= token {
				t.Errorf("token %d after %d", got, token)
			}
			a.e.Leave(a.local())
			w.run(3 * heartbeat)
			w.want("in the end", w.senders("r"), "b")
		})
	}
}

// TestLingerEnds: when the old sender does not go on, or not for long.
func TestLingerEnds(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(w *world, a, b *node)
		most   int64 // time until a stops
		least  int64
	}{
		{"the heir is never ready", func(w *world, a, b *node) {
			w.read = 100 * sec
			a.e.Renew(a.local())
		}, linger + 20*ms, linger},
		{"the heir was ready before", func(w *world, a, b *node) {
			w.read = 0
			a.e.Renew(a.local())
		}, 30 * ms, 0},
		{"it cannot do the job", func(w *world, a, b *node) {
			a.e.SetUnfit(a.local(), "no broker is reached")
			a.e.Renew(a.local())
		}, 10 * ms, 0},
		{"the heir is forced to be active", func(w *world, a, b *node) {
			w.read = 100 * sec
			b.e.Force(b.local(), ForceActive)
		}, 20 * ms, 0},
		{"the heir is a pmacct", func(w *world, a, b *node) {
			w.keys["pmacct"] = key{1_600_000_000_000_000, w.now + 3*sec}
			w.announce()
		}, 10 * ms, 0},
		{"there is no heir", func(w *world, a, b *node) {
			w.read = 100 * sec
			b.e.Force(b.local(), ForceStandby)
			w.run(2 * heartbeat)
			a.e.Force(a.local(), ForceStandby)
		}, ms, 0},
		{"it leaves", func(w *world, a, b *node) {
			a.e.Leave(a.local())
		}, ms, 0},
		{"it stood still", func(w *world, a, b *node) {
			w.read = 100 * sec
			a.e.Renew(a.local())
			w.run(20 * ms)
			a.paused = true
			w.run(2 * expiry)
			a.paused = false
		}, ms, 0},
		{"without lingering", func(w *world, a, b *node) {
			a.e.cfg.Linger = 0
			a.e.Renew(a.local())
		}, 10 * ms, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := lingering(t, "a", "b")
			a, b := w.nodes["a"], w.nodes["b"]
			tt.change(w, a, b)
			took := w.until("a stops", 3*linger, func() bool { return !a.sends["r"] })
			if took > tt.most || took < tt.least {
				t.Errorf("a stopped after %d ms, want %d to %d", took/ms, tt.least/ms, tt.most/ms)
			}
			w.run(ms)
			if a.e.routers["r"].linger != 0 {
				t.Error("a remembers its heir")
			}
		})
	}
}

// TestHeirDies: a sender that lingers for one that dies goes on without a gap.
func TestHeirDies(t *testing.T) {
	w := lingering(t, "a", "b")
	w.config = nil
	w.read = 100 * sec
	a, b := w.nodes["a"], w.nodes["b"]
	a.e.cfg.Linger = handover - 100*ms
	w.links = true
	a.e.Renew(a.local())
	w.run(100 * ms)
	b.kill()
	for range 400 {
		w.run(10 * ms)
		w.want("who sends", w.senders("r"), "a")
	}
	if d := a.duty("r"); d.Shared || d.Expect {
		t.Errorf("%+v", d)
	}
}

// TestSuspect: once a sender is silent for longer than it ever is, the one that
// would take over reads what it has written, and looks more often.
func TestSuspect(t *testing.T) {
	w := settled(t, "a", "b", "c")
	w.run(3 * heartbeat)
	for range 30 {
		w.run(100 * ms)
		if w.nodes["b"].duty("r").Expect || w.nodes["c"].duty("r").Expect {
			t.Fatal("a is suspected although it speaks")
		}
	}
	w.nodes["a"].paused = true
	w.until("b expects to take over", heartbeat*3/2, func() bool { return w.nodes["b"].duty("r").Expect })
	if w.nodes["c"].duty("r").Expect {
		t.Error("c expects to take over, too")
	}
	w.until("b sends", expiry, func() bool {
		if d := w.nodes["b"].duty("r"); !d.Send && !d.Expect {
			t.Fatalf("b expects it no more: %+v\n%s", d, w)
		}
		return w.senders("r") == "b"
	})

	w = settled(t, "a", "b")
	w.run(3 * heartbeat)
	a := w.nodes["a"]
	w.until("a has spoken", heartbeat, func() bool { return a.e.Lease()-a.local() > expiry-5*ms })
	a.paused = true
	w.until("b expects to take over", heartbeat*3/2, func() bool { return w.nodes["b"].duty("r").Expect })
	a.paused = false
	w.until("it was but slow", heartbeat/2, func() bool { return !w.nodes["b"].duty("r").Expect })
	w.run(3 * heartbeat)
	w.want("who sends", w.senders("r"), "a")
}

// TestFastTimers: expiry is met exactly.
func TestFastTimers(t *testing.T) {
	for at := int64(0); at < 50*ms; at += 3 * ms {
		w := newWorld(t)
		w.heartbeat, w.expiry = 50*ms, 150*ms
		w.config = func(c *Config) { c.Linger, c.Handover = 100*ms, 300*ms }
		w.start("a")
		w.run(10 * ms)
		w.start("b")
		w.until("first election", sec, func() bool { return w.senders("r") == "a" })
		w.run(sec + at)
		w.nodes["a"].dead = true
		expires := w.keys["a"].expires
		expected := false
		w.until("b sends", 200*ms, func() bool {
			expected = expected || w.nodes["b"].duty("r").Expect
			return w.senders("r") == "b"
		})
		if late := w.now - expires; late > 10*ms {
			t.Errorf("died %d ms after a round: b took over %d ms after the expiry", at/ms, late/ms)
		}
		if !expected {
			t.Errorf("died %d ms after a round: b had no warning", at/ms)
		}
	}
}
