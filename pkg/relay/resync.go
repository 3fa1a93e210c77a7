package relay

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

const (
	probeLeast = 200 * time.Millisecond // backoff of probes
	probeMost  = 3 * time.Second        // a refused one costs next to nothing
	// settled is how long a probe must last: a target without room for more
	// sessions, or what stands in front of a dead one, accepts and then closes.
	settled = 300 * time.Millisecond
	// moment is how long a session that has started over must be drained before
	// it is the next one's turn, and turnMost how long it is waited for.
	moment   = time.Second
	turnMost = 30 * time.Second
	// A session that is lost within stable of its reset, or before it was ever
	// drained, waits twice as long as before for its next reset.
	stable    = 20 * time.Second
	resetWait = time.Second
	resetMost = 2 * time.Minute
	// replayMost takes its place where no router notices.
	replayMost = 15 * time.Second
	// pollEvery is how often drained is asked for while that matters.
	pollEvery = 200 * time.Millisecond
)

// A pacer decides for one target when to find out whether it accepts
// connections, and which sessions are reset when. It does nothing itself: events
// go in with their time, step says what to do.
//
// Whether a target accepts is learned by a spare connection, which says nothing
// and is given to the next session that opens. Nothing else disturbs pmacct
// 1.7.7 as little (pmbmpd and nfacctd, tried with bmp_daemon_parse_proxy_header):
// an idle connection leaves no trace in the output, does not hold up other
// sessions, and may say its header at any later time. One that is closed before
// its header, on the other hand, or with "PROXY UNKNOWN", or inside the header,
// takes one of bmp_daemon_max_peers away until pmacct is restarted; a probe that
// connects and closes would use them all up. A header for a router with nothing
// behind it writes log_init and log_close for that router, and a v2 LOCAL header
// for 127.0.0.1. So a spare that nobody needs when the relay is closed is closed
// behind the header of a router that waited for it.
type pacer struct {
	parallel int
	resync   bool
	most     time.Duration // from one reset of a router to the next
	paused   bool
	jitter   func() float64 // in [0, 1)

	sessions  map[uint64]*member
	connected int
	waiting   []uint64 // lost and open, oldest first
	turns     map[netip.Addr]*turn
	past      map[netip.Addr]*past

	spare   spare
	spareAt time.Time // of its connection
	probeAt time.Time // not before
	backoff time.Duration

	reach     State     // Idle, Connecting, Up or Down
	since     time.Time // of state()
	last      State     // what state() was
	goneSince time.Time // zero: not gone
}

type spare byte

const (
	noSpare spare = iota
	trying
	fresh // connected, and may be closed at once
	held
)

// A member is an open session.
type member struct {
	addr    netip.Addr
	state   memberState
	drained time.Time // since when, zero if it is not
}

type memberState byte

const (
	connecting memberState = iota
	connected
	lost
	resetting // asked to close
)

// A turn is a router whose session is starting over.
type turn struct {
	began  time.Time
	old    uint64 // the session that was reset
	opened uint64 // the one that came for it, 0 before
}

// past is what is remembered of a router's resets.
type past struct {
	reset    time.Time // the last one
	session  uint64    // that came after it, 0 before
	calm     bool      // since then a session was drained for a moment
	failures int
	notYet   time.Time // no reset before
}

func newPacer(parallel int, resync bool) *pacer {
	return &pacer{
		parallel: parallel, resync: resync, most: resetMost, jitter: rand.Float64, reach: Idle, last: Idle,
		sessions: make(map[uint64]*member), turns: make(map[netip.Addr]*turn), past: make(map[netip.Addr]*past),
	}
}

// opened: a session has begun, and connects.
func (p *pacer) opened(now time.Time, key uint64, addr netip.Addr) {
	p.sessions[key] = &member{addr: addr}
	if t := p.turns[addr]; t != nil && t.opened == 0 {
		t.opened = key
	}
	if h := p.past[addr]; h != nil && h.session == 0 {
		h.session = key
	}
	if p.reach == Idle {
		p.reach = Connecting
	}
	p.note(now)
}

// up: the target has accepted a session's connection.
func (p *pacer) up(now time.Time, key uint64) {
	p.reach = Up
	if m := p.sessions[key]; m != nil && m.state == connecting {
		m.state = connected
		p.connected++
	}
	p.note(now)
}

// lost: a session's connection, or the try to make one, has failed.
func (p *pacer) lost(now time.Time, key uint64) {
	m := p.sessions[key]
	if m == nil || m.state == lost || m.state == resetting {
		return
	}
	was := m.state
	m.state = lost
	if was == connected {
		p.connected--
	}
	if p.connected == 0 && p.spare != held {
		p.down(now)
	}
	p.waiting = append(p.waiting, key)
	if t := p.turns[m.addr]; t != nil && t.opened == key {
		delete(p.turns, m.addr)
	}
	if h := p.past[m.addr]; h != nil && h.session == key {
		if !h.calm || now.Sub(h.reset) < stable {
			h.notYet = now.Add(min(resetWait<<min(h.failures, 10), p.most))
			h.failures++
		} else {
			h.failures = 0
		}
	}
	p.note(now)
}

// closed: a session has ended.
func (p *pacer) closed(now time.Time, key uint64) {
	m := p.sessions[key]
	if m == nil {
		return
	}
	delete(p.sessions, key)
	switch m.state {
	case connected:
		p.connected--
	case lost:
		p.waiting = slices.DeleteFunc(p.waiting, func(k uint64) bool { return k == key })
	}
	if t := p.turns[m.addr]; t != nil && t.opened == key {
		delete(p.turns, m.addr)
	}
	p.note(now)
}

