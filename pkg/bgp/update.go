package bgp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// An Update is an UPDATE message, RFC 4271 section 4.3, split into its three
// parts.
type Update struct {
	Withdrawn []byte // IPv4 unicast routes withdrawn; walk with Prefixes
	Attrs     []byte // path attributes; walk with Attributes
	NLRI      []byte // IPv4 unicast routes announced; walk with Prefixes

	AttrsOffset int // of Attrs in the message
	NLRIOffset  int // of NLRI in the message
}

// WithdrawnOffset is the position of the withdrawn routes in an UPDATE.
const WithdrawnOffset = HeaderLen + 2

// ParseUpdate splits pdu, one whole UPDATE message with its header.
func ParseUpdate(pdu []byte) (Update, error) {
	const section = "RFC 4271 section 4.3"
	t, err := Type(pdu)
	if err != nil {
		return Update{}, err
	}
	if t != TypeUpdate {
		return Update{}, &Error{fmt.Sprintf("message type %d where an UPDATE was expected", t), 18, section}
	}
	if len(pdu) < WithdrawnOffset+2 {
		return Update{}, &Error{"message ends within the lengths of UPDATE", len(pdu), section}
	}
	n := int(binary.BigEndian.Uint16(pdu[HeaderLen:]))
	if n > len(pdu)-WithdrawnOffset-2 {
		return Update{}, &Error{fmt.Sprintf("%d bytes of withdrawn routes where %d are left", n, len(pdu)-WithdrawnOffset-2), HeaderLen, section}
	}
	u := Update{Withdrawn: pdu[WithdrawnOffset : WithdrawnOffset+n]}
	off := WithdrawnOffset + n
	n = int(binary.BigEndian.Uint16(pdu[off:]))
	off += 2
	if n > len(pdu)-off {
		return Update{}, &Error{fmt.Sprintf("%d bytes of path attributes where %d are left", n, len(pdu)-off), off - 2, section}
	}
	u.Attrs, u.AttrsOffset = pdu[off:off+n], off
	u.NLRI, u.NLRIOffset = pdu[off+n:], off+n
	return u, nil
}

// Attributes returns a walk over the path attributes of u.
func (u *Update) Attributes() Attributes {
	return Attributes{b: u.Attrs, base: u.AttrsOffset}
}

// EndOfRIB returns the family whose End-of-RIB marker u is (RFC 4724 section
// 2), and whether it is one.
func (u *Update) EndOfRIB() (Family, bool) {
	if len(u.Withdrawn) != 0 || len(u.NLRI) != 0 {
		return Family{}, false
	}
	if len(u.Attrs) == 0 {
		return IPv4Unicast, true
	}
	a := u.Attributes()
	if !a.Next() || a.Attr().Type != AttrMPUnreach || len(a.Rest()) != 0 {
		return Family{}, false
	}
	r, err := ParseMPUnreach(a.Attr())
	if err != nil || len(r.Withdrawn) != 0 {
		return Family{}, false
	}
	return r.Family, true
}

// Path attribute types, as assigned by IANA.
const (
	AttrOrigin              byte = 1
	AttrASPath              byte = 2
	AttrNextHop             byte = 3
	AttrMED                 byte = 4
	AttrLocalPref           byte = 5
	AttrAtomicAggregate     byte = 6
	AttrAggregator          byte = 7
	AttrCommunities         byte = 8
	AttrOriginatorID        byte = 9
	AttrClusterList         byte = 10
	AttrMPReach             byte = 14
	AttrMPUnreach           byte = 15
	AttrExtCommunities      byte = 16
	AttrAS4Path             byte = 17
	AttrAS4Aggregator       byte = 18
	AttrPMSITunnel          byte = 22
	AttrTunnelEncap         byte = 23
	AttrTrafficEngineering  byte = 24
	AttrIPv6ExtCommunities  byte = 25
	AttrAIGP                byte = 26
	AttrPEDistinguishers    byte = 27
	AttrBGPLS               byte = 29
	AttrLargeCommunities    byte = 32
	AttrBGPsecPath          byte = 33
	AttrOTC                 byte = 35
	AttrDPath               byte = 36
	AttrSFP                 byte = 37
	AttrBFDDiscriminator    byte = 38
	AttrRouterCapabilities  byte = 39
	AttrPrefixSID           byte = 40
	AttrSet                 byte = 128
	flagExtendedLength      byte = 0x10
	attributesSection            = "RFC 4271 section 4.3"
	attributeHeader              = 3
	attributeHeaderExtended      = 4
)

