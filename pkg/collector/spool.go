package collector

import (
	"errors"
	"fmt"
	"net/netip"
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

const (
	// preludeEvery is how many bytes on disk follow what decoding needs before it
	// is said again. A process that takes over begins at the last that is needed:
	// as much may be sent again.
	preludeEvery = 64 << 10
	// maxPrelude bounds the Peer Ups of a router that are remembered, in bytes.
	maxPrelude = 16 << 20
	// fetchMost is how many bytes are read back while the router's lock is held.
	fetchMost = 4 << 20
)

// An overflow is what of a router's log lies on disk, behind what lies in memory.
// The router's lock guards it.
type overflow struct {
	queue     *spool.Queue // nil until there is something
	moved     uint64       // entries read back into memory
	moves     []move       // not yet acknowledged, oldest first
	acked     uint64       // entries read back that are acknowledged
	starts    []uint64     // entries read back from which decoding can begin, oldest first
	recovered uint64       // where, in entries of the queue, those of another process end
	open      bool         // a recovered session is open in the log
	session   uint32       // which
	number    uint32       // ours of that session
	again     bool         // a prelude of it is being passed over
	told      bool         // what is on disk has lately said all that decoding needs
	since     int          // bytes after that
	failing   string

	prelude []byte          // body of the opening of the session
	peerUps map[peer][]byte // the last Peer Up of each peer, if a spool is configured
	upBytes int             // of those
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
func (o *overflow) opened() {
	clear(o.peerUps)
	o.upBytes = 0
}

// note remembers what decoding the session needs.
func (o *overflow) note(msg []byte) {
	if o.peerUps == nil {
		return
	}
	switch bmp.Type(msg) {
	case bmp.TypePeerUp:
		if p, err := bmp.ParsePerPeer(msg); err == nil {
			o.forgetPeer(newPeer(&p))
			if len(o.peerUps) < maxPeers && o.upBytes+len(msg) <= maxPrelude {
				o.peerUps[newPeer(&p)] = append([]byte(nil), msg...)
				o.upBytes += len(msg)
			}
		}
	case bmp.TypePeerDown:
		if p, err := bmp.ParsePerPeer(msg); err == nil {
			o.forgetPeer(newPeer(&p))
		}
	}
}

func (o *overflow) forgetPeer(p peer) {
	o.upBytes -= len(o.peerUps[p])
	delete(o.peerUps, p)
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
	// A standby makes room at the other end. What it has in memory it does not keep
	// on disk as well, for only whole segments give room.
	for r.stream.MakeRoom() {
		before := r.spool.moved
		for c.fetch(r) {
		}
		if r.spool.moved == before && r.spool.len() > 0 {
			break // the disk fails
		}
		r.spool.release(r.spool.moved)
		if r.spool.len() == 0 && r.stream.TryAppend(kind, session, at, body) ||
			c.toSpool(r, kind, session, at, body) {
			return true
		}
	}
	if kind != hold.Message {
		return false // what follows would not be understood
	}
	c.counts.dropped.Add(1)
	c.counts.droppedAt.Store(c.clock.now())
	r.stream.Lost()
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
			// It may have been that of a router since forgotten.
			o.queue, o.moved, o.acked = q, q.Moved(), q.Moved()
		}
		e := spool.Entry{Session: session, Arrival: c.clock.toRedis(at)}
		if !r.pmacct && o.since > max(preludeEvery, 16*(len(o.prelude)+o.upBytes)) {
			o.told = false
		}
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
		if !o.told || kind == hold.Opened {
			o.told, o.since = true, 0
		}
		e.Kind, e.Body = uint8(kind), body
		o.since += len(body)
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
// spool forget those that were acknowledged. It reports whether it should be
// called again: it does a part of the work only, because the caller holds the
// router's lock.
func (c *Collector) fetch(r *router) (more bool) {
	o := &r.spool
	if o.queue == nil {
		return false
	}
	from, _ := r.stream.Positions()
	acked := o.acked
	for len(o.moves) > 0 && o.moves[0].pos <= from {
		acked = o.moves[0].moved
		o.moves = o.moves[1:]
	}
	o.release(acked)
	before, bytes := o.moved, 0
	for !more {
		var e spool.Entry
		lost := o.queue.Lost()
		ok, err := o.queue.Peek(&e)
		if o.queue.Lost() != lost {
			r.stream.Lost()
		}
		if err != nil {
			o.fail(c, r, err)
		}
		o.closeForeign(r)
		if !ok || !o.accept(c, r, &e) {
			break
		}
		if !r.pmacct && (e.Kind == preludeOpened || e.Kind == uint8(hold.Opened)) {
			o.starts = append(o.starts, o.moved)
		}
		bytes += len(e.Body)
		o.queue.Next()
		o.moved++
		more = bytes >= fetchMost
	}
	if o.queue.Len() == 0 {
		o.closeForeign(r)
		o.told = false
	}
	if o.moved != before {
		_, to := r.stream.Positions()
		if len(o.moves) > 0 && o.moves[len(o.moves)-1].pos == to {
			o.moves = o.moves[:len(o.moves)-1]
		}
		o.moves = append(o.moves, move{pos: to, moved: o.moved})
	}
	return more
}

// release tells the spool that of the entries read back the first acked need not
// come back, except those without which another process could not decode the rest.
func (o *overflow) release(acked uint64) {
	if o.queue == nil {
		return
	}
	o.acked = acked
	for len(o.moves) > 0 && o.moves[0].moved <= acked {
		o.moves = o.moves[1:]
	}
	for len(o.starts) > 1 && o.starts[1] <= acked {
		o.starts = o.starts[1:]
	}
	switch {
	case o.queue.Len() == 0 && acked == o.moved:
		o.starts = o.starts[:0]
	case len(o.starts) > 0:
		acked = min(acked, o.starts[0])
	}
	o.queue.Acked(acked)
}

// closeForeign ends a recovered session behind its last entry.
func (o *overflow) closeForeign(r *router) {
	if o.open && !o.foreign() {
		o.open = false
		r.stream.TryAppend(hold.Closed, o.number, 0, nil) // has room always
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
		if e.Kind == preludeOpened {
			o.again = !foreign || o.open && o.session == e.Session
		}
		if o.again {
			return true // it is in our log already
		}
		kind = hold.Kind(e.Kind - 16)
	case kind > hold.Closed:
		return true // of a later version
	}
	at := min(c.clock.fromRedis(e.Arrival), c.clock.now()) // Redis' clock may have changed
	if foreign && kind == hold.Message && !o.open {
		// What opened the session is acknowledged. pmacct's records need no more.
		if !r.pmacct {
			c.counts.dropped.Add(1)
			c.counts.droppedAt.Store(c.clock.now())
			if r.noise.Allow() {
				r.log.Error("spool: a message without what is needed to decode it is dropped", "session", e.Session)
			}
			return true
		}
		body := openedBody(netip.AddrPortFrom(r.addr, 0))
		number := c.nextID.Add(1)
		if !r.stream.TryAppend(hold.Opened, number, at, body[:]) {
			return false
		}
		o.open, o.session, o.number = true, e.Session, number
	}
	session := e.Session
	if foreign { // its numbers are another process', and ours mean others
		session = o.number
		if kind == hold.Opened {
			session = c.nextID.Add(1)
		}
	}
	if !r.stream.TryAppend(kind, session, at, e.Body) {
		return false
	}
	if foreign {
		switch kind {
		case hold.Opened:
			o.open, o.session, o.number = true, e.Session, session
		case hold.Closed:
			o.open = false
		}
		r.stream.Repeated() // some of it may have been sent
	}
	return true
}

// recover takes over what an earlier process has left on disk.
func (c *Collector) recover() error {
	for _, left := range c.spool.Recovered() {
		index := left.Name
		identity, pmacct := strings.CutPrefix(index, pmacctPrefix)
		r := c.router(identity, c.addressOf(identity), pmacct)
		if r == nil { // its limit counts these
			return fmt.Errorf("no place for router %s", identity)
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

// addressOf returns the address of a router from its identity, invalid if that
// does not tell. Of several with one alias it is the least.
func (c *Collector) addressOf(identity string) netip.Addr {
	addr := parseAddr(identity)
	for a, alias := range c.o.Alias {
		if alias == identity && (!addr.IsValid() || a.Less(addr)) {
			addr = a
		}
	}
	return addr
}

// tendSpool flushes what was appended, and reads back what there is room for.
func (c *Collector) tendSpool() {
	for _, r := range c.routers.all() {
		r.mu.Lock()
		if q := r.spool.queue; q != nil {
			if err := q.Flush(); err != nil {
				r.spool.fail(c, r, err)
			}
			for c.fetch(r) {
				c.fwd.wake(r)
				r.mu.Unlock() // others are to have their turn
				r.mu.Lock()
			}
			c.fwd.wake(r)
			r.cond.Broadcast()
		}
		r.mu.Unlock()
	}
}

// spooledMark bounds a mark by what is on disk. It reports false if that cannot be
// read: then there is no mark.
func (c *Collector) spooledMark(r *router, m int64) (int64, bool) {
	if r.spool.len() == 0 || r.stream.State() == gate.Holding && !r.stream.Wanted() {
		return m, true
	}
	at, ok := r.spool.queue.Oldest()
	if !ok {
		return m, r.spool.len() == 0 // all that was left could not be read back
	}
	return min(m, c.clock.fromRedis(at)), true
}
