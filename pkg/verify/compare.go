package verify

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/bmpha/bmpha/pkg/replay"
)

// A Scope says what of two tables is compared.
type Scope struct {
	// Peer is the only peer to look at, and the one of tables that name none; the
	// zero value means all.
	Peer netip.Addr
	// RIB overrides which of the peers' tables the router's is compared with.
	RIB replay.RIB
	// AFIs are the address families to look at, 1 and 2. Without any, it is those
	// of the router's routes, and both if it has none.
	AFIs []uint16
}

// A Comparison is the difference between a router's table and the one that the
// records make, each list sorted by peer and prefix.
type Comparison struct {
	Router    string       `json:"router"`
	RIBs      []replay.RIB `json:"ribs"`
	AFIs      []uint16     `json:"afis"`
	Skipped   int          `json:"skipped"` // the router's own routes, and those not valid: BMP does not tell them
	Equal     int          `json:"equal"`
	Missing   []Difference `json:"missing"`   // the router has it, Kafka does not
	Extra     []Difference `json:"extra"`     // Kafka has it, the router does not
	Different []Difference `json:"different"` // both have it, with other attributes
}

// Differences returns how many routes differ.
func (c *Comparison) Differences() int { return len(c.Missing) + len(c.Extra) + len(c.Different) }

// A Difference is one route in which two tables differ.
type Difference struct {
	Peer   netip.Addr   `json:"peer"`
	RIB    replay.RIB   `json:"rib"`
	Prefix netip.Prefix `json:"prefix"`
	Router string       `json:"router,omitempty"` // what the router says
	Kafka  string       `json:"kafka,omitempty"`  // what the records say
	Fields []string     `json:"fields,omitempty"` // in which they differ
	// Sender and At tell who wrote Kafka's last word, and when, where it is known: not
	// with path identifiers.
	Sender *Sender    `json:"sender,omitempty"`
	At     *time.Time `json:"at,omitempty"`
}

// spot is where the routes of two tables meet. With ADD-PATH there are several
// in one; path identifiers differ between a router's display and its BMP.
type spot struct {
	rib    replay.RIB
	peer   netip.Addr
	prefix netip.Prefix
}

func (s spot) compare(o spot) int {
	return cmp.Or(cmp.Compare(s.rib, o.rib), s.peer.Compare(o.peer),
		s.prefix.Addr().Compare(o.prefix.Addr()), cmp.Compare(s.prefix.Bits(), o.prefix.Bits()))
}

// Compare compares what a router printed with the table of Ledger.Routes. Of the
// latter it looks at unicast routes without a route distinguisher. Tables of one
// RIB are taken together. One that does not name the peer needs scope.Peer.
func Compare(router string, tables []Table, kafka map[replay.Key]string, scope Scope) (*Comparison, error) {
	c := &Comparison{Router: router, AFIs: slices.Clone(scope.AFIs), Missing: []Difference{}, Extra: []Difference{}, Different: []Difference{}}
	peer := scope.Peer
	if peer.IsValid() {
		peer = plainAddr(peer)
	}
	own := make(map[spot][]Path)
	localAS := make(map[replay.RIB]uint32)
	seen := make(map[replay.RIB]map[netip.Addr]bool) // the peers of tables that were printed peer by peer
	var afis []uint16
	for _, t := range tables {
		rib := cmp.Or(scope.RIB, t.RIB)
		if !slices.Contains(c.RIBs, rib) {
			c.RIBs = append(c.RIBs, rib)
		}
		if t.Unnamed && !peer.IsValid() {
			return nil, errors.New("the router's text does not name the peer that it is about")
		}
		if t.RIB == replay.InPre && seen[rib] == nil {
			seen[rib] = make(map[netip.Addr]bool)
		}
		c.Skipped += t.Skipped
		if t.LocalAS != 0 {
			localAS[rib] = t.LocalAS
		}
		for _, p := range t.Paths {
			if t.Unnamed {
				p.Peer = peer
			}
			afi := afiOf(p.Prefix.Addr())
			if !slices.Contains(afis, afi) {
				afis = append(afis, afi)
			}
			if peer.IsValid() && p.Peer != peer || len(scope.AFIs) > 0 && !slices.Contains(scope.AFIs, afi) {
				continue
			}
			if t.RIB == replay.InPre {
				seen[rib][p.Peer] = true
			}
			at := spot{rib, p.Peer, p.Prefix}
			own[at] = append(own[at], p)
		}
	}
	if len(c.AFIs) == 0 {
		c.AFIs = afis
	}
	if len(c.AFIs) == 0 {
		c.AFIs = []uint16{1, 2}
	}
	slices.Sort(c.AFIs)
	slices.Sort(c.RIBs)
	theirs := make(map[spot][]Attributes)
	for k, v := range kafka {
		if k.SAFI != 1 || k.RD != "" || !slices.Contains(c.AFIs, k.AFI) || !slices.Contains(c.RIBs, k.RIB) {
			continue
		}
		at := spot{rib: k.RIB}
		from, err := netip.ParseAddr(k.Peer)
		if err != nil {
			return nil, fmt.Errorf("peer of a route in Kafka: %w", err)
		}
		prefix, err := netip.ParsePrefix(k.Prefix)
		if err != nil {
			return nil, fmt.Errorf("prefix of a route in Kafka: %w", err)
		}
		at.peer, at.prefix = plainAddr(from), prefix.Masked()
		// Received routes are printed peer by peer: the others were not asked for.
		others := len(seen[k.RIB]) > 0 && !seen[k.RIB][at.peer]
		if peer.IsValid() && at.peer != peer || others {
			continue
		}
		theirs[at] = append(theirs[at], readValue(v))
	}
	for at, paths := range own {
		c.match(at, paths, theirs[at], localAS[at.rib])
		delete(theirs, at)
	}
	for at, routes := range theirs {
		c.match(at, nil, routes, 0)
	}
	for _, list := range [][]Difference{c.Missing, c.Extra, c.Different} {
		slices.SortFunc(list, func(a, b Difference) int {
			return cmp.Or(spot{a.RIB, a.Peer, a.Prefix}.compare(spot{b.RIB, b.Peer, b.Prefix}),
				cmp.Compare(a.Router, b.Router), cmp.Compare(a.Kafka, b.Kafka))
		})
	}
	return c, nil
}

