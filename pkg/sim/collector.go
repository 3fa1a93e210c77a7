package sim

import (
	"fmt"

	"github.com/bmpha/bmpha/pkg/election"
	"github.com/bmpha/bmpha/pkg/gate"
	"github.com/bmpha/bmpha/pkg/hold"
	"github.com/bmpha/bmpha/pkg/record"
)

// A node is a host on which a collector runs, one process after another.
type node struct {
	w    *world
	id   int
	name string
	wall int64 // the host's clock - true time
	proc *proc // nil while none runs

	cutRedis   bool
	cutKafka   bool
	cutLinks   bool // from the other collectors
	gone       bool // the host refuses nothing: it is not there
	cutRouters [8]bool
	ways       [8]*silence // from the routers, nil for one that is fine
	slow       [8]int64    // µs between messages from a router, 0 normal
	failNext   Fault       // what happens to the next request to Kafka
}

func (nd *node) start() {
	if nd.proc != nil || nd.w.closing {
		return
	}
	nd.gone = false
	nd.proc = newProc(nd)
	nd.w.tracef("%s starts", nd.proc.name())
	nd.proc.turn()
	nd.proc.tick()
}

// A proc is one run of a collector: what package collector is around the cores.
type proc struct {
	w        *world
	node     *node
	nth      int // of those on the node
	number   int // among all that ever ran
	instance uint64
	skew     int64 // local clock - true time

	el      *election.Election
	budget  *hold.Budget
	streams []*stream
	out     *producer
	join    joiner

	busy      bool // an exchange with Redis
	tickAt    int64
	publishAt int64
	counted   uint64 // Redis' token in the last round
	largest   uint64 // the largest that any round has shown
	wroteAt   int64  // Redis' clock when we last wrote
	troubled  int64  // since when Kafka is out of reach, 0 if it is not
	pubBusy   bool
	wrote     uint64
	said      [2 * maxRouters]byte
	announce  bool
	ended     bool
	redisOff  int64
	synced    bool // redisOff is that to Redis' clock

	gone       election.Gone
	triedAt    int64 // when the last round began that has ended, local clock
	answeredAt int64 // when the last round that ended well began, local clock
	lease      int64
	role       election.Role

	stopping   bool
	stopAt     int64
	heir       bool
	left       bool
	resigning  bool
	dead       bool
	paused     bool
	woken      []runner
	frees      []*exchange
	stopAtHand int64 // SIGSTOP for so long after the next check of the lease
}

// A stream is a router as the collector sees it.
type stream struct {
	p        *proc
	r        *router
	gate     *gate.Stream
	conn     *connection // open session
	input    fifo[input]
	lose     bool // the next message, by a built-in mistake
	roused   bool // waits for the process to run
	seen     sender
	duty     election.Duty
	entries  []entered // by position
	sets     map[[2]uint64]bool
	setEnd   uint64
	blind    bool  // it went on without knowing what Kafka has
	joinedAt int64 // when it went on, local clock
	starts   int
	wantedAt int64
	batch    record.Batch
	words    []word // encoded and not handed over
	room     []word // the memory for them
	pos      uint64
	retryAt  int64
	backoff  int64
	received uint64
	refused  bool
	gate.Vouch
	course   gate.Course
	taking   int64 // since when what was read is put into the log, local clock, 0 if all is
	waited   bool  // for room
	readable int64 // when the stream last had a reason not to read
	fresh    bool  // nothing was encoded since the start
	rib      *rib  // nil: a table that comes again is sent again
}

// entered is what the log has at a position.
type entered struct {
	at      int64
	changes []change
}

type input struct {
	conn      *connection
	kind      hold.Kind
	msg       []byte
	it        item
	at        int64    // true time of delivery
	delivered []change // before anything was left out

	attached bool // an Opened: the session is the router's
	learned  bool // the table has it
	known    bool // and nothing of it needs to be sent
	aborted  bool // a Closed: what was delivered before need not be in the log
}

// A connection is the collector's end of a session.
type connection struct {
	st      *stream
	s       *session
	id      uint32
	last    int64 // something came, true time
	began   int64 // local clock
	open    bool
	begun   bool // the log has its opening, or waits with it for room
	lingers bool // the router's end is gone and we were not told
}

