package sink

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/bmpha/bmpha/pkg/rig"
)

// eachKafka runs a test on the embedded broker and, where it is installed, on the
// real one.
func eachKafka(t *testing.T, o rig.KafkaOptions, f func(t *testing.T, k rig.Kafka)) {
	t.Run("embedded", func(t *testing.T) {
		k, err := rig.StartEmbeddedKafka(t.Context(), rig.KafkaOptions{Topics: o.Topics})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = k.Close() })
		f(t, k)
	})
	t.Run("real", func(t *testing.T) { f(t, realKafka(t, o)) })
}

func realKafka(t testing.TB, o rig.KafkaOptions) *rig.KafkaServer {
	t.Helper()
	if _, err := rig.KafkaDir(); err != nil {
		t.Skip(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	k, err := rig.StartKafkaServer(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	return k
}

// log returns the records of a one-partition topic, as a consumer that reads just
// committed ones gets them or as any other, and whether transactions are open.
func logOf(t *testing.T, k rig.Kafka, topic string, level kgo.IsolationLevel) (records []*kgo.Record, open bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	c, err := kgo.NewClient(append(k.Client(), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(level), kgo.KeepControlRecords())...)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	admin := kadm.NewClient(c)
	ends, err := admin.ListEndOffsets(ctx, topic)
	if err != nil {
		t.Fatal(err)
	}
	stable, err := admin.ListCommittedOffsets(ctx, topic)
	if err != nil {
		t.Fatal(err)
	}
	end, _ := ends.Lookup(topic, 0)
	last, _ := stable.Lookup(topic, 0)
	upTo := end.Offset
	if level == kgo.ReadCommitted() {
		upTo = last.Offset
	}
	for next := int64(0); next < upTo; {
		fetches := c.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("offset %d of %d: %v", next, upTo, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			next = r.Offset + 1
			if !r.Attrs.IsControl() {
				records = append(records, r)
			}
		})
	}
	return records, last.Offset < end.Offset
}

// once checks that a stream is there from start to end, in order, each record once.
func once(t *testing.T, records []*kgo.Record, stream uint32, start, end uint64) {
	t.Helper()
	got := positions(records, stream)
	for i, p := range got {
		if p != start+uint64(i) {
			t.Fatalf("stream %d: position %d where %d is due", stream, p, start+uint64(i))
		}
	}
	if n := uint64(len(got)); n != end-start {
		t.Fatalf("stream %d: %d records, want %d to %d", stream, n, start, end)
	}
}

func fenced(t *testing.T, k rig.Kafka, o Options) Sink {
	t.Helper()
	return sinkTo(t, maker{"fenced", newFenced}, k, o)
}

func fence(t *testing.T, s Sink, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	began := time.Now()
	if err := s.(Fencer).Fence(ctx, id); err != nil {
		t.Fatal(err)
	}
	t.Logf("fenced %s in %v", id, time.Since(began).Round(100*time.Microsecond))
}

// never is a commit interval that does not pass, and what it needs.
const never = 5 * time.Minute

var patient = map[string]string{"transaction.timeout.ms": "600000"}

// The test binary is also a sender that is killed or stopped: it hands over records
// of stream 1, so many a second, until it finds the file that tells it that it was
// stopped: not by its clock, which jumps by itself where a machine is busy.
const senderEnv = "BMPHA_SINK_TEST_SENDER" // brokers topic id rate file

func runSender(args string) {
	var brokers, topic, id, stopped string
	var rate int
	if _, err := fmt.Sscan(args, &brokers, &topic, &id, &rate, &stopped); err != nil {
		panic(err)
	}
	if id == "none" {
		id = ""
	}
	s, err := NewKafka(Options{Brokers: []string{brokers}, TransactionalID: id})
	if err != nil {
		panic(err)
	}
	h, err := s.Topic(topic)
	if err != nil {
		panic(err)
	}
	f := filled(1, h, 1<<18, 600)
	if err := s.Reset(1, 0); err != nil {
		panic(err)
	}
	var reports []Report
	began := time.Now()
	look := func() { // as the collector's own deadline does
		if _, err := os.Stat(stopped); err == nil {
			fmt.Println("woken", f.next)
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(0)
		}
	}
	for {
		look()
		due := min(uint64(time.Since(began).Seconds()*float64(rate)), f.end())
		if due > f.next {
			b := f.batch
			b.Recs = b.Recs[:due]
			n, err := s.Hand(1, f.next, &b, int(f.next))
			if err != nil {
				panic(err)
			}
			f.next += uint64(n)
		}
		reports = s.Poll(5*time.Millisecond, reports[:0])
		look() // who stood still meanwhile may have been fenced
		for _, r := range reports {
			if r.Err != nil {
				panic(r.Err)
			}
			if r.Acked != f.report.Acked {
				fmt.Println("acked", r.Acked)
			}
			f.report = r
		}
	}
}

// A sender is a running one.
type sender struct {
	cmd   *exec.Cmd
	file  string // tells it that it was stopped
	acked atomic.Uint64
	woken chan uint64
	done  chan struct{}
}

func startSender(t *testing.T, k rig.Kafka, topic, id string, rate int) *sender {
	t.Helper()
	s := &sender{cmd: exec.Command(os.Args[0]), file: filepath.Join(t.TempDir(), "stopped"), woken: make(chan uint64, 1), done: make(chan struct{})}
	s.cmd.Env = append(os.Environ(), senderEnv+"="+strings.Join([]string{k.Brokers(), topic, id, strconv.Itoa(rate), s.file}, " "))
	s.cmd.Stderr = os.Stderr
	in, err := s.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			word, n, _ := strings.Cut(lines.Text(), " ")
			v, _ := strconv.ParseUint(n, 10, 64)
			if word == "woken" {
				s.woken <- v
			} else {
				s.acked.Store(v)
			}
		}
	}()
	t.Cleanup(func() {
		_ = in.Close()
		_ = s.cmd.Process.Kill()
		<-s.done
		_ = s.cmd.Wait()
	})
	return s
}

