package sink

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"
	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/bmpha/bmpha/pkg/record"
)

func topicOf(t *testing.T, s Sink, name string) uint32 {
	t.Helper()
	h, err := s.Topic(name)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func filled(stream, topic uint32, n, size int) *feed {
	f := &feed{stream: stream}
	for range n {
		f.add(topic, fmt.Sprintf("router-%d", stream), nil, size)
	}
	return f
}

// Several routers and partitions: each stream in order, each record once, and a
// position counts as acknowledged only with all before it.
func TestOrderAndPositions(t *testing.T) {
	both(t, func(t *testing.T, m maker) {
		b := newBroker(t, kfake.NumBrokers(3))
		b.topic(t, "routes", 6, nil)
		s := newSink(t, m, b, Options{})
		topic := topicOf(t, s, "routes")
		var feeds []*feed
		for i := range uint32(10) {
			feeds = append(feeds, filled(i*1000, topic, 3000, 100))
		}
		// One stream spreads over all partitions, so that these acknowledge out
		// of order.
		spread := &feed{stream: 77, start: 1 << 40}
		for i := range 5000 {
			spread.add(topic, fmt.Sprint(i%97), nil, 50)
		}
		newDriver(t, s, append(feeds, spread)...).finish()
		got := b.read(t, "routes")
		var spreadGot []uint64
		for _, records := range got {
			for _, f := range feeds {
				if p := positions(records, f.stream); p != nil {
					if n := settled(t, p, 0, f.end()); n > 0 {
						t.Errorf("stream %d: %d records repeated", f.stream, n)
					}
				}
			}
			p := positions(records, 77)
			for i := 1; i < len(p); i++ {
				if p[i] <= p[i-1] {
					t.Fatalf("position %d after %d", p[i], p[i-1])
				}
			}
			spreadGot = append(spreadGot, p...)
		}
		if len(spreadGot) != spread.batch.Len() {
			t.Errorf("%d records spread over the partitions, want %d", len(spreadGot), spread.batch.Len())
		}
		st := s.Stats()
		if st.Handed != 35000 || st.Acked != 35000 || st.Failed != 0 || st.Outstanding != 0 || !st.Connected {
			t.Errorf("%+v", st)
		}
	})
}

// While a partition does not acknowledge, Acked stays at its first record,
// however much the others acknowledge.
func TestAckedIsContiguous(t *testing.T) {
	both(t, func(t *testing.T, m maker) {
		b := newBroker(t)
		b.topic(t, "a", 1, nil)
		b.topic(t, "b", 1, nil)
		hold := b.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "b", Err: kerr.NotLeaderForPartition, Count: -1})
		s := newSink(t, m, b, Options{Window: 1000})
		ta, tb := topicOf(t, s, "a"), topicOf(t, s, "b")
		f := &feed{stream: 1}
		for i := range 400 {
			f.add([]uint32{ta, tb}[min(i/100, 1)*(i%2)], "k", nil, 20)
		}
		d := newDriver(t, s, f)
		if m.name == "fenced" { // all of them are in a transaction that cannot end
			d.until("all are handed over", func() bool { return f.next == 400 && hold.Hits() > 3 })
			if f.report.Acked != 0 {
				t.Errorf("acknowledged up to %d, want 0", f.report.Acked)
			}
		} else {
			d.until("all but those of b are acknowledged", func() bool { return f.report.Outstanding == 150 && f.next == 400 })
			if f.report.Acked != 101 {
				t.Errorf("acknowledged up to %d, want 101", f.report.Acked)
			}
		}
		hold.Remove()
		d.finish()
		if f.resets != 0 {
			t.Errorf("%d resets, errors %v", f.resets, f.errs)
		}
	})
}

