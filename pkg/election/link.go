package election

import "fmt"

// heard is what a member said last over a direct connection.
type heard struct {
	m  Member
	at int64
}

// held says how the role is held while Redis is unavailable.
type held uint8

const (
	heldNot     held = iota // everyone is active
	heldStandby             // one that is heard is active
	heldActive              // we are, and all others are known not to be
)

// A death is the news that a process has ended.
type death struct {
	instance uint64
	told     int64 // when
	spoke    int64 // Redis' clock at its last words, as the last round showed them; 0 if unknown
}

// Heard follows what a member says of itself over a direct connection, the same as
// it says in Redis; its Value is that of its timestamp, 0 before it has one, and
// its TTL, Gone and Beat do not matter. Membership and order stay as Redis has
// them while it is available; the rest counts at once.
func (e *Election) Heard(now int64, m Member) {
	if m.Name == e.cfg.Name || m.Native || e.left {
		return
	}
	m.TTL, m.Beat, m.Gone, m.suspect = 0, 0, false, false
	if old, ok := e.heard[m.Name]; !ok || old.m.Instance != m.Instance || old.m.Value != m.Value {
		e.Look(now)
	}
	if e.dead[m.Name].instance == m.Instance {
		delete(e.dead, m.Name) // evidently not
	}
	e.heard[m.Name] = heard{m, now}
	e.senders(now, &m)
	e.token, e.shown = max(e.token, m.Token), max(e.shown, m.Token)
	for router, s := range m.Routers {
		if !e.sentByAnother(router, m.Name) { // of two the one behind counts: rounds see both
			e.mark(now, router, s.Mark, s.Sends)
		}
	}
	_, unavailable := e.Unavailable()
	known := e.find(m.Name)
	switch {
	case known != nil && !known.Native && known.Instance == m.Instance:
		value := known.Value
		if unavailable && m.Value != 0 {
			value = m.Value
		}
		m.Value, m.TTL = value, known.TTL
		*known = m
	case unavailable && e.cfg.Hold && m.Value != 0 && (known == nil || !known.Native):
		// It has started meanwhile. Of its name there is but one.
		if known != nil {
			*known = m
		} else {
			e.members = append(e.members, m)
		}
	}
	if unavailable && e.cfg.Hold {
		e.decide(now)
	}
}

// Dead follows the news that a process has ended, as when its host refuses a
// connection: it counts as gone at once, whatever Redis still holds of it. Another
// instance of the name does not, nor does one that is heard again, or that goes on
// speaking in Redis: what refuses may be the network.
func (e *Election) Dead(now int64, name string, instance uint64) {
	if name == e.cfg.Name || e.left {
		return
	}
	e.dead[name] = death{instance: instance, told: now}
	if h, ok := e.heard[name]; ok && h.m.Instance == instance {
		delete(e.heard, name)
	}
	leader, _ := e.Leader()
	for i := range e.members {
		m := &e.members[i]
		if !e.isDead(m) {
			continue
		}
		if _, unavailable := e.Unavailable(); unavailable && (m.Active || m.Name == leader.Name) {
			e.headless = now
		}
		e.died++
		e.members = append(e.members[:i:i], e.members[i+1:]...)
		break
	}
	e.next = min(e.next, now)
	e.decide(now)
}

func (e *Election) isDead(m *Member) bool {
	d, ok := e.dead[m.Name]
	return ok && !m.Native && d.instance == m.Instance
}

// revive takes back the death of a member whose words in a round show that it lives:
// they are younger than the news by more than a heartbeat, and others than those of a
// round since. Both, because Redis may show late what was said before, and a step of
// its clock may make old words look young.
func (e *Election) revive(r *Round, m *Member) {
	if m.Beat <= 1 || !e.isDead(m) {
		return // as if said just now, or later: by another clock
	}
	d := e.dead[m.Name]
	spoke := r.RedisTime - m.Beat
	if d.spoke != 0 && spoke != d.spoke && r.Sent-m.Beat > d.told+e.cfg.Heartbeat {
		delete(e.dead, m.Name)
		return
	}
	d.spoke = spoke
	e.dead[m.Name] = d
}

