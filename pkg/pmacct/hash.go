package pmacct

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
)

// The two hashes in the header of a route record are xxHash64, seed 0, over
// the bytes below, numbers in big endian. Collectors compare them with each
// other's, so their layout may change only together with the version of the
// header.
//
// The key hash names a route of a router, whichever session it came through:
//
//	length of the router's identity  2 bytes
//	the router's identity
//	peer distinguisher               8 bytes, zero unless the peer type is 1 or 3
//	peer address                    16 bytes, IPv4 in the last four
//	peer's BGP identifier            4 bytes
//	RIB                              1 byte: 0 Adj-RIB-In pre-policy, 1 post-policy,
//	                                 2 Adj-RIB-Out pre-policy, 3 post-policy, 4 Loc-RIB
//	AFI                              2 bytes
//	SAFI                             1 byte
//	route distinguisher              8 bytes, zero unless SAFI is 128
//	path identifier                  4 bytes, zero without ADD-PATH
//	prefix length in bits            1 byte
//	the prefix                       as many bytes as it takes, host bits cleared
//
// The value hash of an announcement covers, for each path attribute except
// MP_UNREACH_NLRI in the order received: flags without the extended-length bit
// (1 byte), type (1 byte), length of the value (2 bytes), the value; of
// MP_REACH_NLRI only what comes before the routes. For SAFI 4 and 128 the
// label stack of the route follows, because it is not part of the key. The
// value hash of a withdrawal is withdrawn.
//
// Neither contains a timestamp.

// withdrawn is the value hash of every withdrawal: that of no bytes at all,
// which no announcement has.
const withdrawn = 0xef46db3751d8e999

// hashRouter returns what the key hash of all routes of a router begins with.
func hashRouter(router string) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(len(router)))
	return append(b, router...)
}

// hashPeer appends what the key hash says about the peer.
func hashPeer(dst []byte, p *bmp.PerPeer, k *peerKey) []byte {
	dst = append(dst, k.rd[:]...)
	dst = append(dst, k.addr[:]...)
	dst = append(dst, p.BGPID[:]...)
	return append(dst, byte(p.RIB()))
}

// hashKey returns the key hash of route p of family f. peer is what hashRouter
// and hashPeer made; the bytes after its length are overwritten.
func hashKey(peer []byte, f bgp.Family, p *bgp.Prefix) (buf []byte, h uint64) {
	b := binary.BigEndian.AppendUint16(peer, f.AFI)
	b = append(b, f.SAFI)
	b = append(b, p.RD[:]...)
	b = binary.BigEndian.AppendUint32(b, p.PathID)
	b = append(b, byte(p.Bits))
	b = append(b, p.Bytes...)
	if host := -p.Bits & 7; host != 0 {
		b[len(b)-1] &= 0xff << host
	}
	return b[:len(peer)], xxhash.Sum64(b)
}

// hashAttribute appends what the value hash says about attribute a.
func hashAttribute(dst []byte, a bgp.Attr) []byte {
	v := a.Value
	switch a.Type {
	case bgp.AttrMPUnreach:
		return dst
	case bgp.AttrMPReach:
		if len(v) > 4 {
			v = v[:min(len(v), 4+int(v[3]))]
		}
	}
	dst = append(dst, a.Flags&^0x10, a.Type)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(v)))
	return append(dst, v...)
}

// hashValue returns the value hash of a route with label stack labels and the
// attributes in attrs, as made by hashAttribute.
func hashValue(attrs, labels []byte) (buf []byte, h uint64) {
	b := append(attrs, labels...)
	return b[:len(attrs)], xxhash.Sum64(b)
}
