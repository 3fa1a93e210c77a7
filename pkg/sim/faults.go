package sim

import "github.com/bmpha/bmpha/pkg/election"

// A Fault is something that goes wrong, or that an operator does.
type Fault int

const (
	noFault Fault = iota
	KillActive
	KillStandby
	RestartActive // at once, so that the old timestamp is still there
	RestartAll
	StopActive // SIGSTOP, 0.1 to 30 s
	StopStandby
	StopAll
	StopAtHandOver // between the check of the lease and handing over
	StopUntilRead  // likewise, and on when another has just asked what Kafka has
	LeaveActive
	LeaveStandby
	Maintenance
	MaintenanceAll // on all nodes at once
	ForceStandbyActive
	ForceActiveStandby
	ForceAllStandby
	ForceAllActive
	RedisRefuses
	RedisHangs
	RedisErrors
	RedisRestartsEmpty
	RedisSlow
	RedisRepliesLost
	AnnouncementsLost
	CutActiveFromRedis
	CutStandbyFromRedis
	KafkaOutage
	KafkaSlow
	KafkaFailsWritten   // a request fails although it was written
	KafkaFailsUnwritten // a request fails and was not written
	KafkaRejects        // everything for a while
	CutActiveFromKafka
	CutStandbyFromKafka
	CutRouterFromActive
	CutRouterFromStandby
	CutRouterFromAll
	RouterRestarts
	PeerFlaps
	SlowSession
	SessionTwice        // the router connects again while the old session seems open
	SessionFlaps        // a session ends and opens several times, also within its dump
	RedisGoesBack       // a replica that had lagged becomes the one there is
	KafkaLeaderMoves    // a partition is away, then answers; who gave up before does not know
	LinkCut             // a collector hears none of the others directly
	LinkAndRedisCut     // nor through Redis
	HostCutOff          // nor reaches Kafka; it hears its routers or not
	PowerLoss           // the active's host is gone: nobody is told
	TopicUnreadable     // nobody can read back what is in Kafka
	SilentWay           // nothing gets from a router to a collector, and neither is told
	ForeignTransaction  // of somebody else, on a router's partition
	CoordinatorAway     // nobody commits or is fenced
	Burst               // the whole table changes several times
	SenderFull          // observed: a sender made its router wait
	StandbyFull         // observed: a standby dropped
	AbortedWhileFull    // observed: of a session that ended what did not fit in the log is lost
	RedumpLeftOut       // observed: a route that came again as it was is not sent again
	RedumpLeftOutPartly // observed: and others of its message are
	RedumpSentAgain     // observed: it is, because it may not be the last in Kafka
	RedumpGone          // observed: a route was withdrawn because it did not come again
	DeathSeen           // observed: the end of a process was seen directly
	Unfit               // observed: a collector said that it cannot do the job
	ReadBackFails       // observed: and somebody took over who needed it
	SeamLeftOut         // observed: what Kafka had was left out at a takeover
	SeamDoubtful        // observed: what it may have had was sent
	SeamWaits           // observed: what the other sender had sent was waited for
	PeersReordered      // observed: a router's peers overtook each other
	Coalesced           // observed: a slow router said only the last of several words
	DumpRepacked        // observed: a dump is cut into messages in another way
	NoEndOfRIB          // observed: and its end is not told
	Fences              // observed: a sender that is gone was fenced
	FenceFails          // observed: or could not be
	ProducerFenced      // observed: a sender finds that it was
	CommitNotAllowed    // observed: and may not go on
	CommitUnknown       // observed: the answer to a commit is lost
	TransactionGivenUp  // observed: by the brokers, because it takes too long
	SeamBehind          // observed: what was written before a takeover is not committed yet
	SilenceNoticed      // observed: a collector ended the session
	SilenceBursts       // observed: or got all at once that the router had said
	SilenceEndsSession  // observed: a router learned of that when the way had healed
	Recalled            // observed: what Kafka did not acknowledge was given up
	ClockOffset         // clocks of hosts and Redis differ
	EqualTimestamps
	faultCount
)

