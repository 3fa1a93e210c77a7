package sim

const (
	keepAlive  = 10 * sec // after so long without an answer a collector ends a session
	probeEvery = 3 * sec  // it asks a host that says nothing
	unsettled  = 100 * ms // what was said so shortly before a silence may be on its way
)

// A silence is a time in which nothing gets from a router to a collector, nor back,
// and neither is told. TCP keeps what the router says, and sends it again some time
// after the way has healed, in a burst.
type silence struct {
	r    *router
	nd   *node
	s    *session    // nil if there was none
	c    *connection // likewise
	held int         // messages that are to be sent again

	from   int64
	ended  bool  // the collector's end was, before the way had healed
	healed int64 // the host answers again, 0: not yet
	flows  int64 // TCP sends again what was queued, 0: not yet
	last   int64 // the last of that was read
	broken bool  // who was sending stopped before all of that was in Kafka
}

// silence breaks the way of a router to a node for d.
func (w *world) silence(r *router, nd *node, d int64) {
	if nd.ways[r.id] != nil {
		return
	}
	q := &silence{r: r, nd: nd, s: r.sessions[nd.id], from: w.now}
	nd.ways[r.id] = q
	r.silences = append(r.silences, q)
	w.tracef("router %d: the way to %s is silent", r.id, nd.name)
	if s := q.s; s != nil && s.host != nil {
		q.c = s.host
		q.c.st.p.do(keepAlive-w.between(0, probeEvery), call(q.expire))
	}
	w.after(d, q.heal)
}

// expire ends the collector's end of the session; the router does not hear of it.
func (q *silence) expire() {
	if q.healed == 0 && q.c.open {
		q.r.w.fire(SilenceNoticed)
		q.c.finish()
	}
}

// heal lets the hosts hear each other again. When the router's host next tries to
// send what is queued depends on how long it has tried in vain.
func (q *silence) heal() {
	if q.healed != 0 {
		return
	}
	w := q.r.w
	q.healed = w.now
	w.tracef("router %d: the way to %s is not silent any more", q.r.id, q.nd.name)
	most := min(w.now-q.from, keepAlive)
	if w.now >= w.endAt {
		most = min(most, sec)
	}
	w.after(w.between(ms, most), q.flow)
}

// flow lets all come that was queued, or ends the session if the other end is gone.
func (q *silence) flow() {
	r, s, w := q.r, q.s, q.r.w
	q.flows = w.now
	q.nd.ways[r.id] = nil
	switch {
	case s == nil:
	case !s.host.open || s.host.st.p.dead:
		w.fire(SilenceEndsSession)
		if r.sessions[q.nd.id] == s {
			r.cut(q.nd.id)
		}
	case !s.open: // what it had said, and then the end
		w.after(s.again(q.held), func() { s.host.finish() })
	default:
		if q.held > 0 {
			w.fire(SilenceBursts)
		}
		s.again(q.held)
	}
}

// again sends n messages again and returns after how long they are there.
func (s *session) again(n int) int64 {
	w := s.r.w
	for range n {
		s.lastAt = max(s.lastAt, w.now+w.between(200, 5*ms))
		w.push(s.lastAt-w.now, nil, (*arrives)(s))
	}
	return max(0, s.lastAt-w.now)
}

// way returns the silence between the ends of s, nil if there is none.
func (s *session) way() *silence {
	if q := s.r.w.nodes[s.node].ways[s.r.id]; q != nil && q.s == s {
		return q
	}
	return nil
}

// heard returns when the router's host last gave a sign of life, true time.
func (c *connection) heard() int64 {
	now := c.st.r.w.now
	at := now - (now-c.last)%probeEvery
	if q := c.s.way(); q != nil && (q.healed == 0 || at < q.healed) {
		now = max(c.last, min(now, q.from))
		at = now - (now-c.last)%probeEvery
	}
	return at
}

// from is when what the router said at some time could come to be read here: what a
// silence has kept is not late.
func (c *connection) from(at int64) int64 {
	for _, q := range c.st.r.silences {
		if q.c != c || at < q.from-unsettled {
			continue
		}
		if q.flows == 0 {
			return c.st.r.w.now
		}
		if at <= q.flows {
			return q.flows
		}
	}
	return at
}

// read notes that a word was read that a silence had kept.
func (c *connection) read(at int64) {
	for _, q := range c.st.r.silences {
		if q.c == c && at >= q.from-unsettled && (q.flows == 0 || at <= q.flows) {
			q.last = c.st.r.w.now
		}
	}
}

// breaks notes that a sender stops while not all of what a short silence has kept is in
// Kafka, although its host was heard again and its marks went on.
func (st *stream) breaks() {
	if !st.gate.Wanted() {
		return
	}
	for _, q := range st.r.silences {
		if q.broken || q.ended || q.c == nil || q.c.st != st || q.healed == 0 || q.healed-q.from > 2*probeEvery {
			continue
		}
		_, _, oldest := st.gate.Held()
		q.broken = q.flows == 0 || st.input.len() > 0 || q.s.total > 0 && q.s.oldest() <= q.flows ||
			q.s.wire.len() > 0 && q.s.wire.front().it.at <= q.flows ||
			oldest > 0 && oldest-st.p.skew <= q.last
	}
}

// silent reports whether change v was said while the way to a node was silent, or was
// on its way to it then.
func (r *router) silent(v uint32, nd *node) bool {
	at := r.history[v].at
	for _, q := range r.silences {
		if q.nd == nd && at >= q.from-unsettled && (q.flows == 0 || at <= q.flows) {
			return true
		}
	}
	return false
}

// burst reports whether change v was kept by a silence whose end its sender did not
// outlive.
func (r *router) burst(v uint32) bool {
	at := r.history[v].at
	for _, q := range r.silences {
		if q.broken && at >= q.from-unsettled && at <= q.flows {
			return true
		}
	}
	return false
}
