package sim

import (
	"fmt"
	"io"
	"math/rand/v2"

	"github.com/bmpha/bmpha/pkg/election"
	"github.com/bmpha/bmpha/pkg/gate"
)

const (
	ms  int64 = 1000
	sec       = 1000 * ms
	// epoch is Redis' clock when a run begins, in µs.
	epoch int64 = 1_760_000_000 * sec
)

// roomy is a budget, in bytes, for all that is said during a fault.
const roomy = 4 << 20

// Options choose a run.
type Options struct {
	Seed   uint64
	Faults int64     // µs for which faults happen; 0: 60 s
	Only   []Fault   // faults to draw from; nil: all of DefaultFaults
	Count  int       // faults to draw; 0: by the seed, negative: none
	Defect Defect    // a mistake to build in
	Diff   bool      // redump: diff; else by the seed
	Fence  bool      // kafka.fencing; else by the seed
	Lag    bool      // let sessions lag by more than the margin, without excuse
	Behind bool      // no excuse for what of two senders the one behind has said last
	Trace  io.Writer // nil: no trace

	look   func(*world) // at the end, may be nil
	follow uint32       // version to trace
}

// A Result is what a run came to.
type Result struct {
	Seed       uint64
	Simulated  int64 // µs
	Violations []string
	Fired      [faultCount]int
	Faults     int // drawn
	Takeovers  int // tokens given
	Changes    int // of routers
	Received   uint64
	Records    int            // in Kafka
	Repeated   int            // changes that Kafka has more than once, by extra copies
	Excused    map[string]int // findings that the design allows for, by reason
	excuses    []string
	// lateRepeats are repeats after the collectors have found each other.
	lateRepeats int
	Steps       int   // an older word about a route by another sender
	Gap         int64 // longest time without a sender that nothing excuses, µs
	Events      int
}

// event is something that happens at a time. Equal times keep their order.
type event struct {
	at  int64
	seq uint64
	p   *proc // does it, nil for the world
	do  runner
}

// A runner is what happens. Those that happen often are pointers to what they
// happen to, by a type for each, so that an event allocates nothing.
type runner interface{ run() }

// call is a runner made of a function.
type call func()

func (f call) run() { f() }

func (a *event) before(b *event) bool { return a.at < b.at || a.at == b.at && a.seq < b.seq }

// A world is one run.
type world struct {
	opt  Options
	rng  *rand.Rand
	now  int64 // true time, from 0
	seq  uint64
	heap []event
	res  Result

	// Settings of the run.
	heartbeat, expiry, deadline, handover, grace, window, margin int64
	linger, patience, maxBehind                                  int64
	failures                                                     int
	links, hold, failback                                        bool
	budget                                                       int64

	redis   *redis
	kafka   *kafka
	nodes   []*node
	routers []*router
	procs   []*proc // all that ever ran
	endAt   int64   // faults end
	quiet   bool    // routers change nothing
	faults  []Fault // drawn
	closing bool
	diff    bool // redump: diff
	fencing bool // kafka.fencing
	calm    bool // and nothing happens that could keep a sender from being fenced
	steady  bool // or only that the brokers do not answer to that

	planned   bool              // nothing happens but planned changes
	foreign   bool              // and what somebody else has written may hide what collectors have
	sleeper   *proc             // stands still until another reads back
	trouble   int64             // until when what has happened may have its effect
	alone     [maxRouters]int64 // since when no one sends, 0 if someone does
	twofold   [maxRouters]int64 // since when two do
	readsBack bool              // a taking-over collector reads the end of the topic back

	room     []change
	byteRoom []byte
}

func (w *world) after(d int64, f func()) { w.push(d, nil, call(f)) }

// push makes p do something after d.
func (w *world) push(d int64, p *proc, do runner) {
	w.seq++
	e := event{w.now + max(d, 0), w.seq, p, do}
	h := append(w.heap, event{})
	i := len(h) - 1
	for i > 0 {
		up := (i - 1) / fan
		if !e.before(&h[up]) {
			break
		}
		h[i] = h[up]
		i = up
	}
	h[i] = e
	w.heap = h
}

// fan is how many children a place in the heap has.
const fan = 4

func (w *world) pop() event {
	h := w.heap
	top := h[0]
	n := len(h) - 1
	e := h[n]
	h[n] = event{}
	h = h[:n]
	i := 0
	for {
		least := fan*i + 1
		if least >= n {
			break
		}
		for c := least + 1; c < min(least+fan, n); c++ {
			if h[c].before(&h[least]) {
				least = c
			}
		}
		if !h[least].before(&e) {
			break
		}
		h[i] = h[least]
		i = least
	}
	if n > 0 {
		h[i] = e
	}
	w.heap = h
	return top
}

