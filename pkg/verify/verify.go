// Package verify judges what stands in a Kafka topic of BMP records: who sent
// what and when, what was repeated or out of order, and whether the table that a
// consumer builds from it is the one that the router has.
//
// What it promises:
//
//   - A Ledger takes the records of a topic one by one, in pmacct's JSON of
//     either dialect (1.7.7 or 1.8), with bmpha's header or without, and keeps
//     only the tables, one hash for each route and a bounded list of findings.
//   - The table is that of [replay.Consumer], the model consumer. It can begin
//     with a dump of the router's table.
//   - A Match compares it with the table of a running collector, whose routers go
//     on talking: what differs only for a moment is no difference.
//   - Nothing that a topic or a file holds makes it fail other than by an error
//     that says where; records that it cannot read are counted and named.
//   - Attributes are compared where both sides tell them. Known ways in which a
//     router's BMP differs from its own display are no difference (FRR puts its
//     own AS number before the path of an external peer).
//
// It is pure logic: it reads what it is given and asks nobody.
package verify

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/bmpha/bmpha/pkg/record"
	"github.com/bmpha/bmpha/pkg/replay"
)

// A Record is what a Ledger needs of a Kafka record. The byte slices are read
// during the call only.
type Record struct {
	Partition int32
	Offset    int64
	Time      time.Time // the Kafka record's own timestamp
	Value     []byte
	Header    []byte // bmpha's, nil without
}

// Options say what a Ledger looks at. The zero value looks at everything.
type Options struct {
	// Router is the only router to look at, as in bmp_router; the zero value
	// means all.
	Router netip.Addr
	// Within is how soon after the one before an equal record without hashes in
	// a header counts as a repeat; 0 means DefaultWithin.
	Within time.Duration
	// Partial says that what a router said before the first record is not known, but
	// for that of a dump. It costs memory for each route that was withdrawn.
	Partial bool
}

// DefaultWithin is longer than what a native collector holds and repeats.
const DefaultWithin = 30 * time.Second

// Bounds of what a report lists of each sort; everything is counted.
const (
	mostFaults = 1000   // of each router
	mostStints = 10_000 // of each router
	mostBad    = 20     // records that could not be read
	mostTypes  = 50     // of each router
)

// A Ledger is what is known of a topic so far. It is not safe for concurrent use.
type Ledger struct {
	o       Options
	routers map[string]*router
	report  Report
	senders map[senderID]uint32 // their numbers, from 1
	names   []Sender            // by number; the first is nobody
	latest  uint32              // number of the one who has sent last
	key     []byte              // scratch
	value   []byte              // scratch
}

// New returns an empty Ledger.
func New(o Options) *Ledger {
	if o.Within == 0 {
		o.Within = DefaultWithin
	}
	return &Ledger{o: o, routers: make(map[string]*router), senders: make(map[senderID]uint32), names: make([]Sender, 1)}
}

// router is what is known of one router.
type router struct {
	report RouterReport
	table  routes
	peers  map[replay.Peer]bool // whether it is up
	lives  map[string]uint32    // by a peer's address: times that it came up or went down
	last   map[routeKey]word
	opened map[opener]opening
	places map[place]position
	tokens map[int32]uint64  // by partition, the largest takeover token
	stint  map[int32]int     // by partition, index in report.Senders of the last one; -1 when it is not listed
	newest map[int32]*sentAt // by partition
	seams  map[int32]*seam   // by partition, behind the last takeover
	tail   tail
}

type routeKey struct {
	hash   uint64
	hashed bool // by the sender, in the header
}

// A word is the last that was said about a route.
type word struct {
	value  uint64
	at     int64 // ms
	life   uint32
	sender uint32 // without header
	from   origin // with header
	seq    int64  // number among the router's records
}

// An opener is a life of a collector to which a router tells a peer.
type opener struct {
	instance uint64
	peer     string // its address
}

// An opening is the last Peer Up of an opener, in what session it was and as which of
// the router's records it came.
type opening struct {
	session uint32
	seq     int64
}

type origin struct {
	instance, message uint64
	session           uint32
}

// A place is where the records of one session are in order.
type place struct {
	partition       int32
	session         uint32
	instance, token uint64
}

type position struct {
	message uint64
	index   uint16
}

