package pmacct

import "sync/atomic"

// Counters count what an encoder's sessions left out or could not use. All
// grow only.
type Counters struct {
	Malformed         uint64 // messages in which something could not be decoded
	MissingPeerUp     uint64 // Route Monitoring for a peer that is not up
	LocRIBAddress     uint64 // messages of a Loc-RIB peer that has an address
	TooManyPeers      uint64 // Peer Up messages beyond what a session remembers
	TooLong           uint64 // messages longer than pmacct takes
	UnknownMessages   uint64 // messages of a type that is not known
	Mirroring         uint64 // Route Mirroring messages, which make no record
	NotUpdate         uint64 // Route Monitoring with another BGP message than UPDATE
	UnknownFamilies   uint64 // MP_REACH and MP_UNREACH of families that make no record
	LabelledAddPath   uint64 // MP_REACH and MP_UNREACH left out for ErrLabelledAddPath
	UnknownAttributes uint64 // path attributes of a type that is not known
	UnknownTLVs       uint64 // information TLVs of a type that is not known
	UnknownStats      uint64 // counters of a type that is not known
	TrailingTLVs      uint64 // Route Monitoring with TLVs after the BGP message
}

type counters struct {
	malformed, missingPeerUp, locRIBAddress, tooManyPeers, tooLong, unknownMessages, mirroring, notUpdate,
	unknownFamilies, labelledAddPath, unknownAttributes, unknownTLVs, unknownStats, trailingTLVs atomic.Uint64
}

// Counters returns the counters of all sessions of e, past and present.
func (e *Encoder) Counters() Counters {
	c := &e.counters
	return Counters{
		Malformed:         c.malformed.Load(),
		MissingPeerUp:     c.missingPeerUp.Load(),
		LocRIBAddress:     c.locRIBAddress.Load(),
		TooManyPeers:      c.tooManyPeers.Load(),
		TooLong:           c.tooLong.Load(),
		UnknownMessages:   c.unknownMessages.Load(),
		Mirroring:         c.mirroring.Load(),
		NotUpdate:         c.notUpdate.Load(),
		UnknownFamilies:   c.unknownFamilies.Load(),
		LabelledAddPath:   c.labelledAddPath.Load(),
		UnknownAttributes: c.unknownAttributes.Load(),
		UnknownTLVs:       c.unknownTLVs.Load(),
		UnknownStats:      c.unknownStats.Load(),
		TrailingTLVs:      c.trailingTLVs.Load(),
	}
}
