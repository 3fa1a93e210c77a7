package replay

import (
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
)

// BMP message types (RFC 7854, 4.1).
const (
	routeMonitoring  = 0
	statisticsReport = 1
	peerDown         = 2
	peerUp           = 3
	initiation       = 4
	termination      = 5
)

const (
	commonLen = 6
	peerLen   = 42
	bgpLen    = 19

	locRIBPeer = 3           // peer type, RFC 9069
	ribFlags   = 0x40 | 0x10 // post-policy, Adj-RIB-Out
	twoByteAS  = 0x20        // AS_PATH in the old format
)

type family struct {
	afi  uint16
	safi uint8
}

// decodable tells whether routes of f can be told apart. Messages of other
// families are sent on and leave no trace in the table.
func (f family) decodable() bool {
	return (f.afi == 1 || f.afi == 2) && (f.safi == 1 || f.safi == 4 || f.safi == 128)
}

// A peerID tells peers apart: type, distinguisher and address.
type peerID struct {
	kind          uint8
	distinguisher [8]byte
	addr          [16]byte
}

func peerOf(header []byte) peerID {
	return peerID{header[0], [8]byte(header[2:10]), [16]byte(header[10:26])}
}

// ribOf returns the flags that tell the RIBs of a peer apart.
func ribOf(header []byte) uint8 {
	if header[0] == locRIBPeer {
		return 0
	}
	return header[1] & ribFlags
}

// A peer is what the table knows of one monitored peer.
type peer struct {
	id   peerID
	ups  []upMessage // while up: the Peer Ups to repeat, see peerUp
	down []byte      // while down: the Peer Down
	ribs []*rib
}

type upMessage struct {
	rib     uint8
	bgpID   [4]byte
	opens   []byte // part of msg: all after the addresses and ports
	msg     []byte
	addPath []family // families that carry path identifiers in this RIB
}

// A rib holds the routes of one RIB of one peer. Routes stay in their slots, so
// that a walk over the slots in several steps meets every route that was there
// when it began and was not withdrawn since.
type rib struct {
	header   [peerLen]byte
	peer     *peer
	index    map[routeKey]uint32
	routes   []route
	free     []uint32
	families []family
	addPath  []family
}

type routeKey struct {
	addr [16]byte
	rd   [8]byte
	id   uint32 // path identifier
	afi  uint8
	safi uint8
	bits uint8
	path bool // id is there
}

type route struct {
	key    routeKey
	attrs  *attrs // nil in a free slot
	time   [8]byte
	labels string // label stack as received, families 4 and 128
	flags  uint8  // of the per-peer header
}

// attrs is one distinct set of path attributes: the length of the MP_REACH next
// hop, that next hop, and all attributes but MP_REACH and MP_UNREACH as received.
// The length is 0 for routes in the UPDATE's own field.
type attrs struct {
	refs int
	enc  string
}

func (a *attrs) nextHop() string { return a.enc[1 : 1+int(a.enc[0])] }
func (a *attrs) others() string  { return a.enc[1+int(a.enc[0]):] }

// A ribs is the table of one router. It is not safe for concurrent use.
type ribs struct {
	initiation []byte
	peers      []*peer // in order of appearance
	all        []*rib  // in order of appearance
	byPeer     map[peerID]*peer
	interned   map[string]*attrs
	last       *rib // of the previous message: most often the next one's too
	scratch    []byte

	// Counted over all messages applied.
	announced, withdrawn, endOfRIB, opaque uint64
}

func newRIBs() *ribs {
	return &ribs{byPeer: make(map[peerID]*peer), interned: make(map[string]*attrs)}
}

// apply takes one complete message into the table and tells whether sessions
// that are under way should get it: an Initiation that they began with and a
// Termination they should not.
func (t *ribs) apply(msg []byte) (send bool) {
	kind, body := msg[5], msg[commonLen:]
	switch kind {
	case initiation:
		if string(msg) == string(t.initiation) {
			return false
		}
		t.initiation = append(t.initiation[:0], msg...)
		return true
	case termination:
		return false
	}
	if len(body) < peerLen {
		t.opaque++
		return true
	}
	switch kind {
	case peerUp:
		t.peerUp(msg, body)
	case peerDown:
		t.peerDown(msg, body)
	case routeMonitoring:
		if !t.update(body) {
			t.opaque++
		}
	}
	return true
}

