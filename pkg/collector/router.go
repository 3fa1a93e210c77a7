package collector

import (
	"encoding/binary"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/gate"
	"github.com/bmpha/bmpha/pkg/hold"
	"github.com/bmpha/bmpha/pkg/pmacct"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/seam"
	"github.com/bmpha/bmpha/pkg/table"
)

// forgetAfter is how long, in µs, a router without a session and with an empty
// log is remembered.
const forgetAfter = int64(10 * time.Minute / time.Microsecond)

// A router is one BMP speaker, with its log and gate.
type router struct {
	id       uint32
	index    string // in the table: identity, or pmacct/identity
	identity string
	addr     netip.Addr // invalid if not known
	pmacct   bool       // pmacct makes its records; a session of ours is passed on only
	log      *slog.Logger
	noise    *rate.Limiter // for log lines that the network causes

	mu     sync.Mutex
	cond   *sync.Cond // whatever of the below changes
	stream *gate.Stream
	held   *hold.Log

	key       string   // names it to other members: identity, and sysName if that tells more
	session   *session // open, or nil
	newest    uint32   // id of the newest session that wanted to be this router's
	last      uint32   // id of the last session that ended
	displaced int      // sessions lately pushed out by newer ones
	forgotten bool     // no longer in the table
	facts     facts

	heard   bool   // pmacct hears it
	told    bool   // what the election was last told of heard
	feed    uint32 // id of the run of records that began when it was heard
	restart bool   // its last session ended so that it starts over for a relay target
	spool   overflow
	routes  routes
	opened  [openedLen]byte // body of the last Opened entry
	dumped  dumped

	course gate.Course
	keeps  bool  // as of election.Duty
	lags   bool  // likewise
	turned int64 // when it was last told to send, or not to

	passage *passage // until something of it is acknowledged, see history.go
	passing bool     // it waits to be let go on
	gate.Vouch
	exact bool // look knows

	// Handing over, see forward.go.
	out      *record.Batch // encoded and not yet taken by the sink
	outFrom  int
	outPos   uint64
	inFlight uint64
	backoff  time.Duration
	queued   bool // owned by the run queue's lock

	expected bool       // another sends, and we are to go on behind it
	own      *seam.Own  // what the log holds, while that is compared with Kafka
	from     netip.Addr // of its newest session

	waits    int    // goroutines that wait for room in the log: 0 or 1
	flushing bool   // nobody else hears it: send what it said before we leave
	restTill int64  // after a failure nothing is tried before
	sender   string // who is to send for this router, by the last round
	lowWater int64  // of that sender, Redis' clock; -1 if it gives none
}

// facts are what status says of a router.
type facts struct {
	sysName, sysDescr string
	sessions          uint64
	runs              uint64 // of records that pmacct made
	opaque            bool   // the session is not BMP
	messages, bytes   uint64
	lastHeard         int64
	closedAt          int64
	peers             map[peer]struct{}
	lastError         string
	waited            uint64 // times the router was made to wait because memory was full
}

type peer struct {
	distinguisher [8]byte
	address       [16]byte
	bgpID         [4]byte
	kind          byte
	rib           bmp.RIB
}

func newPeer(p *bmp.PerPeer) peer {
	return peer{p.Distinguisher, p.RawAddress, p.BGPID, p.Type, p.RIB()}
}

// hears reports whether what the router says comes in here.
func (r *router) hears() bool {
	if r.pmacct {
		return r.heard
	}
	return r.session != nil
}

// atRest reports whether nothing of the router is under way to the sink.
func (r *router) atRest() bool { return !r.sends() }

// sends reports whether records of the router may be handed over or be under way.
func (r *router) sends() bool {
	return r.stream.Wanted() || r.stream.State() != gate.Holding || r.dumped.running
}

// empty reports whether all that the router said is acknowledged.
func (r *router) empty() bool {
	n, _, _ := r.stream.Held()
	return n == 0 && r.stream.Outstanding() == 0 && r.spool.len() == 0
}

