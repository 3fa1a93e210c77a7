package control

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// routesAtOnce is how many routes a RoutePrinter sorts and lines up.
const routesAtOnce = 5000

// A RoutePrinter writes routes as a table for people, in the order of prefixes,
// routers, peers and RIBs. It keeps some thousands of them at most; those beyond are sorted among
// themselves.
type RoutePrinter struct {
	w    io.Writer
	opts RenderOptions
	wide bool
	// narrow gives prefixes and routers lines of their own, and what wide shows.
	narrow bool
	rows   []routeRow
	grid   grid
	prev   *routeRow // on the line above
}

type routeRow struct {
	prefix netip.Prefix
	peer   netip.Addr
	Route
}

// narrow is from how many columns down prefixes and routers have lines of their own.
const narrow = 100

// NewRoutePrinter returns a printer on w. Wide shows all communities, the local
// preference, MED and label, and cuts nothing but what the width does not hold.
func NewRoutePrinter(w io.Writer, opts RenderOptions, wide bool) *RoutePrinter {
	p := &RoutePrinter{w: w, opts: opts, wide: wide, narrow: max(minWidth, cmp.Or(opts.Width, 80)) <= narrow}
	limit := func(n int) int {
		if wide {
			return 1 << 16
		}
		return n
	}
	if p.narrow {
		p.grid.columns = []column{{head: "  peer", limit: 41}}
	} else {
		p.grid.columns = []column{{head: "prefix"}, {head: "router", limit: 26}, {head: "peer", limit: 39}}
	}
	p.grid.columns = append(p.grid.columns, column{head: "RIB"}, column{head: "next hop", limit: 39}, column{head: "AS path", limit: limit(48), end: true})
	if !p.narrow {
		p.grid.columns = append(p.grid.columns, column{head: "communities", limit: limit(32)})
		if wide {
			p.grid.columns = append(p.grid.columns, column{head: "pref", right: true}, column{head: "MED", right: true}, column{head: "label", right: true})
		}
	}
	p.grid.columns = append(p.grid.columns, column{head: "age", right: true})
	return p
}

// Line takes a route as Client.Routes hands it over. Its error is that of the JSON
// or of the writer.
func (p *RoutePrinter) Line(line []byte) error {
	var r routeRow
	if err := json.Unmarshal(line, &r.Route); err != nil {
		return fmt.Errorf("read a route: %w", err)
	}
	r.prefix, _ = netip.ParsePrefix(r.Prefix) // sorted first where it is none
	r.peer, _ = netip.ParseAddr(r.PeerIP)
	if p.rows = append(p.rows, r); len(p.rows) < routesAtOnce {
		return nil
	}
	return p.Flush()
}

// Flush writes what was taken so far.
func (p *RoutePrinter) Flush() error {
	if len(p.rows) == 0 {
		return nil
	}
	slices.SortStableFunc(p.rows, func(a, b routeRow) int {
		return cmp.Or(a.prefix.Addr().Compare(b.prefix.Addr()), cmp.Compare(a.prefix.Bits(), b.prefix.Bits()),
			strings.Compare(a.RD, b.RD), strings.Compare(a.Router, b.Router), a.peer.Compare(b.peer),
			cmp.Compare(slices.Index(RIBWords[:], a.RIB), slices.Index(RIBWords[:], b.RIB)),
			cmp.Compare(a.SAFI, b.SAFI), cmp.Compare(a.PathID, b.PathID))
	})
	p.grid.rows, p.grid.colors = p.grid.rows[:0], p.grid.colors[:0]
	p.grid.above, p.grid.below = make(map[int]string), make(map[int]string)
	for i := range p.rows {
		r := &p.rows[i]
		p.add(r, p.prev)
		p.prev = r
	}
	last := *p.prev
	p.prev = &last
	p.rows = p.rows[:0]
	c := newCanvas(p.opts)
	c.table(&p.grid)
	p.grid.headless = true
	return c.flush(p.w)
}

// add makes a row of r. What the row above says already is left out.
func (p *RoutePrinter) add(r, above *routeRow) {
	name := r.Router
	if r.Session == SessionDown {
		name += " (down)"
	}
	prefix, router := r.Prefix, name
	if r.RD != "" {
		prefix = r.RD + " " + prefix
	}
	if above != nil && above.Prefix == r.Prefix && above.RD == r.RD {
		prefix = ""
		if above.Router == r.Router {
			router = ""
		}
	}
	peer := r.PeerIP
	if r.RIB == "loc" {
		peer = "-"
	}
	if r.PathID != 0 {
		peer += " #" + strconv.FormatUint(uint64(r.PathID), 10)
	}
	hop, path := cmp.Or(r.NextHop, "-"), r.ASPath
	if origin, ok := map[string]string{"i": "i", "e": "e", "u": "?"}[r.Origin]; ok {
		path = strings.TrimSpace(path + " " + origin)
	}
	now := p.opts.Now
	if now.IsZero() {
		now = time.Now()
	}
	age, color := sinceWords(r.Received, now), ""
	switch {
	case r.Withdrawn:
		age, color = "withdrawn "+age, dim
		hop, path = "-", "-"
	case r.Stale:
		age, color = "stale "+age, yellow
	case r.Session == SessionDown:
		color = yellow
	}
	number := func(n *uint32) string {
		if n == nil {
			return "-"
		}
		return strconv.FormatUint(uint64(*n), 10)
	}
	rest := []string{r.RIB, hop, path}
	var cells []string
	switch i := len(p.grid.rows); {
	case p.narrow:
		if prefix != "" || router != "" {
			p.grid.above[i] = clean(strings.TrimPrefix(r.RD+" "+r.Prefix+" "+name, " "))
		}
		if p.wide {
			p.grid.below[i] = clean(strings.TrimSpace("pref " + number(r.LocalPref) + ", MED " + number(r.MED) +
				", label " + cmp.Or(r.Label, "-") + " " + p.communities(r)))
		}
		cells = append([]string{"  " + peer}, rest...)
	case p.wide:
		cells = append([]string{prefix, router, peer}, append(rest, p.communities(r), number(r.LocalPref), number(r.MED), cmp.Or(r.Label, "-"))...)
	default:
		cells = append([]string{prefix, router, peer}, append(rest, p.communities(r))...)
	}
	cells = append(cells, age)
	for i := range cells {
		cells[i] = clean(cells[i])
	}
	p.grid.add(color, cells...)
}