var faultNames = [faultCount]string{
	"none", "kill active", "kill standby", "restart active", "restart all", "stop active", "stop standby", "stop all",
	"stop at hand-over", "stop until read", "leave active", "leave standby", "maintenance", "maintenance on all", "force active to standby",
	"force standby to active", "force all standby", "force all active", "redis refuses", "redis hangs", "redis errors",
	"redis restarts empty", "redis slow", "redis replies lost", "announcements lost", "cut active from redis",
	"cut standby from redis", "kafka outage", "kafka slow", "kafka fails written", "kafka fails unwritten", "kafka rejects",
	"cut active from kafka", "cut standby from kafka", "cut router from active", "cut router from standby",
	"cut router from all", "router restarts", "peer flaps", "slow session", "session twice", "session flaps", "redis goes back", "kafka leader moves", "link cut", "link and redis cut", "host cut off", "power loss", "topic unreadable",
	"silent way", "foreign transaction", "coordinator away", "burst", "sender full",
	"standby full", "aborted while full", "redump left out", "redump left out partly", "redump sent again", "redump gone", "death seen", "unfit", "read back fails", "seam left out", "seam doubtful", "seam waits", "peers reordered", "coalesced", "dump repacked", "no end of rib", "fences", "fence fails", "producer fenced", "commit not allowed", "commit unknown", "transaction given up",
	"seam behind", "silence noticed", "silence bursts", "silence ends session", "recalled", "clock offset", "equal timestamps",
}

func (f Fault) String() string { return faultNames[f] }

// Faults returns all faults.
func Faults() []Fault {
	var all []Fault
	for f := noFault + 1; f < faultCount; f++ {
		all = append(all, f)
	}
	return all
}

// observed faults are what others lead to.
func (f Fault) observed() bool {
	return f >= SenderFull && f <= ClockOffset
}

// rare faults need runs made for them.
func (f Fault) rare() bool { return f == AbortedWhileFull || f == CommitNotAllowed }

// late faults count when they take effect.
func (f Fault) late() bool {
	return f.observed() || f == StopAtHandOver || f == StopUntilRead || f == KafkaFailsWritten || f == KafkaFailsUnwritten ||
		f == KafkaRejects || f == KafkaLeaderMoves || f == ForeignTransaction || f == CoordinatorAway || f == AnnouncementsLost || f == EqualTimestamps
}

// A Defect is a mistake built into the shell, to see that it is found.
type Defect int

const (
	Sound           Defect = iota
	LiveBeforeHeld         // on taking over, what is new goes out before what was held
	PopsOnFailure          // what failed counts as sent
	IgnoresLease           // hands over without looking at the lease
	WindowOnly             // a standby forgets by age, whatever the sender has sent
	StandbyWaits           // a full standby makes the router wait
	ErrorsMeanAlone        // an error of Redis is taken for an empty list
	GroundIgnored          // what comes again as it was is left out whoever has sent since
	OthersUnseen           // or if another has sent only for a while
	AlwaysWhole            // a session that was cut short is taken for one that has said everything
	UnendedIsWhole         // or only one in which nothing is known that it has not said
	NoSweep                // what does not come again is not withdrawn
	LeaseUnseen            // the ground is trusted after the end of the lease
	LossUntold             // the ground is not told that a message did not get into the log
	GoneIsOldest           // a key that goes between the list and reading it counts as the oldest
	TiesBothActive         // of two with one timestamp each takes itself for the first
	LostAtPromotion        // the message that arrives while roles change is in neither queue
	Timestamps             // hashes cover when a record arrived
	SeenSets               // what Kafka has is left out wherever it occurs, not up to where it ends
	MarkWithinDump         // a mark passes the end of a session before the next one's dump is in Kafka
	WindowTooShort         // a standby forgets by age, sooner than a death is noticed
	Unfenced               // with fencing, nobody is fenced
	Unconfirmed            // who was fenced goes on without asking the election
	VisibleGoal            // what is read back ends where consumers are, whatever else is written
	FenceUnsaid            // a plan is trusted although a fence has failed
	SilenceIsWhole         // a session is whole although it was silent since others have sent
	Unasked                // who has lost Redis and Kafka goes on before it has asked Redis again
	Unrecalled             // and leaves with Kafka what it had handed over
	SilenceUnheard         // a mark goes on while nothing is heard
	BurstUnawaited         // or as soon as something is, whatever may still come
)

func (d Defect) String() string {
	return [...]string{"sound", "live before held", "pops on failure", "ignores the lease", "window only",
		"standby waits", "errors mean alone", "ground ignored", "others unseen", "always whole", "unended is whole", "no sweep", "lease unseen", "loss untold",
		"gone is oldest", "ties both active", "lost at promotion", "timestamps in the identity", "seen sets", "mark within a dump", "window too short", "unfenced", "unconfirmed", "visible goal", "fence unsaid",
		"silence is whole", "unasked", "unrecalled", "silence unheard", "burst unawaited"}[d]
}

