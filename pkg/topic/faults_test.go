package topic

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/bmpha/bmpha/pkg/rig"
	"github.com/bmpha/bmpha/pkg/sink"
)

func (l *lab) admin() *kadm.Client { return kadm.NewClient(l.w) }

// transact puts numbered records in one transaction, which it ends if how is not nil.
func (l *lab) transact(w *kgo.Client, topic string, partitions, from, n int, how *kgo.TransactionEndTry) {
	l.t.Helper()
	if err := w.BeginTransaction(); err != nil {
		l.t.Fatal(err)
	}
	l.put(w, topic, partitions, from, n, 50)
	if how != nil {
		l.end(w, *how)
	}
}

func (l *lab) end(w *kgo.Client, how kgo.TransactionEndTry) {
	l.t.Helper()
	if err := w.EndTransaction(within(l.t, deadline), how); err != nil {
		l.t.Fatal(err)
	}
}

// stuck checks that Through waits for an open transaction until its context ends.
func (l *lab) stuck() { l.t.Helper(); l.waits("a transaction is open") }

// waits checks that Through waits until its context ends, and says why once it has had
// the time to find out.
func (l *lab) waits(why string) {
	l.t.Helper()
	l.until(func() error {
		p, err := l.r.Through(within(l.t, 300*time.Millisecond))
		if err == nil || !errors.Is(err, context.DeadlineExceeded) {
			l.t.Fatalf("%+v, %v", p, err)
		}
		if !strings.Contains(err.Error(), why) {
			return fmt.Errorf("%w, want %q", err, why)
		}
		return nil
	})
}

var commit, abort = kgo.TryCommit, kgo.TryAbort

// Offsets at the end that are no records, of transactions that were committed and
// aborted, are passed. Committed leaves out what was aborted, and waits for what is
// open; what has been committed is there, also when its markers are written later.
func TestTransactions(t *testing.T) {
	common(t, map[string]int{"routes": 4}, func(t *testing.T, k rig.Kafka) {
		routes := named(t, "routes")
		committed := newLab(t, k, Options{Topics: []string{routes}, Committed: true})
		all := newLab(t, k, Options{Topics: []string{routes}})
		w := all.producer(kgo.TransactionalID(named(t, "one")))
		before := committed.looked()
		all.transact(w, routes, 4, 900, 100, &commit)
		committed.prime(before)
		if p := committed.through(); p.Records != 100 {
			t.Errorf("%+v", p)
		}
		since := committed.looked()
		all.looked()
		all.transact(w, routes, 4, 0, 100, &commit)
		all.transact(w, routes, 4, 100, 50, &abort)
		all.transact(w, routes, 4, 150, 50, &abort)
		for _, l := range []*lab{all, committed} {
			l.prime(since)
		}
		if p := all.through(); p.Records != 200 {
			t.Errorf("%d records", p.Records)
		}
		committed.through()
		committed.numbers(0, 100)

		all.transact(w, routes, 4, 200, 40, nil)
		all.through()
		all.numbers(0, 240)
		committed.stuck()
		committed.numbers(0, 100)
		all.end(w, abort)
		committed.through()
		all.transact(w, routes, 4, 100, 30, &commit)
		committed.through()
		committed.numbers(0, 130)
		committed.prime(since)
		committed.through()
		committed.numbers(0, 130)
	})
}

