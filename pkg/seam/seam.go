// Package seam finds the place at which one sender of a router's records is to go
// on where another has ended.
//
// The Tail is the end of what Kafka has, read back. An Own is what a collector
// holds of a router since before that end. Two sessions of one router are two
// samples of its state: messages differ, come in another order, and some exist on
// one side only. What can be compared is, for each key (peer, RIB, family, RD,
// prefix, path id, or what else has a state), the sequence of its values. Align
// makes a Plan that says of each record that is held whether Kafka has it, by key:
//
//   - Kafka has nothing of the key: its records are sent.
//   - The last value in Kafka is one that is held: all up to it is left out, also
//     values that the other sender never had because its session left them out.
//     Values come back, so times decide where that is: most words are in Kafka as
//     long after their arrival here as others. Of the places that this leaves, it is
//     the one up to which everything that is held has its counterpart in Kafka, else
//     the one with the longest common past, else the first.
//   - The last value in Kafka is older than all that is held: all is sent.
//   - The last value in Kafka is not held although it is not older: nothing is left out, and the records are
//     in doubt, because Kafka may have them.
//
// What is sent although Kafka has the same further back is in doubt as well, unless
// that is from before it came here. How the times of a sender's records and arrivals
// here go together is learned from words that both have. Several things spoil that: a
// sender may have held its words for long; when much changes at once everything is
// found there; and what a session says when it begins was so before. Where words leave
// several answers, clocks have to confirm one of them; else times say nothing, which
// puts more in doubt, and whoever has a table dump by which something may be gone
// sends it again.
//
// Some words void others: at a Peer Up or a Peer Down, or when a session begins,
// consumers forget what was said before in its scope. Such a word, Anew, divides the
// words of a scope on both sides. Of those that are held, the words before the last
// one that Kafka has are void and left out; those between it and the next are
// compared with what Kafka has after it; and from the next on all are sent.
//
// What Kafka has and was not held yet is Ahead: it is in doubt when it comes. Where Kafka
// could not be read at all, Unread makes the plan.
//
// So whatever is left out, the last value of each key in Kafka and what follows
// lead to the last value that is held. A set of what was seen would not do: a value
// that comes back after another is news.
//
// The package is pure: no I/O, no goroutine, no clock. Nothing in it is safe for
// concurrent use, except that a Plan does not change.
package seam

import (
	"cmp"
	"slices"
)

// A Word is what a record says.
type Word struct {
	Key, Value uint64 // hashes, the same for all collectors
	Scope      uint64 // of those words that become void at the same time; 0: of all
	Anew       bool   // what was said before in the scope is void
	Session    uint32 // of the collector that says it
	Ours       bool   // in a tail: this collector has sent it
	// In a tail: the takeover token of the sender, 0 if there is none, and that it
	// knew of another. A word with a token that is smaller than one before is late:
	// its sender stood still while another took over. Some consumers ignore it.
	Token  uint64
	Shared bool
}

// A Tail is the end of what Kafka has, in the order of each partition. The zero
// value is ready for use.
type Tail struct {
	// Most bounds the records that are kept, 0: DefaultMost. What is added beyond
	// makes the Tail Overflowed.
	Most int

	recs  []said
	last  map[uint64]int32 // index of the newest record of a key
	anew  anew
	token uint64
	// Senders have clocks of their own.
	senders []sender
	late    map[uint64]uint64 // values of late words behind which nothing was said about their keys
	over    bool
}

// DefaultMost is how many records a Tail and an Own hold, unless they are told
// otherwise. Each takes about 70 bytes.
const DefaultMost = 2 << 20

// A sender is one of those whose records follow one another in a Tail.
type sender struct {
	token  uint64
	newest int64 // time of its newest record
}

// maxSenders are told apart, and all that come after count as the last of them.
const maxSenders = 256

// said is a value of a key, behind the one before.
type said struct {
	key, value uint64
	at         int64
	first      int64 // of those that are held: it was not said before
	scope      uint64
	session    uint32
	ours       bool
	bare       bool  // it has no key
	again      bool  // it is the first about its key since all was void: it need not be news
	by         uint8 // index of the sender
	before     int32 // index of the record of the same key before this, -1 for none
}

// anew are the indices of the records that are Anew, by scope.
type anew struct {
	every []int32 // of all scopes
	in    map[uint64][]int32
}

func (a *anew) add(scope uint64, i int32) {
	if a.in == nil {
		a.in = make(map[uint64][]int32)
	}
	a.every = append(a.every, i)
	a.in[scope] = append(a.in[scope], i)
}