func (s *sender) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	if err := rig.WaitFor(ctx, func() error {
		if !ok() {
			return errors.New("not yet")
		}
		return nil
	}); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// A process is killed in the middle. Whoever takes over fences its id, finds by
// reading what was committed, a beginning without gaps that has at least what was
// acknowledged, and goes on behind it.
func TestTakeoverAfterKill(t *testing.T) {
	eachKafka(t, rig.KafkaOptions{Topics: map[string]int{"routes": 1}}, func(t *testing.T, k rig.Kafka) {
		b := fenced(t, k, Options{})
		a := startSender(t, k, "routes", "a", 5000)
		a.until(t, "a transaction in the middle", func() bool {
			if a.acked.Load() < 2000 {
				return false
			}
			_, open := logOf(t, k, "routes", kgo.ReadCommitted())
			return open
		})
		if err := a.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-a.done
		fence(t, b, "a")
		records, open := logOf(t, k, "routes", kgo.ReadCommitted())
		if open {
			t.Error("consumers still wait for the dead sender's transaction")
		}
		n := uint64(len(records))
		once(t, records, 1, 0, n)
		if n < a.acked.Load() {
			t.Errorf("%d records committed, %d were acknowledged", n, a.acked.Load())
		}
		f := &feed{stream: 1, start: n}
		for range 1000 {
			f.add(topicOf(t, b, "routes"), "k", nil, 600)
		}
		newDriver(t, b, f).finish()
		records, _ = logOf(t, k, "routes", kgo.ReadCommitted())
		once(t, records, 1, 0, f.end())
		all, _ := logOf(t, k, "routes", kgo.ReadUncommitted())
		t.Logf("%d acknowledged, %d committed; aborted, which only a consumer that reads uncommitted sees: %d", a.acked.Load(), n, len(all)-len(records))
	})
}