func newProc(nd *node) *proc {
	w := nd.w
	run := 0
	for _, p := range w.procs {
		if p.node == nd {
			run++
		}
	}
	p := &proc{w: w, node: nd, nth: run, number: len(w.procs), instance: w.rng.Uint64(), skew: w.between(sec, 1000*sec), budget: hold.NewBudget(w.budget)}
	if p.skew > 10*sec {
		w.fire(ClockOffset)
	}
	p.redisOff = epoch - p.skew + nd.wall // until Redis is asked
	p.el = election.New(election.Config{
		Name: nd.name, Instance: p.instance, Heartbeat: w.heartbeat, Expiry: w.expiry,
		Deadline: w.deadline, Failures: w.failures, Handover: w.handover, Grace: w.grace, Window: w.window, Proof: w.expiry,
		Linger: w.linger, Failback: w.failback, MaxBehind: w.maxBehind, Steady: w.heartbeat, Hold: w.hold,
	}, p.local())
	for _, r := range w.routers {
		st := &stream{p: p, r: r}
		st.gate = gate.New(gate.Config{
			ID: uint32(r.id), Instance: p.instance,
			Await: w.readsBack, Beside: w.window, Identify: identify,
			Open: func(_ uint32, body []byte) gate.Codec {
				return &codec{salt: body[0], stamped: w.opt.Defect == Timestamps}
			},
			OnError: func(_ uint32, err error) {
				w.violate("I9: %s, router %d: %v", p.name(), r.id, err)
			},
		}, hold.NewLog(p.budget))
		if w.diff {
			st.rib = newRib()
		}
		p.streams = append(p.streams, st)
	}
	p.out = newProducer(p)
	p.join.p, p.join.fenced = p, make(map[uint64]int64)
	w.procs = append(w.procs, p)
	return p
}

func (p *proc) name() string { return fmt.Sprintf("%s%d", p.node.name, p.nth) }

func (p *proc) local() int64 { return p.w.now + p.skew }

// do runs f after d, when the process runs; never if it has ended.
func (p *proc) do(d int64, f func()) { p.w.push(d, p, call(f)) }

func (p *proc) pause(d int64) {
	if p.paused || p.dead {
		return
	}
	p.w.tracef("%s stops for %.3f s", p.name(), float64(d)/1e6)
	p.paused = true
	for _, st := range p.streams {
		st.breaks()
	}
	p.w.after(d, p.resume)
}

// resume lets everything happen that would have happened meanwhile, in any
// order, as goroutines have none.
func (p *proc) resume() {
	if !p.paused || p.dead {
		return
	}
	p.paused = false
	p.w.tracef("%s goes on", p.name())
	woken := p.woken
	p.woken = nil
	if len(woken) > 1 && p.w.chance(0.5) {
		i := p.w.rng.IntN(len(woken))
		woken[0], woken[i] = woken[i], woken[0]
	}
	for i, f := range woken {
		if p.paused {
			p.woken = append(p.woken, woken[i:]...)
			return
		}
		if !p.dead {
			f.run()
		}
	}
}

func (p *proc) kill() {
	if p.dead {
		return
	}
	p.w.tracef("%s dies", p.name())
	p.dead = true
	p.node.proc = nil
	p.obituary()
	for _, st := range p.streams {
		st.lagCheck()
		st.breaks()
		switch s := st.r.sessions[p.node.id]; {
		case s == nil:
		case s.way() != nil:
			s.host.open = false
		default:
			st.r.cut(p.node.id)
		}
	}
}

func (p *proc) accepts() bool { return !p.stopping }

func (p *proc) tick() { (*tick)(p).run() }

// tick is a turn that nothing but the clock has caused.
type tick proc

func (t *tick) run() {
	p := (*proc)(t)
	p.turn()
	p.w.push(p.w.deadline*3/4, p, t)
}

// due is a turn because a round is due.
type due proc

func (t *due) run() {
	p := (*proc)(t)
	if p.tickAt <= p.w.now {
		p.tickAt = 0
	}
	p.turn()
}

