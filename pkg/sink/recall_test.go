package sink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/bmpha/bmpha/pkg/record"
)

// recallers are the sinks that can take back; that of newFenced does nothing.
var recallers = []maker{{"shim", NewKafka}, {"reference", NewReference}}

func eachRecaller(t *testing.T, f func(t *testing.T, m maker)) {
	for _, m := range recallers {
		t.Run(m.name, func(t *testing.T) { f(t, m) })
	}
}

func recall(s Sink) { s.(Recaller).Recall() }

// drain polls until nothing is outstanding and returns the last report of each
// stream that moved.
func drain(t *testing.T, s Sink) map[uint32]Report {
	t.Helper()
	told := map[uint32]Report{}
	var buf []Report
	for end := time.Now().Add(deadline); ; {
		left := s.Stats().Outstanding
		buf = s.Poll(20*time.Millisecond, buf[:0])
		for _, r := range buf {
			told[r.Stream] = r
		}
		if left == 0 && len(buf) == 0 {
			return told
		}
		if time.Now().After(end) {
			t.Fatalf("no end: %+v, %v", s.Stats(), told)
		}
	}
}

// failures returns how many rebuilds the next one of the bulk producer waits for.
func failures(s Sink) int {
	switch s := s.(type) {
	case *kafkaSink:
		s.taskMu.Lock()
		defer s.taskMu.Unlock()
		return s.failures[bulk]
	case *referenceSink:
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.lanes[bulk].failures
	}
	return 0
}

// With nothing outstanding a recall only has the connections made anew, as often as
// it is called, and the next producer does not come later each time.
func TestRecallOfNothing(t *testing.T) {
	eachRecaller(t, func(t *testing.T, m maker) {
		b := newBroker(t)
		b.topic(t, "routes", 1, nil)
		s := newSink(t, m, b, Options{})
		f := &feed{stream: 3}
		d := newDriver(t, s, f)
		topic := topicOf(t, s, "routes")
		const rounds = 4
		for round := range rounds {
			for range 200 {
				f.add(topic, "router", nil, 100)
			}
			d.finish()
			before := failures(s)
			recall(s)
			if s.Stats().Connected {
				t.Fatal("connected right behind a recall")
			}
			d.until("a broker has answered anew", func() bool { return s.Stats().Connected })
			if st := s.Stats(); st.Rebuilt != uint64(round+1) {
				t.Errorf("connected with a producer from before: %+v", st)
			}
			if n := failures(s); n != before {
				t.Errorf("%d failures, %d before the recall", n, before)
			}
		}
		f.add(topic, "router", nil, 100)
		d.finish()
		if f.resets != 0 {
			t.Errorf("errors: %v", f.errs)
		}
		want := make([]uint64, f.end())
		for i := range want {
			want[i] = uint64(i)
		}
		if got := positions(b.read(t, "routes")[0], 3); !slices.Equal(got, want) {
			t.Errorf("%d records, want 0 to %d in order, each once", len(got), f.end()-1)
		}
		if st := s.Stats(); st.Handed != f.end() || st.Acked != f.end() || st.Failed != 0 {
			t.Errorf("%+v", st)
		}
	})
}

// Where a broker does not answer, records are given up without it, whatever stream
// and partition they are of, and that is no error of Kafka's. They go again when it
// answers.
func TestRecallWithoutBroker(t *testing.T) {
	eachRecaller(t, func(t *testing.T, m maker) {
		b := newBroker(t)
		b.topic(t, "routes", 3, nil)
		var frozen atomic.Bool
		freeze := make(chan struct{})
		thaw := sync.OnceFunc(func() { close(freeze) })
		t.Cleanup(thaw)
		s := newSink(t, m, b, Options{Window: 3000})
		topic := topicOf(t, s, "routes")
		var feeds []*feed
		for i := range uint32(5) {
			feeds = append(feeds, filled(i, topic, 1000, 200))
		}
		idle := filled(9, topic, 10, 200)
		d := newDriver(t, s, append(feeds, idle)...)
		d.until("some are acknowledged", func() bool { return idle.report.Acked == 10 && feeds[0].report.Acked > 0 })
		b.Control(func(kmsg.Request) (kmsg.Response, error, bool) {
			b.KeepControl()
			frozen.Store(true)
			<-freeze
			return nil, nil, false
		})
		for i := range feeds {
			feeds[i].more(topic, 2000, 200)
		}
		d.until("the window is full", func() bool { return frozen.Load() && s.Stats().Outstanding == 3000 })
		started := time.Now()
		recall(s)
		told := drain(t, s)
		t.Logf("3000 records taken back in %v", time.Since(started))
		failed := 0
		for _, f := range feeds {
			r, ok := told[f.stream]
			if f.next == f.report.Acked { // nothing of it was in flight
				if ok {
					t.Errorf("a stream with nothing outstanding is told: %+v", r)
				}
				continue
			}
			if failed++; !errors.Is(r.Err, ErrRecalled) || r.Outstanding != 0 || r.Acked < f.report.Acked {
				t.Errorf("stream %d: %+v", f.stream, r)
			}
			f.report = r
		}
		if failed < 2 { // none may have more than half of the window
			t.Errorf("%d streams failed", failed)
		}
		if r, ok := told[9]; ok {
			t.Errorf("a stream with nothing outstanding is told: %+v", r)
		}
		if st := s.Stats(); st.Connected || st.Failed == 0 || st.Handed != st.Acked+st.Failed || strings.Contains(st.LastError, "position") {
			t.Errorf("%+v", st)
		}
		thaw()
		d.finish()
		checkFirsts(t, b.read(t, "routes"), feeds...)
	})
}

