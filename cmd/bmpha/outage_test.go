package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/rig"
)

// redisAway takes a lab through an outage of Redis: all send while it lasts, the
// same one as before afterwards.
func (l *lab) redisAway(what string, away, back func() error) {
	l.t.Helper()
	ms := l.cluster("a", "b")
	a, b := ms[0], ms[1]
	r := l.numbered(trafficRate, a, b)
	l.more(trafficRate)
	l.must(away())
	b.role(control.RoleActive)
	a.role(control.RoleActive)
	b.problem("redis_unreachable")
	l.more(trafficRate)
	l.must(back())
	b.role(control.RoleStandby)
	a.role(control.RoleActive)
	l.more(trafficRate)
	repeats := l.complete(r)
	s := a.status()
	if n := s.RoleChanges[control.RoleActive]; n != 1 {
		l.errorf("%s: a became active %d times, want once", what, n)
	}
	l.t.Logf("%s: %d repeated", what, repeats)
	l.must(a.Stop())
	l.must(b.Stop())
}

// TestRedisAway: Redis ends and comes back empty, hangs, answers errors.
func TestRedisAway(t *testing.T) {
	t.Parallel()
	own := newLab(t, withRedis(rig.RedisOptions{}))
	lab := func(r rig.Redis) *lab {
		return newLab(t, func(l *lab) { l.redis = r }).consume(4)
	}
	own.t.Run("killed", func(t *testing.T) {
		l := lab(own.redis)
		l.t = t
		l.redisAway("killed", l.redis.Kill, func() error { return l.redis.Restart(t.Context()) })
	})
	own.t.Run("hangs", func(t *testing.T) {
		l := lab(own.redis)
		l.t = t
		l.redisAway("hangs", l.redis.Pause, l.redis.Resume)
	})
	own.t.Run("errors", func(t *testing.T) {
		fake, err := rig.StartEmbeddedRedis(rig.RedisOptions{})
		own.must(err)
		defer fake.Close()
		l := lab(fake)
		l.t = t
		l.redisAway("answers errors",
			func() error { fake.Fail("LOADING Redis is loading the dataset in memory"); return nil },
			func() error { fake.Fail(""); return nil })
	})
}

// TestRedisSecured: ACL user, password and TLS; and what happens with the wrong
// password: the collector cannot know who else is there, and so sends.
func TestRedisSecured(t *testing.T) {
	t.Parallel()
	l := newLab(t, withRedis(rig.RedisOptions{User: "collector", Password: "correct horse", TLS: true}))
	l.env = append(l.env, "BMPHA_REDIS_USERNAME=collector",
		"BMPHA_REDIS_TLS_ENABLED=true", "BMPHA_REDIS_TLS_CA="+l.redis.Certificate().CA)
	l.consume(1)
	file := filepath.Join(t.TempDir(), "password")
	l.must(os.WriteFile(file, []byte("correct horse\n"), 0o600))
	a := l.start("a", "BMPHA_REDIS_PASSWORD=correct horse")
	a.role(control.RoleActive)
	b := l.start("b", "BMPHA_REDIS_PASSWORD_FILE="+file)
	b.role(control.RoleStandby)
	r := l.numbered(500, a, b)
	l.more(500)
	if n := l.complete(r); n != 0 {
		l.errorf("%d records repeated", n)
	}

	c := l.start("c", "BMPHA_REDIS_PASSWORD=battery staple")
	c.role(control.RoleActive)
	c.problem("redis_unreachable")
	l.says(control.ExitDegraded, "WRONGPASS", "status", "--socket", c.socket)
	for _, m := range l.members {
		b, err := os.ReadFile(m.log)
		l.must(err)
		for _, secret := range []string{"correct horse", "battery staple"} {
			if bytes.Contains(b, []byte(secret)) {
				t.Errorf("a password is in the log of %s", m.name)
			}
		}
	}
}

