package verify

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unique"

	"github.com/bmpha/bmpha/pkg/replay"
)

// routes are the tables of one router as records make them. The rules are those
// of [replay.Consumer].
type routes struct {
	peers map[replay.Peer]*peerRoutes
	// partial says that the records do not begin with the topic, so that what they
	// have not mentioned is unknown.
	partial bool
}

// peerRoutes are the routes of a peer, and of which of its RIBs it is known that
// there are no others: those that began or ended within the records.
type peerRoutes struct {
	routes map[routeID]entry
	began  []replay.RIB
}

// A routeID tells a route among those of its peer, as in [replay.Key].
type routeID struct {
	rib        replay.RIB
	rd, prefix string
	path       int64
	afi        uint16
	safi       uint8
}

type entry struct {
	value value
	from  source
	seen  uint32 // pass of a Match in which the collector had it
	// doubt says that it may have ended with an instance of its peer: records of VPN
	// routes do not tell of which one they are.
	doubt bool
}

// A source is when the last word about a route came to Kafka, in ms, and by whom: the
// number of a sender in its Ledger, 0 where it is not known.
type source struct {
	at int64
	by uint32
}

// A value is what is told of a route, kept once; the zero value of a route that was
// withdrawn.
type value = unique.Handle[attributes]

// attributes are what records tell of a route, in pmacct's words. What they do not
// tell is empty.
type attributes struct {
	nextHop, asPath, origin             string
	comms, extComms, largeComms         string
	med, localPref, aigp, sid, otc, tag string // tag: the label
}

// idOf returns which route of its peer r is.
func idOf(r *replay.Route, rib replay.RIB) routeID {
	id := routeID{rib: rib, rd: r.RD, prefix: r.Prefix, path: -1, afi: r.AFI, safi: r.SAFI}
	if r.PathID != nil {
		id.path = *r.PathID
	}
	return id
}

func valueOf(r *replay.Route) value {
	number := func(n *uint32) string {
		if n == nil {
			return ""
		}
		return fmt.Sprint(*n)
	}
	text := func(b json.RawMessage) string { return string(plain(b)) }
	label := r.MPLSLabel
	if label == nil {
		label = r.Label
	}
	return unique.Make(attributes{
		r.NextHop, r.ASPath, r.Origin, r.Comms, text(r.EComms), r.LComms,
		number(r.MED), number(r.LocalPref), text(r.AIGP), text(r.SID), text(r.OTC), text(label),
	})
}

// text is a as in a table of [replay.Consumer].
func (a *attributes) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "via %s path [%s] origin %s", a.nextHop, a.asPath, a.origin)
	a.append(&b, part{" med ", a.med}, part{" local-pref ", a.localPref}, part{" comms ", a.comms}, part{" lcomms ", a.largeComms})
	return b.String()
}

// String returns all of a in one line.
func (a *attributes) String() string {
	var b strings.Builder
	b.WriteString(a.text())
	a.append(&b, part{" ecomms ", a.extComms}, part{" aigp ", a.aigp}, part{" psid-li ", a.sid}, part{" otc ", a.otc}, part{" label ", a.tag})
	return b.String()
}

type part struct{ name, value string }

func (a *attributes) append(b *strings.Builder, parts ...part) {
	for _, p := range parts {
		if p.value != "" {
			b.WriteString(p.name)
			b.WriteString(p.value)
		}
	}
}

// differ names the attributes in which two are not equal, as records call them.
// Spellings of the same do not count, nor what only some dialects tell.
func (a *attributes) differ(b *attributes) []string {
	var names []string
	for _, c := range [...]struct {
		name string
		a, b string
		same func(a, b string) bool
	}{
		{"bgp_nexthop", a.nextHop, b.nextHop, sameHop},
		{"as_path", a.asPath, b.asPath, func(a, b string) bool { return canonicalPath(a) == canonicalPath(b) }},
		{"origin", a.origin, b.origin, nil},
		{"comms", a.comms, b.comms, sameWords},
		{"ecomms", a.extComms, b.extComms, sameWords},
		{"lcomms", a.largeComms, b.largeComms, sameWords},
		{"med", a.med, b.med, nil},
		{"local_pref", a.localPref, b.localPref, nil},
		{"aigp", a.aigp, b.aigp, untold},
		{"psid_li", a.sid, b.sid, untold},
		{"otc", a.otc, b.otc, untold},
		{"mpls_label", a.tag, b.tag, untold},
	} {
		if c.a != c.b && (c.same == nil || !c.same(c.a, c.b)) {
			names = append(names, c.name)
		}
	}
	return names
}

func untold(a, b string) bool { return a == "" || b == "" }

func sameHop(a, b string) bool {
	x, errX := netip.ParseAddr(a)
	y, errY := netip.ParseAddr(b)
	return errX == nil && errY == nil && plainAddr(x) == plainAddr(y)
}

// sameWords compares lists whose order means nothing.
func sameWords(a, b string) bool {
	list := func(s string) []string {
		words := strings.Fields(s)
		for i, w := range words {
			if c := canonicalCommunity(w); c != "" {
				words[i] = c
			}
		}
		return sorted(words)
	}
	return slices.Equal(list(a), list(b))
}

