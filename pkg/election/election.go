// Package election decides which collector of a cluster sends.
//
// Each collector writes a timestamp under its name to Redis and reads those of
// all others; the smallest wins, the name breaks a tie. On top of that original
// rule, which native pmacct shares, the package settles what happens at the
// edges: nothing is sent before the first round; a collector that was paused
// comes back as the youngest; a Redis that refuses, hangs or answers errors for
// a few deadlines makes everyone active, because repeats are better than loss;
// a router that the active does not hear belongs to a collector that does; and a
// collector that takes over from one that is alive waits until that one has
// stopped, while that one, if the change was planned, goes on until its heir says
// that it is ready.
//
// # Planned changes
//
// A member that sends and is no longer the one to send goes on until the one that
// is says that it is Ready, or sends, or Config.Linger has passed; then it stops.
// The heir waits until it sees that (Config.Handover at most, which must be longer
// than Linger). It stops at once when there is no heir that could say so, when the
// heir is forced to be active, and when it cannot do the job itself.
//
// # Routers
//
// A router belongs to the leader. One that the leader does not hear for
// Config.Grace, or reads too late, goes to the oldest member that hears it, which
// says that it Keeps it: from then on it alone decides when to give it back, so that
// two never judge by different knowledge. It does when it hears the router no more
// and another does; when it Lags or is unfit and another is better off; and, with
// Config.Failback, as soon as the leader hears the router, is through with the table
// dump (Whole) and not behind. A member lags once it was behind by more than
// Config.MaxBehind for Config.Steady; it lags no more once it was not for as long,
// and not twice within four times that. A lagging sender that nobody could replace
// keeps the router. To a member of an earlier version, which says nothing of all
// this, a router goes back as soon as it hears it, and none for a lag.
//
// # Health
//
// Who is unfit (SetUnfit: Kafka not reached, pmacct gone, log full) and active
// takes a new timestamp if another member says that it is fit. To keep this from
// flapping, whatever the reasons are and however many: both have said so for a
// heartbeat and a deadline (what hits all is said by all by then, and nobody
// moves); a change of the reason is not a new beginning, an end of all reasons is;
// one that was unfit counts as fit only after Config.Proof; and a member does not
// give way twice within Config.Handover and two expiries. When it is well again
// nothing goes back. The caller waits before it says that something is wrong.
//
// # Without Redis
//
// Config.Failures rounds in a row that fail make Redis unavailable; less changes
// nothing. Then everyone is active and says that it shares. With Config.Hold the
// roles stay as long as the members hear each other directly (Heard): who is active
// goes on, alone, while it hears all that were alive in the last good round and none
// of them says that it is active, too; who hears one that says that it is active
// stays standby. If that one is Dead and all others are heard, the oldest takes over.
// In every other case all are active, as without Hold. A member that is gone from
// Redis and heard directly counts as alive, because it may be the one that is cut
// off and goes on. A member that knows of no other does not trust that there is none.
//
// Redis may lose what it knew, or fail over to a replica that never had all of it.
// A round that says so (Round.Unknown) lets nobody take over from those that were
// alive before, until they had the time to speak. Two that send, each as if alone,
// are then possible for less than an expiry. Nothing here can see two masters, each
// with some of the members, unless the members hear each other directly: Redis has
// to be told to take no writes without a replica (min-replicas-to-write).
//
// It is pure logic: each method takes the time and what happened and moves the
// state; a thin shell asks Redis and carries out what the state says. Times are
// microseconds on a clock that never goes back, except timestamps and low-water
// marks, which are on Redis' clock in microseconds since the Unix epoch. Nothing
// here is safe for concurrent use.
package election

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
)

// Timestamps with a meaning of their own.
const (
	// ForcedActive is written by a collector that is forced to be active, so
	// that all others yield, native ones included.
	ForcedActive uint64 = 1_000_000_000_000_000
	// ForcedStandby is written by one that must not be active, and left behind
	// by one that has left.
	ForcedStandby uint64 = 1<<63 - 1
)

// A Role is what a collector is in its cluster.
type Role uint8

const (
	Starting Role = iota // no round yet; sends nothing
	Standby
	Active
)

func (r Role) String() string { return [...]string{"starting", "standby", "active"}[r] }

// A Mode is what an operator asked for.
type Mode uint8

const (
	Auto Mode = iota
	ForceActive
	ForceStandby
)

func (m Mode) String() string { return [...]string{"auto", "active", "standby"}[m] }

