package sim

const (
	commitEvery   = 100 * ms
	fenceMost     = 2 * sec  // a takeover waits no longer for the brokers to fence
	confirmMost   = 3 * sec  // nor a commit for the election
	refusedPause  = sec      // after a commit that the election did not allow
	transactsMost = 10 * sec // transaction.timeout.ms
	timeoutsEvery = 10 * sec // the brokers look for it
	foreignMost   = 20 * sec // transactions of others are open, or until the brokers look
)

// A transaction is what one producer writes between two commits. Consumers see it when
// it is committed, and until then nothing that came after it.
type transaction struct {
	node, epoch        int
	began              int64 // its first record was written
	committed, aborted bool
}

// pending is a word that consumers may not see yet.
type pending struct {
	word
	of *transaction
}

// coordinator is what the brokers know of transactional ids. Each node has one.
type coordinator struct {
	epochs [maxNodes]int
	away   bool
	open   [maxNodes]*transaction // with records, nil if there is none
}

// initialise gives an id a new epoch. Whatever has the old one is refused from now on.
func (k *kafka) initialise(node int) int {
	c := &k.coordinator
	if t := c.open[node]; t != nil {
		t.aborted = true
		c.open[node] = nil
		k.flow()
	}
	c.epochs[node]++
	return c.epochs[node]
}

// end commits a transaction or aborts it. It reports false if its producer is not the
// latest of its id any more.
func (k *kafka) end(t *transaction, commit bool) bool {
	if k.coordinator.epochs[t.node] != t.epoch {
		return false
	}
	if !t.committed && !t.aborted {
		t.committed, t.aborted = commit, !commit
		k.coordinator.open[t.node] = nil
		k.flow()
	}
	return true
}

// flow lets consumers see what they may.
func (k *kafka) flow() {
	for _, p := range k.parts {
		p.flow()
	}
}

func (p *partition) flow() {
	for p.pending.len() > 0 {
		of := p.pending.front().of
		if !of.committed && !of.aborted {
			return
		}
		if p.away {
			p.w.push(200*ms, nil, (*flows)(p)) // the end is not told to who leads it
			return
		}
		c := p.pending.pop()
		p.seen++
		if of.committed && c.proc != nil {
			p.append(&c.word)
		}
	}
}

// flows is another look at what consumers may see.
type flows partition

func (t *flows) run() { (*partition)(t).flow() }

// foreign are transactions of somebody else on a partition, one after the other.
type foreign struct {
	p     *partition
	of    *transaction
	each  int64 // how long one is open
	until int64
}

// occupy opens transactions of somebody else for d: a long one, or many short ones.
func (p *partition) occupy(d int64) {
	if p.foreign != nil && p.w.now < p.foreign.until {
		return
	}
	p.foreign = &foreign{p: p, each: d, until: p.w.now + d}
	if p.w.chance(0.4) {
		p.foreign.each = p.w.between(20*ms, 200*ms)
	}
	p.foreign.run()
}

// run ends one and begins the next.
func (f *foreign) run() {
	w := f.p.w
	if f.of != nil {
		f.of.committed = true
		f.p.flow()
	}
	if w.now >= f.until {
		return
	}
	f.of = new(transaction)
	f.p.written++
	f.p.pending.push(pending{of: f.of})
	w.push(min(f.each, f.until-w.now), nil, f)
}

func (f *foreign) end() {
	if f == nil || f.p.w.now >= f.until {
		return
	}
	f.until = f.p.w.now
	f.of.aborted = true
	f.p.flow()
}

// timeouts is when the brokers give up what has been open for too long.
type timeouts kafka

func (t *timeouts) run() {
	k := (*kafka)(t)
	for node, o := range k.coordinator.open {
		if o != nil && !k.down && !k.coordinator.away && k.w.now-o.began > transactsMost {
			k.w.fire(TransactionGivenUp)
			k.initialise(node)
		}
	}
	k.w.push(timeoutsEvery, nil, t)
}

