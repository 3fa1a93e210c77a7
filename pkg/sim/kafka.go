package sim

import (
	"github.com/bmpha/bmpha/pkg/record"
)

// A word is one record in Kafka.
type word struct {
	change
	header record.Header
	proc   *proc
	pos    uint64 // sink position
	stamp  int64  // time of handing over, by the host's clock
	lost   bool   // by a built-in mistake
}

// kafka has a partition for each router.
type kafka struct {
	w      *world
	parts  []*partition
	down   bool
	slow   int64
	reject bool // refuses what comes, writing nothing

	unreadable bool // what it has cannot be read back

	coordinator coordinator
}

// A request is a batch on its way from a producer to a partition.
type request struct {
	o       *outgoing
	words   []word
	written bool // idempotent: written once, however often it is sent
	settled bool // the broker has answered or will
	failed  bool
	fenced  bool
	called  bool         // back: nobody waits for it any more
	elder   *request     // the one before it, then
	of      *transaction // nil without fencing
	tries   int          // while the partition has no leader
}

// producer is the sink of one process: ordered per stream, a bounded number of
// records in flight, sent again until acknowledged.
type producer struct {
	p       *proc
	streams []*outgoing
	used    int
	window  int
	reports fifo[report] // in order
	free    []*request   // to use again
	tx      *transactor  // nil without fencing

	progress int64 // when something was last acknowledged, or handed over while nothing was under way
}

type report struct {
	stream             int
	acked, outstanding uint64
	failed             bool
}

type outgoing struct {
	pr      *producer
	i       int
	expect  uint64 // position of the next record to be handed over
	acked   uint64
	queue   fifo[word]
	flight  []*request
	flying  int // records of them
	failed  bool
	told    bool  // that it has failed
	lastAt  int64 // requests arrive in order
	waiting bool  // a send is scheduled
}

const maxRequest = 100

func (o *outgoing) outstanding() uint64 {
	n := o.queue.len() + o.flying
	if tx := o.pr.tx; tx != nil {
		n += tx.written[o.i]
	}
	return uint64(n)
}

func newProducer(p *proc) *producer {
	pr := &producer{p: p, window: int(p.w.between(20, 400))}
	for i := range p.w.routers {
		pr.streams = append(pr.streams, &outgoing{pr: pr, i: i})
	}
	if p.w.fencing {
		pr.tx = &transactor{pr: pr}
		p.w.push(0, p, (*initialises)(pr.tx))
	}
	return pr
}

func (pr *producer) reset(i int, pos uint64) {
	o := pr.streams[i]
	if o.outstanding() != 0 {
		pr.p.w.violate("I2: %s resets router %d with %d records under way", pr.p.name(), i, o.outstanding())
	}
	o.expect, o.acked, o.failed, o.told = pos, pos, false, false
}

// hand takes words, as many as the window has room for.
func (pr *producer) hand(i int, pos uint64, words []word) (int, bool) {
	o := pr.streams[i]
	if o.failed {
		return 0, false
	}
	if pos != o.expect {
		pr.p.w.violate("I2: %s hands position %d of router %d, expected %d", pr.p.name(), pos, i, o.expect)
	}
	n := min(len(words), pr.window-pr.used)
	if n <= 0 || pr.tx != nil && !pr.tx.takes() {
		return 0, true
	}
	if pr.used == 0 {
		pr.progress = pr.p.w.now
	}
	for j := range words[:n] {
		words[j].stamp = pr.p.w.now + pr.p.node.wall
		o.queue.push(words[j])
	}
	o.expect += uint64(n)
	pr.used += n
	if !o.waiting {
		o.waiting = true
		pr.p.w.push(pr.p.w.between(0, 5*ms), pr.p, (*linger)(o))
	}
	if pr.tx != nil {
		pr.tx.took(n)
	}
	return n, true
}

// recall gives up what is under way. What is on the wire may arrive all the same.
func (pr *producer) recall() {
	for _, o := range pr.streams {
		if o.outstanding() == 0 {
			continue
		}
		for j, r := range o.flight {
			r.called = true
			if j > 0 {
				r.elder = o.flight[j-1]
			}
		}
		o.flight, o.flying, o.queue, o.failed = nil, 0, fifo[word]{}, true
		pr.tell(o)
	}
	pr.used = 0
}