// Config is fixed for the life of an Election. Durations are in microseconds.
type Config struct {
	Name      string // of the process, unique in the cluster
	Instance  uint64 // random, of this start of the process
	Heartbeat int64  // from the start of one round to the next
	Expiry    int64  // of what a round writes
	Deadline  int64  // of one round; failed rounds start this far apart
	Failures  int    // failed rounds in a row that make Redis unavailable
	Handover  int64  // longest wait for a living sender to stop
	Grace     int64  // how long the leader may not hear a router before another sends for it
	Window    int64  // how long the last low-water mark of a sender serves
	// Linger is how long a sender that is no longer the one to send goes on, at
	// most, until its heir is ready; 0 not at all. Less than Handover.
	Linger int64
	// Failback gives a router back to the leader once that one is current. Without
	// it the router stays where it is while it is heard there.
	Failback bool
	// MaxBehind is by how much the reading of a router may lag, and Steady how long
	// it must do so, or no longer do so, before that means anything. 0: no limit.
	MaxBehind int64
	Steady    int64
	// Hold keeps the roles while Redis is unavailable and the members hear each
	// other directly.
	Hold bool
	// Proof is how long a member that was unfit must have been fit again before
	// another gives way to it: what is mended for one is mostly mended for all.
	Proof int64
}

// expirySlack is how long after a predicted expiry Redis is asked, in µs.
const expirySlack = 1000

// Deadline returns the time for one round such that Failures of them fit
// between a heartbeat and the expiry, both in microseconds.
func Deadline(heartbeat, expiry int64) int64 { return max((expiry-heartbeat)/4, 1000) }

// A Member is what a collector has said of itself, as read from Redis.
type Member struct {
	Name     string
	Instance uint64
	Value    uint64 // timestamp as written
	Native   bool   // a pmacct: says nothing beyond its timestamp
	Old      bool   // of an earlier version: says and knows nothing of Whole, Behind, Keeps, Lags
	Gone     bool   // its timestamp has expired; what it last said is still known
	Unfit    bool   // it says that it cannot do the job now
	TTL      int64  // µs until its timestamp expires unless it is renewed, 0 if unknown
	Token    uint64 // of the last takeover that it knows
	Active   bool   // it says that its role is active
	// Ready says, of the routers with Duty.Expect: it has read what the present
	// sender has written, up to now. False when there are none.
	Ready bool
	// Strayed says that it has sent without Redis until lately; see
	// Election.Strayed.
	Strayed bool
	// Beat is how long ago it last spoke, in µs, as of the round; 0 if unknown.
	Beat    int64
	Routers map[string]RouterState

	suspect bool // it should have spoken by now
}

// A RouterState is what a member says of one router.
type RouterState struct {
	Hears bool  // a session is open
	Sends bool  // records may be handed over or under way
	Mark  int64 // low-water mark, Redis' clock; -1 when there is none
	// Dumped is the last slot, in seconds since the Unix epoch, of which the table
	// of the router was dumped as a whole; 0 when there is none. The election does
	// not care.
	Dumped int64
	Whole  bool  // the session's table dump is through: End-of-RIB, or quiet
	Behind int64 // by how many µs the reading lags, 0 if it does not
	Keeps  bool  // as of Duty.Keeps
	Lags   bool  // as of Duty.Lags
}

// A Round is the result of one exchange with Redis.
type Round struct {
	Sent      int64    // when it was begun, local clock
	RedisTime int64    // Redis' clock, during the round
	Wrote     uint64   // the value written for ourselves, 0 for none
	Members   []Member // all that live, we among them if written, and those lately gone
	Shadowed  bool     // another instance holds our name
	Unknown   bool     // Redis did not know what we have said before
	Token     uint64   // of the last takeover that Redis knows of, 0 for none
}