// again reports whether a word is the first about its key since all became void in its
// scope, or voids it. before is the index of the one before, -1 for none.
func (a *anew) again(w *Word, before int32) bool {
	if w.Anew || len(a.every) == 0 {
		return w.Anew
	}
	newest := func(in []int32) bool { return len(in) > 0 && before < in[len(in)-1] }
	return newest(a.in[w.Scope]) || newest(a.in[0])
}

func (a *anew) reset() {
	clear(a.in)
	a.every = a.every[:0]
}

// of appends those that concern a scope, from index begin on, newest first. For
// scope 0 these are all: one session begins like the other, and what the peers do
// tells them apart.
func (a *anew) of(scope uint64, begin int32, to []int32) []int32 {
	own, all := a.in[scope], a.in[0]
	if scope == 0 {
		own, all = a.every, nil
	}
	for i, j := len(own)-1, len(all)-1; i >= 0 || j >= 0; {
		next := int32(0)
		if j < 0 || i >= 0 && own[i] > all[j] {
			next = own[i]
			i--
		} else {
			next = all[j]
			j--
		}
		if next < begin {
			break
		}
		to = append(to, next)
	}
	return to
}

// Add appends a record. at is its time in µs, on the clock of those who write to the
// topic.
func (t *Tail) Add(w Word, at int64) {
	if len(t.recs) >= most(t.Most) {
		t.over = true
		return
	}
	if t.last == nil {
		t.last, t.late = make(map[uint64]int32), make(map[uint64]uint64)
	}
	if w.Token < t.token && w.Token != 0 && !w.Shared {
		t.late[w.Key] = w.Value
		return
	}
	t.token = max(t.token, w.Token)
	delete(t.late, w.Key)
	before, ok := t.last[w.Key]
	if !ok {
		before = -1
	}
	i := int32(len(t.recs))
	again := t.anew.again(&w, before)
	if w.Anew {
		t.anew.add(w.Scope, i)
	}
	t.last[w.Key] = i
	by := t.by(w.Token)
	t.recs = append(t.recs, said{w.Key, w.Value, at, at, w.Scope, w.Session, w.Ours, false, again, by, before})
	t.senders[by].newest = max(t.senders[by].newest, at)
}

// by returns the index of the sender with a token.
func (t *Tail) by(token uint64) uint8 {
	for i := len(t.senders) - 1; i >= 0; i-- {
		if t.senders[i].token == token {
			return uint8(i)
		}
	}
	if len(t.senders) < maxSenders {
		t.senders = append(t.senders, sender{token: token})
	}
	return uint8(len(t.senders) - 1)
}

func most(n int) int {
	if n > 0 {
		return n
	}
	return DefaultMost
}

// Len returns how many records there are.
func (t *Tail) Len() int { return len(t.recs) }

// Overflowed reports whether there were more than fit. Such a Tail lacks the last
// words and must not be used.
func (t *Tail) Overflowed() bool { return t.over }

// Reset empties t and keeps its memory, unless it is large.
func (t *Tail) Reset() {
	if cap(t.recs) > keep {
		t.recs, t.last, t.late = nil, nil, nil
	}
	clear(t.last)
	clear(t.late)
	t.anew.reset()
	t.recs, t.senders, t.token, t.over = t.recs[:0], t.senders[:0], 0, false
}

// keep is how many records a Tail or an Own keeps room for while it is not used.
const keep = 1 << 16

// An Own lists the records of the entries of a log, without gaps. The zero value
// is ready for use.
type Own struct {
	// Most bounds the records that are listed, 0: DefaultMost.
	Most int

	base  uint64   // position of the first entry
	first []uint32 // for each entry, how many records come before its own
	recs  []said
	bare  []uint32 // records without a key, rising
	anew  anew

	newest int64 // arrival
	quiet  int64 // when something came last before nothing came for a while; 0: never
	burst  int64 // and when something came again
	last   map[uint64]int32
}

// Reset begins anew at the entry with position base.
func (o *Own) Reset(base uint64) {
	if cap(o.recs) > keep {
		o.recs, o.first, o.last, o.bare = nil, nil, nil, nil
	}
	clear(o.last)
	o.anew.reset()
	o.newest, o.quiet, o.burst = 0, 0, 0
	o.base, o.first, o.recs, o.bare = base, o.first[:0], o.recs[:0], o.bare[:0]
}

// End returns the position after the last entry that is listed.
func (o *Own) End() uint64 { return o.base + uint64(len(o.first)) }

// Len returns how many records are listed.
func (o *Own) Len() int { return len(o.recs) }

// Full reports whether no further entry is to be listed.
func (o *Own) Full() bool { return len(o.recs) >= most(o.Most) }

