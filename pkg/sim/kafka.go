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
}

// kafka has a partition for each router.
type kafka struct {
	w      *world
	parts  []*partition
	down   bool
	slow   int64
	reject bool // refuses what comes, writing nothing
}

// A request is a batch on its way from a producer to a partition.
type request struct {
	words   []word
	written bool // idempotent: written once, however often it is sent
	settled bool // the broker has answered or will
}

// producer is the sink of one process: ordered per stream, a bounded number of
// records in flight, sent again until acknowledged.
type producer struct {
	p       *proc
	streams []*outgoing
	used    int
	window  int
	reports []report // in order
}

type report struct {
	stream             int
	acked, outstanding uint64
	failed             bool
}

type outgoing struct {
	expect  uint64 // position of the next record to be handed over
	acked   uint64
	queue   []word
	flight  []*request
	failed  bool
	lastAt  int64 // requests arrive in order
	waiting bool  // a send is scheduled
}

const maxRequest = 100

func (o *outgoing) outstanding() uint64 {
	n := len(o.queue)
	for _, r := range o.flight {
		n += len(r.words)
	}
	return uint64(n)
}

func newProducer(p *proc) *producer {
	pr := &producer{p: p, window: int(p.w.between(20, 400))}
	for range p.w.routers {
		pr.streams = append(pr.streams, &outgoing{})
	}
	return pr
}

func (pr *producer) reset(i int, pos uint64) {
	o := pr.streams[i]
	if o.outstanding() != 0 {
		pr.p.w.violate("I2: %s resets router %d with %d records under way", pr.p.name(), i, o.outstanding())
	}
	o.expect, o.acked, o.failed = pos, pos, false
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
	if n <= 0 {
		return 0, true
	}
	o.queue = append(o.queue, words[:n]...)
	o.expect += uint64(n)
	pr.used += n
	pr.schedule(i, pr.p.w.between(0, 5*ms))
	return n, true
}

func (pr *producer) schedule(i int, d int64) {
	o := pr.streams[i]
	if o.waiting {
		return
	}
	o.waiting = true
	pr.p.do(d, func() {
		o.waiting = false
		pr.send(i)
	})
}

// send puts requests on the wire. Two may be under way.
func (pr *producer) send(i int) {
	o := pr.streams[i]
	for len(o.queue) > 0 && len(o.flight) < 2 && !o.failed {
		n := min(len(o.queue), maxRequest)
		r := &request{words: append([]word(nil), o.queue[:n]...)}
		o.queue = o.queue[n:]
		o.flight = append(o.flight, r)
		pr.transmit(i, r)
	}
}

func (pr *producer) transmit(i int, r *request) {
	w, k, o := pr.p.w, pr.p.w.kafka, pr.streams[i]
	retry := func(d int64) { pr.p.do(d, func() { pr.transmit(i, r) }) }
	if k.down || pr.p.node.cutKafka {
		retry(200 * ms)
		return
	}
	at := max(o.lastAt, w.now+w.between(200, 3*ms)+w.between(0, k.slow))
	o.lastAt = at
	w.after(at-w.now, func() {
		if k.down || pr.p.node.cutKafka {
			retry(200 * ms)
			return
		}
		if elder := o.flight[0]; len(o.flight) > 1 && elder != r && !elder.settled {
			retry(5 * ms) // out of sequence
			return
		}
		r.settled = true
		failed := ""
		switch {
		case k.reject:
			failed = "rejected"
			w.fire(KafkaRejects)
		case pr.p.node.failNext == KafkaFailsWritten:
			failed = "request failed, was written"
			k.write(i, r)
			w.fire(KafkaFailsWritten)
		case pr.p.node.failNext == KafkaFailsUnwritten:
			failed = "request failed, was not written"
			w.fire(KafkaFailsUnwritten)
		default:
			k.write(i, r)
		}
		if failed != "" {
			pr.p.node.failNext = 0
			w.tracef("%s: router %d: %s", pr.p.name(), i, failed)
		}
		pr.p.do(w.between(200, 3*ms)+w.between(0, k.slow), func() { pr.answer(i, r, failed != "") })
	})
}

func (k *kafka) write(i int, r *request) {
	if r.written {
		return
	}
	r.written = true
	for j := range r.words {
		k.parts[i].append(&r.words[j])
	}
}

