package pmacct

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/table"
)

// scratch is memory that a session reuses from message to message.
type scratch struct {
	head   []byte // of the message's records: from the time to the peer
	family []byte // AFI and SAFI
	attrs  []byte // attributes, as JSON
	end    []byte // of route records: from the time of arrival to the peer
	hashIn []byte // what the key hash covers
	values []byte // what the value hash covers
	tail   []byte // of route records, where no peer is up
	infos  []info
	path   path
	path4  path
	merged path
	comms  []uint32
	ext    []uint64
	large  []largeCommunity
	upd    attributes // of the UPDATE
	stored stored
	notes  table.NoteReader
	gone   table.GoneReader
	rows   tableWriter
}

// attributes are those of an UPDATE that matter, the last one where one is
// there twice.
type attributes struct {
	nextHop   []byte // of NEXT_HOP, nil without
	mpNextHop []byte // of MP_REACH_NLRI, its RD cut off; nil without
	asPath    bgp.Attr
	as4Path   bgp.Attr
	hasPath   bool
	hasAS4    bool
	comms     []byte
	ext       []byte
	large     []byte
	origin    byte
	hasPref   bool
	hasMED    bool
	hasAIGP   bool
	pref, med uint32
	aigp      uint64
	sid, otc  uint32
	reach     bgp.MPReach   // routes of an MP_REACH_NLRI that makes records
	unreach   bgp.MPUnreach // and of an MP_UNREACH_NLRI; Family zero without
}

// routeMonitoring appends one record per route.
func (s *Session) routeMonitoring(b *record.Batch, o *record.Origin, at int64, msg, notes []byte) error {
	per, err := bmp.ParsePerPeer(msg)
	if err != nil {
		return s.malformed(msg, 0, err)
	}
	if !usable(&per) {
		return s.refuse(msg)
	}
	key := newPeerKey(&per)
	peer := s.peers[key]
	if peer == nil {
		s.enc.counters.missingPeerUp.Add(1)
		return errNoPeerUp
	}
	rm, err := bmp.ParseRouteMonitoring(msg)
	if err != nil {
		return s.malformed(msg, 0, err)
	}
	if len(rm.TLVs.Rest()) != 0 {
		s.enc.counters.trailingTLVs.Add(1)
	}
	t, err := bgp.Type(rm.Update)
	if err != nil {
		return s.malformed(msg, rm.Offset, err)
	}
	if t != bgp.TypeUpdate {
		s.enc.counters.notUpdate.Add(1)
		return nil
	}
	u, err := bgp.ParseUpdate(rm.Update)
	if err != nil {
		return s.malformed(msg, rm.Offset, err)
	}
	a := &s.upd
	defer func() { *a = attributes{} }() // it points into msg
	if err := s.readAttributes(&u, a); err != nil {
		return s.malformed(msg, rm.Offset, err)
	}
	if a.mergesAS4(peer.fourOctet) && !a.hasASPath() {
		return s.malformed(msg, rm.Offset, &bgp.Error{What: "AS4_PATH without an AS_PATH", Offset: a.as4Path.Offset, Section: "RFC 6793 section 4.2.3"})
	}

	w := routeWriter{s: s, b: b, o: o, msg: msg, per: per, peer: peer, attrs: a, pdu: rm.Offset}
	if len(notes) != 0 {
		s.notes = table.ReadNotes(notes)
		w.notes = &s.notes
	}
	w.begin(&key, at)
	if len(u.Withdrawn) != 0 {
		w.withdraw(bgp.IPv4Unicast, u.Withdrawn, bgp.WithdrawnOffset)
	}
	if len(u.NLRI) != 0 {
		w.announce(bgp.IPv4Unicast, u.NLRI, u.NLRIOffset)
	}
	// pmacct goes through IPv4 first, then IPv6, announcements first.
	for _, afi := range [...]uint16{bgp.AFIIPv4, bgp.AFIIPv6} {
		if r := &a.reach; r.Family.AFI == afi && r.Family.Index() >= 0 {
			w.announce(r.Family, r.NLRI, r.NLRIOffset)
		}
		if r := &a.unreach; r.Family.AFI == afi && len(r.Withdrawn) != 0 && r.Family.Index() >= 0 {
			w.withdraw(r.Family, r.Withdrawn, r.WithdrawnOffset)
		}
	}
	if len(u.Withdrawn) == 0 && len(u.NLRI) == 0 {
		switch f := a.unreach.Family; {
		case len(u.Attrs) == 0:
			w.endOfRIB(bgp.IPv4Unicast)
		case f.AFI != 0 && f.SAFI != 0 && len(a.unreach.Withdrawn) == 0 && a.reach.Family.Index() < 0:
			w.endOfRIB(f)
		}
	}
	return w.err
}