func (w *world) runUntil(t int64) {
	for len(w.heap) > 0 && w.heap[0].at <= t && len(w.res.Violations) < 20 {
		e := w.pop()
		w.now = e.at
		w.res.Events++
		switch p := e.p; {
		case p == nil:
			e.do.run()
		case p.dead:
		case p.paused:
			p.woken = append(p.woken, e.do)
		default:
			e.do.run()
		}
	}
	w.now = t
}

func (w *world) between(a, b int64) int64 {
	if b <= a {
		return a
	}
	return a + w.rng.Int64N(b-a+1)
}

func (w *world) chance(p float64) bool { return w.rng.Float64() < p }

func (w *world) tracef(format string, args ...any) {
	if w.opt.Trace != nil {
		fmt.Fprintf(w.opt.Trace, "%10.4f "+format+"\n", append([]any{float64(w.now) / 1e6}, args...)...)
	}
}

func (w *world) violate(format string, args ...any) {
	text := fmt.Sprintf("%.4f s: ", float64(w.now)/1e6) + fmt.Sprintf(format, args...)
	w.tracef("VIOLATION %s", text)
	w.res.Violations = append(w.res.Violations, text)
}

func (w *world) fire(f Fault) { w.res.Fired[f]++ }

// Run simulates a cluster.
func Run(opt Options) Result {
	w := &world{opt: opt, rng: rand.New(rand.NewPCG(opt.Seed, 0x626d706861))}
	w.res.Seed = opt.Seed
	w.res.Excused = make(map[string]int)
	w.setup()
	w.runUntil(w.endAt)
	w.heal()
	w.runUntil(w.endAt + 8*sec)
	w.quiet = true
	rest := w.endAt + 8*sec + 10*w.heartbeat + 4*w.expiry + w.margin + 15*sec
	w.runUntil(rest)
	if len(w.res.Violations) == 0 {
		w.checkAtRest()
	}
	w.res.Simulated = w.now
	if w.opt.look != nil {
		w.opt.look(w)
	}
	return w.res
}

func (w *world) setup() {
	timers := [][2]int64{{sec, 2 * sec}, {sec, 3 * sec}, {200 * ms, 600 * ms}, {50 * ms, 150 * ms}, {500 * ms, 1500 * ms}}
	t := timers[w.rng.IntN(len(timers))]
	w.heartbeat, w.expiry = t[0], t[1]
	w.deadline = election.Deadline(w.heartbeat, w.expiry)
	w.failures = 3
	w.handover = 2 * w.expiry
	w.grace = w.expiry
	if w.chance(0.3) {
		w.handover = w.between(w.heartbeat, 3*w.expiry)
		w.grace = w.between(0, 2*w.expiry)
	}
	if w.chance(0.8) {
		w.linger = min(w.handover/2, w.expiry)
	}
	if w.chance(0.5) {
		w.patience = 3 * w.expiry
	}
	if w.chance(0.3) {
		w.maxBehind = 200 * ms
	}
	w.failback = w.chance(0.7)
	w.hold = w.chance(0.33)
	w.links = w.hold || w.chance(0.4)
	w.window = 15 * sec
	w.margin = sec
	w.budget = roomy
	if w.chance(0.25) {
		w.budget = w.between(8<<10, 40<<10)
	}
	w.readsBack = w.chance(0.8)
	w.diff = w.opt.Diff || w.opt.Seed%2 == 1
	w.fencing = w.opt.Fence || w.opt.Seed%5 == 2
	w.readsBack = w.readsBack || w.fencing
	w.redis = &redis{w: w, offset: w.between(-20*sec, 20*sec)}
	w.kafka = &kafka{w: w}
	w.endAt = w.opt.Faults
	if w.endAt == 0 {
		w.endAt = 60 * sec
	}
	for i := range 1 + w.rng.IntN(3) {
		w.routers = append(w.routers, newRouter(w, i))
		w.kafka.parts = append(w.kafka.parts, newPartition(w, w.routers[i]))
	}
	n := 2 + w.rng.IntN(3)
	if n == 4 && w.chance(0.5) {
		n = 2
	}
	for i := range n {
		nd := &node{w: w, id: i, name: string(rune('a' + i)), wall: w.between(-5*ms, 5*ms)}
		if w.chance(0.2) {
			nd.wall = w.between(-60*sec, 60*sec)
		}
		w.nodes = append(w.nodes, nd)
	}
	w.drawFaults()
	if len(w.faults) == 1 {
		w.budget = roomy // what is full by one fault has to drop: nothing would be learned
	}
	w.planned = len(w.faults) > 0 && w.readsBack && w.linger > 0
	for _, f := range w.faults {
		w.planned = w.planned && (f == Maintenance || f == LeaveActive || f == LeaveStandby || f == ForeignTransaction)
	}
	w.foreign = w.fencing && w.has(ForeignTransaction)
	w.calm, w.steady = w.fencing, w.fencing
	for _, f := range w.faults {
		w.calm = w.calm && calm[f]
		w.steady = w.steady && (calm[f] || f == CoordinatorAway || f == KafkaSlow)
	}
	w.tracef("reads back %v fencing %v; %d collectors, %d routers, heartbeat %d ms, expiry %d ms, handover %d ms, budget %d KiB, faults %v",
		w.readsBack, w.fencing, n, len(w.routers), w.heartbeat/ms, w.expiry/ms, w.handover/ms, w.budget>>10, w.faults)
	for _, nd := range w.nodes {
		w.tracef("%s: clock %d ms off", nd.name, nd.wall/ms)
		w.after(w.startDelay(), nd.start)
	}
	for _, r := range w.routers {
		r.begin()
	}
	w.push(watchEvery, nil, (*watch)(w))
	if w.fencing {
		w.push(w.between(0, timeoutsEvery), nil, (*timeouts)(w.kafka))
	}
}

