package table_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/pmacct"
	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/rig"
	"github.com/bmpha/bmpha/pkg/table"
)

// nfacctdVersion is the version whose differences are listed here.
const nfacctdVersion = "1.7.7"

// A difference is a way in which nfacctd's table is not ours although both heard
// the same. Each is either a translation of messages, which are then such that
// our table makes of them what nfacctd's makes of the original, or a rule for
// comparing two routes. What is left over fails the test.
type difference string

const (
	// nfacctd is wrong: it tells peers apart by their address alone. RFC 7854
	// section 4.2 has the distinguisher for peers whose addresses overlap, and
	// RFC 9069 section 4.1 gives all Loc-RIBs the address zero. (pmacct 1.8 does
	// as we do.)
	peersByAddress difference = "nfacctd: a peer is its address; what is said of one distinguisher goes for all"
	// nfacctd is wrong: a Peer Up of a peer that is up changes nothing. It begins a
	// BGP session, of which all routes are announced again (RFC 7854 section 5):
	// what is not has gone.
	upAgain difference = "nfacctd: routes that a new session of a peer does not mention stay"
	// nfacctd does not know BGP identifiers. RFC 7854 section 4.2 has them tell
	// nothing apart either; ours are apart since pmacct 1.8's records tell them.
	bgpIDs difference = "both: routes of a peer under another BGP identifier are others for us, as in records of 1.8"
	// nfacctd is wrong: it takes the F flag for the name of another table.
	// RFC 9069 section 4.2: the flag says that the Loc-RIB is filtered.
	fFlag difference = "nfacctd: a Loc-RIB with and without the F flag are two"
	// nfacctd is wrong: RFC 4659 section 3.2.1.1 has next hops of 48 bytes.
	nextHop48 difference = "nfacctd: UPDATEs with a VPN next hop of two addresses are dropped"
	// Neither: RFC 9234 section 5 has a short OTC withdraw the routes. We do as
	// pmacct 1.8: drop the UPDATE. nfacctd does not know the attribute.
	shortOTC difference = "both: OTC of less than 4 bytes is passed over by nfacctd, drops the UPDATE for us, and should withdraw its routes"
	// nfacctd is wrong: RFC 7911 section 4 wants the capability from both sides.
	// It says that OPENs are made up, so what one side has would do.
	oneSidedAddPath difference = "nfacctd: the peer's ADD-PATH capability is enough"
	// We are wrong on purpose: RFC 7911 section 3 has path identifiers before
	// labelled routes as well, but pmacct 1.8 cannot read them, and what makes no
	// record there makes no route here.
	labelledAddPath difference = "ours: labelled routes with path identifiers are not read, as in 1.8"
	// nfacctd is wrong: it reads beyond the field, and takes what it finds for a
	// route. What it has of that peer then is not compared.
	readsBeyond difference = "nfacctd: a route or length beyond its field is read from what follows"

	// nfacctd is wrong: RFC 4271 section 9 has an announcement replace the one
	// before. nfacctd replaces label, AIGP and label index only where another
	// attribute changes, a label index only by another one, and an AIGP of unicast
	// routes without path identifiers likewise.
	keepsExtras difference = "nfacctd: label, AIGP and label index of an older announcement stay"
	// nfacctd is wrong: it prints no next hop (RFC 8950).
	noNextHop difference = "nfacctd: no IPv6 next hop of IPv4 routes"
	// Neither: another way to write it.
	mappedNextHop difference = "both: an IPv4 next hop of IPv6 routes is written ::ffff: by nfacctd"
	// Ours is a guess that pmacct 1.8 makes and 1.7.7 does not: AS numbers have
	// four octets where the segment has just as many bytes.
	guessedPath difference = "ours: AS numbers of a two-octet peer that look like four octets are read as such, as in 1.8"
)

// differences counts conversations by what was different in them.
type differences map[difference]int

// An address is what nfacctd tells peers apart by.
type address struct {
	addr [16]byte
	ipv6 bool
}

func addressOf(p *bmp.PerPeer) address {
	id := table.IDOf(p)
	return address{id.Addr, id.IPv6}
}

// An ear hears messages the way that nfacctd does.
type ear struct {
	peers   map[address]*heard
	tainted map[address]bool // nobody knows what nfacctd has of them
	differs map[difference]bool
}

// heard is a peer that nfacctd takes for up.
type heard struct {
	up        []byte // the Peer Up
	first     table.PeerID
	bgpID     [4]byte
	flag      byte
	addPath   [len(bgp.Families)]bool
	ids       map[table.PeerID][]byte // the Peer Downs that end them
	noCompare [len(bgp.Families)]bool
}

