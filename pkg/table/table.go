// Package table keeps what a router has said about its routes, small enough for
// ten full tables in a gigabyte: for replaying it, for telling news from
// repetition, for withdrawals that say what was withdrawn, and for looking at.
//
// A Store belongs to a process and holds each distinct set of path attributes
// once, whichever routers sent it. A Table belongs to a router. Apply takes the
// router's messages and tells for each route what was known of it before and
// what is now; it reads messages as package pmacct does, down to what it leaves
// out, and keeps attributes in the form that the value hash there covers, so
// that two routes are equal here exactly if their hashes are there.
//
// A session that is opened again, or a peer that comes up again without having
// gone down, begins a generation: routes stay, and are stale until they are
// mentioned. At End-of-RIB, or after a quiet time that the caller decides on
// (Settle), stale routes are gone. Peer Down and Clear take routes away at once.
// In either case Tidy reports and releases them step by step: a message never
// takes longer because a peer had many routes.
//
// A table that only has to tell news from repetition keeps a hash of each
// route's attributes instead of them (Options.Hashes). A Store can have a limit
// (SetLimit); a table that meets it says so, and is given up with Close, in steps,
// which makes room for the others.
//
// The package does no I/O, starts no goroutine and reads no clock. A known
// route is changed without an allocation. Every input is bounded: by the limits
// below, by Options.MaxRoutes and Store.SetLimit, and by the length of a message.
//
// # Structure
//
// Each family of each RIB is a B+ tree in memory outside the heap, which the
// garbage collector neither scans nor counts: leaves of 64 routes, keys of 8
// bytes (IPv4) to 32 (IPv6 VPN) beside values of 32. The order of the keys is the
// order of dumps, and prefixes are looked up in it with no further index. A walk
// keeps the key that comes next and so goes on wherever the tree has changed.
//
// A gigabyte is in no cache, and a change of any route waits for memory rather
// than for the processor. What a message needs is therefore fetched before it
// is looked at, and keys are compared some at a time instead of one after the other.
//
// Weighed by BenchmarkStructure, with 500,000 random IPv4 prefixes and these
// values, on one of two busy cores (AMD EPYC, Go 1.26):
//
//	        update   memory       walk          a collection takes
//	tree    390 ns   60 B/route    7 ns/route    3 ms (as without)
//	map     165 ns  101 B/route   28 ns/route    3 ms
//	bart    300 ns   60 B/route  124 ns/route   14 ms
//
// A map is the fastest to update, but has no order, so that it can neither be
// looked up by longer and shorter prefixes nor walked in steps while it changes.
// bart's trie (v0.30) looks up as well, but
// knows no route distinguishers and path identifiers, is slow to walk, and is
// full of pointers: 10 million routes would cost the collector a quarter of a
// second of work each time.
package table

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"unsafe"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
)

// Options say what a table keeps.
type Options struct {
	// Withdrawn keeps routes that were withdrawn, with the time and without
	// attributes, until ForgetWithdrawn or a sweep.
	Withdrawn bool
	// Hashes keeps of each route's attributes and labels nothing but the value
	// hash. Same and Value.Hash are as without. Attrs is always nil, and so are
	// the Labels of what was kept; there is nothing to make messages of
	// (AppendMessage).
	Hashes bool
	// MaxRoutes bounds the table, withdrawn routes included; 0 means
	// DefaultMaxRoutes. A route above it is not kept, and Apply says so.
	MaxRoutes int
}

// Bounds of what one router can make a table remember.
const (
	DefaultMaxRoutes = 50_000_000
	maxPeers         = 100_000
	maxRIBs          = 200_000
	maxMessage       = 100_000   // bytes
	maxKept          = 256 << 20 // bytes of messages about peers
)

// A PeerID names a BGP peer of a router.
type PeerID struct {
	Addr          [16]byte // IPv4 in the last four bytes
	Distinguisher [8]byte  // zero unless the peer type is 1 or 3
	IPv6          bool
}

// Address returns the address of the peer.
func (id *PeerID) Address() netip.Addr {
	if id.IPv6 {
		return netip.AddrFrom16(id.Addr)
	}
	return netip.AddrFrom4([4]byte(id.Addr[12:]))
}

