package verify

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/bmpha/bmpha/pkg/replay"
)

// Bounds of a Match.
const (
	mostOpen   = 100_000 // differences that are looked at again one by one
	mostListed = 1000    // of each sort in a result
	mostAsked  = 64      // prefixes that are worth a question each
)

// A Match compares the tables of a Ledger with those of a collector that goes on
// hearing its routers. It is done in passes: Begin, Route for each route that the
// collector tells, End; the Ledger takes no records meanwhile. What differs after
// the first pass is open. The Ledger then takes further records, Check drops what
// does not differ any more, and so does another pass, which needs to tell the open
// routes only. What is open at last are the differences.
//
// It is not safe for concurrent use.
type Match struct {
	l       *Ledger
	scope   Scope
	known   map[string]*matched // routers of the collector, by address
	without []Without

	pass  uint32
	first bool // the pass tells all routes
	full  bool // one has
	equal int64
	other int64
	open  map[openKey]opened
	over  int64 // differences that are not in open
	began int64 // differences at first
	doubt int64
	quiet listing
}

// matched is a router of both.
type matched struct {
	name string  // as in records
	rt   *router // nil: there are no records of it
}

// Without is a router that is not compared, and why.
type Without struct {
	Router string `json:"router"`
	Reason string `json:"reason"`
	// NoTable says that the collector knows it, and keeps no table of it.
	NoTable bool `json:"no_table"`
}

type openKey struct {
	router string
	peer   replay.Peer
	id     routeID
}

// opened is what the collector has in place of what records say; the zero value
// for nothing.
type opened struct{ collector value }

// listing is a count with the first few.
type listing struct {
	n     int64
	first []RouteDifference
}

// NewMatch returns a comparison with the tables of l. Of scope all but the RIB of
// printed tables holds.
func NewMatch(l *Ledger, scope Scope) *Match {
	if scope.Peer.IsValid() {
		scope.Peer = plainAddr(scope.Peer)
	}
	return &Match{l: l, scope: scope, known: make(map[string]*matched)}
}

// Router takes a router as control.Client.Peers tells it, before the first pass.
func (m *Match) Router(line []byte) error {
	var r struct {
		Router  string `json:"router"`
		Address string `json:"bmp_router"`
		NoTable string `json:"no_table"`
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return fmt.Errorf("router %.80q: %w", line, err)
	}
	name := cmp.Or(r.Address, r.Router)
	if m.l.o.Router.IsValid() && !sameAddr(name, m.l.o.Router) {
		return nil
	}
	if r.NoTable != "" {
		m.without = append(m.without, Without{name, r.NoTable, true})
		m.known[canonicalAddr(name)] = nil
		return nil
	}
	m.add(name)
	return nil
}

func (m *Match) add(name string) *matched {
	at := canonicalAddr(name)
	r, ok := m.known[at]
	if !ok {
		r = &matched{name: name}
		m.known[at] = r
	}
	return r
}

// resolve finds the records of the routers.
func (m *Match) resolve() {
	for name, rt := range m.l.routers {
		if r := m.known[canonicalAddr(name)]; r != nil {
			r.name, r.rt = name, rt
		}
	}
}

func canonicalAddr(text string) string {
	a, err := netip.ParseAddr(text)
	if err != nil {
		return text
	}
	return plainAddr(a).String()
}

// Begin begins a pass, of all routes if Open says so.
func (m *Match) Begin() {
	m.first = !m.full || m.over > 0
	if m.first {
		m.resolve()
		m.pass++
		m.equal, m.other, m.over, m.doubt, m.quiet = 0, 0, 0, 0, listing{}
		m.open = make(map[openKey]opened)
		return
	}
	for k := range m.open {
		m.open[k] = opened{}
	}
}

