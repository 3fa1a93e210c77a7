package dump_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/bmpha/bmpha/pkg/dump"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/sink"
	"github.com/bmpha/bmpha/pkg/table"
)

// A source is a table of that many routes.
type source int

func (s source) Walk(w *table.Walk, n int, each func(*table.Route)) bool {
	at := int(w.Family.AFI) // all that a stranger can write to
	for ; n > 0 && at < int(s); n-- {
		each(&table.Route{PathID: uint32(at)})
		at++
	}
	w.Family.AFI = uint16(at)
	return at < int(s)
}

func (s source) Initiation() []byte { return []byte("initiation") }

func (s source) Peers() []table.PeerStatus {
	return []table.PeerStatus{
		{PeerUps: [][]byte{[]byte("up 1"), []byte("up 1 post")}, Stats: []byte("stats 1")},
		{Down: []byte("down 2")},
	}
}

// A text encoder writes records to be read here.
type text struct{ name string }

func (e text) put(b *record.Batch, format string, args ...any) {
	off := len(b.Data)
	b.Data = fmt.Appendf(b.Data, e.name+" "+format, args...)
	b.Recs = append(b.Recs, record.Rec{ValueOff: uint32(off), ValueLen: uint32(len(b.Data) - off)})
}

func (e text) Init(b *record.Batch, settled bool)    { e.put(b, "init settled=%t", settled) }
func (e text) Route(b *record.Batch, r *table.Route) { e.put(b, "route %d", r.PathID) }
func (e text) Event(b *record.Batch, msg []byte)     { e.put(b, "%s", msg) }
func (e text) Close(b *record.Batch, why string) {
	e.put(b, "%s", strings.TrimSpace("close "+why))
}

func whole(name string, routes int, stats bool) []string {
	list := []string{name + " init settled=true"}
	for i := range routes {
		list = append(list, fmt.Sprintf("%s route %d", name, i))
	}
	list = append(list, name+" initiation", name+" up 1", name+" up 1 post")
	if stats {
		list = append(list, name+" stats 1")
	}
	return append(list, name+" down 2", name+" close")
}

func newDump(name string, routes int) *dump.Dump {
	return dump.New(source(routes), text{name}, dump.Options{Settled: true, Stats: true})
}

func TestDump(t *testing.T) {
	for _, stats := range []bool{false, true} {
		for _, most := range []int{1, 3, 128, 5000} {
			d := dump.New(source(300), text{"a"}, dump.Options{Settled: true, Stats: stats})
			var got []string
			for !d.Ended() {
				var b record.Batch
				d.Fill(&b, most, 1<<20)
				if b.Len() == 0 || b.Len() > most {
					t.Fatalf("%d records at once, want 1 to %d", b.Len(), most)
				}
				for i := range b.Recs {
					got = append(got, string(b.Value(i)))
				}
			}
			if want := whole("a", 300, stats); !slices.Equal(got, want) {
				t.Fatalf("stats %t, %d at a time: %q, want %q", stats, most, got, want)
			}
			if d.Routes() != 300 || d.Records() != uint64(len(got)) {
				t.Errorf("%d routes in %d records, want 300 in %d", d.Routes(), d.Records(), len(got))
			}
		}
	}
}

// A broker is a sink with one stream. Records fail from position failAt on, once.
type broker struct {
	stored  []string
	pending []string
	begun   bool
	pos     uint64 // of the next record to hand over
	room    int    // most that are pending
	failAt  uint64
	failure error
	stopped bool
	refused error // what Reset and Hand answer with
	tries   int   // refused
	report  func(*sink.Report)
}

func (k *broker) Reset(stream uint32, pos uint64) error {
	if k.refused != nil {
		k.tries++
		return k.refused
	}
	if len(k.pending) > 0 {
		return fmt.Errorf("reset with %d outstanding", len(k.pending))
	}
	if pos != k.acked() {
		return fmt.Errorf("reset to %d, want %d", pos, k.acked())
	}
	k.pos, k.begun, k.stopped = pos, true, false
	return nil
}

func (k *broker) acked() uint64 { return uint64(len(k.stored)) }

func (k *broker) Hand(stream uint32, pos uint64, b *record.Batch, from int) (int, error) {
	switch {
	case k.refused != nil:
		return 0, k.refused
	case k.stopped:
		return 0, sink.ErrStopped
	case !k.begun || pos != k.pos:
		return 0, fmt.Errorf("record at %d, want %d", pos, k.pos)
	}
	n := 0
	for ; from+n < b.Len() && len(k.pending) < k.room; n++ {
		k.pending = append(k.pending, string(b.Value(from+n)))
	}
	k.pos += uint64(n)
	return n, nil
}

// turn stores what it may and reports, as it fits with one record at a time.
func (k *broker) turn() {
	if len(k.pending) == 0 {
		return
	}
	if k.failure != nil && k.acked() == k.failAt {
		k.stopped = true
		k.pending = k.pending[1:]
		k.report(&sink.Report{Acked: k.acked(), Outstanding: uint32(len(k.pending)), Err: k.failure})
		if len(k.pending) == 0 {
			k.failure = nil
		}
		return
	}
	k.stored = append(k.stored, k.pending[0])
	k.pending = k.pending[1:]
	k.report(&sink.Report{Acked: k.acked(), Outstanding: uint32(len(k.pending))})
}

var errBroken = errors.New("broken")

func newBroker(room int, now *int64) (*broker, *dump.Stream) {
	k := &broker{room: room}
	s := dump.NewStream(k, 0, 8)
	k.report = func(r *sink.Report) { s.Report(r, *now) }
	return k, s
}

