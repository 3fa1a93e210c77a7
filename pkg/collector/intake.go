package collector

import (
	"context"
	"hash/crc32"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bmpha/bmpha/pkg/gate"
	"github.com/bmpha/bmpha/pkg/hold"
	"github.com/bmpha/bmpha/pkg/intake"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/tail"
)

// pmacctPrefix sets routers whose records pmacct makes apart from those whose
// sessions are decoded here: their logs are different.
const pmacctPrefix = "pmacct/"

// A supply is what pmacct makes: records that come from its producers and files.
type supply struct {
	c      *Collector
	broker *intake.Broker // nil when no producer may connect
	files  *tail.Tail     // nil when no file is followed
	bodies sync.Pool

	mu        sync.Mutex
	producers map[uint64]*producer
	live      int   // producers of live records, not of dumps alone
	lost      int64 // when the last of them went, 0 while there is one or never was
	back      int64 // when there was one again, 0 if there is none or lost is 0
	seen      bool  // there was a producer
	alone     int64 // when one has disconnected last
}

type producer struct {
	live bool // has sent live records
}

func (p *supply) init(c *Collector) {
	p.c = c
	p.producers = make(map[uint64]*producer)
	p.bodies.New = func() any { return new([]byte) }
}

// Connected follows a new producer.
func (p *supply) Connected(q *intake.Producer) {
	p.mu.Lock()
	p.producers[q.ID] = &producer{}
	p.seen = true
	p.mu.Unlock()
	p.c.log.Info("producer connected", "address", q.Addr, "client_id", q.ClientID)
}

// Disconnected follows the end of a producer. Its last records are in the logs.
func (p *supply) Disconnected(q *intake.Producer, err error) {
	p.mu.Lock()
	was := p.producers[q.ID]
	delete(p.producers, q.ID)
	p.alone = p.c.clock.now()
	gone := false
	if was != nil && was.live {
		if p.live--; p.live == 0 {
			if p.lost == 0 {
				p.lost = p.c.clock.now()
			}
			p.back, gone = 0, true
		}
	}
	p.mu.Unlock()
	p.c.log.Info("producer disconnected", "address", q.Addr, "client_id", q.ClientID, "reason", err)
	if gone {
		p.c.co.kick()
	}
}

// Take puts the records of a producer into the logs of their routers.
func (p *supply) Take(ctx context.Context, q *intake.Producer, recs []intake.Record) error {
	live, err := p.take(ctx, recs, "producer/"+q.ClientID)
	p.mu.Lock()
	if pr := p.producers[q.ID]; pr != nil && live && !pr.live {
		pr.live = true
		p.live++
		if p.lost != 0 && p.back == 0 {
			p.back = p.c.clock.now()
		}
	}
	p.mu.Unlock()
	return err
}

// wasLost returns when the last producer went, 0 if there is one. One that is back
// counts as gone for a while: what was lost with it another member may have, and
// takes over for that. Our marks must not pass it before. The caller holds p.mu.
func (p *supply) wasLost(now int64) int64 {
	o := &p.c.o
	if p.back != 0 && now-p.back > micros(2*o.Heartbeat+2*o.Expiry) {
		p.lost, p.back = 0, 0
	}
	return p.lost
}

// Lines puts the lines of a followed file into the logs of their routers.
func (p *supply) Lines(ctx context.Context, file string, lines [][]byte) error {
	now := time.Now().UnixMilli()
	recs := make([]intake.Record, len(lines))
	for i, line := range lines {
		addr, _, ok := intake.Identify(line)
		if !ok {
			addr = netip.IPv4Unspecified()
		}
		recs[i] = intake.Record{
			Topic: []byte(p.c.o.Topic(addr, 0)), Key: p.c.o.Key(addr, 0), Value: line, Timestamp: now,
		}
		recs[i].KeyNull = len(recs[i].Key) == 0
	}
	_, err := p.take(ctx, recs, "file/"+file)
	return err
}