// A transactor makes a producer send in transactions, as package sink does when
// fencing is configured.
type transactor struct {
	pr      *producer
	of      *transaction // nil until the id is initialised
	records int          // handed over in it
	written [maxRouters]int
	ending  bool // takes nothing
	abort   bool
	fenced  bool
	allowed bool  // by the election, since the id was initialised
	asked   int64 // when it was asked, local clock
}

// takes reports whether records may be handed over.
func (tx *transactor) takes() bool { return tx.of != nil && !tx.ending }

// took follows that n records were handed over.
func (tx *transactor) took(n int) {
	if tx.records == 0 {
		tx.pr.p.w.push(commitEvery, tx.pr.p, &commits{tx, tx.of})
	}
	if tx.records += n; tx.records >= tx.pr.window/2 {
		tx.end()
	}
}

// commits is when a transaction has lasted long enough.
type commits struct {
	tx *transactor
	of *transaction
}

func (t *commits) run() {
	if t.tx.of == t.of && !t.tx.ending {
		t.tx.end()
	}
}

// answered follows the answer to a request with n records of router i.
func (tx *transactor) answered(i, n int, failed, fenced bool) {
	if !failed {
		tx.written[i] += n
	}
	tx.abort = tx.abort || failed
	tx.fenced = tx.fenced || fenced
}

// end ends the transaction once all requests are answered.
func (tx *transactor) end() {
	tx.ending = true
	for _, o := range tx.pr.streams {
		if o.queue.len()+o.flying > 0 {
			return // the next answer looks again
		}
	}
	switch {
	case tx.fenced:
		tx.lost()
	case tx.abort || tx.allowed:
		(&ends{tx: tx, of: tx.of, commit: !tx.abort}).run()
	default:
		tx.asked = tx.pr.p.local()
		tx.pr.p.ask()
		(*confirms)(tx).run()
	}
}

// confirms is a look whether the election has answered.
type confirms transactor

func (t *confirms) run() {
	tx, p := (*transactor)(t), t.pr.p
	_, down := p.el.Unavailable()
	switch {
	case down || p.answeredAt >= tx.asked:
		for _, st := range p.streams {
			tx.allowed = tx.allowed || st.gate.Wanted()
		}
	case p.local()-tx.asked < confirmMost:
		p.w.push(20*ms, p, t)
		return
	}
	if !tx.allowed {
		p.w.fire(CommitNotAllowed)
		p.w.tracef("%s may not commit", p.name())
	}
	tx.abort = !tx.allowed
	(&ends{tx: tx, of: tx.of, commit: tx.allowed}).run()
}

// ends is a commit or abort on its way to the coordinator, and back.
type ends struct {
	tx            *transactor
	of            *transaction
	commit        bool
	arrived, done bool
	latest        bool
}

func (e *ends) run() {
	p := e.tx.pr.p
	w, k := p.w, p.w.kafka
	switch {
	case k.down || k.coordinator.away || p.node.cutKafka:
		if e.done { // the answer is lost
			w.fire(CommitUnknown)
		}
		e.arrived, e.done = false, false
		w.push(200*ms, p, e)
	case !e.arrived:
		e.arrived = true
		w.push(w.between(200, 3*ms)+w.between(0, k.slow), nil, e)
	case !e.done:
		e.done, e.latest = true, k.end(e.of, e.commit)
		if p.node.failNext == KafkaFailsWritten {
			p.node.failNext = 0
			w.fire(KafkaFailsWritten)
			w.fire(CommitUnknown)
			e.arrived, e.done = false, false
			w.push(w.between(200*ms, 3*sec), p, e)
			return
		}
		w.push(w.between(200, 3*ms)+w.between(0, k.slow), p, e)
	case !e.latest:
		e.tx.lost()
	default:
		e.tx.ended(e.commit)
	}
}

