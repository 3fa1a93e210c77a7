package collector

import (
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/election"
	"github.com/bmpha/bmpha/pkg/replay"
)

// speak connects to a collector from an address and says something.
func speak(t *testing.T, from string, m *member, bytes []byte) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	conn, err := d.Dial("tcp", m.addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := conn.Write(bytes); err != nil {
		t.Fatal(err)
	}
	return conn
}

func hello(name string) []byte { return bmp.AppendInitiation(nil, "", name) }

// stopsWithin stops a collector and checks that it takes less than the limit, which is
// to be below the time-out of 20 s that a collector has for what does not end.
func stopsWithin(t *testing.T, m *member, limit time.Duration) error {
	t.Helper()
	begin := time.Now()
	err := m.stop()
	if d := time.Since(begin); d > limit {
		t.Errorf("stopping took %v, want at most %v", d, limit)
	}
	return err
}

// TestStopWithSilentConnection: a connection that says nothing does not keep the
// collector.
func TestStopWithSilentConnection(t *testing.T) {
	l := newLab(t)
	a := l.start("a")
	l.role(a, "active")
	speak(t, "127.0.0.1", a, nil)
	l.until("accepted", func() error {
		if n := a.Status().Sessions.Now; n != 1 {
			return fmt.Errorf("%d sessions", n)
		}
		return nil
	})
	if err := stopsWithin(t, a, 15*time.Second); err != nil {
		t.Error(err)
	}
}

