package sim

import "github.com/bmpha/bmpha/pkg/gate"

// contents is how many values a route can have. With few of them a route often
// gets one again that it had, and whoever wrongly takes a value for known leaves
// the one of in between in Kafka.
const contents = 2

// content is the value of a route in a version of it, from 1.
func content(k, version uint32) byte {
	h := (k*0x9e3779b1 ^ version) * 0x85ebca6b
	return byte(h>>16)%contents + 1
}

// A rib is what a collector knows of a router's routes, and what it does about a
// table that comes again: what package collector does with package table.
type rib struct {
	ground  gate.Ground
	said    bool // as the ground, without the number: for a built-in mistake
	session uint32
	open    bool // between the Opened and the Closed entry
	routes  [maxKey]held
	partly  [8]bool       // by peer: something of its dump was left out
	ended   [8]bool       // by peer: its dump is over, or it is known to be down
	ready   []item        // withdrawals that are not in the log yet
	wrote   [maxKey]entry // by prefix: the last about it in the log
}

// entry is what the log was last told of a prefix.
type entry struct {
	end   uint64 // position behind it
	value byte   // 0 for a route that is not there
}

// held is a route that was announced.
type held struct {
	content byte   // 0: it was not, or is withdrawn
	session uint32 // in which it was mentioned last
}

func newRib() *rib { return new(rib) }

func (t *rib) stale(k uint32) bool {
	h := &t.routes[k]
	return h.content != 0 && h.session != t.session
}

func (t *rib) anyStale() bool {
	for k := range t.routes {
		if t.stale(uint32(k)) {
			return true
		}
	}
	return false
}

// grounded asks the rule that all this is about.
func (st *stream) grounded() bool {
	switch st.p.w.opt.Defect {
	case GroundIgnored:
		return true
	case OthersUnseen:
		_, alone := st.gate.Unbroken()
		return st.rib.said && alone
	}
	return st.rib.ground.Holds(st.gate)
}

// opened begins a session.
func (st *stream) opened(c *connection) {
	t := st.rib
	t.ground.Opened(st.gate)
	t.open, t.session = true, c.id
	t.partly, t.ended = [8]bool{}, [8]bool{}
}

// closed ends one.
func (st *stream) closed(c *connection) {
	t := st.rib
	whole := !t.anyStale()
	for peer := range st.r.peers {
		// A table that is new has nothing stale before its first dump is over.
		whole = whole && (t.ended[peer] || st.p.w.opt.Defect == UnendedIsWhole)
	}
	whole = whole || st.p.w.opt.Defect == AlwaysWhole
	_, alone := st.gate.Unbroken()
	if beside := c.began < st.wantedAt; beside && st.Heard != 0 && st.Heard < st.wantedAt+st.p.w.margin+2*keepAlive && st.p.w.opt.Defect != SilenceIsWhole {
		whole = false // what another has sent may never have come here
	}
	t.said = alone && (whole || t.said)
	t.ground.Closed(st.gate, whole)
	t.open = false
}

// learn takes what has arrived into the table and leaves out of it what was sent
// before. It reports false if nothing is left of it.
func (st *stream) learn(in *input) bool {
	t, r, w := st.rib, st.r, st.p.w
	first := &in.it.changes[0]
	peer := first.peer
	// Whoever stood still may not know yet that others have sent meanwhile.
	sent := st.grounded() && (st.p.mayHand() || w.opt.Defect == LeaseUnseen || w.opt.Defect == GroundIgnored)
	kept := w.changes(len(in.it.changes))
	for _, c := range in.it.changes {
		k := key(c.peer, c.prefix)
		switch c.kind {
		case kindRoute:
			old, was := t.routes[k], t.stale(k)
			if c.withdraw {
				t.routes[k] = held{}
				break
			}
			now := held{content(k, c.version), t.session}
			t.routes[k] = now
			if was && old.content == now.content {
				if sent {
					t.partly[peer] = true
					st.leave(k, c.version, now.content)
					continue
				}
				w.fire(RedumpSentAgain)
			}
		case kindPeerDown:
			t.ended[peer] = true
			if !c.dump {
				for p := range r.prefixes {
					t.routes[key(peer, uint16(p))] = held{}
				}
				break
			}
			st.sweep(peer, c.version)
			if sent { // the silence about a peer tells nothing by itself
				st.leaveAbsent(peer, c.version, true)
				continue
			}
		case kindEndOfRIB:
			t.ended[peer] = true
			st.sweep(peer, c.version)
			if c.partial = t.partly[peer]; c.partial {
				st.leaveAbsent(peer, c.version, sent)
			}
		}
		kept = append(kept, c)
	}
	switch {
	case len(kept) == 0:
		return false
	case len(kept) < len(in.it.changes):
		w.fire(RedumpLeftOutPartly)
	}
	if len(kept) < len(in.it.changes) || kept[len(kept)-1] != in.it.changes[len(kept)-1] {
		in.msg = w.message(in.conn.s.salt, in.it.cap, kept)
	}
	in.it.changes = kept
	return true
}

