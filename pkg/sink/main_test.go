package sink

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"github.com/bmpha/bmpha/pkg/record"
)

// The test binary is also the broker of the benchmarks, so that its CPU time is
// not counted as the sink's.
const brokerEnv = "BMPHA_SINK_TEST_BROKER"

func TestMain(m *testing.M) {
	if os.Getenv(brokerEnv) != "" {
		c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(4, "bench"), kfake.BlackholeProduce())
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(c.ListenAddrs()[0])
		_, _ = io.Copy(io.Discard, os.Stdin)
		c.Close()
		return
	}
	if args := os.Getenv(senderEnv); args != "" {
		runSender(args)
		return
	}
	goleak.VerifyTestMain(runner{m})
}

// runner gives libraries a little time: they end their own goroutines behind Close.
type runner struct{ *testing.M }

func (r runner) Run() int {
	code := r.M.Run()
	for tries := 0; code == 0 && tries < 20 && goleak.Find() != nil; tries++ {
	}
	return code
}

const deadline = 2 * time.Minute

type maker struct {
	name string
	make func(Options) (Sink, error)
}

var makers = []maker{{"shim", NewKafka}, {"reference", NewReference}, {"fenced", newFenced}}

var ids atomic.Uint64

// newFenced is NewKafka with a transactional id of its own.
func newFenced(o Options) (Sink, error) {
	if o.TransactionalID == "" {
		o.TransactionalID = fmt.Sprint("sink-", ids.Add(1))
	}
	if o.CommitInterval == 0 {
		o.CommitInterval = 20 * time.Millisecond
	}
	return NewKafka(o)
}

// both runs a test with each of the Kafka sinks: they promise the same.
func both(t *testing.T, f func(t *testing.T, m maker)) {
	for _, m := range makers {
		t.Run(m.name, func(t *testing.T) { f(t, m) })
	}
}

// warm waits until the sink takes records: in transactions it does so only once a
// broker has answered.
func warm(t *testing.T, m maker, s Sink, topic uint32) {
	t.Helper()
	if m.name == "fenced" {
		newDriver(t, s, filled(1<<19, topic, 1, 12)).finish()
	}
}

// A broker is a fake Kafka that can go away.
type broker struct {
	*kfake.Cluster
	away atomic.Bool
}

func newBroker(t *testing.T, opts ...kfake.Opt) *broker {
	t.Helper()
	b := &broker{}
	c, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	b.Cluster = c
	t.Cleanup(c.Close)
	c.ControlKey(-1, func(kmsg.Request) (kmsg.Response, error, bool) {
		if !b.away.Load() {
			return nil, nil, false
		}
		c.KeepControl()
		return nil, errors.New("away"), true
	})
	return b
}

func (b *broker) topic(t *testing.T, name string, partitions int32, configs map[string]string) {
	t.Helper()
	if err := b.CreateTopic(name, partitions, configs); err != nil {
		t.Fatal(err)
	}
}

// read returns the records of a topic that are committed, by partition.
func (b *broker) read(t *testing.T, topic string) map[int32][]*kgo.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	c, err := kgo.NewClient(kgo.SeedBrokers(b.ListenAddrs()...), kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	left := map[int32]int64{} // up to which offset
	for _, p := range b.PartitionInfos(topic) {
		if p.HighWatermark > 0 {
			left[p.Partition] = p.HighWatermark
		}
	}
	all := map[int32][]*kgo.Record{}
	for len(left) > 0 {
		fetches := c.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("%v: partitions and ends %v", err, left)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if !r.Attrs.IsControl() {
				all[r.Partition] = append(all[r.Partition], r)
			}
			if r.Offset+1 >= left[r.Partition] {
				delete(left, r.Partition)
			}
		})
	}
	return all
}

func newSink(t *testing.T, m maker, b *broker, o Options) Sink {
	t.Helper()
	o.Brokers = b.ListenAddrs()
	s, err := m.make(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(0); err != nil && !errors.Is(err, ErrClosed) && !t.Failed() {
			t.Error(err)
		}
	})
	return s
}

// A feed is one stream with all its records, handed over the way the gate does:
// as far as the window allows, and again from Acked after a failure.
type feed struct {
	stream  uint32
	batch   record.Batch
	start   uint64
	next    uint64
	report  Report
	resets  int
	errs    []error
	started bool
}

