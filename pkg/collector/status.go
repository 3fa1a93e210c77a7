package collector

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/bmpha/bmpha/pkg/cluster"
	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/election"
	"github.com/bmpha/bmpha/pkg/gate"
)

// messageNames are the keys of control.Status.Messages, by BMP type.
var messageNames = [...]string{
	"route_monitoring", "statistics_report", "peer_down", "peer_up", "initiation", "termination",
	"route_mirroring", "unknown",
}

// Status says everything about the collector at this moment. It is safe for
// concurrent use.
func (c *Collector) Status() control.Status {
	now := c.clock.now()
	st := control.Status{
		Version:  control.StatusVersion,
		At:       time.Now(),
		Program:  control.Program{Version: c.o.Version, Go: runtime.Version()},
		Process:  c.o.Process,
		Instance: fmt.Sprintf("%016x", c.instance),
		Host:     c.co.host,
		PID:      os.Getpid(),
		Started:  c.started,
		Uptime:   control.Seconds(time.Since(c.started).Seconds()),
		Cluster:  control.Cluster{Name: c.o.Cluster, ID: c.o.ID, Expected: c.o.Members},
		Degraded: []string{},
		Messages: make(map[string]uint64, len(messageNames)),
		LeftOut:  c.leftOut(),
	}
	for i, name := range messageNames {
		st.Messages[name] = c.counts.byType[i].Load()
	}
	c.electionStatus(&st, now)
	c.routerStatus(&st, now)
	for i := range st.Members { // what was said last may be older than what is now
		m := &st.Members[i]
		if !m.Self {
			continue
		}
		m.HeartbeatAge, m.RoutersHeard, m.RoutersSent = 1e-6, 0, 0
		for j := range st.Routers {
			if st.Routers[j].Heard {
				m.RoutersHeard++
			}
			if st.Routers[j].Sending {
				m.RoutersSent++
			}
		}
	}
	if t := st.LastTakeover; t != nil {
		t.Replayed = c.co.replayed() - t.Replayed
	}
	c.sinkStatus(&st, now)
	c.linkStatus(&st)
	c.readBackStatus(&st, now)
	st.Takeovers, st.TakeoversTotal = c.past.takeovers()
	c.besideStatus(&st, now)
	c.tableStatus(&st)
	st.Sessions = control.Sessions{
		Now: int(c.open.Load()), Max: c.o.MaxSessions, Accepted: c.counts.accepted.Load(),
		Refused: map[string]uint64{
			"not_allowed": c.counts.notAllowed.Load(),
			"limit":       c.counts.tooMany.Load() + c.counts.outOfRouters.Load(),
			"not_bmp":     c.counts.notBMP.Load(),
		},
		Closed: map[string]uint64{
			"router":    c.counts.closedRouter.Load(),
			"bad_input": c.counts.closedBadInput.Load(),
			"stalled":   c.counts.closedStalled.Load(),
			"displaced": c.counts.displaced.Load(),
			"restarted": c.counts.closedRestarted.Load(),
		},
	}
	if why := c.co.client.ScanError(); why != "" && st.Redis.State != control.RedisUnreachable {
		st.Degraded = append(st.Degraded, "cannot look for native members in Redis: "+why)
	}
	if err := c.healthy(); err != nil {
		st.Degraded = append(st.Degraded, err.Error())
	}
	return st
}

func (c *Collector) leftOut() map[string]uint64 {
	n := c.o.Encoder.Counters()
	return map[string]uint64{
		"malformed": n.Malformed, "missing_peer_up": n.MissingPeerUp, "loc_rib_address": n.LocRIBAddress,
		"too_long": n.TooLong, "unknown_messages": n.UnknownMessages, "route_mirroring": n.Mirroring,
		"not_update": n.NotUpdate, "unknown_families": n.UnknownFamilies,
		"unknown_attributes": n.UnknownAttributes, "unknown_tlvs": n.UnknownTLVs,
		"unknown_stats": n.UnknownStats, "trailing_tlvs": n.TrailingTLVs,
	}
}

func seconds(µs int64) control.Seconds { return control.Seconds(float64(µs) / 1e6) }

