package topic

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/rig"
	"github.com/bmpha/bmpha/pkg/sink"
)

// report prints the best, the median and the worst of what was measured.
func report(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(took[0].Microseconds())/1000, "ms-min")
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-median")
	b.ReportMetric(float64(took[len(took)-1].Microseconds())/1000, "ms-max")
}

// BenchmarkReadBack is the time from Prime to the end of Through for records of 1 KB,
// by a Reader that has only been looking since the last time.
func BenchmarkReadBack(b *testing.B) {
	k := realKafka(b, rig.KafkaOptions{})
	for _, partitions := range []int{1, 8, 64} {
		topic := fmt.Sprintf("routes-%d", partitions)
		if err := k.CreateTopic(within(b, deadline), topic, partitions); err != nil {
			b.Fatal(err)
		}
		for _, n := range []int{0, 2000, 10_000, 100_000} {
			b.Run(fmt.Sprintf("partitions=%d/records=%d", partitions, n), func(b *testing.B) {
				read := 0
				l := newLab(b, k, Options{Topics: []string{topic}, Read: func(*Record) { read++ }})
				since := l.looked()
				for i := 0; i < n; i += 10_000 {
					l.put(l.w, topic, partitions, i, min(n-i, 10_000), 1000)
				}
				l.r.Rest()
				l.looked()
				var took []time.Duration
				for b.Loop() {
					l.r.Rest()
					l.looked()
					read = 0
					begin := time.Now()
					if err := l.r.Prime(since); err != nil {
						b.Fatal(err)
					}
					l.through()
					took = append(took, time.Since(begin))
					if read != n {
						b.Fatalf("%d records", read)
					}
				}
				report(b, took)
			})
		}
	}
}

// BenchmarkThrough is the time that Through takes while reading is under way,
// right after records were put in.
func BenchmarkThrough(b *testing.B) {
	k := realKafka(b, rig.KafkaOptions{})
	for _, partitions := range []int{1, 8, 64} {
		topic := fmt.Sprintf("routes-%d", partitions)
		if err := k.CreateTopic(within(b, deadline), topic, partitions); err != nil {
			b.Fatal(err)
		}
		for _, n := range []int{0, 100} {
			b.Run(fmt.Sprintf("partitions=%d/records=%d", partitions, n), func(b *testing.B) {
				read := 0
				l := newLab(b, k, Options{Topics: []string{topic}, Interval: DefaultInterval, Read: func(*Record) { read++ }})
				if err := l.r.Prime(l.looked()); err != nil {
					b.Fatal(err)
				}
				l.through()
				var took []time.Duration
				for b.Loop() {
					if n > 0 {
						l.put(l.w, topic, partitions, 0, n, 1000)
					}
					begin := time.Now()
					l.through()
					took = append(took, time.Since(begin))
				}
				report(b, took)
				if read != n*len(took) {
					b.Fatalf("%d records of %d", read, n*len(took))
				}
			})
		}
	}
}

// BenchmarkThroughCommitted is the time that Through takes while another sender, such
// as the heir itself with its other routers, goes on sending in transactions: a
// planned handover with fencing waits that long once the old sender has committed.
func BenchmarkThroughCommitted(b *testing.B) {
	k := realKafka(b, rig.KafkaOptions{})
	for _, interval := range []time.Duration{20 * time.Millisecond, sink.DefaultCommitInterval} {
		for _, partitions := range []int{1, 8} {
			b.Run(fmt.Sprintf("interval=%v/partitions=%d", interval, partitions), func(b *testing.B) {
				topic := fmt.Sprintf("routes-%v-%d-%d", interval, partitions, b.N)
				if err := k.CreateTopic(within(b, deadline), topic, partitions); err != nil {
					b.Fatal(err)
				}
				l := newLab(b, k, Options{Topics: []string{topic}, Committed: true, Interval: DefaultInterval, Read: func(*Record) {}})
				if err := l.r.Prime(l.looked()); err != nil {
					b.Fatal(err)
				}
				l.through()
				ctx, stop := context.WithCancel(b.Context())
				done := make(chan error, 1)
				go func() { done <- sends(ctx, k, topic, interval) }()
				defer func() {
					stop()
					if err := <-done; err != nil {
						b.Error(err)
					}
				}()
				l.until(func() error {
					if p := l.r.Status().Last; p.Records == 0 {
						return errors.New("nothing committed yet")
					}
					return nil
				})
				var took []time.Duration
				for i := 0; b.Loop(); i++ {
					time.Sleep(time.Duration(i%10) * interval / 10) // at any moment of a transaction
					begin := time.Now()
					l.through()
					took = append(took, time.Since(begin))
				}
				report(b, took)
			})
		}
	}
}

// sends sends 5000 records/s in transactions until ctx ends.
func sends(ctx context.Context, k rig.Kafka, topic string, interval time.Duration) error {
	s, err := sink.NewKafka(sink.Options{Brokers: []string{k.Brokers()}, TransactionalID: topic, CommitInterval: interval})
	if err != nil {
		return err
	}
	h, err := s.Topic(topic)
	if err != nil {
		return err
	}
	var batch record.Batch
	for i := range 25 {
		batch.Data = append(batch.Data, fmt.Sprintf("%02d", i)...)
		batch.Data = append(batch.Data, make([]byte, 600)...)
		batch.Recs = append(batch.Recs, record.Rec{
			Topic: h, KeyOff: uint32(602 * i), KeyLen: 2, HeaderOff: uint32(602*i + 2), ValueOff: uint32(602*i + 2), ValueLen: 600,
		})
	}
	if err := s.Reset(1, 0); err != nil {
		return err
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	var reports []sink.Report
	for at := uint64(0); ; {
		select {
		case <-ctx.Done():
			return s.Close(deadline)
		case <-tick.C:
		}
		n, err := s.Hand(1, at, &batch, 0)
		if err != nil {
			return err
		}
		at += uint64(n)
		reports = s.Poll(0, reports[:0])
	}
}
