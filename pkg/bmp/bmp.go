// Package bmp frames and decodes BGP Monitoring Protocol messages: version 3
// of RFC 7854, Adj-RIB-Out of RFC 8671, Loc-RIB of RFC 9069.
//
// Decoding is in place: every byte slice that a decoded value holds points
// into the message it was parsed from and is valid as long as that memory is.
// Nothing is allocated on the way, except for errors. No input makes a
// function of this package panic or read past the slice it was given. A BGP
// PDU is bounded by its own length field; what follows it in a Route
// Monitoring message are TLVs and is kept, not an error.
//
// The package knows nothing of BGP beyond the length of a PDU, keeps no state
// and is safe for concurrent use.
package bmp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Version is the only BMP version that is understood.
const Version = 3

// Lengths in bytes of the fixed headers of RFC 7854, sections 4.1 and 4.2.
const (
	HeaderLen  = 6
	PerPeerLen = 42
)

// Message types of RFC 7854, section 4.1.
const (
	TypeRouteMonitoring  byte = 0
	TypeStatisticsReport byte = 1
	TypePeerDown         byte = 2
	TypePeerUp           byte = 3
	TypeInitiation       byte = 4
	TypeTermination      byte = 5
	TypeRouteMirroring   byte = 6
)

// A FrameError says that the bytes at the start of a message cannot be a BMP
// message. The stream cannot be followed any further.
type FrameError struct {
	What    string // the field that is wrong: "version" or "length"
	Got     uint64 // its value
	Want    string // what would have been right
	Section string // where it is specified
}

func (e *FrameError) Error() string {
	return fmt.Sprintf("bmp: %s %d, want %s (%s)", e.What, e.Got, e.Want, e.Section)
}

// Next finds the end of the message that starts at b[0]. It returns
//
//   - n > 0: b[:n] is one whole message,
//   - n == 0 and no error: b holds only a part of it, more bytes are needed,
//   - a *FrameError: no message can start like this, because the version is
//     not 3, or the length is below 6 or above max bytes.
//
// The version is judged as soon as there is one byte, so that a stream that is
// not BMP is recognised at once.
func Next(b []byte, max int) (n int, err error) {
	if len(b) == 0 {
		return 0, nil
	}
	if b[0] != Version {
		return 0, &FrameError{"version", uint64(b[0]), "3", "RFC 7854 section 4.1"}
	}
	if len(b) < HeaderLen {
		return 0, nil
	}
	length := uint64(binary.BigEndian.Uint32(b[1:]))
	if length < HeaderLen {
		return 0, &FrameError{"length", length, "at least 6", "RFC 7854 section 4.1"}
	}
	if max < HeaderLen || length > uint64(max) {
		return 0, &FrameError{"length", length, fmt.Sprintf("at most %d (limit)", max), "RFC 7854 section 4.1"}
	}
	if uint64(len(b)) < length {
		return 0, nil
	}
	return int(length), nil
}

// Type returns the message type of msg, which must hold at least a common
// header.
func Type(msg []byte) byte { return msg[HeaderLen-1] }

// An Error says what in a message could not be decoded, and where.
type Error struct {
	What    string
	Offset  int    // in bytes from the start of the message
	Section string // where the field is specified
}

func (e *Error) Error() string {
	return fmt.Sprintf("bmp: %s at offset %d (%s)", e.What, e.Offset, e.Section)
}

// Peer types of RFC 7854 section 4.2 and RFC 9069 section 4.1.
const (
	PeerGlobal byte = 0
	PeerRD     byte = 1
	PeerLocal  byte = 2
	PeerLocRIB byte = 3
)

// Flags of the per-peer header. F applies to Loc-RIB peers (RFC 9069), the
// others to all other peers (RFC 7854, RFC 8671).
const (
	FlagV byte = 0x80 // the addresses are IPv6
	FlagL byte = 0x40 // post-policy
	FlagA byte = 0x20 // AS_PATH in the two-octet format
	FlagO byte = 0x10 // Adj-RIB-Out
	FlagF byte = 0x80 // Loc-RIB: filtered
)

// A RIB is the kind of routing table that a message talks about.
type RIB uint8