func forced(mode string) string {
	if mode == election.Auto.String() {
		return ""
	}
	return mode
}

// electionStatus fills in role, members and Redis.
func (c *Collector) electionStatus(st *control.Status, now int64) {
	co := &c.co
	s := co.snapshot()
	st.Role, st.Forced, st.Reason = s.role.String(), forced(s.mode.String()), s.reason
	st.Since, st.Token = c.clock.toTime(s.since), s.token
	st.RoleChanges = map[string]uint64{}
	for role, n := range s.changes {
		st.RoleChanges[election.Role(role).String()] = n
	}
	st.Redis = control.Redis{
		Address: c.o.Redis.Where(), State: control.RedisOK,
		RoundTrip: seconds(s.trip), Heartbeat: seconds(micros(c.o.Heartbeat)), Expiry: seconds(micros(c.o.Expiry)),
		Rounds: s.rounds, Failures: s.failures, Skipped: co.client.Skipped(), LastError: s.failing,
	}
	switch {
	case s.down:
		st.Redis.State, st.Redis.Held = control.RedisUnreachable, s.held
	case s.failing != "" || s.rounds == 0:
		st.Redis.State = control.RedisFailing
	}
	if s.lastGood != 0 {
		st.Redis.LastOKAge = seconds(now - s.lastGood)
	}
	if s.view != nil {
		st.Shadowed = s.view.Shadowed
		st.Members = Members(s.view, c.o.Process, c.instance)
	}
	if t := s.takeover; t.at != 0 {
		first := c.fwd.firstAck.Load()
		if first == 0 {
			first = t.at
		}
		st.LastTakeover = &control.Takeover{
			At: c.clock.toTime(t.at), From: t.from, To: c.o.Process, Reason: t.reason, Token: t.token,
			Duration: seconds(max(0, first-t.at)), Replayed: t.base,
		}
	}
}

// Members turns what Redis shows into what a person reads. process and instance
// say which is the own one. Ages are those at the time of the look.
func Members(v *cluster.View, process string, instance uint64) []control.Member {
	var list []control.Member
	for i := range v.Members {
		m := &v.Members[i]
		if m.Left {
			continue
		}
		cm := control.Member{
			Name: m.Name, Kind: control.KindBMPHA, Gone: m.Gone, Timestamp: m.Value,
			Role: m.Role, Forced: forced(m.Mode), Reason: m.Reason, Token: m.Token,
			Version: m.Version, Host: m.Host, PID: m.PID, Unfit: m.Why, Ready: m.Ready, Link: m.Link,
		}
		if m.Gone {
			cm.Timestamp = m.Own
		}
		if m.Native {
			cm.Kind = control.KindNative
		} else {
			cm.Instance = fmt.Sprintf("%016x", m.Instance)
			cm.Self = m.Name == process && m.Instance == instance
			cm.HeartbeatAge = seconds(max(1, v.RedisTime-m.Beat))
			cm.Since = time.UnixMicro(m.Since)
		}
		for _, r := range m.Routers {
			if r.Hears {
				cm.RoutersHeard++
			}
			if r.Sends {
				cm.RoutersSent++
			}
		}
		list = append(list, cm)
	}
	return list
}

// routerStatus fills in routers and hold.
func (c *Collector) routerStatus(st *control.Status, now int64) {
	st.Hold = control.Hold{Limit: uint64(c.budget.Limit()), Dropped: map[string]uint64{}}
	s := c.co.snapshot()
	view := s.view
	current := view
	if s.lost() { // what others said of their reading is of before
		current = nil
	}
	known := map[string]bool{}
	var full uint64
	var oldest, lowest int64
	for _, r := range c.routers.all() {
		cr, key, lowWater, own := c.oneRouter(r, now)
		known[key] = true
		cr.HeardBy = heardBy(view, key, c.o.Process, cr.Heard)
		cr.Readings = readings(current, key, c.o.Process, &own.RouterState)
		cr.Why = because(&s, key, c.o.Process, cr.Sender, &own)
		if lowWater > 0 {
			cr.LowWater = lowWater
			cr.LowWaterLag = seconds(max(1, c.clock.toRedis(now)-lowWater))
			if lowest == 0 || lowWater < lowest {
				lowest = lowWater
			}
		}
		st.Hold.Messages += cr.Held.Messages
		st.Hold.Bytes += cr.Held.Bytes
		oldest = max(oldest, int64(float64(cr.Held.OldestAge)*1e6))
		full += cr.Dropped["full"]
		if cr.Paused {
			st.Hold.Paused++
		}
		st.MessageBytes += cr.Bytes
		st.Routers = append(st.Routers, cr)
	}
	st.Routers = append(st.Routers, unheard(view, known)...)
	st.Hold.OldestAge = seconds(oldest)
	st.Routers = append(st.Routers, c.neverHeard(st.Routers)...)
	st.Hold.Dropped["full"] = full + c.counts.dropped.Load()
	st.Hold.LastDropAt = c.clock.toTime(c.counts.droppedAt.Load())
	if lowest > 0 {
		st.Hold.LowWater = lowest
		st.Hold.LowWaterLag = seconds(max(1, c.clock.toRedis(now)-lowest))
	}
}

