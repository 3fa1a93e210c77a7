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
	up       []uint32
	caps     uint32
	table    map[uint32]uint32 // announced: version of each prefix
	history  []said            // by version
	sessions []*session        // by node
	connects []bool            // an attempt is under way
	opens    []int64           // when sessions opened
	down     bool

	left   map[uint32]uint32 // last version of a prefix that a collector took for known
	beside map[uint32]bool   // left out while another was sending too
	lagged string            // why the margin was too small, "" if it never was
}

// said is what became of one version.
type said struct {
	at     int64
	kind   byte
	peer   byte
	prefix uint16
	all    bool // all sessions were open and past their dump
	by     []*proc
}

func newRouter(w *world, id int) *router {
	r := &router{
		w: w, id: id, name: "r" + string(rune('0'+id)),
		peers: 1 + w.rng.IntN(3), prefixes: 4 + w.rng.IntN(30),
		pace: w.between(20*ms, 200*ms), coalesce: w.chance(0.5),
		table: make(map[uint32]uint32), history: make([]said, 1), left: make(map[uint32]uint32), beside: make(map[uint32]bool),
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
	r.tick()
}

func (r *router) tick() {
	if !r.w.quiet && !r.down {
		r.change()
	}
	r.w.after(r.w.between(r.pace/2, 2*r.pace), r.tick)
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
		_, there := r.table[key(peer, prefix)]
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
	if withdraw {
		delete(r.table, key(peer, prefix))
	} else {
		r.table[key(peer, prefix)] = v
	}
	r.say(item{at: r.w.now, cap: r.up[peer], changes: []change{{kind: kindRoute, peer: peer, prefix: prefix, version: v, withdraw: withdraw}}})
}

func (r *router) peerUp(peer byte) {
	r.caps++
	r.up[peer] = r.caps * 7919
	r.say(item{at: r.w.now, changes: []change{{kind: kindPeerUp, peer: peer, version: r.next(kindPeerUp, peer, 0)}}, cap: r.up[peer]})
}

func (r *router) peerDown(peer byte) {
	r.up[peer] = 0
	for p := range r.prefixes {
		delete(r.table, key(peer, uint16(p)))
	}
	r.say(item{at: r.w.now, changes: []change{{kind: kindPeerDown, peer: peer, version: r.next(kindPeerDown, peer, 0)}}})
}

func (r *router) say(it item) {
	for _, s := range r.sessions {
		if s != nil && s.open {
			s.enqueue(it)
		}
	}
}

// lastWords returns the last version that said something about each prefix.
func (r *router) lastWords() map[uint32]uint32 {
	last := make(map[uint32]uint32)
	for v := 1; v < len(r.history); v++ {
		switch h := &r.history[v]; h.kind {
		case kindRoute:
			last[key(h.peer, h.prefix)] = uint32(v)
		case kindPeerDown:
			for p := range r.prefixes {
				if k := key(h.peer, uint16(p)); last[k] != 0 {
					last[k] = uint32(v)
				}
			}
		}
	}
	return last
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
		for prefix := range r.prefixes {
			if k := key(byte(p), uint16(prefix)); r.table[k] != 0 {
				delete(r.table, k)
			}
		}
		r.history = append(r.history, said{at: r.w.now, kind: kindPeerDown, peer: byte(p)})
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
		if nd.cutRouters[r.id] || nd.proc == nil || nd.proc.paused || !nd.proc.accepts() {
			r.reconnect(i, r.w.between(200*ms, 2*sec))
			return
		}
		r.connect(i)
	})
}