// What is handed ahead is bounded, in all and for one stream.
func TestWindow(t *testing.T) {
	both(t, func(t *testing.T, m maker) {
		b := newBroker(t)
		b.topic(t, "routes", 1, nil)
		b.away.Store(true)
		s := newSink(t, m, b, Options{Window: 100})
		topic := topicOf(t, s, "routes")
		one, two, three := filled(1, topic, 500, 20), filled(2, topic, 500, 20), filled(3, topic, 500, 20)
		for i, want := range []int{50, 50, 0} {
			if m.name == "fenced" {
				want = 0 // there is no transaction without a broker
			}
			f := []*feed{one, two, three}[i]
			if err := s.Reset(f.stream, 0); err != nil {
				t.Fatal(err)
			}
			n, err := s.Hand(f.stream, 0, &f.batch, 0)
			if n != want || err != nil {
				t.Fatalf("stream %d: %d records taken, %v; want %d", f.stream, n, err, want)
			}
			f.started, f.next = true, uint64(n)
			if n, err = s.Hand(f.stream, f.next, &f.batch, n); n != 0 || err != nil {
				t.Fatalf("stream %d: %d more records taken, %v", f.stream, n, err)
			}
		}
		b.away.Store(false)
		d := newDriver(t, s, one, two, three)
		d.check = func() {
			if n := s.Stats().Outstanding; n > 100 {
				t.Fatalf("%d records outstanding", n)
			}
		}
		d.finish()
	})
}

// While Kafka is away nothing fails, however long it takes, and all goes out in
// order when it is back.
func TestOutage(t *testing.T) {
	both(t, func(t *testing.T, m maker) {
		b := newBroker(t)
		b.topic(t, "routes", 3, nil)
		s := newSink(t, m, b, Options{Window: 2000})
		topic := topicOf(t, s, "routes")
		f, g := filled(1, topic, 20000, 200), filled(2, topic, 20000, 200)
		d := newDriver(t, s, f, g)
		for i := range 3 {
			goal := uint64(3000 * (i + 1))
			d.until("some progress", func() bool { return f.report.Acked > goal })
			b.away.Store(true)
			d.until("the outage is seen", func() bool { return !s.Stats().Connected })
			if s.Stats().LastError == "" {
				t.Error("no error is remembered")
			}
			d.until("the window is full", func() bool { return s.Stats().Outstanding == 2000 })
			var at uint64 // once all is in that was acknowledged before
			for i := range 20 {
				if d.step(); i == 9 {
					at = f.report.Acked + g.report.Acked
				}
			}
			if f.report.Acked+g.report.Acked != at {
				t.Error("acknowledged while Kafka was away")
			}
			b.away.Store(false)
			d.until("Kafka is seen again", func() bool { return s.Stats().Connected })
		}
		d.finish()
		if f.resets+g.resets > 0 {
			t.Errorf("%d resets; %v, %v", f.resets+g.resets, f.errs, g.errs)
		}
		for _, f := range []*feed{f, g} {
			var got []uint64
			for _, records := range b.read(t, "routes") {
				got = append(got, positions(records, f.stream)...)
			}
			if n := settled(t, got, 0, f.end()); n > 0 {
				t.Errorf("stream %d: %d records repeated", f.stream, n)
			}
		}
		if s.Stats().Rebuilt > 0 {
			t.Errorf("producer rebuilt: %+v", s.Stats())
		}
	})
}

func readDead(t *testing.T, path string) []deadRecord {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []deadRecord
	for line := range bytes.Lines(data) {
		var r deadRecord
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		out = append(out, r)
	}
	return out
}

