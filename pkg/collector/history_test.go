package collector

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bmpha/bmpha/pkg/cluster"
	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/election"
	"github.com/bmpha/bmpha/pkg/link"
	"github.com/bmpha/bmpha/pkg/seam"
)

// TestPlannedTakeoverIsShown: who went on, behind whom, and that nothing was missing.
func TestPlannedTakeoverIsShown(t *testing.T) {
	l := newLab(t)
	linked := func(o *Options) {
		patient(o)
		o.ReadBackTime = time.Minute
		o.Link = &link.Options{Listen: "127.0.0.1:0", Secret: []byte("only for this test")}
		o.HoldRoles = true
	}
	a := l.start("a", linked)
	l.role(a, "active")
	b := l.start("b", linked)
	l.role(b, "standby")
	r := l.router(numbered(t), 500, a, b)
	l.atLeast(500)
	r.Pause(true) // so that it is seen that it has told its table
	l.until("the link, the readings and what is read back", func() error {
		for _, m := range []*member{a, b} {
			st := m.Status()
			if len(st.Link.Peers) != 1 || !st.Link.Peers[0].Connected || !st.Link.Holds {
				return fmt.Errorf("link of %s: %+v", m.o.Process, st.Link)
			}
			if st.Link.Peers[0].HeardAge == 0 || st.Link.Peers[0].Instance == "" {
				return fmt.Errorf("peer of %s: %+v", m.o.Process, st.Link.Peers[0])
			}
			if b := st.ReadBack; b == nil || b.Topics != 1 || b.Known != 4 || b.Unknown > 2 {
				return fmt.Errorf("read back of %s: %+v", m.o.Process, b)
			}
			r := st.Routers[0]
			if len(r.Readings) != 2 || !r.Readings[0].Whole || !r.Readings[1].Whole || !r.Readings[0].Sends || r.Readings[1].Sends {
				return fmt.Errorf("readings of %s: %+v", m.o.Process, r.Readings)
			}
			if r.Sender != "a" || r.Why != control.WhyLeads || r.LowWater == 0 || r.LowWaterLag <= 0 {
				return fmt.Errorf("router of %s: %+v", m.o.Process, r)
			}
		}
		return nil
	})
	if st := a.Status(); len(st.Takeovers) != 0 {
		t.Errorf("a has taken over from nobody, and shows %+v", st.Takeovers)
	}

	r.Pause(false)
	before := time.Now()
	if err := a.Regenerate(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.role(b, "active")
	l.until("the takeover", func() error {
		st := b.Status()
		if len(st.Takeovers) != 1 {
			return fmt.Errorf("%+v", st.Takeovers)
		}
		if got := st.Takeovers[0]; got.Waiting != 0 || got.Gap == 0 {
			return fmt.Errorf("%+v", got)
		}
		return nil
	})
	st := b.Status()
	got := st.Takeovers[0]
	if got.From != "a" || got.How != control.HowHandedOver || !got.Planned || got.Routers != 1 || got.Blind != 0 || got.Error != "" || got.Token != st.Token {
		t.Errorf("takeover %+v, want one router handed over by a", got)
	}
	if got.At.Before(before.Add(-time.Second)) || got.At.After(time.Now().Add(time.Second)) || got.Gap > 10 {
		t.Errorf("at %s for %v s without a sender, want after %s, and shortly", got.At, got.Gap, before)
	}
	if st.TakeoversTotal[control.HowHandedOver] != 1 {
		t.Errorf("counted %v", st.TakeoversTotal)
	}
	l.until("no problems after a planned takeover", func() error {
		st := b.Status()
		if p := control.Problems(&st, time.Now()); len(p) != 0 {
			return fmt.Errorf("%v", p)
		}
		return nil
	})
	for _, m := range []*member{b, a} { // while the router is there, so that neither waits for the other
		if err := m.stop(); err != nil {
			t.Error(err)
		}
	}
}

// said is a member that is no collector: it says what it is told to.
type said struct {
	stop context.CancelFunc
	done chan struct{}
}

// speaks has a member speak in Redis, as the oldest, until stopped: as if its process
// had been killed then.
func (l *lab) speaks(name string, routers map[string]election.RouterState) *said {
	l.t.Helper()
	client := cluster.New(cluster.Options{
		Address: l.redis.Addr(), Keys: cluster.NewKeys("lab", 0), Process: name,
		Expiry: 5 * time.Second, Deadline: time.Second, Keep: 15 * time.Second,
	})
	const oldest = 1_600_000_000_000_000
	ctx, stop := context.WithCancel(context.Background())
	s := &said{stop: stop, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		defer client.Close()
		start := time.Now()
		for ctx.Err() == nil {
			_, _, _ = client.Round(ctx, &cluster.Self{
				Instance: 0xabc, Role: "active", Mode: "auto", Token: 1, Routers: routers, Since: start.UnixMicro(),
			}, oldest, oldest, func() int64 { return time.Since(start).Microseconds() })
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	l.t.Cleanup(s.kill)
	return s
}

func (s *said) kill() {
	s.stop()
	<-s.done
}

// TestUnplannedTakeoverIsShown: the one before falls silent.
func TestUnplannedTakeoverIsShown(t *testing.T) {
	l := newLab(t)
	a := l.speaks("a", map[string]election.RouterState{"pe1": {Hears: true, Sends: true, Whole: true, Mark: -1}, "pe2": {Hears: true, Sends: true, Whole: true, Mark: -1}})
	b := l.start("b", patient, func(o *Options) { o.Alias = map[netip.Addr]string{netip.MustParseAddr("127.0.0.1"): "pe1"} })
	l.role(b, "standby")
	l.router(numbered(t), 500, b)
	l.until("what is held", func() error {
		st := b.Status()
		if len(st.Routers) == 0 || st.Routers[0].Held.Messages < 100 {
			return fmt.Errorf("%+v", st.Routers)
		}
		if r := st.Routers[0]; r.Why != control.WhyLeads || r.Sender != "a" {
			return fmt.Errorf("sent by %q, %s", r.Sender, r.Why)
		}
		return nil
	})
	a.kill()
	l.until("the takeover", func() error {
		st := b.Status()
		if len(st.Takeovers) == 0 || st.Takeovers[0].Gap == 0 {
			return fmt.Errorf("%+v", st.Takeovers)
		}
		return nil
	})
	st := b.Status()
	got := st.Takeovers[0]
	if got.From != "a" || got.How != control.HowExpired || got.Planned || got.Routers != 1 || got.Waiting != 0 {
		t.Errorf("takeover %+v, want one router from a, which has fallen silent", got)
	}
	if got.Gap < 2 || got.Gap > 30 {
		t.Errorf("%v s without a sender, want the expiry and a little", got.Gap)
	}
	if st.TakeoversTotal[control.HowExpired] != 1 {
		t.Errorf("counted %v", st.TakeoversTotal)
	}
}

// TestHistory: what has become of the one before, and which passages are one.
func TestHistory(t *testing.T) {
	const token = 7
	sends := map[string]election.RouterState{"r": {Hears: true, Sends: true}}
	alive := func(instance uint64, routers map[string]election.RouterState) []election.Member {
		return []election.Member{{Name: "a", Instance: instance, Routers: routers}}
	}
	for _, tt := range []struct {
		name    string
		words   []cluster.Member // of a, at their beats in ms from now on
		dead    uint64           // instance of a that has died
		members []election.Member
		away    bool
		how     string // "" for no takeover
	}{
		{"nobody has sent it", nil, 0, alive(1, nil), false, ""},
		{"hears it only", []cluster.Member{{Member: election.Member{Instance: 1, Routers: map[string]election.RouterState{"r": {Hears: true}}}}}, 0, nil, false, ""},
		{"has stopped for it", []cluster.Member{{Member: election.Member{Instance: 1, Routers: sends}}}, 0, alive(1, nil), false, control.HowHandedOver},
		{"sends on", []cluster.Member{{Member: election.Member{Instance: 1, Routers: sends}}}, 0, alive(1, sends), false, control.HowOverdue},
		{"has left", []cluster.Member{
			{Member: election.Member{Instance: 1, Routers: sends}},
			{Member: election.Member{Instance: 1}, Beat: 1, Left: true},
		}, 0, nil, false, control.HowStopped},
		{"is silent", []cluster.Member{{Member: election.Member{Instance: 1, Routers: sends}}}, 0, nil, false, control.HowExpired},
		{"is dead", []cluster.Member{{Member: election.Member{Instance: 1, Routers: sends}}}, 1, nil, false, control.HowDead},
		{"another of its name is dead", []cluster.Member{{Member: election.Member{Instance: 1, Routers: sends}}}, 2, nil, false, control.HowExpired},
		{"has been replaced by another of its name", []cluster.Member{
			{Member: election.Member{Instance: 1, Routers: sends}},
			{Member: election.Member{Instance: 2}, Beat: 1},
		}, 0, alive(2, nil), false, control.HowExpired},
		{"Redis is away", []cluster.Member{{Member: election.Member{Instance: 1, Routers: sends}}}, 0, alive(1, sends), true, control.HowRedisAway},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := still(t)
			h := &c.past
			r := c.router("r", netip.Addr{}, false)
			now := c.clock.now()
			for _, m := range tt.words {
				m.Name, m.Beat = "a", c.clock.toRedis(now)-50_000+m.Beat
				h.hear(&m)
			}
			h.died("a", tt.dead)
			r.turned = now
			h.turn(r, &election.Duty{Send: true, Token: token}, "a", tt.members, tt.away)
			list, how := h.takeovers()
			if tt.how == "" {
				if len(list) != 0 {
					t.Errorf("%+v, want nothing", list)
				}
				return
			}
			if len(list) != 1 || list[0].How != tt.how || list[0].From != "a" || list[0].Token != token || how[tt.how] != 1 {
				t.Fatalf("%+v, counted %v, want one from a: %s", list, how, tt.how)
			}
			// Nothing was there to send, and nothing waited for.
			if got := list[0].Gap; got < 0.04 || got > 5 {
				t.Errorf("%v s without a sender, want from the last word on", got)
			}
			// That it has sent itself is no takeover.
			h.turn(r, &election.Duty{}, "b", nil, false)
			h.turn(r, &election.Duty{Send: true, Token: token + 1}, "b", nil, false)
			if list, _ := h.takeovers(); len(list) != 1 {
				t.Errorf("going on after itself: %+v", list)
			}
		})
	}
}

// TestPassages: routers that go on together are one takeover, and the last few are
// kept.
func TestPassages(t *testing.T) {
	c := still(t)
	h := &c.past
	now := c.clock.now()
	var members []election.Member
	tell := func(routers ...*router) {
		m := cluster.Member{Member: election.Member{Name: "a", Instance: 1, Routers: map[string]election.RouterState{}}, Beat: c.clock.toRedis(now)}
		for _, r := range routers {
			m.Routers[r.key] = election.RouterState{Sends: true}
		}
		h.hear(&m)
	}
	take := func(r *router, token uint64) {
		now++
		r.turned = now
		h.turn(r, &election.Duty{Send: true, Token: token}, "a", members, false)
	}
	x, y := c.router("x", netip.Addr{}, false), c.router("y", netip.Addr{}, false)
	tell(x, y)
	take(x, 1)
	take(y, 1)
	list, _ := h.takeovers()
	if len(list) != 1 || list[0].Routers != 2 {
		t.Fatalf("%+v, want one of two routers", list)
	}

	// What was waited for, and what it brought.
	x.passing, y.passing = true, true
	h.passages[0].waiting = 2
	h.goOn(x, now+500, &seam.Plan{Skipped: 5, Doubtful: 2, Fresh: 1}, 40, "")
	if list, _ = h.takeovers(); list[0].Waiting != 1 || list[0].Gap != 0 {
		t.Errorf("%+v, want one that waits", list[0])
	}
	h.goOn(y, now+900, &seam.Plan{Skipped: 1}, 41, "")
	h.acknowledged(x, now+2_000)
	h.acknowledged(y, now+3_000)
	list, how := h.takeovers()
	want := control.TakenOver{
		At: c.clock.toTime(now + 900), From: "a", How: control.HowExpired, Token: 1, Routers: 2, Gap: list[0].Gap, Took: list[0].Took,
		ReadBack: 41, Skipped: 6, Doubtful: 2,
	}
	if diff := cmp.Diff(want, list[0]); diff != "" || how[control.HowExpired] != 1 {
		t.Errorf("takeover (-want +got):\n%s\ncounted %v", diff, how)
	}
	if got := list[0].Gap; got < 0.002 || got > 0.0021 {
		t.Errorf("%v s without a sender, want until the first acknowledgement", got)
	}

	for i := range 3 * shownPassages {
		now++
		tell(x)
		take(x, uint64(2+i))
	}
	if list, how = h.takeovers(); len(list) != shownPassages || list[0].Token != 1+3*shownPassages || how[control.HowExpired] != 1+3*shownPassages {
		t.Errorf("%d takeovers, the last with token %d, counted %v", len(list), list[0].Token, how)
	}

	// One that was told to stop before it was let go on has not taken over.
	now++
	tell(x)
	take(x, 99)
	x.passing, h.passages[shownPassages-1].waiting = true, 1
	h.turn(x, &election.Duty{}, "", nil, false)
	if list, _ = h.takeovers(); list[0].Token == 99 {
		t.Errorf("%+v, want none with token 99", list[0])
	}

	h.fenced(errors.New("no answer"))
	if h.fenceErr == "" || h.fencedOthers != 0 {
		t.Error("a failure to fence is not remembered")
	}
	if h.fenced(nil); h.fenceErr != "" || h.fencedOthers != 1 {
		t.Error("a failure to fence is remembered for ever")
	}
}

// TestWhy: why a member sends a router.
func TestWhy(t *testing.T) {
	whole := election.RouterState{Hears: true, Whole: true}
	with := func(s election.RouterState, change func(*election.RouterState)) election.RouterState {
		change(&s)
		return s
	}
	sending := with(whole, func(s *election.RouterState) { s.Sends = true })
	deaf := election.RouterState{}
	for _, tt := range []struct {
		name           string
		sender         string
		active         string // a is this one
		a, b, c        election.RouterState
		wanted, awaits bool
		want           string
	}{
		{"nobody", "", "a", whole, whole, whole, false, false, ""},
		{"the leader, this one", "a", "a", sending, whole, whole, true, false, control.WhyLeads},
		{"the leader", "b", "b", whole, sending, whole, false, false, control.WhyLeads},
		{"this one, not yet", "a", "a", sending, whole, whole, true, true, control.WhyReadingBack},
		{"this one, once b has stopped", "a", "a", whole, sending, whole, false, false, control.WhyTakingOver},
		{"b, once this one may stop", "b", "b", sending, whole, whole, true, false, control.WhyHandingOver},
		{"b, once c has stopped", "b", "b", whole, whole, sending, false, false, control.WhyTakingOver},
		{"b alone hears it", "b", "a", deaf, sending, deaf, false, false, control.WhyOnly},
		{"b and c hear it", "b", "a", deaf, sending, whole, false, false, control.WhyLeaderDeaf},
		{"this one alone hears it", "a", "b", sending, deaf, deaf, true, false, control.WhyOnly},
		{"the leader is late", "b", "a", with(whole, func(s *election.RouterState) { s.Lags = true }), sending, whole, false, false, control.WhyLeaderLate},
		{"the leader has half a table", "b", "a", with(whole, func(s *election.RouterState) { s.Whole = false }), sending, whole, false, false, control.WhyLeaderDumps},
		{"until it is given back", "b", "a", whole, sending, whole, false, false, control.WhyKept},
		{"nobody hears it any more", "b", "a", deaf, with(deaf, func(s *election.RouterState) { s.Sends = true }), deaf, false, false, control.WhyLast},
	} {
		t.Run(tt.name, func(t *testing.T) {
			role := election.Standby
			if tt.active == "a" {
				role = election.Active
			}
			v := &cluster.View{}
			for name, s := range map[string]election.RouterState{"b": tt.b, "c": tt.c} {
				m := cluster.Member{Member: election.Member{Name: name, Routers: map[string]election.RouterState{"r": s}}, Role: "standby"}
				if name == tt.active {
					m.Role = "active"
				}
				v.Members = append(v.Members, m)
			}
			got := because(&snapshot{role: role, view: v}, "r", "a", tt.sender, &own{RouterState: tt.a, wanted: tt.wanted, awaits: tt.awaits})
			if got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
	away := &snapshot{role: election.Active, down: true, reason: "Redis unavailable: no answer"}
	if got := because(away, "r", "a", "a", &own{RouterState: sending, wanted: true}); got != control.WhyRedisAway {
		t.Errorf("without Redis: %q", got)
	}
	native := &snapshot{role: election.Standby, view: &cluster.View{Members: []cluster.Member{{Member: election.Member{Name: "n", Native: true}}}}}
	if got := because(native, "r", "a", "n", &own{RouterState: whole}); got != control.WhyNative {
		t.Errorf("behind a native member: %q", got)
	}
}