// turn is one turn of the coordinator's loop.
func (p *proc) turn() {
	now := p.local()
	p.el.Tick(now)
	p.apply(now)
	if !p.busy && !p.ended && now >= p.el.Next() {
		p.exchange()
	}
	if !p.ended && now >= p.publishAt {
		p.publish(now)
	}
	if !p.busy && !p.ended {
		at := p.w.now + p.el.Next() - now
		if at > p.w.now && at < p.w.now+p.w.deadline && (p.tickAt == 0 || at < p.tickAt) {
			p.tickAt = at
			p.w.push(at-p.w.now, p, (*due)(p))
		}
	}
}

// An exchange is a round with Redis.
type exchange struct {
	p         *proc
	step      exchangeStep
	value     uint64
	claim     bool
	announce  bool
	m         election.Member
	timestamp uint64
	seen      uint64
	sent      int64
	until     int64
	v         view
	trip      int64
	token     uint64
}

type exchangeStep uint8

const (
	toRead exchangeStep = iota
	toWrite
	toClaim
	toTell
)

func (p *proc) exchange() {
	p.busy = true
	x := &exchange{p: p}
	if n := len(p.frees); n > 0 {
		x, p.frees = p.frees[n-1], p.frees[:n-1]
		*x = exchange{p: p, v: view{nodes: x.v.nodes}}
	}
	x.value, x.claim = p.el.Wants()
	x.m = p.words()
	x.timestamp, x.seen = p.el.Timestamp(), p.el.Token()
	x.announce = p.announce || x.value != p.wrote
	p.announce, p.wrote = false, x.value
	x.sent, x.until = p.local(), p.w.now+p.w.deadline
	p.w.redis.call(p, x.until, x)
}

func (x *exchange) op() {
	rd := x.p.w.redis
	switch x.step {
	case toRead:
		rd.read(&x.v, x.p, x.timestamp)
	case toWrite:
		rd.write(x.p, &x.v, x.timestamp, x.value, x.m)
	case toClaim:
		x.token = rd.claim(max(x.seen, x.p.largest))
	case toTell:
		rd.tell(x.p)
	}
}

func (x *exchange) done(why string) {
	p := x.p
	w, rd := p.w, p.w.redis
	if why != "" {
		p.busy = false
		switch {
		case p.ended:
		case w.opt.Defect == ErrorsMeanAlone && why[0] == 'L':
			p.el.Done(p.local(), election.Round{Sent: x.sent, RedisTime: rd.clock(), Wrote: x.value, Token: p.largest})
		default:
			p.triedAt = x.sent
			p.el.Failed(p.local(), x.sent, why)
		}
		p.turn()
		return
	}
	switch x.step {
	case toRead:
		x.step = toWrite
		if x.v.shadowed {
			x.value = 0
		}
		rd.call(p, x.until, x)
		return
	case toWrite:
		x.trip = p.local() - x.sent
		if x.claim {
			x.step = toClaim
			rd.call(p, w.now+w.deadline, x)
			return
		}
		fallthrough
	case toClaim:
		if x.announce {
			x.step = toTell
			rd.call(p, w.now+w.deadline, x)
			return
		}
	}
	p.busy = false
	p.redisOff, p.synced = x.v.time-(x.sent+x.trip/2), true
	if x.value != 0 {
		p.wroteAt = x.v.time
	}
	for i := range x.v.members {
		p.largest = max(p.largest, x.v.members[i].Token)
	}
	p.largest = max(p.largest, x.v.token)
	p.gone.Look(x.v.time, x.v.members, func(i int) bool { return x.v.members[i].Value == election.ForcedStandby })
	defer func() { p.answeredAt = x.sent }() // when what follows from it is done
	p.el.Done(p.local(), election.Round{Sent: x.sent, RedisTime: x.v.time, Wrote: x.value, Members: x.v.members, Shadowed: x.v.shadowed, Unknown: x.v.unknown, Token: x.v.token})
	if x.claim {
		p.el.Claimed(p.local(), x.token)
	}
	p.triedAt = x.sent
	p.frees = append(p.frees, x)
	p.turn()
}

// A publishing renews the marks between rounds.
type publishing struct {
	p *proc
	e indexEntry
}