// answer follows the broker's answer to a request.
func (pr *producer) answer(i int, r *request, failed bool) {
	o := pr.streams[i]
	for j := range o.flight {
		if o.flight[j] == r {
			if j > 0 && !failed && !o.failed { // its elder is still to be answered
				pr.p.do(ms, func() { pr.answer(i, r, false) })
				return
			}
			o.flight = append(o.flight[:j], o.flight[j+1:]...)
			break
		}
	}
	pr.used -= len(r.words)
	switch {
	case failed:
		o.failed = true
		pr.used -= len(o.queue)
		o.queue = nil
	case !o.failed:
		o.acked += uint64(len(r.words))
	}
	// The report may come late: more may have been handed over by then.
	pr.reports = append(pr.reports, report{i, o.acked, o.outstanding(), o.failed})
	pr.p.do(pr.p.w.between(0, 2*ms), func() {
		r := pr.reports[0]
		pr.reports = pr.reports[1:]
		pr.p.report(r.stream, r.acked, r.outstanding, r.failed)
	})
	pr.send(i)
}

// A partition is the log of one router's records and the consumer of it.
type partition struct {
	w      *world
	r      *router
	words  int
	copies map[uint32]int    // of live changes, by version
	plain  map[uint32]bool   // a copy without a mark is there
	newest map[uint32]uint32 // last version that was ever written, by prefix key
	of     map[*proc]*sender

	// What a consumer makes of it.
	token  uint64
	table  map[uint32]cell
	sweeps map[sweepKey]int
	begun  map[sweepKey]int            // as sweeps, of old tokens too
	last   map[uint32]spoken           // what was written last about each prefix
	sent   map[*proc]map[uint32]uint64 // as rib.wrote, of what was written
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
	last, high place // of the last record, and of the furthest
	any        bool
	backs      int // times that it went back
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
		w: w, r: r, copies: make(map[uint32]int), plain: make(map[uint32]bool), newest: make(map[uint32]uint32),
		of: make(map[*proc]*sender), table: make(map[uint32]cell), sweeps: make(map[sweepKey]int), begun: make(map[sweepKey]int), last: make(map[uint32]spoken), sent: make(map[*proc]map[uint32]uint64),
	}
}

func (p *partition) append(c *word) {
	p.words++
	p.w.res.Records++
	p.order(c)
	p.repeats(c)
	p.consume(c)
}

// order checks I2.
func (p *partition) order(c *word) {
	s := p.of[c.proc]
	if s == nil {
		s = &sender{}
		p.of[c.proc] = s
	}
	at := place{c.header.Message, c.header.Index}
	replayed := c.header.Flags&record.FlagReplayed != 0
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
	p.copies[c.version]++
	if p.copies[c.version] > 1 {
		p.w.res.Repeated++
		if p.w.now > 6*sec {
			p.w.res.lateRepeats++
		}
	}
	if c.header.Flags&(record.FlagReplayed|record.FlagShared) != 0 {
		return
	}
	if !p.plain[c.version] {
		p.plain[c.version] = true
		return
	}
	st := c.proc.streams[p.r.id]
	if c.arrival(st) < st.wantedAt+p.w.margin || p.r.lagged != "" && !p.w.opt.Lag && len(p.w.faults) > 1 {
		return
	}
	p.w.violate("I7: %s repeats change %d of router %d without a mark", c.proc.name(), c.version, p.r.id)
}

// arrival is when the sender received the message, as it noted.
func (c *word) arrival(st *stream) int64 { return st.arrivals[c.header.Message] }

func key(peer byte, prefix uint16) uint32 { return uint32(peer)<<16 | uint32(prefix) }

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
		if p.sent[c.proc] == nil {
			p.sent[c.proc] = make(map[uint32]uint64)
		}
		p.sent[c.proc][k] = c.header.Message + 1
	}
	stale := !shared && c.header.Token < p.token
	p.token = max(p.token, c.header.Token)
	switch c.kind {
	case kindRoute:
		k := key(c.peer, c.prefix)
		word(k)
		if stale {
			return
		}
		if c.withdraw {
			delete(p.table, k)
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
				delete(p.table, key(c.peer, uint16(prefix)))
			}
		} else {
			p.sweeps[sweep] = p.words
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
			if e, ok := p.table[k]; ok && e.touched < from {
				delete(p.table, k)
			}
		}
	}
}

// value is what a consumer has of a prefix, 0 for nothing.
func (p *partition) value(k uint32) byte {
	if e, ok := p.table[k]; ok {
		return content(k, e.version)
	}
	return 0
}
