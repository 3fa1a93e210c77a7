package sink

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"
	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/rig"
)

// readFrom returns the records of a topic, by partition, of any broker.
func readFrom(t *testing.T, topic string, want int, client ...kgo.Opt) map[int32][]*kgo.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	c, err := kgo.NewClient(append(client, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))...)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	all := map[int32][]*kgo.Record{}
	for n := 0; n < want; {
		fetches := c.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("%d of %d records: %v", n, want, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			all[r.Partition] = append(all[r.Partition], r)
			n++
		})
	}
	return all
}

// kafkas runs a test with each Kafka sink, each with a topic of its own, on the
// fake broker and, where it is installed, on the real one.
func kafkas(t *testing.T, partitions int, f func(t *testing.T, m maker, k rig.Kafka, topic string)) {
	topics := map[string]int{}
	for _, m := range makers {
		topics["raw-"+m.name] = partitions
	}
	run := func(t *testing.T, k rig.Kafka, err error) {
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = k.Close() })
		both(t, func(t *testing.T, m maker) { f(t, m, k, "raw-"+m.name) })
	}
	t.Run("embedded", func(t *testing.T) {
		k, err := rig.StartEmbeddedKafka(t.Context(), rig.KafkaOptions{Topics: topics})
		run(t, k, err)
	})
	t.Run("real", func(t *testing.T) {
		if _, err := rig.KafkaDir(); err != nil {
			t.Skip(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		k, err := rig.StartKafkaServer(ctx, rig.KafkaOptions{Topics: topics})
		run(t, k, err)
	})
}

func sinkTo(t *testing.T, m maker, k rig.Kafka, o Options) Sink {
	t.Helper()
	o.Brokers = []string{k.Brokers()}
	s, err := m.make(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(0) })
	return s
}

// put appends a record whose parts are given as they are to arrive: nil is null.
func (f *feed) put(r record.Rec, key, value []byte, more []kgo.RecordHeader, header []byte) {
	b := &f.batch
	place := func(p []byte) (off, n uint32) {
		off = uint32(len(b.Data))
		b.Data = append(b.Data, p...)
		return off, uint32(len(p))
	}
	r.KeyOff, r.KeyLen = place(key)
	if key != nil && len(key) == 0 {
		r.Flags |= record.RecEmptyKey
	}
	r.ValueOff, r.ValueLen = place(value)
	if value == nil {
		r.Flags |= record.RecNullValue
	}
	r.MoreOff = uint32(len(b.Data))
	for _, h := range more {
		b.Data = record.AppendMore(b.Data, []byte(h.Key), h.Value)
	}
	r.MoreLen = uint32(len(b.Data)) - r.MoreOff
	r.HeaderOff, r.HeaderLen = place(header)
	b.Recs = append(b.Recs, r)
}

