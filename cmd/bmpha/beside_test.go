package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/rig"
)

// A station is a collector with a pmacct of its own: sessions are passed on to it,
// and its records come back.
type station struct {
	*member
	pmacct *rig.Pmbmpd
}

// station starts a pmacct daemon and a collector around it. config are further
// lines of pmacct's configuration.
func (l *lab) station(name, program string, config []string, env ...string) *station {
	l.t.Helper()
	port, err := rig.FreePort("")
	l.must(err)
	intake := "127.0.0.1:" + strconv.Itoa(port)
	config = append([]string{
		"core_proc_name: " + name, "bmp_daemon_parse_proxy_header: true", "bmp_daemon_pipe_size: 131072",
		"bmp_daemon_msglog_kafka_partition_key: $bmp_router", "bmp_daemon_msglog_kafka_retry: 1",
	}, config...)
	for i, line := range config {
		config[i] = strings.ReplaceAll(line, "INTAKE_PORT", strconv.Itoa(port))
	}
	d, err := rig.StartPmbmpd(l.within(30*time.Second), rig.PmbmpdOptions{
		Program: program, Kafka: intake, Topic: l.name, Config: config,
	})
	l.must(err)
	l.t.Cleanup(func() { l.must(d.Close()) })
	m := l.start(name, append([]string{"BMPHA_RELAY_TO=" + d.Addr(), "BMPHA_INTAKE_LISTEN=" + intake}, env...)...)
	return &station{m, d}
}

// hearing waits until the collector hears n routers through pmacct.
func (s *station) hearing(n int) {
	s.l.t.Helper()
	s.seen("routers heard through pmacct", func(st *control.Status) error {
		heard := 0
		for _, r := range st.Routers {
			if r.Source == control.SourcePmacct && r.Heard && r.Session != nil {
				heard++
			}
		}
		if heard != n {
			return fmt.Errorf("%s hears %d of %d: %+v", s.name, heard, n, st.Routers)
		}
		return nil
	})
}

// TestBeside: routers → two collectors → two pmbmpd → back through the intakes →
// Kafka: each record once, whoever dies.
func TestBeside(t *testing.T) { besideLife(t, "pmbmpd") }

// TestLongBesideNfacctd is the same with nfacctd's BMP thread, which keeps a table.
func TestLongBesideNfacctd(t *testing.T) {
	long(t)
	besideLife(t, "nfacctd")
}

func besideLife(t *testing.T, program string) {
	rig.Require(t, rig.PmbmpdPart)
	t.Parallel()
	l := newLab(t, withDefaultTimers).consume(4)
	const rate = 500
	a := l.station("a", program, nil)
	a.role(control.RoleActive)
	b := l.station("b", program, nil)
	b.role(control.RoleStandby)
	r := l.numbered(rate, a.member, b.member)
	a.hearing(1)
	b.hearing(1)

	quiet := func(what string) {
		t.Helper()
		_, before := l.tally.numbered()
		l.more(2 * rate)
		if _, n := l.tally.numbered(); n != before {
			l.errorf("%s: %d records repeated", what, n-before)
		}
	}
	// The mark also waits for what pmacct has not brought back yet.
	const most = 2 * mostRepeated
	seam := func(what string, f func()) {
		t.Helper()
		_, before := l.tally.numbered()
		begin := time.Now()
		f()
		l.more(2 * rate)
		_, after := l.tally.numbered()
		l.repeated(what, rate, after-before, most, begin)
	}
	quiet("in the beginning")

	seam("the active pmacct is killed", func() {
		l.must(a.pmacct.Kill())
		b.role(control.RoleActive)
	})
	a.seen("why a gave way", func(s *control.Status) error {
		if s.Unfit == "" || s.Role != control.RoleStandby {
			return fmt.Errorf("%s (%s), unfit %q", s.Role, s.Reason, s.Unfit)
		}
		return nil
	})
	l.must(a.pmacct.Restart(t.Context()))
	a.hearing(1)
	a.seen("a is well again", func(s *control.Status) error {
		if s.Unfit != "" {
			return fmt.Errorf("unfit: %s", s.Unfit)
		}
		return nil
	})
	quiet("pmacct is back")

	seam("maintenance", func() {
		if o := l.command("maintenance", "--socket", b.socket); o.code != 0 {
			l.errorf("maintenance: exit code %d, %s%s", o.code, o.out, o.errOut)
		}
		a.role(control.RoleActive)
	})

	seam("the active collector is killed", func() {
		l.must(a.Kill())
		b.role(control.RoleActive)
	})
	l.must(a.Restart(t.Context()))
	a.role(control.RoleStandby)
	a.hearing(1)
	a.seen("what the router said again at the beginning is let go", func(s *control.Status) error {
		if len(s.Routers) == 0 {
			return errors.New("no router")
		}
		if n := s.Routers[0].Messages; int(n) < len(r.Table())-rate {
			return fmt.Errorf("%d records of %d have come", n, len(r.Table()))
		}
		if s.Hold.Messages == 0 || s.Hold.Messages > 3*rate {
			return fmt.Errorf("%d messages held", s.Hold.Messages)
		}
		return nil
	})

	seam("the active collector and its pmacct are killed", func() {
		l.must(b.Kill())
		l.must(b.pmacct.Kill())
		a.role(control.RoleActive)
	})
	l.must(b.pmacct.Restart(t.Context()))
	l.must(b.Restart(t.Context()))
	b.role(control.RoleStandby)
	b.hearing(1)
	quiet("both are back")
	l.complete(r)
}

