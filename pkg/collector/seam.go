package collector

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bmpha/bmpha/pkg/election"
	"github.com/bmpha/bmpha/pkg/hold"
	"github.com/bmpha/bmpha/pkg/intake"
	"github.com/bmpha/bmpha/pkg/pmacct"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/seam"
	"github.com/bmpha/bmpha/pkg/sink"
	"github.com/bmpha/bmpha/pkg/topic"
)

const (
	// seamMore is read from before what is held: the other sender's session may
	// have been the faster one.
	seamMore = int64(500 * time.Millisecond / time.Microsecond)

	// What the other sender wrote within recentWords before its end is waited
	// for if it was not heard here yet, but no longer than grace, looking anew every
	// graceStep.
	recentWords = int64(200 * time.Millisecond / time.Microsecond)
	grace       = 40 * time.Millisecond
	graceStep   = 4 * time.Millisecond

	// While a takeover is to be expected, what comes in is listed this often.
	listEvery = 20 * time.Millisecond
	// Entries and records that are listed under one hold of a router's lock.
	listStep = 512
	// Records that are listed of all routers together. What is beyond is sent flagged.
	listMost = seam.DefaultMost

	// Reading that stopped by itself is begun anew no more often than this, while
	// nobody waits for it.
	primeAgain = int64(5 * time.Second / time.Microsecond)

	// fenceWait is how long a takeover waits for brokers to refuse the sender that
	// is gone.
	fenceWait = 2 * time.Second
)

// A joiner lets routers begin where another sender has ended: it reads the end of
// the topics back, before it is needed if that can be seen coming, compares it with
// what is held, and tells each router's gate.
//
//	resting ──▶ primed, ready ──▶ joined ──▶ resting
//	  expect or await   await
type joiner struct {
	c      *Collector
	reader *topic.Reader // nil: Kafka is not read back
	wakeup chan struct{}
	ready  atomic.Bool // what the present sender writes is followed

	// Owned by run.
	primed  bool
	since   int64 // of the Prime
	begun   int64 // when it was
	listed  int   // records of all routers
	most    int   // and how many may be
	batch   record.Batch
	doubted bool             // whether the sink reaches Kafka, since routers wait
	fenced  map[uint64]int64 // instances that were fenced, with what they had said last

	other map[netip.Addr]netip.Addr // of a router, the first of several that the configuration says it has; stays as it is

	mu    sync.Mutex                // guards what follows
	tails map[netip.Addr]*seam.Tail // by the address of the router, see tailOf
	over  bool                      // a tail has more than it can hold
}

// joined is what came of comparing, for routers that went on together.
type joined struct {
	at       int64  // when
	routers  int    // how many
	read     int    // records read back
	skipped  uint64 // records that Kafka had
	doubtful uint64 // records that it may have had
	err      string // why they went on without knowing what Kafka has
}

func (j *joiner) init(c *Collector) error {
	j.c = c
	j.wakeup = make(chan struct{}, 1)
	j.tails = make(map[netip.Addr]*seam.Tail)
	j.other = make(map[netip.Addr]netip.Addr)
	first := make(map[string]netip.Addr)
	for _, addr := range slices.SortedFunc(maps.Keys(c.o.Alias), netip.Addr.Compare) {
		if _, ok := first[c.o.Alias[addr]]; !ok {
			first[c.o.Alias[addr]] = addr
		}
		j.other[addr] = first[c.o.Alias[addr]]
	}
	j.fenced = make(map[uint64]int64)
	j.most = listMost
	if c.o.ReadBack == nil || c.o.ReadBackTime <= 0 {
		return nil
	}
	o := *c.o.ReadBack
	o.Read, o.Now, o.Log = j.read, c.clock.now, c.log
	var err error
	if j.reader, err = topic.New(o); err != nil {
		return err
	}
	// Where all routers have one topic, its ends are known before the first session.
	one, other := netip.AddrFrom4([4]byte{192, 0, 2, 1}), netip.AddrFrom4([4]byte{192, 0, 2, 2})
	if name := c.o.Topic(one, 1); name == c.o.Topic(other, 2) {
		j.reader.Follow(name)
	}
	return nil
}

func (j *joiner) close() error {
	if j.reader == nil {
		return nil
	}
	return j.reader.Close()
}

// topicOf returns the sink's handle of a topic, which is followed from now on.
func (j *joiner) topicOf(name string) (uint32, error) {
	h, err := j.c.o.Sink.Topic(name)
	if err == nil && j.reader != nil {
		j.reader.Follow(name)
	}
	return h, err
}

