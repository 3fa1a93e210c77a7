package seam

import (
	"math/rand/v2"
	"strings"
	"testing"
)

// tell adds the words of text, each a letter for the key and one for the value, and
// a colon if it is Anew.
func tell(text string, add func(Word)) {
	for _, w := range strings.Fields(text) {
		word := Word{Key: uint64(w[0]), Value: uint64(w[1]), Anew: strings.HasSuffix(w, ":")}
		switch w[0] { // u voids p and x, v voids q; s voids all, and so do others
		case 'p', 'x', 'u':
			word.Scope = 'u'
		case 'q', 'v':
			word.Scope = 'v'
		}
		add(word)
	}
}

func tailOf(text string) *Tail {
	t := new(Tail)
	at := int64(0)
	tell(text, func(w Word) { at++; t.Add(w, at) })
	return t
}

// ownOf lists an entry for each word, from position 10 on.
func ownOf(text string) *Own {
	o := new(Own)
	o.Reset(10)
	tell(text, func(w Word) { o.Entry(); o.Add(w, 0) })
	return o
}

// dumped says that sessions had told all long ago.
var dumped = Hint{Dumped: -1e12}

// sent names what a plan sends, with a question mark where it is in doubt.
func sent(p *Plan, text string) string {
	var out []string
	for i, w := range strings.Fields(text) {
		pos := uint64(10 + i)
		if !p.Covers(pos) {
			continue
		}
		n, skipped, doubt := p.Entry(pos)
		switch {
		case n != 1:
			out = append(out, "!")
		case skipped == 1 && p.Skip(pos, 0):
		case doubt:
			out = append(out, w+"?")
		default:
			out = append(out, w)
		}
	}
	return strings.Join(out, " ")
}

// TestAlign (all is said at one time, so what comes back may be what Kafka has):
// what Kafka has at its end, what is held, and what is sent of it. A
// word is a key and a value; with a colon it voids what was said before.
func TestAlign(t *testing.T) {
	for _, tt := range []struct{ name, kafka, held, sent string }{
		{"nothing in Kafka", "", "p1 q1", "p1 q1"},
		{"nothing held", "p1", "", ""},
		{"all is there", "p1 q1 p2", "p1 q1 p2", ""},
		{"the last words are not", "p1 q1", "p1 q1 p2 q2", "p2 q2"},
		{"another order of the keys", "q1 p1 q2", "p1 q1 p2 q2", "p2"},
		{"Kafka was read from further back", "p7 p8 p9 p1", "p9 p1 p2", "p2"},
		{"a value that was left out there", "p1 p3", "p1 p2 p3 p4", "p4"},
		{"a value that was left out here", "p1 p2 p3", "p1 p3 p4", "p4"},
		{"Kafka is not heard of here", "p1 p9", "p1 p2", "p1? p2?"},
		{"of one key only", "p9 q1", "p1 q1 q2", "p1? q2"},
		{"a key that Kafka has not", "p1", "p1 q1", "q1"},
		{"a flap", "p1", "p1 p0 p1", "p0 p1?"},
		{"a flap that Kafka has half", "p1 p0", "p1 p0 p1", "p1?"},
		{"a flap that Kafka has", "p1 p0 p1", "p1 p0 p1", ""},
		{"flaps, read from further back", "p2 p1 p0 p1", "p1 p0 p1 p0 p1", "p0? p1?"},
		{"what is held goes on where Kafka ends", "p2 p1 p0", "p0 p2", "p2?"},
		{"the same word again and again", "p1 p1", "p1 p1 p1", "p1?"},
		{"and more often in Kafka", "p1 p1 p1 p1", "p1 p1", ""},
		{"an old value that comes back", "p1 p2 p3", "p3 p1", "p1?"},
		{"longest common past", "p5 p1 p2", "p9 p2 p4 p1 p2 p3", "p3"},
		{"a peer that came up again and is not in Kafka", "p1", "u2: p1", "u2: p1?"},
		{"or is", "p1 u2:", "p1 u2: p1", "p1?"},
		{"and what was said before is forgotten here", "p1 u2:", "u2: p1", "p1?"},
		{"and again", "p1 u2: p1", "u2: p1 p2", "p2"},
		{"Kafka was read from before a peer came up", "u1: p1 p2", "p2 p3", "p3"},
		{"the same peer up in both, another only here", "u1: p1 p2", "u1: p1 p2 v1: p2 q2", "v1: p2? q2"},
		{"what was said before is before", "p1 u1: q1", "p1 u1: q1 p1", "p1?"},
		{"a peer up that is not heard here", "p1 u1: p1", "p1 p2", "p2"},
		{"a session begins twice", "s1: u1: p1 s1: u1: p1", "s1: u1: p1 p2", "p2"},
		{"and a third time", "s1: u1: p1 s1: u1: p1", "u1: p1 s1: u1: p1 s1:", "s1:?"},
		{"Kafka's part is too short to tell", "p1", "p0 p1 p2 p1", "p2 p1?"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := Align(ownOf(tt.held), tailOf(tt.kafka), 0, dumped)
			if got := sent(p, tt.held); got != tt.sent {
				t.Errorf("sends %q, want %q", got, tt.sent)
			}
			n := len(strings.Fields(tt.held))
			if p.Skipped+p.Doubtful+p.Fresh != n || strings.Count(tt.sent, "?") != p.Doubtful {
				t.Errorf("counts %d, %d, %d of %d", p.Skipped, p.Doubtful, p.Fresh, n)
			}
		})
	}
}

