package collector

import (
	"bytes"
	"errors"
	"time"

	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/control"
	"github.com/bmpha/bmpha/pkg/gate"
	"github.com/bmpha/bmpha/pkg/hold"
	"github.com/bmpha/bmpha/pkg/table"
)

// TableOptions say what is kept of the routers' routes, and what for.
type TableOptions struct {
	Hashes bool  // only what tells news from repetition, no attributes
	Memory int64 // bytes of all tables; 0: no limit
	// Diff leaves out of a table that a router sends again what Kafka has from
	// here already, and tells what has vanished.
	Diff bool
	// RIB is that of the encoder: every route that vanishes is told.
	RIB bool
}

// What the table knew of a message's routes stands behind the message in its log
// entry, so that its records can be made at any later time, and again. Routes that
// go without a message have entries of their own, which begin with vanished, as no
// BMP message does.
const vanished = 0

// Behind a Peer Up stands resumed if it is about the BGP session of which the one
// in the session before was: then it makes no record.
const resumed = 1

const (
	// settleAfter is for how long a router must not have mentioned anything that it
	// had said in the session before, until the rest of that is taken to be gone.
	settleAfter = int64(10 * time.Second / time.Microsecond)
	settleEvery = time.Second // how often that is looked at

	tidyStep  = 256      // routes that go while the router's lock is held
	tidyBytes = 16 << 10 // of an entry that tells of them
	tidyMost  = 64       // steps at a time where nobody waits for the end of it
)

// A routes is a router's table and what is being done about it. The router's lock
// guards it.
type routes struct {
	*table.Table        // nil: none is kept
	off          string // why none is kept any more; "" if one is, or never was

	notes table.Notes
	gone  table.Gone
	ready [][]byte // bodies of entries about routes that went, not yet in the log
	body  []byte   // of the next entry

	ground   gate.Ground // whether what comes again needs to be sent again
	compared bool        // it did not when the session began
	again    uint64      // routes that came again and were left out
	learning learning
	change   func(*table.Change) // of what a message changes: note, once

	hog      bool  // to be given up, because it leaves no room for others
	settled  bool  // nothing is left of the session before, and nothing more expected
	lookedAt int64 // when that was last asked
	behindAt int64 // when there was last more to read than was read
}

// openTable begins session s of r. The caller holds the router's lock.
func (c *Collector) openTable(r *router, s *session) {
	t, now := &r.routes, s.accepted
	if t.off != "" { // there may be room now
		t.off, t.Table = "", c.newTable()
	}
	if t.Table == nil {
		return
	}
	t.ground.Opened(r.stream)
	t.compared = c.o.Table.Diff && t.ground.Holds(r.stream)
	t.settled, t.lookedAt, t.behindAt = false, now, now
	t.Open(c.clock.toUnix(now))
	switch {
	case s.relay == nil:
	case c.o.Table.Hashes || s.opaque:
		s.relay.Table(nil)
	default:
		s.relay.Table(t.Table)
	}
}

// closeTable ends a session of r. all says that it has brought what any other collector
// has sent. The caller holds the router's lock.
func (c *Collector) closeTable(r *router, all bool) {
	t := &r.routes
	if t.Table != nil {
		t.ground.Closed(r.stream, all && t.whole(c.clock.toUnix(c.clock.now())))
	}
}

// whole reports whether the session has said all that the router had to say. A peer
// of which nothing has come for long has nothing to say. wall is now, in µs since
// the Unix epoch.
func (t *routes) whole(wall int64) bool {
	if t.Table == nil {
		return false
	}
	s := t.Summary()
	return s.Stale == 0 && s.Settled && t.Waiting(wall-settleAfter) == 0
}

func (c *Collector) newTable() *table.Table {
	if c.store == nil {
		return nil
	}
	return table.NewTable(c.store, table.Options{Hashes: c.o.Table.Hashes})
}

// learn takes a message of s into the table and returns what is to be in the log for
// it. It reports false if that is nothing, because all that it says was sent
// before. The caller holds the router's lock.
func (c *Collector) learn(r *router, s *session, msg []byte, now int64) (body []byte, news bool) {
	t := &r.routes
	if t.hog {
		return c.without(r, s, now, hogged, msg)
	}
	t.learning = learning{sent: c.o.Table.Diff && t.ground.Holds(r.stream) && c.fwd.mayHand()}
	t.notes.Values = c.o.Table.RIB
	t.notes.Reset()
	if t.change == nil {
		t.change = t.note
	}
	var err error
	if wall := c.clock.toUnix(now); s.relay != nil && !c.o.Table.Hashes {
		err = s.relay.Apply(msg, wall, t.change)
	} else {
		err = t.Apply(msg, wall, t.change)
	}
	t.notes.Applied(err) // the encoder says what is wrong
	switch {
	case errors.Is(err, table.ErrStoreFull) || errors.Is(err, table.ErrTooManyRoutes) ||
		errors.Is(err, table.ErrPeersFull) || errors.Is(err, table.ErrTooManyRIBs):
		return c.without(r, s, now, err.Error(), msg)
	case err == nil && bmp.Type(msg) == bmp.TypePeerUp:
		t.settled = false
		if t.learning.sent && t.Resumed(msg) {
			// It is needed to decode what follows, but those who build a table
			// would start over with it.
			t.body = append(append(t.body[:0], msg...), resumed)
			return t.body, true
		}
		if c.o.Table.Diff {
			t.StartOver(msg)
		}
	}
	t.again += t.learning.again
	if t.notes.Silent() || t.learning.ended {
		return nil, false
	}
	t.body = t.notes.Append(append(t.body[:0], msg...))
	return t.body, true
}

