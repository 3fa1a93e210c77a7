package record

import (
	"encoding/binary"
	"fmt"
)

// HeaderName is the name of the one Kafka record header that bmpha adds.
const HeaderName = "bmpha"

// HeaderVersion is the first byte of every header written by this version.
const HeaderVersion = 1

// Flags of a Header.
const (
	// FlagReplayed marks a record that was held while another collector was
	// the sender and may therefore be in Kafka already.
	FlagReplayed = 1 << iota
	// FlagShared marks a record sent while more than one sender was possible
	// (Redis could not be asked).
	FlagShared
	// FlagRoute marks a record that carries KeyHash and ValueHash.
	FlagRoute
)

const (
	headerLen      = 32
	headerRouteLen = headerLen + 16
)

// An Origin says where the records of one BMP message come from. Numbers in it
// are local to one collector instance and are never compared across collectors,
// except Token.
type Origin struct {
	Instance uint64 // random, one per process start
	Session  uint32 // BMP session of this instance, from 1
	Message  uint64 // BMP message in the session, from 0 (the opening of the session)
	Token    uint64 // rises with every takeover in the cluster
	Flags    uint8
}

// A Header is the decoded form of a record's bmpha header.
//
// Layout, big endian: version u8, flags u8, record index u16, session u32,
// instance u64, message u64, token u64; with FlagRoute then key hash u64 and
// value hash u64. A reader must accept longer headers and ignore
// what it does not know.
type Header struct {
	Origin
	Index     uint16 // of the record among those of its message; saturates
	KeyHash   uint64 // router, peer, RIB, family, RD, prefix, path id; no timestamp
	ValueHash uint64 // attributes as received, or a withdraw; no timestamp
}

// AppendHeader appends the header of record number index of a message that made
// no route record.
func AppendHeader(dst []byte, o *Origin, index int) []byte {
	return appendFixed(dst, o, index, o.Flags&^FlagRoute)
}

// AppendRouteHeader appends the header of route record number index of a
// message, with the hashes of its key and value.
func AppendRouteHeader(dst []byte, o *Origin, index int, key, value uint64) []byte {
	dst = appendFixed(dst, o, index, o.Flags|FlagRoute)
	dst = binary.BigEndian.AppendUint64(dst, key)
	return binary.BigEndian.AppendUint64(dst, value)
}

func appendFixed(dst []byte, o *Origin, index int, flags uint8) []byte {
	dst = append(dst, HeaderVersion, flags)
	dst = binary.BigEndian.AppendUint16(dst, uint16(min(index, 0xffff)))
	dst = binary.BigEndian.AppendUint32(dst, o.Session)
	dst = binary.BigEndian.AppendUint64(dst, o.Instance)
	dst = binary.BigEndian.AppendUint64(dst, o.Message)
	return binary.BigEndian.AppendUint64(dst, o.Token)
}

// ParseHeader decodes a header. It accepts headers of later versions as long as
// they begin as this version's do, and fails on anything too short.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < headerLen {
		return Header{}, fmt.Errorf("bmpha header: %d bytes, want at least %d", len(b), headerLen)
	}
	if b[0] < HeaderVersion {
		return Header{}, fmt.Errorf("bmpha header: version %d, want %d or later", b[0], HeaderVersion)
	}
	h := Header{
		Index: binary.BigEndian.Uint16(b[2:]),
		Origin: Origin{
			Flags:    b[1],
			Session:  binary.BigEndian.Uint32(b[4:]),
			Instance: binary.BigEndian.Uint64(b[8:]),
			Message:  binary.BigEndian.Uint64(b[16:]),
			Token:    binary.BigEndian.Uint64(b[24:]),
		},
	}
	if h.Flags&FlagRoute != 0 {
		if len(b) < headerRouteLen {
			return Header{}, fmt.Errorf("bmpha header: %d bytes, want at least %d for a route", len(b), headerRouteLen)
		}
		h.KeyHash = binary.BigEndian.Uint64(b[32:])
		h.ValueHash = binary.BigEndian.Uint64(b[40:])
	}
	return h, nil
}