// IDOf returns the identity of the peer of a per-peer header: pmacct's, by
// address and distinguisher.
func IDOf(p *bmp.PerPeer) PeerID {
	id := PeerID{IPv6: p.IPv6()}
	if p.Type == bmp.PeerRD || p.Type == bmp.PeerLocRIB {
		id.Distinguisher = p.Distinguisher
	}
	if id.IPv6 {
		id.Addr = p.RawAddress
	} else {
		copy(id.Addr[12:], p.RawAddress[12:])
	}
	return id
}

// A peer is what a table knows of a BGP peer.
type peer struct {
	id        PeerID
	up        bool // in this session
	asn       uint32
	fourOctet bool
	addPath   [len(bgp.Families)]bool
	families  [len(bgp.Families)]bool // that both OPENs have
	first     []byte                  // the Peer Up that brought it up, and says how it is decoded
	ups       [][]byte                // Peer Ups of its BGP session as received, by RIB and OPENs
	stats     []byte                  // the last Statistics Report
	down      []byte                  // the last Peer Down, while down
	since     int64                   // arrival of the Peer Up or Peer Down
	statsAt   int64
	ribs      []*RIB

	resumption resumption
}

// kept returns how many bytes of messages are kept of p.
func (p *peer) kept() int {
	n := len(p.stats) + len(p.down)
	for _, m := range p.ups {
		n += len(m)
	}
	for _, m := range p.resumption.prior {
		n += len(m)
	}
	if p.first != nil && !slices.ContainsFunc(p.ups, func(m []byte) bool { return &m[0] == &p.first[0] }) {
		n += len(p.first)
	}
	return n
}

// A RIB is one table of one peer: what all its routes have in common. It never
// changes and may be kept.
type RIB struct {
	Peer  PeerID
	BGPID [4]byte
	Kind  bmp.RIB
	Type  byte   // of the peer
	AS    uint32 // of the peer, by the OPEN that it sent

	seq      uint64 // order of appearance
	gone     bool
	gen      uint32
	begun    uint32 // the first generation since StartOver
	peer     *peer
	families [len(bgp.Families)]*familyTable
}

type ribKey struct {
	peer  PeerID
	bgpID [4]byte
	kind  bmp.RIB
}

// A familyTable holds the routes of one family of a RIB.
type familyTable struct {
	tree
	rib       *RIB
	index     int // of the family
	addPath   bool
	state     State
	stale     int // entries of an older generation
	withdrawn int // entries that are only kept
	sweep     key // while in EndOfRIB: where the sweep goes on
	queued    bool
}

// words returns how long the keys of a family are.
func words(family int, addPath bool) int {
	n := [len(bgp.Families)]int{1, 1, 2, 3, 3, 4}[family]
	if family == 0 && addPath {
		n++
	}
	return n
}

// A Table is what one router has said. It is safe for concurrent use: Apply and
// the other methods that change it exclude each other and those that look, for
// the time of one message or of the routes asked for. Callbacks run under its
// lock and must not call the table.
type Table struct {
	store *Store
	opts  Options

	mu         sync.RWMutex
	closed     bool // by a Termination
	shut       bool // by Close
	initiation []byte
	peers      map[PeerID]*peer
	up         int // peers that are
	kept       int // bytes of messages about peers, those before Open included
	ribs       map[ribKey]*RIB
	order      []*RIB // by seq
	seq        uint64
	last       *RIB // of the last Route Monitoring
	routes     int  // announced
	entries    int  // withdrawn ones included
	progress   int64
	sweeps     []*familyTable // in EndOfRIB
	detached   []detached     // to be released
	pending    int            // entries of detached
	forget     position       // of ForgetWithdrawn

	apply applier
}

// NewTable returns an empty table of one router, in a session.
func NewTable(s *Store, o Options) *Table {
	if o.MaxRoutes == 0 {
		o.MaxRoutes = DefaultMaxRoutes
	}
	return &Table{store: s, opts: o, peers: make(map[PeerID]*peer), ribs: make(map[ribKey]*RIB)}
}

// A detached is routes that are gone and not yet reported.
type detached struct {
	f    *familyTable
	kind Kind
}

// A Kind is what happened to a route.
type Kind uint8

const (
	Announced   Kind = iota // the route was announced
	Withdrawn               // the route was withdrawn
	Marker                  // not a route: End-of-RIB of the family
	Swept                   // the route was not in the dump of its new generation
	PeerGone                // the peer went down, or did not come back
	SessionGone             // Clear
)