// read takes a record that was read back.
func (j *joiner) read(r *topic.Record) {
	w, ok := j.identified(r.Header, r.Value)
	if !ok {
		return
	}
	addr, _, _ := intake.Identify(r.Value)
	addr = j.one(addr)
	j.mu.Lock()
	t := j.tails[addr]
	if t == nil {
		t = new(seam.Tail)
		j.tails[addr] = t
	}
	t.Add(w, r.Time*1000)
	j.over = j.over || t.Overflowed()
	j.mu.Unlock()
}

// identify tells what records of a router say that are to be sent.
func (j *joiner) identify(r *router) func(*hold.Entry, *record.Batch, int) (seam.Word, bool) {
	return func(e *hold.Entry, b *record.Batch, i int) (seam.Word, bool) {
		w, ok := j.identified(b.Header(i), b.Value(i))
		switch {
		case !ok || w.Anew || e.Kind != hold.Message:
		case r.pmacct:
			w.Scope, _ = intake.PeerHash(b.Value(i))
		case len(e.Body) > 0 && e.Body[0] != vanished:
			w.Scope, _ = pmacct.PeerHash(r.identity, e.Body)
		}
		return w, ok
	}
}

// identified reads what a record says from its header.
func (j *joiner) identified(header, value []byte) (w seam.Word, ok bool) {
	h, err := record.ParseHeader(header)
	if err != nil || !h.Keyed() {
		// The header may be off; what pmacct has made says it itself.
		if w.Key, w.Value, ok = intake.Hashes(value); !ok {
			return w, false
		}
	} else {
		w.Key, w.Value = h.KeyHash, h.ValueHash
	}
	if err == nil {
		w.Session, w.Ours = h.Session, h.Instance == j.c.instance
		w.Token, w.Shared = h.Token, h.Flags&record.FlagShared != 0
	}
	if h.Flags&record.FlagRoute != 0 {
		return w, true
	}
	// At these, consumers forget what was said before.
	switch {
	case bytes.Contains(value, logInit):
		w.Anew = true
	case bytes.Contains(value, peerUp), bytes.Contains(value, peerDown):
		w.Anew, w.Scope = true, w.Key
	}
	return w, true
}

var logInit, peerUp, peerDown = []byte(`"log_init"`), []byte(`"peer_up"`), []byte(`"peer_down"`)

// tailOf names the tail that has the records of r. Each router has its own, because
// what begins anew in one says nothing of another. Its address in the records is what
// the other collector sees, which by its name can be another than here.
func (j *joiner) tailOf(r *router) netip.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.from.IsValid() {
		return j.one(r.from)
	}
	return j.one(r.addr)
}

// one returns the first of the addresses of a router.
func (j *joiner) one(addr netip.Addr) netip.Addr {
	addr = addr.Unmap()
	if first, ok := j.other[addr]; ok {
		return first
	}
	return addr
}

// kick makes run look again. It never blocks.
func (j *joiner) kick() { poke(j.wakeup) }

func (j *joiner) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	if j.reader == nil {
		j.alone(ctx)
		return
	}
	wg.Go(func() { j.reader.Run(ctx) })
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-j.wakeup:
		}
		if again := j.turn(ctx); again > 0 {
			timer.Reset(again)
		}
	}
}

// alone is run without reading back: whoever is to go on is always ready.
func (j *joiner) alone(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-j.wakeup:
		}
		expecting, _, _ := j.survey()
		if ready := len(expecting) > 0; j.ready.Swap(ready) != ready {
			j.c.co.kick()
		}
	}
}

// turn does what is to be done now and returns when to look again at the latest,
// 0 if only when told.
func (j *joiner) turn(ctx context.Context) time.Duration {
	expecting, awaiting, since := j.survey()
	if len(expecting)+len(awaiting) == 0 {
		j.rest()
		return 0
	}
	j.mu.Lock()
	over := j.over
	j.mu.Unlock()
	ended := over || j.primed && !j.reader.Status().Reading
	if ended && j.ready.Swap(false) {
		j.c.co.kick()
	}
	if !j.primed || since < j.since || ended && (len(awaiting) > 0 && !over || j.c.clock.now()-j.begun > primeAgain) {
		j.prime(since)
	}
	if len(awaiting) == 0 {
		j.list(expecting)
		if !j.ready.Load() {
			limit, cancel := context.WithTimeout(ctx, j.c.o.ReadBackTime)
			_, err := j.reader.Through(limit)
			cancel()
			if err == nil {
				j.ready.Store(true)
				j.c.co.kick() // the one that sends waits for this
			} else if ctx.Err() == nil {
				j.c.log.Debug("read back in advance", "error", err)
			}
		}
		return listEvery
	}
	return j.join(ctx, awaiting)
}