// Attribute tells of what c found to differ who wrote Kafka's last word.
func (l *Ledger) Attribute(c *Comparison) {
	rt := l.routers[c.Router]
	if rt == nil {
		return
	}
	byAddr := make(map[netip.Addr][]*peerRoutes)
	for p, of := range rt.table.peers {
		if a, err := netip.ParseAddr(p.Addr); err == nil {
			byAddr[plainAddr(a)] = append(byAddr[plainAddr(a)], of)
		}
	}
	for _, list := range [][]Difference{c.Missing, c.Extra, c.Different} {
		for i := range list {
			d := &list[i]
			id := routeID{rib: d.RIB, prefix: d.Prefix.String(), path: -1, afi: afiOf(d.Prefix.Addr()), safi: 1}
			for _, of := range byAddr[d.Peer] {
				if e, ok := of.routes[id]; ok {
					d.Sender, d.At = l.source(e.from)
				}
			}
		}
	}
}

func afiOf(a netip.Addr) uint16 {
	if a.Is4() {
		return 1
	}
	return 2
}

// match pairs the routes of one spot: equal ones first, then whatever is left.
func (c *Comparison) match(at spot, own []Path, theirs []Attributes, localAS uint32) {
	byText := func(a, b Attributes) int { return cmp.Compare(a.String(), b.String()) }
	slices.SortFunc(own, func(a, b Path) int { return byText(a.Attributes, b.Attributes) })
	slices.SortFunc(theirs, byText)
	used := make([]bool, len(theirs))
	var left []Path
	for _, p := range own {
		i := 0
		for i < len(theirs) && (used[i] || len(differ(&p, &theirs[i], localAS)) > 0) {
			i++
		}
		if i == len(theirs) {
			left = append(left, p)
			continue
		}
		used[i] = true
		c.Equal++
	}
	var rest []Attributes
	for i, a := range theirs {
		if !used[i] {
			rest = append(rest, a)
		}
	}
	for i := range max(len(left), len(rest)) {
		d := Difference{Peer: at.peer, RIB: at.rib, Prefix: at.prefix}
		if i < len(left) {
			d.Router = left[i].String()
		}
		if i < len(rest) {
			d.Kafka = rest[i].String()
		}
		switch {
		case i >= len(rest):
			c.Missing = append(c.Missing, d)
		case i >= len(left):
			c.Extra = append(c.Extra, d)
		default:
			d.Fields = differ(&left[i], &rest[i], localAS)
			c.Different = append(c.Different, d)
		}
	}
}

// differ names the attributes in which a route in Kafka is not the router's.
func differ(p *Path, a *Attributes, localAS uint32) []string {
	var names []string
	if p.NextHop.IsValid() && a.NextHop.IsValid() && p.NextHop != a.NextHop {
		names = append(names, "next_hop")
	}
	if p.ASPath != nil && a.ASPath != nil && *p.ASPath != *a.ASPath {
		// FRR's BMP puts its own number before the path of an external peer.
		own := strconv.FormatUint(uint64(localAS), 10)
		if *p.ASPath != "" {
			own += " " + *p.ASPath
		}
		if localAS == 0 || !p.External || own != *a.ASPath {
			names = append(names, "as_path")
		}
	}
	if p.Origin != "" && p.Origin != a.Origin {
		names = append(names, "origin")
	}
	if p.MEDTold && a.MEDTold && !equal(p.MED, a.MED) {
		names = append(names, "med")
	}
	// A router tells external peers' too, which it has given them itself.
	if p.LocalPref != nil && a.LocalPref != nil && *p.LocalPref != *a.LocalPref {
		names = append(names, "local_pref")
	}
	if p.Communities != nil && a.Communities != nil && !slices.Equal(p.Communities, a.Communities) {
		names = append(names, "comms")
	}
	if p.Large != nil && a.Large != nil && !slices.Equal(p.Large, a.Large) {
		names = append(names, "lcomms")
	}
	return names
}

func equal(a, b *uint32) bool {
	return a == nil && b == nil || a != nil && b != nil && *a == *b
}