// What was committed behind the open transaction of another cannot be read before
// that has ended, so Through waits for it, however its reader came to be where it is.
// What others do later is not waited for.
func TestForeignTransaction(t *testing.T) {
	common(t, map[string]int{"routes": 1}, func(t *testing.T, k rig.Kafka) {
		for name, end := range map[string]kgo.TransactionEndTry{"commit": kgo.TryCommit, "abort": kgo.TryAbort} {
			t.Run(name, func(t *testing.T) {
				routes := named(t, "routes")
				if err := k.CreateTopic(within(t, deadline), routes, 1); err != nil {
					t.Fatal(err)
				}
				late := newLab(t, k, Options{Topics: []string{routes}, Committed: true})
				follows := newLab(t, k, Options{Topics: []string{routes}, Committed: true})
				other, old := late.producer(kgo.TransactionalID(named(t, "other"))), late.producer(kgo.TransactionalID(named(t, "old")))
				since := late.looked()
				follows.prime(follows.looked())
				follows.through()

				late.transact(other, routes, 1, 100, 1, nil)
				late.transact(old, routes, 1, 0, 100, &commit)
				late.prime(since)
				for _, l := range []*lab{late, follows} {
					l.stuck()
					l.numbers(0, 0)
				}
				done, at := make(chan error, 2), now()
				for _, l := range []*lab{late, follows} {
					go func() {
						_, err := l.r.Through(within(t, deadline))
						done <- err
					}()
				}
				late.until(func() error { // both know how far they have to come
					if late.marked() < at || follows.marked() < at {
						return errors.New("not asked yet")
					}
					return nil
				})
				late.transact(old, routes, 1, 101, 10, nil) // open to the end
				late.end(other, end)
				for range 2 {
					if err := <-done; err != nil {
						t.Error(err)
					}
				}
				to := 100
				if end == kgo.TryCommit {
					to++
				}
				late.numbers(0, to)
				follows.numbers(0, to)
				late.stuck()
				late.end(old, kgo.TryAbort)
				late.through()
			})
		}
	})
}

// marked returns when the high watermark of the first partition was told.
func (l *lab) marked() int64 {
	l.r.mu.Lock()
	defer l.r.mu.Unlock()
	return l.r.parts[0].markAt
}

// What has been removed in between is left out, also when it is all there was.
func TestRetention(t *testing.T) {
	common(t, map[string]int{"routes": 2}, func(t *testing.T, k rig.Kafka) {
		l := newLab(t, k, Options{Topics: []string{named(t, "routes")}})
		l.put(l.w, named(t, "routes"), 2, 0, 20, 50)
		since := l.looked()
		l.put(l.w, named(t, "routes"), 2, 20, 80, 50)
		remove := func(to int64) {
			t.Helper()
			offsets := kadm.Offsets{}
			for p := range int32(2) {
				offsets.AddOffset(named(t, "routes"), p, to, -1)
			}
			if _, err := l.admin().DeleteRecords(within(t, deadline), offsets); err != nil {
				t.Fatal(err)
			}
		}
		remove(30)
		l.prime(since)
		l.through()
		l.numbers(60, 100)
		remove(50)
		l.prime(since)
		l.through()
		l.numbers(0, 0)
		l.put(l.w, named(t, "routes"), 2, 100, 10, 50)
		l.through()
		l.numbers(100, 110)
	})
}

// Topics and partitions that are made later are read from their beginning,
// whether something is being read at that time or later.
func TestNewPartitions(t *testing.T) {
	common(t, nil, func(t *testing.T, k rig.Kafka) {
		l := newLab(t, k, Options{Topics: []string{named(t, "routes"), named(t, "never")}})
		l.until(func() error {
			if err := l.r.Prime(now()); err != nil {
				return err
			}
			_, err := l.r.Through(within(t, deadline))
			return err
		})
		since := now()
		if err := k.CreateTopic(within(t, deadline), named(t, "routes"), 2); err != nil {
			t.Fatal(err)
		}
		l.put(l.w, named(t, "routes"), 2, 0, 20, 50)
		l.until(func() error { // a broker may not have heard of a new topic
			if p := l.through(); p.Records != 20 || p.From > since {
				return fmt.Errorf("%+v, since %d", p, since)
			}
			return nil
		})
		if _, err := l.admin().UpdatePartitions(within(t, deadline), 5, named(t, "routes")); err != nil {
			t.Fatal(err)
		}
		l.until(func() error {
			d, err := l.admin().ListTopics(within(t, deadline), named(t, "routes"))
			if n := len(d[named(t, "routes")].Partitions); n != 5 {
				return fmt.Errorf("%d partitions, %v", n, err)
			}
			return nil
		})
		more := l.producer()
		l.put(more, named(t, "routes"), 5, 20, 30, 50)
		l.until(func() error {
			if p := l.through(); p.Records != 50 || p.From > since {
				return fmt.Errorf("%+v, since %d", p, since)
			}
			return nil
		})
		l.numbers(0, 50)
		l.looked()
		l.prime(since)
		l.through()
		l.numbers(0, 50)
		if d, err := l.admin().ListTopics(within(t, deadline), named(t, "never")); err != nil || d[named(t, "never")].Err == nil {
			t.Errorf("%v, %v: asking for a topic made it", d, err)
		}
	})
}

