package control

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/pmacct"
	"github.com/bmpha/bmpha/pkg/table"
)

// A RouterTable is what a collector knows of the routes of a router.
type RouterTable struct {
	Router  string       // identity across collectors
	Address netip.Addr   // of its session; bmp_router in records
	State   string       // of its session: SessionUp, SessionDown
	Table   *table.Table // nil if Off says why there is none
	Off     string       // in words for people
	// Hashes says that Table keeps hashes in place of attributes. Its peers can be
	// shown, its routes cannot.
	Hashes bool
}

// States of the session of a RouterTable. Routes of one that is down are what the
// router said last.
const (
	SessionUp   = "up"
	SessionDown = "down"
)

// Headers and trailers of an answer that is a stream. An answer that ends without
// them is not whole.
const (
	trailerFound = "Bmpha-Found" // lines
	trailerMore  = "Bmpha-More"  // true when there are more than the limit
	// Routers, joined by commas: those that were asked and keep no table, and, where
	// nothing was found, those that have not ended telling theirs.
	headerWithout = "Bmpha-Without"
	trailerTold   = "Bmpha-Telling"
)

// Bounds of what queries cost the collector.
const (
	maxQueries = 8       // at a time
	stepRoutes = 512     // looked at while a table is locked
	stepBytes  = 1 << 20 // of lines made meanwhile, unless a single one is longer
	stepRIBs   = 64      // in which a prefix is looked up meanwhile
	mergedRIBs = 256     // of which routes are given in the order of prefixes
	// readPatience is how long a client may take to read a step's lines: an
	// operator's pager waits for the operator.
	readPatience = 10 * time.Minute
)

var (
	errNoTable = fmt.Errorf("%w: this collector keeps no routes; set table: full in its configuration", ErrNoTable)
	errBusy    = fmt.Errorf("%d queries are being answered already", maxQueries)
)

// tablesOf returns the tables that a query is about, in the order of routers.
func (s *Server) tablesOf(router string, routes bool) ([]RouterTable, error) {
	if s.tables == nil {
		return nil, errNoTable
	}
	all := slices.SortedFunc(slices.Values(s.tables()), func(a, b RouterTable) int { return strings.Compare(a.Router, b.Router) })
	if routes && slices.ContainsFunc(all, func(t RouterTable) bool { return t.Hashes }) {
		return nil, errNoTable
	}
	if router == "" {
		return all, nil
	}
	addr, _ := parseAddr(router)
	some := slices.DeleteFunc(slices.Clone(all), func(t RouterTable) bool {
		return t.Router != router && (!addr.IsValid() || t.Address.Unmap() != addr)
	})
	if len(some) == 0 {
		names := make([]string, len(all))
		for i, t := range all {
			names[i] = clean(t.Router)
		}
		text := fmt.Sprintf("no table of router %s; ", clean(router))
		if len(all) == 0 {
			return nil, &NotFound{text + "no router has connected yet"}
		}
		return nil, &NotFound{text + "there are those of " + list(names, 10)}
	}
	return some, nil
}