func (x *publishing) op()         { x.p.w.redis.index[x.p.node.id] = &x.e }
func (x *publishing) done(string) { x.p.pubBusy = false }

func (p *proc) publish(now int64) {
	p.publishAt = now + p.w.heartbeat/4
	p.tell(false)
	value, _ := p.el.Wants()
	_, down := p.el.Unavailable()
	if value == 0 || p.wrote == 0 || down || p.pubBusy || !p.marks() {
		return
	}
	p.pubBusy = true
	p.w.redis.call(p, p.w.now+p.w.deadline, &publishing{p, indexEntry{p.el.Timestamp(), now + p.redisOff, p.words()}})
}

// marks reports whether there is any mark to publish.
func (p *proc) marks() bool {
	for _, st := range p.streams {
		if _, ok := st.mark(); ok && (st.received > 0 || st.conn != nil) {
			return true
		}
	}
	return false
}

// words are what a collector says of itself, in Redis and directly.
func (p *proc) words() election.Member {
	role, _, _ := p.el.Role()
	return election.Member{
		Name: p.node.name, Instance: p.instance, Token: p.el.Token(), Unfit: p.el.Unfit() != "",
		Active: role == election.Active, Ready: p.join.ready, Strayed: p.el.Strayed(p.local()), Routers: p.self(),
	}
}

func (p *proc) self() map[string]election.RouterState {
	m := make(map[string]election.RouterState, len(p.streams))
	for _, st := range p.streams {
		if st.received == 0 && st.conn == nil {
			continue // never heard
		}
		s := election.RouterState{Hears: st.conn != nil, Sends: st.gate.Wanted() || st.gate.State() != gate.Holding, Mark: -1, Keeps: st.duty.Keeps, Lags: st.duty.Lags}
		st.peek(p.local())
		if st.conn != nil {
			s.Whole = st.course.Whole(p.local(), st.Behind)
			if st.Behind {
				s.Behind = max(1, p.local()-st.CaughtUp)
			}
			if silent := p.local() - st.Heard; st.Heard != 0 && silent > 2*probeEvery+sec {
				s.Behind = silent
			}
		}
		if mark, ok := st.mark(); ok && p.synced {
			s.Mark = mark + p.redisOff
		}
		m[st.r.name] = s
	}
	return m
}

func (p *proc) apply(now int64) {
	w := p.w
	if role, why, _ := p.el.Role(); role != p.role {
		w.tracef("%s: %s -> %s: %s (token %d)", p.name(), p.role, role, why, p.el.Token())
		p.role = role
	}
	p.lease = p.el.Lease()
	var said [2 * maxRouters]byte
	awaited, expected := false, false
	if w.patience > 0 {
		p.health(now)
	}
	p.recall()
	for i, st := range p.streams {
		if st.received == 0 && st.conn == nil && st.input.len() == 0 {
			continue
		}
		sends := st.gate.Wanted()
		d := p.el.Duty(now, st.r.name, st.conn != nil, sends)
		st.duty = d
		expected = expected || d.Expect || d.Send && d.Shared && !p.el.Lost()
		if d.Send != sends {
			w.tracef("%s: router %d: send %v shared %v (sender %s)", p.name(), st.r.id, d.Send, d.Shared, d.Sender)
			st.lagCheck()
			st.breaks()
			st.Stopped = 0
			if sends {
				st.stop(now)
			}
			if d.Send {
				st.wantedAt = now
				st.lose = w.opt.Defect == LostAtPromotion
			}
		}
		low := d.LowWater
		if low >= 0 {
			low = max(0, low-p.redisOff)
			if low > now+w.margin {
				low = 0 // Redis' clock has changed: such a mark says nothing
			}
		}
		if w.opt.Defect == WindowOnly {
			low = -1
		}
		window := w.window
		if w.opt.Defect == WindowTooShort {
			low, window = -1, w.expiry/2
		}
		if d.Send && !sends && low >= 0 {
			st.gate.Trim(now, low, w.margin, window)
		}
		st.gate.SetCovered(d.Sender != "" && d.Sender != p.node.name || p.left)
		st.gate.SetWanted(d.Send, d.Token, d.Shared)
		if !d.Send {
			if st.gate.State() != gate.Sending {
				st.words = nil
			}
			st.gate.Trim(now, low, w.margin, window)
		}
		st.drain()
		st.pump()
		awaited = awaited || st.gate.Awaits()
		said[2*i], said[2*i+1] = b2c(st.conn != nil), b2c(st.gate.Wanted() || st.gate.State() != gate.Holding)
	}
	if awaited {
		p.join.kick()
	} else if w.readsBack {
		p.join.expect(expected)
	}
	if said != p.said {
		p.said = said
		p.ask()
	}
	p.stopStep()
}