var kindNames = [...]string{"announced", "withdrawn", "end-of-rib", "swept", "peer gone", "session gone"}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// A Route is a route as it stands in a table. Its byte slices are valid during
// the callback that gets it.
type Route struct {
	RIB     *RIB
	Family  bgp.Family
	AddPath bool         // PathID was sent
	PathID  uint32       // zero without
	RD      [8]byte      // zero unless SAFI is 128
	Prefix  netip.Prefix // host bits as received; they do not tell routes apart
	Value
}

// A Value is what a router said about a route.
type Value struct {
	// Attrs are the path attributes in the form that the value hash of package
	// pmacct covers.
	Attrs  []byte
	Labels []byte // the label stack as received, three bytes each

	Sec, Usec uint32 // of the per-peer header
	Arrival   int64  // microseconds since the Unix epoch
	Flags     byte   // of the per-peer header
	TwoOctet  bool   // AS_PATH has two-octet AS numbers
	Classic   bool   // announced in the UPDATE's own field, not in MP_REACH_NLRI
	Withdrawn bool   // withdrawn, and kept because Options says so
	Stale     bool   // of a generation before, and not mentioned in this one

	hash uint64 // as kept tells
	kept hashed
}

// hashed tells what the hash of a value is of.
type hashed uint8

const (
	unhashed   hashed = iota
	attrsAlone        // of Attrs, which are there
	allOfIt           // of attributes and labels, which are not
)

// A Change is what happened to a route. It is valid during the callback.
type Change struct {
	Kind Kind
	// Route is the route as it stands now, after an announcement. For all other
	// kinds its Value is what the message said, if there was one.
	Route
	Found  bool  // there was such a route, announced
	Before Value // what was kept of it; zero if there was nothing
	// Same means that the announcement said nothing new: attributes and labels
	// are those of the route that was found.
	Same bool
	// Dumping means, of a withdrawal, that the dump of the family is not over: that
	// there was no such route may only mean that it had not been said yet.
	Dumping bool
	// Resumed means, of an announcement or End-of-RIB, that the BGP session it came over is the
	// one of the router's session before, by its Peer Up: see Resumed. Of a route that was
	// found it also means that it has been said since StartOver.
	Resumed bool
}

// Open begins a session of the router at a time of arrival. All peers are down,
// and all routes are kept as those of the generation before: they go when an
// End-of-RIB, Settle or Peer Down says so. It takes time in proportion to the
// number of peers.
func (t *Table) Open(arrival int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.shut {
		return
	}
	t.closed = false
	t.initiation = t.initiation[:0]
	t.progress = arrival
	t.up, t.kept = 0, 0
	for id, p := range t.peers {
		if p.up {
			p.resumption.begin(p.ups)
		}
		p.up, p.down, p.first, p.ups, p.stats, p.since = false, nil, nil, nil, nil, 0
		if len(p.ribs) == 0 {
			delete(t.peers, id)
			continue
		}
		t.kept += p.kept()
		for _, r := range p.ribs {
			t.renew(r)
		}
	}
}

// renew begins a generation of r.
func (t *Table) renew(r *RIB) {
	r.gen++
	for _, f := range r.families {
		if f != nil {
			f.stale = f.n
			f.state = f.state.after(opened)
		}
	}
}

// Clear takes all routes and peers out of the table, as Peer Down does with
// those of a peer: Tidy reports and releases them.
func (t *Table) Clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
}

func (t *Table) clear() {
	for _, r := range t.order {
		for i := range r.families {
			t.detachFamily(r, i, SessionGone)
		}
	}
	clear(t.peers)
	clear(t.ribs)
	clear(t.order)
	t.order, t.last = t.order[:0], nil
	t.up, t.kept = 0, 0
	t.initiation = t.initiation[:0]
}

// Close gives the table up: it is empty from the first call on and stays so
// (ErrClosed), and nothing more is reported, neither its routes nor those that
// Tidy owed. Each call releases about n routes, and it is to be called until
// there are no more: then the store has all of the table's memory again for
// others. Until then it lacks it, also if the table itself is garbage.
func (t *Table) Close(n int) (more bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.shut {
		t.clear()
		t.shut = true
	}
	return t.tidy(n, nil)
}

// detach takes the routes of p out of the table, in constant time for each RIB
// however many routes it has. The caller takes the RIBs out of the order.
func (t *Table) detach(p *peer, kind Kind) {
	for _, r := range p.ribs {
		for i := range r.families {
			t.detachFamily(r, i, kind)
		}
		delete(t.ribs, ribKey{p.id, r.BGPID, r.Kind})
		r.gone = true
	}
	p.ribs = nil
	t.last = nil
}

