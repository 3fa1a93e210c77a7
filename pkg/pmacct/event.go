package pmacct

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/record"
)

// logEvent appends a log_init or log_close record.
func (s *Session) logEvent(b *record.Batch, o *record.Origin, at int64, event string) {
	off := s.start(b)
	d := append(b.Data, `{"seq": `...)
	d = s.seq(d)
	d = append(d, `, "timestamp": "`...)
	d = s.appendArrival(d, at)
	d = append(d, '"')
	d = append(d, s.router...)
	d = append(d, `, "event_type": "`...)
	d = append(d, event...)
	b.Data = append(d, '"')
	k := kindLogInit
	if event == "log_close" {
		k = kindLogClose
	}
	s.finishState(b, o, off, s.hashSession(k), stated)
}

func (s *Session) appendArrival(dst []byte, at int64) []byte {
	return s.arrival.append(dst, &s.enc.clock, at/1e6, uint32(at%1e6))
}

// appendEventHead appends what all events have in common, after the number.
func (s *Session) appendEventHead(d []byte, at int64, sec, usec uint32, kind string) []byte {
	d = append(d, `, "timestamp": "`...)
	if s.dump != nil {
		d = append(d, s.dump.slot...)
		d = append(d, `", "timestamp_event": "`...)
		d = s.event.append(d, &s.enc.clock, int64(sec), usec)
	} else {
		d = s.event.append(d, &s.enc.clock, int64(sec), usec)
		d = append(d, `", "timestamp_arrival": "`...)
		d = s.appendArrival(d, at)
	}
	d = append(d, '"')
	d = append(d, s.router...)
	d = append(d, `, "bmp_msg_type": "`...)
	d = append(d, kind...)
	return append(d, '"')
}

// startEvent appends the beginning of the record of an event, up to its number.
func (s *Session) startEvent(d []byte) []byte {
	d = append(d, `{"event_type": "`...)
	if s.dump != nil {
		d = append(d, `dump", "seq": `...)
	} else {
		d = append(d, `log", "seq": `...)
	}
	return s.seq(d)
}

// ribText is what records say about a table: by RIB, then by whether it is
// filtered.
var ribText = [...][2]string{
	bmp.AdjRIBInPre:   {0: `"Adj-Rib-In Pre-Policy", "is_filtered": 0, "is_post": 0, "is_in": 1`},
	bmp.AdjRIBInPost:  {0: `"Adj-Rib-In Post-Policy", "is_filtered": 0, "is_post": 1, "is_in": 1`},
	bmp.AdjRIBOutPre:  {0: `"Adj-Rib-Out Pre-Policy", "is_filtered": 0, "is_post": 0, "is_out": 1`},
	bmp.AdjRIBOutPost: {0: `"Adj-Rib-Out Post-Policy", "is_filtered": 0, "is_post": 1, "is_out": 1`},
	bmp.LocRIB: {
		0: `"Loc-Rib", "is_filtered": 0, "is_loc": 1`,
		1: `"Loc-Rib", "is_filtered": 1, "is_loc": 1`,
	},
}

func appendRIB(dst []byte, p *bmp.PerPeer, filtered bool) []byte {
	i := 0
	if filtered {
		i = 1
	}
	dst = append(dst, `, "bmp_rib_type": `...)
	return append(dst, ribText[p.RIB()][i]...)
}

// appendPeerDistinguisher appends the distinguisher of p, if it has one.
func appendPeerDistinguisher(dst []byte, p *bmp.PerPeer) []byte {
	rd := distinguisher(p)
	if rd == [8]byte{} {
		return dst
	}
	dst = append(dst, `, "rd": "`...)
	dst = appendRD(dst, rd)
	return append(dst, `", "rd_origin": "bmp"`...)
}

var peerTypeNames = [...]string{
	bmp.PeerGlobal: "Global Instance Peer",
	bmp.PeerRD:     "RD Instance Peer",
	bmp.PeerLocal:  "Local Instance Peer",
	bmp.PeerLocRIB: "Loc-RIB Instance Peer",
}

func appendPeerType(dst []byte, p *bmp.PerPeer, named bool) []byte {
	dst = append(dst, `, "peer_type": `...)
	dst = appendByte(dst, p.Type)
	if named && int(p.Type) < len(peerTypeNames) {
		dst = append(dst, `, "peer_type_str": "`...)
		dst = append(dst, peerTypeNames[p.Type]...)
		dst = append(dst, '"')
	}
	return dst
}