// recall gives up what Kafka does not acknowledge while Redis is away: another may be
// sending, and what is under way would come behind it.
func (p *proc) recall() {
	w := p.w
	if !p.el.Lost() || w.fencing || !w.readsBack || w.opt.Defect == Unrecalled || p.out.used == 0 || w.now-p.out.progress < w.expiry {
		return
	}
	w.fire(Recalled)
	w.tracef("%s recalls %d records", p.name(), p.out.used)
	for _, st := range p.streams {
		st.gate.Again()
		st.words = nil
	}
	p.out.recall()
}

func b2c(b bool) byte {
	if b {
		return '1'
	}
	return '0'
}

// stop begins an orderly end, as on SIGTERM.
func (p *proc) stop() {
	if p.stopping {
		return
	}
	p.stopping = true
	p.stopAt = p.w.now
	_, down := p.el.Unavailable()
	for _, m := range p.el.Members() {
		if !down && m.Name != p.node.name && m.Value != election.ForcedStandby {
			p.heir = true
		}
	}
	p.w.tracef("%s leaves, heir: %v", p.name(), p.heir)
	if p.heir {
		p.el.Yield(p.local())
		p.ask()
	} else {
		p.closeSessions()
	}
	p.turn()
}

func (p *proc) leave() {
	p.left = true
	p.el.Leave(p.local())
	p.ask()
}

// ask tells the others something new, and looks what they say.
func (p *proc) ask() {
	p.announce = true
	p.el.Look(p.local())
	p.tell(true)
}

// health says whether Kafka is out of reach.
func (p *proc) health(now int64) {
	why := ""
	switch {
	case !p.node.cutKafka && !p.w.kafka.down:
		p.troubled = 0
	case p.troubled == 0:
		p.troubled = now
	case now-p.troubled >= p.w.patience:
		why = "cannot reach Kafka"
	}
	if why != p.el.Unfit() {
		p.w.fire(Unfit)
		p.el.SetUnfit(now, why)
		p.ask()
	}
}

func (p *proc) closeSessions() {
	for _, st := range p.streams {
		if st.conn != nil {
			st.conn.finish()
		}
	}
}

func (p *proc) stopStep() {
	if !p.stopping || p.ended {
		return
	}
	late := p.w.now > p.stopAt+20*sec
	for _, st := range p.streams {
		n, _, _ := st.gate.Held()
		switch {
		case late:
		case p.heir && (st.gate.Wanted() || st.gate.State() != gate.Holding):
			return
		case !p.heir && st.gate.Wanted() && (n > 0 || st.gate.Outstanding() > 0 || st.input.len() > 0):
			return
		}
	}
	if !p.left {
		p.leave()
		return // the streams stop in the next turn
	}
	if !p.resigning {
		p.resigning = true
		p.closeSessions()
		p.do(0, p.resign)
	}
}

// resign takes p off the list, after an exchange that is under way.
func (p *proc) resign() {
	p.ended = true
	if p.busy {
		p.do(ms/10, p.resign)
		return
	}
	p.w.redis.call(p, p.w.now+p.w.deadline, (*resigning)(p))
}

// resigning is the last request to Redis.
type resigning proc

func (x *resigning) op() {
	rd := x.w.redis
	rd.keys[x.node.id] = redisKey{value: election.ForcedStandby}
	rd.index[x.node.id] = nil
	rd.tell((*proc)(x))
}

func (x *resigning) done(string) { (*proc)(x).kill() }