func (t *ribs) peer(id peerID) *peer {
	p := t.byPeer[id]
	if p == nil {
		p = &peer{id: id}
		t.byPeer[id] = p
		t.peers = append(t.peers, p)
	}
	return p
}

// mostUps bounds the Peer Ups that are kept of one peer.
const mostUps = 16

// peerUp begins a new life of the peer: its routes will be announced again. A
// Peer Up that names a RIB other than pre-policy Adj-RIB-In speaks for that RIB
// alone. There are routers that send one for each RIB, and ones that send one for
// each address family, with the capabilities of that family in the OPENs; so all
// that differ in RIB, BGP identifier or OPENs are kept.
func (t *ribs) peerUp(msg, body []byte) {
	p := t.peer(peerOf(body))
	p.down = nil
	which := ribOf(body)
	own := append([]byte(nil), msg...)
	up := upMessage{rib: which, bgpID: [4]byte(body[30:34]), msg: own, addPath: addPathFamilies(body, which)}
	up.opens = own[min(len(own), commonLen+peerLen+20):]
	at := slices.IndexFunc(p.ups, func(u upMessage) bool {
		return u.rib == up.rib && u.bgpID == up.bgpID && string(u.opens) == string(up.opens)
	})
	switch {
	case at >= 0:
		p.ups[at] = up
	case len(p.ups) == mostUps:
		p.ups = append(p.ups[:0], p.ups[1:]...)
		fallthrough
	default:
		p.ups = append(p.ups, up)
	}
	for _, r := range p.ribs {
		own := ribOf(r.header[:])
		addPath := p.addPath(own)
		if which == 0 || own == which || !slices.Equal(addPath, r.addPath) {
			t.clear(r)
		}
		r.addPath = addPath
	}
}

func (t *ribs) peerDown(msg, body []byte) {
	p := t.peer(peerOf(body))
	p.ups = nil
	p.down = append(p.down[:0], msg...)
	for _, r := range p.ribs {
		t.clear(r)
	}
}

// addPath returns the families with path identifiers in a RIB: by the Peer Ups of
// that RIB, else by all.
func (p *peer) addPath(which uint8) []family {
	one := slices.ContainsFunc(p.ups, func(u upMessage) bool { return u.rib == which })
	var found []family
	for _, u := range p.ups {
		if u.rib == which || !one {
			found = append(found, u.addPath...)
		}
	}
	slices.SortFunc(found, func(a, b family) int {
		return cmp.Or(cmp.Compare(a.afi, b.afi), cmp.Compare(a.safi, b.safi))
	})
	return slices.Compact(found)
}

func (t *ribs) clear(r *rib) {
	for i := range r.routes {
		t.release(r.routes[i].attrs)
	}
	clear(r.routes)
	r.routes = r.routes[:0]
	r.free = r.free[:0]
	clear(r.index)
}

func (t *ribs) rib(header []byte) *rib {
	id, which := peerOf(header), ribOf(header)
	if r := t.last; r != nil && r.peer.id == id && ribOf(r.header[:]) == which {
		return r
	}
	p := t.peer(id)
	for _, r := range p.ribs {
		if ribOf(r.header[:]) == which {
			t.last = r
			return r
		}
	}
	r := &rib{header: [peerLen]byte(header), peer: p, index: make(map[routeKey]uint32), addPath: p.addPath(which)}
	p.ribs = append(p.ribs, r)
	t.all = append(t.all, r)
	t.last = r
	return r
}