// TestSilence: a table dump says by silence what is gone. Who has told all of it
// after Kafka's end goes through all of it again.
func TestSilence(t *testing.T) {
	const s = int64(1e6)
	var tail Tail
	var own Own
	own.Reset(0)
	begin := Word{Key: 's', Value: 1, Anew: true}
	tail.Add(begin, 0)
	own.Entry()
	own.Add(begin, 0)
	for i := range uint64(100) {
		tail.Add(Word{Key: i, Value: 1}, int64(i)*s/100)
		if i != 50 {
			own.Entry()
			own.Add(Word{Key: i, Value: 1}, int64(i)*s/100)
		}
	}
	for _, tt := range []struct {
		dumped  int64
		skipped int
	}{{s / 4, 100}, {2 * s, 0}, {0, 0}} {
		if p := Align(&own, &tail, 0, Hint{Dumped: tt.dumped}); p.Skipped != tt.skipped {
			t.Errorf("all was told at %d, Kafka ends at %d: %d skipped, want %d", tt.dumped, tail.senders[0].newest, p.Skipped, tt.skipped)
		}
	}
}

// TestSent: of what was sent from here only that is said again after which another has
// said something older, even if Kafka is not read back to its end.
func TestSent(t *testing.T) {
	words := "s1: u1: p1 q1 x1 p2 q2 r1 p3"
	own := ownOf(words)
	own.Entry()
	own.AddBare()
	for _, tt := range []struct {
		kafka  string // of another
		before string // of ours
		sent   uint64
		want   string
	}{
		{"", words, 9, ""},
		{"", "s1: u1: p1", 9, ""}, // not read to the end
		{"", words, 7, ""},        // not all was acknowledged
		{"", "s1: u1: p1 q1", 4, "x1 p2 q2 r1 p3"},
		{"p2", words, 9, "p3?"},
		{"q1 p2", words, 9, "q2? p3?"},
		{"p1", words, 9, "p3?"}, // p2 is there, the newest has to come behind
		{"p1", words, 7, "p3?"},
		{"p2 p3", words, 9, ""},
		{"p9", words, 9, ""}, // not heard here: it may be newer
		{"p9", words, 7, "p3?"},
	} {
		tail := new(Tail)
		at := int64(0)
		tell(tt.before, func(w Word) { w.Ours = true; at++; tail.Add(w, at) })
		tell(tt.kafka, func(w Word) { at++; tail.Add(w, at) })
		p := Align(own, tail, 0, Hint{Sent: 10 + tt.sent})
		if got := sent(p, words); got != tt.want {
			t.Errorf("%q of ours, %q after it, %d were acknowledged: sends %q, want %q", tt.before, tt.kafka, tt.sent, got, tt.want)
		}
		if _, skipped, _ := p.Entry(19); skipped != 0 {
			t.Error("leaves out what was not sent")
		}
	}
	if p := Align(own, new(Tail), 0, Hint{Sent: 20}); p.Skipped != 10 {
		t.Errorf("%d skipped of 10 that were sent", p.Skipped)
	}
}