// own is how a router stands here.
type own struct {
	election.RouterState
	wanted bool // it is sent here
	awaits bool // once it is known what Kafka has
}

func (c *Collector) oneRouter(r *router, now int64) (cr control.Router, key string, lowWater int64, o own) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.stream.Counters()
	held, bytes, oldest := r.stream.Held()
	cr = control.Router{
		Identity: r.identity, Address: r.addr.String(), SysName: r.facts.sysName, SysDescr: r.facts.sysDescr,
		Sessions: r.facts.sessions, Messages: r.facts.messages, Bytes: r.facts.bytes,
		LastHeard: c.clock.toTime(r.facts.lastHeard), PeersUp: len(r.facts.peers),
		Sender: r.sender, Sending: r.stream.State() == gate.Sending, Paused: r.waits > 0,
		Held:         control.Backlog{Messages: uint64(held), Bytes: uint64(bytes)},
		Acknowledged: n.Acknowledged, Replayed: n.Replayed, Records: n.Records, Rollbacks: n.Rollbacks,
		DecodeErrors: n.Errors,
		Source:       control.SourceBMP, Heard: r.hears(), Opaque: r.facts.opaque,
		Skipped: n.Skipped, Doubtful: n.Doubtful,
		Freed:   map[string]uint64{"mark": n.FreedMark, "window": n.FreedWindow},
		Dropped: map[string]uint64{"full": n.Dropped},
	}
	if oldest > 0 {
		cr.Held.OldestAge = seconds(max(0, now-oldest))
	}
	if r.pmacct {
		cr.Source = control.SourcePmacct
	}
	if !r.addr.IsValid() {
		cr.Address = ""
	}
	if q := r.spool.queue; q != nil && q.Len() > 0 {
		cr.Spooled = control.Backlog{Messages: uint64(q.Len()), Bytes: uint64(q.Bytes())}
		if at, ok := q.Oldest(); ok {
			cr.Spooled.OldestAge = seconds(max(0, c.clock.toRedis(now)-at))
		}
	}
	if r.stream.Wanted() {
		cr.Behind = cr.Held
	}
	cr.Table = r.routes.status(c.clock.toUnix(now))
	if s := r.session; s != nil {
		cr.Session = &control.Session{ID: s.id, Port: int(s.addr.Port()), Since: c.clock.toTime(s.accepted)}
	}
	lowWater = r.lowWater
	if mark, ok := r.mark(c, now); ok {
		lowWater = c.clock.toRedis(mark)
	}
	o = own{wanted: r.stream.Wanted(), awaits: r.stream.Awaits(), RouterState: election.RouterState{
		Hears: cr.Heard, Sends: r.sends(), Whole: r.course.Whole(now, r.Behind), Behind: r.lag(now), Keeps: r.keeps, Lags: r.lags,
	}}
	return cr, r.key, lowWater, o
}

// others calls f for each living member but this one, with what it says of a router.
func others(v *cluster.View, key, process string, f func(m *cluster.Member, s election.RouterState)) {
	if v == nil {
		return
	}
	for i := range v.Members {
		if m := &v.Members[i]; m.Name != process && !m.Gone && !m.Left {
			f(m, m.Routers[key])
		}
	}
}