// hear returns messages that make our table what nfacctd makes of msg.
func (e *ear) hear(msg []byte) [][]byte {
	per, err := bmp.ParsePerPeer(msg)
	switch bmp.Type(msg) {
	case bmp.TypePeerUp, bmp.TypePeerDown, bmp.TypeRouteMonitoring:
	default:
		return [][]byte{msg}
	}
	if err != nil {
		panic(err) // headers are not mutated
	}
	a, id := addressOf(&per), table.IDOf(&per)
	p := e.peers[a]
	switch bmp.Type(msg) {
	case bmp.TypePeerUp:
		switch {
		case p == nil:
			p = &heard{first: id, bgpID: per.BGPID, flag: per.Flags, ids: map[table.PeerID][]byte{}}
			e.peers[a] = p
			p.up = e.takesOpen(p, msg)
			return [][]byte{e.meet(p, &per)}
		case p.ids[id] != nil:
			e.differs[upAgain] = true
		default:
			e.differs[peersByAddress] = true
		}
		return nil
	case bmp.TypePeerDown:
		if p == nil {
			return nil
		}
		delete(e.peers, a)
		delete(e.tainted, a)
		if len(p.ids) > 1 || p.ids[id] == nil {
			e.differs[peersByAddress] = true
		}
		return slices.Collect(maps.Values(p.ids))
	}
	if p == nil {
		return nil
	}
	var out [][]byte
	if p.ids[id] == nil {
		e.differs[peersByAddress] = true
		out = append(out, e.meet(p, &per))
	}
	if per.BGPID != p.bgpID {
		e.differs[bgpIDs] = true
	}
	msg = slices.Clone(msg)
	e.name(p, msg)
	if per.Type == bmp.PeerLocRIB && (per.Flags^p.flag)&bmp.FlagF != 0 {
		e.differs[fFlag] = true
	}
	if msg = e.update(p, a, msg); msg != nil {
		out = append(out, msg)
	}
	return out
}

// meet returns the Peer Up of a peer that nfacctd takes for p, in its words.
func (e *ear) meet(p *heard, per *bmp.PerPeer) []byte {
	up := slices.Clone(p.up)
	up[bmp.HeaderLen] = per.Type
	up[bmp.HeaderLen+1] = per.Flags
	copy(up[bmp.HeaderLen+2:], per.Distinguisher[:])
	e.name(p, up)
	p.ids[table.IDOf(per)] = bmp.AppendPeerDown(nil, up[bmp.HeaderLen:bmp.HeaderLen+bmp.PerPeerLen], bmp.DownRemote, nil)
	return up
}

// name gives a message of p the BGP identifier of its Peer Up, and another for the
// Loc-RIB with the F flag.
func (e *ear) name(p *heard, msg []byte) {
	id := msg[bmp.HeaderLen+30:]
	copy(id[:4], p.bgpID[:])
	if msg[bmp.HeaderLen] == bmp.PeerLocRIB && msg[bmp.HeaderLen+1]&bmp.FlagF != 0 {
		id[0] ^= 0x80
	}
}

// takesOpen returns a Peer Up in which the OPEN sent has the ADD-PATH capability
// of the one received.
func (e *ear) takesOpen(p *heard, msg []byte) []byte {
	u, err := bmp.ParsePeerUp(msg)
	if err != nil {
		panic(err) // Peer Ups are not mutated
	}
	sent, _ := bgp.ParseOpen(u.Sent)
	received, _ := bgp.ParseOpen(u.Received)
	var caps []byte
	for i, f := range bgp.Families {
		if p.addPath[i] = received.AddPath(f)&bgp.AddPathSend != 0; !p.addPath[i] {
			continue
		}
		caps = bgp.AppendCapAddPath(caps, f.AFI, f.SAFI, bgp.AddPathBoth)
		if sent.AddPath(f) == 0 {
			e.differs[oneSidedAddPath] = true
		}
	}
	if as, ok := sent.FourOctetAS(); ok {
		caps = bgp.AppendCapAS4(caps, as)
	}
	open := bgp.AppendOpen(nil, sent.AS(), sent.HoldTime, netip.AddrFrom4(sent.ID), caps)
	local := netip.AddrFrom4([4]byte{10, 0, 0, 254})
	return bmp.AppendPeerUp(nil, msg[bmp.HeaderLen:bmp.HeaderLen+bmp.PerPeerLen], local, u.LocalPort, u.RemotePort, open, u.Received, nil)
}