// TestBehind: another speaks behind what was sent from here, with a word that was not
// heard here. If times say that it is an older one, the newest comes again.
func TestBehind(t *testing.T) {
	const ms = 1000
	for _, tt := range []struct {
		said int64 // when the router said it, between its words about p at 400 and 900 ms
		want string
	}{
		{100, "p2?"}, // before what is held
		{600, "p2?"},
		{1500, ""},
	} {
		const behind = 3000
		var tail Tail
		own := new(Own)
		own.Reset(10)
		word := func(key, value byte, at int64) Word {
			w := Word{Key: uint64(key), Value: uint64(value)}
			own.Entry()
			own.Add(w, at*ms)
			return w
		}
		var news []Word
		words := ""
		var at []int64
		for i := byte(0); i < 10; i++ {
			now := 200 + 100*int64(i)
			switch now {
			case 400, 900:
				w := word('p', '1'+byte(now/900), now)
				w.Ours = true
				tail.Add(w, now*ms)
				words += " p" + string(rune(w.Value))
			default:
				news, at = append(news, word('a'+i, '1', now)), append(at, now)
				words += " " + string(rune('a'+i)) + "1"
			}
		}
		for i, w := range news { // of the one that is behind: these tell the times
			tail.Add(w, (at[i]+behind)*ms)
		}
		tail.Add(Word{Key: 'p', Value: '9'}, (tt.said+behind)*ms)
		p := Align(own, &tail, 0, Hint{Sent: own.End()})
		if got := sent(p, strings.TrimSpace(words)); got != tt.want {
			t.Errorf("said at %d ms: sends %q, want %q", tt.said, got, tt.want)
		}
	}
}

// TestAhead: what Kafka has of others and was not heard here is known when it comes.
func TestAhead(t *testing.T) {
	for _, tt := range []struct{ kafka, ours, held, ahead string }{
		{"p1 p2 q1", "", "p1", "p2 q1"},
		{"p1 q1", "", "p1 q1 p2", ""},
		{"p1 p2 p3", "", "p2", "p1 p3"},
		{"p9 p1", "", "p1", "p9"},    // or it was left out here
		{"p1 p2 p1", "", "p1", "p2"}, // a value that comes back
		{"p2", "p1", "p1", "p2"},
		{"", "p2", "p1", ""},
		{"u2: p2", "", "p1", "u2: p2"},
	} {
		tail := new(Tail)
		at := int64(0)
		add := func(w Word) { at++; tail.Add(w, at) }
		tell(tt.ours, func(w Word) { w.Ours = true; add(w) })
		tell(tt.kafka, add)
		p := Align(ownOf(tt.held), tail, 0, dumped)
		n := 0
		tell(tt.ahead, func(w Word) {
			n++
			if p.Ahead == nil || !p.Ahead.Take(w) || p.Ahead.Take(w) {
				t.Errorf("Kafka %q behind %q of ours, held %q: %c%c is not ahead, or twice", tt.kafka, tt.ours, tt.held, rune(w.Key), rune(w.Value))
			}
		})
		if p.Ahead != nil && p.Ahead.Len() > 0 || n == 0 && p.Ahead != nil {
			t.Errorf("Kafka %q behind %q of ours, held %q: more is ahead than %q", tt.kafka, tt.ours, tt.held, tt.ahead)
		}
	}
}

// TestFarBehind: the session here is so far behind the one that had sent that nothing
// of what Kafka has at its end was heard. What is held, and what comes until that is
// heard, Kafka has from further back; and of a session that is less far behind what
// was sent before Kafka was read.
func TestFarBehind(t *testing.T) {
	const s = int64(1e6)
	word := func(i int64) Word { return Word{Key: uint64(i), Value: uint64(i)} }
	for _, tt := range []struct {
		behind int64 // tenths of a second
		doubt  int   // words of those that are held
	}{
		{0, 0},
		{3, 0}, // held words are 0.3 s older than those of the other: read back is 0.5 s more
		{8, 3}, // and here 0.8 s
		{40, 15},
	} {
		var tail Tail
		var own Own
		own.Reset(0)
		const now = 100 // tenths: 15 are held, 20 were read back
		for i := int64(now - 20); i < now; i++ {
			tail.Add(word(i), i*s/10)
		}
		for i := int64(now - 15); i < now; i++ {
			own.Entry()
			own.Add(word(i-tt.behind), i*s/10)
		}
		p := Align(&own, &tail, 0, Hint{Since: (now - 20) * s / 10})
		if p.Doubtful != tt.doubt || p.Skipped+p.Doubtful != 15 {
			t.Errorf("%d tenths behind: %d skipped, %d in doubt, %d fresh", tt.behind, p.Skipped, p.Doubtful, p.Fresh)
		}
		ahead := 0
		if tt.behind > 20 && p.Ahead.Take(word(now-1)) { // a table dump says it before what was said earlier
			ahead++
		}
		for i := now - tt.behind; i < now+50; i++ {
			if p.Ahead != nil && p.Ahead.Take(word(i)) {
				ahead++
			}
		}
		if want := int(tt.behind); ahead != want {
			t.Errorf("%d tenths behind: %d words are known when they come, want %d", tt.behind, ahead, want)
		}
	}
}