// update takes a Route Monitoring message (without its common header) into the
// table. It returns false, and may have taken only part of it, if the message
// cannot be understood.
func (t *ribs) update(body []byte) bool {
	header, pdu := body[:peerLen], body[peerLen:]
	if len(pdu) < bgpLen+4 || pdu[18] != 2 {
		return false
	}
	size := int(binary.BigEndian.Uint16(pdu[16:]))
	if size < bgpLen+4 || size > len(pdu) {
		return false
	}
	pdu = pdu[bgpLen:size] // what follows are TLVs, not routes
	withdrawn, pdu, ok := cut16(pdu)
	if !ok {
		return false
	}
	attributes, announced, ok := cut16(pdu)
	if !ok {
		return false
	}
	var reach, unreach []byte
	enc := append(t.scratch[:0], 0)
	for rest := attributes; len(rest) > 0; {
		a, ok := nextAttribute(rest)
		if !ok {
			return false
		}
		switch a.code {
		case 14:
			reach = a.value
		case 15:
			unreach = a.value
		default:
			enc = append(enc, rest[:a.size]...)
		}
		rest = rest[a.size:]
	}
	t.scratch = enc
	r := t.rib(header)
	copy(r.header[26:34], header[26:34]) // AS and BGP identifier may be others now
	unicast4 := family{1, 1}
	switch {
	case len(withdrawn) == 0 && len(attributes) == 0 && len(announced) == 0:
		t.endOfRIB++
		r.see(unicast4)
		return true
	case len(announced) == 0 && len(withdrawn) == 0 && len(reach) == 0 && len(unreach) == 3:
		t.endOfRIB++
		r.see(family{binary.BigEndian.Uint16(unreach), unreach[2]})
		return true
	}
	if !t.withdraw(r, unicast4, withdrawn) {
		return false
	}
	if len(unreach) >= 3 {
		f := family{binary.BigEndian.Uint16(unreach), unreach[2]}
		if !f.decodable() || !t.withdraw(r, f, unreach[3:]) {
			return false
		}
	}
	if len(announced) > 0 && !t.announce(r, header, unicast4, enc, announced) {
		return false
	}
	if len(reach) >= 5 {
		f := family{binary.BigEndian.Uint16(reach), reach[2]}
		hop := int(reach[3])
		if !f.decodable() || len(reach) < 5+hop {
			return false
		}
		own := len(enc)
		enc = append(enc, byte(hop))
		enc = append(enc, reach[4:4+hop]...)
		enc = append(enc, enc[1:own]...)
		t.scratch = enc
		return t.announce(r, header, f, enc[own:], reach[5+hop:])
	}
	return true
}

func (r *rib) see(f family) {
	for _, seen := range r.families {
		if seen == f {
			return
		}
	}
	r.families = append(r.families, f)
}

func (r *rib) pathIDs(f family) bool {
	for _, have := range r.addPath {
		if have == f {
			return true
		}
	}
	return false
}

func (t *ribs) announce(r *rib, header []byte, f family, enc, nlri []byte) bool {
	r.see(f)
	a := t.interned[string(enc)]
	if a == nil {
		a = &attrs{enc: string(enc)}
		t.interned[a.enc] = a
	}
	a.refs++ // held while routes are set, so that replacing the last user keeps it
	defer t.release(a)
	withID := r.pathIDs(f)
	for len(nlri) > 0 {
		key, labels, size, ok := nextRoute(nlri, f, withID)
		if !ok {
			return false
		}
		nlri = nlri[size:]
		t.announced++
		a.refs++
		at, have := r.index[key]
		if !have {
			if n := len(r.free); n > 0 {
				at, r.free = r.free[n-1], r.free[:n-1]
			} else {
				at = uint32(len(r.routes))
				r.routes = append(r.routes, route{})
			}
			r.index[key] = at
		}
		slot := &r.routes[at]
		t.release(slot.attrs)
		slot.key, slot.attrs, slot.flags = key, a, header[1]
		slot.time = [8]byte(header[34:42])
		if string(labels) != slot.labels {
			slot.labels = string(labels)
		}
	}
	return true
}

func (t *ribs) withdraw(r *rib, f family, nlri []byte) bool {
	if len(nlri) == 0 {
		return true
	}
	withID := r.pathIDs(f)
	for len(nlri) > 0 {
		key, _, size, ok := nextRoute(nlri, f, withID)
		if !ok {
			return false
		}
		nlri = nlri[size:]
		t.withdrawn++
		if at, have := r.index[key]; have {
			delete(r.index, key)
			t.release(r.routes[at].attrs)
			r.routes[at] = route{}
			r.free = append(r.free, at)
		}
	}
	return true
}

func (t *ribs) release(a *attrs) {
	if a == nil {
		return
	}
	if a.refs--; a.refs == 0 {
		delete(t.interned, a.enc)
	}
}

// len returns the number of routes in the table.
func (t *ribs) len() int {
	n := 0
	for _, r := range t.all {
		n += len(r.index)
	}
	return n
}