// TestForeignKeys: what others have put into Redis under our pattern changes
// nothing: a wrong type, no number, hundreds of them.
func TestForeignKeys(t *testing.T) {
	t.Parallel()
	l := newLab(t).consume(1)
	client := l.redis.Client()
	defer client.Close()
	key := func(process string) string { return l.name + "+0+" + process + "+ha_daemon_startup_time" }
	ctx := t.Context()
	l.must(client.LPush(ctx, key("list"), "x").Err())
	l.must(client.Set(ctx, key("word"), "yesterday", 0).Err())
	l.must(client.Set(ctx, key("empty"), "", 0).Err())
	l.must(client.HSet(ctx, "bmpha:"+l.name+"+0:members", "ghost", "{", "other", "\x00\xff").Err())
	foreign := func() {
		for i := range 400 {
			// Younger than any real member, as native ones would be, which renew theirs.
			l.must(client.Set(ctx, key(fmt.Sprint("native", i)), fmt.Sprint(1<<62+i), 55*time.Second).Err())
			// A key that does not expire is no member's, however old.
			l.must(client.Set(ctx, key(fmt.Sprint("forever", i)), fmt.Sprint(1+i), 0).Err())
		}
	}
	foreign()
	ms := l.cluster("a", "b")
	r := l.numbered(500, ms...)
	l.more(1000)
	// A slow machine may see a takeover between the fast timers; without one
	// nothing is repeated.
	if n := l.complete(r); n != 0 && len(l.tally.stints()) == 1 {
		l.errorf("%d records repeated", n)
	}
	foreign()
	ms[0].seen("members", func(s *control.Status) error {
		if len(s.Members) < 400 || s.Redis.Skipped == 0 || s.Redis.State != control.RedisOK {
			return fmt.Errorf("%d members, %d skipped, Redis %s", len(s.Members), s.Redis.Skipped, s.Redis.State)
		}
		return nil
	})
	l.until("status --redis", func() error {
		foreign()
		if o := l.command("status", "--redis", l.redis.Addr(), "--cluster", l.name); !strings.Contains(o.out, "396 more members") {
			return fmt.Errorf("exit code %d\n%s%s", o.code, o.out, o.errOut)
		}
		return nil
	})
}

// TestStatusFromRedis: a cluster as Redis alone shows it.
func TestStatusFromRedis(t *testing.T) {
	t.Parallel()
	l := newLab(t).consume(1)
	l.cluster("alpha", "beta")
	for _, name := range []string{"alpha", "beta"} {
		l.says(0, name, "status", "--redis", l.redis.Addr(), "--cluster", l.name)
	}
	if o := l.command("status", "--redis", l.redis.Addr(), "--cluster", l.name+"-none"); o.code != control.ExitDegraded {
		t.Errorf("status --redis of a cluster without members: exit code %d\n%s%s", o.code, o.out, o.errOut)
	}
}

// TestKafkaAway: Kafka asks for a password and goes away in the middle. What was
// said meanwhile is held and sent, once.
func TestKafkaAway(t *testing.T) {
	t.Parallel()
	const user, password = "bmpha", "open sesame"
	l := newLab(t, withDefaultTimers, withKafka(rig.KafkaOptions{User: user, Password: password}),
		with("BMPHA_KAFKA_SASL_MECHANISM=PLAIN", "BMPHA_KAFKA_SASL_USERNAME="+user, "BMPHA_KAFKA_SASL_PASSWORD="+password))
	l.consume(4)
	ms := l.cluster("a", "b")
	a, b := ms[0], ms[1]
	r := l.numbered(trafficRate, a, b)
	l.more(trafficRate)

	// With the wrong password a collector stays up and says why nothing goes.
	c := l.start("c", "BMPHA_KAFKA_SASL_PASSWORD=wrong")
	c.seen("the error in status", func(s *control.Status) error {
		if s.Sink.Connected || !strings.Contains(strings.ToLower(s.Sink.LastError), "auth") {
			return fmt.Errorf("connected %t, last error %q", s.Sink.Connected, s.Sink.LastError)
		}
		return nil
	})
	l.says(control.ExitDegraded, "", "status", "--socket", c.socket)
	l.must(c.Stop())

	l.must(l.kafka.Away(t.Context(), true))
	for _, m := range []*member{a, b} {
		m.seen("a backlog", func(s *control.Status) error {
			if s.Hold.Messages < 3*trafficRate {
				return fmt.Errorf("%d messages held", s.Hold.Messages)
			}
			return nil
		})
	}
	a.problem("sink_disconnected")
	l.must(l.kafka.Away(l.within(time.Minute), false))
	l.more(3 * trafficRate)
	if n := l.complete(r); n != 0 {
		l.errorf("%d records repeated", n)
	}
	if s := a.status(); s.Role != control.RoleActive || s.RoleChanges[control.RoleActive] != 1 {
		l.errorf("a is %s, became active %d times", s.Role, s.RoleChanges[control.RoleActive])
	}
}

