package election

import (
	"fmt"
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

func newStage() *stage {
	s := &stage{now: sec}
	s.e = New(Config{
		Name: "me", Instance: 7, Heartbeat: heartbeat, Expiry: expiry,
		Deadline: Deadline(heartbeat, expiry), Failures: 3, Handover: handover, Window: window,
	}, s.now)
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
			case left || role == Starting || e.Mode() == ForceStandby:
				return fmt.Errorf("is to send: %+v", d)
			case away && !d.Shared:
				return fmt.Errorf("Redis away, as if alone: %+v", d)
			case e.sentByOther("r") && !d.Shared:
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
	case left && claim, away && claim, e.Mode() == ForceStandby && claim:
		return fmt.Errorf("wants a token: left %v, away %v, mode %s", left, away, e.Mode())
	case role == Active && e.Mode() == ForceStandby:
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

// TestEveryEventInEveryState walks all runs of events up to a length, from all
// states that those before have led to.
func TestEveryEventInEveryState(t *testing.T) {
	length := 4
	if testing.Short() {
		length = 3
	}
	roles := make(map[string]bool)
	path := make([]int, length)
	runs := 0
	for {
		s := newStage()
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
		runs++
		i := length - 1
		for ; i >= 0; i-- {
			if path[i]++; path[i] < len(events) {
				break
			}
			path[i] = 0
		}
		if i < 0 {
			break
		}
	}
	for _, want := range []string{"starting auto", "standby auto", "active auto", "active active", "standby standby"} {
		if !roles[want] {
			t.Errorf("no run was ever %s", want)
		}
	}
	t.Logf("%d runs", runs)
}