// update returns a Route Monitoring message as nfacctd takes it, nil if not at all.
func (e *ear) update(p *heard, a address, msg []byte) []byte {
	const at = bmp.HeaderLen + bmp.PerPeerLen
	u, err := bgp.ParseUpdate(msg[at:])
	if err != nil {
		e.tainted[a] = true
		e.differs[readsBeyond] = true
		return nil
	}
	var attrs []byte
	var reach bgp.MPReach
	var unreach bgp.MPUnreach
	walk := u.Attributes()
	for walk.Next() {
		x := walk.Attr()
		switch x.Type {
		case bgp.AttrMPReach:
			if r, err := bgp.ParseMPReach(x); err == nil {
				reach = r
				if len(r.NextHop) == 48 {
					e.differs[nextHop48] = true
					return nil
				}
			}
		case bgp.AttrMPUnreach:
			unreach, _ = bgp.ParseMPUnreach(x)
		case bgp.AttrOTC:
			if len(x.Value) < 4 {
				e.differs[shortOTC] = true
				continue
			}
		}
		attrs = appendAttr(attrs, x.Flags, x.Type, x.Value)
	}
	if walk.Err() != nil {
		return nil
	}
	e.routes(p, a, bgp.IPv4Unicast, u.Withdrawn, false)
	e.routes(p, a, bgp.IPv4Unicast, u.NLRI, true)
	e.routes(p, a, reach.Family, reach.NLRI, true)
	e.routes(p, a, unreach.Family, unreach.Withdrawn, false)
	return bmp.AppendRouteMonitoring(nil, msg[bmp.HeaderLen:at], bgp.AppendUpdate(nil, u.Withdrawn, attrs, u.NLRI))
}

// routes notes what nfacctd makes of the routes of one part of an UPDATE.
func (e *ear) routes(p *heard, a address, f bgp.Family, b []byte, announced bool) {
	i := f.Index()
	if i < 0 || len(b) == 0 {
		return
	}
	if p.addPath[i] && f.SAFI != bgp.SAFIUnicast {
		e.differs[labelledAddPath] = true
		p.noCompare[i] = true
	}
	labels := bgp.SingleLabel
	if announced {
		labels = bgp.LabelStack
	}
	w := bgp.Routes(b, 0, f, p.addPath[i], labels)
	for w.Next() {
	}
	if err := w.Err(); err != nil && slices.ContainsFunc([]string{"are left", "end within", "end before", "prefix length -"}, func(s string) bool { return strings.Contains(err.Error(), s) }) {
		e.tainted[a] = true
		e.differs[readsBeyond] = true
	}
}

// crashes reports whether nfacctd does not survive a Route Monitoring message of a
// peer whose AS numbers have four octets, or have not: it is never sent.
//
//   - AS4_PATH of a two-octet peer without an AS_PATH, or with one of an odd length:
//     it merges the two and follows a null pointer.
//   - AS4_PATH of a two-octet peer whose AS_PATH has a segment of an unknown type: it
//     fails an assertion if the segment is shorter than the one before.
//
// RFC 6793 section 6 has the first two treated as other attributes that are
// wrong, and RFC 7606 section 7.2 has the UPDATE withdraw its routes.
func crashes(msg []byte, four bool) bool {
	u, err := bgp.ParseUpdate(msg[bmp.HeaderLen+bmp.PerPeerLen:])
	if err != nil || four {
		return false
	}
	var path []byte
	var hasPath, hasPath4 bool
	walk := u.Attributes()
	for walk.Next() {
		switch a := walk.Attr(); a.Type {
		case bgp.AttrASPath:
			path, hasPath = a.Value, len(a.Value)%2 == 0
		case bgp.AttrAS4Path:
			hasPath4 = len(a.Value)%2 == 0
		}
	}
	if !hasPath4 || walk.Err() != nil {
		return false
	}
	for b := path; len(b) >= 2; b = b[min(len(b), 2+2*int(b[1])):] {
		if b[0] == 0 || b[0] > 4 {
			return true
		}
	}
	return !hasPath
}

// A route is what is compared of a route: members of its record.
type route map[string]any

// extras are what nfacctd keeps beside the attributes that it compares.
type extras struct {
	label string
	aigp  float64
	sid   float64
	has   bool // aigp
}

// A routeKey names a route of one table.
type routeKey struct {
	peer   table.PeerID
	id     [4]byte
	kind   bmp.RIB
	family bgp.Family
	path   uint32
	rd     [8]byte
	prefix netip.Prefix
}

func keyOf(r *table.Route) routeKey {
	return routeKey{r.RIB.Peer, r.RIB.BGPID, r.RIB.Kind, r.Family, r.PathID, r.RD, r.Prefix.Masked()}
}

// An own is a route of ours and what nfacctd may say of it otherwise.
type own struct {
	route
	older   extras // what nfacctd keeps
	afi     uint16
	guessed bool // its AS_PATH, see guessedPath
	unknown bool // whether nfacctd has it
}