// accept takes a session; an older one of the same router ends first.
func (p *proc) accept(router int, s *session) *connection {
	st := p.streams[router]
	if st.conn != nil {
		st.conn.finish()
		st.abort(st.conn)
	}
	c := &connection{st: st, s: s, id: uint32(len(st.r.opens)), last: p.w.now, began: p.local(), open: true}
	st.conn = c
	p.w.tracef("%s: router %d: session %d", p.name(), router, c.id)
	st.input.push(input{conn: c, kind: hold.Opened, msg: []byte{s.salt}, at: p.w.now})
	p.do(0, func() {
		st.drain()
		p.turn()
	})
	return c
}

// arrive follows a message that the network has delivered. It is read when the
// process runs and has room.
func (c *connection) arrive(msg []byte, it item) {
	p := c.st.p
	if p.dead || !c.open {
		return
	}
	c.last = p.w.now
	c.st.input.push(input{conn: c, kind: hold.Message, msg: msg, it: it, at: p.w.now, delivered: it.changes})
	switch {
	case !p.paused:
		(*reads)(c.st).run()
	case !c.st.roused:
		c.st.roused = true
		p.woken = append(p.woken, (*reads)(c.st))
	}
}

// reads is when a process reads what has come from a router.
type reads stream

func (t *reads) run() {
	st := (*stream)(t)
	st.roused = false
	st.drain()
	st.pump()
}

// finish ends the collector's end, with all that was delivered in the log.
func (c *connection) finish() {
	p := c.st.p
	if p.dead || !c.open || c.lingers {
		return
	}
	c.open = false
	p.w.tracef("%s: router %d: session %d ends", p.name(), c.st.r.id, c.id)
	c.st.input.push(input{conn: c, kind: hold.Closed, at: p.w.now})
	if q := c.s.way(); q != nil {
		q.ended = q.ended || q.healed == 0
	} else if c.s.open { // we ended it
		c.s.open = false
		if c.st.r.sessions[p.node.id] == c.s {
			c.st.r.sessions[p.node.id] = nil
			c.st.r.reconnect(p.node.id, p.w.between(200*ms, 2*sec))
		}
	}
	p.do(0, func() {
		c.st.drain()
		c.st.pump()
		p.turn()
	})
}

// drain moves what was read into the log, as far as there is room.
func (st *stream) drain() {
	p := st.p
	took := st.waited
	for st.input.len() > 0 {
		in := st.input.front()
		if p.w.opt.Defect == StandbyWaits && !st.gate.Wanted() && st.full() {
			return
		}
		if t := st.rib; t != nil {
			if t.open && !in.aborted && !st.tidy(in.conn) {
				st.Behind, st.waited = true, true
				return
			}
			if !in.learned {
				in.learned = true
				switch in.kind {
				case hold.Opened:
					st.opened(in.conn)
				case hold.Message:
					in.known = !st.learn(in)
				}
			}
		}
		if st.lose && in.kind == hold.Message {
			st.lose, in.known = false, true
		}
		if in.kind == hold.Opened && !in.attached {
			in.attached, in.conn.begun = true, true
			st.course.Begin(p.local())
			st.Vouch.Opened(in.at + p.skew)
		}
		if st.taking == 0 {
			st.taking = p.local()
		}
		if !in.known && !st.put(in.conn, in.kind, in.msg, in.it.changes) {
			st.Behind, st.waited = true, true
			return
		}
		switch in.kind {
		case hold.Message:
			took = true
			st.course.Take(st.taking, in.delivered[0].kind == kindEndOfRIB)
			if !in.known && st.rib != nil {
				st.note(in.it.changes)
			}
			for _, c := range in.it.changes {
				if c.version != 0 && !c.dump {
					if p.number < 128 {
						st.r.history[c.version].by[p.number/64] |= 1 << (p.number % 64)
					}
				}
			}
			if st.gate.Wanted() && in.conn.s.dumped && !in.delivered[0].dump {
				st.lag(in.conn.from(in.it.at))
			}
			in.conn.read(in.it.at)
			in.conn.s.flight--
			in.conn.s.pump()
			if st.rib != nil && !st.tidy(in.conn) {
				st.Behind, st.waited = true, true
				st.input.pop()
				return
			}
		case hold.Closed:
			if st.rib != nil {
				st.closed(in.conn)
			}
			st.course.End() // the next one's dump is to have the rest
			if st.conn == in.conn {
				st.lagCheck()
				st.breaks()
				st.conn = nil
			}
		}
		st.input.pop()
	}
	if took {
		from, end := st.gate.Positions()
		st.Took(st.taking, from, end, !st.waited)
	}
	st.taking, st.waited = 0, false
}