// appendPeer appends address and AS number of p.
func appendPeer(dst []byte, p *bmp.PerPeer, as uint32) []byte {
	dst = append(dst, `, "peer_ip": "`...)
	dst = appendPeerAddr(dst, p, p.RawAddress[:])
	dst = append(dst, `", "peer_asn": `...)
	return strconv.AppendUint(dst, uint64(as), 10)
}

// appendPeerAddr appends raw, an address in the family of p.
func appendPeerAddr(dst []byte, p *bmp.PerPeer, raw []byte) []byte {
	if p.IPv6() {
		return appendIPv6(dst, raw)
	}
	return appendIPv4(dst, raw[12:])
}

func appendBGPID(dst []byte, p *bmp.PerPeer) []byte {
	dst = append(dst, `, "bgp_id": "`...)
	dst = appendIPv4(dst, p.BGPID[:])
	return append(dst, '"')
}

// usable reports whether pmacct takes messages about p: not if it is a Loc-RIB
// with an address.
func usable(p *bmp.PerPeer) bool {
	return p.Type != bmp.PeerLocRIB || p.RawAddress == [16]byte{}
}

// refuse counts a message about a peer that is not usable.
func (s *Session) refuse(msg []byte) error {
	s.enc.counters.locRIBAddress.Add(1)
	return &Error{bmp.Type(msg), bmp.HeaderLen + 10, ErrLocRIBAddress}
}

// An infoType is how pmacct prints a TLV of one type: under a name, as text
// unless it is hex or a number.
type infoType struct {
	name string
	form infoForm
}

type infoForm uint8

const (
	infoText infoForm = iota
	infoHex
	infoReason
)

// What pmacct knows of information TLVs, by message and type.
var (
	initInfo = [...]infoType{
		{"string", infoText}, {"sysdescr", infoText}, {"sysname", infoText},
		{"reserved", infoHex}, {"reserved", infoHex},
	}
	termInfo   = [...]infoType{{"string", infoText}, {"reason", infoReason}}
	peerUpInfo = [...]infoType{
		{"string", infoText}, {"reserved", infoHex}, {"reserved", infoHex},
		{"vrf_table_name", infoText}, {"admin_label", infoText},
	}
)

var termReasons = [...]string{
	"Session administratively closed", "Unspecified reason", "Out of resources",
	"Redundant connection", "Session permanently administratively closed",
}

// An info is a TLV on its way into a record.
type info struct {
	pen   uint32 // enterprise, 0 for IANA's
	typ   uint16
	known *infoType // nil if pmacct has no name for it
	value []byte
}

// same reports whether x and y have the same key in the record.
func (x *info) same(y *info) bool {
	if x.known != nil || y.known != nil {
		return x.known != nil && y.known != nil && x.known.name == y.known.name
	}
	return x.pen == y.pen && x.typ == y.typ
}

// collectInfo reads TLVs into s.infos. A key that comes again takes the later
// value in the earlier place; text that is not valid UTF-8 is left out.
func (s *Session) collectInfo(tlvs bmp.TLVs, known []infoType) error {
	s.infos = s.infos[:0]
next:
	for tlvs.Next() {
		t := tlvs.TLV()
		x := info{typ: t.Type &^ 0x8000, value: t.Value}
		if t.Type&0x8000 != 0 { // enterprise
			if len(t.Value) < 4 {
				return &bmp.Error{What: fmt.Sprintf("enterprise TLV of %d bytes, want at least 4", len(t.Value)), Offset: t.Offset + 2, Section: "draft-ietf-grow-bmp-tlv"}
			}
			x.pen, x.value = binary.BigEndian.Uint32(t.Value), t.Value[4:]
		}
		if x.pen == 0 && int(x.typ) < len(known) {
			x.known = &known[x.typ]
		} else {
			s.enc.counters.unknownTLVs.Add(1)
		}
		if x.known != nil && x.known.form == infoText {
			if i := bytes.IndexByte(x.value, 0); i > 0 {
				x.value = x.value[:i]
			} else if i == 0 {
				x.value = emptyText
			}
			if !validText(x.value) {
				continue
			}
		}
		for i := range s.infos {
			if s.infos[i].same(&x) {
				s.infos[i].value, s.infos[i].typ, s.infos[i].known = x.value, x.typ, x.known
				continue next
			}
		}
		s.infos = append(s.infos, x)
	}
	return tlvs.Err()
}

// emptyText stands for a text that begins with a zero byte: it prints as an
// empty string, whereas a value without bytes prints as null.
var emptyText = []byte{0}

