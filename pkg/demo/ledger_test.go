package demo

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestLedger(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	one, two := identity{1, 1}, identity{2, 1}
	// Step 0 is when the routers speak.
	type arrival struct {
		id     identity
		dumped bool
	}
	for _, c := range []struct {
		name     string
		arrivals []arrival
		want     Counts
	}{
		{"nothing arrives", nil, Counts{Sent: 2, Lost: 2}},
		{"each once", []arrival{{one, false}, {two, false}}, Counts{Sent: 2, Kafka: 2}},
		{"one is missing", []arrival{{two, false}}, Counts{Sent: 2, Kafka: 1, Lost: 1}},
		{"one comes three times", []arrival{{one, false}, {two, false}, {one, false}, {one, false}},
			Counts{Sent: 2, Kafka: 4, Repeated: 2}},
		{"one lost and the other twice is not all there", []arrival{{one, false}, {one, false}},
			Counts{Sent: 2, Kafka: 2, Lost: 1, Repeated: 1}},
		{"a router's table is no repetition of ours", []arrival{{one, false}, {two, false}, {one, true}},
			Counts{Sent: 2, Kafka: 3, Resent: 1}},
		{"neither if the table comes first", []arrival{{one, true}, {two, false}, {one, false}},
			Counts{Sent: 2, Kafka: 3, Resent: 1}},
		{"but a table that comes with what followed it may be repeated", []arrival{{one, true}, {two, false}, {one, false}, {one, false}},
			Counts{Sent: 2, Kafka: 4, Resent: 1, Repeated: 1}},
		{"what is only in a table has arrived", []arrival{{one, true}, {two, true}}, Counts{Sent: 2, Kafka: 2}},
		{"an End-of-RIB of a table has the time of another message", []arrival{{one, false}, {two, false}, {identity{9, 9}, true}},
			Counts{Sent: 2, Kafka: 3, Resent: 1}},
		{"a record that nobody sent", []arrival{{one, false}, {two, false}, {identity{9, 9}, false}},
			Counts{Sent: 2, Kafka: 3, Strange: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLedger()
			l.sent(0, now, one)
			l.sent(0, now, two)
			for _, a := range c.arrivals {
				l.arrived(0, a.id, a.dumped)
			}
			if diff := cmp.Diff(c.want, l.total()); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if l.missing != c.want.Lost {
				t.Errorf("%d missing, want %d", l.missing, c.want.Lost)
			}
		})
	}
}

// TestLedgerSteps: what is sent or lost counts in the step of the router, what
// arrives in the step of its arrival.
func TestLedgerSteps(t *testing.T) {
	l := newLedger()
	l.sent(0, time.Time{}, identity{1, 1})
	l.sent(0, time.Time{}, identity{2, 1})
	l.arrived(0, identity{1, 1}, false)
	l.sent(1, time.Time{}, identity{3, 1})
	l.arrived(1, identity{3, 1}, false)
	l.arrived(1, identity{1, 1}, false)
	for range 2 { // asking changes nothing
		l.total()
	}
	want := []Counts{{Sent: 2, Kafka: 1, Lost: 1}, {Sent: 1, Kafka: 2, Repeated: 1}}
	if diff := cmp.Diff(want, l.steps); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestLedgerBehind(t *testing.T) {
	l, start := newLedger(), time.Unix(1_800_000_000, 0)
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	expect := func(want time.Duration) {
		t.Helper()
		if got := l.behind(at(10)); got != want {
			t.Errorf("behind %s, want %s", got, want)
		}
	}
	expect(0)
	l.sent(0, at(1), identity{1, 1})
	l.sent(0, at(4), identity{4, 1})
	l.sent(0, at(5), identity{5, 1})
	expect(9 * time.Second)
	l.arrived(0, identity{4, 1}, false)
	expect(9 * time.Second)
	l.arrived(0, identity{1, 1}, false)
	expect(5 * time.Second)
	l.arrived(0, identity{5, 1}, false)
	expect(0)
}

// TestLedgerAddsUp: whatever arrives, and however often, is accounted for.
func TestLedgerAddsUp(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		l, arrivals := newLedger(), 0
		for step := range 4 {
			for range r.IntN(40) {
				id := identity{r.Int64N(30), r.Uint64N(2)}
				if r.IntN(3) == 0 {
					l.sent(step, time.Time{}, id)
				} else {
					l.arrived(step, id, r.IntN(4) == 0)
					arrivals++
				}
			}
		}
		n := l.total()
		if n.Kafka != arrivals {
			t.Fatalf("seed %d: %d arrivals counted, there were %d", seed, n.Kafka, arrivals)
		}
		if want := n.Sent - n.Lost + n.Repeated + n.Resent + n.Strange; n.Kafka != want {
			t.Fatalf("seed %d: %+v does not add up: %d arrived", seed, n, n.Kafka)
		}
		if n.Lost != l.missing {
			t.Fatalf("seed %d: %d lost, %d missing", seed, n.Lost, l.missing)
		}
	}
}

