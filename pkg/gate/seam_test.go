package gate

import (
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/bmpha/bmpha/pkg/hold"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/seam"
)

// identify takes the second byte of a message for the key and all of a value, but
// for the flags in it, for the value.
func identify(_ *hold.Entry, b *record.Batch, i int) (w seam.Word, ok bool) {
	v := b.Value(i)
	h := fnv.New64a()
	h.Write(v[:1])
	h.Write(v[2:])
	if len(v) > 11 {
		w.Key = uint64(v[11])
	}
	w.Value = h.Sum64()
	return w, true
}

func newHeir(open func() Codec) *Stream {
	return New(Config{
		ID: 8, Await: true, Identify: identify,
		Open: func(uint32, []byte) Codec { return open() },
	}, hold.NewLog(hold.NewBudget(64<<20)))
}

// tail reads back what the broker has from record number from on.
func (k *broker) tail(from int) *seam.Tail {
	t := new(seam.Tail)
	for i, v := range k.topic[from:] {
		var b record.Batch
		b.Data = append(append(append(b.Data, v[0]), 0), v[1:]...)
		b.Recs = append(b.Recs, record.Rec{ValueLen: uint32(len(b.Data))})
		w, _ := identify(nil, &b, 0)
		t.Add(w, int64(i))
	}
	return t
}

// join scans the stream in steps, aligns it and lets it start.
func join(s *Stream, k *broker, from, step int) *seam.Plan {
	var own seam.Own
	var b record.Batch
	for !s.Scan(&own, &b, step) {
	}
	p := seam.Align(&own, k.tail(from), s.From(), seam.Hint{Dumped: -1e12})
	s.Join(p)
	return p
}

// TestTakeover: one stream sends and dies somewhere, another goes on. Kafka has
// everything once and in order, and nothing is flagged, whatever had been
// acknowledged, whatever the heir had forgotten on the sender's word, and however
// often sending fails.
func TestTakeover(t *testing.T) {
	for seed := range uint64(400) {
		rng := rand.New(rand.NewPCG(seed, 3))
		k := &broker{}
		open := func() Codec { return &countCodec{} }
		a, b := newHeir(open), newHeir(open)
		var want []string
		state := countCodec{}
		now := int64(0)
		add := func(kind hold.Kind, body []byte) {
			now += int64(rng.IntN(1000))
			a.Append(kind, 1, now, body)
			b.Append(kind, 2, now, body)
			var batch record.Batch
			switch o := (record.Origin{}); kind {
			case hold.Opened:
				state = countCodec{}
				state.Open(&batch, &o, 0)
			case hold.Message:
				_ = state.Message(&batch, &o, 0, body)
			case hold.Closed:
				state.Close(&batch, &o, 0)
			}
			for i := range batch.Len() {
				v := batch.Value(i)
				want = append(want, string(append(v[:1:1], v[2:]...)))
			}
		}
		work := func(s *Stream, n int) {
			for range n {
				switch rng.IntN(8) {
				case 0, 1, 2:
					add(hold.Message, []byte{byte(rng.IntN(4)), byte(rng.IntN(3))})
				case 3, 4:
					pump(s, k, 1+rng.IntN(6))
				case 5, 6:
					if n := k.outstanding(); n > 0 {
						k.ack(1 + rng.IntN(n))
						s.Report(k.acked, uint64(k.outstanding()), false)
					}
				case 7:
					if rng.IntN(4) == 0 && s.State() == Sending {
						s.Report(k.acked, 0, true)
						k.sent = k.sent[:k.acked-k.base]
					}
				}
			}
		}
		a.SetWanted(true, 1, false)
		if pos, ok := a.Start(); ok {
			t.Fatalf("started at %d without knowing what Kafka has", pos)
		}
		a.Join(nil)
		add(hold.Opened, nil)
		work(a, 100)
		if mark, ok := a.Mark(now); ok { // forget less than the mark allows
			b.Trim(now, mark, int64(rng.IntN(20000)), 0)
		}
		from := 0 // Kafka is read from further back than what is held
		if n := len(k.topic); n > 0 && rng.IntN(2) == 0 {
			held, _, _ := b.Held()
			from = max(0, n-4*held-8)
		}
		k.sent = k.sent[:k.acked-k.base] // a dies with what it had under way
		flagged := len(k.topic)
		b.SetWanted(true, 2, false)
		add(hold.Message, []byte{1, 2})
		p := join(b, k, from, 1+rng.IntN(20))
		if !b.Wanted() || b.Awaits() {
			t.Fatalf("seed %d: does not start", seed)
		}
		if p.Doubtful > 0 && from > 0 {
			t.Logf("seed %d: %d in doubt", seed, p.Doubtful)
		}
		work(b, 50)
		for range 1000 {
			pump(b, k, 5)
			k.ack(k.outstanding())
			b.Report(k.acked, 0, false)
		}
		if n, _, _ := b.Held(); n != 0 {
			t.Fatalf("seed %d: still holds %d", seed, n)
		}
		for i := range min(len(want), len(k.topic)) {
			if string(k.topic[i]) != want[i] {
				t.Fatalf("seed %d: record %d is %q, want %q (takeover at %d)", seed, i, k.topic[i], want[i], flagged)
			}
		}
		if len(k.topic) != len(want) {
			t.Fatalf("seed %d: %d records, want %d", seed, len(k.topic), len(want))
		}
		c := b.Counters()
		if c.Received != c.Acknowledged+c.FreedMark+c.FreedWindow+c.Dropped {
			t.Fatalf("seed %d: %+v", seed, c)
		}
	}
}

