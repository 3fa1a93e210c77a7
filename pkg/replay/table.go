package replay

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A RIB names a table of a monitored peer.
type RIB string

// The RIBs that BMP knows (RFC 7854, RFC 8671, RFC 9069).
const (
	InPre   RIB = "adj-in-pre"
	InPost  RIB = "adj-in-post"
	OutPre  RIB = "adj-out-pre"
	OutPost RIB = "adj-out-post"
	Loc     RIB = "loc"
)

// A Key names one route of one router. Its fields are those that pmacct's JSON
// tells, so that a key made from a router's own table and one made from a record
// are equal: RD is the route's own for VPN routes and else the peer's
// distinguisher, and empty when that is zero.
type Key struct {
	Router string // address, as in bmp_router
	RD     string
	Peer   string // address
	RIB    RIB
	AFI    uint16
	SAFI   uint8
	Prefix string
	PathID int64 // -1 without ADD-PATH
}

// String returns k in one line.
func (k Key) String() string {
	s := fmt.Sprintf("%s peer %s %s %d/%d %s", k.Router, k.Peer, k.RIB, k.AFI, k.SAFI, k.Prefix)
	if k.RD != "" {
		s += " rd " + k.RD
	}
	if k.PathID >= 0 {
		s += " path " + strconv.FormatInt(k.PathID, 10)
	}
	return s
}

func compareKeys(a, b Key) int {
	return cmp.Or(
		cmp.Compare(a.Router, b.Router), cmp.Compare(a.Peer, b.Peer), cmp.Compare(a.RIB, b.RIB),
		cmp.Compare(a.AFI, b.AFI), cmp.Compare(a.SAFI, b.SAFI), cmp.Compare(a.RD, b.RD),
		cmp.Compare(a.Prefix, b.Prefix), cmp.Compare(a.PathID, b.PathID))
}

// A value is what both sides know about a route, in pmacct's notation. Its text
// is the value of a table, so that a difference can be read.
type value struct {
	nextHop, asPath, origin, comms, largeComms string
	med, localPref                             *uint32
}

func (v value) String() string {
	s := fmt.Sprintf("via %s path [%s] origin %s", v.nextHop, v.asPath, v.origin)
	if v.med != nil {
		s += " med " + strconv.FormatUint(uint64(*v.med), 10)
	}
	if v.localPref != nil {
		s += " local-pref " + strconv.FormatUint(uint64(*v.localPref), 10)
	}
	if v.comms != "" {
		s += " comms " + v.comms
	}
	if v.largeComms != "" {
		s += " lcomms " + v.largeComms
	}
	return s
}

// A Diff is the difference between a router's table and the one rebuilt from
// Kafka, each list sorted.
type Diff struct {
	Equal   int
	Missing []Key    // the router has it, Kafka does not
	Extra   []Key    // Kafka has it, the router does not
	Changed []Change // both have it, with different values
}

// A Change is a route with two values.
type Change struct {
	Key           Key
	Router, Kafka string
}

// Empty tells whether the two tables were equal.
func (d Diff) Empty() bool { return len(d.Missing)+len(d.Extra)+len(d.Changed) == 0 }

// String returns a summary with the first few differences of each sort.
func (d Diff) String() string {
	const most = 5
	var b strings.Builder
	fmt.Fprintf(&b, "%d equal, %d missing, %d extra, %d changed", d.Equal, len(d.Missing), len(d.Extra), len(d.Changed))
	for _, k := range d.Missing[:min(most, len(d.Missing))] {
		fmt.Fprintf(&b, "\nmissing: %s", k)
	}
	for _, k := range d.Extra[:min(most, len(d.Extra))] {
		fmt.Fprintf(&b, "\nextra: %s", k)
	}
	for _, c := range d.Changed[:min(most, len(d.Changed))] {
		fmt.Fprintf(&b, "\nchanged: %s\n  router: %s\n  kafka:  %s", c.Key, c.Router, c.Kafka)
	}
	return b.String()
}

// Compare compares the table of a router (Router.Table, Fleet.Table) with the
// one that a consumer holds (Consumer.Routes). The values may be any text that
// both sides make alike.
func Compare(router, kafka map[Key]string) Diff {
	var d Diff
	for k, want := range router {
		got, ok := kafka[k]
		switch {
		case !ok:
			d.Missing = append(d.Missing, k)
		case got != want:
			d.Changed = append(d.Changed, Change{k, want, got})
		default:
			d.Equal++
		}
	}
	for k := range kafka {
		if _, ok := router[k]; !ok {
			d.Extra = append(d.Extra, k)
		}
	}
	slices.SortFunc(d.Missing, compareKeys)
	slices.SortFunc(d.Extra, compareKeys)
	slices.SortFunc(d.Changed, func(a, b Change) int { return compareKeys(a.Key, b.Key) })
	return d
}