// An Election is the view of one collector. Make it with New.
type Election struct {
	cfg Config

	role   Role
	reason string
	since  int64 // of the role
	mode   Mode

	timestamp uint64 // own, 0 until the first round
	renew     bool   // take a new timestamp at the next round
	firstPut  int64  // when what we are by was first written, 0 if not yet
	token     uint64 // of our last claim, or the largest seen
	shown     uint64 // the largest token that a member has shown
	yielding  bool   // others come first until we leave
	claim     bool   // a token is wanted, with which to become active
	raise     bool   // a token is wanted, for a router whose sender has not stopped
	claimed   bool   // the token was claimed for the time as active that lasts

	members  []Member // of the last good round
	lastGood int64    // Sent of the last good round, 0 if none
	forgot   int64    // until when members may be missing because Redis forgot them
	settled  int64    // rounds sent before may miss members that Redis has lost
	failures int      // failed rounds in a row
	failing  string   // last error
	lease    int64    // nothing is handed over from then on
	next     int64    // when the next round is due
	woke     int64    // end of the last pause; older rounds do not count
	left     bool
	shadowed bool
	unfit    string // why we cannot do the job now, "" if we can
	unfitAt  int64  // since when
	// mended are the members that were unfit, with the time since when they are not,
	// 0 while they are.
	mended  map[string]int64
	gaveWay int64 // when we last made room for a member that can

	heard     map[string]heard // what members said directly, by name
	dead      map[string]death // the instances that are told to be dead, by name
	held      held             // how the role is held while Redis is unavailable
	right     bool             // active by a token, or after the leader's death
	headless  int64            // when the leader died while Redis was unavailable, 0 if not
	died      int              // members known to have died since the last good round
	strayed   int64            // until when others are told that we sent without Redis
	forgotten int64            // when routers were last looked through

	marks   map[string]seen
	routers map[string]*router
	my      Member                 // ourselves, as one of those that are picked from
	mine    map[string]RouterState // what we say of the router that it is about
	said    map[string]RouterState // what we have said in the last round in which we wrote
}

type seen struct {
	mark, at int64
	sends    bool
}

// A router is what is remembered of one between two questions. Times are 0 for
// "not now".
type router struct {
	asked   int64
	waiting int64 // since when we wait for a living sender to stop
	unheard int64 // since when the leader does not hear it while another does
	linger  int64 // since when we go on for an heir
	turning int64 // since when being behind or not is unlike lags
	lagged  int64 // when lags was last set
	lags    bool
	keeps   bool
	token   uint64 // of what was sent last

	other uint64 // instance of the member that was last said to send it, 0 once that has stopped
	shown uint64 // and its token
}

// New returns an election that wants its first round at once.
func New(cfg Config, now int64) *Election {
	return &Election{
		cfg:     cfg,
		reason:  "no election round yet",
		since:   now,
		next:    now,
		marks:   make(map[string]seen),
		mended:  make(map[string]int64),
		heard:   make(map[string]heard),
		dead:    make(map[string]death),
		routers: make(map[string]*router),
		mine:    make(map[string]RouterState),
	}
}

// Role returns the role, why and since when.
func (e *Election) Role() (Role, string, int64) { return e.role, e.reason, e.since }

// Mode returns what the operator asked for.
func (e *Election) Mode() Mode { return e.mode }

// Timestamp returns the own timestamp, 0 before the first round.
func (e *Election) Timestamp() uint64 { return e.timestamp }

// Token returns the largest takeover token known.
func (e *Election) Token() uint64 { return e.token }

// Members returns the members of the last good round. It must not be changed.
func (e *Election) Members() []Member { return e.members }

// Lease returns the time from which nothing may be handed over, unless a later
// round extends it.
func (e *Election) Lease() int64 { return e.lease }

// Next returns when the next round is due.
func (e *Election) Next() int64 { return e.next }

// Unavailable reports whether Redis counts as unavailable, and why.
func (e *Election) Unavailable() (string, bool) {
	return e.failing, e.failures >= e.cfg.Failures
}

// Wants returns what a round has to do: the value to write for ourselves (0:
// only read), and whether a takeover token is to be claimed.
func (e *Election) Wants() (value uint64, claim bool) {
	return e.value(), e.claim || e.raise
}

func (e *Election) value() uint64 {
	switch {
	case e.shadowed || e.timestamp == 0 || e.renew && !e.left:
		return 0
	case e.left, e.rests():
		return ForcedStandby
	case e.mode == ForceActive:
		return ForcedActive
	}
	return e.timestamp
}

// rests reports whether we are to send nothing, by will.
func (e *Election) rests() bool { return e.mode == ForceStandby || e.yielding }

// Tick looks at the clock. It is to be called a few times per Deadline; that it
// was not is how a pause of the process is noticed.
func (e *Election) Tick(now int64) {
	e.giveWay(now)
	if _, unavailable := e.Unavailable(); unavailable && e.cfg.Hold {
		e.decide(now) // who is no longer heard
	}
	if e.lease == 0 || now < e.lease || e.left {
		return
	}
	// The lease ran out and neither a round nor the failure of several was
	// seen: this process stood still. Others may have taken over.
	e.pause(now)
	e.decide(now)
}

