package collector

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/dump"
	"github.com/bmpha/bmpha/pkg/pmacct"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/sink"
	"github.com/bmpha/bmpha/pkg/table"
)

// DumpOptions say when the routers' tables are dumped, and to where.
type DumpOptions struct {
	Plan  dump.Plan
	Stats bool // dumps have Statistics Reports
	// Topic gives the topic of a router's dumps; nil: there is none.
	Topic func(netip.Addr, uint16) string
	// File gives the path of a dump of a slot and of the link to it, which may be
	// empty; nil: there are no files.
	File func(router netip.Addr, port uint16, slot time.Time) (path, latest string)
	// FileEncoder makes the records in files. It is set if File is.
	FileEncoder *pmacct.Encoder
}

const (
	dumpStream = 0    // in the sink: routers' streams begin at 1
	dumpWindow = 1000 // records in flight, and no more than this part of the sink's window
	dumpPart   = 4

	dumpTurn = time.Second           // how often it is looked who is due
	dumpWait = 50 * time.Millisecond // for reports, or for the lease

	// Live records have precedence, but not forever.
	giveWayMost = time.Second
	giveWayStep = 10 * time.Millisecond

	// dumpPatience is how long a dump may fail before others have their turn, and
	// then how long until it is tried again.
	dumpPatience = time.Minute
)

// The targets of dumps.
const (
	toTopic = iota
	toFile
	dumpTargets
)

var dumpTargetNames = [dumpTargets]string{"topic", "file"}

// dumps writes the tables of those routers that this collector sends for. One dump
// to each target is under way at a time; what holds one target up does not concern
// the other.
type dumps struct {
	c      *Collector
	o      DumpOptions
	stream *dump.Stream

	mu      sync.Mutex
	st      control.Dump
	running [dumpTargets]string // router
	failed  [dumpTargets]struct {
		why string // the last dump failed; "" if it did not
		at  time.Time
	}
}

// dumped is what is known of the dumps of a router. The router's lock guards it.
type dumped struct {
	running bool  // what of a dump was handed over is not all acknowledged
	heard   int64 // when the router was first heard
	to      [dumpTargets]struct {
		done  int64 // last slot that was dumped, seconds since the Unix epoch
		slot  int64 // last one that was looked at
		sent  bool  // for the router, during that
		retry int64 // not tried again before
	}
}

func newDumps(c *Collector, o DumpOptions) *dumps {
	window := int(max(1, min(dumpWindow, c.fwd.window/dumpPart)))
	d := &dumps{c: c, o: o, stream: dump.NewStream(c.o.Sink, dumpStream, window)}
	d.st.Period, d.st.Slots = control.Seconds(o.Plan.Period.Seconds()), o.Plan.Slots
	for target, name := range dumpTargetNames {
		if d.wants(target) {
			d.st.Targets = append(d.st.Targets, name)
		}
	}
	return d
}

func (d *dumps) wants(target int) bool {
	if target == toTopic {
		return d.o.Topic != nil
	}
	return d.o.File != nil
}

// whole returns the last slot that is dumped as a whole.
func (d *dumps) whole(s *dumped) int64 {
	slot := int64(-1)
	for target := range s.to {
		if done := s.to[target].done; d.wants(target) && (slot < 0 || done < slot) {
			slot = done
		}
	}
	return max(slot, 0)
}

// start dumps until ctx ends.
func (d *dumps) start(ctx context.Context, wg *sync.WaitGroup) {
	for target := range dumpTargets {
		if d.wants(target) {
			wg.Go(func() { d.run(ctx, target) })
		}
	}
}

// run dumps to one target.
func (d *dumps) run(ctx context.Context, target int) {
	told := make(map[string]int64)
	tick := time.NewTicker(dumpTurn)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		d.listen(told)
		for _, r := range d.c.routers.all() {
			if ctx.Err() != nil {
				return
			}
			if j := d.due(r, target, told[r.memberKey()]); j != nil {
				d.dump(ctx, j)
				d.listen(told)
			}
		}
	}
}

// listen takes in what other members say of their dumps: told has their last slots
// by the router's key. What is said of the time to come is nonsense, and would keep
// us from dumping for as long.
func (d *dumps) listen(told map[string]int64) {
	now := time.Now()
	oldest, newest := now.Add(-2*d.o.Plan.Period).Unix(), now.Add(d.o.Plan.Period).Unix()
	for key, slot := range told {
		if slot < oldest {
			delete(told, key)
		}
	}
	view := d.c.co.snapshot().view
	if view == nil {
		return
	}
	for i := range view.Members {
		m := &view.Members[i]
		if m.Name == d.c.o.Process && m.Instance == d.c.instance {
			continue
		}
		for key, state := range m.Routers {
			if state.Dumped > max(oldest, told[key]) && state.Dumped < newest {
				told[key] = state.Dumped
			}
		}
	}
}

