package table

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
)

// KeyHash returns the hash that names the route of a router in the header of its
// records, see package pmacct.
func (r *Route) KeyHash(router string) uint64 {
	var buf [160]byte
	b := binary.BigEndian.AppendUint16(buf[:0], uint16(len(router)))
	b = append(b, router...)
	b = append(b, r.RIB.Peer.Distinguisher[:]...)
	b = append(b, r.RIB.Peer.Addr[:]...)
	b = append(b, r.RIB.BGPID[:]...)
	b = append(b, byte(r.RIB.Kind))
	b = binary.BigEndian.AppendUint16(b, r.Family.AFI)
	b = append(b, r.Family.SAFI)
	b = append(b, r.RD[:]...)
	b = binary.BigEndian.AppendUint32(b, r.PathID)
	bits := r.Prefix.Bits()
	b = append(b, byte(bits))
	b = r.appendAddr(b)
	if host := -bits & 7; host != 0 {
		b[len(b)-1] &= 0xff << host
	}
	return xxhash.Sum64(b)
}

// appendAddr appends as many bytes of the prefix as its length takes.
func (r *Route) appendAddr(b []byte) []byte {
	n := (r.Prefix.Bits() + 7) / 8
	if r.Prefix.Addr().Is4() {
		a := r.Prefix.Addr().As4()
		return append(b, a[:n]...)
	}
	a := r.Prefix.Addr().As16()
	return append(b, a[:n]...)
}

// Hash returns the value hash of the record of v, see package pmacct. Two values
// are the same news if their hashes are. The hash of a value from a table is
// kept there, unless it has both labels and attributes: those must not be
// changed, then.
func (v *Value) Hash() uint64 {
	switch {
	case v.Withdrawn:
		return xxhash.Sum64(nil)
	case v.kept == allOfIt, v.kept == attrsAlone && len(v.Labels) == 0:
		return v.hash
	case len(v.Labels) == 0:
		return xxhash.Sum64(v.Attrs)
	}
	return hashOf(v.Attrs, v.Labels)
}

func hashOf(attrs, labels []byte) uint64 {
	var d xxhash.Digest
	d.Reset()
	_, _ = d.Write(attrs) // never fail
	_, _ = d.Write(labels)
	return d.Sum64()
}

// AppendMessage appends a Route Monitoring message that announces r alone, or
// withdraws it if it is Withdrawn. The AS number in its per-peer header is the
// one of the peer's OPEN. Taken into another table in which the peer is up in
// the same way it makes an equal route, but for one in the UPDATE's own field
// of a message that had routes of another family as well: its attributes then
// told their next hop, which cannot be said without them.
//
// An announced route of a table with Options.Hashes has no attributes to make a
// message of: dst is returned as it is.
func (r *Route) AppendMessage(dst []byte) []byte {
	if r.kept == allOfIt && !r.Withdrawn {
		return dst
	}
	start := len(dst)
	dst = bmp.AppendHeader(dst, bmp.TypeRouteMonitoring)
	dst = append(dst, r.RIB.Type, r.Flags)
	dst = append(dst, r.RIB.Peer.Distinguisher[:]...)
	dst = append(dst, r.RIB.Peer.Addr[:]...)
	dst = binary.BigEndian.AppendUint32(dst, r.RIB.AS)
	dst = append(dst, r.RIB.BGPID[:]...)
	dst = binary.BigEndian.AppendUint32(dst, r.Sec)
	dst = binary.BigEndian.AppendUint32(dst, r.Usec)
	pdu := len(dst)
	dst = bgp.AppendHeader(dst, bgp.TypeUpdate)
	switch {
	case r.Withdrawn && r.Family == bgp.IPv4Unicast:
		dst = append(dst, 0, 0)
		from := len(dst)
		dst = r.appendNLRI(dst)
		binary.BigEndian.PutUint16(dst[from-2:], uint16(len(dst)-from))
		dst = append(dst, 0, 0)
	case r.Withdrawn:
		dst = append(dst, 0, 0, 0, 0)
		from := len(dst)
		dst = append(dst, 0x90, bgp.AttrMPUnreach, 0, 0)
		dst = binary.BigEndian.AppendUint16(dst, r.Family.AFI)
		dst = append(dst, r.Family.SAFI)
		dst = r.appendNLRI(dst)
		binary.BigEndian.PutUint16(dst[from+2:], uint16(len(dst)-from-4))
		binary.BigEndian.PutUint16(dst[from-2:], uint16(len(dst)-from))
	default:
		dst = append(dst, 0, 0, 0, 0)
		from := len(dst)
		dst = r.appendAttributes(dst)
		binary.BigEndian.PutUint16(dst[from-2:], uint16(len(dst)-from))
		if r.Classic {
			dst = r.appendNLRI(dst)
		}
	}
	return bmp.AppendLength(bgp.AppendLength(dst, pdu), start)
}

// appendNLRI appends the route as it stands in an UPDATE.
func (r *Route) appendNLRI(dst []byte) []byte {
	if r.AddPath {
		dst = binary.BigEndian.AppendUint32(dst, r.PathID)
	}
	length := len(dst)
	dst = append(dst, 0)
	labels := r.Labels
	if r.Family.SAFI != bgp.SAFIUnicast && len(labels) == 0 {
		labels = []byte{0x80, 0, 0} // RFC 8277 section 2.4
	}
	bits := r.Prefix.Bits() + 8*len(labels)
	dst = append(dst, labels...)
	if r.Family.SAFI == bgp.SAFIVPN {
		dst = append(dst, r.RD[:]...)
		bits += 64
	}
	dst[length] = byte(bits)
	return r.appendAddr(dst)
}

// appendAttributes appends the attributes as they stand in an UPDATE, the route
// in the last MP_REACH_NLRI unless it is in the UPDATE's own field.
func (r *Route) appendAttributes(dst []byte) []byte {
	reach := -1
	for at := 0; at < len(r.Attrs); at += 4 + int(binary.BigEndian.Uint16(r.Attrs[at+2:])) {
		if r.Attrs[at+1] == bgp.AttrMPReach {
			reach = at
		}
	}
	for at := 0; at < len(r.Attrs); {
		flags, kind, n := r.Attrs[at], r.Attrs[at+1], int(binary.BigEndian.Uint16(r.Attrs[at+2:]))
		v := r.Attrs[at+4 : at+4+n]
		switch {
		case kind != bgp.AttrMPReach && n < 256:
			dst = append(dst, flags, kind, byte(n))
			dst = append(dst, v...)
		case kind != bgp.AttrMPReach:
			dst = append(dst, flags|0x10, kind, byte(n>>8), byte(n))
			dst = append(dst, v...)
		case at == reach && !r.Classic:
			dst = append(dst, flags|0x10, kind, 0, 0)
			from := len(dst)
			dst = append(dst, v...)
			dst = append(dst, 0)
			dst = r.appendNLRI(dst)
			binary.BigEndian.PutUint16(dst[from-2:], uint16(len(dst)-from))
		}
		at += 4 + n
	}
	return dst
}
