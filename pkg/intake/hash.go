package intake

import (
	"bytes"
	"math/bits"

	"github.com/cespare/xxhash/v2"
)

// Hashes returns what goes into bmpha's header of a value of pmacct's: a hash of what
// it is about, and one of what it says about it. They are the same for records that two
// pmacct of one version and configuration make of two sessions of one router, whatever
// the order of the keys. It knows the JSON of pmacct's BMP and BGP daemons; ok is false
// for everything else, and for records of which it is not known what they are about.
// It allocates nothing.
//
// The key is made of the router (bmp_router; peer_ip_src of the BGP daemons) and
//
//	routes       peer_ip, rd, pd, is_post, is_in, is_out, is_loc, afi, safi,
//	             ip_prefix, as_path_id
//	end-of-rib   the same as far as it is there
//	peer_up and  peer_ip, rd, pd: both have one key, whatever RIB they name, because a
//	peer_down    peer_down of 1.7.7 names none
//	stats        peer_ip, rd, pd, the RIB, afi, safi, counter_type
//	others       nothing: init, term, log_init, log_close, dump_init, dump_close
//
// and what sort it is. Records of dumps have the dump's time in their keys, which is
// that of its slot and not of any clock: they are no news about a route, and another
// dump is not the same one.
//
// The value is that of all other keys but those that differ between two sessions or two
// collectors: seq, writer_id, timestamp (of a peer's header, else of the collector),
// timestamp_event, timestamp_arrival, bmp_router_port, peer_tcp_port, roa (of the
// collector's own validator) and bmp_rm_info_stateless (the routes that came in the same
// message). Next hops are the same in IPv4 and as IPv4 in IPv6. It is a constant for withdraw and delete, which say the same and of which
// some tell what the route was and some not; for stats, because two sessions are told at
// other times; and for end-of-rib, term, log_init, log_close, dump_init and dump_close. A
// peer_down does not count bgp_id: a peer that was never up has none.
func Hashes(value []byte) (key, val uint64, ok bool) {
	var m members
	if !m.read(value) {
		return 0, 0, false
	}
	what := m.sort()
	if what == sortUnknown {
		return 0, 0, false
	}
	h := newHash(byte(what))
	if m.slots[slotRouter] != nil {
		h.add(m.slots[slotRouter])
	} else {
		h.add(m.slots[slotPeerSource])
	}
	if len(m.event) >= 4 && string(m.event[:4]) == "dump" {
		if m.slots[slotTimestamp] == nil {
			return 0, 0, false
		}
		h.add(m.slots[slotTimestamp])
	}
	from, to := what.slots()
	for _, s := range m.slots[from:to] {
		h.add(s)
	}
	switch what {
	case sortRoute:
		if m.log != nil && string(m.log) != "update" {
			return h.sum(), said, true
		}
		m.others += memberHash(nameFiltered, m.filtered)
	case sortPeer:
		// Which of the two it is, is not among the others.
		m.others += memberHash(nameMessage, m.msg)
		for i, s := range m.slots[slotRIB:slotFamily] {
			if s != nil {
				m.others += memberHash(ribNames[i], s)
			}
		}
		m.others += memberHash(nameFiltered, m.filtered)
		if string(m.msg) == "peer_up" {
			m.others += memberHash(nameID, m.bgpID)
		}
		return h.sum(), m.others, true
	case sortInit:
	default:
		return h.sum(), said, true
	}
	m.others += memberHash(nameID, m.bgpID)
	return h.sum(), m.others, true
}

// PeerHash returns the key that Hashes has for a peer_up and a peer_down of the peer
// that a record is about; false if it is about none. Of routes with a route
// distinguisher it is that of the peer without one.
func PeerHash(value []byte) (key uint64, ok bool) {
	var m members
	if !m.read(value) {
		return 0, false
	}
	what := m.sort()
	if what == sortUnknown || m.slots[slotPeer] == nil {
		return 0, false
	}
	if what == sortRoute {
		m.slots[slotRD] = nil
	}
	h := newHash(byte(sortPeer))
	if m.slots[slotRouter] != nil {
		h.add(m.slots[slotRouter])
	} else {
		h.add(m.slots[slotPeerSource])
	}
	from, to := sortPeer.slots()
	for _, s := range m.slots[from:to] {
		h.add(s)
	}
	return h.sum(), true
}

