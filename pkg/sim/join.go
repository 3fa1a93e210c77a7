package sim

import (
	"github.com/bmpha/bmpha/pkg/hold"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/seam"
)

const (
	seamMore    = 500 * ms // read from before what is held
	recentWords = 200 * ms // what the other wrote so late is waited for
	unheardMost = 40 * ms  // and no longer than this
	unheardStep = 4 * ms
	lookEvery   = 250 * ms // the ends of topics are remembered
	throughStep = 5 * ms   // what is not committed yet is waited for
)

// told is a record as those see it who read a topic back.
type told struct {
	seam.Word
	instance uint64
	at       int64 // true time
	stamp    int64 // by the producer's wall clock, when it was handed over
}

// identify tells what a record says.
func identify(e *hold.Entry, b *record.Batch, i int) (seam.Word, bool) {
	h, err := record.ParseHeader(b.Header(i))
	c, _ := parseChange(b.Value(i))
	w := wordOf(&h, &c)
	if !w.Anew && e.Kind == hold.Message && e.Body[0] != kindGone {
		w.Scope = scopeOf(c.peer)
	}
	return w, err == nil && h.Keyed()
}

// wordOf says what voids what: the opening of a session all, a Peer Up or Peer Down
// what was said of the peer.
func wordOf(h *record.Header, c *change) seam.Word {
	w := seam.Word{Key: h.KeyHash, Value: h.ValueHash, Session: h.Session}
	switch c.kind {
	case kindOpen:
		w.Anew = true
	case kindPeerUp, kindPeerDown:
		w.Anew, w.Scope = true, scopeOf(c.peer)
	}
	return w
}

// scopeOf is the key of a peer's words.
func scopeOf(peer byte) uint64 { return keyHash(kindPeerUp, peer, 0) }

// A joiner lets streams begin where another sender has ended, as that of package
// collector does.
type joiner struct {
	p      *proc
	busy   bool
	begun  int64
	at     int64 // when routers are let go on, local clock
	await  []*stream
	asked  int64 // when the ends of the partitions were
	heard  int64 // when Kafka had answered, local clock
	ends   goals
	waits  bool            // for what is before them
	tails  [maxRouters]int // and how many records consumers see that read so far
	failed bool
	since  int64 // of what is held
	ready  bool  // what the present sender writes is followed
	warm   bool  // and is to be
	primes bool  // it is being read
	goal   goals // up to here
	until  int64 // and then anew

	fenced   map[uint64]int64 // instances that were fenced, with what they had said last
	unfenced bool             // not all that should have been were

	own   [maxRouters]seam.Own
	tail  [maxRouters]seam.Tail
	batch record.Batch
}

// expect follows whether a takeover is to be expected.
func (j *joiner) expect(expected bool) {
	j.warm = expected
	if !expected {
		j.ready = false
		return
	}
	if !j.ready && !j.primes {
		j.primes = true
		j.until = 0
		w := j.p.w
		w.push(w.between(5*ms, 40*ms)+w.between(0, w.kafka.slow), j.p, (*primed)(j))
	}
}

// primed is when the end of the topics has been read for the first time.
type primed joiner

func (t *primed) run() {
	j := (*joiner)(t)
	w := j.p.w
	k := w.kafka
	if k.unreadable || k.down || j.p.node.cutKafka {
		w.push(readBack, j.p, t)
		return
	}
	if w.now >= j.until {
		j.until = w.now + readBack
		j.goal = k.ends()
	}
	if !k.seen(&j.goal) {
		w.push(throughStep, j.p, t)
		return
	}
	j.primes = false
	if j.warm && !j.ready {
		j.ready = true
		j.p.ask()
		j.p.turn()
	}
}

// kick begins to join what waits for it.
func (j *joiner) kick() {
	if j.busy {
		return
	}
	j.await = j.await[:0]
	p := j.p
	j.since = p.w.now
	for _, st := range p.streams {
		if !st.gate.Awaits() {
			continue
		}
		j.await = append(j.await, st)
		if _, _, oldest := st.gate.Held(); oldest > 0 {
			j.since = min(j.since, oldest-p.skew)
		}
	}
	if len(j.await) == 0 {
		return
	}
	j.busy, j.begun, j.unfenced = true, p.w.now, false
	j.fence(j.through)
}

