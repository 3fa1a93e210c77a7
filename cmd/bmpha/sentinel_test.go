package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/rig"
)

// TestSentinel: sentinels know where Redis is. Its master dies under a pair; as soon
// as the replica is the master all is as before.
func TestSentinel(t *testing.T) {
	rig.Require(t, rig.RedisServerPart)
	t.Parallel()
	set, err := rig.StartRedisSentinel(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := set.Close(); err != nil {
			t.Error(err)
		}
	})
	where := fmt.Sprintf("sentinel: {master: %s, addresses: [%s]}", set.Name(), strings.Join(set.Addrs(), ", "))
	l := newLab(t, withDefaultTimers, func(l *lab) { l.where = where }).consume(1)
	ms := l.cluster("a", "b")
	a, b := ms[0], ms[1]
	r := l.numbered(trafficRate, ms...)
	l.more(trafficRate)
	l.says(0, set.Name(), "status", "--redis", "config", "-c", a.file)
	l.must(set.Settled(l.within(30 * time.Second)))
	master, old, err := set.Master(t.Context())
	l.must(err)
	l.must(master.Kill())
	begin := time.Now()
	var outage time.Duration
	l.until("another master", func() error {
		_, now, err := set.Master(t.Context())
		if err == nil && now == old {
			err = errors.New("it is the old one")
		}
		outage = time.Since(begin)
		return err
	})
	client := set.Client()
	defer client.Close()
	l.until("it takes words", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		outage = time.Since(begin)
		return client.Set(ctx, "probe", "x", time.Second).Err()
	})
	for _, m := range ms {
		m.seen("Redis is back", func(s *control.Status) error {
			if s.Redis.State != control.RedisOK || float64(s.Redis.LastOKAge) > 2 {
				return fmt.Errorf("%s: Redis %s", m.name, s.Redis.State)
			}
			return nil
		})
	}
	a.role(control.RoleActive)
	b.role(control.RoleStandby)
	quiet := time.Since(begin)
	changes := b.status().RoleChanges
	l.more(2 * trafficRate)
	repeats := l.complete(r)
	l.unflagged()
	if n := a.status().RoleChanges[control.RoleActive]; n != 1 {
		l.errorf("a became active %d times", n)
	}
	if after := b.status().RoleChanges; after[control.RoleActive] != changes[control.RoleActive] || after[control.RoleActive] > 1 {
		l.errorf("b became active %d times, %d of them before the end of the outage", after[control.RoleActive], changes[control.RoleActive])
	}
	t.Logf("Redis was away for %s, all was well after %s; b became active %d times, %d repeated; load %s",
		outage.Round(time.Millisecond), quiet.Round(time.Millisecond), changes[control.RoleActive], repeats, load())
}

// TestStatusOfConfig: bmpha status asks Redis as the configuration says, password,
// TLS and name of the cluster included.
func TestStatusOfConfig(t *testing.T) {
	t.Parallel()
	l := newLab(t, withRedis(rig.RedisOptions{User: "collector", Password: "correct horse", TLS: true}))
	l.where = fmt.Sprintf("address: %q, username: collector, password: correct horse, tls: {enabled: true, ca: %q}",
		l.redis.Addr(), l.redis.Certificate().CA)
	a := l.start("a")
	a.role(control.RoleActive)
	for _, address := range []string{"config", l.redis.Addr()} {
		l.says(0, "a ", "status", "--redis", address, "-c", a.file)
	}
}