// A dumpJob is a dump that is due.
type dumpJob struct {
	r       *router
	target  int
	session *session
	table   *table.Table
	slot    time.Time
	settled bool
}

// memberKey is what members call r among themselves.
func (r *router) memberKey() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.key
}

// due returns what is to be dumped of r to a target now, nil if nothing. told is
// the last slot of which another collector has said that it was dumped.
func (d *dumps) due(r *router, target int, told int64) *dumpJob {
	clk := &d.c.clock
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &r.dumped.to[target]
	if r.pmacct || r.session == nil {
		return nil
	}
	if r.dumped.heard == 0 {
		r.dumped.heard = r.session.accepted
	}
	whole := max(s.done, told)
	slot, due := d.o.Plan.Due(r.identity, clk.toTime(r.dumped.heard), time.Unix(whole, 0), now)
	if slot.Unix() != s.slot {
		if s.sent && whole < s.slot {
			d.count(func(st *control.Dump) { st.Missed++ })
			r.log.Warn("no dump of the router's table in this slot", "target", dumpTargetNames[target], "slot", time.Unix(s.slot, 0))
		}
		s.slot, s.sent = slot.Unix(), false
	}
	if !due || !r.stream.Wanted() {
		return nil
	}
	s.sent = true
	settled := r.routes.settled
	if r.routes.Table == nil || !settled && d.o.Plan.Patient(slot, now) || clk.now() < s.retry {
		return nil
	}
	return &dumpJob{r: r, target: target, session: r.session, table: r.routes.Table, slot: slot, settled: settled}
}

// halt says why j cannot go on, "" if it can. The caller holds the router's lock.
func (j *dumpJob) halt() string {
	switch r := j.r; {
	case !r.stream.Wanted():
		return "handover"
	case r.session != j.session:
		return "session ended"
	case r.routes.Table != j.table:
		return "table given up"
	}
	return ""
}

// dump carries j out.
func (d *dumps) dump(ctx context.Context, j *dumpJob) {
	d.count(func(st *control.Dump) {
		d.running[j.target] = j.r.identity
		if !j.settled {
			st.Unsettled++
		}
	})
	begin := time.Now()
	to := d.toTopic
	if j.target == toFile {
		to = d.toFile
	}
	of, err := to(ctx, j)
	d.finish(j, of, begin, err)
}

// finish follows the end of a dump.
func (d *dumps) finish(j *dumpJob, of *dump.Dump, begin time.Time, err error) {
	r, target, took := j.r, dumpTargetNames[j.target], time.Since(begin)
	interrupted := errors.Is(err, dump.ErrInterrupted)
	r.mu.Lock()
	switch {
	case err == nil:
		r.dumped.to[j.target].done = j.slot.Unix()
	case !interrupted:
		r.dumped.to[j.target].retry = d.c.clock.now() + micros(dumpPatience)
	}
	r.mu.Unlock()
	d.count(func(st *control.Dump) {
		d.running[j.target] = ""
		switch {
		case err == nil:
			st.Whole++
			d.failed[j.target].why = ""
			st.Last = &control.DumpDone{
				Router: r.identity, Target: target, Slot: j.slot, At: begin.Add(took),
				Took: control.Seconds(took.Seconds()), Routes: of.Routes(), Records: of.Records(),
			}
		case interrupted:
			st.Interrupted++
		default:
			st.Failed++
			d.failed[j.target].why, d.failed[j.target].at = printable([]byte(err.Error())), begin.Add(took)
		}
	})
	log := r.log.With("target", target, "slot", j.slot, "took", took.Round(time.Millisecond))
	switch {
	case err == nil:
		log.Info("table dumped", "routes", of.Routes(), "records", of.Records())
	case interrupted:
		log.Warn("dump of the table interrupted", "reason", err)
	default:
		log.Error("dump of the table failed", "error", err)
	}
}

