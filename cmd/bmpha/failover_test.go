package main

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/rig"
)

// The tests here change who sends, in every way, under numbered traffic: each message
// is a route that was never there before, so that whatever comes twice is a repeat.
// Times are of a machine that may be busy and are told, not judged, but for bounds
// that only a fault exceeds.

// withTimers is for tests that are about them.
func withTimers(heartbeat, expiry time.Duration) func(*lab) {
	return with("BMPHA_REDIS_HEARTBEAT="+heartbeat.String(), "BMPHA_REDIS_EXPIRY="+expiry.String())
}

// exact ends a test: Kafka has all that the router said, in its order, once.
func (l *lab) exact(r *replay.Router) {
	l.t.Helper()
	if n := l.complete(r); n != 0 {
		// Who had no time to see all that Kafka has repeats what it is in doubt of, and
		// says so.
		now := time.Now()
		if told := l.doubtful(); n <= told && machine.Lost(l.began, now) > now.Sub(l.began)/2 {
			l.t.Logf("%d records repeated, of %d that collectors were in doubt of on a busy machine", n, told)
		} else {
			l.errorf("%d records repeated; collectors say that they were in doubt of %d", n, told)
		}
	}
	l.unflagged()
}

// doubtful returns how many records collectors sent although Kafka might have had
// them, as they say themselves.
func (l *lab) doubtful() (sum int) {
	l.t.Helper()
	for _, m := range l.members {
		text, err := os.ReadFile(m.log)
		l.must(err)
		for _, found := range doubts.FindAllSubmatch(text, -1) {
			n, err := strconv.Atoi(string(found[1]))
			l.must(err)
			sum += n
		}
	}
	return sum
}

var doubts = regexp.MustCompile(`msg="took over".* doubtful=(\d+)`)

// unflagged fails the test if a record came again that does not say that it may.
func (l *lab) unflagged() {
	l.t.Helper()
	if n, faces := l.tally.again(); n != 0 {
		l.errorf("%d records repeated without a flag:\n%s", n, strings.Join(faces, "\n"))
	}
}

// ready waits until heir has heard all that r has said in this session, and could go
// on at once: the beginning of its session is not held any more. As long as it is,
// the whole session may have to be sent, because only consumers that hear its
// beginning know what a table dump leaves out.
func (l *lab) ready(heir *member, r *replay.Router) {
	l.t.Helper()
	// A table dump lasts on a busy machine, and the table grows meanwhile. What is said
	// after it waits behind it: who has heard nearly all has heard it to its end.
	const nearly = trafficRate / 2
	heir.seen("the whole table", func(s *control.Status) error {
		if len(s.Routers) == 0 || s.Routers[0].Session == nil {
			return fmt.Errorf("%d routers: %+v", len(s.Routers), s.Routers)
		}
		if want := r.Counters().Routes; s.Routers[0].Messages+nearly < uint64(want) {
			return fmt.Errorf("%d messages of %d: %+v", s.Routers[0].Messages, want, s.Routers)
		}
		age := time.Since(s.Routers[0].Session.Since).Seconds()
		if held := float64(s.Hold.OldestAge); s.Hold.Messages == 0 || held > 2.5 || held > age-1 || age < 2 {
			return fmt.Errorf("%d messages held, the oldest for %.1f s, of a session of %.1f s", s.Hold.Messages, held, age)
		}
		return nil
	})
}

// spread tells times as a person compares them.
func spread(d []time.Duration) string {
	slices.Sort(d)
	if len(d) == 0 {
		return "none"
	}
	return fmt.Sprintf("p50 %s, max %s of %d", d[len(d)/2], d[len(d)-1], len(d))
}

// load tells how busy the machine is.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(b))[:3], " ")
}

// TestPlanned: maintenance and a stop in good order repeat nothing.
func TestPlanned(t *testing.T) {
	t.Parallel()
	planned(t, 2, 1)
}

func TestLongPlanned(t *testing.T) {
	long(t)
	planned(t, 10, 2)
}