// appendOpening appends what a session begins with before its routes.
func (t *ribs) appendOpening(dst []byte) (_ []byte, messages int) {
	dst = append(dst, t.initiation...)
	messages = 1
	for _, p := range t.peers {
		for i := range p.ups {
			dst = append(dst, p.ups[i].msg...)
			messages++
		}
		if p.down != nil {
			dst = append(dst, p.down...)
			messages++
		}
	}
	return dst, messages
}

// A walk is a position in a dump of the table that is made in steps.
type walk struct{ rib, slot int }

// walk appends messages for the routes from w on, one route each, and the
// End-of-RIBs where a RIB ends, until dst has grown by limit bytes or the table
// is at its end. The table may change between steps: what is announced behind w
// must reach the session by itself.
func (t *ribs) walk(dst []byte, w *walk, limit int) (_ []byte, messages int, done bool) {
	stop := len(dst) + limit
	for w.rib < len(t.all) {
		r := t.all[w.rib]
		for w.slot < len(r.routes) {
			if len(dst) >= stop {
				return dst, messages, false
			}
			if rt := &r.routes[w.slot]; rt.attrs != nil {
				dst = r.appendRoute(dst, rt)
				messages++
			}
			w.slot++
		}
		if r.peer.down == nil {
			for _, f := range r.families {
				dst = r.appendEndOfRIB(dst, f)
				messages++
			}
		}
		w.rib, w.slot = w.rib+1, 0
	}
	return dst, messages, true
}

func (r *rib) appendRoute(dst []byte, rt *route) []byte {
	start := len(dst)
	dst = bmp.AppendHeader(dst, routeMonitoring)
	head := len(dst)
	dst = append(dst, r.header[:]...)
	dst[head+1] = rt.flags
	copy(dst[head+34:], rt.time[:])
	pdu := len(dst)
	dst = bgp.AppendHeader(dst, 2)
	dst = append(dst, 0, 0, 0, 0)
	from := len(dst)
	hop, others := rt.attrs.nextHop(), rt.attrs.others()
	mp := rt.key.afi != 1 || rt.key.safi != 1 || hop != ""
	if mp {
		dst = append(dst, 0x90, 14, 0, 0, 0, rt.key.afi, rt.key.safi, byte(len(hop)))
		dst = append(dst, hop...)
		dst = append(dst, 0)
		dst = rt.appendNLRI(dst)
		binary.BigEndian.PutUint16(dst[from+2:], uint16(len(dst)-from-4))
	}
	dst = append(dst, others...)
	binary.BigEndian.PutUint16(dst[from-2:], uint16(len(dst)-from))
	if !mp {
		dst = rt.appendNLRI(dst)
	}
	return bmp.AppendLength(bgp.AppendLength(dst, pdu), start)
}

func (rt *route) appendNLRI(dst []byte) []byte {
	if rt.key.path {
		dst = bgp.AppendPathID(dst, rt.key.id)
	}
	bits := int(rt.key.bits) + 8*len(rt.labels)
	if rt.key.safi == 128 {
		bits += 64
	}
	dst = append(dst, byte(bits))
	dst = append(dst, rt.labels...)
	if rt.key.safi == 128 {
		dst = append(dst, rt.key.rd[:]...)
	}
	return append(dst, rt.key.addr[:(rt.key.bits+7)/8]...)
}

func (r *rib) appendEndOfRIB(dst []byte, f family) []byte {
	start := len(dst)
	dst = bmp.AppendHeader(dst, routeMonitoring)
	dst = append(dst, r.header[:]...)
	clear(dst[len(dst)-8:]) // no time
	dst = bgp.AppendEndOfRIB(dst, f.afi, f.safi)
	return bmp.AppendLength(dst, start)
}

// cut16 takes a field that a two-byte length precedes off the front of b.
func cut16(b []byte) (field, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, nil, false
	}
	n := 2 + int(binary.BigEndian.Uint16(b))
	if n > len(b) {
		return nil, nil, false
	}
	return b[2:n], b[n:], true
}

type attribute struct {
	code  uint8
	value []byte
	size  int // with its head
}

