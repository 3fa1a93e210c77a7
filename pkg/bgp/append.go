package bgp

import (
	"encoding/binary"
	"net/netip"
)

// The functions in this file write BGP messages in append style: each appends
// to dst and returns the extended slice, keeps none of its arguments and
// allocates nothing but what dst needs to grow. They write what they are told,
// for test routers and tests, and check nothing: a caller that passes two
// thousand communities gets a message longer than RFC 4271 allows.
//
// A message is written by AppendHeader, its body, and AppendLength:
//
//	start := len(dst)
//	dst = AppendHeader(dst, 2)
//	...
//	dst = AppendLength(dst, start)

// AppendHeader appends a BGP message header (RFC 4271, 4.1) of the given
// message type with a length that AppendLength fills in.
func AppendHeader(dst []byte, msgType uint8) []byte {
	for range 16 {
		dst = append(dst, 0xff)
	}
	return append(dst, 0, 0, msgType)
}

// AppendLength writes the length of the message that began at offset start of
// dst and ends with dst.
func AppendLength(dst []byte, start int) []byte {
	binary.BigEndian.PutUint16(dst[start+16:], uint16(len(dst)-start))
	return dst
}

// AppendOpen appends an OPEN message (RFC 4271, 4.2). An as above 65535 is
// written as AS_TRANS in the fixed part, so capabilities should hold an
// AppendCapAS4. Hold time is in seconds. The capabilities (each made by one of
// the AppendCap functions) are put into one optional parameter and must not be
// longer than 253 bytes.
func AppendOpen(dst []byte, as uint32, holdTime uint16, bgpID netip.Addr, capabilities []byte) []byte {
	start := len(dst)
	dst = AppendHeader(dst, 1)
	dst = append(dst, 4)
	short := uint16(23456) // AS_TRANS, RFC 6793
	if as <= 0xffff {
		short = uint16(as)
	}
	dst = binary.BigEndian.AppendUint16(dst, short)
	dst = binary.BigEndian.AppendUint16(dst, holdTime)
	id := bgpID.As4()
	dst = append(dst, id[:]...)
	if len(capabilities) == 0 {
		dst = append(dst, 0)
	} else {
		dst = append(dst, byte(len(capabilities)+2), 2, byte(len(capabilities)))
		dst = append(dst, capabilities...)
	}
	return AppendLength(dst, start)
}

// AppendCapMP appends the multiprotocol capability of one family (RFC 4760).
func AppendCapMP(dst []byte, afi uint16, safi uint8) []byte {
	dst = append(dst, 1, 4)
	dst = binary.BigEndian.AppendUint16(dst, afi)
	return append(dst, 0, safi)
}

// AppendCapAS4 appends the four-octet AS capability (RFC 6793).
func AppendCapAS4(dst []byte, as uint32) []byte {
	return binary.BigEndian.AppendUint32(append(dst, 65, 4), as)
}

// AppendCapAddPath appends the ADD-PATH capability of one family (RFC 7911);
// mode is 1 to receive, 2 to send, 3 for both.
func AppendCapAddPath(dst []byte, afi uint16, safi, mode uint8) []byte {
	dst = append(dst, 69, 4)
	dst = binary.BigEndian.AppendUint16(dst, afi)
	return append(dst, safi, mode)
}

// AppendNotification appends a NOTIFICATION message (RFC 4271, 4.5).
func AppendNotification(dst []byte, code, subcode uint8, data []byte) []byte {
	start := len(dst)
	dst = AppendHeader(dst, 3)
	dst = append(dst, code, subcode)
	dst = append(dst, data...)
	return AppendLength(dst, start)
}

// AppendUpdate appends an UPDATE message (RFC 4271, 4.3) made of encoded
// withdrawn IPv4 routes, path attributes and announced IPv4 routes.
func AppendUpdate(dst, withdrawn, attributes, nlri []byte) []byte {
	start := len(dst)
	dst = AppendHeader(dst, 2)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(withdrawn)))
	dst = append(dst, withdrawn...)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(attributes)))
	dst = append(dst, attributes...)
	dst = append(dst, nlri...)
	return AppendLength(dst, start)
}

// AppendEndOfRIB appends the End-of-RIB marker of a family (RFC 4724, 2): an
// empty UPDATE for IPv4 unicast, an empty MP_UNREACH_NLRI for any other.
func AppendEndOfRIB(dst []byte, afi uint16, safi uint8) []byte {
	start := len(dst)
	dst = AppendHeader(dst, 2)
	if afi == 1 && safi == 1 {
		dst = append(dst, 0, 0, 0, 0)
	} else {
		dst = append(dst, 0, 0, 0, 6, 0x80, 15, 3, byte(afi>>8), byte(afi), safi)
	}
	return AppendLength(dst, start)
}

// AppendOrigin appends ORIGIN: 0 IGP, 1 EGP, 2 INCOMPLETE.
func AppendOrigin(dst []byte, origin uint8) []byte {
	return append(dst, 0x40, 1, 1, origin)
}

// AppendASPath appends an AS_PATH of four-octet numbers in AS_SEQUENCE segments
// (of at most 255 each), and of no segment when there are none.
func AppendASPath(dst []byte, asns ...uint32) []byte {
	segments := (len(asns) + 254) / 255
	dst = putAttribute(dst, 0x40, 2, 2*segments+4*len(asns))
	for len(asns) > 0 {
		n := min(len(asns), 255)
		dst = append(dst, 2, byte(n))
		for _, as := range asns[:n] {
			dst = binary.BigEndian.AppendUint32(dst, as)
		}
		asns = asns[n:]
	}
	return dst
}