// fresh returns what the member has said directly within an expiry.
func (e *Election) fresh(now int64, m *Member) (heard, bool) {
	h, ok := e.heard[m.Name]
	return h, ok && !m.Native && h.m.Instance == m.Instance && now-h.at < e.cfg.Expiry
}

// overlay puts what is known from direct connections over what a round brought.
func (e *Election) overlay(now int64, r *Round) {
	for i := range r.Members {
		m := &r.Members[i]
		e.shown = max(e.shown, m.Token)
		e.revive(r, m)
		if e.isDead(m) {
			m.Gone, m.TTL = true, 0
		}
		if m.Gone || m.Native || e.self(m) {
			continue
		}
		delete(e.dead, m.Name) // of an instance before
		if h, ok := e.fresh(now, m); ok && h.at > r.Sent {
			value, ttl, beat := m.Value, m.TTL, m.Beat
			*m = h.m
			m.Value, m.TTL, m.Beat = value, ttl, beat
		}
	}
}

// linked adds those to the members that are not in Redis and heard directly, if
// that is to count: they may be cut off from Redis, and go on.
func (e *Election) linked(now int64) {
	for name, h := range e.heard {
		if now-h.at >= e.cfg.Expiry {
			if now-h.at > e.cfg.Window {
				delete(e.heard, name)
			}
			continue
		}
		if !e.cfg.Hold || h.m.Value == 0 || h.m.Value == ForcedStandby || e.find(name) != nil {
			continue
		}
		m := h.m
		m.TTL = h.at + e.cfg.Expiry - now
		e.members = append(e.members, m)
	}
}

// Held reports whether the role is held although Redis is unavailable.
func (e *Election) Held() bool { return e.held != heldNot }

// Lost reports whether nothing tells who else sends: Redis is unavailable and the role
// is not held.
func (e *Election) Lost() bool {
	_, unavailable := e.Unavailable()
	return unavailable && !e.Held()
}

// silent reports whether a member should have spoken by now. One that sends does so
// a few times in a heartbeat, the others once.
func (e *Election) silent(now int64, m *Member) bool {
	if m.Beat == 0 || m.Native || m.Value == ForcedStandby {
		return false
	}
	limit := e.cfg.Heartbeat * 5 / 4
	for _, s := range m.Routers {
		if s.Mark >= 0 {
			limit = e.cfg.Heartbeat / 2
			break
		}
	}
	if h, ok := e.fresh(now, m); ok && now-h.at <= limit {
		return false
	}
	return m.Beat > limit
}

// holds decides the role while Redis is unavailable and reports whether it is held;
// if not, everyone is active.
func (e *Election) holds(now int64) bool {
	e.held = heldNot
	complete, others := e.lastGood != 0 && !e.shadowed, e.died
	var active, first *Member
	for i := range e.members {
		m := &e.members[i]
		if e.self(m) {
			continue
		}
		if _, ok := e.fresh(now, m); !ok {
			complete = false
			continue
		}
		others++
		if m.Active && (active == nil || compare(m, active) < 0) {
			active = m
		}
		if m.Value != ForcedStandby && (first == nil || compare(m, first) < 0) {
			first = m
		}
	}
	me := e.me()
	switch {
	case active != nil && e.mode != ForceActive && !e.shadowed && (e.role != Active || compare(active, &me) < 0):
		e.held = heldStandby
		e.become(now, Standby, fmt.Sprintf("Redis unavailable: %s; %s is active", e.failing, active.Name))
	case !complete || others == 0 || active != nil:
	case e.role == Active && (e.right || now-e.since >= e.cfg.Expiry):
		// All had the time to say that they are active, if they are.
		e.held = heldActive
		e.reason = fmt.Sprintf("Redis unavailable: %s; all others are heard", e.failing)
	case e.role == Standby && e.headless != 0 && (first == nil || compare(&me, first) < 0):
		e.token++ // above that of the dead; Redis gives a larger one later
		e.shown = max(e.shown, e.token)
		e.held = heldActive
		e.become(now, Active, fmt.Sprintf("Redis unavailable: %s; the leader is dead", e.failing))
		e.right = true
	case e.role == Standby && e.headless != 0 && now-e.headless < e.cfg.Expiry:
		e.held = heldStandby // one before us will say that it is active
	}
	return e.held != heldNot
}
