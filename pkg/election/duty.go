package election

import "slices"

// A Duty says what to do about one router.
type Duty struct {
	Send bool // send what the router says
	// Shared is set when another collector may send for the router as well.
	Shared bool
	// Expect is set when this member is to take the router over from one that
	// lives, or from one that may be dead: what that one writes is to be read in
	// advance.
	Expect bool
	// Keeps and Lags are for RouterState, so that all members judge alike: the
	// router is sent here although another leads, until it is given back; its
	// reading is behind, so that another should send for it.
	Keeps, Lags bool
	// Token is for what is sent: the largest known, but while an heir gets ready
	// the one that was the largest before.
	Token uint64
	// Sender names the member that is to send for the router, "" if no one is
	// known. While an heir gets ready that is the heir.
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
			if !sends {
				e.senders(now, m)
			}
			for router, s := range m.Routers {
				if (s.Sends && !m.Gone) == sends {
					e.mark(now, router, s.Mark, sends)
				}
			}
		}
	}
	for router, s := range e.marks {
		if now-s.at > e.cfg.Window {
			delete(e.marks, router)
		}
	}
	if now-e.forgotten > e.cfg.Window {
		e.forgotten = now
		for name, r := range e.routers {
			if now-r.asked > e.cfg.Window {
				delete(e.routers, name)
			}
		}
	}
}

func (e *Election) mark(now int64, router string, mark int64, sends bool) {
	if mark < 0 {
		return
	}
	old, ok := e.marks[router]
	switch {
	case !sends && ok && old.mark >= mark:
	case sends && ok && old.sends && old.at == now && old.mark <= mark:
	default:
		e.marks[router] = seen{mark: mark, at: now, sends: sends}
	}
}

func (e *Election) router(now int64, name string) *router {
	r := e.routers[name]
	if r == nil {
		r = new(router)
		e.routers[name] = r
	}
	r.asked = now
	return r
}

// Duty says what to do about a router that we hear or do not hear, and send for
// or not yet. It is to be asked after each event.
func (e *Election) Duty(now int64, router string, hears, sends bool) Duty {
	r := e.router(now, router)
	d := e.duty(now, router, r, hears, sends)
	d.LowWater = e.marks[router].mark
	if m := e.find(d.Sender); m != nil && m.Native {
		d.LowWater = -1
	}
	d.Keeps, d.Lags = r.keeps, r.lags
	d.Token = e.token
	if d.Send && r.linger != 0 {
		d.Token = r.token
	}
	if d.Send && !sends && !d.Shared && r.other != 0 && d.Token <= r.shown {
		// It has not stopped: what it still has under way is to be known as late.
		if _, unavailable := e.Unavailable(); unavailable {
			e.token = r.shown + 1 // Redis gives a larger one later
			e.shown = max(e.shown, e.token)
			d.Token = e.token
		} else {
			if !e.raise {
				e.raise, e.next = true, min(e.next, now)
			}
			d.Send, d.Expect = false, true
		}
	}
	if d.Send {
		r.token, r.other = d.Token, 0
	}
	return d
}

// senders follows which routers another member says that it sends.
func (e *Election) senders(now int64, m *Member) {
	for name, s := range m.Routers {
		r := e.routers[name]
		switch {
		case s.Sends && r == nil:
			r = e.router(now, name)
			fallthrough
		case s.Sends:
			r.other, r.shown = m.Instance, m.Token
		case r != nil && r.other == m.Instance:
			r.other = 0
		}
	}
}

func (e *Election) duty(now int64, router string, r *router, hears, sends bool) Duty {
	_, unavailable := e.Unavailable()
	idle := func() {
		r.waiting, r.unheard, r.linger, r.keeps = 0, 0, 0, false
	}
	switch {
	case e.left || e.role == Starting:
		idle()
		return Duty{}
	case unavailable && !e.rests() && e.held == heldNot:
		r.waiting, r.linger = 0, 0
		return Duty{Send: true, Shared: true, Sender: e.cfg.Name}
	case e.lastGood == 0 && e.held == heldNot || e.shadowed:
		idle()
		return Duty{}
	}
	e.lag(now, router, r)
	d := Duty{Sender: e.owner(now, router, r, hears, sends)}
	if e.mode == ForceActive && !e.rests() {
		d.Sender = e.cfg.Name
	}
	other := e.sentByAnother(router, e.cfg.Name)
	if !sends {
		r.linger = 0
	}
	if d.Sender != e.cfg.Name {
		r.waiting = 0
		d.Send = sends && e.lingers(now, router, r, d.Sender, other)
		d.Shared = d.Send && (unavailable || e.lastGood < e.settled)
		d.Expect = !d.Send && !e.rests() && e.unfit == "" && e.expects(router, r, hears, sends)
		return d
	}
	if e.best() && e.role != Active {
		// Not before the takeover token is there, but for what is under way.
		r.waiting = 0
		d.Send = sends && (r.keeps || r.linger != 0) && !other
		d.Shared = d.Send && e.lastGood < e.settled
		d.Expect = !d.Send
		return d
	}
	r.linger = 0
	d.Shared = other || e.lastGood < e.settled || e.besides(now, router) || unavailable && e.quiet(now)
	d.Send = sends || !other || e.mode == ForceActive || e.waited(now, r)
	d.Expect = !d.Send
	if !other {
		r.waiting = 0
	}
	return d
}