// learning is what is found out about a message while its changes are noted.
type learning struct {
	sent  bool   // what was said in sessions before is in Kafka
	again uint64 // routes that are left out
	ended bool   // it is an End-of-RIB that is to be left out
}

// note follows a change that a message makes.
func (t *routes) note(ch *table.Change) {
	l := &t.learning
	if ch.Kind == table.Marker && t.compared && ch.Resumed {
		// Who takes away at the End-of-RIB what a dump did not have would take
		// away what was left out. What has vanished is told otherwise.
		l.ended = true
		return
	}
	known := l.sent && ch.Kind == table.Announced && ch.Same && ch.Before.Stale && ch.Resumed
	if known {
		l.again++
	}
	if ch.Kind == table.Withdrawn && !ch.Found && ch.Dumping {
		// Who was the sender before may have told of it.
		t.notes.AddPlain()
		return
	}
	t.notes.Add(ch, known)
}

// without gives the table up in the course of a session. If routes were left out
// because they were known, and what has vanished was still to be told, that can only
// be made good by all of a dump: the session has to begin again.
func (c *Collector) without(r *router, s *session, now int64, why string, msg []byte) (body []byte, news bool) {
	s.again = r.routes.compared && !r.routes.whole(c.clock.toUnix(now))
	c.giveUp(r, s, why)
	return msg, true
}

// giveUp does without a table of r for the rest of s, nil if it has no session. The
// caller holds the router's lock.
func (c *Collector) giveUp(r *router, s *session, why string) {
	t := &r.routes
	if t.Table == nil {
		return
	}
	r.log.Error("the router's table is given up: it is treated as without one", "reason", why)
	if s != nil && s.relay != nil {
		s.relay.Table(nil)
	}
	c.leave(t.Table)
	*t = routes{off: why, again: t.again}
}

// leave gives a table's memory back in the course of time.
func (c *Collector) leave(t *table.Table) {
	t.Close(0) // empty from now on
	c.left.Lock()
	c.left.tables = append(c.left.tables, t)
	c.left.Unlock()
}

// closeMost is how many routes are released at a time.
const closeMost = 100_000

// releaseLeft goes on with what leave has begun.
func (c *Collector) releaseLeft() {
	c.left.Lock()
	tables := c.left.tables
	c.left.tables = nil
	c.left.Unlock()
	for i, t := range tables {
		if t.Close(closeMost) {
			c.left.Lock()
			c.left.tables = append(c.left.tables, tables[i:]...)
			c.left.Unlock()
			return
		}
	}
}

// makeRoom has the largest table given up when there is hardly room for any.
func (c *Collector) makeRoom() {
	if limit := c.o.Table.Memory; limit == 0 || c.store.InUse() < limit/100*95 {
		return
	}
	c.left.Lock()
	under := len(c.left.tables)
	c.left.Unlock()
	var largest *router
	var most int64
	for _, r := range c.routers.all() {
		r.mu.Lock()
		if t := &r.routes; t.Table != nil {
			if t.hog {
				under++
			}
			if n := t.Bytes(); n > most {
				largest, most = r, n
			}
		}
		r.mu.Unlock()
	}
	if largest == nil || under > 0 { // room is being made
		return
	}
	largest.mu.Lock()
	defer largest.mu.Unlock()
	if largest.session == nil {
		c.giveUp(largest, nil, hogged)
		return
	}
	largest.routes.hog = true // its session will see it
}

const hogged = "it takes the most memory of all, and table_memory is full"

// tidy appends what the table has lost since the last message, in steps between
// which others can have the router's lock, which the caller holds. byMessage is
// set when a message has said so that makes records. It reports false when the
// source was ended.
func (c *Collector) tidy(r *router, s source, id uint32, now int64, byMessage bool) bool {
	t := &r.routes
	for t.Table != nil && c.tidyMore(t, byMessage) {
		for len(t.ready) > 0 {
			if !c.append(r, s, id, hold.Message, now, t.ready[0]) {
				return false // goes on in the next session
			}
			t.ready = t.ready[1:]
		}
		r.mu.Unlock()
		r.mu.Lock()
	}
	return true
}