func (w *world) startDelay() int64 {
	if w.has(EqualTimestamps) {
		return 0
	}
	return w.between(0, 2*sec)
}

func (w *world) has(f Fault) bool {
	for _, g := range w.faults {
		if g == f {
			return true
		}
	}
	return false
}

// watch checks what must hold at all times.
type watch world

// watchEvery is often enough to see a log that grows and a session that lags.
const watchEvery = 200 * ms

func (t *watch) run() {
	w := (*world)(t)
	for _, nd := range w.nodes {
		if nd.proc != nil {
			nd.proc.check()
		}
	}
	for _, r := range w.routers {
		w.senders(r)
	}
	w.push(watchEvery, nil, t)
}

// bound is how long after trouble, and a session that is whole, there may be no
// sender, or two.
func (w *world) bound() int64 {
	return 2*w.expiry + 2*w.heartbeat + w.handover + w.grace + readBack + 3*sec
}

// senders checks I14 and I15.
func (w *world) senders(r *router) {
	sends, heard := 0, false
	for _, nd := range w.nodes {
		p := nd.proc
		if p == nil || p.paused || p.stopping {
			continue
		}
		st := p.streams[r.id]
		heard = heard || st.conn != nil
		if st.gate.Wanted() && st.gate.State() == gate.Sending {
			sends++
		}
	}
	since := func(at *int64, is bool, what string) {
		switch {
		case !is || w.now < w.trouble:
			*at = 0
		case *at == 0:
			*at = w.now
		case w.now-*at > w.bound():
			w.violate("%s: router %d has %d senders for %d ms, and nothing has happened for %d ms", what, r.id, sends, (w.now-*at)/ms, (w.now-w.trouble)/ms)
			*at = 0
		default:
			w.res.Gap = max(w.res.Gap, w.now-*at)
		}
	}
	since(&w.alone[r.id], heard && sends == 0, "I14")
	since(&w.twofold[r.id], sends > 1, "I15")
}

// A fifo is a queue that keeps its memory.
type fifo[T any] struct {
	buf  []T
	head int
}

func (q *fifo[T]) len() int { return len(q.buf) - q.head }

func (q *fifo[T]) push(v T) {
	if q.head > 32 && 2*q.head > len(q.buf) {
		n := copy(q.buf, q.buf[q.head:])
		clear(q.buf[n:])
		q.buf, q.head = q.buf[:n], 0
	}
	q.buf = append(q.buf, v)
}

// all is what waits, oldest first.
func (q *fifo[T]) all() []T { return q.buf[q.head:] }

func (q *fifo[T]) front() *T { return &q.buf[q.head] }

func (q *fifo[T]) pop() (v T) {
	v, q.buf[q.head] = q.buf[q.head], v
	q.head++
	if q.head == len(q.buf) {
		q.buf, q.head = q.buf[:0], 0
	}
	return v
}

// keep drops what keep does not say to keep.
func (q *fifo[T]) keep(keep func(*T) bool) {
	kept := q.buf[:0]
	for i := range q.all() {
		if v := q.buf[q.head+i]; keep(&v) {
			kept = append(kept, v)
		}
	}
	clear(q.buf[len(kept):])
	q.buf, q.head = kept, 0
}

// changes returns room for n changes.
func (w *world) changes(n int) []change {
	if len(w.room) < n {
		w.room = make([]change, 512)
	}
	cs := w.room[:0:n]
	w.room = w.room[n:]
	return cs
}

// just returns one change.
func (w *world) just(c change) []change { return append(w.changes(1), c) }

// bytes returns room for n bytes.
func (w *world) bytes(n int) []byte {
	if len(w.byteRoom) < n {
		w.byteRoom = make([]byte, 8<<10)
	}
	b := w.byteRoom[:0:n]
	w.byteRoom = w.byteRoom[n:]
	return b
}