// through asks for all that the topics have now.
func (j *joiner) through() {
	p, w := j.p, j.p.w
	k := w.kafka
	j.failed = k.unreadable
	if k.down || p.node.cutKafka {
		// Nothing can be sent anyway.
		w.push(50*ms, p, (*rejoin)(j))
		return
	}
	for _, st := range j.await {
		part := k.parts[st.r.id]
		if part.away {
			j.failed = true
		}
	}
	j.asked, j.ends, j.waits, j.heard = w.now, k.ends(), false, 0
	if s := w.sleeper; s != nil && s.paused {
		w.sleeper = nil
		w.after(w.between(0, 60*ms), s.resume)
	}
	for i, part := range k.parts {
		j.tails[i] = len(part.told)
		if part.seen < j.ends[i] {
			j.tails[i] = -1
		}
	}
	d := w.between(5*ms, 40*ms) + w.between(0, k.slow)
	if j.ready {
		d = w.between(ms, 5*ms) + w.between(0, k.slow)
	}
	if j.failed || d > readBack {
		d = readBack
		w.fire(ReadBackFails)
		j.failed = true
	}
	w.push(d, p, (*joins)(j))
}

// goals are ends of the partitions.
type goals [maxRouters]uint64

// ends returns where the partitions end, with what consumers may not see yet.
func (k *kafka) ends() (g goals) {
	for i, part := range k.parts {
		g[i] = part.written
		if k.w.opt.Defect == VisibleGoal {
			g[i] = part.seen
		}
	}
	return g
}

// seen reports whether consumers may see all before these ends.
func (k *kafka) seen(g *goals) bool {
	for i, part := range k.parts {
		if part.seen < g[i] {
			return false
		}
	}
	return true
}

// readBack is the longest time for reading the end of a topic back.
const readBack = sec

// rejoin is another try.
type rejoin joiner

func (t *rejoin) run() {
	t.busy = false
	(*joiner)(t).kick()
}

// joins is when the ends of the topics are there.
type joins joiner

func (t *joins) run() {
	j := (*joiner)(t)
	p, w := j.p, j.p.w
	if j.failed && (w.kafka.down || p.node.cutKafka) {
		(*rejoin)(j).run()
		return
	}
	if !j.failed && !w.kafka.seen(&j.ends) {
		if !j.waits {
			w.fire(SeamBehind)
			j.waits = true
		}
		if w.now < j.asked+readBack {
			w.push(throughStep, p, t)
			return
		}
		w.fire(ReadBackFails)
		j.failed = true
	}
	if j.alone() {
		w.push(throughStep, p, t)
		return
	}
	if !j.failed {
		for _, st := range j.await {
			j.read(st)
			j.list(st)
		}
		if j.unheard() && w.now-j.begun < unheardMost {
			w.fire(SeamWaits)
			(*waits)(j).run()
			return
		}
	}
	j.let()
}

// alone reports whether Redis counts as away and was not asked since Kafka has
// answered: a host that was cut off from both may hear of another sender now.
func (j *joiner) alone() bool {
	p := j.p
	if j.heard == 0 {
		j.heard = p.local()
	}
	if !p.el.Lost() || p.triedAt >= j.heard || p.w.opt.Defect == Unasked {
		return false
	}
	if !p.busy {
		p.el.Look(p.local())
		p.turn()
	}
	return true
}

// waits is when what is on its way here may have come.
type waits joiner

func (t *waits) run() {
	j := (*joiner)(t)
	for _, st := range j.await {
		j.list(st)
	}
	if !j.unheard() || j.p.w.now-j.begun >= unheardMost {
		j.let()
		return
	}
	j.p.w.push(unheardStep, j.p, t)
}

