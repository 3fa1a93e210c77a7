package topic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/rig"
	"github.com/bmpha/bmpha/pkg/sink"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if shared != nil {
		_ = shared.Close()
	}
	// Libraries end their own goroutines a little after they are closed.
	for tries := 1; code == 0; tries++ {
		err := goleak.Find()
		if err == nil {
			break
		}
		if tries == 20 {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

const deadline = 2 * time.Minute

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// both runs a test with an embedded broker and with a real one.
func both(t *testing.T, o rig.KafkaOptions, f func(t *testing.T, k rig.Kafka)) {
	t.Run("embedded", func(t *testing.T) {
		k, err := rig.StartEmbeddedKafka(within(t, deadline), o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { k.Close() })
		f(t, k)
	})
	t.Run("real", func(t *testing.T) { f(t, realKafka(t, o)) })
}

// common is both, with one real broker for all tests that do it no harm. Its topics
// are called as named says.
func common(t *testing.T, topics map[string]int, f func(t *testing.T, k rig.Kafka)) {
	run := func(t *testing.T, k rig.Kafka) {
		for name, n := range topics {
			if err := k.CreateTopic(within(t, deadline), named(t, name), n); err != nil {
				t.Fatal(err)
			}
		}
		f(t, k)
	}
	t.Run("embedded", func(t *testing.T) {
		k, err := rig.StartEmbeddedKafka(within(t, deadline), rig.KafkaOptions{AutoCreate: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { k.Close() })
		run(t, k)
	})
	t.Run("real", func(t *testing.T) {
		rig.Require(t, rig.KafkaPart)
		if shared == nil {
			k, err := rig.StartKafkaServer(within(t, time.Minute), rig.KafkaOptions{AutoCreate: true})
			if err != nil {
				t.Fatal(err)
			}
			shared = k
		}
		run(t, shared)
	})
}

var shared rig.Kafka

// named returns a name that is this test's own.
func named(t testing.TB, topic string) string {
	return topic + "-" + strings.ReplaceAll(t.Name(), "/", "-")
}

func realKafka(t testing.TB, o rig.KafkaOptions) rig.Kafka {
	rig.Require(t, rig.KafkaPart)
	k, err := rig.StartKafkaServer(within(t, time.Minute), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k
}

// A lab is a Reader under test, what it has read, and a producer.
type lab struct {
	t testing.TB
	k rig.Kafka
	r *Reader
	w *kgo.Client

	mu   sync.Mutex
	got  []Record
	next map[string]int64 // by topic and partition
}

// started is what Options.Now counts from.
var started = time.Now()

func now() int64 { return time.Since(started).Microseconds() }

// newLab starts a Reader with looks every few ms.
func newLab(t testing.TB, k rig.Kafka, o Options) *lab {
	l := &lab{t: t, k: k, next: map[string]int64{}}
	o.Kafka.Brokers = []string{k.Brokers()}
	if o.Interval == 0 {
		o.Interval = 5 * time.Millisecond
	}
	o.Now = now
	if o.Read == nil {
		o.Read = l.read
	}
	var err error
	if l.r, err = New(o); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.r.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		if err := l.r.Close(); err != nil {
			t.Error(err)
		}
	})
	l.w = l.producer()
	return l
}

func (l *lab) producer(o ...kgo.Opt) *kgo.Client {
	w, err := kgo.NewClient(append(append(l.k.Client(), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.MetadataMinAge(20*time.Millisecond), kgo.UnknownTopicRetries(-1)), o...)...)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(w.Close)
	return w
}

func (l *lab) read(r *Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := *r
	c.Value, c.Key, c.Header = append([]byte(nil), r.Value...), append([]byte(nil), r.Key...), append([]byte(nil), r.Header...)
	at := fmt.Sprint(r.Topic, "/", r.Partition)
	if r.Offset < l.next[at] {
		l.t.Errorf("%s: offset %d after %d", at, r.Offset, l.next[at])
	}
	l.next[at] = r.Offset + 1
	l.got = append(l.got, c)
}

// put produces numbered records of some bytes to the partitions in turn.
func (l *lab) put(w *kgo.Client, topic string, partitions, from, n, size int) {
	l.t.Helper()
	batch := make([]*kgo.Record, n)
	for i := range batch {
		v := make([]byte, max(size, 8))
		binary.BigEndian.PutUint64(v, uint64(from+i))
		batch[i] = &kgo.Record{
			Topic: topic, Partition: int32((from + i) % partitions), Key: []byte("k"), Value: v,
			Headers: []kgo.RecordHeader{{Key: "x", Value: []byte("y")}, {Key: record.HeaderName, Value: v[:8]}},
		}
	}
	if err := w.ProduceSync(within(l.t, deadline), batch...).FirstErr(); err != nil {
		l.t.Fatal(err)
	}
}

// looked waits for a look that began later than now, and returns the time.
func (l *lab) looked() int64 {
	l.t.Helper()
	at := now()
	l.until(func() error {
		if s := l.r.Status(); s.To <= at || s.Known < s.Partitions {
			return fmt.Errorf("%+v at %d", s, at)
		}
		return nil
	})
	at = now()
	l.until(func() error {
		if s := l.r.Status(); s.To <= at || s.Known < s.Partitions {
			return fmt.Errorf("%+v at %d", s, at)
		}
		return nil
	})
	return l.r.Status().To
}

func (l *lab) until(cond func() error) {
	l.t.Helper()
	if err := rig.WaitFor(within(l.t, deadline), cond); err != nil {
		l.t.Fatal(err)
	}
}

// prime forgets what was read.
func (l *lab) prime(since int64) {
	l.t.Helper()
	l.r.Rest()
	l.mu.Lock()
	l.got, l.next = nil, map[string]int64{}
	l.mu.Unlock()
	if err := l.r.Prime(since); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) through() Progress {
	l.t.Helper()
	p, err := l.r.Through(within(l.t, deadline))
	if err != nil {
		l.t.Fatal(err)
	}
	return p
}

// numbers checks that the numbers from..to-1 were read, in all, once each.
func (l *lab) numbers(from, to int) {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	seen := map[uint64]bool{}
	for _, r := range l.got {
		n := binary.BigEndian.Uint64(r.Value)
		if seen[n] || n < uint64(from) || n >= uint64(to) || string(r.Key) != "k" || string(r.Header) != string(r.Value[:8]) ||
			time.Since(time.UnixMilli(r.Time)).Abs() > time.Hour {
			l.t.Fatalf("record %d of %d to %d: %+v", n, from, to, r)
		}
		seen[n] = true
	}
	if len(seen) != to-from {
		l.t.Fatalf("%d records of %d to %d", len(seen), from, to)
	}
}

// What was put in behind the look that since asks for is read, and what comes then.
func TestReadBack(t *testing.T) {
	common(t, map[string]int{"routes": 64, "other": 3}, func(t *testing.T, k rig.Kafka) {
		l := newLab(t, k, Options{Topics: []string{named(t, "routes")}})
		l.r.Follow(named(t, "other"))
		l.r.Follow(named(t, "never"))
		l.put(l.w, named(t, "routes"), 64, 0, 1000, 100)
		since := l.looked()
		l.put(l.w, named(t, "routes"), 64, 1000, 1000, 100)
		l.put(l.w, named(t, "other"), 3, 2000, 10, 100)
		l.looked()
		l.prime(since)
		if p := l.through(); p.Records != 1010 || p.From > since || p.Bytes != 1010*101 || p.Took <= 0 {
			t.Errorf("%+v, since %d", p, since)
		}
		l.numbers(1000, 2010)
		for i := range 20 {
			l.put(l.w, named(t, "routes"), 64, 2010+i*10, 10, 100)
			l.through()
			l.numbers(1000, 2020+i*10)
		}
		l.r.Rest()
		if _, err := l.r.Through(t.Context()); !errors.Is(err, ErrResting) {
			t.Errorf("at rest: %v", err)
		}
		for range 3 {
			l.prime(since)
			l.through()
			l.numbers(1000, 2210)
		}
		s := l.r.Status()
		if s.Topics != 3 || s.Partitions != 67 || s.Known != 67 || !s.Reading || s.Last.Records != 1210 || s.From > since {
			t.Errorf("%+v", s)
		}
	})
}

func TestOptions(t *testing.T) {
	good := func() Options {
		return Options{Kafka: sink.Options{Brokers: []string{"127.0.0.1:1"}}, Read: func(*Record) {}, Now: now}
	}
	for name, c := range map[string]struct {
		change func(*Options)
		want   string // "" for none
	}{
		"good":          {func(*Options) {}, ""},
		"no read":       {func(o *Options) { o.Read = nil }, "Read and Now"},
		"no broker":     {func(o *Options) { o.Kafka.Brokers = nil }, "no Kafka broker"},
		"of a producer": {func(o *Options) { o.Kafka.Properties = map[string]string{"linger.ms": "3", "acks": "all"} }, ""},
		"wrong value":   {func(o *Options) { o.Kafka.Properties = map[string]string{"socket.timeout.ms": "x"} }, "socket.timeout.ms"},
		"given twice": {func(o *Options) {
			o.Kafka.SASL = sink.SASL{Mechanism: "PLAIN", Username: "u", Password: "p"}
			o.Kafka.Properties = map[string]string{"sasl.mechanism": "PLAIN"}
		}, "sasl.mechanism is given twice"},
		"other brokers":  {func(o *Options) { o.Kafka.Properties = map[string]string{"metadata.broker.list": "x:1"} }, "given twice"},
		"no certificate": {func(o *Options) { o.Kafka.TLS = sink.TLS{Enable: true, CAFile: "/does/not/exist"} }, "ssl"},
	} {
		t.Run(name, func(t *testing.T) {
			o := good()
			c.change(&o)
			r, err := New(o)
			if err == nil {
				defer r.Close()
			}
			if got := fmt.Sprint(err); (err == nil) != (c.want == "") || !strings.Contains(got, c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}
