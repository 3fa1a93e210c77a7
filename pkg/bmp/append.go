package bmp

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// The functions in this file write BMP messages (RFC 7854) in append style:
// each appends to dst and returns the extended slice, keeps none of its
// arguments and allocates nothing but what dst needs to grow. They serve test
// routers and tests, write what they are told and check nothing.
//
// Where a function takes a per-peer header, it is the 42 bytes that
// AppendPeerHeader makes, or that a received message had.

// AppendHeader appends a common header (RFC 7854, 4.1), version 3, with a
// length that AppendLength fills in once the message is complete.
func AppendHeader(dst []byte, msgType uint8) []byte {
	return append(dst, 3, 0, 0, 0, 0, msgType)
}

// AppendLength writes the length of the message that began at offset start of
// dst and ends with dst.
func AppendLength(dst []byte, start int) []byte {
	binary.BigEndian.PutUint32(dst[start+1:], uint32(len(dst)-start))
	return dst
}

// AppendPeerHeader appends a per-peer header (RFC 7854, 4.2).
//
// Type is 0 global, 1 RD, 2 local (RFC 7854), 3 Loc-RIB (RFC 9069). Flags are,
// for types 0 to 2, 0x40 post-policy, 0x20 two-octet AS_PATH, 0x10 Adj-RIB-Out
// (RFC 8671), and for type 3, 0x80 filtered; 0x80 (IPv6) is added here for an
// IPv6 address of a type 0 to 2 peer. A Loc-RIB peer has the zero Addr, written
// as zeros, and so has the BGP identifier where it is not known. The time is
// written to the microsecond; the zero Time is written as 0 (not available).
func AppendPeerHeader(dst []byte, peerType, flags uint8, distinguisher uint64, addr netip.Addr, as uint32, bgpID netip.Addr, at time.Time) []byte {
	if peerType != 3 && addr.Is6() {
		flags |= 0x80
	}
	dst = append(dst, peerType, flags)
	dst = binary.BigEndian.AppendUint64(dst, distinguisher)
	dst = putAddress(dst, addr)
	dst = binary.BigEndian.AppendUint32(dst, as)
	var id [4]byte
	if bgpID.Is4() {
		id = bgpID.As4()
	}
	dst = append(dst, id[:]...)
	var sec, usec uint32
	if !at.IsZero() {
		sec, usec = uint32(at.Unix()), uint32(at.Nanosecond()/1000)
	}
	dst = binary.BigEndian.AppendUint32(dst, sec)
	return binary.BigEndian.AppendUint32(dst, usec)
}

// AppendTLV appends an information TLV (RFC 7854, 4.4).
func AppendTLV(dst []byte, tlvType uint16, value string) []byte {
	dst = binary.BigEndian.AppendUint16(dst, tlvType)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(value)))
	return append(dst, value...)
}

// AppendInitiation appends an Initiation message with sysDescr and sysName.
func AppendInitiation(dst []byte, sysDescr, sysName string) []byte {
	start := len(dst)
	dst = AppendHeader(dst, 4)
	dst = AppendTLV(dst, 1, sysDescr)
	dst = AppendTLV(dst, 2, sysName)
	return AppendLength(dst, start)
}

// AppendTermination appends a Termination message with a reason code
// (RFC 7854, 4.5) and, unless it is empty, a free text before it.
func AppendTermination(dst []byte, reason uint16, text string) []byte {
	start := len(dst)
	dst = AppendHeader(dst, 5)
	if text != "" {
		dst = AppendTLV(dst, 0, text)
	}
	dst = append(dst, 0, 1, 0, 2, byte(reason>>8), byte(reason))
	return AppendLength(dst, start)
}

// AppendPeerUp appends a Peer Up Notification (RFC 7854, 4.10): the router's own
// address and the ports of the BGP session, the complete OPEN messages sent and
// received by the router, and encoded TLVs, of which type 3 is the VRF or table
// name (RFC 9069, 4.4).
func AppendPeerUp(dst, peer []byte, local netip.Addr, localPort, remotePort uint16, sent, received, tlvs []byte) []byte {
	start := len(dst)
	dst = AppendHeader(dst, 3)
	dst = append(dst, peer...)
	dst = putAddress(dst, local)
	dst = binary.BigEndian.AppendUint16(dst, localPort)
	dst = binary.BigEndian.AppendUint16(dst, remotePort)
	dst = append(dst, sent...)
	dst = append(dst, received...)
	dst = append(dst, tlvs...)
	return AppendLength(dst, start)
}

// AppendPeerDown appends a Peer Down Notification (RFC 7854, 4.9). What data
// holds depends on the reason: a NOTIFICATION message (1, 3), a two-byte FSM
// event code (2), nothing (4, 5), TLVs (6, RFC 9069).
func AppendPeerDown(dst, peer []byte, reason uint8, data []byte) []byte {
	start := len(dst)
	dst = AppendHeader(dst, 2)
	dst = append(dst, peer...)
	dst = append(dst, reason)
	dst = append(dst, data...)
	return AppendLength(dst, start)
}

// An AppendStat is one counter or gauge of a Statistics Report. AFI and SAFI
// are written for the types that are per family: 9, 10, 16, 17.
type AppendStat struct {
	Type  uint16
	AFI   uint16
	SAFI  uint8
	Value uint64
}

// AppendStats appends a Statistics Report (RFC 7854, 4.8; RFC 8671, 6.2). The
// width of a value is the one that its type has in the RFCs: eight bytes for
// gauges (7 to 10, 14 to 17) and four for the others.
func AppendStats(dst, peer []byte, stats ...AppendStat) []byte {
	start := len(dst)
	dst = AppendHeader(dst, 1)
	dst = append(dst, peer...)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(stats)))
	for _, s := range stats {
		dst = binary.BigEndian.AppendUint16(dst, s.Type)
		switch s.Type {
		case 7, 8, 14, 15:
			dst = append(dst, 0, 8)
			dst = binary.BigEndian.AppendUint64(dst, s.Value)
		case 9, 10, 16, 17:
			dst = append(dst, 0, 11, byte(s.AFI>>8), byte(s.AFI), s.SAFI)
			dst = binary.BigEndian.AppendUint64(dst, s.Value)
		default:
			dst = append(dst, 0, 4)
			dst = binary.BigEndian.AppendUint32(dst, uint32(s.Value))
		}
	}
	return AppendLength(dst, start)
}

// AppendRouteMonitoring appends a Route Monitoring message (RFC 7854, 4.6)
// around a complete BGP UPDATE message. A caller that writes the UPDATE in
// place uses AppendHeader, the per-peer header, the UPDATE, AppendLength.
func AppendRouteMonitoring(dst, peer, update []byte) []byte {
	start := len(dst)
	dst = AppendHeader(dst, 0)
	dst = append(dst, peer...)
	dst = append(dst, update...)
	return AppendLength(dst, start)
}

// putAddress appends an address in sixteen bytes, IPv4 in the last four
// (RFC 7854, 4.2), the zero Addr as zeros.
func putAddress(dst []byte, addr netip.Addr) []byte {
	var b [16]byte
	switch {
	case addr.Is4():
		a := addr.As4()
		copy(b[12:], a[:])
	case addr.Is6():
		b = addr.As16()
	}
	return append(dst, b[:]...)
}