// TestUnread: where Kafka was not read all comes again, in doubt; of what was sent from
// here the newest word about each key is enough.
func TestUnread(t *testing.T) {
	words := "p1 u1: p2 q1 p3 q2"
	for _, tt := range []struct {
		from, sent uint64
		want       string
	}{
		{0, 0, "p1? u1:? p2? q1? p3? q2?"},
		{10, 13, "u1:? q1? p3? q2?"}, // p2 was sent, and p3 is newer
		{10, 15, "u1:? p3? q2?"},
		{12, 16, "p3? q2?"},
		{10, 99, "u1:? p3? q2?"},
	} {
		p := Unread(ownOf(words), tt.from, tt.sent)
		if got := sent(p, words); got != tt.want {
			t.Errorf("from %d, sent until %d: %q, want %q", tt.from, tt.sent, got, tt.want)
		}
		if n := strings.Count(tt.want, "?"); p.Doubtful != n || p.Sends() != n || p.Fresh != 0 || p.Skipped+n != 6-int(max(tt.from, 10)-10) {
			t.Errorf("from %d, sent until %d: counts %d, %d, %d, %d", tt.from, tt.sent, p.Skipped, p.Doubtful, p.Fresh, p.Sends())
		}
	}
}

// TestLate: a word that comes behind the words of a later sender is not Kafka's last
// one, but those who take it for that are told the newest again.
func TestLate(t *testing.T) {
	for _, tt := range []struct {
		name, before, late, after, want string
		shared                          bool
	}{
		{"late", "p1 p2", "p0", "", "p3", false},
		{"late, and the newest is still to come", "p1", "p0", "", "p2 p3", false},
		{"late, as it is", "p1 p2 p3", "p3", "", "", false},
		{"late, all is in Kafka", "p1 p2 p3", "p2", "", "p3?", false},
		{"late, and spoken after", "p1 p2", "p0", "p3", "", false},
		{"not late, two knew of each other", "p1 p2 p3", "p2", "", "p3?", true},
	} {
		tail := new(Tail)
		at := int64(0)
		tell(tt.before, func(w Word) { w.Token = 2; at++; tail.Add(w, at) })
		tell(tt.late, func(w Word) { w.Token, w.Shared = 1, tt.shared; at++; tail.Add(w, at) })
		tell(tt.after, func(w Word) { w.Token = 2; at++; tail.Add(w, at) })
		words := "p1 p2 p3"
		if got := sent(Align(ownOf(words), tail, 0, dumped), words); got != tt.want {
			t.Errorf("%s: sends %q, want %q", tt.name, got, tt.want)
		}
	}
}

// TestStoodStill: what a process that stood still has read afterwards is known by what
// it says.
func TestStoodStill(t *testing.T) {
	const s = int64(1e6)
	var tail Tail
	var own Own
	own.Reset(0)
	for i := range 100 { // a word each 0.1 s, of which from 2 s to 7 s are read at 7 s
		at := int64(i) * s / 10
		w := Word{Key: uint64(i % 7), Value: uint64(i % 35)}
		if i < 80 {
			tail.Add(w, at+2000)
		}
		if at >= 2*s && at < 7*s {
			at = 7 * s
		}
		own.Entry()
		own.Add(w, at)
	}
	if p := Align(&own, &tail, 20, Hint{Late: 70, LateFrom: 2 * s}); p.Skipped != 60 || p.Fresh+p.Doubtful != 20 {
		t.Errorf("%d skipped, %d fresh, %d in doubt", p.Skipped, p.Fresh, p.Doubtful)
	}
}