// mark returns the router's low-water mark: everything that had come before is in
// Kafka. What still waits in the socket has come, but is not in the log.
func (r *router) mark(c *Collector, now int64) (int64, bool) {
	r.look(&c.o, now)
	m, ok := r.stream.Mark(now)
	if ok {
		m, ok = c.spooledMark(r, m)
	}
	switch {
	case !ok:
	case r.stream.Wanted():
		from, _ := r.stream.Positions()
		m, ok = r.Bound(now, m, from, r.course.Whole(now, r.Behind))
	default:
		m, ok = r.StoppedAt(m)
	}
	return m, ok
}

// look finds out whether something has come that is not in the log, and when the
// router's host was last heard. now is a time at which that is not yet looked at.
func (r *router) look(o *Options, now int64) {
	if r.session == nil || r.pmacct {
		return
	}
	n, silence, ok := received(r.session.conn)
	if !ok {
		return
	}
	r.exact = true
	if r.session.silent > 0 {
		r.sign(o, now-micros(silence))
	}
	if r.Behind = n > r.session.taken; !r.Behind {
		r.CaughtUp = now
	}
}

// sign follows that the router's host gave a sign of life at that time. It is asked for
// one in the rhythm of probe, and its session ends after ten without one.
func (r *router) sign(o *Options, at int64) {
	every := micros(o.probe())
	r.Hear(at, every, 10*every)
}

// lag returns by how many µs the reading of the router is behind, 0 if all that has
// come was taken, and its host answers.
func (r *router) lag(now int64) int64 {
	if s := r.session; s != nil && r.Heard != 0 && s.silent > 0 && now-r.Heard > s.silent {
		return now - r.Heard
	}
	if !r.Behind || r.session == nil || r.waits > 0 {
		return 0 // or there is no room for it, which another need not have either
	}
	return max(1, now-r.CaughtUp)
}

// note follows a message for what status shows. The Peer Ups of a table dump and
// of a flap leave the right number of peers.
func (f *facts) note(msg []byte) {
	switch bmp.Type(msg) {
	case bmp.TypeInitiation:
		f.sysName, f.sysDescr = initiation(msg)
	case bmp.TypePeerUp:
		if p, err := bmp.ParsePerPeer(msg); err == nil && len(f.peers) < maxPeers {
			f.peers[newPeer(&p)] = struct{}{}
		}
	case bmp.TypePeerDown:
		if p, err := bmp.ParsePerPeer(msg); err == nil {
			delete(f.peers, newPeer(&p))
		}
	}
}

// maxPeers bounds what one router can make us remember for status.
const maxPeers = 100_000

func initiation(msg []byte) (sysName, sysDescr string) {
	tlvs := bmp.ParseInitiation(msg)
	for tlvs.Next() {
		switch t := tlvs.TLV(); t.Type {
		case bmp.InitSysName:
			sysName = printable(t.Value)
		case bmp.InitSysDescr:
			sysDescr = printable(t.Value)
		}
	}
	return sysName, sysDescr
}

// printable makes what a router says safe for terminals, logs and keys.
func printable(b []byte) string {
	s := strings.ToValidUTF8(string(b[:min(len(b), 255)]), "?")
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}

// routers is the table of all routers that were heard.
type routers struct {
	mu      sync.RWMutex
	byIndex map[string]*router
	byAddr  map[netip.Addr]*router // those whose records pmacct makes
	byID    map[uint32]*router
	list    []*router // in the order of identities; replaced, never changed
	nextID  uint32
	freeIDs []uint32 // of routers forgotten: the sink keeps something for each id
}

func (t *routers) init() {
	t.byIndex = make(map[string]*router)
	t.byAddr = make(map[netip.Addr]*router)
	t.byID = make(map[uint32]*router)
}

func (t *routers) get(id uint32) *router {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byID[id]
}

// all returns the routers in the order of their identities. It must not be
// changed.
func (t *routers) all() []*router {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.list
}

// relist follows a change of the table. The caller holds mu.
func (t *routers) relist() {
	t.list = slices.SortedFunc(maps.Values(t.byID), func(a, b *router) int {
		return strings.Compare(a.identity, b.identity)
	})
}

