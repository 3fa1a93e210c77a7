// Package collector is the daemon: BMP sessions in, records out, and in between
// one ordered log per router that the election opens or holds.
//
//	session ──▶ router's log ──▶ gate ──▶ encoder ──▶ sink
//	               ▲                         │
//	               └──── acknowledged ───────┘
//	election ⇄ Redis: which logs are sent, up to where others have sent
//
// It is the shell around the pure packages: hold and gate (what is kept and what
// goes), election (who sends), seam (what Kafka has of that already), pmacct (what
// records look like). Here are the goroutines, the sockets and the clock, and as few
// decisions as possible:
//
//   - one goroutine per session reads, frames and appends (session.go);
//   - a few workers encode and hand over, one collects reports (forward.go);
//   - one goroutine owns the election and tells each router's gate what to do
//     (coordinate.go), with what links to the other collectors say (direct.go);
//   - one reads the end of the topics back, through package topic, and lets routers
//     go on behind it (seam.go).
//
// Locks: each router has one lock, held for appends, for handing over and for
// reports, never while reading from the network or encoding. The run queue's lock
// may be taken inside it; the table's and the coordinator's only around it.
package collector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bmpha/bmpha/pkg/cluster"
	"github.com/bmpha/bmpha/pkg/election"
	"github.com/bmpha/bmpha/pkg/hold"
	"github.com/bmpha/bmpha/pkg/intake"
	"github.com/bmpha/bmpha/pkg/link"
	"github.com/bmpha/bmpha/pkg/pmacct"
	"github.com/bmpha/bmpha/pkg/relay"
	"github.com/bmpha/bmpha/pkg/sink"
	"github.com/bmpha/bmpha/pkg/spool"
	"github.com/bmpha/bmpha/pkg/table"
	"github.com/bmpha/bmpha/pkg/tail"
	"github.com/bmpha/bmpha/pkg/topic"
)

// Options are what a Collector is made of. All fields without a comment that
// says otherwise must be set.
type Options struct {
	Version string // of the program, shown to others; may be empty
	Process string // name in the cluster
	Cluster string
	ID      int // of the cluster
	Members int // of the cluster that there should be: for status; 0: nobody has said

	Listen      []string       // addresses to listen on
	Allow       []netip.Prefix // routers that may connect; empty means all
	MaxSessions int
	MaxMessage  int           // bytes of a BMP message
	KeepAlive   time.Duration // of TCP; negative turns it off
	ReadTimeout time.Duration // inside a message
	BySysName   bool          // identify routers by sysName instead of address
	Alias       map[netip.Addr]string

	Memory int64 // bytes for all logs
	Window time.Duration
	Margin time.Duration

	Redis     cluster.Options // Keys, Process, Expiry, Deadline and Keep are filled in
	Heartbeat time.Duration
	Expiry    time.Duration
	Link      *link.Options // to the other members; nil: none. Name, Instance, Cluster, timers and callbacks are filled in
	HoldRoles bool          // while Redis is away and the members hear each other directly
	Failback  bool          // a router goes back to the leader once that one is current

	Table    *TableOptions // nil: no tables
	Dump     *DumpOptions  // of tables; nil: none
	Encoder  *pmacct.Encoder
	NoDecode bool // BMP is passed on only, records are pmacct's
	Header   bool // give opaque records bmpha's header, too
	// Topic and Key give the topic and key of the records of a session.
	Topic func(netip.Addr, uint16) string
	Key   func(netip.Addr, uint16) []byte
	// Route gives the name by which the partition of a router's opaque records is
	// chosen, as if it were their key.
	Route func(netip.Addr) string

	Proxy         bool           // sessions begin with a PROXY header
	Relay         *relay.Options // nil: sessions are not passed on
	RelayPatience time.Duration  // without the first target

	Intake         *intake.Options // of producers; nil: none. Handler and Log are filled in
	Files          *tail.Options   // of files; nil: none. Handler and Log are filled in
	IntakePatience time.Duration   // without a producer

	Spool *spool.Options // nil: none

	Sink       sink.Sink
	SinkKind   string // "kafka", "file", "stdout": for status
	SinkTarget string // brokers and topic, or path: for status
	DeadLetter string // file: for status; may be empty
	// SinkPatience is how long the sink may be out of reach before another collector,
	// if it can reach its own, is to send; 0: for ever.
	SinkPatience time.Duration

	// ReadBack is how the ends of topics are read back when this collector is to go
	// on behind another sender, nil: they are not, and what was held is repeated.
	// Read, Now and Log are filled in.
	ReadBack     *topic.Options
	ReadBackTime time.Duration // the longest time for it
	// TransactionalID names the transactions of a member; nil: there are none.
	TransactionalID func(process string) string

	StopTimeout time.Duration // for flushing at the end; 0 means 20 s
	Log         *slog.Logger
}