// ended begins the next transaction.
func (tx *transactor) ended(commit bool) {
	tx.of = &transaction{node: tx.of.node, epoch: tx.of.epoch}
	tx.settle(commit)
	if !tx.allowed {
		tx.pr.p.w.push(refusedPause, tx.pr.p, (*opens)(tx))
		return
	}
	(*opens)(tx).run()
}

// opens is when records may be handed over again.
type opens transactor

func (t *opens) run() {
	t.ending = false
	for _, st := range t.pr.p.streams {
		st.pump()
	}
}

// lost follows that the brokers do not take this producer's records any more.
func (tx *transactor) lost() {
	w := tx.pr.p.w
	w.fire(ProducerFenced)
	w.tracef("%s is fenced", tx.pr.p.name())
	tx.of = nil
	tx.settle(false)
	w.push(w.between(0, sec), tx.pr.p, (*initialises)(tx))
}

// settle reports how the records of a transaction went.
func (tx *transactor) settle(commit bool) {
	pr := tx.pr
	for i, o := range pr.streams {
		n := tx.written[i]
		pr.used -= n
		tx.written[i] = 0
		switch {
		case commit:
			o.acked += uint64(n)
		case n > 0:
			o.failed = true
		}
		if n > 0 || o.failed && !o.told {
			pr.tell(o)
		}
	}
	tx.records, tx.abort, tx.fenced = 0, false, false
}

// initialises is a request for the own id.
type initialises transactor

func (t *initialises) run() {
	p := t.pr.p
	w, k := p.w, p.w.kafka
	if k.down || k.coordinator.away || p.node.cutKafka {
		w.push(200*ms, p, t)
		return
	}
	w.push(w.between(ms, 20*ms)+w.between(0, k.slow), nil, call(func() {
		if k.down || k.coordinator.away || p.node.cutKafka {
			w.push(200*ms, p, t)
			return
		}
		epoch := k.initialise(p.node.id)
		w.push(w.between(200, 3*ms), p, call(func() {
			t.of = &transaction{node: p.node.id, epoch: epoch}
			t.allowed = w.opt.Defect == Unconfirmed
			(*opens)(t).run()
		}))
	}))
}

// fence has the brokers refuse what those still hold who are gone, and then goes on.
func (j *joiner) fence(then func()) {
	p, w := j.p, j.p.w
	var nodes []int
	var fenced []uint64
	if w.fencing && w.opt.Defect != Unfenced {
		for _, m := range p.gone.List(p.instance, p.el.Members()) {
			if j.fenced[m.Instance] != m.At {
				nodes = append(nodes, int(m.Name[0]-'a'))
				fenced = append(fenced, m.Instance)
				j.fenced[m.Instance] = m.At
			}
		}
	}
	if len(nodes) == 0 {
		then()
		return
	}
	forget := func() {
		w.fire(FenceFails)
		j.unfenced = true
		for _, instance := range fenced {
			delete(j.fenced, instance)
		}
		then()
	}
	d := w.between(5*ms, 40*ms) + w.between(0, w.kafka.slow)
	away := func() bool { return w.kafka.down || w.kafka.coordinator.away || p.node.cutKafka }
	if away() || d > fenceMost {
		w.push(fenceMost, p, call(forget))
		return
	}
	w.push(d, p, call(func() {
		if away() {
			w.push(fenceMost, p, call(forget))
			return
		}
		for _, node := range nodes {
			w.fire(Fences)
			w.tracef("%s fences %s", p.name(), w.nodes[node].name)
			w.kafka.initialise(node)
		}
		then()
	}))
}

// calm are the faults after which whoever takes over can have its predecessor refused.
var calm = [faultCount]bool{
	KillActive: true, KillStandby: true, RestartActive: true, StopActive: true, StopStandby: true, StopAtHandOver: true, StopUntilRead: true,
	LeaveActive: true, LeaveStandby: true, PowerLoss: true, RouterRestarts: true, PeerFlaps: true, SessionTwice: true,
	SessionFlaps: true, Burst: true, ForeignTransaction: true,
}