// readAttributes reads the attributes of u into a, and what the value hash
// covers into s.values. What is wrong with one attribute makes pmacct drop the
// whole message, except for AS paths and communities.
func (s *Session) readAttributes(u *bgp.Update, a *attributes) error {
	s.values = s.values[:0]
	walk := u.Attributes()
	for walk.Next() {
		t := walk.Attr()
		if s.enc.header {
			s.values = hashAttribute(s.values, t)
		}
		var err error
		switch t.Type {
		case bgp.AttrMPReach:
			err = s.readReach(t, a)
		case bgp.AttrMPUnreach:
			a.unreach, err = bgp.ParseMPUnreach(t)
			if err == nil && a.unreach.Family.Index() < 0 && len(a.unreach.Withdrawn) != 0 {
				s.enc.counters.unknownFamilies.Add(1)
			}
		default:
			var usual bool
			if usual, err = a.read(&t); !usual && !known[t.Type] {
				s.enc.counters.unknownAttributes.Add(1)
			}
		}
		if err != nil {
			return err
		}
	}
	return walk.Err()
}

// read reads an attribute, and reports whether it is one that makes a key.
func (a *attributes) read(t *bgp.Attr) (usual bool, err error) {
	switch t.Type {
	case bgp.AttrOrigin:
		a.origin, err = t.Origin()
	case bgp.AttrASPath:
		a.asPath, a.hasPath = *t, true
	case bgp.AttrAS4Path:
		a.as4Path, a.hasAS4 = *t, true
	case bgp.AttrNextHop:
		if len(t.Value) != 4 {
			return true, &bgp.Error{What: fmt.Sprintf("NEXT_HOP of %d bytes, want 4", len(t.Value)), Offset: t.Offset, Section: "RFC 4271 section 5.1.3"}
		}
		a.nextHop = t.Value
	case bgp.AttrMED:
		a.med, err = t.Uint32()
		a.hasMED = true
	case bgp.AttrLocalPref:
		a.pref, err = t.Uint32()
		a.hasPref = true
	case bgp.AttrCommunities:
		a.comms = t.Value
	case bgp.AttrExtCommunities:
		a.ext = t.Value
	case bgp.AttrLargeCommunities:
		a.large = t.Value
	case bgp.AttrAIGP:
		err = a.readAIGP(t)
	case bgp.AttrPrefixSID:
		err = a.readPrefixSID(t)
	case bgp.AttrOTC:
		if len(t.Value) < 4 {
			return true, &bgp.Error{What: fmt.Sprintf("OTC of %d bytes, want 4", len(t.Value)), Offset: t.Offset, Section: "RFC 9234 section 5"}
		}
		a.otc = binary.BigEndian.Uint32(t.Value)
	default:
		return false, nil
	}
	return true, err
}

// known are the attribute types that have a meaning, although most of these
// make no key.
var known = func() (k [256]bool) {
	for _, t := range [...]byte{
		bgp.AttrAtomicAggregate, bgp.AttrAggregator, bgp.AttrOriginatorID, bgp.AttrClusterList,
		bgp.AttrAS4Aggregator, bgp.AttrPMSITunnel, bgp.AttrTunnelEncap, bgp.AttrTrafficEngineering,
		bgp.AttrIPv6ExtCommunities, bgp.AttrPEDistinguishers, bgp.AttrBGPLS, bgp.AttrBGPsecPath,
		bgp.AttrDPath, bgp.AttrSFP, bgp.AttrBFDDiscriminator, bgp.AttrRouterCapabilities, bgp.AttrSet,
	} {
		k[t] = true
	}
	return k
}()