// Entry begins the next entry. Its records are added before the next is begun.
func (o *Own) Entry() { o.first = append(o.first, uint32(len(o.recs))) }

// Add appends a record of the entry that was begun last, which arrived at at, in µs.
func (o *Own) Add(w Word, at int64) {
	if o.last == nil {
		o.last = make(map[uint64]int32)
	}
	before, ok := o.last[w.Key]
	if !ok {
		before = -1
	}
	i := int32(len(o.recs))
	again := o.anew.again(&w, before)
	if w.Anew {
		o.anew.add(w.Scope, i)
	}
	o.last[w.Key] = i
	if at-o.newest > near {
		o.quiet, o.burst = o.newest, at
	}
	o.newest = max(o.newest, at)
	first := at
	if o.quiet != 0 && at-o.burst < late {
		first = o.quiet // a way that was stuck brings at once what was said meanwhile
	}
	o.recs = append(o.recs, said{w.Key, w.Value, at, first, w.Scope, w.Session, false, false, again, 0, before})
}

// AddBare appends a record that has no key. It is always sent, and in doubt.
func (o *Own) AddBare() {
	o.bare = append(o.bare, uint32(len(o.recs)))
	o.recs = append(o.recs, said{bare: true, before: -1})
}

// A Plan says of the records of the entries from Base to End whether they are to
// be sent.
type Plan struct {
	base  uint64
	first []uint32
	skip  bits
	doubt bits

	// Skipped are the records that Kafka has, Doubtful those that it may have,
	// Fresh all others.
	Skipped, Doubtful, Fresh int

	// Ahead is what Kafka has from others and is still to come here, nil if there is
	// nothing. The caller owns it.
	Ahead *Ahead
}

// An Ahead is what Kafka had from others when a plan was made, and had not been heard
// here: their sessions were faster.
type Ahead struct {
	words map[uint64]struct{}
	// While there are more words than that, the session here may be where Kafka was not
	// read back to: what comes is in doubt, whatever it is. A table dump can have some
	// of the words before those that were said earlier.
	behind int
}

// Take reports whether Kafka may have w, which was heard after the plan was made. A word
// that comes again is news.
func (a *Ahead) Take(w Word) bool {
	k := blend(w.Key, w.Value)
	_, ok := a.words[k]
	delete(a.words, k)
	return ok || len(a.words) > a.behind
}

// Len returns how many words are known that are still to come.
func (a *Ahead) Len() int { return len(a.words) }

type bits []uint64

func (b bits) get(i uint32) bool { return b[i>>6]&(1<<(i&63)) != 0 }
func (b bits) set(i uint32)      { b[i>>6] |= 1 << (i & 63) }
func (b bits) clear(i uint32)    { b[i>>6] &^= 1 << (i & 63) }

// End returns the position after the last entry that the plan covers.
func (p *Plan) End() uint64 { return p.base + uint64(len(p.first)) - 1 }

// Covers reports whether the plan covers the entry at pos.
func (p *Plan) Covers(pos uint64) bool { return pos >= p.base && pos < p.End() }

// Entry tells of the entry at pos, which the plan covers, how many records it has,
// how many of them Kafka has, and whether any of the others is in doubt.
func (p *Plan) Entry(pos uint64) (records, skipped int, doubt bool) {
	from, to := p.first[pos-p.base], p.first[pos-p.base+1]
	for i := from; i < to; i++ {
		if p.skip.get(i) {
			skipped++
		} else if p.doubt.get(i) {
			doubt = true
		}
	}
	return int(to - from), skipped, doubt
}

// Sends returns of how many entries there is something to send.
func (p *Plan) Sends() (n int) {
	for pos := p.base; pos < p.End(); pos++ {
		if records, skipped, _ := p.Entry(pos); skipped < records {
			n++
		}
	}
	return n
}

// Skip reports whether Kafka has record number i of the entry at pos, which the
// plan covers.
func (p *Plan) Skip(pos uint64, i int) bool { return p.skip.get(p.first[pos-p.base] + uint32(i)) }

// Doubt puts all in doubt that Kafka is not known to have: it was not read back far
// enough. To be called before the plan is used.
func (p *Plan) Doubt() {
	for i := p.first[0]; i < p.first[len(p.first)-1]; i++ {
		if !p.skip.get(i) {
			p.doubt.set(i)
		}
	}
	p.Doubtful, p.Fresh = p.Doubtful+p.Fresh, 0
}

