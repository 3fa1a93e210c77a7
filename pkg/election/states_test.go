package election

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// stage is one Election under every event in turn.
type stage struct {
	e      *Election
	now    int64
	asked  int64 // when the round that may be under way was begun
	wrote  uint64
	tokens uint64
	trail  []string
}

func newStage(more bool) *stage {
	s := &stage{now: sec}
	cfg := Config{
		Name: "me", Instance: 7, Heartbeat: heartbeat, Expiry: expiry,
		Deadline: Deadline(heartbeat, expiry), Failures: 3, Handover: handover, Window: window,
	}
	if more {
		cfg.Linger, cfg.Hold, cfg.Failback, cfg.MaxBehind, cfg.Steady = linger, true, true, maxBehind, steady
	}
	s.e = New(cfg, s.now)
	s.ask()
	return s
}

func (s *stage) ask() {
	s.asked = s.now
	s.wrote, _ = s.e.Wants()
}

// answer is the good answer to the round under way.
func (s *stage) answer(shadowed bool, members ...Member) {
	wrote := s.wrote
	if shadowed {
		wrote = 0
	}
	if wrote != 0 {
		members = append(members, Member{Name: "me", Instance: 7, Value: wrote, TTL: expiry})
	}
	_, claim := s.e.Wants()
	s.e.Done(s.now, Round{Sent: s.asked, RedisTime: redisEpoch + s.now, Wrote: wrote, Members: members, Shadowed: shadowed})
	if claim {
		s.tokens++
		s.e.Claimed(s.now, s.tokens)
	}
	s.ask()
}

func other(value uint64, sends bool) Member {
	return Member{Name: "other", Instance: 9, Value: value, TTL: expiry, Routers: map[string]RouterState{"r": {Hears: true, Sends: sends, Mark: redisEpoch}}}
}

// events is all that can happen.
var events = []struct {
	name string
	do   func(*stage)
}{
	{"a moment", func(s *stage) { s.now += 10 * ms }},
	{"a heartbeat", func(s *stage) { s.now += heartbeat }},
	{"a pause", func(s *stage) { s.now += 3 * expiry }},
	{"alone", func(s *stage) { s.now += ms; s.answer(false) }},
	{"an older one", func(s *stage) { s.now += ms; s.answer(false, other(1, true)) }},
	{"a younger one that sends", func(s *stage) { s.now += ms; s.answer(false, other(1<<62, true)) }},
	{"a younger one", func(s *stage) { s.now += ms; s.answer(false, other(1<<62, false)) }},
	{"name taken", func(s *stage) {
		s.now += ms
		s.answer(true, Member{Name: "me", Instance: 8, Value: 5, TTL: expiry})
	}},
	{"failure", func(s *stage) { s.now += ms; s.e.Failed(s.now, s.asked, "refused"); s.ask() }},
	{"three failures", func(s *stage) {
		for range 3 {
			s.now += Deadline(heartbeat, expiry)
			s.e.Failed(s.now, s.asked, "no answer")
			s.ask()
		}
	}},
	{"a claim answered late", func(s *stage) { s.tokens++; s.e.Claimed(s.now, s.tokens) }},
	{"renew", func(s *stage) { s.e.Renew(s.now) }},
	{"force active", func(s *stage) { s.e.Force(s.now, ForceActive) }},
	{"force standby", func(s *stage) { s.e.Force(s.now, ForceStandby) }},
	{"auto", func(s *stage) { s.e.Force(s.now, Auto) }},
	{"leave", func(s *stage) { s.e.Leave(s.now) }},
	{"yield", func(s *stage) { s.e.Yield(s.now) }},
	{"the other says that it is active", func(s *stage) {
		m := other(1, true)
		m.Active = true
		s.e.Heard(s.now, m)
	}},
	{"the other says that it is ready", func(s *stage) {
		m := other(1<<62, false)
		m.Ready = true
		s.e.Heard(s.now, m)
	}},
	{"the other is dead", func(s *stage) { s.e.Dead(s.now, "other", 9) }},
}

