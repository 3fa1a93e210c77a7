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
	holdFilling   = 0.80            // of the limit
	holdFull      = 0.95
	listedRouters = 3 // named in one problem
)

// Problems returns what is wrong with the collector that s describes, the worst
// first. now is the time on the clock of the collector's host; ages in s are as of
// s.At. It is empty when everything is well.
func Problems(s *Status, now time.Time) []Problem {
	d := diagnosis{s: s, now: now}
	d.process()
	d.sink()
	d.redis()
	d.members()
	d.hold()
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
		if d.s.Role != RoleActive {
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
	live, active, native := 0, 0, 0
	var forcedActive, forcedStandby, gone []string
	for i := range s.Members {
		m := &s.Members[i]
		role, forced := m.Role, m.Forced
		if m.Self {
			role, forced = s.Role, s.Forced
		}
		if m.Gone {
			gone = append(gone, m.Name)
			continue
		}
		live++
		if m.Kind == KindNative {
			native++
		}
		if role == RoleActive {
			active++
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
	case s.others() == 0 && len(gone) == 0:
		d.add(Notice, "alone", "alone: no other collector would take over")
	}
}

func (d *diagnosis) hold() {
	h := &d.s.Hold
	if !h.LastDropAt.IsZero() && d.now.Sub(h.LastDropAt) < recently {
		d.add(Degraded, "hold_dropped", "the hold was full: %s dropped, the last %s ago%s",
			plural(total(h.Dropped), "message"), sinceWords(h.LastDropAt, d.now), reasons(h.Dropped))
	}
	if h.Limit > 0 {
		switch used := float64(h.Bytes) / float64(h.Limit); {
		case used >= holdFull:
			d.add(Degraded, "hold_full", "the hold is full: %s of %s", mebibytes(h.Bytes), mebibytes(h.Limit))
		case used >= holdFilling:
			d.add(Notice, "hold_filling", "the hold is %.0f %% full: %s of %s", used*100, mebibytes(h.Bytes), mebibytes(h.Limit))
		}
	}
	if h.Paused > 0 {
		d.add(Degraded, "routers_paused", "no more is read from %s until the hold has room", plural(h.Paused, "router"))
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
	routerLost      condition = iota // had a session, now nobody has
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