// sweep takes what a session has not mentioned of a peer to be gone.
func (st *stream) sweep(peer byte, version uint32) {
	t := st.rib
	var gone []change
	for p := range st.r.prefixes {
		k := key(peer, uint16(p))
		if !t.stale(k) {
			continue
		}
		t.routes[k] = held{}
		if st.p.w.opt.Defect == NoSweep {
			continue
		}
		st.p.w.fire(RedumpGone)
		gone = append(gone, change{kind: kindRoute, dump: true, withdraw: true, peer: peer, prefix: uint16(p), version: version})
		if len(gone) == 4 {
			t.ready = append(t.ready, item{changes: gone})
			gone = nil
		}
	}
	if len(gone) > 0 {
		t.ready = append(t.ready, item{changes: gone})
	}
}

// tidy appends the withdrawals of what is gone. It reports false while there is
// no room.
func (st *stream) tidy(c *connection) bool {
	t := st.rib
	for len(t.ready) > 0 {
		it := t.ready[0]
		if !st.append(c, kindGone, it.changes) {
			return false
		}
		t.ready = t.ready[1:]
	}
	return true
}

// leaveAbsent is leave for the routes that a peer does not have and of which
// nothing is said. If something was left out of the dump before others began to
// send, what they have said since is newer.
func (st *stream) leaveAbsent(peer byte, version uint32, sent bool) {
	for p := range st.r.prefixes {
		k := key(peer, uint16(p))
		if st.rib.routes[k].content == 0 && !st.willWithdraw(k) {
			st.r.left[k] = max(st.r.left[k], version)
			if sent {
				st.leave(k, version, 0)
			}
		}
	}
}

func (st *stream) willWithdraw(k uint32) bool {
	for _, it := range st.rib.ready {
		for _, c := range it.changes {
			if key(c.peer, c.prefix) == k {
				return true
			}
		}
	}
	return false
}

// leave checks I11: what is left out is in Kafka, or in the log on its way there,
// and nothing else behind it. value is 0 for a route that is not there.
func (st *stream) leave(k, version uint32, value byte) {
	w, r := st.p.w, st.r
	r.left[k] = max(r.left[k], version)
	if value != 0 {
		w.fire(RedumpLeftOut)
	}
	wrote := st.rib.wrote[k]
	if from, _ := st.gate.Positions(); wrote.end > from {
		if wrote.value != value {
			w.violate("I11: %s leaves out version %d of %x of router %d, which is %d, and its log has %d", st.p.name(), version, k, r.id, value, wrote.value)
		}
		return
	}
	part := w.kafka.parts[r.id]
	last := part.last[k]
	if part.pending.len() > 0 || // it may be there, and consumers are to see it later
		last.value == value || part.value(k) == value {
		return
	}
	format, args := "I11: %s leaves out version %d of %x of router %d, which is %d, and Kafka has %d", []any{st.p.name(), version, k, r.id, value, last.value}
	why, ok := w.excuse(r)
	late, burst := w.burst(r, version)
	if !burst {
		late, burst = w.burst(r, r.word[k])
	}
	switch {
	case burst:
		w.excused(late, format, args...)
	case last.shared && last.by != st.p:
		r.beside[k] = true
		w.excused("a sender without Redis, of which the other does not know", format, args...)
	case ok && st.seen.sent[k] < wrote.end: // sent by another, says its mark
		w.excused(why, format, args...)
	default:
		w.violate(format, args...)
	}
}

// note remembers what the log was told last about each prefix.
func (st *stream) note(changes []change) {
	t := st.rib
	_, end := st.gate.Positions() // behind the entry
	for _, c := range changes {
		if c.kind == kindRoute {
			k := key(c.peer, c.prefix)
			e := entry{end: end}
			if !c.withdraw {
				e.value = content(k, c.version)
			}
			t.wrote[k] = e
			continue
		}
		if c.kind != kindPeerDown && (c.kind != kindEndOfRIB || c.partial) {
			continue
		}
		for p := range st.r.prefixes {
			k := key(c.peer, uint16(p))
			if t.routes[k].content == 0 {
				t.wrote[k] = entry{end: end}
			}
		}
	}
}
