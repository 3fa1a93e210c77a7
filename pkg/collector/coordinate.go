package collector

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/bmpha/bmpha/pkg/cluster"
	"github.com/bmpha/bmpha/pkg/election"
	"github.com/bmpha/bmpha/pkg/gate"
	"github.com/bmpha/bmpha/pkg/link"
	"github.com/bmpha/bmpha/pkg/sink"
)

// A coordinator is the shell of the election: it asks Redis when the election
// wants it to, feeds it what happened, and tells every router's gate what to do.
type coordinator struct {
	c      *Collector
	client *cluster.Client
	host   string
	noise  *rate.Limiter

	wakeup chan struct{} // look at everything again
	look   chan struct{} // ask Redis now
	calls  chan func(now int64)
	told   chan func(now int64) // news from the links
	over   chan struct{}        // closed when the loop ends
	link   *link.Link           // nil: there is none
	turned atomic.Int64         // when the loop last came round

	// Owned by the loop.
	e         *election.Election
	gone      election.Gone
	busy      bool // an exchange with Redis is under way
	publishAt int64
	sayAt     int64
	pulse     pulse
	rounds    *rate.Limiter
	paced     int64         // no round before
	publishes chan struct{} // holds a token while a publish is under way
	results   chan result
	wrote     uint64 // the last value written
	said      string // what was last announced
	announce  bool
	again     bool          // something new came while an exchange was under way
	left      bool          // nothing is ours any more
	synced    bool          // Redis' clock is known
	ended     bool          // resigned: no more exchanges
	idle      chan struct{} // closed when the last exchange is over

	mu      sync.Mutex // guards what follows, for status
	seen    snapshot
	changed chan struct{} // closed, and made anew, when seen has changed
}

// snapshot is what status shows of the election.
type snapshot struct {
	role      election.Role
	mode      election.Mode
	reason    string
	since     int64
	timestamp uint64
	token     uint64
	failing   string
	failures  uint64 // rounds failed since the start
	down      bool   // Redis counts as unavailable
	held      bool   // and the role is held by what is heard over links
	rounds    uint64 // good rounds since the start
	lastGood  int64
	tried     int64 // when the last round began that has ended, well or not
	trip      int64 // of the last good round, µs
	view      *cluster.View
	takeover  takeover
	changes   [3]uint64 // of the role, by the new one
}

// lost is Election.Lost.
func (s *snapshot) lost() bool { return s.down && !s.held }

// A takeover is the last time that this collector became active.
type takeover struct {
	at     int64
	from   string // previous leader, if known
	reason string
	token  uint64
	base   uint64 // entries replayed before
}

// result is what an exchange with Redis brought.
type result struct {
	round election.Round
	view  *cluster.View
	err   error
	trip  int64
	token uint64 // set if a claim was made
	claim bool
	// unsaid is set when an announcement was to be made and failed.
	unsaid bool
}

func (co *coordinator) init(c *Collector) {
	co.c = c
	co.host, _ = os.Hostname()
	co.noise = rate.NewLimiter(rate.Every(10*time.Second), 10)
	co.rounds = rate.NewLimiter(rate.Every(c.o.Heartbeat/16), 32)
	co.wakeup = make(chan struct{}, 1)
	co.changed = make(chan struct{})
	co.look = make(chan struct{}, 1)
	co.calls = make(chan func(int64))
	co.told = make(chan func(int64), 16)
	co.over = make(chan struct{})
	co.results = make(chan result, 1)
	co.publishes = make(chan struct{}, 1)
	co.e = election.New(c.electionConfig(), c.clock.now())
	co.turned.Store(c.clock.now())
	o := c.o.Redis
	o.Keys, o.Process = cluster.NewKeys(c.o.Cluster, c.o.ID), c.o.Process
	o.Expiry = c.o.Expiry
	o.Deadline = time.Duration(election.Deadline(micros(c.o.Heartbeat), micros(c.o.Expiry))) * time.Microsecond
	o.Keep = c.o.Window
	co.client = cluster.New(o)
}