func TestGaps(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	type arrival struct {
		step   int
		router string
		ms     int
	}
	for _, c := range []struct {
		name     string
		arrivals []arrival
		away     []span
		want     []time.Duration // beyond the usual, per step
	}{
		{"nothing", nil, nil, []time.Duration{0, 0}},
		{"steady", []arrival{{0, "a", 0}, {0, "a", 100}, {1, "a", 200}, {1, "a", 250}}, nil, []time.Duration{0, 0}},
		{"a silence", []arrival{{0, "a", 0}, {0, "a", 100}, {1, "a", 1700}}, nil, []time.Duration{0, 1500 * time.Millisecond}},
		{"of one router while the other speaks",
			[]arrival{{0, "a", 0}, {0, "b", 0}, {0, "a", 100}, {0, "b", 100}, {1, "a", 200}, {1, "a", 300}, {1, "a", 400}, {1, "b", 500}},
			nil, []time.Duration{0, 300 * time.Millisecond}},
		{"the longest counts", []arrival{{0, "a", 0}, {1, "a", 500}, {1, "a", 1500}, {1, "a", 1600}}, nil,
			[]time.Duration{0, time.Second}},
		{"Kafka was away for a part of it", []arrival{{0, "a", 0}, {0, "a", 100}, {1, "a", 3200}},
			[]span{{at(150), at(3000)}}, []time.Duration{0, 150 * time.Millisecond}},
		{"Kafka is still away", []arrival{{0, "a", 0}, {0, "a", 100}, {1, "a", 500}}, []span{{from: at(150)}},
			[]time.Duration{0, 0}},
		{"Kafka was away at another time", []arrival{{0, "a", 1000}, {0, "a", 1100}, {1, "a", 1500}}, []span{{at(0), at(1000)}},
			[]time.Duration{0, 300 * time.Millisecond}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := gapMeter{away: c.away}
			for _, a := range c.arrivals {
				g.arrived(a.step, a.router, at(a.ms))
			}
			var got []time.Duration
			for i := range c.want {
				got = append(got, g.gap(i, 0))
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestSuccession(t *testing.T) {
	for _, c := range []struct {
		name string
		seen []string
		want string
	}{
		{"nobody", []string{"", "", ""}, ""},
		{"one", []string{"A", "A", "A"}, "A"},
		{"a takeover with a pause", []string{"A", "A", "", "", "B", "B"}, "A → B"},
		{"two who were asked one after the other", []string{"A", "A", "A+B", "B", "B"}, "A → B"},
		{"all, one by one, and back", []string{"C", "C", "B+C", "B+C", "A+B+C", "A+B+C", "A+C", "A+C", "C", "C"}, "C → A+B+C → C"},
		{"one more and another less", []string{"A", "A", "A+B", "A+B", "B", "B", "B+C", "B+C"}, "A → A+B → B → B+C"},
		{"two for a while", []string{"A", "A", "A+B", "A+B", "A", "A"}, "A → A+B → A"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var s succession
			for _, who := range c.seen {
				s.observe(who)
			}
			if got := s.String(); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
	var s succession
	for _, who := range []string{"A", "A", "B", "B"} {
		s.observe(who)
	}
	if s.begin(); s.String() != "B" {
		t.Errorf("a new step begins with %q, want B", s.String())
	}
}

func TestIdentity(t *testing.T) {
	parse := func(text string) identity {
		t.Helper()
		r, ok, err := parseRoute([]byte(text))
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		id, err := r.identity()
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	const first = `{"log_type": "update", "timestamp": "1800000000.000123", "bmp_router": "127.0.0.2", "bmp_router_port": 1,
		"bmp_msg_type": "route_monitor", "peer_ip": "192.0.2.1", "afi": 1, "safi": 1, "ip_prefix": "10.0.0.0/8", "seq": 1}`
	const again = `{"log_type": "update", "timestamp": "1800000000.000123", "bmp_router": "127.0.0.2", "bmp_router_port": 2,
		"bmp_msg_type": "route_monitor", "peer_ip": "192.0.2.1", "afi": 1, "safi": 1, "ip_prefix": "10.0.0.0/8", "seq": 9}`
	id := parse(first)
	if id.at != 1_800_000_000_000_123 {
		t.Errorf("timestamp %d", id.at)
	}
	if parse(again) != id {
		t.Error("the same record from another session has another identity")
	}
	for _, change := range []string{
		`{"log_type": "withdraw", "timestamp": "1800000000.000123", "bmp_router": "127.0.0.2", "bmp_msg_type": "route_monitor", "peer_ip": "192.0.2.1", "afi": 1, "safi": 1, "ip_prefix": "10.0.0.0/8"}`,
		`{"log_type": "update", "timestamp": "1800000000.000124", "bmp_router": "127.0.0.2", "bmp_msg_type": "route_monitor", "peer_ip": "192.0.2.1", "afi": 1, "safi": 1, "ip_prefix": "10.0.0.0/8"}`,
		`{"log_type": "update", "timestamp": "1800000000.000123", "bmp_router": "127.0.0.3", "bmp_msg_type": "route_monitor", "peer_ip": "192.0.2.1", "afi": 1, "safi": 1, "ip_prefix": "10.0.0.0/8"}`,
		`{"log_type": "update", "timestamp": "1800000000.000123", "bmp_router": "127.0.0.2", "bmp_msg_type": "route_monitor", "peer_ip": "192.0.2.1", "afi": 1, "safi": 1, "ip_prefix": "10.0.0.0/9"}`,
		`{"log_type": "update", "timestamp": "1800000000.000123", "bmp_router": "127.0.0.2", "bmp_msg_type": "route_monitor", "peer_ip": "192.0.2.1", "is_post": 1, "afi": 1, "safi": 1, "ip_prefix": "10.0.0.0/8"}`,
	} {
		if parse(change) == id {
			t.Errorf("another record has the same identity: %s", change)
		}
	}
	for _, bad := range []string{"", "1800000000", "1800000000.1", "yesterday.000000", "2026-01-01 00:00:00.000000", "1.00000x"} {
		if id, err := (routeRecord{Timestamp: bad}).identity(); err == nil {
			t.Errorf("timestamp %q was taken for %d", bad, id.at)
		}
	}
}