// sameValue is differ, and quick where nothing does.
func sameValue(a, b value) bool {
	if a == b {
		return true
	}
	if a == (value{}) || b == (value{}) {
		return false
	}
	x, y := a.Value(), b.Value()
	return len(x.differ(&y)) == 0
}

// record takes the value of one record. What says nothing about routes changes
// nothing.
func (t *routes) record(b []byte, from source) error {
	var r replay.Record
	if err := json.Unmarshal(b, &r); err != nil {
		return fmt.Errorf("record %.80q: %w", b, err)
	}
	if r.Event != "log" {
		return nil
	}
	p := r.Of()
	switch {
	case r.MsgType == "peer_down":
		t.end(p, replay.InPre)
	case r.MsgType == "peer_up":
		t.end(p, r.RIB())
	case r.LogType == "update":
		t.peer(p).routes[idOf(&r.Route, r.RIB())] = entry{value: valueOf(&r.Route), from: from}
	case r.LogType == "withdraw" || r.LogType == "delete":
		switch {
		case t.partial:
			t.peer(p).routes[idOf(&r.Route, r.RIB())] = entry{from: from}
		case t.peers[p] != nil:
			delete(t.peers[p].routes, idOf(&r.Route, r.RIB()))
		}
	}
	return nil
}

// dumped takes a record of a dump.
func (t *routes) dumped(b []byte) error {
	var r replay.Record
	if err := json.Unmarshal(b, &r); err != nil {
		return fmt.Errorf("record %.80q: %w", b, err)
	}
	if r.Prefix != "" {
		t.peer(r.Of()).routes[idOf(&r.Route, r.RIB())] = entry{value: valueOf(&r.Route)}
	}
	return nil
}

func (t *routes) peer(p replay.Peer) *peerRoutes {
	if t.peers == nil {
		t.peers = make(map[replay.Peer]*peerRoutes)
	}
	of := t.peers[p]
	if of == nil {
		of = &peerRoutes{routes: make(map[routeID]entry)}
		t.peers[p] = of
	}
	return of
}

// end takes away the routes of a RIB of p, of all with the pre-policy Adj-RIB-In.
func (t *routes) end(p replay.Peer, rib replay.RIB) {
	if p.Loc {
		rib = replay.InPre
	}
	if of := t.peers[p]; of != nil || t.partial {
		of = t.peer(p)
		if rib == replay.InPre {
			clear(of.routes)
		} else {
			for id := range of.routes {
				if id.rib == rib {
					delete(of.routes, id)
				}
			}
		}
		if t.partial && !slices.Contains(of.began, rib) {
			of.began = append(of.began, rib)
		}
	}
	if p.Distinguisher == "" {
		return
	}
	if of := t.peers[replay.Peer{Addr: p.Addr}]; of != nil {
		for id, e := range of.routes {
			if id.safi == 128 && (rib == replay.InPre || rib == id.rib) {
				e.doubt = true
				of.routes[id] = e
			}
		}
	}
}

// find returns where the route of a peer is kept, or would be. Where a VPN route
// tells its peer's distinguisher in one text and not in the other, it is found
// nevertheless.
func (t *routes) find(p replay.Peer, id routeID) (*peerRoutes, entry, bool) {
	of := t.peers[p]
	if of != nil {
		if e, ok := of.routes[id]; ok {
			return of, e, true
		}
	}
	if id.safi == 128 {
		for q, of := range t.peers {
			if q.Addr != p.Addr {
				continue
			}
			if e, ok := of.routes[id]; ok {
				return of, e, true
			}
		}
	}
	return of, entry{}, false
}

// unknown says that the records tell nothing about a route: not even that it is
// not there.
func (t *routes) unknown(of *peerRoutes, id routeID, found bool) bool {
	return t.partial && !found && (of == nil || !slices.Contains(of.began, replay.InPre) && !slices.Contains(of.began, id.rib))
}

// count returns how many routes there are.
func (t *routes) count() (n int) {
	for _, of := range t.peers {
		if !t.partial {
			n += len(of.routes)
			continue
		}
		for _, e := range of.routes {
			if e.value != (value{}) {
				n++
			}
		}
	}
	return n
}

// keyed returns the table in the notation of [replay.Consumer].
func (t *routes) keyed(router string) map[replay.Key]string {
	texts := make(map[value]string)
	all := make(map[replay.Key]string)
	for p, of := range t.peers {
		for id, e := range of.routes {
			if e.value == (value{}) {
				continue
			}
			text, ok := texts[e.value]
			if !ok {
				a := e.value.Value()
				text = a.text()
				texts[e.value] = text
			}
			all[replay.Key{Router: router, RD: id.rd, Peer: p.Addr, RIB: id.rib, AFI: id.afi, SAFI: id.safi, Prefix: id.prefix, PathID: id.path}] = text
		}
	}
	return all
}

// isSet tells whether a record has a member of that name with a value but zero or
// nothing.
func isSet(b []byte, name string) (set bool) {
	members(b, func(n, v []byte) {
		if string(n) == name {
			v = plain(v)
			set = len(v) > 0 && !bytes.Equal(v, []byte("0")) && !bytes.Equal(v, []byte("null"))
		}
	})
	return set
}