// appendInfos appends s.infos under keys that begin with prefix.
func (s *Session) appendInfos(d []byte, prefix string) []byte {
	for i := range s.infos {
		x := &s.infos[i]
		d = append(d, `, "`...)
		d = append(d, prefix...)
		switch {
		case x.known != nil:
			d = append(d, x.known.name...)
		case x.pen != 0:
			d = strconv.AppendUint(d, uint64(x.pen), 10)
			d = append(d, '_')
			fallthrough
		default:
			d = strconv.AppendUint(d, uint64(x.typ), 10)
		}
		d = append(d, `": `...)
		d = appendInfo(d, x)
	}
	return d
}

func appendInfo(d []byte, x *info) []byte {
	if len(x.value) == 0 {
		return append(d, "null"...)
	}
	form := infoHex
	if x.known != nil {
		form = x.known.form
	}
	at := len(d)
	d = append(d, '"')
	switch form {
	case infoHex:
		d = appendHex(d, x.value)
	case infoText:
		if x.value[0] != 0 {
			d = appendString(d, x.value)
		}
	case infoReason:
		switch len(x.value) {
		case 2:
			if n := binary.BigEndian.Uint16(x.value); int(n) < len(termReasons) {
				d = append(d, termReasons[n]...)
			} else {
				d = strconv.AppendUint(d, uint64(n), 10)
			}
		case 1:
			d = appendByte(d, x.value[0])
		case 4:
			d = strconv.AppendUint(d, uint64(binary.BigEndian.Uint32(x.value)), 10)
		case 8:
			d = strconv.AppendUint(d, binary.BigEndian.Uint64(x.value), 10)
		default:
			return append(d[:at], "null"...)
		}
	}
	return append(d, '"')
}

// info appends the record of an Initiation or Termination message.
func (s *Session) info(b *record.Batch, o *record.Origin, at int64, msg []byte, kind string, tlvs bmp.TLVs, known []infoType) error {
	if err := s.collectInfo(tlvs, known); err != nil {
		return s.malformed(msg, 0, err)
	}
	off := s.start(b)
	d := s.startEvent(b.Data)
	d = s.appendEventHead(d, at, 0, 0, kind)
	if kind == "term" {
		b.Data = s.appendInfos(d, "bmp_term_info_")
		s.finishState(b, o, off, s.hashSession(kindTerm), stated)
		return nil
	}
	b.Data = s.appendInfos(d, "bmp_init_info_")
	s.finishState(b, o, off, s.hashSession(kindInit), s.hashSaid(kindInit, msg[bmp.HeaderLen:]))
	return nil
}

// learn enters the peer of a Peer Up message, unless it is up already: then
// what was known of it stays, as in pmacct. It returns the AS number of this
// end of the BGP session.
func (s *Session) learn(msg []byte, u *bmp.PeerUp) (localAS uint32, err error) {
	if !usable(&u.Peer) {
		return 0, s.refuse(msg)
	}
	sent, localAS, four, err := bgp.ParseStrictOpen(u.Sent)
	if err != nil {
		return 0, s.malformed(msg, u.SentOffset, err)
	}
	received, remoteAS, remoteFour, err := bgp.ParseStrictOpen(u.Received)
	if err != nil {
		return 0, s.malformed(msg, u.ReceivedOffset, err)
	}
	key := newPeerKey(&u.Peer)
	if _, up := s.peers[key]; up {
		return localAS, nil
	}
	if len(s.peers) >= maxPeers {
		s.enc.counters.tooManyPeers.Add(1)
		return 0, &Error{bmp.TypePeerUp, bmp.HeaderLen, ErrTooManyPeers}
	}
	p := &peer{fourOctet: four && remoteFour}
	for i, f := range bgp.Families {
		from := received.AddPath(f)
		p.addPath[i] = sent.AddPath(f) != 0 && from != 0 && from != bgp.AddPathReceive
	}
	p.tail = appendPeer(nil, &u.Peer, remoteAS)
	p.tail = append(p.tail, `, "peer_tcp_port": 0, "bmp_msg_type": "route_monitor"`...)
	s.peers[key] = p
	return localAS, nil
}