// append puts an entry of the collector's own into the log.
func (st *stream) append(c *connection, kind byte, changes []change) bool {
	msg := st.p.w.message(0, 0, changes)
	msg[0] = kind
	if !st.put(c, hold.Message, msg, changes) {
		return false
	}
	st.note(changes)
	return true
}

// put appends to the log. It reports false when there is no room.
func (st *stream) put(c *connection, kind hold.Kind, msg []byte, changes []change) bool {
	p := st.p
	now := p.local()
	if kind == hold.Opened && !st.refused {
		now = st.input.front().at + p.skew // of the accept
	}
	if n := len(st.entries); n > 0 {
		now = max(now, st.entries[n-1].at)
	}
	dropped := st.gate.Counters().Dropped
	if !st.gate.Append(kind, c.id, now, msg) {
		if !st.refused {
			p.w.fire(SenderFull)
			p.w.tracef("%s: router %d waits for room", p.name(), st.r.id)
		}
		st.refused = true
		return false
	}
	if d := st.gate.Counters().Dropped - dropped; d > 0 {
		p.w.fire(StandbyFull)
		p.w.tracef("%s: router %d drops %d", p.name(), st.r.id, d)
	}
	st.refused = false
	st.received++
	st.entries = append(st.entries, entered{now, changes})
	return true
}

// abort gives up what an older session has delivered while there is no room for
// it.
func (st *stream) abort(c *connection) {
	if st.rib == nil || !st.refused {
		return
	}
	if in := st.input.front(); in.kind == hold.Message && in.learned && st.p.w.opt.Defect != LossUntold {
		st.gate.Lost()
	}
	st.input.keep(func(in *input) bool {
		if in.conn == c && in.kind == hold.Closed {
			in.aborted = true
		}
		return in.conn != c || in.kind != hold.Message
	})
	st.p.w.fire(AbortedWhileFull)
}

// full reports whether the log holds all that it may; for a built-in mistake.
func (st *stream) full() bool {
	_, bytes, _ := st.gate.Held()
	return bytes*2 > st.p.budget.Limit()/int64(len(st.p.streams))
}

// lag notes that a sender is behind by more than the margin allows.
func (st *stream) lag(since int64) {
	if st.r.lagged == "" && st.p.w.now-since > st.p.w.margin*6/10 {
		st.r.lagged = fmt.Sprintf("%s was %.1f s behind at %.1f s", st.p.name(), float64(st.p.w.now-since)/1e6, float64(st.p.w.now)/1e6)
	}
}

// lagCheck looks at what the sender has not read yet.
func (st *stream) lagCheck() {
	if !st.gate.Wanted() || st.conn == nil {
		return
	}
	if st.conn.s.dumped { // until then marks stand still
		st.lag(st.conn.from(st.conn.s.oldest()))
	}
	for i := range st.input.all() {
		if in := &st.input.all()[i]; in.kind == hold.Message && !in.delivered[0].dump {
			st.lag(in.conn.from(in.it.at))
			return
		}
	}
}

func (p *proc) mayHand() bool {
	return p.local() < p.lease || p.w.opt.Defect == IgnoresLease
}

// pump encodes and hands over.
func (st *stream) pump() {
	p := st.p
	w := p.w
	if pos, ok := st.gate.Start(); ok {
		st.starts++
		st.fresh = true
		st.words = nil
		p.out.reset(st.r.id, pos)
	}
	for {
		if st.gate.State() != gate.Sending {
			st.words = nil
			return
		}
		if len(st.words) == 0 && !st.encode() {
			return
		}
		if !p.mayHand() {
			return
		}
		if p.local() >= p.el.Lease() {
			w.violate("I5: %s hands over %d µs after the end of its lease", p.name(), p.local()-p.el.Lease())
		}
		if p.stopAtHand > 0 {
			d := p.stopAtHand
			p.stopAtHand = 0
			w.fire(StopAtHandOver)
			if w.sleeper == p {
				w.fire(StopUntilRead)
			}
			p.pause(d)
			p.do(0, func() { st.hand() })
			return
		}
		if !st.hand() {
			return
		}
	}
}