// TestWithoutPlan: if Kafka cannot be asked, all that was held is sent, flagged.
func TestWithoutPlan(t *testing.T) {
	k := &broker{}
	s := newHeir(func() Codec { return &countCodec{} })
	s.Append(hold.Opened, 1, 1, nil)
	s.Append(hold.Message, 1, 2, []byte{1, 1})
	s.SetWanted(true, 2, false)
	s.Join(nil)
	s.Append(hold.Message, 1, 3, []byte{1, 2})
	pump(s, k, 10)
	k.ack(k.outstanding())
	if len(k.flags) != 3 || k.flags[0]&k.flags[1]&record.FlagReplayed == 0 || k.flags[2] != 0 {
		t.Errorf("flags %v", k.flags)
	}
}

// TestScanStartsOver: a log that was freed beyond what was scanned is listed anew,
// with the state that its tail has.
func TestScanStartsOver(t *testing.T) {
	s := newHeir(func() Codec { return &countCodec{} })
	var own seam.Own
	var b record.Batch
	s.Append(hold.Opened, 1, 1, nil)
	for i := range int64(10) {
		s.Append(hold.Message, 1, 2+i, []byte{1, 1})
	}
	if s.Scan(&own, &b, 6) || own.End() != 3 { // each is an entry and a record
		t.Fatalf("listed up to %d", own.End())
	}
	s.Trim(20, 8, 0, 0) // the opening and six messages
	for !s.Scan(&own, &b, 3) {
	}
	if own.End() != 11 {
		t.Fatalf("listed up to %d", own.End())
	}
	k := &broker{topic: [][]byte{
		// record 0 of the eighth message of the session: seven were passed before
		{0, 0, 0, 0, 0, 0, 0, 0, 8, 1, 1},
	}}
	if p := seam.Align(&own, k.tail(0), s.From(), seam.Hint{Dumped: -1e12}); p.Skipped != 2 || p.Fresh+p.Doubtful != 2 {
		t.Errorf("%d skipped, %d in doubt, %d fresh", p.Skipped, p.Doubtful, p.Fresh)
	}
}

// TestAhead: what others had sent before it came here is flagged when it comes, once,
// and no more when it comes long after.
func TestAhead(t *testing.T) {
	for _, tt := range []struct {
		name  string
		after int64 // µs until the words come
		again bool  // the stream joins anew first, behind itself
		want  []byte
	}{
		{"soon", 5_000_000, false, []byte{0, record.FlagReplayed, record.FlagReplayed, 0, 0}},
		{"long after", aheadMost + 1, false, []byte{0, 0, 0, 0, 0}},
		{"behind another seam", 5_000_000, true, []byte{0, 0, 0, 0, 0}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			const now = 1000
			bodies := [][]byte{{1, 1, 1}, {1, 2, 1}, {1, 3, 1}, {1, 2, 2}, {1, 2, 1}}
			var ahead seam.Tail // as the session of another has said it
			codec := countCodec{}
			for i, body := range bodies[:3] {
				var b record.Batch
				_ = codec.Message(&b, &record.Origin{}, 0, body)
				if w, _ := identify(nil, &b, 0); i > 0 {
					ahead.Add(w, now)
				}
			}
			k := &broker{}
			s := newHeir(func() Codec { return &countCodec{} })
			s.Append(hold.Opened, 1, 1, nil)
			s.SetWanted(true, 2, false)
			var own seam.Own
			var b record.Batch
			join := func(t *seam.Tail) {
				s.Scan(&own, &b, 100)
				s.Join(seam.Align(&own, t, s.From(), seam.Hint{}))
			}
			join(&ahead)
			if tt.again {
				s.Again()
				join(new(seam.Tail))
			}
			for i, body := range bodies {
				s.Append(hold.Message, 1, now+tt.after+int64(i), body)
			}
			for range 10 {
				pump(s, k, 2)
				k.ack(k.outstanding())
				s.Report(k.acked, 0, false)
			}
			if got := k.flags[1:]; !slices.Equal(got, tt.want) {
				t.Errorf("flags %v, want %v", got, tt.want)
			}
		})
	}
}