// sinkPatience is how long, at the end, reports are waited for that stop did not
// wait for. With StopTimeout it stays below the 30 s of the systemd unit.
const sinkPatience = 5 * time.Second

// A Collector is one running daemon. Make it with New, then Run.
type Collector struct {
	o        Options
	instance uint64
	started  time.Time
	clock    clock
	log      *slog.Logger

	budget *hold.Budget
	store  *table.Store // nil: no tables
	left   struct {     // tables of which memory is to be released
		sync.Mutex
		tables []*table.Table
	}
	routers routers
	fwd     forwarder
	reach   trouble // no broker can be reached
	crowded trouble // memory is full
	stuck   trouble // what Kafka acknowledges is not taken in
	co      coordinator
	join    joiner
	past    history
	relay   *relay.Relay // nil: sessions are not passed on
	paused  atomic.Bool  // the relay is
	spool   *spool.Spool // nil: there is none
	dumps   *dumps       // nil: there are none
	supply  supply
	topics  struct { // handles of topics that producers name
		mu      sync.RWMutex
		handles map[string]uint32
	}
	ending      context.Context // ends when sessions are to
	endSessions context.CancelFunc

	listeners []net.Listener
	accepting sync.WaitGroup
	sessions  sync.WaitGroup
	conns     sync.Map // *session: all that are open, with a router or not yet
	open      atomic.Int64
	nextID    atomic.Uint32 // of sessions
	closing   atomic.Bool
	counts    counts
}

// counts are what has no better place.
type counts struct {
	accepted, notAllowed, tooMany, notBMP, displaced, outOfRouters atomic.Uint64
	closedRouter, closedBadInput, closedStalled, closedRestarted   atomic.Uint64
	dropped                                                        atomic.Uint64    // by routers since forgotten
	replayed                                                       atomic.Uint64    // likewise
	droppedAt                                                      atomic.Int64     // when a message was last dropped
	byType                                                         [8]atomic.Uint64 // BMP message types 0 to 6, others
}

// New makes a collector and binds its listening sockets, so that an address in
// use is an error here and not later. Nothing is accepted before Run.
func New(ctx context.Context, o Options) (*Collector, error) {
	if o.StopTimeout == 0 {
		o.StopTimeout = 20 * time.Second
	}
	c := &Collector{
		o: o, instance: rand.Uint64(), started: time.Now(), clock: newClock(), log: o.Log,
		budget: hold.NewBudget(o.Memory),
	}
	c.ending, c.endSessions = context.WithCancel(context.Background())
	if t := o.Table; t != nil {
		c.store = table.NewStore()
		c.store.SetLimit(t.Memory)
	}
	c.topics.handles = make(map[string]uint32)
	c.routers.init()
	c.fwd.init(c)
	c.past.init(c)
	c.co.init(c)
	if err := c.join.init(c); err != nil {
		return nil, err
	}
	if err := c.co.listen(); err != nil {
		return nil, errors.Join(err, c.join.close())
	}
	c.supply.init(c)
	if err := c.besides(ctx); err != nil {
		return nil, errors.Join(err, c.closeBesides())
	}
	lc := net.ListenConfig{KeepAlive: -1} // off
	if o.KeepAlive > 0 {
		// Often, because marks go no further than a router's host was heard.
		idle := o.probe()
		lc.KeepAliveConfig = net.KeepAliveConfig{Enable: true, Idle: idle, Interval: idle, Count: max(1, int(o.KeepAlive/idle)-1)}
	}
	for _, addr := range o.Listen {
		l, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			c.closeListeners()
			return nil, errors.Join(fmt.Errorf("listen for routers: %w", err), c.closeBesides())
		}
		c.listeners = append(c.listeners, l)
	}
	return c, nil
}