// Route takes a route as control.Client.Routes tells it.
func (m *Match) Route(line []byte) error {
	var r struct {
		replay.Route
		RIB string `json:"rib"`
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return fmt.Errorf("route %.80q: %w", line, err)
	}
	rib, ok := collectorRIBs[r.RIB]
	if !ok {
		return fmt.Errorf("route %.80q: a table called %q", line, r.RIB)
	}
	router := m.known[canonicalAddr(r.Router)]
	if router == nil {
		if _, out := m.known[canonicalAddr(r.Router)]; out || m.l.o.Router.IsValid() && !sameAddr(r.Router, m.l.o.Router) {
			return nil
		}
		router = m.add(r.Router) // it has come since it was asked who there is
		m.resolve()
	}
	p := replay.Peer{Addr: r.Peer, Loc: rib == replay.Loc}
	if r.RDOrigin == "bmp" {
		p.Distinguisher = r.RD
	}
	id := idOf(&r.Route, rib)
	if !m.scope.wants(p.Addr, &id) {
		return nil
	}
	m.route(router, p, id, valueOf(&r.Route))
	return nil
}

var collectorRIBs = map[string]replay.RIB{
	"in-pre": replay.InPre, "in-post": replay.InPost, "out-pre": replay.OutPre, "out-post": replay.OutPost, "loc": replay.Loc,
}

func (m *Match) route(r *matched, p replay.Peer, id routeID, v value) {
	k := openKey{r.name, p, id}
	if !m.first {
		if o, ok := m.open[k]; ok && (o.collector == (value{}) || !sameValue(o.collector, m.kafka(&k).value)) {
			m.open[k] = opened{v}
		}
		return
	}
	var of *peerRoutes
	var e entry
	found := false
	unknown := m.l.o.Partial
	if r.rt != nil {
		of, e, found = r.rt.table.find(p, id)
		unknown = r.rt.table.unknown(of, id, found)
	}
	if found {
		again := e.seen == m.pass
		e.seen = m.pass
		of.routes[id] = e
		if sameValue(e.value, v) {
			m.equal++
			if again {
				delete(m.open, k)
			}
			return
		}
		if again {
			return // two peers whose records do not differ, one of which has it
		}
	}
	if unknown {
		m.quiet.add(difference(k, v, value{}), mostListed)
		return
	}
	m.opens(k, v)
}

func (m *Match) opens(k openKey, v value) {
	if len(m.open) >= mostOpen {
		m.over++
		return
	}
	m.open[k] = opened{v}
}

// End ends a pass.
func (m *Match) End() {
	if !m.first {
		m.Check()
		return
	}
	for name, rt := range m.l.routers {
		r := m.known[canonicalAddr(name)]
		if r == nil {
			continue
		}
		for p, of := range rt.table.peers {
			for id, e := range of.routes {
				switch {
				case e.value == (value{}) || e.seen == m.pass || !m.scope.wants(p.Addr, &id):
				case !kept(&id):
					m.other++
				case e.doubt:
					m.doubt++
				default:
					m.opens(openKey{r.name, p, id}, value{})
				}
			}
		}
	}
	if !m.full {
		m.full, m.began = true, int64(len(m.open))+m.over
	}
}

// kept tells whether a collector keeps routes of the family.
func kept(id *routeID) bool {
	return (id.afi == 1 || id.afi == 2) && (id.safi == 1 || id.safi == 4 || id.safi == 128)
}

// kafka is what the records say of an open route now.
func (m *Match) kafka(k *openKey) entry {
	rt := m.l.routers[k.router]
	if rt == nil {
		return entry{}
	}
	_, e, _ := rt.table.find(k.peer, k.id)
	return e
}

// Check drops the open routes that do not differ any more and returns how many do.
func (m *Match) Check() int64 {
	for k, o := range m.open {
		if !sameValue(o.collector, m.kafka(&k).value) {
			continue
		}
		if o.collector != (value{}) {
			m.equal++
		}
		delete(m.open, k)
	}
	return int64(len(m.open)) + m.over
}