// admit counts a query in, or says that there are too many.
func (s *Server) admit() bool {
	select {
	case s.queries <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s *Server) serveRoutes(w http.ResponseWriter, r *http.Request) {
	v, err := url.ParseQuery(r.URL.RawQuery)
	var q Query
	if err == nil {
		q, err = ParseQuery(v)
	}
	if err != nil {
		fail(w, http.StatusBadRequest, codeBad, err)
		return
	}
	tables, err := s.tablesOf(q.Router, true)
	if err != nil {
		failLookup(w, err)
		return
	}
	if !s.admit() {
		fail(w, http.StatusServiceUnavailable, codeBusy, errBusy)
		return
	}
	defer func() { <-s.queries }()
	var without, telling []string
	for i := range tables {
		if tables[i].Table == nil {
			without = append(without, fmt.Sprintf("%s (%s)", tables[i].Router, tables[i].Off))
		}
	}
	if len(without) > 0 {
		w.Header().Set(headerWithout, clean(list(without, 10)))
	}
	tables = slices.DeleteFunc(tables, func(t RouterTable) bool { return t.Table == nil })
	out := newStream(w, r)
	defer out.close()
	look := search{q: &q, left: q.Limit, write: out.write}
	for i := range tables {
		if err := look.table(r.Context(), &tables[i]); err != nil {
			panic(http.ErrAbortHandler) // the client is gone, or must not take this for all
		}
		if look.more {
			break
		}
	}
	if look.found == 0 {
		for i := range tables {
			if incomplete(tables[i].Table) {
				telling = append(telling, tables[i].Router)
			}
		}
		out.w.Header().Set(trailerTold, clean(list(telling, 10)))
	}
	out.end(look.found, look.more)
}

// incomplete reports whether a dump has begun in t, or is awaited, and has not ended.
func incomplete(t *table.Table) bool {
	for _, p := range t.Peers() {
		for _, r := range p.RIBs {
			if slices.ContainsFunc(r.Families, func(f table.FamilyStatus) bool { return f.State == table.Begin || f.State == table.Dump }) {
				return true
			}
		}
	}
	return false
}

// failLookup answers that there is nothing to look at.
func failLookup(w http.ResponseWriter, err error) {
	if errors.Is(err, ErrNoTable) {
		fail(w, http.StatusConflict, codeNoTable, err)
		return
	}
	fail(w, http.StatusNotFound, codeNotFound, err)
}

// A stream is an answer of many lines.
type stream struct {
	w    http.ResponseWriter
	rc   *http.ResponseController
	stop func() bool
}

// newStream begins an answer. The client is told at once that it will get one.
func newStream(w http.ResponseWriter, r *http.Request) *stream {
	s := &stream{w: w, rc: http.NewResponseController(w)}
	// Until the answer ends the connection is read from, so that we notice when
	// nobody waits any more, and a write does not outlast that.
	_ = s.rc.SetReadDeadline(time.Time{})
	_ = s.rc.SetWriteDeadline(time.Now().Add(readPatience))
	s.stop = context.AfterFunc(r.Context(), func() { _ = s.rc.SetWriteDeadline(time.Unix(1, 0)) })
	h := w.Header()
	h.Set("Content-Type", "application/x-ndjson")
	h.Set("Cache-Control", "no-store")
	h.Set("Trailer", trailerFound+", "+trailerMore+", "+trailerTold)
	w.WriteHeader(http.StatusOK)
	_ = s.rc.Flush()
	return s
}

func (s *stream) close() { s.stop() }

// write hands whole lines to the client.
func (s *stream) write(ctx context.Context, b []byte) error {
	_ = s.rc.SetWriteDeadline(time.Now().Add(readPatience))
	if err := ctx.Err(); err != nil { // whose deadline may have been set just before
		return err
	}
	if _, err := s.w.Write(b); err != nil {
		return err
	}
	return s.rc.Flush()
}

func (s *stream) end(found int, more bool) {
	s.w.Header().Set(trailerFound, strconv.Itoa(found))
	s.w.Header().Set(trailerMore, strconv.FormatBool(more))
}

// A search answers one query from one table after the other. It holds the lock of
// a table for a step at a time, and none while it writes.
type search struct {
	q     *Query
	left  int // routes that the limit leaves, if there is one
	found int
	more  bool // there are more than the limit
	write func(context.Context, []byte) error

	t    *RouterTable
	head []byte // what each line about the router begins with
	path []byte
	step
}

// A step is what is found while a table is locked.
type step struct {
	buf   []byte
	lines int
	full  bool // buf is, and the last route is not in it
}

// A scope is a part of a query that one walk can do.
type scope struct {
	family bgp.Family // zero means all
	rd     *[8]byte   // of the routes
	of     *[8]byte   // distinguisher of the peers
}

// scopes divides q into walks.
func (q *Query) scopes() []scope {
	if q.RD == nil && q.Family == "" {
		return []scope{{}}
	}
	var all []scope
	for _, f := range families(q.Family) {
		s := scope{family: f}
		switch {
		case q.Prefix.IsValid() && q.Prefix.Addr().BitLen() != f.Bits():
			continue
		case q.RD != nil && f.SAFI == bgp.SAFIVPN:
			s.rd = q.RD
		case q.RD != nil:
			s.of = q.RD
		}
		all = append(all, s)
	}
	return all
}

// wants reports whether a RIB is among those that q and s are about.
func (q *Query) wants(s *scope, r *table.RIB) bool {
	return (q.RIB == "" || int(r.Kind) < len(RIBWords) && RIBWords[r.Kind] == q.RIB) &&
		(!q.Peer.IsValid() || r.Peer.Address() == q.Peer) &&
		(s.of == nil || r.Peer.Distinguisher == *s.of)
}

// table goes through the table of one router.
func (s *search) table(ctx context.Context, t *RouterTable) error {
	s.t = t
	s.head = routerHead(s.head[:0], t)
	for _, part := range s.q.scopes() {
		if err := s.scope(ctx, &part); err != nil || s.more {
			return err
		}
	}
	return ctx.Err()
}

func (s *search) scope(ctx context.Context, part *scope) error {
	// A walk that takes no RIB only lists them.
	var ribs []*table.RIB
	s.t.Table.Walk(&table.Walk{RIB: func(r *table.RIB) bool {
		if s.q.wants(part, r) {
			ribs = append(ribs, r)
		}
		return false
	}}, 1, nil)
	w := table.Walk{
		RIB:    func(r *table.RIB) bool { return s.q.wants(part, r) },
		Family: part.family, RD: part.rd, Withdrawn: s.q.Withdrawn,
	}
	if s.q.Prefix.IsValid() && s.q.Match != table.Longer {
		for some := range slices.Chunk(ribs, stepRIBs) {
			if err := s.lookup(ctx, w, some); err != nil || s.more {
				return err
			}
		}
		return nil
	}
	if len(ribs) == 0 {
		return nil
	}
	w.Within = s.q.Prefix
	// People want the routes to a prefix beside each other. Merging very many RIBs
	// would hold the lock for too long.
	w.ByPrefix = len(ribs) <= mergedRIBs
	return s.walk(ctx, w)
}

// lookup looks a prefix up in some RIBs. When that finds more than a step may have,
// it is done again, behind what was found before.
func (s *search) lookup(ctx context.Context, w table.Walk, ribs []*table.RIB) error {
	some := make(map[*table.RIB]struct{}, len(ribs))
	for _, r := range ribs {
		some[r] = struct{}{}
	}
	w.RIB = func(r *table.RIB) bool { _, ok := some[r]; return ok }
	for skip := 0; ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		seen := 0
		s.t.Table.Lookup(s.q.Prefix, s.q.Match, w, func(r *table.Route) bool {
			if seen++; seen > skip {
				s.take(r)
			}
			return !s.full && !s.more
		})
		again := s.full
		if err := s.flush(ctx); err != nil || !again || s.more {
			return err
		}
		skip = seen - 1
	}
}