// A feed is a run of records whose producer waits until they are in the logs.
type feed struct{ ctx context.Context }

func (f *feed) ended() bool { return f.ctx.Err() != nil }

// take reports whether any of the records was live, not of a dump.
func (p *supply) take(ctx context.Context, recs []intake.Record, from string) (live bool, err error) {
	body := p.bodies.Get().(*[]byte)
	defer p.bodies.Put(body)
	f := &feed{ctx}
	now := p.c.clock.now()
	var r *router
	var of netip.Addr // r is this router's
	defer func() {
		if r != nil {
			p.release(r, now)
		}
	}()
	for i := range recs {
		rec := &recs[i]
		addr, kind, ok := intake.Identify(rec.Value)
		live = live || kind != intake.Dump
		if r == nil || !ok || addr != of {
			if r != nil {
				p.release(r, now)
			}
			if r, err = p.lock(rec, addr, ok, from); err != nil {
				return live, err
			}
			of = netip.Addr{}
			if ok {
				of = addr
			}
		}
		*body = intake.AppendEntry((*body)[:0], rec)
		if !p.c.takeRecord(r, f, kind, now, *body) {
			return live, context.Cause(ctx)
		}
	}
	return live, nil
}

// lock finds the router that a record is of, by what it says, else by its key,
// else by where it comes from, and locks it.
func (p *supply) lock(rec *intake.Record, addr netip.Addr, ok bool, from string) (*router, error) {
	for {
		var r *router
		switch {
		case ok:
			r = p.c.pmacctRouter(addr)
		case !rec.KeyNull && len(rec.Key) > 0 && len(rec.Key) <= maxName:
			r = p.c.router("key/"+printable(rec.Key), netip.Addr{}, true)
		}
		if r == nil { // also when there are too many routers
			r = p.c.router(from, netip.Addr{}, true)
		}
		if r == nil {
			return nil, errTooManyRouters
		}
		r.mu.Lock()
		if !r.forgotten {
			return r, nil
		}
		r.mu.Unlock()
	}
}

// release ends what take does with a router.
func (p *supply) release(r *router, now int64) {
	r.facts.lastHeard = now
	r.course.Take(now, false)
	p.c.fwd.wake(r)
	heard := r.heard != r.told
	r.told = r.heard
	r.mu.Unlock()
	if heard {
		p.c.co.kick()
	}
}

// takeRecord puts one record into the log of r, whose lock is held.
func (c *Collector) takeRecord(r *router, f *feed, kind intake.Kind, now int64, body []byte) bool {
	if !r.heard && (kind != intake.Dump && kind != intake.Closed || r.feed == 0) {
		r.heard = true
		r.course.Begin(now)
		r.feed = c.nextID.Add(1)
		r.facts.runs++
		if r.CaughtUp == 0 { // else attend knows better
			r.CaughtUp = now
		}
		opened := openedBody(netip.AddrPortFrom(r.addr, 0))
		if !c.append(r, f, r.feed, hold.Opened, now, opened[:]) {
			r.heard = false
			return false
		}
	}
	if !c.append(r, f, r.feed, hold.Message, now, body) {
		return false
	}
	r.facts.messages++
	r.facts.bytes += uint64(len(body))
	if kind == intake.Closed && r.heard {
		if !c.append(r, f, r.feed, hold.Closed, now, nil) {
			return false
		}
		c.unheard(r, now)
	}
	return true
}

// unheard follows the end of what pmacct hears of r, whose lock is held and which
// has it in its log.
func (c *Collector) unheard(r *router, now int64) {
	r.heard = false
	r.course.End()
	r.facts.closedAt = now
	r.cond.Broadcast()
}