func planned(t *testing.T, maintenances, stops int) {
	l := newLab(t, withDefaultTimers).consume(1)
	ms := l.cluster("a", "b")
	active, heir := ms[0], ms[1]
	r := l.numbered(trafficRate, ms...)
	l.more(trafficRate)
	var silent []time.Duration
	change := func(what string, do func()) {
		t.Helper()
		l.ready(heir, r)
		before := l.repeatsSince(0)
		begin := time.Now()
		do()
		heir.role(control.RoleActive)
		l.more(trafficRate)
		d, judged := l.tally.silence(begin.Add(-time.Second), time.Now())
		t.Logf("%s: %s without a record, %d repeated", what, d, l.repeatsSince(before))
		if judged > time.Second {
			t.Errorf("%s: %s without a record, %s of them not the machine's", what, d, judged)
		}
		silent = append(silent, d)
		active, heir = heir, active
	}
	for range maintenances {
		change("maintenance", func() {
			if o := l.command("maintenance", "--socket", active.socket); o.code != 0 {
				l.errorf("maintenance: exit code %d, %q %q", o.code, o.out, o.errOut)
			}
		})
	}
	for range stops {
		stopped := active
		change("stop", func() {
			l.must(stopped.Stop())
			if code := stopped.ExitCode(); code != 0 {
				t.Errorf("stop: exit code %d", code)
			}
		})
		l.must(stopped.Restart(t.Context()))
		stopped.role(control.RoleStandby)
	}
	l.exact(r)
	t.Logf("%d planned changes at %d messages a second: without a record %s; load %s", len(silent), trafficRate, spread(silent), load())
}

// TestCrash: the active one is killed. With links its end is seen at once.
func TestCrash(t *testing.T) {
	t.Parallel()
	crash(t, 2, fastExpiry, withLinks)
}

// TestLongCrash: the same, ten times, with the timers that there may be.
func TestLongCrash(t *testing.T) {
	long(t)
	t.Run("default", func(t *testing.T) { crash(t, 10, 2*time.Second, withDefaultTimers) })
	t.Run("fast", func(t *testing.T) {
		crash(t, 10, 150*time.Millisecond, withTimers(50*time.Millisecond, 150*time.Millisecond))
	})
	t.Run("links", func(t *testing.T) { crash(t, 10, 2*time.Second, withDefaultTimers, withLinks) })
}

func crash(t *testing.T, kills int, expiry time.Duration, change ...func(*lab)) {
	l := newLab(t, change...).consume(1)
	ms := l.cluster("a", "b")
	r := l.numbered(trafficRate, ms...)
	l.more(trafficRate)
	var silent []time.Duration
	for range kills {
		active, heir := l.roles(ms)
		l.ready(heir, r)
		before := l.repeatsSince(0)
		begin := time.Now()
		k := l.kill(active, heir)
		l.more(trafficRate)
		d, judged := l.tally.silence(begin.Add(-time.Second), time.Now())
		t.Logf("kill: %s without a record, the heir's first %s after it, %d repeated", d, k.silent, l.repeatsSince(before))
		if judged > expiry+time.Second {
			t.Errorf("kill: %s without a record, %s of them not the machine's, with an expiry of %s", d, judged, expiry)
		}
		silent = append(silent, d)
		l.must(active.Restart(t.Context()))
		active.role(control.RoleStandby)
	}
	l.exact(r)
	l.tokensRise()
	t.Logf("%d kills at %d messages a second, expiry %s, links %t: without a record %s; load %s",
		kills, trafficRate, expiry, l.links, spread(silent), load())
}

// roles waits until one of a pair sends, and returns it and the other.
func (l *lab) roles(ms []*member) (active, heir *member) {
	l.t.Helper()
	l.until("one active, one standby", func() error {
		active, heir = nil, nil
		for _, m := range ms {
			s, err := m.client.Status(l.t.Context())
			if err != nil {
				return err
			}
			switch s.Role {
			case control.RoleActive:
				active = m
			case control.RoleStandby:
				heir = m
			}
		}
		if active == nil || heir == nil {
			return errors.New("not so")
		}
		return nil
	})
	return active, heir
}

// TestHold: while Redis is away collectors that hear each other keep their roles,
// also when it is back; one that dies meanwhile is replaced.
func TestHold(t *testing.T) {
	t.Parallel()
	hold(t, 2*time.Second, 1)
}

func TestLongHold(t *testing.T) {
	long(t)
	hold(t, 10*time.Second, 2)
}