// A record too large for the producer, and one too large for the broker, go to
// the dead-letter file, alone, and all others pass in order.
func TestTooLarge(t *testing.T) {
	both(t, func(t *testing.T, m maker) {
		b := newBroker(t)
		b.topic(t, "routes", 1, map[string]string{"max.message.bytes": "20000"})
		dead := deadLetterFile(t)
		s := newSink(t, m, b, Options{
			DeadLetter: dead, Window: 1000,
			Properties: map[string]string{"message.max.bytes": "100000"},
		})
		topic := topicOf(t, s, "routes")
		f, g := &feed{stream: 1}, filled(2, topic, 3000, 100)
		for i := range 3000 {
			size := 100
			switch i {
			case 700: // for the broker
				size = 30000
			case 1500, 2999: // for the producer
				size = 200000
			}
			f.add(topic, "key", []byte("header"), size)
		}
		newDriver(t, s, f, g).finish()
		got := b.read(t, "routes")[0]
		settled(t, positions(got, 1), 0, 3000, 700, 1500, 2999)
		settled(t, positions(got, 2), 0, 3000)
		var at []uint64
		for _, r := range readDead(t, dead) {
			pos := binary.BigEndian.Uint64(r.Value[4:])
			if !slices.Contains(at, pos) { // as often as it was sent
				at = append(at, pos)
			}
			if string(r.Key) != "key" || string(r.Header) != "header" || r.Topic != "routes" ||
				!bytes.Equal(r.Value, f.batch.Value(int(pos))) || !strings.Contains(r.Error, "too large") {
				t.Errorf("dead letter of position %d: topic %s, key %q, header %q, %d bytes, %s", pos, r.Topic, r.Key, r.Header, len(r.Value), r.Error)
			}
		}
		slices.Sort(at)
		if diff := cmp.Diff([]uint64{700, 1500, 2999}, at); diff != "" {
			t.Errorf("dead letters: %s", diff)
		}
		if s.Stats().Dead < 3 {
			t.Errorf("%+v", s.Stats())
		}
		for _, err := range f.errs {
			if !errors.Is(err, ErrBatchRefused) && !errors.Is(err, ErrAborted) {
				t.Errorf("stopped by %v", err)
			}
		}
	})
}

// Records that are small enough by themselves are not lost with their batch.
func TestBatchTooLarge(t *testing.T) {
	both(t, func(t *testing.T, m maker) {
		b := newBroker(t)
		b.topic(t, "routes", 1, map[string]string{"max.message.bytes": "5000"})
		dead := deadLetterFile(t)
		s := newSink(t, m, b, Options{DeadLetter: dead, Window: 400})
		f := filled(1, topicOf(t, s, "routes"), 500, 1000)
		d := newDriver(t, s, f)
		d.finish()
		settled(t, positions(b.read(t, "routes")[0], 1), 0, 500)
		if _, err := os.Stat(dead); err == nil {
			t.Errorf("dead letters: %d", len(readDead(t, dead)))
		}
		if f.resets == 0 {
			t.Error("no batch was refused: the test shows nothing")
		}
	})
}

// Without a dead-letter file nothing is passed over.
func TestTooLargeWithoutFile(t *testing.T) {
	both(t, func(t *testing.T, m maker) {
		b := newBroker(t)
		b.topic(t, "routes", 1, nil)
		s := newSink(t, m, b, Options{Properties: map[string]string{"message.max.bytes": "10000"}})
		f := filled(1, topicOf(t, s, "routes"), 10, 100)
		f.add(0, "k", nil, 20000)
		f.add(0, "k", nil, 100)
		d := newDriver(t, s, f)
		d.until("two tries", func() bool { return f.resets == 2 })
		if f.report.Acked != 10 || s.Stats().Dead != 0 {
			t.Errorf("acknowledged up to %d, %d dead", f.report.Acked, s.Stats().Dead)
		}
		if e := s.Stats().LastError; !strings.Contains(e, "no dead-letter file is configured") {
			t.Error(e)
		}
		d.maxReset = 0
		d.until("drained", func() bool { return s.Stats().Outstanding == 0 })
	})
}

// onlyAborted checks that a stream was not stopped by what another one did, except
// that they were in one transaction.
func onlyAborted(t *testing.T, m maker, f *feed) {
	t.Helper()
	for _, err := range f.errs {
		if m.name != "fenced" || !errors.Is(err, ErrAborted) {
			t.Errorf("the other stream stopped: %v", f.errs)
		}
	}
}