// What a record brings arrives as it was, be it empty or null.
func TestRecordPassesUnopened(t *testing.T) {
	type seen struct {
		Key, Value []byte
		Headers    []kgo.RecordHeader
		Timestamp  int64 // 0: about now
	}
	h := func(name string, value []byte) kgo.RecordHeader { return kgo.RecordHeader{Key: name, Value: value} }
	records := []seen{
		{Key: []byte("k"), Value: []byte("v")},
		{Key: nil, Value: []byte("null key")},
		{Key: []byte{}, Value: []byte("empty key")},
		{Key: []byte("tombstone"), Value: nil},
		{Key: []byte("empty value"), Value: []byte{}},
		{Value: []byte("old"), Timestamp: 1},
		{Value: []byte("new"), Timestamp: time.Now().Add(-time.Hour).UnixMilli()},
		{Value: []byte{0, 1, 0xff}, Timestamp: 1700000000123, Headers: []kgo.RecordHeader{
			h("z", []byte("last first")), h("a", nil), h("a", []byte{}), h("a", []byte{0, 0xff}), h("", []byte("no name")),
		}},
		{Key: []byte{}, Value: nil, Timestamp: 1700000000456, Headers: []kgo.RecordHeader{h("h", nil), h("bmpha", []byte("of its own"))}},
	}
	kafkas(t, 3, func(t *testing.T, m maker, k rig.Kafka, name string) {
		s := sinkTo(t, m, k, Options{})
		topic := topicOf(t, s, name)
		f := &feed{stream: 1}
		var want []seen
		for _, ours := range [][]byte{nil, []byte("ours")} {
			for i, r := range records {
				f.put(record.Rec{Topic: topic, Flags: record.RecPartition, Partition: 2, Timestamp: r.Timestamp}, r.Key, r.Value, r.Headers, ours)
				if i == 0 {
					f.batch.Recs[len(f.batch.Recs)-1].Timestamp = -1 // none, as Kafka has it
				}
				if ours != nil { // comes last
					r.Headers = append(r.Headers[:len(r.Headers):len(r.Headers)], h("bmpha", ours))
				}
				want = append(want, r)
			}
		}
		began := time.Now().UnixMilli()
		newDriver(t, s, f).finish()
		var got []seen
		for _, r := range readFrom(t, name, len(want), k.Client()...)[2] {
			e := seen{Key: r.Key, Value: r.Value, Headers: r.Headers, Timestamp: r.Timestamp.UnixMilli()}
			if e.Timestamp >= began && e.Timestamp <= time.Now().UnixMilli() {
				e.Timestamp = 0
			}
			got = append(got, e)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("want - got +\n%s", diff)
		}
	})
}