// ourTable plays a conversation to a table, as nfacctd hears it, and returns its
// routes by what names them in records.
func ourTable(c *conversation, e *ear) (map[string][]own, error) {
	tab := table.NewTable(table.NewStore(), table.Options{})
	older := map[routeKey]extras{}
	each := func(ch *table.Change) {
		k := keyOf(&ch.Route)
		switch {
		case ch.Kind == table.Marker:
		case ch.Kind != table.Announced:
			delete(older, k)
		default:
			now := extrasOf(&ch.Value)
			if was, ok := older[k]; ch.Found && ok {
				now = now.after(was, &ch.Route, compared(&ch.Before) == compared(&ch.Value))
			}
			older[k] = now
		}
	}
	now := int64(0)
	for i, session := range c.sessions {
		if i > 0 {
			tab.Open(now)
			clear(older)
			clear(e.peers)
			clear(e.tainted)
		}
		for _, msg := range session {
			for _, m := range e.hear(msg) {
				now++
				_ = tab.Apply(m, now, each) // what is wrong with it is not for here
				for tab.Tidy(100, each) {
				}
			}
		}
	}
	tab.Settle(now)
	for tab.Tidy(100, each) {
	}
	return records(tab, e, older)
}

// records renders the routes of a table as a dump does.
func records(tab *table.Table, e *ear, older map[routeKey]extras) (map[string][]own, error) {
	enc, err := pmacct.NewEncoder(pmacct.Options{})
	if err != nil {
		return nil, err
	}
	d := enc.Dump(pmacct.Identity{Router: "r", Addr: netip.MustParseAddr("127.0.0.1")}, 0, 60)
	var b record.Batch
	all := map[string][]own{}
	var w table.Walk
	for tab.Walk(&w, 100, func(r *table.Route) {
		b.Reset()
		d.Route(&b, nil, r)
		var m route
		if e := json.Unmarshal(b.Value(0), &m); e != nil {
			err = fmt.Errorf("record of %v: %w", r.Prefix, e)
			return
		}
		a := address{r.RIB.Peer.Addr, r.RIB.Peer.IPv6}
		k := m.key()
		all[k] = append(all[k], own{
			route: m, older: older[keyOf(r)], afi: r.Family.AFI, guessed: r.TwoOctet && guesses(r.Attrs),
			unknown: e.unknown(a, r.Family),
		})
	}) {
	}
	return all, err
}

// key returns what names the route in records: its table, then itself.
func (m route) key() string {
	rib := "in"
	for _, k := range []string{"out", "loc"} {
		if m["is_"+k] != nil {
			rib = k
		}
	}
	peerRD, rd := m["rd"], any(nil)
	if m["rd_origin"] == "bgp" {
		peerRD, rd = nil, peerRD
	}
	prefix, _ := netip.ParsePrefix(m["ip_prefix"].(string))
	filtered := m["is_filtered"]
	if rib != "loc" {
		filtered = nil
	}
	return fmt.Sprint(m["peer_ip"], " ", rib, " post ", m["is_post"], " filtered ", filtered, " rd ", peerRD, ": ", m["afi"], "/", m["safi"], " rd ", rd, " ", prefix.Masked(), " path ", m["as_path_id"])
}

// find returns the value of the last attribute of a type in the form of a table.
func find(attrs []byte, kind byte) (v []byte) {
	for len(attrs) > 0 {
		n := 4 + int(binary.BigEndian.Uint16(attrs[2:]))
		if attrs[1] == kind {
			v = attrs[4:n:n]
		}
		attrs = attrs[n:]
	}
	return v
}

// guesses reports whether an AS_PATH in two octets has a segment of which our
// decoder says that its numbers have four.
func guesses(attrs []byte) bool {
	for v := find(attrs, bgp.AttrASPath); len(v) >= 2; {
		n := int(v[1])
		v = v[2:]
		if n > 0 && len(v)/n == 4 {
			return true
		}
		v = v[min(len(v), 2*n):]
	}
	return false
}

// compared returns the attributes by which nfacctd tells whether an announcement
// says something new.
func compared(v *table.Value) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v ", v.TwoOctet)
	for _, k := range []byte{bgp.AttrOrigin, bgp.AttrNextHop, bgp.AttrMED, bgp.AttrLocalPref} {
		x := find(v.Attrs, k)
		if k == bgp.AttrOrigin && bytes.Equal(x, []byte{0}) || k == bgp.AttrNextHop && bytes.Equal(x, make([]byte, 4)) {
			x = nil
		}
		fmt.Fprintf(&b, "%x,", x)
	}
	if r := find(v.Attrs, bgp.AttrMPReach); len(r) > 4 {
		hop, _, _ := bgp.NextHop(r[4:])
		fmt.Fprint(&b, hop)
	}
	for _, k := range []byte{bgp.AttrCommunities, bgp.AttrExtCommunities, bgp.AttrLargeCommunities} {
		size := map[byte]int{bgp.AttrCommunities: 4, bgp.AttrExtCommunities: 8, bgp.AttrLargeCommunities: 12}[k]
		x := find(v.Attrs, k)
		var set []string
		if len(x)%size == 0 {
			for part := range slices.Chunk(x, size) {
				set = append(set, string(part))
			}
		}
		slices.Sort(set)
		fmt.Fprintf(&b, "%x,", slices.Compact(set))
	}
	fmt.Fprint(&b, pathText(find(v.Attrs, bgp.AttrASPath), !v.TwoOctet))
	if v.TwoOctet {
		fmt.Fprint(&b, "+", pathText(find(v.Attrs, bgp.AttrAS4Path), true))
	}
	return b.String()
}