// readings say how the members that hear a router get on with it, by their names.
func readings(v *cluster.View, key, process string, own *election.RouterState) (list []control.Reading) {
	add := func(name string, s *election.RouterState) {
		if s.Hears {
			list = append(list, control.Reading{
				Member: name, Behind: seconds(s.Behind), Whole: s.Whole, Late: s.Lags, Sends: s.Sends,
			})
		}
	}
	add(process, own)
	others(v, key, process, func(m *cluster.Member, s election.RouterState) {
		if !m.Native && !m.Old {
			add(m.Name, &s)
		}
	})
	slices.SortFunc(list, func(a, b control.Reading) int { return strings.Compare(a.Member, b.Member) })
	return list
}

// because says why sender is to send a router, as one of the whys of package control.
func because(s *snapshot, key, process, sender string, own *own) string {
	here := sender == process
	// What the sender says, what the leader says, and what the rest does.
	var its, first election.RouterState
	leads, led, native, heard, sent := false, false, false, 0, false
	consider := func(name string, active, isNative bool, r election.RouterState) {
		if r.Hears {
			heard++
		}
		if name == sender {
			its, leads, native = r, active, isNative
			return
		}
		if active {
			first, led = r, true
		}
		sent = sent || r.Sends
	}
	consider(process, s.role == election.Active, false, own.RouterState)
	others(s.view, key, process, func(m *cluster.Member, r election.RouterState) {
		consider(m.Name, m.Role == election.Active.String(), m.Native, r)
	})
	switch {
	case sender == "":
		return ""
	case here && own.awaits:
		return control.WhyReadingBack
	case here && !own.wanted:
		return control.WhyTakingOver
	case !here && own.wanted:
		return control.WhyHandingOver
	case s.lost() && leads && here && strings.HasPrefix(s.reason, "Redis unavailable"):
		return control.WhyRedisAway
	case native:
		return control.WhyNative
	case !here && sent && !its.Sends:
		return control.WhyTakingOver
	case leads || !led:
		return control.WhyLeads
	case !its.Hears && heard == 0:
		return control.WhyLast
	case !first.Hears && heard == 1:
		return control.WhyOnly
	case !first.Hears:
		return control.WhyLeaderDeaf
	case first.Lags:
		return control.WhyLeaderLate
	case !first.Whole:
		return control.WhyLeaderDumps
	}
	return control.WhyKept
}

// heardBy names the members that have a session with a router.
func heardBy(v *cluster.View, key, process string, here bool) []string {
	list := []string{}
	if here {
		list = append(list, process)
	}
	if v != nil {
		for i := range v.Members {
			if m := &v.Members[i]; m.Name != process && !m.Gone && m.Routers[key].Hears {
				list = append(list, m.Name)
			}
		}
	}
	return list
}

// unheard lists the routers that only other members have heard, by what members
// call them.
func unheard(v *cluster.View, known map[string]bool) []control.Router {
	if v == nil {
		return nil
	}
	seen := map[string]int{}
	var list []control.Router
	for i := range v.Members {
		m := &v.Members[i]
		if m.Gone {
			continue
		}
		for id, r := range m.Routers {
			if !r.Hears || known[id] {
				continue
			}
			at, ok := seen[id]
			if !ok {
				cr := control.Router{Identity: id, HeardBy: []string{}, Source: control.SourceBMP}
				if identity, ok := strings.CutPrefix(id, pmacctPrefix); ok {
					cr.Identity, cr.Source = identity, control.SourcePmacct
				}
				list = append(list, cr)
				at = len(list)
				seen[id] = at
			}
			cr := &list[at-1]
			cr.HeardBy = append(cr.HeardBy, m.Name)
			if r.Sends {
				cr.Sender = m.Name
			}
		}
	}
	slices.SortFunc(list, func(a, b control.Router) int { return strings.Compare(a.Identity, b.Identity) })
	return list
}