// mapped is what a pmacct with a table may write before an IPv4 next hop: it depends on
// what other routes it has.
var mapped = []byte("::ffff:")

// said is the value of what is only said.
const said = 1

// A slot is the place of a key that says what a record is about.
type slot uint8

const (
	slotRouter slot = iota
	slotPeerSource
	slotTimestamp
	slotPeer // first of a peer's
	slotRD
	slotPD
	slotRIB // first of a RIB's
	slotIn
	slotOut
	slotLoc
	slotFamily // first of a family's
	slotSAFI
	slotCounter // of a counter
	slotPrefix  // first of a route's
	slotPathID
	slotsEnd
)

var ribNames = [...][]byte{[]byte("is_post"), []byte("is_in"), []byte("is_out"), []byte("is_loc")}

var nameFiltered, nameMessage, nameID = []byte("is_filtered"), []byte("bmp_msg_type"), []byte("bgp_id")

// A sort is what a record is about.
type sort uint8

const (
	sortUnknown sort = iota
	sortRoute
	sortEndOfRIB
	sortPeer
	sortStats
	sortInit
	sortTerm
	sortOpened
	sortClosed
	sortDumpBegins
	sortDumpEnds
)

// slots returns which keys, beside the router, are the key of a record.
func (s sort) slots() (from, to slot) {
	switch s {
	case sortRoute, sortEndOfRIB, sortStats:
		return slotPeer, slotsEnd // each lacks what it has not
	case sortPeer:
		return slotPeer, slotRIB
	}
	return 0, 0
}

// members is what is read of an object: the values of keys that matter one by one, text
// without its quotes, and one number for all others.
type members struct {
	slots    [slotsEnd][]byte
	event    []byte
	log, msg []byte
	bgpID    []byte
	filtered []byte
	others   uint64
}

// sort tells what the record is about.
func (m *members) sort() sort {
	if m.slots[slotRouter] == nil && m.slots[slotPeerSource] == nil {
		return sortUnknown
	}
	dump := false
	switch string(m.event) {
	case "log":
	case "dump":
		dump = true
	case "log_init":
		return sortOpened
	case "log_close":
		return sortClosed
	case "dump_init":
		return sortDumpBegins
	case "dump_close":
		return sortDumpEnds
	default:
		return sortUnknown
	}
	switch string(m.msg) {
	case "init":
		return sortInit
	case "term":
		return sortTerm
	case "peer_up", "peer_down":
		if m.slots[slotPeer] == nil {
			return sortUnknown
		}
		return sortPeer
	case "stats":
		if m.slots[slotPeer] == nil || m.slots[slotCounter] == nil {
			return sortUnknown
		}
		return sortStats
	case "route_monitor", "internal", "": // none of a BGP daemon
	default:
		return sortUnknown
	}
	switch string(m.log) {
	case "update", "withdraw", "delete":
	case "":
		if !dump {
			return sortUnknown
		}
	case "end-of-rib":
		if m.slots[slotFamily] != nil && m.slots[slotPrefix] == nil {
			return sortEndOfRIB
		}
		return sortUnknown
	default:
		return sortUnknown
	}
	if m.slots[slotPrefix] == nil || m.slots[slotCounter] != nil {
		return sortUnknown
	}
	return sortRoute
}

