package sim

// A router has peers with prefixes, and a session to each collector that it can
// reach. Each change gets the next version.
type router struct {
	w        *world
	id       int
	name     string
	peers    int
	prefixes int
	pace     int64 // between changes
	coalesce bool  // a queue holds a prefix once, with its last value (FRR)
	endless  bool  // it does not say when a dump is over
	up       []uint32
	caps     uint32
	table    [maxKey]uint32 // announced: version of each prefix, 0 for one that is not
	word     [maxKey]uint32 // the last version that said something about it
	history  []said         // by version
	sessions []*session     // by node
	connects []bool         // an attempt is under way
	opens    []int64        // when sessions opened
	down     bool

	left     [maxKey]uint32 // last version of a prefix that a collector took for known
	beside   [maxKey]bool   // left out while another was sending too
	silences []*silence
	lagged   string // why the margin was too small, "" if it never was
}

// said is what became of one version.
type said struct {
	value   byte // of a route, 0 for one that is withdrawn
	at      int64
	kind    byte
	peer    byte
	prefix  uint16
	all     bool      // all sessions were open and past their dump
	skipped bool      // at a seam Kafka had the same, or what came after
	by      [2]uint64 // who has it in its log, by number of the process
}

func newRouter(w *world, id int) *router {
	r := &router{
		w: w, id: id, name: "r" + string(rune('0'+id)),
		peers: 1 + w.rng.IntN(3), prefixes: 4 + w.rng.IntN(30),
		pace: w.between(20*ms, 200*ms), coalesce: w.chance(0.5), endless: !w.diff && w.chance(0.15),
		history: make([]said, 1, 1024),
	}
	r.up = make([]uint32, r.peers)
	return r
}

func (r *router) begin() {
	r.sessions = make([]*session, len(r.w.nodes))
	r.connects = make([]bool, len(r.w.nodes))
	for p := range r.peers {
		r.peerUp(byte(p))
	}
	for i := range r.w.nodes {
		r.reconnect(i, r.w.between(0, sec))
	}
	(*speaks)(r).run()
}

// speaks is the moment when a router has something to say.
type speaks router

func (t *speaks) run() {
	r := (*router)(t)
	if !r.w.quiet && !r.down {
		r.change()
	}
	r.w.push(r.w.between(r.pace/2, 2*r.pace), nil, t)
}

// change does something to the table.
func (r *router) change() {
	peer := byte(r.w.rng.IntN(r.peers))
	switch {
	case r.up[peer] == 0:
		if r.w.chance(0.3) {
			r.peerUp(peer)
		}
	case r.w.chance(0.003):
		r.peerDown(peer)
	default:
		prefix := uint16(r.w.rng.IntN(r.prefixes))
		there := r.table[key(peer, prefix)] != 0
		r.route(peer, prefix, there && r.w.chance(0.3))
	}
}

func (r *router) next(kind, peer byte, prefix uint16) uint32 {
	all := true
	for _, s := range r.sessions {
		all = all && s != nil && s.open && s.dumped && s.host.open
	}
	r.history = append(r.history, said{at: r.w.now, kind: kind, peer: peer, prefix: prefix, all: all})
	r.w.res.Changes++
	return uint32(len(r.history) - 1)
}

func (r *router) route(peer byte, prefix uint16, withdraw bool) {
	v := r.next(kindRoute, peer, prefix)
	k := key(peer, prefix)
	r.table[k], r.word[k] = v, v
	if withdraw {
		r.table[k] = 0
	} else {
		r.history[v].value = content(k, v)
	}
	r.say(item{at: r.w.now, cap: r.up[peer], changes: r.w.just(change{kind: kindRoute, peer: peer, prefix: prefix, version: v, withdraw: withdraw})})
}

func (r *router) peerUp(peer byte) {
	r.caps++
	r.up[peer] = r.caps * 7919
	r.say(item{at: r.w.now, changes: []change{{kind: kindPeerUp, peer: peer, version: r.next(kindPeerUp, peer, 0)}}, cap: r.up[peer]})
}

func (r *router) peerDown(peer byte) {
	r.up[peer] = 0
	v := r.next(kindPeerDown, peer, 0)
	r.forget(peer, v)
	r.say(item{at: r.w.now, changes: []change{{kind: kindPeerDown, peer: peer, version: v}}})
}