// identify names the router that a session comes from: by alias, by sysName if
// so configured, else by its address. Two routers that share an address and have
// different names are two. key is what collectors call it among themselves: with
// the name, so that they agree whatever came first.
func (c *Collector) identify(addr netip.Addr, sysName string) (identity, key string) {
	if alias, ok := c.o.Alias[addr]; ok {
		return alias, alias
	}
	sysName = strings.ToValidUTF8(sysName[:min(len(sysName), maxName)], "")
	if c.o.BySysName && sysName != "" {
		return sysName, sysName
	}
	identity = addr.String()
	if sysName == "" {
		return identity, identity
	}
	key = identity + "/" + sysName
	c.routers.mu.RLock()
	first := c.routers.byIndex[index(identity, c.o.NoDecode)]
	c.routers.mu.RUnlock()
	if first == nil {
		return identity, key
	}
	first.mu.Lock()
	defer first.mu.Unlock()
	if name := first.facts.sysName; first.session != nil && name != "" && name != sysName {
		c.co.warn("two routers share an address: 'identity: sysname' in the configuration tells them apart",
			"address", addr, "sysname", sysName, "other", name)
		return key, key
	}
	return identity, key
}

// maxName bounds the part of a sysName, in bytes, that identifies a router.
const maxName = 64

// index names a router in the table, and in the spool.
func index(identity string, pmacct bool) string {
	if pmacct {
		return pmacctPrefix + identity
	}
	return identity
}

// router returns the router of an identity, making it when it is new. It returns
// nil when there are too many. The same router is two, if pmacct makes records of
// it and so do we.
func (c *Collector) router(identity string, addr netip.Addr, pmacct bool) *router {
	t := &c.routers
	index := index(identity, pmacct)
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.byIndex[index]; r != nil {
		return r
	}
	most := 4 * c.o.MaxSessions
	if c.spool != nil {
		most += len(c.spool.Recovered()) // what an earlier process has taken is taken
	}
	if len(t.byID) >= most && !c.evict() {
		return nil
	}
	var id uint32
	if n := len(t.freeIDs); n > 0 {
		id, t.freeIDs = t.freeIDs[n-1], t.freeIDs[:n-1]
	} else {
		t.nextID++
		id = t.nextID
	}
	r := &router{
		id: id, index: index, identity: identity, addr: addr, pmacct: pmacct,
		log:   c.log.With("router", identity),
		noise: rate.NewLimiter(rate.Every(10*time.Second), 5),
		facts: facts{peers: make(map[peer]struct{})},
		held:  hold.NewLog(c.budget),
	}
	r.key = index
	r.routes.Table = c.newTable()
	if c.spool != nil {
		r.spool.peerUps = make(map[peer][]byte)
	}
	r.cond = sync.NewCond(&r.mu)
	r.stream = gate.New(gate.Config{
		ID: r.id, Instance: c.instance, Await: c.join.reader != nil, Beside: micros(c.o.Window), Identify: c.join.identify(r),
		Open:    func(session uint32, body []byte) gate.Codec { return c.codec(r, body) },
		OnError: func(session uint32, err error) { c.undecodable(r, session, err) },
	}, r.held)
	r.stream.SetCovered(false) // until the election has spoken
	t.byIndex[index], t.byID[r.id] = r, r
	t.relist()
	return r
}

// forget drops routers that have not been heard for long.
func (c *Collector) forget(now int64) {
	for _, r := range c.routers.all() {
		r.mu.Lock()
		idle := r.idleSince()
		r.mu.Unlock()
		if idle == 0 || now-idle < forgetAfter {
			continue
		}
		c.routers.mu.Lock()
		c.drop(r)
		c.routers.mu.Unlock()
	}
}

// evict makes room for another router by dropping the one that has been idle for
// the longest time. The caller holds the table's lock.
func (c *Collector) evict() bool {
	var oldest *router
	var since int64
	for _, r := range c.routers.list {
		r.mu.Lock()
		if idle := r.idleSince(); idle > 0 && (oldest == nil || idle < since) {
			oldest, since = r, idle
		}
		r.mu.Unlock()
	}
	return oldest != nil && c.drop(oldest)
}