// pathText is an AS path without the ways to write it: adjacent sequences are one,
// sets are sorted. One that is wrong is empty.
func pathText(b []byte, four bool) string {
	var text []string
	size := 2
	if four {
		size = 4
	}
	last := byte(0)
	for len(b) >= 2 {
		kind, n := b[0], int(b[1])
		if b = b[2:]; n == 0 || n*size > len(b) {
			return ""
		}
		var as []string
		for x := range slices.Chunk(b[:n*size], size) {
			as = append(as, fmt.Sprintf("%x", x))
		}
		b = b[n*size:]
		if kind == bgp.ASSet || kind == bgp.ASConfedSet {
			slices.Sort(as)
			as = slices.Compact(as)
		}
		if kind != bgp.ASSequence || last != kind {
			text = append(text, fmt.Sprint("|", kind))
		}
		last = kind
		text = append(text, as...)
	}
	return strings.Join(text, " ")
}

func extrasOf(v *table.Value) (x extras) {
	if n := len(v.Labels); n >= 3 {
		x.label = strconv.Itoa(int(v.Labels[n-3])<<12 | int(v.Labels[n-2])<<4 | int(v.Labels[n-1])>>4)
	}
	if a := find(v.Attrs, bgp.AttrAIGP); len(a) == 11 {
		x.aigp, x.has = float64(int64(binary.BigEndian.Uint64(a[3:]))), true
	}
	// Of several attributes the last counts that begins with a label index.
	for attrs := v.Attrs; len(attrs) > 0; {
		n := 4 + int(binary.BigEndian.Uint16(attrs[2:]))
		if s := attrs[4:n]; attrs[1] == bgp.AttrPrefixSID && len(s) >= 10 && s[0] == 1 {
			x.sid = float64(binary.BigEndian.Uint32(s[6:]))
		}
		attrs = attrs[n:]
	}
	return x
}

// after returns what nfacctd has when now was said after was, with the same
// attributes or others.
func (now extras) after(was extras, r *table.Route, same bool) extras {
	if same {
		return was
	}
	if !now.has && r.Family.SAFI == bgp.SAFIUnicast && !r.AddPath && now.sid == 0 {
		now.aigp, now.has = was.aigp, was.has
	}
	if now.sid == 0 {
		now.sid = was.sid
	}
	return now
}

// same reports whether theirs, a record of nfacctd's, says what ours does, and
// notes what is listed as different.
func (o *own) same(theirs route, differs map[difference]bool) bool {
	for _, k := range []string{"as_path", "comms", "ecomms", "lcomms", "origin", "local_pref", "med", "bgp_nexthop"} {
		x, y := o.route[k], theirs[k]
		if x == y {
			continue
		}
		text, _ := x.(string)
		hop, _ := netip.ParseAddr(text)
		switch {
		case k == "as_path" && o.guessed:
			differs[guessedPath] = true
		case k == "bgp_nexthop" && o.afi == bgp.AFIIPv4 && hop.Is6() && y == "":
			differs[noNextHop] = true
		case k == "bgp_nexthop" && o.afi == bgp.AFIIPv6 && hop.Is4() && y == "::ffff:"+text:
			differs[mappedNextHop] = true
		default:
			return false
		}
	}
	for k, was := range map[string]any{"aigp": o.older.aigp, "psid_li": o.older.sid, "label": o.older.label} {
		x := o.route[k]
		if k == "label" {
			x = o.route["mpls_label"]
		}
		if k == "aigp" && !o.older.has || was == "" || was == 0.0 && k == "psid_li" {
			was = nil
		}
		if theirs[k] != was {
			return false
		}
		if was != x {
			differs[keepsExtras] = true
		}
	}
	return true
}