// forget drops the routes of a peer, with word v.
func (r *router) forget(peer byte, v uint32) {
	for p := range r.prefixes {
		k := key(peer, uint16(p))
		r.table[k] = 0
		if r.word[k] != 0 {
			r.word[k] = v
		}
	}
}

func (r *router) say(it item) {
	for _, s := range r.sessions {
		if s != nil && s.open {
			s.enqueue(it)
		}
	}
}

// restart loses all sessions and the table.
func (r *router) restart(d int64) {
	r.down = true
	for i := range r.sessions {
		r.cut(i)
	}
	for p := range r.peers {
		r.up[p] = 0
		// Consumers learn of it from the Peer Ups and dumps after.
		r.history = append(r.history, said{at: r.w.now, kind: kindPeerDown, peer: byte(p)})
		r.forget(byte(p), uint32(len(r.history)-1))
	}
	r.w.after(min(d, r.w.endAt-r.w.now), func() {
		r.down = false
		for p := range r.peers {
			if r.up[p] == 0 {
				r.peerUp(byte(p))
			}
		}
		for i := range r.sessions {
			r.reconnect(i, r.w.between(0, 500*ms))
		}
	})
}

// cut ends the session to a node, as both ends see.
func (r *router) cut(i int) {
	if s := r.sessions[i]; s != nil {
		r.sessions[i] = nil
		s.end()
		r.reconnect(i, r.w.between(200*ms, 2*sec))
	}
}

// reconnect tries to connect to a node after d, and again until it works.
func (r *router) reconnect(i int, d int64) {
	if r.connects[i] {
		return
	}
	r.connects[i] = true
	r.w.after(d, func() {
		r.connects[i] = false
		nd := r.w.nodes[i]
		if r.down || r.sessions[i] != nil {
			return
		}
		if nd.cutRouters[r.id] || nd.ways[r.id] != nil || nd.proc == nil || nd.proc.paused || !nd.proc.accepts() {
			r.reconnect(i, r.w.between(200*ms, 2*sec))
			return
		}
		r.connect(i)
	})
}

// connect opens a session and queues the dump of the table.
func (r *router) connect(i int) {
	w := r.w
	s := &session{r: r, node: i, open: true, salt: byte(w.rng.Uint32())}
	r.sessions[i] = s
	r.opens = append(r.opens, w.now)
	s.host = w.nodes[i].proc.accept(r.id, s)
	for p := range r.peers {
		peer := byte(p)
		// The version is that of the dump: no change is newer.
		v := uint32(len(r.history) - 1)
		if r.up[p] == 0 {
			// A real router says nothing of a peer that is down, and a consumer
			// has to conclude it from the silence.
			s.enqueue(item{at: w.now, changes: []change{{kind: kindPeerDown, dump: true, peer: peer, version: v}}})
			continue
		}
		s.enqueue(item{at: w.now, changes: []change{{kind: kindPeerUp, dump: true, peer: peer, version: v}}, cap: r.up[p]})
		// Each dump is packed in its own way, and begins somewhere.
		pack := 1
		if !r.coalesce {
			pack = 1 + w.rng.IntN(6)
			w.fire(DumpRepacked)
		}
		var cs []change
		first := w.rng.IntN(r.prefixes)
		for j := range r.prefixes {
			prefix := uint16((first + j) % r.prefixes)
			if v := r.table[key(peer, prefix)]; v != 0 {
				cs = append(cs, change{kind: kindRoute, dump: true, peer: peer, prefix: prefix, version: v})
				if len(cs) == pack {
					s.enqueue(item{at: w.now, changes: cs, cap: r.up[p]})
					cs = nil
				}
			}
		}
		if len(cs) > 0 {
			s.enqueue(item{at: w.now, changes: cs, cap: r.up[p]})
		}
		if r.endless {
			w.fire(NoEndOfRIB)
			continue
		}
		s.enqueue(item{at: w.now, changes: []change{{kind: kindEndOfRIB, dump: true, peer: peer, version: v}}, cap: r.up[p]})
	}
	s.dumpLeft = s.total
	s.dumped = s.total == 0
}

// An item waits in a session's queue to become a message.
type item struct {
	at      int64
	changes []change
	cap     uint32
}