// repeated judges what came again since begin. What a busy machine keeps waiting is
// not yet acknowledged, or not known to be, and so comes again, too.
func (l *lab) repeated(what string, rate float64, records int, most time.Duration, begin time.Time) {
	l.t.Helper()
	traffic := time.Duration(float64(records) / rate * float64(time.Second))
	lost := machine.Lost(begin.Add(-2*time.Second), time.Now())
	l.t.Logf("%s: %s of traffic repeated", what, traffic)
	if traffic > most+lost {
		l.errorf("%s: %s of traffic repeated, want at most %s and the %s that the machine kept everybody waiting", what, traffic, most, lost)
	}
}

// TestLongBesideOutages: Redis goes away and hangs, Kafka goes away for half a
// minute. pmacct throws nothing away.
func TestLongBesideOutages(t *testing.T) {
	long(t)
	rig.Require(t, rig.PmbmpdPart)
	l := newLab(t, withDefaultTimers, withKafka(rig.KafkaOptions{}), withRedis(rig.RedisOptions{})).consume(4)
	const rate = 500
	a := l.station("a", "pmbmpd", nil)
	a.role(control.RoleActive)
	b := l.station("b", "pmbmpd", nil)
	b.role(control.RoleStandby)
	r := l.numbered(rate, a.member, b.member)
	a.hearing(1)
	b.hearing(1)
	l.more(rate)

	for _, outage := range []struct {
		name       string
		away, back func() error
		lasts      time.Duration
	}{
		{"redis ends", l.redis.Kill, func() error { return l.redis.Restart(t.Context()) }, 10 * time.Second},
		{"redis hangs", l.redis.Pause, l.redis.Resume, 10 * time.Second},
		{"kafka is away", func() error { return l.kafka.Away(t.Context(), true) },
			func() error { return l.kafka.Away(t.Context(), false) }, 30 * time.Second},
	} {
		_, before := l.tally.numbered()
		said := len(r.Table())
		l.must(outage.away())
		over := time.Now().Add(outage.lasts)
		l.untilWithin(2*outage.lasts, outage.name, func() error {
			if left := time.Until(over); left > 0 {
				return fmt.Errorf("%s to go", left)
			}
			return nil
		})
		l.must(outage.back())
		if n := len(r.Table()) - said; float64(n) < outage.lasts.Seconds()*rate/2 {
			t.Errorf("%s: the router said only %d messages meanwhile", outage.name, n)
		}
		// A busy machine may have seen a takeover meanwhile.
		l.until("one active", func() error {
			roles := []string{a.status().Role, b.status().Role}
			slices.Sort(roles)
			if want := []string{control.RoleActive, control.RoleStandby}; !slices.Equal(roles, want) {
				return fmt.Errorf("%v", roles)
			}
			return nil
		})
		l.more(2 * rate)
		_, after := l.tally.numbered()
		t.Logf("%s for %s: %.1f s of traffic repeated", outage.name, outage.lasts, float64(after-before)/rate)
	}
	l.complete(r)
	for _, s := range []*station{a, b} {
		text, err := os.ReadFile(s.pmacct.LogFile())
		l.must(err)
		for _, bad := range []string{"Connection failed", "Queue full", "timed out"} {
			if strings.Contains(string(text), bad) {
				t.Errorf("the log of %s's pmacct says %q", s.name, bad)
			}
		}
	}
}