// linger is how long a producer waits for more.
type linger outgoing

func (t *linger) run() {
	t.waiting = false
	(*outgoing)(t).send()
}

// send puts requests on the wire. Two may be under way.
func (o *outgoing) send() {
	pr := o.pr
	for o.queue.len() > 0 && len(o.flight) < 2 && !o.failed {
		r := pr.request()
		r.o = o
		if pr.tx != nil {
			r.of = pr.tx.of
		}
		for n := min(o.queue.len(), maxRequest); n > 0; n-- {
			r.words = append(r.words, o.queue.pop())
		}
		o.flying += len(r.words)
		o.flight = append(o.flight, r)
		(*transmit)(r).run()
	}
}

func (pr *producer) request() *request {
	if n := len(pr.free); n > 0 {
		r := pr.free[n-1]
		pr.free = pr.free[:n-1]
		*r = request{words: r.words[:0]}
		return r
	}
	return new(request)
}

// transmit sends a request, for the first time or again.
type transmit request

func (t *transmit) run() {
	o, pr := t.o, t.o.pr
	w := pr.p.w
	if t.called {
		return
	}
	if w.kafka.down || pr.p.node.cutKafka {
		w.push(200*ms, pr.p, t)
		return
	}
	o.lastAt = max(o.lastAt, w.now+w.between(200, 3*ms)+w.between(0, w.kafka.slow))
	w.push(o.lastAt-w.now, nil, (*request)(t))
}

// run is the arrival of a request at the broker.
func (r *request) run() {
	o, pr := r.o, r.o.pr
	w, k, nd := pr.p.w, pr.p.w.kafka, pr.p.node
	part := k.parts[o.i]
	if k.down || nd.cutKafka {
		w.push(200*ms, pr.p, (*transmit)(r))
		return
	}
	if r.called { // the broker takes it all the same, but not out of sequence
		if r.elder == nil || r.elder.written {
			k.write(o.i, r)
		}
		return
	}
	if elder := o.flight[0]; len(o.flight) > 1 && elder != r && !elder.settled {
		w.push(5*ms, pr.p, (*transmit)(r)) // out of sequence
		return
	}
	why := ""
	switch {
	case r.of != nil && k.coordinator.epochs[nd.id] != r.of.epoch:
		why, r.fenced = "fenced", true
	case part.away:
		// Whether the old leader has written it is not known until the new one
		// says so; and who waits too long never learns.
		w.fire(KafkaLeaderMoves)
		if r.tries++; r.tries == 1 && w.chance(0.3) {
			k.write(o.i, r)
		}
		if r.tries < 15 {
			w.push(200*ms, pr.p, (*transmit)(r))
			return
		}
		why = "timed out, outcome unknown"
	case k.reject:
		why = "rejected"
		w.fire(KafkaRejects)
	case nd.failNext == KafkaFailsWritten:
		why = "request failed, was written"
		k.write(o.i, r)
		w.fire(KafkaFailsWritten)
	case nd.failNext == KafkaFailsUnwritten:
		why = "request failed, was not written"
		w.fire(KafkaFailsUnwritten)
	default:
		k.write(o.i, r)
	}
	r.settled = true
	if why != "" {
		r.failed = true
		nd.failNext = 0
		w.tracef("%s: router %d: %s", pr.p.name(), o.i, why)
	}
	w.push(w.between(200, 3*ms)+w.between(0, k.slow), pr.p, (*answer)(r))
}

func (k *kafka) write(i int, r *request) {
	if r.written {
		return
	}
	r.written = true
	part := k.parts[i]
	for j := range r.words {
		if !r.words[j].lost {
			part.written++
		}
		switch {
		case r.words[j].lost:
		case r.of == nil:
			part.seen++
			part.append(&r.words[j])
		default:
			part.pending.push(pending{r.words[j], r.of})
		}
	}
	if of := r.of; of != nil && k.coordinator.open[of.node] != of {
		of.began, k.coordinator.open[of.node] = k.w.now, of
	}
}

// answer is the arrival of the broker's answer to a request.
type answer request

