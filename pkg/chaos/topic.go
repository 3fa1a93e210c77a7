package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/replay"
	"github.com/bmpha/bmpha/pkg/rig"
)

// A reader is a consumer of the topic. It counts what came again, who sent and
// when nobody did, and builds the tables that a consumer has. It is safe for
// concurrent use.
type reader struct {
	// number returns the number that a route record carries, if it does.
	number func(*routeRecord) (uint64, bool)
	// opening is how many messages of a router's session may be its table; 0: none.
	opening uint64
	tables  bool // build them

	mu      sync.Mutex
	routed  int       // records about routes
	arrived time.Time // of the last of them, by our clock
	routers map[string]*track
	plain   replay.Consumer // believes every record
	fenced  replay.Consumer // ignores records with a smaller token than one before
	tokens  map[int32]uint64
	words   map[wordKey]lastWord // that fenced believes
	said    int                  // how many words there were
	spans   []span
	whole   tally
	bad     []string // records that could not be read
	older   []string // the first that count as tally.Older
	again   []*again // what counts as tally.Plain, in the order in which it came
}

// A routeRecord is what is looked at of a record.
type routeRecord struct {
	Router string          `json:"bmp_router"`
	Prefix string          `json:"ip_prefix"`
	Log    string          `json:"log_type"`
	Msg    string          `json:"bmp_msg_type"`
	Peer   string          `json:"peer_ip"`
	Post   int             `json:"is_post"`
	Loc    int             `json:"is_loc"`
	MED    json.RawMessage `json:"med"`
}

// A wordKey names a route, or without prefix a peer, of which a Peer Up is about one
// RIB, or as a Peer Down about all: replay.InPre.
type wordKey struct {
	router, peer, prefix string
	rib                  replay.RIB
}

func (r *routeRecord) key() wordKey {
	k := wordKey{r.Router, r.Peer, r.Prefix, replay.InPre}
	switch {
	case r.Msg == "peer_down":
	case r.Loc == 1:
		k.rib = replay.Loc
	case r.Post == 1:
		k.rib = replay.InPost
	}
	return k
}

// A lastWord is the last that was said about a route or a peer.
type lastWord struct {
	flags uint8
	n     int // as which of all words; 0: nothing was said
	// words are the MEDs of what was said about a route from the last on that one
	// sender said alone, since is the n of the first of them.
	words []int64
	since int
}

const (
	noMED     = -1
	withdrawn = -2
)

// then is the last word once another has been said.
func (w *lastWord) then(flags uint8, n int, med int64) lastWord {
	if flags&record.FlagShared == 0 || w.n == 0 {
		return lastWord{flags, n, append(w.words[:0], med), n}
	}
	return lastWord{flags, n, append(w.words, med), w.since}
}

func (w *lastWord) shared() bool { return w.flags&record.FlagShared != 0 }

// word is what a record says, as a lastWord has it.
func (r *routeRecord) word() int64 {
	if r.Log != "update" {
		return withdrawn
	}
	if n, err := strconv.ParseUint(string(r.MED), 10, 32); err == nil {
		return int64(n)
	}
	return noMED
}

// medIn returns the MED of a route as tables write it, withdrawn for no route.
func medIn(route string) int64 {
	if route == "" {
		return withdrawn
	}
	_, text, _ := strings.Cut(route, " med ")
	text, _, _ = strings.Cut(text, " ")
	if n, err := strconv.ParseUint(text, 10, 32); err == nil {
		return int64(n)
	}
	return noMED
}

// numberOf takes the number from the prefix, as numbered streams have it.
func numberOf(r *routeRecord) (uint64, bool) { return replay.Number(r.Prefix) }

// medOf takes it from the MED, as the streams of this package have it. The MEDs of
// other routers are none.
func medOf(r *routeRecord) (uint64, bool) {
	if r.Log != "update" || !strings.HasPrefix(r.Router, generatedNet) {
		return 0, false
	}
	n, err := strconv.ParseUint(string(r.MED), 10, 32)
	return n, err == nil && n > 0 && n < few
}