// TestStopWhenFull: with Kafka away and memory used up, a stop takes its time-out
// and says what is left.
func TestStopWhenFull(t *testing.T) {
	l := newLab(t)
	a := l.start("a", func(o *Options) { o.Memory, o.StopTimeout = 400<<10, 2*time.Second })
	l.role(a, "active")
	if err := l.kafka.Away(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	var writers sync.WaitGroup
	for i := range 30 {
		conn := speak(t, fmt.Sprintf("127.0.1.%d", i+1), a, hello("r"))
		writers.Go(func() {
			for {
				if _, err := conn.Write(hello("much to say")); err != nil {
					return
				}
			}
		})
	}
	l.until("routers are made to wait", func() error {
		if n := a.Status().Hold.Paused; n < 20 {
			return fmt.Errorf("%d are paused", n)
		}
		return nil
	})
	if d := a.Status().Hold.Dropped["full"]; d != 0 {
		t.Errorf("the only collector dropped %d messages", d)
	}
	if err := stopsWithin(t, a, 18*time.Second); err == nil {
		t.Error("nothing is said of what is left")
	}
	writers.Wait()
}

// TestStopFlushesWhatOnlyItHears: another member takes over the cluster, but
// cannot send what it never heard.
func TestStopFlushesWhatOnlyItHears(t *testing.T) {
	l := newLab(t)
	a := l.start("a", patient)
	l.role(a, "active")
	b := l.start("b", patient)
	l.role(b, "standby")
	r := l.router(numbered(t), 2000, a)
	l.atLeast(1000)
	if err := l.kafka.Away(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	l.until("a backlog", func() error {
		if st := a.Status(); st.Hold.Messages < 2000 {
			return fmt.Errorf("%d messages", st.Hold.Messages)
		}
		return nil
	})
	r.Pause(true)
	l.until("all that was said is read", func() error {
		said, read := r.Counters().Collectors[0].Messages, a.Status().Routers[0].Messages
		if read != said {
			return fmt.Errorf("%d of %d messages", read, said)
		}
		return nil
	})
	stopped := make(chan error, 1)
	go func() { stopped <- a.stop() }()
	if err := l.kafka.Away(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	l.same(r)
}

// TestForeignTimestamp: somebody else's key that looks like an older member's, but
// never expires, does not keep everyone waiting.
func TestForeignTimestamp(t *testing.T) {
	l := newLab(t)
	rdb := l.redis.Client()
	defer rdb.Close()
	if err := rdb.Set(t.Context(), "lab+0+foo+ha_daemon_startup_time", "5", 0).Err(); err != nil {
		t.Fatal(err)
	}
	l.role(l.start("a"), "active")
}

// TestReconnectLoop: a router that connects again and again, without closing,
// neither keeps others out nor makes an older connection win.
func TestReconnectLoop(t *testing.T) {
	l := newLab(t)
	a := l.start("a", func(o *Options) { o.MaxSessions = 40 })
	l.role(a, "active")
	for range 200 {
		speak(t, "127.0.0.2", a, hello("loop"))
	}
	good := l.router(synthetic(t, replay.Synthetic{Prefixes: 50}), 0, a)
	l.same(good)
	last := uint32(0)
	l.until("the newest connection counts", func() error {
		for _, r := range a.Status().Routers {
			if r.SysName != "loop" || r.Session == nil {
				continue
			}
			if r.Session.ID < last {
				t.Fatalf("session %d came after %d", r.Session.ID, last)
			}
			last = r.Session.ID
		}
		if st := a.Status(); st.Sessions.Now > 2 {
			return fmt.Errorf("%d sessions", st.Sessions.Now)
		}
		return nil
	})
}

// TestSharedAddress: two routers behind one address are the same two on every
// collector, whichever came first there.
func TestSharedAddress(t *testing.T) {
	l := newLab(t)
	a := l.start("a", patient)
	l.role(a, "active")
	b := l.start("b", patient)
	l.role(b, "standby")
	connect := func(m *member, name string) {
		t.Helper()
		speak(t, "127.0.0.1", m, hello(name))
		l.until("session", func() error {
			for _, r := range m.Status().Routers {
				if r.SysName == name && r.Session != nil {
					return nil
				}
			}
			return fmt.Errorf("%s does not hear %s", m.o.Process, name)
		})
	}
	connect(a, "r1")
	connect(a, "r2")
	connect(b, "r2")
	connect(b, "r1")
	l.until("they agree", func() error {
		for _, m := range []*member{a, b} {
			for _, r := range m.Status().Routers {
				if len(r.HeardBy) != 2 || r.Sender != "a" {
					return fmt.Errorf("%s: %s is heard by %v and sent by %s", m.o.Process, r.SysName, r.HeardBy, r.Sender)
				}
			}
		}
		return nil
	})
	if n := b.Status().Sink.Handed; n != 0 {
		t.Errorf("b sent %d records", n)
	}
}

// TestForcedStandbyStops: what a collector that must not send holds is not sent
// when it stops, and does not keep it either.
func TestForcedStandbyStops(t *testing.T) {
	l := newLab(t)
	a := l.start("a")
	l.role(a, "active")
	if err := a.Force(t.Context(), election.ForceStandby); err != nil {
		t.Fatal(err)
	}
	l.role(a, "standby")
	l.router(numbered(t), 1000, a)
	l.until("held", func() error {
		if a.Status().Hold.Messages < 500 {
			return fmt.Errorf("%d messages", a.Status().Hold.Messages)
		}
		return nil
	})
	if err := stopsWithin(t, a, 15*time.Second); err != nil {
		t.Error(err)
	}
	if n := l.sub.Count(); n != 0 {
		t.Errorf("%d records were sent", n)
	}
}

// TestMarkOfWhatWaits: while memory is full, what waits in the socket has come but
// is not in Kafka, and the low-water mark says so: another collector keeps it.
func TestMarkOfWhatWaits(t *testing.T) {
	l := newLab(t)
	a := l.start("a", patient, func(o *Options) { o.Memory = 200 << 10 })
	l.role(a, "active")
	b := l.start("b", patient)
	l.role(b, "standby")
	r := l.router(numbered(t), 3000, a, b)
	l.atLeast(1000)
	if err := l.kafka.Away(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	l.until("a does not read any more", func() error {
		if st := a.Status(); st.Hold.Paused != 1 || float64(b.Status().Hold.OldestAge) < 2 {
			return fmt.Errorf("%d routers paused", st.Hold.Paused)
		}
		return nil
	})
	r.Pause(true)
	want := len(r.Table())
	// a goes: what it had not read is in b only.
	stopped := make(chan error, 1)
	go func() { stopped <- a.stop() }()
	l.role(b, "active")
	if err := l.kafka.Away(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	l.until("everything is in Kafka", func() error {
		if n := len(l.numbers()); n != want {
			return fmt.Errorf("%d of %d", n, want)
		}
		return nil
	})
}