// A routed record goes where librdkafka puts a record with the router's name as
// key, whatever its own key and whatever partitioner is configured; others go
// where that one says.
func TestRouted(t *testing.T) {
	kafkas(t, 7, func(t *testing.T, m maker, k rig.Kafka, topicName string) {
		var names []string
		for i := range 60 {
			names = append(names, fmt.Sprintf("10.%d.%d.1", i, i*7%256))
		}
		names = append(names, "", "2001:db8::1", "edge1.fra")
		total := 0
		// where returns the partitions of all records since the last call.
		where := func(n int) map[string]int32 {
			t.Helper()
			all, skip := map[string]int32{}, total
			total += n
			for p, records := range readFrom(t, topicName, total, k.Client()...) {
				for _, r := range records {
					if id := string(r.Value); strings.HasPrefix(id, fmt.Sprint(skip, "/")) {
						all[strings.TrimPrefix(id, fmt.Sprint(skip, "/"))] = p
					}
				}
			}
			return all
		}
		plain := func(properties kafka.ConfigMap) map[string]int32 {
			t.Helper()
			properties["bootstrap.servers"], properties["go.delivery.reports"] = k.Brokers(), false
			p, err := kafka.NewProducer(&properties)
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range names[:60] {
				err := p.Produce(&kafka.Message{
					TopicPartition: kafka.TopicPartition{Topic: &topicName, Partition: kafka.PartitionAny},
					Key:            []byte(name), Value: fmt.Append(nil, total, "/", name),
				}, nil)
				if err != nil {
					t.Fatal(err)
				}
			}
			p.Flush(int(deadline.Milliseconds()))
			p.Close()
			return where(60)
		}
		byKey, byMurmur := plain(kafka.ConfigMap{}), plain(kafka.ConfigMap{"partitioner": "murmur2"})
		if cmp.Equal(byKey, byMurmur) {
			t.Fatal("the partitioners do not differ")
		}
		for _, partitioner := range []string{"", "murmur2"} {
			o, unrouted := Options{}, byKey
			if partitioner != "" {
				o.Properties, unrouted = map[string]string{"partitioner": partitioner}, byMurmur
			}
			s := sinkTo(t, m, k, o)
			topic := topicOf(t, s, topicName)
			for _, key := range [][]byte{nil, {}, []byte("other")} {
				f := &feed{stream: uint32(len(key) + cap(key))}
				for _, name := range names {
					f.put(record.Rec{Topic: topic, Flags: record.RecRouted, Route: record.RouteOf(name)}, key, fmt.Append(nil, total, "/", name), nil, nil)
				}
				newDriver(t, s, f).finish()
				got := where(len(names))
				for _, name := range names[:60] {
					if got[name] != byKey[name] {
						t.Errorf("partitioner %q, key %q: %s went to %d, with librdkafka to %d", partitioner, key, name, got[name], byKey[name])
					}
				}
				if got[""] != 0 {
					t.Errorf("no name went to %d", got[""])
				}
				if err := s.Reset(f.stream, 0); err != nil {
					t.Fatal(err)
				}
			}
			f := &feed{stream: 9}
			for _, name := range names[:60] {
				f.put(record.Rec{Topic: topic}, []byte(name), fmt.Append(nil, total, "/", name), nil, nil)
			}
			newDriver(t, s, f).finish()
			if diff := cmp.Diff(unrouted, where(60)); diff != "" {
				t.Errorf("partitioner %q: %s", partitioner, diff)
			}
			if err := s.Close(deadline); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func placed(stream, topic uint32, n int, r record.Rec) *feed {
	f := &feed{stream: stream}
	for i := range n {
		f.add(topic, "", nil, 50)
		at := &f.batch.Recs[i]
		at.Flags, at.Route, at.Partition = r.Flags, r.Route, r.Partition
	}
	return f
}

// Routed records are kept back, in their order, until a broker is reached and has
// the topic. A stream of a topic that does not exist is told so; headers are no
// trouble then.
func TestRoutedBeforeTopicIsKnown(t *testing.T) {
	both(t, func(t *testing.T, m maker) {
		b := newBroker(t)
		b.topic(t, "here", 5, nil)
		b.away.Store(true)
		s := newSink(t, m, b, Options{Properties: map[string]string{"topic.metadata.propagation.max.ms": "100"}})
		here, later := topicOf(t, s, "here"), topicOf(t, s, "later")
		f := placed(1, here, 1000, record.Rec{Flags: record.RecRouted, Route: 8})
		g := placed(2, later, 1000, record.Rec{Flags: record.RecRouted, Route: 9})
		h := &feed{stream: 3}
		for range 1000 {
			h.add(later, "k", []byte("header"), 50)
		}
		d := newDriver(t, s, f, g, h)
		for range 5 {
			d.step()
		}
		if f.next != 0 || f.report.Err != nil || s.Stats().Failed != 0 {
			t.Errorf("handed over up to %d without a broker, %v", f.next, f.report.Err)
		}
		b.away.Store(false)
		d.until("the streams of the missing topic stop", func() bool { return f.report.Acked == f.end() && g.resets > 0 && h.resets > 0 })
		if e := g.errs[0].Error(); !strings.Contains(e, "topic later") || !strings.Contains(strings.ToLower(e), "unknown topic") {
			t.Error(e)
		}
		if f.resets > 0 {
			t.Errorf("the other stream stopped: %v", f.errs)
		}
		b.topic(t, "later", 5, nil)
		d.finish()
		settled(t, positions(b.read(t, "here")[3], 1), 0, 1000)
		settled(t, positions(b.read(t, "later")[4], 2), 0, 1000)
	})
}

// Records for a partition that does not exist are set aside, with all that they
// brought, and the others of their stream go on in order.
func TestUnknownPartition(t *testing.T) {
	both(t, func(t *testing.T, m maker) {
		b := newBroker(t)
		b.topic(t, "raw", 4, nil)
		dead := deadLetterFile(t)
		s := newSink(t, m, b, Options{DeadLetter: dead, Window: 500})
		topic := topicOf(t, s, "raw")
		f := placed(1, topic, 2000, record.Rec{Flags: record.RecPartition, Partition: 3})
		g := placed(2, topic, 2000, record.Rec{Flags: record.RecRouted, Route: 5})
		bad := []uint64{0, 700, 701, 1999}
		for i, partition := range []int32{4, 100, -7, 1 << 30} {
			r := &f.batch.Recs[bad[i]]
			r.Partition, r.Timestamp = partition, 1700000000000+int64(i)
			r.MoreOff = uint32(len(f.batch.Data))
			f.batch.Data = record.AppendMore(f.batch.Data, []byte("a"), []byte("b"))
			f.batch.Data = record.AppendMore(f.batch.Data, []byte("null"), nil)
			r.MoreLen = uint32(len(f.batch.Data)) - r.MoreOff
			r.HeaderOff, r.HeaderLen = r.MoreOff, 2
		}
		d := newDriver(t, s, f, g)
		d.until("the other stream is done", func() bool { return g.report.Acked == g.end() })
		if f.report.Acked > 0 {
			t.Error("a partition was believed missing at once")
		}
		d.finish()
		if f.resets+g.resets > 0 {
			t.Errorf("stopped: %v %v", f.errs, g.errs)
		}
		if n := settled(t, positions(b.read(t, "raw")[3], 1), 0, 2000, bad...); n > 0 {
			t.Errorf("%d repeated", n)
		}
		settled(t, positions(b.read(t, "raw")[1], 2), 0, 2000)
		var want []deadRecord
		for i, partition := range []int32{4, 100, -7, 1 << 30} {
			want = append(want, deadRecord{
				Topic: "raw", Partition: &partition, Timestamp: 1700000000000 + int64(i),
				Headers: []deadHeader{{"a", []byte("b")}, {"null", nil}}, Header: []byte{0, 0},
				Value: f.batch.Value(int(bad[i])), Error: "Local: Unknown partition",
			})
		}
		got := readDead(t, dead)
		for i := range got {
			got[i].Time = time.Time{}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("want - got +\n%s", diff)
		}
	})
}

// A partition that is added in time is no unknown one, and a topic that is made
// anew with fewer has them counted again.
func TestPartitionsChange(t *testing.T) {
	both(t, func(t *testing.T, m maker) {
		b := newBroker(t)
		b.topic(t, "raw", 4, nil)
		c, err := kgo.NewClient(kgo.SeedBrokers(b.ListenAddrs()...))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		admin := kadm.NewClient(c)
		dead := deadLetterFile(t)
		s := newSink(t, m, b, Options{DeadLetter: dead, Properties: map[string]string{"topic.metadata.refresh.interval.ms": "1000"}})
		topic := topicOf(t, s, "raw")
		f := placed(1, topic, 100, record.Rec{Flags: record.RecPartition, Partition: 5})
		g := placed(2, topic, 100, record.Rec{Flags: record.RecRouted, Route: 11})
		d := newDriver(t, s, f, g)
		d.until("the first stream goes on", func() bool { return g.report.Acked == g.end() })
		if n := len(b.read(t, "raw")[3]); n != 100 {
			t.Errorf("%d records in partition 3, of 4", n)
		}
		if _, err := admin.UpdatePartitions(t.Context(), 6, "raw"); err != nil {
			t.Fatal(err)
		}
		d.finish()
		if n := settled(t, positions(b.read(t, "raw")[5], 1), 0, 100); n > 0 {
			t.Errorf("%d repeated", n)
		}
		// The routed follow within the refresh interval.
		d.until("the new number counts", func() bool {
			g.batch.Reset()
			g.start = g.next
			g.add(topic, "", nil, 50)
			g.batch.Recs[0].Flags, g.batch.Recs[0].Route = record.RecRouted, 11
			d.finish()
			return b.PartitionInfo("raw", 5).HighWatermark > 100
		})
		if _, err := admin.DeleteTopics(t.Context(), "raw"); err != nil {
			t.Fatal(err)
		}
		b.topic(t, "raw", 2, nil)
		h := placed(3, topic, 100, record.Rec{Flags: record.RecRouted, Route: 11})
		i := placed(4, topic, 2, record.Rec{Flags: record.RecPartition, Partition: 5})
		newDriver(t, s, h, i).finish()
		settled(t, positions(b.read(t, "raw")[1], 3), 0, 100)
		if n := len(readDead(t, dead)); n != 2 {
			t.Errorf("%d records set aside, want 2", n)
		}
	})
}

// A timestamp that Kafka refuses is the fault of a record that brought it, and
// else of our clock, which may be put right.
func TestTimestampRefused(t *testing.T) {
	both(t, func(t *testing.T, m maker) {
		b := newBroker(t)
		b.topic(t, "raw", 2, nil)
		// As a broker does with message.timestamp.after.max.ms.
		b.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
			b.KeepControl()
			r := req.(*kmsg.ProduceRequest)
			for _, p := range r.Topics[0].Partitions {
				var batch kmsg.RecordBatch
				if err := batch.ReadFrom(p.Records); err != nil {
					return nil, err, true
				}
				if batch.MaxTimestamp > time.Now().Add(time.Hour).UnixMilli() {
					resp := r.ResponseKind().(*kmsg.ProduceResponse)
					rt := kmsg.NewProduceResponseTopic()
					rt.Topic, rt.TopicID = r.Topics[0].Topic, r.Topics[0].TopicID
					for _, p := range r.Topics[0].Partitions {
						rp := kmsg.NewProduceResponseTopicPartition()
						rp.Partition, rp.ErrorCode = p.Partition, kerr.InvalidTimestamp.Code
						rt.Partitions = append(rt.Partitions, rp)
					}
					resp.Topics = append(resp.Topics, rt)
					return resp, nil, true
				}
			}
			return nil, nil, false
		})
		dead := deadLetterFile(t)
		s := newSink(t, m, b, Options{DeadLetter: dead})
		topic := topicOf(t, s, "raw")
		f := placed(1, topic, 200, record.Rec{Flags: record.RecPartition, Partition: 1})
		future := time.Now().Add(24 * time.Hour).UnixMilli()
		r := &f.batch.Recs[50]
		r.Timestamp = future
		r.MoreOff = uint32(len(f.batch.Data))
		f.batch.Data = record.AppendMore(f.batch.Data, []byte("bmpha"), []byte("of its own"))
		f.batch.Data = record.AppendMore(f.batch.Data, []byte("null"), nil)
		r.MoreLen = uint32(len(f.batch.Data)) - r.MoreOff
		newDriver(t, s, f).finish()
		settled(t, positions(b.read(t, "raw")[1], 1), 0, 200, 50)
		for _, got := range readDead(t, dead) {
			if got.Timestamp != future || got.Partition == nil || *got.Partition != 1 || binary.BigEndian.Uint64(got.Value[4:]) != 50 ||
				!cmp.Equal(got.Headers, []deadHeader{{"bmpha", []byte("of its own")}, {"null", nil}}) || got.Header != nil {
				t.Errorf("%+v", got)
			}
		}
	})
}

// Further headers that are cut short are the caller's fault: nothing is sent.
func TestBrokenMore(t *testing.T) {
	both(t, func(t *testing.T, m maker) {
		b := newBroker(t, kfake.SeedTopics(1, "raw"))
		dead := deadLetterFile(t)
		s := newSink(t, m, b, Options{DeadLetter: dead})
		topic := topicOf(t, s, "raw")
		warm(t, m, s, topic)
		if err := s.Reset(1, 0); err != nil {
			t.Fatal(err)
		}
		whole := record.AppendMore(record.AppendMore(nil, []byte("a"), []byte("bc")), []byte("d"), nil)
		for n := range len(whole) {
			if n == 0 || n == 11 {
				continue
			}
			bad := record.Batch{Data: bytes.Clone(whole[:n]), Recs: []record.Rec{{Topic: topic, MoreLen: uint32(n)}}}
			if taken, err := s.Hand(1, 0, &bad, 0); taken != 0 || err == nil {
				t.Errorf("the first %d bytes: %d taken, %v", n, taken, err)
			}
		}
		if _, err := os.Stat(dead); err == nil {
			t.Error("something was set aside")
		}
	})
}
