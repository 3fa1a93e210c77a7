package gate

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/bmpha/bmpha/pkg/hold"
	"github.com/bmpha/bmpha/pkg/record"
)

// countCodec makes as many records of a message as its first byte says. Each
// value is the message and the record's index, and how many messages the codec
// had passed: its state, which must not depend on how it got there. The two bytes
// before them, the index and the flags, pass for a header as well.
type countCodec struct{ passed uint64 }

func (c *countCodec) value(b *record.Batch, o *record.Origin, index int, body []byte) {
	off := len(b.Data)
	b.Data = append(b.Data, byte(index), o.Flags)
	b.Data = binary.BigEndian.AppendUint64(b.Data, c.passed)
	b.Data = append(b.Data, body...)
	b.Recs = append(b.Recs, record.Rec{HeaderOff: uint32(off), HeaderLen: 2, ValueOff: uint32(off), ValueLen: uint32(len(b.Data) - off)})
}

func (c *countCodec) Open(b *record.Batch, o *record.Origin, at int64) {
	c.value(b, o, 0, []byte("open"))
}

func (c *countCodec) Message(b *record.Batch, o *record.Origin, at int64, msg []byte) error {
	c.passed++
	for i := range int(msg[0]) {
		c.value(b, o, i, msg)
	}
	if msg[0] == 0 {
		return fmt.Errorf("nothing in message %d", o.Message)
	}
	return nil
}

func (c *countCodec) Close(b *record.Batch, o *record.Origin, at int64) {
	c.value(b, o, 0, []byte("close"))
}
func (c *countCodec) Observe([]byte) { c.passed++ }
func (c *countCodec) Clone() Codec   { d := *c; return &d }

func newStream(limit int64) *Stream {
	return New(Config{
		ID:   7,
		Open: func(uint32, []byte) Codec { return &countCodec{} },
	}, hold.NewLog(hold.NewBudget(limit)))
}

// broker is a sink and a topic in one, under the test's control.
type broker struct {
	base  uint64 // position of sent[0]
	sent  [][]byte
	topic [][]byte // what was acknowledged, in order
	flags []byte
	acked uint64
	fail  bool
}

func (k *broker) reset(pos uint64) { k.base, k.acked, k.sent, k.fail = pos, pos, nil, false }

func (k *broker) hand(pos uint64, b *record.Batch) {
	if want := k.base + uint64(len(k.sent)); pos != want {
		panic(fmt.Sprintf("handed position %d, want %d", pos, want))
	}
	for i := range b.Len() {
		k.sent = append(k.sent, append([]byte(nil), b.Value(i)...))
	}
}

// ack stores n more records.
func (k *broker) ack(n int) {
	for range n {
		v := k.sent[k.acked-k.base]
		k.flags = append(k.flags, v[1])
		k.topic = append(k.topic, append(v[:1:1], v[2:]...))
		k.acked++
	}
}

func (k *broker) outstanding() int { return len(k.sent) - int(k.acked-k.base) }

func pump(s *Stream, k *broker, most int) {
	if pos, ok := s.Start(); ok {
		k.reset(pos)
	}
	if s.Begin() {
		var b record.Batch
		s.Fill(&b, most, 1<<20, 0)
		if pos, ok := s.End(b.Len()); ok {
			k.hand(pos, &b)
			s.Handed(b.Len())
		}
	}
}