// walk goes through all routes of a scope. A step that finds too much is done
// again, shorter.
func (s *search) walk(ctx context.Context, w table.Walk) error {
	for n := stepRoutes; ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		before := w
		going := s.t.Table.Walk(&w, n, s.take)
		if s.full {
			s.undo()
			w, n = before, max(1, n/4)
			continue
		}
		if err := s.flush(ctx); err != nil || !going || s.more {
			return err
		}
		n = min(stepRoutes, 2*n)
	}
}

// take adds a line about r if the query wants it.
func (s *search) take(r *table.Route) {
	if s.full || s.more || s.q.OriginAS != 0 && !s.comesFrom(r, s.q.OriginAS) {
		return
	}
	if s.q.Limit > 0 && s.left == 0 {
		s.more = true
		return
	}
	end := len(s.buf)
	s.buf = appendRouteLine(append(s.buf, s.head...), r)
	if s.lines > 0 && len(s.buf) > stepBytes {
		s.buf = s.buf[:end]
		s.full = true
		return
	}
	s.lines++
	s.left--
}

// undo forgets what the step has found.
func (s *search) undo() {
	s.left += s.lines
	s.more = false
	s.step = step{buf: s.buf[:0]}
}

// flush writes what the step has found. Nothing is locked.
func (s *search) flush(ctx context.Context) error {
	var err error
	if s.lines > 0 {
		err = s.write(ctx, s.buf)
	}
	s.found += s.lines
	s.step = step{buf: s.buf[:0]}
	return err
}

// comesFrom reports whether as is the last of r's AS path, or one of the last if the
// path ends with a set.
func (s *search) comesFrom(r *table.Route, as uint32) bool {
	var path, path4 bgp.Attr
	for b := r.Attrs; len(b) >= 4; {
		n := int(binary.BigEndian.Uint16(b[2:]))
		if n > len(b)-4 {
			break
		}
		a := bgp.Attr{Flags: b[0], Type: b[1], Value: b[4 : 4+n]}
		switch a.Type {
		case bgp.AttrASPath:
			path = a
		case bgp.AttrAS4Path:
			path4 = a
		}
		b = b[4+n:]
	}
	four := bgp.FourOctetPath(path, !r.TwoOctet)
	if path4.Type != 0 && r.TwoOctet && !four {
		if merged, err := bgp.MergeAS4Path(s.path[:0], path, path4); err == nil {
			s.path = merged
			path.Value, four = merged, true
		}
	}
	var last bgp.Segment
	n := 0
	for w := bgp.Path(path, four); w.Next(); {
		last = w.Segment()
		n = last.Len()
	}
	if n == 0 {
		return false
	}
	if last.Type != bgp.ASSet && last.Type != bgp.ASConfedSet {
		return last.AS(n-1) == as
	}
	for i := range n {
		if last.AS(i) == as {
			return true
		}
	}
	return false
}