// lingers reports whether a router that we send is sent on until its heir is ready.
func (e *Election) lingers(now int64, router string, r *router, heir string, other bool) bool {
	h := e.find(heir)
	if e.cfg.Linger <= 0 || other || h == nil || h.Native || h.Old || h.Value == ForcedActive || h.Ready || e.unfit != "" {
		return false
	}
	if _, unavailable := e.Unavailable(); unavailable {
		if _, ok := e.fresh(now, h); !ok {
			return false // it could not say that it is ready
		}
	}
	if r.linger == 0 {
		r.linger = now
	}
	return now-r.linger < e.cfg.Linger
}

// expects reports whether we are to take the router over from another that sends,
// once that one, or the grace, is ready for it, or if the silence of a member is its
// end.
func (e *Election) expects(router string, r *router, hears, sends bool) bool {
	p := e.pick(router, r, hears, sends, false)
	if p.keeper != nil && e.cfg.Failback && e.current(p.me, router) {
		p.keeper = nil // it will give it back
	}
	if p.last != nil && p.choice() == e.cfg.Name {
		return true
	}
	if !slices.ContainsFunc(e.members, func(m Member) bool { return m.suspect }) {
		return false
	}
	p = e.pick(router, r, hears, sends, true)
	return p.choice() == e.cfg.Name
}

// sentByAnother reports whether a living member, other than the one of that name
// and us, has not yet stopped sending.
func (e *Election) sentByAnother(router, name string) bool {
	for i := range e.members {
		if m := &e.members[i]; !e.self(m) && m.Name != name && m.Routers[router].Sends {
			return true
		}
	}
	return false
}

// besides reports whether a member that is not seen in Redis, or was not until
// lately, sends or has sent for the router.
func (e *Election) besides(now int64, router string) bool {
	for i := range e.members {
		m := &e.members[i]
		if _, ok := m.Routers[router]; ok && m.Strayed && !e.self(m) {
			return true
		}
	}
	for _, h := range e.heard {
		if now-h.at < e.cfg.Expiry && h.m.Routers[router].Sends && e.find(h.m.Name) == nil {
			return true
		}
	}
	return false
}

// quiet reports whether a member was not heard for so long that it may take over
// before we know: what it heard last from us is up to a heartbeat older than what we
// heard from it.
func (e *Election) quiet(now int64) bool {
	for i := range e.members {
		m := &e.members[i]
		if h, ok := e.fresh(now, m); !e.self(m) && (!ok || now-h.at >= e.cfg.Expiry-e.cfg.Heartbeat) {
			return true
		}
	}
	return false
}

// waited reports whether a living sender had its time to stop.
func (e *Election) waited(now int64, r *router) bool {
	if r.waiting == 0 {
		r.waiting = now
	}
	return now-r.waiting >= e.cfg.Handover
}

func (e *Election) find(name string) *Member {
	for i := range e.members {
		if e.members[i].Name == name {
			return &e.members[i]
		}
	}
	return nil
}

// lag follows whether our reading of a router is behind, by what we have said of
// it.
func (e *Election) lag(now int64, router string, r *router) {
	if e.cfg.MaxBehind <= 0 {
		return
	}
	behind := e.said[router].Behind > e.cfg.MaxBehind
	const rest = 4 // times Steady between two lags
	switch {
	case behind == r.lags:
		r.turning = 0
	case r.turning == 0:
		r.turning = now
	case now-r.turning < e.cfg.Steady:
	case !behind:
		r.lags, r.turning = false, 0
	case r.lagged == 0 || now-r.lagged >= rest*e.cfg.Steady:
		r.lags, r.turning, r.lagged = true, 0, now
	}
}