// kick makes the loop look at everything again soon. It never blocks.
func (co *coordinator) kick() { poke(co.wakeup) }

// announced makes the loop ask Redis now.
func (co *coordinator) announced() { poke(co.look) }

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// warn logs what the network causes, at a bounded rate.
func (co *coordinator) warn(msg string, args ...any) {
	if co.noise.Allow() {
		co.c.log.Warn(msg, args...)
	}
}

// do runs f in the loop and waits for it.
func (co *coordinator) do(ctx context.Context, f func(now int64)) error {
	done := make(chan struct{})
	select {
	case co.calls <- func(now int64) { f(now); close(done) }:
		<-done
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run is the loop. It ends when ctx does.
func (co *coordinator) run(ctx context.Context) {
	clk := &co.c.clock
	var exchanges sync.WaitGroup
	defer exchanges.Wait()
	defer close(co.over)
	timer := time.NewTimer(0)
	defer timer.Stop()
	tick := min(co.c.electionConfig().Deadline, co.still()) / 2
	for {
		now := clk.now()
		co.turned.Store(now)
		co.pulse.beat(now, co.still())
		co.e.Tick(now)
		co.apply(now)
		due := max(co.e.Next(), co.paced)
		if !co.busy && !co.ended && now >= due {
			co.paceOut(now)
			co.exchange(ctx, &exchanges)
		}
		if !co.ended && now >= co.publishAt {
			co.publish(ctx, &exchanges, now)
		}
		if !co.ended && now >= co.sayAt {
			co.say(now)
		}
		next := now + tick
		if !co.ended {
			next = min(next, co.publishAt)
			if !co.busy {
				next = min(next, due)
			}
		}
		timer.Reset(time.Duration(max(next-clk.now(), 0)) * time.Microsecond)
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-co.wakeup:
		case <-co.look:
			co.ask(clk.now())
		case f := <-co.calls:
			f(clk.now())
		case f := <-co.told:
			f(clk.now())
		case r := <-co.results:
			co.finish(clk.now(), r)
		}
	}
}

// paceOut keeps what the network causes (announcements, routers that come and
// go) from making rounds without end: beyond a burst they are a few per heartbeat.
func (co *coordinator) paceOut(now int64) {
	r := co.rounds.ReserveN(co.c.clock.start.Add(time.Duration(now)*time.Microsecond), 1)
	co.paced = now + r.DelayFrom(co.c.clock.start.Add(time.Duration(now)*time.Microsecond)).Microseconds()
}

// exchange begins a round with Redis.
func (co *coordinator) exchange(ctx context.Context, wg *sync.WaitGroup) {
	co.busy = true
	clk := &co.c.clock
	clk.syncWall()
	value, claim := co.e.Wants()
	self, _ := co.self()
	timestamp, seen := co.e.Timestamp(), co.e.Token()
	announce := co.announce || value != co.wrote
	co.announce, co.wrote = false, value
	wg.Go(func() {
		r := result{claim: claim}
		r.round, r.view, r.err = co.client.Round(ctx, self, timestamp, value, clk.now)
		r.trip = clk.now() - r.round.Sent // both requests; the clock is read in the first
		if r.err == nil && claim {
			r.token, r.err = co.client.Claim(ctx, seen)
		}
		if announce {
			// Others find out by their next round anyway.
			r.unsaid = r.err != nil || co.client.Announce(ctx) != nil
		}
		co.results <- r
	})
}

// finish follows the end of a round.
func (co *coordinator) finish(now int64, r result) {
	co.busy = false
	if co.idle != nil {
		close(co.idle)
		co.idle = nil
	}
	if r.err != nil && co.ended {
		return
	}
	co.announce = co.announce || r.unsaid
	co.mu.Lock()
	s := &co.seen
	s.tried = r.round.Sent
	if r.err != nil {
		s.failures++
		s.failing = r.err.Error()
	} else {
		s.failing = ""
		s.rounds++
		s.view, s.lastGood, s.trip = r.view, r.round.Sent, r.trip
		co.meet(r.view)
		co.c.past.look(r.view)
	}
	co.tell()
	co.mu.Unlock()
	if r.err != nil {
		co.e.Failed(now, r.round.Sent, r.err.Error())
		return
	}
	co.gone.Look(r.view.RedisTime, r.round.Members, func(i int) bool { return r.view.Members[i].Left })
	if r.trip <= co.c.electionConfig().Deadline {
		co.c.clock.redis.Store(r.round.RedisTime - (r.round.Sent + r.trip/2))
		co.synced = true
	}
	co.e.Done(now, r.round)
	if r.claim {
		co.e.Claimed(now, r.token)
	}
	if co.again {
		co.again = false
		co.e.Look(now)
	}
}

// publish renews our low-water marks in Redis between rounds, if we have any.
func (co *coordinator) publish(ctx context.Context, wg *sync.WaitGroup, now int64) {
	co.publishAt = now + micros(co.c.o.Heartbeat)/4
	if value, _ := co.e.Wants(); value == 0 || co.wrote == 0 {
		return
	}
	if _, down := co.e.Unavailable(); down {
		return
	}
	self, any := co.self()
	if !any {
		return
	}
	select {
	case co.publishes <- struct{}{}:
	default:
		return
	}
	timestamp, beat := co.e.Timestamp(), co.c.clock.toRedis(now)
	wg.Go(func() {
		// That Redis does not answer is the rounds' to find out.
		_ = co.client.Publish(ctx, self, timestamp, beat)
		<-co.publishes
	})
}

// A pulse notices that the process stood still. What came meanwhile waits in
// sockets, and those who read them, too, have yet to wake up: until they have,
// there is no saying that all of it is in Kafka.
type pulse struct {
	last   int64 // beat
	before int64 // the last beat before the process stood still last
	stood  int64 // what had come before that has been read
	until  int64 // when readers have had their time
}

// pulseRest is how long readers have to wake up.
const pulseRest = int64(300 * time.Millisecond / time.Microsecond)

// beat returns the latest time for which it may be said that all that had come is
// in Kafka. Beats further apart than most mean that the process stood still.
func (p *pulse) beat(now, most int64) (latest int64) {
	if p.last != 0 && now-p.last > most {
		// One that hardly gets to run reads a little each time all the same.
		p.stood, p.before = p.before, p.last
		if p.last >= p.until {
			p.stood = p.last
		}
		p.until = now + pulseRest
	}
	p.last = now
	if now < p.until {
		return p.stood
	}
	return now
}

// still is how far beats are apart if the process stood still. The loop comes round
// twice as often, whatever the heartbeat is.
func (co *coordinator) still() int64 {
	const least = int64(20 * time.Millisecond / time.Microsecond)
	return max(least, min(micros(co.c.o.Heartbeat), micros(co.c.o.Margin))/2)
}

// self is what we say of ourselves now. It reports whether there is any mark in
// it.
func (co *coordinator) self() (*cluster.Self, bool) {
	clk := &co.c.clock
	role, reason, since := co.e.Role()
	s := &cluster.Self{
		Instance: co.c.instance, Version: co.c.o.Version, Host: co.host, PID: os.Getpid(),
		Role: role.String(), Mode: co.e.Mode().String(), Reason: reason, Since: clk.toTime(since).UnixMicro(),
		Token: co.e.Token(), Unfit: co.e.Unfit(), Routers: make(map[string]election.RouterState),
		Ready: co.c.join.ready.Load(), Strayed: co.e.Strayed(clk.now()),
	}
	if co.link != nil {
		s.Link = co.link.Advertise()
	}
	any := false
	latest := co.pulse.beat(clk.now(), co.still())
	for _, r := range co.c.routers.all() {
		r.mu.Lock()
		mark, ok := r.mark(co.c, clk.now())
		state := election.RouterState{
			Hears: r.hears() && !r.flushing,
			Sends: r.sends(),
			Mark:  -1,
			Whole: r.course.Whole(clk.now(), r.Behind), Behind: r.lag(clk.now()),
			Keeps: r.keeps, Lags: r.lags,
		}
		if co.c.dumps != nil {
			state.Dumped = co.c.dumps.whole(&r.dumped)
		}
		if ok && co.synced {
			if !r.exact {
				mark = min(mark, latest)
			}
			state.Mark = clk.toRedis(mark)
			any = true
		}
		s.Routers[r.key] = state
		r.mu.Unlock()
	}
	return s, any
}

// apply tells every gate what the election has decided.
func (co *coordinator) apply(now int64) {
	c := co.c
	co.follow(now)
	if why := c.unfit(now); why != co.e.Unfit() {
		co.e.SetUnfit(now, why)
		co.announce = true
		co.ask(now)
		if why != "" {
			c.log.Warn("cannot do its job", "reason", why)
		} else {
			c.log.Info("can do its job again")
		}
	}
	c.fwd.lease.Store(co.e.Lease())
	margin, window := micros(c.o.Margin), micros(c.o.Window)
	changed, awaited := false, false
	_, away := co.e.Unavailable()
	if co.e.Lost() {
		co.recall(now)
	}
	for _, r := range c.routers.all() {
		r.mu.Lock()
		sends := r.stream.Wanted()
		d := co.e.Duty(now, r.key, r.hears(), sends)
		if r.flushing && !co.left {
			d.Send = true // nobody else can
		}
		before := r.sender
		r.sender, r.lowWater = d.Sender, d.LowWater
		r.stream.SetCovered(d.Sender != "" && d.Sender != c.o.Process || co.left)
		lowWater := d.LowWater
		if lowWater >= 0 {
			lowWater = c.clock.fromRedis(lowWater)
			if lowWater > now+margin {
				lowWater = 0 // Redis' clock has changed: such a mark says nothing
			}
		}
		if d.Send && !sends && lowWater >= 0 {
			// The word that lets us take over also says how far the other has come.
			r.stream.Trim(now, lowWater, margin, window)
		}
		if d.Send != sends {
			r.turned, r.Stopped = now, 0
			if sends {
				r.look(&c.o, now)
				from, _ := r.stream.Positions()
				m, ok := r.stream.Mark(now)
				r.Stop(now, m, ok, from, r.course.Whole(now, r.Behind))
			}
		}
		r.stream.SetWanted(d.Send, d.Token, d.Shared)
		if d.Send != sends {
			c.past.turn(r, &d, before, co.e.Members(), away && d.Shared)
		}
		r.keeps, r.lags = d.Keeps, d.Lags
		// Another may be sending beside us: when it has stopped, what Kafka has of both
		// is to be known already.
		expected := d.Expect || d.Send && d.Shared && !co.e.Lost()
		awaited = awaited || r.stream.Awaits() || expected != r.expected
		r.expected = expected
		if d.Send {
			c.fwd.wake(r)
		} else {
			if r.stream.State() != gate.Sending {
				c.fwd.discard(r)
			}
			r.stream.Trim(now, lowWater, margin, window)
			c.fetch(r)
		}
		if d.Send != sends || r.waits > 0 {
			r.cond.Broadcast()
		}
		r.mu.Unlock()
		changed = changed || d.Send != sends
	}
	if awaited {
		c.join.kick()
	}
	said := co.whatOthersMustKnow()
	if said != co.said {
		co.said = said
		co.announce = true
		co.sayAt = now
		co.ask(now)
	}
	c.forget(now)
}

// recallLeast is the shortest time without an acknowledgement that counts.
const recallLeast = int64(time.Second / time.Microsecond)

// recall takes back what Kafka does not acknowledge, while nothing is known of other
// senders. Where a host is cut off from everything another one takes over; what the
// first has handed over would come behind what that one says, once the network is back,
// and be the last word about routes that have changed since. The streams begin again as
// at a takeover, when Kafka answers. With fencing brokers see to it.
func (co *coordinator) recall(now int64) {
	c := co.c
	s, ok := c.o.Sink.(sink.Recaller)
	records := c.fwd.inFlight.Load()
	if !ok || c.join.reader == nil || c.o.TransactionalID != nil ||
		records == 0 || now-c.fwd.progress.Load() < max(micros(c.o.Expiry), recallLeast) {
		return
	}
	c.fwd.progress.Store(now) // once for these
	for _, r := range c.routers.all() {
		r.mu.Lock()
		r.stream.Again()
		if r.stream.State() != gate.Sending {
			c.fwd.discard(r)
		}
		r.mu.Unlock()
	}
	s.Recall()
	c.log.Warn("neither Redis nor Kafka answers: what was handed over is taken back", "records", records)
	c.join.kick()
}

// ask makes a round due now, or, if one is under way that may not have seen or
// said what is new, right after it.
func (co *coordinator) ask(now int64) {
	co.again = co.again || co.busy
	co.e.Look(now)
}

// whatOthersMustKnow sums up what is announced at once when it changes: our role,
// and which routers we hear and send for.
func (co *coordinator) whatOthersMustKnow() string {
	role, _, _ := co.e.Role()
	b := fmt.Appendln(nil, role, co.e.Mode(), co.c.join.ready.Load())
	for _, r := range co.c.routers.all() {
		r.mu.Lock()
		hears, sends := r.hears(), r.sends()
		b = fmt.Appendf(b, "%s %t %t %t %t\n", r.key, hears, sends, r.keeps, r.lags)
		r.mu.Unlock()
	}
	return string(b)
}

// tell wakes those that wait for a change of seen. The caller holds mu.
func (co *coordinator) tell() {
	close(co.changed)
	co.changed = make(chan struct{})
}

// follow keeps what status shows, and logs a change of role.
func (co *coordinator) follow(now int64) {
	role, reason, since := co.e.Role()
	failing, down := co.e.Unavailable()
	co.mu.Lock()
	defer co.mu.Unlock()
	s := &co.seen
	old := *s
	s.role, s.reason, s.since, s.mode = role, reason, since, co.e.Mode()
	s.timestamp, s.token, s.down, s.held = co.e.Timestamp(), co.e.Token(), down, co.e.Held()
	if down {
		s.failing = failing
	}
	if role == old.role && s.mode == old.mode && down == old.down {
		if s.timestamp != old.timestamp {
			co.tell()
		}
		return
	}
	defer co.tell()
	const most = 16 // names in a line
	var names []string
	for i, m := range co.e.Members() {
		if i == most {
			names = append(names, fmt.Sprintf("and %d more", len(co.e.Members())-most))
			break
		}
		names = append(names, m.Name)
	}
	if role != old.role {
		s.changes[role]++
	}
	if role == election.Active && old.role != election.Active {
		s.takeover = takeover{at: now, reason: reason, token: s.token, from: co.lastLeader(old.view), base: co.replayed()}
		co.c.fwd.firstAck.Store(0)
		if !co.anyHeld() {
			co.c.fwd.firstAck.Store(now) // nothing waited for us
		}
	}
	co.c.log.Info("role", "old", old.role.String(), "new", role.String(), "mode", s.mode.String(),
		"reason", reason, "members", names, "token", s.token)
}

// replayed counts the entries that all routers have sent again.
func (co *coordinator) replayed() uint64 {
	n := co.c.counts.replayed.Load()
	for _, r := range co.c.routers.all() {
		r.mu.Lock()
		n += r.stream.Counters().Replayed
		r.mu.Unlock()
	}
	return n // a router may be forgotten meanwhile: it is then counted twice for a moment
}

// anyHeld reports whether there is anything to send.
func (co *coordinator) anyHeld() bool {
	for _, r := range co.c.routers.all() {
		r.mu.Lock()
		n, _, _ := r.stream.Held()
		r.mu.Unlock()
		if n > 0 {
			return true
		}
	}
	return false
}

// lastLeader names who was active before us.
func (co *coordinator) lastLeader(v *cluster.View) string {
	if v == nil {
		return ""
	}
	for _, m := range v.Members {
		if m.Role == election.Active.String() && m.Name != co.c.o.Process {
			return m.Name
		}
	}
	return ""
}

// heir names a member that would take over if we left, "" if there is none, and
// lists the routers that no one but us hears: all, if there is none.
func (co *coordinator) heir() (name string, orphans []*router) {
	_ = co.do(context.Background(), func(int64) {
		if co.e.Mode() == election.ForceStandby {
			return // what we hold is not to be sent
		}
		heard := map[string]bool{}
		if _, down := co.e.Unavailable(); !down {
			for _, m := range co.e.Members() {
				if m.Name == co.c.o.Process && m.Instance == co.c.instance || m.Value == election.ForcedStandby {
					continue
				}
				name = cmp.Or(name, m.Name)
				for key, r := range m.Routers {
					heard[key] = heard[key] || r.Hears
				}
				heard[anyRouter] = heard[anyRouter] || m.Native
			}
		}
		for _, r := range co.c.routers.all() {
			r.mu.Lock()
			if !heard[r.key] && !heard[anyRouter] && (r.session != nil || r.heard || !r.empty()) {
				orphans = append(orphans, r)
			}
			r.mu.Unlock()
		}
	})
	return name, orphans
}

// anyRouter stands for what native members hear: they cannot say.
const anyRouter = ""

// yield lets the others come first, and waits for nothing.
func (co *coordinator) yield() {
	_ = co.do(context.Background(), func(now int64) {
		co.e.Yield(now)
		co.announce = true
		co.ask(now)
	})
}

// leave makes us own nothing from now on, and says so at once.
func (co *coordinator) leave() {
	_ = co.do(context.Background(), func(now int64) {
		co.e.Leave(now)
		co.left = true
		co.announce = true
		co.ask(now)
	})
}

// resign takes us off the list, after what we had sent was acknowledged. It takes
// a few deadlines at most.
func (co *coordinator) resign() {
	idle := make(chan struct{})
	wrote := false
	var self *cluster.Self
	var timestamp uint64
	var beat int64
	_ = co.do(context.Background(), func(now int64) {
		co.ended, wrote = true, co.wrote != 0
		self, _ = co.self()
		timestamp, beat = co.e.Timestamp(), co.c.clock.toRedis(now)
		if co.busy {
			co.idle = idle
		} else {
			close(idle)
		}
	})
	<-idle
	co.publishes <- struct{}{} // one that is under way would put us back on the list
	if !wrote {
		return
	}
	if err := co.client.Leave(context.Background(), self, timestamp, beat); err != nil {
		co.c.log.Warn("could not leave the cluster in order", "error", err)
	}
}

// errStuck is reported when the loop does not turn.
var errStuck = errors.New("the main loop has not turned")

// stuckAfter is how long a loop may take for one turn.
func (c *Collector) stuckAfter() time.Duration { return max(5*time.Second, 2*c.o.Expiry) }

// healthy reports whether the loops turn.
func (c *Collector) healthy() error {
	limit := c.stuckAfter()
	now := c.clock.now()
	for what, at := range map[string]int64{"election": c.co.turned.Load(), "reports": c.fwd.turned.Load()} {
		if age := time.Duration(now-at) * time.Microsecond; age > limit {
			return fmt.Errorf("%w: %s, for %s", errStuck, what, age.Round(time.Millisecond))
		}
	}
	return nil
}