// attend follows what the other side of pmacct does: a mark must not pass what
// pmacct has been given and has not brought back, nor what was lost with it.
func (p *supply) attend(now int64) {
	p.mu.Lock()
	lost, back := p.wasLost(now), p.back
	p.mu.Unlock()
	routers := p.c.routers.all()
	// The session of a router is another router's in the table if it is decoded, too.
	waiting := make(map[netip.Addr]bool)
	heard := make(map[netip.Addr]int64)
	for _, r := range routers {
		r.mu.Lock()
		if s := r.session; !r.pmacct && s != nil && s.relay != nil {
			if !s.relay.Drained() {
				waiting[s.addr.Addr()] = true
			}
			heard[s.addr.Addr()] = r.Heard
		}
		r.mu.Unlock()
	}
	unread := false
	if p.files != nil {
		for _, f := range p.files.Status() {
			unread = unread || f.Behind > 0 && f.Error == ""
		}
	}
	for _, r := range routers {
		r.mu.Lock()
		if r.pmacct {
			if at := heard[r.addr]; at != 0 {
				r.sign(&p.c.o, at)
			}
			drained := true
			if s := r.session; s != nil && s.relay != nil {
				drained = s.relay.Drained()
				if _, silence, ok := received(s.conn); ok && s.silent > 0 {
					r.sign(&p.c.o, now-micros(silence))
				}
			}
			r.Behind = !drained || lost != 0 || unread || waiting[r.addr] || r.waits > 0
			if !r.Behind {
				r.CaughtUp = now
			}
			if r.heard && lost != 0 && back == 0 && now-lost > micros(p.c.o.IntakePatience) &&
				p.c.put(r, hold.Closed, r.feed, now, nil) { // else at the next turn
				p.c.unheard(r, now)
			}
		}
		r.mu.Unlock()
	}
}

// producerWait is how long pmacct gets nothing while its producer has not connected:
// a table that is made into records meanwhile would fill its queue, and it throws
// away a queue that is full. librdkafka takes 10 s at most to connect again. One
// that connects only when there is something to send gets it then.
const producerWait = int64(15 * time.Second / time.Microsecond)

// awaited reports whether pmacct is to get nothing yet.
func (p *supply) awaited(now int64) bool {
	if p.broker == nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.producers) == 0 && now-max(p.alone, p.c.clock.first()) < producerWait
}

// unfit says why what pmacct makes does not reach us, "" if it does.
func (p *supply) unfit(now int64) string {
	if p.broker == nil {
		return ""
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.wasLost(now) != 0:
		return "pmacct's producer is gone"
	case !p.seen && now-p.c.clock.first() > micros(p.c.o.IntakePatience):
		return "no producer of pmacct has connected"
	}
	return ""
}

// maxCheckpoints bounds those that wait.
const maxCheckpoints = 256

// checkpoints remembers how far files were read as soon as nothing of what was
// read before waits any more. It runs until ctx ends.
func (p *supply) checkpoints(ctx context.Context) {
	type checkpoint struct {
		at    int64
		where tail.Checkpoint
	}
	var list []checkpoint
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		// What the checkpoint counts was appended before now.
		where := p.files.Checkpoint()
		if len(list) == maxCheckpoints { // Kafka has been away for long
			for i := range list[:len(list)/2] {
				list[i] = list[2*i+1]
			}
			list = slices.Delete(list, len(list)/2, len(list))
		}
		list = append(list, checkpoint{p.c.clock.now(), where})
		oldest := p.oldest()
		n := 0
		for n < len(list) && list[n].at < oldest {
			n++
		}
		if n == 0 {
			continue
		}
		if err := p.files.Save(list[n-1].where); err != nil {
			p.c.co.warn("remember how far files were read", "error", err)
			continue
		}
		list = list[n:]
	}
}