// The tables that BMP monitors.
const (
	AdjRIBInPre RIB = iota
	AdjRIBInPost
	AdjRIBOutPre
	AdjRIBOutPost
	LocRIB
)

var ribNames = [...]string{
	"Adj-RIB-In pre-policy", "Adj-RIB-In post-policy",
	"Adj-RIB-Out pre-policy", "Adj-RIB-Out post-policy", "Loc-RIB",
}

func (r RIB) String() string {
	if int(r) < len(ribNames) {
		return ribNames[r]
	}
	return fmt.Sprintf("RIB %d", uint8(r))
}

// A PerPeer is the per-peer header of RFC 7854, section 4.2.
type PerPeer struct {
	Type          byte
	Flags         byte
	Distinguisher [8]byte
	RawAddress    [16]byte // as received; IPv4 in the last four bytes
	AS            uint32
	BGPID         [4]byte
	Sec, Usec     uint32 // when the message was made, 0 if the router does not say
}

// IPv6 reports whether the peer's addresses are IPv6. A Loc-RIB peer has none.
func (p *PerPeer) IPv6() bool { return p.Type != PeerLocRIB && p.Flags&FlagV != 0 }

// Address returns the address of the peer: IPv4, IPv6, or for a Loc-RIB peer
// whose address is zero, as RFC 9069 wants it, 0.0.0.0.
func (p *PerPeer) Address() netip.Addr { return p.addr(p.RawAddress[:]) }

func (p *PerPeer) addr(raw []byte) netip.Addr {
	if p.IPv6() {
		return netip.AddrFrom16([16]byte(raw))
	}
	return netip.AddrFrom4([4]byte(raw[12:16]))
}

// RIB returns the table that the message talks about.
func (p *PerPeer) RIB() RIB {
	if p.Type == PeerLocRIB {
		return LocRIB
	}
	r := AdjRIBInPre
	if p.Flags&FlagO != 0 {
		r = AdjRIBOutPre
	}
	if p.Flags&FlagL != 0 {
		r++
	}
	return r
}

// Filtered reports whether a Loc-RIB is monitored in part only (F flag of
// RFC 9069 section 4.2).
func (p *PerPeer) Filtered() bool { return p.Type == PeerLocRIB && p.Flags&FlagF != 0 }

// ParsePerPeer decodes the per-peer header of msg, a whole message of a type
// that has one.
func ParsePerPeer(msg []byte) (PerPeer, error) {
	if len(msg) < HeaderLen+PerPeerLen {
		return PerPeer{}, &Error{"message ends within the per-peer header", len(msg), "RFC 7854 section 4.2"}
	}
	b := msg[HeaderLen : HeaderLen+PerPeerLen]
	return PerPeer{
		Type:          b[0],
		Flags:         b[1],
		Distinguisher: [8]byte(b[2:10]),
		RawAddress:    [16]byte(b[10:26]),
		AS:            binary.BigEndian.Uint32(b[26:]),
		BGPID:         [4]byte(b[30:34]),
		Sec:           binary.BigEndian.Uint32(b[34:]),
		Usec:          binary.BigEndian.Uint32(b[38:]),
	}, nil
}

// pduHeaderLen is the length of a BGP message header, RFC 4271 section 4.1.
const pduHeaderLen = 19

// pdu returns the length of the BGP message that starts at msg[off].
func pdu(msg []byte, off int, section string) (int, error) {
	if len(msg)-off < pduHeaderLen {
		return 0, &Error{"message ends within a BGP header", len(msg), section}
	}
	n := int(binary.BigEndian.Uint16(msg[off+16:]))
	if n < pduHeaderLen {
		return 0, &Error{fmt.Sprintf("BGP message of %d bytes, want at least %d", n, pduHeaderLen), off + 16, "RFC 4271 section 4.1"}
	}
	if n > len(msg)-off {
		return 0, &Error{fmt.Sprintf("BGP message of %d bytes where %d are left", n, len(msg)-off), off + 16, section}
	}
	return n, nil
}

// A RouteMonitoring is a Route Monitoring message of RFC 7854, section 4.6.
type RouteMonitoring struct {
	Peer   PerPeer
	Update []byte // the BGP message, header included, bounded by its own length
	Offset int    // of Update in the BMP message
	TLVs   TLVs   // what follows the BGP message; usually nothing
}