// A Hint is what is known of the two sides otherwise.
type Hint struct {
	// Delay is how much later the tail's times are than those here, as far as the
	// clocks tell. It only counts where words come back so regularly that they leave
	// several ways.
	Delay int64
	// Since is the arrival from which on Kafka was read back, 0 if that is not known.
	Since int64
	// Begun is the arrival with which the session that is open here began, 0 if there is
	// none.
	Begun int64
	// Dumped is the arrival with which the session that is open here had told its
	// whole table, 0 if it has not. What it does not name any more it says by silence:
	// if Kafka does not go beyond that, all of the session is sent, whatever Kafka has.
	Dumped int64
	// Sent is the position before which all entries are in Kafka, from here. What is
	// to be sent of them again is only what another has spoken after, with an older
	// word.
	Sent uint64
	// Late is the position before which entries may have come long before they were
	// read, but not before LateFrom: the process stood still. 0: there are none.
	Late     uint64
	LateFrom int64
}

// Align compares what is held, from the entry at position from on, with the tail.
// Both may grow afterwards and be aligned again; the Plan stays as it is.
func Align(o *Own, t *Tail, from uint64, h Hint) *Plan {
	p := o.plan(from)
	n, begin := len(o.recs), int32(p.first[0])
	a := aligner{own: o, tail: t, begin: begin, end: int32(n), known: -1, scopes: make(map[uint64]span)}
	for key, last := range o.last {
		if told, ok := t.last[key]; ok && last >= begin {
			a.sample(last, told)
		}
	}
	if h.Late > p.base {
		a.late, a.lateFrom = int32(p.first[min(h.Late-p.base, uint64(len(p.first)-1))]), h.LateFrom
	}
	if h.Sent > p.base {
		a.sent = int32(p.first[min(h.Sent-p.base, uint64(len(p.first)-1))])
	}
	a.settle(h.Delay)
	if a.late > begin {
		a.oldest = min(a.oldest, h.LateFrom)
	}
	a.sessions(p, h.Dumped)
	for scope := range o.anew.in {
		a.scope(p, scope)
	}
	for i := len(o.anew.every) - 1; i >= 0 && o.anew.every[i] >= begin; i-- {
		a.doubt(p, o.anew.every[i])
	}
	for key, last := range o.last {
		if last < begin || o.isAnew(last) {
			continue
		}
		if told, ok := t.last[key]; ok {
			a.key(p, last, told)
		} else {
			a.void(p, last)
		}
	}
	for key, value := range t.late {
		// For those who believe it the newest word has to come once more.
		if last, ok := o.last[key]; ok && last >= begin && o.recs[last].value != value && p.skip.get(uint32(last)) {
			p.skip.clear(uint32(last))
			p.doubt.set(uint32(last))
			p.Skipped, p.Doubtful = p.Skipped-1, p.Doubtful+1
		}
	}
	for i := len(o.bare) - 1; i >= 0 && int32(o.bare[i]) >= begin; i-- {
		if int32(o.bare[i]) < a.sent {
			p.skip.set(o.bare[i])
			p.Skipped++
			continue
		}
		p.doubt.set(o.bare[i])
		p.Doubtful++
	}
	p.Fresh = n - int(begin) - p.Skipped - p.Doubtful
	if p.Ahead = a.ahead(); p.Ahead != nil && p.Ahead.behind < p.Ahead.Len() {
		p.Doubt()
	} else if h.Since != 0 {
		a.unread(p, h)
	}
	return p
}

// Unread makes the plan of what is held, from the entry at position from on, where it is
// not known what Kafka has: all is in doubt. Before position sent Kafka has all from
// here, but another may have spoken behind it with an older word; so of that the newest
// word about each key comes again, and what makes words void.
func Unread(o *Own, from, sent uint64) *Plan {
	p := o.plan(from)
	begin, end := p.first[0], p.first[min(max(sent, p.base)-p.base, uint64(len(p.first)-1))]
	for i := begin; i < end; i++ {
		r := &o.recs[i]
		if last := o.last[r.key]; r.bare || last != int32(i) && !o.isAnew(int32(i)) {
			p.skip.set(i)
			p.Skipped++
		}
	}
	p.Fresh = len(o.recs) - int(begin) - p.Skipped
	p.Doubt()
	return p
}

// plan makes one of what is held from the entry at position from on: all is to be sent.
func (o *Own) plan(from uint64) *Plan {
	from = min(max(from, o.base), o.End())
	n := len(o.recs)
	return &Plan{
		base:  from,
		first: append(append(make([]uint32, 0, int(o.End()-from)+1), o.first[from-o.base:]...), uint32(n)),
		skip:  make(bits, n/64+1), doubt: make(bits, n/64+1),
	}
}