// A tally is what was seen in a span of time.
type tally struct {
	Records  int `json:"records"`
	Replayed int `json:"repeated_flagged"`   // came again, flagged as replayed
	Shared   int `json:"repeated_shared"`    // came again, and one of both is flagged as sent while several might
	Plain    int `json:"repeated_unflagged"` // came again, without a flag
	Told     int `json:"repeated_by_router"` // came again because the router told its table again
	// Late are records of a collector that others had taken over from: what it had
	// given to the Kafka library before it stood still. Consumers tell them by the
	// token. They are counted nowhere else.
	Late int `json:"late"`
	// Older are records of a sender, without a flag, with an older word than one
	// of its own about the same route.
	Older   int    `json:"older_after_newer"`
	Writers int    `json:"writer_changes"`
	Backs   int    `json:"steps_back"`
	Far     uint64 `json:"furthest_back"`
	// Gap is the longest time between two records by the clock of their senders,
	// Quiet by that of the consumer.
	Gap   seconds `json:"without_sender_seconds"`
	Quiet seconds `json:"without_record_seconds"`
}

// seconds is a span of time that JSON has as seconds.
type seconds time.Duration

// MarshalJSON writes seconds with three decimals.
func (s seconds) MarshalJSON() ([]byte, error) {
	return strconv.AppendFloat(nil, time.Duration(s).Seconds(), 'f', 3, 64), nil
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (s *seconds) UnmarshalJSON(b []byte) error {
	f, err := strconv.ParseFloat(string(b), 64)
	*s = seconds(f * float64(time.Second))
	return err
}

func (s seconds) String() string { return fmt.Sprintf("%.2f", time.Duration(s).Seconds()) }

func (t *tally) repeated() int { return t.Replayed + t.Shared + t.Plain }

// A span of time begins with something that is done to the collectors, and lasts
// until the next one begins.
type span struct {
	at time.Time
	to *tally
}

// A track is what is known of one router.
type track struct {
	name     string
	seen     []arrival // by number
	distinct int
	before   uint64    // the number that came last
	lastAt   time.Time // by the senders' clocks
	came     time.Time // by ours
	writer   [2]uint64 // instance and token
	cause    *tally    // of the span that the present writer is there for
	words    map[uint64]wordOf
	sessions map[sessionOf]*reach
}

// An arrival says whether, and how, a number came.
type arrival uint8

const (
	missing arrival = iota
	alone           // by the only sender
	ofTwo           // while two might send
)

// A sessionOf is a router's session with one life of a collector.
type sessionOf struct {
	instance uint64
	session  uint32
}

// A reach is how far records of a session have come.
type reach struct{ message, number uint64 }

// told says whether a record comes from the table that the router told when the
// session opened, not from what it said then: the table comes first, and what is
// said meanwhile, between its routes, has higher numbers than they.
func (t *track) told(h *record.Header, n, opening uint64) bool {
	if opening == 0 {
		return false
	}
	k := sessionOf{h.Instance, h.Session}
	s := t.sessions[k]
	if s == nil {
		s = new(reach)
		t.sessions[k] = s
	}
	if h.Message <= s.message {
		return h.Message < opening // sent again
	}
	s.message = h.Message
	if n < s.number {
		return true
	}
	s.number = n
	return h.Message < opening
}

// A wordOf is the last numbered word about a route, and whose it was.
type wordOf struct {
	instance uint64
	number   uint32
}

func newReader(number func(*routeRecord) (uint64, bool)) *reader {
	return &reader{number: number, routers: make(map[string]*track), words: make(map[wordKey]lastWord), tokens: make(map[int32]uint64)}
}

// begin says that from now on what happens is to be counted in t, too.
func (r *reader) begin(t *tally) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.spans = append(r.spans, span{time.Now(), t})
}

// causeSlack is how much later than the record before a gap the fault may be that
// made it: records go out in batches, and a sender may have had to wait anyway.
const causeSlack = 200 * time.Millisecond

// spanAt returns the tally of the span in which at lies. The lock is held.
func (r *reader) spanAt(at time.Time) *tally {
	for _, s := range slices.Backward(r.spans) {
		if !s.at.After(at) {
			return s.to
		}
	}
	return nil
}

// cause returns the tally of the span to which a gap belongs: the one in which it
// begins, or the one that begins a little later and within it. The lock is held.
func (r *reader) cause(from, to time.Time) *tally {
	if late := from.Add(causeSlack); late.Before(to) {
		to = late
	}
	return r.spanAt(later(from, to))
}

// both applies f to the tally of the whole run and to t.
func (r *reader) both(t *tally, f func(*tally)) {
	f(&r.whole)
	if t != nil && t != &r.whole {
		f(t)
	}
}