// probe is how often a router's host that says nothing is asked for a sign of life.
func (o *Options) probe() time.Duration { return max(time.Second, o.KeepAlive/10) }

// Addresses returns what the collector listens on.
func (c *Collector) Addresses() []net.Addr {
	var a []net.Addr
	for _, l := range c.listeners {
		a = append(a, l.Addr())
	}
	return a
}

func (c *Collector) closeListeners() {
	for _, l := range c.listeners {
		l.Close()
	}
}

// Run collects until ctx ends, then hands over to another member, or flushes if
// there is none, and leaves. It returns nil when everything that was to be
// delivered here was.
func (c *Collector) Run(ctx context.Context) error {
	work, stopWork := context.WithCancel(context.Background())
	defer stopWork()
	var wg sync.WaitGroup
	wg.Go(func() { c.co.run(work) })
	wg.Go(func() { c.co.client.Watch(work, c.co.announced) })
	for range max(2, runtime.GOMAXPROCS(0)) {
		wg.Go(c.fwd.work)
	}
	wg.Go(c.fwd.poll)
	wg.Go(func() { c.join.run(work) })
	if c.co.link != nil {
		wg.Go(func() { c.co.link.Run(work) })
	}
	for _, l := range c.listeners {
		c.accepting.Go(func() { c.accept(l) })
	}
	reading, stopReading := context.WithCancel(work)
	defer stopReading()
	c.runBesides(work, reading, &wg)
	c.log.Info("collector started", "process", c.o.Process, "cluster", c.o.Cluster, "cluster_id", c.o.ID,
		"listen", c.Addresses(), "instance", fmt.Sprintf("%016x", c.instance))

	<-ctx.Done()
	err := c.stop(stopReading)

	c.fwd.close()
	stopWork()
	wg.Wait()
	c.sessions.Wait()
	return errors.Join(err, c.o.Sink.Close(sinkPatience), c.closeBesides(), c.join.close(), c.co.client.Close())
}

// stop ends the service in the order that loses nothing: what no one else has is
// sent, then the rest is handed over. Without a member to hand over to, everything
// is sent.
func (c *Collector) stop(stopReading func()) error {
	c.closeListeners()
	c.accepting.Wait() // no session begins from now on
	ctx, cancel := context.WithTimeout(context.Background(), c.o.StopTimeout)
	defer cancel()
	heir, orphans := c.co.heir()
	if heir != "" {
		c.log.Info("handing over", "to", heir, "routers_only_heard_here", len(orphans))
	} else {
		c.log.Info("flushing: no other member to hand over to")
	}
	if heir == "" || slices.ContainsFunc(orphans, func(r *router) bool { return r.pmacct }) {
		c.stopIntake(stopReading) // else there would be no end
	}
	for _, r := range orphans {
		r.mu.Lock()
		r.flushing = true
		if r.session != nil {
			r.session.abort()
		}
		r.cond.Broadcast()
		r.mu.Unlock()
	}
	if heir == "" {
		c.closeSessions()
	}
	c.co.kick()
	c.await(ctx, orphans, func(r *router) bool { return r.session == nil && r.empty() })
	left := 0
	for _, r := range orphans {
		r.mu.Lock()
		n, _, _ := r.stream.Held() // what is on disk stays there
		r.mu.Unlock()
		left += n
	}
	if heir != "" {
		c.co.yield()
		c.await(ctx, c.routers.all(), func(r *router) bool { return r.flushing || r.atRest() })
	}
	c.co.leave()
	c.await(ctx, c.routers.all(), (*router).atRest)
	c.stopIntake(stopReading)
	c.closeSessions()
	c.co.resign()
	if left > 0 {
		return fmt.Errorf("stopped with %d BMP messages that Kafka has not acknowledged and nobody else has", left)
	}
	return nil
}

