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
	proc *proc // nil while none runs

	cutRedis   bool
	cutKafka   bool
	cutRouters [8]bool
	slow       [8]int64 // µs between messages from a router, 0 normal
	failNext   Fault    // what happens to the next request to Kafka
}

func (nd *node) start() {
	if nd.proc != nil || nd.w.closing {
		return
	}
	nd.proc = newProc(nd)
	nd.w.tracef("%s starts", nd.proc.name())
	nd.proc.turn()
	nd.proc.tick()
}

// A proc is one run of a collector: what package collector is around the cores.
type proc struct {
	w        *world
	node     *node
	run      int
	instance uint64
	skew     int64 // local clock - true time

	el      *election.Election
	budget  *hold.Budget
	streams []*stream
	out     *producer

	busy      bool // an exchange with Redis
	publishAt int64
	pubBusy   bool
	wrote     uint64
	said      string
	announce  bool
	ended     bool
	redisOff  int64
	lease     int64
	role      election.Role

	stopping   bool
	stopAt     int64
	heir       bool
	left       bool
	resigning  bool
	dead       bool
	paused     bool
	woken      []func()
	stopAtHand int64 // SIGSTOP for so long after the next check of the lease
}

// A stream is a router as the collector sees it.
type stream struct {
	p        *proc
	r        *router
	gate     *gate.Stream
	conn     *connection // open session
	input    []input
	arrivals []int64 // by position
	starts   int
	wantedAt int64
	batch    record.Batch
	words    []word // encoded and not handed over
	pos      uint64
	retryAt  int64
	backoff  int64
	received uint64
	refused  bool
	readable int64 // when the stream last had a reason not to read
	fresh    bool  // nothing was encoded since the start
	rib      *rib  // nil: a table that comes again is sent again
}

type input struct {
	conn *connection
	kind hold.Kind
	msg  []byte
	it   item
	at   int64 // true time of delivery

	learned bool // the table has it
	known   bool // and nothing of it needs to be sent
	aborted bool // a Closed: what was delivered before need not be in the log
}