// take takes one record, in the order of its partition.
func (r *reader) take(rec rig.Record) {
	var v routeRecord
	err := json.Unmarshal(rec.Value, &v)
	var h record.Header
	raw := rec.Header(record.HeaderName)
	if err == nil && raw != nil {
		h, err = record.ParseHeader(raw)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if v.Prefix != "" {
		r.routed++
		r.arrived = time.Now()
	}
	late := raw != nil && h.Token < r.tokens[rec.Partition] && h.Flags&record.FlagShared == 0
	r.tokens[rec.Partition] = max(r.tokens[rec.Partition], h.Token)
	if err == nil && r.tables {
		err = r.plain.Record(rec.Value)
		if err == nil && !late {
			if err = r.fenced.Record(rec.Value); v.Prefix != "" || v.Msg == "peer_up" || v.Msg == "peer_down" {
				r.said++
				last := r.words[v.key()]
				r.words[v.key()] = last.then(h.Flags, r.said, v.word())
			}
		}
	}
	if err != nil {
		if len(r.bad) < 20 {
			r.bad = append(r.bad, fmt.Sprintf("partition %d offset %d: %v", rec.Partition, rec.Offset, err))
		}
		return
	}
	t := r.routers[v.Router]
	if t == nil {
		t = &track{name: v.Router, words: make(map[uint64]wordOf), sessions: make(map[sessionOf]*reach)}
		r.routers[v.Router] = t
	}
	n, numbered := r.number(&v)
	r.sender(t, &h, rec.Timestamp, numbered)
	r.both(t.cause, func(c *tally) { c.Records++ })
	if late {
		r.both(r.spanAt(r.arrived), func(c *tally) { c.Late++ })
	}
	if numbered {
		r.numbered(t, &rec, n, &h, late)
	}
}

// sender follows who sends, and for how long nobody did. Only routers that number
// what they say talk all the time.
func (r *reader) sender(t *track, h *record.Header, at time.Time, numbered bool) {
	cause := r.spanAt(at)
	if numbered && !t.lastAt.IsZero() {
		from := r.cause(t.lastAt, at)
		r.both(from, func(c *tally) { c.Gap = max(c.Gap, seconds(at.Sub(t.lastAt))) })
		r.both(r.cause(t.came, r.arrived), func(c *tally) { c.Quiet = max(c.Quiet, seconds(r.arrived.Sub(t.came))) })
		cause = from
	}
	if numbered {
		t.came = r.arrived
		if at.After(t.lastAt) {
			t.lastAt = at
		}
	}
	if w := [2]uint64{h.Instance, h.Token}; w != t.writer {
		if t.writer != [2]uint64{} {
			r.both(cause, func(c *tally) { c.Writers++ })
		}
		t.writer, t.cause = w, cause
	}
}

// numbered follows the numbers of a router.
func (r *reader) numbered(t *track, rec *rig.Record, n uint64, h *record.Header, late bool) {
	if need := int(n) + 1 - len(t.seen); need > 0 {
		t.seen = append(t.seen, make([]arrival, need)...)
	}
	told := t.told(h, n, r.opening)
	before := t.seen[n]
	shared := h.Flags&record.FlagShared != 0
	if before == missing {
		t.distinct++
		t.seen[n] = alone
	}
	if shared {
		t.seen[n] = ofTwo
	}
	if late {
		return
	}
	if n < t.before && !told {
		r.both(t.cause, func(c *tally) { c.Backs++; c.Far = max(c.Far, t.before-n) })
	}
	if !told {
		t.before = n
	}
	if h.Flags&record.FlagRoute != 0 && r.tables {
		w := t.words[h.KeyHash]
		if w.instance == h.Instance && uint64(w.number) > n && h.Flags&(record.FlagReplayed|record.FlagShared) == 0 && !told {
			r.both(t.cause, func(c *tally) { c.Older++ })
			if len(r.older) < 10 {
				r.older = append(r.older, fmt.Sprintf("partition %d offset %d: %d after %d of the same route: %+v", rec.Partition, rec.Offset, n, w.number, *h))
			}
		}
		t.words[h.KeyHash] = wordOf{h.Instance, uint32(n)}
	}
	if before != missing {
		r.both(t.cause, func(c *tally) {
			switch {
			case told:
				c.Told++
			case shared || before == ofTwo:
				c.Shared++
			case h.Flags&record.FlagReplayed != 0:
				c.Replayed++
			default:
				c.Plain++
				if c == &r.whole {
					r.repeated(t.name, rec, n, h)
				}
			}
		})
	}
}

// An again is a run of records of one sender that came again without a flag.
type again struct {
	Router   string    `json:"router"`
	Instance uint64    `json:"instance"`
	Token    uint64    `json:"token"`
	Session  uint32    `json:"session"`
	Count    int       `json:"count"`
	From     uint64    `json:"from"` // numbers
	To       uint64    `json:"to"`
	Begin    time.Time `json:"begin"` // by the sender's clock
	End      time.Time `json:"end"`
}

func (a *again) String() string {
	return fmt.Sprintf("%s: %s, numbers %d to %d, by %04x with token %d session %d, %s to %s", a.Router, count(a.Count), a.From, a.To,
		a.Instance>>48, a.Token, a.Session, a.Begin.Format("15:04:05.000"), a.End.Format("15:04:05.000"))
}

// repeated follows a record that came again without a flag.
func (r *reader) repeated(router string, rec *rig.Record, n uint64, h *record.Header) {
	var a *again
	for _, one := range r.again {
		if one.Router == router && one.Instance == h.Instance && one.Token == h.Token && one.Session == h.Session && rec.Timestamp.Sub(one.End) < time.Second {
			a = one
		}
	}
	if a == nil {
		if len(r.again) >= 100 {
			return
		}
		a = &again{Router: router, Instance: h.Instance, Token: h.Token, Session: h.Session, From: n, To: n, Begin: rec.Timestamp}
		r.again = append(r.again, a)
	}
	a.Count++
	a.From, a.To, a.End = min(a.From, n), max(a.To, n), rec.Timestamp
}

// total returns the count of records about routes and when the last one came.
func (r *reader) total() (int, time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.routed, r.arrived
}

// distinct returns how many numbers of a router have come.
func (r *reader) distinct(router string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t := r.routers[router]; t != nil {
		return t.distinct
	}
	return 0
}

// look returns a copy of a tally.
func (r *reader) look(t *tally) tally {
	r.mu.Lock()
	defer r.mu.Unlock()
	return *t
}

// all returns a copy of the tally of the whole run.
func (r *reader) all() tally { return r.look(&r.whole) }

// faults returns what could not be read.
func (r *reader) faults() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.bad)
}