// add appends a record; its value begins with its position.
func (f *feed) add(topic uint32, key string, header []byte, size int) {
	b := &f.batch
	r := record.Rec{Topic: topic, KeyOff: uint32(len(b.Data)), KeyLen: uint32(len(key))}
	b.Data = append(b.Data, key...)
	r.HeaderOff, r.HeaderLen = uint32(len(b.Data)), uint32(len(header))
	b.Data = append(b.Data, header...)
	r.ValueOff, r.ValueLen = uint32(len(b.Data)), uint32(max(size, 12))
	b.Data = binary.BigEndian.AppendUint32(b.Data, f.stream)
	b.Data = binary.BigEndian.AppendUint64(b.Data, f.start+uint64(len(b.Recs)))
	b.Data = append(b.Data, strings.Repeat("x", max(0, size-12))...)
	b.Recs = append(b.Recs, r)
}

func (f *feed) end() uint64 { return f.start + uint64(f.batch.Len()) }

type driver struct {
	t        *testing.T
	sink     Sink
	feeds    map[uint32]*feed
	buf      []Report
	check    func() // after each poll
	maxReset int
}

func newDriver(t *testing.T, s Sink, feeds ...*feed) *driver {
	d := &driver{t: t, sink: s, feeds: map[uint32]*feed{}, maxReset: 1000}
	for _, f := range feeds {
		d.feeds[f.stream] = f
	}
	return d
}

// step hands over what fits and takes in what moved.
func (d *driver) step() {
	d.t.Helper()
	for _, f := range d.feeds {
		if !f.started {
			f.started = true
			f.next = f.start
			f.report.Acked = f.start
			if err := d.sink.Reset(f.stream, f.start); err != nil {
				d.t.Fatal(err)
			}
		}
		if f.report.Err != nil {
			if f.report.Outstanding > 0 {
				continue
			}
			if f.resets++; f.resets > d.maxReset {
				continue
			}
			if err := d.sink.Reset(f.stream, f.report.Acked); err != nil {
				d.t.Fatal(err)
			}
			f.report.Err = nil
			f.next = f.report.Acked
		}
		n, err := d.sink.Hand(f.stream, f.next, &f.batch, int(f.next-f.start))
		if err != nil && !errors.Is(err, ErrStopped) {
			d.t.Fatal(err)
		}
		f.next += uint64(n)
	}
	d.buf = d.sink.Poll(20*time.Millisecond, d.buf[:0])
	for _, r := range d.buf {
		f := d.feeds[r.Stream]
		if f == nil {
			d.t.Fatalf("report for stream %d, which was not handed to", r.Stream)
		}
		if r.Acked < f.report.Acked || r.Acked > f.next {
			d.t.Fatalf("stream %d: acknowledged up to %d after %d, handed up to %d", r.Stream, r.Acked, f.report.Acked, f.next)
		}
		if r.Err != nil && (f.report.Err == nil || errors.Is(r.Err, ErrFenced) && !errors.Is(f.report.Err, ErrFenced)) {
			f.errs = append(f.errs, r.Err)
		}
		f.report = r
	}
	if d.check != nil {
		d.check()
	}
}

func (d *driver) until(what string, done func() bool) {
	d.t.Helper()
	for end := time.Now().Add(deadline); !done(); d.step() {
		if time.Now().After(end) {
			for _, f := range d.feeds {
				d.t.Logf("stream %d: %+v, next %d of %d, resets %d, errors %v", f.stream, f.report, f.next, f.end(), f.resets, f.errs)
			}
			d.t.Fatalf("no end: %s; %+v", what, d.sink.Stats())
		}
	}
}

func (d *driver) finish() {
	d.t.Helper()
	d.until("everything acknowledged", func() bool {
		for _, f := range d.feeds {
			if f.report.Acked < f.end() || f.report.Outstanding > 0 {
				return false
			}
		}
		return true
	})
}

// positions returns what a partition holds of a stream, in the order of the log.
func positions(records []*kgo.Record, stream uint32) []uint64 {
	var out []uint64
	for _, r := range records {
		if binary.BigEndian.Uint32(r.Value) == stream {
			out = append(out, binary.BigEndian.Uint64(r.Value[4:]))
		}
	}
	return out
}

// settled checks that a consumer ends with every record of a stream but the
// ones left out, in order: the last time that each was written comes after the
// last time that the one before it was. It returns how many came twice.
func settled(t *testing.T, got []uint64, start, end uint64, except ...uint64) (repeated int) {
	t.Helper()
	last := map[uint64]int{}
	for i, p := range got {
		last[p] = i
	}
	before := -1
	for p := start; p < end; p++ {
		i, ok := last[p]
		if slices.Contains(except, p) {
			if ok {
				t.Fatalf("position %d is there but should not be", p)
			}
			continue
		}
		if !ok {
			t.Fatalf("position %d is lost (of %d to %d, %d there)", p, start, end, len(last))
		}
		if i < before {
			t.Fatalf("position %d stays in front of an earlier one", p-1)
		}
		before = i
	}
	return len(got) - len(last)
}

func deadLetterFile(t *testing.T) string { return filepath.Join(t.TempDir(), "dead.jsonl") }