// Record takes one record. Records of one partition come in the order of their
// offsets.
func (l *Ledger) Record(r Record) {
	l.report.Records++
	f, ok := scan(r.Value)
	if !ok {
		l.bad(r, "not a JSON object")
		return
	}
	if len(f.router) == 0 {
		l.report.Foreign++
		return
	}
	if l.o.Router.IsValid() && !sameAddr(string(f.router), l.o.Router) {
		l.report.Skipped++
		return
	}
	rt := l.routers[string(f.router)]
	if rt == nil {
		rt = newRouter(string(f.router))
		rt.table.partial = l.o.Partial
		l.routers[rt.report.Router] = rt
	}
	var header *record.Header
	var badHeader error
	if r.Header != nil {
		h, err := record.ParseHeader(r.Header)
		if header, badHeader = &h, err; err != nil {
			header = nil
		}
	}
	if err := rt.table.record(r.Value, source{r.Time.UnixMilli(), l.sender(header, f.writer)}); err != nil {
		l.bad(r, err.Error())
		return
	}
	if badHeader != nil {
		l.bad(r, badHeader.Error())
		return
	}
	rt.count(&f, &r)
	rt.sender(&f, &r, header)
	again := false
	if header != nil {
		again = rt.takeover(l, &f, &r, header)
		rt.order(&f, &r, header)
	}
	rt.life(&f, header, again)
	if len(f.prefix) > 0 && string(f.event) == "log" {
		l.repeat(rt, &f, &r, header)
	}
}

// A senderID tells senders apart: by their headers, else by their writer_id.
type senderID struct {
	instance, token uint64
	writer          string
}

// mostSenders is more than there can be in a sound topic.
const mostSenders = 1 << 20

// sender returns the number of who sent a record, 0 where there are too many.
func (l *Ledger) sender(h *record.Header, writer []byte) uint32 {
	var n uint32
	if h != nil {
		n = l.senders[senderID{instance: h.Instance, token: h.Token}]
	} else {
		n = l.senders[senderID{writer: string(writer)}]
	}
	if n == 0 && len(l.names) < mostSenders {
		n = uint32(len(l.names))
		if h != nil {
			l.senders[senderID{instance: h.Instance, token: h.Token}] = n
			l.names = append(l.names, senderIn(h, writer))
		} else {
			l.senders[senderID{writer: string(writer)}] = n
			l.names = append(l.names, Sender{Writer: string(writer)})
		}
	}
	l.latest = n
	return n
}

func sameAddr(text string, want netip.Addr) bool {
	a, err := netip.ParseAddr(text)
	return err == nil && a.Unmap() == want.Unmap()
}

func newRouter(name string) *router {
	return &router{
		report: RouterReport{Router: name, Types: make(map[string]int64)},
		peers:  make(map[replay.Peer]bool), lives: make(map[string]uint32), last: make(map[routeKey]word),
		opened: make(map[opener]opening), places: make(map[place]position), tokens: make(map[int32]uint64), stint: make(map[int32]int),
		newest: make(map[int32]*sentAt), seams: make(map[int32]*seam),
	}
}

func (l *Ledger) bad(r Record, why string) {
	l.report.Unreadable++
	if len(l.report.UnreadableFirst) < mostBad {
		l.report.UnreadableFirst = append(l.report.UnreadableFirst, Fault{Partition: r.Partition, Offset: r.Offset, Time: r.Time, What: why})
	}
}

func (rt *router) count(f *fields, r *Record) {
	n := &rt.report
	n.Records++
	kind := f.kind()
	if _, known := n.Types[kind]; !known && len(n.Types) >= mostTypes {
		kind = "other"
	}
	n.Types[kind]++
	if !slices.Contains(n.Partitions, r.Partition) {
		n.Partitions = append(n.Partitions, r.Partition)
	}
}

// sender notes who sent.
func (rt *router) sender(f *fields, r *Record, h *record.Header) {
	s := Stint{Partition: r.Partition, First: r.Time, Writer: string(f.writer)}
	if h != nil {
		s.Instance, s.Token = fmt.Sprintf("%016x", h.Instance), h.Token
	}
	at, ok := rt.stint[r.Partition]
	if ok && at >= 0 {
		if last := &rt.report.Senders[at]; last.same(&s) {
			last.add(r.Time, h)
			return
		}
	}
	if len(rt.report.Senders) == mostStints {
		rt.stint[r.Partition] = -1
		rt.report.SendersUnlisted++
		return
	}
	s.add(r.Time, h)
	rt.stint[r.Partition] = len(rt.report.Senders)
	rt.report.Senders = append(rt.report.Senders, s)
}

func (rt *router) fault(f *fields, r *Record, h *record.Header, format string, args ...any) {
	rt.report.Faults++
	if len(rt.report.FaultsFirst) < mostFaults {
		rt.report.FaultsFirst = append(rt.report.FaultsFirst, Fault{
			Partition: r.Partition, Offset: r.Offset, Time: r.Time, Sender: new(senderIn(h, f.writer)), What: fmt.Sprintf(format, args...),
		})
	}
}