// ahead lists the last words of others about each key that are not held, nor older
// than what is.
func (a *aligner) ahead() *Ahead {
	const (
		most = 64 // words of a key are looked at, and compared with as many
		few  = 3
	)
	words := make(map[uint64]struct{})
	heard, unheard := 0, 0
	for key, told := range a.tail.last {
		last, ok := a.own.last[key]
		if !ok {
			last = -1
		}
		for n := 0; told >= 0 && n < most && heard+unheard < samples; n++ {
			r := &a.tail.recs[told]
			if delay, timed := a.delay(r.by); r.ours || timed && r.at-delay < a.oldest-near {
				break
			}
			if a.own.said(r.value, last, most) {
				heard++ // or another word with the same value was
			} else {
				unheard++
				words[mix(r)] = struct{}{}
			}
			told = r.before
		}
	}
	if len(words) == 0 {
		return nil
	}
	ahead := &Ahead{words: words, behind: len(words)}
	if unheard >= few && unheard > heard {
		ahead.behind /= 2
	}
	return ahead
}

// unread puts what is to be sent in doubt if others may have sent it before Kafka was read:
// what came here so long after they have sent it, or while the session was still telling
// what had been said since it began.
func (a *aligner) unread(p *Plan, h Hint) {
	since := h.Since + h.Delay
	var delay int64
	timed := false
	if n := len(a.tail.senders); n > 0 {
		delay, timed = a.delay(uint8(n - 1))
	}
	for i := a.begin; i < int32(len(a.own.recs)); i++ {
		at := a.own.recs[i].at
		telling := h.Begun != 0 && h.Begun < h.Since && (h.Dumped == 0 || at < h.Dumped+late)
		if !telling && !(timed && at+delay < since) {
			continue
		}
		if !p.skip.get(uint32(i)) && !p.doubt.get(uint32(i)) {
			p.doubt.set(uint32(i))
			p.Doubtful, p.Fresh = p.Doubtful+1, p.Fresh-1
		}
	}
}

// Unheard counts the keys of which the last value in Kafka is recent and held by
// none of owns: the sender was ahead of the sessions here. What it knew is still to
// come, and until then what is held about these keys is older. recent is how far
// before the newest record of the tail one still counts as recent, in the unit of
// its times.
func (t *Tail) Unheard(recent int64, owns ...*Own) (n int) {
	for i := len(t.recs) - 1; i >= 0; i-- {
		r := &t.recs[i]
		if r.by != t.recs[len(t.recs)-1].by || r.at < t.senders[r.by].newest-recent {
			break
		}
		if t.last[r.key] == int32(i) && !slices.ContainsFunc(owns, func(o *Own) bool { return o.holds(r) }) {
			n++
		}
	}
	return n
}

func (o *Own) isAnew(i int32) bool {
	_, ok := slices.BinarySearch(o.anew.in[o.recs[i].scope], i)
	return ok
}

// holds reports whether a value of the tail is among those that are held.
func (o *Own) holds(r *said) bool {
	i, ok := o.last[r.key]
	return ok && o.said(r.value, i, len(o.recs))
}

// said reports whether a value is among the last ones of a key, most of them, of which
// the newest is recs[i].
func (o *Own) said(value uint64, i int32, most int) bool {
	for ; i >= 0 && most > 0; i, most = o.recs[i].before, most-1 {
		if o.recs[i].value == value {
			return true
		}
	}
	return false
}

// An aligner settles one key after the other.
type aligner struct {
	own   *Own
	tail  *Tail
	begin int32 // own records before this do not count
	end   int32 // those from here on are sent: all becomes void there
	sent  int32 // own records before this are in the tail, or were before it
	late  int32 // own records before this may have arrived earlier, but not before lateFrom
	known int32 // the last record that voids all and that Kafka has, -1 for none

	scopes map[uint64]span

	samples []sample
	sampled int32    // words of the tail that they are of
	of      []timing // by sender
	all     timing   // of all senders together
	agree   bool     // they all have that
	oldest  int64    // arrival of the first word that is held

	lateFrom int64

	words   []uint64 // newest first: those of the tail, then those that are held
	index   []int32  // of those that are held
	z       []int32
	scratch []int32
}

const (
	// near is by how much, in µs, the delay of a word may be unlike that of others
	// without meaning another word.
	near = 100_000
	// late is by how much a word may be later here before it is another one with the
	// same value: sessions are that unlike when much changes at once.
	late = 1_000_000
	// samples of delays, or of words that may have been heard, are enough.
	samples = 1 << 16
)

// A span is, of a scope, where Kafka and what is held can be compared: there after
// the last word that is Anew, here after the last such word that Kafka has, and up
// to the next.
type span struct {
	told     int32 // index in the tail
	from, to int32 // indices in what is held; what comes before from is void
}