// TestFailuresLoseAndReorderNothing drives a sending stream through random
// appends, acknowledgements and failures, with the role going away and coming
// back: what Kafka has in the end is what came in, in order and once per record,
// as the broker of the test stores nothing of what fails.
func TestFailuresLoseAndReorderNothing(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 2))
		s, k := newStream(64<<20), &broker{}
		now := int64(1)
		var want []string
		state := countCodec{}
		add := func(kind hold.Kind, body []byte) {
			now += int64(r.IntN(1000))
			if !s.Append(kind, 1, now, body) {
				t.Fatalf("seed %d: log full", seed)
			}
			var b record.Batch
			switch o := (record.Origin{}); kind {
			case hold.Opened:
				state = countCodec{}
				state.Open(&b, &o, 0)
			case hold.Message:
				_ = state.Message(&b, &o, 0, body)
			case hold.Closed:
				state.Close(&b, &o, 0)
			}
			for i := range b.Len() {
				v := b.Value(i)
				want = append(want, string(append(v[:1:1], v[2:]...)))
			}
		}
		s.SetWanted(true, 1, false)
		for range 200 {
			switch r.IntN(12) {
			case 0:
				add(hold.Opened, nil)
				for range r.IntN(5) {
					add(hold.Message, []byte{byte(r.IntN(3))})
				}
				add(hold.Closed, nil)
			case 1, 2, 3:
				add(hold.Opened, nil)
				for i := range r.IntN(20) {
					add(hold.Message, []byte{byte(r.IntN(6)), byte(i)})
				}
			case 4, 5, 6:
				pump(s, k, 1+r.IntN(30))
			case 7, 8, 9:
				k.ack(r.IntN(k.outstanding() + 1))
				s.Report(k.acked, uint64(k.outstanding()), false)
			case 10:
				k.sent = k.sent[:k.acked-k.base] // the rest fails
				s.Report(k.acked, 0, true)
			case 11:
				s.SetWanted(r.IntN(2) == 0, 1, false)
				k.ack(r.IntN(k.outstanding() + 1))
				lost := k.outstanding() > 0
				k.sent = k.sent[:k.acked-k.base]
				s.Report(k.acked, 0, lost)
				s.SetWanted(true, 1, false)
			}
		}
		for {
			pump(s, k, 100)
			k.ack(k.outstanding())
			s.Report(k.acked, 0, false)
			if n, _, _ := s.Held(); n == 0 {
				break
			}
		}
		if len(k.topic) != len(want) {
			t.Fatalf("seed %d: %d records in Kafka, want %d", seed, len(k.topic), len(want))
		}
		for i := range want {
			if string(k.topic[i]) != want[i] {
				t.Fatalf("seed %d: record %d is %x, want %x", seed, i, k.topic[i], want[i])
			}
		}
		if c := s.Counters(); c.Received != c.Acknowledged {
			t.Fatalf("seed %d: counters do not add up: %+v", seed, c)
		}
	}
}

func appendN(t *testing.T, s *Stream, from, to int64) {
	t.Helper()
	for at := from; at < to; at++ {
		if !s.Append(hold.Message, 1, at, []byte{1, byte(at)}) {
			t.Fatalf("append at %d refused", at)
		}
	}
}

// TestTrim says what a standby forgets.
func TestTrim(t *testing.T) {
	for _, tt := range []struct {
		name                          string
		now, lowWater, margin, window int64
		wantOldest                    int64
	}{
		{"below the mark minus the margin", 100, 60, 10, 1, 50},
		{"a mark holds, however old the entries are", 1000, 20, 10, 15, 10},
		{"without a mark the window serves", 100, -1, 10, 30, 70},
		{"a mark of the future frees all", 100, 200, 10, 30, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStream(1 << 20)
			appendN(t, s, 1, 100)
			s.Trim(tt.now, tt.lowWater, tt.margin, tt.window)
			if _, _, oldest := s.Held(); oldest != tt.wantOldest {
				t.Errorf("oldest is %d, want %d", oldest, tt.wantOldest)
			}
			c := s.Counters()
			if n, _, _ := s.Held(); c.Received != c.FreedMark+c.FreedWindow+uint64(n) {
				t.Errorf("counters do not add up: %+v, held %d", c, n)
			}
		})
	}
}

// TestMark says what a sender promises to the others.
func TestMark(t *testing.T) {
	s, k := newStream(1<<20), &broker{}
	check := func(what string, now, want int64, wantOK bool) {
		t.Helper()
		if got, ok := s.Mark(now); got != want || ok != wantOK {
			t.Errorf("%s: mark %d %v, want %d %v", what, got, ok, want, wantOK)
		}
	}
	check("nothing heard", 5, 0, false)
	s.Append(hold.Opened, 1, 10, nil)
	check("holding", 15, 0, false)
	s.SetWanted(true, 1, false)
	appendN(t, s, 20, 30)
	check("not even the opening acknowledged: others heard more", 40, 10, false)
	pump(s, k, 100)
	k.ack(1)
	s.Report(k.acked, uint64(k.outstanding()), false)
	check("the opening acknowledged", 40, 20, true)
	k.ack(2)
	s.Report(k.acked, uint64(k.outstanding()), false)
	check("two more acknowledged", 40, 22, true)
	k.ack(k.outstanding())
	s.Report(k.acked, 0, false)
	check("all acknowledged, session open", 41, 41, true)
	s.Append(hold.Closed, 1, 50, nil)
	pump(s, k, 100)
	k.ack(k.outstanding())
	s.Report(k.acked, 0, false)
	check("all acknowledged, session closed: another may hear more", 99, 50, true)
}