// An Ask is a prefix of a router, with its address, that the collector is to tell
// in the next pass.
type Ask struct {
	Router string
	Prefix netip.Prefix
}

// Open returns what the next pass needs; all is set if that is all routes, or more
// than is worth to ask for one by one.
func (m *Match) Open() (asks []Ask, all bool) {
	if !m.full || m.over > 0 {
		return nil, true
	}
	some := make(map[Ask]bool)
	for k := range m.open {
		p, err := netip.ParsePrefix(k.id.prefix)
		if err != nil {
			return nil, true
		}
		if some[Ask{k.router, p.Masked()}] = true; len(some) > mostAsked {
			return nil, true
		}
	}
	for a := range some {
		asks = append(asks, a)
	}
	slices.SortFunc(asks, func(a, b Ask) int {
		return cmp.Or(compareAddrs(a.Router, b.Router), a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
	})
	return asks, false
}

// A TableComparison is the difference between the tables of a collector and those
// that the records make. Counts are of routes.
type TableComparison struct {
	Collector string   `json:"collector"` // its socket
	Routers   []string `json:"routers"`   // that were compared, as in bmp_router
	// Without are the others: without a table there, or unknown there.
	Without []Without `json:"without,omitempty"`
	Equal   int64     `json:"equal"`
	// First is how many differed at first; they were looked at again for Waited
	// seconds.
	First     int64   `json:"differed_at_first"`
	Waited    float64 `json:"waited_s"`
	Missing   Unequal `json:"missing"`   // the collector has it, Kafka does not
	Extra     Unequal `json:"extra"`     // Kafka has it, the collector does not
	Different Unequal `json:"different"` // both have it, with other attributes
	// NotMentioned are routes of the collector of which the records, that begin in the
	// middle, say nothing. They are no differences.
	NotMentioned Unequal `json:"not_mentioned"`
	// Unclear are VPN routes in Kafka only, of a peer an instance of which went down
	// after they were told: records do not say of which one they were. Others are
	// those of families that collectors do not keep. They are no differences either.
	Unclear int64 `json:"unclear"`
	Others  int64 `json:"other_families"`
	// Unsorted are differences beyond those that were looked at one by one.
	Unsorted int64 `json:"unsorted,omitempty"`
}

// Unequal is how many there are, and the first of them.
type Unequal struct {
	Count int64             `json:"count"`
	First []RouteDifference `json:"first"`
}

// A RouteDifference is a route in which a collector and Kafka differ.
type RouteDifference struct {
	Router    string     `json:"router"`
	Peer      string     `json:"peer"`
	RIB       replay.RIB `json:"rib"`
	AFI       uint16     `json:"afi"`
	SAFI      uint8      `json:"safi"`
	RD        string     `json:"rd,omitempty"` // of the route, else of the peer
	Prefix    string     `json:"prefix"`
	PathID    *int64     `json:"path_id,omitempty"`
	Collector string     `json:"collector,omitempty"` // what it has
	Other     string     `json:"other,omitempty"`     // what the records of another topic say
	Kafka     string     `json:"kafka,omitempty"`     // what the records say
	Fields    []string   `json:"fields,omitempty"`    // in which they differ
	// Sender and At tell who wrote the last word about the route, and when, where it is
	// known: in this topic, else in the other.
	Sender *Sender    `json:"sender,omitempty"`
	At     *time.Time `json:"at,omitempty"`
}

func (d *RouteDifference) told(l *Ledger, from source) {
	d.Sender, d.At = l.source(from)
}

// source returns who wrote a word and when, nil where it is not known.
func (l *Ledger) source(from source) (*Sender, *time.Time) {
	if from.by == 0 {
		return nil, nil
	}
	return new(l.names[from.by]), new(time.UnixMilli(from.at).UTC())
}

func difference(k openKey, collector, kafka value) RouteDifference {
	d := RouteDifference{
		Router: k.router, Peer: k.peer.Addr, RIB: k.id.rib, AFI: k.id.afi, SAFI: k.id.safi,
		RD: cmp.Or(k.id.rd, k.peer.Distinguisher), Prefix: k.id.prefix,
	}
	if k.id.path >= 0 {
		d.PathID = new(k.id.path)
	}
	text := func(v value) string {
		if v == (value{}) {
			return ""
		}
		a := v.Value()
		return a.String()
	}
	d.Collector, d.Kafka = text(collector), text(kafka)
	if d.Collector != "" && d.Kafka != "" {
		a, b := collector.Value(), kafka.Value()
		d.Fields = a.differ(&b)
	}
	return d
}

func (d *RouteDifference) compare(o *RouteDifference) int {
	prefix := func(s string) netip.Prefix { p, _ := netip.ParsePrefix(s); return p }
	p, q := prefix(d.Prefix), prefix(o.Prefix)
	path := func(n *int64) int64 {
		if n == nil {
			return -1
		}
		return *n
	}
	return cmp.Or(compareAddrs(d.Router, o.Router), compareAddrs(d.Peer, o.Peer), cmp.Compare(d.RIB, o.RIB), cmp.Compare(d.RD, o.RD),
		p.Addr().Compare(q.Addr()), cmp.Compare(p.Bits(), q.Bits()), cmp.Compare(d.Prefix, o.Prefix), cmp.Compare(path(d.PathID), path(o.PathID)))
}

// String tells which route d is about.
func (d *RouteDifference) String() string {
	s := fmt.Sprintf("router %s peer %s %s %s", d.Router, d.Peer, d.RIB, d.Prefix)
	if d.RD != "" {
		s += " rd " + d.RD
	}
	if d.PathID != nil {
		s += " path " + strconv.FormatInt(*d.PathID, 10)
	}
	return s
}

func (l *listing) add(d RouteDifference, most int) {
	if l.n++; len(l.first) < most {
		l.first = append(l.first, d)
	}
}

func (l *listing) result() Unequal {
	slices.SortFunc(l.first, func(a, b RouteDifference) int { return a.compare(&b) })
	if l.first == nil {
		l.first = []RouteDifference{}
	}
	return Unequal{l.n, slices.Clip(l.first[:min(len(l.first), mostListed)])}
}

// Differences returns how many routes differ.
func (c *TableComparison) Differences() int64 {
	return c.Missing.Count + c.Extra.Count + c.Different.Count + c.Unsorted
}

// Result returns what was found. Waited is how long it was looked on after the
// first pass.
func (m *Match) Result(collector string, waited time.Duration) *TableComparison {
	c := &TableComparison{
		Collector: collector, Equal: m.equal, First: m.began, Waited: waited.Seconds(), Unclear: m.doubt, Others: m.other, Unsorted: m.over,
		Without: slices.Clone(m.without), Routers: []string{},
	}
	var missing, extra, different listing
	for k, o := range m.open {
		kafka := m.kafka(&k)
		d := difference(k, o.collector, kafka.value)
		d.told(m.l, kafka.from)
		switch {
		case kafka.value == (value{}):
			missing.add(d, mostOpen)
		case o.collector == (value{}):
			extra.add(d, mostOpen)
		default:
			different.add(d, mostOpen)
		}
	}
	c.Missing, c.Extra, c.Different, c.NotMentioned = missing.result(), extra.result(), different.result(), m.quiet.result()
	for _, r := range m.known {
		if r != nil {
			c.Routers = append(c.Routers, r.name)
		}
	}
	for name := range m.l.routers {
		if _, ok := m.known[canonicalAddr(name)]; !ok {
			c.Without = append(c.Without, Without{name, "the collector has not heard it", false})
		}
	}
	slices.SortFunc(c.Routers, compareAddrs)
	slices.SortFunc(c.Without, func(a, b Without) int { return compareAddrs(a.Router, b.Router) })
	return c
}