// AppendNextHop appends NEXT_HOP; addr is an IPv4 address.
func AppendNextHop(dst []byte, addr netip.Addr) []byte {
	a := addr.As4()
	return append(dst, 0x40, 3, 4, a[0], a[1], a[2], a[3])
}

// AppendMED appends MULTI_EXIT_DISC.
func AppendMED(dst []byte, med uint32) []byte {
	return binary.BigEndian.AppendUint32(append(dst, 0x80, 4, 4), med)
}

// AppendLocalPref appends LOCAL_PREF.
func AppendLocalPref(dst []byte, pref uint32) []byte {
	return binary.BigEndian.AppendUint32(append(dst, 0x40, 5, 4), pref)
}

// AppendCommunities appends COMMUNITIES (RFC 1997) in the order given.
func AppendCommunities(dst []byte, communities ...uint32) []byte {
	dst = putAttribute(dst, 0xc0, 8, 4*len(communities))
	for _, c := range communities {
		dst = binary.BigEndian.AppendUint32(dst, c)
	}
	return dst
}

// AppendExtCommunities appends EXTENDED COMMUNITIES (RFC 4360), each given as
// its eight bytes in network order.
func AppendExtCommunities(dst []byte, communities ...uint64) []byte {
	dst = putAttribute(dst, 0xc0, 16, 8*len(communities))
	for _, c := range communities {
		dst = binary.BigEndian.AppendUint64(dst, c)
	}
	return dst
}

// AppendLargeCommunities appends LARGE_COMMUNITY (RFC 8092), each of global
// administrator and the two local parts.
func AppendLargeCommunities(dst []byte, communities ...[3]uint32) []byte {
	dst = putAttribute(dst, 0xc0, 32, 12*len(communities))
	for _, c := range communities {
		for _, part := range c {
			dst = binary.BigEndian.AppendUint32(dst, part)
		}
	}
	return dst
}

// AppendMPReach appends MP_REACH_NLRI (RFC 4760, 3) with encoded routes. The
// next hop is written in four or sixteen bytes as addr is IPv4 or IPv6, after a
// route distinguisher of zero if safi is 128 (RFC 4364, RFC 4659).
func AppendMPReach(dst []byte, afi uint16, safi uint8, nextHop netip.Addr, nlri []byte) []byte {
	size := nextHop.BitLen() / 8
	if safi == 128 {
		size += 8
	}
	dst = putAttribute(dst, 0x80, 14, 5+size+len(nlri))
	dst = binary.BigEndian.AppendUint16(dst, afi)
	dst = append(dst, safi, byte(size))
	if safi == 128 {
		dst = binary.BigEndian.AppendUint64(dst, 0)
	}
	dst = putAddr(dst, nextHop)
	dst = append(dst, 0)
	return append(dst, nlri...)
}

// AppendMPUnreach appends MP_UNREACH_NLRI (RFC 4760, 4) with encoded routes.
func AppendMPUnreach(dst []byte, afi uint16, safi uint8, nlri []byte) []byte {
	dst = putAttribute(dst, 0x80, 15, 3+len(nlri))
	dst = binary.BigEndian.AppendUint16(dst, afi)
	dst = append(dst, safi)
	return append(dst, nlri...)
}

// AppendPathID appends the path identifier that precedes a route when ADD-PATH
// is in use (RFC 7911, 3).
func AppendPathID(dst []byte, id uint32) []byte {
	return binary.BigEndian.AppendUint32(dst, id)
}

// AppendPrefix appends a unicast route: length in bits and as many bytes of the
// address as that needs. Bits of the address beyond the length, if they lie in
// the last byte, are written as they are.
func AppendPrefix(dst []byte, p netip.Prefix) []byte {
	dst = append(dst, byte(p.Bits()))
	return putPrefixBytes(dst, p)
}

// AppendLabelled appends a labelled route (RFC 8277) with one label, bottom of
// stack. To withdraw, label is 0x80000 by convention.
func AppendLabelled(dst []byte, label uint32, p netip.Prefix) []byte {
	dst = append(dst, byte(24+p.Bits()))
	dst = putLabel(dst, label)
	return putPrefixBytes(dst, p)
}

// AppendVPN appends a VPN route (RFC 4364, RFC 4659) with one label, bottom of
// stack, and the route distinguisher as its eight bytes in network order.
func AppendVPN(dst []byte, label uint32, rd uint64, p netip.Prefix) []byte {
	dst = append(dst, byte(88+p.Bits()))
	dst = putLabel(dst, label)
	dst = binary.BigEndian.AppendUint64(dst, rd)
	return putPrefixBytes(dst, p)
}

// putAttribute appends an attribute's flags, type and length, with an extended
// length only where it is needed.
func putAttribute(dst []byte, flags, code uint8, size int) []byte {
	if size > 0xff {
		return append(dst, flags|0x10, code, byte(size>>8), byte(size))
	}
	return append(dst, flags, code, byte(size))
}

func putLabel(dst []byte, label uint32) []byte {
	v := label<<4 | 1
	return append(dst, byte(v>>16), byte(v>>8), byte(v))
}

func putPrefixBytes(dst []byte, p netip.Prefix) []byte {
	n := (p.Bits() + 7) / 8
	if p.Addr().Is4() {
		a := p.Addr().As4()
		return append(dst, a[:n]...)
	}
	a := p.Addr().As16()
	return append(dst, a[:n]...)
}

func putAddr(dst []byte, addr netip.Addr) []byte {
	if addr.Is4() {
		a := addr.As4()
		return append(dst, a[:]...)
	}
	a := addr.As16()
	return append(dst, a[:]...)
}
