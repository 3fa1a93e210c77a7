package collector

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bmpha/bmpha/pkg/cluster"
	"github.com/bmpha/bmpha/pkg/pmacct"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/rig"
	"github.com/bmpha/bmpha/pkg/sink"
	"github.com/bmpha/bmpha/pkg/topic"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(runner{m}) }

// runner gives libraries a little time: they end their own goroutines behind Close.
type runner struct{ *testing.M }

func (r runner) Run() int {
	code := r.M.Run()
	for tries := 0; code == 0 && tries < 20 && goleak.Find() != nil; tries++ {
	}
	return code
}

const labTopic = "lab.bmp"

// A lab is an embedded Redis and Kafka with collectors in this process, on fast
// timers.
type lab struct {
	t     *testing.T
	redis *rig.EmbeddedRedis
	kafka *rig.EmbeddedKafka
	sub   *rig.Consumer

	// What has been read of sub, so that a look at it costs what is new.
	counted map[uint64]int // see numbers
	upTo    int            // records counted
	told    replay.Consumer
	toldTo  int // records told
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t}
	var err error
	if l.redis, err = rig.StartEmbeddedRedis(rig.RedisOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.redis.Close() })
	if l.kafka, err = rig.StartEmbeddedKafka(t.Context(), rig.KafkaOptions{Topics: map[string]int{labTopic: 4}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.kafka.Close() })
	if l.sub, err = rig.Consume(t.Context(), l.kafka.Brokers(), labTopic); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.sub.Close)
	return l
}

// A member is a collector of the lab.
type member struct {
	*Collector
	stop func() error
}

// start runs a collector until the test ends or stop is called.
func (l *lab) start(name string, change ...func(*Options)) *member {
	l.t.Helper()
	log := slog.New(slog.NewTextHandler(testWriter{l.t}, nil)).With("member", name)
	out, err := sink.NewKafka(sink.Options{Brokers: []string{l.kafka.Brokers()}, DeadLetter: l.t.TempDir() + "/dead", Log: log})
	if err != nil {
		l.t.Fatal(err)
	}
	enc, err := pmacct.NewEncoder(pmacct.Options{Header: true, Zone: time.UTC})
	if err != nil {
		l.t.Fatal(err)
	}
	o := Options{
		Process: name, Cluster: "lab", Listen: []string{"127.0.0.1:0"}, MaxSessions: 100, MaxMessage: 1 << 20,
		KeepAlive: 30 * time.Second, ReadTimeout: 5 * time.Second,
		Memory: 64 << 20, Window: 15 * time.Second, Margin: 200 * time.Millisecond,
		Redis:     cluster.Options{Address: l.redis.Addr(), Scan: true},
		Heartbeat: 100 * time.Millisecond, Expiry: 400 * time.Millisecond, Failback: true,
		Encoder: enc, Sink: out, SinkKind: "kafka", Log: log,
		Topic: func(netip.Addr, uint16) string { return labTopic },
		Key:   func(a netip.Addr, _ uint16) []byte { return []byte(a.String()) },

		ReadBack: &topic.Options{Kafka: sink.Options{Brokers: []string{l.kafka.Brokers()}}}, ReadBackTime: 2 * time.Second,
	}
	for _, f := range change {
		f(&o)
	}
	c, err := New(l.t.Context(), o)
	if err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	m := &member{Collector: c}
	stopped := false
	m.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(time.Minute):
			return fmt.Errorf("%s does not stop", name)
		}
	}
	l.t.Cleanup(func() {
		if err := m.stop(); err != nil {
			l.t.Errorf("stop %s: %v", name, err)
		}
	})
	return m
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}

func (l *lab) until(what string, cond func() error) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), 2*time.Minute)
	defer cancel()
	if err := rig.WaitFor(ctx, cond); err != nil {
		l.t.Fatalf("%s: %v", what, err)
	}
}

func (l *lab) role(m *member, want string) {
	l.t.Helper()
	l.until("role", func() error {
		if st := m.Status(); st.Role != want {
			return fmt.Errorf("%s is %s (%s), want %s", m.o.Process, st.Role, st.Reason, want)
		}
		return nil
	})
}

func (m *member) addr() string { return m.Addresses()[0].String() }