// match compares two tables and returns what is different beyond the list.
func match(ours map[string][]own, theirs map[string][]route, e *ear) (what []string) {
	for _, k := range slices.Sorted(maps.Keys(ours)) {
		rest := slices.Clone(theirs[k])
		for _, o := range ours[k] {
			if o.unknown {
				rest = nil
				break
			}
			i := slices.IndexFunc(rest, func(r route) bool { return o.same(r, e.differs) })
			if i < 0 {
				what = append(what, fmt.Sprintf("%s: ours is %s, beside %+v, theirs %s", k, line(o.route), o.older, line(rest...)))
				rest = nil
				break
			}
			rest = slices.Delete(rest, i, i+1)
		}
		for _, r := range rest {
			what = append(what, fmt.Sprintf("%s: one more of theirs: %s", k, line(r)))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(theirs)) {
		if len(ours[k]) > 0 {
			continue
		}
		for _, r := range theirs[k] {
			addr := netip.MustParseAddr(r["peer_ip"].(string))
			a := address{ipv6: addr.Is6()}
			if addr.Is6() {
				a.addr = addr.As16()
			} else {
				v4 := addr.As4()
				copy(a.addr[12:], v4[:])
			}
			if !e.unknown(a, bgp.Family{AFI: uint16(r["afi"].(float64)), SAFI: uint8(r["safi"].(float64))}) {
				what = append(what, fmt.Sprintf("%s: only theirs: %s", k, line(r)))
			}
		}
	}
	return what
}

// unknown reports whether nobody knows what nfacctd has of a family of a peer.
func (e *ear) unknown(a address, f bgp.Family) bool {
	p := e.peers[a]
	return e.tainted[a] || p != nil && f.Index() >= 0 && p.noCompare[f.Index()]
}

func line(rs ...route) string {
	var b strings.Builder
	for _, r := range rs {
		b.WriteString("{")
		for _, k := range []string{"ip_prefix", "bgp_nexthop", "as_path", "comms", "ecomms", "lcomms", "origin", "local_pref", "med", "aigp", "psid_li", "label", "mpls_label"} {
			if v, ok := r[k]; ok {
				fmt.Fprintf(&b, " %s=%v", k, v)
			}
		}
		b.WriteString(" }")
	}
	return cmp.Or(b.String(), "missing")
}

// compare compares what nfacctd has of a router with our table after the same
// conversation. differs are those of the listed differences that there are.
func compare(c *conversation, theirs map[string][]route) (what []string, differs map[difference]bool) {
	e := &ear{peers: map[address]*heard{}, tainted: map[address]bool{}, differs: map[difference]bool{}}
	heard, err := ourTable(c, e)
	if err != nil {
		return []string{err.Error()}, nil
	}
	return match(heard, theirs, e), e.differs
}

// dumped reads a table dump: the routes of each router.
func dumped(dump []byte) (map[string]map[string][]route, error) {
	all := map[string]map[string][]route{}
	for l := range bytes.Lines(dump) {
		var m route
		if err := json.Unmarshal(l, &m); err != nil {
			return nil, fmt.Errorf("table dump of nfacctd: %w: %q", err, l)
		}
		if m["event_type"] != "dump" || m["bmp_msg_type"] != "route_monitor" {
			continue
		}
		router := m["bmp_router"].(string)
		if all[router] == nil {
			all[router] = map[string][]route{}
		}
		k := m.key()
		all[router][k] = append(all[router][k], m)
	}
	return all, nil
}

// source is the address of the router of a number.
func source(i int) string { return fmt.Sprintf("127.1.%d.%d", i/200, 1+i%200) }

// load has nfacctd hear conversations, one after the other, since it lets no more
// than two connections wait to be accepted: first all sessions that end, then
// those that stay open.
func load(ctx context.Context, d *rig.Nfacctd, cs []*conversation) (open []net.Conn, err error) {
	say := func(i int, session [][]byte) (net.Conn, error) {
		dial := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source(i))}}
		conn, err := dial.DialContext(ctx, "tcp4", d.Addr())
		if err == nil {
			_, err = conn.Write(slices.Concat(session...))
		}
		if err == nil {
			err = idle(ctx, d)
		}
		return conn, err
	}
	for i, c := range cs {
		for _, session := range c.sessions[:len(c.sessions)-1] {
			conn, err := say(i, session)
			if conn != nil {
				err = errors.Join(err, end(conn))
			}
			if err != nil {
				return open, fmt.Errorf("seed %d: %w", c.seed, err)
			}
		}
	}
	for i, c := range cs {
		conn, err := say(i, c.sessions[len(c.sessions)-1])
		if conn != nil {
			open = append(open, conn)
		}
		if err != nil {
			return open, fmt.Errorf("seed %d: %w", c.seed, err)
		}
	}
	return open, nil
}

// idle waits until nfacctd has read everything.
func idle(ctx context.Context, d *rig.Nfacctd) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return rig.WaitFor(ctx, func() error {
		select {
		case <-d.Done():
			cancel()
			return errEnded
		default:
			return d.Idle()
		}
	})
}