// A sender stands still with records in hand while another takes over, and goes on
// then: none of them is ever committed, it is told, and it asks before it sends
// anything else. A consumer that reads uncommitted records sees them, in front.
func TestPauseBeyondTakeover(t *testing.T) {
	eachKafka(t, rig.KafkaOptions{Topics: map[string]int{"routes": 1}}, func(t *testing.T, k rig.Kafka) {
		var asked atomic.Int64
		var sends atomic.Bool
		sends.Store(true)
		a := fenced(t, k, Options{TransactionalID: "a", CommitInterval: never, Properties: patient, Window: 1000, Confirm: func(context.Context) error {
			asked.Add(1)
			if !sends.Load() {
				return errors.New("not the sender")
			}
			return nil
		}})
		b := fenced(t, k, Options{TransactionalID: "b"})
		topic := topicOf(t, a, "routes")
		f := &feed{stream: 1}
		for range 300 {
			f.add(topic, "k", nil, 100)
		}
		d := newDriver(t, a, f)
		d.until("all are with the broker", func() bool {
			records, _ := logOf(t, k, "routes", kgo.ReadUncommitted())
			return len(records) == 300
		})
		if records, open := logOf(t, k, "routes", kgo.ReadCommitted()); len(records) != 0 || !open {
			t.Fatalf("%d records committed", len(records))
		}
		fence(t, b, "a")
		sends.Store(false)
		g := &feed{stream: 2}
		for range 300 {
			g.add(topicOf(t, b, "routes"), "k", nil, 100)
		}
		newDriver(t, b, g).finish()
		before := asked.Load()

		for range 700 { // more than half of the window: it commits
			f.add(topic, "k", nil, 100)
		}
		d.until("it is told", func() bool {
			return slices.ContainsFunc(f.errs, func(err error) bool { return errors.Is(err, ErrFenced) })
		})
		d.until("it asks, again and again", func() bool { return asked.Load() >= before+3 && a.Stats().Failed > 300 })
		if f.report.Acked != 0 {
			t.Errorf("acknowledged up to %d", f.report.Acked)
		}
		if st := a.Stats(); st.Fenced != 1 || st.Rebuilt != 1 {
			t.Errorf("%+v", st)
		}
		records, _ := logOf(t, k, "routes", kgo.ReadCommitted())
		once(t, records, 2, 0, 300)
		once(t, records, 1, 0, 0)
		all, _ := logOf(t, k, "routes", kgo.ReadUncommitted())
		t.Logf("uncommitted: %d records of which %d are aborted", len(all), len(all)-len(records))

		// It is the sender again.
		sends.Store(true)
		d.until("half of the window at a time", func() bool { return f.report.Acked == 1000 })
		records, _ = logOf(t, k, "routes", kgo.ReadCommitted())
		once(t, records, 1, 0, 1000)
	})
}

// What is in librdkafka when a process is stopped goes out when it goes on, although
// nothing more is handed over; after a fence none of it is committed.
func TestStoppedProcess(t *testing.T) {
	topics := map[string]int{"slow": 1, "fast": 1, "fenced": 1}
	eachKafka(t, rig.KafkaOptions{Topics: topics}, func(t *testing.T, k rig.Kafka) {
		for _, c := range []struct {
			topic, id string
			rate      int
		}{{"slow", "none", 2000}, {"fast", "none", 50000}, {"fenced", "a", 2000}} {
			t.Run(c.topic, func(t *testing.T) {
				s := startSender(t, k, c.topic, c.id, c.rate)
				s.until(t, "some progress", func() bool { return s.acked.Load() > uint64(c.rate)/2 })
				if err := s.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
				// What is on its way to the broker arrives.
				var n int
				at := time.Now()
				settle := func() bool {
					records, _ := logOf(t, k, c.topic, kgo.ReadUncommitted())
					if len(records) != n {
						n, at = len(records), time.Now()
					}
					return time.Since(at) > time.Second
				}
				s.until(t, "the topic stands still", settle)
				before := n
				if c.id != "none" {
					fence(t, fenced(t, k, Options{}), c.id)
				}
				committed, _ := logOf(t, k, c.topic, kgo.ReadCommitted())
				if err := os.WriteFile(s.file, nil, 0o600); err != nil {
					t.Fatal(err)
				}
				if err := s.cmd.Process.Signal(syscall.SIGCONT); err != nil {
					t.Fatal(err)
				}
				var handed uint64
				select {
				case handed = <-s.woken:
				case <-s.done:
					t.Fatal("the sender has ended")
				}
				if c.id == "none" {
					s.until(t, "all arrives late", func() bool { return settle() && uint64(n) == handed })
					t.Logf("at %d records/s: %d in librdkafka, all of them sent after the pause", c.rate, int(handed)-before)
					return
				}
				at = time.Now()
				s.until(t, "the topic stands still", settle)
				after, open := logOf(t, k, c.topic, kgo.ReadCommitted())
				if len(after) != len(committed) || open {
					t.Errorf("%d records committed after the fence", len(after)-len(committed))
				}
				once(t, after, 1, 0, uint64(len(after)))
				t.Logf("at %d records/s: %d in librdkafka or in the transaction, none committed after the fence", c.rate, int(handed)-len(committed))
			})
		}
	})
}