func (e *Election) pause(now int64) {
	e.woke, e.next = now, now
	e.lease = 0
	e.failures, e.failing = 0, ""
	e.renew = true
	e.claim = false
	e.lastGood = 0
	e.members, e.said = nil, nil
}

// Done follows a good round.
func (e *Election) Done(now int64, r Round) {
	e.Tick(now)
	if e.left {
		e.next = r.Sent + e.cfg.Heartbeat
		return
	}
	if r.Sent < e.woke {
		return
	}
	switch _, unavailable := e.Unavailable(); {
	case unavailable:
		// Timestamps have expired meanwhile, and Redis may have lost its data.
		// Whoever is alive will be there with its next heartbeat.
		if e.held != heldActive {
			e.unsettle(now)
		}
		if e.role == Active && e.held == heldNot {
			e.strayed = now + 2*e.cfg.Heartbeat + 2*e.cfg.Deadline
		}
	case r.Unknown && e.firstPut != 0:
		e.forgot = now + e.cfg.Heartbeat + 2*e.cfg.Deadline
	}
	e.failures, e.failing = 0, ""
	e.held, e.headless, e.died = heldNot, 0, 0
	e.next = r.Sent + e.cfg.Heartbeat
	e.shadowed = r.Shadowed
	e.overlay(now, &r)
	e.follow(now, r.Members)
	var lost []Member
	if now < e.forgot {
		lost = e.lost(now, r.Members)
	}
	e.members = append(slices.DeleteFunc(r.Members, func(m Member) bool { return m.Gone }), lost...)
	e.linked(now)
	e.lastGood = r.Sent
	e.mend(now)
	if r.Sent < e.settled {
		e.next = min(e.next, max(now, e.settled))
	}
	for i := range e.members {
		m := &e.members[i]
		e.shown = max(e.shown, m.Token)
		if e.self(m) {
			e.said = m.Routers
			continue
		}
		if m.TTL > 0 { // look again when it would be gone
			e.next = min(e.next, now+m.TTL+expirySlack)
		}
		if m.suspect = e.silent(now, m); m.suspect {
			e.next = min(e.next, max(now, r.Sent+e.cfg.Heartbeat/4))
		}
	}
	e.token = max(e.token, e.shown, r.Token)
	if e.timestamp == 0 || e.renew {
		e.takeTimestamp(uint64(r.RedisTime))
		e.next = now
	}
	if r.Wrote != 0 {
		e.lease = r.Sent + e.cfg.Expiry
		switch {
		case r.Wrote != e.value():
			e.next = now
		case e.firstPut == 0:
			e.firstPut = r.Sent
		}
	}
	if e.firstPut == 0 || r.Sent < e.firstPut+e.cfg.Deadline {
		e.next = min(e.next, max(now, e.firstPut+e.cfg.Deadline))
	}
	e.decide(now)
	e.giveWay(now)
}

// lost returns those of the known members that a round does not speak of at all,
// neither as living nor as gone. If Redis has forgotten us, as after a restart,
// it has forgotten them too, and they will be back with their next heartbeat.
// Nothing is taken over from them before.
func (e *Election) lost(now int64, members []Member) (lost []Member) {
	for _, m := range e.members {
		if e.self(&m) || m.Value == ForcedStandby || e.isDead(&m) ||
			slices.ContainsFunc(members, func(o Member) bool { return o.Name == m.Name && !(o.Gone && o.Instance == m.Instance && e.lostKey(&o)) }) {
			continue
		}
		m.TTL = e.forgot - now
		lost = append(lost, m)
	}
	return lost
}

// lostKey reports whether Redis has lost the timestamp of a member that has lately
// spoken, and has not left (those have no Beat): a replica that took over had not
// heard of it yet.
func (e *Election) lostKey(m *Member) bool {
	return m.Beat > 0 && m.Beat < e.cfg.Expiry-e.cfg.Heartbeat
}

// takeTimestamp makes us the youngest member, also if Redis' clock went back. No
// two members get the same.
func (e *Election) takeTimestamp(t uint64) {
	const most = ForcedStandby >> 1 // what is beyond is no time
	if e.timestamp < most {
		t = max(t, e.timestamp+1)
	}
	for i := range e.members {
		if m := &e.members[i]; !e.self(m) && !m.Native && m.Value < most {
			t = max(t, m.Value+1)
		}
	}
	for slices.ContainsFunc(e.members, func(m Member) bool {
		return m.Value == t && (m.Name != e.cfg.Name || m.Instance != e.cfg.Instance)
	}) {
		t++
	}
	e.timestamp, e.renew, e.firstPut = t, false, 0
}

