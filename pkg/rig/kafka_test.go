package rig

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"
)

// eachKafka runs a test against the real and the embedded kind.
func eachKafka(t *testing.T, o KafkaOptions, test func(t *testing.T, k Kafka)) {
	t.Run("real", func(t *testing.T) {
		Require(t, KafkaPart)
		k, err := StartKafkaServer(within(t, 3*time.Minute), o)
		must(t, err)
		defer k.Close()
		test(t, k)
	})
	t.Run("embedded", func(t *testing.T) {
		k, err := StartEmbeddedKafka(t.Context(), o)
		must(t, err)
		defer k.Close()
		test(t, k)
	})
}

func produce(ctx context.Context, cl *kgo.Client, topic string, from, n int) error {
	var rs []*kgo.Record
	for i := range n {
		rs = append(rs, &kgo.Record{
			Topic: topic, Key: []byte("192.0.2.1"), Value: fmt.Appendf(nil, "%d", from+i),
			Headers:   []kgo.RecordHeader{{Key: "h", Value: []byte{1}}},
			Timestamp: time.UnixMilli(1000),
		})
	}
	return cl.ProduceSync(ctx, rs...).FirstErr()
}

func TestKafkaLife(t *testing.T) {
	o := KafkaOptions{Topics: map[string]int{"two": 2}, Config: map[string]string{"message.max.bytes": "20000"}}
	eachKafka(t, o, func(t *testing.T, k Kafka) {
		ctx := within(t, 3*time.Minute)
		must(t, k.CreateTopic(ctx, "one", 1))
		must(t, k.CreateTopic(ctx, "one", 1)) // again is fine
		c, err := Consume(ctx, k.Brokers(), "one")
		must(t, err)
		defer c.Close()
		cl, err := kgo.NewClient(kgo.SeedBrokers(k.Brokers()), kgo.ProducerBatchMaxBytes(100_000),
			kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.UnknownTopicRetries(1),
			kgo.MetadataMinAge(50*time.Millisecond),
			kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond }))
		must(t, err)
		defer cl.Close()

		must(t, produce(ctx, cl, "one", 0, 10))
		must(t, c.CatchUp(ctx))
		rs := c.Records()
		if len(rs) != 10 || c.Count() != 10 {
			t.Fatalf("%d records, want 10", len(rs))
		}
		for i, r := range rs {
			if r.Offset != int64(i) || string(r.Value) != fmt.Sprint(i) || string(r.Key) != "192.0.2.1" ||
				r.Timestamp.UnixMilli() != 1000 || len(r.Header("h")) != 1 || r.Header("none") != nil {
				t.Errorf("record %d: %+v", i, r)
			}
		}

		big := &kgo.Record{Topic: "one", Value: make([]byte, 30_000)}
		if err := cl.ProduceSync(ctx, big).FirstErr(); !errors.Is(err, kerr.MessageTooLarge) {
			t.Errorf("a record over message.max.bytes: %v", err)
		}
		if err := cl.ProduceSync(ctx, &kgo.Record{Topic: "none"}).FirstErr(); !errors.Is(err, kerr.UnknownTopicOrPartition) {
			t.Errorf("an unknown topic: %v", err)
		}

		must(t, k.Away(ctx, true))
		if err := dialable(k.Brokers())(); err == nil {
			t.Error("an absent broker takes connections")
		}
		must(t, k.Away(ctx, false))
		must(t, produce(ctx, cl, "one", 10, 10))
		must(t, c.Wait(ctx, func(rs []Record) bool { return len(rs) >= 20 }))

		must(t, k.Pause())
		short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		if _, err := ReadTopic(short, k.Brokers(), "one"); err == nil {
			t.Error("a paused broker answers")
		}
		cancel()
		must(t, k.Resume())

		must(t, k.Kill())
		must(t, k.Restart(ctx))
		must(t, produce(ctx, cl, "one", 20, 10))
		must(t, c.WaitCount(ctx, 30))
		all, err := ReadTopic(ctx, k.Brokers(), "one")
		must(t, err)
		for i, r := range all {
			if string(r.Value) != fmt.Sprint(i) {
				t.Fatalf("record %d is %s: kept in order over all that", i, r.Value)
			}
		}
		if len(all) != 30 {
			t.Errorf("%d records in the end, want 30", len(all))
		}
		if rs, err := ReadTopic(ctx, k.Brokers(), "two"); err != nil || len(rs) != 0 {
			t.Errorf("the empty topic: %v, %v", rs, err)
		}
	})
}

func TestKafkaCredentials(t *testing.T) {
	eachKafka(t, KafkaOptions{User: "bmpha", Password: "secret", AutoCreate: true}, func(t *testing.T, k Kafka) {
		ctx := within(t, 3*time.Minute)
		for _, c := range []struct {
			opt kgo.Opt
			ok  bool
		}{
			{kgo.SASL(plain.Auth{User: "bmpha", Pass: "secret"}.AsMechanism()), true},
			{kgo.SASL(plain.Auth{User: "bmpha", Pass: "wrong"}.AsMechanism()), false},
		} {
			cl, err := kgo.NewClient(kgo.SeedBrokers(k.Brokers()), c.opt, kgo.AllowAutoTopicCreation())
			must(t, err)
			wait := time.Minute
			if !c.ok {
				wait = time.Second // the client tries for ever
			}
			short, cancel := context.WithTimeout(ctx, wait)
			if err := produce(short, cl, "t", 0, 1); (err == nil) != c.ok {
				t.Errorf("let in: %v, want %v", err, c.ok)
			}
			cancel()
			cl.Close()
		}
		rs, err := ReadTopic(ctx, k.Brokers(), "t", k.Client()...)
		if err != nil || len(rs) != 1 {
			t.Errorf("%d records, %v", len(rs), err)
		}
	})
}

func TestKafkaPaths(t *testing.T) {
	Require(t, KafkaPart)
	ctx := within(t, 3*time.Minute)
	k, err := StartKafkaServer(ctx, KafkaOptions{Paths: 2, Topics: map[string]int{"t": 1}})
	must(t, err)
	defer k.Close()
	via := func(i int) *kgo.Client {
		brokers, _ := k.Via(i)
		cl, err := kgo.NewClient(kgo.SeedBrokers(brokers))
		must(t, err)
		t.Cleanup(cl.Close)
		return cl
	}
	a, b := via(0), via(1)
	must(t, produce(ctx, a, "t", 0, 1))
	must(t, produce(ctx, b, "t", 1, 1))
	_, path := k.Via(0)
	path.Cut()
	must(t, produce(ctx, b, "t", 2, 1))
	stuck := make(chan error, 1)
	go func() { stuck <- produce(ctx, a, "t", 3, 1) }()
	must(t, produce(ctx, b, "t", 4, 1))
	select {
	case err := <-stuck:
		t.Errorf("produced through a cut path: %v", err)
	default:
	}
	must(t, path.Restore())
	must(t, <-stuck)
}
