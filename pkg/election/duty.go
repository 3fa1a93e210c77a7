package election

// A Duty says what to do about one router.
type Duty struct {
	Send bool // send what the router says
	// Shared is set when another collector may send for the router as well.
	Shared bool
	// Sender names the member that is to send for the router, "" if no one is
	// known.
	Sender string
	// LowWater is the sender's low-water mark on Redis' clock: everything that
	// it received before is in Kafka. 0 when no mark is known, so that nothing
	// may be forgotten. -1 when the sender is a member that gives none, so that
	// only time can tell what it has sent.
	LowWater int64
}

// follow keeps the low-water marks that other members give. Of two that send
// for a router the one that is behind counts; one that no longer sends, or is
// gone, still vouches for what it sent.
func (e *Election) follow(now int64, members []Member) {
	for _, sends := range []bool{false, true} {
		for i := range members {
			m := &members[i]
			if e.self(m) {
				continue
			}
			for router, s := range m.Routers {
				if s.Mark < 0 || (s.Sends && !m.Gone) != sends {
					continue
				}
				old, ok := e.marks[router]
				switch {
				case !sends && ok && old.mark >= s.Mark:
				case sends && ok && old.sends && old.at == now && old.mark <= s.Mark:
				default:
					e.marks[router] = seen{mark: s.Mark, at: now, sends: sends}
				}
			}
		}
	}
	for router, s := range e.marks {
		if now-s.at > e.cfg.Window {
			delete(e.marks, router)
		}
	}
}

// Duty says what to do about a router that we hear or do not hear, and send for
// or not yet. It is to be asked after each event.
func (e *Election) Duty(now int64, router string, hears, sends bool) Duty {
	_, unavailable := e.Unavailable()
	switch {
	case e.left || e.role == Starting:
		return Duty{LowWater: e.marks[router].mark}
	case unavailable && e.mode != ForceStandby:
		return Duty{Send: true, Shared: true, Sender: e.cfg.Name, LowWater: e.marks[router].mark}
	case e.lastGood == 0 || e.shadowed:
		return Duty{LowWater: e.marks[router].mark}
	}
	d := Duty{Sender: e.owner(now, router, hears, sends), LowWater: e.marks[router].mark}
	if e.mode == ForceActive {
		d.Sender = e.cfg.Name
	}
	if m := e.find(d.Sender); m != nil && m.Native {
		d.LowWater = -1
	}
	if e.mode == ForceStandby {
		return d
	}
	if d.Sender != e.cfg.Name || e.best() && e.role != Active {
		// Not ours, or not before the takeover token is there.
		delete(e.waiting, router)
		return d
	}
	other := e.sentByOther(router)
	d.Shared = other || e.lastGood < e.settled
	d.Send = sends || !other || e.mode == ForceActive || e.waited(now, router)
	if !other {
		delete(e.waiting, router)
	}
	return d
}

// sentByOther reports whether a living member has not yet stopped sending.
func (e *Election) sentByOther(router string) bool {
	for i := range e.members {
		if m := &e.members[i]; !e.self(m) && m.Routers[router].Sends {
			return true
		}
	}
	return false
}

// waited reports whether a living sender had its time to stop.
func (e *Election) waited(now int64, router string) bool {
	since, ok := e.waiting[router]
	if !ok {
		since = now
		e.waiting[router] = now
	}
	return now-since >= e.cfg.Handover
}

func (e *Election) find(name string) *Member {
	for i := range e.members {
		if e.members[i].Name == name {
			return &e.members[i]
		}
	}
	return nil
}

// owner names the member that is to send for a router: the leader, unless it has
// not heard the router for the grace while another member does. Then it is, of
// those that hear it, the one with the smallest timestamp. The grace lets all
// members hear a router that has just come up before anyone draws conclusions;
// meanwhile the others hold. What no one hears any more stays with the one that
// sends, because the leader may never have heard it. A native member cannot say
// what it hears and is taken to hear everything.
func (e *Election) owner(now int64, router string, hears, sends bool) string {
	me := e.me()
	me.Routers = map[string]RouterState{router: {Hears: hears, Sends: sends}}
	var best, last, first *Member
	consider := func(m *Member) {
		if m.Value == ForcedStandby {
			return
		}
		if first == nil || compare(m, first) < 0 {
			first = m
		}
		if (m.Native || m.Routers[router].Hears) && (best == nil || compare(m, best) < 0) {
			best = m
		}
		if m.Routers[router].Sends && (last == nil || compare(m, last) < 0) {
			last = m
		}
	}
	for i := range e.members {
		if m := &e.members[i]; !e.self(m) {
			consider(m)
		}
	}
	consider(&me)
	switch {
	case first == nil:
		return ""
	case best == nil && last != nil && last != first:
		return last.Name
	case best == nil || best == first:
		delete(e.unheard, router)
		return first.Name
	}
	since, ok := e.unheard[router]
	if !ok {
		since = now
		e.unheard[router] = now
	}
	if now-since < e.cfg.Grace {
		return first.Name
	}
	return best.Name
}