// ambiguous says whether it is for two senders only that Kafka says otherwise about a
// route than its router, which says own, or nothing with "". It is if the last word
// about it came while two might send, or after it one about its peer, which ends the
// route: a Peer Up or Peer Down; then neither the order of the records nor the token
// tells which word is the newer. And what the router says has to be among the words
// that came, since one sender was last alone: what never came is lost, whoever sent.
func (r *reader) ambiguous(route wordKey, own string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	last := r.words[route]
	doubt, ended := last.shared(), false
	for _, of := range []replay.RIB{replay.InPre, route.rib} {
		w := r.words[wordKey{router: route.router, peer: route.peer, rib: of}]
		doubt = doubt || w.shared() && w.n > last.n
		ended = ended || w.n > last.since
	}
	return doubt && (slices.Contains(last.words, medIn(own)) || own == "" && ended)
}

// late returns the routes in which only a consumer that believes every record has
// another word than one that goes by the tokens.
func (r *reader) late() map[wordKey]bool {
	plain, fenced := r.routes()
	routes := make(map[wordKey]bool)
	add := func(k replay.Key) { routes[wordKey{k.Router, k.Peer, k.Prefix, k.RIB}] = true }
	d := replay.Compare(fenced, plain)
	for _, k := range append(d.Missing, d.Extra...) {
		add(k)
	}
	for _, c := range d.Changed {
		add(c.Key)
	}
	return routes
}

// unflaggedMost is how many repeats without a flag are let pass, of so many records
// and of routers that send rate messages a second each; see the package comment.
func unflaggedMost(rate, records int) int {
	const margin = 1 // s: hold.margin by default
	return rate*margin + records/10_000
}

// routes returns the tables of all routers: of a consumer that believes every
// record, and of one that goes by the tokens.
func (r *reader) routes() (plain, fenced map[replay.Key]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.plain.Routes(), r.fenced.Routes()
}

// only returns the routes of one router.
func only(routes map[replay.Key]string, router string) map[replay.Key]string {
	routes = maps.Clone(routes)
	maps.DeleteFunc(routes, func(k replay.Key, _ string) bool { return k.Router != router })
	return routes
}