func (t *Table) detachFamily(r *RIB, i int, kind Kind) {
	f := r.families[i]
	if f == nil {
		return
	}
	r.families[i] = nil
	t.entries -= f.n
	t.routes -= f.n - f.withdrawn
	if f.queued {
		t.sweeps = slices.DeleteFunc(t.sweeps, func(s *familyTable) bool { return s == f })
	}
	if f.n > 0 {
		t.pending += f.n
		t.detached = append(t.detached, detached{f, kind})
	}
}

// Settle says that dumps are taken to have ended if nothing has come of them
// since a time of arrival: no route of the generation before was mentioned
// again, no peer came up, no End-of-RIB came. What is stale then is gone, and
// so is a peer that did not come up again in this session. It is for routers that send no End-of-RIB, or not for all;
// since is now less the quiet time. It reports whether there was something to end.
func (t *Table) Settle(since int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.progress > since {
		return false
	}
	did := false
	for id, p := range t.peers {
		if !p.up {
			if len(p.ribs) > 0 {
				t.detach(p, PeerGone)
				did = true
				if p.down == nil {
					t.kept -= p.kept()
					delete(t.peers, id)
				}
			}
			continue
		}
		for _, r := range p.ribs {
			for _, f := range r.families {
				if f != nil && (f.state == Begin || f.state == Dump) {
					t.ended(f)
					did = true
				}
			}
		}
	}
	if did {
		t.order = slices.DeleteFunc(t.order, func(r *RIB) bool { return r.gone })
	}
	return did
}

// ended moves f to the end of its dump.
func (t *Table) ended(f *familyTable) {
	f.state = f.state.after(marker)
	if f.state != EndOfRIB {
		return
	}
	if f.stale == 0 {
		f.state = f.state.after(swept)
		return
	}
	f.sweep = key{}
	if !f.queued {
		f.queued = true
		t.sweeps = append(t.sweeps, f)
	}
}

// Pending returns how many routes Tidy would report or release at least.
func (t *Table) Pending() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.owed()
}

func (t *Table) owed() int {
	n := t.pending
	for _, f := range t.sweeps {
		n += f.stale
	}
	return n
}

// Tidy looks at up to n routes that are gone, releases them and calls each, if
// it is not nil, for every one that was announced. It reports whether there is
// more to do. Routes that a peer lost come first, then those that a dump did
// not mention. A caller that reports them has to do so before the messages
// that come after: nothing keeps a route from being announced again before.
func (t *Table) Tidy(n int, each func(*Change)) (more bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.shut {
		each = nil
	}
	return t.tidy(n, each)
}

func (t *Table) tidy(n int, each func(*Change)) (more bool) {
	for n > 0 && len(t.detached) > 0 {
		d := &t.detached[0]
		n -= t.releaseLeaf(d.f, d.kind, each)
		if d.f.first == nil {
			*d = detached{}
			t.detached = t.detached[1:]
		}
	}
	for n > 0 && len(t.sweeps) > 0 {
		f := t.sweeps[0]
		n -= t.sweepLeaf(f, each)
		if !f.queued {
			t.sweeps[0] = nil
			t.sweeps = t.sweeps[1:]
		}
	}
	return len(t.detached)+len(t.sweeps) > 0
}

// releaseLeaf does away with the first leaf of a detached family and returns
// how many routes that were.
func (t *Table) releaseLeaf(f *familyTable, kind Kind, each func(*Change)) int {
	l := f.first
	n := l.n
	for i := range l.vals[:n] {
		t.expectOld(&l.vals[i])
	}
	fetch(unsafe.Pointer(l.next), 1+fan*int(unsafe.Sizeof(value{}))/line)
	for i := range l.vals[:n] {
		v := &l.vals[i]
		if each != nil && v.state&stateWithdrawn == 0 {
			t.report(f, l, i, kind, each)
		}
		t.releaseValue(v)
	}
	t.pending -= n
	f.shift()
	return n
}

func (t *Table) releaseValue(v *value) {
	if t.opts.Hashes {
		return
	}
	t.store.release(v.attrs)
	t.store.releaseLabels(v.labels)
}

// report calls each for a route that is about to go.
func (t *Table) report(f *familyTable, l *leaf, i int, kind Kind, each func(*Change)) {
	c := &t.apply.change
	*c = Change{Kind: kind, Found: true}
	k := f.key(l, i)
	c.Route.RIB = f.rib
	f.describe(&c.Route, &k, l.vals[i].host)
	t.value(&c.Before, f, &l.vals[i], &t.apply.before)
	each(c)
}