// scope returns the span of a scope.
func (a *aligner) scope(p *Plan, scope uint64) span {
	if s, ok := a.scopes[scope]; ok {
		return s
	}
	return a.divide(p, scope)
}

// sessions settles the words that are Anew for all, and begins with that. Of a session
// whose dump was over here at dumped Kafka need not have all that it says by silence,
// unless what Kafka has goes on behind that, or is of the same session.
func (a *aligner) sessions(p *Plan, dumped int64) {
	s := span{from: a.begin, to: a.end}
	if all := a.tail.anew.in[0]; len(all) > 0 {
		s.told = all[len(all)-1] + 1
	}
	best := a.compare(0)
	if n := slices.IndexFunc(a.index, func(i int32) bool { return i < a.sent }); n >= 0 && n <= best {
		best = n
	} else if same := best < len(a.index) && a.same(a.scratch[0], a.index[best]); !same &&
		(dumped == 0 || !a.beyond(dumped+late/2)) {
		best = len(a.index)
	}
	for n, i := range a.index {
		switch {
		case a.own.recs[i].scope != 0:
		case n < best:
			s.to = min(s.to, i)
		default:
			a.known = max(a.known, i)
			p.skip.set(uint32(i))
			p.Skipped++
		}
	}
	s.from = max(s.from, a.known)
	a.end = s.to
	a.scopes[0] = s
}

// beyond reports whether Kafka has a word that came here at from or later. That what it
// has was handed over later would not do: it may have been held for long.
func (a *aligner) beyond(from int64) bool {
	return slices.ContainsFunc(a.samples, func(s sample) bool {
		t := a.of[s.by]
		return s.at >= from && t.known && abs(s.delay-t.delay) <= near
	})
}

// same reports whether a word of the tail is of the session here of which an own
// word is.
func (a *aligner) same(told, own int32) bool {
	return a.tail.recs[told].ours && a.tail.recs[told].session == a.own.recs[own].session
}

// divide finds the span of a scope, and settles the words of it that are Anew.
func (a *aligner) divide(p *Plan, scope uint64) span {
	s := span{from: a.begin, to: a.end}
	best := a.compare(scope)
	if len(a.scratch) > 0 {
		s.told = a.scratch[0] + 1
	}
	for best < len(a.index) && a.index[best] >= a.end {
		best++ // not if it is to be sent that all is void
	}
	for best > 0 && a.index[best-1] <= a.known {
		best-- // but if that is known
	}
	if best > 0 {
		s.to = min(s.to, a.index[best-1])
	}
	if best < len(a.index) {
		s.from = a.index[best]
	}
	for _, i := range a.index[best:] {
		if a.own.recs[i].scope == scope {
			p.skip.set(uint32(i))
			p.Skipped++
		}
	}
	a.scopes[scope] = s
	return s
}

// compare aligns the words that are Anew in a scope, as if they were those of one
// key: Kafka has those of a.index from the one returned on.
func (a *aligner) compare(scope uint64) int {
	a.words, a.index = a.words[:0], a.index[:0]
	a.scratch = a.tail.anew.of(scope, 0, a.scratch[:0])
	for _, i := range a.scratch {
		a.words = append(a.words, mix(&a.tail.recs[i]))
	}
	a.index = a.own.anew.of(scope, a.begin, a.index)
	for _, i := range a.index {
		a.words = append(a.words, mix(&a.own.recs[i]))
	}
	best := -1
	if m := len(a.scratch); m > 0 {
		best, _ = a.choose(m, &a.tail.recs[a.scratch[0]])
	}
	if best < 0 {
		best = len(a.index)
	}
	for best > 0 && a.index[best-1] < a.sent {
		best--
	}
	return best
}

// mix makes one number of key and value.
func mix(r *said) uint64 { return blend(r.key, r.value) }

func blend(key, value uint64) uint64 { return key ^ value*odd }

const odd = 0x9e3779b97f4a7c15

// gather lists the words of a key, of which the newest are own.recs[last] and
// tail.recs[told], that are to be compared, and returns how many of them are the
// tail's.
func (a *aligner) gather(p *Plan, last, told int32) (m int) {
	s := a.scope(p, a.own.recs[last].scope)
	a.words, a.index = a.words[:0], a.index[:0]
	for i := told; i >= s.told; i = a.tail.recs[i].before {
		a.words = append(a.words, a.tail.recs[i].value)
	}
	m = len(a.words)
	for i := last; i >= a.begin; i = a.own.recs[i].before {
		if i >= s.from && i < s.to {
			a.words, a.index = append(a.words, a.own.recs[i].value), append(a.index, i)
		}
	}
	return m
}