// readReach reads an MP_REACH_NLRI.
func (s *Session) readReach(t bgp.Attr, a *attributes) error {
	r, err := bgp.ParseMPReach(t)
	if err != nil {
		return err
	}
	if r.Family.Index() < 0 {
		s.enc.counters.unknownFamilies.Add(1)
	}
	if nh := r.NextHop; !a.setNextHop(nh) {
		return &bgp.Error{What: fmt.Sprintf("next hop of %d bytes for %v", len(nh), r.Family), Offset: t.Offset + 3, Section: "RFC 4760 section 3"}
	}
	if len(r.NLRI) == 0 {
		return &bgp.Error{What: "MP_REACH_NLRI without routes", Offset: r.NLRIOffset, Section: "RFC 4760 section 3"}
	}
	a.reach = r
	return nil
}

// setNextHop takes the next hop of an MP_REACH_NLRI as pmacct does: the global
// address of a pair of IPv6 addresses, none of a pair with RDs. It reports
// whether it has a length that there is.
func (a *attributes) setNextHop(nh []byte) bool {
	switch len(nh) {
	case 4, 16:
		a.mpNextHop = nh
	case 12, 24:
		a.mpNextHop = nh[8:]
	case 32:
		a.mpNextHop = nh[:16]
	case 48:
		a.mpNextHop = nil
	default:
		return false
	}
	return true
}

// readAIGP takes the attribute for a single TLV, as pmacct does.
func (a *attributes) readAIGP(t *bgp.Attr) error {
	switch len(t.Value) {
	case 3:
		a.aigp = 0
	case 11:
		a.aigp, a.hasAIGP = binary.BigEndian.Uint64(t.Value[3:]), true
	default:
		return &bgp.Error{What: fmt.Sprintf("AIGP of %d bytes, want 11", len(t.Value)), Offset: t.Offset, Section: "RFC 7311 section 3"}
	}
	return nil
}

// readPrefixSID looks at the first TLV only, as pmacct does.
func (a *attributes) readPrefixSID(t *bgp.Attr) error {
	v := t.Value
	switch {
	case len(v) >= 3 && v[0] != 1:
	case len(v) >= 10 && binary.BigEndian.Uint16(v[1:]) == 7:
		a.sid = binary.BigEndian.Uint32(v[6:])
	default:
		return &bgp.Error{What: "Prefix-SID without a whole label index TLV", Offset: t.Offset, Section: "RFC 8669 section 3.1"}
	}
	return nil
}

// A routeWriter writes the records of one UPDATE, or of routes of a table.
type routeWriter struct {
	s     *Session
	b     *record.Batch
	o     *record.Origin
	msg   []byte
	per   bmp.PerPeer
	peer  *peer
	attrs *attributes
	notes *table.NoteReader // nil without
	pdu   int               // offset of the UPDATE in msg
	ready bool              // s.attrs is filled
	err   error
}

// begin prepares what all records of the message share.
func (w *routeWriter) begin(key *peerKey, at int64) {
	s := w.s
	h := append(s.head[:0], `, "timestamp": "`...)
	if s.dump != nil {
		h = append(h, s.dump.slot...)
	} else {
		h = s.event.append(h, &s.enc.clock, int64(w.per.Sec), w.per.Usec)
	}
	h = append(h, '"')
	h = appendRIB(h, &w.per, w.per.Filtered())
	s.head = appendBGPID(h, &w.per)

	e := s.end[:0]
	if s.dump == nil {
		e = append(e, `, "timestamp_arrival": "`...)
		e = s.appendArrival(e, at)
		e = append(e, '"')
	}
	e = append(e, s.router...)
	s.end = append(e, w.peer.tail...)

	if s.enc.header {
		s.hashIn = hashPeer(append(s.hashIn[:0], s.hashed...), &w.per, key)
	}
}

// setFamily prepares what all records of one family share.
func (w *routeWriter) setFamily(f bgp.Family) {
	d := append(w.s.family[:0], `, "event_type": "log", `...)
	if w.s.dump != nil {
		d = append(w.s.family[:0], `, "event_type": "dump", `...)
	}
	w.s.family = appendFamily(d, f)
}

func appendFamily(d []byte, f bgp.Family) []byte {
	d = append(d, `"afi": `...)
	d = strconv.AppendUint(d, uint64(f.AFI), 10)
	d = append(d, `, "safi": `...)
	return appendByte(d, f.SAFI)
}

