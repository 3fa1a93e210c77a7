package table

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"unsafe"

	"github.com/cespare/xxhash/v2"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
)

// An applier is memory that a table reuses from message to message.
type applier struct {
	attrs         []byte // of the UPDATE, as they are kept
	change        Change
	before, after [4]byte // single labels
}

// Apply takes one whole BMP message, as delimited by bmp.Next, into the table,
// and calls each, if it is not nil, for every route of it and for an End-of-RIB.
// arrival is in microseconds since the Unix epoch. Nothing of msg is kept but in
// copies. A message is read just as package pmacct reads it: what makes no record
// there changes nothing here. An error says what could not be used; what came
// before it has been applied. Messages after a Termination are ignored until Open.
//
// A route that finds no room (ErrTooManyRoutes, ErrStoreFull) is not in the table
// afterwards, neither as it was before, and is not told to each. The others of
// its message are. A table that has refused one is not what the router has, and
// Close gives it up. So is one that has refused a peer (ErrPeersFull) or a RIB
// (ErrTooManyRIBs).
func (t *Table) Apply(msg []byte, arrival int64, each func(*Change)) error {
	if len(msg) < bmp.HeaderLen {
		return &bmp.Error{What: "message ends within its header", Offset: len(msg), Section: "RFC 7854 section 4.1"}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.shut {
		return ErrClosed
	}
	if t.closed {
		return nil
	}
	if len(msg) > maxMessage {
		return ErrTooLong
	}
	switch bmp.Type(msg) {
	case bmp.TypeRouteMonitoring:
		return t.routeMonitoring(msg, arrival, each)
	case bmp.TypePeerUp:
		return t.peerUp(msg, arrival)
	case bmp.TypePeerDown:
		return t.peerDown(msg, arrival)
	case bmp.TypeStatisticsReport:
		p, err := bmp.ParsePerPeer(msg)
		if err != nil {
			return err
		}
		if known := t.peers[IDOf(&p)]; usable(&p) && known != nil && known.up && t.kept+len(msg) <= maxKept {
			t.kept += len(msg) - len(known.stats)
			known.stats, known.statsAt = append(known.stats[:0], msg...), arrival
		}
	case bmp.TypeInitiation:
		t.initiation = append(t.initiation[:0], msg...)
	case bmp.TypeTermination:
		t.closed = true
	}
	return nil
}

// usable reports whether messages about p are taken: not if it is a Loc-RIB with
// an address.
func usable(p *bmp.PerPeer) bool {
	return p.Type != bmp.PeerLocRIB || p.RawAddress == [16]byte{}
}

// maxUps bounds the Peer Ups that are kept of one peer: routers send one for
// each RIB, or for each family.
const maxUps = 16

// peerUp brings a peer up. What was negotiated is what the first Peer Up said,
// as in pmacct.
func (t *Table) peerUp(msg []byte, arrival int64) error {
	u, err := bmp.ParsePeerUp(msg)
	if err != nil {
		return err
	}
	if !usable(&u.Peer) {
		return ErrLocRIBAddress
	}
	sent, _, four, err := bgp.ParseStrictOpen(u.Sent)
	if err != nil {
		return err
	}
	received, as, remoteFour, err := bgp.ParseStrictOpen(u.Received)
	if err != nil {
		return err
	}
	id := IDOf(&u.Peer)
	p := t.peers[id]
	if p != nil && p.up {
		t.kept -= p.kept()
		t.peerUpAgain(p, &u, msg, arrival)
		t.kept += p.kept()
		return nil
	}
	if t.up >= maxPeers {
		return ErrTooManyPeers
	}
	if t.kept+len(msg) > maxKept {
		return ErrPeersFull
	}
	if p == nil {
		p = &peer{id: id}
		t.peers[id] = p
	}
	t.kept -= p.kept()
	defer func() { t.kept += p.kept() }()
	t.up++
	t.progress = arrival
	p.up, p.down, p.stats, p.since = true, nil, nil, arrival
	p.first = bytes.Clone(msg)
	p.ups = append(p.ups[:0], p.first)
	p.resumption.up(&u, false, false)
	if p.asn != as {
		p.asn = as
		t.replace(p)
	}
	p.fourOctet = four && remoteFour
	for i, f := range bgp.Families {
		from := received.AddPath(f)
		p.families[i] = sent.Multiprotocol(f) && received.Multiprotocol(f)
		p.addPath[i] = sent.AddPath(f) != 0 && from != 0 && from != bgp.AddPathReceive
	}
	return nil
}

// peerUpAgain takes a further Peer Up of a peer that is up. One about the same
// BGP session, by its addresses and ports, says nothing about routes. Else another
// session has begun without a Peer Down, and its dump replaces the RIB that the
// message names, or all of them if that is the pre-policy Adj-RIB-In, which is
// also what a router names that means all.
func (t *Table) peerUpAgain(p *peer, u *bmp.PeerUp, msg []byte, arrival int64) {
	kind := u.Peer.RIB()
	same, ofKind := false, false
	for _, m := range p.ups {
		known, _ := bmp.ParsePeerUp(m) // was good before
		is := u.LocalPort|u.RemotePort != 0 && u.LocalPort == known.LocalPort && u.RemotePort == known.RemotePort &&
			u.RawLocalAddress == known.RawLocalAddress
		if known.Peer.RIB() == kind && !ofKind {
			same, ofKind = is, true
		} else if !ofKind {
			same = same || is
		}
	}
	p.resumption.up(u, true, !same)
	if !same {
		t.progress = arrival
		if kind == bmp.AdjRIBInPre {
			p.since = arrival
		}
		for _, r := range p.ribs {
			if kind == bmp.AdjRIBInPre || r.Kind == kind {
				t.renew(r)
			}
		}
	}
	p.ups = slices.DeleteFunc(p.ups, func(m []byte) bool {
		known, _ := bmp.ParsePeerUp(m)
		switch {
		case !same:
			return kind == bmp.AdjRIBInPre || known.Peer.RIB() == kind
		case known.Peer.RIB() != kind || known.Peer.BGPID != u.Peer.BGPID:
			return false
		}
		return bytes.Equal(known.Sent, u.Sent) && bytes.Equal(known.Received, u.Received)
	})
	if len(p.ups) < maxUps && t.kept+p.kept()+len(msg) <= maxKept {
		p.ups = append(p.ups, bytes.Clone(msg))
	}
}

func (t *Table) peerDown(msg []byte, arrival int64) error {
	d, err := bmp.ParsePeerDown(msg)
	if err != nil {
		return err
	}
	if !usable(&d.Peer) {
		return ErrLocRIBAddress
	}
	if _, ok := d.Event(); !ok && d.Reason == bmp.DownLocal {
		return &bmp.Error{What: "message ends within the FSM event code", Offset: len(msg), Section: "RFC 7854 section 4.9"}
	}
	p := t.peers[IDOf(&d.Peer)]
	if p == nil {
		return nil
	}
	if p.up {
		t.up--
	}
	if len(p.ribs) <= 8 {
		for _, r := range p.ribs {
			at, _ := slices.BinarySearchFunc(t.order, r.seq, compareSeq)
			t.order = slices.Delete(t.order, at, at+1)
		}
		t.detach(p, PeerGone)
	} else {
		t.detach(p, PeerGone)
		t.order = slices.DeleteFunc(t.order, func(r *RIB) bool { return r.gone })
	}
	t.kept -= p.kept()
	p.up, p.first, p.ups, p.stats, p.down, p.resumption = false, nil, nil, nil, nil, resumption{}
	if len(t.peers) > maxPeers || t.kept+len(msg) > maxKept {
		delete(t.peers, p.id)
		return nil
	}
	p.down, p.since = bytes.Clone(msg), arrival
	t.kept += len(msg)
	return nil
}

// replace gives the RIBs of p, which others may keep, its AS number.
func (t *Table) replace(p *peer) {
	for i, r := range p.ribs {
		now := *r
		now.AS = p.asn
		p.ribs[i] = &now
		t.ribs[ribKey{p.id, r.BGPID, r.Kind}] = &now
		at, _ := slices.BinarySearchFunc(t.order, r.seq, compareSeq)
		t.order[at] = &now
		for _, f := range now.families {
			if f != nil {
				f.rib = &now
			}
		}
	}
	t.last = nil
}

// An update is an UPDATE on its way into a table.
type update struct {
	t       *Table
	rib     *RIB
	peer    *peer
	per     bmp.PerPeer
	each    func(*Change)
	arrival int64
	hash    uint64 // of the attributes
	attrs   handle // with a reference, once interned
	ready   bool
	refused error // what interning them has met with
	reach   bgp.MPReach
	unreach bgp.MPUnreach
	err     error
}

func (t *Table) routeMonitoring(msg []byte, arrival int64, each func(*Change)) error {
	per, err := bmp.ParsePerPeer(msg)
	if err != nil {
		return err
	}
	if !usable(&per) {
		return ErrLocRIBAddress
	}
	id := IDOf(&per)
	r := t.last
	if r == nil || r.Peer != id || r.BGPID != per.BGPID || r.Kind != per.RIB() {
		r = t.ribs[ribKey{id, per.BGPID, per.RIB()}]
		if r == nil {
			p := t.peers[id]
			if p == nil || !p.up {
				return ErrNoPeerUp
			}
			if len(t.order) >= maxRIBs {
				return ErrTooManyRIBs
			}
			t.seq++
			r = &RIB{Peer: id, BGPID: per.BGPID, Kind: per.RIB(), Type: per.Type, AS: p.asn, seq: t.seq, peer: p}
			t.ribs[ribKey{id, per.BGPID, r.Kind}] = r
			t.order = append(t.order, r)
			p.ribs = append(p.ribs, r)
		}
		t.last = r
	}
	if !r.peer.up {
		return ErrNoPeerUp
	}
	rm, err := bmp.ParseRouteMonitoring(msg)
	if err != nil {
		return err
	}
	kind, err := bgp.Type(rm.Update)
	if err != nil {
		return err
	}
	if kind != bgp.TypeUpdate {
		return nil
	}
	u, err := bgp.ParseUpdate(rm.Update)
	if err != nil {
		return err
	}
	w := update{t: t, rib: r, peer: r.peer, per: per, each: each, arrival: arrival}
	if err := w.readAttributes(&u); err != nil {
		return err
	}
	defer func() { t.store.release(w.attrs) }()
	if len(u.Withdrawn) != 0 {
		w.routes(bgp.IPv4Unicast, u.Withdrawn, bgp.WithdrawnOffset, Withdrawn, 0)
	}
	if len(u.NLRI) != 0 {
		w.routes(bgp.IPv4Unicast, u.NLRI, u.NLRIOffset, Announced, stateClassic)
	}
	for _, afi := range [...]uint16{bgp.AFIIPv4, bgp.AFIIPv6} {
		if m := &w.reach; m.Family.AFI == afi && m.Family.Index() >= 0 {
			w.routes(m.Family, m.NLRI, m.NLRIOffset, Announced, 0)
		}
		if m := &w.unreach; m.Family.AFI == afi && len(m.Withdrawn) != 0 && m.Family.Index() >= 0 {
			w.routes(m.Family, m.Withdrawn, m.WithdrawnOffset, Withdrawn, 0)
		}
	}
	if len(u.Withdrawn) == 0 && len(u.NLRI) == 0 {
		switch f := w.unreach.Family; {
		case len(u.Attrs) == 0:
			w.endOfRIB(bgp.IPv4Unicast)
		case f.AFI != 0 && f.SAFI != 0 && len(w.unreach.Withdrawn) == 0 && w.reach.Family.Index() < 0:
			w.endOfRIB(f)
		}
	}
	return w.err
}

// readAttributes reads what matters of the attributes, makes sure of them what
// pmacct does, and writes those that are kept to attrs.
func (w *update) readAttributes(u *bgp.Update) error {
	d := w.t.apply.attrs[:0]
	var asPath, as4Path bgp.Attr
	var hasPath, hasAS4 bool
	walk := u.Attributes()
	for walk.Next() {
		a := walk.Attr()
		v := a.Value
		var err error
		switch a.Type {
		case bgp.AttrOrigin:
			_, err = a.Origin()
		case bgp.AttrASPath:
			asPath, hasPath = a, true
		case bgp.AttrAS4Path:
			as4Path, hasAS4 = a, true
		case bgp.AttrNextHop:
			if len(v) != 4 {
				err = &bgp.Error{What: fmt.Sprintf("NEXT_HOP of %d bytes, want 4", len(v)), Offset: a.Offset, Section: "RFC 4271 section 5.1.3"}
			}
		case bgp.AttrMED, bgp.AttrLocalPref:
			_, err = a.Uint32()
		case bgp.AttrMPReach:
			var r bgp.MPReach
			if r, err = readReach(a); err == nil {
				w.reach = r
			}
			v = v[:min(len(v), 4+len(r.NextHop))]
		case bgp.AttrMPUnreach:
			if w.unreach, err = bgp.ParseMPUnreach(a); err != nil {
				return err
			}
			continue
		case bgp.AttrAIGP:
			if len(v) != 3 && len(v) != 11 {
				err = &bgp.Error{What: fmt.Sprintf("AIGP of %d bytes, want 11", len(v)), Offset: a.Offset, Section: "RFC 7311 section 3"}
			}
		case bgp.AttrPrefixSID:
			if !(len(v) >= 3 && v[0] != 1 || len(v) >= 10 && binary.BigEndian.Uint16(v[1:]) == 7) {
				err = &bgp.Error{What: "Prefix-SID without a whole label index TLV", Offset: a.Offset, Section: "RFC 8669 section 3.1"}
			}
		case bgp.AttrOTC:
			if len(v) < 4 {
				err = &bgp.Error{What: fmt.Sprintf("OTC of %d bytes, want 4", len(v)), Offset: a.Offset, Section: "RFC 9234 section 5"}
			}
		}
		if err != nil {
			return err
		}
		d = append(d, a.Flags&^0x10, a.Type)
		d = binary.BigEndian.AppendUint16(d, uint16(len(v)))
		d = append(d, v...)
	}
	w.t.apply.attrs = d
	if hasAS4 && !w.peer.fourOctet && len(as4Path.Value)%2 == 0 && !(hasPath && len(asPath.Value)%2 == 0) {
		return &bgp.Error{What: "AS4_PATH without an AS_PATH", Offset: as4Path.Offset, Section: "RFC 6793 section 4.2.3"}
	}
	return walk.Err()
}

func readReach(a bgp.Attr) (bgp.MPReach, error) {
	r, err := bgp.ParseMPReach(a)
	if err != nil {
		return r, err
	}
	switch len(r.NextHop) {
	case 4, 12, 16, 24, 32, 48:
	default:
		return r, &bgp.Error{What: fmt.Sprintf("next hop of %d bytes for %v", len(r.NextHop), r.Family), Offset: a.Offset + 3, Section: "RFC 4760 section 3"}
	}
	if len(r.NLRI) == 0 {
		return r, &bgp.Error{What: "MP_REACH_NLRI without routes", Offset: r.NLRIOffset, Section: "RFC 4760 section 3"}
	}
	return r, nil
}

// maxWireBits are the longest prefixes that pmacct takes, labels and route
// distinguisher included, by family.
var maxWireBits = [len(bgp.Families)]int{32, 56, 120, 128, 152, 216}

// maxRDType is the last type of route distinguisher that there is.
const maxRDType = 2

// routes applies the routes of one part of the UPDATE.
func (w *update) routes(f bgp.Family, nlri []byte, offset int, kind Kind, state uint8) {
	index := f.Index()
	addPath := w.peer.addPath[index]
	if addPath && f.SAFI != bgp.SAFIUnicast {
		w.fail(ErrLabelledAddPath)
		return
	}
	labels := bgp.LabelStack
	if kind == Withdrawn {
		labels = bgp.SingleLabel
	}
	ft := w.family(index)
	ft.state = ft.state.after(route)
	if !w.peer.fourOctet {
		state |= stateTwoOctet
	}
	routes := bgp.Routes(nlri, offset, f, addPath, labels)
	var group [together]place
	for more := true; more; {
		n := 0
		var bad error
		for ; n < len(group) && bad == nil; n++ {
			if more = routes.Next(); !more {
				bad = routes.Err()
				break
			}
			p := routes.Prefix()
			if bad = check(index, p); bad != nil {
				more = false
				break
			}
			group[n].key, group[n].host = makeKey(ft, p)
			group[n].labels = p.Labels
		}
		w.find(ft, group[:n], kind)
		for i := range group[:n] {
			if kind == Announced {
				w.announce(ft, &group[i], state)
			} else {
				w.withdraw(ft, &group[i], state)
			}
		}
		if bad != nil {
			w.fail(bad)
		}
	}
}

// check makes sure of a route what pmacct does beside what parsing it does.
func check(family int, p *bgp.Prefix) error {
	if p.WireBits > maxWireBits[family] {
		return &bgp.Error{What: fmt.Sprintf("labels and prefix of %d bits, want at most %d", p.WireBits, maxWireBits[family]), Offset: p.Offset, Section: "RFC 8277 section 2.2"}
	}
	if bgp.Families[family].SAFI == bgp.SAFIVPN && binary.BigEndian.Uint16(p.RD[:]) > maxRDType {
		return &bgp.Error{What: "route distinguisher of an unknown type", Offset: p.Offset, Section: "RFC 4364 section 4.2"}
	}
	return nil
}

// together is how many routes of a message are looked for at once.
const together = 8

// A place is a route of a message and where it is or belongs in a tree.
type place struct {
	key            key
	host           uint8
	labels         []byte
	l              *leaf
	i              int
	found          bool
	changes, shape uint64 // of the tree
}

// find looks for routes and, before the first is announced, for their attributes.
// In a large table none of it is near, and each step tells where the next one
// goes: the leaf, the entry, the attributes that it had; the index, the
// attributes that it gets. So what a step needs is fetched well before, and for
// all routes before any is looked at.
func (w *update) find(f *familyTable, group []place, kind Kind) {
	t := w.t
	first := kind == Announced && !w.ready
	if first {
		w.hash = xxhash.Sum64(t.apply.attrs)
		if !t.opts.Hashes {
			t.store.expect(w.hash)
		}
	}
	for i := range group {
		p := &group[i]
		p.changes, p.shape = f.changes, f.shape
		if p.l = f.leaf(&p.key); p.l != nil {
			fetch(unsafe.Pointer(p.l), 1)
			for at := 0; at < fan; at += apart {
				fetch(unsafe.Pointer(&p.l.keys[at*f.words]), 1)
			}
		}
	}
	if first && !t.opts.Hashes {
		t.store.expectSet(w.hash)
	}
	for i := range group {
		p := &group[i]
		p.i, p.found = 0, false
		if p.l != nil {
			if p.i, p.found = f.within(p.l, &p.key); p.found {
				fetch(unsafe.Pointer(&p.l.vals[p.i]), 1)
			}
		}
	}
	if first {
		w.ready = true
		if !t.opts.Hashes {
			w.attrs, w.refused = t.store.intern(t.apply.attrs, w.hash)
		}
	}
	for i := range group {
		if p := &group[i]; p.found {
			t.expectOld(&p.l.vals[p.i])
		}
	}
}

// expectOld fetches what the release of a value needs.
func (t *Table) expectOld(v *value) {
	if !t.opts.Hashes && v.attrs != 0 {
		fetch(unsafe.Pointer(t.store.set(v.attrs)), 1)
	}
}

// again brings up to date a place that was found before others were changed.
func (p *place) again(f *familyTable) {
	switch {
	case p.shape != f.shape:
		p.l, p.i, p.found = f.seek(&p.key)
	case p.changes != f.changes && p.l != nil:
		p.i, p.found = f.within(p.l, &p.key)
	}
	p.changes, p.shape = f.changes, f.shape
}

// fail keeps the first error, but one that says that the table lacks a route
// before all others.
func (w *update) fail(err error) {
	if w.err == nil || refusal(err) && !refusal(w.err) {
		w.err = err
	}
}

func refusal(err error) bool { return err == ErrTooManyRoutes || err == ErrStoreFull }

// family returns the table of a family of the RIB.
func (w *update) family(i int) *familyTable {
	f := w.rib.families[i]
	if f != nil && f.addPath != w.peer.addPath[i] {
		// Routes with and without path identifiers have nothing to do with
		// each other.
		w.t.detachFamily(w.rib, i, Swept)
		f = nil
	}
	if f == nil {
		f = &familyTable{rib: w.rib, index: i, addPath: w.peer.addPath[i]}
		f.tree = tree{mem: w.t.store.mem, words: words(i, f.addPath)}
		w.rib.families[i] = f
	}
	return f
}

func (w *update) endOfRIB(f bgp.Family) {
	if i := f.Index(); i >= 0 {
		w.t.progress = w.arrival
		w.t.ended(w.family(i))
		// The same RIB under another BGP identifier is that of a life before.
		for _, r := range w.peer.ribs {
			if r != w.rib && r.Kind == w.rib.Kind && r.families[i] != nil && r.families[i].stale > 0 {
				w.t.ended(r.families[i])
			}
		}
	}
	if w.each == nil {
		return
	}
	c := &w.t.apply.change
	*c = Change{Kind: Marker}
	c.Route.RIB, c.Family = w.rib, f
	c.Resumed = w.peer.resumption.of(w.rib.Kind)
	c.Value = Value{Sec: w.per.Sec, Usec: w.per.Usec, Arrival: w.arrival, Flags: w.per.Flags}
	w.each(c)
}

// keep returns what is kept of the attributes and of labels, with a reference.
func (w *update) keep(labels []byte) (attrs, stack handle, err error) {
	s := w.t.store
	if w.t.opts.Hashes {
		hash := w.hash
		if len(labels) != 0 {
			hash = hashOf(w.t.apply.attrs, labels)
		}
		return handle(hash >> 32), handle(hash), nil
	}
	if w.refused != nil {
		return 0, 0, w.refused
	}
	if len(labels) != 0 {
		if stack, err = s.internLabels(labels); err != nil {
			return 0, 0, err
		}
	}
	if !s.retain(w.attrs) {
		s.releaseLabels(stack)
		return 0, 0, ErrStoreFull
	}
	return w.attrs, stack, nil
}

// refuse says why a route is not in the table, and makes sure that it is not.
func (w *update) refuse(f *familyTable, p *place, err error) {
	if p.found {
		if p.l.vals[p.i].gen != w.rib.gen {
			w.t.progress = w.arrival
		}
		w.t.drop(f, p.l, p.i)
	}
	w.fail(err)
}

func (w *update) announce(f *familyTable, p *place, state uint8) {
	t := w.t
	p.again(f)
	if !p.found && t.entries >= t.opts.MaxRoutes {
		w.fail(ErrTooManyRoutes)
		return
	}
	attrs, labels, err := w.keep(p.labels)
	if err != nil {
		w.refuse(f, p, err)
		return
	}
	now := value{
		attrs: attrs, labels: labels, sec: w.per.Sec, usec: w.per.Usec, arrival: w.arrival,
		gen: w.rib.gen, host: p.host, flags: w.per.Flags, state: state,
	}
	var v *value
	if p.found {
		v = &p.l.vals[p.i]
	} else if v = f.insert(&p.key, p.l, p.i); v == nil {
		t.releaseValue(&now)
		w.fail(ErrStoreFull)
		return
	}
	c := &t.apply.change
	if w.each != nil {
		*c = Change{Kind: Announced}
		c.Route.RIB = w.rib
		f.describe(&c.Route, &p.key, p.host)
		t.value(&c.Value, f, &now, &t.apply.after)
		c.Value.Labels = p.labels
	}
	if !p.found {
		*v = now
		t.entries++
		t.routes++
		if w.each != nil {
			w.each(c)
		}
		return
	}
	old := *v
	if w.each != nil {
		t.value(&c.Before, f, &old, &t.apply.before)
		c.Found = !c.Before.Withdrawn
		c.Resumed = w.peer.resumption.of(w.rib.Kind) && int32(old.gen-w.rib.begun) >= 0
		c.Same = c.Found && old.attrs == now.attrs && old.labels == now.labels && (old.state^now.state)&stateTwoOctet == 0
	}
	w.refreshed(f, &old)
	*v = now
	if old.state&stateWithdrawn != 0 {
		f.withdrawn--
		t.routes++
	}
	if w.each != nil {
		w.each(c)
	}
	t.releaseValue(&old)
}

// refreshed notes that a route was mentioned.
func (w *update) refreshed(f *familyTable, v *value) {
	if v.gen != w.rib.gen {
		f.stale--
		w.t.progress = w.arrival
	}
}

func (w *update) withdraw(f *familyTable, p *place, state uint8) {
	t := w.t
	p.again(f)
	c := &t.apply.change
	if w.each != nil {
		*c = Change{Kind: Withdrawn}
		c.Route.RIB = w.rib
		f.describe(&c.Route, &p.key, p.host)
		c.Value = Value{Labels: p.labels, Sec: w.per.Sec, Usec: w.per.Usec, Arrival: w.arrival, Flags: w.per.Flags, TwoOctet: state&stateTwoOctet != 0, Withdrawn: true}
		if p.found {
			t.value(&c.Before, f, &p.l.vals[p.i], &t.apply.before)
			c.Found = !c.Before.Withdrawn
		}
		c.Dumping = f.state == Begin || f.state == Dump
		w.each(c)
	}
	var v *value
	switch {
	case !t.opts.Withdrawn:
		if p.found {
			if p.l.vals[p.i].gen != w.rib.gen {
				t.progress = w.arrival
			}
			t.drop(f, p.l, p.i)
		}
		return
	case !p.found:
		if t.entries >= t.opts.MaxRoutes {
			w.fail(ErrTooManyRoutes)
			return
		}
		if v = f.insert(&p.key, p.l, p.i); v == nil {
			w.fail(ErrStoreFull)
			return
		}
		t.entries++
		f.withdrawn++
	default:
		v = &p.l.vals[p.i]
		w.refreshed(f, v)
		if v.state&stateWithdrawn == 0 {
			t.routes--
			f.withdrawn++
		}
		t.releaseValue(v)
	}
	*v = value{
		sec: w.per.Sec, usec: w.per.Usec, arrival: w.arrival, gen: w.rib.gen, host: p.host,
		flags: w.per.Flags, state: state | stateWithdrawn,
	}
}

// value fills in what v says. A single label is written to buf.
func (t *Table) value(dst *Value, f *familyTable, v *value, buf *[4]byte) {
	*dst = Value{
		Sec: v.sec, Usec: v.usec, Arrival: v.arrival, Flags: v.flags,
		TwoOctet: v.state&stateTwoOctet != 0, Classic: v.state&stateClassic != 0,
		Withdrawn: v.state&stateWithdrawn != 0, Stale: v.gen != f.rib.gen,
	}
	if t.opts.Hashes {
		dst.hash, dst.kept = uint64(v.attrs)<<32|uint64(v.labels), allOfIt
		return
	}
	if v.attrs != 0 {
		s := t.store.set(v.attrs)
		dst.Attrs, dst.hash, dst.kept = content(unsafe.Pointer(s)), s.hash, attrsAlone
	}
	if v.labels != 0 {
		dst.Labels = t.store.labels(v.labels, buf)
	}
}

// makeKey returns the key of p and its host bits: those in its last byte behind
// its length.
func makeKey(f *familyTable, p *bgp.Prefix) (k key, host uint8) {
	var a [16]byte
	copy(a[:], p.Bytes)
	if n := -p.Bits & 7; n != 0 {
		last := &a[p.Bits/8]
		host = *last &^ (0xff << n)
		*last &= 0xff << n
	}
	i := 0
	if bgp.Families[f.index].SAFI == bgp.SAFIVPN {
		k[0] = binary.BigEndian.Uint64(p.RD[:])
		i = 1
	}
	if bgp.Families[f.index].AFI == bgp.AFIIPv4 {
		k[i] = uint64(binary.BigEndian.Uint32(a[:]))<<32 | uint64(p.Bits)
		if f.addPath {
			k[i+1] = uint64(p.PathID)
		}
		return k, host
	}
	k[i] = binary.BigEndian.Uint64(a[:])
	k[i+1] = binary.BigEndian.Uint64(a[8:])
	k[i+2] = uint64(p.Bits)<<32 | uint64(p.PathID)
	return k, host
}

// describe fills in what a key says.
func (f *familyTable) describe(r *Route, k *key, host uint8) {
	r.Family = bgp.Families[f.index]
	r.AddPath = f.addPath
	i := 0
	if r.Family.SAFI == bgp.SAFIVPN {
		binary.BigEndian.PutUint64(r.RD[:], k[0])
		i = 1
	}
	var a [16]byte
	bits := 0
	if r.Family.AFI == bgp.AFIIPv4 {
		binary.BigEndian.PutUint32(a[:], uint32(k[i]>>32))
		bits = int(uint32(k[i]))
		if f.addPath {
			r.PathID = uint32(k[i+1])
		}
		a[bits/8] |= host
		r.Prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte(a[:])), bits)
		return
	}
	binary.BigEndian.PutUint64(a[:], k[i])
	binary.BigEndian.PutUint64(a[8:], k[i+1])
	bits = int(k[i+2] >> 32)
	r.PathID = uint32(k[i+2])
	if host != 0 {
		a[bits/8] |= host
	}
	r.Prefix = netip.PrefixFrom(netip.AddrFrom16(a), bits)
}
