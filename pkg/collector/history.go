package collector

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/bmpha/bmpha/pkg/cluster"
	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/election"
	"github.com/bmpha/bmpha/pkg/seam"
)

const (
	// shownPassages are remembered.
	shownPassages = 8
	// Routers that are told to go on for the same reason within passageTogether, in
	// µs, are one passage.
	passageTogether = int64(2 * time.Second / time.Microsecond)
	// maxSenders bounds the routers of which it is remembered who has sent them:
	// other members name them.
	maxSenders = 1 << 16
)

// A history remembers what status shows of the past: who sent which router when
// another last said so, and the last times that routers went on here. Its lock may
// be taken inside a router's.
type history struct {
	c *Collector

	mu           sync.Mutex
	words        map[string]*lastWords // by member
	senders      map[string]lastSender // by router
	passages     []*passage            // the newest last
	how          map[string]uint64     // passages since the start
	fencedOthers uint64
	fenceErr     string
	fenceErrAt   int64
	endsKnown    int64 // when the ends of all topics were last seen to be known
}

// lastWords are what is known of the end of a member, and of its beats before.
type lastWords struct {
	instance           uint64
	beat               int64 // Redis' clock
	native, left, dead bool
	diedAt             int64           // Redis' clock
	said               *cluster.Member // over the link, nil for never
	at                 int64           // when it was
}

// A lastSender is who said last that it sends a router, and when, by Redis' clock.
type lastSender struct {
	name     string
	instance uint64
	beat     int64
}

// A passage is one time that routers went on here. Times are ours, 0 for never.
type passage struct {
	begun, at int64
	from, how string
	token     uint64
	heard     int64 // the last word of from
	routers   int
	waiting   int   // of them, until they are let go on
	first     int64 // the first acknowledgement
	waited    bool  // something was there to be sent when they were let go on
	took      int64
	read      int
	skipped   uint64
	doubtful  uint64
	blind     int
	repeats   uint64 // messages held of those that are blind
	err       string
	counted   bool // in how
}

func (h *history) init(c *Collector) {
	h.c = c
	h.words = make(map[string]*lastWords)
	h.senders = make(map[string]lastSender)
	h.how = make(map[string]uint64)
	for _, how := range control.Hows {
		h.how[how] = 0
	}
	h.endsKnown = c.clock.now()
}

// look follows what Redis shows.
func (h *history) look(v *cluster.View) {
	for i := range v.Members {
		h.hear(&v.Members[i])
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.words) > 2*len(v.Members)+16 {
		for name := range h.words {
			if !slices.ContainsFunc(v.Members, func(m cluster.Member) bool { return m.Name == name }) {
				delete(h.words, name)
			}
		}
	}
}

// hear follows what a member says of itself.
func (h *history) hear(m *cluster.Member) {
	if m.Name == h.c.o.Process {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	w := h.words[m.Name]
	if w == nil || w.instance != m.Instance && m.Beat >= w.beat {
		w = &lastWords{instance: m.Instance, native: m.Native}
		h.words[m.Name] = w
	}
	if w.instance == m.Instance && m.Beat >= w.beat {
		w.beat, w.left = m.Beat, m.Left
		if w.dead && m.Beat > w.diedAt+micros(h.c.o.Heartbeat) {
			w.dead = false // as the election takes it
		}
	}
	for key, s := range m.Routers {
		if !s.Sends || m.Beat < h.senders[key].beat {
			continue
		}
		if len(h.senders) >= maxSenders {
			clear(h.senders)
		}
		h.senders[key] = lastSender{m.Name, m.Instance, m.Beat}
	}
}

// linked follows what a member says of itself over the link.
func (h *history) linked(m *cluster.Member) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if w := h.words[m.Name]; w != nil && w.instance == m.Instance {
		w.said, w.at, w.dead = m, h.c.clock.now(), false
	}
}