func (t *answer) run() {
	r, o, pr := (*request)(t), t.o, t.o.pr
	w := pr.p.w
	if r.called {
		return
	}
	for j := range o.flight {
		if o.flight[j] == r {
			if j > 0 && !r.failed && !o.failed { // its elder is still to be answered
				w.push(ms, pr.p, t)
				return
			}
			o.flight = append(o.flight[:j], o.flight[j+1:]...)
			break
		}
	}
	o.flying -= len(r.words)
	if pr.tx == nil || r.failed {
		pr.used -= len(r.words)
	}
	switch {
	case r.failed:
		o.failed = true
		pr.used -= o.queue.len()
		o.queue = fifo[word]{}
	case !o.failed && pr.tx == nil:
		o.acked += uint64(len(r.words))
		pr.progress = w.now
	}
	if pr.tx == nil {
		pr.tell(o)
	} else {
		pr.tx.answered(o.i, len(r.words), r.failed, r.fenced)
	}
	pr.free = append(pr.free, r)
	o.send()
	if tx := pr.tx; tx != nil && (tx.ending || tx.abort) {
		tx.end()
	}
}

// tell reports how far a stream is.
func (pr *producer) tell(o *outgoing) {
	w := pr.p.w
	o.told = o.failed
	// The report may come late: more may have been handed over by then.
	pr.reports.push(report{o.i, o.acked, o.outstanding(), o.failed})
	w.push(w.between(0, 2*ms), pr.p, (*reported)(pr))
}

// reported is the arrival of the next report.
type reported producer

func (t *reported) run() {
	r := t.reports.pop()
	t.p.report(r.stream, r.acked, r.outstanding, r.failed)
}

// A partition is the log of one router's records and the consumer of it.
type partition struct {
	w       *world
	r       *router
	away    bool // it has no leader
	words   int
	told    []told         // all records
	copies  []copies       // of live changes, by version
	newest  [maxKey]uint32 // last version that was ever written, by prefix key
	pending fifo[pending]  // written and not committed, or behind such a one
	written uint64         // all that ever was, by others too
	seen    uint64         // of that consumers may see
	foreign *foreign       // transactions of others, nil if there never were any

	// What a consumer makes of it.
	token  uint64
	table  [maxKey]cell // version 0: not there
	sweeps map[sweepKey]int
	begun  map[sweepKey]int // as sweeps, of old tokens too
	last   [maxKey]spoken   // what was written last about each prefix
}

// copies are how often a change is in Kafka.
type copies struct {
	n     uint32
	plain bool  // one of them without a mark
	at    int64 // when consumers saw that, true time
}

// spoken is a word about a prefix, whatever consumers make of it.
type spoken struct {
	value  byte // 0: it is withdrawn
	at     int  // index of the record
	by     *proc
	shared bool
}

type cell struct {
	version uint32
	touched int // index of the record
	shared  bool
	by      *proc
}

type sweepKey struct {
	instance uint64
	session  uint32
	peer     byte
}

// sender is what was seen of one process.
type sender struct {
	sent       [maxKey]uint64 // as rib.wrote, of what was written
	last, high place          // of the last record, and of the furthest
	any        bool
	written    []byte // by message, a bit for each record
	backs      int    // times that it went back
}

// wrote notes that a record is in Kafka and reports whether it was before.
func (s *sender) wrote(at place) bool {
	for uint64(len(s.written)) <= at.message {
		s.written = append(s.written, 0)
	}
	bit := byte(1) << min(at.index, 7)
	was := s.written[at.message]&bit != 0
	s.written[at.message] |= bit
	return was
}

// A place in a sender's log.
type place struct {
	message uint64
	index   uint16
}

func (a place) after(b place) bool {
	return a.message > b.message || a.message == b.message && a.index > b.index
}

func newPartition(w *world, r *router) *partition {
	return &partition{
		w: w, r: r, sweeps: make(map[sweepKey]int), begun: make(map[sweepKey]int),
	}
}

