package demo

import (
	"encoding/json"
	"fmt"
	"hash/maphash"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A routeRecord is the part of pmacct's JSON by which a route record is known.
type routeRecord struct {
	MsgType   string `json:"bmp_msg_type"`
	LogType   string `json:"log_type"`
	Timestamp string `json:"timestamp"` // seconds since the Unix epoch, six decimals
	Router    string `json:"bmp_router"`
	Port      uint16 `json:"bmp_router_port"`
	Peer      string `json:"peer_ip"`
	IsPost    int    `json:"is_post"`
	IsOut     int    `json:"is_out"`
	IsLoc     int    `json:"is_loc"`
	AFI       uint16 `json:"afi"`
	SAFI      uint8  `json:"safi"`
	RD        string `json:"rd"`
	Prefix    string `json:"ip_prefix"`
	PathID    int64  `json:"as_path_id"`
}

// parseRoute reads a record's value. ok is false for a record that is not about
// a route.
func parseRoute(value []byte) (r routeRecord, ok bool, err error) {
	if err := json.Unmarshal(value, &r); err != nil {
		return r, false, fmt.Errorf("record %.80q: %w", value, err)
	}
	return r, r.MsgType == "route_monitor", nil
}

// An identity names a route record: no two messages that a router of the demo
// plays have the same timestamp, and no message has two records about the same
// route.
type identity struct {
	at    int64  // timestamp of the BMP message, µs since the Unix epoch
	route uint64 // hash of router, peer, RIB, prefix and whether it is withdrawn
}

var identitySeed = maphash.MakeSeed()

func (r routeRecord) identity() (identity, error) {
	seconds, micros, ok := strings.Cut(r.Timestamp, ".")
	s, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil || !ok || len(micros) != 6 {
		return identity{}, fmt.Errorf("timestamp %q of a record", r.Timestamp)
	}
	us, err := strconv.ParseInt(micros, 10, 64)
	if err != nil {
		return identity{}, fmt.Errorf("timestamp %q of a record", r.Timestamp)
	}
	r.Timestamp, r.Port = "", 0
	return identity{s*1e6 + us, maphash.Comparable(identitySeed, r)}, nil
}

// Counts are what a step, or the whole run, comes to. Of the whole run
// Kafka = Sent - Lost + Repeated + Resent + Strange. In a step it need not be so:
// Sent and Lost count where the router played the message, the others where the
// record arrived.
type Counts struct {
	// Sent is the route records that the messages of the routers make.
	Sent int `json:"sent"`
	// Kafka is the route records that arrived.
	Kafka int `json:"kafka"`
	// Lost is the records that never arrived.
	Lost int `json:"lost"`
	// Repeated is arrivals of a record that had arrived before.
	Repeated int `json:"repeated"`
	// Resent is what the routers themselves said again: their table at the
	// opening of a session.
	Resent int `json:"resent"`
	// Strange is arrivals that no router sent.
	Strange int `json:"strange,omitempty"`
}

func (c *Counts) add(o Counts) {
	c.Sent += o.Sent
	c.Kafka += o.Kafka
	c.Lost += o.Lost
	c.Repeated += o.Repeated
	c.Resent += o.Resent
	c.Strange += o.Strange
}

// A ledger holds what the routers have sent against what has arrived in Kafka.
// It does no I/O and is not safe for concurrent use.
type ledger struct {
	steps   []Counts // Lost is filled in by close
	entries map[identity]*entry
	queue   []*entry // in the order of sending, from the first that may be missing on
	missing int
}

type entry struct {
	at      time.Time // when it was sent
	step    int
	arrived bool
	live    bool // one arrival was no repetition by the router
}

func newLedger() *ledger { return &ledger{entries: make(map[identity]*entry)} }

// step returns the counts of step i.
func (l *ledger) step(i int) *Counts {
	for len(l.steps) <= i {
		l.steps = append(l.steps, Counts{})
	}
	return &l.steps[i]
}

// sent enters a record that a router sends.
func (l *ledger) sent(step int, at time.Time, id identity) {
	if l.entries[id] != nil {
		return // one message with the same route twice: a single record to look for
	}
	e := &entry{at: at, step: step}
	l.entries[id] = e
	l.queue = append(l.queue, e)
	l.missing++
	l.step(step).Sent++
}

// arrived enters a record found in Kafka. dumped says that the router sent it as
// part of its table at the opening of a session.
func (l *ledger) arrived(step int, id identity, dumped bool) {
	c := l.step(step)
	c.Kafka++
	e := l.entries[id]
	switch {
	case e == nil && dumped: // an End-of-RIB has the time of another message
		c.Resent++
		return
	case e == nil:
		c.Strange++
		return
	case !e.arrived:
		e.arrived = true
		l.missing--
	case dumped, !e.live: // of the two that are here, one is from a dump
		c.Resent++
	default:
		c.Repeated++
	}
	if !dumped {
		e.live = true
	}
}

// behind returns how long ago the oldest record was sent that has not arrived; 0
// if all have.
func (l *ledger) behind(now time.Time) time.Duration {
	for len(l.queue) > 0 && l.queue[0].arrived {
		l.queue = l.queue[1:]
	}
	if len(l.queue) == 0 {
		return 0
	}
	return now.Sub(l.queue[0].at)
}

// total returns the counts of all steps and fills in what each has lost, if
// nothing arrives any more.
func (l *ledger) total() Counts {
	for i := range l.steps {
		l.steps[i].Lost = 0
	}
	for _, e := range l.entries {
		if !e.arrived {
			l.steps[e.step].Lost++
		}
	}
	var sum Counts
	for _, c := range l.steps {
		sum.add(c)
	}
	return sum
}

// A gapMeter finds the longest time without a record of a router in each step.
// What lies in a time when Kafka could not be reached does not count. It is not
// safe for concurrent use.
type gapMeter struct {
	last map[string]time.Time // per router
	away []span
	gaps []time.Duration // per step
}

// A span is a time from one moment to another; a zero end is not yet known.
type span struct{ from, to time.Time }

// arrived enters the arrival of a record of a router. A gap belongs to the step in
// which it ends.
func (g *gapMeter) arrived(step int, router string, at time.Time) {
	for len(g.gaps) <= step {
		g.gaps = append(g.gaps, 0)
	}
	if last, ok := g.last[router]; ok {
		gap := at.Sub(last)
		for _, a := range g.away {
			gap -= overlap(span{last, at}, a)
		}
		g.gaps[step] = max(g.gaps[step], gap)
	}
	if g.last == nil {
		g.last = make(map[string]time.Time)
	}
	g.last[router] = at
}

// gap returns the longest gap in a step beyond what is usual, which is the
// longest of the steps named steady.
func (g *gapMeter) gap(step int, steady ...int) time.Duration {
	var usual time.Duration
	for _, s := range steady {
		if s < len(g.gaps) {
			usual = max(usual, g.gaps[s])
		}
	}
	if step >= len(g.gaps) {
		return 0
	}
	return max(0, g.gaps[step]-usual)
}

func overlap(a, b span) time.Duration {
	from, to := a.from, a.to
	if b.from.After(from) {
		from = b.from
	}
	if !b.to.IsZero() && b.to.Before(to) {
		to = b.to
	}
	return max(0, to.Sub(from))
}

// A succession is the sequence of those who were active, such as A, B. It is fed
// with observations and believes one that has been made twice in a row, because
// collectors are asked one after the other.
type succession struct {
	seen    string // the last observation
	current string // the last that was believed
	steps   []string
}

// observe enters who is active now, "" for nobody.
func (s *succession) observe(active string) {
	if active == s.seen && active != "" && active != s.current {
		// On the way from one to several, or back, they change one by one.
		if n := len(s.steps); n > 1 && (grows(s.steps[n-2:], active) || shrinks(s.steps[n-2:], active)) {
			s.steps = s.steps[:n-1]
		}
		s.current = active
		s.steps = append(s.steps, active)
	}
	s.seen = active
}

func grows(two []string, then string) bool {
	return within(two[0], two[1]) && within(two[1], then)
}

func shrinks(two []string, then string) bool {
	return within(two[1], two[0]) && within(then, two[1])
}

// within says whether all of a are in b, as A+C in A+B+C.
func within(a, b string) bool {
	in := strings.Split(b, "+")
	for name := range strings.SplitSeq(a, "+") {
		if !slices.Contains(in, name) {
			return false
		}
	}
	return true
}

// begin starts a new sequence with whoever is active.
func (s *succession) begin() {
	s.steps = s.steps[:0]
	if s.current != "" {
		s.steps = append(s.steps, s.current)
	}
}

func (s *succession) String() string { return strings.Join(s.steps, " → ") }