// encode makes the next batch.
func (st *stream) encode() bool {
	w := st.p.w
	if w.now < st.retryAt || !st.p.mayHand() || !st.gate.Begin() {
		return false
	}
	st.batch.Reset()
	st.gate.Fill(&st.batch, 50, 4<<10, 0)
	pos, ok := st.gate.End(st.batch.Len())
	if !ok || st.batch.Len() == 0 {
		return ok
	}
	st.pos = pos
	st.words = st.room[:0]
	for i := range st.batch.Len() {
		h, err := record.ParseHeader(st.batch.Header(i))
		c, sound := parseChange(st.batch.Value(i))
		if err != nil || !sound {
			w.violate("I9: %s makes a record that cannot be read", st.p.name())
		}
		st.words = append(st.words, word{change: c, header: h, proc: st.p, pos: pos + uint64(i)})
	}
	st.room = st.words
	if w.opt.Defect == LiveBeforeHeld && st.fresh {
		for i := range len(st.words) / 2 {
			j := len(st.words) - 1 - i
			st.words[i], st.words[j] = st.words[j], st.words[i]
		}
	}
	if st.sets != nil {
		if st.pos >= st.setEnd {
			st.sets = nil
		}
		for i := range st.words {
			c := &st.words[i]
			if at := c.header.Message; at < st.setEnd && c.kind == kindRoute && st.sets[[2]uint64{c.header.KeyHash, c.header.ValueHash}] {
				c.lost = true
			}
		}
	}
	st.fresh = false
	return true
}

// hand gives the batch to the producer. It reports false if that took less.
func (st *stream) hand() bool {
	if len(st.words) == 0 {
		return true
	}
	if st.gate.State() != gate.Sending {
		st.words = nil
		return false
	}
	n, ok := st.p.out.hand(st.r.id, st.pos, st.words)
	st.gate.Handed(n)
	if !ok {
		st.words = nil
		return false
	}
	st.words = st.words[n:]
	st.pos += uint64(n)
	return len(st.words) == 0
}

// report follows a report of the producer.
func (p *proc) report(i int, acked, outstanding uint64, failed bool) {
	st := p.streams[i]
	if failed && p.w.opt.Defect == PopsOnFailure {
		acked = p.out.streams[i].expect
	}
	st.gate.Report(acked, outstanding, failed)
	if failed {
		st.words = nil
		st.backoff = min(max(2*st.backoff, 50*ms), 5*sec)
		st.retryAt = p.w.now + st.backoff
		p.do(st.backoff, func() { st.pump() })
	} else {
		st.backoff = 0
	}
	if st.gate.State() == gate.Holding && (!st.gate.Wanted() || st.gate.Awaits()) {
		p.do(0, p.turn)
	}
	st.drain()
	for _, other := range p.streams { // room in the window
		other.pump()
	}
}

// check is what must hold at any time.
func (p *proc) check() {
	if used, limit := p.budget.Used(), p.budget.Limit()+int64(len(p.streams))*(256<<10); used > limit {
		p.w.violate("I3: %s uses %d bytes, its limit is %d", p.name(), used, p.budget.Limit())
	}
	for _, st := range p.streams {
		c := st.gate.Counters()
		held, _, _ := st.gate.Held()
		if out := c.Acknowledged + c.FreedMark + c.FreedWindow + c.Dropped + uint64(held); c.Received != out || c.Received != st.received {
			p.w.violate("I4: %s, router %d: received %d of %d, accounted for %d: %+v", p.name(), st.r.id, c.Received, st.received, out, c)
		}
		if p.paused {
			st.readable = p.w.now
			continue
		}
		st.lagCheck()
		if st.gate.Wanted() {
			st.readable = p.w.now
		} else if !st.gate.Needed() && st.input.len() > 0 && p.w.now-max(st.readable, st.input.front().at) > 500*ms {
			p.w.violate("I10: %s does not send for router %d and makes it wait", p.name(), st.r.id)
		}
	}
}
