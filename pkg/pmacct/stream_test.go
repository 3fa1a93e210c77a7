package pmacct

import (
	"encoding/binary"
	"net/netip"
)

// The streams of these tests are made by the functions below, a byte at a
// time, without the packages under test.

func u16(v int) []byte    { return binary.BigEndian.AppendUint16(nil, uint16(v)) }
func u32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
func u64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

func cat(parts ...[]byte) []byte {
	var b []byte
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

func ip(s string) []byte { return netip.MustParseAddr(s).AsSlice() }

// bmpMsg is a BMP message of type t.
func bmpMsg(t byte, body ...[]byte) []byte {
	b := cat(body...)
	return cat([]byte{3}, u32(uint32(6+len(b))), []byte{t}, b)
}

func tlv(t int, value []byte) []byte { return cat(u16(t), u16(len(value)), value) }

// A testPeer is what goes into a per-peer header.
type testPeer struct {
	typ, flags byte
	rd         []byte
	addr       string // "" is zero
	as         uint32
	id         string
	sec, usec  uint32
}

func (p testPeer) bytes() []byte {
	rd := p.rd
	if rd == nil {
		rd = make([]byte, 8)
	}
	id := p.id
	if id == "" {
		id = "192.0.2.1"
	}
	return cat([]byte{p.typ, p.flags}, rd, addr16(p.addr), u32(p.as), ip(id), u32(p.sec), u32(p.usec))
}

func addr16(s string) []byte {
	a := make([]byte, 16)
	if s != "" {
		b := ip(s)
		copy(a[16-len(b):], b)
	}
	return a
}

var marker = []byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")

// bgpMsg is a BGP message of type t.
func bgpMsg(t byte, body ...[]byte) []byte {
	b := cat(body...)
	return cat(marker, u16(19+len(b)), []byte{t}, b)
}

// open is an OPEN message with capabilities, each made by capability.
func open(as int, caps ...[]byte) []byte {
	c := cat(caps...)
	var params []byte
	if len(c) > 0 {
		params = cat([]byte{2, byte(len(c))}, c)
	}
	return bgpMsg(1, []byte{4}, u16(as), u16(180), ip("192.0.2.1"), []byte{byte(len(params))}, params)
}

func capability(code byte, value ...[]byte) []byte {
	v := cat(value...)
	return cat([]byte{code, byte(len(v))}, v)
}

func capAS4(as uint32) []byte { return capability(65, u32(as)) }

func capAddPath(afi int, safi, mode byte) []byte {
	return capability(69, u16(afi), []byte{safi, mode})
}

// peerUp is a Peer Up message.
func peerUp(p testPeer, local string, sent, received []byte, tlvs ...[]byte) []byte {
	return bmpMsg(3, p.bytes(), addr16(local), u16(179), u16(40000), sent, received, cat(tlvs...))
}

// update is an UPDATE message.
func update(withdrawn, attrs, nlri []byte) []byte {
	return bgpMsg(2, u16(len(withdrawn)), withdrawn, u16(len(attrs)), attrs, nlri)
}

func route(p testPeer, pdu []byte, tail ...[]byte) []byte {
	return bmpMsg(0, p.bytes(), pdu, cat(tail...))
}

func attr(flags, typ byte, value ...[]byte) []byte {
	v := cat(value...)
	if len(v) > 255 {
		return cat([]byte{flags | 0x10, typ}, u16(len(v)), v)
	}
	return cat([]byte{flags, typ, byte(len(v))}, v)
}

// seg is a segment of an AS path with four-octet numbers, seg2 with two.
func seg(typ byte, asns ...uint32) []byte {
	b := []byte{typ, byte(len(asns))}
	for _, as := range asns {
		b = append(b, u32(as)...)
	}
	return b
}

func seg2(typ byte, asns ...int) []byte {
	b := []byte{typ, byte(len(asns))}
	for _, as := range asns {
		b = append(b, u16(as)...)
	}
	return b
}

// pfx is a prefix on the wire: its length and as many bytes as it takes.
func pfx(s string) []byte {
	p := netip.MustParsePrefix(s)
	return cat([]byte{byte(p.Bits())}, p.Addr().AsSlice()[:(p.Bits()+7)/8])
}

// labelled is a prefix behind labels and, if there is one, a route
// distinguisher.
func labelled(s string, rd []byte, labels ...[]byte) []byte {
	p := pfx(s)
	head := cat(cat(labels...), rd)
	return cat([]byte{p[0] + byte(8*len(head))}, head, p[1:])
}

// label is a label with its bottom-of-stack bit.
func label(v uint32, bottom bool) []byte {
	b := u32(v << 4)[1:]
	if bottom {
		b[2] |= 1
	}
	return b
}

func mpReach(afi int, safi byte, nextHop, nlri []byte) []byte {
	return attr(0x80, 14, u16(afi), []byte{safi, byte(len(nextHop))}, nextHop, []byte{0}, nlri)
}

func mpUnreach(afi int, safi byte, nlri []byte) []byte {
	return attr(0x80, 15, u16(afi), []byte{safi}, nlri)
}

func rd0(as int, v uint32) []byte             { return cat(u16(0), u16(as), u32(v)) }
func rd1(a string, v int) []byte              { return cat(u16(1), ip(a), u16(v)) }
func rd2(as uint32, v int) []byte             { return cat(u16(2), u32(as), u16(v)) }
func origin(v byte) []byte                    { return attr(0x40, 1, []byte{v}) }
func asPath(segs ...[]byte) []byte            { return attr(0x40, 2, segs...) }
func nextHop(a string) []byte                 { return attr(0x40, 3, ip(a)) }
func med(v uint32) []byte                     { return attr(0x80, 4, u32(v)) }
func localPref(v uint32) []byte               { return attr(0x40, 5, u32(v)) }
func initiation(tlvs ...[]byte) []byte        { return bmpMsg(4, tlvs...) }
func termination(tlvs ...[]byte) []byte       { return bmpMsg(5, tlvs...) }
func peerDown(p testPeer, b ...[]byte) []byte { return bmpMsg(2, p.bytes(), cat(b...)) }

func stats(p testPeer, tlvs ...[]byte) []byte {
	return bmpMsg(1, p.bytes(), u32(uint32(len(tlvs))), cat(tlvs...))
}

// Peers of the streams.
var (
	peerV4 = testPeer{addr: "192.0.2.7", as: 64500, id: "192.0.2.7", sec: 1700000000, usec: 123456}
	peerV6 = testPeer{flags: 0x80 | 0x40, addr: "2001:db8::7", as: 4200000001, id: "192.0.2.8", sec: 1700000001}
	peerRD = testPeer{typ: 1, addr: "198.51.100.9", rd: rd1("192.0.2.9", 77), as: 64501, id: "192.0.2.9", sec: 1700000002, usec: 5}
	locRIB = testPeer{typ: 3, flags: 0x80, as: 64500, id: "192.0.2.10", sec: 1700000003}
	ribOut = testPeer{flags: 0x10 | 0x40, addr: "192.0.2.11", as: 64502, id: "192.0.2.11"}
	twoOct = testPeer{flags: 0x20, addr: "192.0.2.12", as: 64503, id: "192.0.2.12", sec: 1700000004}
)

func bothOpen(as int, caps ...[]byte) (sent, received []byte) {
	o := open(as, append([][]byte{capAS4(uint32(as))}, caps...)...)
	return o, o
}

// everything is a session with each kind of record in it.
func everything() []byte {
	sent, received := bothOpen(64500)
	addSent, addReceived := bothOpen(64500, capAddPath(1, 1, 3), capAddPath(2, 1, 3))
	as4 := open(23456, capAS4(4200000001))
	plain := cat(origin(0), asPath(seg(2, 64500, 64510)), nextHop("192.0.2.7"))
	return cat(
		initiation(
			tlv(1, []byte("Router \"OS\"\t1.0 \\ Z\u00fcrich\x01\x1f\x7f/")), tlv(2, []byte("r1")), tlv(0, nil),
			tlv(3, []byte{0xab, 0xcd}), tlv(9, []byte{1}), tlv(0x8001, cat(u32(99), []byte{0x7a})),
			tlv(2, []byte("r1.example\x00junk")), tlv(4, []byte{0x12})),
		peerUp(peerV4, "192.0.2.1", sent, received, tlv(0, []byte("hello")), tlv(3, []byte("blue")), tlv(4, []byte("a")), tlv(7, []byte{7})),
		peerUp(peerV6, "2001:db8::1", as4, as4),
		peerUp(peerRD, "198.51.100.1", addSent, addReceived),
		peerUp(locRIB, "", sent, received, tlv(3, []byte("global"))),
		peerUp(ribOut, "192.0.2.1", sent, received),
		peerUp(twoOct, "192.0.2.1", open(64500), open(64503)),
		stats(peerV4, tlv(0, u32(1)), tlv(7, u64(2)), tlv(9, cat(u16(1), []byte{1}, u64(3))), tlv(16, cat(u16(2), []byte{1}, u64(4))),
			tlv(8, u64(1<<63)), tlv(77, []byte{0xab, 0xcd}), tlv(78, nil)),
		// Attributes of every kind.
		route(peerV4, update(pfx("198.51.100.0/24"), cat(
			origin(2),
			asPath(seg(2, 64500), seg(2, 64510), seg(1, 64530, 64520, 64530), seg(3, 64540, 64541), seg(4, 64551, 64550)),
			nextHop("192.0.2.254"), med(0), localPref(4294967295),
			attr(0xc0, 8, u32(0xffffff03), u32(0), u32(0xffffff01), u32(64500<<16|7), u32(64500<<16|7), u32(0xffffff02)),
			attr(0xc0, 16, []byte{0, 2}, u16(64500), u32(100), []byte{0x40, 3}, u16(64500), u32(200),
				[]byte{1, 2}, ip("192.0.2.9"), u16(7), []byte{2, 2}, u32(4200000001), u16(5), []byte{3, 12}, make([]byte, 6)),
			attr(0xc0, 32, u32(2), u32(1), u32(1), u32(1), u32(2), u32(3), u32(1), u32(2), u32(3)),
			attr(0x80, 26, []byte{1}, u16(11), u64(1234)), attr(0xc0, 40, []byte{1}, u16(7), make([]byte, 3), u32(77)),
			attr(0xc0, 35, u32(64599)), attr(0xc0, 99, []byte("?")),
		), cat(pfx("192.0.2.0/25"), pfx("0.0.0.0/0"), []byte{19, 203, 0, 127}))),
		route(peerV4, update(nil, cat(plain, mpReach(1, 128, cat(make([]byte, 8), ip("192.0.2.7")), cat(
			labelled("10.1.0.0/16", rd0(64500, 1), label(1000, true)), labelled("10.2.0.0/16", rd2(4200000001, 2), label(1001, true))))), nil)),
		route(peerV4, update(nil, mpUnreach(1, 128, labelled("10.1.0.0/16", rd0(64500, 1), label(0x80000, false))), nil)),
		route(peerV6, update(nil, cat(origin(1), asPath(seg(2, 4200000001)), mpReach(2, 1, cat(ip("2001:db8::9"), ip("fe80::9")), cat(pfx("2001:db8:1::/48"), pfx("::/0"))),
			mpUnreach(1, 4, labelled("10.3.0.0/16", nil, label(0, false)))), nil)),
		route(peerV6, update(nil, cat(plain, mpReach(2, 4, ip("::ffff:192.0.2.7"), labelled("2001:db8:2::/48", nil, label(3, false), label(1002, true)))), nil)),
		route(peerRD, update(cat(u32(3), pfx("198.51.100.0/24")), plain, cat(u32(4), pfx("203.0.113.0/24"), u32(0), pfx("203.0.113.128/25")))),
		route(peerRD, update(nil, cat(plain, mpReach(2, 128, cat(make([]byte, 8), ip("2001:db8::7")), labelled("2001:db8:3::/48", rd0(1, 2), label(16, true)))), nil)),
		route(locRIB, update(nil, plain, pfx("198.51.100.0/24")), tlv(1, []byte{0, 0})),
		route(ribOut, update(nil, plain, pfx("198.51.100.0/24"))),
		route(twoOct, update(nil, cat(origin(0), asPath(seg2(2, 64503, 23456, 64511)), nextHop("192.0.2.12"), attr(0xc0, 17, seg(2, 4200000002, 64511))), pfx("198.51.100.0/24"))),
		route(peerV4, update(nil, nil, nil)),
		route(peerV6, update(nil, mpUnreach(2, 1, nil), nil)),
		route(peerRD, update(nil, mpUnreach(25, 70, nil), nil)),
		peerDown(peerV4, []byte{2}, u16(18)),
		peerDown(locRIB, []byte{6}, tlv(3, []byte("global"))),
		peerDown(peerV6, []byte{3}, bgpMsg(3, []byte{6, 2})),
		bmpMsg(6, peerV4.bytes()), bmpMsg(77),
		termination(tlv(0, []byte("bye")), tlv(1, u16(3)), tlv(5, []byte{1, 2})),
	)
}
