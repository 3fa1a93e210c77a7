package control

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// A Severity says what a problem means for the collector's health.
type Severity string

const (
	// Degraded: the collector does not do its job, or could not after the next
	// failure.
	Degraded Severity = "degraded"
	// Notice: worth knowing, nothing to get up for.
	Notice Severity = "notice"
)

// A Problem is one thing that is not as it should be.
type Problem struct {
	Code     string   `json:"code"` // stable, for scripts
	Severity Severity `json:"severity"`
	Text     string   `json:"text"` // in words, without control characters
}

func (p Problem) String() string { return p.Text }

// Thresholds of Problems.
const (
	staleAfter    = 5 * time.Second // age of the document itself
	stallAfter    = Seconds(5)      // sink without progress while records wait
	recently      = 5 * time.Minute // drops and errors are worth mentioning
	routersGrace  = Seconds(60)     // after a start routers may take this long to come
	producerGrace = Seconds(60)     // after a start pmacct may take this long to connect
	filling       = 0.80            // of a limit
	full          = 0.95
	linkGrace     = 5 * time.Second // after they have started or parted, members may take this long to connect
	unknownAfter  = Seconds(5)      // ends of topics not known
	listedRouters = 3               // named in one problem
	listedFiles   = 2
)

// Problems returns what is wrong with the collector that s describes, the worst
// first. now is the time on the clock of the collector's host; ages in s are as of
// s.At. It is empty when everything is well.
func Problems(s *Status, now time.Time) []Problem {
	d := diagnosis{s: s, now: now}
	d.process()
	d.sink()
	d.redis()
	d.link()
	d.readBack()
	d.relay()
	d.intake()
	d.unfit()
	d.members()
	d.hold()
	d.spool()
	d.tables()
	d.dump()
	d.routers()
	slices.SortStableFunc(d.found, func(a, b Problem) int { return rank(a.Severity) - rank(b.Severity) })
	return d.found
}

func rank(s Severity) int {
	if s == Degraded {
		return 0
	}
	return 1
}

// degraded reports whether one of the problems is more than a notice.
func degraded(problems []Problem) bool {
	return slices.ContainsFunc(problems, func(p Problem) bool { return p.Severity == Degraded })
}

type diagnosis struct {
	s     *Status
	now   time.Time
	found []Problem
	told  bool // who sends instead of this collector
}

func (d *diagnosis) add(severity Severity, code, format string, args ...any) {
	d.found = append(d.found, Problem{Code: code, Severity: severity, Text: clean(fmt.Sprintf(format, args...))})
}

// because writes ": reason" when there is one.
func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

func (d *diagnosis) process() {
	s := d.s
	if age := d.now.Sub(s.At); age > staleAfter {
		d.add(Degraded, "stale", "this was the state %s ago, the collector has not said anything since", span(Seconds(age.Seconds())))
	}
	for _, reason := range s.Degraded {
		d.add(Degraded, "degraded", "%s", reason)
	}
	if s.Shadowed {
		other := ""
		for i := range s.Members {
			if m := &s.Members[i]; m.Name == s.Process && !m.Self && m.Host != "" {
				other = fmt.Sprintf(" (on %s, pid %d)", m.Host, m.PID)
			}
		}
		d.add(Degraded, "name_taken", "another process is named %q too%s: this one stays out of the election", s.Process, other)
	}
	if s.Role == RoleStarting {
		d.add(Degraded, "starting", "nothing is sent before the first election round")
	}
	switch s.Forced {
	case RoleActive, RoleStandby:
		d.add(Notice, "forced", "forced %s by an operator; \"bmpha maintenance auto\" ends that", s.Forced)
	}
	if s.Sessions.Max > 0 && s.Sessions.Now >= s.Sessions.Max {
		d.add(Degraded, "sessions_full", "all %s are in use, further routers are refused", plural(s.Sessions.Max, "session"))
	}
}