// wire is how many messages the network and the sockets' buffers hold.
const wire = 16

// sent is a message between the ends of a session.
type sent struct {
	it  item
	msg []byte
}

// A session is the router's end of a connection.
type session struct {
	r        *router
	node     int
	open     bool
	salt     byte
	queues   [maxPeers]fifo[item] // by peer; peers overtake each other
	pending  [maxKey]bool
	wire     fifo[sent]
	total    int
	dumpLeft int
	dumped   bool
	flight   int
	lastAt   int64
	latest   int64 // when the newest of what was sent was said
	busy     bool
	host     *connection
}

func (s *session) enqueue(it item) {
	peer := it.changes[0].peer
	c := &it.changes[0]
	if s.r.coalesce && c.kind == kindRoute {
		k := key(peer, c.prefix)
		if s.pending[k] {
			s.r.w.fire(Coalesced)
			return // what waits will be sent with the last value
		}
		s.pending[k] = true
	}
	if s.r.coalesce && c.kind == kindPeerDown {
		s.forget(peer)
	}
	s.queues[peer].push(it)
	s.total++
	s.pump()
}

// forget drops the routes of a peer that went down from the queue.
func (s *session) forget(peer byte) {
	s.queues[peer].keep(func(it *item) bool {
		if it.changes[0].kind == kindRoute {
			s.pending[key(peer, it.changes[0].prefix)] = false
			s.total--
			s.dumpLeft--
			return false
		}
		return true
	})
}

// oldest is when the first of what waits was said.
func (s *session) oldest() int64 {
	t := s.r.w.now
	if s.total == 0 {
		return t
	}
	for i := range s.queues {
		if q := &s.queues[i]; q.len() > 0 {
			t = min(t, q.front().at)
		}
	}
	return t
}

// pump sends the next message, if the connection has room.
func (s *session) pump() {
	if s.busy || !s.open || s.total == 0 || s.flight >= wire {
		return
	}
	w := s.r.w
	s.busy = true
	spacing := int64(50)
	if slow := w.nodes[s.node].slow[s.r.id]; slow > 0 {
		spacing = w.between(slow/2, slow)
	}
	w.push(spacing, nil, (*sends)(s))
}

// sends is the moment when a router writes the next message.
type sends session

func (t *sends) run() {
	s := (*session)(t)
	s.busy = false
	s.transmit()
	s.pump()
}

// arrives is the moment when the next message is at the collector.
type arrives session

func (t *arrives) run() {
	if q := (*session)(t).way(); q != nil {
		q.held++
		return
	}
	m := t.wire.pop()
	t.host.arrive(m.msg, m.it)
}

func (s *session) transmit() {
	if !s.open || s.total == 0 {
		return
	}
	w, r := s.r.w, s.r
	p := w.rng.IntN(r.peers)
	for s.queues[p].len() == 0 {
		p = (p + 1) % r.peers
	}
	it := s.queues[p].pop()
	if it.at > s.latest {
		s.latest = it.at
	} else if it.at < s.latest {
		w.fire(PeersReordered)
	}
	s.total--
	s.flight++
	if c := &it.changes[0]; r.coalesce && c.kind == kindRoute {
		k := key(c.peer, c.prefix)
		s.pending[k] = false
		c2 := *c
		c2.version, c2.withdraw = r.table[k], false
		if c2.version == 0 { // gone meanwhile
			c2.withdraw = true
			c2.version = r.word[k]
		}
		if c2.version != c.version {
			c2.dump = r.history[c2.version].kind != kindRoute
		}
		it.changes = w.just(c2)
	}
	if !s.dumped {
		s.dumpLeft--
		s.dumped = s.dumpLeft <= 0
	}
	s.lastAt = max(s.lastAt, w.now+w.between(200, 5*ms))
	s.wire.push(sent{it, w.message(s.salt, it.cap, it.changes)})
	w.push(s.lastAt-w.now, nil, (*arrives)(s))
}

// end closes the router's end; the host learns of it after what is on the wire.
func (s *session) end() {
	if !s.open {
		return
	}
	s.open = false
	if s.way() != nil {
		return
	}
	w := s.r.w
	host := s.host
	at := max(s.lastAt, w.now+w.between(200, 5*ms))
	w.after(at-w.now, func() { host.finish() })
}