// A topic that is deleted and made again is read from its beginning, not from where
// the old one ended.
func TestTopicMadeAnew(t *testing.T) {
	common(t, map[string]int{"routes": 2}, func(t *testing.T, k rig.Kafka) {
		l := newLab(t, k, Options{Topics: []string{named(t, "routes")}})
		l.put(l.w, named(t, "routes"), 2, 0, 100, 50)
		since := l.looked()
		if _, err := l.admin().DeleteTopics(within(t, deadline), named(t, "routes")); err != nil {
			t.Fatal(err)
		}
		l.until(func() error {
			if s := l.r.Status(); s.Partitions != 0 {
				return fmt.Errorf("%+v", s)
			}
			return nil
		})
		if err := k.CreateTopic(within(t, deadline), named(t, "routes"), 2); err != nil {
			t.Fatal(err)
		}
		again := l.producer()
		l.put(again, named(t, "routes"), 2, 100, 20, 50)
		l.until(func() error {
			if s := l.r.Status(); s.Known != 2 {
				return fmt.Errorf("%+v", s)
			}
			return nil
		})
		l.prime(since)
		l.through()
		l.numbers(100, 120)
	})
}

// While no broker answers, Through fails in time; afterwards nothing is missing.
func TestBrokerAway(t *testing.T) {
	both(t, rig.KafkaOptions{Topics: map[string]int{"routes": 3}}, func(t *testing.T, k rig.Kafka) {
		l := newLab(t, k, Options{Topics: []string{"routes"}})
		l.put(l.w, "routes", 3, 0, 10, 50)
		since := l.looked()
		l.put(l.w, "routes", 3, 10, 100, 50)
		fails := func() {
			t.Helper()
			begin := time.Now()
			_, err := l.r.Through(within(t, 300*time.Millisecond))
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 10*time.Second {
				t.Errorf("%v after %v", err, time.Since(begin))
			}
		}
		away := func(away bool) {
			t.Helper()
			if err := k.Away(within(t, deadline), away); err != nil {
				t.Fatal(err)
			}
		}
		away(true) // at rest
		l.prime(since)
		fails()
		away(false)
		l.through()
		l.numbers(10, 110)
		away(true) // while reading
		fails()
		away(false)
		l.put(l.w, "routes", 3, 110, 100, 50)
		l.through()
		l.numbers(10, 210)

		l.r.Rest()
		if err := k.Restart(within(t, deadline)); err != nil {
			t.Fatal(err)
		}
		l.put(l.w, "routes", 3, 210, 10, 50)
		l.prime(since)
		l.through()
		l.numbers(10, 220)

		if err := k.Pause(); err != nil {
			t.Fatal(err)
		}
		fails()
		if s := l.r.Status(); !s.Reading {
			t.Errorf("%+v", s)
		}
		if err := k.Resume(); err != nil {
			t.Fatal(err)
		}
		l.through()
		l.numbers(10, 220)
	})
}

