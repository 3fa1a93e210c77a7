package sim

import (
	"fmt"
	"io"
	"math/rand/v2"

	"github.com/bmpha/bmpha/pkg/election"
)

const (
	ms  int64 = 1000
	sec       = 1000 * ms
	// epoch is Redis' clock when a run begins, in µs.
	epoch int64 = 1_760_000_000 * sec
)

// Options choose a run.
type Options struct {
	Seed   uint64
	Faults int64     // µs for which faults happen; 0: 60 s
	Only   []Fault   // faults to draw from; nil: all of DefaultFaults
	Count  int       // faults to draw; 0: by the seed, negative: none
	Defect Defect    // a mistake to build in
	Diff   bool      // redump: diff; else by the seed
	Lag    bool      // let sessions lag by more than the margin, without excuse
	Trace  io.Writer // nil: no trace
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
	Events      int
}

// event is something that happens at a time. Equal times keep their order.
type event struct {
	at  int64
	seq uint64
	run func()
}

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
	failures                                                     int
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
}

func (w *world) after(d int64, f func()) {
	w.seq++
	h := append(w.heap, event{w.now + max(d, 0), w.seq, f})
	i := len(h) - 1
	for i > 0 {
		p := (i - 1) / 2
		if !h[i].before(&h[p]) {
			break
		}
		h[i], h[p] = h[p], h[i]
		i = p
	}
	w.heap = h
}

func (w *world) pop() event {
	h := w.heap
	top := h[0]
	n := len(h) - 1
	h[0] = h[n]
	h[n] = event{}
	h = h[:n]
	for i := 0; ; {
		c := 2*i + 1
		if c >= n {
			break
		}
		if c+1 < n && h[c+1].before(&h[c]) {
			c++
		}
		if !h[c].before(&h[i]) {
			break
		}
		h[i], h[c] = h[c], h[i]
		i = c
	}
	w.heap = h
	return top
}

func (w *world) runUntil(t int64) {
	for len(w.heap) > 0 && w.heap[0].at <= t && len(w.res.Violations) < 20 {
		e := w.pop()
		w.now = e.at
		w.res.Events++
		e.run()
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
	w.window = 15 * sec
	w.margin = sec
	w.budget = 4 << 20
	if w.chance(0.25) {
		w.budget = w.between(8<<10, 40<<10)
	}
	w.diff = w.opt.Diff || w.opt.Seed%2 == 1
	w.redis = &redis{w: w, keys: make(map[string]*redisKey), index: make(map[string]*indexEntry), offset: w.between(-20*sec, 20*sec)}
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
		w.nodes = append(w.nodes, &node{w: w, id: i, name: string(rune('a' + i))})
	}
	w.drawFaults()
	w.tracef("%d collectors, %d routers, heartbeat %d ms, expiry %d ms, handover %d ms, budget %d KiB, faults %v",
		n, len(w.routers), w.heartbeat/ms, w.expiry/ms, w.handover/ms, w.budget>>10, w.faults)
	for _, nd := range w.nodes {
		w.after(w.startDelay(), nd.start)
	}
	for _, r := range w.routers {
		r.begin()
	}
	w.after(100*ms, w.watch)
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
func (w *world) watch() {
	for _, p := range w.procs {
		if p.dead {
			continue
		}
		p.check()
	}
	w.after(100*ms, w.watch)
}