func (d *diagnosis) sink() {
	s := &d.s.Sink
	name := d.s.sinkName()
	switch {
	case s.Stalled >= stallAfter:
		d.add(Degraded, "sink_stalled", "%s has not acknowledged for %s%s", name, span(s.Stalled), because(s.LastError))
	case !s.Connected:
		d.add(Degraded, "sink_disconnected", "%s at %s is not connected%s", name, s.Target, because(s.LastError))
	case s.LastError != "" && !s.LastErrorAt.IsZero() && d.now.Sub(s.LastErrorAt) < recently:
		d.add(Notice, "sink_error", "%s reported an error %s ago: %s", name, sinceWords(s.LastErrorAt, d.now), s.LastError)
	}
	if s.DeadLetters > 0 {
		where := ""
		if s.DeadLetterFile != "" {
			where = ", see " + s.DeadLetterFile
		}
		d.add(Notice, "dead_letters", "%s that %s can never take, set aside%s", plural(s.DeadLetters, "record"), name, where)
	}
	if s.FenceError != "" && d.now.Sub(s.FenceErrorAt) < recently {
		d.add(Notice, "fence_failed", "%s ago a collector that was replaced could not be shut out of %s: what it still has may come late, with its old token%s", sinceWords(s.FenceErrorAt, d.now), name, because(s.FenceError))
	}
}

// link says which of the living members are not reached directly although that is
// wanted.
func (d *diagnosis) link() {
	s := d.s
	if s.Link == nil {
		return
	}
	peers := make(map[string]*LinkPeer)
	for i := range s.Link.Peers {
		peers[s.Link.Peers[i].Name] = &s.Link.Peers[i]
	}
	severity, consequence := Notice, "its end would be noticed later"
	if s.Link.Holds {
		severity, consequence = Degraded, "without Redis both would send"
	}
	for i := range s.Members {
		m := &s.Members[i]
		p := peers[m.Name]
		switch {
		case m.Self || m.Gone || m.Kind == KindNative || m.Name == s.Process:
		case p != nil && p.Connected:
			if p.Error != "" {
				d.add(Notice, "link_address", "%s advertises %s for direct connections, where it was not reached%s; its end would be noticed later", m.Name, m.Link, because(p.Error))
			}
		case m.Link == "":
			d.add(severity, "link_missing", "%s has no link to the other collectors: %s", m.Name, consequence)
		case s.Uptime < Seconds(linkGrace.Seconds()) || d.now.Sub(m.Since) < linkGrace:
		case p == nil || p.Since.IsZero():
			why := ""
			if p != nil {
				why = because(p.Error)
			}
			d.add(severity, "link_down", "%s at %s was never reached directly%s; %s", m.Name, m.Link, why, consequence)
		case d.now.Sub(p.Since) >= linkGrace:
			d.add(severity, "link_down", "%s at %s is not reached directly for %s%s; %s", m.Name, m.Link, sinceWords(p.Since, d.now), because(p.Error), consequence)
		}
	}
}

// readBack says whether a takeover would know what Kafka has, and whether the last
// one did.
func (d *diagnosis) readBack() {
	s := d.s
	if b := s.ReadBack; b != nil && b.Unknown >= unknownAfter && s.Sink.Connected && s.Sink.Stalled < stallAfter {
		severity := Notice
		if s.Role != RoleActive {
			severity = Degraded
		}
		why := ""
		if !b.LastErrorAt.IsZero() && d.now.Sub(b.LastErrorAt) < recently {
			why = because(b.LastError)
		}
		d.add(severity, "read_back", "the end of what %s has cannot be read for %s, a takeover now would repeat what is held%s", s.sinkName(), span(b.Unknown), why)
	}
	if len(s.Takeovers) == 0 || s.ReadBack == nil {
		return
	}
	if t := &s.Takeovers[0]; t.Blind > 0 && t.BlindMessages > 0 && d.now.Sub(t.At) < recently {
		d.add(Notice, "takeover_blind", "%s went on %s ago without knowing what %s has, %s may be repeated%s",
			plural(t.Blind, "router"), sinceWords(t.At, d.now), s.sinkName(), plural(t.BlindMessages, "message"), because(t.Error))
	}
}

func (d *diagnosis) redis() {
	r := &d.s.Redis
	name := "Redis"
	if !strings.Contains(r.LastError, r.Address) {
		name += " at " + r.Address
	}
	last := "never answered"
	if r.LastOKAge > 0 || r.Rounds > 0 {
		last = "last answered " + span(r.LastOKAge) + " ago"
	}
	switch r.State {
	case RedisUnreachable:
		consequence := "every collector is active, records may be repeated"
		switch {
		case r.Held:
			consequence = "the roles stay, the collectors hear each other directly"
		case d.s.Role != RoleActive:
			consequence = "the other collectors are not seen"
		}
		d.add(Degraded, "redis_unreachable", "%s %s%s; %s", name, last, because(r.LastError), consequence)
	case RedisFailing:
		d.add(Degraded, "redis_failing", "%s fails, %s%s", name, last, because(r.LastError))
	}
}