// An Attr is one path attribute.
type Attr struct {
	Flags, Type byte
	Value       []byte
	Offset      int // of Value in the BGP message
}

// Attributes walks path attributes in the order in which they stand.
type Attributes struct {
	b    []byte
	base int // offset of b in the message
	off  int
	cur  Attr
	err  *Error
}

// Next advances to the next attribute and reports whether there is one.
func (a *Attributes) Next() bool {
	b := a.b[a.off:]
	if len(b) == 0 || a.err != nil {
		return false
	}
	if len(b) < attributeHeader {
		a.err = &Error{"message ends within an attribute header", a.base + a.off, attributesSection}
		return false
	}
	head, n := attributeHeader, int(b[2])
	if b[0]&flagExtendedLength != 0 {
		if len(b) < attributeHeaderExtended {
			a.err = &Error{"message ends within an attribute header", a.base + a.off, attributesSection}
			return false
		}
		head, n = attributeHeaderExtended, int(binary.BigEndian.Uint16(b[2:]))
	}
	if n > len(b)-head {
		a.err = &Error{fmt.Sprintf("attribute %d of %d bytes where %d are left", b[1], n, len(b)-head), a.base + a.off, attributesSection}
		return false
	}
	a.cur = Attr{Flags: b[0], Type: b[1], Value: b[head : head+n], Offset: a.base + a.off + head}
	a.off += head + n
	return true
}

// Attr returns the current attribute.
func (a *Attributes) Attr() Attr { return a.cur }

// Rest returns the bytes that were not walked yet.
func (a *Attributes) Rest() []byte { return a.b[a.off:] }

// Err returns what ended the walk early, or nil.
func (a *Attributes) Err() error {
	if a.err == nil {
		return nil
	}
	return a.err
}

// Uint32 returns the value of an attribute that is one four-octet number: MED,
// LOCAL_PREF, Only to Customer (RFC 9234).
func (a Attr) Uint32() (uint32, error) {
	if len(a.Value) != 4 {
		return 0, &Error{fmt.Sprintf("attribute %d of %d bytes, want 4", a.Type, len(a.Value)), a.Offset, "RFC 4271 section 5.1"}
	}
	return binary.BigEndian.Uint32(a.Value), nil
}

// Origin returns the value of an ORIGIN attribute: 0 IGP, 1 EGP, 2 incomplete.
func (a Attr) Origin() (byte, error) {
	if len(a.Value) != 1 {
		return 0, &Error{fmt.Sprintf("ORIGIN of %d bytes, want 1", len(a.Value)), a.Offset, "RFC 4271 section 5.1.1"}
	}
	return a.Value[0], nil
}

// An MPReach is an MP_REACH_NLRI attribute, RFC 4760 section 3.
type MPReach struct {
	Family     Family
	NextHop    []byte // as received; see NextHop
	NLRI       []byte // walk with Prefixes
	NLRIOffset int    // of NLRI in the BGP message
}

// ParseMPReach decodes an MP_REACH_NLRI attribute.
func ParseMPReach(a Attr) (MPReach, error) {
	const section = "RFC 4760 section 3"
	v := a.Value
	if len(v) < 5 {
		return MPReach{}, &Error{fmt.Sprintf("MP_REACH_NLRI of %d bytes, want at least 5", len(v)), a.Offset, section}
	}
	nh := int(v[3])
	if nh > len(v)-5 {
		return MPReach{}, &Error{fmt.Sprintf("next hop of %d bytes where %d are left", nh, len(v)-5), a.Offset + 3, section}
	}
	return MPReach{
		Family:     Family{binary.BigEndian.Uint16(v), v[2]},
		NextHop:    v[4 : 4+nh],
		NLRI:       v[5+nh:],
		NLRIOffset: a.Offset + 5 + nh,
	}, nil
}

// An MPUnreach is an MP_UNREACH_NLRI attribute, RFC 4760 section 4.
type MPUnreach struct {
	Family          Family
	Withdrawn       []byte // walk with Prefixes
	WithdrawnOffset int    // of Withdrawn in the BGP message
}

// ParseMPUnreach decodes an MP_UNREACH_NLRI attribute.
func ParseMPUnreach(a Attr) (MPUnreach, error) {
	v := a.Value
	if len(v) < 3 {
		return MPUnreach{}, &Error{fmt.Sprintf("MP_UNREACH_NLRI of %d bytes, want at least 3", len(v)), a.Offset, "RFC 4760 section 4"}
	}
	return MPUnreach{
		Family:          Family{binary.BigEndian.Uint16(v), v[2]},
		Withdrawn:       v[3:],
		WithdrawnOffset: a.Offset + 3,
	}, nil
}