// Nothing is committed before it was confirmed; the question is put again after a
// pause of at most a second, and once it was answered no more.
func TestConfirm(t *testing.T) {
	b := newBroker(t)
	b.topic(t, "routes", 1, nil)
	var asked atomic.Int64
	s := newSink(t, makers[2], b, Options{Confirm: func(ctx context.Context) error {
		if asked.Add(1) < 5 {
			return errors.New("not the sender")
		}
		return nil
	}})
	f := filled(1, topicOf(t, s, "routes"), 5000, 100)
	d := newDriver(t, s, f)
	d.check = func() {
		if asked.Load() < 5 && f.report.Acked > 0 {
			t.Fatal("committed without a confirmation")
		}
	}
	d.finish()
	if n := asked.Load(); n != 5 {
		t.Errorf("asked %d times", n)
	}
	once(t, b.read(t, "routes")[0], 1, 0, 5000)
	for _, err := range f.errs {
		if !errors.Is(err, ErrAborted) {
			t.Error(err)
		}
	}
}

// A confirmation that does not come ends with Close, and with time.
func TestConfirmHangs(t *testing.T) {
	b := newBroker(t)
	b.topic(t, "routes", 1, nil)
	var asked, cancelled atomic.Int64
	s := newSink(t, makers[2], b, Options{Confirm: func(ctx context.Context) error {
		asked.Add(1)
		<-ctx.Done()
		if errors.Is(ctx.Err(), context.Canceled) {
			cancelled.Add(1)
		}
		return ctx.Err()
	}})
	d := newDriver(t, s, filled(1, topicOf(t, s, "routes"), 10, 100))
	d.until("it gives up", func() bool { return d.feeds[1].report.Err != nil })
	before := asked.Load()
	d.until("it has begun again", func() bool { return s.Stats().Outstanding > 0 && asked.Load() > before })
	if err := s.Close(10 * time.Millisecond); err == nil {
		t.Error("closed without a complaint")
	}
	if cancelled.Load() == 0 {
		t.Error("the confirmation was waited for")
	}
}

// Close commits what is there, however long the interval.
func TestCloseCommits(t *testing.T) {
	b := newBroker(t)
	b.topic(t, "routes", 1, nil)
	s := newSink(t, makers[2], b, Options{CommitInterval: never, Properties: patient})
	f := filled(1, topicOf(t, s, "routes"), 300, 100)
	d := newDriver(t, s, f)
	d.until("all are handed over", func() bool { return f.next == 300 })
	if err := s.Close(deadline); err != nil {
		t.Fatal(err)
	}
	once(t, b.read(t, "routes")[0], 1, 0, 300)
}