func (d *diagnosis) members() {
	s := d.s
	if s.Redis.State != RedisOK || s.Role == RoleStarting || s.Shadowed {
		return // who else is alive is not known, or this one is none of them
	}
	live, active, native, reserve := 0, 0, 0, 0
	var forcedActive, forcedStandby, gone []string
	var unfit []*Member
	for i := range s.Members {
		m := &s.Members[i]
		role, forced, fit := m.Role, m.Forced, m.Unfit == ""
		if m.Self {
			role, forced, fit = s.Role, s.Forced, s.Unfit == ""
		}
		if m.Gone {
			gone = append(gone, m.Name)
			continue
		}
		live++
		if m.Kind == KindNative {
			native++
		}
		switch {
		case role == RoleActive:
			active++
		case fit && forced != RoleStandby:
			reserve++
		}
		if !fit && !m.Self {
			unfit = append(unfit, m)
		}
		switch forced {
		case RoleActive:
			forcedActive = append(forcedActive, m.Name)
		case RoleStandby:
			forcedStandby = append(forcedStandby, m.Name)
			if !m.Self {
				d.add(Notice, "member_forced", "%s is forced to standby and will not take over", m.Name)
			}
		}
	}
	switch {
	case live > 0 && len(forcedStandby) == live:
		d.add(Degraded, "nobody_active", "every collector is forced to standby: nobody sends")
	case active == 0 && native == 0 && s.Role != RoleActive:
		d.add(Degraded, "nobody_active", "no collector is active: nobody sends")
	}
	for _, m := range unfit {
		switch {
		case m.Role == RoleActive && (m.Forced == RoleActive || reserve == 0):
			d.add(Degraded, "member_unfit", "%s is active and cannot do its job: %s", m.Name, m.Unfit)
		case reserve == 0:
			d.add(Degraded, "member_unfit", "%s could not take over: %s", m.Name, m.Unfit)
		default:
			d.add(Notice, "member_unfit", "%s cannot do its job: %s", m.Name, m.Unfit)
		}
	}
	if len(forcedActive) > 1 {
		d.add(Degraded, "two_forced_active", "forced active at the same time: %s; records are repeated", list(slices.Sorted(slices.Values(forcedActive)), 4))
	}
	for _, name := range gone {
		d.add(Degraded, "member_gone", "%s no longer answers", name)
	}
	switch missing := s.Cluster.Expected - live; {
	case missing > 0 && live == 1:
		d.add(Degraded, "members_missing", "alone, %d members are expected: no other collector would take over", s.Cluster.Expected)
	case missing > 0:
		d.add(Degraded, "members_missing", "%d of %d expected members missing", missing, s.Cluster.Expected)
	case s.others() == 0 && len(gone) == 0 && s.Cluster.Expected == 0:
		d.add(Notice, "alone", "alone: no other collector would take over")
	}
}

func (d *diagnosis) hold() {
	h := &d.s.Hold
	if !h.LastDropAt.IsZero() && d.now.Sub(h.LastDropAt) < recently {
		d.add(Degraded, "hold_dropped", "the hold was full: %s dropped, the last %s ago%s",
			plural(total(h.Dropped), "message"), sinceWords(h.LastDropAt, d.now), reasons(h.Dropped))
	}
	d.room("hold", h.Bytes, h.Limit)
	if h.Paused > 0 {
		d.add(Degraded, "routers_paused", "no more is read from %s until the hold has room", plural(h.Paused, "router"))
	}
}

// room adds a problem when what is called name, a hold or a spool, is filling up.
func (d *diagnosis) room(name string, used, limit uint64) {
	switch part := share(used, limit); {
	case part >= full:
		d.add(Degraded, name+"_full", "the %s is full: %s of %s", name, mebibytes(used), mebibytes(limit))
	case part >= filling:
		d.add(Notice, name+"_filling", "the %s is %.0f %% full: %s of %s", name, part*100, mebibytes(used), mebibytes(limit))
	}
}

// share is the part of limit that is used, 0 when there is no limit.
func share(used, limit uint64) float64 {
	if limit == 0 {
		return 0
	}
	return float64(used) / float64(limit)
}