// TestMarkAfterStop: a stream that has stopped vouches for what it had sent, and
// for nothing that came later, until another sender does.
func TestMarkAfterStop(t *testing.T) {
	stopped := func(t *testing.T) (*Stream, *broker) {
		s, k := newStream(1<<20), &broker{}
		s.Append(hold.Opened, 1, 10, nil)
		s.SetWanted(true, 1, false)
		appendN(t, s, 20, 30)
		pump(s, k, 100)
		k.ack(3)
		s.Report(k.acked, uint64(k.outstanding()), false)
		s.SetWanted(false, 1, false)
		return s, k
	}
	check := func(t *testing.T, s *Stream, want int64, wantOK bool) {
		t.Helper()
		if got, ok := s.Mark(90); got != want || ok != wantOK {
			t.Errorf("mark %d %v, want %d %v", got, ok, want, wantOK)
		}
	}
	s, k := stopped(t)
	check(t, s, 22, true)
	k.ack(4)
	s.Report(k.acked, uint64(k.outstanding()), false)
	check(t, s, 26, true)
	appendN(t, s, 40, 50)
	k.ack(k.outstanding())
	s.Report(k.acked, 0, false)
	check(t, s, 29, true) // what came at 40 is another's
	s.Trim(60, 28, 0, 0)
	check(t, s, 29, true)
	s.Trim(60, 29, 0, 0)
	check(t, s, 0, false)

	t.Run("a failure", func(t *testing.T) {
		s, k := stopped(t)
		s.Report(k.acked, 0, true)
		check(t, s, 22, true)
	})
	t.Run("forgotten without a word", func(t *testing.T) {
		s, k := stopped(t)
		s.MakeRoom()
		k.ack(k.outstanding())
		s.Report(k.acked, 0, false)
		check(t, s, 22, true)
	})
	t.Run("it sends again", func(t *testing.T) {
		s, _ := stopped(t)
		s.SetWanted(true, 2, false)
		check(t, s, 22, true)
	})
	t.Run("it never sent", func(t *testing.T) {
		s := newStream(1 << 20)
		appendN(t, s, 1, 10)
		s.SetWanted(true, 1, false)
		s.SetWanted(false, 1, false)
		check(t, s, 0, false)
	})
}

// TestMarkOfANewSession: a stream that stops before anything of its session is in
// Kafka vouches for nothing; it never heard what was said before.
func TestMarkOfANewSession(t *testing.T) {
	s, k := newStream(1<<20), &broker{}
	s.Append(hold.Opened, 1, 10, nil)
	appendN(t, s, 20, 30)
	s.SetWanted(true, 1, false)
	pump(s, k, 100)
	if mark, ok := s.Mark(40); ok {
		t.Errorf("sending: mark %d", mark)
	}
	s.SetWanted(false, 1, false)
	k.sent = k.sent[:0]
	s.Report(k.acked, 0, true)
	if mark, ok := s.Mark(40); ok {
		t.Errorf("stopped: mark %d", mark)
	}
}