// oldest returns the arrival of the oldest record in any log.
func (p *supply) oldest() int64 {
	oldest := p.c.clock.now() + 1
	for _, r := range p.c.routers.all() {
		r.mu.Lock()
		if n, _, at := r.stream.Held(); r.pmacct && n > 0 {
			oldest = min(oldest, at)
		}
		if r.spool.len() > 0 {
			if at, ok := r.spool.queue.Oldest(); ok {
				oldest = min(oldest, p.c.clock.fromRedis(at))
			}
		}
		r.mu.Unlock()
	}
	return oldest
}

// pmacctRouter returns the router of an address without allocating.
func (c *Collector) pmacctRouter(addr netip.Addr) *router {
	c.routers.mu.RLock()
	r := c.routers.byAddr[addr]
	c.routers.mu.RUnlock()
	if r != nil {
		return r
	}
	identity, _ := c.identify(addr, "")
	if r = c.router(identity, addr, true); r != nil {
		c.routers.mu.Lock()
		c.routers.byAddr[addr] = r
		c.routers.mu.Unlock()
	}
	return r
}

func parseAddr(s string) netip.Addr {
	addr, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}
	}
	return addr
}

// An opaque codec passes records as they came. It may be copied: it has no state.
type opaque struct {
	c     *Collector
	route uint32
}

// opaqueCodec begins the records of r, which go to the partition of its address,
// as the key that pmacct and we use by default would have it.
func (c *Collector) opaqueCodec(r *router) gate.Codec {
	o := &c.o
	name := strings.TrimPrefix(r.index, pmacctPrefix)
	if r.addr.IsValid() {
		name = o.Route(r.addr)
	}
	return opaque{c: c, route: crc32.ChecksumIEEE([]byte(name))}
}

func (o opaque) Open(*record.Batch, *record.Origin, int64)  {}
func (o opaque) Close(*record.Batch, *record.Origin, int64) {}
func (o opaque) Observe([]byte)                             {}
func (o opaque) Clone() gate.Codec                          { return o }

func (o opaque) Message(b *record.Batch, origin *record.Origin, _ int64, body []byte) error {
	e, err := intake.ParseEntry(body)
	if err != nil {
		return err
	}
	topic, err := o.c.topic(e.Topic)
	if err != nil {
		return err
	}
	r := record.Rec{Topic: topic, Timestamp: max(0, e.Timestamp)}
	if in := o.c.o.Intake; in != nil && in.Partitions > 1 {
		r.Flags |= record.RecPartition
		r.Partition = e.Partition
	} else {
		r.Flags |= record.RecRouted
		r.Route = o.route
	}
	put := func(p []byte) (off, n uint32) {
		off = uint32(len(b.Data))
		b.Data = append(b.Data, p...)
		return off, uint32(len(p))
	}
	r.KeyOff, r.KeyLen = put(e.Key)
	if !e.KeyNull && len(e.Key) == 0 {
		r.Flags |= record.RecEmptyKey
	}
	r.MoreOff, r.MoreLen = put(e.Headers)
	r.ValueOff, r.ValueLen = put(e.Value)
	if e.ValueNull {
		r.Flags |= record.RecNullValue
	}
	if o.c.o.Header {
		r.HeaderOff = uint32(len(b.Data))
		if key, value, ok := intake.Hashes(e.Value); ok && !e.ValueNull {
			b.Data = record.AppendStateHeader(b.Data, origin, 0, key, value)
		} else {
			b.Data = record.AppendHeader(b.Data, origin, 0)
		}
		r.HeaderLen = uint32(len(b.Data)) - r.HeaderOff
	}
	b.Recs = append(b.Recs, r)
	return nil
}

// topic returns the sink's handle of a topic without allocating for a known one.
func (c *Collector) topic(name []byte) (uint32, error) {
	c.topics.mu.RLock()
	h, ok := c.topics.handles[string(name)]
	c.topics.mu.RUnlock()
	if ok {
		return h, nil
	}
	h, err := c.join.topicOf(string(name))
	if err == nil {
		c.topics.mu.Lock()
		c.topics.handles[string(name)] = h
		c.topics.mu.Unlock()
	}
	return h, err
}