// A sample is a word in the tail and one that is held, which may be the same.
type sample struct {
	delay int64 // from its arrival here to its time in the tail
	at    int64 // its arrival
	word  int32 // number of the word in the tail
	by    uint8 // and whose that is
	again bool  // one of them is first since all was void
}

// sample notes how long the newest word of a key may have taken.
func (a *aligner) sample(last, told int32) {
	r := &a.tail.recs[told]
	for i := last; i >= a.begin && len(a.samples) < samples; i = a.own.recs[i].before {
		if o := &a.own.recs[i]; o.value == r.value && i >= a.late {
			a.samples = append(a.samples, sample{r.at - o.at, o.at, a.sampled, r.by, r.again || o.again})
		}
	}
	a.sampled++
}

// settle finds the delay of each sender.
func (a *aligner) settle(told int64) {
	if len(a.samples) == 0 || int(a.begin) >= len(a.own.recs) {
		return
	}
	a.oldest = a.own.recs[a.begin].at
	a.agree = true
	slices.SortFunc(a.samples, func(a, b sample) int { return cmp.Compare(a.delay, b.delay) })
	c := crowd{words: make([]int32, a.sampled), some: make([]sample, 0, len(a.samples))}
	a.all = c.timing(a.samples, told, func(*sample) bool { return true })
	a.of = []timing{a.all}
	if n := len(a.tail.senders); n > 1 {
		a.of = make([]timing, n)
		for by := range a.of {
			a.of[by] = c.timing(a.samples, told, func(s *sample) bool { return s.by == uint8(by) })
		}
	}
	for _, t := range a.of {
		a.agree = a.agree && (!t.known || abs(t.delay-a.all.delay) <= near)
	}
}

// A timing is how much later than here a sender's words have their times.
type timing struct {
	delay int64
	known bool
	least int64 // it is not less than that for any of them
}

// delay returns that of a sender. Of one with no word that is known here it is that of
// all the others, if they have the same.
func (a *aligner) delay(by uint8) (int64, bool) {
	if int(by) < len(a.of) && a.of[by].known {
		return a.of[by].delay, true
	}
	return a.all.delay, a.all.known && a.agree
}

// A crowd is memory to find where samples are dense.
type crowd struct {
	words []int32 // how often each is there
	some  []sample
}

// timing finds the delay that most words have, of samples that count, sorted. What is
// said again when a session or a peer begins was so before, and is with the same values
// at other times: it only counts where nothing else is left and clocks confirm it.
func (c *crowd) timing(samples []sample, told int64, counts func(*sample) bool) timing {
	c.some = c.some[:0]
	all := 0
	for i := range samples {
		if s := &samples[i]; counts(s) {
			all++
			if !s.again {
				c.some = append(c.some, *s)
			}
		}
	}
	t := c.densest(told)
	if t.known || len(c.some) == all {
		return t
	}
	c.some = c.some[:0]
	for i := range samples {
		if s := &samples[i]; counts(s) {
			c.some = append(c.some, *s)
		}
	}
	t = c.densest(told)
	t.known = t.known && abs(t.delay-told) <= late/2
	return t
}

// densest finds where the samples have most words, and if that is about so in several
// places, the one nearest to what the clocks tell, which then have to confirm it.
func (c *crowd) densest(told int64) (t timing) {
	most, found := 0, false
	c.windows(func(_ int64, words int) { most = max(most, words) })
	var first, last int64
	c.windows(func(middle int64, words int) {
		if !found && words >= min(most, max(3, most/20)) {
			t.least, found = middle, true
		}
		if 5*words < 4*most {
			return
		}
		if last = middle; !t.known {
			first = middle
		}
		if !t.known || abs(middle-told) < abs(t.delay-told) {
			t.delay, t.known = middle, true
		}
	})
	if most < 2 || last-first > 2*near {
		t.known = t.known && abs(t.delay-told) <= late/2
	}
	return t
}

// windows calls f for each run of delays that are near each other, with the middle one
// and how many words they are of.
func (c *crowd) windows(f func(middle int64, words int)) {
	clear(c.words)
	from, words := 0, 0
	for i, s := range c.some {
		if c.words[s.word]++; c.words[s.word] == 1 {
			words++
		}
		for ; s.delay-c.some[from].delay > near/2; from++ {
			w := c.some[from].word
			if c.words[w]--; c.words[w] == 0 {
				words--
			}
		}
		if i+1 == len(c.some) || c.some[i+1].delay > s.delay {
			f(c.some[(from+i+1)/2].delay, words)
		}
	}
}