// ParseRouteMonitoring decodes msg, one whole Route Monitoring message.
func ParseRouteMonitoring(msg []byte) (RouteMonitoring, error) {
	p, err := ParsePerPeer(msg)
	if err != nil {
		return RouteMonitoring{}, err
	}
	const off = HeaderLen + PerPeerLen
	n, err := pdu(msg, off, "RFC 7854 section 4.6")
	if err != nil {
		return RouteMonitoring{}, err
	}
	return RouteMonitoring{
		Peer:   p,
		Update: msg[off : off+n],
		Offset: off,
		TLVs:   TLVs{msg: msg, off: off + n, section: "RFC 7854 section 4.6"},
	}, nil
}

// A PeerUp is a Peer Up Notification of RFC 7854, section 4.10.
type PeerUp struct {
	Peer            PerPeer
	LocalAddr       netip.Addr
	LocalPort       uint16
	RemotePort      uint16
	Sent, Received  []byte // the OPEN messages, BGP headers included
	SentOffset      int    // of Sent in the BMP message
	ReceivedOffset  int    // of Received in the BMP message
	TLVs            TLVs   // information TLVs
	RawLocalAddress [16]byte
}

// ParsePeerUp decodes msg, one whole Peer Up Notification. The OPEN messages
// are only delimited; they belong to the caller to decode.
func ParsePeerUp(msg []byte) (PeerUp, error) {
	const section = "RFC 7854 section 4.10"
	p, err := ParsePerPeer(msg)
	if err != nil {
		return PeerUp{}, err
	}
	off := HeaderLen + PerPeerLen
	if len(msg)-off < 20 {
		return PeerUp{}, &Error{"message ends within the peer up header", len(msg), section}
	}
	u := PeerUp{
		Peer:            p,
		LocalAddr:       p.addr(msg[off : off+16]),
		RawLocalAddress: [16]byte(msg[off : off+16]),
		LocalPort:       binary.BigEndian.Uint16(msg[off+16:]),
		RemotePort:      binary.BigEndian.Uint16(msg[off+18:]),
	}
	off += 20
	n, err := pdu(msg, off, section)
	if err != nil {
		return PeerUp{}, err
	}
	u.Sent, u.SentOffset = msg[off:off+n], off
	off += n
	if n, err = pdu(msg, off, section); err != nil {
		return PeerUp{}, err
	}
	u.Received, u.ReceivedOffset = msg[off:off+n], off
	u.TLVs = TLVs{msg: msg, off: off + n, section: section}
	return u, nil
}

// Reasons of a Peer Down Notification, RFC 7854 section 4.9 and RFC 9069
// section 5.3.
const (
	DownLocalNotification  byte = 1 // Data is the NOTIFICATION sent
	DownLocal              byte = 2 // Data is the FSM event code, two bytes
	DownRemoteNotification byte = 3 // Data is the NOTIFICATION received
	DownRemote             byte = 4
	DownDeconfigured       byte = 5
	DownLocRIB             byte = 6 // Data is a VRF/Table Name TLV
)

// A PeerDown is a Peer Down Notification of RFC 7854, section 4.9.
type PeerDown struct {
	Peer   PerPeer
	Reason byte
	Data   []byte // what follows the reason; its meaning depends on it
}

// ParsePeerDown decodes msg, one whole Peer Down Notification.
func ParsePeerDown(msg []byte) (PeerDown, error) {
	p, err := ParsePerPeer(msg)
	if err != nil {
		return PeerDown{}, err
	}
	const off = HeaderLen + PerPeerLen
	if len(msg) < off+1 {
		return PeerDown{}, &Error{"message ends before the reason", len(msg), "RFC 7854 section 4.9"}
	}
	return PeerDown{Peer: p, Reason: msg[off], Data: msg[off+1:]}, nil
}

// Event returns the code of the FSM event that closed the session, for reason
// DownLocal.
func (d *PeerDown) Event() (code uint16, ok bool) {
	if d.Reason != DownLocal || len(d.Data) < 2 {
		return 0, false
	}
	return binary.BigEndian.Uint16(d.Data), true
}