// neverHeard lists the routers that the configuration names and nobody has heard.
func (c *Collector) neverHeard(known []control.Router) []control.Router {
	seen := map[string]bool{}
	for i := range known {
		seen[known[i].Identity] = true
	}
	var list []control.Router
	for addr, alias := range c.o.Alias {
		if !seen[alias] {
			list = append(list, control.Router{Identity: alias, Address: addr.String(), HeardBy: []string{}})
		}
	}
	slices.SortFunc(list, func(a, b control.Router) int { return strings.Compare(a.Identity, b.Identity) })
	return list
}

func (c *Collector) sinkStatus(st *control.Status, now int64) {
	s := c.o.Sink.Stats()
	st.Sink = control.Sink{
		Kind: c.o.SinkKind, Target: c.o.SinkTarget, Connected: s.Connected, DeadLetterFile: c.o.DeadLetter,
		InFlight: s.Outstanding, Window: s.Window, Handed: s.Handed, Acknowledged: s.Acked, Failed: s.Failed,
		Fencing: c.o.TransactionalID != nil, Fenced: s.Fenced, Unsure: s.Unsure,
		DeadLetters: s.Dead, Rebuilt: s.Rebuilt, Bytes: s.Bytes, LastError: s.LastError, LastErrorAt: s.LastErrorAt,
	}
	c.past.mu.Lock()
	st.Sink.FencedOthers, st.Sink.FenceError, st.Sink.FenceErrorAt = c.past.fencedOthers, c.past.fenceErr, c.clock.toTime(c.past.fenceErrAt)
	c.past.mu.Unlock()
	// Nothing moves: of what is under way, or of what waits to be.
	waits := int64(0)
	for i := range st.Routers {
		if r := &st.Routers[i]; r.Sending {
			waits = max(waits, int64(float64(r.Behind.OldestAge)*1e6))
		}
	}
	idle := max(0, now-c.fwd.progress.Load())
	switch {
	case s.Outstanding > 0:
		st.Sink.Stalled = seconds(idle)
	case waits > 0:
		st.Sink.Stalled = seconds(min(idle, waits, max(0, now-c.co.snapshot().since)))
	}
}

func (c *Collector) linkStatus(st *control.Status) {
	if c.co.link == nil {
		return
	}
	st.Link = &control.Link{Holds: c.o.HoldRoles, Peers: []control.LinkPeer{}}
	for _, p := range c.co.link.Status() {
		cp := control.LinkPeer{
			Name: p.Name, Address: p.Address, Connected: p.Connected, Since: p.Since,
			RoundTrip: control.Seconds(p.RoundTrip.Seconds()), Error: p.Error,
		}
		if p.Instance != 0 {
			cp.Instance = fmt.Sprintf("%016x", p.Instance)
		}
		if !p.Heard.IsZero() {
			cp.HeardAge = control.Seconds(max(time.Microsecond, time.Since(p.Heard)).Seconds())
		}
		st.Link.Peers = append(st.Link.Peers, cp)
	}
}

// endsStale is how long ago, in µs, the ends of topics may have been looked at.
const endsStale = int64(2 * time.Second / time.Microsecond)

func (c *Collector) readBackStatus(st *control.Status, now int64) {
	if c.join.reader == nil {
		return
	}
	s := c.join.reader.Status()
	b := &control.ReadBack{
		Topics: s.Topics, Partitions: s.Partitions, Known: s.Known, Reading: s.Reading, Ready: c.join.ready.Load(),
		LastError: s.LastError, LastErrorAt: s.LastErrorAt,
	}
	if s.From > 0 {
		b.History = seconds(max(0, now-s.From))
	}
	known := s.Known == s.Partitions && now-s.To < endsStale
	if s.Partitions == 0 { // of topics that do not exist there is nothing to know
		known = s.Topics == 0 || s.LastErrorAt.IsZero() || time.Since(s.LastErrorAt) >= 2*time.Second
	}
	b.Unknown = seconds(c.past.unknown(now, known))
	st.ReadBack = b
}

// Healthy reports whether the main loops turn.
func (c *Collector) Healthy() error { return c.healthy() }

// Ready reports whether the collector takes part: it listens, and has heard from
// Redis or knows that it cannot.
func (c *Collector) Ready() error {
	c.co.mu.Lock()
	defer c.co.mu.Unlock()
	if c.co.seen.role == election.Starting {
		return errors.New("no election round yet")
	}
	return nil
}