// A Consumer builds tables from pmacct's JSON records as a reader of the topic
// has to when pmacct keeps no table itself. The zero value is ready to use. It is
// not safe for concurrent use.
//
// It takes update and withdraw at their word. A peer_down ends all routes of the
// peer. A peer_up begins a new life of the peer and ends its old routes too (for
// a peer_up about another RIB than the pre-policy Adj-RIB-In, the routes of that
// RIB): a router announces everything again after it. A log_init, log_close or
// term ends nothing: another collector may still hear the router, and if not, the
// next session begins with peer_up.
//
// One thing cannot be known from the records: for VPN routes of a peer with a
// distinguisher the record tells the route's own RD only, so peer_down does not
// find them.
type Consumer struct {
	peers map[consumerPeer]map[Key]string
}

type consumerPeer struct {
	router string
	Peer
}

// Record takes the value of one record, in the order of the topic. Records that
// say nothing about routes are accepted and change nothing.
func (c *Consumer) Record(value []byte) error {
	var r Record
	if err := json.Unmarshal(value, &r); err != nil {
		return fmt.Errorf("record %.80q: %w", value, err)
	}
	if r.Event != "log" {
		return nil
	}
	p := consumerPeer{r.Router, r.Of()}
	switch {
	case r.MsgType == "peer_down":
		delete(c.peers, p)
	case r.MsgType == "peer_up":
		which := r.RIB()
		for k := range c.peers[p] {
			if which == InPre || p.Loc || k.RIB == which {
				delete(c.peers[p], k)
			}
		}
	case r.LogType == "update":
		if c.peers == nil {
			c.peers = make(map[consumerPeer]map[Key]string)
		}
		routes := c.peers[p]
		if routes == nil {
			routes = make(map[Key]string)
			c.peers[p] = routes
		}
		routes[r.Key()] = r.value().String()
	case r.LogType == "withdraw" || r.LogType == "delete":
		delete(c.peers[p], r.Key())
	}
	return nil
}

// Routes returns the table of all routers as it stands now. The map is the
// caller's.
func (c *Consumer) Routes() map[Key]string {
	all := make(map[Key]string)
	for _, routes := range c.peers {
		for k, v := range routes {
			all[k] = v
		}
	}
	return all
}

// addTo adds the table in the notation of pmacct's records to dst, with the
// given router address.
func (t *ribs) addTo(dst map[Key]string, router string) {
	type reading struct {
		attrs     *attrs
		vpn, wide bool
	}
	texts := make(map[reading]string)
	for _, r := range t.all {
		base := Key{Router: router, Peer: peerAddr(r.header[:]), RIB: ribName(r.header[:]), PathID: -1}
		if kind := r.header[0]; (kind == 1 || kind == locRIBPeer) && r.peer.id.distinguisher != [8]byte{} {
			base.RD = rdText(r.peer.id.distinguisher)
		}
		for i := range r.routes {
			rt := &r.routes[i]
			if rt.attrs == nil {
				continue
			}
			k := base
			k.AFI, k.SAFI = uint16(rt.key.afi), rt.key.safi
			k.Prefix = prefixText(&rt.key)
			if rt.key.safi == 128 {
				k.RD = rdText(rt.key.rd)
			}
			if rt.key.path && rt.key.safi == 1 {
				k.PathID = int64(rt.key.id)
			}
			as := reading{rt.attrs, rt.key.safi == 128, rt.flags&twoByteAS == 0 || r.header[0] == locRIBPeer}
			text, ok := texts[as]
			if !ok {
				text = describe(as.attrs, as.vpn, as.wide).String()
				texts[as] = text
			}
			dst[k] = text
		}
	}
}

func peerAddr(header []byte) string {
	if header[0] != locRIBPeer && header[1]&0x80 != 0 {
		return netip.AddrFrom16([16]byte(header[10:26])).String()
	}
	return netip.AddrFrom4([4]byte(header[22:26])).String()
}

func ribName(header []byte) RIB {
	if header[0] == locRIBPeer {
		return Loc
	}
	return [...]RIB{InPre, InPost, OutPre, OutPost}[header[1]&0x40>>6|header[1]&0x10>>3]
}

// rdText writes a route distinguisher as pmacct does (RFC 4364, 4.2).
func rdText(rd [8]byte) string {
	switch kind := binary.BigEndian.Uint16(rd[:]); kind {
	case 0:
		return fmt.Sprintf("0:%d:%d", binary.BigEndian.Uint16(rd[2:]), binary.BigEndian.Uint32(rd[4:]))
	case 1:
		return fmt.Sprintf("1:%s:%d", netip.AddrFrom4([4]byte(rd[2:6])), binary.BigEndian.Uint16(rd[6:]))
	case 2:
		return fmt.Sprintf("2:%d:%d", binary.BigEndian.Uint32(rd[2:]), binary.BigEndian.Uint16(rd[6:]))
	}
	return "unknown"
}