// TestTimes: a value that is held several times was in Kafka as long after its
// arrival as others were.
func TestTimes(t *testing.T) {
	const ms = 1000
	for cut := 2; cut <= 8; cut++ {
		var tail Tail
		var own Own
		own.Reset(0)
		for i := range 8 { // p flaps, every 100 ms; q tells how long it takes
			at := int64(i * 100 * ms)
			flap := Word{Key: 'p', Value: uint64(i % 2)}
			news := Word{Key: 'q', Value: uint64(i)}
			if i < cut {
				tail.Add(flap, 5e12+at+(int64(i)%3)*ms)
				tail.Add(news, 5e12+at+2*ms)
			}
			if i >= 1 {
				own.Entry()
				own.Add(flap, at)
				own.Entry()
				own.Add(news, at)
			}
		}
		if p := Align(&own, &tail, 0, Hint{}); p.Fresh != 2*(8-cut) || p.Doubtful != 0 {
			t.Errorf("%d of 8 are in Kafka: %d skipped, %d fresh, %d in doubt", cut, p.Skipped, p.Fresh, p.Doubtful)
		}
	}
}

// TestLoop: a router that says the same again and again, all of it. Only the clocks
// can tell where it is.
func TestLoop(t *testing.T) {
	const ms = 1000
	var tail Tail
	var own Own
	own.Reset(0)
	for i := range 5000 { // a second for each round
		at := int64(i) * ms
		w := Word{Key: uint64(i % 300), Value: uint64(i % 1000)}
		if i < 3700 {
			tail.Add(w, 5e12+at+3*ms)
		}
		own.Entry()
		own.Add(w, at)
	}
	for _, off := range []int64{0, -300 * ms, 300 * ms} {
		if p := Align(&own, &tail, 0, Hint{Delay: 5e12 + off}); p.Skipped != 3700 || p.Fresh != 1300 {
			t.Errorf("clocks that are %d µs off: %d skipped, %d fresh, %d in doubt", off, p.Skipped, p.Fresh, p.Doubtful)
		}
	}
}

// TestEntries: entries of several records, of none, and of records without a key;
// a part of them is gone before they are aligned.
func TestEntries(t *testing.T) {
	o := new(Own)
	o.Reset(100)
	o.Entry() // 100
	o.Add(Word{Key: 'p', Value: '1'}, 0)
	o.Add(Word{Key: 'q', Value: '1'}, 0)
	o.Entry() // 101
	o.Entry() // 102
	o.AddBare()
	o.Add(Word{Key: 'p', Value: '2'}, 0)
	o.Entry() // 103
	o.Add(Word{Key: 'q', Value: '2'}, 0)
	if o.End() != 104 {
		t.Fatalf("end %d", o.End())
	}
	p := Align(o, tailOf("p1 p2"), 101, Hint{})
	if p.Covers(100) || !p.Covers(101) || !p.Covers(103) || p.Covers(104) || p.End() != 104 {
		t.Error("covers the wrong entries")
	}
	for _, tt := range []struct {
		pos              uint64
		records, skipped int
		doubt            bool
	}{{101, 0, 0, false}, {102, 2, 1, true}, {103, 1, 0, false}} {
		if n, skipped, doubt := p.Entry(tt.pos); n != tt.records || skipped != tt.skipped || doubt != tt.doubt {
			t.Errorf("entry %d: %d, %d, %v, want %+v", tt.pos, n, skipped, doubt, tt)
		}
	}
	if p.Skip(102, 0) || !p.Skip(102, 1) {
		t.Error("skips the wrong record")
	}
	if p.Skipped != 1 || p.Doubtful != 1 || p.Fresh != 1 {
		t.Errorf("counts %d, %d, %d", p.Skipped, p.Doubtful, p.Fresh)
	}
}

// TestUnheard: what Kafka was told last and is not held shows that the sender was
// ahead, if it is recent.
func TestUnheard(t *testing.T) {
	tail := tailOf("p1 q1 p2 q2 p3")
	for _, tt := range []struct {
		held   string
		recent int64
		want   int
	}{
		{"p1 q1 p2 q2 p3", 2, 0},
		{"p1 q1 p2 q2", 0, 1},
		{"p1 q1", 1, 2},
		{"p1 q1", 0, 1},
		{"p3", 0, 0},
		{"p3", 4, 1}, // q2; what was overwritten does not matter
	} {
		if n := tail.Unheard(tt.recent, new(Own), ownOf(tt.held)); n != tt.want {
			t.Errorf("%q, %d: %d unheard, want %d", tt.held, tt.recent, n, tt.want)
		}
	}
}