// maxWireBits are the longest prefixes that pmacct takes, labels and route
// distinguisher included, by family. It leaves the rest of the attribute
// behind a longer one.
var maxWireBits = [len(bgp.Families)]int{32, 56, 120, 128, 152, 216}

func (w *routeWriter) announce(f bgp.Family, nlri []byte, offset int) {
	if !w.ready {
		w.ready = true
		w.s.attrs = w.s.appendAttributes(w.s.attrs[:0], w.peer.fourOctet, w.attrs)
	}
	w.write("update", w.s.attrs, f, nlri, offset, bgp.LabelStack)
}

func (w *routeWriter) withdraw(f bgp.Family, nlri []byte, offset int) {
	w.write("withdraw", nil, f, nlri, offset, bgp.SingleLabel)
}

// write writes a record for each route in nlri.
func (w *routeWriter) write(kind string, attrs []byte, f bgp.Family, nlri []byte, offset int, labels bgp.Labels) {
	s := w.s
	family := f.Index()
	addPath := w.peer.addPath[family]
	if addPath && f.SAFI != bgp.SAFIUnicast {
		// pmacct takes the path identifier for a prefix length and, finding
		// nothing but zeros there, drops the attribute.
		s.enc.counters.labelledAddPath.Add(1)
		w.err = cmp.Or(w.err, error(errLabelledAddPath))
		return
	}
	w.setFamily(f)
	routes := bgp.Routes(nlri, offset, f, addPath, labels)
	for routes.Next() {
		p := routes.Prefix()
		if p.WireBits > maxWireBits[family] {
			w.fail(&bgp.Error{What: fmt.Sprintf("labels and prefix of %d bits, pmacct takes %d", p.WireBits, maxWireBits[family]), Offset: p.Offset, Section: "RFC 8277 section 2.2"})
			return
		}
		if f.SAFI == bgp.SAFIVPN && binary.BigEndian.Uint16(p.RD[:]) > rdAS4 {
			w.fail(&bgp.Error{What: "route distinguisher of an unknown type", Offset: p.Offset, Section: "RFC 4364 section 4.2"})
			return
		}
		said, stack := attrs, p.Labels
		if w.notes != nil {
			note := w.notes.Next()
			switch {
			case note == table.NoteKnown && kind == "update",
				note == table.NoteUnknown && kind == "withdraw" && s.enc.rib:
				continue
			case note == table.NoteValue && kind == "withdraw" && s.enc.rib:
				v := w.notes.Value()
				said, stack = s.storedText(v), v.Labels
			}
		}
		w.record(kind, said, f, p, addPath, stack)
	}
	if err := routes.Err(); err != nil {
		w.fail(err)
	}
}

// record writes the record of one route, with the attributes attrs, as text,
// and the label stack labels.
func (w *routeWriter) record(kind string, attrs []byte, f bgp.Family, p *bgp.Prefix, addPath bool, labels []byte) {
	s := w.s
	off := s.start(w.b)
	d := append(w.b.Data, `{"seq": `...)
	d = s.seq(d)
	if s.dump == nil {
		d = append(d, `, "log_type": "`...)
		d = append(d, kind...)
		d = append(d, '"')
	}
	d = append(d, s.head...)
	// A key is set once: where peer and route both have a distinguisher,
	// the route's takes the place of the peer's.
	peerRD := distinguisher(&w.per)
	early := peerRD != [8]byte{}
	if early {
		if f.SAFI == bgp.SAFIVPN {
			d = appendRouteRD(d, p.RD)
		} else {
			d = append(d, `, "rd": "`...)
			d = appendRD(d, peerRD)
			d = append(d, `", "rd_origin": "bmp"`...)
		}
	}
	d = append(d, s.family...)
	w.b.Data = append(appendRoute(d, f, p, addPath, attrs, labels, !early), s.end...)
	if !s.hashes() {
		s.finish(w.b, w.o, off)
		return
	}
	var key uint64
	s.hashIn, key = hashKey(s.hashIn, f, p)
	value := uint64(withdrawn)
	if kind == "update" {
		s.values, value = hashValue(s.values, labels)
	}
	s.finishRoute(w.b, w.o, off, key, value)
}