// tidyMore goes on with what the table has lost and reports whether there was
// anything.
func (c *Collector) tidyMore(t *routes, byMessage bool) bool {
	if len(t.ready) > 0 {
		return true
	}
	if t.Pending() == 0 {
		return false
	}
	if !c.o.Table.RIB && (!c.o.Table.Diff || byMessage) || c.o.NoDecode {
		t.Tidy(tidyStep, nil)
		return true
	}
	put := func() {
		t.ready = append(t.ready, append([]byte{vanished}, t.gone.Bytes()...))
		t.gone.Reset()
	}
	t.Tidy(tidyStep, func(ch *table.Change) {
		if t.gone.Add(ch); t.gone.Len() >= tidyBytes {
			put()
		}
	})
	if t.gone.Routes() > 0 {
		put()
	}
	return true
}

// settle ends dumps of which nothing has come for long. It reports false when the
// session must end, and whether it has to be called again even if nothing comes.
func (c *Collector) settle(r *router, s *session) (unsettled, ok bool) {
	if c.store == nil {
		return false, true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	t := &r.routes
	now := c.clock.now()
	if r.Behind {
		t.behindAt = now
	}
	if t.Table == nil || t.settled {
		return false, true
	}
	if now-t.lookedAt < micros(settleEvery) {
		return true, true
	}
	t.lookedAt = now
	if now-t.behindAt < settleAfter {
		return true, true
	}
	if t.Settle(c.clock.toUnix(now-settleAfter)) && !c.tidy(r, s, s.id, now, false) {
		return true, false
	}
	t.settled = t.whole(c.clock.toUnix(now))
	return t.Table != nil && !t.settled, true
}

// tendTables tells of the routes of routers that are gone for good, as pmacct with
// a table does at the end of a session. It waits until it is certain that no other
// collector hears the router: what has vanished here is then not gone.
func (c *Collector) tendTables(now int64) {
	if c.store == nil {
		return
	}
	c.releaseLeft()
	c.makeRoom()
	if !c.o.Table.RIB {
		return
	}
	wait := 2 * micros(c.o.Expiry)
	if c.o.Table.Diff {
		wait = forgetAfter / 2
	}
	for _, r := range c.routers.all() {
		r.mu.Lock()
		c.expire(r, now, wait)
		r.mu.Unlock()
	}
}

// expire tells of the routes of r if it has gone. Who has sent for it until a moment
// ago may have heard it until then, and may hear it yet.
func (c *Collector) expire(r *router, now, wait int64) {
	t := &r.routes
	closed := r.facts.closedAt
	if t.Table == nil || r.pmacct || r.session != nil || r.newest > r.last || closed == 0 || now-max(closed, r.turned) < wait ||
		r.flushing || r.forgotten || c.closing.Load() || !r.stream.Wanted() {
		return
	}
	if t.Routes()+t.Pending()+len(t.ready) == 0 {
		return
	}
	t.Clear() // again at each turn until Tidy is through
	id := c.nextID.Add(1)
	silent := append(bytes.Clone(r.opened[:]), 1)
	if !c.put(r, hold.Opened, id, now, silent) {
		return
	}
	for range tidyMost {
		if !c.tidyMore(t, false) {
			break
		}
		for len(t.ready) > 0 && c.put(r, hold.Message, id, now, t.ready[0]) {
			t.ready = t.ready[1:]
		}
		if len(t.ready) > 0 {
			break // no room: at the next turn
		}
	}
	c.put(r, hold.Closed, id, now, nil) // has room always
	c.fwd.wake(r)
}

// Tables returns the tables of all routers that have one. Those of routers that
// pmacct makes the records of are among them, if their sessions come through here.
func (c *Collector) Tables() []control.RouterTable {
	var all []control.RouterTable
	for _, r := range c.routers.all() {
		r.mu.Lock()
		if r.routes.Table != nil || r.routes.off != "" {
			t := control.RouterTable{Router: r.identity, Address: r.addr, State: control.SessionDown, Table: r.routes.Table, Off: r.routes.off, Hashes: c.o.Table.Hashes}
			if r.session != nil {
				t.State = control.SessionUp
			}
			all = append(all, t)
		}
		r.mu.Unlock()
	}
	return all
}

// status says what there is.
func (t *routes) status(wall int64) *control.RouterRoutes {
	switch {
	case t.off != "":
		return &control.RouterRoutes{GivenUp: t.off, Repeated: t.again}
	case t.Table == nil:
		return nil
	}
	s := t.Summary()
	return &control.RouterRoutes{Routes: uint64(s.Routes), Stale: uint64(s.Stale), Bytes: uint64(s.Bytes), Repeated: t.again, Settled: t.whole(wall)}
}

// tableStatus fills in what all tables take. The routers are there already.
func (c *Collector) tableStatus(st *control.Status) {
	if c.store == nil {
		return
	}
	t := &control.Tables{
		Kept: control.TablesFull, AttributeSets: uint64(c.store.AttributeSets()),
		Used: uint64(c.store.Bytes()), Limit: uint64(c.o.Table.Memory),
	}
	if c.o.Table.Hashes {
		t.Kept = control.TablesState
	}
	for i := range st.Routers {
		if r := st.Routers[i].Table; r != nil {
			t.Routes += r.Routes
		}
	}
	st.Tables = t
}