func (p *partition) append(c *word) {
	p.words++
	p.w.res.Records++
	said := wordOf(&c.header, &c.change)
	if p.w.calm && c.header.Token < p.token && c.header.Flags&record.FlagShared == 0 {
		p.w.violate("I16: %s speaks of router %d with token %d after %d", c.proc.name(), p.r.id, c.header.Token, p.token)
	}
	said.Token, said.Shared = c.header.Token, c.header.Flags&record.FlagShared != 0
	p.told = append(p.told, told{said, c.header.Instance, p.w.now, c.stamp})
	if f := p.w.opt.follow; f != 0 && (c.version == f || f>>16 == uint32(c.kind)+1 && key(c.peer, c.prefix) == f&0xffff) {
		p.w.tracef("WORD %d of %d of router %d (%d) by %s: %+v", c.version, key(c.peer, c.prefix), p.r.id, content(key(c.peer, c.prefix), c.version), c.proc.name(), c.header)
	}
	p.order(c)
	p.repeats(c)
	p.consume(c)
}

// order checks I2.
func (p *partition) order(c *word) {
	s := &c.proc.streams[p.r.id].seen
	at := place{c.header.Message, c.header.Index}
	// What was never written is news, although later records were: by a request that
	// was on its way when an earlier one failed.
	replayed := !s.wrote(at) || c.header.Flags&(record.FlagReplayed|record.FlagShared) != 0
	if s.any && !at.after(s.last) {
		s.backs++
		if !replayed {
			p.w.violate("I2: %s goes back in router %d from %v to %v without a mark", c.proc.name(), p.r.id, s.last, at)
		}
		if starts := c.proc.streams[p.r.id].starts; s.backs >= starts {
			p.w.violate("I2: %s went back %d times in router %d after %d starts", c.proc.name(), s.backs, p.r.id, starts)
		}
	}
	if s.any && !replayed && !at.after(s.high) {
		p.w.violate("I2: %s sends %v of router %d after %v without a mark", c.proc.name(), at, p.r.id, s.high)
	}
	s.last, s.any = at, true
	if at.after(s.high) {
		s.high = at
	}
}

// repeats checks I7.
func (p *partition) repeats(c *word) {
	if c.dump || c.version == 0 {
		return
	}
	for int(c.version) >= len(p.copies) {
		p.copies = append(p.copies, copies{})
	}
	n := &p.copies[c.version]
	n.n++
	if n.n > 1 {
		p.w.res.Repeated++
		if p.w.now > 6*sec {
			p.w.res.lateRepeats++
		}
	}
	if n.n > 1 && p.w.planned && p.w.now > 10*sec && !(p.w.foreign && c.header.Flags&record.FlagReplayed != 0) && !p.needless(c) {
		p.w.violate("I12: %s repeats change %d of router %d, and nothing but planned changes has happened", c.proc.name(), c.version, p.r.id)
	}
	if c.header.Flags&(record.FlagReplayed|record.FlagShared) != 0 || c.header.Token < p.token {
		return
	}
	if !n.plain {
		n.plain, n.at = true, p.w.now
		return
	}
	st := c.proc.streams[p.r.id]
	if p.w.steady && n.at > st.joinedAt-c.proc.skew && c.arrival(st) < st.joinedAt {
		p.w.violate("I7: %s repeats change %d of router %d without a mark, which another wrote after it had taken over", c.proc.name(), c.version, p.r.id)
	}
	if p.w.comesLate() {
		return
	}
	if c.arrival(st) < max(st.wantedAt, st.joinedAt)+p.w.margin || p.r.silent(c.version, c.proc.node) || p.r.lagged != "" && !p.w.opt.Lag && len(p.w.faults) > 1 {
		return
	}
	p.w.violate("I7: %s repeats change %d of router %d without a mark", c.proc.name(), c.version, p.r.id)
}

// arrival is when the sender received the message, as it noted.
func (c *word) arrival(st *stream) int64 { return st.entries[c.header.Message].at }

// comesLate reports whether a host that was cut off may say old words when it is back:
// without reading back nothing is recalled.
func (w *world) comesLate() bool { return !w.readsBack && w.has(HostCutOff) }

// needless reports whether a repeat could not be told from news: it was said in a
// session that had just begun, with a table dump before it; or it came only after
// its sender had compared, and something like it before.
func (p *partition) needless(c *word) bool {
	h := &p.r.history[c.version]
	dump := 10 * sec
	if p.r.endless {
		dump += 30 * sec // when it is over can only be guessed
	}
	if p.r.openedWithin(h.at-dump, dump+10*sec) {
		return true
	}
	if st := c.proc.streams[p.r.id]; c.arrival(st) < st.joinedAt-readBack {
		return false
	}
	for v := int(c.version) - 1; v > 0 && p.r.history[v].at > h.at-3*sec; v-- {
		if o := &p.r.history[v]; o.kind == h.kind && o.peer == h.peer && o.prefix == h.prefix && o.value == h.value {
			return true
		}
	}
	return false
}