// connect opens a session and queues the dump of the table.
func (r *router) connect(i int) {
	w := r.w
	s := &session{r: r, node: i, open: true, queues: make([][]item, r.peers), pending: make(map[uint32]bool), salt: byte(w.rng.Uint32())}
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
		var cs []change
		flush := func() {
			if len(cs) > 0 {
				s.enqueue(item{at: w.now, changes: cs, cap: r.up[p]})
				cs = nil
			}
		}
		for prefix := range r.prefixes {
			if v := r.table[key(peer, uint16(prefix))]; v != 0 {
				cs = append(cs, change{kind: kindRoute, dump: true, peer: peer, prefix: uint16(prefix), version: v})
				if r.coalesce || len(cs) == 4 {
					flush()
				}
			}
		}
		flush()
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

// A session is the router's end of a connection.
type session struct {
	r        *router
	node     int
	open     bool
	salt     byte
	queues   [][]item // by peer; peers overtake each other
	pending  map[uint32]bool
	total    int
	dumpLeft int
	dumped   bool
	flight   int
	lastAt   int64
	busy     bool
	host     *connection
}

func (s *session) enqueue(it item) {
	peer := it.changes[0].peer
	c := &it.changes[0]
	if s.r.coalesce && c.kind == kindRoute {
		k := key(peer, c.prefix)
		if s.pending[k] {
			return // what waits will be sent with the last value
		}
		s.pending[k] = true
	}
	if s.r.coalesce && c.kind == kindPeerDown {
		s.forget(peer)
	}
	s.queues[peer] = append(s.queues[peer], it)
	s.total++
	s.pump()
}

// forget drops the routes of a peer that went down from the queue.
func (s *session) forget(peer byte) {
	q := s.queues[peer]
	kept := q[:0]
	for _, it := range q {
		if it.changes[0].kind == kindRoute {
			delete(s.pending, key(peer, it.changes[0].prefix))
			s.total--
			s.dumpLeft--
			continue
		}
		kept = append(kept, it)
	}
	s.queues[peer] = kept
}

// oldest is when the first of what waits was said.
func (s *session) oldest() int64 {
	t := s.r.w.now
	for _, q := range s.queues {
		if len(q) > 0 {
			t = min(t, q[0].at)
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
	w.after(spacing, func() {
		s.busy = false
		s.transmit()
		s.pump()
	})
}

func (s *session) transmit() {
	if !s.open || s.total == 0 {
		return
	}
	w, r := s.r.w, s.r
	p := w.rng.IntN(r.peers)
	for len(s.queues[p]) == 0 {
		p = (p + 1) % r.peers
	}
	it := s.queues[p][0]
	s.queues[p] = s.queues[p][1:]
	s.total--
	s.flight++
	if c := &it.changes[0]; r.coalesce && c.kind == kindRoute {
		k := key(c.peer, c.prefix)
		delete(s.pending, k)
		c2 := *c
		c2.version, c2.withdraw = r.table[k], false
		if c2.version == 0 { // gone meanwhile
			c2.withdraw = true
			c2.version = r.lastOf(k)
		}
		if c2.version != c.version {
			c2.dump = r.history[c2.version].kind != kindRoute
		}
		it.changes = []change{c2}
	}
	if !s.dumped {
		s.dumpLeft--
		s.dumped = s.dumpLeft <= 0
	}
	msg := appendMessage(nil, s.salt, it.cap, it.changes)
	at := max(s.lastAt, w.now+w.between(200, 5*ms))
	s.lastAt = at
	host := s.host
	w.after(at-w.now, func() { host.arrive(msg, it) })
}

// lastOf finds the last version about a prefix.
func (r *router) lastOf(k uint32) uint32 {
	for v := len(r.history) - 1; v > 0; v-- {
		h := &r.history[v]
		if h.kind == kindRoute && key(h.peer, h.prefix) == k || h.kind == kindPeerDown && h.peer == byte(k>>16) {
			return uint32(v)
		}
	}
	return 0
}

// end closes the router's end; the host learns of it after what is on the wire.
func (s *session) end() {
	if !s.open {
		return
	}
	s.open = false
	w := s.r.w
	host := s.host
	at := max(s.lastAt, w.now+w.between(200, 5*ms))
	w.after(at-w.now, func() { host.finish() })
}