// A connection is the collector's end of a session.
type connection struct {
	st      *stream
	s       *session
	id      uint32
	open    bool
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
	p := &proc{w: w, node: nd, run: run, instance: w.rng.Uint64(), skew: w.between(sec, 1000*sec), budget: hold.NewBudget(w.budget)}
	if p.skew > 10*sec {
		w.fire(ClockOffset)
	}
	p.redisOff = epoch - p.skew + w.between(-60*sec, 60*sec) // the wall clock, until Redis is asked
	p.el = election.New(election.Config{
		Name: nd.name, Instance: p.instance, Heartbeat: w.heartbeat, Expiry: w.expiry,
		Deadline: w.deadline, Failures: w.failures, Handover: w.handover, Grace: w.grace, Window: w.window, Proof: w.expiry,
	}, p.local())
	for _, r := range w.routers {
		st := &stream{p: p, r: r}
		st.gate = gate.New(gate.Config{
			ID: uint32(r.id), Instance: p.instance,
			Open: func(_ uint32, body []byte) gate.Codec { return &codec{salt: body[0]} },
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
	w.procs = append(w.procs, p)
	return p
}

func (p *proc) name() string { return fmt.Sprintf("%s%d", p.node.name, p.run) }

func (p *proc) local() int64 { return p.w.now + p.skew }

// do runs f after d, when the process runs; never if it has ended.
func (p *proc) do(d int64, f func()) {
	p.w.after(d, func() {
		switch {
		case p.dead:
		case p.paused:
			p.woken = append(p.woken, f)
		default:
			f()
		}
	})
}

func (p *proc) pause(d int64) {
	if p.paused || p.dead {
		return
	}
	p.w.tracef("%s stops for %.3f s", p.name(), float64(d)/1e6)
	p.paused = true
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
			f()
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
	for _, st := range p.streams {
		st.lagCheck()
		if r := st.r; r.sessions[p.node.id] != nil {
			r.cut(p.node.id)
		}
	}
}

func (p *proc) accepts() bool { return !p.stopping }

func (p *proc) tick() {
	p.turn()
	p.do(p.w.deadline/2, p.tick)
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
		if next := p.el.Next() - now; next > 0 && next < p.w.deadline/2 {
			p.do(next, p.turn)
		}
	}
}

func (p *proc) exchange() {
	w, rd := p.w, p.w.redis
	p.busy = true
	value, claim := p.el.Wants()
	routers := p.self()
	timestamp, seen := p.el.Timestamp(), p.el.Token()
	announce := p.announce || value != p.wrote
	p.announce, p.wrote = false, value
	sent := p.local()
	until := w.now + w.deadline
	fail := func(why string) {
		p.busy = false
		if !p.ended {
			if w.opt.Defect == ErrorsMeanAlone && why[0] == 'L' {
				p.el.Done(p.local(), election.Round{Sent: sent, RedisTime: rd.clock(), Wrote: value})
			} else {
				p.el.Failed(p.local(), sent, why)
			}
		}
		p.turn()
	}
	var v *view
	var trip int64
	var token uint64
	finish := func() {
		p.busy = false
		p.redisOff = v.time - (sent + trip/2)
		p.el.Done(p.local(), election.Round{Sent: sent, RedisTime: v.time, Wrote: value, Members: v.members, Shadowed: v.shadowed, Unknown: v.unknown})
		if claim {
			p.el.Claimed(p.local(), token)
		}
		p.turn()
	}
	tell := func() {
		if !announce {
			finish()
			return
		}
		rd.call(p, w.now+w.deadline, func() { rd.tell(p) }, func(why string) {
			if why != "" {
				fail(why)
				return
			}
			finish()
		})
	}
	rd.call(p, until, func() { v = rd.read(p, timestamp) }, func(why string) {
		if why != "" {
			fail(why)
			return
		}
		if v.shadowed {
			value = 0
		}
		rd.call(p, until, func() { rd.write(p, v, timestamp, value, seen, routers) }, func(why string) {
			if why != "" {
				fail(why)
				return
			}
			trip = p.local() - sent
			if !claim {
				tell()
				return
			}
			rd.call(p, w.now+w.deadline, func() { token = rd.claim(seen) }, func(why string) {
				if why != "" {
					fail(why)
					return
				}
				tell()
			})
		})
	})
}

func (p *proc) publish(now int64) {
	p.publishAt = now + p.w.heartbeat/4
	value, _ := p.el.Wants()
	_, down := p.el.Unavailable()
	if value == 0 || p.wrote == 0 || down || p.pubBusy {
		return
	}
	routers := p.self()
	marks := false
	for _, r := range routers {
		marks = marks || r.Mark >= 0
	}
	if !marks {
		return
	}
	p.pubBusy = true
	e := &indexEntry{p.instance, p.el.Timestamp(), now + p.redisOff, p.el.Token(), routers}
	p.w.redis.call(p, p.w.now+p.w.deadline, func() { p.w.redis.index[p.node.name] = e }, func(string) { p.pubBusy = false })
}

func (p *proc) self() map[string]election.RouterState {
	m := make(map[string]election.RouterState)
	for _, st := range p.streams {
		if st.received == 0 && st.conn == nil {
			continue // never heard
		}
		s := election.RouterState{Hears: st.conn != nil, Sends: st.gate.Wanted() || st.gate.State() != gate.Holding, Mark: -1}
		if mark, ok := st.gate.Mark(p.local()); ok {
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
	said := make([]byte, 0, 16)
	for _, st := range p.streams {
		if st.received == 0 && st.conn == nil && len(st.input) == 0 {
			continue
		}
		sends := st.gate.Wanted()
		d := p.el.Duty(now, st.r.name, st.conn != nil, sends)
		if d.Send != sends {
			w.tracef("%s: router %d: send %v shared %v (sender %s)", p.name(), st.r.id, d.Send, d.Shared, d.Sender)
			st.lagCheck()
			if d.Send {
				st.wantedAt = now
			}
		}
		low := d.LowWater
		if low >= 0 {
			low = max(0, low-p.redisOff)
		}
		if w.opt.Defect == WindowOnly {
			low = -1
		}
		if d.Send && !sends && low >= 0 {
			st.gate.Trim(now, low, w.margin, w.window)
		}
		st.gate.SetWanted(d.Send, p.el.Token(), d.Shared)
		if !d.Send {
			if st.gate.State() != gate.Sending {
				st.words = nil
			}
			st.gate.Trim(now, low, w.margin, w.window)
		}
		st.drain()
		st.pump()
		said = append(said, b2c(st.conn != nil), b2c(st.gate.Wanted() || st.gate.State() != gate.Holding))
	}
	if string(said) != p.said {
		p.said = string(said)
		p.announce = true
		p.el.Look(now)
	}
	p.stopStep()
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
		p.leave()
	} else {
		p.closeSessions()
	}
	p.turn()
}

func (p *proc) leave() {
	p.left = true
	p.el.Leave(p.local())
	p.announce = true
	p.el.Look(p.local())
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
		case !p.heir && st.gate.Wanted() && (n > 0 || st.gate.Outstanding() > 0 || len(st.input) > 0):
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
	rd := p.w.redis
	rd.call(p, p.w.now+p.w.deadline, func() {
		rd.keys[p.node.name] = &redisKey{value: election.ForcedStandby}
		delete(rd.index, p.node.name)
		rd.tell(p)
	}, func(string) { p.kill() })
}

// accept takes a session; an older one of the same router ends first.
func (p *proc) accept(router int, s *session) *connection {
	st := p.streams[router]
	if st.conn != nil {
		st.conn.finish()
		st.abort(st.conn)
	}
	c := &connection{st: st, s: s, id: uint32(len(st.r.opens)), open: true}
	st.conn = c
	st.input = append(st.input, input{conn: c, kind: hold.Opened, msg: []byte{s.salt}, at: p.w.now})
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
	c.st.input = append(c.st.input, input{conn: c, kind: hold.Message, msg: msg, it: it, at: p.w.now})
	p.do(0, func() {
		c.st.drain()
		c.st.pump()
	})
}

// finish ends the collector's end, with all that was delivered in the log.
func (c *connection) finish() {
	p := c.st.p
	if p.dead || !c.open || c.lingers {
		return
	}
	c.open = false
	c.st.input = append(c.st.input, input{conn: c, kind: hold.Closed, at: p.w.now})
	if c.s.open { // we ended it
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
	for len(st.input) > 0 {
		in := &st.input[0]
		if p.w.opt.Defect == StandbyWaits && !st.gate.Wanted() && st.full() {
			return
		}
		if t := st.rib; t != nil {
			if t.open && !in.aborted && !st.tidy(in.conn) {
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
		if !in.known && !st.put(in.conn, in.kind, in.msg) {
			return
		}
		switch in.kind {
		case hold.Message:
			if !in.known && st.rib != nil {
				st.note(in.it.changes)
			}
			for _, c := range in.it.changes {
				if c.version != 0 && !c.dump {
					h := &st.r.history[c.version]
					h.by = append(h.by, p)
				}
			}
			if st.gate.Wanted() {
				st.lag(in.it.at)
			}
			in.conn.s.flight--
			in.conn.s.pump()
			if st.rib != nil && !st.tidy(in.conn) {
				st.input[0] = input{}
				st.input = st.input[1:]
				return
			}
		case hold.Closed:
			if st.rib != nil {
				st.closed()
			}
			if st.conn == in.conn {
				st.lagCheck()
				st.conn = nil
			}
		}
		st.input[0] = input{}
		st.input = st.input[1:]
	}
}

// append puts an entry of the collector's own into the log.
func (st *stream) append(c *connection, kind byte, changes []change) bool {
	msg := appendMessage(nil, 0, 0, changes)
	msg[0] = kind
	if !st.put(c, hold.Message, msg) {
		return false
	}
	st.note(changes)
	return true
}

// put appends to the log. It reports false when there is no room.
func (st *stream) put(c *connection, kind hold.Kind, msg []byte) bool {
	p := st.p
	now := p.local()
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
	st.arrivals = append(st.arrivals, now)
	return true
}

// abort gives up what an older session has delivered while there is no room for
// it.
func (st *stream) abort(c *connection) {
	if st.rib == nil || !st.refused {
		return
	}
	if in := &st.input[0]; in.kind == hold.Message && in.learned && st.p.w.opt.Defect != LossUntold {
		st.gate.Lost()
	}
	kept := st.input[:0]
	for i := range st.input {
		switch in := &st.input[i]; {
		case in.conn != c:
			kept = append(kept, *in)
		case in.kind == hold.Opened:
			kept = append(kept, *in)
		case in.kind == hold.Closed:
			in.aborted = true
			kept = append(kept, *in)
		}
	}
	st.input = kept
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
	st.lag(st.conn.s.oldest())
	for _, in := range st.input {
		if in.kind == hold.Message {
			st.lag(in.it.at)
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
	st.words = st.words[:0:0]
	for i := range st.batch.Len() {
		h, err := record.ParseHeader(st.batch.Header(i))
		c, sound := parseChange(st.batch.Value(i))
		if err != nil || !sound {
			w.violate("I9: %s makes a record that cannot be read", st.p.name())
		}
		st.words = append(st.words, word{change: c, header: h, proc: st.p, pos: pos + uint64(i)})
	}
	if w.opt.Defect == LiveBeforeHeld && st.fresh {
		for i := range len(st.words) / 2 {
			j := len(st.words) - 1 - i
			st.words[i], st.words[j] = st.words[j], st.words[i]
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
	if st.gate.State() == gate.Holding && !st.gate.Wanted() {
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
		} else if len(st.input) > 0 && p.w.now-max(st.readable, st.input[0].at) > 500*ms {
			p.w.violate("I10: %s does not send for router %d and makes it wait", p.name(), st.r.id)
		}
	}
}