// However short the time is that is given, nothing but that comes of it.
func TestShortTimes(t *testing.T) {
	common(t, map[string]int{"routes": 64}, func(t *testing.T, k rig.Kafka) {
		l := newLab(t, k, Options{Topics: []string{named(t, "routes")}, Interval: time.Millisecond})
		since := l.looked()
		l.put(l.w, named(t, "routes"), 64, 0, 100, 50)
		l.prime(since)
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				for j := range 400 {
					_, err := l.r.Through(within(t, time.Duration(1+(i+j)%4)*time.Millisecond))
					if err != nil && !errors.Is(err, context.DeadlineExceeded) {
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
		l.through()
		l.numbers(0, 100)
	})
}

func TestTooMany(t *testing.T) {
	common(t, map[string]int{"routes": 3}, func(t *testing.T, k rig.Kafka) {
		l := newLab(t, k, Options{Topics: []string{named(t, "routes")}, Most: 50})
		since := l.looked()
		l.put(l.w, named(t, "routes"), 3, 0, 50, 50)
		l.prime(since)
		l.through()
		l.numbers(0, 50)
		l.put(l.w, named(t, "routes"), 3, 50, 1, 50)
		if p, err := l.r.Through(within(t, deadline)); !errors.Is(err, ErrTooMany) || p.Records != 50 {
			t.Errorf("%+v, %v", p, err)
		}
		l.prime(l.looked())
		if p := l.through(); p.Records != 0 {
			t.Errorf("%+v", p)
		}
	})
}

// With a password.
func TestPassword(t *testing.T) {
	o := rig.KafkaOptions{Topics: map[string]int{"routes": 1}, User: "collector", Password: "sesame"}
	both(t, o, func(t *testing.T, k rig.Kafka) {
		l := newLab(t, k, Options{Topics: []string{"routes"}, Kafka: sink.Options{
			SASL: sink.SASL{Mechanism: "PLAIN", Username: "collector", Password: "sesame"},
		}})
		since := l.looked()
		l.put(l.w, "routes", 1, 0, 10, 50)
		l.prime(since)
		l.through()
		l.numbers(0, 10)
	})
}

func embedded(t *testing.T, o rig.KafkaOptions) *rig.EmbeddedKafka {
	k, err := rig.StartEmbeddedKafka(within(t, deadline), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k
}

// Reading needs no right on any group.
func TestGroupRefused(t *testing.T) {
	k := embedded(t, rig.KafkaOptions{Topics: map[string]int{"routes": 2}})
	k.Cluster().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.FindCoordinator}, Err: kerr.GroupAuthorizationFailed, Count: -1})
	l := newLab(t, k, Options{Topics: []string{"routes"}})
	since := l.looked()
	l.put(l.w, "routes", 2, 0, 100, 50)
	l.prime(since)
	l.through()
	l.numbers(0, 100)
}

// As long as one end is not told, Through does not say that all was read.
func TestEndNotTold(t *testing.T) {
	k := embedded(t, rig.KafkaOptions{Topics: map[string]int{"routes": 2}})
	l := newLab(t, k, Options{Topics: []string{"routes"}})
	since := l.looked()
	l.put(l.w, "routes", 2, 0, 100, 50)
	f := k.Cluster().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.ListOffsets}, Topic: "routes", Err: kerr.LeaderNotAvailable, Count: -1})
	l.prime(since)
	if _, err := l.r.Through(within(t, 300*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	f.Remove()
	l.through()
	l.numbers(0, 100)
}

// What cannot be asked for is not taken for a topic that is not there.
func TestDescribeRefused(t *testing.T) {
	k := embedded(t, rig.KafkaOptions{Topics: map[string]int{"routes": 2, "other": 1}})
	f := k.Cluster().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Topic: "routes", Err: kerr.TopicAuthorizationFailed, Count: -1})
	l := newLab(t, k, Options{Topics: []string{"other", "routes"}})
	since := now()
	l.prime(since)
	l.waits("topic routes: Broker: Topic authorization failed")
	f.Remove()
	l.through()
}

