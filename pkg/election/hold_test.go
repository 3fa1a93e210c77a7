package election

import (
	"fmt"
	"strings"
	"testing"
)

// linked returns a settled world whose members hear each other directly.
func linked(t *testing.T, hold bool, names ...string) *world {
	t.Helper()
	w := newWorld(t)
	w.pubsub, w.links, w.grace = true, true, 500*ms
	w.config = func(c *Config) { c.Linger, c.Hold = linger, hold }
	for _, name := range names {
		w.start(name)
		w.run(10 * ms)
	}
	w.until("first election", 3*heartbeat, func() bool { return w.senders("r") == names[0] })
	w.run(3 * heartbeat)
	return w
}

// away is longer than it takes to find that Redis is unavailable.
const away = 3 * sec

func (w *world) shares() string {
	var names []string
	for _, name := range strings.Fields(w.senders("r")) {
		if w.nodes[name].duty("r").Shared {
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}

// TestHold: what the members do while Redis is away, and that nothing flaps when
// it is back. want is who sends after a while, and who of them says that it shares.
func TestHold(t *testing.T) {
	down := func(w *world) { w.mode = "refuse" }
	isolate := func(w *world, name string) {
		for o := range w.nodes {
			w.cut[[2]string{name, o}], w.cut[[2]string{o, name}] = true, true
		}
	}
	for _, tt := range []struct {
		name    string
		members string
		hold    bool
		do      func(w *world)
		want    string
		shares  string
		back    string
	}{
		{"without hold", "a b c", false, down, "a b c", "a b c", "a"},
		{"all hear each other", "a b c", true, down, "a", "", "a"},
		{"a pair", "a b", true, down, "a", "", "a"},
		{"alone", "a", true, down, "a", "a", "a"},
		{"only the active one is cut off from Redis", "a b c", true, func(w *world) { w.nodes["a"].cutOff = true }, "a", "", "a"},
		{"only a standby is cut off from Redis", "a b c", true, func(w *world) { w.nodes["b"].cutOff = true }, "a", "", "a"},
		{"the active one is cut off from all", "a b c", true, func(w *world) {
			w.nodes["a"].cutOff = true
			isolate(w, "a")
		}, "a b", "a", "a"},
		{"Redis is down and the active one is cut off", "a b c", true, func(w *world) {
			down(w)
			isolate(w, "a")
		}, "a b", "a b", "a"},
		{"and one link only", "a b c", true, func(w *world) {
			down(w)
			w.cut[[2]string{"a", "b"}], w.cut[[2]string{"b", "a"}] = true, true
		}, "a b", "a b", "a"},
		{"one way only", "a b", true, func(w *world) {
			down(w)
			w.cut[[2]string{"a", "b"}] = true
		}, "a b", "a b", "a"},
		{"the active one dies", "a b c", true, func(w *world) {
			down(w)
			w.run(away)
			w.nodes["a"].kill()
		}, "b", "", "b"},
		{"the active one of a pair dies", "a b", true, func(w *world) {
			down(w)
			w.run(away)
			w.nodes["a"].kill()
		}, "b", "", "b"},
		{"a standby dies", "a b c", true, func(w *world) {
			down(w)
			w.run(away)
			w.nodes["b"].kill()
		}, "a", "", "a"},
		{"the standby of a pair dies", "a b", true, func(w *world) {
			down(w)
			w.run(away)
			w.nodes["b"].kill()
		}, "a", "", "a"},
		{"the active one and the next die", "a b c", true, func(w *world) {
			down(w)
			w.run(away)
			w.nodes["b"].kill()
			w.run(100 * ms)
			w.nodes["a"].kill()
		}, "c", "", "c"},
		{"the host of the active one is gone: nobody refuses", "a b c", true, func(w *world) {
			down(w)
			w.run(away)
			w.nodes["a"].dead = true
		}, "b", "b", "b"},
		{"a standby is silent", "a b c", true, func(w *world) {
			down(w)
			w.run(away)
			w.nodes["c"].dead = true
		}, "a", "a", "a"},
		{"the active one is forced standby", "a b c", true, func(w *world) {
			down(w)
			w.run(away)
			w.nodes["a"].e.Force(w.nodes["a"].local(), ForceStandby)
		}, "b", "", ""},
		{"a standby starts over", "a b", true, func(w *world) {
			down(w)
			w.run(away)
			w.nodes["b"].kill()
			w.run(sec)
			w.start("b")
		}, "a", "", "a"},
		{"a pmacct is a member", "a b", true, func(w *world) {
			w.keys["pmacct"] = key{ForcedStandby - 7, w.now + 60*sec}
			w.run(2 * heartbeat)
			down(w)
		}, "a", "a", "a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := linked(t, tt.hold, strings.Fields(tt.members)...)
			tt.do(w)
			w.run(4 * away)
			w.want("who sends", w.senders("r"), tt.want)
			w.want("who shares", w.shares(), tt.shares)
			at := len(w.history)
			w.run(10 * sec)
			if len(w.history) != at {
				t.Fatalf("active over time %q", w.history)
			}
			w.mode, w.cut = "", make(map[[2]string]bool)
			for _, n := range w.nodes {
				n.cutOff = false
			}
			at = len(w.history)
			w.run(4 * heartbeat)
			if tt.back != "" {
				w.want("who sends when all is well", w.senders("r"), tt.back)
			}
			w.want("who shares", w.shares(), "")
			if strings.Contains(tt.want, " ") {
				return
			}
			if len(w.history) > at && tt.back != "" {
				t.Errorf("active when all is well again: %q", w.history[at:])
			}
		})
	}
}

// TestHoldWithoutGap: a death that is told is taken over from at once, whether Redis
// is there or not.
func TestHoldWithoutGap(t *testing.T) {
	for _, mode := range []string{"", "refuse"} {
		t.Run(fmt.Sprintf("Redis %q", mode), func(t *testing.T) {
			w := linked(t, true, "a", "b", "c")
			w.mode = mode
			w.run(away)
			token := w.nodes["a"].e.Token()
			w.nodes["a"].kill()
			w.until("b sends", 30*ms, func() bool { return w.senders("r") == "b" })
			b := w.nodes["b"]
			if d := b.duty("r"); d.Shared || d.Token <= token {
				t.Errorf("%+v, token before %d", d, token)
			}
			w.run(sec)
			token = b.e.Token()
			w.mode = ""
			w.run(3 * heartbeat)
			w.want("who sends", w.senders("r"), "b")
			if got := b.e.Token(); got < token {
				t.Errorf("token %d after %d", got, token)
			}
		})
	}
}

// TestBlip: less than Failures rounds that fail change nothing.
func TestBlip(t *testing.T) {
	for _, hold := range []bool{false, true} {
		w := linked(t, hold, "a", "b")
		w.mode = "errors"
		w.until("two rounds have failed", 3*heartbeat, func() bool { return w.nodes["a"].e.failures == 2 })
		w.mode = ""
		at := len(w.history)
		for range 50 {
			w.run(100 * ms)
			w.want("who sends", w.senders("r"), "a")
			w.want("who shares", w.shares(), "")
		}
		if len(w.history) != at {
			t.Errorf("active over time %q", w.history)
		}
	}
}

// TestDead: the news of a death counts for one instance, and not if it is heard.
func TestDead(t *testing.T) {
	w := linked(t, false, "a", "b")
	a, b := w.nodes["a"], w.nodes["b"]
	b.e.Dead(b.local(), "a", 12345)
	b.e.Dead(b.local(), "b", b.e.cfg.Instance)
	w.run(2 * heartbeat)
	w.want("another instance", w.senders("r"), "a")
	if !w.nodes["b"].duty("r").Send && len(b.e.members) != 2 {
		t.Errorf("b knows %d members", len(b.e.members))
	}
	b.e.Dead(b.local(), "a", a.e.cfg.Instance)
	w.most = heartbeat
	w.run(3 * heartbeat)
	w.want("a lives all the same and says so", w.senders("r"), "a")

	w = linked(t, false, "a", "b")
	w.nodes["a"].kill()
	w.run(100 * ms)
	w.want("a has died", w.senders("r"), "b")
	again := w.start("a")
	w.run(5 * heartbeat)
	if role, why, _ := again.e.Role(); role != Standby || why != "b is older" || len(w.nodes["b"].e.members) != 2 {
		t.Errorf("a, started over: %s, %s; b knows %d members", role, why, len(w.nodes["b"].e.members))
	}
}

// TestDeathThatIsNone: links are down for good, Redis is well, and a collector is told
// that the other has died, wrongly. It finds out within three heartbeats.
func TestDeathThatIsNone(t *testing.T) {
	for _, tt := range []struct{ told, dead string }{{"b", "a"}, {"a", "b"}} {
		t.Run(tt.dead, func(t *testing.T) {
			w := linked(t, false, "a", "b")
			w.cut[[2]string{"a", "b"}], w.cut[[2]string{"b", "a"}] = true, true
			w.most = heartbeat
			told, dead := w.nodes[tt.told], w.nodes[tt.dead]
			for range 3 {
				told.e.Dead(told.local(), tt.dead, dead.e.cfg.Instance)
				if told.e.find(tt.dead) != nil {
					t.Fatal("the news of a death does not count at once")
				}
				w.until("it is known to live", 3*heartbeat, func() bool { return told.e.find(tt.dead) != nil })
				w.until("one sends", 100*ms, func() bool { return w.senders("r") == "a" })
				at := len(w.history)
				w.run(5 * heartbeat)
				w.want("who shares", w.shares(), "")
				if len(w.history) != at {
					t.Errorf("active over time %q", w.history)
				}
			}
			dead.kill() // and nobody is told
			w.run(expiry + 100*ms)
			w.want("who sends in the end", w.senders("r"), tt.told)
		})
	}
}

// TestDeathByWords: which words in Redis show that one who is told dead lives.
func TestDeathByWords(t *testing.T) {
	const told = 100 * sec // the news
	// A round, with what it shows: by how much it was sent after the news, and its
	// words written, on a clock that was right then. step is by how much Redis' clock
	// has gone forward since.
	type look struct{ sent, words, step int64 }
	for _, tt := range []struct {
		name  string
		looks []look
		lives bool // after the last one
	}{
		{"none since", []look{{sent: 5 * ms, words: -ms}, {sent: heartbeat, words: -ms}, {sent: 9 * heartbeat, words: -ms}}, false},
		{"it goes on", []look{{sent: 5 * ms, words: -ms}, {sent: heartbeat, words: heartbeat - 5*ms}, {sent: 2 * heartbeat, words: 2*heartbeat - 5*ms}}, true},
		{"of just before the news", []look{{sent: 5 * ms, words: -heartbeat}, {sent: 5 * heartbeat, words: -ms}}, false},
		{"within a heartbeat after it", []look{{sent: 5 * ms, words: -ms}, {sent: 9 * heartbeat, words: heartbeat}}, false},
		{"after that", []look{{sent: 5 * ms, words: -ms}, {sent: 9 * heartbeat, words: heartbeat + 2*ms}}, true},
		{"seen once", []look{{sent: 9 * heartbeat, words: 2 * heartbeat}}, false},
		{"seen twice", []look{{sent: 9 * heartbeat, words: 2 * heartbeat}, {sent: 10 * heartbeat, words: 10*heartbeat - ms}}, true},
		{"a replica that knows less", []look{{sent: 5 * ms, words: -ms}, {sent: 5 * heartbeat, words: -3 * heartbeat}, {sent: 6 * heartbeat, words: -3 * heartbeat}}, false},
		{"Redis' clock goes back", []look{
			{sent: 5 * ms, words: -ms}, {5 * heartbeat, -ms, -5 * heartbeat}, {6 * heartbeat, -ms, -5 * heartbeat}, {8 * heartbeat, -ms, -5 * heartbeat},
		}, false},
		{"by more than since the words", []look{
			{5 * ms, -ms, -4 * heartbeat}, {2 * heartbeat, -ms, -4 * heartbeat}, {3 * heartbeat, -ms, -4 * heartbeat}, {5 * heartbeat, -ms, -4 * heartbeat}, {6 * heartbeat, -ms, -4 * heartbeat},
		}, false},
		{"Redis' clock goes forward", []look{{sent: 5 * ms, words: -ms}, {5 * heartbeat, -ms, 50 * heartbeat}, {6 * heartbeat, -ms, 50 * heartbeat}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := New(Config{Name: "me", Instance: 1, Heartbeat: heartbeat, Expiry: expiry, Deadline: Deadline(heartbeat, expiry), Failures: 3, Window: window}, sec)
			e.Dead(told, "x", 7)
			alive := func(l look) bool {
				r := Round{Sent: told + l.sent, RedisTime: redisEpoch + told + l.sent + ms + l.step}
				age := r.RedisTime - (redisEpoch + told + l.words)
				r.Members = []Member{{Name: "x", Instance: 7, Value: 5, TTL: expiry, Beat: max(1, age)}}
				e.Done(r.Sent+2*ms, r)
				return e.find("x") != nil
			}
			for i, l := range tt.looks {
				if got := alive(l); got != (tt.lives && i == len(tt.looks)-1) {
					t.Fatalf("look %d: lives: %v", i, got)
				}
			}
		})
	}
}

// TestOneCutOffIsKnown: whoever is not cut off from Redis knows of one that is, and
// sends; if not at once, then as soon as that one is back.
func TestOneCutOffIsKnown(t *testing.T) {
	w := linked(t, false, "a", "b")
	w.nodes["b"].cutOff = true
	w.run(away)
	w.want("b goes on", w.senders("r"), "a b")
	w.want("both know", w.shares(), "a b")

	w = linked(t, false, "a", "b")
	w.links = false
	b := w.nodes["b"]
	b.cutOff = true
	w.run(2 * away)
	w.want("b goes on", w.senders("r"), "a b")
	w.want("only b knows", w.shares(), "b")
	b.cutOff = false
	knows := false
	for range 6000 {
		w.run(ms)
		knows = knows || w.shares() == "a"
	}
	w.want("in the end", w.senders("r"), "a")
	w.want("and alone", w.shares(), "")
	if !knows {
		t.Error("a never knew of b")
	}
}

// TestMarksAreHeard: marks that are told directly count, but not beyond those of
// another that sends.
func TestMarksAreHeard(t *testing.T) {
	w := linked(t, false, "a", "b")
	b := w.nodes["b"]
	w.nodes["a"].mark = redisEpoch + 12345
	w.run(heartbeat/4 + ms)
	if got := b.duty("r").LowWater; got != redisEpoch+12345 {
		t.Errorf("mark %d", got)
	}
	now := b.local()
	say := func(name string, instance uint64, mark int64) {
		b.e.Heard(now, Member{Name: name, Instance: instance, Value: 9, Routers: map[string]RouterState{"r": {Sends: true, Mark: mark}}})
	}
	b.e.members = append(b.e.members, Member{Name: "c", Instance: 5, Value: 1 << 60, Routers: map[string]RouterState{"r": {Sends: true, Mark: redisEpoch + 5}}})
	say("a", w.nodes["a"].e.cfg.Instance, redisEpoch+99999)
	if got := b.duty("r").LowWater; got != redisEpoch+12345 {
		t.Errorf("mark %d although another sends", got)
	}
	say("b", b.e.cfg.Instance, redisEpoch+99999)
	if got := b.duty("r").LowWater; got != redisEpoch+12345 {
		t.Errorf("mark %d, our own", got)
	}
}

// TestStaleReplica: Redis fails over to a replica that has not heard for a while.
// Two may send for less than an expiry, and tokens do not go back.
func TestStaleReplica(t *testing.T) {
	step := 470 * ms
	if testing.Short() {
		step = 600 * ms
	}
	for _, lag := range []int64{100 * ms, 900 * ms, 1900 * ms, 5 * sec} {
		for at := int64(0); at < heartbeat; at += step {
			for _, change := range []string{"nothing", "a handover", "a death", "a start"} {
				w := newWorld(t, "a", "b", "c")
				w.pubsub, w.most = true, expiry
				w.config = func(c *Config) { c.Linger = linger }
				w.until("first election", 3*heartbeat, func() bool { return w.senders("r") == "a" })
				w.run(5*heartbeat + at)
				r := w.copies()
				token, want := uint64(0), "a"
				switch change {
				case "a handover":
					w.nodes["a"].e.Renew(w.nodes["a"].local())
					want = "b"
				case "a death":
					w.nodes["a"].dead = true
					want = "b"
				case "a start":
					w.start("d")
				}
				w.run(lag)
				for _, n := range w.nodes {
					token = max(token, n.e.Token())
				}
				w.failOver(r)
				at := len(w.history)
				w.until("one sends", 3*expiry, func() bool { return w.senders("r") == want })
				w.run(5 * heartbeat)
				w.want(fmt.Sprintf("%s, %d ms ago", change, lag/ms), w.senders("r"), want)
				if change == "nothing" && len(w.history) != at {
					t.Errorf("%d ms ago: active over time %q", lag/ms, w.history)
				}
				w.nodes[want].e.Renew(w.nodes[want].local())
				w.run(3 * heartbeat)
				if next := w.senders("r"); len(next) != 1 || w.nodes[next].e.Token() <= token {
					t.Errorf("%s, %d ms ago: then %q sends, token %d after %d", change, lag/ms, next, w.nodes[next].e.Token(), token)
				}
				if w.longest >= heartbeat {
					t.Errorf("%s, %d ms ago: two sent for %d ms", change, lag/ms, w.longest/ms)
				}
			}
		}
	}
}

// TestTokenOfACounterThatForgot: a claim is above all that was shown.
func TestTokenOfACounterThatForgot(t *testing.T) {
	e := New(Config{Name: "me", Instance: 1, Heartbeat: heartbeat, Expiry: expiry, Deadline: Deadline(heartbeat, expiry), Failures: 3, Window: window}, sec)
	now := sec
	round := func(r Round, claimed uint64) {
		r.Sent, r.RedisTime = now-ms, redisEpoch+now
		value, claim := e.Wants()
		r.Wrote = value
		e.Done(now, r)
		if claim {
			e.Claimed(now, claimed)
		}
		now += heartbeat / 2
	}
	for range 6 {
		round(Round{Token: 40, Members: []Member{{Name: "x", Gone: true, Token: 50}}}, 50)
	}
	if role, _, _ := e.Role(); role == Active || e.Token() != 50 {
		t.Fatalf("%s by a token that another has, knowing %d", role, e.Token())
	}
	round(Round{Token: 40}, 51)
	if role, _, _ := e.Role(); role != Active || e.Token() != 51 {
		t.Errorf("%s, token %d", role, e.Token())
	}
}