// communities are all of a route, or the first two and how many more there are.
func (p *RoutePrinter) communities(r *routeRow) string {
	all := strings.Fields(r.Comms + " " + r.LgComms + " " + r.ExtComms)
	const shown = 2
	if p.wide || len(all) <= shown {
		return strings.Join(all, " ")
	}
	return strings.Join(all[:shown], " ") + fmt.Sprintf(" +%d", len(all)-shown)
}

// detailWidth is from how many columns on a peer takes one line.
const detailWidth = 160

// RenderPeers writes a router and its peers, those that are not up first.
func RenderPeers(w io.Writer, r *RouterPeers, opts RenderOptions) error {
	c := newCanvas(opts)
	up := 0
	for i := range r.Peers {
		if r.Peers[i].State == PeerUp {
			up++
		}
	}
	var names []string
	for _, name := range []string{r.Address, r.SysName} {
		if name != "" && name != r.Router {
			names = append(names, clean(name))
		}
	}
	head, text := c.paint(bold, clean(r.Router)), ""
	if len(names) > 0 {
		text = "(" + strings.Join(names, ", ") + ")"
	}
	if r.State != "" {
		text += " session " + clean(r.State)
	}
	if text == "" {
		head += ":"
	} else {
		text += ": "
	}
	if r.NoTable != "" {
		c.paragraph(head, text+"no table: "+clean(r.NoTable))
		return c.flush(w)
	}
	text += fmt.Sprintf("%s of %s up, %s", count(up), plural(len(r.Peers), "peer"), plural(r.Routes, "route"))
	if r.Stale > 0 {
		text += ", " + count(r.Stale) + " stale"
	}
	c.paragraph(head, text)
	if len(r.Peers) == 0 {
		return c.flush(w)
	}
	rank := map[string]int{PeerDown: 0, PeerAwaited: 1, PeerUp: 2}
	peers := slices.SortedStableFunc(slices.Values(r.Peers), func(a, b Peer) int { return cmp.Compare(rank[a.State], rank[b.State]) })
	t := grid{below: make(map[int]string), columns: []column{
		{head: "  peer", limit: 60}, {head: "AS", right: true}, {head: "BGP ID"}, {head: "state"}, {head: "for", right: true},
		{head: "routes", right: true}, {head: "stale", right: true},
	}}
	if c.width <= narrow {
		t.columns = slices.Delete(t.columns, 2, 3)
	}
	if c.width >= detailWidth {
		t.columns = append(t.columns, column{head: "details", limit: 1 << 16})
	}
	for i := range peers {
		p := &peers[i]
		name := p.IP
		if p.Type == "loc-rib" {
			name = "loc-rib"
		}
		if p.RD != "" {
			name += " rd " + p.RD
		}
		since := "-"
		if !p.Since.IsZero() {
			since = sinceWords(p.Since, opts.Now)
		}
		color := ""
		switch {
		case p.State == PeerDown:
			color = red
		case p.State != PeerUp || p.Stale > 0:
			color = yellow
		}
		cells := []string{"  " + clean(name), strconv.FormatUint(uint64(p.AS), 10), clean(p.BGPID), clean(p.State), since, count(p.Routes), count(p.Stale)}
		switch details := p.details(); {
		case c.width >= detailWidth:
			cells = append(cells, details)
		case c.width <= narrow:
			cells = slices.Delete(cells, 2, 3)
			if p.BGPID != p.IP {
				details += "; BGP ID " + clean(p.BGPID)
			}
			fallthrough
		default:
			t.below[i] = strings.TrimPrefix(details, "; ")
		}
		t.add(color, cells...)
	}
	c.table(&t)
	return c.flush(w)
}

// details are how far the dumps of a peer are and what was negotiated, or why it is
// down.
func (p *Peer) details() string {
	var parts []string
	if p.Down != nil {
		parts = append(parts, p.Down.Text)
	}
	if p.VRF != "" {
		parts = append(parts, "VRF "+p.VRF)
	}
	for i := 0; i < len(p.RIBs); {
		rib := p.RIBs[i].RIB
		var families []string
		for ; i < len(p.RIBs) && p.RIBs[i].RIB == rib; i++ {
			r := &p.RIBs[i]
			text := shortFamily(r.Family) + " " + r.State
			if r.Stale > 0 {
				text += " (" + count(r.Stale) + " stale)"
			}
			families = append(families, text)
		}
		parts = append(parts, rib+": "+strings.Join(families, ", "))
	}
	if p.FourOctetAS {
		parts = append(parts, "4-octet AS")
	} else if p.State == PeerUp {
		parts = append(parts, "2-octet AS")
	}
	if len(p.AddPath) > 0 {
		names := make([]string, len(p.AddPath))
		for i, f := range p.AddPath {
			names[i] = shortFamily(f)
		}
		parts = append(parts, "ADD-PATH "+strings.Join(names, ", "))
	}
	return clean(strings.Join(parts, "; "))
}

func shortFamily(word string) string { return strings.TrimSuffix(word, "-unicast") }