// check is what holds after every event in every state.
func (s *stage) check(left bool, token uint64) error {
	e := s.e
	e.Tick(s.now)
	role, why, since := e.Role()
	_, away := e.Unavailable()
	value, claim := e.Wants()
	for _, hears := range []bool{false, true} {
		for _, sends := range []bool{false, true} {
			d := e.Duty(s.now, "r", hears, sends)
			switch {
			case d.LowWater < -1:
				return fmt.Errorf("low-water mark %d", d.LowWater)
			case !d.Send:
			case d.Expect:
				return fmt.Errorf("is to send and to expect it: %+v", d)
			case left || role == Starting:
				return fmt.Errorf("is to send: %+v", d)
			case e.rests() && (!sends || d.Sender != "other" || e.cfg.Linger == 0):
				return fmt.Errorf("is to send although it is to rest: %+v", d)
			case away && !d.Shared && !e.cfg.Hold:
				return fmt.Errorf("Redis away, as if alone: %+v", d)
			case away && !d.Shared && !slices.ContainsFunc(e.members, func(m Member) bool {
				_, ok := e.fresh(s.now, &m)
				return ok
			}) && e.died == 0:
				return fmt.Errorf("Redis away and nobody is heard, as if alone: %+v", d)
			case e.sentByAnother("r", "me") && !d.Shared:
				return fmt.Errorf("another sends, as if alone: %+v", d)
			case e.Lease() != 0 && s.now >= e.Lease():
				return fmt.Errorf("is to send past the lease: %+v", d)
			case e.shadowed && !away && e.Mode() != ForceActive:
				return fmt.Errorf("is to send under a name that is taken: %+v", d)
			}
		}
	}
	switch {
	case why == "":
		return fmt.Errorf("%s without a reason", role)
	case since > s.now:
		return fmt.Errorf("%s from the future", role)
	case left && role != Standby:
		return fmt.Errorf("%s after leaving", role)
	case left && claim, away && claim, e.rests() && claim:
		return fmt.Errorf("wants a token: left %v, away %v, mode %s", left, away, e.Mode())
	case role == Active && e.rests():
		return fmt.Errorf("active although forced standby")
	case role == Active && e.Mode() == Auto && !away && !e.best():
		return fmt.Errorf("active although another is older")
	case e.Lease() > s.now+expiry:
		return fmt.Errorf("a lease of %d µs", e.Lease()-s.now)
	case e.Token() < token:
		return fmt.Errorf("token %d after %d", e.Token(), token)
	case left && value != ForcedStandby && value != 0:
		return fmt.Errorf("writes %d after leaving", value)
	case e.Next() > s.now+heartbeat:
		return fmt.Errorf("the next round is in %d ms", (e.Next()-s.now)/ms)
	}
	return nil
}

// TestEveryEventInEveryState walks all runs of three events, and some of many more,
// from all states that those before have led to.
func TestEveryEventInEveryState(t *testing.T) {
	const length = 3
	many := 100000
	if testing.Short() {
		many = 10000
	}
	for name, more := range map[string]bool{"plain": false, "lingering and holding": true} {
		t.Run(name, func(t *testing.T) {
			roles := make(map[string]bool)
			for path := range paths(length) {
				walk(t, more, path, roles)
			}
			rng := rand.New(rand.NewPCG(1, 2))
			path := make([]int, 8)
			for range many {
				for i := range path {
					path[i] = rng.IntN(len(events))
				}
				walk(t, more, path, roles)
			}
			for _, want := range []string{"starting auto", "standby auto", "active auto", "active active", "standby standby"} {
				if !roles[want] {
					t.Errorf("no run was ever %s", want)
				}
			}
		})
	}
}

// paths yields all runs of events of a length.
func paths(length int) iter.Seq[[]int] {
	return func(yield func([]int) bool) {
		path := make([]int, length)
		for i := 0; i >= 0; {
			if !yield(path) {
				return
			}
			for i = length - 1; i >= 0; i-- {
				if path[i]++; path[i] < len(events) {
					break
				}
				path[i] = 0
			}
		}
	}
}

// walk checks each state on the way.
func walk(t *testing.T, more bool, path []int, roles map[string]bool) {
	t.Helper()
	s := newStage(more)
	left, token := false, uint64(0)
	// Common beginnings: from nothing, and from a first election.
	if path[0]%2 == 0 {
		for range 4 {
			events[3].do(s)
			s.now += heartbeat / 3
			s.ask()
		}
		token = s.e.Token()
	}
	for _, i := range path {
		events[i].do(s)
		left = left || events[i].name == "leave"
		s.trail = append(s.trail, events[i].name)
		if err := s.check(left, token); err != nil {
			t.Fatalf("after %s: %v", strings.Join(s.trail, ", "), err)
		}
		token = s.e.Token()
		role, _, _ := s.e.Role()
		roles[role.String()+" "+s.e.Mode().String()] = true
	}
}