func prefixText(k *routeKey) string {
	addr := netip.AddrFrom16(k.addr)
	if k.afi == 1 {
		addr = netip.AddrFrom4([4]byte(k.addr[:4]))
	}
	return addr.String() + "/" + strconv.Itoa(int(k.bits))
}

// describe reads the attributes that a table's value shows. Attributes that are
// cut short are taken as absent.
func describe(a *attrs, vpn, wideAS bool) value {
	v := value{nextHop: "0.0.0.0"}
	for rest := []byte(a.others()); len(rest) > 0; {
		attr, ok := nextAttribute(rest)
		if !ok {
			break
		}
		rest = rest[attr.size:]
		b := attr.value
		switch {
		case attr.code == 1 && len(b) == 1 && b[0] <= 2:
			v.origin = "ieu"[b[0] : b[0]+1]
		case attr.code == 2:
			v.asPath = asPathText(b, wideAS)
		case attr.code == 3 && len(b) == 4:
			v.nextHop = netip.AddrFrom4([4]byte(b)).String()
		case attr.code == 4 && len(b) == 4:
			v.med = new(binary.BigEndian.Uint32(b))
		case attr.code == 5 && len(b) == 4:
			v.localPref = new(binary.BigEndian.Uint32(b))
		case attr.code == 8 && len(b)%4 == 0:
			v.comms = communitiesText(b)
		case attr.code == 32 && len(b)%12 == 0:
			v.largeComms = largeCommunitiesText(b)
		}
	}
	if hop := []byte(a.nextHop()); len(hop) > 0 {
		if vpn && len(hop)%16 != 0 { // some routers leave out the route distinguisher
			hop = hop[min(8, len(hop)):]
		}
		switch {
		case len(hop) == 4:
			v.nextHop = netip.AddrFrom4([4]byte(hop)).String()
		case len(hop) >= 16:
			v.nextHop = netip.AddrFrom16([16]byte(hop)).String()
		}
	}
	return v
}

func asPathText(b []byte, wide bool) string {
	width := 2
	if wide {
		width = 4
	}
	var parts []string
	for len(b) >= 2 {
		kind, n := b[0], int(b[1])
		b = b[2:]
		if n*width > len(b) {
			break
		}
		asns := make([]uint32, n)
		for i := range asns {
			if wide {
				asns[i] = binary.BigEndian.Uint32(b[4*i:])
			} else {
				asns[i] = uint32(binary.BigEndian.Uint16(b[2*i:]))
			}
		}
		b = b[n*width:]
		if n == 0 {
			continue
		}
		if kind == 1 || kind == 4 {
			slices.Sort(asns)
			asns = slices.Compact(asns)
		}
		texts := make([]string, len(asns))
		for i, as := range asns {
			texts[i] = strconv.FormatUint(uint64(as), 10)
		}
		switch kind {
		case 1: // AS_SET
			parts = append(parts, "{"+strings.Join(texts, ",")+"}")
		case 3: // AS_CONFED_SEQUENCE
			parts = append(parts, "("+strings.Join(texts, " ")+")")
		case 4: // AS_CONFED_SET
			parts = append(parts, "["+strings.Join(texts, ",")+"]")
		default:
			parts = append(parts, texts...)
		}
	}
	return strings.Join(parts, " ")
}

func communitiesText(b []byte) string {
	var all []uint32
	for ; len(b) > 0; b = b[4:] {
		all = append(all, binary.BigEndian.Uint32(b))
	}
	slices.Sort(all)
	all = slices.Compact(all)
	texts := make([]string, len(all))
	for i, c := range all {
		switch c {
		case 0:
			texts[i] = "internet"
		case 0xffffff01:
			texts[i] = "no-export"
		case 0xffffff02:
			texts[i] = "no-advertise"
		case 0xffffff03:
			texts[i] = "local-AS"
		default:
			texts[i] = fmt.Sprintf("%d:%d", c>>16, c&0xffff)
		}
	}
	return strings.Join(texts, " ")
}

func largeCommunitiesText(b []byte) string {
	var all [][3]uint32
	for ; len(b) > 0; b = b[12:] {
		all = append(all, [3]uint32{binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])})
	}
	slices.SortFunc(all, func(a, b [3]uint32) int { return slices.Compare(a[:], b[:]) })
	all = slices.Compact(all)
	texts := make([]string, len(all))
	for i, c := range all {
		texts[i] = fmt.Sprintf("%d:%d:%d", c[0], c[1], c[2])
	}
	return strings.Join(texts, " ")
}