func (w *world) drawFaults() {
	from := w.opt.Only
	if from == nil {
		for _, f := range Faults() {
			if !f.observed() {
				from = append(from, f)
			}
		}
	}
	n := w.opt.Count
	if n == 0 {
		switch {
		case w.chance(0.03):
			n = -1
		case w.chance(0.3):
			n = 1
		default:
			n = 2 + w.rng.IntN(9)
			n *= int(max(1, w.endAt/(60*sec)))
		}
	}
	if w.opt.Only == nil && w.diff && n > 1 {
		for range w.rng.IntN(4) {
			w.draw(SessionFlaps)
		}
	}
	for range max(n, 0) {
		w.draw(from[w.rng.IntN(len(from))])
	}
}

func (w *world) draw(f Fault) {
	w.faults = append(w.faults, f)
	at := w.between(4*sec, w.endAt)
	if f == EqualTimestamps {
		w.redis.coarse = true
		w.after(3*sec, func() { w.redis.coarse = false })
		return
	}
	w.after(at, func() { w.apply(f) })
}

// heal ends all faults.
func (w *world) heal() {
	w.tracef("faults end")
	rd, k := w.redis, w.kafka
	rd.slow, rd.lose, rd.silent, rd.coarse = 0, 0, false, false
	w.sleeper = nil
	rd.set(redisFine)
	k.down, k.slow, k.reject, k.unreadable = false, 0, false, false
	k.coordinator.away = false
	for _, p := range k.parts {
		p.away = false
		p.foreign.end()
	}
	for _, nd := range w.nodes {
		nd.cutRedis, nd.cutKafka, nd.cutLinks, nd.failNext = false, false, false, 0
		nd.cutRouters, nd.slow = [8]bool{}, [8]int64{}
		for _, q := range nd.ways {
			if q != nil {
				q.heal()
			}
		}
		if p := nd.proc; p != nil {
			p.stopAtHand, w.sleeper = 0, nil
			p.resume()
			p.force(election.Auto)
		}
		w.after(w.between(0, sec), nd.start)
	}
}

func (p *proc) force(m election.Mode) {
	p.do(0, func() {
		p.el.Force(p.local(), m)
		p.turn()
	})
}

// unforce ends force, but not in front of it while the process stands still.
func (p *proc) unforce() {
	if p.paused {
		p.w.after(100*ms, p.unforce)
		return
	}
	p.force(election.Auto)
}

// pick returns a running process that is active, or one that is not.
func (w *world) pick(active bool) *proc {
	var fit, any []*proc
	for _, nd := range w.nodes {
		if p := nd.proc; p != nil && !p.paused {
			if role, _, _ := p.el.Role(); (role == election.Active) == active {
				fit = append(fit, p)
			}
			any = append(any, p)
		}
	}
	switch {
	case len(fit) > 0:
		return fit[w.rng.IntN(len(fit))]
	case len(any) > 0 && len(w.faults) != 1:
		return any[w.rng.IntN(len(any))]
	}
	return nil
}

func (w *world) again(nd *node, d int64) { w.after(d, nd.start) }

func (w *world) duration() int64 {
	if w.chance(0.5) {
		return w.between(100*ms, 3*sec)
	}
	return w.between(3*sec, 30*sec)
}