// TestBesideMemory: while another may send as well what Kafka has is kept, as long as
// there is room; and given up before a router has to wait.
func TestBesideMemory(t *testing.T) {
	const limit = 1 << 20
	s, k := New(Config{
		ID: 8, Await: true, Beside: 3600e6, Identify: identify,
		Open: func(uint32, []byte) Codec { return &countCodec{} },
	}, hold.NewLog(hold.NewBudget(limit))), &broker{}
	s.SetWanted(true, 1, true)
	s.Join(nil)
	s.Append(hold.Opened, 1, 1, nil)
	most := int64(0)
	for i := range int64(2 * limit / 100) {
		if !s.Append(hold.Message, 1, i, append([]byte{1, byte(i)}, make([]byte, 98)...)) {
			t.Fatalf("message %d has to wait", i)
		}
		pump(s, k, 10)
		k.ack(k.outstanding())
		s.Report(k.acked, 0, false)
		_, held, _ := s.Held()
		most = max(most, held)
	}
	if most < limit/4 || most > 3*limit/4 {
		t.Errorf("%d bytes were kept at most, of %d", most, limit)
	}
	s.SetWanted(true, 1, false)
	s.Join(nil)
	pump(s, k, 1<<20)
	k.ack(k.outstanding())
	s.Report(k.acked, 0, false)
	for range 1000 {
		pump(s, k, 1<<20)
		k.ack(k.outstanding())
		s.Report(k.acked, 0, false)
	}
	if n, _, _ := s.Held(); n != 0 {
		t.Errorf("%d entries are kept though nobody else sends", n)
	}
}

// TestBeside: two streams send at the same time, and one of them stops in the middle,
// behind the other: the last word about some keys is an old one. The one that goes on
// mends that, and repeats nothing else.
func TestBeside(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 4))
		var topic [][]byte
		type side struct {
			s *Stream
			k *broker
		}
		var a, b side
		for _, x := range []*side{&a, &b} {
			*x = side{s: New(Config{
				ID: 8, Await: true, Beside: 1_000_000, Identify: identify,
				Open: func(uint32, []byte) Codec { return &countCodec{} },
			}, hold.NewLog(hold.NewBudget(64<<20))), k: &broker{}}
			x.s.SetWanted(true, 1, true)
			x.s.Join(nil)
		}
		now := int64(0)
		last := map[byte]string{}
		state := countCodec{}
		add := func() {
			now += int64(rng.IntN(20000))
			kind, body := hold.Message, []byte{1, byte(rng.IntN(6)), byte(rng.IntN(200))}
			if now < 20000 {
				kind, body = hold.Opened, nil
			}
			a.s.Append(kind, 1, now, body)
			b.s.Append(kind, 1, now, body)
			var batch record.Batch
			if kind == hold.Message {
				_ = state.Message(&batch, &record.Origin{}, 0, body)
				v := batch.Value(0)
				last[body[1]] = string(append(v[:1:1], v[2:]...))
			}
		}
		for now < 20000 {
			now = 0
			add()
			now = 20000
		}
		ack := func(x *side, n int) {
			had := len(x.k.topic)
			x.k.ack(n)
			topic = append(topic, x.k.topic[had:]...)
			x.s.Report(x.k.acked, uint64(x.k.outstanding()), false)
		}
		for range 300 {
			x := &a
			if rng.IntN(4) == 0 { // b is behind
				x = &b
			}
			switch rng.IntN(3) {
			case 0:
				add()
			case 1:
				pump(x.s, x.k, 1+rng.IntN(8))
			case 2:
				if n := x.k.outstanding(); n > 0 {
					ack(x, 1+rng.IntN(n))
				}
			}
		}
		b.s.SetWanted(false, 1, false)
		ack(&b, b.k.outstanding())
		a.s.SetWanted(true, 1, false)
		ack(&a, a.k.outstanding())
		if !a.s.Awaits() {
			t.Fatalf("seed %d: %v goes on without a look", seed, a.s.State())
		}
		before, held := len(topic), a.s.log.Len()
		tail := broker{topic: topic}
		p := join(a.s, &tail, max(0, before-4*held), 7)
		for range 300 {
			pump(a.s, a.k, 5)
			ack(&a, a.k.outstanding())
		}
		if n, _, _ := a.s.Held(); n != 0 {
			t.Fatalf("seed %d: still holds %d", seed, n)
		}
		got := map[byte]string{}
		for _, v := range topic {
			if len(v) > 10 {
				got[v[10]] = string(v)
			}
		}
		for key, v := range last {
			if got[key] != v {
				t.Fatalf("seed %d: key %d ends with %x, want %x (%d skipped, %d in doubt, %d fresh)", seed, key, got[key], v, p.Skipped, p.Doubtful, p.Fresh)
			}
		}
	}
}