// Stats is a Statistics Report of RFC 7854, section 4.8.
type Stats struct {
	Peer     PerPeer
	Count    uint32 // of counters that the message promises
	Counters TLVs   // the counters
}

// ParseStats decodes msg, one whole Statistics Report.
func ParseStats(msg []byte) (Stats, error) {
	const section = "RFC 7854 section 4.8"
	p, err := ParsePerPeer(msg)
	if err != nil {
		return Stats{}, err
	}
	const off = HeaderLen + PerPeerLen
	if len(msg) < off+4 {
		return Stats{}, &Error{"message ends within the counter count", len(msg), section}
	}
	return Stats{
		Peer:     p,
		Count:    binary.BigEndian.Uint32(msg[off:]),
		Counters: TLVs{msg: msg, off: off + 4, section: section},
	}, nil
}

// Types of the TLVs of an Initiation message, RFC 7854 section 4.3.
const (
	InitString   uint16 = 0
	InitSysDescr uint16 = 1
	InitSysName  uint16 = 2
)

// Types of the TLVs of a Peer Up Notification, RFC 7854 section 4.10 and RFC
// 9069 section 5.2.1.
const (
	PeerUpString   uint16 = 0
	PeerUpVRFTable uint16 = 3
)

// Types of the TLVs of a Termination message, RFC 7854 section 4.5.
const (
	TermString uint16 = 0
	TermReason uint16 = 1
)

// ParseInitiation returns the TLVs of msg, one whole Initiation message.
func ParseInitiation(msg []byte) TLVs {
	return TLVs{msg: msg, off: HeaderLen, section: "RFC 7854 section 4.4"}
}

// ParseTermination returns the TLVs of msg, one whole Termination message.
func ParseTermination(msg []byte) TLVs {
	return TLVs{msg: msg, off: HeaderLen, section: "RFC 7854 section 4.5"}
}

// ParseRouteMirroring decodes msg, one whole Route Mirroring message of RFC
// 7854, section 4.7.
func ParseRouteMirroring(msg []byte) (PerPeer, TLVs, error) {
	p, err := ParsePerPeer(msg)
	if err != nil {
		return PerPeer{}, TLVs{}, err
	}
	return p, TLVs{msg: msg, off: HeaderLen + PerPeerLen, section: "RFC 7854 section 4.7"}, nil
}

// A TLV is one type, length, value triple.
type TLV struct {
	Type   uint16
	Value  []byte
	Offset int // of the TLV in the BMP message
}

// TLVs walks the TLVs at the end of a message. The zero value has none. Copy
// it to walk them twice.
//
//	for tlvs.Next() {
//		use(tlvs.TLV())
//	}
//	if err := tlvs.Err(); err != nil { ... }
type TLVs struct {
	msg     []byte
	off     int
	section string
	cur     TLV
	err     *Error
}

// Next advances to the next TLV and reports whether there is one.
func (t *TLVs) Next() bool {
	rest := len(t.msg) - t.off
	if t.err != nil || rest <= 0 {
		return false
	}
	if rest < 4 {
		t.err = &Error{"message ends within a TLV header", len(t.msg), t.section}
		return false
	}
	n := int(binary.BigEndian.Uint16(t.msg[t.off+2:]))
	if n > rest-4 {
		t.err = &Error{fmt.Sprintf("TLV of %d bytes where %d are left", n, rest-4), t.off + 2, t.section}
		return false
	}
	t.cur = TLV{
		Type:   binary.BigEndian.Uint16(t.msg[t.off:]),
		Value:  t.msg[t.off+4 : t.off+4+n],
		Offset: t.off,
	}
	t.off += 4 + n
	return true
}

// TLV returns the current TLV.
func (t *TLVs) TLV() TLV { return t.cur }

// Rest returns the bytes that were not walked yet, however malformed.
func (t *TLVs) Rest() []byte { return t.msg[min(t.off, len(t.msg)):] }

// Offset returns the position of Rest in the BMP message.
func (t *TLVs) Offset() int { return t.off }

// Err returns what ended the walk early, or nil.
func (t *TLVs) Err() error {
	if t.err == nil {
		return nil
	}
	return t.err
}
