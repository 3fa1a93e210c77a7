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
	// FlagRoute marks a record about a route. It carries KeyHash and ValueHash.
	FlagRoute
	// FlagState marks a record that carries KeyHash and ValueHash and is not about
	// a route.
	FlagState
)

const (
	headerLen      = 32
	headerKeyedLen = headerLen + 16

	flagsKeyed = FlagRoute | FlagState
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
// instance u64, message u64, token u64; with FlagRoute or FlagState then key
// hash u64 and value hash u64. A reader must accept longer headers and ignore
// what it does not know.
//
// The hashes are those of the encoder that made the record, and the same in all
// collectors: two records of a router with equal key hashes are about the same
// thing, and if their value hashes are equal, too, they say the same about it. They
// cover no timestamp, and nothing that is a collector's own.
type Header struct {
	Origin
	Index uint16 // of the record among those of its message; saturates
	// KeyHash is, with FlagRoute, of router, peer, RIB, family, RD, prefix and path
	// id; with FlagState, of whatever the record is about.
	KeyHash uint64
	// ValueHash is, with FlagRoute, of the attributes as received, or stands for a
	// withdrawal; with FlagState, of what is said. Where that has no meaning beyond
	// its having been said, as that of a counter, it is a constant.
	ValueHash uint64
}

// Keyed tells whether h has a KeyHash and a ValueHash.
func (h *Header) Keyed() bool { return h.Flags&flagsKeyed != 0 }

// AppendHeader appends the header of record number index of a message, without
// hashes.
func AppendHeader(dst []byte, o *Origin, index int) []byte {
	return appendFixed(dst, o, index, o.Flags&^flagsKeyed)
}

// AppendRouteHeader appends the header of route record number index of a
// message, with the hashes of its key and value.
func AppendRouteHeader(dst []byte, o *Origin, index int, key, value uint64) []byte {
	return appendKeyed(dst, o, index, FlagRoute, key, value)
}

// AppendStateHeader appends the header of record number index of a message that is
// not about a route, with the hashes of its key and value.
func AppendStateHeader(dst []byte, o *Origin, index int, key, value uint64) []byte {
	return appendKeyed(dst, o, index, FlagState, key, value)
}

func appendKeyed(dst []byte, o *Origin, index int, sort uint8, key, value uint64) []byte {
	dst = appendFixed(dst, o, index, o.Flags&^flagsKeyed|sort)
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
	if h.Keyed() {
		if len(b) < headerKeyedLen {
			return Header{}, fmt.Errorf("bmpha header: %d bytes, want at least %d with hashes", len(b), headerKeyedLen)
		}
		h.KeyHash = binary.BigEndian.Uint64(b[32:])
		h.ValueHash = binary.BigEndian.Uint64(b[40:])
	}
	return h, nil
}