// Whatever a coordinator answers, each record is committed once and in order,
// except where the outcome is not known.
func TestTransactionErrors(t *testing.T) {
	for _, key := range []kmsg.Key{kmsg.EndTxn, kmsg.AddPartitionsToTxn, kmsg.InitProducerID, kmsg.FindCoordinator} {
		for _, e := range []*kerr.Error{
			kerr.NotCoordinator, kerr.CoordinatorNotAvailable, kerr.CoordinatorLoadInProgress, kerr.ConcurrentTransactions,
			kerr.RequestTimedOut, kerr.UnknownServerError, kerr.InvalidTxnState, kerr.InvalidProducerEpoch, kerr.ProducerFenced,
			kerr.InvalidProducerIDMapping, kerr.TransactionalIDAuthorizationFailed, kerr.TopicAuthorizationFailed,
			kerr.OperationNotAttempted, kerr.ClusterAuthorizationFailed,
		} {
			t.Run(key.Name()+"/"+e.Message, func(t *testing.T) {
				t.Parallel()
				b := newBroker(t)
				b.topic(t, "routes", 1, nil)
				if key == kmsg.InitProducerID || key == kmsg.FindCoordinator {
					b.Fault(kfake.Fault{Keys: []kmsg.Key{key}, Err: e, Count: 1})
				}
				s := newSink(t, makers[2], b, Options{Window: 600, Properties: map[string]string{"retry.backoff.ms": "10"}})
				f, g := filled(1, topicOf(t, s, "routes"), 3000, 100), filled(2, topicOf(t, s, "routes"), 3000, 100)
				d := newDriver(t, s, f, g)
				for i := range 2 {
					goal := uint64(1000 * (i + 1))
					d.until("some progress", func() bool { return f.report.Acked > goal })
					b.Fault(kfake.Fault{Keys: []kmsg.Key{key}, Err: e, Count: 1})
				}
				d.finish()
				records := b.read(t, "routes")[0]
				if s.Stats().Unsure == 0 {
					once(t, records, 1, 0, 3000)
					once(t, records, 2, 0, 3000)
				} else {
					settled(t, positions(records, 1), 0, 3000)
					settled(t, positions(records, 2), 0, 3000)
				}
				t.Logf("%v %v; %+v", f.errs, g.errs, s.Stats())
			})
		}
	}
}

// A topic that may not be added to a transaction is known by its name: the streams
// of others go on without it.
func TestTopicNotAdded(t *testing.T) {
	b := newBroker(t)
	b.topic(t, "mine", 1, nil)
	b.topic(t, "theirs", 1, nil)
	var allowed atomic.Bool
	b.ControlKey(int16(kmsg.AddPartitionsToTxn), func(req kmsg.Request) (kmsg.Response, error, bool) { // as a broker does
		b.KeepControl()
		r := req.(*kmsg.AddPartitionsToTxnRequest)
		if allowed.Load() || !slices.ContainsFunc(r.Topics, func(t kmsg.AddPartitionsToTxnRequestTopic) bool { return t.Topic == "theirs" }) {
			return nil, nil, false
		}
		resp := r.ResponseKind().(*kmsg.AddPartitionsToTxnResponse)
		for _, t := range r.Topics {
			rt := kmsg.NewAddPartitionsToTxnResponseTopic()
			rt.Topic = t.Topic
			for _, p := range t.Partitions {
				rp := kmsg.NewAddPartitionsToTxnResponseTopicPartition()
				rp.Partition, rp.ErrorCode = p, kerr.OperationNotAttempted.Code
				if t.Topic == "theirs" {
					rp.ErrorCode = kerr.TopicAuthorizationFailed.Code
				}
				rt.Partitions = append(rt.Partitions, rp)
			}
			resp.Topics = append(resp.Topics, rt)
		}
		return resp, nil, true
	})
	s := newSink(t, makers[2], b, Options{Window: 1000})
	f, g := filled(1, topicOf(t, s, "mine"), 10000, 100), filled(2, topicOf(t, s, "theirs"), 1000, 100)
	d := newDriver(t, s, f, g)
	d.until("the other goes on", func() bool { return f.report.Acked == f.end() && g.resets > 2 })
	if f.resets > 2 {
		t.Errorf("%d resets: %v", f.resets, f.errs)
	}
	if g.report.Acked > 0 {
		t.Error("acknowledged without a permission")
	}
	if e := s.Stats().LastError; !strings.Contains(e, "theirs") || !strings.Contains(e, "authorization") {
		t.Errorf("last error %q", e)
	}
	allowed.Store(true)
	d.finish()
	once(t, b.read(t, "mine")[0], 1, 0, 10000)
	once(t, b.read(t, "theirs")[0], 2, 0, 1000)
}