var errEnded = errors.New("nfacctd has ended")

// tables has an nfacctd of its own hear conversations and returns its tables.
// Where a busy machine keeps it from that, another one is begun.
func tables(t *testing.T, cs []*conversation) map[string]map[string][]route {
	for range 3 {
		if left := untilDump(); left < quiet {
			time.Sleep(left) // for the clock: there is nothing else to wait for
		}
		all, err := tablesOnce(t, cs)
		switch {
		case err == nil:
			return all
		case errors.Is(err, errEnded):
			t.Log(err)
			culprit(t, cs)
		}
		t.Logf("once more: %v", err)
	}
	t.Fatal("nfacctd did not hear it all in three tries")
	return nil
}

// quiet is how long it takes to have nfacctd hear everything, unless the machine
// is busy.
const quiet = 12 * time.Second

// untilDump returns how long it is until nfacctd dumps its tables.
func untilDump() time.Duration {
	now := time.Now()
	return now.Truncate(time.Minute).Add(time.Minute).Sub(now)
}

func tablesOnce(t *testing.T, cs []*conversation) (map[string]map[string][]route, error) {
	d, err := rig.StartNfacctd(t.Context(), rig.NfacctdOptions{Sessions: len(cs) + 10})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	began := time.Now()
	open, err := load(t.Context(), d, cs)
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	if err != nil {
		if !d.Alive() {
			err = errEnded
		}
		log, _ := os.ReadFile(d.LogFile())
		return nil, fmt.Errorf("%w, end of nfacctd's log:\n%s", err, log[max(0, len(log)-1000):])
	}
	u, _ := d.Usage()
	t.Logf("%d conversations heard in %v, of which nfacctd worked %v", len(cs), time.Since(began).Round(time.Millisecond), u.CPU)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
	defer cancel()
	dump, err := d.Dump(ctx, len(cs))
	if err != nil {
		t.Fatal(err)
	}
	all, err := dumped(dump)
	if err != nil {
		t.Fatal(err)
	}
	return all, nil
}

// culprit finds the message that ends nfacctd, or keeps it from going on.
func culprit(t *testing.T, cs []*conversation) {
	for _, c := range cs {
		if survives(t, c) {
			continue
		}
		n := sort.Search(c.messages(), func(n int) bool { return !survives(t, first(c, n+1)) })
		part := first(c, n+1)
		last := part.sessions[len(part.sessions)-1]
		t.Fatalf("seed %d: nfacctd ends or hangs at message %d: %x\nthe conversation is in %s", c.seed, n, last[len(last)-1], save(t, part))
	}
	t.Fatal("nfacctd ends or hangs, but with no conversation alone")
}

// first returns the first n messages of c.
func first(c *conversation, n int) *conversation {
	part := &conversation{seed: c.seed}
	for _, s := range c.sessions {
		s = s[:min(n, len(s))]
		part.sessions = append(part.sessions, s)
		if n -= len(s); n == 0 {
			break
		}
	}
	return part
}

func survives(t *testing.T, c *conversation) bool {
	if left := untilDump(); left < quiet/2 {
		time.Sleep(left)
	}
	d, err := rig.StartNfacctd(t.Context(), rig.NfacctdOptions{Sessions: 10})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	open, err := load(t.Context(), d, []*conversation{c})
	for _, conn := range open {
		err = errors.Join(err, end(conn))
	}
	return err == nil && d.Alive()
}

// end closes a session and waits until nfacctd has heard all of it, and closes it.
func end(conn net.Conn) error {
	defer conn.Close()
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	_, err := io.Copy(io.Discard, conn)
	return err
}

// save writes a conversation to a file: a message in hexadecimal per line, an
// empty line between sessions.
func save(t *testing.T, c *conversation) string {
	var b bytes.Buffer
	for i, s := range c.sessions {
		if i > 0 {
			b.WriteByte('\n')
		}
		for _, m := range s {
			fmt.Fprintf(&b, "%x\n", m)
		}
	}
	file := filepath.Join(os.TempDir(), fmt.Sprintf("bmpha-nfacctd-%d.hex", c.seed))
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Error(err)
	}
	return file
}

// needNfacctd skips the test where nfacctd of the version at hand is not.
func needNfacctd(t *testing.T) {
	rig.Require(t, rig.PmbmpdPart)
	for _, p := range rig.Parts() {
		if p.Name == rig.PmbmpdPart && !strings.HasPrefix(p.Version, nfacctdVersion) {
			t.Skipf("pmacct is %s, and its differences are listed for %s", p.Version, nfacctdVersion)
		}
	}
}