// A name that Kafka does not allow is that of no topic.
func TestNoNames(t *testing.T) {
	common(t, map[string]int{"routes": 1}, func(t *testing.T, k rig.Kafka) {
		l := newLab(t, k, Options{Topics: []string{"", strings.Repeat("x", 250), strings.Repeat("x", 1000), "a b", named(t, "routes")}})
		since := l.looked()
		l.put(l.w, named(t, "routes"), 1, 0, 10, 50)
		l.prime(since)
		l.through()
		l.numbers(0, 10)
	})
}

// A look costs one request to a broker, however many partitions there are, and one
// more when it is asked which there are. What else there is in the cluster is not asked for.
func TestLookIsCheap(t *testing.T) {
	k := embedded(t, rig.KafkaOptions{Topics: map[string]int{"a": 64, "b": 64, "c": 64}})
	var ends, metadata, more atomic.Int64
	foreign := func(t kmsg.MetadataRequestTopic) bool { return t.Topic != nil && *t.Topic == "c" }
	k.Cluster().ControlKey(-1, func(r kmsg.Request) (kmsg.Response, error, bool) {
		k.Cluster().KeepControl()
		switch r := r.(type) {
		case *kmsg.ListOffsetsRequest:
			ends.Add(1)
		case *kmsg.MetadataRequest:
			metadata.Add(1)
			if r.Topics == nil || r.AllowAutoTopicCreation || slices.ContainsFunc(r.Topics, foreign) {
				more.Add(1)
			}
		}
		return nil, nil, false
	})
	l := newLab(t, k, Options{Topics: []string{"a", "b", "never"}, Interval: time.Hour})
	l.until(func() error {
		if s := l.r.Status(); s.Known != 128 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	endsBefore, metadataBefore := ends.Load(), metadata.Load()
	for range 10 {
		if err := l.r.look(t.Context(), true, true); err != nil {
			t.Fatal(err)
		}
	}
	// The consumer may ask for once as well.
	if e, m := ends.Load()-endsBefore, metadata.Load()-metadataBefore; e < 10 || e > 11 || m > 15 {
		t.Errorf("asked %d times for ends, %d for partitions", e, m)
	}
	if n := more.Load(); n > 0 {
		t.Errorf("%d requests for more than what is followed", n)
	}
}

// Without a look Prime begins at the first end that it is told, and says so.
func TestPrimeUnprepared(t *testing.T) {
	k := embedded(t, rig.KafkaOptions{Topics: map[string]int{"routes": 2}})
	l := newLab(t, k, Options{Interval: time.Hour})
	l.put(l.w, "routes", 2, 0, 100, 50)
	since := now()
	l.r.Follow("routes")
	l.prime(since)
	if p := l.through(); p.Records != 0 || p.From <= since {
		t.Errorf("%+v, since %d", p, since)
	}
	l.put(l.w, "routes", 2, 100, 10, 50)
	l.through()
	l.numbers(100, 110)
}

// Close ends what is under way, also while a broker hangs.
func TestClose(t *testing.T) {
	k := embedded(t, rig.KafkaOptions{Topics: map[string]int{"routes": 2}})
	r, err := New(Options{Kafka: sink.Options{Brokers: []string{k.Brokers()}}, Topics: []string{"routes"}, Read: func(*Record) {}, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Prime(now()); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Through(within(t, deadline)); err != nil {
		t.Fatal(err)
	}
	if err := k.Pause(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		_, err := r.Through(context.Background())
		done <- err
	}()
	go func() {
		r.Run(context.Background())
		done <- nil
	}()
	begin := time.Now()
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > 15*time.Second {
		t.Errorf("closed after %v", took)
	}
	for range 2 {
		if err := <-done; err != nil && !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	}
	if err := r.Close(); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if err := r.Prime(0); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	r.Rest()
}