// steps checks I13.
func (p *partition) steps(c *word, k uint32, stale, shared bool) {
	last := &p.last[k]
	if c.version == 0 || c.version >= p.newest[k] || last.by == c.proc {
		return
	}
	p.w.res.Steps++
	st := c.proc.streams[p.r.id]
	switch {
	case stale, shared, last.shared, c.header.Flags&record.FlagReplayed != 0:
	case st.blind, c.arrival(st) < st.joinedAt+p.w.margin, p.r.lagged != "", p.r.silent(c.version, c.proc.node):
	case st.rib != nil: // withdrawals have the version of the dump that they come from
	case p.w.comesLate():
	default:
		p.w.violate("I13: %s says version %d of %x of router %d after %d", c.proc.name(), c.version, k, p.r.id, p.newest[k])
	}
}

// copiesOf is how often a change is in Kafka.
func (p *partition) copiesOf(version uint32) uint32 {
	if int(version) >= len(p.copies) {
		return 0
	}
	return p.copies[version].n
}

// key numbers a prefix of a peer, from 0 to below maxKey.
func key(peer byte, prefix uint16) uint32 { return uint32(peer)<<6 | uint32(prefix) }

const (
	maxKey     = maxPeers << 6
	maxPeers   = 3
	maxNodes   = 4
	maxRouters = 3
)

// consume follows what a consumer does, see the package comment.
func (p *partition) consume(c *word) {
	shared := c.header.Flags&record.FlagShared != 0
	sweep := sweepKey{c.header.Instance, c.header.Session, c.peer}
	word := func(k uint32) {
		p.newest[k] = max(p.newest[k], c.version)
		now := spoken{at: p.words, by: c.proc, shared: shared}
		if c.kind == kindRoute && !c.withdraw {
			now.value = content(k, c.version)
		}
		if from, ok := p.begun[sweep]; c.kind != kindEndOfRIB || ok && p.last[k].at < from {
			p.last[k] = now
		}
		c.proc.streams[p.r.id].seen.sent[k] = c.header.Message + 1
	}
	stale := !shared && c.header.Token < p.token
	p.token = max(p.token, c.header.Token)
	switch c.kind {
	case kindRoute:
		k := key(c.peer, c.prefix)
		p.steps(c, k, stale, shared)
		word(k)
		if stale {
			return
		}
		if c.withdraw {
			p.table[k] = cell{}
		} else {
			p.table[k] = cell{c.version, p.words, shared, c.proc}
		}
	case kindPeerDown, kindPeerUp:
		if c.kind == kindPeerDown || c.dump && !p.w.diff {
			for prefix := range p.r.prefixes {
				word(key(c.peer, uint16(prefix)))
			}
		}
		if c.kind == kindPeerUp {
			p.begun[sweep] = p.words
		}
		if stale {
			return
		}
		if c.kind == kindPeerDown {
			for prefix := range p.r.prefixes {
				p.table[key(c.peer, uint16(prefix))] = cell{}
			}
		} else {
			p.sweeps[sweep] = p.words
		}
		if p.r.endless && c.dump { // no word will tell what is not there any more
			for prefix := range p.r.prefixes {
				p.table[key(c.peer, uint16(prefix))] = cell{}
			}
		}
	case kindEndOfRIB:
		if p.w.diff && !c.partial {
			for prefix := range p.r.prefixes {
				word(key(c.peer, uint16(prefix)))
			}
		}
		from, ok := p.sweeps[sweep]
		if stale || !ok {
			return
		}
		delete(p.sweeps, sweep)
		if c.partial {
			return // what was left out is as it was
		}
		for prefix := range p.r.prefixes {
			k := key(c.peer, uint16(prefix))
			if e := &p.table[k]; e.version != 0 && e.touched < from {
				p.table[k] = cell{}
			}
		}
	}
}

// value is what a consumer has of a prefix, 0 for nothing.
func (p *partition) value(k uint32) byte {
	if e := &p.table[k]; e.version != 0 {
		return content(k, e.version)
	}
	return 0
}