// sweepLeaf removes what is stale in the next leaf of f and returns how many
// routes it has looked at.
func (t *Table) sweepLeaf(f *familyTable, each func(*Change)) int {
	done := func() {
		f.queued = false
		if f.state == EndOfRIB {
			f.state = f.state.after(swept)
		}
	}
	if f.state != EndOfRIB { // opened again
		f.queued = false
		return 1
	}
	if f.stale == 0 {
		done()
		return 1
	}
	l, i, _ := f.seek(&f.sweep)
	if l != nil && i == l.n {
		l, i = l.next, 0
	}
	if l == nil {
		f.sweep = key{} // cannot be: something is stale
		done()
		return 1
	}
	n := 0
	for ; n < fan; n++ {
		v := &l.vals[i]
		if v.gen != f.rib.gen {
			f.sweep = f.key(l, i)
			if each != nil && v.state&stateWithdrawn == 0 {
				t.report(f, l, i, Swept, each)
			}
			t.drop(f, l, i)
			n++
			break // the leaf may be another one now
		}
		if i++; i == l.n {
			if l, i = l.next, 0; l == nil {
				break
			}
		}
	}
	if l != nil && n == fan {
		f.sweep = f.key(l, i)
	}
	if f.stale == 0 {
		done()
	}
	return n
}

// drop removes an entry of f.
func (t *Table) drop(f *familyTable, l *leaf, i int) {
	v := &l.vals[i]
	if v.gen != f.rib.gen {
		f.stale--
	}
	t.entries--
	if v.state&stateWithdrawn != 0 {
		f.withdrawn--
	} else {
		t.routes--
	}
	t.releaseValue(v)
	f.remove(l, i)
}

// Routes returns how many routes are announced.
func (t *Table) Routes() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.routes
}

// Bytes returns the memory that the routes take, without the attributes, which
// all tables of a store share.
func (t *Table) Bytes() int64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.bytes()
}

func (t *Table) bytes() int64 {
	var n int64
	for _, r := range t.order {
		for _, f := range r.families {
			if f != nil {
				n += f.bytes()
			}
		}
	}
	for _, d := range t.detached {
		n += d.f.bytes()
	}
	return n
}

// ForgetWithdrawn releases routes that are only kept because Options.Withdrawn
// says so and were withdrawn before a time of arrival. It looks at up to about n
// routes, from where it was the last time, and reports whether there are more
// until it has been through the table once.
func (t *Table) ForgetWithdrawn(before int64, n int) (more bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at, _ := slices.BinarySearchFunc(t.order, t.forget.seq, compareSeq)
	for ; at < len(t.order); at++ {
		r := t.order[at]
		t.forget.enter(r)
		for ; t.forget.family < len(bgp.Families); t.forget.nextFamily() {
			f := r.families[t.forget.family]
			if f == nil || f.withdrawn == 0 {
				continue
			}
			it := iterator{f: f}
			for ok := it.seek(&Walk{}, &t.forget.key); ok; n-- {
				if n <= 0 {
					t.forget.key = it.key
					return true
				}
				if v := &it.l.vals[it.i]; v.state&stateWithdrawn != 0 && v.arrival < before {
					t.drop(f, it.l, it.i)
					ok = it.seek(&Walk{}, &it.key)
				} else {
					ok = it.next(&Walk{})
				}
			}
		}
	}
	t.forget = position{}
	return false
}

// Errors of Apply, besides ErrStoreFull and those of the decoders.
var (
	ErrClosed          = errors.New("the table was given up")
	ErrNoPeerUp        = errors.New("no Peer Up for this peer")
	ErrLocRIBAddress   = errors.New("Loc-RIB peer with an address (RFC 9069 section 4.1)")
	ErrLabelledAddPath = errors.New("labelled routes with path identifiers")
	ErrTooManyPeers    = fmt.Errorf("more than %d peers up", maxPeers)
	ErrPeersFull       = fmt.Errorf("more than %d MiB of messages about peers", maxKept>>20)
	ErrTooManyRIBs     = fmt.Errorf("more than %d RIBs", maxRIBs)
	ErrTooManyRoutes   = errors.New("more routes than the table may have")
	ErrTooLong         = fmt.Errorf("message longer than %d bytes", maxMessage)
)

func compareSeq(r *RIB, seq uint64) int { return cmp.Compare(r.seq, seq) }