// more appends n records, with keys of several partitions.
func (f *feed) more(topic uint32, n, size int) {
	for i := range n {
		f.add(topic, fmt.Sprintf("%d-%d", f.stream, i%7), nil, size)
	}
}

// checkFirsts checks that a topic has every record of the feeds and that, without
// what is repeated, those of a key are in order.
func checkFirsts(t *testing.T, got map[int32][]*kgo.Record, feeds ...*feed) (repeated int) {
	t.Helper()
	type place struct {
		stream uint32
		pos    uint64
	}
	type key struct {
		stream uint32
		key    string
	}
	seen := map[place]bool{}
	last := map[key]uint64{}
	for _, partition := range slices.Sorted(maps.Keys(got)) {
		for _, r := range got[partition] {
			p := place{binary.BigEndian.Uint32(r.Value), binary.BigEndian.Uint64(r.Value[4:])}
			if seen[p] {
				repeated++
				continue
			}
			seen[p] = true
			k := key{p.stream, string(r.Key)}
			if before, ok := last[k]; ok && p.pos < before {
				t.Fatalf("stream %d, key %s: position %d behind %d", p.stream, r.Key, p.pos, before)
			}
			last[k] = p.pos
		}
	}
	for _, f := range feeds {
		for p := f.start; p < f.end(); p++ {
			if !seen[place{f.stream, p}] {
				t.Fatalf("stream %d: position %d is lost", f.stream, p)
			}
		}
	}
	return repeated
}

// While several goroutines hand over as fast as they can and others recall, nothing
// is lost and the order of each key stays.
func TestRecallAtFullSpeed(t *testing.T) {
	eachRecaller(t, func(t *testing.T, m maker) {
		const streams, each = 6, 4000
		b := newBroker(t)
		b.topic(t, "routes", 4, nil)
		s := newSink(t, m, b, Options{Window: 2000})
		topic := topicOf(t, s, "routes")

		var mu sync.Mutex
		feeds := make([]*feed, streams)
		for i := range feeds {
			feeds[i] = &feed{stream: uint32(i)}
			feeds[i].more(topic, each, 100)
			if err := s.Reset(uint32(i), 0); err != nil {
				t.Fatal(err)
			}
		}
		done := make(chan struct{})
		stop := sync.OnceFunc(func() { close(done) })
		var tasks sync.WaitGroup
		defer tasks.Wait()
		defer stop()
		ended := func() bool {
			select {
			case <-done:
				return true
			default:
				return false
			}
		}
		for _, f := range feeds {
			tasks.Go(func() {
				for next := uint64(0); !ended(); {
					mu.Lock()
					failed, r := f.report.Err != nil, f.report
					mu.Unlock()
					if failed && r.Outstanding > 0 {
						time.Sleep(time.Millisecond) // the poll goes on meanwhile
						continue
					}
					if failed {
						if !errors.Is(r.Err, ErrRecalled) {
							t.Errorf("stream %d: %v", f.stream, r.Err)
						}
						mu.Lock()
						f.report.Err = nil
						mu.Unlock()
						if err := s.Reset(f.stream, r.Acked); err != nil {
							t.Errorf("stream %d: %v", f.stream, err)
							return
						}
						next = r.Acked
						f.resets++
					}
					n, err := s.Hand(f.stream, next, &f.batch, int(next))
					if err != nil && !errors.Is(err, ErrStopped) {
						t.Errorf("stream %d: %v", f.stream, err)
						return
					}
					if next += uint64(n); n == 0 {
						time.Sleep(time.Millisecond)
					}
				}
			})
		}

		var recalls atomic.Int32
		again := make(chan struct{}, 1)
		for range 2 {
			tasks.Go(func() {
				for {
					select {
					case <-again:
						recall(s)
						recalls.Add(1)
					case <-done:
						return
					}
				}
			})
		}
		// A recall in each sixth of the work, from another goroutine.
		const parts = 6
		told := 0
		var buf []Report
		for end := time.Now().Add(deadline); ; {
			if time.Now().After(end) {
				t.Fatalf("no end: %+v", s.Stats())
			}
			buf = s.Poll(20*time.Millisecond, buf[:0])
			mu.Lock()
			acked, left := 0, uint32(0)
			for _, r := range buf {
				f := feeds[r.Stream]
				if r.Acked < f.report.Acked {
					t.Errorf("stream %d: acknowledged up to %d after %d", r.Stream, r.Acked, f.report.Acked)
				}
				f.report = r
			}
			for _, f := range feeds {
				acked += int(f.report.Acked)
				left += f.report.Outstanding
			}
			mu.Unlock()
			if acked == streams*each && left == 0 {
				break
			}
			if told < parts-1 && acked > streams*each*(told+1)/parts {
				told++
				again <- struct{}{}
			}
		}
		stop()
		tasks.Wait()
		repeated := checkFirsts(t, b.read(t, "routes"), feeds...)
		st := s.Stats()
		t.Logf("%d recalls, %d records given up, %d repeated", recalls.Load(), st.Failed, repeated)
		if st.Failed == 0 {
			t.Error("no recall came in the middle")
		}
		if st.Handed != st.Acked+st.Failed || st.Outstanding != 0 {
			t.Errorf("not every record is accounted for: %+v", st)
		}
	})
}

