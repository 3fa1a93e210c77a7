package collector

import (
	"errors"
	"strings"
	"time"

	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/gate"
	"github.com/bmpha/bmpha/pkg/hold"
	"github.com/bmpha/bmpha/pkg/spool"
)

// Kinds of entries in the spool, beside those of hold: what a session had said
// before and decoding needs, should another process read the spool.
const (
	preludeOpened = 16 + uint8(hold.Opened)
	preludePeerUp = 16 + uint8(hold.Message)
)

// spoolTurn is how often the spool is looked after. What was appended since the
// last turn may be lost with the process, as may what is in memory.
const spoolTurn = 100 * time.Millisecond

// An overflow is what of a router's log lies on disk, behind what lies in memory.
// The router's lock guards it.
type overflow struct {
	queue     *spool.Queue // nil until there is something
	moved     uint64       // entries read back into memory
	moves     []move       // not yet acknowledged, oldest first
	recovered uint64       // where, in entries of the queue, those of another process end
	open      bool         // a recovered session is open in the log
	told      bool         // what is on disk begins with all that decoding needs
	failing   string

	prelude []byte          // body of the opening of the session
	peerUps map[peer][]byte // the last Peer Up of each peer, if a spool is configured
}

// A move ties a position in the log to entries of the queue.
type move struct{ pos, moved uint64 }

// len returns the entries on disk.
func (o *overflow) len() int64 {
	if o.queue == nil {
		return 0
	}
	return o.queue.Len()
}

// opened follows the beginning of a session.
func (o *overflow) opened() { clear(o.peerUps) }

// note remembers what decoding the session needs.
func (o *overflow) note(msg []byte) {
	if o.peerUps == nil {
		return
	}
	switch bmp.Type(msg) {
	case bmp.TypePeerUp:
		if p, err := bmp.ParsePerPeer(msg); err == nil && len(o.peerUps) < maxPeers {
			o.peerUps[newPeer(&p)] = append([]byte(nil), msg...)
		}
	case bmp.TypePeerDown:
		if p, err := bmp.ParsePerPeer(msg); err == nil {
			delete(o.peerUps, newPeer(&p))
		}
	}
}

// put gives an entry its place behind all that came before: in memory, or on disk
// once memory is full and until what is there has been read back. It reports
// false when it must wait. The caller holds the router's lock.
func (c *Collector) put(r *router, kind hold.Kind, session uint32, at int64, body []byte) bool {
	if c.spool == nil {
		return r.stream.Append(kind, session, at, body)
	}
	if kind == hold.Opened {
		r.spool.prelude = append(r.spool.prelude[:0], body...)
	}
	if r.spool.len() == 0 && r.stream.TryAppend(kind, session, at, body) {
		return true
	}
	if c.toSpool(r, kind, session, at, body) {
		return true
	}
	if r.stream.Needed() {
		return false // the router has to wait
	}
	// A standby makes room at the other end.
	for range 8 {
		if !r.stream.MakeRoom() {
			break
		}
		c.fetch(r)
		if c.toSpool(r, kind, session, at, body) {
			return true
		}
	}
	c.counts.dropped.Add(1)
	c.counts.droppedAt.Store(c.clock.now())
	return true
}

// toSpool puts an entry at the end of the router's queue on disk.
func (c *Collector) toSpool(r *router, kind hold.Kind, session uint32, at int64, body []byte) bool {
	o := &r.spool
	err := func() error {
		if o.queue == nil {
			q, err := c.spool.Queue(r.index)
			if err != nil {
				return err
			}
			o.queue = q
		}
		e := spool.Entry{Session: session, Arrival: c.clock.toRedis(at)}
		if !o.told && kind != hold.Opened && len(o.prelude) > 0 {
			e.Kind, e.Body = preludeOpened, o.prelude
			if err := o.queue.Append(&e); err != nil {
				return err
			}
			for _, up := range o.peerUps {
				e.Kind, e.Body = preludePeerUp, up
				if err := o.queue.Append(&e); err != nil {
					return err
				}
			}
		}
		o.told = true
		e.Kind, e.Body = uint8(kind), body
		return o.queue.Append(&e)
	}()
	if err != nil {
		o.fail(c, r, err)
		return false
	}
	o.failing = ""
	return true
}

