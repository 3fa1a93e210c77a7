// Package bgp decodes the BGP messages that travel inside BMP: OPEN, for the
// capabilities that say how the rest is to be read, and UPDATE, with its path
// attributes and its reachability of IPv4 and IPv6 unicast, labelled unicast
// and VPN.
//
// Decoding is in place: every byte slice that a decoded value holds points
// into the message and is valid as long as that memory is. Nothing is
// allocated on the way, except for errors. No input makes a function of this
// package panic, read past the slice it was given, or run longer than in
// proportion to its length. Attributes that the package does not know are
// handed on as bytes.
//
// The package keeps no state and is safe for concurrent use.
package bgp

import (
	"encoding/binary"
	"fmt"
)

// HeaderLen is the length in bytes of the header of every message, RFC 4271
// section 4.1.
const HeaderLen = 19

// Message types, RFC 4271 section 4.1.
const (
	TypeOpen         byte = 1
	TypeUpdate       byte = 2
	TypeNotification byte = 3
	TypeKeepalive    byte = 4
	TypeRouteRefresh byte = 5 // RFC 2918
)

// An Error says what in a message could not be decoded, and where.
type Error struct {
	What    string
	Offset  int    // in bytes from the start of the BGP message, header included
	Section string // where the field is specified
}

func (e *Error) Error() string {
	return fmt.Sprintf("bgp: %s at offset %d (%s)", e.What, e.Offset, e.Section)
}

// Type checks the header of pdu, one whole BGP message, and returns its
// message type. The marker must be all ones and the length that of pdu.
func Type(pdu []byte) (byte, error) {
	if len(pdu) < HeaderLen {
		return 0, &Error{"message ends within its header", len(pdu), "RFC 4271 section 4.1"}
	}
	if binary.BigEndian.Uint64(pdu)&binary.BigEndian.Uint64(pdu[8:]) != 1<<64-1 {
		return 0, &Error{"marker is not all ones", 0, "RFC 4271 section 4.1"}
	}
	if n := int(binary.BigEndian.Uint16(pdu[16:])); n != len(pdu) {
		return 0, &Error{fmt.Sprintf("length %d in a message of %d bytes", n, len(pdu)), 16, "RFC 4271 section 4.1"}
	}
	return pdu[18], nil
}

// A Family is an address family of routes: AFI and SAFI as assigned by IANA.
type Family struct {
	AFI  uint16
	SAFI uint8
}

// AFIs and SAFIs that the package decodes.
const (
	AFIIPv4 uint16 = 1
	AFIIPv6 uint16 = 2

	SAFIUnicast  uint8 = 1
	SAFILabelled uint8 = 4   // RFC 8277
	SAFIVPN      uint8 = 128 // RFC 4364, RFC 4659
)

// The families whose routes Prefixes can walk.
var (
	IPv4Unicast  = Family{AFIIPv4, SAFIUnicast}
	IPv4Labelled = Family{AFIIPv4, SAFILabelled}
	IPv4VPN      = Family{AFIIPv4, SAFIVPN}
	IPv6Unicast  = Family{AFIIPv6, SAFIUnicast}
	IPv6Labelled = Family{AFIIPv6, SAFILabelled}
	IPv6VPN      = Family{AFIIPv6, SAFIVPN}
)

// Families are those whose routes the package decodes, in the order of Index. They
// must not be changed.
var Families = [...]Family{IPv4Unicast, IPv4Labelled, IPv4VPN, IPv6Unicast, IPv6Labelled, IPv6VPN}

// Index returns the index of f in Families, -1 if it is not there.
func (f Family) Index() int {
	i := 0
	switch f.AFI {
	case AFIIPv4:
	case AFIIPv6:
		i = 3
	default:
		return -1
	}
	switch f.SAFI {
	case SAFIUnicast:
		return i
	case SAFILabelled:
		return i + 1
	case SAFIVPN:
		return i + 2
	}
	return -1
}

// Known reports whether Prefixes can walk routes of f.
func (f Family) Known() bool { return f.Index() >= 0 }

// Bits returns the length in bits of an address of f, 0 if f is not known.
func (f Family) Bits() int {
	switch f.AFI {
	case AFIIPv4:
		return 32
	case AFIIPv6:
		return 128
	}
	return 0
}

func (f Family) String() string { return fmt.Sprintf("AFI %d SAFI %d", f.AFI, f.SAFI) }