// What waits to be set aside as a dead letter is not given up, and what was set
// aside behind a record that is given up comes again.
func TestRecallKeepsDeadLetters(t *testing.T) {
	eachRecaller(t, func(t *testing.T, m maker) {
		b := newBroker(t)
		b.topic(t, "routes", 1, nil)
		dead := deadLetterFile(t)
		s := newSink(t, m, b, Options{DeadLetter: dead, Properties: map[string]string{"message.max.bytes": "2000"}})
		topic := topicOf(t, s, "routes")
		lone := &feed{stream: 1}
		lone.add(topic, "lone", nil, 5000)
		mixed := &feed{stream: 2}
		mixed.add(topic, "mixed", nil, 100)
		mixed.add(topic, "mixed", nil, 5000)
		mixed.add(topic, "mixed", nil, 100)
		for _, f := range []*feed{lone, mixed} {
			if err := s.Reset(f.stream, 0); err != nil {
				t.Fatal(err)
			}
			if n, err := s.Hand(f.stream, 0, &f.batch, 0); n != f.batch.Len() || err != nil {
				t.Fatal(n, err)
			}
			f.started, f.next = true, f.end()
		}
		recall(s) // nothing was polled: all is outstanding
		d := newDriver(t, s, lone, mixed)
		d.finish()
		if len(lone.errs) != 0 {
			t.Errorf("errors of a stream with nothing in a producer: %v", lone.errs)
		}
		if len(mixed.errs) != 1 || !errors.Is(mixed.errs[0], ErrRecalled) {
			t.Errorf("errors %v, want one recall", mixed.errs)
		}
		count := map[uint32]int{}
		for _, r := range readDead(t, dead) {
			count[binary.BigEndian.Uint32(r.Value)]++
		}
		if count[1] != 1 || count[2] < 1 {
			t.Errorf("dead letters by stream: %v", count)
		}
		settled(t, positions(b.read(t, "routes")[0], 2), 0, 3, 1)
	})
}

// The order of a recall and the end of a sink does not matter.
func TestRecallAndClose(t *testing.T) {
	eachRecaller(t, func(t *testing.T, m maker) {
		b := newBroker(t)
		b.topic(t, "routes", 1, nil)
		b.away.Store(true)
		for _, wait := range []time.Duration{0, deadline} {
			s := newSink(t, m, b, Options{})
			f := filled(1, topicOf(t, s, "routes"), 100, 100)
			if err := s.Reset(1, 0); err != nil {
				t.Fatal(err)
			}
			if n, err := s.Hand(1, 0, &f.batch, 0); n != 100 || err != nil {
				t.Fatal(n, err)
			}
			var tasks sync.WaitGroup
			defer tasks.Wait()
			tasks.Go(func() { recall(s) })
			recall(s)
			// With time it does not wait for the broker that is away.
			if err := s.Close(wait); err != nil && wait > 0 {
				t.Error(err)
			}
			recall(s)
		}
	})
}

// In transactions it is the brokers who refuse what is late, and nothing is given up.
func TestRecallInTransactions(t *testing.T) {
	b := newBroker(t, kfake.SeedTopics(1, "routes"))
	m := maker{"fenced", newFenced}
	s := newSink(t, m, b, Options{})
	topic := topicOf(t, s, "routes")
	warm(t, m, s, topic)
	f := filled(1, topic, 2000, 100)
	d := newDriver(t, s, f)
	d.check = func() { recall(s) }
	d.finish()
	if st := s.Stats(); f.resets != 0 || st.Failed != 0 || st.Rebuilt != 0 || !st.Connected {
		t.Errorf("errors %v, %+v", f.errs, st)
	}
}

// A sink that has never reached a broker may be recalled, too.
func TestRecallWhileNeverConnected(t *testing.T) {
	eachRecaller(t, func(t *testing.T, m maker) {
		s, err := m.make(Options{Brokers: []string{"127.0.0.1:1"}})
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			recall(s)
			s.Poll(time.Millisecond, nil)
		}
		if err := s.Close(0); err != nil {
			t.Error(err)
		}
		if _, err := s.Hand(1, 0, &record.Batch{}, 0); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
}