// Failed follows a round that Redis did not answer in time or answered with an
// error.
func (e *Election) Failed(now, sent int64, why string) {
	e.Tick(now)
	e.next = max(now, sent+e.cfg.Deadline)
	if sent < e.woke || e.left {
		return
	}
	e.failures++
	e.failing = why
	if e.failures >= e.cfg.Failures {
		e.claim, e.raise = false, false
		e.lease = now + e.cfg.Expiry
	}
	e.decide(now)
}

// Claimed follows a claim of a takeover token.
func (e *Election) Claimed(now int64, token uint64) {
	e.Tick(now)
	if (e.claim || e.raise) && token <= e.token { // one that is known already is nobody's claim
		e.next = now
		return
	}
	if token > e.shown+1 {
		// Someone has taken over whom no round has shown as a sender yet.
		e.unsettle(now)
	}
	e.token, e.shown = max(e.token, token), max(e.shown, token)
	e.raise = false
	if e.claim {
		e.claim = false
		e.become(now, Active, e.why())
		e.claimed, e.right = true, true
	}
}

// Renew gives up the own timestamp for a new one: signal 34, maintenance.
func (e *Election) Renew(now int64) {
	e.renew = true
	e.next = now
}

// SetUnfit says why this collector cannot do the job now, "" if it can. The
// caller waits for a while before it says so, and before it takes it back, and
// tells the others in Member.Unfit.
func (e *Election) SetUnfit(now int64, why string) {
	if e.unfit == "" {
		e.unfitAt = now
	}
	e.unfit = why
}

// Unfit returns what SetUnfit said last.
func (e *Election) Unfit() string { return e.unfit }

// giveWay takes a new timestamp when we are active and cannot do the job while
// another member can. Only who is active gives way, and only to one that says
// that it can, so nobody gives way when all are in the same trouble: those whom
// the same thing has hit have had a heartbeat to say so.
func (e *Election) giveWay(now int64) {
	_, unavailable := e.Unavailable()
	if e.unfit == "" || e.role != Active || e.mode != Auto || e.left || e.yielding || unavailable || e.renew ||
		e.lastGood < e.unfitAt+e.cfg.Heartbeat+e.cfg.Deadline ||
		e.gaveWay != 0 && now-e.gaveWay < e.cfg.Handover+2*e.cfg.Expiry {
		return
	}
	if slices.ContainsFunc(e.members, func(m Member) bool {
		since, was := e.mended[m.Name]
		return !e.self(&m) && !m.Gone && !m.Unfit && m.Value != ForcedStandby && !(was && now-since < e.cfg.Proof)
	}) {
		e.gaveWay = now
		e.Renew(now)
	}
}

// mend follows which members are unfit.
func (e *Election) mend(now int64) {
	maps.DeleteFunc(e.mended, func(name string, _ int64) bool {
		return !slices.ContainsFunc(e.members, func(m Member) bool { return m.Name == name })
	})
	for _, m := range e.members {
		since, was := e.mended[m.Name]
		switch {
		case m.Unfit:
			e.mended[m.Name] = 0
		case was && since == 0:
			e.mended[m.Name] = now
		}
	}
}

// Look makes the next round due at once: another member has something to say.
func (e *Election) Look(now int64) { e.next = min(e.next, now) }

// Force follows an operator's wish.
func (e *Election) Force(now int64, m Mode) {
	if m == e.mode {
		return
	}
	if e.mode == ForceStandby {
		e.firstPut = 0 // others may come back at the same moment
	}
	if m == ForceActive {
		e.unsettle(now) // the active one still has to notice
	}
	e.mode = m
	e.next = now
	e.decide(now)
}

// unsettle makes us say that we share until all others have seen us.
func (e *Election) unsettle(now int64) {
	e.settled = max(e.settled, now+e.cfg.Heartbeat+2*e.cfg.Deadline)
}

// Yield makes all others come first, as a planned leave begins: we go on with what
// we send until an heir is ready, or for Config.Linger. Leave follows.
func (e *Election) Yield(now int64) {
	e.yielding = true
	e.next = now
	e.decide(now)
}

// Strayed reports whether we sent without Redis until lately, for Member.Strayed:
// those who were never without it could not know, and have to take what they sent
// meanwhile for shared.
func (e *Election) Strayed(now int64) bool { return now < e.strayed }

