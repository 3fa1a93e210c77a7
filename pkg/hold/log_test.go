package hold

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
)

// model is the obvious log: a slice.
type model struct {
	entries []Entry
	tail    int
}

func (m *model) check(t *testing.T, l *Log) {
	t.Helper()
	if got, want := l.Len(), len(m.entries)-m.tail; got != want {
		t.Fatalf("Len = %d, want %d", got, want)
	}
	c := l.Tail()
	l.Sync(&c)
	var bytesHeld int64
	for _, want := range m.entries[m.tail:] {
		got, ok := c.Next(l.End())
		if !ok {
			t.Fatalf("log ends before position %d", want.Pos)
		}
		if got.Kind != want.Kind || got.Session != want.Session || got.Pos != want.Pos ||
			got.Arrival != want.Arrival || !bytes.Equal(got.Body, want.Body) {
			t.Fatalf("entry at %d = %+v, want %+v", want.Pos, got, want)
		}
		bytesHeld += int64(len(want.Body))
	}
	if e, ok := c.Next(l.End()); ok {
		t.Fatalf("log goes on with %+v", e)
	}
	if l.Bytes() != bytesHeld {
		t.Fatalf("Bytes = %d, want %d", l.Bytes(), bytesHeld)
	}
}

// TestLogIsAQueue compares logs with a plain slice under random use, with
// bodies from nothing to larger than a chunk.
func TestLogIsAQueue(t *testing.T) {
	for seed := range uint64(15) {
		r := rand.New(rand.NewPCG(seed, 1))
		b := NewBudget(64 << 20)
		l := NewLog(b)
		m := &model{}
		c := l.Tail()
		for range 300 {
			for range r.IntN(40) {
				size := r.IntN(300)
				if r.IntN(50) == 0 {
					size = r.IntN(3 * maxChunk)
				}
				e := Entry{Kind: Kind(r.IntN(3)), Session: r.Uint32(), Pos: l.End(), Arrival: r.Int64(), Body: make([]byte, size)}
				for i := 0; i < len(e.Body); i += 1 + r.IntN(1000) {
					e.Body[i] = byte(r.Uint32())
				}
				if !l.Append(e.Kind, e.Session, e.Arrival, e.Body) {
					t.Fatalf("seed %d: no room with %d of %d bytes used", seed, b.Used(), b.Limit())
				}
				m.entries = append(m.entries, e)
			}
			for range r.IntN(45) {
				if m.tail == len(m.entries) {
					break
				}
				l.Free()
				m.tail++
			}
			// A cursor kept across appends and frees goes on where it was,
			// or at the tail if that has passed it.
			l.Sync(&c)
			want := max(c.Pos(), uint64(m.tail))
			for range r.IntN(60) {
				e, ok := c.Next(l.End())
				if ok != (want < l.End()) || ok && e.Pos != want {
					t.Fatalf("seed %d: kept cursor read position %d (%v), want %d of %d", seed, e.Pos, ok, want, l.End())
				}
				if !ok {
					break
				}
				if !bytes.Equal(e.Body, m.entries[e.Pos].Body) {
					t.Fatalf("seed %d: body at %d differs", seed, e.Pos)
				}
				want++
			}
			m.check(t, l)
		}
		l.Close()
		if b.Used() != 0 {
			t.Fatalf("seed %d: %d bytes still used after Close", seed, b.Used())
		}
	}
}

func fill(l *Log, size int) (n int) {
	body := make([]byte, size)
	for l.Append(Message, 1, int64(n), body) {
		n++
	}
	return n
}

// TestBudget says who gets how much.
func TestBudget(t *testing.T) {
	const limit = 8 << 20
	t.Run("one log gets all of it", func(t *testing.T) {
		b := NewBudget(limit)
		fill(NewLog(b), 100)
		if b.Used() > limit || b.Used() < limit-maxChunk {
			t.Errorf("used %d of %d", b.Used(), limit)
		}
	})
	t.Run("a greedy log leaves the others their share", func(t *testing.T) {
		b := NewBudget(limit)
		greedy := NewLog(b)
		var others []*Log
		for range 3 {
			others = append(others, NewLog(b))
		}
		fill(greedy, 1000)
		for i, l := range others {
			fill(l, 1000)
			if l.Bytes() < b.Share()*3/4 {
				t.Errorf("log %d holds %d bytes, its share is %d", i, l.Bytes(), b.Share())
			}
		}
		if b.Used() > limit {
			t.Errorf("used %d of %d", b.Used(), limit)
		}
	})
	t.Run("what is freed can be used by another", func(t *testing.T) {
		b := NewBudget(limit)
		first, second := NewLog(b), NewLog(b)
		fill(first, 1000)
		fill(second, 1000)
		before := second.Len()
		for first.Len() > 0 {
			first.Free()
		}
		fill(second, 1000)
		if second.Len() <= before {
			t.Errorf("second log did not grow beyond %d entries", before)
		}
	})
	t.Run("the end of a session always has room", func(t *testing.T) {
		b := NewBudget(limit)
		l := NewLog(b)
		for size := 1000; size > 0; size /= 2 {
			fill(l, size)
		}
		fill(l, 0)
		if !l.Append(Closed, 1, 0, nil) {
			t.Error("refused")
		}
	})
	t.Run("a router can always be heard", func(t *testing.T) {
		b := NewBudget(10)
		if l := NewLog(b); !l.Append(Opened, 1, 0, nil) {
			t.Error("empty log refused its first entry")
		}
	})
}

// TestIdleLogsAreSmall: what an idle router costs.
func TestIdleLogsAreSmall(t *testing.T) {
	b := NewBudget(1 << 30)
	for range 1000 {
		l := NewLog(b)
		for range 10000 {
			l.Append(Message, 1, 0, make([]byte, 100))
		}
		for l.Len() > 0 {
			l.Free()
		}
	}
	if per := b.Used() / 1000; per > 4*minChunk {
		t.Errorf("an idle log costs %d bytes", per)
	}
}

func BenchmarkAppendNextFree(b *testing.B) {
	for _, size := range []int{130, 4000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			l := NewLog(NewBudget(1 << 30))
			body := make([]byte, size)
			c := l.Tail()
			b.ReportAllocs()
			b.SetBytes(int64(size))
			var read int
			for i := range b.N {
				l.Append(Message, 1, int64(i), body)
				if l.Len() == 1000 {
					l.Sync(&c)
					for {
						e, ok := c.Next(l.End())
						if !ok {
							break
						}
						read += len(e.Body)
					}
					for l.Len() > 0 {
						l.Free()
					}
				}
			}
		})
	}
}

// BenchmarkHeldPerByte prints what a standby holds for each byte it received,
// with messages of 130 bytes (measured average of unicast Route Monitoring).
func BenchmarkHeldPerByte(b *testing.B) {
	budget := NewBudget(1 << 40)
	l := NewLog(budget)
	body := make([]byte, 130)
	for range b.N {
		l.Append(Message, 1, 0, body)
	}
	b.ReportMetric(float64(budget.Used())/float64(l.Bytes()), "held-B/received-B")
}