// idleSince returns since when the router has no session and nothing in its log,
// 0 if it has.
func (r *router) idleSince() int64 {
	if r.session != nil || r.heard || !r.empty() || r.facts.sessions+r.facts.runs == 0 || r.newest > r.last {
		return 0
	}
	return max(r.facts.closedAt, r.facts.lastHeard)
}

// drop removes an idle router from the table, whose lock the caller holds.
func (c *Collector) drop(r *router) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.forgotten || r.idleSince() == 0 {
		return false
	}
	t := &c.routers
	delete(t.byIndex, r.index)
	// An alias may stand for several addresses.
	maps.DeleteFunc(t.byAddr, func(_ netip.Addr, other *router) bool { return other == r })
	delete(t.byID, r.id)
	t.freeIDs = append(t.freeIDs, r.id)
	t.relist()
	n := r.stream.Counters()
	c.counts.dropped.Add(n.Dropped)
	c.counts.replayed.Add(n.Replayed)
	r.forgotten = true
	r.held.Close()
	if r.routes.Table != nil {
		c.leave(r.routes.Table)
	}
	return true
}

// undecodable logs what of a message could not be decoded; the gate counts it.
func (c *Collector) undecodable(r *router, session uint32, err error) {
	if r.noise.Allow() {
		r.log.Warn("message not fully decoded", "session", session, "error", err)
	}
}

// codec adapts the encoder to the gate.
type codec struct {
	*pmacct.Session
	silent bool // there is no such session: it is for routes that vanished after the last
}

func (c codec) Clone() gate.Codec { return codec{c.Session.Clone(), c.silent} }

func (c codec) Open(b *record.Batch, o *record.Origin, at int64) {
	if !c.silent {
		c.Session.Open(b, o, at)
	}
}

func (c codec) Message(b *record.Batch, o *record.Origin, at int64, body []byte) error {
	if len(body) > 0 && body[0] == vanished {
		return c.Gone(b, o, at, body[1:])
	}
	msg, notes := table.SplitNotes(body)
	if len(notes) > 0 && bmp.Type(msg) == bmp.TypePeerUp {
		c.Session.Observe(msg)
		return nil
	}
	return c.Noted(b, o, at, msg, notes)
}

func (c codec) Close(b *record.Batch, o *record.Origin, at int64) {
	if !c.silent {
		c.Session.Close(b, o, at)
	}
}

func (c codec) Observe(body []byte) {
	if len(body) > 0 && body[0] == vanished {
		return
	}
	msg, _ := table.SplitNotes(body)
	c.Session.Observe(msg)
}

// The body of an Opened entry: address (16 bytes), port (2), and one more byte if
// it is not of a session, but of what is said in place of one.
const openedLen = 18

func openedBody(addr netip.AddrPort) [openedLen]byte {
	var b [openedLen]byte
	a := addr.Addr().As16()
	copy(b[:], a[:])
	binary.BigEndian.PutUint16(b[16:], addr.Port())
	return b
}

// codec begins a session from the body of its Opened entry.
func (c *Collector) codec(r *router, body []byte) gate.Codec {
	if r.pmacct {
		return c.opaqueCodec(r)
	}
	silent := len(body) == openedLen+1
	if len(body) < openedLen { // of the spool of another version
		body = make([]byte, openedLen)
	}
	addr := netip.AddrFrom16([16]byte(body)).Unmap()
	port := binary.BigEndian.Uint16(body[16:])
	topic, err := c.join.topicOf(c.o.Topic(addr, port))
	if err != nil { // was asked when the session was accepted
		r.log.Error("topic of a session", "error", err)
	}
	return codec{c.o.Encoder.Session(pmacct.Identity{
		Router: r.identity, Addr: addr, Port: port, Topic: topic, Key: c.o.Key(addr, port),
	}), silent}
}