// await waits until done holds for each of the routers, or ctx ends.
func (c *Collector) await(ctx context.Context, list []*router, done func(*router) bool) {
	for _, r := range list {
		stop := context.AfterFunc(ctx, r.wakeAll)
		r.mu.Lock()
		for !done(r) && ctx.Err() == nil {
			r.cond.Wait()
		}
		r.mu.Unlock()
		stop()
	}
}

// wakeAll wakes all that wait for a change of r.
func (r *router) wakeAll() {
	r.mu.Lock()
	r.cond.Broadcast()
	r.mu.Unlock()
}

// closeSessions ends all sessions and waits until their last entries are in the
// logs, which is at once.
func (c *Collector) closeSessions() {
	c.closing.Store(true)
	c.endSessions()
	c.conns.Range(func(s, _ any) bool {
		s.(*session).conn.Close()
		return true
	})
	for _, r := range c.routers.all() {
		r.wakeAll()
	}
	c.sessions.Wait()
}

// clock is the time of this process. Microseconds, never going back, and never
// 0, which means "not yet" in many places.
type clock struct {
	start time.Time
	wall  *atomic.Int64 // to add for µs since the Unix epoch
	redis *atomic.Int64 // to add for Redis' clock
}

func newClock() clock {
	c := clock{start: time.Now(), wall: new(atomic.Int64), redis: new(atomic.Int64)}
	c.syncWall()
	c.redis.Store(c.wall.Load())
	return c
}

// before is the time of the start of the process, so that what an earlier one
// left in the spool has times, too.
const before = int64(30 * 24 * time.Hour / time.Microsecond)

func (c *clock) now() int64 { return time.Since(c.start).Microseconds() + before }

// first returns the time of the start.
func (c *clock) first() int64 { return before }

// syncWall follows steps of the system's clock.
func (c *clock) syncWall() { c.wall.Store(time.Now().UnixMicro() - c.now()) }

// fromRedis turns a time on Redis' clock into ours. Times long before the process
// started become 1.
func (c *clock) fromRedis(t int64) int64 { return max(1, t-c.redis.Load()) }

func (c *clock) toRedis(t int64) int64 { return t + c.redis.Load() }

// toUnix turns a time of ours into µs since the Unix epoch.
func (c *clock) toUnix(t int64) int64 { return t + c.wall.Load() }

// toTime turns a time of ours into a time.Time.
func (c *clock) toTime(t int64) time.Time {
	if t == 0 {
		return time.Time{}
	}
	return time.UnixMicro(c.toUnix(t))
}

func micros(d time.Duration) int64 { return d.Microseconds() }

// electionConfig derives the timers of the election.
func (c *Collector) electionConfig() election.Config {
	heartbeat, expiry := micros(c.o.Heartbeat), micros(c.o.Expiry)
	return election.Config{
		Name: c.o.Process, Instance: c.instance,
		Heartbeat: heartbeat, Expiry: expiry,
		Deadline: election.Deadline(heartbeat, expiry),
		Failures: 3,
		Handover: 2 * expiry,
		Linger:   min(expiry, lingerMost),
		Failback: c.o.Failback, MaxBehind: micros(c.o.Margin), Steady: 2 * expiry,
		Hold:   c.o.HoldRoles,
		Grace:  expiry,
		Window: micros(c.o.Window),
		Proof:  micros(c.o.Expiry + proofMore),
	}
}

// lingerMost is how long a sender goes on, at most, until the one that is to go on
// behind it is ready. It takes that one some milliseconds, unless Kafka is slow.
const lingerMost = int64(time.Second / time.Microsecond)

// proofMore is what a collector needs to find a broker again, longer than the
// library waits between two tries to connect.
const proofMore = 2 * time.Second