// Leave makes us stop for good: nothing is owned from now on.
func (e *Election) Leave(now int64) {
	e.left = true
	e.claim, e.raise = false, false
	e.become(now, Standby, "leaving")
}

// Leader returns the member that the others yield to: the smallest timestamp
// among those that may be active.
func (e *Election) Leader() (Member, bool) {
	i := -1
	for j := range e.members {
		m := &e.members[j]
		if m.Value == ForcedStandby {
			continue
		}
		if i < 0 || e.compare(m, &e.members[i]) < 0 {
			i = j
		}
	}
	if i < 0 {
		return Member{}, false
	}
	return e.members[i], true
}

func compare(a, b *Member) int {
	return cmp.Or(cmp.Compare(a.Value, b.Value), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Instance, b.Instance))
}

// compare orders members as compare does. While roles are held, those who are
// active come first, whatever their age: no one else is to send.
func (e *Election) compare(a, b *Member) int {
	if e.held != heldNot && a.Active != b.Active {
		if a.Active {
			return -1
		}
		return 1
	}
	return compare(a, b)
}

func (e *Election) self(m *Member) bool {
	return m.Name == e.cfg.Name && m.Instance == e.cfg.Instance && !m.Native
}

// me is ourselves as the others will see us.
func (e *Election) me() Member {
	v := e.timestamp
	switch {
	case e.rests():
		v = ForcedStandby
	case e.mode == ForceActive:
		v = ForcedActive
	case e.cfg.Hold && e.failures >= e.cfg.Failures && (e.renew || v == 0):
		v = ForcedStandby - 1 // it would be the youngest if there were a Redis to say so
	}
	return Member{Name: e.cfg.Name, Instance: e.cfg.Instance, Value: v, Active: e.role == Active, Unfit: e.unfit != ""}
}

// best reports whether no other member comes before us.
func (e *Election) best() bool {
	me := e.me()
	for i := range e.members {
		m := &e.members[i]
		if !e.self(m) && e.compare(m, &me) < 0 {
			return false
		}
	}
	return true
}

// firstOther returns the other member that comes before all others. There must
// be one.
func (e *Election) firstOther() *Member {
	var first *Member
	for i := range e.members {
		if m := &e.members[i]; !e.self(m) && (first == nil || compare(m, first) < 0) {
			first = m
		}
	}
	return first
}

func (e *Election) others() (n int) {
	for i := range e.members {
		if !e.self(&e.members[i]) {
			n++
		}
	}
	return n
}

func (e *Election) why() string {
	switch {
	case e.mode == ForceActive:
		return "forced active"
	case e.others() == 0:
		return "no other member"
	default:
		return fmt.Sprintf("oldest of %d members", e.others()+1)
	}
}

// decide sets the role by what is known.
func (e *Election) decide(now int64) {
	unavailable := e.failures >= e.cfg.Failures
	claim := false
	if !unavailable || e.rests() {
		e.held = heldNot
	}
	switch {
	case e.left:
	case e.yielding:
		e.become(now, Standby, "leaving")
	case e.mode == ForceStandby:
		e.become(now, Standby, "forced standby")
	case unavailable && e.cfg.Hold && e.holds(now):
	case unavailable:
		e.become(now, Active, "Redis unavailable: "+e.failing)
	case e.mode == ForceActive && e.lastGood != 0:
		claim = !e.claimed
	case e.shadowed:
		e.become(now, Standby, fmt.Sprintf("another process is named %q", e.cfg.Name))
	case e.lastGood == 0 && e.woke != 0:
		e.become(now, Standby, "the process stood still past its expiry")
	case e.lastGood == 0:
		// Starting.
	case !e.best():
		why := fmt.Sprintf("%s is older", e.firstOther().Name)
		if e.unfit != "" {
			why += "; " + e.unfit
		}
		e.become(now, Standby, why)
	case e.firstPut == 0 || e.lastGood < e.firstPut+e.cfg.Deadline:
		// We come first, but one that took an earlier timestamp may still be
		// on its way to writing it. It has a Deadline for that.
	default:
		claim = !e.claimed
	}
	if claim && !e.claim {
		e.next = min(e.next, now) // nothing is sent before it is answered
	}
	e.claim = claim
	if e.role == Active && !unavailable && e.lastGood != 0 {
		e.reason = e.why()
		if e.unfit != "" {
			e.reason += "; nobody is better off"
		}
	}
}

func (e *Election) become(now int64, r Role, reason string) {
	if r != e.role {
		e.role, e.since = r, now
		e.claimed, e.right = false, false
	}
	e.reason = reason
}