// A topic that the broker refuses stops the streams that use it and no others;
// once it is allowed a Reset resumes, in order.
func TestTopicRefused(t *testing.T) {
	both(t, func(t *testing.T, m maker) {
		b := newBroker(t)
		b.topic(t, "mine", 1, nil)
		b.topic(t, "theirs", 1, nil)
		s := newSink(t, m, b, Options{Window: 1000})
		mine, theirs := topicOf(t, s, "mine"), topicOf(t, s, "theirs")
		f, g := filled(1, mine, 5000, 100), filled(2, theirs, 5000, 100)
		d := newDriver(t, s, f, g)
		d.until("some progress", func() bool { return g.report.Acked > 1000 })
		refuse := b.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "theirs", Err: kerr.TopicAuthorizationFailed, Count: -1})
		d.until("the stream stops", func() bool { return g.resets > 1 })
		stuck := g.report.Acked
		d.until("the other goes on", func() bool { return f.report.Acked == f.end() })
		onlyAborted(t, m, f)
		if g.report.Acked != stuck {
			t.Errorf("acknowledged %d after %d without a permission", g.report.Acked, stuck)
		}
		if e := s.Stats().LastError; !strings.Contains(e, "theirs") || !strings.Contains(e, "authorization") {
			t.Errorf("last error %q", e)
		}
		refuse.Remove()
		d.finish()
		settled(t, positions(b.read(t, "mine")[0], 1), 0, 5000)
		settled(t, positions(b.read(t, "theirs")[0], 2), 0, 5000)
	})
}

// A topic that does not exist is a failure of its streams, and no more once it
// is made.
func TestUnknownTopic(t *testing.T) {
	both(t, func(t *testing.T, m maker) {
		b := newBroker(t)
		b.topic(t, "here", 1, nil)
		s := newSink(t, m, b, Options{Properties: map[string]string{
			"topic.metadata.propagation.max.ms": "100", "topic.metadata.refresh.interval.ms": "200",
		}})
		f, g := filled(1, topicOf(t, s, "here"), 100, 20), filled(2, topicOf(t, s, "later"), 100, 20)
		d := newDriver(t, s, f, g)
		d.until("the stream stops", func() bool { return g.resets > 0 })
		b.topic(t, "later", 1, nil)
		d.finish()
		settled(t, positions(b.read(t, "later")[0], 2), 0, 100)
		onlyAborted(t, m, f)
	})
}

// Whatever a broker answers in the middle, nothing is lost and no later record
// stays in front of an earlier one.
func TestBrokerErrors(t *testing.T) {
	for _, e := range []*kerr.Error{
		kerr.NotLeaderForPartition, kerr.RequestTimedOut, kerr.NotEnoughReplicas, kerr.NotEnoughReplicasAfterAppend,
		kerr.KafkaStorageError, kerr.UnknownServerError, kerr.TopicAuthorizationFailed, kerr.ClusterAuthorizationFailed,
		kerr.InvalidTimestamp, kerr.PolicyViolation, kerr.InvalidRequiredAcks, kerr.CorruptMessage, kerr.InvalidRecord,
		kerr.UnknownTopicOrPartition, kerr.UnknownProducerID, kerr.OutOfOrderSequenceNumber, kerr.InvalidProducerEpoch,
		kerr.RecordListTooLarge,
	} {
		t.Run(e.Message, func(t *testing.T) {
			both(t, func(t *testing.T, m maker) {
				b := newBroker(t)
				b.topic(t, "routes", 2, nil)
				dead := deadLetterFile(t)
				s := newSink(t, m, b, Options{
					DeadLetter: dead, Window: 600,
					// Small batches, so that several are on their way.
					Properties: map[string]string{"batch.num.messages": "50", "retry.backoff.ms": "10"},
				})
				topic := topicOf(t, s, "routes")
				f, g := filled(1, topic, 4000, 100), filled(2, topic, 4000, 100)
				d := newDriver(t, s, f, g)
				for i := range 3 {
					goal := uint64(1000 * (i + 1))
					d.until("some progress", func() bool { return f.report.Acked > goal })
					b.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "routes", Err: e, Count: 1})
				}
				d.finish()
				got := b.read(t, "routes")
				for _, f := range []*feed{f, g} {
					var all []uint64
					for _, records := range got {
						all = append(all, positions(records, f.stream)...)
					}
					settled(t, all, 0, f.end())
				}
				if _, err := os.Stat(dead); err == nil {
					t.Errorf("%d records set aside that were good", len(readDead(t, dead)))
				}
				t.Logf("resets %d and %d, %v %v; %+v", f.resets, g.resets, f.errs, g.errs, s.Stats())
			})
		})
	}
}