func hold(t *testing.T, away time.Duration, ways int) {
	l := newLab(t, withDefaultTimers, withLinks, withRedis(rig.RedisOptions{}), with("BMPHA_REDIS_LOST=hold")).consume(1)
	ms := l.cluster("a", "b")
	a, b := ms[0], ms[1]
	r := l.numbered(trafficRate, ms...)
	l.more(trafficRate)
	linked := func(m *member) {
		t.Helper()
		m.seen("a link", func(s *control.Status) error {
			if s.Link == nil || len(s.Link.Peers) == 0 || !s.Link.Peers[0].Connected {
				return fmt.Errorf("%s: %+v", m.name, s.Link)
			}
			return nil
		})
	}
	changes := func() (n uint64) {
		t.Helper()
		for _, m := range ms {
			for _, c := range m.status().RoleChanges {
				n += c
			}
		}
		return n
	}
	outages := []struct {
		name       string
		away, back func() error
	}{
		{"frozen", l.redis.Pause, l.redis.Resume},
		{"stopped", l.redis.Stop, func() error { return l.redis.Restart(t.Context()) }},
	}[:ways]
	for _, o := range outages {
		linked(a)
		linked(b)
		before := changes()
		l.must(o.away())
		l.more(int(away.Seconds() * trafficRate))
		if !l.redis.Embedded() {
			a.problem("redis_unreachable")
		}
		l.must(o.back())
		l.more(2 * trafficRate)
		a.role(control.RoleActive)
		b.role(control.RoleStandby)
		if n := changes() - before; n != 0 {
			l.errorf("Redis %s: roles changed %d times", o.name, n)
		}
		if n := l.repeatsSince(0); n != 0 {
			l.errorf("Redis %s: %d records repeated", o.name, n)
		}
	}
	for _, o := range outages {
		active, heir := l.roles(ms)
		l.ready(heir, r)
		linked(active)
		linked(heir)
		l.must(o.away())
		l.more(2 * trafficRate)
		begin := time.Now()
		l.kill(active, heir)
		l.more(trafficRate)
		d, _ := l.tally.silence(begin.Add(-time.Second), time.Now())
		t.Logf("killed while Redis is %s: %s without a record", o.name, d)
		before := heir.status().RoleChanges
		l.must(o.back())
		l.more(2 * trafficRate)
		heir.role(control.RoleActive)
		if after := heir.status().RoleChanges; after[control.RoleActive] != before[control.RoleActive] || after[control.RoleStandby] != before[control.RoleStandby] {
			l.errorf("Redis %s and back: roles of %s changed from %v to %v", o.name, heir.name, before, after)
		}
		if n := l.repeatsSince(0); n != 0 {
			l.errorf("killed while Redis was %s: %d records repeated", o.name, n)
		}
		l.must(active.Restart(t.Context()))
		active.role(control.RoleStandby)
	}
	l.exact(r)
	t.Logf("load %s", load())
}

// TestFencing: the active one stands still, another takes over, it wakes up. The
// broker takes nothing of it any more.
func TestFencing(t *testing.T) {
	rig.Require(t, rig.KafkaPart)
	t.Parallel()
	fencing(t, true, 1, 3*time.Second)
}

func TestLongFencing(t *testing.T) {
	long(t)
	rig.Require(t, rig.KafkaPart)
	t.Run("fenced", func(t *testing.T) { fencing(t, true, 5, 5*time.Second) })
	t.Run("unfenced", func(t *testing.T) { fencing(t, false, 5, 5*time.Second) })
}

func fencing(t *testing.T, fenced bool, times int, pause time.Duration) {
	l := newLab(t, with(fmt.Sprintf("BMPHA_KAFKA_FENCING=%t", fenced)), func(l *lab) {
		l.view = append(l.view, kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	}).consume(1)
	ms := l.cluster("a", "b")
	r := l.numbered(trafficRate, ms...)
	l.more(trafficRate)
	for range times {
		active, heir := l.roles(ms)
		l.ready(heir, r)
		instance := active.instance()
		before, late := l.repeatsSince(0), l.tally.lates()
		begin := time.Now()
		l.must(active.Pause())
		l.until("a record of the heir", func() error {
			if _, ok := l.tally.firstAfter(begin, instance); !ok {
				return errors.New("none in Kafka")
			}
			return nil
		})
		l.more(int((pause - time.Since(begin)).Seconds() * trafficRate))
		l.must(active.Resume())
		active.role(control.RoleStandby)
		l.more(trafficRate)
		d, _ := l.tally.silence(begin.Add(-time.Second), time.Now())
		t.Logf("stood still: %s without a record, %d late words, %d repeated", d, l.tally.lates()-late, l.repeatsSince(before))
	}
	if fenced {
		l.exact(r)
		if n := l.tally.lates(); n != 0 {
			t.Errorf("%d late words", n)
		}
	} else {
		repeats := l.complete(r)
		t.Logf("%d late words, %d records repeated", l.tally.lates(), repeats)
	}
	l.tokensRise()
	t.Logf("fencing %t, load %s", fenced, load())
}