// apply makes a fault happen.
func (w *world) apply(f Fault) {
	if w.now >= w.endAt {
		return
	}
	d := w.duration()
	rd, k := w.redis, w.kafka
	r := w.routers[w.rng.IntN(len(w.routers))]
	w.res.Faults++
	switch f {
	case AnnouncementsLost:
	case KillActive, KillStandby, PowerLoss: // the others go on
		w.trouble = max(w.trouble, w.now)
	case SessionFlaps, Burst:
		w.trouble = max(w.trouble, w.now+2*d+25*sec)
	case SilentWay: // for longer than others last
		d = w.between(sec, keepAlive)
		if w.chance(0.6) {
			d = w.between(keepAlive, 60*sec)
		}
		w.trouble = max(w.trouble, w.now+d+2*keepAlive+10*sec)
	case CutActiveFromKafka, HostCutOff, KafkaOutage, KafkaRejects, KafkaLeaderMoves: // who fails again and again waits
		w.trouble = max(w.trouble, w.now+d+10*sec)
	default:
		w.trouble = max(w.trouble, w.now+d+5*sec)
	}
	if !f.late() {
		w.fire(f)
	}
	w.tracef("FAULT %s (%.2f s)", f, float64(d)/1e6)
	on := func(active bool, do func(p *proc)) {
		if p := w.pick(active); p != nil {
			do(p)
		}
	}
	kill := func(p *proc) {
		p.kill()
		w.again(p.node, d)
	}
	switch f {
	case KillActive:
		on(true, kill)
	case KillStandby:
		on(false, kill)
	case RestartActive:
		on(true, func(p *proc) {
			p.kill()
			w.again(p.node, w.between(0, w.expiry))
		})
	case RestartAll:
		for _, nd := range w.nodes {
			if nd.proc != nil {
				nd.proc.kill()
			}
			w.again(nd, w.between(0, sec))
		}
	case StopActive:
		on(true, func(p *proc) { p.pause(d) })
	case StopStandby:
		on(false, func(p *proc) { p.pause(d) })
	case StopAll:
		for _, nd := range w.nodes {
			if nd.proc != nil {
				nd.proc.pause(d + w.between(0, 100*ms))
			}
		}
	case StopAtHandOver:
		on(true, func(p *proc) { p.stopAtHand = d })
	case StopUntilRead:
		on(true, func(p *proc) { p.stopAtHand, w.sleeper = max(d, 4*w.expiry), p })
	case LeaveActive, LeaveStandby:
		w.trouble += 20 * sec
		on(f == LeaveActive, func(p *proc) {
			p.do(0, p.stop)
			var again func()
			again = func() {
				if p.node.proc == p {
					w.after(500*ms, again)
					return
				}
				p.node.start()
			}
			w.after(d, again)
		})
	case Maintenance:
		on(true, func(p *proc) { p.renew() })
	case MaintenanceAll:
		for _, nd := range w.nodes {
			if nd.proc != nil {
				nd.proc.renew()
			}
		}
	case ForceStandbyActive, ForceActiveStandby:
		m := election.ForceStandby
		if f == ForceActiveStandby {
			m = election.ForceActive
		}
		on(f == ForceStandbyActive, func(p *proc) {
			p.force(m)
			w.after(d, p.unforce)
		})
	case ForceAllStandby, ForceAllActive:
		m := election.ForceStandby
		if f == ForceAllActive {
			m = election.ForceActive
		}
		d = min(d, 10*sec)
		for _, nd := range w.nodes {
			if p := nd.proc; p != nil {
				p.force(m)
				w.after(d, p.unforce)
			}
		}
	case RedisRefuses, RedisHangs, RedisErrors:
		rd.set(redisRefuses + redisMode(f-RedisRefuses))
		w.after(d, func() { rd.set(redisFine) })
	case RedisRestartsEmpty:
		rd.restart()
		rd.set(redisRefuses)
		w.after(w.between(0, d), func() { rd.set(redisFine) })
	case RedisSlow:
		rd.slow = w.between(w.deadline/20, w.deadline/2)
		w.after(d, func() { rd.slow = 0 })
	case RedisRepliesLost:
		rd.lose = 0.1 + 0.5*w.rng.Float64()
		w.after(d, func() { rd.lose = 0 })
	case AnnouncementsLost:
		rd.silent = true
		w.after(2*d+20*sec, func() { rd.silent = false })
	case CutActiveFromRedis, CutStandbyFromRedis:
		on(f == CutActiveFromRedis, func(p *proc) {
			p.node.cutRedis = true
			w.after(d, func() { p.node.cutRedis = false })
		})
	case KafkaOutage:
		k.down = true
		w.after(d, func() { k.down = false })
	case RedisGoesBack:
		rd.lag()
		d = w.between(ms, d)
		w.after(d, func() {
			rd.failover()
			rd.set(redisRefuses)
			w.after(w.between(0, sec), func() { rd.set(redisFine) })
		})
	case KafkaLeaderMoves:
		part := k.parts[r.id]
		part.away = true
		w.after(min(d, 10*sec), func() { part.away = false })
	case LinkCut, LinkAndRedisCut:
		nd := w.nodes[w.rng.IntN(len(w.nodes))]
		nd.cutLinks, nd.cutRedis = true, nd.cutRedis || f == LinkAndRedisCut
		w.after(d, func() { nd.cutLinks, nd.cutRedis = false, false })
	case HostCutOff:
		nd := w.nodes[w.rng.IntN(len(w.nodes))]
		nd.cutLinks, nd.cutRedis, nd.cutKafka = true, true, true
		w.after(d, func() { nd.cutLinks, nd.cutRedis, nd.cutKafka = false, false, false })
		if w.chance(0.5) {
			for _, r := range w.routers {
				w.cutRouter(r, nd, d)
			}
		}
	case PowerLoss:
		on(true, func(p *proc) {
			p.node.gone = true
			kill(p)
		})
	case TopicUnreadable:
		k.unreadable = true
		w.after(d, func() { k.unreadable = false })
	case SilentWay:
		nd := w.nodes[w.rng.IntN(len(w.nodes))]
		if w.chance(0.8) {
			for _, other := range w.nodes {
				if p := other.proc; p != nil && p.streams[r.id].gate.Wanted() {
					nd = other
				}
			}
		}
		w.silence(r, nd, d)
	case ForeignTransaction:
		if w.fencing {
			w.fire(f)
			k.parts[r.id].occupy(min(d, foreignMost))
		}
	case CoordinatorAway:
		if w.fencing {
			w.fire(f)
			k.coordinator.away = true
			w.after(min(d, 10*sec), func() { k.coordinator.away = false })
		}
	case KafkaSlow:
		k.slow = w.between(10*ms, 500*ms)
		w.after(d, func() { k.slow = 0 })
	case KafkaFailsWritten, KafkaFailsUnwritten:
		on(true, func(p *proc) { p.node.failNext = f })
	case KafkaRejects:
		k.reject = true
		w.after(d, func() { k.reject = false })
	case CutActiveFromKafka, CutStandbyFromKafka:
		on(f == CutActiveFromKafka, func(p *proc) {
			p.node.cutKafka = true
			w.after(d, func() { p.node.cutKafka = false })
		})
	case CutRouterFromActive, CutRouterFromStandby:
		on(f == CutRouterFromActive, func(p *proc) { w.cutRouter(r, p.node, d) })
	case CutRouterFromAll:
		for _, nd := range w.nodes {
			w.cutRouter(r, nd, w.between(d/2, d))
		}
	case RouterRestarts:
		if !r.down {
			r.restart(d)
		}
	case PeerFlaps:
		if p := byte(w.rng.IntN(r.peers)); r.up[p] != 0 && !r.down {
			r.peerDown(p)
		}
	case SlowSession:
		nd := w.nodes[w.rng.IntN(len(w.nodes))]
		// A few messages in flight at this rate stay below the margin.
		slow := w.between(5*ms, 40*ms)
		if w.opt.Lag {
			slow = w.between(200*ms, 800*ms)
			d = 30 * sec
		}
		nd.slow[r.id] = slow
		w.after(d, func() { nd.slow[r.id] = 0 })
	case SessionTwice:
		w.trouble += 10 * sec
		on(w.chance(0.5), func(p *proc) {
			s := r.sessions[p.node.id]
			if s == nil || s.host == nil || p.stopping || s.way() != nil {
				return
			}
			s.open = false
			r.sessions[p.node.id] = nil
			r.connect(p.node.id)
		})
	case SessionFlaps:
		nd := w.nodes[w.rng.IntN(len(w.nodes))]
		if w.chance(0.7) {
			on(true, func(p *proc) { nd = p.node })
		}
		if w.chance(0.7) { // so that there is time within a dump
			nd.slow[r.id] = w.between(ms, 5*ms)
			w.after(2*d, func() { nd.slow[r.id] = 0 })
		}
		w.flap(r, nd, 2+w.rng.IntN(6))
	case Burst:
		var burst func(n int)
		burst = func(n int) {
			for range min(n, 10) {
				if peer := byte(w.rng.IntN(r.peers)); r.up[peer] != 0 && !r.down {
					r.route(peer, uint16(w.rng.IntN(r.prefixes)), false)
				}
			}
			if n > 10 {
				w.after(ms, func() { burst(n - 10) })
			}
		}
		burst(int(w.between(100, 3000)))
	}
}

func (p *proc) renew() {
	p.do(0, func() {
		p.el.Renew(p.local())
		p.turn()
	})
}

// flap ends n sessions, each some time after it has opened: half of them soon.
func (w *world) flap(r *router, nd *node, n int) {
	if n == 0 || w.now >= w.endAt {
		return
	}
	if r.sessions[nd.id] == nil {
		w.after(20*ms, func() { w.flap(r, nd, n) })
		return
	}
	d := w.between(0, 200*ms)
	if w.chance(0.5) {
		d = w.between(0, 2*sec)
	}
	w.after(d, func() {
		r.cut(nd.id)
		w.flap(r, nd, n-1)
	})
}

func (w *world) cutRouter(r *router, nd *node, d int64) {
	nd.cutRouters[r.id] = true
	r.cut(nd.id)
	w.after(d, func() { nd.cutRouters[r.id] = false })
}