// order finds what a sender may never do: go back without saying so, or send
// after another has taken over.
func (rt *router) order(f *fields, r *Record, h *record.Header) {
	p := place{r.Partition, h.Session, h.Instance, h.Token}
	now := position{h.Message, h.Index}
	before, seen := rt.places[p]
	if seen && h.Flags&record.FlagReplayed == 0 {
		switch {
		case now == before && h.Index == math.MaxUint16: // it does not count further
		case now == before:
			rt.fault(f, r, h, "message %d.%d of session %d of %016x came twice and is not flagged as replayed",
				now.message, now.index, h.Session, h.Instance)
		case now.message < before.message || now.message == before.message && now.index < before.index:
			rt.fault(f, r, h, "message %d.%d of session %d of %016x came after %d.%d and is not flagged as replayed",
				now.message, now.index, h.Session, h.Instance, before.message, before.index)
		}
	}
	rt.places[p] = now
	if largest := rt.tokens[r.Partition]; h.Token < largest {
		if h.Flags&record.FlagShared == 0 {
			rt.fault(f, r, h, "%016x sent with takeover token %d after one with %d had taken over", h.Instance, h.Token, largest)
		}
	} else {
		rt.tokens[r.Partition] = h.Token
	}
}

// life follows peers as they come and go. What is announced after a peer came up
// is needed, even if it was said before. A Peer Up that was told again is no new life.
func (rt *router) life(f *fields, h *record.Header, again bool) {
	up, down := string(f.msg) == "peer_up", string(f.msg) == "peer_down"
	if (up || down) && !again && (h == nil || h.Flags&(record.FlagReplayed|record.FlagShared) == 0) {
		rt.lives[string(f.peer)]++
	}
	if up && h != nil {
		rt.opened[opener{h.Instance, string(f.peer)}] = opening{h.Session, rt.report.Records}
	}
	if len(f.peer) == 0 || string(f.rdOrigin) == "bgp" {
		return // a VPN route does not tell its peer's distinguisher
	}
	id := replay.Peer{Addr: string(f.peer), Distinguisher: string(f.rd) + string(f.pd), Loc: f.loc()}
	switch was, known := rt.peers[id]; {
	case up || !known && !down:
		rt.peers[id] = true
	case down && (was || !known):
		rt.peers[id] = false
	}
}

// repeat finds routes that are told again.
func (l *Ledger) repeat(rt *router, f *fields, r *Record, h *record.Header) {
	w := word{at: r.Time.UnixMilli(), life: rt.lives[string(f.peer)], seq: rt.report.Records}
	var k routeKey
	if h != nil {
		w.from = origin{h.Instance, h.Message, h.Session}
	} else {
		w.sender = l.latest
	}
	if h != nil && h.Keyed() {
		k, w.value = routeKey{h.KeyHash, true}, h.ValueHash
	} else {
		l.key, l.value = f.appendKey(l.key[:0]), f.appendValue(l.value[:0], r.Value)
		k, w.value = routeKey{hash: xxhash.Sum64(l.key)}, xxhash.Sum64(l.value)
	}
	before, seen := rt.last[k]
	rt.last[k] = w
	if !seen || before.value != w.value || before.life != w.life {
		return
	}
	if !k.hashed && w.at-before.at > l.o.Within.Milliseconds() {
		return
	}
	n := &rt.report.Repeats
	switch {
	case h != nil && h.Flags&record.FlagReplayed != 0:
		n.Replayed++
	case h != nil && h.Flags&record.FlagShared != 0:
		n.Shared++
	case w.sender == before.sender && w.from.instance == before.from.instance && !(h != nil && w.from == before.from):
		n.Router++
	case h != nil && rt.anew(h, f, &before):
		n.Told++
	default:
		n.Other++
	}
}

// anew tells whether the session of a record has told a Peer Up of the record's peer
// since the word before about the route: then the route is part of a table that the
// router tells this collector, not of what it had said before.
func (rt *router) anew(h *record.Header, f *fields, before *word) bool {
	o, ok := rt.opened[opener{h.Instance, string(f.peer)}]
	return ok && o.session == h.Session && o.seq > before.seq
}

// Report returns what was found so far. Ask for it once, at the end: it counts
// the tables.
func (l *Ledger) Report() *Report {
	rep := l.report
	for _, rt := range l.routers {
		n := rt.report
		n.Routes = rt.table.count()
		n.Peers = len(rt.peers)
		for _, up := range rt.peers {
			if up {
				n.PeersUp++
			}
		}
		n.Partitions = slices.Sorted(slices.Values(n.Partitions))
		n.Senders = slices.Clone(n.Senders)
		slices.SortStableFunc(n.Senders, func(a, b Stint) int { return a.First.Compare(b.First) })
		rep.Routers = append(rep.Routers, n)
	}
	slices.SortFunc(rep.Routers, func(a, b RouterReport) int { return compareAddrs(a.Router, b.Router) })
	return &rep
}