// key settles the records of one key.
func (a *aligner) key(p *Plan, last, told int32) {
	m := a.gather(p, last, told)
	best, older := len(a.index), false
	if m > 0 {
		best, older = a.choose(m, &a.tail.recs[told])
	}
	unheard := m > 0 && best < 0 && !older
	if best < 0 {
		best = len(a.index)
	}
	// Kafka has what was sent from here. Behind that another may have spoken with an
	// older word: then the newest comes again.
	again := m > 0 && !a.tail.recs[told].ours && (!unheard || a.older(&a.tail.recs[told], last))
	for n, i := range a.index {
		switch {
		case n >= best || i < a.sent && (n > 0 || !again):
			p.skip.set(uint32(i))
			p.Skipped++
		case unheard:
			p.doubt.set(uint32(i))
			p.Doubtful++
		}
	}
	a.void(p, last)
	for i := last; i >= a.begin; i = a.own.recs[i].before {
		a.doubt(p, i)
	}
}

// doubt puts a record that is to be sent in doubt if Kafka may have it.
func (a *aligner) doubt(p *Plan, i int32) {
	if p.skip.get(uint32(i)) || p.doubt.get(uint32(i)) {
		return
	}
	w := &a.own.recs[i]
	if told, ok := a.tail.last[w.key]; ok && a.told(w, told, i < a.late) {
		p.doubt.set(uint32(i))
		p.Doubtful++
	}
}

// told reports whether the tail may have a word, although later ones about its key are
// not what was said here: two have sent. told is where the newest word of the key is.
func (a *aligner) told(w *said, told int32, late bool) bool {
	before := false
	for range 64 {
		if told < 0 {
			return false
		}
		r := &a.tail.recs[told]
		// It may have been handed over long after w had come here, but not before it can
		// have been said.
		before = !late && int(r.by) < len(a.of) && a.of[r.by].known && r.at-w.first-a.of[r.by].least < -near
		if r.value == w.value && !before {
			return true
		}
		told = r.before
	}
	return told >= 0 && !before
}

// choose returns the index in a.index of the word up to which the m words of the tail
// have what is held, -1 if there is none, and whether the tail's last word about it
// is older than all that is held.
func (a *aligner) choose(m int, word *said) (best int, older bool) {
	best = -1
	delay, timed := a.delay(word.by)
	at := word.at - delay
	if timed && at < a.oldest-near {
		return best, true
	}
	a.common(m)
	n := len(a.index)
	var most int32
	var whole, close bool
	for i := n - 1; i >= 0; i-- { // from the oldest to the newest
		common := a.z[m+i]
		if common == 0 {
			continue
		}
		arrived, first := a.own.recs[a.index[i]].at, a.own.recs[a.index[i]].at
		if a.index[i] < a.late {
			first = a.lateFrom
		}
		if timed && first-at > late {
			break
		}
		all := int(common) == n-i
		here := timed && at >= first-near && at <= arrived+near
		if best < 0 || here && !close || here == close && (all && !whole || all == whole && common > most) {
			best, most, whole, close = i, common, all, here
		}
	}
	return best, false
}

// older reports whether a word of the tail that is not held is known to be older than
// an own word.
func (a *aligner) older(word *said, own int32) bool {
	delay, timed := a.delay(word.by)
	return timed && own >= a.late && word.at-delay < a.own.recs[own].at-near
}

func abs(n int64) int64 { return max(n, -n) }

// void leaves out the records of a key that are void by now, or were sent from here
// when the tail has none of the key.
func (a *aligner) void(p *Plan, last int32) {
	s := a.scope(p, a.own.recs[last].scope)
	_, told := a.tail.last[a.own.recs[last].key]
	for i := last; i >= a.begin; i = a.own.recs[i].before {
		if (i < s.from || !told && i < a.sent) && !p.skip.get(uint32(i)) {
			p.skip.set(uint32(i))
			p.Skipped++
		}
	}
}

// common sets z[i], for i from m on, to how many words from i on are equal to those
// from 0 on, up to m of them: by the Z algorithm, because a router may say the same
// about one prefix for ever.
func (a *aligner) common(m int) {
	v := a.words
	if cap(a.z) < len(v) {
		a.z = make([]int32, 2*len(v))
	}
	a.z = a.z[:len(v)]
	l, r := 0, 0
	for i := 1; i < len(v); i++ {
		limit := len(v) - i
		if i < m {
			limit = m - i // the tail's words end there
		} else {
			limit = min(limit, m)
		}
		k := 0
		if i < r {
			k = min(int(a.z[i-l]), r-i)
		}
		for k < limit && v[k] == v[i+k] {
			k++
		}
		k = min(k, limit)
		a.z[i] = int32(k)
		if i+k > r {
			l, r = i, i+k
		}
	}
}