func (o *overflow) fail(c *Collector, r *router, err error) {
	if errors.Is(err, spool.ErrFull) {
		return // status says so
	}
	o.failing = err.Error()
	if r.noise.Allow() {
		r.log.Error("spool", "error", err)
	}
}

// fetch reads entries back into memory as far as there is room, and lets the
// spool forget those that were acknowledged. The caller holds the router's lock.
func (c *Collector) fetch(r *router) {
	o := &r.spool
	if o.queue == nil {
		return
	}
	from, to := r.stream.Positions()
	for len(o.moves) > 0 && o.moves[0].pos <= from {
		o.queue.Acked(o.moves[0].moved)
		o.moves = o.moves[1:]
	}
	before := o.moved
	for o.queue.Len() > 0 {
		var e spool.Entry
		ok, err := o.queue.Peek(&e)
		if err != nil {
			o.fail(c, r, err)
		}
		if !ok || !o.accept(c, r, &e) {
			break
		}
		session, at := e.Session, e.Arrival
		o.queue.Next()
		o.moved++
		if o.open && !o.foreign() {
			o.open = false
			r.stream.TryAppend(hold.Closed, session, c.clock.fromRedis(at), nil) // has room always
		}
	}
	if o.queue.Len() == 0 {
		o.told = false
	}
	if o.moved != before {
		if _, to = r.stream.Positions(); len(o.moves) > 0 && o.moves[len(o.moves)-1].pos == to {
			o.moves = o.moves[:len(o.moves)-1]
		}
		o.moves = append(o.moves, move{pos: to, moved: o.moved})
	}
}

// foreign reports whether the next entry of the queue is another process'.
func (o *overflow) foreign() bool { return o.queue.Moved()+o.queue.Lost() < o.recovered }

// accept puts an entry of the queue into the log and reports whether it is done
// with.
func (o *overflow) accept(c *Collector, r *router, e *spool.Entry) bool {
	kind, foreign := hold.Kind(e.Kind), o.foreign()
	switch {
	case e.Kind == preludeOpened || e.Kind == preludePeerUp:
		if !foreign {
			return true // it is in our log already
		}
		kind = hold.Kind(e.Kind - 16)
	case kind > hold.Closed:
		return true // of a later version
	}
	if foreign {
		switch kind {
		case hold.Opened:
			o.open = true
		case hold.Closed:
			o.open = false
		}
	}
	if !r.stream.TryAppend(kind, e.Session, c.clock.fromRedis(e.Arrival), e.Body) {
		return false
	}
	if foreign {
		r.stream.Repeated() // some of it may have been sent
	}
	return true
}

// recover takes over what an earlier process has left on disk.
func (c *Collector) recover() error {
	for _, left := range c.spool.Recovered() {
		index := left.Name
		identity, pmacct := strings.CutPrefix(index, pmacctPrefix)
		r := c.router(identity, parseAddr(identity), pmacct)
		if r == nil {
			return errors.New("the spool holds more routers than listen.max_sessions allows")
		}
		q, err := c.spool.Queue(index)
		if err != nil {
			return err
		}
		r.mu.Lock()
		r.spool.queue, r.spool.recovered = q, uint64(q.Len())+q.Lost()
		r.facts.sessions++ // else it would count as one that nobody has heard
		r.mu.Unlock()
		r.log.Warn("found what an earlier process could not send", "messages", left.Entries, "bytes", left.Bytes)
	}
	return nil
}

// tendSpool flushes what was appended, and reads back what there is room for.
func (c *Collector) tendSpool() {
	for _, r := range c.routers.all() {
		r.mu.Lock()
		if q := r.spool.queue; q != nil {
			if err := q.Flush(); err != nil {
				r.spool.fail(c, r, err)
			}
			c.fetch(r)
			c.fwd.wake(r)
			r.cond.Broadcast()
		}
		r.mu.Unlock()
	}
}

// spooledMark bounds a mark by what is on disk.
func (c *Collector) spooledMark(r *router, m int64) int64 {
	if r.spool.queue == nil || r.stream.State() == gate.Holding && !r.stream.Wanted() {
		return m
	}
	if at, ok := r.spool.queue.Oldest(); ok {
		m = min(m, c.clock.fromRedis(at))
	}
	return m
}