func (s *Session) peerUp(b *record.Batch, o *record.Origin, at int64, msg []byte) error {
	u, err := bmp.ParsePeerUp(msg)
	if err != nil {
		return s.malformed(msg, 0, err)
	}
	localAS, err := s.learn(msg, &u)
	if err != nil {
		return err
	}
	if err := s.collectInfo(u.TLVs, peerUpInfo[:]); err != nil {
		return s.malformed(msg, 0, err)
	}
	p := &u.Peer
	off := s.start(b)
	d := s.startEvent(b.Data)
	d = s.appendEventHead(d, at, p.Sec, p.Usec, "peer_up")
	d = appendPeer(d, p, p.AS)
	d = append(d, `, "local_as": `...)
	d = strconv.AppendUint(d, uint64(localAS), 10)
	d = appendBGPID(d, p)
	d = appendPeerType(d, p, true)
	d = appendRIB(d, p, p.Filtered())
	d = append(d, `, "local_port": `...)
	d = strconv.AppendUint(d, uint64(u.LocalPort), 10)
	d = append(d, `, "remote_port": `...)
	d = strconv.AppendUint(d, uint64(u.RemotePort), 10)
	d = append(d, `, "local_ip": "`...)
	d = appendPeerAddr(d, p, u.RawLocalAddress[:])
	d = append(d, '"')
	d = appendPeerDistinguisher(d, p)
	b.Data = s.appendInfos(d, "bmp_peer_up_info_")
	head := [2]byte{byte(p.RIB())}
	if p.Filtered() {
		head[1] = 1
	}
	value := s.hashSaid(kindPeerUp, head[:], msg[bmp.HeaderLen+bmp.PerPeerLen:])
	s.finishState(b, o, off, s.hashOfPeer(kindPeer, p), value)
	return nil
}

var downReasons = [...]string{
	"Reserved",
	"The local system closed the session",
	"The local system closed the session without a notification message",
	"The remote system closed the session",
	"The remote system closed the session without a notification message",
	"Info for this peer will no longer be sent for configuration reasons",
}

// downComplete reports whether d has the FSM event code that its reason asks
// for.
func downComplete(d *bmp.PeerDown) bool {
	_, ok := d.Event()
	return ok || d.Reason != bmp.DownLocal
}

func (s *Session) peerDown(b *record.Batch, o *record.Origin, at int64, msg []byte) error {
	down, err := bmp.ParsePeerDown(msg)
	if err != nil {
		return s.malformed(msg, 0, err)
	}
	p := &down.Peer
	if !usable(p) {
		return s.refuse(msg)
	}
	if !downComplete(&down) {
		return s.malformed(msg, 0, &bmp.Error{What: "message ends within the FSM event code", Offset: len(msg), Section: "RFC 7854 section 4.9"})
	}
	off := s.start(b)
	d := s.startEvent(b.Data)
	d = s.appendEventHead(d, at, p.Sec, p.Usec, "peer_down")
	d = appendPeer(d, p, p.AS)
	d = appendBGPID(d, p)
	d = appendPeerType(d, p, true)
	d = appendRIB(d, p, false)
	d = appendPeerDistinguisher(d, p)
	d = append(d, `, "reason_type": `...)
	d = appendByte(d, down.Reason)
	if int(down.Reason) < len(downReasons) {
		d = append(d, `, "reason_str": "`...)
		d = append(d, downReasons[down.Reason]...)
		d = append(d, '"')
	}
	said := [4]byte{byte(p.RIB()), down.Reason}
	if code, ok := down.Event(); ok {
		d = append(d, `, "reason_loc_code": `...)
		d = strconv.AppendUint(d, uint64(code), 10)
		binary.BigEndian.PutUint16(said[2:], code)
	}
	b.Data = d
	s.finishState(b, o, off, s.hashOfPeer(kindPeer, p), s.hashSaid(kindPeerDown, said[:]))
	delete(s.peers, newPeerKey(p))
	return nil
}

// A statType is how pmacct reads a counter: length of its value in bytes, 4, 8
// or 11 (with AFI and SAFI), and its name. The misspelling is pmacct's.
type statType struct {
	len    int
	family bool // AFI and SAFI are printed
	name   string
}