// The brokers' view of a topic comes and goes, with produce requests failing or
// not: nothing is lost without being told.
func TestTopicFlickers(t *testing.T) {
	for _, e := range []*kerr.Error{kerr.TopicAuthorizationFailed, kerr.UnknownTopicOrPartition, kerr.LeaderNotAvailable} {
		t.Run(e.Message, func(t *testing.T) {
			both(t, func(t *testing.T, m maker) {
				b := newBroker(t)
				b.topic(t, "routes", 2, nil)
				s := newSink(t, m, b, Options{Window: 600, Properties: map[string]string{
					"batch.num.messages": "50", "retry.backoff.ms": "10",
					"topic.metadata.refresh.interval.ms": "50", "topic.metadata.propagation.max.ms": "20",
				}})
				topic := topicOf(t, s, "routes")
				f, g := filled(1, topic, 6000, 100), filled(2, topic, 6000, 100)
				d := newDriver(t, s, f, g)
				for i := range 5 {
					goal := uint64(1000 * (i + 1))
					d.until("some progress", func() bool { return f.report.Acked > goal })
					metadata := b.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Topic: "routes", Err: e, Count: 1})
					if i%2 == 1 {
						b.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "routes", Err: e, Count: 1})
					}
					d.until("the glitch", func() bool { return metadata.Hits() > 0 || f.report.Acked == f.end() })
					metadata.Remove()
				}
				d.finish()
				got := b.read(t, "routes")
				for _, f := range []*feed{f, g} {
					var all []uint64
					for _, records := range got {
						all = append(all, positions(records, f.stream)...)
					}
					settled(t, all, 0, f.end())
				}
			})
		})
	}
}

// What librdkafka was about to send again when the partition went out of its view is
// not lost, also where it never says what became of it (in a transaction).
func TestPartitionGoneUnderRetry(t *testing.T) {
	both(t, func(t *testing.T, m maker) {
		// Several, so that one can say what there is while another keeps a request.
		b := newBroker(t, kfake.NumBrokers(3))
		b.topic(t, "routes", 1, nil)
		var log lockedLog
		s := newSink(t, m, b, Options{Log: slog.New(slog.NewTextHandler(&log, nil)), Properties: map[string]string{
			"retry.backoff.ms": "10", "topic.metadata.refresh.interval.ms": "50", "topic.metadata.propagation.max.ms": "20",
			"enable.sparse.connections": "false",
		}})
		topic := topicOf(t, s, "routes")
		warm(t, m, s, topic)
		var hold atomic.Pointer[chan struct{}] // until when the next request is kept
		b.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
			b.KeepControl()
			if release := hold.Swap(nil); release != nil {
				b.SleepControl(func() { <-*release })
			}
			return nil, nil, false
		})
		f := filled(1, topic, 50, 100)
		d := newDriver(t, s, f)
		for rounds, gone := 0, false; !gone; rounds++ {
			if rounds == 50 {
				t.Fatal("the one that keeps the request is always the one that is asked")
			}
			release := make(chan struct{})
			hold.Store(&release)
			d.until("a request is under way", func() bool { return hold.Load() == nil })
			metadata := b.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Topic: "routes", Err: kerr.UnknownTopicOrPartition, Count: -1})
			patience := time.Now().Add(time.Second) // it may have asked the one that keeps the request
			d.until("the partition is gone", func() bool {
				gone = strings.Contains(log.String(), "partition count changed from 1 to 0")
				return gone || time.Now().After(patience)
			})
			if gone {
				produce := b.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "routes", Err: kerr.NotLeaderForPartition, Count: 1})
				close(release)
				d.until("the request has failed", func() bool { return produce.Hits() > 0 })
				metadata.Remove()
			} else {
				metadata.Remove()
				close(release)
			}
			d.finish()
			if !gone {
				f.batch = filled(1, topic, f.batch.Len()+50, 100).batch
			}
		}
		settled(t, positions(b.read(t, "routes")[0], 1), 0, f.end())
		t.Logf("errors %v", f.errs)
	})
}