func TestBounds(t *testing.T) {
	tail := &Tail{Most: 2}
	tell("p1 p2 p3", func(w Word) { tail.Add(w, 0) })
	if !tail.Overflowed() || tail.Len() != 2 {
		t.Error("a tail that is too long does not say so")
	}
	tail.Reset()
	if tail.Overflowed() || tail.Len() != 0 {
		t.Error("a tail keeps something over Reset")
	}
	own := &Own{Most: 2}
	own.Reset(0)
	for !own.Full() {
		own.Entry()
		own.Add(Word{Key: 1, Value: 1}, 0)
	}
	if own.End() != 2 {
		t.Errorf("lists %d entries", own.End())
	}
}

// TestState: whatever the two sequences are, each key ends with the value that is
// held last, and what is sent is in the order in which it is held.
func TestState(t *testing.T) {
	for seed := range uint64(20000) {
		rng := rand.New(rand.NewPCG(seed, 1))
		word := func(values int) string {
			if seed%2 == 1 && rng.IntN(4) == 0 {
				return string([]byte{"uvus"[rng.IntN(4)], byte('1' + rng.IntN(values)), ':'})
			}
			return string([]byte{"pqr"[rng.IntN(3)], byte('1' + rng.IntN(values))})
		}
		// A router says something; each side lacks a part of it.
		var said, kafka, held []string
		values := 1 + rng.IntN(4)
		for range rng.IntN(12) {
			said = append(said, word(values))
		}
		end := rng.IntN(len(said) + 1)
		begin := rng.IntN(end + 1)
		left := rng.IntN(3)
		for i, w := range said {
			if i < end && rng.IntN(8) >= left {
				kafka = append(kafka, w)
			}
			if i >= begin && rng.IntN(8) >= left {
				held = append(held, w)
			}
		}
		k, h := strings.Join(kafka, " "), strings.Join(held, " ")
		p := Align(ownOf(h), tailOf(k), 0, dumped)
		state := func(text string) map[byte]byte {
			m := map[byte]byte{}
			for _, w := range strings.Fields(strings.ReplaceAll(text, "?", "")) {
				switch w[0] {
				case 'u':
					delete(m, 'p')
				case 'v':
					delete(m, 'q')
				case 's':
					clear(m)
				}
				m[w[0]] = w[1]
			}
			return m
		}
		got := state(k + " " + sent(p, h))
		want := state(h)
		for _, key := range "pqr" {
			v, ok := want[byte(key)]
			if _, told := state(k)[byte(key)]; !ok && (told || !strings.ContainsRune(h, key)) {
				continue // Kafka knows more
			}
			if has, there := got[byte(key)]; has != v || there != ok {
				t.Fatalf("seed %d: Kafka %q, held %q, sent %q: %c ends with %c (%v), want %c (%v)", seed, k, h, sent(p, h), key, has, there, v, ok)
			}
		}
		if left == 0 && values > 1 && begin == 0 && h != "" {
			// Equal sessions, of which Kafka has the beginning whole: exactly the rest.
			rest := strings.Join(said[end:], " ")
			if got := strings.ReplaceAll(sent(p, h), "?", ""); got != rest {
				t.Fatalf("seed %d: Kafka %q, held %q, sent %q", seed, k, h, got)
			}
		}
	}
}

// TestCommon compares the Z algorithm with counting.
func TestCommon(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		m, n := 1+rng.IntN(6), rng.IntN(8)
		var a aligner
		for range m + n {
			a.words = append(a.words, uint64(rng.IntN(2)))
		}
		a.common(m)
		for i := m; i < m+n; i++ {
			want := 0
			for want < m && i+want < m+n && a.words[want] == a.words[i+want] {
				want++
			}
			if int(a.z[i]) != want {
				t.Fatalf("%v, %d: z[%d] = %d, want %d", a.words, m, i, a.z[i], want)
			}
		}
	}
}