// TestFull says what happens when the memory is used up.
func TestFull(t *testing.T) {
	body := make([]byte, 1000)
	body[0] = 1
	t.Run("a standby drops the oldest", func(t *testing.T) {
		s := newStream(1 << 20)
		for i := range int64(5000) {
			if !s.Append(hold.Message, 1, i, body) {
				t.Fatalf("append %d refused", i)
			}
		}
		n, _, oldest := s.Held()
		if oldest != int64(5000-n) || s.Counters().Dropped != uint64(5000-n) {
			t.Errorf("held %d, oldest %d, counters %+v", n, oldest, s.Counters())
		}
	})
	t.Run("first what is under the mark without the margin", func(t *testing.T) {
		s := newStream(1 << 20)
		for i := range int64(500) {
			s.Append(hold.Message, 1, i, body)
		}
		s.Trim(500, 400, 1000, 0)
		for i := range int64(650) {
			s.Append(hold.Message, 1, 500+i, body)
		}
		if c := s.Counters(); c.Dropped != 0 || c.FreedMark != 400 {
			t.Errorf("counters %+v", c)
		}
	})
	t.Run("without any sender the router waits", func(t *testing.T) {
		s := newStream(1 << 20)
		s.SetCovered(false)
		n := int64(0)
		for s.Append(hold.Message, 1, n, body) {
			n++
		}
		if c := s.Counters(); c.Dropped != 0 {
			t.Errorf("dropped %d", c.Dropped)
		}
		s.SetCovered(true)
		if !s.Append(hold.Message, 1, n, body) {
			t.Error("still waits although another sends")
		}
	})
	t.Run("a sender makes the router wait", func(t *testing.T) {
		s, k := newStream(1<<20), &broker{}
		s.Append(hold.Opened, 1, 0, nil)
		s.SetWanted(true, 1, false)
		n := int64(0)
		for s.Append(hold.Message, 1, n, body) {
			n++
		}
		for k.acked < uint64(n)/2 {
			pump(s, k, 100)
			k.ack(k.outstanding())
			s.Report(k.acked, 0, false)
		}
		if !s.Append(hold.Message, 1, n, body) {
			t.Error("no room after acknowledgements")
		}
		if c := s.Counters(); c.Dropped != 0 {
			t.Errorf("dropped %d", c.Dropped)
		}
	})
}

// TestReplayedFlag: what a standby held goes out first, marked.
func TestReplayedFlag(t *testing.T) {
	s, k := newStream(1<<20), &broker{}
	s.Append(hold.Opened, 1, 0, nil)
	appendN(t, s, 1, 10)
	s.SetWanted(true, 1, true)
	appendN(t, s, 10, 20)
	pump(s, k, 1000)
	k.ack(k.outstanding())
	for i, f := range k.flags {
		want := byte(record.FlagShared)
		if i < 10 {
			want |= record.FlagReplayed
		}
		if f != want {
			t.Errorf("record %d has flags %b, want %b", i, f, want)
		}
	}
}

// TestUnbroken: the number stays while Kafka is sure to get all that is appended
// and nothing of others, and changes with whatever ends that.
func TestUnbroken(t *testing.T) {
	body := make([]byte, 1000)
	body[0] = 1
	s, k := newStream(1<<20), &broker{}
	last, ok := s.Unbroken()
	if ok {
		t.Error("a stream that does not send vouches")
	}
	step := func(what string, changes, vouches bool, f func()) {
		t.Helper()
		f()
		now, ok := s.Unbroken()
		if changed := now != last; changed != changes || ok != vouches {
			t.Errorf("%s: changed %t, vouches %t; want %t, %t", what, changed, ok, changes, vouches)
		}
		last = now
	}
	step("begin to send", true, true, func() { s.SetWanted(true, 1, false) })
	step("append", false, true, func() { s.Append(hold.Opened, 1, 0, nil); appendN(t, s, 1, 10) })
	step("a failure", false, true, func() {
		pump(s, k, 1000)
		k.ack(3)
		s.Report(k.acked, 0, true)
	})
	step("another round of the same", false, true, func() { s.SetWanted(true, 1, false) })
	step("another may send", true, false, func() { s.SetWanted(true, 1, true) })
	step("alone again", false, true, func() { s.SetWanted(true, 1, false) })
	step("something did not find its way in", true, true, s.Lost)
	step("stop", true, false, func() { s.SetWanted(false, 1, false) })
	step("free what the other has sent", false, false, func() { s.Trim(100, 100, 0, 0) })
	step("free what may have been sent by nobody", true, false, func() {
		appendN(t, s, 100, 110)
		s.Trim(1000, -1, 0, 500)
	})
	step("drop", true, false, func() {
		for i := range int64(5000) {
			s.Append(hold.Message, 1, 1000+i, body)
		}
	})
}