// After a fatal error a new producer is made and goes on where the old one
// stopped.
func TestFatalErrorRebuilds(t *testing.T) {
	both(t, func(t *testing.T, m maker) {
		b := newBroker(t)
		b.topic(t, "routes", 2, nil)
		s := newSink(t, m, b, Options{Window: 1000})
		topic := topicOf(t, s, "routes")
		f, g := filled(1, topic, 10000, 100), filled(2, topic, 10000, 100)
		d := newDriver(t, s, f, g)
		for i := range 2 {
			goal := uint64(2000 * (i + 1))
			d.until("some progress", func() bool { return f.report.Acked > goal && g.report.Acked > goal })
			b.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "routes", Err: kerr.OutOfOrderSequenceNumber, Count: 1})
			d.until("a new producer", func() bool { return s.Stats().Rebuilt > uint64(i) })
		}
		d.finish()
		for _, f := range []*feed{f, g} {
			var all []uint64
			for _, records := range b.read(t, "routes") {
				all = append(all, positions(records, f.stream)...)
			}
			settled(t, all, 0, f.end())
		}
	})
}

// Close says what it leaves behind and does not hang.
func TestCloseWithOutstanding(t *testing.T) {
	both(t, func(t *testing.T, m maker) {
		b := newBroker(t)
		b.topic(t, "routes", 1, nil)
		s := newSink(t, m, b, Options{})
		topic := topicOf(t, s, "routes")
		warm(t, m, s, topic)
		b.away.Store(true)
		f := filled(1, topic, 300, 100)
		if err := s.Reset(1, 0); err != nil {
			t.Fatal(err)
		}
		if n, err := s.Hand(1, 0, &f.batch, 0); n != 300 || err != nil {
			t.Fatal(n, err)
		}
		var polling sync.WaitGroup
		polling.Go(func() { s.Poll(time.Hour, nil) })
		began := time.Now()
		err := s.Close(100 * time.Millisecond)
		if err == nil || !strings.Contains(err.Error(), "300 records") {
			t.Errorf("closed with %v", err)
		}
		polling.Wait()
		if d := time.Since(began); d > 30*time.Second { // Poll has an hour
			t.Errorf("took %v", d)
		}
		if _, err := s.Hand(1, 300, &f.batch, 0); !errors.Is(err, ErrClosed) {
			t.Errorf("handed to a closed sink: %v", err)
		}
		if err := s.Reset(1, 0); !errors.Is(err, ErrClosed) {
			t.Errorf("reset of a closed sink: %v", err)
		}
		if _, err := s.Topic("other"); !errors.Is(err, ErrClosed) {
			t.Errorf("topic of a closed sink: %v", err)
		}
		if got := s.Poll(0, nil); len(got) != 0 {
			t.Errorf("reports of a closed sink: %v", got)
		}
		if err := s.Close(0); !errors.Is(err, ErrClosed) {
			t.Errorf("closed twice: %v", err)
		}
		s.Stats()
	})
}

