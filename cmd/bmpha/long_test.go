package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/replay"
)

// long is for tests of make e2e.
func long(t *testing.T) {
	t.Helper()
	if os.Getenv("BMPHA_LONG") == "" {
		t.Skip("takes minutes: make e2e, or BMPHA_LONG=1")
	}
}

// TestLongKills kills the active one ten times, with the default timers, and
// prints what that costs.
func TestLongKills(t *testing.T) {
	long(t)
	l := newLab(t, withDefaultTimers).consume(4)
	ms := l.cluster("a", "b")
	active, heir := ms[0], ms[1]
	r := l.numbered(trafficRate, ms...)
	var silent []time.Duration
	var lost time.Duration
	for range 10 {
		// The table dump of the heir's new session must be through, else what it
		// holds, and sends again, is the whole table.
		l.ready(heir, r)
		k := l.kill(active, heir)
		k.silence(t)
		lost += k.lost
		l.more(2 * trafficRate)
		silent = append(silent, k.silent)
		l.must(active.Restart(t.Context()))
		active.role(control.RoleStandby)
		active, heir = heir, active
	}
	repeated := l.complete(r)
	l.tokensRise()
	slices.Sort(silent)
	traffic := time.Duration(float64(repeated) / trafficRate / 10 * float64(time.Second))
	t.Logf("10 kills at %d messages a second: without a sender %s / %s / %s (min / median / max), repeated %s of traffic for each, lost 0",
		trafficRate, silent[0], silent[5], silent[9], traffic)
	if traffic > mostRepeated+lost/10 {
		l.errorf("%s of traffic repeated for each kill, want at most %s", traffic, mostRepeated)
	}
}

// TestLongKafkaAway: Kafka is away for a minute.
func TestLongKafkaAway(t *testing.T) {
	long(t)
	l := newLab(t, withDefaultTimers).consume(4)
	ms := l.cluster("a", "b")
	r := l.numbered(trafficRate, ms...)
	l.more(trafficRate)
	l.must(l.kafka.Away(t.Context(), true))
	ms[1].seenWithin(2*time.Minute, "a minute held", func(s *control.Status) error {
		if float64(s.Hold.OldestAge) < 60 {
			return fmt.Errorf("the oldest is %.1f s old", s.Hold.OldestAge)
		}
		return nil
	})
	l.must(l.kafka.Away(l.within(time.Minute), false))
	l.more(30 * trafficRate) // a minute's, of which the library may have had some already
	if n := l.complete(r); n != 0 {
		l.errorf("%d records repeated", n)
	}
}

// TestLongManyRouters: fifty routers, three collectors, the active one killed in
// the middle of their table dumps.
func TestLongManyRouters(t *testing.T) {
	long(t)
	l := newLab(t, withDefaultTimers).consume(8)
	ms := l.cluster("a", "b", "c")
	var routers []*replay.Router
	for i := range 50 {
		routers = append(routers, l.router(replay.Config{
			Stream: l.stream(replay.Synthetic{Seed: uint64(i), Name: fmt.Sprint("r", i), Prefixes: 200, IPv6: 0.3, Churn: replay.DefaultChurn}),
			Source: netip.AddrFrom4([4]byte{127, 3, 0, byte(i + 1)}), Rate: 100,
		}, ms...))
	}
	l.must(ms[0].Kill())
	ms[1].role(control.RoleActive)
	l.must(ms[0].Restart(t.Context()))
	l.more(50 * 100 * 10)
	l.same(routers...)
}

// TestLongFaults: two minutes of faults drawn from a seed, at three collectors with
// churning routers. Then everything rests, and Kafka says what the routers say.
func TestLongFaults(t *testing.T) {
	long(t)
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("BMPHA_SEED"); s != "" {
		if _, err := fmt.Sscan(s, &seed); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("BMPHA_SEED=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	l := newLab(t, withDefaultTimers, func(l *lab) { l.tally.byToken = true }).consume(4)
	ms := l.cluster("a", "b", "c")
	var routers []*replay.Router
	for i := range 5 {
		routers = append(routers, l.router(replay.Config{
			Stream: l.stream(replay.Synthetic{Seed: seed + uint64(i), Name: fmt.Sprint("r", i), Prefixes: 300, IPv6: 0.3, Churn: replay.DefaultChurn}),
			Source: netip.AddrFrom4([4]byte{127, 3, 1, byte(i + 1)}), Rate: 300,
		}, ms...))
	}
	faults := []struct {
		name string
		do   func(m *member)
	}{
		{"kill", func(m *member) {
			l.must(m.Kill())
			l.more(3000)
			l.must(m.Restart(t.Context()))
		}},
		{"pause", func(m *member) {
			l.must(m.Pause())
			l.more(1500 * (1 + rnd.IntN(4)))
			l.must(m.Resume())
		}},
		{"stop", func(m *member) {
			l.must(m.Stop())
			l.more(1500)
			l.must(m.Restart(t.Context()))
		}},
		{"maintenance", func(m *member) {
			if o := l.command("maintenance", "--socket", m.socket); o.code != 0 {
				t.Logf("maintenance of %s: %s%s", m.name, o.out, o.errOut)
			}
		}},
		{"cut", func(m *member) {
			routers[rnd.IntN(len(routers))].Cut(m.listen, time.Duration(rnd.IntN(5000))*time.Millisecond)
		}},
	}
	deadline := time.Now().Add(2 * time.Minute)
	counts := map[string]int{}
	for time.Now().Before(deadline) {
		f, m := faults[rnd.IntN(len(faults))], ms[rnd.IntN(len(ms))]
		counts[f.name]++
		f.do(m)
		l.more(500 + rnd.IntN(6000))
		l.until("all collectors have a role", func() error {
			active := 0
			for _, m := range ms {
				s, err := m.client.Status(t.Context())
				if err != nil {
					return err
				}
				if s.Role == control.RoleStarting {
					return fmt.Errorf("%s is starting", m.name)
				}
				if s.Role == control.RoleActive {
					active++
				}
			}
			if active != 1 {
				return fmt.Errorf("%d are active", active)
			}
			return nil
		})
	}
	t.Logf("faults: %v", counts)
	l.sameByToken(routers...)
}

// seenWithin is seen with a longer patience.
func (m *member) seenWithin(d time.Duration, what string, cond func(*control.Status) error) {
	m.l.t.Helper()
	m.l.untilWithin(d, what, func() error {
		s, err := m.client.Status(context.Background())
		if err != nil {
			return err
		}
		return cond(s)
	})
}