// appendRoute appends what is said about a route of family f, from the prefix on.
func appendRoute(d []byte, f bgp.Family, p *bgp.Prefix, addPath bool, attrs, labels []byte, rd bool) []byte {
	d = append(d, `, "ip_prefix": "`...)
	d = appendPrefix(d, f, p)
	d = append(d, '"')
	if addPath {
		d = append(d, `, "as_path_id": `...)
		d = strconv.AppendUint(d, uint64(p.PathID), 10)
	}
	d = append(d, attrs...)
	if f.SAFI == bgp.SAFIVPN && rd {
		d = appendRouteRD(d, p.RD)
	}
	if f.SAFI != bgp.SAFIUnicast {
		d = append(d, `, "mpls_label": "`...)
		d = strconv.AppendUint(d, uint64((&bgp.Prefix{Labels: labels}).Label()), 10)
		d = append(d, '"')
	}
	return d
}

// fail remembers the first error of the message.
func (w *routeWriter) fail(err error) {
	if w.err == nil {
		w.err = w.s.malformed(w.msg, w.pdu, err)
	}
}

// endOfRIB writes the record of an End-of-RIB marker.
func (w *routeWriter) endOfRIB(f bgp.Family) {
	s := w.s
	w.setFamily(f)
	off := s.start(w.b)
	d := append(w.b.Data, `{"seq": `...)
	d = s.seq(d)
	d = append(d, `, "log_type": "end-of-rib"`...)
	d = append(d, s.head...)
	d = appendPeerDistinguisher(d, &w.per)
	d = append(d, s.family...)
	w.b.Data = append(d, s.end...)
	var key uint64
	if s.hashes() {
		s.hashIn, key = hashEndOfRIB(s.hashIn, f)
	}
	s.finishState(w.b, w.o, off, key, stated)
}

func appendRouteRD(dst []byte, rd [8]byte) []byte {
	dst = append(dst, `, "rd": "`...)
	dst = appendRD(dst, rd)
	return append(dst, `", "rd_origin": "bgp"`...)
}

func appendPrefix(dst []byte, f bgp.Family, p *bgp.Prefix) []byte {
	var b [16]byte
	copy(b[:], p.Bytes)
	if f.AFI == bgp.AFIIPv4 {
		dst = appendIPv4(dst, b[:4])
	} else {
		dst = appendIPv6(dst, b[:])
	}
	return appendByte(append(dst, '/'), byte(p.Bits))
}

// appendAttributes appends the attributes of announced routes.
func (s *scratch) appendAttributes(d []byte, fourOctet bool, a *attributes) []byte {
	d = append(d, `, "bgp_nexthop": "`...)
	switch {
	case len(a.mpNextHop) == 16:
		d = appendIPv6(d, a.mpNextHop)
	case len(a.mpNextHop) == 4:
		d = appendIPv4(d, a.mpNextHop)
	case a.nextHop != nil:
		d = appendIPv4(d, a.nextHop)
	default:
		d = append(d, "0.0.0.0"...)
	}
	d = append(d, `", "as_path": "`...)
	d = s.appendPath(d, fourOctet, a)
	d = append(d, '"')
	d = s.appendCommunities(d, a.comms)
	d = s.appendExtCommunities(d, a.ext)
	d = s.appendLargeCommunities(d, a.large)
	d = append(d, `, "origin": "`...)
	if a.origin < 3 {
		d = append(d, "ieu"[a.origin])
	}
	d = append(d, '"')
	if a.hasPref {
		d = append(d, `, "local_pref": `...)
		d = strconv.AppendUint(d, uint64(a.pref), 10)
	}
	if a.hasMED {
		d = append(d, `, "med": `...)
		d = strconv.AppendUint(d, uint64(a.med), 10)
	}
	if a.hasAIGP {
		d = append(d, `, "aigp": `...)
		d = strconv.AppendInt(d, int64(a.aigp), 10)
	}
	if a.sid != 0 {
		d = append(d, `, "psid_li": `...)
		d = strconv.AppendUint(d, uint64(a.sid), 10)
	}
	if a.otc != 0 {
		d = append(d, `, "otc": `...)
		d = strconv.AppendUint(d, uint64(a.otc), 10)
	}
	return d
}