// Close waits for what is on its way.
func TestCloseFlushes(t *testing.T) {
	both(t, func(t *testing.T, m maker) {
		b := newBroker(t)
		b.topic(t, "routes", 1, nil)
		s := newSink(t, m, b, Options{Linger: 50 * time.Millisecond})
		topic := topicOf(t, s, "routes")
		warm(t, m, s, topic)
		f := filled(1, topic, 300, 100)
		if err := s.Reset(1, 0); err != nil {
			t.Fatal(err)
		}
		if n, err := s.Hand(1, 0, &f.batch, 0); n != 300 || err != nil {
			t.Fatal(n, err)
		}
		if err := s.Close(deadline); err != nil {
			t.Fatal(err)
		}
		if n := settled(t, positions(b.read(t, "routes")[0], 1), 0, 300); n > 0 {
			t.Errorf("%d repeated", n)
		}
	})
}

// Hand is called wrongly: an error, and nothing is sent or broken.
func TestMisuse(t *testing.T) {
	both(t, func(t *testing.T, m maker) {
		b := newBroker(t)
		b.topic(t, "routes", 1, nil)
		s := newSink(t, m, b, Options{})
		warm(t, m, s, topicOf(t, s, "routes"))
		f := filled(1, topicOf(t, s, "routes"), 3, 100)
		wrong := func(what string, n int, err error) {
			t.Helper()
			if n != 0 || err == nil {
				t.Errorf("%s: %d records taken, %v", what, n, err)
			}
		}
		n, err := s.Hand(1, 0, &f.batch, 0)
		wrong("never Reset", n, err)
		if err := s.Reset(1, 5); err != nil {
			t.Fatal(err)
		}
		n, err = s.Hand(1, 4, &f.batch, 0)
		wrong("position behind", n, err)
		n, err = s.Hand(1, 6, &f.batch, 0)
		wrong("position ahead", n, err)
		bad := record.Batch{Data: []byte("x"), Recs: []record.Rec{{Topic: 99, ValueLen: 1}}}
		n, err = s.Hand(1, 5, &bad, 0)
		wrong("unknown topic", n, err)
		if m.name == "shim" { // Go's own bounds checks watch over the other
			bad.Recs[0] = record.Rec{ValueOff: 1 << 31, ValueLen: 1 << 31}
			n, err = s.Hand(1, 5, &bad, 0)
			wrong("outside of the batch", n, err)
			wrong("stream out of range", 0, s.Reset(1<<20, 0))
		}
		for _, name := range []string{"", ".", "..", "a b", "ä", strings.Repeat("x", 250)} {
			_, err := s.Topic(name)
			wrong("topic "+name, 0, err)
		}
		if n, err := s.Hand(1, 5, &f.batch, 0); n != 3 || err != nil {
			t.Fatal(n, err)
		}
		wrong("Reset with outstanding records", 0, s.Reset(1, 0))
		if err := s.Close(deadline); err != nil {
			t.Fatal(err)
		}
	})
}

// Several goroutines hand over, one polls: for the race detector, and for order.
func TestConcurrentHand(t *testing.T) {
	both(t, func(t *testing.T, m maker) {
		b := newBroker(t)
		b.topic(t, "routes", 4, nil)
		s := newSink(t, m, b, Options{Window: 500})
		const streams, records = 8, 1500
		acked := make(chan struct{})
		var hands sync.WaitGroup
		for i := range uint32(streams) {
			hands.Go(func() {
				topic, err := s.Topic("routes")
				if err != nil {
					t.Error(err)
					return
				}
				f := filled(i, topic, records, 60)
				if err := s.Reset(i, 0); err != nil {
					t.Error(err)
					return
				}
				for f.next < f.end() {
					n, err := s.Hand(i, f.next, &f.batch, int(f.next))
					if err != nil {
						t.Error(err)
						return
					}
					if f.next += uint64(n); n == 0 {
						<-acked
					}
				}
			})
		}
		at := map[uint32]uint64{}
		var buf []Report
		for end := time.Now().Add(deadline); ; {
			buf = s.Poll(20*time.Millisecond, buf[:0])
			for _, r := range buf {
				at[r.Stream] = r.Acked
			}
			for range streams {
				select {
				case acked <- struct{}{}:
				default:
				}
			}
			done := len(at) == streams
			for _, n := range at {
				done = done && n == records
			}
			if done {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("no end: %v", at)
			}
			s.Stats()
		}
		close(acked)
		hands.Wait()
		got := b.read(t, "routes")
		for i := range uint32(streams) {
			var all []uint64
			for _, records := range got {
				all = append(all, positions(records, i)...)
			}
			if n := settled(t, all, 0, records); n > 0 {
				t.Errorf("%d repeated", n)
			}
		}
	})
}