var statTypes = [...]statType{
	{4, false, "Number of prefixes rejected by inbound policy"},
	{4, false, "Number of (known) duplicate prefix advertisements"},
	{4, false, "Number of (known) duplicate withdraws"},
	{4, false, "Number of updates invalidated due to CLUSTER_LIST loop"},
	{4, false, "Number of updates invalidated due to AS_PATH loop"},
	{4, false, "Number of updates invalidated due to ORIGINATOR_ID"},
	{4, false, "Number of updates invalidated due to AS_CONFED loop"},
	{8, false, "Number of routes in Adj-RIBs-In"},
	{8, false, "Number of routes in Loc-RIB"},
	{11, true, "Number of routes in per-AFI/SAFI Abj-RIB-In"},
	{11, true, "Number of routes in per-AFI/SAFI Loc-RIB"},
	{4, false, "Number of updates subjected to treat-as-withdraw"},
	{4, false, "Number of prefixes subjected to treat-as-withdraw"},
	{4, false, "Number of duplicate update messages received"},
	{8, false, "Number of routes in Adj-RIBs-Out Pre-Policy"},
	{8, false, "Number of routes in Adj-RIBs-Out Post-Policy"},
	{11, false, "Number of routes in per-AFI/SAFI Abj-RIB-Out Pre-Policy"},
	{11, false, "Number of routes in per-AFI/SAFI Abj-RIB-Out Post-Policy"},
}

// stats appends one record per counter. A counter of a known type whose length
// is not the one that pmacct expects counts as 0, and its value is then read
// as the next counter, as in pmacct.
func (s *Session) stats(b *record.Batch, o *record.Origin, at int64, msg []byte) error {
	const section = "RFC 7854 section 4.8"
	st, err := bmp.ParseStats(msg)
	if err != nil {
		return s.malformed(msg, 0, err)
	}
	p := &st.Peer
	if !usable(p) {
		return s.refuse(msg)
	}
	h := s.appendEventHead(s.head[:0], at, p.Sec, p.Usec, "stats")
	h = appendPeer(h, p, p.AS)
	h = appendBGPID(h, p)
	h = appendPeerType(h, p, false)
	h = appendRIB(h, p, p.Filtered())
	h = appendPeerDistinguisher(h, p)
	s.head = append(h, `, "counter_type": `...)
	hashed := 0
	if s.hashes() {
		s.beginPeer(kindStats, p)
		s.hashIn = append(s.hashIn, byte(p.RIB()))
		hashed = len(s.hashIn)
	}

	rest, pos := st.Counters.Rest(), st.Counters.Offset()
	for range st.Count {
		if len(rest) < 4 {
			return s.malformed(msg, 0, &bmp.Error{What: "message ends before a counter", Offset: pos, Section: section})
		}
		typ, n := binary.BigEndian.Uint16(rest), int(binary.BigEndian.Uint16(rest[2:]))
		if typ := int(typ); typ < len(statTypes) && n != statTypes[typ].len {
			n = 0
		}
		if n > len(rest)-4 {
			return s.malformed(msg, 0, &bmp.Error{What: fmt.Sprintf("counter of %d bytes where %d are left", n, len(rest)-4), Offset: pos + 2, Section: section})
		}
		value := rest[4 : 4+n]
		rest, pos = rest[4+n:], pos+4+n

		off := s.start(b)
		d := s.startEvent(b.Data)
		d = append(d, s.head...)
		d = strconv.AppendUint(d, uint64(typ), 10)
		b.Data = s.appendStat(d, typ, value)
		if hashed == 0 {
			s.finish(b, o, off)
			continue
		}
		s.finishState(b, o, off, s.hashStat(hashed, typ, value), stated)
	}
	return nil
}

// appendStat appends name and value of a counter. The value of a known type
// has the length in statTypes, or none.
func (s *Session) appendStat(d []byte, typ uint16, value []byte) []byte {
	d = append(d, `, "counter_type_str": "`...)
	if int(typ) >= len(statTypes) {
		s.enc.counters.unknownStats.Add(1)
		d = append(d, `Unknown", "counter_value": `...)
		switch {
		case s.dump != nil:
			return append(d, '0')
		case len(value) == 0:
			return append(d, "null"...)
		}
		d = append(d, '"')
		return append(appendHex(d, value), '"')
	}
	t := &statTypes[typ]
	d = append(d, t.name...)
	d = append(d, '"')
	var afi uint16
	var safi byte
	var v uint64
	switch len(value) {
	case 4:
		v = uint64(binary.BigEndian.Uint32(value))
	case 8:
		v = binary.BigEndian.Uint64(value)
	case 11:
		afi, safi = binary.BigEndian.Uint16(value), value[2]
		v = binary.BigEndian.Uint64(value[3:])
	}
	if t.family {
		d = append(d, `, "afi": `...)
		d = strconv.AppendUint(d, uint64(afi), 10)
		d = append(d, `, "safi": `...)
		d = appendByte(d, safi)
	}
	d = append(d, `, "counter_value": `...)
	return strconv.AppendInt(d, int64(v), 10) // negative from 2^63, as in pmacct
}