// Routes returns the table of a router, as in bmp_router, and whether any record
// was about it.
func (l *Ledger) Routes(router string) (map[replay.Key]string, bool) {
	rt := l.routers[router]
	if rt == nil {
		return nil, false
	}
	return rt.table.keyed(router), true
}

func compareAddrs(a, b string) int {
	x, errA := netip.ParseAddr(a)
	y, errB := netip.ParseAddr(b)
	if errA != nil || errB != nil {
		return strings.Compare(a, b)
	}
	return x.Compare(y)
}

// A Report is what a Ledger found.
type Report struct {
	Records         int64          `json:"records"`
	Foreign         int64          `json:"foreign"` // JSON, but not about a BMP router
	Skipped         int64          `json:"skipped"` // of other routers than the one asked for
	Unreadable      int64          `json:"unreadable"`
	UnreadableFirst []Fault        `json:"unreadable_first,omitempty"`
	Routers         []RouterReport `json:"routers"`
}

// Faults returns how many things were found that should never be there.
func (r *Report) Faults() int64 {
	n := r.Unreadable
	for i := range r.Routers {
		n += r.Routers[i].Faults
	}
	return n
}

// A RouterReport is what was found of one router.
type RouterReport struct {
	Router     string           `json:"router"`
	Records    int64            `json:"records"`
	Types      map[string]int64 `json:"types"` // by log_type, bmp_msg_type or event_type
	Partitions []int32          `json:"partitions"`
	Peers      int              `json:"peers"`
	PeersUp    int              `json:"peers_up"` // as far as the records tell
	Routes     int              `json:"routes"`   // in the table that they make
	Repeats    Repeats          `json:"repeats"`

	// AtTakeovers is what came behind takeovers, Takeovers each of them, in their order
	// in each partition.
	AtTakeovers AtTakeovers `json:"at_takeovers"`
	Takeovers   []Takeover  `json:"takeovers,omitempty"`

	Faults      int64   `json:"faults"`
	FaultsFirst []Fault `json:"faults_first,omitempty"`

	// Senders are in the order of their first record.
	Senders         []Stint `json:"senders"`
	SendersUnlisted int64   `json:"senders_unlisted,omitempty"` // records of stints beyond the list
}

// Repeats count records that told a route's last word again.
type Repeats struct {
	Replayed int64 `json:"replayed"` // flagged: held while another was the sender, or sent again
	Shared   int64 `json:"shared"`   // flagged: more than one sender was possible
	Router   int64 `json:"router"`   // by the same sender: the router itself said it again
	// Told is by another sender, without a flag, after a Peer Up of the peer in the same
	// session: the router told its table to this collector, too.
	Told int64 `json:"told"`
	// Other is by another sender, without a flag, and not so. Tables that the router told
	// are among them where the sender left the Peer Up out, because it was in Kafka.
	Other int64 `json:"other"`
}

// Sum returns all of them.
func (r Repeats) Sum() int64 { return r.Replayed + r.Shared + r.Router + r.Told + r.Other }

// A Stint is a run of records of one sender in one partition.
type Stint struct {
	Instance  string    `json:"instance,omitempty"` // 16 hexadecimal digits, from the header
	Token     uint64    `json:"token,omitempty"`
	Writer    string    `json:"writer,omitempty"` // writer_id of the first
	Partition int32     `json:"partition"`
	First     time.Time `json:"first"`
	Last      time.Time `json:"last"`
	Records   int64     `json:"records"`
	Replayed  int64     `json:"replayed"` // flagged as such
	Shared    int64     `json:"shared"`   // flagged as such
}

func (s *Stint) same(o *Stint) bool {
	return s.Instance == o.Instance && s.Token == o.Token && (s.Instance != "" || s.Writer == o.Writer)
}

func (s *Stint) add(at time.Time, h *record.Header) {
	s.Records++
	s.Last = at
	if h != nil && h.Flags&record.FlagReplayed != 0 {
		s.Replayed++
	}
	if h != nil && h.Flags&record.FlagShared != 0 {
		s.Shared++
	}
}

// A Fault is what is wrong with one record.
type Fault struct {
	Partition int32     `json:"partition"`
	Offset    int64     `json:"offset"`
	Time      time.Time `json:"time"`
	Sender    *Sender   `json:"sender,omitempty"` // nil where there is no header
	What      string    `json:"what"`
}

func appendPart(dst, part []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(part)))
	return append(dst, part...)
}