func nextAttribute(b []byte) (attribute, bool) {
	if len(b) < 3 {
		return attribute{}, false
	}
	head, n := 3, int(b[2])
	if b[0]&0x10 != 0 {
		if len(b) < 4 {
			return attribute{}, false
		}
		head, n = 4, int(binary.BigEndian.Uint16(b[2:]))
	}
	if head+n > len(b) {
		return attribute{}, false
	}
	return attribute{b[1], b[head : head+n], head + n}, true
}

// nextRoute reads the first route of an NLRI field and returns its key, its
// label stack (in place) and its size in bytes.
func nextRoute(b []byte, f family, withID bool) (key routeKey, labels []byte, size int, ok bool) {
	key.afi, key.safi = uint8(f.afi), f.safi
	at := 0
	if withID {
		if len(b) < 5 {
			return key, nil, 0, false
		}
		key.id, key.path = binary.BigEndian.Uint32(b), true
		at = 4
	}
	if at >= len(b) {
		return key, nil, 0, false
	}
	bits := int(b[at])
	at++
	end := at + (bits+7)/8
	if end > len(b) {
		return key, nil, 0, false
	}
	if f.safi != 1 {
		start := at
		for {
			if bits < 24 {
				return key, nil, 0, false
			}
			label := uint32(b[at])<<16 | uint32(b[at+1])<<8 | uint32(b[at+2])
			at, bits = at+3, bits-24
			// The stack ends at the bottom bit, or with one of the values that
			// stand for no label in a withdrawal (RFC 8277, 2.4).
			if label&1 != 0 || label == 0x800000 || label == 0 {
				break
			}
		}
		labels = b[start:at]
	}
	if f.safi == 128 {
		if bits < 64 {
			return key, nil, 0, false
		}
		key.rd = [8]byte(b[at:])
		at, bits = at+8, bits-64
	}
	if longest := 32; f.afi == 1 && bits > longest || bits > 128 {
		return key, nil, 0, false
	}
	key.bits = uint8(bits)
	copy(key.addr[:], b[at:end])
	return key, labels, end, true
}

// addPathFamilies returns the families whose routes carry path identifiers in
// the given RIB, by the two OPENs of a Peer Up (RFC 7911, 4): both sides have the
// capability, and the sender of the routes does not only receive.
func addPathFamilies(body []byte, which uint8) []family {
	opens := body[peerLen:]
	if len(opens) < 20 {
		return nil
	}
	sent, rest, ok := cutOpen(opens[20:])
	if !ok {
		return nil
	}
	received, _, ok := cutOpen(rest)
	if !ok {
		return nil
	}
	sender, receiver := addPathModes(received), addPathModes(sent)
	if which&0x10 != 0 {
		sender, receiver = receiver, sender
	}
	var both []family
	for f, mode := range sender {
		if _, ok := receiver[f]; ok && mode&2 != 0 {
			both = append(both, f)
		}
	}
	return both
}

func cutOpen(b []byte) (open, rest []byte, ok bool) {
	if len(b) < bgpLen+10 || b[18] != 1 {
		return nil, nil, false
	}
	n := int(binary.BigEndian.Uint16(b[16:]))
	if n < bgpLen+10 || n > len(b) {
		return nil, nil, false
	}
	return b[:n], b[n:], true
}

// addPathModes returns the modes of the ADD-PATH capability in an OPEN.
func addPathModes(open []byte) map[family]uint8 {
	modes := make(map[family]uint8)
	params := open[bgpLen+10:]
	wide := len(params) >= 3 && open[bgpLen+9] == 255 && params[0] == 255 // RFC 9072
	if wide {
		params = params[3:]
	}
	for len(params) >= 2 {
		head, n := 2, int(params[1])
		if wide {
			if len(params) < 3 {
				return modes
			}
			head, n = 3, int(binary.BigEndian.Uint16(params[1:]))
		}
		if head+n > len(params) {
			return modes
		}
		kind, caps := params[0], params[head:head+n]
		params = params[head+n:]
		for kind == 2 && len(caps) >= 2 && 2+int(caps[1]) <= len(caps) {
			value := caps[2 : 2+caps[1]]
			for caps[0] == 69 && len(value) >= 4 {
				modes[family{binary.BigEndian.Uint16(value), value[2]}] = value[3]
				value = value[4:]
			}
			caps = caps[2+caps[1]:]
		}
	}
	return modes
}