// place returns where the value of a key is kept, nil where it is one of the others;
// ignored tells that it does not matter.
func (m *members) place(name []byte) (at *[]byte, ignored bool) {
	switch string(name) {
	case "bmp_router":
		return &m.slots[slotRouter], false
	case "peer_ip_src":
		return &m.slots[slotPeerSource], false
	case "timestamp":
		return &m.slots[slotTimestamp], false
	case "peer_ip":
		return &m.slots[slotPeer], false
	case "rd":
		return &m.slots[slotRD], false
	case "pd":
		return &m.slots[slotPD], false
	case "is_post":
		return &m.slots[slotRIB], false
	case "is_in":
		return &m.slots[slotIn], false
	case "is_out":
		return &m.slots[slotOut], false
	case "is_loc":
		return &m.slots[slotLoc], false
	case "afi":
		return &m.slots[slotFamily], false
	case "safi":
		return &m.slots[slotSAFI], false
	case "counter_type":
		return &m.slots[slotCounter], false
	case "ip_prefix":
		return &m.slots[slotPrefix], false
	case "as_path_id":
		return &m.slots[slotPathID], false
	case "event_type":
		return &m.event, false
	case "log_type":
		return &m.log, false
	case "bmp_msg_type":
		return &m.msg, false
	case "bgp_id":
		return &m.bgpID, false
	case "is_filtered":
		return &m.filtered, false
	case "seq", "writer_id", "timestamp_event", "timestamp_arrival", "bmp_router_port", "peer_tcp_port",
		"roa", "bmp_rm_info_stateless":
		return nil, true
	}
	return nil, false
}

// read reads the keys of the outermost object. It is false for anything that is none in
// its outline, and where a key that matters is there twice.
func (m *members) read(b []byte) bool {
	if len(b) == 0 || b[0] != '{' {
		return false
	}
	i := space(b, 1)
	for i < len(b) && b[i] == '"' {
		name, end := quoted(b, i+1)
		if end < 0 {
			return false
		}
		if i = space(b, end); i >= len(b) || b[i] != ':' {
			return false
		}
		if i = space(b, i+1); i >= len(b) {
			return false
		}
		var value []byte
		if b[i] == '"' {
			if value, end = quoted(b, i+1); end < 0 {
				return false
			}
		} else {
			if end = skip(b, i); end < 0 || end == i {
				return false
			}
			if value = b[i:end]; string(value) == "null" {
				value = nil
			}
		}
		i = end
		switch at, ignored := m.place(name); {
		case at != nil && *at != nil:
			return false
		case at != nil:
			*at = value
		case !ignored && value != nil:
			if string(name) == "bgp_nexthop" {
				value = bytes.TrimPrefix(value, mapped)
			}
			m.others += memberHash(name, value)
		}
		if i = space(b, i); i < len(b) && b[i] == ',' {
			i = space(b, i+1)
			continue
		}
		if i >= len(b) || b[i] != '}' {
			return false
		}
		for _, c := range b[i+1:] { // avro_json ends with a zero
			if c != ' ' && c != '\n' && c != '\t' && c != '\r' && c != 0 {
				return false
			}
		}
		return true
	}
	return false
}

// Odd numbers without a pattern.
const (
	prime1 = 0x9e3779b185ebca87
	prime2 = 0xc2b2ae3d27d4eb4f
)

// memberHash is the hash of a key with its value. Their sum does not depend on their
// order.
func memberHash(name, value []byte) uint64 {
	if value == nil {
		return 0
	}
	return scramble(xxhash.Sum64(name)*prime1 + xxhash.Sum64(value))
}

func scramble(h uint64) uint64 {
	h = (h ^ h>>33) * prime2
	h = (h ^ h>>29) * prime1
	return h ^ h>>32
}

// A hash is that of parts in their order, some of which may be missing.
type hash uint64

func newHash(sort byte) hash { return hash(scramble(uint64(sort))) }

func (h *hash) add(part []byte) {
	x := uint64(prime2)
	if part != nil {
		x = xxhash.Sum64(part)
	}
	*h = hash(scramble(bits.RotateLeft64(uint64(*h), 27)*prime1 + x))
}

func (h hash) sum() uint64 { return uint64(h) }