// postponed: a session that was to be reset cannot be yet.
func (p *pacer) postponed(now time.Time, key uint64) {
	m := p.sessions[key]
	if m == nil || m.state != resetting {
		return
	}
	m.state = lost
	p.waiting = append(p.waiting, key)
	delete(p.turns, m.addr)
	p.past[m.addr].notYet = now.Add(resetWait)
	p.note(now)
}

// probed: the try that step asked for has made the spare connection, or not.
func (p *pacer) probed(now time.Time, ok bool) {
	if ok {
		p.spare, p.spareAt = fresh, now
		return
	}
	p.spareLost(now)
}

// spareLost: the target has closed the spare connection.
func (p *pacer) spareLost(now time.Time) {
	p.spare = noSpare
	if p.connected == 0 {
		p.down(now)
	}
	p.later(now)
	p.note(now)
}

// spareTaken: a session uses the spare connection.
func (p *pacer) spareTaken() { p.spare = noSpare }

// down notes that the target is lost, which it may have been before.
func (p *pacer) down(now time.Time) {
	if p.reach == Down {
		return
	}
	p.reach = Down
	p.later(now)
}

// later puts the next probe off, by more each time until one is held.
func (p *pacer) later(now time.Time) {
	p.backoff = min(max(2*p.backoff, probeLeast), probeMost)
	p.probeAt = now.Add(time.Duration(float64(p.backoff) * (0.75 + 0.5*p.jitter())))
}

// watched returns the sessions whose being drained matters now.
func (p *pacer) watched() (keys []uint64) {
	for _, t := range p.turns {
		if m := p.sessions[t.opened]; m != nil && m.state == connected {
			keys = append(keys, t.opened)
		}
	}
	return keys
}

// drained: a session was found to have nothing left to send, or something.
func (p *pacer) drained(now time.Time, key uint64, yes bool) {
	m := p.sessions[key]
	switch {
	case m == nil:
	case !yes:
		m.drained = time.Time{}
	case m.drained.IsZero():
		m.drained = now
	}
}

// step returns what is to be done now, and when to come back at the latest (zero:
// after the next event).
func (p *pacer) step(now time.Time) (reset []uint64, probe bool, next time.Time) {
	at := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	if p.spare == fresh {
		if ready := p.spareAt.Add(settled); now.Before(ready) {
			at(ready)
		} else {
			p.spare, p.backoff, p.reach = held, 0, Up
		}
	}
	for addr, t := range p.turns {
		m := p.sessions[t.opened]
		if m != nil && m.state == connected && !m.drained.IsZero() && now.Sub(m.drained) >= moment {
			p.past[addr].calm = true
			delete(p.turns, addr)
			continue
		}
		if end := t.began.Add(turnMost); now.Before(end) {
			at(end)
			if m != nil && m.state == connected {
				at(now.Add(pollEvery))
			}
			continue
		}
		delete(p.turns, addr)
		if m := p.sessions[t.old]; m != nil && m.state == resetting {
			m.state = lost // it has not ended: ask again
			p.waiting = append(p.waiting, t.old)
		}
	}
	due := false
	if p.resync && !p.paused {
		keep := p.waiting[:0]
		for _, key := range p.waiting {
			m := p.sessions[key]
			h := p.past[m.addr]
			switch {
			case h != nil && now.Before(h.notYet):
				at(h.notYet)
			case len(p.turns) >= p.parallel || p.turns[m.addr] != nil:
			case p.spare != held:
				due = true
			default:
				if h == nil {
					h = new(past)
					p.past[m.addr] = h
				}
				h.reset, h.session, h.calm = now, 0, false
				m.state = resetting
				p.turns[m.addr] = &turn{began: now, old: key}
				at(now.Add(turnMost))
				reset = append(reset, key)
				continue
			}
			keep = append(keep, key)
		}
		p.waiting = keep
	}
	if p.spare == noSpare && (due || p.reach == Down) {
		if now.Before(p.probeAt) {
			at(p.probeAt)
		} else {
			p.spare, probe = trying, true
		}
	}
	p.prune(now)
	p.note(now)
	return reset, probe, next
}

// prune forgets routers whose resets are long ago.
func (p *pacer) prune(now time.Time) {
	if len(p.past) <= 2*len(p.sessions)+100 {
		return
	}
	for addr, h := range p.past {
		if p.turns[addr] == nil && now.Sub(h.reset) > 2*resetMost {
			delete(p.past, addr)
		}
	}
}

// without returns how many sessions the target has lost and not got back.
func (p *pacer) without() (n int) {
	n = len(p.waiting)
	for _, t := range p.turns {
		if m := p.sessions[t.old]; m != nil && m.state == resetting {
			n++
		}
	}
	return n
}

// state is what Status shows.
func (p *pacer) state() State {
	if p.reach == Up && (len(p.waiting) > 0 || len(p.turns) > 0) {
		return Resyncing
	}
	return p.reach
}

// note follows a change.
func (p *pacer) note(now time.Time) {
	if s := p.state(); s != p.last || p.since.IsZero() {
		p.last, p.since = s, now
	}
	gone := p.connected == 0 && (p.reach == Down || p.reach != Idle && (len(p.waiting) > 0 || len(p.turns) > 0))
	switch {
	case !gone:
		p.goneSince = time.Time{}
	case p.goneSince.IsZero():
		p.goneSince = now
	}
}