// read makes the tail of a partition.
func (j *joiner) read(st *stream) {
	i := st.r.id
	t := &j.tail[i]
	t.Reset()
	all := j.p.w.kafka.parts[i].told
	if j.tails[i] < 0 {
		j.tails[i] = len(all)
	}
	all = all[:j.tails[i]]
	since := j.since - seamMore - j.p.w.between(0, lookEvery)
	from := len(all)
	for from > 0 && all[from-1].at >= since {
		from--
	}
	for i := range all[from:] {
		r := &all[from+i]
		word := r.Word
		word.Ours = r.instance == j.p.instance
		t.Add(word, r.stamp/ms*ms)
	}
}

// list brings up to date what is known of a stream's log.
func (j *joiner) list(st *stream) {
	for st.gate.Awaits() && !st.gate.Scan(&j.own[st.r.id], &j.batch, 256) {
	}
}

func (j *joiner) unheard() bool {
	for _, st := range j.await {
		if st.gate.Awaits() && j.tail[st.r.id].Unheard(recentWords, &j.own[st.r.id]) > 0 {
			return true
		}
	}
	return false
}

// let lets all go on that still wait.
func (j *joiner) let() {
	p := j.p
	j.at = p.local()
	for _, st := range j.await {
		if !st.gate.Awaits() {
			continue
		}
		if j.failed {
			j.list(st)
			plan := seam.Unread(&j.own[st.r.id], st.gate.From(), st.gate.Sent())
			st.left(plan)
			st.gate.Join(plan)
			st.blind = true
			p.w.tracef("%s: router %d goes on blind", p.name(), st.r.id)
		} else {
			j.list(st)
			hint := seam.Hint{Delay: p.node.wall - p.skew, Since: j.since - seamMore + p.skew, Sent: st.gate.Sent(), Late: st.Late, LateFrom: st.LateFrom}
			hint.Begun = st.course.Begun
			if st.course.Whole(j.at, st.Behind) {
				hint.Dumped = st.course.Done
			}
			plan := seam.Align(&j.own[st.r.id], &j.tail[st.r.id], st.gate.From(), hint)
			if j.unfenced && p.w.opt.Defect != FenceUnsaid {
				plan.Doubt()
			}
			st.left(plan)
			st.gate.Join(plan)
			if p.w.opt.Defect == SeenSets {
				st.forget(plan, j.tails[st.r.id])
			}
			st.blind = false
			p.w.tracef("%s: router %d goes on from %d: %d left out, %d in doubt, %d fresh, tail %d", p.name(), st.r.id, st.gate.From(), plan.Skipped, plan.Doubtful, plan.Fresh, j.tail[st.r.id].Len())
		}
		st.joinedAt = p.local()
		st.pump()
	}
	j.busy = false
	j.begun = 0
	j.kick()
}

// left notes what a plan leaves out.
func (st *stream) left(plan *seam.Plan) {
	w, r := st.p.w, st.r
	if plan.Skipped > 0 {
		w.fire(SeamLeftOut)
	}
	if plan.Doubtful > 0 {
		w.fire(SeamDoubtful)
	}
	for pos := st.gate.From(); pos < plan.End(); pos++ {
		n, skipped, _ := plan.Entry(pos)
		cs := st.entries[pos].changes
		if skipped == 0 || n != len(cs) {
			continue
		}
		for i, c := range cs {
			if !plan.Skip(pos, i) {
				continue
			}
			if c.version != 0 && !c.dump {
				r.history[c.version].skipped = true
			}
			switch c.kind {
			case kindRoute:
				k := key(c.peer, c.prefix)
				r.left[k] = max(r.left[k], c.version)
			case kindPeerDown, kindPeerUp, kindEndOfRIB:
				for prefix := range r.prefixes {
					k := key(c.peer, uint16(prefix))
					r.left[k] = max(r.left[k], c.version)
				}
			}
		}
	}
}

// forget is a built-in mistake: what Kafka has seen of late is left out, wherever it
// comes in what is held.
func (st *stream) forget(plan *seam.Plan, end int) {
	seen := make(map[[2]uint64]bool)
	all := st.p.w.kafka.parts[st.r.id].told
	for _, t := range all[max(0, end-200):end] {
		seen[[2]uint64{t.Key, t.Value}] = true
	}
	st.sets, st.setEnd = seen, plan.End()
}