// survey returns the routers that are to go on here, soon or now, and from when on
// the topics are needed.
func (j *joiner) survey() (expecting, awaiting []*router, since int64) {
	since = j.c.clock.now()
	for _, r := range j.c.routers.all() {
		r.mu.Lock()
		awaits := r.stream.Awaits()
		if awaits {
			awaiting = append(awaiting, r)
		} else if r.expected {
			expecting = append(expecting, r)
		}
		if awaits || r.expected {
			since = min(since, j.oldest(r, since))
		}
		r.mu.Unlock()
	}
	return expecting, awaiting, since
}

// oldest returns from when on a topic is needed for r, whose lock is held: now if
// nothing is held.
func (j *joiner) oldest(r *router, now int64) int64 {
	_, _, oldest := r.stream.Held()
	switch {
	case oldest == 0:
		return now
	case r.Late > r.stream.From():
		return min(oldest, r.LateFrom)
	}
	return oldest
}

func (j *joiner) rest() {
	if !j.primed {
		return
	}
	j.primed = false
	j.ready.Store(false)
	j.reader.Rest()
	j.empty()
	for _, r := range j.c.routers.all() {
		r.mu.Lock()
		r.stream.Rest()
		r.own = nil
		r.mu.Unlock()
	}
	j.listed = 0
	j.c.co.kick()
}

func (j *joiner) empty() {
	j.mu.Lock()
	clear(j.tails)
	j.over = false
	j.mu.Unlock()
}

func (j *joiner) prime(since int64) {
	j.ready.Store(false)
	j.reader.Rest()
	j.empty()
	j.primed, j.since, j.begun = true, since, j.c.clock.now()
	if err := j.reader.Prime(since - seamMore); err != nil {
		j.c.log.Warn("read the end of the topics back", "error", err) // Through fails, too
	}
}

// list brings what is known of the routers' logs up to date.
func (j *joiner) list(routers []*router) {
	for _, r := range routers {
		j.listOf(r)
	}
}

func (j *joiner) listOf(r *router) {
	for done := false; !done; {
		r.mu.Lock()
		if r.own == nil {
			r.own = new(seam.Own)
		}
		before := r.own.Len()
		r.own.Most = max(1, before+j.most-j.listed)
		done = r.stream.Scan(r.own, &j.batch, listStep)
		j.listed += r.own.Len() - before
		r.mu.Unlock()
	}
}

// join lets routers go on that are to send now.
func (j *joiner) join(ctx context.Context, routers []*router) time.Duration {
	begun := time.Now()
	fenced := j.fence(ctx)
	reached := j.c.o.Sink.Stats().Connected
	limit, cancel := context.WithTimeout(ctx, j.c.o.ReadBackTime)
	defer cancel()
	progress, err := j.reader.Through(limit)
	if ctx.Err() != nil {
		return 0
	}
	if err == nil {
		j.mu.Lock()
		if j.over {
			err = errors.New("more records than can be compared")
		}
		j.mu.Unlock()
	}
	lost := j.c.co.lost()
	if err != nil && !(reached && j.c.o.Sink.Stats().Connected) || lost && j.doubt(err) {
		// Nothing can be sent anyway.
		return 50 * time.Millisecond
	}
	if lost {
		// A host that was cut off from both may hear of another sender now.
		if !j.c.co.retry(ctx) {
			return 0
		}
	}
	if routers = stillAwaiting(routers); len(routers) == 0 {
		return 0 // roles have changed meanwhile
	}
	if err == nil {
		j.list(routers)
	}
	for err == nil && j.unheard(routers) && time.Since(begun) < grace {
		select { // what is on its way here may come
		case <-time.After(graceStep):
		case <-ctx.Done():
			return 0
		}
		j.list(routers)
	}
	n := joined{routers: len(routers), read: progress.Records, at: j.c.clock.now()}
	if err != nil {
		n.err = told(err, j.c.o.ReadBackTime)
		j.c.log.Warn("not known what Kafka has of what was held: it may be repeated", "routers", len(routers), "error", err)
	}
	j.doubted = false
	for _, r := range routers {
		j.let(r, err == nil, !fenced, progress.From, &n)
	}
	j.c.log.Info("took over", "routers", n.routers, "read_back", n.read, "took", time.Since(begun).Round(10*time.Microsecond),
		"skipped", n.skipped, "doubtful", n.doubtful)
	j.kick() // others may have come meanwhile
	return 0
}

// doubt reports whether a topic that was not read in time, because of err, makes it
// doubtful that Kafka is reached at all: the sink finds that out anew. It does once for
// routers that wait.
func (j *joiner) doubt(err error) bool {
	s, ok := j.c.o.Sink.(sink.Recaller)
	if !ok || j.doubted || !errors.Is(err, context.DeadlineExceeded) || j.c.fwd.inFlight.Load() > 0 {
		return false
	}
	j.doubted = true
	s.Recall()
	return true
}