// appendCommunities appends communities sorted and without duplicates. Bytes
// that are not a whole number of them make no key.
func (s *scratch) appendCommunities(d, b []byte) []byte {
	if len(b) == 0 || len(b)%4 != 0 {
		return d
	}
	v := s.comms[:0]
	for c := bgp.Communities(b); len(v) < c.Len(); {
		v = append(v, c.At(len(v)))
	}
	s.comms = v
	slices.Sort(v)
	d = append(d, `, "comms": "`...)
	for i, c := range slices.Compact(v) {
		if i > 0 {
			d = append(d, ' ')
		}
		switch c {
		case 0:
			d = append(d, "internet"...)
		case 0xffffff01:
			d = append(d, "no-export"...)
		case 0xffffff02:
			d = append(d, "no-advertise"...)
		case 0xffffff03:
			d = append(d, "local-AS"...)
		default:
			d = strconv.AppendUint(d, uint64(c>>16), 10)
			d = append(d, ':')
			d = strconv.AppendUint(d, uint64(c&0xffff), 10)
		}
	}
	return append(d, '"')
}

// appendExtCommunities does the same for extended communities. Only route
// targets and sites of origin are printed as such.
func (s *scratch) appendExtCommunities(d, b []byte) []byte {
	if len(b) == 0 || len(b)%8 != 0 {
		return d
	}
	v := s.ext[:0]
	for c := bgp.ExtCommunities(b); len(v) < c.Len(); {
		v = append(v, c.At(len(v)))
	}
	s.ext = v
	slices.Sort(v)
	d = append(d, `, "ecomms": "`...)
	for i, c := range slices.Compact(v) {
		if i > 0 {
			d = append(d, ' ')
		}
		d = appendExtCommunity(d, c)
	}
	return append(d, '"')
}

func appendExtCommunity(d []byte, c uint64) []byte {
	const (
		twoOctetAS  = 0
		ipv4        = 1
		fourOctetAS = 2
		target      = 2
		origin      = 3
	)
	format, sub := byte(c>>56)&0x3f, byte(c>>48) // without the IANA and transitive bits
	if format > fourOctetAS || sub != target && sub != origin {
		return append(d, '?')
	}
	if sub == target {
		d = append(d, "RT:"...)
	} else {
		d = append(d, "SoO:"...)
	}
	switch format {
	case twoOctetAS:
		d = strconv.AppendUint(d, c>>32&0xffff, 10)
		d = append(d, ':')
		return strconv.AppendUint(d, c&0xffffffff, 10)
	case ipv4:
		var ip [4]byte
		binary.BigEndian.PutUint32(ip[:], uint32(c>>16))
		d = appendIPv4(d, ip[:])
	default:
		d = strconv.AppendUint(d, c>>16&0xffffffff, 10)
	}
	d = append(d, ':')
	return strconv.AppendUint(d, c&0xffff, 10)
}

// A largeCommunity orders as its bytes on the wire do.
type largeCommunity struct{ admin, data1, data2 uint32 }

func compareLarge(x, y largeCommunity) int {
	for _, d := range [...]int64{
		int64(x.admin) - int64(y.admin), int64(x.data1) - int64(y.data1), int64(x.data2) - int64(y.data2),
	} {
		if d != 0 {
			return int(d)
		}
	}
	return 0
}

// appendLargeCommunities does the same for large communities.
func (s *scratch) appendLargeCommunities(d, b []byte) []byte {
	if len(b) == 0 || len(b)%12 != 0 {
		return d
	}
	v := s.large[:0]
	for c := bgp.LargeCommunities(b); len(v) < c.Len(); {
		x, y, z := c.At(len(v))
		v = append(v, largeCommunity{x, y, z})
	}
	s.large = v
	slices.SortFunc(v, compareLarge)
	d = append(d, `, "lcomms": "`...)
	for i, c := range slices.Compact(v) {
		if i > 0 {
			d = append(d, ' ')
		}
		d = strconv.AppendUint(d, uint64(c.admin), 10)
		d = append(d, ':')
		d = strconv.AppendUint(d, uint64(c.data1), 10)
		d = append(d, ':')
		d = strconv.AppendUint(d, uint64(c.data2), 10)
	}
	return append(d, '"')
}