// Both sinks write the same to Kafka, with the same librdkafka.
func TestShimEqualsReference(t *testing.T) {
	_, version := kafka.LibraryVersion()
	if Version() != version {
		t.Errorf("librdkafka %s and %s", Version(), version)
	}
	type seen struct {
		Topic, Key, Value, Header string
		NullKey                   bool
		Partition                 int32
		Headers                   int
	}
	write := func(m maker) map[string][]seen {
		b := newBroker(t)
		b.topic(t, "one", 7, nil)
		b.topic(t, "two", 1, nil)
		s := newSink(t, m, b, Options{})
		one, two := topicOf(t, s, "one"), topicOf(t, s, "two")
		f := &feed{stream: 3}
		for i := range 2000 {
			var header []byte
			if i%3 > 0 {
				header = bytes.Repeat([]byte{byte(i)}, i%49)
			}
			key, topic := "", two // no key: any partition
			if i%5 > 0 {
				key, topic = fmt.Sprintf("10.0.%d.%d", i%3, i%50), one
			}
			f.add(topic, key, header, i%700)
		}
		// And a value of no bytes.
		f.batch.Recs = append(f.batch.Recs, record.Rec{Topic: two})
		newDriver(t, s, f).finish()
		out := map[string][]seen{}
		for _, topic := range []string{"one", "two"} {
			for p, records := range b.read(t, topic) {
				for _, r := range records {
					e := seen{Topic: r.Topic, Key: string(r.Key), NullKey: r.Key == nil, Value: string(r.Value), Partition: p, Headers: len(r.Headers)}
					if h := headerOf(r); h != nil {
						e.Header = base64.StdEncoding.EncodeToString(h)
					}
					id := fmt.Sprint(topic, p)
					out[id] = append(out[id], e)
				}
			}
		}
		return out
	}
	shim, reference := write(makers[0]), write(makers[1])
	if diff := cmp.Diff(reference, shim); diff != "" {
		t.Errorf("reference - shim +:\n%s", diff)
	}
	if len(shim) < 5 {
		t.Errorf("only %d partitions were used", len(shim))
	}
}

func headerOf(r *kgo.Record) []byte {
	for _, h := range r.Headers {
		if h.Key == record.HeaderName {
			return h.Value
		}
	}
	return nil
}

// librdkafka's log reaches slog, and no secret does.
func TestLogAndSecrets(t *testing.T) {
	both(t, func(t *testing.T, m maker) {
		b := newBroker(t)
		b.topic(t, "routes", 1, nil)
		var log lockedLog
		s := newSink(t, m, b, Options{
			SASL:       SASL{Mechanism: "PLAIN", Username: "user", Password: "sesame-open"},
			Properties: map[string]string{"debug": "conf,security,broker"},
			Log:        slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		})
		newDriver(t, s).until("the credentials are rejected", func() bool { return s.Stats().LastError != "" })
		st := s.Stats()
		if st.Connected || st.LastErrorAt.IsZero() {
			t.Errorf("%+v", st)
		}
		if err := s.Close(0); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(log.String(), `msg="kafka client"`) {
			t.Errorf("log: %s", log.String())
		}
		if text := log.String() + st.LastError; strings.Contains(text, "sesame") {
			t.Errorf("secret in %s", text)
		}
	})
}

// lockedLog is what a sink has logged.
type lockedLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