func (d *diagnosis) relay() {
	for i := range d.s.Relay {
		t := &d.s.Relay[i]
		if t.State == RelayDown {
			d.add(Degraded, "relay_down", "the relay to %s is down for %s%s", t.Address, sinceWords(t.Since, d.now),
				because(strings.TrimPrefix(t.LastError, "dial tcp "+t.Address+": ")))
			continue // all that is open waits for it
		}
		if part := share(t.Buffered, t.Limit); part >= filling {
			severity := Notice
			if part >= full {
				severity = Degraded // sessions are soon cut
			}
			why := "does not keep up"
			if t.Paused {
				why = "is held back"
			}
			d.add(severity, "relay_behind", "%s %s, its buffer has %s", t.Address, why, usage(t.Buffered, t.Limit))
		}
		if t.Paused {
			d.add(Notice, "relay_paused", "nothing is passed on to %s until there is room for what it makes", t.Address)
		}
		if t.Waiting > 0 {
			d.add(Notice, "relay_waiting", "%s to start over for %s", plural(t.Waiting, "session"), t.Address)
		}
	}
}

func (d *diagnosis) intake() {
	n := d.s.Intake
	if n == nil {
		return
	}
	switch {
	case !n.Lost.IsZero():
		d.add(Degraded, "intake_lost", "pmacct's producer is gone for %s%s", sinceWords(n.Lost, d.now), d.instead())
	case len(n.Listen) > 0 && len(n.Producers) == 0 && d.s.Uptime >= producerGrace:
		d.add(Degraded, "intake_none", "pmacct has not connected to %s in the %s since the start%s", list(n.Listen, 2), span(d.s.Uptime), d.instead())
	}
	var failing []string
	for i := range n.Files {
		if f := &n.Files[i]; f.Error != "" {
			failing = append(failing, f.Path+because(strings.TrimPrefix(f.Error, "open "+f.Path+": ")))
		}
	}
	slices.Sort(failing)
	switch {
	case len(failing) == 1:
		d.add(Degraded, "intake_file", "a followed file cannot be read: %s", failing[0])
	case len(failing) > 1:
		d.add(Degraded, "intake_file", "%d followed files cannot be read: %s", len(failing), list(failing, listedFiles))
	}
}

// instead says, behind the reason why this collector cannot do its job, who does.
func (d *diagnosis) instead() string {
	s := d.s
	d.told = true
	if s.Redis.State == RedisUnreachable || s.Redis.State == RedisFailing || s.Role == RoleStarting {
		return "" // not known
	}
	fit := s.standIns()
	switch {
	case s.Role != RoleActive:
		for i := range s.Members {
			m := &s.Members[i]
			switch {
			case m.Self || m.Gone || m.Role != RoleActive:
			case m.Unfit != "":
				return "; " + m.Name + " is active and no better off"
			default:
				return "; " + m.Name + " sends"
			}
		}
		if fit != nil {
			return "; another collector sends"
		}
		return ""
	case fit == nil:
		return "; no other collector could send instead"
	case s.Forced == RoleActive:
		return "; forced active, so that " + list(fit, 2) + " will not take over"
	default:
		return "; " + list(fit, 2) + " will take over"
	}
}

// standIns names the other members that could be active, in order.
func (s *Status) standIns() []string {
	var names []string
	for i := range s.Members {
		if m := &s.Members[i]; !m.Self && !m.Gone && m.Unfit == "" && m.Forced != RoleStandby {
			names = append(names, m.Name)
		}
	}
	slices.Sort(names)
	return names
}

func (d *diagnosis) unfit() {
	if d.s.Unfit == "" {
		return
	}
	instead := ""
	if !d.told {
		instead = d.instead()
	}
	d.add(Degraded, "unfit", "this collector cannot do its job: %s%s", d.s.Unfit, instead)
}

func (d *diagnosis) spool() {
	p := d.s.Spool
	if p == nil {
		return
	}
	if p.Error != "" {
		d.add(Degraded, "spool_error", "the spool in %s fails: %s", p.Dir, p.Error)
	}
	d.room("spool", p.Used, p.Limit)
}

func (d *diagnosis) tables() {
	if t := d.s.Tables; t != nil && t.Limit > 0 && share(t.Used, t.Limit) >= filling {
		d.add(Notice, "tables_filling", "the tables of the routers take %s: a router that finds no room is treated as without one", usage(t.Used, t.Limit))
	}
	for i := range d.s.Routers {
		if r := &d.s.Routers[i]; r.Table != nil && r.Table.GivenUp != "" {
			d.add(Notice, "table_given_up", "the table of router %s is given up until its next session: %s", r.Identity, r.Table.GivenUp)
		}
	}
}