// BenchmarkAlign: 22,000 messages are 1.1 s of 20,000 a second.
func BenchmarkAlign(b *testing.B) {
	var tail Tail
	var own Own
	own.Reset(0)
	for i := range uint64(22000) {
		w := Word{Key: i % 9000 * odd, Value: i}
		tail.Add(w, int64(i))
		own.Entry()
		own.Add(w, int64(i))
	}
	b.ReportAllocs()
	for b.Loop() {
		Align(&own, &tail, 0, Hint{})
	}
}

// TestRepetition: a router that says the same about one prefix for ever does not
// make aligning slow.
func TestRepetition(t *testing.T) {
	var tail Tail
	var own Own
	own.Reset(0)
	for range 300000 {
		tail.Add(Word{Key: 1, Value: 1}, 0)
		own.Entry()
		own.Add(Word{Key: 1, Value: 1}, 0)
	}
	if p := Align(&own, &tail, 0, Hint{}); p.Skipped != 300000 {
		t.Errorf("skipped %d", p.Skipped)
	}
}

// TestClocks: senders whose hosts' clocks are apart are each compared by their own.
func TestClocks(t *testing.T) {
	const s = 1_000_000
	for _, second := range []int64{0, -30 * s, 40 * s} { // clock of the second sender
		tail, own := new(Tail), new(Own)
		for i := range int64(120) {
			at, told, token := 1000*s+i*s/20, 1000*s+i*s/20, uint64(1)
			if i >= 100 {
				told, token = at+second, 2
			}
			for _, w := range []Word{{Key: uint64(i), Value: 1}, {Key: 1000, Value: uint64(i % 2)}, {Key: 1001, Value: uint64(i % 3)}} {
				own.Entry()
				own.Add(w, at)
				w.Token = token
				tail.Add(w, told)
			}
		}
		own.Entry()
		own.Add(Word{Key: 1000, Value: 7}, 1006*s)
		if p := Align(own, tail, 0, Hint{Dumped: -1e12}); p.Skipped != 360 || p.Fresh != 1 {
			t.Errorf("clock off by %d s: %d left out, %d in doubt, %d fresh", second/s, p.Skipped, p.Doubtful, p.Fresh)
		}
		if n := tail.Unheard(s, new(Own)); n != 22 {
			t.Errorf("clock off by %d s: %d keys unheard, want those of the last second", second/s, n)
		}
	}
	tail := new(Tail)
	for token := range uint64(3 * maxSenders) {
		tail.Add(Word{Key: token, Value: 1, Token: token + 1}, int64(token))
	}
	if len(tail.senders) != maxSenders {
		t.Errorf("%d senders are told apart", len(tail.senders))
	}
}

// TestHeldLong: what a sender held for long, and what comes back in a burst and in its
// table dump, makes times look as if they were others. Whatever the clocks say then,
// what Kafka has is left out or in doubt.
func TestHeldLong(t *testing.T) {
	const (
		ms = int64(1000)
		s  = 1000 * ms
	)
	type piece struct {
		from, to, every int64 // when the router says something
		token           uint64
		at              int64 // when that is handed over, 0: at once
		dump            bool  // its sender's session begins with a dump, at from
	}
	calm := piece{from: 0, to: 8 * s, every: 100 * ms, token: 1}
	for _, tt := range []struct {
		name string
		said []piece
	}{
		{"nothing is held", []piece{calm, {from: 8 * s, to: 12 * s, every: 100 * ms, token: 2}}},
		{"a burst", []piece{calm, {from: 8 * s, to: 9 * s, every: ms, token: 1}}},
		{"held, with a burst at its end", []piece{calm,
			{from: 8 * s, to: 11 * s, every: 100 * ms, token: 2, at: 12 * s},
			{from: 11 * s, to: 12 * s, every: ms, token: 2, at: 12 * s}}},
		{"and another's dump behind it", []piece{calm,
			{from: 8 * s, to: 11 * s, every: 100 * ms, token: 2, at: 12 * s},
			{from: 11 * s, to: 12 * s, every: ms, token: 2, at: 12 * s},
			{from: 14 * s, to: 17 * s, every: 100 * ms, token: 3, dump: true},
			{from: 17 * s, to: 18 * s, every: 100 * ms, token: 4}}},
		{"a burst is held, much more than what was not", []piece{calm,
			{from: 8 * s, to: 8*s + 40*ms, every: ms / 10, token: 1, at: 10 * s},
			{from: 10 * s, to: 11 * s, every: 100 * ms, token: 1}}},
	} {
		for _, clock := range []int64{0, 25 * s, -40 * s} { // of all senders
			for seed := range uint64(10) {
				rng := rand.New(rand.NewPCG(seed, 7))
				tail, own := new(Tail), new(Own)
				own.Reset(0)
				var now [30]uint64
				var had []bool // by entry
				tell := func(w Word, at int64, token uint64) {
					w.Token = token
					tail.Add(w, at+clock)
				}
				hold := func(w Word, at int64) { own.Entry(); own.Add(w, at) }
				for _, p := range tt.said {
					if p.dump {
						tell(Word{Key: 's', Value: 1, Anew: true}, p.from, p.token)
						for k, v := range now {
							tell(Word{Key: uint64(1000 + k), Value: v}, p.from, p.token)
						}
					}
					for at := p.from; at < p.to; at += p.every {
						k := rng.IntN(len(now))
						now[k] = rng.Uint64N(3)
						w := Word{Key: uint64(1000 + k), Value: now[k]}
						hold(w, at)
						had = append(had, rng.IntN(100) > 0) // sessions are not the same
						if had[len(had)-1] {
							tell(w, max(p.at, at+2*ms), p.token)
						}
					}
				}
				p := Align(own, tail, 0, Hint{Dumped: -1e12})
				for pos := range own.End() {
					if _, skipped, doubt := p.Entry(pos); had[pos] && skipped == 0 && !doubt {
						t.Fatalf("%s, clock off by %d s, seed %d: sends entry %d of %d, and has no doubt", tt.name, clock/s, seed, pos, own.End())
					}
				}
			}
		}
	}
}

