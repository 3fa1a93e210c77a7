package pmacct

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
)

// The two hashes in the header of a record are xxHash64, seed 0, over
// the bytes below, numbers in big endian. Collectors compare them with each
// other's, so their layout may change only together with the version of the
// header.
//
// The key hash of a route record names a route of a router, whichever session it
// came through:
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
// value hash of a withdrawal is withdrawn, also of one that a router did not send
// itself (delete).
//
// The key hash of any other record begins with the router, too. No two of what
// follows can be taken for each other, nor for a route: their lengths differ.
//
//	log_init, log_close, init, term  kind (1 byte)
//	peer_up, peer_down               kind (1 byte, the same for both), peer distinguisher
//	                                 and address as above. The BGP identifier is not there:
//	                                 one that has never been up has none
//	stats                            kind (1 byte), peer distinguisher, address and RIB as
//	                                 above, type of the counter (2 bytes), AFI (2 bytes) and
//	                                 SAFI (1 byte), zero for types that have none
//	end-of-rib                       like a route's up to and with the SAFI
//
// Their value hash is stated, but for those that a router can take back:
//
//	init       kind, the TLVs as received
//	peer_up    kind, RIB, 1 if its routes are filtered and else 0 (1 byte), all of the
//	           message behind the per-peer header: local address, ports, OPENs, TLVs
//	peer_down  kind, RIB, reason (1 byte), event of the state machine (2 bytes, zero
//	           without)
//
// Neither contains a timestamp.

// withdrawn is the value hash of every withdrawal: that of no bytes at all,
// which no announcement has.
const withdrawn = 0xef46db3751d8e999

// stated is the value hash of what is only said: that of one zero byte.
const stated = 0xe934a84adb052768

// A kind of record that is not about a route, in its hashes. End-of-RIB has none.
type kind byte

const (
	kindLogInit  kind = 'o'
	kindLogClose kind = 'c'
	kindInit     kind = 'i'
	kindTerm     kind = 't'
	kindPeer     kind = 'p' // in the key of the next two
	kindPeerUp   kind = 'u'
	kindPeerDown kind = 'd'
	kindStats    kind = 's'
)

// hashSession returns the key hash of a record about the session itself.
func (s *Session) hashSession(k kind) uint64 {
	if !s.hashes() {
		return 0
	}
	s.hashIn = append(append(s.hashIn[:0], s.hashed...), byte(k))
	return xxhash.Sum64(s.hashIn)
}

// hashOfPeer returns the key hash of a record about the peer of p.
func (s *Session) hashOfPeer(k kind, p *bmp.PerPeer) uint64 {
	if !s.hashes() {
		return 0
	}
	s.beginPeer(k, p)
	return xxhash.Sum64(s.hashIn)
}

// PeerHash returns the key hash of a peer_up and a peer_down of the peer that a BMP
// message of a router is about; false if it is about none. It allocates nothing for
// identities of up to 64 bytes.
func PeerHash(router string, msg []byte) (h uint64, ok bool) {
	p, err := bmp.ParsePerPeer(msg)
	if err != nil {
		return 0, false
	}
	var room [128]byte
	b := binary.BigEndian.AppendUint16(room[:0], uint16(len(router)))
	id := newPeerKey(&p)
	b = append(append(b, router...), byte(kindPeer))
	b = append(append(b, id.rd[:]...), id.addr[:]...)
	return xxhash.Sum64(b), true
}

// beginPeer lets s.hashIn begin with the peer of p.
func (s *Session) beginPeer(k kind, p *bmp.PerPeer) {
	id := newPeerKey(p)
	b := append(append(s.hashIn[:0], s.hashed...), byte(k))
	b = append(b, id.rd[:]...)
	s.hashIn = append(b, id.addr[:]...)
}

// hashStat returns the key hash of a counter of type typ. head is s.hashIn as
// beginPeer left it, with the RIB.
func (s *Session) hashStat(head int, typ uint16, value []byte) uint64 {
	b := binary.BigEndian.AppendUint16(s.hashIn[:head], typ)
	if int(typ) < len(statTypes) && len(value) == 11 {
		b = append(b, value[:3]...)
	} else {
		b = append(b, 0, 0, 0)
	}
	s.hashIn = b
	return xxhash.Sum64(b)
}

// hashSaid returns the value hash of a record of a kind, that says what.
func (s *Session) hashSaid(k kind, what ...[]byte) uint64 {
	if !s.hashes() {
		return 0
	}
	b := append(s.values[:0], byte(k))
	for _, w := range what {
		b = append(b, w...)
	}
	s.values = b
	return xxhash.Sum64(b)
}

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

// hashEndOfRIB is hashKey for the End-of-RIB of family f.
func hashEndOfRIB(peer []byte, f bgp.Family) (buf []byte, h uint64) {
	b := binary.BigEndian.AppendUint16(peer, f.AFI)
	b = append(b, f.SAFI)
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