// router makes a router that speaks to all members.
func (l *lab) router(stream replay.Stream, rate float64, members ...*member) *replay.Router {
	l.t.Helper()
	var to []string
	for _, m := range members {
		to = append(to, m.addr())
	}
	r, err := replay.NewRouter(replay.Config{Stream: stream, To: to, Rate: rate})
	if err != nil {
		l.t.Fatal(err)
	}
	r.Start()
	l.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := r.Stop(ctx, replay.Terminate); err != nil {
			l.t.Errorf("stop router: %v", err)
		}
	})
	return r
}

// same waits until the table in Kafka is the router's.
func (l *lab) same(r *replay.Router) {
	l.t.Helper()
	l.until("table in Kafka", func() error {
		for _, rec := range l.sub.Records()[l.toldTo:] {
			l.toldTo++
			if err := l.told.Record(rec.Value); err != nil {
				l.t.Fatal(err)
			}
		}
		if d := replay.Compare(r.Table(), l.told.Routes()); !d.Empty() {
			return fmt.Errorf("%s", d)
		}
		return nil
	})
}

func synthetic(t *testing.T, s replay.Synthetic) replay.Stream {
	t.Helper()
	stream, err := s.Stream()
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// numbers counts how often each numbered route is in Kafka. The map is the lab's.
func (l *lab) numbers() map[uint64]int {
	if l.counted == nil {
		l.counted = map[uint64]int{}
	}
	for _, rec := range l.sub.Records()[l.upTo:] {
		l.upTo++
		var r struct {
			Prefix string `json:"ip_prefix"`
		}
		if err := json.Unmarshal(rec.Value, &r); err != nil {
			l.t.Fatalf("record %q: %v", rec.Value, err)
		}
		if i, ok := replay.Number(r.Prefix); ok {
			l.counted[i]++
		}
	}
	return l.counted
}

// TestOneCollector: what a router says is in Kafka, once and in order.
func TestOneCollector(t *testing.T) {
	l := newLab(t)
	a := l.start("a", patient)
	r := l.router(synthetic(t, replay.Synthetic{Prefixes: 500, IPv6: 0.3, Churn: replay.DefaultChurn}), 2000, a)
	l.role(a, "active")
	l.until("some records", func() error {
		if n := l.sub.Count(); n < 10000 {
			return fmt.Errorf("%d records", n)
		}
		return nil
	})
	r.Pause(true)
	l.same(r)
}

// expectOnce checks that every numbered route up to the last is in Kafka, and
// returns how many came more than once.
func (l *lab) expectAll(r *replay.Router) (repeated int) {
	l.t.Helper()
	r.Pause(true)
	want := len(r.Table())
	l.until("all records", func() error {
		if n := len(l.numbers()); n != want {
			return fmt.Errorf("%d numbers in Kafka, want %d", n, want)
		}
		return nil
	})
	for _, n := range l.numbers() {
		repeated += n - 1
	}
	l.same(r)
	return repeated
}

func (l *lab) atLeast(n int) {
	l.t.Helper()
	l.until("records", func() error {
		if got := l.sub.Count(); got < n {
			return fmt.Errorf("%d records, want %d", got, n)
		}
		return nil
	})
}

func numbered(t *testing.T) replay.Stream {
	return synthetic(t, replay.Synthetic{Numbered: true})
}

// patient timers are for tests in which nobody is to take over, or nobody but who is
// told to, however busy the machine is.
//
// The margin is for routers in this very process, which may come to speak to one
// collector that much later than to the other.
func patient(o *Options) {
	o.Heartbeat, o.Expiry, o.Margin = 500*time.Millisecond, 5*time.Second, 2*time.Second
}

// TestPairSendsOnce: in quiet operation each record is in Kafka once.
func TestPairSendsOnce(t *testing.T) {
	l := newLab(t)
	a := l.start("a", patient)
	l.role(a, "active")
	b := l.start("b", patient)
	l.role(b, "standby")
	r := l.router(numbered(t), 2000, a, b)
	l.atLeast(4000)
	if n := l.expectAll(r); n != 0 {
		t.Errorf("%d records repeated", n)
	}
	if st := b.Status(); st.Sink.Handed != 0 {
		t.Errorf("the standby handed over %d records", st.Sink.Handed)
	}
}

// TestStopHandsOver: a graceful stop loses nothing and repeats at most the
// margin.
func TestStopHandsOver(t *testing.T) {
	l := newLab(t)
	patient := func(o *Options) {
		patient(o)
		o.ReadBackTime = time.Minute
	}
	a := l.start("a", patient)
	l.role(a, "active")
	b := l.start("b", patient)
	l.role(b, "standby")
	const rate = 1000
	r := l.router(numbered(t), rate, a, b)
	l.atLeast(5 * rate) // b has watched the topic for longer than the seam lasts
	if err := a.stop(); err != nil {
		t.Error(err)
	}
	l.role(b, "active")
	l.atLeast(l.sub.Count() + 1000)
	if n := l.expectAll(r); n > rate/2 {
		t.Errorf("%d records repeated, the margin holds %d", n, 2*rate)
	}
}

// TestMaintenance: signal 34.
func TestMaintenance(t *testing.T) {
	l := newLab(t)
	a := l.start("a", patient)
	l.role(a, "active")
	b := l.start("b", patient)
	l.role(b, "standby")
	r := l.router(numbered(t), 2000, a, b)
	for range 2 {
		l.atLeast(l.sub.Count() + 1000)
		if err := a.Regenerate(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.role(b, "active")
		l.role(a, "standby")
		a, b = b, a
	}
	l.expectAll(r)
}

// TestRedisAway: without Redis all send, with it again one does, the same as
// before.
func TestRedisAway(t *testing.T) {
	for _, how := range []string{"refuses", "hangs", "answers errors"} {
		t.Run(how, func(t *testing.T) {
			l := newLab(t)
			a := l.start("a", patient)
			l.role(a, "active")
			b := l.start("b", patient)
			l.role(b, "standby")
			r := l.router(numbered(t), 1000, a, b)
			l.atLeast(1000)
			var err error
			switch how {
			case "refuses":
				err = l.redis.Stop()
			case "hangs":
				err = l.redis.Pause()
			default:
				l.redis.Fail("LOADING Redis is loading the dataset in memory")
			}
			if err != nil {
				t.Fatal(err)
			}
			l.role(b, "active")
			l.role(a, "active")
			l.atLeast(l.sub.Count() + 1000)
			switch how {
			case "refuses":
				err = l.redis.Restart(t.Context())
			case "hangs":
				err = l.redis.Resume()
			default:
				l.redis.Fail("")
			}
			if err != nil {
				t.Fatal(err)
			}
			l.role(b, "standby")
			l.role(a, "active")
			l.expectAll(r)
			if n := a.Status().RoleChanges["active"]; n != 1 {
				t.Errorf("a became active %d times, want once", n)
			}
		})
	}
}

// TestKafkaAway: a Kafka outage is held, in order, and delivered.
func TestKafkaAway(t *testing.T) {
	l := newLab(t)
	a := l.start("a", patient)
	l.role(a, "active")
	b := l.start("b", patient)
	l.role(b, "standby")
	r := l.router(numbered(t), 2000, a, b)
	l.atLeast(1000)
	if err := l.kafka.Away(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	l.until("a backlog beyond the window", func() error {
		if st := b.Status(); float64(st.Hold.OldestAge) < 2 {
			return fmt.Errorf("the standby's oldest is %v s old", st.Hold.OldestAge)
		}
		return nil
	})
	if err := l.kafka.Away(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if n := l.expectAll(r); n != 0 {
		t.Errorf("%d records repeated", n)
	}
}

// TestSessionCut: a router that only one collector hears is sent by that one.
func TestSessionCut(t *testing.T) {
	l := newLab(t)
	a := l.start("a", patient)
	l.role(a, "active")
	b := l.start("b", patient)
	l.role(b, "standby")
	r := l.router(synthetic(t, replay.Synthetic{Prefixes: 300, Churn: replay.DefaultChurn}), 1000, a, b)
	l.atLeast(3000)
	r.Cut(a.addr(), time.Hour)
	l.until("b sends for the router", func() error {
		if st := b.Status(); !st.Routers[0].Sending {
			return fmt.Errorf("sender is %q", st.Routers[0].Sender)
		}
		return nil
	})
	r.Cut(a.addr(), 0) // it connects again
	l.until("a sends again", func() error {
		if st := a.Status(); !st.Routers[0].Sending || st.Routers[0].Session == nil {
			return fmt.Errorf("sender is %q", st.Routers[0].Sender)
		}
		return nil
	})
	l.atLeast(l.sub.Count() + 1000)
	r.Pause(true)
	l.same(r)
}