// make returns the dump of j, whose records e makes.
func (d *dumps) make(j *dumpJob, e *pmacct.Encoder, topic uint32) *dump.Dump {
	addr, port := j.session.addr.Addr(), j.session.addr.Port()
	snap := d.c.co.snapshot()
	o := &record.Origin{Instance: d.c.instance, Session: j.session.id, Token: snap.token}
	if snap.lost() {
		o.Flags |= record.FlagShared
	}
	records := e.Dump(pmacct.Identity{
		Router: j.r.identity, Addr: addr, Port: port, Topic: topic, Key: d.c.o.Key(addr, port),
	}, j.slot.Unix(), int64(d.o.Plan.Every()/time.Second))
	encoder := dump.Records(records, o, func(err error) { d.c.undecodable(j.r, j.session.id, err) })
	return dump.New(j.table, encoder, dump.Options{Settled: j.settled, Stats: d.o.Stats})
}

// toFile writes the dump to its file.
func (d *dumps) toFile(ctx context.Context, j *dumpJob) (*dump.Dump, error) {
	path, latest := d.o.File(j.session.addr.Addr(), j.session.addr.Port(), j.slot)
	of := d.make(j, d.o.FileEncoder, 0)
	return of, dump.WriteFile(of, path, latest, func() bool {
		d.giveWay(ctx)
		j.r.mu.Lock()
		defer j.r.mu.Unlock()
		return ctx.Err() == nil && j.halt() == ""
	})
}

// toTopic hands the dump over to the sink and waits until it is acknowledged.
// While anything of it may be under way others wait before they send for the
// router.
func (d *dumps) toTopic(ctx context.Context, j *dumpJob) (of *dump.Dump, err error) {
	r, s, clk := j.r, d.stream, &d.c.clock
	topic, err := d.c.o.Sink.Topic(d.o.Topic(j.session.addr.Addr(), j.session.addr.Port()))
	if err != nil {
		return nil, err
	}
	of = d.make(j, d.c.o.Encoder, topic)
	s.Begin(of)
	r.mu.Lock()
	r.dumped.running = true
	r.mu.Unlock()
	defer func() {
		s.Abandon()
		for !s.Idle() && ctx.Err() == nil {
			d.wait(ctx)
		}
		r.mu.Lock()
		r.dumped.running = false
		r.cond.Broadcast()
		r.mu.Unlock()
		d.c.co.kick() // others wait for this
	}()
	halted, deadline := "", int64(0)
	for {
		if halted == "" {
			d.giveWay(ctx)
			s.Fill()
		}
		r.mu.Lock()
		if halted == "" {
			if halted = j.halt(); halted != "" {
				if !s.Interrupt(halted) {
					deadline = 1 // nothing to say
				} else {
					deadline = clk.now() + 2*micros(d.c.o.Expiry) // others wait no longer
				}
			}
		}
		if d.c.fwd.mayHand() && (halted == "" || clk.now() < deadline) {
			s.Hand(clk.now())
		}
		r.mu.Unlock()
		since, failure := s.Failing()
		switch {
		case s.Done() && !of.Interrupted():
			return of, nil
		case halted != "" && (s.Done() || clk.now() >= deadline):
			return of, interrupted(halted)
		case failure != nil && clk.now()-since > micros(dumpPatience):
			return of, failure
		case ctx.Err() != nil:
			return of, interrupted("stopped")
		}
		d.wait(ctx)
	}
}

// interrupted is an ErrInterrupted with a reason.
type interrupted string

func (why interrupted) Error() string        { return string(why) }
func (why interrupted) Is(target error) bool { return target == dump.ErrInterrupted }

// wait waits a moment for reports about the stream.
func (d *dumps) wait(ctx context.Context) {
	t := time.NewTimer(dumpWait)
	defer t.Stop()
	select {
	case <-d.stream.Moved():
	case <-t.C:
	case <-ctx.Done():
	}
}

// giveWay waits while live records do.
func (d *dumps) giveWay(ctx context.Context) {
	for begin := time.Now(); d.c.fwd.busy() && time.Since(begin) < giveWayMost && ctx.Err() == nil; {
		t := time.NewTimer(giveWayStep)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
	}
}

// busy reports whether the sink has hardly room for live records.
func (f *forwarder) busy() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.waiting) > 0 || f.inFlight.Load() > f.window/2
}

// report follows a report about the stream of dumps. There may be none.
func (d *dumps) report(rep *sink.Report, now int64) {
	if d != nil {
		d.stream.Report(rep, now)
	}
}

func (d *dumps) count(change func(*control.Dump)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change(&d.st)
}

// status returns how dumps go.
func (d *dumps) status() *control.Dump {
	d.mu.Lock()
	defer d.mu.Unlock()
	st := d.st
	for _, router := range d.running {
		if st.Running == "" {
			st.Running = router
		}
	}
	for _, f := range d.failed {
		if f.why != "" && f.at.After(st.LastErrorAt) {
			st.LastError, st.LastErrorAt = f.why, f.at
		}
	}
	return &st
}