// overlay puts what is known from links over what Redis showed last, as the election
// does. The members of v are not changed.
func (h *history) overlay(v *cluster.View, now int64) *cluster.View {
	if v == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	o := *v
	o.RedisTime = max(v.RedisTime, h.c.clock.toRedis(now))
	o.Members = slices.Clone(v.Members)
	fresh := func(w *lastWords) bool {
		return w != nil && w.said != nil && !w.dead && now-w.at < micros(h.c.o.Expiry)
	}
	known := make(map[string]bool)
	for i := range o.Members {
		m := &o.Members[i]
		known[m.Name] = true
		w := h.words[m.Name]
		switch {
		case w == nil || m.Native || m.Left || w.instance != m.Instance:
		case w.dead:
			m.Gone = true
		case fresh(w) && w.said.Beat >= m.Beat && (!m.Gone || h.c.o.HoldRoles):
			value := m.Value
			if *m = *w.said; value != 0 {
				m.Value = value
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(h.words)) {
		if w := h.words[name]; h.c.o.HoldRoles && !known[name] && fresh(w) && !w.said.Left && w.said.Value != 0 {
			o.Members = append(o.Members, *w.said)
		}
	}
	return &o
}

// died follows that the process of a member has ended.
func (h *history) died(name string, instance uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if w := h.words[name]; w != nil && w.instance == instance {
		w.dead, w.diedAt = true, h.c.clock.toRedis(h.c.clock.now())
	}
}

// turn follows that r, whose lock is held, is to be sent here from now on, or no
// more. before is who was to send it until then, members are those that live; away
// says that Redis is, and that therefore others may send as well.
func (h *history) turn(r *router, d *election.Duty, before string, members []election.Member, away bool) {
	now := r.turned
	h.mu.Lock()
	defer h.mu.Unlock()
	if p := r.passage; p != nil && r.passing { // and was not let go on
		p.waiting--
		if p.routers--; p.routers == 0 {
			h.passages = slices.DeleteFunc(h.passages, func(o *passage) bool { return o == p })
		}
	}
	r.passage, r.passing = nil, false
	if !d.Send {
		return
	}
	s, ok := h.senders[r.key]
	h.senders[r.key] = lastSender{h.c.o.Process, h.c.instance, h.c.clock.toRedis(now)}
	if w := h.words[before]; w != nil && w.native && (!ok || s.name == h.c.o.Process) {
		s, ok = lastSender{name: before, instance: w.instance}, true
	} else if ok && h.c.clock.fromRedis(s.beat) < now-forgetAfter {
		ok = false // then it was not sent for a long time
	}
	if !ok || s.name == h.c.o.Process {
		return
	}
	how := h.ended(&s, r.key, members, away)
	if n := len(h.passages); n > 0 {
		if p := h.passages[n-1]; p.from == s.name && p.how == how && p.token == d.Token && now-p.begun < passageTogether {
			r.passage = p
		}
	}
	if r.passage == nil {
		p := &passage{begun: now, at: now, from: s.name, how: how, token: d.Token}
		beat := s.beat
		if w := h.words[s.name]; w != nil && w.instance == s.instance {
			beat = max(beat, w.beat)
		}
		if beat > 0 {
			p.heard = min(now, h.c.clock.fromRedis(beat))
		}
		if len(h.passages) == shownPassages {
			h.passages = slices.Delete(h.passages, 0, 1)
		}
		h.passages = append(h.passages, p)
		r.passage = p
	}
	r.passage.routers++
	r.passage.waiting++
	r.passing = true
	if !r.stream.Waits() {
		h.letGo(r, now, nil, 0, "")
	}
}

// ended says what has become of the one that sent before. The caller holds mu.
func (h *history) ended(s *lastSender, key string, members []election.Member, away bool) string {
	w := h.words[s.name]
	known := w != nil && w.instance == s.instance
	for i := range members {
		m := &members[i]
		switch {
		case m.Name != s.name || m.Instance != s.instance:
		case away:
			return control.HowRedisAway
		case m.Routers[key].Sends, m.Native:
			return control.HowOverdue
		case known && w.left:
			return control.HowStopped
		default:
			return control.HowHandedOver
		}
	}
	switch {
	case known && w.left:
		return control.HowStopped
	case known && w.dead:
		return control.HowDead
	case away:
		return control.HowRedisAway
	}
	return control.HowExpired
}

// goOn follows that r, whose lock is held, is let go on at a time, by a plan. err says why
// that was made without knowing what Kafka has.
func (h *history) goOn(r *router, now int64, plan *seam.Plan, read int, err string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.letGo(r, now, plan, read, err)
}

func (h *history) letGo(r *router, now int64, plan *seam.Plan, read int, err string) {
	p := r.passage
	if p == nil || !r.passing {
		return
	}
	r.passing = false
	p.waiting--
	if !p.counted {
		p.counted = true
		h.how[p.how]++
	}
	p.at = now
	p.took = max(p.took, now-r.turned)
	p.read = max(p.read, read)
	again := 0 // messages, because Kafka was not read
	switch {
	case plan == nil:
		again, _, _ = r.stream.Held()
	case err != "":
		again = plan.Sends()
	default:
		p.skipped += uint64(plan.Skipped)
		p.doubtful += uint64(plan.Doubtful)
		p.waited = p.waited || plan.Fresh+plan.Doubtful > 0
	}
	if again > 0 {
		p.blind++
		p.repeats += uint64(again)
		p.waited = true
		p.err = err
	}
}

// acknowledged follows that Kafka has taken records of r, whose lock is held.
func (h *history) acknowledged(r *router, now int64) {
	p := r.passage
	if p == nil {
		return
	}
	r.passage = nil
	h.mu.Lock()
	defer h.mu.Unlock()
	if p.first == 0 {
		p.first = now
	}
}

// fenced follows an attempt to have another sender refused.
func (h *history) fenced(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil {
		h.fenceErr, h.fenceErrAt = told(err, fenceWait), h.c.clock.now()
		return
	}
	h.fencedOthers++
	h.fenceErr, h.fenceErrAt = "", 0
}

// unknown follows whether the ends of all topics are known, and returns for how
// many µs they have not been.
func (h *history) unknown(now int64, known bool) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if known {
		h.endsKnown = max(now, h.endsKnown)
	}
	return max(0, now-h.endsKnown)
}

// takeovers returns the passages as status shows them.
func (h *history) takeovers() (list []control.TakenOver, how map[string]uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	how = make(map[string]uint64, len(h.how))
	for k, n := range h.how {
		how[k] = n
	}
	for _, p := range slices.Backward(h.passages) {
		t := control.TakenOver{
			At: h.c.clock.toTime(p.at), From: p.from, How: p.how, Token: p.token,
			Planned: p.how == control.HowHandedOver || p.how == control.HowStopped,
			Routers: p.routers, Waiting: p.waiting, Took: seconds(p.took), ReadBack: uint64(p.read),
			Skipped: p.skipped, Doubtful: p.doubtful, Blind: p.blind, BlindMessages: p.repeats, Error: p.err,
		}
		switch {
		case p.heard == 0:
		case p.waited && p.first != 0:
			t.Gap = seconds(max(1, p.first-p.heard))
		case !p.waited && p.waiting == 0:
			t.Gap = seconds(max(1, p.at-p.heard))
		}
		list = append(list, t)
	}
	return list, how
}