// Records that Kafka will never take are set aside once each, though each aborts a
// transaction, and those around them are committed once.
func TestRefusedInTransaction(t *testing.T) {
	b := newBroker(t)
	b.topic(t, "routes", 1, map[string]string{"max.message.bytes": "20000"})
	dead := deadLetterFile(t)
	s := newSink(t, makers[2], b, Options{DeadLetter: dead, Window: 1000})
	topic := topicOf(t, s, "routes")
	f, g := &feed{stream: 1}, &feed{stream: 2}
	bad := []uint64{3, 50, 51, 52, 700, 999}
	for i := range uint64(1000) {
		size := 100
		if slices.Contains(bad, i) {
			size = 30000
		}
		f.add(topic, "k", nil, size)
		g.add(topic, "k", nil, size)
	}
	d := newDriver(t, s, f, g)
	d.finish()
	records := b.read(t, "routes")[0]
	for _, f := range []*feed{f, g} {
		if n := settled(t, positions(records, f.stream), 0, 1000, bad...); n != 0 {
			t.Errorf("stream %d: %d repeated", f.stream, n)
		}
	}
	if n := len(readDead(t, dead)); n != 2*len(bad) {
		t.Errorf("%d records set aside, want %d", n, 2*len(bad))
	}
	t.Logf("resets %d and %d", f.resets, g.resets)
}

// No record is counted twice, also where one can neither be sent nor set aside, whoever
// found it too large.
func TestRefusedIsCountedOnce(t *testing.T) {
	for name, size := range map[string]int{"broker": 30000, "producer": 200000} {
		t.Run(name, func(t *testing.T) {
			both(t, func(t *testing.T, m maker) {
				b := newBroker(t)
				b.topic(t, "routes", 1, map[string]string{"max.message.bytes": "20000"})
				s := newSink(t, m, b, Options{
					DeadLetter: filepath.Join(t.TempDir(), "not", "there"), Window: 1000,
					Properties: map[string]string{"message.max.bytes": "100000"},
				})
				topic := topicOf(t, s, "routes")
				f := &feed{stream: 1}
				f.add(topic, "k", nil, size)
				d := newDriver(t, s, f)
				d.check = func() {
					if st := s.Stats(); st.Acked+st.Failed+st.Dead+st.Outstanding > st.Handed {
						t.Fatalf("%+v", st)
					}
				}
				d.until("it is tried again", func() bool { return f.resets >= 4 })
				d.until("nothing is outstanding", func() bool { return s.Stats().Outstanding == 0 })
				if st := s.Stats(); st.Failed == 0 || st.Failed != st.Handed || st.Acked+st.Dead > 0 {
					t.Errorf("%+v", st)
				}
			})
		})
	}
}

// A broker that is away does not matter, and neither does one that aborts the
// transaction meanwhile because it took too long.
func TestFencedOutage(t *testing.T) {
	k := realKafka(t, rig.KafkaOptions{Topics: map[string]int{"short": 1, "long": 1}, Paths: 1, Config: map[string]string{
		"transaction.abort.timed.out.transaction.cleanup.interval.ms": "200",
	}})
	t.Run("short", func(t *testing.T) {
		fencedOutage(t, k, 1, outage{topic: "short", window: 1000, interval: 100 * time.Millisecond, timeout: "10000", restart: true})
	})
	t.Run("long", func(t *testing.T) { // all in one transaction
		o := outage{topic: "long", window: 100000, interval: 1500 * time.Millisecond, timeout: "3000"}
		for stream := uint32(1); !fencedOutage(t, k, stream, o); stream += 2 {
			if stream > 10 {
				t.Fatal("the transaction is never cut off before it is committed")
			}
		}
	})
}

type outage struct {
	topic    string
	window   int
	interval time.Duration
	timeout  string
	restart  bool // of the broker; or else its way is cut within a transaction
}

