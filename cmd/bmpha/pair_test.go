package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/control"
)

// trafficRate is what the numbered routers say per second.
const trafficRate = 2000

// A loss of the active costs about a second. The bounds are the for the
// default timers; a busy machine may stretch the time without a sender.
const (
	mostRepeated = 1500 * time.Millisecond // of traffic
	mostSilent   = 500 * time.Millisecond  // beyond the expiry
)

// TestPair follows a pair through its life, with the default timers: quiet
// operation, the active killed, back again, maintenance, a stop in good order.
func TestPair(t *testing.T) {
	t.Parallel()
	life(t, "a", "b")
}

// TestThree is the same with three.
func TestThree(t *testing.T) {
	t.Parallel()
	life(t, "a", "b", "c")
}

func life(t *testing.T, names ...string) {
	l := newLab(t, withDefaultTimers).consume(4)
	ms := l.cluster(names...)
	r := l.numbered(trafficRate, ms...)

	// Quiet operation: once.
	l.more(2 * trafficRate)
	if _, n := l.tally.numbered(); n != 0 {
		l.errorf("quiet: %d records repeated", n)
	}
	for _, m := range ms[1:] {
		if s := m.status(); s.Sink.Handed != 0 {
			l.errorf("quiet: standby %s handed over %d records", m.name, s.Sink.Handed)
		}
	}

	// The active one is killed.
	ms = l.byAge(ms...)
	a, b := ms[0], ms[1]
	takeover := l.kill(a, b)
	l.more(3 * trafficRate)
	repeats := l.repeatsSince(0)
	takeover.check(t, repeats)
	if s := b.status(); s.LastTakeover == nil || s.LastTakeover.From != a.name {
		l.errorf("takeover of %s: %+v, want from %s", b.name, s.LastTakeover, a.name)
	}

	// It comes back, as the youngest, and nothing changes.
	l.must(a.Restart(t.Context()))
	a.role(control.RoleStandby)
	l.until("session to "+a.name, func() error {
		if s := a.status(); len(s.Routers) == 0 || s.Routers[0].Session == nil {
			return fmt.Errorf("no session")
		}
		return nil
	})
	before := l.repeatsSince(0)
	l.more(trafficRate)
	l.settled(a)
	if n := l.repeatsSince(before); n != 0 {
		l.errorf("restart: %d records repeated", n)
	}

	// Maintenance of the active one: the next oldest takes over.
	ms = l.byAge(ms...)
	b = ms[0]
	heir := ms[1]
	before = l.repeatsSince(0)
	o := l.command("maintenance", "--socket", b.socket)
	if o.code != 0 || !strings.HasPrefix(o.out, heir.name+" is active; it took over from b in ") {
		l.errorf("maintenance: exit code %d, %q %q", o.code, o.out, o.errOut)
	}
	l.says(control.ExitStandby, "", "status", "--socket", b.socket)
	heir.role(control.RoleActive)
	l.more(trafficRate)
	l.settled(b)
	t.Logf("maintenance: %d repeated so far; %s", l.repeatsSince(before), strings.TrimSpace(o.out))

	// A stop in good order hands over at once.
	begin := time.Now()
	l.must(heir.Stop())
	took := time.Since(begin)
	if code := heir.ExitCode(); code != 0 {
		t.Errorf("stop: exit code %d", code)
	}
	l.more(trafficRate)
	repeats = l.complete(r) - before
	t.Logf("maintenance and graceful stop: %d repeated; the stop took %s", repeats, took.Round(time.Millisecond))
	if repeats > 2*trafficRate*3/2 {
		l.errorf("two planned handovers: %d records repeated", repeats)
	}
	l.tokensRise()
}

// settled waits until what standbys hold is no more than the margin and what is
// under way: after a session began, they hold the router's whole table until the
// margin has passed.
func (l *lab) settled(standbys ...*member) {
	l.t.Helper()
	for _, m := range standbys {
		m.seen("hold of "+m.name, func(s *control.Status) error {
			// A table is many times as large; a busy machine is late with its marks.
			if s.Hold.Messages == 0 || s.Hold.Messages > 3*trafficRate {
				return fmt.Errorf("%d messages held", s.Hold.Messages)
			}
			return nil
		})
	}
}

// repeatsSince counts the repeated records beyond those of before.
func (l *lab) repeatsSince(before int) int {
	_, n := l.tally.numbered()
	return n - before
}

// A killed is what the loss of the active one cost.
type killed struct {
	silent time.Duration // from the kill to the first record of another
	lost   time.Duration // of that, while the machine kept everybody waiting
	expiry time.Duration
}

// kill ends the active one and waits for a record of heir.
func (l *lab) kill(active, heir *member) killed {
	l.t.Helper()
	instance := active.instance()
	var k killed
	_, k.expiry = l.timers()
	l.must(active.Kill())
	at := time.Now()
	l.until("a record of "+heir.name, func() error {
		first, ok := l.tally.firstAfter(at, instance)
		if !ok {
			return fmt.Errorf("none in Kafka")
		}
		k.silent, k.lost = first.Sub(at), machine.Lost(at, first)
		return nil
	})
	heir.role(control.RoleActive)
	return k
}

// silence judges the time without a sender.
func (k killed) silence(t *testing.T) {
	t.Helper()
	if most := k.expiry + mostSilent; k.silent-k.lost > most {
		t.Errorf("kill: %s without a sender, %s of them the machine's; want at most %s", k.silent, k.lost, most)
	}
}

func (k killed) check(t *testing.T, repeats int) {
	t.Helper()
	traffic := time.Duration(float64(repeats) / trafficRate * float64(time.Second))
	t.Logf("kill: %s without a sender, %d records repeated (%s of traffic)",
		k.silent.Round(time.Millisecond), repeats, traffic.Round(time.Millisecond))
	k.silence(t)
	if traffic > mostRepeated+k.lost {
		t.Errorf("kill: %s of traffic repeated, want at most %s", traffic, mostRepeated)
	}
}

// tokensRise checks that every takeover had a larger token than the one before.
func (l *lab) tokensRise() {
	l.t.Helper()
	all := l.tally.stints()
	// Partitions are read side by side, so that one sender's last records may come
	// after the first of the next.
	highest := map[uint64]time.Time{}
	for _, s := range all {
		if at, ok := highest[s.token]; !ok || s.first.Before(at) {
			highest[s.token] = s.first
		}
	}
	for _, s := range all {
		for token, at := range highest {
			if token > s.token && s.first.After(at.Add(time.Second)) {
				l.t.Errorf("a record with token %d at %s, after token %d at %s", s.token, s.first, token, at)
			}
		}
	}
}