// TestDumps: two table dumps have much in common and were made at different times. That
// the clock of a sender is ahead by about as much does not make Kafka look as if it went
// beyond the dump here, which says by silence what is gone.
func TestDumps(t *testing.T) {
	const (
		ms = int64(1000)
		s  = 1000 * ms
	)
	for _, tt := range []struct {
		name    string
		clock   int64 // of the sender
		dump    int64 // when the table is dumped here; there it is at 0
		both    int   // words that both have after that, each 100 ms
		skipped int
	}{
		{"the dump here is later", 0, 5 * s, 0, 0},
		{"and the sender's clock is ahead", 39 * s, 5 * s, 0, 0},
		{"as far as the dumps are apart", 5 * s, 5 * s, 0, 0},
		{"or behind", -39 * s, 5 * s, 0, 0},
		{"or as far", -5 * s, 5 * s, 0, 0},
		{"the sender ends soon behind it", 0, 50 * ms, 4, 0},
		{"goes on", 0, 50 * ms, 20, 2 + 49 + 20},
		{"and its clock is ahead", 39 * s, 50 * ms, 20, 2 + 49 + 20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tail, own := new(Tail), new(Own)
			own.Reset(0)
			tell := func(w Word, at int64) { tail.Add(w, at+tt.clock+2*ms) }
			hold := func(w Word, at int64) { own.Entry(); own.Add(w, at) }
			session, peer := Word{Key: 's', Value: 1, Anew: true}, Word{Key: 'u', Value: 1, Scope: 'u', Anew: true}
			route := func(k, v int) Word { return Word{Key: uint64(1000 + k), Value: uint64(v), Scope: 'u'} }
			tell(session, 0)
			tell(peer, 0)
			hold(session, tt.dump)
			hold(peer, tt.dump)
			for k := range 50 {
				tell(route(k, 1), int64(k)*ms/10)
				if k != 30 { // is gone
					hold(route(k, 1), tt.dump+int64(k)*ms/10)
				}
			}
			for at := 20 * ms; at < tt.dump; at += 100 * ms {
				tell(route(60+int(at/ms), 1), at) // is gone, too
			}
			dumped := tt.dump + 10*ms
			for i := range tt.both {
				at := dumped + int64(i+1)*100*ms
				tell(route(i, i%2), at)
				hold(route(i, i%2), at)
			}
			p := Align(own, tail, 0, Hint{Dumped: dumped})
			if p.Skipped != tt.skipped {
				t.Errorf("%d left out, %d in doubt, %d fresh, want %d left out", p.Skipped, p.Doubtful, p.Fresh, tt.skipped)
			}
		})
	}
}