// TestGround: a session that opens again can be compared with what was said before
// only if this stream alone sent all of it, and has sent since.
func TestGround(t *testing.T) {
	for _, test := range []struct {
		name string
		// before the session that is compared with, in it, and until the next
		before, within, after func(s *Stream)
		cut                   bool // it ended before its dump did
		want                  bool
	}{
		{name: "a sender throughout", before: send, want: true},
		{name: "a standby", want: false},
		{name: "a sender since the session", within: send, want: true},
		{name: "a sender since the session ended", after: send, want: false},
		{name: "stopped within and sends again", before: send, within: both(stop, send), want: true},
		{name: "stopped afterwards and sends again", before: send, after: both(stop, send), want: false},
		{name: "another may have sent afterwards", before: send, after: both(share, send), want: false},
		{name: "the session did not say all", before: send, cut: true, want: false},
		{name: "something was lost on the way", before: send, after: (*Stream).Lost, want: false},
		{name: "something was lost within", before: send, within: (*Stream).Lost, want: false},
		{name: "lost before", before: both(send, (*Stream).Lost), want: true},
		{name: "another may have sent within", before: send, within: both(share, send), want: false},
		{name: "another may have sent until within", before: share, within: send, want: false},
		{name: "spoke beside another, then held and sends within", before: both(share, stop), within: send, want: false},
		{name: "spoke beside another, and all of it again alone", before: both(share, send), want: true},
	} {
		s := newStream(1 << 20)
		var g Ground
		do := func(f func(*Stream)) {
			if f != nil {
				f(s)
			}
		}
		do(test.before)
		g.Opened(s)
		if g.Holds(s) {
			t.Errorf("%s: holds in the first session", test.name)
		}
		do(test.within)
		g.Closed(s, !test.cut)
		do(test.after)
		g.Opened(s)
		if g.Holds(s) != test.want {
			t.Errorf("%s: holds %t, want %t", test.name, !test.want, test.want)
		}
		// A session that is compared need not come to its end.
		g.Closed(s, false)
		g.Opened(s)
		if g.Holds(s) != test.want {
			t.Errorf("%s: holds %t after a further session that was cut, want %t", test.name, !test.want, test.want)
		}
		stop(s)
		if g.Holds(s) {
			t.Errorf("%s: holds of a stream that does not send", test.name)
		}
	}
}

func send(s *Stream)  { s.SetWanted(true, 1, false) }
func share(s *Stream) { s.SetWanted(true, 1, true) }
func stop(s *Stream)  { s.SetWanted(false, 1, false) }

func both(f, g func(*Stream)) func(*Stream) { return func(s *Stream) { f(s); g(s) } }

// TestSharedEnds: what came in while another collector could send as well is
// marked, also when it goes out only after that.
func TestSharedEnds(t *testing.T) {
	s, k := newStream(1<<20), &broker{}
	s.SetWanted(true, 1, true)
	s.Append(hold.Opened, 1, 0, nil)
	appendN(t, s, 1, 10)
	s.SetWanted(true, 1, false)
	appendN(t, s, 10, 20)
	pump(s, k, 1000)
	k.ack(k.outstanding())
	for i, f := range k.flags {
		want := byte(0)
		if i < 10 {
			want = record.FlagReplayed
		}
		if f != want {
			t.Errorf("record %d has flags %b, want %b", i, f, want)
		}
	}
}

// TestRollbackInsideAMessage: records of a message that Kafka has are not sent
// again when the rest of the message fails.
func TestRollbackInsideAMessage(t *testing.T) {
	s, k := newStream(1<<20), &broker{}
	s.Append(hold.Opened, 1, 0, nil)
	s.Append(hold.Message, 1, 1, []byte{5})
	s.SetWanted(true, 1, false)
	pump(s, k, 100)
	for _, acks := range []int{1, 2, 1, 1, 1} { // open, then 2+1+1+1 of the message
		k.ack(acks)
		k.sent = k.sent[:k.acked-k.base]
		s.Report(k.acked, 0, true)
		pump(s, k, 100)
	}
	if len(k.topic) != 6 {
		t.Fatalf("%d records in Kafka, want 6", len(k.topic))
	}
	for i := range 5 {
		if k.topic[1+i][0] != byte(i) {
			t.Errorf("record %d of the message has index %d", i, k.topic[1+i][0])
		}
	}
}

func BenchmarkStream(b *testing.B) {
	s := newStream(1 << 30)
	s.Append(hold.Opened, 1, 0, nil)
	s.SetWanted(true, 1, false)
	s.Start()
	body := make([]byte, 130)
	body[0] = 1
	var batch record.Batch
	b.ReportAllocs()
	for i := range b.N {
		s.Append(hold.Message, 1, int64(i), body)
		if i%500 == 499 && s.Begin() {
			batch.Reset()
			s.Fill(&batch, 1000, 1<<20, 0)
			pos, _ := s.End(batch.Len())
			s.Handed(batch.Len())
			s.Report(pos+uint64(batch.Len()), 0, false)
		}
	}
}