// A Route is a route as a query gets it, a JSON object in one line. The keys that
// records have as well have the same values; see package pmacct. Attributes that a
// route does not have are absent.
type Route struct {
	Router   string `json:"router"` // identity across collectors
	Address  string `json:"bmp_router,omitempty"`
	Session  string `json:"session"` // of the router: up, down
	PeerIP   string `json:"peer_ip"`
	PeerAS   uint32 `json:"peer_asn"`
	BGPID    string `json:"bgp_id"`
	RIB      string `json:"rib"` // one of RIBWords
	RIBType  string `json:"bmp_rib_type"`
	AFI      uint16 `json:"afi"`
	SAFI     uint8  `json:"safi"`
	Prefix   string `json:"ip_prefix"`
	PathID   uint32 `json:"as_path_id"`
	NextHop  string `json:"bgp_nexthop"`
	ASPath   string `json:"as_path"`
	Comms    string `json:"comms"`
	ExtComms string `json:"ecomms"`
	LgComms  string `json:"lcomms"`
	Origin   string `json:"origin"` // i, e or u
	// LocalPref and MED are nil without the attribute.
	LocalPref *uint32 `json:"local_pref"`
	MED       *uint32 `json:"med"`
	AIGP      int64   `json:"aigp"`
	LabelSID  uint32  `json:"psid_li"`
	OTC       uint32  `json:"otc"`
	// RD is the distinguisher of the route, else of the peer; RDOrigin is bgp or bmp.
	RD       string `json:"rd"`
	RDOrigin string `json:"rd_origin"`
	Label    string `json:"mpls_label"`
	// Timestamp is when the router says that it said so, zero if it does not.
	Timestamp time.Time `json:"timestamp"`
	Received  time.Time `json:"received"`
	Stale     bool      `json:"stale"`     // of the session before, and not yet mentioned in this one
	Withdrawn bool      `json:"withdrawn"` // and kept nevertheless
}

// routerHead begins a line with the members that tell the router.
func routerHead(d []byte, t *RouterTable) []byte {
	name, _ := json.Marshal(t.Router) // cannot fail
	d = append(append(d, `{"router": `...), name...)
	if t.Address.IsValid() {
		d = append(d, `, "bmp_router": "`...)
		d = t.Address.Unmap().WithZone("").AppendTo(d)
		d = append(d, '"')
	}
	d = append(d, `, "session": "`...)
	d = append(d, cmp.Or(t.State, SessionUp)...)
	return append(d, '"')
}

// recordRIBs are the words of records for tables, by bmp.RIB.
var recordRIBs = [len(RIBWords)]string{
	bmp.AdjRIBInPre: "Adj-Rib-In Pre-Policy", bmp.AdjRIBInPost: "Adj-Rib-In Post-Policy",
	bmp.AdjRIBOutPre: "Adj-Rib-Out Pre-Policy", bmp.AdjRIBOutPost: "Adj-Rib-Out Post-Policy",
	bmp.LocRIB: "Loc-Rib",
}

// appendRouteLine appends the rest of the line about r, with its line feed.
func appendRouteLine(d []byte, r *table.Route) []byte {
	d = append(d, `, "peer_ip": "`...)
	d = r.RIB.Peer.Address().AppendTo(d)
	d = append(d, `", "peer_asn": `...)
	d = strconv.AppendUint(d, uint64(r.RIB.AS), 10)
	d = append(d, `, "bgp_id": "`...)
	d = netip.AddrFrom4(r.RIB.BGPID).AppendTo(d)
	if int(r.RIB.Kind) < len(RIBWords) {
		d = append(d, `", "rib": "`...)
		d = append(d, RIBWords[r.RIB.Kind]...)
		d = append(d, `", "bmp_rib_type": "`...)
		d = append(d, recordRIBs[r.RIB.Kind]...)
	}
	d = append(d, '"')
	if r.Family.SAFI != bgp.SAFIVPN && r.RIB.Peer.Distinguisher != [8]byte{} {
		d = append(d, `, "rd": "`...)
		d = append(d, rdText(r.RIB.Peer.Distinguisher)...)
		d = append(d, `", "rd_origin": "bmp"`...)
	}
	d = append(d, ", "...)
	d = pmacct.AppendRoute(d, r)
	if r.Sec != 0 {
		d = append(d, `, "timestamp": "`...)
		d = time.Unix(int64(r.Sec), int64(min(r.Usec, 999_999))*1000).UTC().AppendFormat(d, rfc3339Micro)
		d = append(d, '"')
	}
	d = append(d, `, "received": "`...)
	d = time.UnixMicro(r.Arrival).UTC().AppendFormat(d, rfc3339Micro)
	d = append(d, `", "stale": `...)
	d = strconv.AppendBool(d, r.Stale)
	d = append(d, `, "withdrawn": `...)
	d = strconv.AppendBool(d, r.Withdrawn)
	return append(d, "}\n"...)
}

// rfc3339Micro is RFC 3339 with microseconds.
const rfc3339Micro = "2006-01-02T15:04:05.000000Z07:00"