// current reports whether what a member says of a router is neither half a table
// nor late.
func (e *Election) current(m *Member, router string) bool {
	if m.Native {
		return true
	}
	s := m.Routers[router]
	if m.Old {
		return s.Hears
	}
	return s.Hears && s.Whole && !s.Lags && (e.cfg.MaxBehind <= 0 || s.Behind <= e.cfg.MaxBehind)
}

// picks are the members that matter for a router.
type picks struct {
	me     *Member
	first  *Member // the leader
	best   *Member // the oldest that hears it, but for those that lag if there is one that does not
	last   *Member // the oldest that sends
	keeper *Member // the oldest that keeps it, if that counts
}

// choice names the member that is to send, whatever was before.
func (p *picks) choice() string {
	switch {
	case p.first == nil:
		return ""
	case p.keeper != nil:
		return p.keeper.Name
	case p.best != nil:
		return p.best.Name
	case p.last != nil:
		return p.last.Name
	}
	return p.first.Name
}

// pick looks for the members that matter for a router; without those that may be
// dead, if so asked. It is good until the next call.
func (e *Election) pick(router string, r *router, hears, sends, sure bool) (p picks) {
	e.my = e.me()
	clear(e.mine)
	s := e.said[router] // what the others know counts for us, too
	s.Hears, s.Sends, s.Keeps, s.Lags = hears, sends, s.Keeps && r.keeps, s.Lags && r.lags
	e.mine[router] = s
	e.my.Routers = e.mine
	p.me = &e.my
	var well *Member // the oldest that is current
	older := func(m, than *Member) bool { return than == nil || e.compare(m, than) < 0 }
	consider := func(m *Member) {
		if m.Value == ForcedStandby || sure && m.suspect {
			return
		}
		s := m.Routers[router]
		if older(m, p.first) {
			p.first = m
		}
		if (m.Native || s.Hears) && older(m, p.best) {
			p.best = m
		}
		if s.Sends && older(m, p.last) {
			p.last = m
		}
		if s.Sends && s.Keeps && older(m, p.keeper) {
			p.keeper = m
		}
		if !m.Old && !m.Unfit && e.current(m, router) && older(m, well) {
			well = m
		}
	}
	for i := range e.members {
		if m := &e.members[i]; !e.self(m) {
			consider(m)
		}
	}
	consider(p.me)
	if p.best != nil && p.best.Routers[router].Lags && well != nil {
		p.best = well
	}
	if k, f := p.keeper, p.first; k != nil && (k == f || f.Native || f.Value == ForcedActive || f.Old && f.Routers[router].Hears) {
		p.keeper = nil
	}
	return p
}

// owner names the member that is to send for a router: the one that keeps it, or
// the leader, unless it has not heard the router for the grace while another member
// does. Then it is, of those that hear it, the one with the smallest timestamp,
// which keeps it from then on. The grace lets all members hear a router that has
// just come up before anyone draws conclusions; meanwhile the others hold. What no
// one hears any more stays with the one that sends, because the leader may never
// have heard it. A native member cannot say what it hears and is taken to hear
// everything.
func (e *Election) owner(now int64, router string, r *router, hears, sends bool) string {
	p := e.pick(router, r, hears, sends, false)
	elsewhere := p.best != nil && p.best != p.first
	switch {
	case !elsewhere && (p.best != nil || p.last == nil || p.last == p.first):
		r.unheard = 0
	case elsewhere && r.unheard == 0:
		r.unheard = now
	}
	if p.keeper == p.me && p.me != nil && e.givesBack(&p, router, r, hears) {
		p.keeper = nil
	}
	name := p.choice()
	if p.keeper == nil && elsewhere && now-r.unheard < e.cfg.Grace {
		name = p.first.Name
	}
	r.keeps = name == e.cfg.Name && p.first != p.me && (r.keeps || hears)
	return name
}

// givesBack reports whether we, who keep a router, are to keep it no longer.
func (e *Election) givesBack(p *picks, router string, r *router, hears bool) bool {
	switch {
	case p.best == nil || p.best == p.me:
		return false
	case !hears:
		return true
	case r.lags || e.unfit != "" && !p.best.Unfit:
		return e.current(p.best, router)
	}
	return e.cfg.Failback && p.best == p.first && e.current(p.first, router)
}