// fencedOutage sends two streams over an outage. It returns false if the transaction
// that it was to hit was committed before.
func fencedOutage(t *testing.T, k *rig.KafkaServer, stream uint32, o outage) bool {
	brokers, path := k.Via(0)
	s, err := newFenced(Options{
		Brokers: []string{brokers}, Window: o.window, CommitInterval: o.interval,
		Properties: map[string]string{"transaction.timeout.ms": o.timeout, "socket.timeout.ms": "1000"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(0)
	topic := topicOf(t, s, o.topic)
	f, g := filled(stream, topic, 20000, 100), filled(stream+1, topic, 20000, 100)
	d := newDriver(t, s, f, g)
	hit := true
	if o.restart {
		d.until("some progress", func() bool { return f.report.Acked > 2000 && g.report.Acked > 2000 })
		began := time.Now()
		if err := k.Away(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		d.until("5 s", func() bool { return time.Since(began) > 5*time.Second })
		if err := k.Away(t.Context(), false); err != nil {
			t.Fatal(err)
		}
	} else {
		d.until("a transaction is open", func() bool {
			_, open := logOf(t, k, o.topic, kgo.ReadCommitted())
			return open
		})
		path.Cut()
		d.until("the brokers have aborted it", func() bool {
			records, open := logOf(t, k, o.topic, kgo.ReadCommitted())
			hit = len(positions(records, stream))+len(positions(records, stream+1)) == 0
			return !open
		})
		if err := path.Restore(); err != nil {
			t.Fatal(err)
		}
	}
	d.finish()
	records, _ := logOf(t, k, o.topic, kgo.ReadCommitted())
	for _, f := range []*feed{f, g} {
		if s.Stats().Unsure == 0 {
			once(t, records, f.stream, 0, 20000)
		} else {
			settled(t, positions(records, f.stream), 0, 20000)
		}
	}
	if hit && !o.restart && (s.Stats().Fenced == 0 || f.report.Acked != 20000) {
		t.Errorf("the transaction was not lost: %+v", s.Stats())
	}
	t.Logf("%v %v; %+v", f.errs, g.errs, s.Stats())
	return hit
}

// To fence is idempotent, harmless for an id that nobody has, and does not outlast
// its context.
func TestFence(t *testing.T) {
	b := newBroker(t)
	b.topic(t, "routes", 1, nil)
	var mu sync.Mutex
	ids := map[string]int{}
	b.ControlKey(int16(kmsg.InitProducerID), func(req kmsg.Request) (kmsg.Response, error, bool) {
		b.KeepControl()
		mu.Lock()
		defer mu.Unlock()
		ids[*req.(*kmsg.InitProducerIDRequest).TransactionalID]++
		return nil, nil, false
	})
	s := newSink(t, makers[0], b, Options{}) // also one without transactions can
	for range 3 {
		if err := s.(Fencer).Fence(t.Context(), "nobody"); err != nil {
			t.Error(err)
		}
	}
	mu.Lock()
	if ids["nobody"] < 3 || ids["nobody+single"] < 3 || ids["nobody+apart"] < 3 || len(ids) != 3 {
		t.Errorf("initialised %v", ids)
	}
	mu.Unlock()
	if err := s.(Fencer).Fence(t.Context(), ""); err == nil {
		t.Error("fenced no id")
	}
	refuse := b.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.InitProducerID}, Err: kerr.TransactionalIDAuthorizationFailed, Count: -1})
	if err := s.(Fencer).Fence(t.Context(), "nobody"); err == nil || !strings.Contains(err.Error(), "uthorization") {
		t.Errorf("refused: %v", err)
	}
	refuse.Remove()
	b.away.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	if err := s.(Fencer).Fence(ctx, "nobody"); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 20*time.Second {
		t.Errorf("without a broker: %v after %v", err, time.Since(began))
	}
	if err := s.Close(0); err != nil {
		t.Fatal(err)
	}
	if err := s.(Fencer).Fence(t.Context(), "nobody"); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}