// run goes on until the dump is done, for so many turns at most.
func run(t *testing.T, k *broker, s *dump.Stream, now *int64, until func() bool) {
	t.Helper()
	for range 10_000 {
		if until() {
			return
		}
		s.Fill()
		s.Hand(*now)
		k.turn()
		*now += 10_000
	}
	_, err := s.Failing()
	t.Fatalf("not done: %d stored, %d pending, error %v", len(k.stored), len(k.pending), err)
}

// A failure at any place, of any kind, costs nothing, repeats nothing and changes
// no order.
func TestFailures(t *testing.T) {
	want := append(whole("a", 20, true), whole("b", 3, true)...)
	for _, failure := range []error{nil, errBroken, sink.ErrBatchRefused} {
		for failAt := range len(want) {
			for _, room := range []int{1, 5, 100} {
				now := int64(1)
				k, s := newBroker(room, &now)
				k.failAt, k.failure = uint64(failAt), failure
				s.Begin(newDump("a", 20))
				run(t, k, s, &now, s.Done)
				s.Begin(newDump("b", 3))
				run(t, k, s, &now, s.Done)
				if !slices.Equal(k.stored, want) {
					t.Fatalf("failure %v at %d, room for %d: stored %q, want %q", failure, failAt, room, k.stored, want)
				}
				if since, err := s.Failing(); err != nil || !s.Idle() {
					t.Fatalf("failure %v at %d: still failing since %d: %v", failure, failAt, since, err)
				}
			}
		}
	}
}

// Wherever a dump is interrupted, what is stored of it is its beginning, and
// then a dump_close that says so, unless nobody has heard of the dump or all of it
// was on its way.
func TestInterruption(t *testing.T) {
	all := whole("a", 20, true)
	for turns := range 60 {
		for _, failure := range []error{nil, errBroken} {
			now := int64(1)
			k, s := newBroker(5, &now)
			k.failAt, k.failure = 4, failure
			s.Begin(newDump("a", 20))
			for range turns {
				s.Fill()
				s.Hand(now)
				if k.turn(); s.Done() {
					break
				}
				now += 10_000
			}
			done := s.Done()
			if s.Interrupt("handover") {
				run(t, k, s, &now, s.Done)
			}
			run(t, k, s, &now, s.Idle)
			last := ""
			if n := len(k.stored); n > 0 {
				last = k.stored[n-1]
			}
			switch {
			case len(k.stored) == 0 && turns == 0:
			case slices.Equal(k.stored, all):
			case !done && last == "a close handover" && slices.Equal(k.stored[:len(k.stored)-1], all[:len(k.stored)-1]):
			default:
				t.Fatalf("after %d turns, failure %v: stored %q", turns, failure, k.stored)
			}
			// The stream is as good as new.
			before := len(k.stored)
			s.Begin(newDump("b", 3))
			run(t, k, s, &now, s.Done)
			if got := k.stored[before:]; !slices.Equal(got, whole("b", 3, true)) {
				t.Fatalf("after %d turns, failure %v: then stored %q", turns, failure, got)
			}
		}
	}
}

// A dump that is abandoned is heard of no more, but for what was handed over.
func TestAbandoned(t *testing.T) {
	for turns := range 40 {
		for _, failure := range []error{nil, errBroken} {
			now := int64(1)
			k, s := newBroker(5, &now)
			k.failAt, k.failure = 4, failure
			s.Begin(newDump("a", 20))
			for range turns {
				s.Fill()
				s.Hand(now)
				k.turn()
				now += 10_000
			}
			s.Abandon()
			if s.Interrupt("late") {
				t.Fatal("interrupted after it was abandoned")
			}
			// What a failure leaves out of an abandoned dump is not sent again, so
			// that positions and records are not the same here.
			for range 10 {
				s.Hand(now)
				k.turn()
			}
			if len(k.pending) > 0 || !s.Idle() {
				t.Fatalf("after %d turns: %d pending", turns, len(k.pending))
			}
			if got, all := k.stored, whole("a", 20, true); !slices.Equal(got, all[:len(got)]) {
				t.Fatalf("after %d turns: stored %q", turns, got)
			}
		}
	}
}

// A sink that refuses everything is tried again ever more rarely, and the caller
// is told since when.
func TestRefused(t *testing.T) {
	now := int64(1000)
	k, s := newBroker(5, &now)
	k.refused = errBroken
	s.Begin(newDump("a", 3))
	for range 60_000 {
		s.Fill()
		s.Hand(now)
		if since, err := s.Failing(); since != 1000 || err != errBroken {
			t.Fatalf("failing since %d: %v", since, err)
		}
		now += 1000
	}
	if k.tries < 12 || k.tries > 25 {
		t.Errorf("%d tries in a minute", k.tries)
	}
	k.refused = nil
	now += 6_000_000
	run(t, k, s, &now, s.Done)
	if want := whole("a", 3, true); !slices.Equal(k.stored, want) {
		t.Errorf("stored %q, want %q", k.stored, want)
	}
}

// Only little is made ahead of what was acknowledged.
func TestWindow(t *testing.T) {
	now := int64(1)
	k, s := newBroker(1000, &now)
	s.Begin(newDump("a", 1000))
	for range 20 {
		s.Fill()
		s.Hand(now)
	}
	if len(k.pending) != 8 {
		t.Errorf("%d records in flight, want 8", len(k.pending))
	}
	run(t, k, s, &now, s.Done)
}