// seedOf returns BMPHA_SEED, or one that is known to be good: others find what is not
// listed yet about once in some hundred conversations.
func seedOf(t *testing.T) uint64 {
	seed := uint64(5000)
	if s := os.Getenv("BMPHA_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("BMPHA_SEED: %v", err)
		}
	}
	t.Logf("BMPHA_SEED=%d repeats this", seed)
	return seed
}

// round compares n conversations and returns what was different.
func round(t *testing.T, seed uint64, n int) (failed []*conversation, found differences, routes int) {
	var cs []*conversation
	for i := range n {
		cs = append(cs, converse(seed+uint64(i)))
	}
	all := tables(t, cs)
	found = differences{}
	for i, c := range cs {
		theirs := all[source(i)]
		for _, r := range theirs {
			routes += len(r)
		}
		what, differs := compare(c, theirs)
		if len(what) > 0 {
			failed = append(failed, c)
			t.Errorf("seed %d, %d messages, %d differences, the first:\n%s", c.seed, c.messages(), len(what), strings.Join(what[:min(3, len(what))], "\n"))
		}
		for d := range differs {
			found[d]++
		}
	}
	return failed, found, routes
}

// TestNfacctd: hundreds of routers say at random what routers say, and things that
// no router says, to pmacct's nfacctd and to our tables. It takes a minute, of
// which nfacctd waits for the full one to dump its table.
func TestNfacctd(t *testing.T) {
	needNfacctd(t)
	t.Parallel()
	failed, found, routes := round(t, seedOf(t), 120)
	report(t, failed, found, routes)
}

// TestLongNfacctd is that several times over. What fails is made shorter, by a
// minute for each step.
func TestLongNfacctd(t *testing.T) {
	if os.Getenv("BMPHA_LONG") == "" {
		t.Skip("takes minutes: make e2e, or BMPHA_LONG=1")
	}
	needNfacctd(t)
	seed := seedOf(t)
	all := differences{}
	routes := 0
	for i := range uint64(2) {
		failed, found, n := round(t, seed+300*i, 300)
		for d, n := range found {
			all[d] += n
		}
		routes += n
		if len(failed) > 0 {
			c := shortest(failed)
			for range 6 {
				less := shorter(t, c)
				if less == nil {
					break
				}
				c = less
			}
			report(t, []*conversation{c}, all, routes)
			return
		}
	}
	report(t, nil, all, routes)
}

func shortest(cs []*conversation) *conversation {
	return slices.MinFunc(cs, func(a, b *conversation) int { return cmp.Compare(a.messages(), b.messages()) })
}

// shorter leaves messages out of c, which fails, and returns the shortest that
// still fails, nil if none does. It tries as many as nfacctd hears at once.
func shorter(t *testing.T, c *conversation) *conversation {
	n := c.messages()
	var tries []*conversation
	for size := n / 2; size > 0 && len(tries)+n/size < 300; size /= 2 {
		for at := 0; at < n; at += size {
			tries = append(tries, without(c, func(i int) bool { return i >= at && i < at+size }))
		}
	}
	failing := fails(t, tries)
	if len(failing) == 0 {
		return nil
	}
	// What can be left out alone can perhaps be left out together.
	best := shortest(failing)
	together := make([]bool, n)
	for _, f := range failing {
		for i := range n {
			together[i] = together[i] || f.out(i)
		}
	}
	all := without(c, func(i int) bool { return together[i] })
	if all.messages() < best.messages() {
		if failing := fails(t, []*conversation{all}); len(failing) > 0 {
			best = failing[0]
		}
	}
	best.out = nil
	return best
}

// without returns c without some of its messages.
func without(c *conversation, out func(i int) bool) *conversation {
	less := &conversation{seed: c.seed, out: out}
	i := 0
	for _, s := range c.sessions {
		var rest [][]byte
		for _, m := range s {
			if !out(i) {
				rest = append(rest, m)
			}
			i++
		}
		less.sessions = append(less.sessions, rest)
	}
	return less
}

// fails returns those of which the tables differ.
func fails(t *testing.T, cs []*conversation) (failing []*conversation) {
	all := tables(t, cs)
	for i, c := range cs {
		if what, _ := compare(c, all[source(i)]); len(what) > 0 {
			failing = append(failing, c)
		}
	}
	return failing
}

func report(t *testing.T, failed []*conversation, found differences, routes int) {
	for _, d := range slices.Sorted(maps.Keys(found)) {
		t.Logf("%4d %s", found[d], d)
	}
	t.Logf("%d routes of nfacctd's", routes)
	if len(failed) > 0 {
		c := shortest(failed)
		t.Errorf("the shortest is one of seed %d, %d messages, in %s", c.seed, c.messages(), save(t, c))
	}
}