// TestKafkaOutOfReach: the active one alone is cut off from Kafka and gives way to
// the other. It does not take the role back when its way is mended, and when both
// are cut off nobody moves.
func TestKafkaOutOfReach(t *testing.T) {
	rig.Require(t, rig.KafkaPart)
	t.Parallel()
	kafka, err := rig.StartKafkaServer(t.Context(), rig.KafkaOptions{Paths: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = kafka.Close() })
	l := newLab(t, func(l *lab) { l.kafka = kafka }, with("BMPHA_KAFKA_PATIENCE=1s")).consume(1)
	var ms []*member
	var ways []*rig.Proxy
	for i, name := range []string{"a", "b"} {
		brokers, way := kafka.Via(i)
		ms, ways = append(ms, l.start(name, "BMPHA_KAFKA_BROKERS="+brokers)), append(ways, way)
		ms[i].role([]string{control.RoleActive, control.RoleStandby}[i])
	}
	a, b := ms[0], ms[1]
	r := l.numbered(trafficRate, a, b)
	l.more(trafficRate)

	ways[0].Cut()
	b.role(control.RoleActive)
	unfit := func(m *member, want bool) {
		t.Helper()
		m.seen("fitness", func(s *control.Status) error {
			if (s.Unfit != "") != want {
				return fmt.Errorf("unfit %q", s.Unfit)
			}
			return nil
		})
	}
	unfit(a, true)
	l.more(trafficRate)
	l.must(ways[0].Restore())
	unfit(a, false)

	ways[0].Cut()
	ways[1].Cut()
	unfit(a, true)
	unfit(b, true)
	l.must(ways[0].Restore())
	l.must(ways[1].Restore())
	unfit(a, false)
	unfit(b, false)
	l.more(trafficRate)
	l.complete(r)
	// One may have noticed before the other that its way is cut.
	for _, m := range ms {
		if n := m.status().RoleChanges[control.RoleActive]; n > 2 {
			l.errorf("%s became active %d times", m.name, n)
		}
	}
}

// TestTopicMissing: the topic does not exist at first, and the broker makes none.
func TestTopicMissing(t *testing.T) {
	t.Parallel()
	// How long the library waits for a topic that is being made.
	l := newLab(t, with("BMPHA_KAFKA_PROPERTIES=topic.metadata.propagation.max.ms=2000"))
	ms := l.cluster("a", "b")
	r := l.numbered(trafficRate, ms...)
	ms[0].seen("the error in status", func(s *control.Status) error {
		if !strings.Contains(strings.ToLower(s.Sink.LastError), "unknown topic") {
			return fmt.Errorf("last error %q", s.Sink.LastError)
		}
		return nil
	})
	l.consume(4)
	l.more(trafficRate)
	if n := l.complete(r); n != 0 {
		l.errorf("%d records repeated", n)
	}
}

// TestRecordTooLarge: one record that the topic does not take is set aside, all
// others arrive.
func TestRecordTooLarge(t *testing.T) {
	t.Parallel()
	l := newLab(t).consume(1, "max.message.bytes=6000")
	// Batches that the topic takes.
	l.env = append(l.env, "BMPHA_KAFKA_PROPERTIES=batch.size=4000")
	a := l.start("a")
	a.role(control.RoleActive)
	r := l.numbered(trafficRate, a)
	l.more(500)

	large := l.dial(a, "127.0.4.1")
	large.send(smallOpening(), smallRoute(1, true))
	attrs := bgp.AppendOrigin(nil, 0)
	attrs = bgp.AppendASPath(attrs, 64501)
	attrs = bgp.AppendNextHop(attrs, smallAddr)
	var communities []uint32
	for i := range uint32(900) {
		communities = append(communities, 65000<<16|i+10000)
	}
	attrs = bgp.AppendCommunities(attrs, communities...)
	large.send(bmp.AppendRouteMonitoring(nil, smallPeer, bgp.AppendUpdate(nil, nil, attrs, []byte{32, 203, 0, 113, 9})))
	large.send(smallRoute(2, true))
	l.until("the routes around it", func() error { return l.has("127.0.4.1", 1, 2) })
	a.seen("one dead letter", func(s *control.Status) error {
		if s.Sink.DeadLetters != 1 {
			return fmt.Errorf("%d", s.Sink.DeadLetters)
		}
		return nil
	})
	b, err := os.ReadFile(a.status().Sink.DeadLetterFile)
	l.must(err)
	var dead struct{ Value []byte }
	if err := json.Unmarshal(b, &dead); err != nil || !bytes.Contains(dead.Value, []byte("203.0.113.9/32")) {
		t.Errorf("dead letter file holds %.200q…: %v", b, err)
	}
	l.more(500)
	r.Pause(true)
	l.sameRouter(r, "127.0.0.1")
	large.close()
}

// has returns an error unless exactly these routes of smallSession's kind are in
// the table of a router.
func (l *lab) has(router string, routes ...byte) error {
	want := map[string]bool{}
	for _, n := range routes {
		want[netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, 113, n}), 32).String()] = true
	}
	got := l.tally.routesOf(router)
	for k := range got {
		if !want[k.Prefix] {
			return fmt.Errorf("router %s: %s is in Kafka", router, k.Prefix)
		}
	}
	if len(got) != len(want) {
		return fmt.Errorf("router %s: %d routes in Kafka, want %d", router, len(got), len(want))
	}
	return nil
}