// NextHop returns the global address of a next hop as it stands in NEXT_HOP or
// MP_REACH_NLRI, and the link-local one if there is one: 4 or 16 bytes, two
// addresses of 16 bytes (RFC 2545), and each of these after the route
// distinguisher of a VPN next hop (RFC 4364, RFC 4659).
func NextHop(b []byte) (global, linkLocal netip.Addr, err error) {
	switch len(b) {
	case 4:
		return netip.AddrFrom4([4]byte(b)), linkLocal, nil
	case 12:
		return netip.AddrFrom4([4]byte(b[8:])), linkLocal, nil
	case 16:
		return netip.AddrFrom16([16]byte(b)), linkLocal, nil
	case 24:
		return netip.AddrFrom16([16]byte(b[8:])), linkLocal, nil
	case 32:
		return netip.AddrFrom16([16]byte(b)), netip.AddrFrom16([16]byte(b[16:])), nil
	case 48:
		return netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[32:])), nil
	}
	return global, linkLocal, &Error{fmt.Sprintf("next hop of %d bytes", len(b)), 0, "RFC 4760 section 3"}
}

// Communities are the values of a COMMUNITIES attribute, RFC 1997.
type Communities []byte

// Len returns the number of communities. Bytes that do not make a whole one
// are not counted.
func (c Communities) Len() int { return len(c) / 4 }

// At returns community i.
func (c Communities) At(i int) uint32 { return binary.BigEndian.Uint32(c[4*i:]) }

// ExtCommunities are the values of an EXTENDED COMMUNITIES attribute, RFC 4360.
type ExtCommunities []byte

// Len returns the number of communities.
func (c ExtCommunities) Len() int { return len(c) / 8 }

// At returns community i; the type is in the highest bits.
func (c ExtCommunities) At(i int) uint64 { return binary.BigEndian.Uint64(c[8*i:]) }

// LargeCommunities are the values of a LARGE_COMMUNITY attribute, RFC 8092.
type LargeCommunities []byte

// Len returns the number of communities.
func (c LargeCommunities) Len() int { return len(c) / 12 }

// At returns community i.
func (c LargeCommunities) At(i int) (admin, data1, data2 uint32) {
	b := c[12*i : 12*i+12]
	return binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])
}

// AIGP returns the metric of the first AIGP TLV of an AIGP attribute, RFC 7311
// section 3.
func AIGP(a Attr) (uint64, error) {
	const section = "RFC 7311 section 3"
	for b := a.Value; len(b) != 0; {
		off := a.Offset + len(a.Value) - len(b)
		if len(b) < 3 {
			return 0, &Error{"AIGP ends within a TLV header", off, section}
		}
		n := int(binary.BigEndian.Uint16(b[1:])) // header included
		if n < 3 || n > len(b) {
			return 0, &Error{fmt.Sprintf("AIGP TLV of %d bytes where %d are left", n, len(b)), off, section}
		}
		if b[0] == 1 && n == 11 {
			return binary.BigEndian.Uint64(b[3:]), nil
		}
		b = b[n:]
	}
	return 0, &Error{"AIGP without an AIGP TLV", a.Offset, section}
}

// LabelIndex returns the label index of a Prefix-SID attribute, and whether it
// has one, RFC 8669 section 3.1.
func LabelIndex(a Attr) (index uint32, ok bool, err error) {
	const section = "RFC 8669 section 3"
	for b := a.Value; len(b) != 0; {
		off := a.Offset + len(a.Value) - len(b)
		if len(b) < 3 {
			return 0, false, &Error{"Prefix-SID ends within a TLV header", off, section}
		}
		n := int(binary.BigEndian.Uint16(b[1:]))
		if n > len(b)-3 {
			return 0, false, &Error{fmt.Sprintf("Prefix-SID TLV of %d bytes where %d are left", n, len(b)-3), off, section}
		}
		if b[0] == 1 {
			if n != 7 {
				return 0, false, &Error{fmt.Sprintf("label index TLV of %d bytes, want 7", n), off, section}
			}
			return binary.BigEndian.Uint32(b[6:]), true, nil
		}
		b = b[3+n:]
	}
	return 0, false, nil
}