func (d *diagnosis) dump() {
	if p := d.s.Dump; p != nil && p.LastError != "" {
		d.add(Notice, "dump_error", "the last dump of a table failed: %s", p.LastError)
	}
}

// reasons writes " (reason n, …)" in the order of the names.
func reasons(m map[string]uint64) string {
	var parts []string
	for _, k := range sortedKeys(m) {
		if m[k] > 0 {
			parts = append(parts, k+" "+count(m[k]))
		}
	}
	if parts == nil {
		return ""
	}
	return " (" + strings.Join(parts, ", ") + ")"
}

// condition is how a router stands with this collector.
type condition int

// Conditions from the worst to the best.
const (
	routerLost      condition = iota // was heard here, now by nobody
	routerNever                      // named in the configuration, heard by nobody
	routerUnsent                     // heard here, nobody sends
	routerElsewhere                  // heard by another member only
	routerOpaque
	routerPaused
	routerWell
)

// here reports whether the router is heard here. Of a router that comes through
// pmacct a session says nothing: there may be none, or one that is only passed on.
func (r *Router) here() bool {
	return r.Heard || r.Session != nil && r.Source != SourcePmacct
}

// reading is how a member gets on with reading the router, nil if that is not known.
func (r *Router) reading(member string) *Reading {
	for i := range r.Readings {
		if r.Readings[i].Member == member {
			return &r.Readings[i]
		}
	}
	return nil
}

func (r *Router) condition(role string) condition {
	switch {
	case !r.here() && len(r.HeardBy) > 0:
		return routerElsewhere
	case !r.here() && r.Sessions == 0 && r.LastHeard.IsZero():
		return routerNever
	case !r.here():
		return routerLost
	case r.Sender == "" && !r.Sending && role != RoleStarting:
		return routerUnsent
	case r.Opaque:
		return routerOpaque
	case r.Paused:
		return routerPaused
	}
	return routerWell
}

func (d *diagnosis) routers() {
	var by [routerWell + 1][]*Router
	for i := range d.s.Routers {
		r := &d.s.Routers[i]
		c := r.condition(d.s.Role)
		by[c] = append(by[c], r)
	}
	missing := Degraded
	if d.s.Uptime < routersGrace {
		missing = Notice // they are still on their way
	}
	none := func(*Router) string { return "" }
	d.router(missing, "router_lost", by[routerLost], "is heard by no collector any more", "are heard by no collector any more", func(r *Router) string {
		if r.Session != nil {
			return " (session open, not by pmacct)"
		}
		if r.LastHeard.IsZero() {
			return ""
		}
		return " (last " + sinceWords(r.LastHeard, d.now) + " ago)"
	})
	d.router(missing, "router_never_heard", by[routerNever], "is configured and was never heard", "are configured and were never heard", none)
	d.router(Degraded, "router_unsent", by[routerUnsent], "is heard and sent by nobody", "are heard and sent by nobody", none)
	d.router(missing, "router_elsewhere", by[routerElsewhere], "is heard only elsewhere", "are heard only elsewhere", func(r *Router) string {
		return " (by " + list(r.HeardBy, 2) + ")"
	})
	var late []*Router
	for i := range d.s.Routers {
		if r := d.s.Routers[i].reading(d.s.Process); r != nil && r.Late {
			late = append(late, &d.s.Routers[i])
		}
	}
	d.router(Notice, "router_late", late, "is read late here", "are read late here", func(r *Router) string {
		return fmt.Sprintf(" (%s behind)", span(r.reading(d.s.Process).Behind))
	})
	d.router(Degraded, "router_opaque", by[routerOpaque], "sent what cannot be decoded and is only passed on", "sent what cannot be decoded and are only passed on", none)
}

// router adds one problem for all routers with the same condition.
func (d *diagnosis) router(severity Severity, code string, routers []*Router, one, many string, detail func(*Router) string) {
	if len(routers) == 0 {
		return
	}
	slices.SortFunc(routers, func(a, b *Router) int { return strings.Compare(a.Identity, b.Identity) })
	if len(routers) == 1 {
		d.add(severity, code, "router %s %s%s", routers[0].Identity, one, detail(routers[0]))
		return
	}
	var names []string
	for _, r := range routers {
		names = append(names, r.Identity+detail(r))
	}
	d.add(severity, code, "%s %s: %s", plural(len(routers), "router"), many, list(names, listedRouters))
}