func stillAwaiting(routers []*router) []*router {
	return slices.DeleteFunc(routers, func(r *router) bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return !r.stream.Awaits()
	})
}

// told says for operators why something was not done within limit.
func told(err error, limit time.Duration) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return "no answer within " + limit.String()
	}
	return err.Error()
}

// let makes r go on, by what is known of Kafka if it is known. It was read back from
// read on; open says that there may come more.
func (j *joiner) let(r *router, known, open bool, read int64, n *joined) {
	var plan *seam.Plan
	j.listOf(r)
	if !known {
		r.mu.Lock()
		plan = seam.Unread(r.own, r.stream.From(), r.stream.Sent())
		r.mu.Unlock()
	} else {
		hint := seam.Hint{Delay: j.c.clock.wall.Load(), Since: j.since - seamMore}
		r.mu.Lock()
		from := r.stream.From()
		hint.Begun = r.course.Begun
		hint.Sent, hint.Late, hint.LateFrom = r.stream.Sent(), r.Late, r.LateFrom
		switch {
		case r.pmacct: // when its router's table was told, pmacct does not say
			hint.Dumped = r.course.Begun
		case r.course.Whole(n.at, r.Behind):
			hint.Dumped = r.course.Done
		}
		short := read > j.since && read > j.oldest(r, j.c.clock.now())-seamMore
		r.mu.Unlock()
		addr := j.tailOf(r)
		j.mu.Lock()
		t := j.tails[addr]
		if t == nil {
			t = new(seam.Tail)
			// It may have another address there, or is several.
			open = open || j.c.o.BySysName || !r.addr.IsValid()
		}
		plan = seam.Align(r.own, t, from, hint)
		j.mu.Unlock()
		if short || open {
			plan.Doubt()
		}
	}
	n.skipped += uint64(plan.Skipped)
	n.doubtful += uint64(plan.Doubtful)
	r.mu.Lock()
	j.listed -= r.own.Len()
	r.stream.Join(plan)
	j.c.past.goOn(r, n.at, plan, n.read, n.err)
	r.own, r.expected = nil, false
	j.c.fwd.wake(r)
	r.mu.Unlock()
}

// unheard reports whether Kafka has a late word that has not come in here.
func (j *joiner) unheard(routers []*router) bool {
	owns := make(map[netip.Addr][]*seam.Own)
	for _, r := range routers {
		addr := j.tailOf(r)
		owns[addr] = append(owns[addr], r.own)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for addr, list := range owns {
		if t := j.tails[addr]; t != nil && t.Unheard(recentWords, list...) > 0 {
			return true
		}
	}
	return false
}

// fence has brokers refuse what senders still hold that are gone without having
// stopped. It reports false if that failed for one of them.
func (j *joiner) fence(ctx context.Context) bool {
	f, ok := j.c.o.Sink.(sink.Fencer)
	if !ok || j.c.o.TransactionalID == nil {
		return true
	}
	all := true
	for _, m := range j.gone(ctx) {
		if j.fenced[m.Instance] == m.At { // it has said nothing since
			continue
		}
		limit, cancel := context.WithTimeout(ctx, fenceWait)
		err := f.Fence(limit, j.c.o.TransactionalID(m.Name))
		cancel()
		j.c.past.fenced(err)
		if err != nil {
			j.c.log.Warn("the sender that is gone is not refused by Kafka", "member", m.Name, "error", err)
			all = false
			continue
		}
		j.fenced[m.Instance] = m.At
		j.c.log.Info("fenced", "member", m.Name)
	}
	return all
}

// errNotSender is why nothing may be committed.
var errNotSender = errors.New("not the sender of any router")

// Confirm asks Redis anew and returns an error unless this collector is the sender of
// some router. It is for sink.Options.Confirm: whoever was fenced may have been
// replaced.
func (c *Collector) Confirm(ctx context.Context) error {
	co := &c.co
	if _, ok := co.refresh(ctx); !ok {
		return fmt.Errorf("ask the election: %w", ctx.Err())
	}
	sends := false
	err := co.do(ctx, func(now int64) { // the gates have followed the round by now
		for _, r := range c.routers.all() {
			r.mu.Lock()
			sends = sends || r.stream.Wanted() || r.dumped.running
			r.mu.Unlock()
		}
	})
	if err == nil && !sends {
		err = errNotSender
	}
	return err
}

// gone returns those that were sending when they were last heard, and are not there any
// more.
func (j *joiner) gone(ctx context.Context) (list []election.Silent) {
	co := &j.c.co
	_ = co.do(ctx, func(int64) { list = co.gone.List(j.c.instance, co.e.Members()) })
	return list
}
